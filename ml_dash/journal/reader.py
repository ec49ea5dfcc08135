"""The reader of segments: from any position; frames, gaps, and a torn end as opposed to damage.

Only a scan of checked frames says what a segment holds. At its end anything odd means "not yet": a frame may be on its
way. It is damage only once a later frame verifies. Damage costs the frames that it touches: the reader continues at the
next offset at which length, checksum and number are right.

What is at a position, and what the reader makes of it:

    frames that hold            Stretch
    bytes, then a frame         Gap: damage; what is behind it counts
    bytes, then the end         Tail: a frame on its way, or torn, or damage at the very end; nobody can tell yet

The three cover every byte from the start of the reading to its end, in order, without overlap, unless the file is cut
meanwhile. Reading changes nothing: what looks torn may be a file system that shows the size before the bytes.

A frame is found by its checksum, which starts from the header's: so bytes of another segment that turn up in this one
are not taken for frames. Time is linear in the bytes read, except where damage holds many places that look like a
frame. Memory, besides the events of one chunk, is bounded by a chunk, or by two of the largest frames while searching.

Functions, no state: any number of threads and processes may read a segment while its writer appends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgspec

from ..core.frames import (
    HEAD,
    MAX_PAYLOAD,
    Event,
    Header,
    LengthCrcs,
    decode_header,
    find_frame,
    header_size,
    might_grow,
    walk,
)
from ..core.limits import LATEST_NS
from ..core.ranges import Range
from ..disk.durable import blocks, read_at
from ..errors import Damaged, NewerFormat
from .mend import mend_header
from .segment import SegmentName, list_segments, parse_name

# Bytes read at once: enough to make calls rare, and little enough that decoding a chunk does not hold others up for
# long.
CHUNK_BYTES: Final = 512 << 10
_WALK_BYTES: Final = 4 << 20
# Bytes before the end in which the last frame is looked for first.
_TAIL_BYTES: Final = 64 << 10
_LARGEST_FRAME_BYTES: Final = HEAD.size + MAX_PAYLOAD
# Bytes; real headers have about 500 at most (two names of at most 200 bytes each).
_LARGEST_HEADER_BYTES: Final = 8 << 10

# The types are checked while decoding: a payload that is not (int, int, int, anything) is no frame, whatever its
# checksum.
decode_event: Final[Callable[[bytes], Event]] = msgspec.msgpack.Decoder(tuple[int, int, int, Any]).decode
decode_head: Final[Callable[[bytes], Event]] = msgspec.msgpack.Decoder(tuple[int, int, int, msgspec.Raw]).decode
"""As `decode_event`, with the body left as it is: for readers that need few of them."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Whole frames without a gap: bytes [start, end) of a segment, and the events in them."""

    start: int
    end: int
    events: list[Event]


@dataclass(frozen=True, slots=True)
class Gap:
    """Damage: bytes [start, end) of a segment that hold no frame although later ones do."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Tail:
    """Bytes [start, end) at the end of a segment that are not a whole frame: on their way, or torn by a crash."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment file whose header was read and checked, or mended if it was `damaged`.

    `first` is the offset of the first frame; checksums of frames begin with the header's (`crcs`).
    """

    path: Path
    name: SegmentName
    header: Header
    first: int
    crcs: LengthCrcs
    damaged: bool = False

    @property
    def id(self) -> str:
        """The segment's random id, in hex."""
        return self.header.segment.hex()

    @property
    def writer(self) -> str:
        """The writer's id, in hex."""
        return self.header.writer.hex()


def open_segment(path: Path) -> Segment | None:
    """Read the header of the segment at `path`; None if it is not complete yet.

    Raises Damaged, NewerFormat, OSError.
    """
    name = parse_name(path.name)
    if name is None:
        raise Damaged(f"{path.name} is not the name of a segment")
    # Nearly always one read. A size that is nonsense costs at most 64 KiB: it has two bytes.
    with path.open("rb") as file:
        start = file.read(4096)
        size = header_size(start)
        if size > len(start):
            start += file.read(size - len(start))
    try:
        header, first, crc = decode_header(start)
    except NewerFormat as error:
        # Its checksum holds, so it is newer and not damaged: nothing is mended, and no frame is guessed at.
        raise NewerFormat(f"segment {path.name}: {error.message}", hint=error.hint) from None
    except Damaged as error:
        return _mended(path, name, size, error)
    return Segment(path, name, header, first, LengthCrcs(crc))


