"""Upload of blobs: long bodies before their events, files after theirs.

A long body is the content of an event that is too large for a frame. The server cannot fold such an event without it,
so the body goes first, when the server asks for it (NEEDS_BLOBS). A file goes after the event that names it: until then
the server would not know whether anybody needs it (NO_EVENT), and lists it as pending.

Three sets decide what is to be done, and only the server's is believed: what is on this disk (`list_here`), what the
cursor says is there (`cursor.blobs`, a saving of questions), what the server says is missing. A blob is sent piece by
piece from where the server's copy ends, so a daemon that is killed goes on where it was.

What cannot be sent is set aside with its reason (`account.park`), and no other blob waits for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ml_dash.core.protocol import DIGEST, GAP, MAX_BLOBS, NO_EVENT, QUOTA, TOO_LARGE, BlobState
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
"""Most bytes of one blob in one request."""

SMALL_BYTES: Final = 64 << 10
TOGETHER_BYTES: Final = 4 << 20
"""Blobs of at most SMALL_BYTES are sent several at a time, up to TOGETHER_BYTES in one request."""

ASK_AGAIN_S: Final = 30.0
"""While blobs wait for their events, the server is asked this often which of them it is missing."""

QUOTA_S: Final = 300.0
"""What the server refused because the namespace may not keep more is tried again after this long."""

_TRIES: Final = 3
_COARSE_NS: Final = 2_000_000_000
"""Two changes of a folder within this time may leave it with the same modification time."""


class BlobUploads:
    """The blobs of one journal, and what is known about each. For one thread at a time."""

    def __init__(self, account: Account, unsent: Callable[[], set[str]]) -> None:
        self.account = account
        # Names of segment files that are not wholly on the server.
        self._unsent = unsent
        # True if the server should be asked at the next step which blobs it is missing.
        self.wanted = False
        # Long bodies that could not be sent, and since when (time.monotonic).
        self.failing: dict[str, float] = {}
        # Long bodies that the server is told to do without in the next request.
        self.without: set[str] = set()
        # Blobs whose content is lost or changed here: trying again is of no use.
        self._hopeless: set[str] = set()
        # Files that do not fit into the quota, which are parked as well, and when to try them again (time.monotonic).
        self._full: dict[str, float] = {}
        # When the server was last asked what it is missing (time.monotonic).
        self._asked = 0.0
        self._listing: frozenset[str] = frozenset()
        self._changed_ns = -1
        # How often a blob arrived at the server with another digest.
        self._bad: dict[str, int] = {}
        # False for a server that does not take several blobs in one request.
        self._together = True

    def forget(self) -> None:
        """List the folder of blobs anew the next time, even if it seems unchanged."""
        self._changed_ns = -1
        self._full.clear()

    def list_here(self) -> None:
        """List the blobs that are on this disk.

        Call it before reading segments: a writer stores a blob before its event, so every event that is read afterwards
        finds its blob in the listing.
        """
        with contextlib.suppress(FileNotFoundError):
            changed_ns = (self.account.journal / BLOBS).stat().st_mtime_ns
            # Soon after a change, another one may not show in the modification time: list again.
            if changed_ns != self._changed_ns or time.time_ns() - changed_ns < _COARSE_NS:
                self._changed_ns = changed_ns
                self._listing = frozenset(blob_names(self.account.journal))

    def waiting(self) -> frozenset[str]:
        """Names of blobs that are on this disk, not on the server, and not set aside."""
        cursor = self.account.cursor
        return frozenset(name for name in self._listing - cursor.blobs if name not in cursor.parked)

    def full_s(self) -> float | None:
        """Seconds until files that did not fit into the quota are tried again; None without any."""
        return max(0.05, min(self._full.values()) - time.monotonic()) if self._full else None

    def send_bodies(self, link: remote.Link, follower: Follower, wanted: list[str]) -> bool:
        """Send the long bodies that the server asks for; False if some have to be tried again later.

        Bodies that are lost here go to `without`, so that the server folds their events with an empty body. That
        loses them, so it takes two failures at least DAMAGE_S apart: a network file system may not show a file yet.
        Raises ServerRefused (QUOTA) if they do not fit into the quota.
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
        """Send the files whose events the server has; False if `deadline` (time.monotonic) came first.

        Only the server knows which blobs it is missing, so it is asked: after something was sent that may name files,
        and every ASK_AGAIN_S while blobs wait.
        """
        cursor = self.account.cursor
        # Names of released blobs would fill the cursor of a long run for ever. Checked one by one, because the
        # listing may be older than the last blob.
        if gone := cursor.blobs - self._listing:
            cursor.blobs = {name for name in cursor.blobs if name not in gone or self._is_here(name)}
        now = time.monotonic()
        waits = bool(self.waiting()) and now - self._asked >= ASK_AGAIN_S
        due = {name for name, when in self._full.items() if now >= when}
        if not self.account.known_to_server or not (self.wanted or waits or due):
            return True
        found = remote.journal(link, follower.id)
        missing = set(found["missing"])
        cursor.blobs |= set(found["blobs"]) & self._listing
        for name in set(filter(parse_blob, cursor.parked)) - missing - self.failing.keys():
            # The server does not need it any more: its file was deleted or replaced.
            self._full.pop(name, None)
            self.account.unpark(name)
        # Some may have been stored here since the listing.
        late = {name for name in missing - self._listing if self._is_here(name)}
        wanted = sorted((missing & (self.waiting() | due)) | late)
        for name in self._send_small(link, follower, wanted, deadline):
            cursor.blobs.add(name)
            self.account.unpark(name)
            self._full.pop(name, None)
            self.account.dirty = True
        smallest: tuple[int, str] | None = None
        for name in [name for name in wanted if name not in cursor.blobs]:
            if time.monotonic() >= deadline:
                return False
            # What is no smaller than one that did not fit is not sent in vain.
            if smallest is not None and self._size(name) >= smallest[0]:
                self._set_full(name, smallest[1])
            elif self._send_blob(link, follower, name, deadline, body=False):
                cursor.blobs.add(name)
                self.account.dirty = True
            elif name in self._full and self._full[name] > now:
                smallest = self._size(name), self.account.cursor.parked[name]
            elif time.monotonic() >= deadline:
                return False
        # A base may know of blobs that this machine never had.
        for name in missing - self._listing - late:
            if name not in follower.blobs:
                self.account.park(name, "its content is gone from this machine")
        # What the server neither misses nor lists: bodies that went before their frames, released files, blobs without
        # an event. They count as done once their writer has ended; until then the event may still come.
        for name in self.waiting() - missing:
            if self._has_ended(name):
                cursor.blobs.add(name)
                self.account.dirty = True
        self._asked = now
        self.wanted = False
        return True

    def _send_small(self, link: remote.Link, follower: Follower, names: list[str], deadline: float) -> Iterator[str]:
        """Send small blobs, several in one request; yield the names that the server has then.

        What it does not yield, the caller sends one by one.
        """
        items: list[tuple[str, bytes]] = []
        size = 0
        # The same bytes (the first 64 characters are their SHA-256) are sent once: asked for another name of theirs,
        # the server links it to what it has.
        sent = {name[:64] for name in self.account.cursor.blobs}
        # The last, empty name only sends what has been collected.
        for name in [*names, ""]:
            data = self._small(name) if name and name[:64] not in sent else None
            sent.add(name[:64])
            full = size + len(data or b"") > min(self.account.batch_bytes, TOGETHER_BYTES) or len(items) >= MAX_BLOBS
            if len(items) > 1 and (full or not name):
                if time.monotonic() >= deadline or not self._together:
                    return
                try:
                    yield from remote.append_blobs(link, follower.id, items)
                except ServerRefused as refused:
                    # A server of an older version does not have this call; a proxy may take less.
                    self._together = refused.status not in (404, 405)
                    return
                self.account.sent_bytes += size
                items, size = [], 0
            if name and data is not None:
                items.append((name, data))
                size += len(data)

    def _small(self, name: str) -> bytes | None:
        """The bytes of a blob; None if it is larger than SMALL_BYTES or cannot be read now."""
        path = self.account.journal / BLOBS / name
        try:
            return path.read_bytes() if path.stat().st_size <= SMALL_BYTES else None
        except OSError:
            # Not lost: sending it by itself comes to the same error, and reports it.
            return None

    def _size(self, name: str) -> int:
        """The size of a blob in bytes; 0 if it cannot be read now."""
        try:
            return (self.account.journal / BLOBS / name).stat().st_size
        except OSError:
            # Sending it comes to the same error, and reports it.
            return 0

    def _set_full(self, name: str, why: str) -> None:
        """Park a file that does not fit into the quota, until it is tried again."""
        self._full[name] = time.monotonic() + random.uniform(QUOTA_S, 1.2 * QUOTA_S)
        self.account.park(name, why)

    def _is_here(self, blob: str) -> bool:
        """True if the content of a blob is on this disk now."""
        return (self.account.journal / BLOBS / blob).exists()

    def _has_ended(self, blob: str) -> bool:
        """True if the writer of a blob has ended and the server has acknowledged all its segments."""
        parsed = parse_blob(blob)
        segments = list_segments(self.account.journal)
        own = [(name, path) for name, path in segments if parsed and name.writer == parsed[1]]
        # Its segments were freed or never here: no event of it can come from this machine.
        if not own:
            return True
        if probe(self.account.journal / SEGMENTS / own[0][0].lock) is not Liveness.GONE:
            return False
        return not self._unsent() & {path.name for _, path in own}

    def _send_blob(
        self, link: remote.Link, follower: Follower, name: str, deadline: float | None, *, body: bool
    ) -> bool:
        """Send one blob from where the server's copy ends; False if that is impossible, or `deadline` came first."""
        path = self.account.journal / BLOBS / name
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                # The server may have the same bytes under another name, and link them: then nothing is sent.
                state = remote.blob_state(link, follower.id, name)
                offset, idle = 0 if state["complete"] else state["length"], 0
                while not state["complete"]:
                    if deadline is not None and time.monotonic() >= deadline:
                        return False
                    piece = min(self.account.batch_bytes, BLOB_BYTES)
                    data = read_at(file.fileno(), piece, offset) if offset < size else b""
                    # A server that was killed may have all bytes without having checked their digest. Then an empty
                    # piece at the end makes it check them. Anything else here is a file of another length than the
                    # server's.
                    if not data and offset and offset != size:
                        self._lose(name, f"the server has {offset:,} bytes of it, this machine has {size:,}")
                        return False
                    state = self._put(link, follower, name, offset, size, data, body=body)
                    idle = idle + 1 if state["length"] <= offset else 0
                    offset = state["length"]
                    # Without this, a server that takes bytes and keeps none would be fed for ever.
                    if idle > _TRIES and not state["complete"]:
                        raise Unreachable(f"{link.url} accepted bytes of {name}, and has no more than before")
        except FileNotFoundError:
            self._lose(name, "its content is gone from this machine")
            return False
        except ServerRefused as refused:
            # Its event cannot go without it, and nothing behind that event: the whole journal waits.
            if refused.code == QUOTA and body:
                raise
            return self._blob_refused(path, name, refused)
        except OSError as error:
            # Of the network, not of this file: `schedule` treats it so.
            if isinstance(error, ConnectionError):
                raise
            self._lose(name, f"its content cannot be read: {error}")
            return False
        self._hopeless.discard(name)
        self._full.pop(name, None)
        self.account.unpark(name)
        return True

    def _lose(self, name: str, why: str) -> None:
        """Set a blob aside that cannot be sent from this machine."""
        self._hopeless.add(name)
        self.account.park(name, why)

    def _put(
        self, link: remote.Link, follower: Follower, name: str, offset: int, size: int, data: bytes, *, body: bool
    ) -> BlobState:
        """Send a piece of a blob, a smaller one if it is refused as too large; return how much the server has then."""
        while True:
            try:
                state = remote.append_blob(link, follower.id, name, offset, size, data, body=body)
            except ServerRefused as refused:
                length = refused.extra.get("length")
                if refused.code == GAP and isinstance(length, int) and length < offset:
                    return BlobState(length=length, size=size, complete=False)
                if refused.code == TOO_LARGE and self.account.shrink_batch(len(data)):
                    data = data[: self.account.batch_bytes]
                    continue
                raise
            self.account.sent_bytes += len(data)
            return state

    def _blob_refused(self, path: Path, name: str, refused: ServerRefused) -> bool:
        """Set a refused blob aside, unless it may be accepted later. Always False: it was not sent."""
        if refused.code == NO_EVENT:
            # It is sent again once the server has the event that names it.
            return False
        if refused.code == QUOTA:
            self._set_full(name, refused.message)
            return False
        if refused.code == DIGEST:
            self._bad[name] = self._bad.get(name, 0) + 1
            # Was it changed here, or on its way?
            if _digest(path) != name[:64]:
                self._lose(name, "its content was changed on this machine since it was recorded")
            elif self._bad[name] >= _TRIES:
                self.account.park(name, f"it arrived with another digest {_TRIES} times: {refused.message}")
            return False
        self._lose(name, refused.message)
        return False


def _digest(path: Path) -> str:
    """Return the SHA-256 (hex) of a file. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
