"""The runs of this process: one writer and one folder per experiment, shared by its handles."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from ..core.frames import OrderHeader
from ..core.rewinds import Elsewhere, Past
from ..core.state import Edits, State, index_of
from ..disk.config import quiet
from ..disk.durable import free_bytes, is_gone, on_local_disk
from ..errors import JournalError, StorageError
from ..journal.syncer import syncer
from ..journal.writer import Tally, Writer
from ..projection.project import Projector
from ..projection.replay import Enough, Pace, Replay
from ..projection.start import begin
from ..reading.read import Located, view
from ..reading.view import View, projected
from .background import keeper

if TYPE_CHECKING:
    from ..core.records import DurableState
    from ..sync.sent import Sent

log = logging.getLogger("ml_dash")

FOLDER_AT_CLOSE_S: Final = 5.0
_TELL_AFTER_S: Final = 2.0
# So much of a disk is left to the journal, or a hundredth of a small one.
_RESERVE_BYTES: Final = 16 << 20
_SLICE_EVENTS: Final = 256
# A read does not wait for other processes; this is what a projector needs for a pass while training.
_READ_WAIT_S: Final = 0.25


class MetricTally(Tally):
    """How many points of one metric this run has appended, and what their indices are."""

    __slots__ = ("metric", "run")

    def __init__(self, run: Run, metric: str) -> None:
        super().__init__()
        self.run = run
        self.metric = metric

    def index_of(self, ordinal: int | None) -> int:
        """The index of this run's `ordinal`-th point; -1 where the disk refused the point, or does not tell."""
        index = None
        if ordinal is not None:
            with contextlib.suppress(OSError, JournalError):
                index = self.run.index_of(self.metric, ordinal)
        return -1 if index is None else index


