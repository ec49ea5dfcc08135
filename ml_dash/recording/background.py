"""The one thread of a process that keeps the folders of its runs up to date."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from time import sleep
from typing import TYPE_CHECKING, Final, Protocol

from ..disk.durable import Write, keeping_write
from ..errors import StorageError
from ..journal.syncer import syncer
from . import process

if TYPE_CHECKING:
    from ..journal.writer import Writer

log = logging.getLogger("ml_dash")

PROJECT_EVERY_S: Final = 0.5
# Modules that only the folder needs are loaded so long after the start, when the first points are recorded.
LOAD_AFTER_S: Final = 0.05
_JOIN_S: Final = 5.0
# Between two slices of a pass, so that threads of the training get the interpreter's lock.
_PAUSE_S: Final = 0.0015
# The main thread, the syncer, and this one.
_OUR_THREADS: Final = 3


class Lost(Protocol):
    """A handle that was garbage-collected while open."""

    def close(self, error: None, status: None) -> None:
        """Close it, as its user should have done. May raise StorageError."""


class Projected(Protocol):
    """A run whose folder is projected. The background thread calls it; no call may block for long."""

    writer: Writer
    loaded: bool

    @property
    def local(self) -> bool:
        """True if its journal is on a disk of this machine, not on a network."""

    def load(self) -> None:
        """Load the modules that only the folder needs, and set `loaded`. Raises ImportError or OSError."""

    @property
    def behind(self) -> bool:
        """True if there is anything to project."""

    def project(self, pause: Callable[[], None]) -> None:
        """Bring the folder up to date, in small slices; `pause` is called after each. Logs failures, raises none."""

    def ensure_uploader(self) -> None:
        """Start an uploader if one is needed and none runs."""


class BackgroundProjector:
    """The thread that brings the folders of its runs up to date, twice a second, and closes lost handles.

    It also loads the modules for that, a moment after the first run has begun. `_guard` protects `_runs`, `_thread` and
    `_wake`; `_closing` is held while lost handles are closed, and is taken before `_guard`.
    """

    def __init__(self) -> None:
        self._lost: deque[Lost] = deque()
        self._keeping: Write | None = None
        self._begin()

    def _begin(self) -> None:
        self._runs: list[Projected] = []
        self._guard = threading.Lock()
        self._closing = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        """Start over in a forked child, without thread and runs."""
        self._lost.clear()
        self._begin()

    def add(self, run: Projected) -> None:
        """Keep a run's folder up to date from now on; start the thread with the first run."""
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
                    syncer.start()
                    return
                self._thread = thread

    def remove(self, run: Projected) -> None:
        """Stop projecting a run; with the last run, end the thread and wait for it, at most 5 seconds."""
        with self._guard:
            if run in self._runs:
                self._runs.remove(run)
            thread, wake = (None if self._runs else self._thread), self._wake
            if not self._runs:
                self._thread = None
        if thread is not None:
            wake.set()
            if thread is not threading.current_thread():
                thread.join(_JOIN_S)

    # -- lost handles ------------------------------------------------------------------------------------------------

    def collect(self, handle: Lost) -> None:
        """Have a lost handle closed, within half a second or at exit.

        The garbage collector calls this at any point of any thread, which may hold any lock: so none is taken here.
        """
        self._lost.append(handle)

    def close_lost(self) -> None:
        """Close the lost handles; if another thread is doing so, wait until it has finished."""
        with self._closing:
            while self._lost:
                handle = self._lost.popleft()
                try:
                    handle.close(None, None)
                except StorageError as error:
                    log.error("ml-dash: %s", error)

    # -- the thread --------------------------------------------------------------------------------------------------

    def _loop(self, wake: threading.Event) -> None:
        wait_s = LOAD_AFTER_S
        while True:
            wake.wait(wait_s)
            wake.clear()
            if self._lost:
                self.close_lost()
            with self._guard:
                runs = list(self._runs)
                if not runs or self._thread not in (None, threading.current_thread()):
                    return
            syncer.start()
            self._load(runs)
            if wait_s == PROJECT_EVERY_S:
                self._pass(runs)
            wait_s = PROJECT_EVERY_S

    def _load(self, runs: list[Projected]) -> None:
        """Load the modules that runs need, for those that have begun without them."""
        for run in runs:
            if run.loaded:
                continue
            try:
                with process.loading():
                    run.load()
                    if run.local:
                        run.writer.when_contended = self._keeping_write()
            except (ImportError, OSError) as error:
                # No file descriptor left, for example: tried again at the next pass.
                log.debug("ml-dash: could not load what projects: %s", error)

    def _pass(self, runs: list[Projected]) -> None:
        local = [run.writer for run in runs if run.local]
        # A write that releases the interpreter's lock loses it to any busy thread, also to this one.
        busy = threading.active_count() > _OUR_THREADS
        at_rest = self._keeping_write() if busy and local else None

        def pause() -> None:
            self._use(local, at_rest)
            sleep(_PAUSE_S)
            self._use(local, self._keeping_write() if local else None)

        for run in runs:
            run.ensure_uploader()
        due = [run for run in runs if run.loaded and run.behind]
        if due and local:
            self._use(local, self._keeping_write())
        for run in due:
            run.project(pause)
        self._use(local, at_rest)

    def _keeping_write(self) -> Write:
        if self._keeping is None:
            self._keeping = keeping_write()
        return self._keeping

    @staticmethod
    def _use(writers: list[Writer], write: Write | None) -> None:
        for writer in writers:
            writer.use_write(write)


background_projector = BackgroundProjector()
"""The projector of this process: one thread for all its runs."""
