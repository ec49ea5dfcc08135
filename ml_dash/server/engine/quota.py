"""The quota of a namespace: how many bytes it may keep here, and what it keeps, as far as this process knows.

What counts is what the documents say (`View.usage`): raw bytes of segments, and the contents of files and of bodies of
events that are complete. Asking costs a look at each experiment of the namespace, so the answer is kept for COUNTED_S,
and what this process has taken since is added. What other processes take, and contents that are on their way, are seen
a moment later: a namespace may go beyond its quota by what is under way at once.

Nothing that is stored is ever touched. Reading and removing stay possible. Removing files, or an experiment with its
files, makes room; raw bytes of a removed experiment stay stored, and count.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...core.protocol import QUOTA, Refused
from ..stores import Documents

COUNTED_S: Final = 30.0
"""For so long a count is believed."""
RECOUNT_S: Final = 1.0
"""A count that is older than this is made anew before something is refused: something may have been removed."""


@dataclass(slots=True)
class _Usage:
    """Bytes of a namespace: as counted at `at` (time.monotonic), and what has been taken here since."""

    counted: int
    at: float
    taken: int = 0


class Quota:
    """The quotas of all namespaces. Any thread may call; `_guard` protects `_usage`, and is not held while counting."""

    def __init__(self, documents: Documents, default: int = 0, single: Mapping[str, int] | None = None) -> None:
        """`default` is the quota of a namespace in bytes, `single` those of single ones, by name; 0 is none."""
        self._documents = documents
        self._default = default
        self._single = dict(single or {})
        self._guard = threading.Lock()
        self._usage: dict[str, _Usage] = {}

    def limit(self, ns: str) -> int:
        """Return the quota of a namespace in bytes; 0 for none."""
        return self._single.get(ns, self._default)

    def check(self, ns: str, size: int) -> None:
        """Raise Refused (507) if a namespace may not keep `size` bytes more. Raises StoreTrouble."""
        limit = self.limit(ns)
        if not limit or size <= 0:
            return
        used = self._used(ns, COUNTED_S)
        if used + size > limit:
            used = self._used(ns, RECOUNT_S)
        if used + size > limit:
            message = (
                f"{ns} keeps {used:,} bytes here, of {limit:,} it may, and {size:,} more do not fit; "
                "remove files here, or ask the server's owner for more"
            )
            raise Refused(507, QUOTA, message, used=used, limit=limit)

    def has_room(self, ns: str, size: int) -> bool:
        """Return whether a namespace may keep `size` bytes more. Raises StoreTrouble."""
        try:
            self.check(ns, size)
        except Refused:
            return False
        return True

    def used(self, ns: str) -> int:
        """Return how many bytes a namespace keeps, as far as this process knows. Raises StoreTrouble."""
        return self._used(ns, COUNTED_S)

    def took(self, ns: str, size: int) -> None:
        """Note that `size` bytes more are kept."""
        with self._guard:
            usage = self._usage.get(ns)
            if usage is not None:
                usage.taken += size

    def _used(self, ns: str, believed_s: float) -> int:
        """Return the bytes of a namespace, counted no longer than `believed_s` ago."""
        now = time.monotonic()
        with self._guard:
            usage = self._usage.get(ns)
            if usage is not None and now - usage.at < believed_s:
                return usage.counted + usage.taken
            before = usage.taken if usage is not None else 0
        with self._documents.view() as view:
            counted = view.usage(ns)
        with self._guard:
            # What was taken while it was counted may be in the count or not: it is added, to be on the safe side.
            taken = self._usage[ns].taken - before if ns in self._usage else 0
            self._usage[ns] = _Usage(counted, now, max(0, taken))
            return counted + max(0, taken)