class _Tallies(dict[str, MetricTally]):
    """The tallies of one run, made as they are asked for."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def __missing__(self, metric: str) -> MetricTally:
        # Two threads may come here at once; both get the same one.
        return self.setdefault(metric, MetricTally(self._run, metric))


class Run:
    """An experiment as this process has it open: its writer, its projector, and the handles that share them."""

    def __init__(self, located: Located, identity: OrderHeader, writer: Writer, *, child: bool) -> None:
        self.located = located
        self.identity = identity
        self.writer = writer
        self.child = child
        self.pid = os.getpid()
        self.tallies = _Tallies(self)
        self.projector = Projector(located.journal, located.folder)
        self.handles = 0
        self.failed: dict[str, Any] | None = None
        self.interrupted = False
        self.ended = False
        self.secrets: set[str] = set()
        self.sent: list[Sent] = []
        self.projected_seq = -1
        self.projection_trouble: str | None = None
        self._protected = False
        self._readers = 0
        self._readers_guard = threading.Lock()
        self.local = _is_local(located.journal)
        self._short_of_room = self._gave_way = False
        writer.make_room = self._give_way

    # -- reading -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def looking(self) -> Iterator[View]:
        """A view that holds everything this process has written, while the block runs."""
        with self._wanted(), self.projector.guard:
            yield self._view()

    @contextlib.contextmanager
    def _wanted(self) -> Iterator[None]:
        """While the block runs, the background pass stops at its next slice and lets others go on from there."""
        self._want(1)
        try:
            yield
        finally:
            self._want(-1)

    def _want(self, more: int) -> None:
        with self._readers_guard:
            self._readers += more

    def _view(self) -> View:
        try:
            seq = self.writer.seq
            if self._has_room() and self.projector.advance(wait_s=_READ_WAIT_S, complete=False):
                self.projected_seq = seq
                self._learn(self.projector.state)
                return projected(self.projector)
        except OSError as error:
            log.debug("ml-dash: reading %s in memory: %s", self.located.journal, error)
        try:
            found = view(self.located)
        except OSError as error:
            raise cannot("read", self.located.journal, error) from error
        self._learn(found.state)
        return found

    def index_of(self, metric: str, ordinal: int) -> int | None:
        """The index of this run's `ordinal`-th point of a metric, also when it has ended; None if it is not there.

        Exact in the journal; for a point that waits in memory for the disk, what it will be if no other writer comes
        between.
        """
        if self.ended or self.pid != os.getpid():
            found = self._index_in(view(self.located).state, metric, ordinal)
        else:
            with self.looking() as look:
                found = self._index_in(look.state, metric, ordinal)
        return found if found is not None else _Seeker(self.located.journal, self.writer.id, metric, ordinal).seek()

    def _index_in(self, state: State, name: str, ordinal: int) -> int | None:
        metric, writer = state.metrics.get(name), state.writers.get(self.writer.id)
        if writer is not None and writer.uncounted:
            return None
        count, folded = (metric.count, metric.tallies.get(self.writer.id, 0)) if metric is not None else (0, 0)
        if not self.ended and ordinal >= folded and (writer is None or writer.alive):
            return count + ordinal - folded
        return index_of(metric, self.writer.id, ordinal) if metric is not None else None

    # -- protection --------------------------------------------------------------------------------------------------

    @property
    def protected(self) -> bool:
        """Whether this process knows that parameters and files are final."""
        return self._protected

    def protect(self) -> None:
        """Mark parameters and files as final."""
        self._protected = True

    def _learn(self, state: State) -> None:
        """Another process may have protected the experiment."""
        self._protected = self._protected or state.protected is not None

    # -- projecting --------------------------------------------------------------------------------------------------

    @property
    def behind(self) -> bool:
        """Is there anything to project?"""
        return self.writer.seq != self.projected_seq or self.projector.lagging

    def project(self, nap: Callable[[], None]) -> None:
        """One pass of the background thread: in small slices, so that it never holds training up."""
        seq = self.writer.seq
        if not self.behind or not self._has_room():
            return

        def step() -> None:
            if self._readers:
                raise Enough
            nap()

        try:
            if self.projector.advance(pace=Pace(_SLICE_EVENTS, step), complete=False):
                self.projected_seq = seq
                with self.projector.guard:
                    self._learn(self.projector.state)
            self.projection_trouble = None
        except Enough:
            # Whoever wants it goes on from here, at full speed.
            return
        except Exception as error:
            if self.projection_trouble is None:
                log.warning(
                    "ml-dash: the folder %s cannot be brought up to date (%s); the journal is not touched by that. "
                    "It is tried again; or run: ml-dash rebuild", self.located.folder, error,
                    exc_info=not isinstance(error, OSError),
                )  # fmt: skip
            self.projection_trouble = str(error)

    def _has_room(self) -> bool:
        """Is there room for more than the journal? It comes first: the folder can be made again at any time."""
        if self._gave_way:
            # What was freed is for the journal.
            return False
        try:
            free, size = free_bytes(self.located.journal)
        except OSError:
            # The journal's own trouble is told by its writer.
            return True
        reserve = self.writer.waiting_bytes + min(_RESERVE_BYTES, size // 100)
        short, self._short_of_room = self._short_of_room, free < reserve
        if self._short_of_room and not short:
            log.warning(
                "ml-dash: the disk is nearly full (%d MiB left): the folder %s is not brought up to date until there "
                "is room; the journal goes on", free >> 20, self.located.folder,
            )  # fmt: skip
        return not self._short_of_room

    def _give_way(self) -> bool:
        """The disk is full and events wait: what can be made again is removed for them."""
        if not self.projector.give_way():
            return False
        self._gave_way = True
        log.warning(
            "ml-dash: the disk is full: the readable folder %s has given way to what is still to be recorded. Free "
            "space, then run: ml-dash rebuild", self.located.folder,
        )  # fmt: skip
        return True

    def _finish_folder(self, silent: bool) -> None:
        """At close: bring the folder up to date for at most 5 seconds; the next reader does the rest."""
        if is_gone(self.located.journal) or not self._has_room():
            return
        begun = monotonic()
        told = False

        def step() -> None:
            nonlocal told
            spent = monotonic() - begun
            if spent > _TELL_AFTER_S and not told and not silent:
                told = True
                say("ml-dash: bringing the folder up to date (Ctrl-C skips that; nothing is lost)")
            if spent > FOLDER_AT_CLOSE_S:
                raise Enough

        try:
            if not self.projector.advance(wait_s=FOLDER_AT_CLOSE_S, pace=Pace(20_000, step)):
                log.debug("ml-dash: another process is projecting %s", self.located.folder)
        except Enough:
            if not silent:
                say(f"ml-dash: the folder is not complete yet; ml-dash show {self.identity.name} finishes it")
        except Exception as error:
            log.warning(
                "ml-dash: the folder %s is not up to date: %s; run: ml-dash rebuild", self.located.folder, error,
                exc_info=not isinstance(error, OSError),
            )  # fmt: skip

    # -- the end -----------------------------------------------------------------------------------------------------

    def durable_state(self) -> DurableState:
        """How safe this process's events are."""
        # First what the server has: it can only grow.
        remote = min((one.acknowledged() for one in self.sent), default=0)
        return cast("DurableState", {**self.writer.durable_counts(), "remote": remote})

    def tend(self) -> None:
        """Now and then, with a remote: see that somebody uploads."""
        if self.sent:
            from ..sync.sent import tend

            tend(self.sent, local=self.local)

    def close(self, status: str, error: dict[str, Any] | None) -> None:
        """Write the closing event, sync, bring the folder up to date. Raises StorageError if events were lost."""
        silent = self.child or quiet()
        self._want(1)
        keeper.remove(self)
        body: dict[str, Any] = {"status": status}
        if error is not None:
            body["error"] = error
        skipped = False
        try:
            self.writer.close(body)
        except KeyboardInterrupt:
            skipped = True
            raise
        finally:
            self.ended = True
            if self.sent:
                from ..sync.sent import end

                end(self.sent)
            try:
                syncer.remove(self.writer)
                if not skipped:
                    self._finish_folder(silent)
            except KeyboardInterrupt:
                if not silent:
                    say("ml-dash: skipped; the journal is complete, the next reader finishes the folder")

    def abandon(self) -> None:
        """In a child process that got it by a fork: it is the parent's. Let go of it, and touch nothing."""
        self.writer.abandon()
        self.projector.abandon()


