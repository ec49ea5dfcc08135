"""The work of making indexes: bounded pieces, done by the caller, or by a thread for which nobody waits long."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from ..errors import JournalError

log = logging.getLogger("ml_dash")

Work = Callable[[], bool]
"""work(): do one piece of a job, well below a second; True if there is more."""

# What a job may raise: a disk that refuses, a folder that somebody changes, a database that is in use.
_TROUBLE: Final = (OSError, JournalError, sqlite3.Error)
_STOP_S: Final = 5.0
# How long a piece waits for callers, so that jobs get on although somebody asks all the time.
_GIVE_WAY_S: Final = 0.5


class Indexer:
    """Does jobs in turn, a piece of each. With `patience_s` None the caller does them, and waits for all.

    Otherwise a thread does, which lives as long as there is work; callers wait for `patience_s` at most. A job that
    fails is dropped: who asks for the result finds that it is not there, and does without.
    """

    def __init__(self, patience_s: float | None) -> None:
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._jobs: OrderedDict[Hashable, Work] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._stopped = False
        # How many callers are at work, for whom the thread waits between two pieces.
        self._callers = 0

    @contextmanager
    def first(self) -> Iterator[None]:
        """Let the block come before the next piece of a job: a thread that computes makes all others slow."""
        with self._changed:
            self._callers += 1
        try:
            yield
        finally:
            with self._changed:
                self._callers -= 1
                self._changed.notify_all()

    def bring(self, jobs: Mapping[Hashable, Work], *, wait: bool = True) -> None:
        """Do these jobs, or begin with them; a key that is being worked on already is not added again.

        Without `wait` nobody waits for the thread; a caller who does them himself does all of them in any case.
        """
        if self._patience_s is None:
            for work in jobs.values():
                while _piece(work):
                    pass
            return
        until = time.monotonic() + (self._patience_s if wait else 0)
        with self._changed:
            for key, work in jobs.items():
                self._add(key, work)
            while not self._jobs.keys().isdisjoint(jobs) and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    def begin(self, key: Hashable, work: Work) -> None:
        """Have the thread do a job, for which nobody waits."""
        with self._changed:
            self._add(key, work)

    def _add(self, key: Hashable, work: Work) -> None:
        if self._stopped:
            return
        self._jobs.setdefault(key, work)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ml-dash-index", daemon=True)
            self._thread.start()

    def is_busy(self, key: Hashable) -> bool:
        """True if a job is not done yet."""
        with self._changed:
            return key in self._jobs

    def close(self) -> None:
        """End the thread; jobs that are not done are dropped."""
        with self._changed:
            self._stopped = True
            self._jobs.clear()
            thread = self._thread
        if thread is not None:
            thread.join(_STOP_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    self._thread = None
                    return
                self._changed.wait_for(lambda: not self._callers, _GIVE_WAY_S)
                if not self._jobs:
                    continue
                key, work = next(iter(self._jobs.items()))
            more = _piece(work)
            with self._changed:
                if not more:
                    self._jobs.pop(key, None)
                elif key in self._jobs:
                    # Others have their turn.
                    self._jobs.move_to_end(key)
                self._changed.notify_all()


def _piece(work: Work) -> bool:
    try:
        return work()
    except _TROUBLE as error:
        log.info("ml-dash: an index could not be brought up to date: %s", error)
        return False