def _mended(path: Path, name: SegmentName, size: int, error: Damaged) -> Segment | None:
    """Return a segment with its header mended; None if it is not complete. Raises Damaged, OSError."""
    with path.open("rb") as file:
        # With the first frame, whose checksum proves which header is the right one.
        start = file.read(_LARGEST_HEADER_BYTES + _LARGEST_FRAME_BYTES)
    mended = mend_header(start)
    if mended is not None:
        header, first, crc = decode_header(mended)
        return Segment(path, name, header, first, LengthCrcs(crc), damaged=True)
    if not size or len(start) < size:
        # Not complete yet, or its writer was killed while writing it.
        return None
    raise Damaged(f"segment {path.name}: {error.message}")


def read(
    segment: Segment,
    start: int,
    end: int | None = None,
    chunk: int = CHUNK_BYTES,
    decode: Callable[[bytes], Event] = decode_event,
) -> Iterator[Stretch | Gap | Tail]:
    """Yield stretches and gaps of a segment from byte `start` on, in order; at last a Tail if bytes are left over.

    With `end`, nothing at or after that byte is read. Memory is bounded by `chunk` bytes or one frame. Raises OSError.
    """
    with segment.path.open("rb") as file:
        fd = file.fileno()
        # Fixed at the beginning. What a living writer appends meanwhile is for the next reading.
        size = os.fstat(fd).st_size if end is None else min(os.fstat(fd).st_size, end)
        buffer, base, position = b"", start, start
        while position < size:
            offset = position - base
            events: list[Event] = []
            # All whole frames in the buffer, as one stretch: few items, however many events.
            stop = walk(buffer, offset, segment.crcs, decode, events)
            if stop > offset:
                yield Stretch(position, base + stop, events)
                position = base + stop
                continue
            left, reach = len(buffer) - offset, min(size - position, _LARGEST_FRAME_BYTES)
            if left < reach:
                # A frame may go on after this buffer: read a chunk from its start, then as far as a frame can reach.
                # Read the whole of a largest frame only where a chunk was not enough: most frames have some fifty
                # bytes.
                wanted = min(size - position, chunk)
                longer = read_at(fd, wanted if left < wanted else reach, position)
                if len(longer) <= left:
                    # The file has become shorter than it was.
                    return
                buffer, base = longer, position
                continue
            # As much as any frame can have is in the buffer, and it does not hold: it is none. Search from the next
            # byte.
            offset = find_frame(buffer, offset + 1, segment.crcs, decode_event)
            following = base + offset if offset >= 0 else _search(fd, segment, base + len(buffer), position, size)
            if following < 0:
                yield Tail(position, size)
                return
            yield Gap(position, following)
            position = following


def _search(fd: int, segment: Segment, searched: int, position: int, size: int) -> int:
    """Return the offset of the next frame after `position`, none of which ends before `searched`; or -1.

    Buffers overlap by one frame's largest size, so that no frame is missed between two of them.
    """
    base = max(position + 1, searched - _LARGEST_FRAME_BYTES + 1)
    # Damage may be longer than any buffer. Each round reads two frames' worth, and goes back by less than one.
    while searched < size:
        buffer = read_at(fd, min(2 * _LARGEST_FRAME_BYTES, size - base), base)
        at = find_frame(buffer, 0, segment.crcs, decode_event)
        if at >= 0:
            return base + at
        if not buffer:
            return -1
        searched = base + len(buffer)
        base = max(base + 1, searched - _LARGEST_FRAME_BYTES + 1)
    return -1


def is_partial(segment: Segment, tail: Tail) -> bool:
    """True if the bytes of a tail look like the start of a frame (a torn write), and not like damage."""
    with segment.path.open("rb") as file:
        buffer = read_at(file.fileno(), min(tail.end - tail.start, HEAD.size + MAX_PAYLOAD), tail.start)
    return might_grow(buffer, 0)


def is_empty(segment: Segment, tail: Tail) -> bool:
    """True if all bytes of a tail are zero."""
    return not any(block.strip(b"\0") for block in blocks(segment.path, tail.start, tail.end))


def newest_time_ns(journal: Path, known: dict[str, int]) -> int:
    """Return the newest event time in a journal (ns since the epoch), at a cost that does not grow with the journal.

    `known` maps segment file names to sizes that a checkpoint covers. Of other segments only the last frames are read:
    a writer's times never decrease.
    """
    # A new writer starts after this time: see `Writer`. Only the last segment of each writer is looked at.
    newest = 0
    latest: dict[str, tuple[SegmentName, Path]] = {}
    for name, path in list_segments(journal):
        if name.writer not in latest or name > latest[name.writer][0]:
            latest[name.writer] = (name, path)
    for name, path in latest.values():
        # The name alone, where the file cannot be read: no event in it is earlier.
        newest = max(newest, min(name.created_ns, LATEST_NS))
        try:
            if path.stat().st_size != known.get(path.name, -1):
                # No clock shows a time beyond the limit: it was made up, and would leave no room for later ones.
                newest = max(newest, min(_last_time_ns(path), LATEST_NS))
        except (OSError, Damaged):
            continue
    return newest


