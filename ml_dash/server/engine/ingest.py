"""Accept bytes of segments: check, keep, fold, and answer how much is durable; all of it in one transaction."""

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
from ...core.frames import HEAD, Event, Header, LengthCrcs, decode_header, mend_header, walk
from ...core.names import check_name, experiment_id
from ...core.protocol import CONFLICT, GAP, MALFORMED, NEEDS_BLOBS, TORN, UNAVAILABLE, UNKNOWN, Appended, Refused
from ...core.ranges import Range, holes, overlapping
from ...core.records import experiment_document
from ...core.rewinds import recount
from ...core.state import Edits, State
from ...disk.durable import fail_point
from ...errors import Damaged, InvalidInput, NewerFormat
from ...journal import bodies
from ...journal.reader import Run, decode_event
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
from .blocks import TABLES_VERSION, Tails, add, history

STRETCH: Final = 1
DEATH: Final = 2
_STATES_KEPT: Final = 256
_STATE_BYTES_KEPT: Final = 16 << 20
_TAILS_KEPT: Final = 1000
_TAIL_BYTES_KEPT: Final = 4 << 20
_BODIES_AT_ONCE: Final = 16 << 20
_ID: Final = re.compile("[0-9a-f]{32}")

Changed = Callable[[str, str, "int | None"], None]
"""changed(namespace, experiment, events): called after a commit, in the thread that made it."""

log = logging.getLogger("ml_dash.server")
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(State)


class Live:
    """An experiment in memory: its row, its state and the newest block of each series. Equal to what is stored."""

    __slots__ = ("row", "state", "tails")

    def __init__(self, row: ExperimentRow, state: State) -> None:
        self.row = row
        self.state = state
        self.tails: Tails = {}


def encode_state(state: State) -> bytes:
    """A state as it is stored."""
    return _encoder.encode(state)


def decode_state(row: ExperimentRow) -> State:
    """The state of a row; an empty one where another version of the fold made it."""
    return _decoder.decode(row.state) if row.fold_version == TABLES_VERSION and row.state else State()


