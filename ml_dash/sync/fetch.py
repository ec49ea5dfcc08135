"""Fetching of an experiment, state and files, from the server before it is opened: for a job that has moved elsewhere.

The wait is bounded: what has not come by then is left, nothing half-done is put in place, and a warning says so.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Final

from ..disk.lock import Liveness, probe
from ..disk.settings import Settings
from ..errors import JournalError, MLDashError, NotFound, ServerRefused
from ..journal import base as bases
from ..journal import blobs
from ..journal.segment import CHECKPOINT, SEGMENTS, list_segments
from ..projection.projector import TURN_WAIT_S, Projector
from ..reading.located import Located
from ..reading.view import look_anew
from .identity import connect
from .pull.download import bring_blob
from .pull.pull import pull
from .pull.source import Deadline, Stopped
from .registrations import registration_for
from .remote import ServerSource

log = logging.getLogger("ml_dash")

WAIT_S: Final = 30.0


def fetch(located: Located, settings: Settings, wait_s: float = WAIT_S) -> None:
    """Download what the server has of `located`. A server that has nothing, or does not answer, is no error.

    Does nothing where the experiment is open already, in this process or another one of this machine. Warns, by the
    log, where something could not be brought within `wait_s` seconds.
    """
    if _is_open(located):
        return
    work = _Work(located, settings)
    thread = threading.Thread(target=work.run, name="ml-dash-fetch", daemon=True)
    thread.start()
    thread.join(wait_s)
    if thread.is_alive() and work.deadline.expire():
        work.failure = f"it did not answer in time ({wait_s:.0f} s)"
    elif thread.is_alive():
        # It is being put in place at this moment, which takes no network.
        work.deadline.wait_placed(wait_s)
    work.stopped.set()
    if work.failure:
        log.warning(
            "ml-dash: nothing was fetched from %s: %s; going on with what is here", settings.remote, work.failure
        )
    elif work.left:
        log.warning(
            "ml-dash: %d files of %s/%s did not come from %s%s; run: ml-dash pull %s/%s --state-only --files",
            work.left, located.project, located.name, settings.remote, f": {work.trouble}" if work.trouble else "",
            located.project, located.name,
        )  # fmt: skip


def _is_open(located: Located) -> bool:
    """True if a writer of this machine is alive: the journal here is the newest then."""
    locks = {located.journal / SEGMENTS / name.lock for name, _ in list_segments(located.journal)}
    return any(lock.exists() and probe(lock) is Liveness.ALIVE for lock in locks)


class _Work:
    """The work of the thread, and its result.

    The thread writes `failure`, `left` and `trouble`; the caller reads them once, when it stops waiting.
    """

    def __init__(self, located: Located, settings: Settings) -> None:
        self.deadline = Deadline()
        self.stopped = threading.Event()
        # Why nothing came; how many files did not come, and why.
        self.failure = ""
        self.left = 0
        self.trouble = ""
        self._located = located
        self._settings = settings

    def run(self) -> None:
        try:
            with contextlib.closing(connect(registration_for(self._located.journal, self._settings))) as link:
                source = ServerSource(link)
                pull(
                    source, self._located, state_only=self._state_only(), files=False, fill=False,
                    deadline=self.deadline,
                )  # fmt: skip
                self._bring_files(source)
        except (NotFound, Stopped):
            # The experiment begins here; or nobody waits any more.
            return
        except (MLDashError, OSError) as error:
            if self.deadline.placed or self.left:
                self.trouble = str(error)
            else:
                self.failure = self.failure or str(error)

    def _state_only(self) -> bool:
        """True if the state is enough: not where a journal is, or a base that keeps lines, which is to be completed."""
        journal = self._located.journal
        if not (journal / SEGMENTS).is_dir():
            return True
        try:
            base = bases.load(journal)
        except JournalError:
            return True
        return base is not None and not base.kept

    def _bring_files(self, source: ServerSource) -> None:
        """Download the contents of current files, the smallest first, until the caller stops waiting."""
        journal = self._located.journal
        experiment = source.find(self._located.project, self._located.name)
        if experiment is None:
            return
        live = [file for file in look_anew(journal, self._located.folder).state.files.values() if file.live]
        present = blobs.names(journal)
        lacking = [file for file in live if present.get(file.blob) != file.size_bytes]
        self.left = len(lacking)
        try:
            for file in sorted(lacking, key=lambda file: file.size_bytes):
                self._check()
                try:
                    bring_blob(source, experiment["experiment"], file.blob, journal, lambda size: self._check())
                except ServerRefused as refused:
                    if refused.status != 404:
                        raise
                    self.trouble = "it does not have them yet"
                else:
                    self.left -= 1
        finally:
            if self.left < len(lacking) and bases.exists(journal):
                self._show_files()

    def _check(self) -> None:
        if self.stopped.is_set():
            raise Stopped

    def _show_files(self) -> None:
        """Write the files that were downloaded into the documented folder."""
        projector = Projector(self._located.journal, self._located.folder)
        with projector.having_turn(TURN_WAIT_S) as taken:
            if taken:
                (self._located.journal / CHECKPOINT).unlink(missing_ok=True)
                projector.begin_at_base()
