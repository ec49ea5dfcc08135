"""Follow a journal: the stretches that `order` records, then what is new, folded and handed to a sink.

With the turn, new stretches and deaths are recorded in `order` before they are used. Without it (a reader that may
not or cannot write) they are only assumed: the same code, nothing recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import msgspec

from .. import blobs
from ..durable import data_sync
from ..errors import Damaged, JournalError
from ..fold import Edits, fold, fold_death
from ..frames import Event
from ..journal.order import Death, Order, Stretch, death_payload, stretch_payload
from ..journal.reader import CHUNK_BYTES, Run, Segment, Tail, open_segment, read, resolve_body
from ..journal.segment import SEGMENTS, SegmentName, list_segments
from ..lock import Liveness, probe
from .checkpoint import Checkpoint

_MERGE_BYTES: Final = 8 << 20

log = logging.getLogger("ml_dash")
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Pace:
    """How a replay shares the machine: after so many events it calls `step`, which may wait, or raise Enough."""

    slice_events: int
    step: Callable[[], None]


class Enough(Exception):  # noqa: N818 - control flow between a pace and its projector, never seen by users
    """The time given to a pass is over; what is done so far is consistent."""


class Sink(Protocol):
    """Where edits go."""

    def apply(self, edits: Edits) -> None:
        """Write the lines of some edits, and clear them."""


class Replay:
    """The position of one reader in one journal, in memory, with the state folded so far."""

    def __init__(self, journal: Path, checkpoint: Checkpoint) -> None:
        self.journal = journal
        self.at = checkpoint
        self.state = checkpoint.state
        self.edits = Edits()
        self.troubles: dict[str, str] = {}
        self._segments: dict[str, Segment] = {}
        self._names: dict[str, SegmentName] = {}
        self._order = Order(journal)
        self._thorough = True
        self._read: set[Path] = set()
        self._left: dict[str, int] = {}

    def catch_up(self, sink: Sink, *, record: bool, pace: Pace | None = None) -> bool:
        """Fold all that is new; was there anything? Raises OSError if the journal or the sink cannot be used."""
        before = self.state.events, self.state.status
        self._read = set()
        self._order.open(write=record)
        try:
            if self._order.identity != self.at.order_identity:
                self.at.order_identity = self._order.identity
                self.at.order_position = 0
            self._follow_order(sink, pace)
            self._find_new(sink, record, pace)
            self._note_deaths(record)
            if record and self.edits.released:
                self._sync_what_was_read()
        finally:
            self._order.close()
        self._thorough = False
        return (self.state.events, self.state.status) != before

    # -- what order says ---------------------------------------------------------------------------------------------

    def _follow_order(self, sink: Sink, pace: Pace | None) -> None:
        waiting: Stretch | None = None
        for record, position in self._order.read(self.at.order_position):
            self.at.order_position = position
            if isinstance(record, Stretch):
                if waiting is not None and _continues(waiting, record):
                    waiting = Stretch(waiting.segment, waiting.start, record.end)
                    continue
                self._fold_stretch(waiting, sink, pace)
                waiting = record
            else:
                self._fold_stretch(waiting, sink, pace)
                waiting = None
                fold_death(self.state, record.writer, self.edits)
        self._fold_stretch(waiting, sink, pace)

    def _fold_stretch(self, stretch: Stretch | None, sink: Sink, pace: Pace | None) -> None:
        if stretch is None:
            return
        segment = self._segments.get(stretch.segment)
        if segment is None:
            self._open_all()
            segment = self._segments.get(stretch.segment)
        if segment is None:
            return
        for start, end in _holes(self.at.covered.get(segment.id, []), max(stretch.start, segment.first), stretch.end):
            for item in read(segment, start, end, _chunk(pace)):
                if isinstance(item, Run):
                    self._fold_run(segment, item, sink, pace)

    # -- what is new -------------------------------------------------------------------------------------------------

    def _find_new(self, sink: Sink, record: bool, pace: Pace | None) -> None:
        for name, path in list_segments(self.journal):
            size = _size(path)
            if size is None or self.at.settled.get(path.name) == size:
                continue
            if not self._thorough and self._left.get(path.name) == size:
                continue
            segment = self._open(name, path)
            if segment is None:
                self._left[path.name] = size
                continue
            self._sequence(segment, size, sink, record, pace)

    def _sequence(self, segment: Segment, size: int, sink: Sink, record: bool, pace: Pace | None) -> None:
        if segment.writer not in self.state.writers:
            # Whoever died before this writer came is noted first: the run it began is over.
            self._note_deaths(record)
        complete = True
        covered = self.at.covered.get(segment.id, [])
        holes = list(_holes(covered, segment.first, size))
        if not self._thorough:
            holes = holes[-1:]
        for start, end in holes:
            for item in read(segment, start, end, _chunk(pace)):
                if isinstance(item, Run):
                    if record:
                        self._record([stretch_payload(segment.id, item.start, item.end)])
                    self._fold_run(segment, item, sink, pace)
                    size = max(size, item.end)
                elif isinstance(item, Tail):
                    complete = False
        if complete and not list(_holes(self.at.covered.get(segment.id, []), segment.first, size)):
            self.at.settled[segment.path.name] = size
        else:
            self._left[segment.path.name] = size

    def _record(self, payloads: list[bytes]) -> None:
        self.at.order_position = self._order.append(payloads)

    def _fold_run(self, segment: Segment, run: Run, sink: Sink, pace: Pace | None) -> None:
        events = self._resolved(segment, run.events)
        size = len(events) if pace is None else pace.slice_events
        for start in range(0, len(events), max(1, size)):
            fold(self.state, segment.writer, events[start : start + size], self.edits)
            sink.apply(self.edits)
            if pace is not None:
                pace.step()
        self.at.covered[segment.id] = _with(self.at.covered.get(segment.id, []), run.start, run.end)
        self._read.add(segment.path)

    def _resolved(self, segment: Segment, events: list[Event]) -> list[Event]:
        """The events, with bodies that were kept as blobs; one whose blob is lost stays unread, and is a gap."""
        if not any(isinstance(event[3], msgspec.msgpack.Ext) for event in events):
            return events
        resolved: list[Event] = []
        for seq, kind, time_ns, body in events:
            try:
                whole = resolve_body(body, partial(blobs.fetch_body, self.journal, segment.writer, seq))
            except (OSError, Damaged, ValueError) as error:
                self.troubles[f"{segment.path.name} #{seq}"] = f"the body of event {seq} is lost: {error}"
                continue
            resolved.append((seq, kind, time_ns, whole))
        return resolved

    # -- who died ----------------------------------------------------------------------------------------------------

    def _note_deaths(self, record: bool) -> None:
        alive = [writer for writer in self.state.writers.values() if writer.alive]
        if not alive:
            return
        segments = list_segments(self.journal)
        for writer in alive:
            own = [(name, path) for name, path in segments if name.writer == writer.id]
            if own and probe(self.journal / SEGMENTS / own[0][0].lock) is not Liveness.GONE:
                continue
            # It may have written and closed between our reading and our probing: then it is only not read yet.
            if any(not self._is_read(path) for _, path in own):
                continue
            if record:
                last = self._open(*own[-1]) if own else None
                end = last.first if last else 0
                self._record([death_payload(writer.id, last.id if last else "00" * 16, end)])
            fold_death(self.state, writer.id, self.edits)

    def _is_read(self, path: Path) -> bool:
        size = _size(path)
        return size is None or size in (self.at.settled.get(path.name), self._left.get(path.name))

    # -- segments ----------------------------------------------------------------------------------------------------

    def _open(self, name: SegmentName, path: Path) -> Segment | None:
        for segment in self._segments.values():
            if segment.path == path:
                return segment
        opened: Segment | None = None
        try:
            opened = open_segment(path)
        except (OSError, JournalError) as error:
            if path.name not in self.troubles:
                log.warning("ml-dash: %s is set aside: %s", path.name, error)
            self.troubles[path.name] = str(error)
            return None
        if opened is not None:
            self._segments[opened.id] = opened
        return opened

    def _open_all(self) -> None:
        known = {segment.path for segment in self._segments.values()}
        for name, path in list_segments(self.journal):
            if path not in known:
                self._open(name, path)

    def _sync_what_was_read(self) -> None:
        """The events that released blobs, and their order, are on disk before the blobs go."""
        for path in self._read:
            with path.open("rb") as file:
                data_sync(file.fileno())
        self._order.sync()


def _chunk(pace: Pace | None) -> int:
    """How many bytes to read at once: with a pace, little, so that memory stays flat beside training."""
    return CHUNK_BYTES if pace is None else 128 * pace.slice_events


def _continues(first: Stretch, second: Stretch) -> bool:
    return (
        first.segment == second.segment and first.end == second.start and second.end - first.start <= _MERGE_BYTES
    )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _holes(covered: list[Range], start: int, end: int) -> Iterator[Range]:
    """What of [start, end) is not covered."""
    for first, last in covered:
        if last <= start:
            continue
        if first >= end:
            break
        if first > start:
            yield start, first
        start = max(start, last)
    if start < end:
        yield start, end


def _with(covered: list[Range], start: int, end: int) -> list[Range]:
    """The ranges, with [start, end) added."""
    if covered and covered[-1][1] == start:
        return [*covered[:-1], (covered[-1][0], end)]
    merged: list[Range] = []
    for first, last in sorted([*covered, (start, end)]):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged
