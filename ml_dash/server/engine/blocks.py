"""Folded lines in blocks of 1,000: JSON lines ready to send, and summaries of points for down-sampling.

A block ends where a thousand of indices ends, and earlier if its lines are long. It has a summary of the whole, and one
for each part of it that lies between two multiples of 50.

    index      0 .. 999      1000 .. 1999      2000 .. 2311
    page       full          full              open: made anew with each request, until it is full
    lines      zlib          zlib              as they are
    summary    least, greatest, first and last value of each field, with their indices; in the tree
    parts      the same for 50 points each: 20 parts in a block of 1,000; in the page

Why a thousand: a row and an index entry for each point cost ten times as much. Why they end at multiples of a
thousand, and parts at multiples of 50: then down-sampling may put whole blocks, or whole parts, together.

The open block is in memory with its experiment, so that a request of one point appends to it without reading it. It
is stored in the same commit as what it was made from. A full block is never written again; rewinds change which
points count, and not the lines.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from ...core.rewinds import History, Past
from ...core.sampling import LINES, PART, Extremes, extend, extremes
from ...core.state import Block as Points
from ...core.state import Edits
from ...projection.lines import joined as joined_blocks
from ...projection.lines import log_lines, point_lines, read_points
from .contents import BlockEntry, Contents, Draft

LOGS: Final = "logs"
# Long lines fill a block before it has 1,000 of them, because a block is read and written as a whole.
_FULL_BYTES: Final = 1 << 20

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Extremes)
_part_decoder: Final = msgspec.msgpack.Decoder(list[Extremes])
_page: Final = msgspec.msgpack.Decoder(tuple[bool, bytes, bytes])


def series_of(metric: str) -> str:
    """Return the name under which a metric's lines are stored."""
    return f"points/{metric}"


def extremes_of(summary: bytes) -> Extremes:
    """Decode the summary of a block: the summary of each field, by its name."""
    return _decoder.decode(summary) if summary else {}


