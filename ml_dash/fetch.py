"""Bring an experiment's state, and its files, from the server before it is opened: for a job that goes on elsewhere.

The wait is bounded: what has not come by then is left, nothing half-done is put in place, and a warning says so.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from . import blobs
from .config import Settings
from .errors import MLDashError, NotFound, Unauthorised
from .journal import base as bases
from .journal.segment import CHECKPOINT, SEGMENTS
from .login import tokens_for
from .projection.project import Projector
from .pull import Permit, Source, Stopped, bring_blob, pull
from .read import Located
from .remote import Link, ServerSource, find_experiment
from .view import look_anew

log = logging.getLogger("ml_dash")

WAIT_S: Final = 30.0


def fetch(located: Located, settings: Settings, wait_s: float = WAIT_S) -> None:
    """Bring what the server has of `located`; a server that has nothing, or does not answer, is no error.

    Warns, by the log, where something could not be brought within `wait_s` seconds.
    """
    work = _Work(located, settings)
    thread = threading.Thread(target=work.run, name="ml-dash-fetch", daemon=True)
    thread.start()
    thread.join(wait_s)
    if thread.is_alive() and work.permit.stop():
        work.failure = f"it did not answer in time ({wait_s:.0f} s)"
    work.stopped = True
    if work.failure:
        log.warning(
            "ml-dash: nothing was fetched from %s: %s; going on with what is here", settings.remote, work.failure
        )
    elif thread.is_alive() or work.left:
        log.warning(
            "ml-dash: of %s/%s not all files came from %s in time; run: ml-dash pull %s/%s --state-only --files",
            located.project, located.name, settings.remote, located.project, located.name,
        )  # fmt: skip


class _Work:
    """What the thread does, and what came of it."""

    def __init__(self, located: Located, settings: Settings) -> None:
        self.permit = Permit()
        self.failure = ""
        self.left = 0
        self.stopped = False
        self._located = located
        self._settings = settings

    def run(self) -> None:
        try:
            source = self._source()
            is_here = (self._located.journal / SEGMENTS).is_dir() and not bases.exists(self._located.journal)
            pull(source, self._located, state_only=not is_here, files=False, fill=False, permit=self.permit)
            self._bring_files(source)
        except (NotFound, Stopped):
            # It begins here; or nobody waits any more.
            return
        except (MLDashError, OSError) as error:
            self.failure = self.failure or str(error)

    def _source(self) -> Source:
        """The server, with the first login that it accepts. Raises Unauthorised, Unreachable."""
        url = self._settings.remote
        assert url is not None
        given = self._settings.api_key
        tokens = [given] if given is not None else tokens_for(url, self._settings.user_name)
        for number, token in enumerate(tokens):
            link = Link(url, token)
            try:
                find_experiment(link, self._located.project, self._located.name)
            except Unauthorised:
                if number == len(tokens) - 1:
                    raise
            except MLDashError:
                # Asked again by whoever uses it, and told there.
                return ServerSource(link)
            else:
                return ServerSource(link)
        raise Unauthorised(f"there is no login for {url}", hint=f"run: ml-dash login {url}")

    def _bring_files(self, source: Source) -> None:
        """The contents of files that are listed, the smallest first, for as long as somebody waits."""
        journal = self._located.journal
        found = source.find(self._located.project, self._located.name)
        if found is None:
            return
        live = [file for file in look_anew(journal, self._located.folder).state.files.values() if file.live]
        present = blobs.names(journal)
        lacking = [file for file in live if present.get(file.blob) != file.size_bytes]
        self.left = len(lacking)
        for file in sorted(lacking, key=lambda file: file.size_bytes):
            if self.stopped:
                return
            bring_blob(source, found["experiment"], file.blob, journal)
            self.left -= 1
        if lacking and bases.exists(journal):
            self._show_files()

    def _show_files(self) -> None:
        """Make the documented folder show what has come."""
        projector = Projector(self._located.journal, self._located.folder)
        with projector.having_turn(WAIT_S) as taken:
            if taken:
                (self._located.journal / CHECKPOINT).unlink(missing_ok=True)
                projector.begin_at_base()
