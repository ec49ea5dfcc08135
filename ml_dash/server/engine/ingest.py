"""Ingest of segment bytes: check, store, fold, and acknowledge, in one transaction.

A request brings bytes [offset, offset + n) of a segment. What they are is decided by comparing them with the server's
copy, whose length is L:

    offset > L               refused (GAP), with L: the client goes on from there
    offset <= L < offset+n   [offset, L) is compared, [L, offset+n) is appended
    offset+n <= L            all of it is compared; nothing is stored, and the answer is L

Compared bytes must be equal. Three cases differ: bytes that never verified here may be replaced by bytes that do;
bytes that the client calls damaged say nothing against ours; anything else is a conflict, the first bytes are kept,
and an alarm is logged.

One transaction then holds all of it, in this order: the raw bytes, the segment's new length, the blocks of lines that
the fold makes of them, the arrival numbers, and the experiment's row with the folded state. It is synced by the
commit, and only then is the length answered. So:

- A length that was answered is durable and folded. A server that is killed before the commit has changed nothing;
  killed after it, it has only failed to answer, and the client sends the bytes again, which are compared and found
  equal.
- An event counts once: the fold remembers the numbers of each writer. Two requests with the same bytes cannot both be
  stored, because a stretch is claimed under (namespace, segment, start), which is unique.
- Folding all arrivals in their order gives the same tables (`refold`).

Locks: `ServerWriter._guard`, then `Ingest._turn`, then the turn of the store. Reading goes past all of them. Deleting
objects and telling listeners comes after the commit and outside of the turn, because both may be slow; an object that
a crash leaves behind then is garbage, never a file that is missing.

Memory: one request (8 MiB of segment at most), its decoded events, at most about _BODY_BYTES_AT_ONCE of long bodies,
and the cache.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import time_ns
from typing import Any, Final

import msgspec

from ...core.fold import fold, fold_death
from ...core.frames import HEAD, Event, Header, LengthCrcs, decode_header, walk
from ...core.names import check_name, experiment_id
from ...core.protocol import CONFLICT, GAP, MALFORMED, NEEDS_BLOBS, TORN, UNAVAILABLE, UNKNOWN, Appended, Refused
from ...core.ranges import Range, holes, overlapping
from ...core.records import ended_at, experiment_counts, status_of
from ...core.rewinds import recount
from ...core.state import Edits, State
from ...disk.durable import fail_point
from ...errors import Damaged, InvalidInput, NewerFormat
from ...journal import bodies
from ...journal.mend import mend_header
from ...journal.reader import Stretch, decode_event
from ...journal.segment import SegmentName, parse_name
from ..stores import (
    Arrival,
    BlobRow,
    Claimed,
    Documents,
    ExperimentRow,
    JournalRow,
    Objects,
    Read,
    SegmentRow,
    StoreTrouble,
    Write,
)
from .blocks import TABLES_VERSION, OpenBlocks, add, history

# Kinds of arrivals.
STRETCH: Final = 1
DEATH: Final = 2
# Bounds of the cache; the oldest experiments leave it first.
_STATES_CACHED: Final = 256
# Counted by the length of the encoded states; decoded they take more.
_STATE_BYTES_CACHED: Final = 16 << 20
_OPEN_BLOCKS_CACHED: Final = 1000
_OPEN_BLOCK_BYTES_CACHED: Final = 4 << 20
# Long bodies that are decoded together. A batch of small frames may name gigabytes of them.
_BODY_BYTES_AT_ONCE: Final = 16 << 20
_ID: Final = re.compile("[0-9a-f]{32}")

Changed = Callable[[str, str, "int | None"], None]
"""changed(namespace, experiment, number of events): called after a commit, in its thread; None for a removed one.
"""

log = logging.getLogger("ml_dash.server")
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(State)


class CachedExperiment:
    """An experiment in memory: its row, its folded state and its open blocks. Equal to what is stored.

    Changed only within `Ingest.writing`, by the thread that has the turn.

    Without it, each request would decode the whole state and the open block of each series. `row.version` is how a
    change by another process, or by a transaction of which the end is not known, is noticed: each arrival makes it
    grow.
    """

    __slots__ = ("open_blocks", "row", "state")

    def __init__(self, row: ExperimentRow, state: State) -> None:
        self.row = row
        self.state = state
        self.open_blocks: OpenBlocks = {}


def encode_state(state: State) -> bytes:
    """Encode a state as it is stored."""
    return _encoder.encode(state)


def decode_state(row: ExperimentRow) -> State:
    """Decode the state of a row; an empty one where another version of the fold made it.

    Only until `refold` has come to that experiment, which happens when the server starts.
    """
    return _decoder.decode(row.state) if row.fold_version == TABLES_VERSION and row.state else State()


class Ingest:
    """The one place where events come into the documents. Any thread may call.

    `_turn` admits one writing thread; `_cache`, `_taken` and all cached experiments belong to it. A cached experiment
    is taken out of `_cache` before it is changed, and comes back only after the commit: a transaction that fails leaves
    nothing changed in memory, and the next one reads what is stored. `conflicts` is only ever counted up within a turn.
    """

    def __init__(self, documents: Documents, objects: Objects, changed: Changed) -> None:
        self.documents = documents
        self.objects = objects
        self._changed = changed
        self._turn = threading.Lock()
        self._cache: OrderedDict[tuple[str, str], CachedExperiment] = OrderedDict()
        self._taken: dict[tuple[str, str], CachedExperiment] = {}
        # Refused contradictions since the start, for whoever watches the server.
        self.conflicts = 0

    # -- transactions, and states in memory --------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[Write]:
        """Open a transaction, one thread at a time. Experiments that it took are cached again only if it commits.

        Raises StoreTrouble, and Refused (503) if another process came first; nothing is changed then.
        """
        with self._turn:
            self._taken = {}
            try:
                with self.documents.write() as tx:
                    yield tx
                    fail_point("ingest-before-commit")
            except Claimed as error:
                raise Refused(503, UNAVAILABLE, "another upload of this came first", retry_after_s=1) from error
            fail_point("ingest-after-commit")
            # Only here, after the commit: `_taken` of a failed transaction is dropped by the next one.
            self._cache |= self._taken
            total = sum(len(cached.row.state) for cached in self._cache.values())
            while len(self._cache) > _STATES_CACHED or (total > _STATE_BYTES_CACHED and len(self._cache) > 1):
                # The one that was not used for longest: what is used is taken out and put back at the end.
                _, dropped = self._cache.popitem(last=False)
                total -= len(dropped.row.state)

    def cached(self, tx: Read, ns: str, experiment: str, project: str = "", name: str = "") -> CachedExperiment:
        """Return an experiment to be changed and stored; from memory where that equals what is stored.

        While writing.
        """
        cached = self._taken.get((ns, experiment))
        if cached is not None:
            return cached
        row = tx.experiment(ns, experiment)
        # It comes back when this transaction has committed.
        cached = self._cache.pop((ns, experiment), None)
        if cached is None or row is None or cached.row.version != row.version:
            row = row or ExperimentRow(experiment, project, name, 0, TABLES_VERSION, b"", "", 0, 0, 0)
            cached = CachedExperiment(row, decode_state(row))
            cached.state.project = cached.state.project or project or row.project
            cached.state.name = cached.state.name or name or row.name
        self._taken[ns, experiment] = cached
        return cached

    def apply(self, tx: Write, ns: str, cached: CachedExperiment, edits: Edits) -> None:
        """Store the lines of edits. All else that has changed waits for `store`."""
        tx.put_blocks(ns, cached.row.id, add(tx, ns, cached.row.id, edits, cached.open_blocks))
        if edits.rewound:
            recount(cached.state, edits, history(tx, ns, cached.row.id))
        if (
            len(cached.open_blocks) > _OPEN_BLOCKS_CACHED
            or sum(len(block.lines) for block in cached.open_blocks.values()) > _OPEN_BLOCK_BYTES_CACHED
        ):
            # All of them are stored with each `put_blocks`, also those that are not full. So they can be dropped here
            # and are read again when needed.
            cached.open_blocks = {}

    def store(self, tx: Write, ns: str, cached: CachedExperiment, edits: Edits) -> list[str]:
        """Store all that has changed; return the keys of objects that this releases, to be deleted after the commit.

        Objects go after the commit: if it fails, the files are still listed, and their contents must be there.
        """
        state, keys = cached.state, []
        for name in edits.released:
            blob = tx.blob(ns, cached.row.id, name)
            if blob is not None:
                keys.append(blob.key)
                tx.drop_blob(ns, cached.row.id, name)
        self.apply(tx, ns, cached, edits)
        cached.row = replace(
            cached.row,
            fold_version=TABLES_VERSION,
            state=encode_state(state),
            project=state.project,
            name=state.name,
            status=status_of(state),
            created_ns=state.created_ns,
            updated_ns=state.updated_ns,
            folder=state.folder.value or "",
            tags=tuple(state.tags.value or ()),
            description=state.description.value or "",
            summary={"counts": experiment_counts(state), "endedAt": ended_at(state)},
        )
        tx.put_experiment(ns, cached.row)
        return keys

    def arrive(
        self, tx: Write, ns: str, cached: CachedExperiment, kind: int, who: str, start: int, end: int, seg: str = ""
    ) -> None:
        """Record what was folded, under the next arrival number.

        `start` and `end` are bytes of the segment `who` for a stretch; for a death, `who` is the writer, and `seg`
        and `end` are what its observer had read. The number is claimed: where another process has given it out, the
        transaction fails.
        """
        tx.claim_arrival(ns, cached.row.id, Arrival(cached.row.version, kind, who, start, end, seg))
        cached.row = replace(cached.row, version=cached.row.version + 1)

    def notify(self, ns: str, cached: CachedExperiment, released: Sequence[str] = (), *, removed: bool = False) -> None:
        """Delete released objects and notify those who wait for changes. After the commit, outside of the turn."""
        for key in released:
            try:
                self.objects.delete(key)
            except StoreTrouble as error:
                log.warning("%s is not needed any more and could not be removed: %s", key, error)
        self._changed(ns, cached.row.id, None if removed else cached.state.events)

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
        cannot send. All is durable on return. Raises Refused (see protocol.py) and StoreTrouble; nothing is changed
        then.
        """
        name = parse_name(file)
        if name is None:
            raise Refused(422, MALFORMED, f"{file[:100]!r} is not the name of a segment")
        with self.writing() as tx:
            length, cached, released = self.take(tx, ns, journal, name, offset, data, damaged, without)
            if cached is not None:
                row: ExperimentRow | None = cached.row
            else:
                journal_row = tx.journal(ns, journal)
                row = tx.experiment(ns, journal_row.experiment) if journal_row is not None else None
        if cached is not None:
            self.notify(ns, cached, released)
        return _appended(length, row)

    def take(
        self,
        tx: Write,
        ns: str,
        journal: str,
        name: SegmentName,
        offset: int,
        data: bytes,
        damaged: Iterable[Range] = (),
        without: Iterable[str] = (),
    ) -> tuple[int, CachedExperiment | None, list[str]]:
        """Do the work of `append` within a transaction.

        Returns the length of the segment after it, the experiment if it changed, and keys of released objects.
        """
        damaged = sorted(damaged)
        row = tx.segment_by_file(ns, journal, str(name))
        if row is None:
            if offset:
                raise Refused(409, GAP, "this segment is not here yet", length=0)
            row = self._begin(tx, ns, journal, name, data, any(low == 0 for low, _ in damaged))
        if offset > row.length:
            raise Refused(409, GAP, f"{row.length} bytes are here, not {offset}", length=row.length)
        # From here on: first everything for which the request may be refused, then everything that is stored.
        part = Part(row, offset, data, damaged)
        differing = self._compare(tx, ns, part)
        mended = [stretch for low, high in differing for stretch in _mended(part, low, high)]
        end = max(row.length, offset + len(data))
        appended, gaps = _appended_stretches(part) if end > row.length else ([], [])
        # Nothing new: a repeated request. The commit of this transaction writes nothing.
        if end == row.length and not differing:
            return end, None, []
        stretches = [Stretch(stretch.start, stretch.end, stretch.events) for stretch in (*mended, *appended)]
        self._require_bodies(tx, ns, row, stretches, frozenset(without))
        for low, high in differing:
            tx.replace_bytes(ns, row.id, low, part.bytes(low, high))
        if end > row.length:
            tx.claim_stretch(ns, row.id, row.length, part.bytes(row.length, end))
        # What was mended is taken out of the ranges that never verified, and the new gaps are added.
        still_damaged = [
            hole for gap in row.damaged for hole in holes([(stretch.start, stretch.end) for stretch in mended], *gap)
        ]
        tx.put_segment(ns, replace(row, length=end, damaged=tuple(sorted([*still_damaged, *gaps]))))
        cached = self.cached(tx, ns, row.experiment, *self._names(tx, ns, row))
        cached.row = replace(cached.row, heard_ns=time_ns())
        edits = Edits()
        # Events of a removed experiment's writers are stored, so that they are acknowledged, and not folded, so that
        # they are not shown.
        if row.writer not in cached.row.removed_writers:
            for stretch in stretches:
                self._fold(tx, ns, cached, row, stretch, edits)
        return end, cached, self.store(tx, ns, cached, edits)

    def _begin(self, tx: Write, ns: str, journal: str, name: SegmentName, data: bytes, damaged: bool) -> SegmentRow:
        """Return the row of a new segment that begins with `data`, and store its journal's row. Raises Refused."""
        header, first, crc = _header(data, damaged)
        if header.journal.hex() != journal or header.writer.hex() != name.writer or header.n != name.n:
            raise Refused(422, MALFORMED, "the segment's header names another journal, writer or number")
        try:
            project, experiment = check_name("project", header.project), check_name("name", header.name)
        except InvalidInput as error:
            raise Refused(422, MALFORMED, f"the segment names no legal experiment: {error}") from None
        identity = experiment_id(project, experiment)
        journal_row = tx.journal(ns, journal)
        if journal_row is None:
            tx.put_journal(ns, JournalRow(journal, identity, project, experiment))
        elif journal_row.experiment != identity:
            raise Refused(422, MALFORMED, f"journal {journal} holds {journal_row.project}/{journal_row.name} here")
        # Ids are random, so this is the same segment under another name of its file.
        if tx.segment(ns, header.segment.hex()) is not None:
            self.conflicts += 1
            raise Refused(409, CONFLICT, "a segment of this id is here under another name", offset=0)
        return SegmentRow(header.segment.hex(), journal, str(name), header.writer.hex(), identity, 0, first, crc)

    def _fold(
        self, tx: Write, ns: str, cached: CachedExperiment, row: SegmentRow, stretch: Stretch, edits: Edits
    ) -> None:
        """Fold a stretch of frames, and record which bytes were folded: a frame whose body is lost is left out."""
        begun = behind = stretch.start
        for piece in self.pieces(tx, ns, row, stretch):
            # A body between the two is lost. The arrival ends before it, so that folding anew leaves out the same.
            if piece.start > behind:
                if behind > begun:
                    self.arrive(tx, ns, cached, STRETCH, row.id, begun, behind)
                begun = piece.start
            fold(cached.state, row.writer, piece.events, edits)
            self.apply(tx, ns, cached, edits)
            behind = piece.end
        if behind > begun:
            self.arrive(tx, ns, cached, STRETCH, row.id, begun, behind)

    def _names(self, tx: Read, ns: str, row: SegmentRow) -> tuple[str, str]:
        """Return (project, name) that the journal of a segment was begun with."""
        journal = tx.journal(ns, row.journal)
        return (journal.project, journal.name) if journal is not None else ("", "")

    # -- what is here already ----------------------------------------------------------------------------------------

    def _compare(self, tx: Read, ns: str, part: Part) -> list[Range]:
        """Return the ranges of our bytes that never verified and that these replace.

        Raises Refused where others differ.

        Bytes that the client calls damaged are no evidence against bytes that verified here.
        """
        row, end = part.row, min(part.row.length, part.end)
        if part.offset >= end:
            return []
        ours = b"".join(tx.bytes_of(ns, row.id, part.offset, end))
        # The usual case of a repeated request is equality, which one comparison of bytes decides; slicing copies, so
        # it is avoided where nothing is cut.
        theirs = part.data if len(part.data) == len(ours) else part.data[: len(ours)]
        unsure = overlapping(row.damaged, part.offset, end)
        if ours != theirs:
            for low, high in holes(sorted([*unsure, *part.damaged]), part.offset, end):
                a, b = ours[low - part.offset : high - part.offset], part.bytes(low, high)
                if a != b:
                    self._contradict(part, ours, low + _difference(a, b))
        return [
            (low, high)
            for low, high in unsure
            if part.bytes(low, high) != ours[low - part.offset : high - part.offset] or _verifies(part, low, high)
        ]

    def _contradict(self, part: Part, ours: bytes, different: int) -> None:
        """Raise Refused for bytes that differ from ours at `different`.

        CONFLICT for another frame, TORN for no whole one.

        The frame around the difference decides. If theirs is a whole frame, two different events have one number:
        CONFLICT. If it is not, the client's copy is damaged in a place that it has not noticed: with TORN it reads
        the place again.
        """
        row, at = part.row, part.offset
        if different >= row.first:
            # Frames can be walked only from where one begins: the request's start, the header's end, or the end of a
            # damaged range.
            begins = [high for _, high in row.damaged if part.offset <= high <= different]
            start = max(part.offset, row.first, *begins)
            at = start + _frame_before(ours[start - part.offset :], different - start)
            if walk(part.data, at - part.offset, LengthCrcs(row.crc), decode_event, []) + part.offset <= different:
                raise Refused(422, TORN, f"there is no whole frame at byte {at}", offset=at)
        self.conflicts += 1
        log.error("conflict: segment %s has another frame at %d", row.id, at)
        raise Refused(409, CONFLICT, "other bytes are stored there; the first are kept", offset=at)

    # -- bodies that are blobs ---------------------------------------------------------------------------------------

    def _require_bodies(
        self, tx: Read, ns: str, row: SegmentRow, stretches: list[Stretch], without: frozenset[str]
    ) -> None:
        """Raise Refused if bodies of these events are not here and the client has not given them up (`without`)."""
        names = [name for stretch in stretches for name, _ in bodies.blobs_of(stretch, row.writer)]
        missing = [name for name in names if name not in without and self._body_row(tx, ns, name) is None]
        if missing:
            raise Refused(409, NEEDS_BLOBS, f"{len(missing)} bodies of these events are not here", blobs=missing)

    def _body_row(self, tx: Read, ns: str, name: str) -> BlobRow | None:
        """Return the row of a body; None if it is not here, or its object was lost.

        Bodies belong to no experiment (""): they come before the event, and so before the experiment may be known.
        """
        blob = tx.blob(ns, "", name)
        return blob if blob is not None and self.objects.size(blob.key) == blob.size else None

    def pieces(self, tx: Read, ns: str, row: SegmentRow, stretch: Stretch) -> Iterator[Stretch]:
        """Yield the stretch with its bodies, in pieces that fit in memory. An event whose body is lost is left out."""

        def lost(event: Event, error: Exception) -> None:
            log.warning("event %d of writer %s is left out: its body is lost (%s)", event[0], row.writer, error)

        frames = partial(_bytes_of, tx, ns, row, stretch)
        fetch = partial(self._body, tx, ns)
        lost_if = (FileNotFoundError, ValueError)
        return bodies.with_bodies(stretch, row.writer, frames, fetch, lost, lost_if, at_once=_BODY_BYTES_AT_ONCE)

    def _body(self, tx: Read, ns: str, name: str, size: int) -> Any:
        """Return a body. Raises FileNotFoundError if it is not here, ValueError if it cannot be decoded."""
        blob = self._body_row(tx, ns, name)
        if blob is None or blob.size != size:
            raise FileNotFoundError(name)
        return bodies.decode(b"".join(self.objects.open(blob.key)))

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
        with self.writing() as tx:
            journal_row = tx.journal(ns, journal)
            if journal_row is None:
                raise Refused(404, UNKNOWN, "this journal is not here")
            cached = self.cached(tx, ns, journal_row.experiment, journal_row.project, journal_row.name)
            edits = Edits()
            for note in notes:
                who, segment, end = note["writer"], note["segment"], note["end"]
                if not self._is_void(tx, ns, cached, who, segment, end):
                    fold_death(cached.state, who, edits)
                    self.arrive(tx, ns, cached, DEATH, who, 0, end, segment)
            released = self.store(tx, ns, cached, edits)
            writers = {row.writer for row in tx.segments(ns, journal)}
        self.notify(ns, cached, released)
        return sum(writer.dead for writer in cached.state.writers.values() if writer.id in writers)

    def _is_void(self, tx: Read, ns: str, cached: CachedExperiment, who: str, segment: str, end: int) -> bool:
        """True if a death does not count: known, nothing of its writer is here, or more than the observer had read."""
        if who not in cached.state.writers or tx.has_death(ns, cached.row.id, who, segment, end):
            return True
        row = tx.segment(ns, segment)
        if row is None:
            # The observer had read nothing of that writer, and we have folded something.
            return True
        later = [other for other in tx.segments(ns, row.journal) if other.writer == who and other.file > row.file]
        # We have more of the writer than its observer had read: it lived on after the note.
        return row.writer != who or row.length > end or any(other.length > other.first for other in later)


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes of a segment that a request brings, from `offset` on; the client calls some ranges damaged."""

    row: SegmentRow
    offset: int
    data: bytes
    damaged: list[Range]

    @property
    def end(self) -> int:
        """The offset in the segment after the last byte."""
        return self.offset + len(self.data)

    def bytes(self, start: int, end: int) -> bytes:
        """Return bytes [start, end) of the segment, which must lie within this part."""
        return self.data[start - self.offset : end - self.offset]


def _appended_stretches(part: Part) -> tuple[list[Stretch], list[Range]]:
    """Return the stretches of frames that follow our copy, and the damaged ranges between them.

    Raises Refused for others.

    Every byte from the end of our copy to the end of the request is in one of them, so nothing is stored that is
    neither checked nor marked.

        |header|  frames  |damaged|  frames  |
        0    first      low     high     part.end
    """
    row, stretches, gaps = part.row, list[Stretch](), list[Range]()
    position = row.length
    if not position:
        position = row.first
        if any(low < row.first for low, _ in part.damaged):
            gaps.append((0, row.first))
    # The empty range at the end lets the last frames be taken like those before a gap.
    for low, high in [*(gap for gap in part.damaged if gap[1] > position), (part.end, part.end)]:
        low, high = min(max(low, position), part.end), min(high, part.end)
        if low > position:
            stretches.append(_frames(part, position, low))
        if high > low:
            gaps.append((low, high))
        position = max(position, high)
    return stretches, gaps


def _mended(part: Part, start: int, end: int) -> list[Stretch]:
    """Return the frames that now verify in a range of ours that never did.

    Raises Refused where bytes do not verify that the client does not call damaged.
    """
    row, stretches = part.row, list[Stretch]()
    if start < row.first:
        # A header that was damaged on the client's disk, and holds now.
        if not any(low < row.first for low, _ in part.damaged):
            if not _is_header(part):
                raise Refused(422, TORN, "the header does not hold", offset=0)
            stretches.append(Stretch(0, row.first, []))
        start = row.first
    for low, high in holes(part.damaged, start, end):
        stretches.append(_frames(part, low, high))
    return stretches


def _is_header(part: Part) -> bool:
    """True if these bytes begin with the header that this segment was begun with, by its size and CRC.

    The CRC matters: every frame's checksum starts from it.
    """
    try:
        _, size, crc = decode_header(part.data)
    except (Damaged, NewerFormat):
        return False
    return (size, crc) == (part.row.first, part.row.crc)


def _verifies(part: Part, start: int, end: int) -> bool:
    """True if bytes verify now that were damaged when they first came."""
    try:
        return any(stretch.end > stretch.start for stretch in _mended(part, start, end))
    except Refused:
        return False


def _bytes_of(tx: Read, ns: str, row: SegmentRow, stretch: Stretch) -> bytes:
    """Return the stored bytes of a stretch."""
    return b"".join(tx.bytes_of(ns, row.id, stretch.start, stretch.end))


def _header(data: bytes, damaged: bool) -> tuple[Header, int, int]:
    """Decode the header; mend one that the client says is damaged on its disk. Raises Refused if neither works."""
    try:
        return decode_header(data)
    except NewerFormat as error:
        raise Refused(422, "newer_format", f"this server cannot read the segment: {error}") from None
    except Damaged as error:
        # Mending needs the header and the first whole frame: at most 1 MiB and the frame's head, and some room for
        # the header.
        mended = mend_header(data[: (1 << 20) + 16384]) if damaged else None
        if mended is None:
            raise Refused(422, TORN, f"the header does not hold: {error.message}", offset=0) from None
        return decode_header(mended)


def _frames(part: Part, start: int, end: int) -> Stretch:
    """Return the stretch of whole frames that fills [start, end). Raises Refused (TORN) where one is not whole."""
    events: list[Event] = []
    # A copy only if something follows; the usual request is one stretch.
    buffer = part.data if end == part.end else part.data[: end - part.offset]
    stop = walk(buffer, start - part.offset, LengthCrcs(part.row.crc), decode_event, events) + part.offset
    if stop != end:
        raise Refused(422, TORN, f"there is no whole frame at byte {stop}", offset=stop)
    return Stretch(start, end, events)


def _frame_before(frames: bytes, offset: int) -> int:
    """Return where the frame begins that holds byte `offset`; `frames` begins with a frame."""
    position = 0
    while position + HEAD.size <= len(frames):
        following = position + HEAD.size + int(HEAD.unpack_from(frames, position)[0])
        if following > offset:
            break
        position = following
    return position


def _difference(a: bytes, b: bytes) -> int:
    """Return the first offset at which two different pieces differ, by bisection."""
    low, high = 0, max(len(a), len(b))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low


def _appended(length: int, row: ExperimentRow | None) -> Appended:
    """Return the answer to a request; without a row, the experiment has no event yet."""
    counts = row.summary.get("counts", {}) if row is not None else {}
    return Appended(length=length, events=counts.get("events", 0), files=bool(counts.get("files")))
