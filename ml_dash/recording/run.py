"""The runs of this process: one writer and one folder per experiment, shared by its handles."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..core.frames import OrderHeader
from ..disk.durable import on_local_disk
from ..disk.places import quiet
from ..errors import JournalError, StorageError
from ..journal.syncer import syncer
from ..journal.writer import Tally, Writer
from ..reading.located import Located
from . import process
from .background import background_projector
from .messages import print_line

if TYPE_CHECKING:
    from ..core.records import DurableState
    from ..reading.view import View
    from ..sync.progress import Sent
    from .folder import RunFolder

log = logging.getLogger("ml_dash")


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
    """An experiment as this process has it open: its writer, its folder, and the handles that share them."""

    def __init__(self, located: Located, identity: OrderHeader, writer: Writer, *, child: bool) -> None:
        self.located = located
        self.identity = identity
        self.writer = writer
        self.child = child
        self.pid = os.getpid()
        self.tallies = _Tallies(self)
        self.handles = 0
        self.failed: dict[str, Any] | None = None
        self.interrupted = False
        self.ended = False
        self.secrets: set[str] = set()
        self.sent: list[Sent] = []
        self._local: bool | None = None
        self._protected = False
        self._folder: RunFolder | None = None
        self.loaded = False
        writer.make_room = lambda: self.folder.give_way()

    @property
    def local(self) -> bool:
        """Is its journal on a disk of this machine?"""
        if self._local is None:
            self._local = _is_local(self.located.journal)
        return self._local

    @property
    def folder(self) -> RunFolder:
        """Its documented folder. What reads and writes that is loaded here, when it is first wanted."""
        if self._folder is None:
            with process.loading():
                from .folder import RunFolder

                self._folder = self._folder or RunFolder(self.located, self.writer)
        return self._folder

    def looking(self) -> AbstractContextManager[View]:
        """A view that holds everything this process has written, while the block runs."""
        return self.folder.looking()

    def index_of(self, metric: str, ordinal: int) -> int | None:
        """The index of this run's `ordinal`-th point of a metric, also when it has ended; None if it is not there.

        Exact in the journal; for a point that waits in memory for the disk, what it will be if no other writer comes
        between.
        """
        return self.folder.index_of(metric, ordinal, ended=self.ended or self.pid != os.getpid())

    # -- protection --------------------------------------------------------------------------------------------------

    @property
    def protected(self) -> bool:
        """Whether this process knows that parameters and files are final."""
        return self._protected or (self._folder is not None and self._folder.protected)

    def protect(self) -> None:
        """Mark parameters and files as final."""
        self._protected = True

    # -- the background thread ---------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load what the first points need not wait for."""
        self.writer.load()
        _ = self.folder
        self.loaded = True

    @property
    def behind(self) -> bool:
        """Is there anything to project?"""
        return self.folder.behind

    def project(self, pause: Callable[[], None]) -> None:
        """One pass of the background thread: in small slices, so that it never holds training up."""
        self.folder.project(pause)

    # -- the end -----------------------------------------------------------------------------------------------------

    def durable_state(self) -> DurableState:
        """How safe this process's events are."""
        # First what the server has: it can only grow.
        remote = min((one.acknowledged() for one in self.sent), default=0)
        return cast("DurableState", {**self.writer.durable_counts(), "remote": remote})

    def ensure_uploader(self) -> None:
        """Now and then, with a remote: see that somebody uploads."""
        if self.sent:
            from ..sync.progress import ensure_uploader

            ensure_uploader(self.sent, local=self.local)

    def close(self, status: str, error: dict[str, Any] | None) -> None:
        """Write the closing event, sync, bring the folder up to date. Raises StorageError if events were lost."""
        silent = self.child or quiet()
        if self._folder is not None:
            # The background pass stops at its next slice.
            self._folder.want(1)
        background_projector.remove(self)
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
                from ..sync.progress import end

                end(self.sent)
            try:
                syncer.remove(self.writer)
                if not skipped:
                    self._finish_folder(silent)
            except KeyboardInterrupt:
                if not silent:
                    print_line("ml-dash: skipped; the journal is complete, the next reader finishes the folder")

    def _finish_folder(self, silent: bool) -> None:
        if self._folder is None and isinstance(getattr(sys, "last_value", None), KeyboardInterrupt):
            # SIGINT ends the program. To load modules now would make it end with another exit code; a reader finishes.
            return
        try:
            folder = self.folder
        except (ImportError, OSError) as error:
            log.warning(
                "ml-dash: the folder %s is not up to date: %s; run: ml-dash rebuild", self.located.folder, error
            )
            return
        folder.finish(silent=silent)

    def abandon(self) -> None:
        """In a child process that got it by a fork: it is the parent's. Let go of it, and touch nothing."""
        self.writer.abandon()
        if self._folder is not None:
            self._folder.abandon()


def _is_local(journal: Path) -> bool:
    try:
        return on_local_disk(journal)
    except OSError:
        return False


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
        self.announced = False
        self._runs: dict[str, Run] = {}
        self._ends_with_child = False

    def run_of(self, journal: Path) -> Run | None:
        """The run that this process has of a journal, whatever links lead there."""
        return self._runs.get(os.path.realpath(journal))

    def enter(self, run: Run) -> None:
        """A run begins."""
        self._runs[os.path.realpath(run.located.journal)] = run
        background_projector.add(run)
        self._end_with_child()

    def leave(self, run: Run) -> None:
        """A run ends."""
        self._runs = {path: other for path, other in self._runs.items() if other is not run}

    def _end_with_child(self) -> None:
        """Children of `multiprocessing` do not run the exit functions of their parent, some run none at all."""
        multiprocessing = sys.modules.get("multiprocessing.process")
        if self._ends_with_child or multiprocessing is None or multiprocessing.parent_process() is None:
            return
        from multiprocessing.util import Finalize

        self._ends_with_child = True
        Finalize(None, self.close_all, exitpriority=-100)

    def after_fork(self) -> None:
        """In a forked child: the parent's runs are not ours, and what its handles do is theirs to know."""
        self.lock = threading.RLock()
        self.pid = os.getpid()
        background_projector.after_fork()
        syncer.after_fork()
        runs, self._runs = self._runs, {}
        for run in runs.values():
            run.abandon()
        self.handles = weakref.WeakSet()
        self.announced = True
        self._ends_with_child = False

    def close_all(self) -> None:
        """At the end of the process: close what is still open."""
        if os.getpid() != self.pid:
            return  # forked behind the interpreter's back: all of it is the parent's
        background_projector.close_lost()
        for handle in list(self.handles):
            try:
                handle.close_at_exit()
            except StorageError as error:
                print_line(f"ml-dash: {error}")


registry = Registry()
"""The runs of this process."""

process.in_child.append(registry.after_fork)
