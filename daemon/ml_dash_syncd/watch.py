"""What may have changed: sizes are looked at, often where a writer lives; the file system may hint.

Looking is the truth: it works on every file system. `watchdog` only tells sooner of what is new in a few folders.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from ml_dash.journal.segment import SEGMENTS, parse_name
from ml_dash.lock import Liveness, probe

log = logging.getLogger("ml_dash.syncd")

LIVE_S: Final = 0.2
REST_S: Final = 1.0
SLOWEST_LIVE_S: Final = 2.0
SLOWEST_REST_S: Final = 30.0
# How much of a core looking may take.
LIVE_SHARE: Final = 0.005
REST_SHARE: Final = 0.007
_MOST_FOLDERS: Final = 32

Signature = tuple[int, tuple[tuple[str, int], ...]]


class Look:
    """The last look at one journal."""

    __slots__ = ("_locks", "changed_ns", "folder", "gone", "live", "sizes")

    def __init__(self, journal: Path) -> None:
        self.folder = journal / SEGMENTS
        self.changed_ns = -1
        # The last segment of each writer that holds its lock, and its size.
        self.sizes: dict[str, int] = {}
        # Locks that nobody holds: their writers died, which is noted once.
        self.gone: set[str] = set()
        self.live = False
        self._locks: dict[str, str] = {}

    def has_changed(self) -> bool:
        """Is there a new file, has one grown, or has a writer died? Raises OSError if the folder cannot be read."""
        changed = self.look_at_rest()
        for name, size in self.sizes.items():
            try:
                found = os.stat(f"{self.folder}/{name}").st_size  # noqa: PTH116 - thousands of times a second
            except FileNotFoundError:
                found = -1
            if found != size:
                self.sizes[name] = found
                changed = True
        return self._find_gone() or changed

    def look_at_rest(self) -> bool:
        """The same for one without living writers: is there a new file?"""
        changed_ns = os.stat(self.folder).st_mtime_ns  # noqa: PTH116 - as above
        if changed_ns == self.changed_ns:
            return False
        self.changed_ns = changed_ns
        self._list()
        return True

    def _list(self) -> None:
        last: dict[str, str] = {}
        locks: dict[str, str] = {}
        for name in sorted(os.listdir(self.folder)):
            parsed = parse_name(name)
            if parsed is not None:
                last[parsed.writer] = name
            elif name.endswith(".lock"):
                locks[name[21:53]] = name
        self.gone &= set(locks.values())
        self.sizes = {
            last[writer]: self.sizes.get(last[writer], -1)
            for writer, lock in locks.items()
            if writer in last and lock not in self.gone
        }
        self._locks = {last[writer]: lock for writer, lock in locks.items() if writer in last}
        self.live = bool(self.sizes)

    def _find_gone(self) -> bool:
        found = False
        for name in list(self.sizes):
            lock = self._locks[name]
            if probe(self.folder / lock) is Liveness.GONE:
                # What it wrote last was looked at before.
                self.gone.add(lock)
                del self.sizes[name]
                found = True
        self.live = bool(self.sizes)
        return found


class Pace:
    """How often to look, so that looking takes only its share of a core, also where a look is slow."""

    def __init__(self, soonest_s: float, slowest_s: float, share: float) -> None:
        self._soonest_s, self._slowest_s, self._share = soonest_s, slowest_s, share
        self.interval_s = soonest_s

    def timed(self, work: Callable[[], Any]) -> None:
        """Do the work, and learn from how long it took."""
        began = perf_counter()
        work()
        wanted = (perf_counter() - began) / self._share
        self.interval_s = min(max(wanted, self._soonest_s), self._slowest_s)


class Hints:
    """`watchdog` on a few folders, where that works; where it does not, looking has to do."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._observer: Any = None
        self._watched: set[Path] = set()
        self.broken = ""

    def watch(self, folders: Iterable[Path]) -> None:
        """Hear of new entries in these folders, as far as there are not too many."""
        for folder in folders:
            if self.broken or len(self._watched) >= _MOST_FOLDERS:
                return
            if folder not in self._watched and folder.is_dir():
                self._add(folder)

    def _add(self, folder: Path) -> None:
        try:
            from watchdog.events import DirCreatedEvent, FileCreatedEvent, FileMovedEvent, FileSystemEventHandler
            from watchdog.observers import Observer

            wake = self._wake

            class Handler(FileSystemEventHandler):
                def on_any_event(self, event: Any) -> None:
                    wake()

            if self._observer is None:
                self._observer = Observer()
                self._observer.start()
            kinds = [DirCreatedEvent, FileCreatedEvent, FileMovedEvent]
            self._observer.schedule(Handler(), str(folder), recursive=False, event_filter=kinds)
            self._watched.add(folder)
        except (OSError, RuntimeError) as error:
            self.broken = str(error)
            log.info("the file system does not tell of changes (%s): looking is enough", error)
            self.close()

    def close(self) -> None:
        """Watch no longer."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            if observer.is_alive():
                observer.join(2.0)