def parts_of(parts: bytes) -> list[Extremes]:
    """Decode the summaries of a block's parts, in their order."""
    return _part_decoder.decode(parts) if parts else []


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive lines of a series, from number `first` on; `parts` are encoded summaries of its parts."""

    first: int
    count: int
    lines: bytes
    parts: bytes


def blocks_of(contents: Contents, series: str, start: int, end: int) -> Iterator[Block]:
    """Yield the blocks of a series that hold any of the lines [start, end), in their order, one in memory at a time."""
    for entry in contents.blocks(series, start, end):
        packed, lines, parts = _page.decode(contents.pages_of([entry.page])[entry.page])
        yield Block(entry.first, entry.count, zlib.decompress(lines) if packed else lines, parts)


class OpenBlock:
    """The newest block of a series, to which lines are still added. Touched only under the experiment's lease.

    Summaries are of all points, also superseded ones; who reads leaves those out. `page` is where it is stored.
    """

    __slots__ = ("changed", "count", "extremes", "first", "full", "lines", "page", "parts")

    def __init__(self, first: int) -> None:
        self.first = first
        self.count = 0
        self.full = False
        self.lines = bytearray()
        self.extremes: Extremes = {}
        self.parts: list[Extremes] = []
        self.page = ""
        # It differs from what the page holds.
        self.changed = False

    @classmethod
    def stored(cls, draft: Draft, series: str) -> OpenBlock:
        """Return the newest block that is stored; an empty one if there is none."""
        entry = draft.last_block(series)
        if entry is None:
            return cls(0)
        block = cls(entry.first)
        stored = next(blocks_of(draft, series, entry.first, entry.first + 1))
        block.count, block.full, block.lines, block.page = entry.count, entry.full, bytearray(stored.lines), entry.page
        block.extremes, block.parts = extremes_of(entry.summary), parts_of(stored.parts)
        return block

    @property
    def room(self) -> int:
        """The number of short lines that still fit."""
        return LINES - self.first % LINES - self.count

    def add(self, lines: bytes, count: int) -> None:
        """Append `count` lines.

        Call `summarise` first where they are points: it counts from the lines that are there.
        """
        self.lines += lines
        self.count += count
        self.changed = True
        # The next block begins behind this one, wherever that is, and ends at the same multiple of a thousand as this
        # one would have.
        self.full = not self.room or len(self.lines) >= _FULL_BYTES

    def summarise(self, points: Points) -> None:
        """Extend the summaries by points whose lines are added next."""
        position = 0
        while position < len(points.rows):
            # A part ends at a multiple of PART of the index, and not after PART points: a block may begin anywhere.
            inside = (points.start + position) % PART
            if not inside or not self.parts:
                self.parts.append({})
            rows = points.rows[position : position + PART - inside]
            found = extremes(rows, points.start + position)
            extend(self.parts[-1], found)
            extend(self.extremes, found)
            position += len(rows)

    def store(self, draft: Draft, series: str) -> None:
        """Store it in a page of its own, in place of the one that it had."""
        if self.page:
            draft.drop_page(self.page)
        summary = _encoder.encode(self.extremes) if self.extremes else b""
        parts = _encoder.encode(self.parts) if self.parts else b""
        # Compressed once it is full, since an open one is made anew often.
        lines = zlib.compress(self.lines, 1) if self.full else bytes(self.lines)
        self.page = draft.page(_encoder.encode((self.full, lines, parts)))
        draft.put_block(series, BlockEntry(self.first, self.count, self.full, self.page, summary))
        self.changed = False


OpenBlocks = dict[str, OpenBlock]


def open_block_of(draft: Draft, series: str, open_blocks: OpenBlocks) -> OpenBlock:
    """Return the newest block of a series: from memory, from the store, or a new one."""
    block = open_blocks.get(series)
    if block is None:
        block = open_blocks[series] = OpenBlock.stored(draft, series)
    return block


def add(draft: Draft, edits: Edits, open_blocks: OpenBlocks) -> None:
    """Add the lines of `edits` to the blocks of their series, and store full blocks. The edits are cleared.

    `store_open` stores the others.
    """
    if edits.logs:
        block, position = open_block_of(draft, LOGS, open_blocks), 0
        while position < len(edits.logs):
            block = _room(draft, LOGS, block, open_blocks)
            part = edits.logs[position : position + block.room]
            block.add(log_lines(part), len(part))
            position += len(part)
    for metric, blocks in edits.points.items():
        series = series_of(metric)
        block = open_block_of(draft, series, open_blocks)
        for points in _joined(blocks):
            position = 0
            while position < len(points.rows):
                block = _room(draft, series, block, open_blocks)
                piece = _slice(points, position, position + block.room)
                block.summarise(piece)
                block.add(point_lines(piece), len(piece.rows))
                position += len(piece.rows)
    edits.clear()


def store_open(draft: Draft, open_blocks: OpenBlocks) -> None:
    """Store the blocks that have changed."""
    for series, block in open_blocks.items():
        if block.changed:
            block.store(draft, series)


def _room(draft: Draft, series: str, block: OpenBlock, open_blocks: OpenBlocks) -> OpenBlock:
    """Return the block itself, or, if it is full, a new one behind it, which takes its place in memory."""
    if not block.full:
        return block
    if block.changed:
        block.store(draft, series)
    new = open_blocks[series] = OpenBlock(block.first + block.count)
    return new


def _joined(parts: list[Points]) -> Iterator[Points]:
    """Join points that came one by one or a few at a time: encoding them together is cheaper."""
    waiting: list[Points] = []
    for part in parts:
        # A batch with one time is encoded fast as it is; joining would give each of its points a time of its own.
        if isinstance(part.times, int) and len(part.rows) >= LINES // 10:
            if waiting:
                yield joined_blocks(waiting)
                waiting = []
            yield part
        else:
            waiting.append(part)
    if waiting:
        yield joined_blocks(waiting)


def _slice(points: Points, start: int, end: int) -> Points:
    """Return points [start, end) of a batch, counted within it."""
    if start == 0 and end >= len(points.rows):
        return points
    times = points.times if isinstance(points.times, int) else points.times[start:end]
    return Points(points.start + start, points.rows[start:end], times)


def history(contents: Contents) -> History:
    """Return the function by which the fold reads stored points again after a rewind."""

    def points(metric: str, start: int, end: int) -> Iterator[Past]:
        for block in blocks_of(contents, series_of(metric), start, end):
            first, lines = block.first, block.lines
            if first < start or first + block.count > end:
                low, high = max(start, first), min(end, first + block.count)
                lines, first = b"\n".join(lines.splitlines()[low - first : high - first]), low
            yield read_points(lines, first)

    return points
