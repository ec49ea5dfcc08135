"""What may have changed: sizes are looked at, often where a writer lives; the file system may hint.

Looking is the truth: it works on every file system. `watchdog` only tells sooner of what is new in a few folders.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from ml_dash.disk.lock import Liveness, probe
from ml_dash.journal.segment import SEGMENTS, parse_name

log = logging.getLogger("ml_dash.syncd")

LIVE_S: Final = 0.2
REST_S: Final = 1.0
FULL_S: Final = 30.0
"""How often all sizes are looked at, whatever locks and folders say: on some file systems they say nothing."""

LISTED_EVERY: Final = 4
"""Of that many looks at sizes one lists the folder, too: its time may have hidden a new segment."""

SLOWEST_LIVE_S: Final = 2.0
SLOWEST_REST_S: Final = 30.0
# How much of a core looking may take.
LIVE_SHARE: Final = 0.005
REST_SHARE: Final = 0.003
_MOST_OBSERVED: Final = 32

FRESH_NS: Final = 2_000_000_000
"""A folder that was changed so lately may change again without another time: clocks of file systems are coarse."""

# What says that there is no more watching to be had, not that one folder cannot be watched.
_NO_MORE: Final = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSYS, errno.EINVAL)


class Look:
    """The last look at one journal."""

    __slots__ = ("_fresh", "_last", "_locks", "_names", "_total", "changed_ns", "folder", "gone", "live", "sizes")

    def __init__(self, journal: Path) -> None:
        # A text: making one of a Path costs more than the call that needs it.
        self.folder = str(journal / SEGMENTS)
        self.changed_ns = -1
        # The last segment of each writer that holds its lock, and its size.
        self.sizes: dict[str, int] = {}
        # Locks that nobody holds: their writers died, which is noted once.
        self.gone: set[str] = set()
        self.live = False
        self._locks: dict[str, str] = {}
        # The last segments of all writers: no other one can grow.
        self._last: tuple[str, ...] = ()
        self._names: tuple[int, int] = (0, 0)
        self._fresh = False
        self._total = -1

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
        """Look at a journal without living writers: is there a new file?"""
        changed_ns = os.stat(self.folder).st_mtime_ns  # noqa: PTH116 - as above
        if changed_ns == self.changed_ns and not self._fresh:
            return False
        self._fresh = abs(time.time_ns() - changed_ns) < FRESH_NS
        names, seen = self._listed()
        if changed_ns == self.changed_ns and seen == self._names:
            return False
        self.changed_ns, self._names = changed_ns, seen
        self._list(names)
        return True

    def has_grown(self, *, listing: bool = True) -> bool:
        """Is any segment of another size than when this was last asked, or, with `listing`, is one new? Raises OSError.

        Listing costs ten times as much where folders have left the memory of the system.
        """
        new = False
        if listing:
            names, seen = self._listed()
            if seen != self._names:
                self._names, new = seen, True
                self._list(names)
        total = 0
        for name in self._last:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(f"{self.folder}/{name}").st_size  # noqa: PTH116 - as above
        # The first time counts as grown: what was written between the first look and this one nobody has seen.
        grown, self._total = self._total != total, total
        return grown or new

    def _listed(self) -> tuple[list[str], tuple[int, int]]:
        """The names in the folder, and what tells them from others."""
        names = sorted(os.listdir(self.folder))
        return names, (len(names), hash(tuple(names)))

    def _list(self, names: list[str]) -> None:
        last: dict[str, str] = {}
        locks: dict[str, str] = {}
        for name in names:
            parsed = parse_name(name)
            if parsed is not None:
                last[parsed.writer] = name
            elif name.endswith(".lock"):
                locks[name[21:53]] = name
        self._last = tuple(last.values())
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
            if probe(Path(self.folder, lock)) is Liveness.GONE:
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
    """`watchdog` tells of new entries in folders, where that works; where it does not, looking has to do.

    Thousands of folders, none recursively: so not one observer's thread for each, but one instance of inotify for all.
    Elsewhere, and with another watchdog, a few folders are observed.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        """`tell(name)` is called, from another thread, with each name given for the folder."""
        self._tell = tell
        self._shared: Any = None
        self._observer: Any = None
        self._watched: dict[str, Any] = {}
        # A journal that goes to two servers has two names.
        self._names: dict[str, set[str]] = {}
        self.broken = ""

    def watch(self, folder: str, name: str) -> None:
        """Hear of new entries in a folder, from now on."""
        if self.broken:
            return
        names = self._names.get(folder, set())
        if name not in names:
            # A new set: another thread may be going through the one that is there.
            self._names[folder] = {*names, name}
        if folder in self._watched:
            return
        try:
            self._watched[folder] = self._add_shared(folder)
        except (ImportError, AttributeError, TypeError):
            self._observe(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno in _NO_MORE:
                self._give_up(error)
            else:
                log.debug("%s cannot be watched: %s", folder, error)

    def _add_shared(self, folder: str) -> Any:
        from watchdog.observers.inotify_c import InotifyConstants, InotifyFD

        constants: Any = InotifyConstants
        if self._shared is None:
            instance = InotifyFD()
            instance.start()
            self._shared = instance
        mask = constants.IN_CREATE | constants.IN_MOVED_TO | constants.IN_ONLYDIR
        return self._shared.add_callback(os.fsencode(folder), mask, _Callback(self, folder), id(self))

    def _observe(self, folder: str) -> None:
        if len(self._watched) >= _MOST_OBSERVED:
            return
        from watchdog.events import FileSystemEventHandler
        from watchdog.observers import Observer

        heard = self.heard

        class Handler(FileSystemEventHandler):
            def on_created(self, event: Any) -> None:
                heard(folder)

            def on_moved(self, event: Any) -> None:
                heard(folder)

        try:
            if self._observer is None:
                self._observer = Observer()
                self._observer.start()
            self._watched[folder] = self._observer.schedule(Handler(), folder, recursive=False)
        except (OSError, RuntimeError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.broken = str(error)
        log.info("the file system does not tell of changes any more (%s): looking has to do", error)

    def heard(self, folder: str) -> None:
        """Something is new there."""
        for name in self._names.get(folder, ()):
            self._tell(name)

    def forgotten(self, folder: str) -> None:
        """The folder is gone; it is watched again when it is back."""
        self._watched.pop(folder, None)

    def close(self) -> None:
        """Watch no longer."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            if observer.is_alive():
                observer.join(2.0)
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.stop()
            if shared.is_alive():
                shared.join(2.0)


class _Callback:
    """What watchdog calls."""

    __slots__ = ("_folder", "_hints")

    def __init__(self, hints: Hints, folder: str) -> None:
        self._hints, self._folder = hints, folder

    def on_event(self, event: Any) -> None:
        self._hints.heard(self._folder)

    def on_watch_deleted(self, wd: Any) -> None:
        self._hints.forgotten(self._folder)

    def on_queue_overflow(self) -> None:
        self._hints.heard(self._folder)
