"""What comes next in a journal, in its order, without folding: for whoever sends it on.

`order` says how segments were merged. What it does not name yet is named here, by the rules of projection/replay.py and
under the same turn: whoever is first decides. Frames are walked and checked, not decoded.
"""

from __future__ import annotations

import logging
import os
import stat
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Final
from zlib import crc32

from ..core.events import CLOSE
from ..core.frames import HEAD, MAX_PAYLOAD, LengthCrcs, find_frame
from ..disk.durable import read_at
from ..disk.lock import Liveness, Turn, probe
from ..errors import Damaged, JournalError
from . import base as bases
from .order import Death, Order, Stretch, death_payload, stretch_payload
from .reader import Gap, Run, Segment, decode_event, open_segment, read
from .segment import SEGMENTS, TURN, SegmentName, list_segments, lock_name, read_identity

log = logging.getLogger("ml_dash")

_CHUNK: Final = 4 << 20
_MERGE_BYTES: Final = 8 << 20
_TURN_S: Final = 0.05
PATIENCE_S: Final = 60.0
_TAIL_BYTES: Final = 64 << 10
_LARGEST_FRAME: Final = HEAD.size + MAX_PAYLOAD

Record = Stretch | Death


class Restart(Exception):
    """`order` or a segment is not the one that was followed: begin again from what the server has."""


