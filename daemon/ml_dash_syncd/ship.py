"""Send one journal to one server: stretches in their order, then contents; what is acknowledged moves the cursor.

Nothing here waits: a step sends for as long as it may, and says what is left. Only the server's answer counts, so being
killed at any point costs sending some bytes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from ml_dash import remote
from ml_dash.blobs import names as blob_names
from ml_dash.durable import fail_point, read_at
from ml_dash.errors import JournalError, ServerRefused
from ml_dash.journal.order import Death, Stretch
from ml_dash.journal.reader import Segment
from ml_dash.journal.segment import BLOBS, SEGMENTS, list_segments, parse_blob
from ml_dash.journal.sequence import Restart, Sequence, frame_size, gaps_between, read_runs, whole_frames
from ml_dash.lock import Liveness, probe
from ml_dash.protocol import (
    BATCH_BYTES,
    CONFLICT,
    DIGEST,
    GAP,
    NEEDS_BLOBS,
    NO_EVENT,
    TOO_LARGE,
    TORN,
    UNKNOWN,
    BlobState,
    DeathNote,
)
from ml_dash.register import Registration

from . import cursor as cursors
from .cursor import Cursor

log = logging.getLogger("ml_dash.syncd")

DAMAGE_S: Final = 60.0
"""Bytes that hold no frame are read again after that long, before they are sent as damaged."""

PENDING_S: Final = 0.2
ASK_AGAIN_S: Final = 30.0
BLOB_BYTES: Final = 4 << 20
"""How much of a content is sent at once."""

_SMALLEST_BATCH: Final = 256
_LARGEST_BATCH: Final = 8 << 20
_TRIES: Final = 3


class Left(Enum):
    """What a step leaves behind."""

    NOTHING = "nothing"
    MORE = "more"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step came to; `again_s`: look again after so many seconds although nothing may have changed by then."""

    left: Left
    again_s: float | None = None
    # Only contents wait whose events may still come.
    only_events: bool = False


