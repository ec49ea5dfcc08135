"""What comes next in a journal, and who died: one rule for those who fold it and for those who send it on.

`order` says how segments were merged. What it does not name yet is named here, oldest segment first, and written to
`order` before it is used; whoever is first decides, so this asks for the turn. Who may not write assumes the same.

The two kinds of `Reader` differ in what they know, not in the rule: one folds what it is given, so it knows who lives
and which frames it can use; the other only walks over frames. So both are asked, and there is one class for the rule.
Between one item and the next a reader marks what it has taken as covered: what it could not use is found again later.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final, Protocol

from ..core.ranges import Range, holes, union
from ..disk.lock import Liveness, probe
from ..errors import JournalError
from .order import Death, Order, Record, Stretch, death_payload, stretch_payload
from .reader import Gap, Run, Segment, Tail, is_partial, open_segment
from .segment import SEGMENTS, SegmentName, list_segments, lock_name, parse_name, read_identity

log = logging.getLogger("ml_dash")

_JOINED_BYTES: Final = 8 << 20
_ALL_EVERY_S: Final = 30.0

Item = tuple[Record, Segment | None, Run | None]
"""What comes next; of a stretch its segment, if it is here, and its run of frames, if it was read to find them."""


class OrderChanged(Exception):
    """`order` or a segment is not the one that was followed, or ends before where that had come to."""


@dataclass(slots=True)
class Position:
    """How far somebody has followed a journal."""

    # The base that this began at (see `journal.base.identity_of`), empty if at nothing.
    base: str = ""
    # What the base stands for: segment id → so many bytes.
    stood: dict[str, int] = field(default_factory=dict)
    order_identity: str = ""
    order_position: int = 0
    # Segment id (hex) → the bytes of it that were taken, as ranges [start, end).
    covered: dict[str, list[Range]] = field(default_factory=dict)
    # Segment file name → its size when nothing was left to read in it.
    settled: dict[str, int] = field(default_factory=dict)

    def behind(self, segment: Segment) -> int:
        """Where in a segment that begins which is behind all that was taken."""
        covered = self.covered.get(segment.id)
        return max(covered[-1][1], segment.first) if covered else segment.first


class Reader(Protocol):
    """Who follows a journal: what it makes of a segment, and what it knows of writers."""

    def read(self, segment: Segment, start: int, end: int) -> Iterator[Run | Gap | Tail]:
        """What is in bytes [start, end) of a segment; runs that cannot be used are left out. Raises OSError."""

    def waits(self, segment: Segment) -> bool:
        """Does what is new in a segment have to wait for what its writer wrote before?"""

    def running(self) -> Iterable[str]:
        """The writers that were met and have not ended, as far as is known, in the order in which they came."""

    def is_running(self, writer: str) -> bool | None:
        """Whether a writer was met and has not ended; None if it was not met."""

    def may_have_closed(self, writer: str, newest: list[Segment]) -> bool:
        """May one of a writer's last segments, if any are here, end with a closing event? Asked if its lock is free."""