class Sequence:
    """The position of one reader in one journal. For one thread at a time."""

    def __init__(self, journal: Path, *, patience_s: float = PATIENCE_S) -> None:
        """Raises OSError, JournalError if the journal, or its base, cannot be read.

        A segment waits up to `patience_s` for what its writer wrote before and what cannot be read now.
        """
        self.path = journal
        self._patience_s = patience_s
        # Segment file name → since when it waits for that.
        self._waiting: dict[str, float] = {}
        self.id = read_identity(journal).journal.hex()
        # What cannot be read, and why: segment file names.
        self.troubles: dict[str, str] = {}
        # May this process not write to `order`? Then segments come by their stamps.
        self.read_only = False
        # Is there something new that another process is about to name?
        self.pending = False
        self._base = bases.load(journal)
        self._base_identity = bases.identity_of(journal)
        self._order_identity = ""
        self._position = 0
        # Segment id → how much of it is named, by `order` or by us.
        self._named: dict[str, int] = {}
        # Writers of which something is named, or that the base knows; and those of them that have neither closed nor
        # been found dead, as far as that was looked at.
        self._met: set[str] = set(self._base.state.writers) if self._base is not None else set()
        self._running: set[str] = set(self._base.state.alive) if self._base is not None else set()
        # Segments that `order` names, and that were not found.
        self._unmet: set[str] = set()
        self._listed: list[tuple[SegmentName, Path]] = []
        self._own: dict[str, list[SegmentName]] = {}
        self._segments: dict[str, Segment] = {}
        self._files: dict[str, Segment] = {}

    def stood(self, segment: str) -> int:
        """How many bytes of a segment a base stands for: the server has proven to hold them."""
        found = self._base.segments.get(segment) if self._base is not None else None
        return found.length if found is not None else 0

    @property
    def blobs(self) -> frozenset[str]:
        """Contents that a base stands for."""
        return frozenset(self._base.blobs) if self._base is not None else frozenset()

    def segment(self, identity: str) -> Segment | None:
        """The segment with that id; None if it is not here (any more)."""
        if identity not in self._segments:
            for _, path in reversed(list_segments(self.path)):
                opened = self._open(path)
                if opened is not None and opened.id == identity:
                    break
        return self._segments.get(identity)

    def first_of_here(self) -> Segment | None:
        """The oldest segment that was written to this journal."""
        opened = (self._open(path) for _, path in self._listed)
        return next((segment for segment in opened if segment is not None and self.is_of_here(segment)), None)

    def is_of_here(self, segment: Segment) -> bool:
        """Was it written to this journal? `pull` brings those of others, which the server has already."""
        return segment.header.journal.hex() == self.id

    def follow(self) -> Iterator[Record]:
        """What is new since the last call: stretches and deaths, in their order; those that join come as one.

        Taken one by one, so that a long `order` is never in memory whole. Raises OSError, Restart.
        """
        waiting: Stretch | None = None
        for record in self._new():
            if isinstance(record, Stretch) and waiting is not None and _continues(waiting, record):
                waiting = Stretch(waiting.segment, waiting.start, record.end)
                continue
            if waiting is not None:
                yield waiting
            waiting = None
            if isinstance(record, Stretch):
                waiting = record
            else:
                yield record
        if waiting is not None:
            yield waiting

    # -- what order says, and what it does not ------------------------------------------------------------------------

    def _new(self) -> Iterator[Record]:
        self.pending = False
        if bases.exists(self.path) and bases.identity_of(self.path) != self._base_identity:
            raise Restart("another base stands for what was freed")
        self._list()
        order = Order(self.path)
        order.open(write=False)
        try:
            yield from self._recorded(order)
        finally:
            order.close()
        if self._has_new() or self._found_gone(everywhere=False):
            yield from self._sequenced()

    def _recorded(self, order: Order) -> Iterator[Record]:
        if not order.first:
            return
        self._order_identity = self._order_identity or order.identity
        if order.identity != self._order_identity or order.path.stat().st_size < self._position:
            raise Restart("order is another one than before")
        for record, position in order.read(self._position):
            self._position = position
            self._take(record)
            yield record

    def _take(self, record: Record) -> None:
        if isinstance(record, Death):
            self._running.discard(record.writer)
            return
        before = self._named.get(record.segment, 0)
        segment = self._segments.get(record.segment)
        if record.end <= before:
            return
        self._named[record.segment] = record.end
        if segment is None:
            # It is gone, or came after our listing.
            self._unmet.add(record.segment)
        else:
            self._meet(segment)

    def _meet(self, segment: Segment) -> None:
        """Something of its writer is named. If that had been found dead, it was wrong."""
        self._met.add(segment.writer)
        self._running.add(segment.writer)

    def _sequenced(self) -> Iterator[Record]:
        """Name what is not named, in `order` if that may be written."""
        turn = Turn(self.path / TURN)
        try:
            if not turn.take(_TURN_S):
                # Whoever has it names what is new.
                self.pending = True
                return
        except OSError:
            self.read_only = True
            yield from self._name(None)
            return
        try:
            order = Order(self.path)
            try:
                order.open(write=True)
            except PermissionError:
                self.read_only = True
                yield from self._name(None)
                return
            self.read_only = False
            try:
                # Somebody may have had the turn meanwhile. What follows is written before anybody else has it.
                records = [*self._recorded(order), *self._name(order)]
            finally:
                order.close()
        finally:
            turn.give_back()
        yield from records

    def _name(self, order: Order | None) -> Iterator[Record]:
        self._list()
        for name, path in self._listed:
            segment = self._open(path)
            if segment is None or _size(path) <= self._behind(segment) or not self._may_follow(name, segment):
                continue
            for start, end in self._stretches(segment):
                if name.writer not in self._met:
                    # Whoever died before this writer came is noted first: the run it began is over. Of writers
                    # elsewhere, too, when one of here takes over.
                    yield from self._deaths(order, everywhere=self.is_of_here(segment))
                yield self._note(order, Stretch(segment.id, start, end), stretch_payload(segment.id, start, end))
        yield from self._deaths(order, everywhere=False)

    def _note(self, order: Order | None, record: Record, payload: bytes) -> Record:
        if order is not None:
            start, end = order.put([payload])
            # Where locks do not work another process may name something meanwhile: then both are read again.
            if start == max(self._position, order.first):
                self._position = end
        self._take(record)
        return record

    def _behind(self, segment: Segment) -> int:
        return max(self._named.get(segment.id, 0), self.stood(segment.id), segment.first)

    def _stretches(self, segment: Segment) -> Iterator[tuple[int, int]]:
        """Runs of frames behind what is named; what is torn or damaged between them is left out."""
        position = self._behind(segment)
        try:
            yield from read_runs(segment, position)
        except OSError as error:
            self.troubles[segment.path.name] = str(error)
        else:
            self.troubles.pop(segment.path.name, None)

    def _may_follow(self, name: SegmentName, segment: Segment) -> bool:
        """Is all named that its writer wrote before? If not, that may be on its way still: wait a while."""
        if self._behind(segment) > segment.first or not self._misses(name, segment):
            self._waiting.pop(str(name), None)
            return True
        since = self._waiting.setdefault(str(name), monotonic())
        if monotonic() - since >= self._patience_s:
            return True
        self.pending = True
        return False

    def _misses(self, name: SegmentName, segment: Segment) -> bool:
        """Does the segment's first number say that something is missing before it, in the segments that are here?"""
        own = self._own[name.writer]
        for before in reversed(own[: bisect_left(own, name)]):
            opened = self._open(self.path / SEGMENTS / str(before))
            if opened is None:
                return True
            try:
                last = _last_event(opened, self._behind(opened))
            except (OSError, Damaged):
                return True
            expected = opened.header.first_seq if last is None else last[0] + 1
            if expected < segment.header.first_seq:
                return not self._was_freed(name.writer)
            if last is not None:
                return False
        return False

    def _was_freed(self, writer: str) -> bool:
        """Does a base stand for segments of that writer? Then numbers may be missing here for good."""
        return self._base is not None and writer in self._base.state.writers

    # -- is there anything? -------------------------------------------------------------------------------------------

    def _has_new(self) -> bool:
        return any(
            _size(path) > self._behind(segment) for _, path in self._listed if (segment := self._open(path)) is not None
        )

    def _list(self) -> None:
        """Look which segments there are, and open them: `order` names them by their ids, which only headers tell."""
        self._listed = list_segments(self.path)
        self._own = {}
        for name, path in self._listed:
            self._own.setdefault(name.writer, []).append(name)
            opened = self._open(path)
            if opened is not None and opened.id in self._unmet:
                self._unmet.discard(opened.id)
                self._meet(opened)

    def _found_gone(self, *, everywhere: bool) -> list[Death]:
        """Writers that have not closed, but hold their locks no longer, and how far they are named.

        Locks say nothing of writers elsewhere: those that `pull` brought, or for which a base stands. They are left
        out unless `everywhere` is asked for.
        """
        found = []
        for writer in sorted(self._running):
            own = self._own.get(writer)
            if own is None:
                # A base stands for all that it wrote.
                found += [Death(writer)] if everywhere else []
                continue
            # Of a writer that goes on in another segment, the last one may be empty still.
            segments = [self._open(self.path / SEGMENTS / str(name)) for name in own[-2:]]
            newest = [segment for segment in segments if segment is not None]
            if not everywhere and newest and not self.is_of_here(newest[-1]):
                continue
            if not self._is_gone(own[-1]) or any(map(self._may_go_on, newest)):
                continue
            try:
                ends = [_last_event(segment, _size(segment.path)) for segment in newest]
            except (OSError, Damaged) as error:
                # What cannot be read now might be its closing event.
                log.debug("%s: cannot tell how writer %s ended: %s", self.path, writer, error)
                continue
            if any(end is not None and end[1] == CLOSE for end in ends):
                self._running.discard(writer)
                continue
            last = segments[-1]
            found.append(Death(writer) if last is None else Death(writer, last.id, self._named.get(last.id, 0)))
        return found

    def _is_gone(self, name: SegmentName) -> bool:
        """Is the lock of a writer free, whose last segment is `name`?"""
        folder = self.path / SEGMENTS
        if probe(folder / lock_name(name.created_ns, name.writer)) is not Liveness.GONE:
            return False
        # It may have gone on in another segment, and closed, between our listing and our probing.
        return not (folder / str(SegmentName(name.created_ns, name.writer, name.n + 1))).exists()

    def _deaths(self, order: Order | None, *, everywhere: bool) -> Iterator[Record]:
        for death in self._found_gone(everywhere=everywhere):
            yield self._note(order, death, death_payload(death.writer, death.segment, death.end))

    def _may_go_on(self, segment: Segment) -> bool:
        """Are there whole frames that are not named yet?"""
        behind = self._behind(segment)
        return _size(segment.path) > behind and next(self._stretches(segment), None) is not None

    def _open(self, path: Path) -> Segment | None:
        opened = self._files.get(path.name)
        if opened is None:
            try:
                opened = open_segment(path)
            except FileNotFoundError:
                return None
            except (OSError, JournalError, ValueError) as error:
                self.troubles[path.name] = str(error)
                return None
            if opened is not None:
                self.troubles.pop(path.name, None)
                self._files[path.name] = opened
                self._segments.setdefault(opened.id, opened)
        return opened


