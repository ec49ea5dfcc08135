"""Bytes of a segment that a request brings, compared with those that are here: frames, gaps, differences. Pure.

What the bytes [offset, offset + n) of a request are is decided by the length L of the copy that is here:

    offset > L               refused (GAP), with L: the client goes on from there
    offset <= L < offset+n   [offset, L) is compared, [L, offset+n) is appended
    offset+n <= L            all of it is compared; nothing is stored, and the answer is L

Compared bytes must be equal. Three cases differ: bytes that never verified here may be replaced by bytes that do;
bytes that the client calls damaged say nothing against ours; anything else is a conflict, and the first bytes are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...core.frames import HEAD, Event, Header, LengthCrcs, decode_header, walk
from ...core.protocol import CONFLICT, TORN, Refused
from ...core.ranges import Range, holes, overlapping
from ...errors import Damaged, NewerFormat
from ...journal.mend import mend_header
from ...journal.reader import Stretch, decode_event
from .contents import SegmentRow

# Frames that are folded together, at most: between two such pieces a large request may be committed in part.
PIECE_BYTES: Final = 512 << 10


class Contradiction(Refused):
    """Other bytes than those of a request are stored at a place; `at` is where the frame begins."""

    def __init__(self, at: int) -> None:
        super().__init__(409, CONFLICT, "other bytes are stored there; the first are kept", offset=at)
        self.at = at


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


def differing(part: Part, ours: bytes) -> list[Range]:
    """Return the ranges of our bytes that never verified and that these replace; `ours` begins at the part's offset.

    Raises Contradiction or Refused (TORN) where others differ. Bytes that the client calls damaged are no evidence
    against bytes that verified here.
    """
    row, end = part.row, min(part.row.length, part.end)
    if part.offset >= end:
        return []
    # The usual case of a repeated request is equality, which one comparison of bytes decides; slicing copies, so it is
    # avoided where nothing is cut.
    theirs = part.data if len(part.data) == len(ours) else part.data[: len(ours)]
    unsure = overlapping(row.damaged, part.offset, end)
    if ours != theirs:
        for low, high in holes(sorted([*unsure, *part.damaged]), part.offset, end):
            a, b = ours[low - part.offset : high - part.offset], part.bytes(low, high)
            if a != b:
                _contradict(part, ours, low + _difference(a, b))
    return [
        (low, high)
        for low, high in unsure
        if part.bytes(low, high) != ours[low - part.offset : high - part.offset] or _verifies(part, low, high)
    ]


def _contradict(part: Part, ours: bytes, different: int) -> None:
    """Raise for bytes that differ from ours at `different`: Contradiction for another frame, TORN for no whole one.

    The frame around the difference decides. If theirs is a whole frame, two different events have one number. If it is
    not, the client's copy is damaged in a place that it has not noticed: with TORN it reads the place again.
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
    raise Contradiction(at)


def appended(part: Part) -> tuple[list[Stretch], list[Range]]:
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
            stretches += _frames(part, position, low)
        if high > low:
            gaps.append((low, high))
        position = max(position, high)
    return stretches, gaps


def mended(part: Part, start: int, end: int) -> list[Stretch]:
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
        stretches += _frames(part, low, high)
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
        return any(stretch.end > stretch.start for stretch in mended(part, start, end))
    except Refused:
        return False


def header_of(data: bytes, damaged: bool) -> tuple[Header, int, int]:
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


def _frames(part: Part, start: int, end: int) -> list[Stretch]:
    """Return the whole frames that fill [start, end), in pieces of about PIECE_BYTES.

    Raises Refused (TORN) where one is not whole.
    """
    pieces: list[Stretch] = []
    crcs = LengthCrcs(part.row.crc)
    position, size = start, PIECE_BYTES
    while position < end:
        events: list[Event] = []
        stop = min(end, position + size)
        # No copy of a small request.
        whole = stop - position == len(part.data)
        reached = walk(part.data if whole else part.bytes(position, stop), 0, crcs, decode_event, events) + position
        if reached == position:
            # No whole frame: a long one, or the end.
            if stop == end:
                raise Refused(422, TORN, f"there is no whole frame at byte {position}", offset=position)
            size *= 4
            continue
        pieces.append(Stretch(position, reached, events))
        position, size = reached, PIECE_BYTES
    return pieces


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
