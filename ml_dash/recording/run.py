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
    from .ending import Cause
    from .folder import RunFolder

log = logging.getLogger("ml_dash")


class MetricTally(Tally):
    """The count of points of one metric that this run has appended, and their indices."""

    __slots__ = ("metric", "run")

    def __init__(self, run: Run, metric: str) -> None:
        super().__init__()
        self.run = run
        self.metric = metric

    def index_of(self, ordinal: int | None) -> int:
        """Return the index of this run's `ordinal`-th point; -1 if the disk refused it, or cannot be read now."""
        index = None
        if ordinal is not None:
            with contextlib.suppress(OSError, JournalError):
                index = self.run.index_of(self.metric, ordinal)
        return -1 if index is None else index


class _Tallies(dict[str, MetricTally]):
    """The tallies of one run by metric, created at first use."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def __missing__(self, metric: str) -> MetricTally:
        # Two threads may come here at once: `setdefault` gives both the same tally.
        return self.setdefault(metric, MetricTally(self._run, metric))


class Run:
    """An experiment that is open in this process: its writer, its folder, and the count of handles that share them.

    `handles`, `failed`, `interrupted` and `cause` change under `registry.lock` only.
    """

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
        self.cause: Cause = {}
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
        """True if its journal is on a disk of this machine, not on a network."""
        if self._local is None:
            self._local = _is_local(self.located.journal)
        return self._local

    @property
    def folder(self) -> RunFolder:
        """Its documented folder. The modules that read and write it are loaded at the first use."""
        if self._folder is None:
            with process.loading():
                from .folder import RunFolder

                self._folder = self._folder or RunFolder(self.located, self.writer)
        return self._folder

    def looking(self) -> AbstractContextManager[View]:
        """A view that holds everything this process has written, while the block runs."""
        return self.folder.looking()

    def index_of(self, metric: str, ordinal: int) -> int | None:
        """Return the index of this run's `ordinal`-th point of a metric, also after its end.

        None if there is no such point. For a point that waits in memory for the disk, it is the index that it gets if
        no other writer adds points first.
        """
        return self.folder.index_of(metric, ordinal, ended=self.ended or self.pid != os.getpid())

    # -- protection --------------------------------------------------------------------------------------------------

    @property
    def protected(self) -> bool:
        """True if this process knows that parameters and files are final."""
        return self._protected or (self._folder is not None and self._folder.protected)

    def protect(self) -> None:
        """Mark parameters and files as final."""
        self._protected = True

    # -- the background thread ---------------------------------------------------------------------------------------

    def load(self) -> None:
        """Load the modules that the first points need not wait for."""
        self.writer.load()
        _ = self.folder
        self.loaded = True

    @property
    def behind(self) -> bool:
        """True if there is anything to project."""
        return self.folder.behind

    def project(self, pause: Callable[[], None]) -> None:
        """Make one pass of the background thread, in small slices with pauses, so that it never holds up training."""
        self.folder.project(pause)

    # -- the end -----------------------------------------------------------------------------------------------------

    def durable_state(self) -> DurableState:
        """Return counts of this process's events, by how safe they are; see `Experiment.durable_state`."""
        # Read before the counts of the writer, which only grow: so `remote` never exceeds `written`.
        remote = min((upload.acknowledged() for upload in self.sent), default=0)
        return cast("DurableState", {**self.writer.durable_counts(), "remote": remote})

    def ensure_uploader(self) -> None:
        """Start an uploader, with a remote, if none runs; called twice a second, it looks once a minute."""
        if self.sent:
            from ..sync.progress import ensure_uploader

            ensure_uploader(self.sent, local=self.local)

    def close(self, status: str, error: dict[str, Any] | None) -> None:
        """Write the closing event, sync, and bring the folder up to date. Raises StorageError if events were lost."""
        silent = self.child or quiet()
        if self._folder is not None:
            # The background pass stops at its next slice.
            self._folder.want(1)
        background_projector.remove(self)
        body: dict[str, Any] = {"status": status, **(self.cause if status != "completed" else {})}
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
            # SIGINT ends the program: loading modules now would change its exit code. A reader finishes the folder.
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
        """Let go of it in a forked child, and touch nothing on disk: it is the parent's."""
        self.writer.abandon()
        if self._folder is not None:
            self._folder.abandon()


def _is_local(journal: Path) -> bool:
    try:
        return on_local_disk(journal)
    except OSError:
        return False


class Open(Protocol):
    """An open handle, as the registry needs it."""

    def close_at_exit(self) -> None:
        """Close it at the end of the process. Raises StorageError if events were lost."""


class Registry:
    """The runs and handles of this process. `lock` is held while a run begins, gets or loses a handle.

    `announced`: the line about the first run was printed.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.pid = os.getpid()
        self.handles: weakref.WeakSet[Open] = weakref.WeakSet()
        self.announced = False
        self._runs: dict[str, Run] = {}
        self._ends_with_child = False

    def run_of(self, journal: Path) -> Run | None:
        """Return this process's run of a journal, by its real path; None if there is none."""
        return self._runs.get(os.path.realpath(journal))

    def enter(self, run: Run) -> None:
        """Add a run that begins."""
        self._runs[os.path.realpath(run.located.journal)] = run
        background_projector.add(run)
        self._end_with_child()

    def leave(self, run: Run) -> None:
        """Remove a run that ends."""
        self._runs = {path: other for path, other in self._runs.items() if other is not run}

    def _end_with_child(self) -> None:
        """Close at the end of a child of `multiprocessing`, which may run no functions of `atexit`."""
        multiprocessing = sys.modules.get("multiprocessing.process")
        if self._ends_with_child or multiprocessing is None or multiprocessing.parent_process() is None:
            return
        from multiprocessing.util import Finalize

        self._ends_with_child = True
        Finalize(None, self.close_all, exitpriority=-100)

    def after_fork(self) -> None:
        """Start over in a forked child: abandon the parent's runs, and announce nothing."""
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
        """Close everything that is still open, at the end of the process."""
        if os.getpid() != self.pid:
            return  # forked without os.fork, so no hook ran: all of it is the parent's
        background_projector.close_lost()
        for handle in list(self.handles):
            try:
                handle.close_at_exit()
            except StorageError as error:
                print_line(f"ml-dash: {error}")


registry = Registry()
"""The runs of this process."""

process.in_child.append(registry.after_fork)