# -- bytes ------------------------------------------------------------------------------------------------------------


def read_runs(segment: Segment, start: int, end: int | None = None) -> Iterator[tuple[int, int]]:
    """(start, end) of the runs of whole frames from byte `start` on; at most 4 MiB each, or one frame."""
    position = start
    with segment.path.open("rb") as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size if end is None else min(end, os.fstat(fd).st_size)
        while position < size:
            stop = position + whole_frames(read_at(fd, min(_CHUNK, size - position), position), segment.crcs)
            if stop > position:
                yield position, stop
                position = stop
                continue
            if size - position < HEAD.size:
                return
            # Damage, or not written yet: the slow way finds the next frame, if there is one.
            following = next((item for item in read(segment, position, size) if isinstance(item, Run)), None)
            if following is None:
                return
            position = following.start


def whole_frames(buffer: bytes | memoryview, crcs: LengthCrcs) -> int:
    """How many bytes at the start of `buffer` are whole frames, each checked."""
    size, position = len(buffer), 0
    view = memoryview(buffer)
    unpack, head, largest = HEAD.unpack_from, HEAD.size, MAX_PAYLOAD
    while position + head <= size:
        length, crc = unpack(buffer, position)
        end = position + head + length
        if length > largest or end > size or crc32(view[position + head : end], crcs[length]) != crc:
            break
        position = end
    return position


