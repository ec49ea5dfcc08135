"""Shipment of one journal to one server: bytes of segments in their order, then blobs; each reply moves the cursor.

Nothing here sleeps: a step sends until its deadline and returns what remains. Only the server's replies move the
cursor, so being killed at any point costs no more than sending some bytes again.

The segments of one writer are sent in their order, because the server folds what arrives, and a writer's events must be
folded in their order. While one segment has to wait, those of other writers go on.

    follower: what comes next?   stretch of a segment               death of a writer
      send    -> Batches.next -> POST segments/<file>?offset=N      POST deaths
                  length answered -> cursor[file] = length -> save  cursor.deaths.add
      blocked by a long body     PUT blobs, then the same POST again
    at the end                   paused segments, deaths held back, files (GET journal says which are missing)

Where a segment does not fit into the namespace's quota, it is parked with the reason, and the whole journal waits for
QUOTA_S, or until `forget`: what comes behind would not fit either, and has to stay in its order. A file that does not
fit waits alone, because segments are small and may go on.

Three states of a segment that does not go on: *paused* (tried again by later steps, after RETRY_S or what is due),
*parked* (its reason is in the cursor, where `status` reads it; it may still be tried), *blocked* (refused for good: not
tried until `forget`, that is after an error, a reload of the settings, or ASK_AGAIN_S of the schedule).

The cursor on disk saves repeated sending, and shows `status` how far this is. It may be lost or old: `_ask_server`
replaces what it says before the first byte is sent.

Where this process is killed, the server may know more than the cursor:

- after the server's commit, before its reply: the bytes are sent again, compared there, and answered with the same
  length;
- after the reply, before the cursor is saved: the same, or the first question brings the cursor up to date;
- between a segment and its files: the server lists them as missing, and the next daemon sends them.

Memory: one batch (`account.batch_bytes`, 8 MiB at most for one large frame), and one piece of a blob. Bytes are sent
as they are in the file; frames are checked and never decoded.

Above is `schedule`, which decides when a step is taken and what an exception means. Below are `journal.follow` (the
order of everything), `batches` (which bytes), `blobs` and `account` (the cursor).
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from ml_dash.core.protocol import CONFLICT, GAP, NEEDS_BLOBS, QUOTA, TOO_LARGE, TORN, UNKNOWN, DeathNote
from ml_dash.disk.durable import fail_point, read_at
from ml_dash.errors import JournalError, ServerRefused, Unreachable
from ml_dash.journal.follow import Follower
from ml_dash.journal.merge import OrderChanged
from ml_dash.journal.order import Death, MergeRecord
from ml_dash.journal.reader import Segment
from ml_dash.journal.segment import SEGMENTS, parse_blob, parse_name
from ml_dash.sync import remote
from ml_dash.sync.cursor import Cursor
from ml_dash.sync.registrations import Registration, is_of

from . import batches, blobs
from .account import Account
from .batches import Batches
from .blobs import BlobUploads

log = logging.getLogger("ml_dash.syncd")

RETRY_S: Final = 1.0
"""A segment whose bytes could not be read is tried again after this long."""

BODY_RETRY_S: Final = 5.0
"""As RETRY_S, if long bodies could not be sent: each retry sends the whole batch again."""

PENDING_S: Final = 0.2
"""While the follower holds records back, it is asked again after this long."""

# Restarts in a row before the server counts as unreachable: one is normal after the server was restored from a
# backup.
_TRIES: Final = 3
_WRITER_CHARACTERS: Final = 53
"""The file names of a writer's segments have this many characters in common: 20 digits, a dash, 32 hex digits."""


class Remaining(Enum):
    """How much a step leaves to send."""

    NOTHING = "the server has everything"
    MORE = "the deadline came first; another step can go on at once"
    LATER = "the rest cannot be sent now"


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step left to send, and when to try that."""

    remaining: Remaining
    again_s: float | None = None
    """Take another step after this many seconds even if nothing has changed; None: only after a change."""
    only_blobs_wait: bool = False
    """True if only blobs remain whose events a living writer may still record."""
    full: bool = False
    """True if what remains does not fit into the quota at the server: trying again soon is of no use."""


class Restart(Exception):
    """The server has less than the cursor says: ask it what it has, and begin again from there."""


class Full(Exception):
    """What comes next does not fit into the quota at the server: nothing of this journal goes on for now."""


class Replaced(JournalError):
    """Another journal is at the path of the registered one. It is not sent: nobody asked for that."""


class Shipment:
    """The sending of one registered journal to its server. For one thread at a time: the worker that has its task."""

    def __init__(self, registration: Registration, cursors_folder: Path) -> None:
        self.registration = registration
        self.journal = Path(registration.journal)
        self.account = Account(registration.remote, self.journal, cursors_folder / f"{registration.key}.json")
        self.removed = False
        # A blob without an event counts as done only when all events of its writer are on the server, so uploads ask
        # which segments are not.
        self._blobs = BlobUploads(self.account, lambda: self._blocked | self._paused)
        self._batches = Batches()
        self._follower: Follower | None = None
        # The follower's records, and the one that is being sent: a step may end in the middle of it.
        self._records: Iterator[MergeRecord | Death] | None = None
        self._current: MergeRecord | Death | None = None
        # False until the server has been asked what it has, and again after `forget`.
        self._asked = False
        # Segment files that the server refused for good, and those that will be tried again.
        self._blocked: set[str] = set()
        self._paused: set[str] = set()
        # Segment file → (segment id, offset up to which it is to be sent).
        self._targets: dict[str, tuple[str, int]] = {}
        # Segment files that were paused in this very step: trying them again at its end would be too soon.
        self._paused_now: set[str] = set()
        # Paused segment file → (offset where it does not go on, since when, time.monotonic).
        self._stalled: dict[str, tuple[int, float]] = {}
        # Deaths not sent yet: their writers have bytes to send first, or the server does not know the journal.
        self._held_deaths: list[Death] = []
        # No segment is sent before, because the quota is used up (time.monotonic).
        self._full_until = 0.0
        # The segment file that did not fit then; empty if there was none.
        self._full_file = ""
        # Restarts since a step last came to its end.
        self._restarts = 0

    @property
    def cursor(self) -> Cursor | None:
        """What the server has acknowledged; None until the journal was first read."""
        return self.account.cursor if self.account.is_open else None

    @property
    def sent_bytes(self) -> int:
        """Bytes sent since the daemon started, before compression."""
        return self.account.sent_bytes

    # -- one step -----------------------------------------------------------------------------------------------------

    def step(self, link: remote.Link, deadline: float) -> StepResult:
        """Send until nothing is left that can be sent, or until `deadline` (time.monotonic).

        A request that is under way at the deadline is completed. Raises RemoteError if the server is the trouble,
        OSError or JournalError if this machine's disk or the journal is. What was acknowledged until then is in the
        cursor.
        """
        if (wait := self._full_until - time.monotonic()) > 0:
            return StepResult(Remaining.LATER, wait, full=True)
        if self._full_file:
            # Later segments of its writer and its death wait for one that is tried, and not for one that is parked.
            self.account.unpark(self._full_file)
            self._full_file = ""
        try:
            return self._step(link, deadline)
        except Full:
            wait = random.uniform(blobs.QUOTA_S, 1.2 * blobs.QUOTA_S)
            self._full_until = time.monotonic() + wait
            return StepResult(Remaining.LATER, wait, full=True)
        except (Restart, OrderChanged):
            log.info("%s: beginning again from what the server has", self.journal)
            self.forget()
            self._restarts += 1
            if self._restarts > _TRIES:
                raise Unreachable(f"{self.account.remote} contradicts itself about what it has") from None
            return StepResult(Remaining.MORE)
        finally:
            self.account.save_changes()

    def forget(self) -> None:
        """Begin the next step anew, from the journal as it is then and from what the server says it has."""
        self._follower = None
        self._records = self._current = None
        self._asked = False
        self._blocked = set()
        self._paused = set()
        self._targets = {}
        self._held_deaths = []
        self._full_until, self._full_file = 0.0, ""
        self._blobs.forget()

    def note_trouble(self, kind: str | None, text: str = "") -> None:
        """Record why nothing is being sent (`kind` None: all is well) in the cursor, if the journal can be read."""
        if not self.account.is_open:
            with contextlib.suppress(OSError, JournalError):
                self._open()
        if self.account.is_open:
            self.account.note_trouble(kind, text)

    def _open(self) -> Follower:
        """Open the journal and its cursor. Raises Replaced if another journal is at its path."""
        if self._follower is None:
            follower = Follower(self.journal, patience_s=batches.DAMAGE_S)
            if not is_of(self.registration, follower.id):
                raise Replaced(f"{self.journal} is no longer the journal that was registered")
            self._follower = follower
            self.account.open(follower.id)
        return self._follower

    def _step(self, link: remote.Link, deadline: float) -> StepResult:
        """Take a step. Raises Restart, Full and OrderChanged besides what `step` raises."""
        follower = self._open()
        if not self._asked:
            self._ask_server(link, follower)
        # Before segments are read: then every event that is read has its blob in this listing.
        self._blobs.list_here()
        self._paused_now = set()
        while True:
            if self._current is None:
                if self._records is None:
                    self._records = follower.follow()
                self._current = next(self._records, None)
                if self._current is None:
                    # The next step asks the follower for what has come since.
                    self._records = None
                    break
            if not self._send(link, follower, self._current, deadline):
                return StepResult(Remaining.MORE)
            self._current = None
        if not self._resume_paused(link, follower, deadline) or not self._blobs.send_files(link, follower, deadline):
            return StepResult(Remaining.MORE)
        return self._result(follower)

    def _resume_paused(self, link: remote.Link, follower: Follower, deadline: float) -> bool:
        """Send segments that earlier steps paused, then deaths that waited; False if the deadline came first."""
        for file in sorted(self._paused):
            if file in self._paused_now or self._waits_for_earlier(file):
                continue
            identity, end = self._targets[file]
            segment = follower.segment(identity)
            if segment is None:
                # The segment was removed.
                self._paused.discard(file)
            elif not self._send_stretch(link, follower, segment, end, deadline):
                return False
        held, self._held_deaths = self._held_deaths, []
        while held:
            try:
                self._send_death(link, follower, held[0])
            except BaseException:
                # The follower names each death once: one that is dropped here would never be sent.
                self._held_deaths = [*held, *self._held_deaths]
                raise
            del held[0]
        return True

    def _waits_for_earlier(self, file: str) -> bool:
        """True if an earlier segment of the same writer is paused, and not given up."""
        return any(_comes_before(other, file) for other in self._retryable())

    def _retryable(self) -> set[str]:
        """Segment files that are paused, and not given up so far."""
        return self._paused - self.account.cursor.parked.keys()

    def _result(self, follower: Follower) -> StepResult:
        """Return what remains after everything that can be sent now has been sent.

        What is due soonest decides: a paused segment, records that the follower holds back, blobs without events.
        Without any of these only a change can bring more.
        """
        self.account.save_changes()
        self.account.note_trouble(None)
        # Segments that cannot be read at all: nothing of them was sent, and whoever asks for the status must see it.
        for name, why in follower.troubles.items():
            self.account.park(name, str(why))
        self._restarts = 0
        if waiting := [file for file in self._retryable() if not self._waits_for_earlier(file)]:
            return StepResult(Remaining.LATER, min(map(self._due_s, waiting)))
        if follower.pending:
            return StepResult(Remaining.LATER, PENDING_S)
        full_s = self._blobs.full_s()
        if self._blobs.waiting():
            again_s = min(blobs.ASK_AGAIN_S, full_s or blobs.ASK_AGAIN_S)
            return StepResult(Remaining.LATER, again_s, only_blobs_wait=True)
        if full_s is not None:
            return StepResult(Remaining.LATER, full_s, full=True)
        return StepResult(Remaining.LATER if self.account.cursor.parked else Remaining.NOTHING, None)

    def _due_s(self, file: str) -> float:
        """Seconds until a paused segment is to be read again."""
        since = self._batches.suspect_since(file)
        if since is not None:
            return max(0.05, since + batches.DAMAGE_S - time.monotonic())
        return BODY_RETRY_S if self._blobs.failing else RETRY_S

    def _ask_server(self, link: remote.Link, follower: Follower) -> None:
        """Replace the cursor by what the server says it has.

        It may have less than the cursor says, if it was restored from a backup, or more, if another uploader sent it.
        """
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
            # The server lists the writers of its deaths, without their positions. It may have lost some; others are
            # void by now, and sending those again changes nothing.
            dead = set(found["deaths"])
            self.account.cursor.deaths = {key for key in self.account.cursor.deaths if key.partition(":")[0] in dead}
            # It may have lost blobs together with their events, so only those that it lists now count.
            self.account.cursor.blobs = set(found["blobs"])
            self.account.events = found["events"]
            self.removed = found["tombstone"]
            self.account.known_to_server = True
        # Once more for everything that was set aside: the server may be another version by now, the disk may be
        # mended.
        self.account.cursor.parked.clear()
        self._asked = True
        self._blobs.wanted = True
        self.account.dirty = True

    # -- stretches and deaths -----------------------------------------------------------------------------------------

    def _send(self, link: remote.Link, follower: Follower, record: MergeRecord | Death, deadline: float) -> bool:
        """Send one record of the merge order; False if the deadline came before all of it was sent."""
        if isinstance(record, Death):
            self._send_death(link, follower, record)
            return True
        segment = follower.segment(record.segment)
        if segment is None:
            if record.end > follower.freed(record.segment):
                # It was removed, by gc or by hand, since the order was read.
                log.debug("%s: segment %s is gone", self.journal, record.segment)
            return True
        if not follower.is_of_here(segment) or segment.path.name in self._blocked:
            return True
        file = segment.path.name
        # A paused segment may have an earlier record that was not sent: both are sent as one, up to the farther end.
        end = max(record.end, self._targets[file][1] if file in self._targets else 0)
        self._targets[file] = (segment.id, end)
        if self._waits_for_earlier(file):
            # The segments of a writer are sent in their order.
            self._paused.add(file)
            return True
        return self._send_stretch(link, follower, segment, end, deadline)

    def _send_stretch(self, link: remote.Link, follower: Follower, segment: Segment, end: int, deadline: float) -> bool:
        """Send a segment up to `end`, or pause it; False if the deadline came first."""
        file = segment.path.name
        while (offset := max(self.account.cursor.segments.get(file, 0), follower.freed(segment.id))) < end:
            if time.monotonic() >= deadline:
                return False
            # The cursor moves with each reply, so this loop reads what follows the last acknowledged byte, wherever
            # that is.
            fail_point("sync-read")
            data, damaged = self._batches.next(segment, offset, end, self.account.batch_bytes)
            if not data:
                self._pause(file, offset, f"bytes {offset:,} to {end:,} of it cannot be read as recorded")
                return True
            if not self._post(link, follower, file, offset, data, damaged):
                return True
        self._paused.discard(file)
        return True

    def _pause(self, file: str, offset: int, why: str) -> None:
        """Leave a segment to later steps; report it once it has been at the same offset for DAMAGE_S.

        Possible damage is not reported: after a second read it will be sent as damage.
        """
        self._paused.add(file)
        self._paused_now.add(file)
        where, since = self._stalled.get(file, (-1, 0.0))
        if where != offset:
            self._stalled[file] = (offset, time.monotonic())
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
        """Send bytes of a segment; True if it can go on at once, False if it was paused or set aside.

        `damaged` holds (start, end) offsets in the file of bytes without a valid frame. Raises Restart if the server
        has less than the cursor says, Full if it does not fit into the quota, and RemoteError.
        """
        fail_point("sync-send")
        try:
            found = remote.append_segment(
                link, follower.id, file, offset, data, damaged=damaged, without=sorted(self._blobs.without)
            )
        except ServerRefused as refused:
            return self._refused(link, follower, file, offset, data, refused)
        fail_point("sync-acked")
        # Without this check the same bytes would be sent for ever.
        if found["length"] <= offset:
            raise Unreachable(f"{self.account.remote} accepted bytes, and has no more than before")
        self.account.known_to_server = True
        self.account.sent_bytes += len(data)
        self.account.events = found["events"]
        # Only if the experiment has files is it worth asking which of them are missing. A server of an older version
        # does not say.
        if found.get("files", True) or any(map(parse_blob, self.account.cursor.parked)):
            self._blobs.wanted = True
        self._acknowledged(file, found["length"])
        self.account.grow_batch()
        # What the server was told to do without is folded now; another request says it anew.
        self._blobs.without.clear()
        return True

    def _acknowledged(self, file: str, length: int) -> None:
        """Record that the server has the first `length` bytes of a segment.

        Saved at once, and not at the end of the step: a daemon that is killed then has at most one batch to send again.
        """
        self.account.cursor.segments[file] = length
        self.account.cursor.parked.pop(file, None)
        self._stalled.pop(file, None)
        self._batches.forget_sent(file, length)
        self.account.save()

    def _refused(
        self, link: remote.Link, follower: Follower, file: str, offset: int, data: bytes, refused: ServerRefused
    ) -> bool:
        """Act on a refusal: True to retry at once; False after pausing the segment or setting it aside.

        The order of the tests goes from what can be mended here and now to what cannot. Whatever no test takes is set
        aside: one bad segment must not stop the journal.
        """
        length = refused.extra.get("length")
        if refused.code == GAP and isinstance(length, int) and 0 <= length < offset:
            self._acknowledged(file, length)
            # A server that lost these bytes may have lost more: ask about everything.
            raise Restart("the server has less than it said")
        if refused.code == NEEDS_BLOBS and (wanted := _new_names(refused.extra.get("blobs"), self._blobs.without)):
            try:
                sent = self._blobs.send_bodies(link, follower, wanted)
            except ServerRefused as full:
                raise self._full(file, full) from full
            if sent:
                return True
            self._pause(file, offset, "long bodies of its events cannot be sent")
            return False
        if refused.code == QUOTA:
            raise self._full(file, refused)
        if refused.code == TOO_LARGE and self.account.shrink_batch(len(data)):
            return True
        # Read again, because what a network file system shows may lag behind; then nothing is wrong with the file.
        if refused.code == TORN and self._reads_differently(file, offset, data):
            self._pause(file, offset, refused.message)
            return False
        at = refused.extra.get("offset")
        if refused.code == TORN and isinstance(at, int) and at >= offset and self._batches.mark_torn(file, at):
            # The checksum is right, but the server cannot decode the frame: from now on it is sent as damage.
            return True
        if refused.code == CONFLICT:
            log.error("%s: the server has other bytes of %s: %s", self.journal, file, refused.message)
        self.account.park(file, refused.message)
        self._blocked.add(file)
        self._paused.discard(file)
        return False

    def _full(self, file: str, refused: ServerRefused) -> Full:
        """Park a segment that does not fit into the quota; return what ends the step."""
        self.account.park(file, refused.message)
        self._full_file = file
        return Full(refused.message)

    def _reads_differently(self, file: str, offset: int, data: bytes) -> bool:
        """True if a second read gives other bytes: a network file system had not shown what was written."""
        with (self.journal / SEGMENTS / file).open("rb") as opened:
            return read_at(opened.fileno(), len(data), offset) != data

    def _send_death(self, link: remote.Link, follower: Follower, death: Death) -> None:
        """Tell the server that a writer died, or hold that back. Raises Restart if the server lost the journal."""
        key = f"{death.writer}:{death.segment}:{death.end}"
        if key in self.account.cursor.deaths:
            return
        waits = any(_writer_of(file) == death.writer for file in self._retryable())
        if waits or not (self.account.known_to_server or self._introduce(link, follower)):
            # Bytes of the writer that arrive after its death make the death void. And a server that does not know the
            # journal cannot take it.
            self._held_deaths.append(death)
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
        """Send the header of this machine's first segment, so that the server knows the journal; False if that fails.

        Needed where an experiment that was pulled is continued: its journal begins with deaths, of writers elsewhere.
        """
        segment = follower.first_of_here()
        if segment is None or segment.path.name in self._blocked:
            return False
        with segment.path.open("rb") as file:
            data = read_at(file.fileno(), segment.first, 0)
        damaged = [(0, segment.first)] if segment.damaged else []
        return self._post(link, follower, segment.path.name, 0, data, damaged)


def _new_names(wanted: object, known: set[str]) -> list[str]:
    """The names of blobs in `wanted` that are not in `known`. Empty if `wanted` is not a list of such names."""
    if not isinstance(wanted, list) or not all(isinstance(name, str) and parse_blob(name) for name in wanted):
        return []
    return [name for name in wanted if name not in known]


def _writer_of(file: str) -> str:
    """The id of the writer of a segment file; empty if it is not named like one."""
    name = parse_name(file)
    return name.writer if name is not None else ""


def _comes_before(file: str, other: str) -> bool:
    """True if `file` is an earlier segment of the same writer than `other`."""
    return file[:_WRITER_CHARACTERS] == other[:_WRITER_CHARACTERS] and file < other
