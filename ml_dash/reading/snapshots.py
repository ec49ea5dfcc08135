"""States on the way to moments in the past, kept in memory, so that the next look begins at the nearest one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from threading import Lock

from ..core.as_of import AsOf


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state on the way, encoded, with what its reader needs to go on from it: `events` of them, up to a time."""

    events: int
    newest_ns: int
    encoded: bytes


class Snapshots:
    """Snapshots of experiments that were looked back at: the next look begins at the nearest one. Any thread may call.

    At most `size_bytes` of them; those of the experiment that was not asked for longest go first.
    """

    def __init__(self, size_bytes: int) -> None:
        self._most = size_bytes
        self._size = 0
        self._lock = Lock()
        self._of: OrderedDict[Hashable, list[Snapshot]] = OrderedDict()

    def nearest(self, key: Hashable, until: AsOf) -> Snapshot | None:
        """Return the last snapshot of an experiment that is not behind a moment."""
        with self._lock:
            if key in self._of:
                self._of.move_to_end(key)
            fitting = [one for one in self._of.get(key, ()) if not until.is_before(one.events, one.newest_ns)]
            return max(fitting, key=lambda one: one.events, default=None)

    def add(self, key: Hashable, snapshot: Snapshot) -> None:
        """Keep a snapshot, unless there is one of as many events."""
        with self._lock:
            known = self._of.setdefault(key, [])
            if any(one.events == snapshot.events for one in known):
                return
            known.append(snapshot)
            self._size += len(snapshot.encoded)
            while self._size > self._most and self._of:
                oldest = next(iter(self._of))
                # The oldest of an experiment first; of the one in use as well, if it alone is too much.
                dropped = self._of[oldest].pop(0)
                self._size -= len(dropped.encoded)
                if not self._of[oldest]:
                    del self._of[oldest]

    def forget(self, key: Hashable) -> None:
        """Drop the snapshots of an experiment."""
        with self._lock:
            self._size -= sum(len(one.encoded) for one in self._of.pop(key, ()))
