"""Accept bytes of segments: check, keep, fold, and answer how much is durable; all of it in one transaction."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from time import time_ns
from typing import Any, Final

import msgpack
import msgspec

from .. import events as ev
from ..durable import fail_point
from ..errors import Damaged, InvalidInput, NewerFormat
from ..fold import fold, fold_death
from ..frames import HEAD, SPILL, SPILLED, Event, Header, LengthCrcs, decode_header, mend_header, walk
from ..journal.reader import decode_event
from ..journal.segment import SegmentName, parse_name
from ..names import check_name, experiment_id
from ..protocol import CONFLICT, GAP, MALFORMED, NEEDS_BLOBS, TORN, UNAVAILABLE, UNKNOWN, Appended, Refused
from ..records import experiment_document
from ..state import FOLD_VERSION, Edits, State
from .blocks import Tails, add
from .stores import (
    Arrival,
    Claimed,
    Documents,
    ExperimentRow,
    JournalRow,
    Objects,
    Range,
    Read,
    SegmentRow,
    Write,
)

STRETCH: Final = 1
DEATH: Final = 2
_STATES_KEPT: Final = 256
_STATE_BYTES_KEPT: Final = 64 << 20

Changed = Callable[[str, str, int], None]
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
    return _decoder.decode(row.state) if row.fold_version == FOLD_VERSION and row.state else State()


class Ingest:
    """The one place where events come into the documents. Any thread may call."""

    def __init__(self, documents: Documents, objects: Objects, changed: Changed) -> None:
        self.documents = documents
        self.objects = objects
        self._changed = changed
        self._guard = threading.Lock()
        self._live: OrderedDict[tuple[str, str], Live] = OrderedDict()
        self.conflicts = 0

    # -- states in memory --------------------------------------------------------------------------------------------

    def live(self, tx: Read, ns: str, experiment: str, project: str = "", name: str = "") -> Live:
        """The experiment as stored, from memory where that is the same. Within a write transaction."""
        row = tx.experiment(ns, experiment)
        with self._guard:
            known = self._live.get((ns, experiment))
            if known is not None and row is not None and known.row.version == row.version:
                self._live.move_to_end((ns, experiment))
                return known
        if row is None:
            row = ExperimentRow(experiment, project, name, 0, FOLD_VERSION, b"", "", 0, 0, 0)
        state = decode_state(row)
        state.project, state.name = state.project or project or row.project, state.name or name or row.name
        return Live(row, state)

    def keep(self, ns: str, live: Live) -> None:
        """Remember what a transaction has stored, once that is durable."""
        with self._guard:
            self._live[ns, live.row.id] = live
            self._live.move_to_end((ns, live.row.id))
            total = sum(len(known.row.state) for known in self._live.values())
            while len(self._live) > _STATES_KEPT or (total > _STATE_BYTES_KEPT and len(self._live) > 1):
                _, dropped = self._live.popitem(last=False)
                total -= len(dropped.row.state)

    def forget(self, ns: str, experiment: str) -> None:
        """What is in memory may not be what is stored."""
        with self._guard:
            self._live.pop((ns, experiment), None)

    def store(self, tx: Write, ns: str, live: Live, edits: Edits) -> list[str]:
        """Put what folding has changed into the documents; keys of objects that are released by that."""
        state, keys = live.state, []
        for name in edits.released:
            blob = tx.blob(ns, live.row.id, name)
            if blob is not None:
                keys.append(blob.key)
                tx.drop_blob(ns, live.row.id, name)
        tx.put_blocks(ns, live.row.id, add(tx, ns, live.row.id, edits, live.tails))
        document = experiment_document(state)
        live.row = replace(
            live.row,
            version=live.row.version + 1,
            fold_version=FOLD_VERSION,
            state=encode_state(state),
            project=state.project,
            name=state.name,
            status=document["status"],
            created_ns=state.created_ns,
            updated_ns=state.updated_ns,
            heard_ns=time_ns(),
            folder=state.folder.value or "",
            tags=tuple(state.tags.value or ()),
            description=state.description.value or "",
            summary={"counts": document["counts"], "endedAt": document["endedAt"]},
        )
        tx.put_experiment(ns, live.row)
        return keys

    def told(self, ns: str, live: Live, released: Sequence[str] = ()) -> None:
        """After the commit: remember, release, and tell who waits."""
        self.keep(ns, live)
        for key in released:
            self.objects.delete(key)
        self._changed(ns, live.row.id, live.state.events)

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
        row = SegmentRow("", journal, file, name.writer, "")
        try:
            with self.documents.write() as tx:
                row, live, released = self.take(tx, ns, journal, name, offset, data, damaged, without)
                if live is None:
                    known = tx.experiment(ns, row.experiment)
                    return _appended(row.length, known)
                fail_point("ingest-before-commit")
            fail_point("ingest-after-commit")
        except Claimed as error:
            self.forget_journal(ns, journal)
            raise Refused(503, UNAVAILABLE, "another upload of this segment came first", retry_after_s=1) from error
        except BaseException:
            self.forget_journal(ns, journal)
            raise
        self.told(ns, live, released)
        return _appended(row.length, live.row)

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
    ) -> tuple[SegmentRow, Live | None, list[str]]:
        """The same within a transaction: the segment as it is then, what has changed, and released objects."""
        damaged = sorted(damaged)
        row, head = tx.segment_by_file(ns, journal, str(name)), 0
        if row is None:
            if offset:
                raise Refused(409, GAP, "nothing of this segment is here yet", length=0)
            row = self._begin(tx, ns, journal, name, data, any(gap[0] == 0 for gap in damaged))
            head = row.first
        if offset > row.length:
            raise Refused(409, GAP, f"{row.length} bytes are here, not {offset}", length=row.length)
        accepted = self._accept(tx, ns, row, offset, data, damaged, frozenset(without), head)
        if accepted is None:
            return row, None, []
        live, released = accepted
        return replace(row, length=max(row.length, offset + len(data))), live, released

    def forget_journal(self, ns: str, journal: str) -> None:
        """A transaction failed: states in memory may be ahead of what is stored."""
        with self.documents.read() as tx:
            known = tx.journal(ns, journal)
        if known is not None:
            self.forget(ns, known.experiment)

    def _begin(
        self, tx: Write, ns: str, journal: str, name: SegmentName, data: bytes, damaged: bool
    ) -> SegmentRow:
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

    def _accept(
        self,
        tx: Write,
        ns: str,
        row: SegmentRow,
        offset: int,
        data: bytes,
        damaged: list[Range],
        without: frozenset[str],
        head: int,
    ) -> tuple[Live, list[str]] | None:
        """Keep and fold what is new; None if nothing is."""
        end = offset + len(data)
        mended = self._compare(tx, ns, row, offset, data)
        if end <= row.length and not mended:
            return None
        crcs = LengthCrcs(row.crc)
        runs: list[list[Event]] = []
        kept = [gap for gap in row.damaged if not any(a <= gap[0] and gap[1] <= b for a, b in mended)]
        for start, stop in mended:
            if start < row.first:
                # A header that was damaged on the uploader's disk, and holds now.
                decode_header(data[: stop - offset])
            else:
                runs.append(_frames(data, offset, start, stop, crcs))
            tx.replace_bytes(ns, row.id, start, data[start - offset : stop - offset])
        if end > row.length:
            position = row.length or head
            if head and any(low == 0 for low, _ in damaged):
                kept.append((0, head))
            for low, high in [*(gap for gap in damaged if gap[1] > row.length), (end, end)]:
                low, high = max(low, position), min(high, end)
                runs.append(_frames(data, offset, position, low, crcs))
                if high > low:
                    kept.append((low, high))
                position = high
        bodies = self.bodies(tx, ns, row, runs, without)
        live = self.live(tx, ns, row.experiment, *self._names(tx, ns, row))
        edits = Edits()
        if row.writer not in live.row.removed_writers:
            for run in runs:
                fold(live.state, row.writer, bodies(run), edits)
        if end > row.length:
            tx.claim_stretch(ns, row.id, row.length, data[row.length - offset :])
            tx.claim_arrival(ns, row.experiment, Arrival(live.row.version, STRETCH, row.id, row.length, end))
        else:
            start, stop = mended[0][0], mended[-1][1]
            tx.claim_arrival(ns, row.experiment, Arrival(live.row.version, STRETCH, row.id, start, stop))
        tx.put_segment(ns, replace(row, length=max(end, row.length), damaged=tuple(sorted(kept))))
        return live, self.store(tx, ns, live, edits)

    def _names(self, tx: Read, ns: str, row: SegmentRow) -> tuple[str, str]:
        journal = tx.journal(ns, row.journal)
        return (journal.project, journal.name) if journal is not None else ("", "")

    def _compare(self, tx: Read, ns: str, row: SegmentRow, offset: int, data: bytes) -> list[Range]:
        """Is what came the same as what is here? The ranges of never verified bytes that differ."""
        end = min(row.length, offset + len(data))
        position = offset
        differing: list[Range] = []
        for piece in tx.bytes_of(ns, row.id, offset, end) if offset < end else ():
            mine = data[position - offset : position - offset + len(piece)]
            if mine != piece:
                inside = [gap for gap in row.damaged if gap[0] < position + len(piece) and gap[1] > position]
                outside = _first_difference(piece, mine, position, inside)
                if outside is not None:
                    self._contradict(tx, ns, row, offset, data, outside)
                differing += inside
            position += len(piece)
        return sorted({gap for gap in differing if offset <= gap[0] and gap[1] <= offset + len(data)})

    def _contradict(self, tx: Read, ns: str, row: SegmentRow, offset: int, data: bytes, different: int) -> None:
        """Refuse bytes that differ from ours in the frame at `different`: another frame, or none at all."""
        crcs, start = LengthCrcs(row.crc), max(offset, row.first)
        ours = b"".join(tx.bytes_of(ns, row.id, start, min(row.length, offset + len(data))))
        at = start + _frame_before(ours, different - start) if different >= start else offset
        frames: list[Event] = []
        end = walk(data, at - offset, crcs, decode_event, frames) + offset if different >= start else 0
        if different >= start and end <= different:
            raise Refused(422, TORN, f"there is no whole frame at byte {at}", offset=at)
        self.conflicts += 1
        log.error("conflict: segment %s has another frame at %d", row.id, at)
        raise Refused(409, CONFLICT, "other bytes are stored there; the first are kept", offset=at)

    # -- bodies that are blobs ---------------------------------------------------------------------------------------

    def bodies(
        self, tx: Read, ns: str, row: SegmentRow, runs: list[list[Event]], without: frozenset[str] | None
    ) -> Callable[[list[Event]], list[Event]]:
        """What puts the bodies in; raises Refused if some are not here and not given up (None: all are)."""
        found: dict[int, Any] = {}
        missing: list[str] = []
        lost: set[int] = set()
        for event in (event for run in runs for event in run if type(event[3]) is msgspec.msgpack.Ext):
            spill = event[3]
            if spill.code != SPILLED or len(spill.data) != SPILL.size:
                continue
            digest, _ = SPILL.unpack(bytes(spill.data))
            name = ev.blob_name(digest.hex(), row.writer, event[0])
            blob = tx.blob(ns, "", name)
            if blob is not None:
                content = b"".join(self.objects.open(blob.key))
                found[event[0]] = msgpack.unpackb(content, strict_map_key=False)
            elif without is None or name in without:
                lost.add(event[0])
            else:
                missing.append(name)
        if missing:
            raise Refused(409, NEEDS_BLOBS, f"{len(missing)} bodies of these events are not here", blobs=missing)
        if not found and not lost:
            return lambda run: run
        return lambda run: [
            (seq, kind, time, found.get(seq, body)) for seq, kind, time, body in run if seq not in lost
        ]

    # -- deaths ------------------------------------------------------------------------------------------------------

    def deaths(self, ns: str, journal: str, notes: list[dict[str, Any]]) -> int:
        """What observers noted: these writers are dead. Noted once each; a later event of the writer makes it void."""
        with self.documents.write() as tx:
            known = tx.journal(ns, journal)
            if known is None:
                raise Refused(404, UNKNOWN, "nothing of this journal is here")
            live = self.live(tx, ns, known.experiment, known.project, known.name)
            count, released = 0, []
            try:
                for note in notes:
                    who, segment, end = note["writer"], note["segment"], note["end"]
                    if tx.has_death(ns, known.experiment, who, segment, end):
                        continue
                    edits = Edits()
                    if who not in live.row.removed_writers:
                        fold_death(live.state, who, edits)
                    arrival = Arrival(live.row.version, DEATH, who, 0, end, segment)
                    tx.claim_arrival(ns, known.experiment, arrival)
                    released += self.store(tx, ns, live, edits)
                    count += 1
            except BaseException:
                self.forget(ns, known.experiment)
                raise
        self.told(ns, live, released)
        return count


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


def _frames(data: bytes, offset: int, start: int, end: int, crcs: LengthCrcs) -> list[Event]:
    """The events of whole frames in [start, end). Raises Refused where there is none."""
    found: list[Event] = []
    buffer = data if end - offset == len(data) else data[: end - offset]
    stop = walk(buffer, start - offset, crcs, decode_event, found)
    if stop != end - offset:
        raise Refused(422, TORN, f"there is no whole frame at byte {offset + stop}", offset=offset + stop)
    return found


def _frame_before(frames: bytes, offset: int) -> int:
    """Where the frame begins that `offset` lies in; `frames` begins with one."""
    position = 0
    while position + HEAD.size <= len(frames):
        following = position + HEAD.size + int(HEAD.unpack_from(frames, position)[0])
        if following > offset:
            break
        position = following
    return position


def _first_difference(old: bytes, new: bytes, base: int, unsure: list[Range]) -> int | None:
    """Where two pieces differ outside of the unsure ranges."""
    for index, (a, b) in enumerate(zip(old, new, strict=False)):
        if a != b and not any(low <= base + index < high for low, high in unsure):
            return base + index
    return None


def _appended(length: int, row: ExperimentRow | None) -> Appended:
    counts = row.summary.get("counts", {}) if row is not None else {}
    return Appended(length=length, events=counts.get("events", 0), files=bool(counts.get("files")))
