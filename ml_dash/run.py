"""What this process has open: one writer per experiment, shared by its handles, and the thread that projects."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final

from .durable import Write, keeping_write, on_local_disk
from .errors import StorageError
from .frames import OrderHeader
from .journal.syncer import syncer
from .journal.writer import Tally, Writer
from .projection.project import Projector
from .projection.replay import Enough, Pace
from .read import Located, View, fresh_view, view

if TYPE_CHECKING:
    from .experiment import Experiment

log = logging.getLogger("ml_dash")

PROJECT_EVERY_S: Final = 0.5
FOLDER_AT_CLOSE_S: Final = 5.0
_TELL_AFTER_S: Final = 2.0
_SLICE_EVENTS: Final = 256
_NAP_S: Final = 0.0015
# The main one, the one that syncs, the one that projects.
_OUR_THREADS: Final = 3
_READ_WAIT_S: Final = 2.0


class Run:
    """An experiment as this process has it open: its writer, its projector, and the handles that share them."""

    def __init__(self, located: Located, identity: OrderHeader, writer: Writer, *, child: bool) -> None:
        self.located = located
        self.identity = identity
        self.writer = writer
        self.child = child
        self.tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self.projector = Projector(located.journal, located.folder)
        self.handles = 0
        self.failed: dict[str, Any] | None = None
        self.interrupted = False
        self.protected = False
        self.secrets: set[str] = set()
        self.projected_seq = -1
        self.wanted = 0
        self.projection_trouble: str | None = None
        self.local = _is_local(located.journal)

    # -- reading -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def looking(self) -> Iterator[View]:
        """A view that holds everything this process has written, while the block runs."""
        with self._wanted(), self.projector.guard:
            yield self._view()

    @contextlib.contextmanager
    def _wanted(self) -> Iterator[None]:
        """While the block runs, the background pass stops at its next slice and lets others go on from there."""
        self.wanted += 1
        try:
            yield
        finally:
            self.wanted -= 1

    def _view(self) -> View:
        try:
            seq = self.writer.seq
            if self.projector.advance(wait_s=_READ_WAIT_S, complete=False):
                self.projected_seq = seq
                return self.projector.view()
        except OSError as error:
            log.debug("ml-dash: reading %s in memory: %s", self.located.journal, error)
        return view(self.located)

    def fresh(self) -> View:
        """A view from the journal alone, when the folder is not what it should be."""
        return fresh_view(self.located)

    # -- projecting --------------------------------------------------------------------------------------------------

    def project(self, nap: Callable[[], None]) -> None:
        """One pass of the background thread: in small slices, so that it never holds training up."""
        seq = self.writer.seq
        if seq == self.projected_seq:
            return

        def step() -> None:
            if self.wanted:
                raise Enough
            nap()

        try:
            if self.projector.advance(pace=Pace(_SLICE_EVENTS, step), complete=False):
                self.projected_seq = seq
            self.projection_trouble = None
        except Enough:
            # Whoever wants it goes on from here, at full speed.
            return
        except Exception as error:  # noqa: BLE001 - a folder that cannot be written, for whatever reason, never ends training
            if self.projection_trouble is None:
                log.warning(
                    "ml-dash: the folder %s cannot be brought up to date (%s); the journal is not touched by that. "
                    "It is tried again; or run: ml-dash rebuild", self.located.folder, error,
                    exc_info=not isinstance(error, OSError),
                )  # fmt: skip
            self.projection_trouble = str(error)

    def finish_folder(self, quiet: bool) -> None:
        """At close: bring the folder up to date for at most 5 seconds; the next reader does the rest."""
        begun = monotonic()
        told = False

        def step() -> None:
            nonlocal told
            spent = monotonic() - begun
            if spent > _TELL_AFTER_S and not told and not quiet:
                told = True
                _say("ml-dash: bringing the folder up to date (Ctrl-C skips that; nothing is lost)")
            if spent > FOLDER_AT_CLOSE_S:
                raise Enough

        try:
            if not self.projector.advance(wait_s=FOLDER_AT_CLOSE_S, pace=Pace(20_000, step)):
                log.debug("ml-dash: another process is projecting %s", self.located.folder)
        except Enough:
            if not quiet:
                _say(f"ml-dash: the folder is not complete yet; ml-dash show {self.identity.name} finishes it")
        except KeyboardInterrupt:
            _say("ml-dash: skipped; the journal is complete, the next reader finishes the folder")
        except Exception as error:  # noqa: BLE001 - the journal is complete; the folder never makes a run fail
            log.warning(
                "ml-dash: the folder %s is not up to date: %s; run: ml-dash rebuild", self.located.folder, error,
                exc_info=not isinstance(error, OSError),
            )  # fmt: skip

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self, status: str, error: dict[str, Any] | None, *, quiet: bool) -> None:
        """Write the closing event, sync, bring the folder up to date. Raises StorageError if events were lost."""
        self.wanted += 1
        keeper.remove(self)
        body: dict[str, Any] = {"status": status}
        if error is not None:
            body["error"] = error
        try:
            self.writer.close(body)
        finally:
            syncer.remove(self.writer)
            self.finish_folder(quiet)


def _is_local(journal: Path) -> bool:
    try:
        return on_local_disk(journal)
    except OSError:
        return False


def _say(text: str) -> None:
    stream = sys.stderr
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.write(text + "\n")
            stream.flush()


class Keeper:
    """The one thread of a process that keeps the folders of its runs up to date."""

    def __init__(self) -> None:
        self._runs: list[Run] = []
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost: list[Experiment] = []
        self._keeping: Write | None = None

    def add(self, run: Run) -> None:
        """Keep this run's folder up to date from now on."""
        if run.local:
            run.writer.when_contended = self._keeping_write()
        with self._guard:
            self._runs.append(run)
            if self._thread is None:
                self._wake = threading.Event()
                thread = threading.Thread(target=self._loop, args=(self._wake,), name="ml-dash-project", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    # No more threads: close() and every reader bring the folder up to date by themselves.
                    log.debug("ml-dash: no thread to project with: %s", error)
                    return
                self._thread = thread

    def remove(self, run: Run) -> None:
        """Keep it no longer; the thread ends with the last one."""
        with self._guard:
            if run in self._runs:
                self._runs.remove(run)
            thread = None if self._runs else self._thread
            if not self._runs:
                self._thread = None
        if thread is not None:
            self._wake.set()
            if thread is not threading.current_thread():
                thread.join(FOLDER_AT_CLOSE_S)

    def collect(self, handle: Experiment) -> None:
        """A handle was lost while open: close it, but not inside the garbage collector."""
        self._lost.append(handle)
        self._wake.set()

    def _loop(self, wake: threading.Event) -> None:
        while True:
            wake.wait(PROJECT_EVERY_S)
            wake.clear()
            while self._lost:
                self._lost.pop().close()
            with self._guard:
                runs = list(self._runs)
                if not runs or self._thread not in (None, threading.current_thread()):
                    return
            self._pass(runs)

    def _pass(self, runs: list[Run]) -> None:
        local = [run.writer for run in runs if run.local]
        # Any busy thread, this one too, takes the interpreter's lock from a write that lets go of it.
        busy = threading.active_count() > _OUR_THREADS
        at_rest = self._keeping_write() if busy and local else None

        def nap() -> None:
            self._use(local, at_rest)
            sleep(_NAP_S)
            self._use(local, self._keeping_write() if local else None)

        due = [run for run in runs if run.writer.seq != run.projected_seq]
        if due and local:
            self._use(local, self._keeping_write())
        for run in due:
            run.project(nap)
        self._use(local, at_rest)

    def _keeping_write(self) -> Write:
        if self._keeping is None:
            self._keeping = keeping_write()
        return self._keeping

    @staticmethod
    def _use(writers: list[Writer], write: Write | None) -> None:
        for writer in writers:
            writer.use_write(write)

    def after_fork(self) -> None:
        """In a forked child: no thread, no runs."""
        self._runs = []
        self._lost = []
        self._thread = None
        self._guard = threading.Lock()
        self._wake = threading.Event()


class Registry:
    """The runs and handles of this process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.runs: dict[Path, Run] = {}
        self.handles: weakref.WeakSet[Experiment] = weakref.WeakSet()
        self.told = False
        self.parent_writers: dict[Path, str] = {}

    def after_fork(self) -> None:
        """In a forked child: the parent's runs are not ours; handles that log again get writers of their own."""
        self.lock = threading.RLock()
        keeper.after_fork()
        syncer.after_fork()
        for path, run in self.runs.items():
            self.parent_writers[path] = run.writer.id
            run.writer.abandon()
            run.projector.abandon()
        self.runs = {}
        self.told = True
        for handle in list(self.handles):
            handle._forked()

    def close_all(self) -> None:
        """At interpreter exit: close what is still open."""
        for handle in list(self.handles):
            try:
                handle._close_at_exit()
            except StorageError as error:
                _say(f"ml-dash: {error}")


keeper = Keeper()
registry = Registry()
atexit.register(registry.close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=registry.after_fork)
