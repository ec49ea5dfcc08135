"""Shipment of one journal to one server: bytes of segments in their order, then blobs; each reply moves the cursor.

Nothing here waits: a step sends for as long as it may, and says what is left. Only the server's answer counts, so being
killed at any point costs sending some bytes again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from ml_dash.core.protocol import CONFLICT, GAP, NEEDS_BLOBS, TOO_LARGE, TORN, UNKNOWN, DeathNote
from ml_dash.disk.durable import fail_point, read_at
from ml_dash.errors import JournalError, ServerRefused, Unreachable
from ml_dash.journal.follow import Follower
from ml_dash.journal.merge import OrderChanged
from ml_dash.journal.order import Death, MergeRecord
from ml_dash.journal.reader import Segment
from ml_dash.journal.segment import SEGMENTS, parse_blob, parse_name
from ml_dash.sync import remote
from ml_dash.sync.cursor import Cursor
from ml_dash.sync.register import Registration, is_of

from . import batches, blobs
from .account import Account
from .batches import Batches
from .blobs import BlobUploads

log = logging.getLogger("ml_dash.syncd")

AGAIN_S: Final = 1.0
BODY_AGAIN_S: Final = 5.0
PENDING_S: Final = 0.2
_TRIES: Final = 3


class Remaining(Enum):
    """What a step leaves behind."""

    NOTHING = "nothing"
    MORE = "more"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step came to; `again_s`: look again after so many seconds although nothing may have changed by then."""

    remaining: Remaining
    again_s: float | None = None
    # Only contents wait whose events may still come.
    only_blobs_wait: bool = False


class Restart(Exception):
    """The server has less than was known of it: begin again from what it has."""


class Replaced(JournalError):
    """The journal that was registered is gone, and another one is at its path: nobody asked for that to be sent."""