class Shipment:
    """One registration on its way. For one thread at a time."""

    def __init__(self, registration: Registration, cursors_folder: Path) -> None:
        self.registration = registration
        self.journal = Path(registration.journal)
        self.path = cursors_folder / f"{registration.key}.json"
        self.cursor: Cursor | None = None
        self.events = 0
        """Events that the server has of the experiment, as it last said."""
        self.sent_bytes = 0
        self.removed = False
        self._sequence: Sequence | None = None
        self._records: Iterator[Stretch | Death] | None = None
        self._current: Stretch | Death | None = None
        self._asked = False
        self._known_there = False
        self._batch = BATCH_BYTES
        # (segment file, offset) → when bytes that hold no frame were first seen there, and what they were.
        self._suspect: dict[tuple[str, int], tuple[float, bytes]] = {}
        # Segments set aside for good, and those that are tried again; up to where each should be sent.
        self._blocked: set[str] = set()
        self._paused: set[str] = set()
        self._wanted: dict[str, tuple[str, int]] = {}
        self._without: set[str] = set()
        # Is it time to ask which contents are missing?
        self._contents_wanted = False
        self._asked_for_blobs = 0.0
        self._blob_listing: frozenset[str] = frozenset()
        self._blobs_changed_ns = -1
        self._bad_blobs: dict[str, int] = {}
        self._dirty = False

    # -- one step -----------------------------------------------------------------------------------------------------

    def step(self, link: remote.Link, deadline: float) -> Outcome:
        """Send until nothing is left, or until `deadline` (time.monotonic).

        Raises RemoteError where the server is the trouble, OSError and JournalError where this machine's disk is.
        """
        try:
            return self._step(link, deadline)
        except Restart:
            log.info("%s: begins again from what the server has", self.journal)
            self.forget()
            return Outcome(Left.MORE)
        finally:
            if self._dirty and self.cursor is not None:
                self.save()

    def forget(self) -> None:
        """Begin again: from the journal as it is, and from what the server says it has."""
        self._sequence = None
        self._records = self._current = None
        self._asked = False
        self._blocked = set()
        self._paused = set()
        self._wanted = {}
        self._blobs_changed_ns = -1

    def save(self) -> None:
        """Write the cursor down. A disk that refuses is told and costs nothing but questions after a restart."""
        assert self.cursor is not None
        self._dirty = False
        try:
            cursors.save(self.path, self.cursor)
        except OSError as error:
            log.warning("the cursor of %s cannot be written: %s (it will be asked for again)", self.journal, error)

    def tell(self, kind: str | None, text: str = "") -> None:
        """Note the trouble in the cursor, for whoever asks."""
        if self.cursor is None:
            with contextlib.suppress(OSError, JournalError):
                self._open()
        if self.cursor is not None and self.cursor.tell(kind, text):
            self.save()

    def _open(self) -> Sequence:
        if self._sequence is None:
            self._sequence = Sequence(self.journal)
            if self.cursor is None or self.cursor.journal != self._sequence.id:
                found = cursors.load(self.path, self._sequence.id)
                self.cursor = found or Cursor(self._sequence.id)
        return self._sequence

    def _step(self, link: remote.Link, deadline: float) -> Outcome:
        sequence = self._open()
        assert self.cursor is not None
        if not self._asked:
            self._ask(link, sequence)
        self._list_blobs()
        paused, self._paused = self._paused, set()
        while True:
            if self._current is None:
                if self._records is None:
                    self._records = sequence.follow()
                self._current = next(self._records, None)
                if self._current is None:
                    self._records = None
                    break
            if not self._send(link, sequence, self._current, deadline):
                return Outcome(Left.MORE)
            self._current = None
        for file in sorted(paused - self._blocked):
            segment = sequence.segment(self._wanted[file][0])
            if segment is not None and not self._send_stretch(link, sequence, segment, self._wanted[file][1], deadline):
                self._paused |= paused
                return Outcome(Left.MORE)
        if not self._send_contents(link, sequence, deadline):
            return Outcome(Left.MORE)
        return self._left(sequence)

    def _list_blobs(self) -> None:
        """The contents that are here, listed before what follows is read: a content comes before its event."""
        with contextlib.suppress(FileNotFoundError):
            changed_ns = (self.journal / BLOBS).stat().st_mtime_ns
            # A clock of the file system may be too coarse to tell two changes apart: soon after one, look again.
            if changed_ns != self._blobs_changed_ns or time.time_ns() - changed_ns < 2_000_000_000:
                self._blobs_changed_ns = changed_ns
                self._blob_listing = frozenset(blob_names(self.journal))

    def _left(self, sequence: Sequence) -> Outcome:
        """What is not on the server although all that could be sent was sent."""
        assert self.cursor is not None
        if self._dirty:
            self.save()
        if self.cursor.tell(None):
            self.save()
        for name, why in sequence.troubles.items():
            self._park(name, why)
        if self._suspect and self._paused:
            soonest = min(since for since, _ in self._suspect.values()) + DAMAGE_S - time.monotonic()
            return Outcome(Left.LATER, max(0.05, soonest))
        if self._paused:
            return Outcome(Left.LATER, 1.0)
        if sequence.pending:
            return Outcome(Left.LATER, PENDING_S)
        if self._open_blobs():
            return Outcome(Left.LATER, ASK_AGAIN_S, only_events=True)
        return Outcome(Left.LATER if self.cursor.parked else Left.NOTHING, None)

    def _open_blobs(self) -> frozenset[str]:
        assert self.cursor is not None
        return frozenset(name for name in self._blob_listing - self.cursor.blobs if name not in self.cursor.parked)

    def _ask(self, link: remote.Link, sequence: Sequence) -> None:
        """Take the server's word for what it has: it may have been restored, or been given more by another uploader."""
        assert self.cursor is not None
        try:
            found = remote.journal(link, sequence.id)
        except ServerRefused as refused:
            if refused.code != UNKNOWN:
                raise
            self.cursor.segments.clear()
            self.cursor.blobs.clear()
            self.cursor.deaths.clear()
            self._known_there = False
        else:
            there = {state["file"]: state["length"] for state in found["segments"].values()}
            for name in set(self.cursor.segments) - set(there):
                del self.cursor.segments[name]
            self.cursor.segments |= there
            # Contents may be lost there, with their events: only what it names now counts.
            self.cursor.blobs = set(found["blobs"])
            self.events = found["events"]
            self.removed = found["tombstone"]
            self._known_there = True
        self.cursor.parked.clear()
        self._asked = True
        self._contents_wanted = True
        self._dirty = True

    # -- stretches and deaths -----------------------------------------------------------------------------------------

    def _send(self, link: remote.Link, sequence: Sequence, record: Stretch | Death, deadline: float) -> bool:
        """Send one record; False if there was no time for all of it."""
        if isinstance(record, Death):
            self._send_death(link, sequence, record)
            return True
        segment = sequence.segment(record.segment)
        if segment is None:
            if record.end > sequence.stood(record.segment):
                # It was removed, by somebody or by gc between our looks.
                log.debug("%s: segment %s is gone", self.journal, record.segment)
            return True
        if not sequence.is_of_here(segment) or segment.path.name in self._blocked:
            return True
        self._wanted[segment.path.name] = (segment.id, record.end)
        if any(_comes_before(other, segment.path.name) for other in self._paused):
            # What a writer wrote later comes later.
            self._paused.add(segment.path.name)
            return True
        return self._send_stretch(link, sequence, segment, record.end, deadline)

    def _send_stretch(
        self, link: remote.Link, sequence: Sequence, segment: Segment, end: int, deadline: float
    ) -> bool:
        assert self.cursor is not None
        file = segment.path.name
        while (offset := max(self.cursor.segments.get(file, 0), sequence.stood(segment.id))) < end:
            if time.monotonic() >= deadline:
                return False
            fail_point("sync-read")
            data, damaged = self._read(segment, offset, end)
            if not data:
                # Not to be had as it should be: other segments go on, and this one is tried again.
                self._paused.add(file)
                return True
            if not self._post(link, sequence, file, offset, data, damaged):
                return True
        return True

    def _read(self, segment: Segment, offset: int, end: int) -> tuple[bytes, list[tuple[int, int]]]:
        """The next bytes to send: whole frames, and before them what holds none if that is certain by now."""
        with segment.path.open("rb") as file:
            fd = file.fileno()
            upto = min(end, offset + self._batch)
            data = read_at(fd, upto - offset, offset)
            skip = segment.first - offset if offset < segment.first else 0
            stop = skip + whole_frames(memoryview(data)[skip:], segment.crcs)
            if stop == skip:
                # One frame may be larger than a batch.
                data = read_at(fd, min(end - offset, _LARGEST_BATCH), offset)
                stop = skip + whole_frames(memoryview(data)[skip : skip + frame_size(data, skip)], segment.crcs)
            if stop > skip or (skip and offset + skip >= end):
                self._suspect.pop((segment.path.name, offset + skip), None)
                return data[:stop], [(0, segment.first)] if segment.damaged and not offset else []
            if len(data) < end - offset and len(data) < _LARGEST_BATCH:
                # The file is shorter than it was.
                return b"", []
        return self._around_damage(segment, offset, offset + skip, end)

    def _around_damage(
        self, segment: Segment, offset: int, position: int, end: int
    ) -> tuple[bytes, list[tuple[int, int]]]:
        """What holds no frame, with the frames behind it, once it has stayed the same for a while."""
        following = next(iter(read_runs(segment, position, end)), None)
        if following is None:
            return b"", []
        start, stop = following
        with segment.path.open("rb") as file:
            gap = read_at(file.fileno(), start - position, position)
            key, now = (segment.path.name, position), time.monotonic()
            digest = hashlib.sha256(gap).digest()
            since, seen = self._suspect.get(key, (now, digest))
            if seen != digest or key not in self._suspect:
                self._suspect[key] = (now, digest)
                log.warning("%s: %d bytes from %d hold no frame; read again later", segment.path, len(gap), position)
                return b"", []
            if now - since < DAMAGE_S:
                return b"", []
            stop = min(stop, offset + _LARGEST_BATCH)
            data = read_at(file.fileno(), stop - offset, offset)
        whole = whole_frames(memoryview(data)[start - offset :], segment.crcs)
        gaps = gaps_between(segment, position, start)
        if not whole or gaps is None:
            return b"", []
        del self._suspect[key]
        return data[: start - offset + whole], gaps

    def _post(
        self,
        link: remote.Link,
        sequence: Sequence,
        file: str,
        offset: int,
        data: bytes,
        damaged: list[tuple[int, int]],
    ) -> bool:
        """Send bytes; True if the server has made a step, False if this segment is set aside for now."""
        assert self.cursor is not None
        fail_point("sync-send")
        try:
            found = remote.append_segment(
                link, sequence.id, file, offset, data, damaged=damaged, without=sorted(self._without)
            )
        except ServerRefused as refused:
            return self._refused(link, sequence, file, offset, data, refused)
        fail_point("sync-acked")
        self._known_there = True
        self.sent_bytes += len(data)
        self.events = found["events"]
        self._contents_wanted = self._contents_wanted or bool(found.get("files", True))
        self._acknowledged(file, found["length"])
        if self._batch < BATCH_BYTES:
            self._batch = min(BATCH_BYTES, self._batch * 2)
        self._without.clear()
        return True

    def _acknowledged(self, file: str, length: int) -> None:
        assert self.cursor is not None
        self.cursor.segments[file] = length
        self.cursor.parked.pop(file, None)
        self.save()

    def _refused(
        self, link: remote.Link, sequence: Sequence, file: str, offset: int, data: bytes, refused: ServerRefused
    ) -> bool:
        """What to do about a "no"; True if it is worth going on with this segment at once."""
        assert self.cursor is not None
        length = refused.extra.get("length")
        if refused.code == GAP and isinstance(length, int) and 0 <= length < offset:
            self._acknowledged(file, length)
            # A server that lacks this may lack more.
            raise Restart("the server has less than it said")
        if refused.code == NEEDS_BLOBS and self._send_bodies(link, sequence, refused.extra.get("blobs")):
            return True
        if refused.code == TOO_LARGE and min(self._batch, len(data)) > _SMALLEST_BATCH:
            self._batch = max(_SMALLEST_BATCH, min(self._batch, len(data)) // 2)
            return True
        if refused.code == TORN and self._has_changed(file, offset, data):
            self._paused.add(file)
            return False
        if refused.code == CONFLICT:
            log.error("%s: the server has other bytes of %s: %s", self.journal, file, refused.message)
        self._park(file, refused.message)
        self._blocked.add(file)
        return False

    def _has_changed(self, file: str, offset: int, data: bytes) -> bool:
        """Are the bytes others by now? A network file system may have answered with what was not there."""
        with (self.journal / SEGMENTS / file).open("rb") as opened:
            return read_at(opened.fileno(), len(data), offset) != data

    def _send_death(self, link: remote.Link, sequence: Sequence, death: Death) -> None:
        assert self.cursor is not None
        key = f"{death.writer}:{death.segment}:{death.end}"
        if key in self.cursor.deaths:
            return
        note = DeathNote(writer=death.writer, segment=death.segment, end=death.end)
        try:
            remote.deaths(link, sequence.id, [note])
        except ServerRefused as refused:
            # Nothing of this journal is there: all that it has came from the server.
            if refused.code != UNKNOWN:
                raise
        self.cursor.deaths.add(key)
        self._dirty = True

    def _park(self, name: str, why: str) -> None:
        assert self.cursor is not None
        if self.cursor.parked.get(name) != why:
            log.warning("%s: %s stays here: %s", self.journal, name, why)
            self.cursor.parked[name] = why
            self._dirty = True

    # -- contents -----------------------------------------------------------------------------------------------------

    def _send_bodies(self, link: remote.Link, sequence: Sequence, wanted: object) -> bool:
        """Send the bodies that the server asks for; what is lost here, it is told to do without."""
        if not isinstance(wanted, list) or not all(isinstance(name, str) and parse_blob(name) for name in wanted):
            return False
        if set(wanted) <= self._without:
            return False
        for name in wanted:
            if not self._send_blob(link, sequence, name, None, body=True):
                self._without.add(name)
        return True

    def _send_contents(self, link: remote.Link, sequence: Sequence, deadline: float) -> bool:
        """Send the contents of files whose events are there; False if there was no time for all of them."""
        assert self.cursor is not None
        if gone := self.cursor.blobs - self._blob_listing:
            self.cursor.blobs = {name for name in self.cursor.blobs if name not in gone or self._is_here(name)}
        now = time.monotonic()
        waits = self._open_blobs() and now - self._asked_for_blobs >= ASK_AGAIN_S
        if not self._known_there or not (self._contents_wanted or waits):
            return True
        found = remote.journal(link, sequence.id)
        missing = set(found["missing"])
        self.cursor.blobs |= set(found["blobs"]) & self._blob_listing
        # Some may have come since the listing.
        late = {name for name in missing - self._blob_listing if self._is_here(name)}
        for name in sorted((missing & self._open_blobs()) | late):
            if time.monotonic() >= deadline:
                return False
            if self._send_blob(link, sequence, name, deadline, body=False):
                self.cursor.blobs.add(name)
                self._dirty = True
            elif time.monotonic() >= deadline:
                return False
        for name in missing - self._blob_listing - late:
            if name not in sequence.blobs:
                self._park(name, "its content is gone from this machine")
        # Neither wanted nor there: bodies that went before their frames, what was released, what has no event. Of a
        # writer that lives the event may still come.
        for name in self._open_blobs() - missing:
            if self._has_ended(name):
                self.cursor.blobs.add(name)
                self._dirty = True
        self._asked_for_blobs = now
        self._contents_wanted = False
        return True

    def _is_here(self, blob: str) -> bool:
        return (self.journal / BLOBS / blob).exists()

    def _has_ended(self, blob: str) -> bool:
        """Is the writer of a content gone, and all that it wrote acknowledged?"""
        assert self.cursor is not None
        parsed = parse_blob(blob)
        own = [(name, path) for name, path in list_segments(self.journal) if parsed and name.writer == parsed[1]]
        if not own:
            return True
        if probe(self.journal / SEGMENTS / own[0][0].lock) is not Liveness.GONE:
            return False
        return not (self._blocked | self._paused) & {path.name for _, path in own}

    def _send_blob(
        self, link: remote.Link, sequence: Sequence, name: str, deadline: float | None, *, body: bool
    ) -> bool:
        """Send a content, going on where the server is; False if it cannot be sent, or not in time."""
        path = self.journal / BLOBS / name
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                state = remote.blob_state(link, sequence.id, name)
                offset = 0 if state["complete"] else state["length"]
                while not state["complete"]:
                    if deadline is not None and time.monotonic() >= deadline:
                        return False
                    data = read_at(file.fileno(), min(self._batch, BLOB_BYTES), offset) if offset < size else b""
                    if not data and offset:
                        self._park(name, f"the server has {offset:,} bytes of it, here are {size:,}")
                        return False
                    state = self._put(link, sequence, name, offset, size, data, body=body)
                    offset = state["length"]
        except FileNotFoundError:
            self._park(name, "its content is gone from this machine")
            return False
        except ServerRefused as refused:
            return self._blob_refused(path, name, refused)
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            self._park(name, f"its content cannot be read: {error}")
            return False
        if self.cursor is not None and self.cursor.parked.pop(name, None) is not None:
            self._dirty = True
        return True

    def _put(
        self, link: remote.Link, sequence: Sequence, name: str, offset: int, size: int, data: bytes, *, body: bool
    ) -> BlobState:
        while True:
            try:
                state = remote.append_blob(link, sequence.id, name, offset, size, data, body=body)
            except ServerRefused as refused:
                length = refused.extra.get("length")
                if refused.code == GAP and isinstance(length, int) and length < offset:
                    return BlobState(length=length, size=size, complete=False)
                if refused.code == TOO_LARGE and len(data) > _SMALLEST_BATCH:
                    self._batch = max(_SMALLEST_BATCH, len(data) // 2)
                    data = data[: self._batch]
                    continue
                raise
            self.sent_bytes += len(data)
            return state

    def _blob_refused(self, path: Path, name: str, refused: ServerRefused) -> bool:
        if refused.code == NO_EVENT:
            # It comes with its event.
            return False
        if refused.code == DIGEST:
            self._bad_blobs[name] = self._bad_blobs.get(name, 0) + 1
            if _digest(path) != name[:64]:
                self._park(name, "its content was changed on this machine since it was recorded")
            elif self._bad_blobs[name] >= _TRIES:
                self._park(name, f"it arrives changed, {_TRIES} times by now: {refused.message}")
            return False
        self._park(name, refused.message)
        return False


def _comes_before(file: str, other: str) -> bool:
    """Is it an earlier segment of the same writer?"""
    return file[:53] == other[:53] and file < other


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
