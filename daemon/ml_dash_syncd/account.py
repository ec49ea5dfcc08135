"""What one journal has at one server, as far as is known here: the cursor, what was sent, what stays and why."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from ml_dash.core.protocol import BATCH_BYTES
from ml_dash.sync import cursor as cursors
from ml_dash.sync.cursor import Cursor

log = logging.getLogger("ml_dash.syncd")

SMALLEST_BATCH: Final = 256


class Account:
    """For one thread at a time."""

    def __init__(self, remote: str, journal: Path, path: Path) -> None:
        self.remote = remote
        self.journal = journal
        self.path = path
        self.events = 0
        """Events that the server has of the experiment, as it last said."""
        self.sent_bytes = 0
        self.batch = BATCH_BYTES
        """How much is sent at once; less where the server, or what is before it, takes no more."""
        # Does the server know the journal?
        self.known_there = False
        self.dirty = False
        self._cursor: Cursor | None = None

    @property
    def is_open(self) -> bool:
        """Has the cursor been loaded?"""
        return self._cursor is not None

    @property
    def cursor(self) -> Cursor:
        """What the server has acknowledged."""
        assert self._cursor is not None
        return self._cursor

    def open(self, identity: str) -> None:
        """Load the cursor of the journal with that id, or begin one."""
        if self._cursor is None or self._cursor.journal != identity:
            self._cursor = cursors.load(self.path, identity) or Cursor(identity)

    def save(self) -> None:
        """Write the cursor down. A disk that refuses is told and costs nothing but questions after a restart."""
        self.dirty = False
        try:
            cursors.save(self.path, self.cursor)
        except OSError as error:
            log.warning("the cursor of %s cannot be written: %s (it will be asked for again)", self.journal, error)

    def save_changes(self) -> None:
        """Write it down if something was noted in it."""
        if self.dirty and self.is_open:
            self.save()

    def tell(self, kind: str | None, text: str = "") -> None:
        """Note the trouble in the cursor, for whoever asks."""
        if self.cursor.tell(kind, text):
            self.save()

    def park(self, name: str, why: str) -> None:
        """Note what cannot be sent, and why."""
        if self.cursor.parked.get(name) != why:
            log.warning("%s: %s stays here: %s", self.journal, name, why)
            self.cursor.parked[name] = why
            self.dirty = True

    def unpark(self, name: str) -> None:
        """It was sent after all, or nobody waits for it."""
        if self.cursor.parked.pop(name, None) is not None:
            self.dirty = True

    def takes_less_than(self, size: int) -> bool:
        """The server found so many bytes too many: try with half of them; False if that would be too few."""
        if min(self.batch, size) <= SMALLEST_BATCH:
            return False
        self.batch = max(SMALLEST_BATCH, min(self.batch, size) // 2)
        return True

    def takes_more(self) -> None:
        """A batch went through: the next may be larger again."""
        self.batch = min(BATCH_BYTES, self.batch * 2)
