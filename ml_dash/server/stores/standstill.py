"""How long experiments have stood still under another server's lease, by this process's own clock.

Clocks of machines are not compared: whoever waits sees (version, epoch) of an experiment each time it asks, and counts
from when it first saw the present ones. Only then may a lease be taken over.
"""

from __future__ import annotations

from threading import Lock

Key = tuple[str, str]
"""(namespace, experiment)"""


class Standstill:
    """Experiments that somebody here waits for. Any thread may call."""

    def __init__(self) -> None:
        self._guard = Lock()
        # The (version, epoch) that was seen last, and since when.
        self._seen: dict[Key, tuple[tuple[int, int], float]] = {}

    def seconds(self, key: Key, holds: tuple[int, int], now_s: float) -> float:
        """Return for how long an experiment has had this (version, epoch), as far as was seen from here."""
        with self._guard:
            known, since = self._seen.setdefault(key, (holds, now_s))
            if known != holds:
                self._seen[key] = holds, now_s
                return 0.0
            return now_s - since

    def forget(self, key: Key) -> None:
        """Nobody here waits for an experiment any more."""
        with self._guard:
            self._seen.pop(key, None)
