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
from ml_dash.errors import JournalError, ServerRefused, Unreachable
from ml_dash.journal.order import Death, Stretch
from ml_dash.journal.reader import Run, Segment, read
from ml_dash.journal.segment import BLOBS, SEGMENTS, list_segments, parse_blob, parse_name
from ml_dash.journal.sequence import Restart, Sequence, frame_size, whole_frames
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

AGAIN_S: Final = 1.0
BODY_AGAIN_S: Final = 5.0
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
        # Paused in this step; and where a paused one stands, since when.
        self._fresh: set[str] = set()
        self._stuck: dict[str, tuple[int, float]] = {}
        # Frames (segment file, offset) whose checksum holds, and that are no events.
        self._torn: set[tuple[str, int]] = set()
        # Deaths that wait: for the rest of their writers, or for a server that knows the journal.
        self._held: list[Death] = []
        self._restarts = 0
        # Long bodies that cannot be sent (since when), of which there is no hope, and that this request goes without.
        self._failing: dict[str, float] = {}
        self._hopeless: set[str] = set()
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
            self._restarts += 1
            if self._restarts > _TRIES:
                raise Unreachable(f"{self.registration.remote} contradicts itself about what it has") from None
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
        self._held = []
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
            self._sequence = Sequence(self.journal, patience_s=DAMAGE_S)
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
        self._fresh = set()
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
        if not self._try_again(link, sequence, deadline) or not self._send_contents(link, sequence, deadline):
            return Outcome(Left.MORE)
        return self._left(sequence)

    def _try_again(self, link: remote.Link, sequence: Sequence, deadline: float) -> bool:
        """Send what could not be sent before, and deaths that waited for it; False if there was no time for all."""
        for file in sorted(self._paused):
            if file in self._fresh or self._is_behind(file):
                continue
            identity, end = self._wanted[file]
            segment = sequence.segment(identity)
            if segment is None:
                # It was removed.
                self._paused.discard(file)
            elif not self._send_stretch(link, sequence, segment, end, deadline):
                return False
        held, self._held = self._held, []
        while held:
            try:
                self._send_death(link, sequence, held[0])
            except BaseException:
                self._held = [*held, *self._held]
                raise
            del held[0]
        return True

    def _is_behind(self, file: str) -> bool:
        """Does it wait for an earlier segment of its writer, of which there is hope?"""
        return any(_comes_before(other, file) for other in self._hopeful())

    def _hopeful(self) -> set[str]:
        """Segments that are paused, and not given up so far."""
        assert self.cursor is not None
        return self._paused - self.cursor.parked.keys()

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
        self._restarts = 0
        if waiting := [file for file in self._hopeful() if not self._is_behind(file)]:
            return Outcome(Left.LATER, min(map(self._due_s, waiting)))
        if sequence.pending:
            return Outcome(Left.LATER, PENDING_S)
        if self._open_blobs():
            return Outcome(Left.LATER, ASK_AGAIN_S, only_events=True)
        return Outcome(Left.LATER if self.cursor.parked else Left.NOTHING, None)

    def _due_s(self, file: str) -> float:
        """In how many seconds a paused segment is read again."""
        since = [when for (name, _), (when, _) in self._suspect.items() if name == file]
        if since:
            return max(0.05, min(since) + DAMAGE_S - time.monotonic())
        # With each try for a body the whole batch is sent.
        return BODY_AGAIN_S if self._failing else AGAIN_S

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
            # It may have lost some of them. Others are void by now, and are void again when they are sent again.
            dead = set(found["deaths"])
            self.cursor.deaths = {key for key in self.cursor.deaths if key.partition(":")[0] in dead}
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
        file = segment.path.name
        end = max(record.end, self._wanted[file][1] if file in self._wanted else 0)
        self._wanted[file] = (segment.id, end)
        if self._is_behind(file):
            # What a writer wrote later comes later.
            self._paused.add(file)
            return True
        return self._send_stretch(link, sequence, segment, end, deadline)

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
                self._pause(file, offset, f"bytes {offset:,} to {end:,} of it cannot be read as they were recorded")
                return True
            if not self._post(link, sequence, file, offset, data, damaged):
                return True
        self._paused.discard(file)
        return True

    def _pause(self, file: str, offset: int, why: str) -> None:
        """Other segments go on, and this one is tried again; what does not get better is told."""
        self._paused.add(file)
        self._fresh.add(file)
        where, since = self._stuck.get(file, (-1, 0.0))
        if where != offset:
            self._stuck[file] = (offset, time.monotonic())
        elif time.monotonic() - since >= DAMAGE_S and not any(name == file for name, _ in self._suspect):
            self._park(file, why)

    def _read(self, segment: Segment, offset: int, end: int) -> tuple[bytes, list[tuple[int, int]]]:
        """The next bytes to send: whole frames, and before them what holds none if that is certain by now."""
        file_name, position = segment.path.name, max(offset, segment.first)
        head = [(0, segment.first)] if segment.damaged and not offset else []
        if (file_name, position) not in self._torn:
            with segment.path.open("rb") as file:
                fd, skip = file.fileno(), position - offset
                cuts = [at for name, at in self._torn if name == file_name and at > position]
                data = read_at(fd, min(end, offset + self._batch, *cuts) - offset, offset)
                stop = skip + whole_frames(memoryview(data)[skip:], segment.crcs)
                if stop == skip:
                    # One frame may be larger than a batch.
                    data = read_at(fd, min(end - offset, _LARGEST_BATCH), offset)
                    stop = skip + whole_frames(memoryview(data)[skip : skip + frame_size(data, skip)], segment.crcs)
                if stop > skip or (skip and position >= end):
                    self._suspect.pop((file_name, position), None)
                    return data[:stop], head
                if len(data) < end - offset and len(data) < _LARGEST_BATCH:
                    # The file is shorter than it was.
                    self._suspect.pop((file_name, position), None)
                    return b"", []
        data, gaps = self._around_damage(segment, offset, position, end)
        return data, [*head, *gaps]

    def _around_damage(
        self, segment: Segment, offset: int, position: int, end: int
    ) -> tuple[bytes, list[tuple[int, int]]]:
        """What holds no frame, with the frames behind it, once it has stayed the same for a while."""
        key, now = (segment.path.name, position), time.monotonic()
        start = next((item.start for item in read(segment, position, end) if isinstance(item, Run)), position)
        if start == position:
            # Nothing follows, or it holds by now.
            self._suspect.pop(key, None)
            return b"", []
        with segment.path.open("rb") as file:
            gap = read_at(file.fileno(), start - position, position)
            digest = hashlib.sha256(gap).digest()
            since, seen = self._suspect.get(key, (now, b""))
            if seen != digest:
                self._suspect[key] = (now, digest)
                log.warning("%s: %d bytes from %d hold no frame; read again later", segment.path, len(gap), position)
                return b"", []
            if now - since < DAMAGE_S:
                return b"", []
            data = read_at(file.fileno(), min(end - offset, max(self._batch, position - offset + 1)), offset)
        behind = offset + len(data)
        if behind < start:
            # The rest of it was looked at as well.
            self._suspect[segment.path.name, behind] = (since, hashlib.sha256(gap[behind - position :]).digest())
            return data, [(position, behind)]
        if data[position - offset : start - offset] != gap:
            return b"", []
        stop = start - offset + whole_frames(memoryview(data)[start - offset :], segment.crcs)
        cuts = [at - offset for name, at in self._torn if name == segment.path.name and at >= start]
        return data[: min(stop, *cuts) if cuts else stop], [(position, start)]

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
        if found["length"] <= offset:
            raise Unreachable(f"{self.registration.remote} took bytes, and has no more than before")
        self._known_there = True
        self.sent_bytes += len(data)
        self.events = found["events"]
        if found.get("files", True) or any(map(parse_blob, self.cursor.parked)):
            self._contents_wanted = True
        self._acknowledged(file, found["length"])
        if self._batch < BATCH_BYTES:
            self._batch = min(BATCH_BYTES, self._batch * 2)
        self._without.clear()
        return True

    def _acknowledged(self, file: str, length: int) -> None:
        assert self.cursor is not None
        self.cursor.segments[file] = length
        self.cursor.parked.pop(file, None)
        self._stuck.pop(file, None)
        self._suspect = {key: seen for key, seen in self._suspect.items() if key[0] != file or key[1] >= length}
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
        if refused.code == NEEDS_BLOBS and (wanted := _new_names(refused.extra.get("blobs"), self._without)):
            if self._send_bodies(link, sequence, wanted):
                return True
            self._pause(file, offset, "long bodies of its events cannot be sent")
            return False
        if refused.code == TOO_LARGE and min(self._batch, len(data)) > _SMALLEST_BATCH:
            self._batch = max(_SMALLEST_BATCH, min(self._batch, len(data)) // 2)
            return True
        if refused.code == TORN and self._has_changed(file, offset, data):
            self._pause(file, offset, refused.message)
            return False
        at = refused.extra.get("offset")
        if refused.code == TORN and isinstance(at, int) and (file, at) not in self._torn and at >= offset:
            # Its checksum holds, and it is no event: damage like any other, unless it is one for us.
            self._torn.add((file, at))
            return True
        if refused.code == CONFLICT:
            log.error("%s: the server has other bytes of %s: %s", self.journal, file, refused.message)
        self._park(file, refused.message)
        self._blocked.add(file)
        self._paused.discard(file)
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
        waits = any(_writer_of(file) == death.writer for file in self._hopeful())
        if waits or not (self._known_there or self._introduce(link, sequence)):
            # What of its writer comes later would make it void; and who knows nothing of a journal takes no notes.
            self._held.append(death)
            return
        note = DeathNote(writer=death.writer, segment=death.segment, end=death.end)
        try:
            remote.deaths(link, sequence.id, [note])
        except ServerRefused as refused:
            if refused.code == UNKNOWN:
                raise Restart("the server knows nothing of this journal any more") from refused
            self._park(f"death-{death.writer}-{death.end}", refused.message)
            return
        self.cursor.deaths.add(key)
        self._dirty = True

    def _introduce(self, link: remote.Link, sequence: Sequence) -> bool:
        """Send the head of the first segment of here, so that the server knows the journal; False if there is none.

        Who continues an experiment elsewhere begins with deaths: those of writers whose events came from the server.
        """
        segment = sequence.first_of_here()
        if segment is None or segment.path.name in self._blocked:
            return False
        with segment.path.open("rb") as file:
            data = read_at(file.fileno(), segment.first, 0)
        damaged = [(0, segment.first)] if segment.damaged else []
        return self._post(link, sequence, segment.path.name, 0, data, damaged)

    def _park(self, name: str, why: str) -> None:
        assert self.cursor is not None
        if self.cursor.parked.get(name) != why:
            log.warning("%s: %s stays here: %s", self.journal, name, why)
            self.cursor.parked[name] = why
            self._dirty = True

    # -- contents -----------------------------------------------------------------------------------------------------

    def _send_bodies(self, link: remote.Link, sequence: Sequence, wanted: list[str]) -> bool:
        """Send the bodies that the server asks for; False if some are to be tried again.

        Those that are lost here it is told to do without, but only at a second look: their events are empty then.
        """
        complete = True
        for name in wanted:
            for _ in range(_TRIES):
                sent = self._send_blob(link, sequence, name, None, body=True)
                if sent or name in self._hopeless:
                    break
            now = time.monotonic()
            if sent:
                self._failing.pop(name, None)
            elif name in self._hopeless and name in self._failing and now - self._failing[name] >= DAMAGE_S:
                self._without.add(name)
            else:
                self._failing.setdefault(name, now)
                complete = False
        return complete

    def _send_contents(self, link: remote.Link, sequence: Sequence, deadline: float) -> bool:
        """Send the contents of files whose events are there; False if there was no time for all of them."""
        assert self.cursor is not None
        if gone := self.cursor.blobs - self._blob_listing:
            self.cursor.blobs = {name for name in self.cursor.blobs if name not in gone or self._is_here(name)}
        now = time.monotonic()
        waits = bool(self._open_blobs()) and now - self._asked_for_blobs >= ASK_AGAIN_S
        if not self._known_there or not (self._contents_wanted or waits):
            return True
        found = remote.journal(link, sequence.id)
        missing = set(found["missing"])
        self.cursor.blobs |= set(found["blobs"]) & self._blob_listing
        for name in set(filter(parse_blob, self.cursor.parked)) - missing - self._failing.keys():
            # Nobody waits for it any more: its file was deleted, or replaced.
            del self.cursor.parked[name]
            self._dirty = True
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
                offset, idle = 0 if state["complete"] else state["length"], 0
                while not state["complete"]:
                    if deadline is not None and time.monotonic() >= deadline:
                        return False
                    data = read_at(file.fileno(), min(self._batch, BLOB_BYTES), offset) if offset < size else b""
                    # All bytes may be there, but not looked at: the server died before. Nothing more lets it go on.
                    if not data and offset and offset != size:
                        self._lose(name, f"the server has {offset:,} bytes of it, here are {size:,}")
                        return False
                    state = self._put(link, sequence, name, offset, size, data, body=body)
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
        if self.cursor is not None and self.cursor.parked.pop(name, None) is not None:
            self._dirty = True
        return True

    def _lose(self, name: str, why: str) -> None:
        self._hopeless.add(name)
        self._park(name, why)

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
                self._lose(name, "its content was changed on this machine since it was recorded")
            elif self._bad_blobs[name] >= _TRIES:
                self._park(name, f"it arrives changed, {_TRIES} times by now: {refused.message}")
            return False
        self._lose(name, refused.message)
        return False


def _new_names(wanted: object, known: set[str]) -> list[str]:
    """Names of blobs that a server asks for; none if it asks for what is known that it will not get."""
    if not isinstance(wanted, list) or not all(isinstance(name, str) and parse_blob(name) for name in wanted):
        return []
    return [name for name in wanted if name not in known]


def _writer_of(file: str) -> str:
    name = parse_name(file)
    return name.writer if name is not None else ""


def _comes_before(file: str, other: str) -> bool:
    """Is it an earlier segment of the same writer?"""
    return file[:53] == other[:53] and file < other


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