class Ingest:
    """The one place where events come into the documents. Any thread may call."""

    def __init__(self, documents: Documents, objects: Objects, changed: Changed) -> None:
        self.documents = documents
        self.objects = objects
        self._changed = changed
        self._turn = threading.Lock()
        self._live: OrderedDict[tuple[str, str], Live] = OrderedDict()
        self._taken: dict[tuple[str, str], Live] = {}
        self.conflicts = 0

    # -- transactions, and states in memory --------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[Write]:
        """One transaction; one thread at a time. States that it asked for are remembered only if it commits.

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
            self._live |= self._taken
            total = sum(len(live.row.state) for live in self._live.values())
            while len(self._live) > _STATES_KEPT or (total > _STATE_BYTES_KEPT and len(self._live) > 1):
                _, dropped = self._live.popitem(last=False)
                total -= len(dropped.row.state)

    def live(self, tx: Read, ns: str, experiment: str, project: str = "", name: str = "") -> Live:
        """The experiment as stored, from memory where that is the same; to be changed and stored. While writing."""
        known = self._taken.get((ns, experiment))
        if known is not None:
            return known
        row = tx.experiment(ns, experiment)
        # It comes back when this transaction has committed.
        known = self._live.pop((ns, experiment), None)
        if known is None or row is None or known.row.version != row.version:
            row = row or ExperimentRow(experiment, project, name, 0, TABLES_VERSION, b"", "", 0, 0, 0)
            known = Live(row, decode_state(row))
            known.state.project = known.state.project or project or row.project
            known.state.name = known.state.name or name or row.name
        self._taken[ns, experiment] = known
        return known

    def apply(self, tx: Write, ns: str, live: Live, edits: Edits) -> None:
        """Put the lines of edits into the documents; what else has changed waits for `store`."""
        tx.put_blocks(ns, live.row.id, add(tx, ns, live.row.id, edits, live.tails))
        if edits.rewound:
            recount(live.state, edits, history(tx, ns, live.row.id))
        if len(live.tails) > _TAILS_KEPT or sum(len(tail.lines) for tail in live.tails.values()) > _TAIL_BYTES_KEPT:
            live.tails = {}

    def store(self, tx: Write, ns: str, live: Live, edits: Edits) -> list[str]:
        """Put all that has changed into the documents; the keys of objects that are released by that."""
        state, keys = live.state, []
        for name in edits.released:
            blob = tx.blob(ns, live.row.id, name)
            if blob is not None:
                keys.append(blob.key)
                tx.drop_blob(ns, live.row.id, name)
        self.apply(tx, ns, live, edits)
        document = experiment_document(state)
        live.row = replace(
            live.row,
            fold_version=TABLES_VERSION,
            state=encode_state(state),
            project=state.project,
            name=state.name,
            status=document["status"],
            created_ns=state.created_ns,
            updated_ns=state.updated_ns,
            folder=state.folder.value or "",
            tags=tuple(state.tags.value or ()),
            description=state.description.value or "",
            summary={"counts": document["counts"], "endedAt": document["endedAt"]},
        )
        tx.put_experiment(ns, live.row)
        return keys

    def arrive(self, tx: Write, ns: str, live: Live, kind: int, who: str, start: int, end: int, seg: str = "") -> None:
        """Note what was folded, under the next number."""
        tx.claim_arrival(ns, live.row.id, Arrival(live.row.version, kind, who, start, end, seg))
        live.row = replace(live.row, version=live.row.version + 1)

    def told(self, ns: str, live: Live, released: Sequence[str] = (), *, removed: bool = False) -> None:
        """After the commit: remove what was released, and tell who waits."""
        for key in released:
            try:
                self.objects.delete(key)
            except StoreTrouble as error:
                log.warning("%s is not needed any more and could not be removed: %s", key, error)
        self._changed(ns, live.row.id, None if removed else live.state.events)

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
        """Bytes [offset, offset + len(data)) of a segment: what continues our copy is kept and folded.

        Raises Refused (see protocol.py) and StoreTrouble; nothing is changed then.
        """
        name = parse_name(file)
        if name is None:
            raise Refused(422, MALFORMED, f"{file[:100]!r} is not the name of a segment")
        with self.writing() as tx:
            length, live, released = self.take(tx, ns, journal, name, offset, data, damaged, without)
            known = tx.journal(ns, journal)
            row = live.row if live is not None else tx.experiment(ns, known.experiment) if known is not None else None
        if live is not None:
            self.told(ns, live, released)
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
    ) -> tuple[int, Live | None, list[str]]:
        """Take bytes in a transaction: the length then, the experiment if it changed, and released objects."""
        damaged = sorted(damaged)
        row = tx.segment_by_file(ns, journal, str(name))
        if row is None:
            if offset:
                raise Refused(409, GAP, "nothing of this segment is here yet", length=0)
            row = self._begin(tx, ns, journal, name, data, any(low == 0 for low, _ in damaged))
        if offset > row.length:
            raise Refused(409, GAP, f"{row.length} bytes are here, not {offset}", length=row.length)
        part = Part(row, offset, data, damaged)
        differing = self._compare(tx, ns, part)
        mended = [run for low, high in differing for run in _mended(part, low, high)]
        end = max(row.length, offset + len(data))
        appended, gaps = _appended_runs(part) if end > row.length else ([], [])
        if end == row.length and not differing:
            return end, None, []
        runs = [Run(run.start, run.end, run.events) for run in (*mended, *appended)]
        self._require_bodies(tx, ns, row, runs, frozenset(without))
        for low, high in differing:
            tx.replace_bytes(ns, row.id, low, part.bytes(low, high))
        if end > row.length:
            tx.claim_stretch(ns, row.id, row.length, part.bytes(row.length, end))
        kept = [hole for gap in row.damaged for hole in holes([(run.start, run.end) for run in mended], *gap)]
        tx.put_segment(ns, replace(row, length=end, damaged=tuple(sorted([*kept, *gaps]))))
        live = self.live(tx, ns, row.experiment, *self._names(tx, ns, row))
        live.row = replace(live.row, heard_ns=time_ns())
        edits = Edits()
        if row.writer not in live.row.removed_writers:
            for run in runs:
                self._fold(tx, ns, live, row, run, edits)
        return end, live, self.store(tx, ns, live, edits)

    def _begin(self, tx: Write, ns: str, journal: str, name: SegmentName, data: bytes, damaged: bool) -> SegmentRow:
        """The row of a segment whose first bytes these are; its journal is noted."""
        header, first, crc = _header(data, damaged)
        if header.journal.hex() != journal or header.writer.hex() != name.writer or header.n != name.n:
            raise Refused(422, MALFORMED, "the segment's header names another journal, writer or number")
        try:
            project, experiment = check_name("project", header.project), check_name("name", header.name)
        except InvalidInput as error:
            raise Refused(422, MALFORMED, f"the segment names no legal experiment: {error}") from None
        identity = experiment_id(project, experiment)
        known = tx.journal(ns, journal)
        if known is None:
            tx.put_journal(ns, JournalRow(journal, identity, project, experiment))
        elif known.experiment != identity:
            raise Refused(422, MALFORMED, f"journal {journal} holds {known.project}/{known.name} here")
        if tx.segment(ns, header.segment.hex()) is not None:
            self.conflicts += 1
            raise Refused(409, CONFLICT, "a segment of this id is here under another name", offset=0)
        return SegmentRow(header.segment.hex(), journal, str(name), header.writer.hex(), identity, 0, first, crc)

    def _fold(self, tx: Write, ns: str, live: Live, row: SegmentRow, run: Run, edits: Edits) -> None:
        """Fold a run, and note which bytes of it were folded: one whose body is lost is left out."""
        begun = behind = run.start
        for piece in self.pieces(tx, ns, row, run):
            if piece.start > behind:
                if behind > begun:
                    self.arrive(tx, ns, live, STRETCH, row.id, begun, behind)
                begun = piece.start
            fold(live.state, row.writer, piece.events, edits)
            self.apply(tx, ns, live, edits)
            behind = piece.end
        if behind > begun:
            self.arrive(tx, ns, live, STRETCH, row.id, begun, behind)

    def _names(self, tx: Read, ns: str, row: SegmentRow) -> tuple[str, str]:
        journal = tx.journal(ns, row.journal)
        return (journal.project, journal.name) if journal is not None else ("", "")

    # -- what is here already ----------------------------------------------------------------------------------------

    def _compare(self, tx: Read, ns: str, part: Part) -> list[Range]:
        """Which of our bytes that never verified do these replace? Raises Refused where others differ.

        What the client calls damaged says nothing against what verified here.
        """
        row, end = part.row, min(part.row.length, part.end)
        if part.offset >= end:
            return []
        ours = b"".join(tx.bytes_of(ns, row.id, part.offset, end))
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
        """Refuse bytes that differ from ours in the frame at `different`: another frame, or none at all."""
        row, at = part.row, part.offset
        if different >= row.first:
            begins = [high for _, high in row.damaged if part.offset <= high <= different]
            start = max(part.offset, row.first, *begins)
            at = start + _frame_before(ours[start - part.offset :], different - start)
            if walk(part.data, at - part.offset, LengthCrcs(row.crc), decode_event, []) + part.offset <= different:
                raise Refused(422, TORN, f"there is no whole frame at byte {at}", offset=at)
        self.conflicts += 1
        log.error("conflict: segment %s has another frame at %d", row.id, at)
        raise Refused(409, CONFLICT, "other bytes are stored there; the first are kept", offset=at)

    # -- bodies that are blobs ---------------------------------------------------------------------------------------

    def _require_bodies(self, tx: Read, ns: str, row: SegmentRow, runs: list[Run], without: frozenset[str]) -> None:
        """Raises Refused if bodies of these events are not here, and not given up."""
        names = [name for run in runs for name, _ in bodies.blobs_of(run, row.writer)]
        missing = [name for name in names if name not in without and self._body_row(tx, ns, name) is None]
        if missing:
            raise Refused(409, NEEDS_BLOBS, f"{len(missing)} bodies of these events are not here", blobs=missing)

    def _body_row(self, tx: Read, ns: str, name: str) -> BlobRow | None:
        """A body that is here; one whose object was lost is not."""
        blob = tx.blob(ns, "", name)
        return blob if blob is not None and self.objects.size(blob.key) == blob.size else None

    def pieces(self, tx: Read, ns: str, row: SegmentRow, run: Run) -> Iterator[Run]:
        """The run with its bodies, in pieces that memory can hold. An event whose body is lost is left out."""

        def lost(event: Event, error: Exception) -> None:
            log.warning("event %d of writer %s is left out: its body is lost (%s)", event[0], row.writer, error)

        frames = partial(_bytes_of, tx, ns, row, run)
        fetch = partial(self._body, tx, ns)
        lost_if = (FileNotFoundError, ValueError)
        return bodies.with_bodies(run, row.writer, frames, fetch, lost, lost_if, at_once=_BODIES_AT_ONCE)

    def _body(self, tx: Read, ns: str, name: str, size: int) -> Any:
        blob = self._body_row(tx, ns, name)
        if blob is None or blob.size != size:
            raise FileNotFoundError(name)
        return bodies.decode(b"".join(self.objects.open(blob.key)))

    # -- deaths ------------------------------------------------------------------------------------------------------

    def deaths(self, ns: str, journal: str, notes: list[dict[str, Any]]) -> int:
        """What observers noted: these writers are dead. How many writers of the journal are known to be dead then.

        A note counts once. It is void if a later event of its writer was folded, before it came or after.
        """
        for note in notes:
            if not (_ID.fullmatch(note["writer"]) and _ID.fullmatch(note["segment"]) and 0 <= note["end"] < 1 << 62):
                raise Refused(422, MALFORMED, "that is no note of a death")
        with self.writing() as tx:
            known = tx.journal(ns, journal)
            if known is None:
                raise Refused(404, UNKNOWN, "nothing of this journal is here")
            live = self.live(tx, ns, known.experiment, known.project, known.name)
            edits = Edits()
            for note in notes:
                who, segment, end = note["writer"], note["segment"], note["end"]
                if not self._is_void(tx, ns, live, who, segment, end):
                    fold_death(live.state, who, edits)
                    self.arrive(tx, ns, live, DEATH, who, 0, end, segment)
            released = self.store(tx, ns, live, edits)
            writers = {row.writer for row in tx.segments(ns, journal)}
        self.told(ns, live, released)
        return sum(writer.dead for writer in live.state.writers.values() if writer.id in writers)

    def _is_void(self, tx: Read, ns: str, live: Live, who: str, segment: str, end: int) -> bool:
        """Was it noted before, is nothing of that writer here, or is more here than its observer had read?"""
        if who not in live.state.writers or tx.has_death(ns, live.row.id, who, segment, end):
            return True
        row = tx.segment(ns, segment)
        if row is None:
            # Its observer had read nothing of it, and we did.
            return True
        later = [other for other in tx.segments(ns, row.journal) if other.writer == who and other.file > row.file]
        return row.writer != who or row.length > end or any(other.length > other.first for other in later)


@dataclass(frozen=True, slots=True)
class Part:
    """What a request brings of a segment: bytes from `offset` on, of which the client calls some damaged."""

    row: SegmentRow
    offset: int
    data: bytes
    damaged: list[Range]

    @property
    def end(self) -> int:
        return self.offset + len(self.data)

    def bytes(self, start: int, end: int) -> bytes:
        """Bytes [start, end) of the segment."""
        return self.data[start - self.offset : end - self.offset]


def _appended_runs(part: Part) -> tuple[list[Run], list[Range]]:
    """What follows our copy: runs of frames, and what is damaged between. Raises Refused where neither is."""
    row, runs, gaps = part.row, list[Run](), list[Range]()
    position = row.length
    if not position:
        position = row.first
        if any(low < row.first for low, _ in part.damaged):
            gaps.append((0, row.first))
    for low, high in [*(gap for gap in part.damaged if gap[1] > position), (part.end, part.end)]:
        low, high = min(max(low, position), part.end), min(high, part.end)
        if low > position:
            runs.append(_frames(part, position, low))
        if high > low:
            gaps.append((low, high))
        position = max(position, high)
    return runs, gaps


def _mended(part: Part, start: int, end: int) -> list[Run]:
    """The frames in a range of ours that never verified. Raises Refused for what the client does not call damaged."""
    row, runs = part.row, list[Run]()
    if start < row.first:
        # A header that was damaged on the client's disk, and holds now.
        if not any(low < row.first for low, _ in part.damaged):
            if not _is_header(part):
                raise Refused(422, TORN, "the header does not hold", offset=0)
            runs.append(Run(0, row.first, []))
        start = row.first
    for low, high in holes(part.damaged, start, end):
        runs.append(_frames(part, low, high))
    return runs


def _is_header(part: Part) -> bool:
    try:
        _, size, crc = decode_header(part.data)
    except (Damaged, NewerFormat):
        return False
    return (size, crc) == (part.row.first, part.row.crc)


def _verifies(part: Part, start: int, end: int) -> bool:
    """Do bytes hold that the client does not call damaged, although they were when they came?"""
    try:
        return any(run.end > run.start for run in _mended(part, start, end))
    except Refused:
        return False


def _bytes_of(tx: Read, ns: str, row: SegmentRow, run: Run) -> bytes:
    return b"".join(tx.bytes_of(ns, row.id, run.start, run.end))


def _header(data: bytes, damaged: bool) -> tuple[Header, int, int]:
    """The header; one that the uploader says is damaged on its disk is mended, if that can be done."""
    try:
        return decode_header(data)
    except NewerFormat as error:
        raise Refused(422, "newer_format", f"this server cannot read the segment: {error}") from None
    except Damaged as error:
        mended = mend_header(data[: (1 << 20) + 16384]) if damaged else None
        if mended is None:
            raise Refused(422, TORN, f"the header does not hold: {error.message}", offset=0) from None
        return decode_header(mended)


def _frames(part: Part, start: int, end: int) -> Run:
    """The run of whole frames in [start, end). Raises Refused where there is none."""
    found: list[Event] = []
    buffer = part.data if end == part.end else part.data[: end - part.offset]
    stop = walk(buffer, start - part.offset, LengthCrcs(part.row.crc), decode_event, found) + part.offset
    if stop != end:
        raise Refused(422, TORN, f"there is no whole frame at byte {stop}", offset=stop)
    return Run(start, end, found)


def _frame_before(frames: bytes, offset: int) -> int:
    """Where the frame begins that `offset` lies in; `frames` begins with one."""
    position = 0
    while position + HEAD.size <= len(frames):
        following = position + HEAD.size + int(HEAD.unpack_from(frames, position)[0])
        if following > offset:
            break
        position = following
    return position


def _difference(a: bytes, b: bytes) -> int:
    """Where two pieces that are not the same differ first."""
    low, high = 0, max(len(a), len(b))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low


def _appended(length: int, row: ExperimentRow | None) -> Appended:
    counts = row.summary.get("counts", {}) if row is not None else {}
    return Appended(length=length, events=counts.get("events", 0), files=bool(counts.get("files")))
