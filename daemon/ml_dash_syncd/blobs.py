"""Upload of blobs: long bodies before their events, files after theirs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ml_dash.core.protocol import DIGEST, GAP, MAX_BLOBS, NO_EVENT, TOO_LARGE, BlobState
from ml_dash.disk.durable import read_at
from ml_dash.disk.lock import Liveness, probe
from ml_dash.errors import ServerRefused, Unreachable
from ml_dash.journal.blobs import names as blob_names
from ml_dash.journal.follow import Follower
from ml_dash.journal.segment import BLOBS, SEGMENTS, list_segments, parse_blob
from ml_dash.sync import remote

from . import batches
from .account import Account

BLOB_BYTES: Final = 4 << 20
"""How much of a content is sent at once."""

SMALL_BYTES: Final = 64 << 10
TOGETHER_BYTES: Final = 4 << 20
"""Contents of at most so many bytes go together, so many bytes in a request."""

ASK_AGAIN_S: Final = 30.0
_TRIES: Final = 3


class BlobUploads:
    """What is known of the contents of one journal. For one thread at a time."""

    def __init__(self, account: Account, unsent: Callable[[], set[str]]) -> None:
        self.account = account
        # Segment files that are not wholly on the server.
        self._unsent = unsent
        # Is it time to ask which contents are missing?
        self.wanted = False
        # Long bodies that cannot be sent (since when), of which there is no hope, and that this request goes without.
        self.failing: dict[str, float] = {}
        self.without: set[str] = set()
        self._hopeless: set[str] = set()
        self._asked = 0.0
        self._listing: frozenset[str] = frozenset()
        self._changed_ns = -1
        self._bad: dict[str, int] = {}
        # Does the server take many in one request?
        self._together = True

    def forget(self) -> None:
        """Look anew at what is here."""
        self._changed_ns = -1

    def list_here(self) -> None:
        """The contents that are here, listed before what follows is read: a content comes before its event."""
        with contextlib.suppress(FileNotFoundError):
            changed_ns = (self.account.journal / BLOBS).stat().st_mtime_ns
            # A clock of the file system may be too coarse to tell two changes apart: soon after one, look again.
            if changed_ns != self._changed_ns or time.time_ns() - changed_ns < 2_000_000_000:
                self._changed_ns = changed_ns
                self._listing = frozenset(blob_names(self.account.journal))

    def waiting(self) -> frozenset[str]:
        """Contents that are here, not on the server, and not given up."""
        cursor = self.account.cursor
        return frozenset(name for name in self._listing - cursor.blobs if name not in cursor.parked)

    def send_bodies(self, link: remote.Link, follower: Follower, wanted: list[str]) -> bool:
        """Send the bodies that the server asks for; False if some are to be tried again.

        Those that are lost here it is told to do without, but only at a second look: their events are empty then.
        """
        complete = True
        for name in wanted:
            for _ in range(_TRIES):
                sent = self._send_blob(link, follower, name, None, body=True)
                if sent or name in self._hopeless:
                    break
            now = time.monotonic()
            if sent:
                self.failing.pop(name, None)
            elif name in self._hopeless and name in self.failing and now - self.failing[name] >= batches.DAMAGE_S:
                self.without.add(name)
            else:
                self.failing.setdefault(name, now)
                complete = False
        return complete

    def send_files(self, link: remote.Link, follower: Follower, deadline: float) -> bool:
        """Send the contents of files whose events are there; False if there was no time for all of them."""
        cursor = self.account.cursor
        if gone := cursor.blobs - self._listing:
            cursor.blobs = {name for name in cursor.blobs if name not in gone or self._is_here(name)}
        now = time.monotonic()
        waits = bool(self.waiting()) and now - self._asked >= ASK_AGAIN_S
        if not self.account.known_there or not (self.wanted or waits):
            return True
        found = remote.journal(link, follower.id)
        missing = set(found["missing"])
        cursor.blobs |= set(found["blobs"]) & self._listing
        for name in set(filter(parse_blob, cursor.parked)) - missing - self.failing.keys():
            # Nobody waits for it any more: its file was deleted, or replaced.
            self.account.unpark(name)
        # Some may have come since the listing.
        late = {name for name in missing - self._listing if self._is_here(name)}
        wanted = sorted((missing & self.waiting()) | late)
        for name in self._send_small(link, follower, wanted, deadline):
            cursor.blobs.add(name)
            self.account.unpark(name)
            self.account.dirty = True
        for name in [name for name in wanted if name not in cursor.blobs]:
            if time.monotonic() >= deadline:
                return False
            if self._send_blob(link, follower, name, deadline, body=False):
                cursor.blobs.add(name)
                self.account.dirty = True
            elif time.monotonic() >= deadline:
                return False
        for name in missing - self._listing - late:
            if name not in follower.blobs:
                self.account.park(name, "its content is gone from this machine")
        # Neither wanted nor there: bodies that went before their frames, what was released, what has no event. Of a
        # writer that lives the event may still come.
        for name in self.waiting() - missing:
            if self._has_ended(name):
                cursor.blobs.add(name)
                self.account.dirty = True
        self._asked = now
        self.wanted = False
        return True

    def _send_small(self, link: remote.Link, follower: Follower, names: list[str], deadline: float) -> Iterator[str]:
        """Send small contents, many in one request; those that the server has then. The rest goes one by one."""
        items: list[tuple[str, bytes]] = []
        size = 0
        # Of one content the bytes go once: where the server has them, it links them to the next name that is asked for.
        sent = {name[:64] for name in self.account.cursor.blobs}
        for name in [*names, ""]:
            data = self._small(name) if name and name[:64] not in sent else None
            sent.add(name[:64])
            full = size + len(data or b"") > min(self.account.batch, TOGETHER_BYTES) or len(items) >= MAX_BLOBS
            if len(items) > 1 and (full or not name):
                if time.monotonic() >= deadline or not self._together:
                    return
                try:
                    yield from remote.append_blobs(link, follower.id, items)
                except ServerRefused as refused:
                    # One of a version that does not know this, or a proxy that takes less.
                    self._together = refused.status not in (404, 405)
                    return
                self.account.sent_bytes += size
                items, size = [], 0
            if name and data is not None:
                items.append((name, data))
                size += len(data)

    def _small(self, name: str) -> bytes | None:
        """A content that is small, and can be read now."""
        path = self.account.journal / BLOBS / name
        try:
            return path.read_bytes() if path.stat().st_size <= SMALL_BYTES else None
        except OSError:
            # Sent by itself it is told what is wrong with it.
            return None

    def _is_here(self, blob: str) -> bool:
        return (self.account.journal / BLOBS / blob).exists()

    def _has_ended(self, blob: str) -> bool:
        """Is the writer of a content gone, and all that it wrote acknowledged?"""
        parsed = parse_blob(blob)
        segments = list_segments(self.account.journal)
        own = [(name, path) for name, path in segments if parsed and name.writer == parsed[1]]
        if not own:
            return True
        if probe(self.account.journal / SEGMENTS / own[0][0].lock) is not Liveness.GONE:
            return False
        return not self._unsent() & {path.name for _, path in own}

    def _send_blob(
        self, link: remote.Link, follower: Follower, name: str, deadline: float | None, *, body: bool
    ) -> bool:
        """Send a content, going on where the server is; False if it cannot be sent, or not in time."""
        path = self.account.journal / BLOBS / name
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                state = remote.blob_state(link, follower.id, name)
                offset, idle = 0 if state["complete"] else state["length"], 0
                while not state["complete"]:
                    if deadline is not None and time.monotonic() >= deadline:
                        return False
                    data = read_at(file.fileno(), min(self.account.batch, BLOB_BYTES), offset) if offset < size else b""
                    # All bytes may be there, but not looked at: the server died before. Nothing more lets it go on.
                    if not data and offset and offset != size:
                        self._lose(name, f"the server has {offset:,} bytes of it, here are {size:,}")
                        return False
                    state = self._put(link, follower, name, offset, size, data, body=body)
                    idle = idle + 1 if state["length"] <= offset else 0
                    offset = state["length"]
                    if idle > _TRIES and not state["complete"]:
                        raise Unreachable(f"{link.url} took bytes of {name}, and has no more than before")
        except FileNotFoundError:
            self._lose(name, "its content is gone from this machine")
            return False
        except ServerRefused as refused:
            return self._blob_refused(path, name, refused)
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            self._lose(name, f"its content cannot be read: {error}")
            return False
        self._hopeless.discard(name)
        self.account.unpark(name)
        return True

    def _lose(self, name: str, why: str) -> None:
        self._hopeless.add(name)
        self.account.park(name, why)

    def _put(
        self, link: remote.Link, follower: Follower, name: str, offset: int, size: int, data: bytes, *, body: bool
    ) -> BlobState:
        while True:
            try:
                state = remote.append_blob(link, follower.id, name, offset, size, data, body=body)
            except ServerRefused as refused:
                length = refused.extra.get("length")
                if refused.code == GAP and isinstance(length, int) and length < offset:
                    return BlobState(length=length, size=size, complete=False)
                if refused.code == TOO_LARGE and self.account.takes_less_than(len(data)):
                    data = data[: self.account.batch]
                    continue
                raise
            self.account.sent_bytes += len(data)
            return state

    def _blob_refused(self, path: Path, name: str, refused: ServerRefused) -> bool:
        if refused.code == NO_EVENT:
            # It comes with its event.
            return False
        if refused.code == DIGEST:
            self._bad[name] = self._bad.get(name, 0) + 1
            if _digest(path) != name[:64]:
                self._lose(name, "its content was changed on this machine since it was recorded")
            elif self._bad[name] >= _TRIES:
                self.account.park(name, f"it arrives changed, {_TRIES} times by now: {refused.message}")
            return False
        self._lose(name, refused.message)
        return False


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