def frame_size(buffer: bytes, position: int) -> int:
    """The size that the frame at `position` says it has, in bytes; 0 if not even that is there."""
    if position + HEAD.size > len(buffer):
        return 0
    return HEAD.size + int(HEAD.unpack_from(buffer, position)[0])


def gaps_between(segment: Segment, start: int, end: int) -> list[tuple[int, int]] | None:
    """Which bytes of [start, end) hold no frame; None if not all of them are to be had now."""
    found: list[tuple[int, int]] = []
    position = start
    for item in read(segment, start, end):
        if isinstance(item, Gap):
            found.append((item.start, item.end))
        position = item.end
        if not isinstance(item, (Run, Gap)):
            # At `end` there is a frame: what leads to it and is none is a gap.
            found.append((item.start, item.end))
    return found if position == end else None


def _last_event(segment: Segment, size: int) -> tuple[int, int] | None:
    """(number, kind) of the last whole event in the first `size` bytes of a segment; None if it has none."""
    window = _TAIL_BYTES
    with segment.path.open("rb") as file:
        while True:
            start = max(segment.first, size - window)
            buffer = read_at(file.fileno(), size - start, start)
            position = 0
            found: tuple[int, int] | None = None
            while (position := find_frame(buffer, position, segment.crcs, decode_event)) >= 0:
                length = int(HEAD.unpack_from(buffer, position)[0])
                try:
                    found = decode_event(buffer[position + HEAD.size : position + HEAD.size + length])[:2]
                except ValueError as error:
                    raise Damaged(f"{segment.path.name} changes while it is read") from error
                position += HEAD.size + length
            if found is not None or start == segment.first or window > 2 * MAX_PAYLOAD:
                return found
            window *= 8


def _continues(first: Stretch, second: Stretch) -> bool:
    return first.segment == second.segment and first.end == second.start and second.end - first.start <= _MERGE_BYTES


def _size(path: Path) -> int:
    """The size of a regular file; 0 if it is gone, or is something that must not be opened."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0
