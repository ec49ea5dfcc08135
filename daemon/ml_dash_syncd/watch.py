"""Detection of change in journals: sizes compared at intervals, sooner where a writer lives or the file system hints.

Polling decides, because it works on every file system. Hints of `watchdog` only make it happen sooner; where they do
not come, nothing is missed.

    journal with a living writer   sizes of the last segments, and the locks            0.2 s .. 2 s
    journal without one            one `stat` of the folder: is there a new segment?    1 s .. 30 s, at once with a hint
    every journal                  sum of the sizes of last segments                    within FULL_S

The second row is enough on a local file system, because only a living writer makes a segment grow. The third is for
file systems where a lock says nothing, or where a folder's modification time is cached.

The intervals follow the cost: a poll that took t seconds comes again after t / share seconds at the earliest. So ten
thousand journals cost no more of a core than ten.
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
SLOWEST_LIVE_S: Final = 2.0
"""Shortest and longest time between two polls of the journals that have a living writer."""

IDLE_S: Final = 1.0
SLOWEST_IDLE_S: Final = 30.0
"""Shortest and longest time between two polls of the other journals."""

LIVE_SHARE: Final = 0.005
IDLE_SHARE: Final = 0.003
"""Largest share of a core for each of these polls. Where one takes long, the next comes later."""

FULL_S: Final = 30.0
"""All sizes are compared within this time: on some file systems, locks and the times of folders show nothing."""

LISTED_EVERY: Final = 4
"""One of this many comparisons of sizes lists the folder too: its modification time may have hidden a new segment."""

_MOST_OBSERVED: Final = 32
"""Most folders that are observed where watchdog needs a thread for each."""

FRESH_NS: Final = 2_000_000_000
"""Two changes of a folder within this time may leave it with the same modification time."""

# Errors that mean that no more folders can be watched at all, not that this one cannot.
_NO_MORE: Final = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSYS, errno.EINVAL)


class JournalWatch:
    """What the last poll of one journal saw. For one thread."""

    __slots__ = ("_dead_locks", "_fresh", "_last", "_locks", "_names", "_total", "changed_ns", "folder", "live",
    "sizes")

    def __init__(self, journal: Path) -> None:
        # A str: making one of a Path costs more than the `stat` that needs it.
        self.folder = str(journal / SEGMENTS)
        # Modification time of the folder at the last poll; -1 before the first, -2 while it cannot be read.
        self.changed_ns = -1
        # Size in bytes of the last segment of each writer that holds its lock, by file name.
        self.sizes: dict[str, int] = {}
        # Lock files that nobody holds any more. A writer's death is reported once.
        self._dead_locks: set[str] = set()
        # True if a writer holds its lock.
        self.live = False
        # Last segment of a writer → its lock file.
        self._locks: dict[str, str] = {}
        # The last segments of all writers: no other segment can grow.
        self._last: tuple[str, ...] = ()
        # Number and hash of the file names in the folder.
        self._names: tuple[int, int] = (0, 0)
        # True if the folder had changed shortly before the last poll.
        self._fresh = False
        # Sum of the sizes of `_last`, in bytes.
        self._total = -1

    def has_changed(self) -> bool:
        """True if a file is new, a living writer's segment has grown, or a writer has died since the last poll.

        Raises OSError if the folder cannot be read.
        """
        changed = self.has_new_file()
        for name, size in self.sizes.items():
            try:
                new_size = os.stat(f"{self.folder}/{name}").st_size  # noqa: PTH116 - thousands of times a second
            except FileNotFoundError:
                new_size = -1
            if new_size != size:
                self.sizes[name] = new_size
                changed = True
        return self._find_dead_writers() or changed

    def has_new_file(self) -> bool:
        """True if a file of the journal is new or gone since the last poll. Nothing else changes without a writer.

        Costs one `stat` if the folder has not changed. Raises OSError if the folder cannot be read.
        """
        changed_ns = os.stat(self.folder).st_mtime_ns  # noqa: PTH116 - as above
        # A folder that changed less than FRESH_NS before the last poll is listed once more: another change may have
        # the same time.
        if changed_ns == self.changed_ns and not self._fresh:
            return False
        self._fresh = abs(time.time_ns() - changed_ns) < FRESH_NS
        names, seen = self._read_names()
        if changed_ns == self.changed_ns and seen == self._names:
            return False
        self.changed_ns, self._names = changed_ns, seen
        self._update_files(names)
        return True

    def has_grown(self, *, listing: bool = True) -> bool:
        """True if the sum of sizes has changed since the last call, or, with `listing`, a file is new.

        Listing costs ten times as much where the folder is no longer in the system's cache. Raises OSError.
        """
        new = False
        if listing:
            names, seen = self._read_names()
            if seen != self._names:
                self._names, new = seen, True
                self._update_files(names)
        total = 0
        for name in self._last:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(f"{self.folder}/{name}").st_size  # noqa: PTH116 - as above
        # The first call counts as growth: nobody has seen what was written between the first poll and now.
        grown, self._total = self._total != total, total
        return grown or new

    def _read_names(self) -> tuple[list[str], tuple[int, int]]:
        """The file names in the folder, and a short value that differs if they differ."""
        names = sorted(os.listdir(self.folder))
        return names, (len(names), hash(tuple(names)))

    def _update_files(self, names: list[str]) -> None:
        """Work out from the names in the folder which segments can grow, and which writers may be alive."""
        last: dict[str, str] = {}
        locks: dict[str, str] = {}
        for name in names:
            parsed = parse_name(name)
            if parsed is not None:
                last[parsed.writer] = name
            elif name.endswith(".lock"):
                # `<created: 20 digits>-<writer: 32 hex digits>.lock`.
                locks[name[21:53]] = name
        self._last = tuple(last.values())
        self._dead_locks &= set(locks.values())
        # A size of -1 differs from every real one, so a new segment counts as grown.
        self.sizes = {
            last[writer]: self.sizes.get(last[writer], -1)
            for writer, lock in locks.items()
            if writer in last and lock not in self._dead_locks
        }
        self._locks = {last[writer]: lock for writer, lock in locks.items() if writer in last}
        self.live = bool(self.sizes)

    def _find_dead_writers(self) -> bool:
        """Probe the locks of writers that were alive; True if one has died since the last poll."""
        died = False
        for name in list(self.sizes):
            lock = self._locks[name]
            # Where locks say nothing (UNKNOWN), the writer counts as alive and is polled on.
            if probe(Path(self.folder, lock)) is Liveness.GONE:
                # Its size was compared before this, so its last bytes are noticed.
                self._dead_locks.add(lock)
                del self.sizes[name]
                died = True
        self.live = bool(self.sizes)
        return died


class PollRate:
    """An interval between polls that keeps them within a share of a core, however long one takes."""

    def __init__(self, soonest_s: float, slowest_s: float, share: float) -> None:
        """`share` of a core, with an interval from `soonest_s` to `slowest_s` seconds."""
        self._soonest_s, self._slowest_s, self._share = soonest_s, slowest_s, share
        self.interval_s = soonest_s

    def measure(self, work: Callable[[], Any]) -> None:
        """Do one poll, and set `interval_s` by the time that it took."""
        began = perf_counter()
        work()
        within_share_s = (perf_counter() - began) / self._share
        self.interval_s = min(max(within_share_s, self._soonest_s), self._slowest_s)


class Hints:
    """Hints of new entries in folders, from `watchdog`. Where it cannot watch, there are no hints, and polling remains.

    There may be thousands of folders, none watched recursively. An observer of watchdog takes a thread for each, so on
    Linux one instance of inotify, which watchdog has beneath, serves them all. On other systems, and with a version of
    watchdog that has no such class, the first _MOST_OBSERVED folders are observed.
    """

    def __init__(self, on_new_entry: Callable[[str], None]) -> None:
        """`on_new_entry(name)` is called from a thread of watchdog, with each name that the folder has."""
        self._on_new_entry = on_new_entry
        self._shared: Any = None
        self._observer: Any = None
        self._watched: dict[str, Any] = {}
        # Folder → names to report. A journal that goes to two servers has two.
        self._names: dict[str, set[str]] = {}
        # Why no more folders can be watched; empty while they can.
        self.broken = ""

    def watch(self, folder: str, name: str) -> None:
        """Report new entries of a folder as `name` from now on. Does nothing if the folder cannot be watched."""
        if self.broken:
            return
        names = self._names.get(folder, set())
        if name not in names:
            # A new set: a thread of watchdog may be iterating over the present one.
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
        """Watch a folder with the inotify instance that all folders share.

        Raises OSError, and others where watchdog has no such class.
        """
        from watchdog.observers.inotify_c import InotifyConstants, InotifyFD

        constants: Any = InotifyConstants
        if self._shared is None:
            instance = InotifyFD()
            instance.start()
            self._shared = instance
        # Not IN_MODIFY: at thousands of appends a second, an event for each would cost more than all polling.
        mask = constants.IN_CREATE | constants.IN_MOVED_TO | constants.IN_ONLYDIR
        return self._shared.add_callback(os.fsencode(folder), mask, _Callback(self, folder), id(self))

    def _observe(self, folder: str) -> None:
        """Watch a folder with watchdog's observer, for systems without inotify."""
        if len(self._watched) >= _MOST_OBSERVED:
            return
        from watchdog.events import FileSystemEventHandler
        from watchdog.observers import Observer

        entry_created = self.entry_created

        class Handler(FileSystemEventHandler):
            def on_created(self, event: Any) -> None:
                entry_created(folder)

            def on_moved(self, event: Any) -> None:
                entry_created(folder)

        try:
            if self._observer is None:
                self._observer = Observer()
                self._observer.start()
            self._watched[folder] = self._observer.schedule(Handler(), folder, recursive=False)
        except (OSError, RuntimeError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Stop adding folders: the system's limit is reached, and those that are watched stay."""
        self.broken = str(error)
        log.info("the file system gives no more hints of changes (%s): polling instead", error)

    def entry_created(self, folder: str) -> None:
        """Report a new entry of a folder. Called by threads of watchdog."""
        for name in self._names.get(folder, ()):
            self._on_new_entry(name)

    def folder_removed(self, folder: str) -> None:
        """Forget that a folder is watched: it was removed. The next `watch` of it starts anew."""
        self._watched.pop(folder, None)

    def close(self) -> None:
        """Stop watching, and wait up to two seconds for each thread of watchdog."""
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
    """Receives the events of one folder, in the interface that watchdog's inotify class asks for."""

    __slots__ = ("_folder", "_hints")

    def __init__(self, hints: Hints, folder: str) -> None:
        self._hints, self._folder = hints, folder

    def on_event(self, event: Any) -> None:
        self._hints.entry_created(self._folder)

    def on_watch_deleted(self, wd: Any) -> None:
        self._hints.folder_removed(self._folder)

    def on_queue_overflow(self) -> None:
        self._hints.entry_created(self._folder)