class _Seeker:
    """Looks for the index of a point that the folded state has forgotten: folds the journal again, to that point."""

    def __init__(self, journal: Path, writer: str, metric: str, ordinal: int) -> None:
        self._replay = Replay(journal, begin(journal))
        self._writer = writer
        self._metric = metric
        self._ordinal = ordinal
        self._found: int | None = None

    def seek(self) -> int | None:
        """The index; None if the journal does not have the point."""
        with contextlib.suppress(Enough, OSError):
            self._replay.catch_up(self, record=False)
        return self._found

    def history(self, name: str, start: int, end: int) -> Iterator[Past]:
        """Nobody asks this fold for statistics."""
        raise Elsewhere

    def apply(self, edits: Edits) -> None:
        """Called after each stretch; the point is among the newest once its writer has brought that many."""
        edits.clear()
        state = self._replay.state
        metric, writer = state.metrics.get(self._metric), state.writers.get(self._writer)
        if metric is None or writer is None:
            return
        if metric.tallies.get(self._writer, 0) > self._ordinal or not writer.alive:
            self._found = index_of(metric, self._writer, self._ordinal)
            raise Enough


def _is_local(journal: Path) -> bool:
    try:
        return on_local_disk(journal)
    except OSError:
        return False


def cannot(act: str, place: Path, error: OSError) -> StorageError:
    """What is raised where the disk refuses to read or write a place."""
    why = error.strerror or str(error)
    if error.errno == errno.EEXIST:
        # Made with the folders above it: the system's "file exists" means a link that leads to no folder.
        links = [path for path in (place, *place.parents) if path.is_symlink() and not path.exists()]
        why = "".join(f"{link} is a link to {link.readlink()}, which is not there" for link in links[:1]) or why
    return StorageError.of(
        error,
        f"cannot {act} {place}: {why}",
        hint="mend the disk or its permissions, or record elsewhere: local_path=, or ML_DASH_LOCAL_PATH",
    )


def say(text: str) -> None:
    """A line on stderr, if there is one."""
    stream = sys.stderr
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.write(text + "\n")
            stream.flush()


class Open(Protocol):
    """A handle that has a run."""

    def close_at_exit(self) -> None:
        """The process ends: close it."""


class Registry:
    """The runs and handles of this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.pid = os.getpid()
        self.handles: weakref.WeakSet[Open] = weakref.WeakSet()
        self.told = False
        self._runs: dict[str, Run] = {}
        self._ends_with_child = False

    def run_of(self, journal: Path) -> Run | None:
        """The run that this process has of a journal, whatever links lead there."""
        return self._runs.get(os.path.realpath(journal))

    def enter(self, run: Run) -> None:
        """A run begins."""
        self._runs[os.path.realpath(run.located.journal)] = run
        keeper.add(run)
        self._end_with_child()

    def leave(self, run: Run) -> None:
        """A run ends."""
        self._runs = {path: other for path, other in self._runs.items() if other is not run}

    def _end_with_child(self) -> None:
        """Children of `multiprocessing` do not run the exit functions of their parent, some run none at all."""
        process = sys.modules.get("multiprocessing.process")
        if self._ends_with_child or process is None or process.parent_process() is None:
            return
        from multiprocessing.util import Finalize

        self._ends_with_child = True
        Finalize(None, self.close_all, exitpriority=-100)

    def after_fork(self) -> None:
        """In a forked child: the parent's runs are not ours, and what its handles do is theirs to know."""
        self.lock = threading.RLock()
        self.pid = os.getpid()
        keeper.after_fork()
        syncer.after_fork()
        runs, self._runs = self._runs, {}
        for run in runs.values():
            run.abandon()
        self.handles = weakref.WeakSet()
        self.told = True
        self._ends_with_child = False

    def close_all(self) -> None:
        """At the end of the process: close what is still open."""
        if os.getpid() != self.pid:
            return  # forked behind the interpreter's back: all of it is the parent's
        keeper.close_lost()
        for handle in list(self.handles):
            try:
                handle.close_at_exit()
            except StorageError as error:
                say(f"ml-dash: {error}")


registry = Registry()
"""The runs of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=registry.after_fork)
