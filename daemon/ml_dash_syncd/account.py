"""The account of one journal with one server: its cursor, the bytes sent, the blobs kept back and the reasons.

The cursor is written as a whole by one worker at a time, and read by the commands that show the status. It is never
ahead of an acknowledgement: it is changed only after a reply. So it may be old, or be lost, and all that costs is a
question to the server and bytes sent twice. Numbers of bytes and batch sizes are in memory only.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from ml_dash.core.protocol import BATCH_BYTES
from ml_dash.sync import cursor as cursors
from ml_dash.sync.cursor import Cursor

log = logging.getLogger("ml_dash.syncd")

# Below this no proxy's limit is plausible; the refusal is reported instead.
SMALLEST_BATCH_BYTES: Final = 256


class Account:
    """What is known about one journal at one server. For one thread at a time: the worker that has its task."""

    def __init__(self, remote: str, journal: Path, path: Path) -> None:
        self.remote = remote
        self.journal = journal
        self.path = path
        self.events = 0
        """Number of events of the experiment that the server has, as of its last reply."""
        self.sent_bytes = 0
        self.batch_bytes = BATCH_BYTES
        """Most bytes of a segment or blob in one request; less while the server, or a proxy before it, refuses more."""
        self.known_to_server = False
        """True once the server has bytes of this journal."""
        self.dirty = False
        """True if the cursor has changed since it was last saved."""
        self._cursor: Cursor | None = None

    @property
    def is_open(self) -> bool:
        """True if the cursor has been loaded."""
        return self._cursor is not None

    @property
    def cursor(self) -> Cursor:
        """What the server has acknowledged. Only after `open`."""
        assert self._cursor is not None
        return self._cursor

    def open(self, identity: str) -> None:
        """Load the cursor of the journal whose id is `identity`, or begin an empty one."""
        # Another journal at the same path must not go on from offsets of the old one.
        if self._cursor is None or self._cursor.journal != identity:
            self._cursor = cursors.load(self.path, identity) or Cursor(identity)

    def save(self) -> None:
        """Save the cursor. If the disk refuses, log it: after a restart the server is asked what it has instead."""
        self.dirty = False
        try:
            cursors.save(self.path, self.cursor)
        except OSError as error:
            log.warning("the cursor of %s cannot be written: %s (the server is asked instead)", self.journal, error)

    def save_changes(self) -> None:
        """Save the cursor if it is loaded and has changed since it was last saved."""
        if self.dirty and self.is_open:
            self.save()

    def note_trouble(self, kind: str | None, text: str = "") -> None:
        """Record why nothing is being sent (`kind` None: all is well again) in the cursor, where `status` reads it."""
        if self.cursor.set_trouble(kind, text):
            self.save()

    def park(self, name: str, why: str) -> None:
        """Set a segment or blob aside: record in the cursor that it cannot be sent, and why."""
        if self.cursor.parked.get(name) != why:
            log.warning("%s: %s is set aside: %s", self.journal, name, why)
            self.cursor.parked[name] = why
            self.dirty = True

    def unpark(self, name: str) -> None:
        """Forget that `name` was set aside: it has been sent, or nobody needs it any more."""
        if self.cursor.parked.pop(name, None) is not None:
            self.dirty = True

    def shrink_batch(self, size: int) -> bool:
        """Halve the batch after the server refused `size` bytes as too large; False if it is as small as it may get."""
        if min(self.batch_bytes, size) <= SMALLEST_BATCH_BYTES:
            return False
        self.batch_bytes = max(SMALLEST_BATCH_BYTES, min(self.batch_bytes, size) // 2)
        return True

    def grow_batch(self) -> None:
        """Double the batch after the server took one, up to BATCH_BYTES."""
        self.batch_bytes = min(BATCH_BYTES, self.batch_bytes * 2)
