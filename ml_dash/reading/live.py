"""Views that are kept and brought forward: looking again at a run costs what is new, not what it is made of.

A view is made from a checkpoint and folds what came since. Whoever looks again within minutes gets the same view, with
the newest events folded on top: of a run that goes on those of a second, of one that has ended none. A few look-ups of
files say whether anything is new (`mark_of`).

A view is for one thread at a time, so each has a lock, which is held while one is `looking`. What takes long, such as
reading lines, is better done after it (see `view.Lines`).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..disk.lock import Liveness, probe
from ..journal.merge import OrderChanged
from ..journal.segment import BASE, CHECKPOINT, ORDER, SEGMENTS, list_segments
from ..projection import checkpoint as checkpoints
from ..projection.projector import catch_up
from .located import Located
from .read import view
from .view import View

Mark = tuple[object, ...]

# Views that are kept, and metrics in all of them together: the state of a metric takes about a kilobyte.
_MOST_VIEWS: Final = 256
_MOST_METRICS: Final = 100_000
# Lines in memory from which a view is made anew, once the folder has them.
_MOST_LINES: Final = 20_000
# Bytes of segments that are rather brought into the folder than kept in memory.
_FAR_BYTES: Final = 32 << 20
_LOCKS_PROBED: Final = 256


def mark_of(journal: Path, alive: Collection[str] = ()) -> Mark:
    """Return what differs once something was written to a journal, or one of these writers has died.

    Raises FileNotFoundError if it is gone.
    """
    with os.scandir(journal / SEGMENTS) as entries:
        sizes = sorted((entry.name, entry.stat(follow_symlinks=False).st_size) for entry in entries)
    # A process that is killed changes no file, but lets go of its lock.
    wanted = set(alive)
    locks = [name for name, _ in sizes if name.endswith(".lock") and name[:-5].rpartition("-")[2] in wanted]
    held = tuple(probe(journal / SEGMENTS / name) is Liveness.ALIVE for name in locks)
    return (*sizes, held, _size(journal / ORDER), _identity(journal / BASE))


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return -1


def _identity(path: Path) -> tuple[int, int, int]:
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
    return (0, 0, 0)


def view_of(located: Located) -> View:
    """Return a view as `read.view` does; of a run that has ended far ahead of its folder, brought up to date first.

    Else all that the folder lacks would be in memory, each time. Where the folder cannot be written, it is.
    """
    if _is_far_behind(located.journal):
        with suppress(OSError):
            catch_up(located)
    return view(located)


def _is_far_behind(journal: Path) -> bool:
    """True if many bytes of ended writers are not in the folder yet. A living one brings its folder up to date."""
    segments = []
    for name, path in list_segments(journal):
        with suppress(FileNotFoundError):
            segments.append((name, path.stat().st_size))
    if sum(size for _, size in segments) < _FAR_BYTES:
        return False
    checkpoint = checkpoints.load(journal)
    covered = checkpoint.settled if checkpoint is not None else {}
    unread = sum(size for name, size in segments if covered.get(str(name)) != size)
    locks = sorted((journal / SEGMENTS).glob("*.lock"))[-_LOCKS_PROBED:]
    return unread >= _FAR_BYTES and not any(probe(lock) is Liveness.ALIVE for lock in locks)


@dataclass(slots=True)
class _Kept:
    """One view, with what was there when it was made and brought forward last."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    view: View | None = None
    mark: Mark = ()
    checkpoint: tuple[int, int, int] = (0, 0, 0)


class LiveViews:
    """The views that a process keeps. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Path, _Kept] = OrderedDict()

    @contextmanager
    def looking(self, located: Located) -> Iterator[View]:
        """Give a view of everything that is on disk now, to this thread alone while the block runs.

        Raises FileNotFoundError if the experiment is gone, JournalError if there is a base that cannot be used.
        """
        with self._lock:
            kept = self._kept.setdefault(located.journal, _Kept())
            self._kept.move_to_end(located.journal)
        with kept.lock:
            try:
                current = _current(kept, located)
            except BaseException:
                kept.view = None
                raise
            yield current
        self._trim()

    def forget(self, journal: Path) -> None:
        """Drop the view of an experiment."""
        with self._lock:
            self._kept.pop(journal, None)

    def _trim(self) -> None:
        with self._lock:
            metrics = sum(len(kept.view.state.metrics) for kept in self._kept.values() if kept.view is not None)
            while len(self._kept) > 1 and (len(self._kept) > _MOST_VIEWS or metrics > _MOST_METRICS):
                _, dropped = self._kept.popitem(last=False)
                metrics -= len(dropped.view.state.metrics) if dropped.view is not None else 0


def _current(kept: _Kept, located: Located) -> View:
    """Return the kept view brought forward, or a new one."""
    alive = kept.view.state.alive if kept.view is not None else ()
    mark, checkpoint = mark_of(located.journal, alive), _identity(located.journal / CHECKPOINT)
    if kept.view is not None:
        try:
            if mark[-1] != kept.mark[-1]:
                raise OrderChanged(located.journal)
            if kept.view.lines_in_memory > _MOST_LINES and checkpoint != kept.checkpoint:
                raise OrderChanged(located.journal)
            if mark != kept.mark:
                kept.view.forward()
                kept.mark = mark
            return kept.view
        except OrderChanged:
            pass
    kept.view, kept.mark, kept.checkpoint = view_of(located), mark, checkpoint
    return kept.view