class Shipment:
    """One registration on its way. For one thread at a time."""

    def __init__(self, registration: Registration, cursors_folder: Path) -> None:
        self.registration = registration
        self.journal = Path(registration.journal)
        self.account = Account(registration.remote, self.journal, cursors_folder / f"{registration.key}.json")
        self.removed = False
        self._blobs = BlobUploads(self.account, lambda: self._blocked | self._paused)
        self._batches = Batches()
        self._follower: Follower | None = None
        self._records: Iterator[MergeRecord | Death] | None = None
        self._current: MergeRecord | Death | None = None
        self._asked = False
        # Segments set aside for good, and those that are tried again; up to where each should be sent.
        self._blocked: set[str] = set()
        self._paused: set[str] = set()
        self._wanted: dict[str, tuple[str, int]] = {}
        # Paused in this step; and where a paused one stands, since when.
        self._fresh: set[str] = set()
        self._stuck: dict[str, tuple[int, float]] = {}
        # Deaths that wait: for the rest of their writers, or for a server that knows the journal.
        self._held: list[Death] = []
        self._restarts = 0

    @property
    def cursor(self) -> Cursor | None:
        """What the server has acknowledged; None before the first look."""
        return self.account.cursor if self.account.is_open else None

    @property
    def sent_bytes(self) -> int:
        """Bytes that were sent since the uploader began."""
        return self.account.sent_bytes

    # -- one step -----------------------------------------------------------------------------------------------------

    def step(self, link: remote.Link, deadline: float) -> StepResult:
        """Send until nothing is left, or until `deadline` (time.monotonic).

        Raises RemoteError where the server is the trouble, OSError and JournalError where this machine's disk is.
        """
        try:
            return self._step(link, deadline)
        except (Restart, OrderChanged):
            log.info("%s: begins again from what the server has", self.journal)
            self.forget()
            self._restarts += 1
            if self._restarts > _TRIES:
                raise Unreachable(f"{self.account.remote} contradicts itself about what it has") from None
            return StepResult(Remaining.MORE)
        finally:
            self.account.save_changes()

    def forget(self) -> None:
        """Begin again: from the journal as it is, and from what the server says it has."""
        self._follower = None
        self._records = self._current = None
        self._asked = False
        self._blocked = set()
        self._paused = set()
        self._wanted = {}
        self._held = []
        self._blobs.forget()

    def note_trouble(self, kind: str | None, text: str = "") -> None:
        """Note the trouble in the cursor, for whoever asks."""
        if not self.account.is_open:
            with contextlib.suppress(OSError, JournalError):
                self._open()
        if self.account.is_open:
            self.account.note_trouble(kind, text)

    def _open(self) -> Follower:
        if self._follower is None:
            follower = Follower(self.journal, patience_s=batches.DAMAGE_S)
            if not is_of(self.registration, follower.id):
                raise Replaced(f"{self.journal} is another journal now than the one that was registered")
            self._follower = follower
            self.account.open(follower.id)
        return self._follower

    def _step(self, link: remote.Link, deadline: float) -> StepResult:
        follower = self._open()
        if not self._asked:
            self._ask(link, follower)
        self._blobs.list_here()
        self._fresh = set()
        while True:
            if self._current is None:
                if self._records is None:
                    self._records = follower.follow()
                self._current = next(self._records, None)
                if self._current is None:
                    self._records = None
                    break
            if not self._send(link, follower, self._current, deadline):
                return StepResult(Remaining.MORE)
            self._current = None
        if not self._try_again(link, follower, deadline) or not self._blobs.send_files(link, follower, deadline):
            return StepResult(Remaining.MORE)
        return self._result(follower)

    def _try_again(self, link: remote.Link, follower: Follower, deadline: float) -> bool:
        """Send what could not be sent before, and deaths that waited for it; False if there was no time for all."""
        for file in sorted(self._paused):
            if file in self._fresh or self._is_behind(file):
                continue
            identity, end = self._wanted[file]
            segment = follower.segment(identity)
            if segment is None:
                # It was removed.
                self._paused.discard(file)
            elif not self._send_stretch(link, follower, segment, end, deadline):
                return False
        held, self._held = self._held, []
        while held:
            try:
                self._send_death(link, follower, held[0])
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
        return self._paused - self.account.cursor.parked.keys()

    def _result(self, follower: Follower) -> StepResult:
        """What is not on the server although all that could be sent was sent."""
        self.account.save_changes()
        self.account.note_trouble(None)
        for name, why in follower.troubles.items():
            self.account.park(name, str(why))
        self._restarts = 0
        if waiting := [file for file in self._hopeful() if not self._is_behind(file)]:
            return StepResult(Remaining.LATER, min(map(self._due_s, waiting)))
        if follower.pending:
            return StepResult(Remaining.LATER, PENDING_S)
        if self._blobs.waiting():
            return StepResult(Remaining.LATER, blobs.ASK_AGAIN_S, only_blobs_wait=True)
        return StepResult(Remaining.LATER if self.account.cursor.parked else Remaining.NOTHING, None)

    def _due_s(self, file: str) -> float:
        """In how many seconds a paused segment is read again."""
        since = self._batches.suspect_since(file)
        if since is not None:
            return max(0.05, since + batches.DAMAGE_S - time.monotonic())
        # With each try for a body the whole batch is sent.
        return BODY_AGAIN_S if self._blobs.failing else AGAIN_S

    def _ask(self, link: remote.Link, follower: Follower) -> None:
        """Take the server's word for what it has: it may have been restored, or been given more by another uploader."""
        try:
            found = remote.journal(link, follower.id)
        except ServerRefused as refused:
            if refused.code != UNKNOWN:
                raise
            self.account.cursor.segments.clear()
            self.account.cursor.blobs.clear()
            self.account.cursor.deaths.clear()
            self.account.known_to_server = False
        else:
            there = {state["file"]: state["length"] for state in found["segments"].values()}
            for name in set(self.account.cursor.segments) - set(there):
                del self.account.cursor.segments[name]
            self.account.cursor.segments |= there
            # It may have lost some of them. Others are void by now, and are void again when they are sent again.
            dead = set(found["deaths"])
            self.account.cursor.deaths = {key for key in self.account.cursor.deaths if key.partition(":")[0] in dead}
            # It may have lost blobs, with their events: only those that it names now count.
            self.account.cursor.blobs = set(found["blobs"])
            self.account.events = found["events"]
            self.removed = found["tombstone"]
            self.account.known_to_server = True
        self.account.cursor.parked.clear()
        self._asked = True
        self._blobs.wanted = True
        self.account.dirty = True

    # -- stretches and deaths -----------------------------------------------------------------------------------------

    def _send(self, link: remote.Link, follower: Follower, record: MergeRecord | Death, deadline: float) -> bool:
        """Send one record; False if there was no time for all of it."""
        if isinstance(record, Death):
            self._send_death(link, follower, record)
            return True
        segment = follower.segment(record.segment)
        if segment is None:
            if record.end > follower.freed(record.segment):
                # It was removed, by somebody or by gc between our looks.
                log.debug("%s: segment %s is gone", self.journal, record.segment)
            return True
        if not follower.is_of_here(segment) or segment.path.name in self._blocked:
            return True
        file = segment.path.name
        end = max(record.end, self._wanted[file][1] if file in self._wanted else 0)
        self._wanted[file] = (segment.id, end)
        if self._is_behind(file):
            # What a writer wrote later comes later.
            self._paused.add(file)
            return True
        return self._send_stretch(link, follower, segment, end, deadline)

    def _send_stretch(self, link: remote.Link, follower: Follower, segment: Segment, end: int, deadline: float) -> bool:
        file = segment.path.name
        while (offset := max(self.account.cursor.segments.get(file, 0), follower.freed(segment.id))) < end:
            if time.monotonic() >= deadline:
                return False
            fail_point("sync-read")
            data, damaged = self._batches.next(segment, offset, end, self.account.batch_bytes)
            if not data:
                self._pause(file, offset, f"bytes {offset:,} to {end:,} of it cannot be read as they were recorded")
                return True
            if not self._post(link, follower, file, offset, data, damaged):
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
        elif time.monotonic() - since >= batches.DAMAGE_S and self._batches.suspect_since(file) is None:
            self.account.park(file, why)

    def _post(
        self,
        link: remote.Link,
        follower: Follower,
        file: str,
        offset: int,
        data: bytes,
        damaged: list[tuple[int, int]],
    ) -> bool:
        """Send bytes; True if the server has made a step, False if this segment is set aside for now."""
        fail_point("sync-send")
        try:
            found = remote.append_segment(
                link, follower.id, file, offset, data, damaged=damaged, without=sorted(self._blobs.without)
            )
        except ServerRefused as refused:
            return self._refused(link, follower, file, offset, data, refused)
        fail_point("sync-acked")
        if found["length"] <= offset:
            raise Unreachable(f"{self.account.remote} took bytes, and has no more than before")
        self.account.known_to_server = True
        self.account.sent_bytes += len(data)
        self.account.events = found["events"]
        if found.get("files", True) or any(map(parse_blob, self.account.cursor.parked)):
            self._blobs.wanted = True
        self._acknowledged(file, found["length"])
        self.account.grow_batch()
        self._blobs.without.clear()
        return True

    def _acknowledged(self, file: str, length: int) -> None:
        self.account.cursor.segments[file] = length
        self.account.cursor.parked.pop(file, None)
        self._stuck.pop(file, None)
        self._batches.forget_sent(file, length)
        self.account.save()

    def _refused(
        self, link: remote.Link, follower: Follower, file: str, offset: int, data: bytes, refused: ServerRefused
    ) -> bool:
        """What to do about a "no"; True if it is worth going on with this segment at once."""
        length = refused.extra.get("length")
        if refused.code == GAP and isinstance(length, int) and 0 <= length < offset:
            self._acknowledged(file, length)
            # A server that lacks this may lack more.
            raise Restart("the server has less than it said")
        if refused.code == NEEDS_BLOBS and (wanted := _new_names(refused.extra.get("blobs"), self._blobs.without)):
            if self._blobs.send_bodies(link, follower, wanted):
                return True
            self._pause(file, offset, "long bodies of its events cannot be sent")
            return False
        if refused.code == TOO_LARGE and self.account.shrink_batch(len(data)):
            return True
        if refused.code == TORN and self._has_changed(file, offset, data):
            self._pause(file, offset, refused.message)
            return False
        at = refused.extra.get("offset")
        if refused.code == TORN and isinstance(at, int) and at >= offset and self._batches.mark_torn(file, at):
            # Its checksum holds, and it is no event: damage like any other, unless it is one for us.
            return True
        if refused.code == CONFLICT:
            log.error("%s: the server has other bytes of %s: %s", self.journal, file, refused.message)
        self.account.park(file, refused.message)
        self._blocked.add(file)
        self._paused.discard(file)
        return False

    def _has_changed(self, file: str, offset: int, data: bytes) -> bool:
        """Are the bytes others by now? A network file system may have answered with what was not there."""
        with (self.journal / SEGMENTS / file).open("rb") as opened:
            return read_at(opened.fileno(), len(data), offset) != data

    def _send_death(self, link: remote.Link, follower: Follower, death: Death) -> None:
        key = f"{death.writer}:{death.segment}:{death.end}"
        if key in self.account.cursor.deaths:
            return
        waits = any(_writer_of(file) == death.writer for file in self._hopeful())
        if waits or not (self.account.known_to_server or self._introduce(link, follower)):
            # What of its writer comes later would make it void; and who knows nothing of a journal takes no notes.
            self._held.append(death)
            return
        note = DeathNote(writer=death.writer, segment=death.segment, end=death.end)
        try:
            remote.deaths(link, follower.id, [note])
        except ServerRefused as refused:
            if refused.code == UNKNOWN:
                raise Restart("the server knows nothing of this journal any more") from refused
            self.account.park(f"death-{death.writer}-{death.end}", refused.message)
            return
        self.account.cursor.deaths.add(key)
        self.account.dirty = True

    def _introduce(self, link: remote.Link, follower: Follower) -> bool:
        """Send the head of the first segment of here, so that the server knows the journal; False if there is none.

        Who continues an experiment elsewhere begins with deaths: those of writers whose events came from the server.
        """
        segment = follower.first_of_here()
        if segment is None or segment.path.name in self._blocked:
            return False
        with segment.path.open("rb") as file:
            data = read_at(file.fileno(), segment.first, 0)
        damaged = [(0, segment.first)] if segment.damaged else []
        return self._post(link, follower, segment.path.name, 0, data, damaged)


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