class Merger:
    """One reader's way through one journal. For one thread at a time."""

    def __init__(self, journal: Path, at: Position, reader: Reader, *, strict: bool) -> None:
        """With `strict` what is covered has to be there still: OrderChanged is raised if not."""
        self.journal = journal
        self.at = at
        # What cannot be read, and why: segment file names.
        self.troubles: dict[str, Exception] = {}
        self._reader = reader
        self._strict = strict
        self._folder = journal / SEGMENTS
        self._journal_id = b""
        self._by_id: dict[str, Segment] = {}
        self._by_file: dict[str, Segment] = {}
        # Writer → the segments that were met, by their numbers.
        self._own: dict[str, dict[int, SegmentName]] = {}
        # Ids that no segment here had when this pass began.
        self._missing: set[str] = set()
        self._named: dict[str, list[Range]] | None = None
        # Segment file name → its size when there was a rest in it that is no whole frame.
        self._left: dict[str, int] = {}
        self._idle: set[str] = set()
        self._look_at_all = 0.0
        self._warned: set[str] = set()

    # -- what order says ----------------------------------------------------------------------------------------------

    def recorded(self, order: Order, end: int | None = None) -> Iterator[Item]:
        """What `order` says comes next (before its byte `end`); stretches that join come as one.

        The position moves behind a record when the next one is asked for. Raises OSError, OrderChanged.
        """
        self._missing, self._named = set(), None
        if not order.first:
            # It is not there, and this reader may not make it: what was taken already is still right.
            return
        self.at.order_identity = self.at.order_identity or order.identity
        size = _size(order.path)
        if order.identity != self.at.order_identity or (size is not None and size < self.at.order_position):
            raise OrderChanged(order.path)
        records = order.read(self.at.order_position)
        for record, behind in joined((record, at) for record, at in records if end is None or at <= end):
            if isinstance(record, Death):
                yield record, None, None
            elif not self._is_covered(record):
                segment = self._segment_of(record.segment)
                if segment is not None:
                    yield from self._overlooked(order, segment, record.start)
                yield record, segment, None
            self.at.order_position = behind

    def _is_covered(self, stretch: Stretch) -> bool:
        """Was it taken already? A base may stand for its segment, and it is not here."""
        covered = self.at.covered.get(stretch.segment, [])
        return bool(covered) and stretch.start < stretch.end and not any(holes(covered, stretch.start, stretch.end))

    def _overlooked(self, order: Order, segment: Segment, start: int) -> Iterator[Item]:
        """What no record names (the one that did is damaged) comes no later than what follows it in its segment."""
        before = self.at.behind(segment)
        if before < start:
            for hole in holes(self._named_in(order, segment.id), before, start):
                for run in self.unread(segment, *hole):
                    yield Stretch(segment.id, run.start, run.end), segment, run

    def _named_in(self, order: Order, segment: str) -> list[Range]:
        """The bytes of a segment that `order` names anywhere."""
        if self._named is None:
            self._named = {}
            for record, _ in order.read(0):
                if isinstance(record, Stretch) and record.start < record.end:
                    named = self._named.get(record.segment, [])
                    self._named[record.segment] = union(named, record.start, record.end)
        return self._named.get(segment, [])

    def unread(self, segment: Segment, start: int, end: int) -> Iterator[Run]:
        """The runs in those bytes [start, end) of a segment that are not covered."""
        for hole in holes(self.at.covered.get(segment.id, []), max(start, segment.first), end):
            for item in self._items(segment, *hole):
                if isinstance(item, Run):
                    yield item

    # -- what it does not say -----------------------------------------------------------------------------------------

    def new(self, order: Order | None, *, thorough: bool) -> Iterator[Item]:
        """Name what is new: oldest segment first, then who died. Recorded in `order` first; None: only assumed.

        Only the ends of segments that have grown are looked at, and those of writers that have ended not each time;
        all of everything if that is to be `thorough`. Raises OSError, OrderChanged.
        """
        for name, path in self._candidates(thorough):
            size, settled = _size(path), self.at.settled.get(path.name)
            if self._strict and settled is not None and (size or 0) < settled:
                raise OrderChanged(path)
            if size is None or settled == size:
                self._skip(name, path)
                continue
            if not thorough and self._left.get(path.name) == size and not self._may_grow(name.writer):
                self._skip(name, path)
                continue
            segment = self.open(path)
            if segment is None:
                self._left[path.name] = size
                continue
            yield from self._of_segment(segment, size, order, thorough)
        yield from self._deaths(order, everywhere=False)

    def _candidates(self, thorough: bool) -> list[tuple[SegmentName, Path]]:
        """Segments in which there may be something new, oldest first; now and then all are looked at."""
        if thorough or monotonic() >= self._look_at_all:
            self._look_at_all = monotonic() + _ALL_EVERY_S
            self._idle, self._own = set(), {}
            found = list_segments(self.journal)
            if self._strict and not self.at.settled.keys() <= {path.name for _, path in found}:
                raise OrderChanged(self.journal)
        else:
            parsed = [(parse_name(text), text) for text in os.listdir(self._folder) if text not in self._idle]
            found = sorted((name, self._folder / text) for name, text in parsed if name is not None)
        for name, _ in found:
            self._own.setdefault(name.writer, {})[name.n] = name
        return found

    def _skip(self, name: SegmentName, path: Path) -> None:
        """Nothing is new there. Segments of writers that have ended are left alone for a while."""
        if not self._may_grow(name.writer):
            self._idle.add(path.name)

    def _may_grow(self, writer: str) -> bool:
        """The rest of a living writer's segment is looked at again: on a network file system its bytes may change."""
        return self._reader.is_running(writer) is not False

    def _of_segment(self, segment: Segment, size: int, order: Order | None, thorough: bool) -> Iterator[Item]:
        at, file = self.at, segment.path.name
        if size <= at.stood.get(segment.id, 0):
            self._left[file] = size
            return
        covered = at.covered.get(segment.id, [])
        if self._strict and covered and covered[-1][1] > size:
            raise OrderChanged(segment.path)
        unread = list(holes(covered, segment.first, size))
        if thorough:
            self.troubles.pop(file, None)
        torn = size
        for start, end in unread if thorough else unread[-1:]:
            for item in self._items(segment, start, end):
                if isinstance(item, Run):
                    if self._reader.waits(segment):
                        return
                    yield from self._name(segment, item, order)
                elif isinstance(item, Tail) and item.end == size and is_partial(segment, item):
                    # The beginning of a frame: it takes more bytes to make it whole.
                    torn = item.start
        if any(holes(at.covered.get(segment.id, []), segment.first, torn)):
            self._left[file] = size
        else:
            at.settled[file] = size

    def _name(self, segment: Segment, run: Run, order: Order | None) -> Iterator[Item]:
        if self._reader.is_running(segment.writer) is None:
            # Whoever died before this writer came is noted first: the run it began is over. Of writers elsewhere, too,
            # when one of here takes over.
            yield from self._deaths(order, everywhere=self.is_of_here(segment))
        stretch = Stretch(segment.id, run.start, run.end)
        if order is None:
            yield stretch, segment, run
            return
        missing = list(holes(self.at.covered.get(segment.id, []), run.start, run.end))
        if not missing:
            return
        behind = self._write(order, stretch_payload(segment.id, run.start, run.end))
        if behind is None or missing != [(run.start, run.end)]:
            yield from self.recorded(order)
            return
        yield stretch, segment, run
        self.at.order_position = behind

    def _write(self, order: Order, payload: bytes) -> int | None:
        """Add a record; the offset behind it. None if others come first: where locks do not work somebody else may have
        written meanwhile, and what is recorded counts, in its order, for everybody.
        """
        expected = max(self.at.order_position, order.first)
        start, behind = order.put([payload])
        return behind if start == expected else None

    # -- who died -----------------------------------------------------------------------------------------------------

    def _deaths(self, order: Order | None, *, everywhere: bool) -> Iterator[Item]:
        """Note who died; of writers elsewhere, whose locks say nothing here, only if `everywhere` is asked for.

        If one of those does live, its next event makes the note void.
        """
        for writer in list(self._reader.running()):
            death = self._death_of(writer, everywhere)
            if death is None:
                continue
            if order is None:
                yield death, None, None
                continue
            behind = self._write(order, death_payload(death.writer, death.segment, death.end))
            if behind is None:
                yield from self.recorded(order)
                continue
            yield death, None, None
            self.at.order_position = behind

    def _death_of(self, writer: str, everywhere: bool) -> Death | None:
        """The note, if that writer is dead and all of it was read."""
        own = self._own.get(writer)
        if not own:
            # A base stands for all that it wrote, wherever that was; or somebody has removed it.
            gone = everywhere or not (self.at.base or self._reader.may_have_closed(writer, []))
            return Death(writer) if gone else None
        if not self._is_gone(own):
            return None
        # Of a writer that went on in another segment, the last one may be empty still.
        newest = [self.open(self._path(own[n])) for n in sorted(own)[-2:]]
        last = newest[-1]
        if last is not None and not (everywhere or self.is_of_here(last)):
            return None
        if self._reader.may_have_closed(writer, [segment for segment in newest if segment is not None]):
            return None
        if last is None:
            return Death(writer)
        covered = self.at.covered.get(last.id)
        return Death(writer, last.id, covered[-1][1] if covered else 0)

    def _is_gone(self, own: dict[int, SegmentName]) -> bool:
        """Is the lock of the writer of these segments free, and is there nothing in them that was not read?"""
        last = own[max(own)]
        if probe(self._folder / lock_name(last.created_ns, last.writer)) is not Liveness.GONE:
            return False
        # It may have written, gone on in another segment, and closed, between our reading and our probing.
        following = self._path(SegmentName(last.created_ns, last.writer, last.n + 1))
        return not following.exists() and all(map(self._is_read, own.values()))

    def _is_read(self, name: SegmentName) -> bool:
        size = _size(self._path(name))
        return size is None or size in (self.at.settled.get(str(name)), self._left.get(str(name)))

    # -- segments -----------------------------------------------------------------------------------------------------

    def open(self, path: Path) -> Segment | None:
        """The segment at a path; None if it cannot be read (yet), or is gone."""
        opened = self._by_file.get(path.name)
        if opened is None:
            try:
                opened = open_segment(path)
            except FileNotFoundError:
                return None
            except (OSError, JournalError, ValueError) as error:
                self._set_aside(path.name, error)
                return None
            if opened is not None:
                self.troubles.pop(path.name, None)
                self._by_file[path.name] = opened
                self._by_id.setdefault(opened.id, opened)
        return opened

    def segment(self, identity: str) -> Segment | None:
        """The segment with that id, which only headers tell; None if it is not here. The newest are looked at first."""
        if identity not in self._by_id:
            for _, path in reversed(list_segments(self.journal)):
                opened = self.open(path) if path.name not in self._by_file else None
                if opened is not None and opened.id == identity:
                    break
        return self._by_id.get(identity)

    def _segment_of(self, identity: str) -> Segment | None:
        found = None if identity in self._missing else self.segment(identity)
        if found is None:
            self._missing.add(identity)
        return found

    def opened(self, identity: str) -> Segment | None:
        """The segment with that id, if it was opened already."""
        return self._by_id.get(identity)

    def before(self, segment: Segment) -> list[Path]:
        """The segments that its writer wrote before it, the last one first."""
        own = self._own.get(segment.name.writer, {})
        return [self._path(own[n]) for n in sorted(own, reverse=True) if n < segment.name.n]

    def is_of_here(self, segment: Segment) -> bool:
        """Was it written to this journal? `pull` brings those of others, too."""
        try:
            self._journal_id = self._journal_id or read_identity(self.journal).journal
        except (OSError, JournalError):
            # Nothing says which journal this is; so nothing says that a segment was brought here.
            return True
        return segment.header.journal == self._journal_id

    def _path(self, name: SegmentName) -> Path:
        return self._folder / str(name)

    def _items(self, segment: Segment, start: int, end: int) -> Iterator[Run | Gap | Tail]:
        """What is in a segment; one that the disk refuses to read is set aside, the others go on."""
        try:
            yield from self._reader.read(segment, start, end)
        except OSError as error:
            self._set_aside(segment.path.name, error)

    def _set_aside(self, file: str, error: Exception) -> None:
        if file not in self._warned:
            log.warning("ml-dash: %s is set aside: %s", file, error)
        self._warned.add(file)
        self.troubles[file] = error


def joined(records: Iterable[tuple[Record, int]]) -> Iterator[tuple[Record, int]]:
    """Records, each with an offset; stretches that go on where the one before ended are one, with the last offset."""
    waiting: Record | None = None
    behind = 0
    for record, offset in records:
        if isinstance(record, Stretch) and isinstance(waiting, Stretch) and _goes_on(waiting, record):
            waiting = Stretch(waiting.segment, waiting.start, record.end)
        else:
            if waiting is not None:
                yield waiting, behind
            waiting = record
        behind = offset
    if waiting is not None:
        yield waiting, behind


def _goes_on(first: Stretch, second: Stretch) -> bool:
    return first.segment == second.segment and first.end == second.start and second.end - first.start <= _JOINED_BYTES


def _size(path: Path) -> int | None:
    """The size of a regular file; None if it is gone, or is something that must not be opened."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
