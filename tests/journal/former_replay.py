"""Follow a journal: the stretches that `order` records, then what is new, folded and handed to a sink.

With the turn, new stretches and deaths are recorded in `order` before they are used. Without it (a reader that may
not or cannot write) they are only assumed: the same code, nothing recorded.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Final, Protocol

import msgspec

from ml_dash.core.fold import fold, fold_death
from ml_dash.core.frames import HEAD, Event
from ml_dash.core.ranges import Range, holes, union
from ml_dash.core.rewinds import Past, recount
from ml_dash.core.state import Edits
from ml_dash.disk.durable import data_sync, read_at, sync_folder
from ml_dash.disk.lock import Liveness, probe
from ml_dash.errors import Damaged, JournalError
from ml_dash.journal import blobs
from ml_dash.journal.order import Order, Stretch, death_payload, stretch_payload
from ml_dash.journal.reader import Gap, Run, Segment, Tail, is_partial, open_segment, read, resolve_body
from ml_dash.journal.segment import SEGMENTS, SegmentName, list_segments, lock_name, parse_name, read_identity
from ml_dash.projection.checkpoint import Checkpoint

_MERGE_BYTES: Final = 8 << 20
_ALL_EVERY_S: Final = 30.0

log = logging.getLogger("ml_dash")


@dataclass(frozen=True, slots=True)
class Pace:
    """How a replay shares the machine: after so many events it calls `step`, which may wait, or raise Enough."""

    slice_events: int
    step: Callable[[], None]


class Enough(Exception):
    """The time given to a pass is over; what is done so far is consistent."""


class OrderChanged(Exception):
    """`order` or a segment is not the one that the checkpoint followed, or ends before where that had come to."""


class Sink(Protocol):
    """Where edits go."""

    def apply(self, edits: Edits) -> None:
        """Write the lines of some edits, and clear them."""

    def history(self, name: str, start: int, end: int) -> Iterator[Past]:
        """Points [start, end) of a metric that were applied; see `rewinds.History`."""


class Replay:
    """The position of one reader in one journal, in memory, with the state folded so far."""

    def __init__(self, journal: Path, checkpoint: Checkpoint) -> None:
        self.journal = journal
        self.at = checkpoint
        self.state = checkpoint.state
        self.edits = Edits()
        # What could not be read, and why: segment file names, or `<segment> #<number>` for a lost body.
        self.troubles: dict[str, Exception] = {}
        # Was anything folded that `order` does not record?
        self.assumed = False
        self._order = Order(journal)
        self._all_named: dict[str, list[Range]] | None = None
        self._thorough = True
        self._segments: dict[str, Segment] = {}
        self._by_name: dict[str, Segment] = {}
        self._unsynced: set[Path] = set()
        # Writer → the segments that were met, by their numbers.
        self._paths: dict[str, dict[int, Path]] = {}
        self._idle: set[str] = set()
        self._look_at_all = 0.0
        # Segment file name → its size when there was a rest in it that is no whole frame.
        self._left: dict[str, int] = {}
        self._journal_id = b""

    def catch_up(self, sink: Sink, *, record: bool, pace: Pace | None = None, unordered: Sink | None = None) -> bool:
        """Fold all that is new; was there anything?

        What `order` does not record yet goes to the sink `unordered`, if one is given. Raises OSError if the journal
        or the sink cannot be used, OrderChanged if the checkpoint is of no use, and Enough if `pace` does.
        """
        before = self.state.events, self.state.status
        self._order = Order(self.journal)
        self._all_named = None
        self._order.open(write=record)
        try:
            self._check_order()
            self._follow_order(sink, pace)
            self._find_new(sink if unordered is None else unordered, record, pace)
            self._note_deaths(sink if unordered is None else unordered, record, pace)
        finally:
            self._order.close()
        self._thorough = False
        return (self.state.events, self.state.status) != before

    def follow(self, end: int, sink: Sink) -> None:
        """Fold what `order` records before its byte `end`, and nothing else. Raises as `catch_up` does."""
        self._order = Order(self.journal)
        self._order.open(write=False)
        try:
            self._check_order()
            self._follow_order(sink, None, end)
        finally:
            self._order.close()

    # -- what order says ---------------------------------------------------------------------------------------------

    def _check_order(self) -> None:
        if not self._order.first:
            # It is not there, and this reader may not make it: what is folded already is still right.
            return
        if not self.at.order_identity:
            self.at.order_identity = self._order.identity
        size = _size(self._order.path)
        if self._order.identity != self.at.order_identity or (size is not None and size < self.at.order_position):
            raise OrderChanged(self._order.path)

    def _follow_order(self, sink: Sink, pace: Pace | None, end: int | None = None) -> None:
        """Fold what is recorded. The position in `order` moves only behind what is folded whole."""
        waiting: Stretch | None = None
        behind = self.at.order_position
        for record, position in self._order.read(self.at.order_position):
            if end is not None and position > end:
                break
            if isinstance(record, Stretch) and waiting is not None and _continues(waiting, record):
                waiting = Stretch(waiting.segment, waiting.start, record.end)
            else:
                self._fold_stretch(waiting, sink, pace)
                self.at.order_position = behind
                waiting = record if isinstance(record, Stretch) else None
                if not isinstance(record, Stretch):
                    fold_death(self.state, record.writer, self.edits)
            behind = position
        self._fold_stretch(waiting, sink, pace)
        self.at.order_position = behind

    def _fold_stretch(self, stretch: Stretch | None, sink: Sink, pace: Pace | None) -> None:
        if stretch is None:
            return
        covered = self.at.covered.get(stretch.segment, [])
        if covered and stretch.start < stretch.end and not list(holes(covered, stretch.start, stretch.end)):
            # Folded already; a base may stand for the segment, and it is not here.
            return
        segment = self._segment_of(stretch.segment)
        if segment is None:
            return
        start = max(stretch.start, segment.first)
        before = covered[-1][1] if covered else segment.first
        if before < start:
            # What no record names (the one that did is damaged) comes no later than what follows it.
            for hole in holes(self._named(segment.id), before, start):
                self._fold_bytes(segment, *hole, sink, pace)
        self._fold_bytes(segment, start, stretch.end, sink, pace)

    def _fold_bytes(self, segment: Segment, start: int, end: int, sink: Sink, pace: Pace | None) -> None:
        for hole in holes(self.at.covered.get(segment.id, []), start, end):
            for item in self._items(segment, *hole):
                if isinstance(item, Run):
                    for run in self._whole(segment, item):
                        self._fold_run(segment, run, sink, pace)

    def _named(self, segment: str) -> list[Range]:
        """The bytes of a segment that `order` names anywhere."""
        if self._all_named is None:
            self._all_named = {}
            for record, _ in self._order.read(0):
                if isinstance(record, Stretch) and record.start < record.end:
                    named = self._all_named.get(record.segment, [])
                    self._all_named[record.segment] = union(named, record.start, record.end)
        return self._all_named.get(segment, [])

    # -- what is new -------------------------------------------------------------------------------------------------

    def _find_new(self, sink: Sink, record: bool, pace: Pace | None) -> None:
        for name, path in self._candidates():
            size, settled = _size(path), self.at.settled.get(path.name)
            if settled is not None and (size or 0) < settled:
                raise OrderChanged(path)
            if size is None or settled == size:
                self._skip(name, path)
                continue
            if not self._thorough and self._left.get(path.name) == size and not self._lives(name.writer):
                self._skip(name, path)
                continue
            segment = self._open(path)
            if segment is None:
                self._left[path.name] = size
                continue
            self._sequence(segment, size, sink, record, pace)

    def _candidates(self) -> list[tuple[SegmentName, Path]]:
        """Segments in which there may be something new, oldest first; now and then all are looked at."""
        if monotonic() >= self._look_at_all:
            self._look_at_all = monotonic() + _ALL_EVERY_S
            self._idle = set()
            found = list_segments(self.journal)
            if not self.at.settled.keys() <= {path.name for _, path in found}:
                raise OrderChanged(self.journal)
        else:
            folder = self.journal / SEGMENTS
            parsed = [(parse_name(text), text) for text in os.listdir(folder) if text not in self._idle]
            found = sorted((name, folder / text) for name, text in parsed if name is not None)
        for name, path in found:
            self._paths.setdefault(name.writer, {})[name.n] = path
        return found

    def _skip(self, name: SegmentName, path: Path) -> None:
        """Nothing is new there. Segments of writers that have ended are left alone for a while."""
        if not self._lives(name.writer):
            self._idle.add(path.name)

    def _lives(self, writer: str) -> bool:
        """The rest of a living writer's segment is looked at again: on a network file system its bytes may change."""
        known = self.state.writers.get(writer)
        return known is None or known.alive

    def _sequence(self, segment: Segment, size: int, sink: Sink, record: bool, pace: Pace | None) -> None:
        if segment.writer not in self.state.writers:
            # Whoever died before this writer came is noted first: the run it began is over.
            self._note_deaths(sink, record, pace, all_of_them=self._is_of_here(segment))
        if size <= self.at.stood.get(segment.id, 0):
            self._left[segment.path.name] = size
            return
        torn = size
        covered = self.at.covered.get(segment.id, [])
        if covered and covered[-1][1] > size:
            raise OrderChanged(segment.path)
        unread = list(holes(covered, segment.first, size))
        for start, end in unread if self._thorough else unread[-1:]:
            for item in self._items(segment, start, end):
                if isinstance(item, Run):
                    for run in self._whole(segment, item):
                        self._sequence_run(segment, run, sink, record, pace)
                elif isinstance(item, Tail) and item.end == size and is_partial(segment, item):
                    # The beginning of a frame: it takes more bytes to make it whole.
                    torn = item.start
        if not list(holes(self.at.covered.get(segment.id, []), segment.first, torn)):
            self.at.settled[segment.path.name] = size
        else:
            self._left[segment.path.name] = size

    def _sequence_run(self, segment: Segment, run: Run, sink: Sink, record: bool, pace: Pace | None) -> None:
        if not record:
            self.assumed = True
            self._fold_run(segment, run, sink, pace)
            return
        missing = list(holes(self.at.covered.get(segment.id, []), run.start, run.end))
        if not missing:
            return
        expected = max(self.at.order_position, self._order.first)
        start, behind = self._order.put([stretch_payload(segment.id, run.start, run.end)])
        if start != expected or missing != [(run.start, run.end)]:
            # Where locks do not work another process may record meanwhile: its records come first for everybody.
            self._follow_order(sink, pace)
            return
        self._fold_run(segment, run, sink, pace)
        self.at.order_position = behind

    def _fold_run(self, segment: Segment, run: Run, sink: Sink, pace: Pace | None) -> None:
        state, header = self.state, segment.header
        state.project, state.name = state.project or header.project, state.name or header.name
        self._unsynced.add(segment.path)
        size = len(run.events) if pace is None else pace.slice_events
        for start in range(0, len(run.events), size):
            fold(state, segment.writer, run.events[start : start + size], self.edits)
            sink.apply(self.edits)
            if self.edits.rewound:
                recount(state, self.edits, sink.history)
            if pace is not None:
                pace.step()
        self.at.covered[segment.id] = union(self.at.covered.get(segment.id, []), run.start, run.end)

    # -- who died ----------------------------------------------------------------------------------------------------

    def _note_deaths(self, sink: Sink, record: bool, pace: Pace | None, *, all_of_them: bool = False) -> None:
        """Note who died; of writers elsewhere, whose locks say nothing here, only when a writer of here takes over.

        If one of those does live, its next event makes the note void.
        """
        for writer in list(self.state.alive):
            own = self._paths.get(writer, {})
            if own and not self._is_gone(writer, own):
                continue
            if not all_of_them and self._is_elsewhere(own):
                continue
            if record:
                last = self._open(own[max(own)]) if own else None
                covered = self.at.covered.get(last.id) if last is not None else None
                payload = death_payload(writer, last.id if last else "00" * 16, covered[-1][1] if covered else 0)
                expected = max(self.at.order_position, self._order.first)
                start, behind = self._order.put([payload])
                if start != expected:
                    self._follow_order(sink, pace)
                    continue
                self.at.order_position = behind
            else:
                self.assumed = True
            fold_death(self.state, writer, self.edits)

    def _is_elsewhere(self, own: dict[int, Path]) -> bool:
        """Did a writer with these segments here write to another journal, or into what the base stands for?"""
        if not own:
            return bool(self.at.base)
        last = self._open(own[max(own)])
        return last is not None and not self._is_of_here(last)

    def _is_of_here(self, segment: Segment) -> bool:
        """Was it written to this journal? `pull` brings those of others, too."""
        try:
            self._journal_id = self._journal_id or read_identity(self.journal).journal
        except (OSError, JournalError):
            # Nothing says which journal this is; so nothing says that a segment was brought here.
            return True
        return segment.header.journal == self._journal_id

    def _is_gone(self, writer: str, own: dict[int, Path]) -> bool:
        """Is its lock free, and is there nothing of it that was not read?"""
        folder, created_ns = self.journal / SEGMENTS, own[max(own)].name[:20]
        if probe(folder / lock_name(int(created_ns), writer)) is not Liveness.GONE:
            return False
        # It may have written, gone on in another segment, and closed, between our reading and our probing.
        following = folder / str(SegmentName(int(created_ns), writer, max(own) + 1))
        return not following.exists() and all(map(self._is_read, own.values()))

    def _is_read(self, path: Path) -> bool:
        size = _size(path)
        return size is None or size in (self.at.settled.get(path.name), self._left.get(path.name))

    # -- segments ----------------------------------------------------------------------------------------------------

    def _open(self, path: Path) -> Segment | None:
        """The segment at a path; None if it cannot be read (yet)."""
        opened = self._by_name.get(path.name)
        if opened is None:
            try:
                opened = open_segment(path)
            except (OSError, JournalError, ValueError) as error:
                self._set_aside(path.name, error)
                return None
            if opened is not None:
                self._by_name[path.name] = opened
                self._segments.setdefault(opened.id, opened)
        return opened

    def _segment_of(self, identity: str) -> Segment | None:
        """The segment with that id, which only headers tell; the newest are looked at first."""
        if identity not in self._segments:
            for _, path in reversed(list_segments(self.journal)):
                opened = self._open(path) if path.name not in self._by_name else None
                if opened is not None and opened.id == identity:
                    break
        return self._segments.get(identity)

    def _items(self, segment: Segment, start: int, end: int) -> Iterator[Run | Gap | Tail]:
        """What is in a segment; one that the disk refuses to read is set aside, the others go on."""
        try:
            yield from read(segment, start, end)
        except OSError as error:
            self._set_aside(segment.path.name, error)

    def _set_aside(self, name: str, error: Exception) -> None:
        if name not in self.troubles:
            log.warning("ml-dash: %s is set aside: %s", name, error)
        self.troubles[name] = error

    def _whole(self, segment: Segment, run: Run) -> Iterator[Run]:
        """The run with bodies that were kept as blobs. A frame whose body is lost is left out: it stays unread."""
        if msgspec.msgpack.Ext not in {type(event[3]) for event in run.events}:
            yield run
            return
        begun, position = run.start, run.start
        events: list[Event] = []
        for event, size in zip(run.events, _frame_sizes(segment, run), strict=True):
            seq, kind, time_ns, body = event
            try:
                body = resolve_body(body, partial(blobs.fetch_body, self.journal, segment.writer, seq))
            except (OSError, Damaged, ValueError) as error:
                self.troubles[f"{segment.path.name} #{seq}"] = error
                if events:
                    yield Run(begun, position, events)
                begun, events = position + size, []
            else:
                events.append((seq, kind, time_ns, body))
            position += size
        if events:
            yield Run(begun, position, events)

    # -- before blobs are released -----------------------------------------------------------------------------------

    def sync(self) -> None:
        """All events read so far, and their order, survive a power cut."""
        for path in self._unsynced:
            with path.open("rb") as file:
                data_sync(file.fileno())
        sync_folder(self.journal / SEGMENTS)
        self._unsynced = set()
        order = Order(self.journal)
        order.open(write=True)
        try:
            order.sync()
        finally:
            order.close()


def _frame_sizes(segment: Segment, run: Run) -> Iterator[int]:
    with segment.path.open("rb") as file:
        buffer = read_at(file.fileno(), run.end - run.start, run.start)
    position = 0
    while position < len(buffer):
        size = HEAD.size + int(HEAD.unpack_from(buffer, position)[0])
        yield size
        position += size


def _continues(first: Stretch, second: Stretch) -> bool:
    return first.segment == second.segment and first.end == second.start and second.end - first.start <= _MERGE_BYTES


def _size(path: Path) -> int | None:
    """The size of a regular file; None if it is gone, or is something that must not be opened."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
