"""Ingest of segment bytes: check, store, fold, and acknowledge, in one commit of the experiment.

A request brings bytes [offset, offset + n) of a segment; `compare` says what of it is new. One commit then holds all of
it: the raw bytes, the segment's new length, the blocks of lines that the fold makes of them, the arrival numbers, and
the parts of the folded state that have changed. Only when it is durable is the length answered. So:

- A length that was answered is durable and folded. A server that is killed before the commit has changed nothing that
  anybody sees; killed after it, it has only failed to answer, and the client sends the bytes again, which are compared
  and found equal.
- An event counts once: the fold remembers the numbers of each writer. Two requests with the same bytes, here or at
  another server, cannot both be stored, because each is a version of the experiment, and a version is taken once.
- Folding all arrivals in their order gives the same contents (`refold`).

A request whose events touch thousands of parts is committed in several versions, each a whole number of frames, so that
memory stays bounded; a crash in between has stored the first of them. One that takes long is answered with the length
that it has come to, before its client gives up.

Memory: one request (8 MiB of segment at most), its decoded events, at most about _BODY_BYTES_AT_ONCE of long bodies,
and the cache.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final

from ...core.fold import fold, fold_death
from ...core.frames import Event, Header
from ...core.names import check_name, experiment_id
from ...core.protocol import CONFLICT, GAP, MALFORMED, NEEDS_BLOBS, UNKNOWN, Appended, Refused
from ...core.ranges import Range, holes
from ...disk.durable import fail_point
from ...errors import InvalidInput
from ...journal import bodies
from ...journal.reader import Stretch
from ...journal.segment import SegmentName, parse_name
from ..stores import BlobRow, ExperimentRow, JournalClaim, SegmentClaim
from .changes import DEATH, STRETCH, Change, Changes
from .compare import Contradiction, Part, appended, differing, header_of, mended
from .contents import JournalRow, SegmentRow
from .parts import touched_parts

# A request is committed in parts where its events touch more parts of the state than this.
_PARTS_AT_ONCE: Final = 4_000
# Long bodies that are decoded together. A batch of small frames may name gigabytes of them.
_BODY_BYTES_AT_ONCE: Final = 16 << 20
# A request that has to be committed in parts is answered after this long with what is taken: the client goes on there.
_TAKES_S: Final = 10.0
_ID: Final = re.compile("[0-9a-f]{32}")

log = logging.getLogger("ml_dash.server")


class Ingest:
    """Takes bytes of segments, and deaths. Any thread may call."""

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self._documents = changes.documents
        # Refused contradictions since the start, for whoever watches the server.
        self.conflicts = 0

    # -- segments ----------------------------------------------------------------------------------------------------

    def append(
        self,
        ns: str,
        journal: str,
        file: str,
        offset: int,
        data: bytes,
        damaged: Iterable[Range] = (),
        without: Iterable[str] = (),
    ) -> Appended:
        """Take bytes [offset, offset + len(data)) of a segment: store and fold what continues our copy.

        `damaged` are the ranges (in bytes of the segment) that the client calls damaged, `without` the blobs that it
        cannot send. All is durable on return. Raises Refused (see protocol.py) and StoreTrouble; then nothing is
        changed, or only the first whole frames are stored.
        """
        name = parse_name(file)
        if name is None:
            raise Refused(422, MALFORMED, f"{file[:100]!r} is not the name of a segment")
        damaged = sorted(damaged)
        claim = self._belongs(ns, journal, name, offset, data, damaged)
        with self.changes.changing(ns, claim.experiment, claim.project, claim.name) as change:
            length = self.take(change, claim, name, offset, data, damaged, without, time.monotonic() + _TAKES_S)
            if change.changed:
                change.commit()
            row = change.row
        return _appended(length, row)

    def _belongs(
        self, ns: str, journal: str, name: SegmentName, offset: int, data: bytes, damaged: list[Range]
    ) -> JournalClaim:
        """Return to which experiment a journal belongs; where it is new, to the one that its first bytes name."""
        with self._documents.view() as view:
            claim = view.journal(ns, journal)
        if claim is None:
            if offset:
                raise Refused(409, GAP, "this segment is not here yet", length=0)
            project, experiment = _named(header_of(data, _header_is_damaged(damaged))[0], journal, name)
            claim = JournalClaim(journal, experiment_id(project, experiment), project, experiment)
        return claim

    def take(
        self,
        change: Change,
        claim: JournalClaim,
        name: SegmentName,
        offset: int,
        data: bytes,
        damaged: list[Range],
        without: Iterable[str] = (),
        until: float = math.inf,
        *,
        removes: bool = False,
    ) -> int:
        """Do the work of `append` under a lease, up to the last commit; return the length of the segment then.

        Where it has to be committed in parts, what is left at the time `until` (monotonic, in seconds) is not taken.
        `removes`: the events only remove something, which no quota forbids.
        """
        draft = change.draft
        row = draft.segment(claim.id, str(name))
        is_new = row is None
        if row is None:
            if offset:
                raise Refused(409, GAP, "this segment is not here yet", length=0)
            row = _begun(claim, name, data, damaged)
        if offset > row.length:
            raise Refused(409, GAP, f"{row.length} bytes are here, not {offset}", length=row.length)
        # From here on: first everything for which the request may be refused, then everything that is stored.
        part = Part(row, offset, data, damaged)
        ours = b"".join(draft.bytes_of(row.id, offset, min(row.length, part.end))) if offset < row.length else b""
        try:
            replaced = differing(part, ours)
        except Contradiction as error:
            self.conflicts += 1
            log.error("conflict: segment %s has another frame at %d", row.id, error.at)
            raise
        again = [stretch for low, high in replaced for stretch in mended(part, low, high)]
        end = max(row.length, part.end)
        new, gaps = appended(part) if end > row.length else ([], [])
        # Nothing new: a repeated request.
        if end == row.length and not replaced:
            return end
        if not removes:
            self.changes.quota.check(change.ns, end - row.length)
        # Bodies of a removed writer's events are not taken, since nothing folds them.
        if not draft.is_removed(row.writer):
            self._require_bodies(change.ns, row, [*again, *new], frozenset(without))
        if is_new:
            self._claim(change, claim, row)
        change.changed = True
        change.heard()
        for low, high in replaced:
            draft.replace_bytes(row.id, low, part.bytes(low, high))
        # What was mended is taken out of the ranges that never verified, and the new gaps are added.
        kept = [hole for gap in row.damaged for hole in holes([(one.start, one.end) for one in again], *gap)]

        def store(start: int, stop: int) -> None:
            """Store what is appended, up to `stop`."""
            if stop > start:
                change.put_raw(row.id, start, part.bytes(start, stop))
            never = [(low, min(high, stop)) for low, high in gaps if low < stop]
            draft.put_segment(replace(row, length=max(row.length, stop), damaged=tuple(sorted([*kept, *never]))))

        stored = row.length
        # Events of a removed experiment's writers are stored, so that they are acknowledged, and not folded, so that
        # they are not shown.
        if not draft.is_removed(row.writer):
            arrivals = _Arrivals(change, row.id)
            for stretch in again:
                self._fold(change, part, stretch, arrivals)
            arrivals.close()
            for index, stretch in enumerate(new, 1):
                self._fold(change, part, stretch, arrivals)
                if touched_parts(change.state) > _PARTS_AT_ONCE and index < len(new):
                    arrivals.close()
                    store(stored, stretch.end)
                    change.commit()
                    stored = stretch.end
                    if time.monotonic() > until:
                        return stored
                    self.changes.renew(change)
            arrivals.close()
        store(stored, end)
        return end

    def _claim(self, change: Change, claim: JournalClaim, row: SegmentRow) -> None:
        """Claim the ids of a new segment and, if need be, its journal. Raises Refused where they are taken.

        A crash behind this leaves claims of which nothing is here; the same bytes, sent again, find their own.
        """
        if change.draft.journal(claim.id) is None:
            if self._documents.claim_journal(change.ns, claim) != claim:
                raise Refused(422, MALFORMED, f"journal {claim.id} holds another experiment here")
            fail_point("journal-claimed")
            change.draft.put_journal(JournalRow(claim.id, claim.project, claim.name))
        made = SegmentClaim(row.id, row.journal, row.file, row.writer, claim.experiment)
        if self._documents.claim_segment(change.ns, made) != made:
            # Ids are random, so this is the same segment under another name of its file.
            self.conflicts += 1
            raise Refused(409, CONFLICT, "a segment of this id is here under another name", offset=0)
        fail_point("segment-claimed")

    def _fold(self, change: Change, part: Part, stretch: Stretch, arrivals: _Arrivals) -> None:
        """Fold a stretch of frames, and note which bytes were folded: a frame whose body is lost is left out."""
        row = part.row
        for piece in self.pieces(change.ns, row.writer, stretch, partial(part.bytes, stretch.start, stretch.end)):
            arrivals.add(piece.start, piece.end)
            fold(change.state, row.writer, piece.events, change.edits)
            change.apply()

    # -- bodies that are blobs ---------------------------------------------------------------------------------------

    def _require_bodies(self, ns: str, row: SegmentRow, stretches: list[Stretch], without: frozenset[str]) -> None:
        """Raise Refused if bodies of these events are not here and the client has not given them up (`without`)."""
        names = [name for stretch in stretches for name, _ in bodies.blobs_of(stretch, row.writer)]
        missing = [name for name in names if name not in without and self._body_row(ns, name) is None]
        if missing:
            raise Refused(409, NEEDS_BLOBS, f"{len(missing)} bodies of these events are not here", blobs=missing)

    def _body_row(self, ns: str, name: str) -> BlobRow | None:
        """Return the row of a body; None if it is not here, or its object was lost.

        Bodies belong to no experiment (""): they come before the event, and so before the experiment may be known.
        """
        with self._documents.view() as view:
            blob = view.blob(ns, "", name)
        return blob if blob is not None and self.changes.objects.size(blob.key) == blob.size else None

    def pieces(self, ns: str, writer: str, stretch: Stretch, frames: Callable[[], bytes]) -> Iterator[Stretch]:
        """Yield the stretch with its bodies, in pieces that fit in memory. An event whose body is lost is left out.

        `frames` returns the bytes of the stretch.
        """

        def lost(event: Event, error: Exception) -> None:
            log.warning("event %d of writer %s is left out: its body is lost (%s)", event[0], writer, error)

        lost_if = (FileNotFoundError, ValueError)
        fetch = partial(self.body, ns)
        return bodies.with_bodies(stretch, writer, frames, fetch, lost, lost_if, at_once=_BODY_BYTES_AT_ONCE)

    def body(self, ns: str, name: str, size: int) -> Any:
        """Return a body. Raises FileNotFoundError if it is not here, ValueError if it cannot be decoded."""
        blob = self._body_row(ns, name)
        if blob is None or blob.size != size:
            raise FileNotFoundError(name)
        return bodies.decode(b"".join(self.changes.objects.open(blob.key)))

    # -- deaths ------------------------------------------------------------------------------------------------------

    def deaths(self, ns: str, journal: str, notes: list[dict[str, Any]]) -> int:
        """Fold the deaths of writers that observers noted; return how many writers of the journal are known to be dead.

        A note counts once. It is void if a later event of its writer was folded, before it came or after.
        """
        for note in notes:
            if not (_ID.fullmatch(note["writer"]) and _ID.fullmatch(note["segment"]) and 0 <= note["end"] < 1 << 62):
                raise Refused(
                    422, MALFORMED, "a death needs a writer and a segment (32 hex digits each) and an end in bytes"
                )
        with self._documents.view() as view:
            claim = view.journal(ns, journal)
        if claim is None:
            raise Refused(404, UNKNOWN, "this journal is not here")
        with self.changes.changing(ns, claim.experiment, claim.project, claim.name) as change:
            for note in notes:
                who, segment, end = note["writer"], note["segment"], note["end"]
                if not self._is_void(change, who, segment, end):
                    fold_death(change.state, who, change.edits)
                    change.arrive(DEATH, who, 0, end, segment)
                    change.changed = True
            if change.changed:
                change.commit()
            writers = {row.writer for row in change.draft.segments(journal)}
            known = [change.state.writers.get(writer) for writer in writers]
            return sum(writer is not None and writer.dead for writer in known)

    def _is_void(self, change: Change, who: str, segment: str, end: int) -> bool:
        """True if a death does not count: known, nothing of its writer is here, or more than the observer had read."""
        draft = change.draft
        if who not in change.state.writers or draft.has_death(who, segment, end):
            return True
        with self._documents.view() as view:
            claim = view.segment(change.ns, segment)
        row = draft.segment(claim.journal, claim.file) if claim is not None else None
        if row is None:
            # The observer had read nothing of that writer, and we have folded something.
            return True
        later = [other for other in draft.segments(row.journal) if other.writer == who and other.file > row.file]
        # We have more of the writer than its observer had read: it lived on after the note.
        return row.writer != who or row.length > end or any(other.length > other.first for other in later)


class _Arrivals:
    """The bytes of one segment that are being folded: pieces that follow each other are one arrival."""

    def __init__(self, change: Change, segment: str) -> None:
        self._change = change
        self._segment = segment
        self._start = self._end = 0

    def add(self, start: int, end: int) -> None:
        """Note that [start, end) is folded next."""
        # A body between the two is lost. The arrival ends before it, so that folding anew leaves out the same.
        if start != self._end:
            self.close()
            self._start = start
        self._end = end

    def close(self) -> None:
        """Record what was noted."""
        if self._end > self._start:
            self._change.arrive(STRETCH, self._segment, self._start, self._end)
        self._start = self._end


def _begun(claim: JournalClaim, name: SegmentName, data: bytes, damaged: list[Range]) -> SegmentRow:
    """Return the row of a new segment that begins with `data`. Raises Refused where its header does not fit."""
    header, first, crc = header_of(data, _header_is_damaged(damaged))
    project, experiment = _named(header, claim.id, name)
    if experiment_id(project, experiment) != claim.experiment:
        raise Refused(422, MALFORMED, f"journal {claim.id} holds {claim.project}/{claim.name} here")
    return SegmentRow(header.segment.hex(), claim.id, str(name), header.writer.hex(), 0, first, crc)


def _header_is_damaged(damaged: list[Range]) -> bool:
    return any(low == 0 for low, _ in damaged)


def _named(header: Header, journal: str, name: SegmentName) -> tuple[str, str]:
    """Return (project, name) of the experiment that a header names. Raises Refused where it is not of this segment."""
    if header.journal.hex() != journal or header.writer.hex() != name.writer or header.n != name.n:
        raise Refused(422, MALFORMED, "the segment's header names another journal, writer or number")
    try:
        return check_name("project", header.project), check_name("name", header.name)
    except InvalidInput as error:
        raise Refused(422, MALFORMED, f"the segment names no legal experiment: {error}") from None


def _appended(length: int, row: ExperimentRow) -> Appended:
    """Return the answer to a request."""
    counts = row.summary.get("counts", {})
    return Appended(length=length, events=counts.get("events", 0), files=bool(counts.get("files")))
