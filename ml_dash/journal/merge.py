"""The merge of a journal's segments into one sequence, and the deaths of writers: one rule for folding and for sending.

`order` records how segments were merged. Stretches that it does not name yet are named here, oldest segment first, and
recorded in `order` before they are used. Whoever is first decides, so this needs the turn. A process that may not write
assumes the same order, and records nothing.

The two kinds of `Reader` differ in what they know, not in the rule. One folds events, so it knows which writers run and
which frames it can use; the other only walks over frames. So the rule is one class, which asks its reader. Between one
item and the next, the reader marks the bytes that it has taken as covered; bytes that it could not use are found again
later.

The problem: log numbers and indices of points are positions in one sequence, but several writers append at the same
time, and two readers see their segments at different lengths. So the first reader that takes a stretch writes down that
it comes next, and all others follow. An example, with the header of A ending at byte 84:

    order        A [84, 900) | B [90, 310) | A [900, 1400)
    segment A    header | 84 ... 900 | 900 ... 1400 | 1400 ... 1700
    covered A    [84, 1400)                           [1400, 1700) is a hole, so `new` names it

What holds:

- With the turn, a stretch or a death is in `order` before it is yielded. A process that is killed in between leaves a
  record that the next reader follows: the same numbers come out.
- `Position` moves past a record when the next one is asked for, so after a crash a record may be met twice. Bytes that
  are covered are passed over, and the fold ignores events that it has seen.
- Stretches of a segment come in the order of the file, also if the record that named one of them is damaged. Damage
  itself is never named: a hole stays, is read again when somebody asks for everything, and is reported.
- A writer is declared dead only if its lock was found free and, after that, nothing of it was left to read: else a
  writer that closes while we look would be taken for interrupted.
- Before the first stretch of a new writer, the deaths so far are recorded: the run of those writers was over before
  this one began, and the status depends on that order.

`order` is appended to, and not synced here. A power cut may shorten it; a position beyond its end is then of no use,
and its reader gets OrderChanged and starts over. A segment that cannot be read is noted in `troubles`, and the others
go on.

A pass costs one listing of `segments/` and one `lstat` for each segment that is not idle, and reads what is new. Memory
holds the ranges of each segment, not events: stretches are yielded one by one. One thread uses a merger. Passing an
`order` to `new` is only for the process that has the turn.
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
from .order import Death, MergeRecord, Order, Record, death_payload, stretch_payload
from .reader import Gap, Segment, Stretch, Tail, is_partial, open_segment
from .segment import SEGMENTS, SegmentName, list_segments, lock_name, parse_name, read_identity

log = logging.getLogger("ml_dash")

# Joined stretches stay below this, so that a reader can bound its memory.
# Bytes. Fewer, longer items cost less for each event.
_JOINED_BYTES: Final = 8 << 20
# Seconds between listings of all segments. In between, those of ended writers are not looked at: a folder may hold
# thousands of them after many preemptions, and a `stat` on a network file system takes a round trip.
_ALL_EVERY_S: Final = 30.0

Item = tuple[Record, Segment | None, Stretch | None]
"""(record of what comes next, its segment if that is here, its frames if they were read to find it)."""


class OrderChanged(Exception):
    """`order` or a segment was replaced, or ends before the position of its reader."""


@dataclass(slots=True)
class Position:
    """How far a reader has followed a journal.

    It is kept in a checkpoint by those who fold, and only in memory by those who send. All of it is a hint that can be
    checked: with `strict`, a file that is shorter than what stands here means that the position is of another journal,
    or of the time before a power cut.
    """

    # Identity of the base from which this began (see `journal.base.identity_of`); empty if there was none.
    base: str = ""
    # Freed segments, for which the base stands: segment id → length in bytes.
    stood: dict[str, int] = field(default_factory=dict)
    order_identity: str = ""
    order_position: int = 0
    # Segment id (hex) → ranges [start, end) of its bytes that were taken, sorted.
    covered: dict[str, list[Range]] = field(default_factory=dict)
    # Segment file name → its size when all of it was read.
    settled: dict[str, int] = field(default_factory=dict)

    def behind(self, segment: Segment) -> int:
        """Return the offset in a segment after all that was taken."""
        covered = self.covered.get(segment.id)
        return max(covered[-1][1], segment.first) if covered else segment.first


class Reader(Protocol):
    """The reader of a journal that the merger asks: what it can use of a segment, and what it knows of writers."""

    def read(self, segment: Segment, start: int, end: int) -> Iterator[Stretch | Gap | Tail]:
        """Yield what bytes [start, end) of a segment hold; stretches that it cannot use are left out.

        Raises OSError.
        """

    def waits(self, segment: Segment) -> bool:
        """True if new frames of a segment must wait for earlier ones of its writer that are missing."""

    def running(self) -> Iterable[str]:
        """Return the writers of which something was taken and that have not ended, as far as known, in that order."""

    def is_running(self, writer: str) -> bool | None:
        """True if a writer is among those `running`; None if nothing of it was taken."""

    def may_have_closed(self, writer: str, newest: list[Segment]) -> bool:
        """True if one of a writer's last segments may end with a closing event. Asked only if its lock is free.

        `newest` are its last two segments that can be read, or fewer.
        """


class Merger:
    """The merge of one journal for one reader, from its position on. For one thread at a time.

    `recorded` gives what `order` names, then `new` the rest; both change `at`, the position that they were given.
    """

    def __init__(self, journal: Path, at: Position, reader: Reader, *, strict: bool) -> None:
        """With `strict`, raise OrderChanged if bytes that `at` covers are not there any more."""
        self.journal = journal
        self.at = at
        # Segments that cannot be read, and why, by file name.
        self.troubles: dict[str, Exception] = {}
        self._reader = reader
        self._strict = strict
        self._folder = journal / SEGMENTS
        self._journal_id = b""
        self._by_id: dict[str, Segment] = {}
        self._by_file: dict[str, Segment] = {}
        # Writer → its segments that were listed, by their numbers.
        # Filled by `_candidates`, so it knows no more than the last listing did; `_is_gone` looks for a later segment
        # itself.
        self._own: dict[str, dict[int, SegmentName]] = {}
        # Segment ids that `order` names and that no segment here has: looked up once in a pass.
        self._missing: set[str] = set()
        self._named: dict[str, list[Range]] | None = None
        # Segment file name → its size when something was left at its end that is not a whole frame.
        self._left: dict[str, int] = {}
        # Names of segment files without news whose writer has ended; dropped every _ALL_EVERY_S, as are the segments in
        # `_own`.
        self._idle: set[str] = set()
        self._look_at_all = 0.0
        self._warned: set[str] = set()

    # -- what order says ----------------------------------------------------------------------------------------------

    def recorded(self, order: Order, end: int | None = None) -> Iterator[Item]:
        """Yield what `order` says comes next (before its byte `end`); adjacent stretches are joined.

        The position moves past a record when the next one is asked for: so a reader that stops in between gets that
        record again. Raises OSError, OrderChanged.
        """
        self._missing, self._named = set(), None
        if not order.first:
            # There is no `order`, and this reader may not begin one. What was taken already stays valid.
            return
        self.at.order_identity = self.at.order_identity or order.identity
        size = _size(order.path)
        # `order` was begun anew after its header was damaged, or a power cut took its end. Records after this position
        # would not follow what was taken before it.
        if order.identity != self.at.order_identity or (size is not None and size < self.at.order_position):
            raise OrderChanged(order.path)
        records = order.read(self.at.order_position)
        for record, behind in joined((record, at) for record, at in records if end is None or at <= end):
            if isinstance(record, Death):
                yield record, None, None
            elif not self._is_covered(record):
                segment = self._segment_of(record.segment)
                # A segment that is not here is yielded all the same, with None: the reader has to know that a stretch
                # is missing.
                if segment is not None:
                    yield from self._overlooked(order, segment, record.start)
                yield record, segment, None
            # After the yield: the generator comes here only when the reader has taken the item and asks for the next.
            self.at.order_position = behind

    def _is_covered(self, record: MergeRecord) -> bool:
        """True if all of it was taken already; also if a base stands for its segment."""
        # `holes` of an empty or reversed range are none, so without the comparison a nonsense record would count as
        # covered.
        covered = self.at.covered.get(record.segment, [])
        return bool(covered) and record.start < record.end and not any(holes(covered, record.start, record.end))

    def _overlooked(self, order: Order, segment: Segment, start: int) -> Iterator[Item]:
        """Yield what lies before `start` in a segment and no record names, because the record that did is damaged.

        It has to come before later frames of its segment: events of one writer must keep their order.
        """
        before = self.at.behind(segment)
        if before < start:
            # What another record names comes at its own place, perhaps later in `order`. Only what none names comes
            # here.
            for hole in holes(self._named_in(order, segment.id), before, start):
                for stretch in self.unread(segment, *hole):
                    yield MergeRecord(segment.id, stretch.start, stretch.end), segment, stretch

    def _named_in(self, order: Order, segment: str) -> list[Range]:
        """Return the ranges of a segment that `order` names anywhere. Read once in a pass, when first needed."""
        if self._named is None:
            self._named = {}
            for record, _ in order.read(0):
                if isinstance(record, MergeRecord) and record.start < record.end:
                    named = self._named.get(record.segment, [])
                    self._named[record.segment] = union(named, record.start, record.end)
        return self._named.get(segment, [])

    def unread(self, segment: Segment, start: int, end: int) -> Iterator[Stretch]:
        """Yield the stretches in bytes [start, end) of a segment that are not covered."""
        for hole in holes(self.at.covered.get(segment.id, []), max(start, segment.first), end):
            for item in self._items(segment, *hole):
                if isinstance(item, Stretch):
                    yield item

    # -- what it does not say -----------------------------------------------------------------------------------------

    def new(self, order: Order | None, *, thorough: bool) -> Iterator[Item]:
        """Yield what `order` does not name: stretches, oldest segment first, then deaths.

        Each is recorded in `order` first.

        With None for `order` nothing is recorded, and the merge is only assumed. Only the ends of segments that have
        grown are read, and segments of ended writers are listed only now and then; with `thorough`, all of everything.
        Raises OSError, OrderChanged.
        """
        for name, path in self._candidates(thorough):
            size, settled = _size(path), self.at.settled.get(path.name)
            # Segments only grow. This one is shorter, or gone, so what was folded from it is not on disk any more.
            if self._strict and settled is not None and (size or 0) < settled:
                raise OrderChanged(path)
            # All of it was read when it had this size. The usual case in a pass without news: no file is opened.
            if size is None or settled == size:
                self._skip(name, path)
                continue
            # Something at its end is no frame, nothing came since, and nobody is there who could write more: torn, or
            # damaged. Reading it again would give the same.
            if not thorough and self._left.get(path.name) == size and not self._may_grow(name.writer):
                self._skip(name, path)
                continue
            # A header that is not complete yet, or damaged, counts as left over: `_left` keeps the next pass from
            # opening it again once its writer is gone.
            segment = self.open(path)
            if segment is None:
                self._left[path.name] = size
                continue
            yield from self._of_segment(segment, size, order, thorough)
        yield from self._deaths(order, everywhere=False)

    def _candidates(self, thorough: bool) -> list[tuple[SegmentName, Path]]:
        """Return the segments in which there may be something new, oldest first; every _ALL_EVERY_S all of them."""
        if thorough or monotonic() >= self._look_at_all:
            self._look_at_all = monotonic() + _ALL_EVERY_S
            self._idle, self._own = set(), {}
            segments = list_segments(self.journal)
            if self._strict and not self.at.settled.keys() <= {path.name for _, path in segments}:
                raise OrderChanged(self.journal)
        else:
            # `listdir`, not `list_segments`: this runs twice a second, and types and sizes of files come from `_size`
            # anyway.
            parsed = [(parse_name(text), text) for text in os.listdir(self._folder) if text not in self._idle]
            segments = sorted((name, self._folder / text) for name, text in parsed if name is not None)
        for name, _ in segments:
            self._own.setdefault(name.writer, {})[name.n] = name
        return segments

    def _skip(self, name: SegmentName, path: Path) -> None:
        """Pass over a segment without news; if its writer has ended, do not even list it for a while."""
        if not self._may_grow(name.writer):
            self._idle.add(path.name)

    def _may_grow(self, writer: str) -> bool:
        """True unless a writer has ended.

        Until then a partial frame is read again even if the size is the same: on a network file system the bytes may
        arrive after the size.
        """
        return self._reader.is_running(writer) is not False

    def _of_segment(self, segment: Segment, size: int, order: Order | None, thorough: bool) -> Iterator[Item]:
        """Yield what is new in one segment of `size` bytes, and note whether anything in it was left out."""
        at, file = self.at, segment.path.name
        # It is freed, and not removed yet: the base holds all that is in it. `_left`, so that its writer can be found
        # dead.
        if size <= at.stood.get(segment.id, 0):
            self._left[file] = size
            return
        covered = at.covered.get(segment.id, [])
        # The events at its end were folded, and a power cut has taken them from the disk since.
        if self._strict and covered and covered[-1][1] > size:
            raise OrderChanged(segment.path)
        # The last hole is mostly the end of the file. Those before it are damage, or events whose blobs are not here:
        # read again only with `thorough`.
        unread = list(holes(covered, segment.first, size))
        if thorough:
            self.troubles.pop(file, None)
        torn = size
        for start, end in unread if thorough else unread[-1:]:
            for item in self._items(segment, start, end):
                if isinstance(item, Stretch):
                    # Neither settled nor left: the next pass looks at this segment again.
                    if self._reader.waits(segment):
                        return
                    yield from self._name(segment, item, order)
                elif isinstance(item, Tail) and item.end == size and is_partial(segment, item):
                    # The beginning of a frame: nothing is missed until more bytes come.
                    torn = item.start
        # The reader has marked as covered what it took of the stretches above. A hole is damage, or an event whose blob
        # is not here: this segment is not settled, and a thorough pass tries again.
        if any(holes(at.covered.get(segment.id, []), segment.first, torn)):
            self._left[file] = size
        else:
            at.settled[file] = size

    def _name(self, segment: Segment, stretch: Stretch, order: Order | None) -> Iterator[Item]:
        """Record a stretch in `order`, and yield it; if `order` says something else comes first, yield that instead."""
        if self._reader.is_running(segment.writer) is None:
            # A new writer: first note who died before it came, because their runs are over. If it is a writer of this
            # journal, also those of other journals: it takes over from them.
            yield from self._deaths(order, everywhere=self.is_of_here(segment))
        record = MergeRecord(segment.id, stretch.start, stretch.end)
        if order is None:
            yield record, segment, stretch
            return
        # A part of it may have been taken since it was read: following `recorded` after a lost race does that.
        missing = list(holes(self.at.covered.get(segment.id, []), stretch.start, stretch.end))
        if not missing:
            return
        # From here on the record counts for everybody. If this process is killed before the yield, the next reader
        # finds it.
        behind = self._write(order, stretch_payload(segment.id, stretch.start, stretch.end))
        # The frames in hand are more than what is missing, or not what comes next. `recorded` goes through `order`,
        # with this record in it, and its reader reads what is missing then.
        if behind is None or missing != [(stretch.start, stretch.end)]:
            yield from self.recorded(order)
            return
        yield record, segment, stretch
        self.at.order_position = behind

    def _write(self, order: Order, payload: bytes) -> int | None:
        """Append a record to `order`; return the offset behind it, or None if another record comes first.

        That happens where locks do not work, and another process has written meanwhile. What is recorded counts for
        everybody, in its order: so the caller must follow `recorded` first.
        """
        expected = max(self.at.order_position, order.first)
        start, behind = order.put([payload])
        return behind if start == expected else None

    # -- who died -----------------------------------------------------------------------------------------------------

    def _deaths(self, order: Order | None, *, everywhere: bool) -> Iterator[Item]:
        """Yield the deaths of writers; of other journals' writers, whose locks are not here, only with `everywhere`.

        If one of those does live, its next event makes the death void.
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
        """Return the record of a writer's death, if it is dead and all of it was read; else None."""
        own = self._own.get(writer)
        if not own:
            # None of its segments is here: a base stands for them, or somebody has removed them.
            # With a base, its segments were freed or not brought, and its lock may be on another machine: not knowing
            # is not dead.
            gone = everywhere or not (self.at.base or self._reader.may_have_closed(writer, []))
            return Death(writer) if gone else None
        if not self._is_gone(own):
            return None
        # A writer may have begun another segment and written nothing to it yet: so look at the last two.
        newest = [self.open(self._path(own[n])) for n in sorted(own)[-2:]]
        last = newest[-1]
        # A lock of another journal is not beside its segment here, so that none is found proves nothing.
        if last is not None and not (everywhere or self.is_of_here(last)):
            return None
        if self._reader.may_have_closed(writer, [segment for segment in newest if segment is not None]):
            return None
        # Its last segment has no readable header, so how far it was read cannot be said.
        if last is None:
            return Death(writer)
        covered = self.at.covered.get(last.id)
        return Death(writer, last.id, covered[-1][1] if covered else 0)

    def _is_gone(self, own: dict[int, SegmentName]) -> bool:
        """True if the lock of the writer of these segments is free and all in them was read."""
        last = own[max(own)]
        # UNKNOWN is not enough: where locks do not work, no writer is declared dead for its lock.
        if probe(self._folder / lock_name(last.created_ns, last.writer)) is not Liveness.GONE:
            return False
        # Between our reading and our probing it may have written more, begun another segment, and closed.
        # A writer that has let its lock go writes no more, so sizes that are compared after the probe are final.
        following = self._path(SegmentName(last.created_ns, last.writer, last.n + 1))
        return not following.exists() and all(map(self._is_read, own.values()))

    def _is_read(self, name: SegmentName) -> bool:
        """True if a segment was read to its present end, or is not here. Bytes that cannot be used count as read."""
        size = _size(self._path(name))
        return size is None or size in (self.at.settled.get(str(name)), self._left.get(str(name)))

    # -- segments -----------------------------------------------------------------------------------------------------

    def open(self, path: Path) -> Segment | None:
        """Open the segment at a path; None if it is gone, not complete yet, or cannot be read (see `troubles`)."""
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
        """Return the segment with an id, by reading headers, the newest first; None if it is not here."""
        if identity not in self._by_id:
            for _, path in reversed(list_segments(self.journal)):
                opened = self.open(path) if path.name not in self._by_file else None
                if opened is not None and opened.id == identity:
                    break
        return self._by_id.get(identity)

    def _segment_of(self, identity: str) -> Segment | None:
        """As `segment`, with a memory of what was not found in this pass."""
        segment = None if identity in self._missing else self.segment(identity)
        if segment is None:
            self._missing.add(identity)
        return segment

    def opened(self, identity: str) -> Segment | None:
        """Return the segment with an id if it was opened already, else None."""
        return self._by_id.get(identity)

    def before(self, segment: Segment) -> list[Path]:
        """Return the paths of the earlier segments of its writer, the newest first."""
        own = self._own.get(segment.name.writer, {})
        return [self._path(own[n]) for n in sorted(own, reverse=True) if n < segment.name.n]

    def is_of_here(self, segment: Segment) -> bool:
        """True if a segment was written to this journal. `pull` brings segments of other journals."""
        try:
            self._journal_id = self._journal_id or read_identity(self.journal).journal
        except (OSError, JournalError):
            # It is not known which journal this is, so no segment is known to be of another.
            return True
        return segment.header.journal == self._journal_id

    def _path(self, name: SegmentName) -> Path:
        return self._folder / str(name)

    def _items(self, segment: Segment, start: int, end: int) -> Iterator[Stretch | Gap | Tail]:
        """Yield what a segment holds. One that the disk refuses to read is set aside, so that others can go on."""
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
    """Yield records with their offsets; adjacent stretches of a segment become one, with the last offset."""
    # One record is held back until the next one shows that it does not continue it. A projector names what came in half
    # a second, so a long run has many small records that adjoin.
    waiting: Record | None = None
    behind = 0
    for record, offset in records:
        if isinstance(record, MergeRecord) and isinstance(waiting, MergeRecord) and _goes_on(waiting, record):
            waiting = MergeRecord(waiting.segment, waiting.start, record.end)
        else:
            if waiting is not None:
                yield waiting, behind
            waiting = record
        behind = offset
    if waiting is not None:
        yield waiting, behind


def _goes_on(first: MergeRecord, second: MergeRecord) -> bool:
    """True if two records name adjacent bytes of one segment, and together are not too long."""
    return first.segment == second.segment and first.end == second.start and second.end - first.start <= _JOINED_BYTES


def _size(path: Path) -> int | None:
    """Return the size of a regular file; None if it is gone, or is something that must not be opened."""
    try:
        # Not `stat`: a link, a pipe or a device in the place of a segment could hang or show what is not ours.
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
