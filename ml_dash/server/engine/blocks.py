"""Folded lines in blocks of 1,000: JSON lines ready to send, and summaries of points for down-sampling.

A block ends where a thousand of indices ends, and earlier if its lines are long. It has a summary of the whole, and one
for each part of it that lies between two multiples of 50.

    index      0 .. 999      1000 .. 1999      2000 .. 2311
    row        full          full              open: rewritten with each request, until it is full
    lines      zlib          zlib              as they are
    summary    least, greatest, first and last value of each field, with their indices
    parts      the same for 50 points each: 20 parts in a row that holds 1,000

Why a thousand: a row and an index entry for each point cost ten times as much. Why they end at multiples of a
thousand, and parts at multiples of 50: then down-sampling may put whole blocks, or whole parts, together.

The open block is in memory with its experiment, so that a request of one point appends to it without reading it. It
is stored in the same transaction as what it was made from. A full block is never written again; rewinds change which
points count, and not the lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from ...core.rewinds import History, Past
from ...core.sampling import LINES, PART, Extremes, extend, extremes
from ...core.state import FOLD_VERSION, Edits
from ...core.state import Block as Points
from ...projection.lines import joined as joined_blocks
from ...projection.lines import log_lines, point_lines, read_points
from ..stores import Block, Read

TABLES_VERSION: Final = 100 * FOLD_VERSION + 1
"""Version of the code that makes rows and blocks: those of another version are folded anew."""

LOGS: Final = "logs"
# Long lines fill a block before it has 1,000 of them, because a block is read and written as a whole.
_FULL_BYTES: Final = 1 << 20

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Extremes)
_part_decoder: Final = msgspec.msgpack.Decoder(list[Extremes])


def series_of(metric: str) -> str:
    """Return the name under which a metric's lines are stored."""
    return f"points/{metric}"


def extremes_of(summary: bytes) -> Extremes:
    """Decode the summary of a block: the summary of each field, by its name."""
    return _decoder.decode(summary) if summary else {}


def parts_of(parts: bytes) -> list[Extremes]:
    """Decode the summaries of a block's parts, in their order."""
    return _part_decoder.decode(parts) if parts else []


class OpenBlock:
    """The newest block of a series, to which lines are still added. Touched only while writing (`Ingest.writing`).

    Summaries are of all points, also superseded ones; who reads leaves those out.
    """

    __slots__ = ("count", "extremes", "first", "full", "lines", "parts")

    def __init__(self, first: int) -> None:
        self.first = first
        self.count = 0
        self.full = False
        self.lines = bytearray()
        self.extremes: Extremes = {}
        self.parts: list[Extremes] = []

    @classmethod
    def stored(cls, row: Block) -> OpenBlock:
        """Return the open block that a stored row holds."""
        block = cls(row.first)
        block.count, block.full, block.lines = row.count, row.packed, bytearray(row.lines)
        block.extremes, block.parts = extremes_of(row.summary), parts_of(row.parts)
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

    def row(self, series: str) -> Block:
        """Return the row to store."""
        summary = _encoder.encode(self.extremes) if self.extremes else b""
        parts = _encoder.encode(self.parts) if self.parts else b""
        return Block(series, self.first, self.count, self.full, bytes(self.lines), summary, parts)


OpenBlocks = dict[str, OpenBlock]


def open_block_of(tx: Read, ns: str, experiment: str, series: str, open_blocks: OpenBlocks) -> OpenBlock:
    """Return the newest block of a series: from memory, from the store, or a new one."""
    block = open_blocks.get(series)
    if block is None:
        row = tx.last_block(ns, experiment, series)
        block = open_blocks[series] = OpenBlock(0) if row is None else OpenBlock.stored(row)
    return block


def add(tx: Read, ns: str, experiment: str, edits: Edits, open_blocks: OpenBlocks) -> list[Block]:
    """Add the lines of `edits` to the blocks of their series; return the rows to store. The edits are cleared."""
    changed: list[Block] = []
    if edits.logs:
        block, position = open_block_of(tx, ns, experiment, LOGS, open_blocks), 0
        while position < len(edits.logs):
            block = _room(LOGS, block, open_blocks)
            part = edits.logs[position : position + block.room]
            block.add(log_lines(part), len(part))
            position += len(part)
            if block.full:
                changed.append(block.row(LOGS))
        if not block.full:
            changed.append(block.row(LOGS))
    for metric, blocks in edits.points.items():
        series = series_of(metric)
        block = open_block_of(tx, ns, experiment, series, open_blocks)
        for points in _joined(blocks):
            position = 0
            while position < len(points.rows):
                block = _room(series, block, open_blocks)
                piece = _slice(points, position, position + block.room)
                block.summarise(piece)
                block.add(point_lines(piece), len(piece.rows))
                position += len(piece.rows)
                if block.full:
                    changed.append(block.row(series))
        if not block.full:
            changed.append(block.row(series))
    edits.clear()
    return changed


def _room(series: str, block: OpenBlock, open_blocks: OpenBlocks) -> OpenBlock:
    """Return the block itself, or, if it is full, a new one behind it, which takes its place in memory."""
    if not block.full:
        return block
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


def history(tx: Read, ns: str, experiment: str) -> History:
    """Return the function by which the fold reads stored points again after a rewind."""

    def points(metric: str, start: int, end: int) -> Iterator[Past]:
        for block in tx.blocks(ns, experiment, series_of(metric), start, end):
            first, lines = block.first, block.lines
            if first < start or first + block.count > end:
                low, high = max(start, first), min(end, first + block.count)
                lines, first = b"\n".join(lines.splitlines()[low - first : high - first]), low
            yield read_points(lines, first)

    return points