def _last_time_ns(path: Path) -> int:
    """Return the time of the last event in a segment; 0 if there is none. Raises OSError, Damaged."""
    segment = open_segment(path)
    if segment is None:
        return 0
    return max((event[2] for event in _at_end(segment, path.stat().st_size)[0]), default=0)


def last_event(segment: Segment, size: int) -> tuple[int, int] | None:
    """Return (number, kind) of the last whole event in the first `size` bytes of a segment; None if there is none."""
    events, _ = _at_end(segment, size)
    return events[-1][:2] if events else None


def last_frame_end(segment: Segment, size: int) -> int:
    """Return the offset behind the last whole frame in the first `size` bytes of a segment."""
    return _at_end(segment, size)[1]


def _at_end(segment: Segment, size: int) -> tuple[list[Event], int]:
    """Return the last events in the first `size` bytes of a segment (at least one, if any), and the offset behind."""
    # From the end backwards: 64 KiB, 512 KiB, 4 MiB. The last of these holds at least one of the largest frames, unless
    # the end is damaged.
    window = _TAIL_BYTES
    with segment.path.open("rb") as file:
        while True:
            start = max(segment.first, size - window)
            events, end = _frames_within(read_at(file.fileno(), size - start, start), segment.crcs)
            if events or start == segment.first or window > 2 * MAX_PAYLOAD:
                return events, start + end if events else segment.first
            window *= 8


def _frames_within(buffer: bytes, crcs: LengthCrcs) -> tuple[list[Event], int]:
    """Return the events of whole frames anywhere in a buffer, and the offset behind the last one."""
    found: list[Event] = []
    position = end = 0
    while (position := find_frame(buffer, position, crcs, decode_event)) >= 0:
        position = end = walk(buffer, position, crcs, decode_event, found)
    return found, end


# -- frames that are checked, and not decoded -------------------------------------------------------------------------


def read_stretches(segment: Segment, start: int, end: int | None = None) -> Iterator[Range]:
    """Yield (start, end) of the stretches of whole frames from byte `start` on; at most 4 MiB each, or one frame.

    Frames are checked but not decoded. Raises OSError.
    """
    position = start
    with segment.path.open("rb") as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size if end is None else min(end, os.fstat(fd).st_size)
        while position < size:
            # A frame that is cut off by the end of this buffer comes at the start of the next one, since 4 MiB hold any
            # frame.
            stop = position + whole_frames(read_at(fd, min(_WALK_BYTES, size - position), position), segment.crcs)
            if stop > position:
                yield position, stop
                position = stop
                continue
            if size - position < HEAD.size:
                return
            # Damage, or not written yet: the slow way finds the next frame, if there is one.
            following = next((item for item in read(segment, position, size) if isinstance(item, Stretch)), None)
            if following is None:
                return
            position = following.start


def whole_frames(buffer: bytes | memoryview, crcs: LengthCrcs) -> int:
    """Return how many bytes at the start of `buffer` are whole frames, each checked."""
    size, position = len(buffer), 0
    # Slices of a view copy nothing. Local names save a look-up each, in what runs for every frame that is sent.
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
    """Return the size in bytes that the frame at `position` declares; 0 if its header is not complete."""
    if position + HEAD.size > len(buffer):
        return 0
    return HEAD.size + int(HEAD.unpack_from(buffer, position)[0])


# -- frames for people -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame in a segment: `offset` and `size` in bytes, including the frame's header."""

    offset: int
    size: int
    seq: int
    kind: int
    time_ns: int
    body: Any


def scan(path: Path) -> Iterator[Frame | Gap | Tail]:
    """Yield every frame of a segment with its offset, and gaps and tail.

    Raises Damaged or NewerFormat for the header.
    """
    segment = open_segment(path)
    if segment is None:
        yield Tail(0, path.stat().st_size)
        return
    for item in read(segment, segment.first):
        if not isinstance(item, Stretch):
            yield item
            continue
        with path.open("rb") as file:
            buffer = read_at(file.fileno(), item.end - item.start, item.start)
        position = 0
        for seq, kind, time_ns, body in item.events:
            length = int(HEAD.unpack_from(buffer, position)[0]) + HEAD.size
            yield Frame(item.start + position, length, seq, kind, time_ns, body)
            position += length
