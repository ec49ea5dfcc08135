"""Folded lines in blocks of 1,000: ready JSON lines, and for points summaries by which they are down-sampled.

A block ends where a thousand of indices ends, and earlier if its lines are long. It has a summary of the whole, and one
for each part of it that lies between two multiples of 50.
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
"""What made the rows and blocks of an experiment: those of another version are folded anew."""

LOGS: Final = "logs"
# It is read and written as a whole.
_FULL_BYTES: Final = 1 << 20

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Extremes)
_part_decoder: Final = msgspec.msgpack.Decoder(list[Extremes])


def series_of(metric: str) -> str:
    """The name under which a metric's lines are kept."""
    return f"points/{metric}"


def extremes_of(summary: bytes) -> Extremes:
    """The summary of a block, field by field."""
    return _decoder.decode(summary) if summary else {}


def parts_of(parts: bytes) -> list[Extremes]:
    """The summaries of a block's parts, in their order."""
    return _part_decoder.decode(parts) if parts else []


class Tail:
    """The newest block of a series, which later lines are added to."""

    __slots__ = ("count", "extremes", "first", "full", "lines", "parts")

    def __init__(self, first: int) -> None:
        self.first = first
        self.count = 0
        self.full = False
        self.lines = bytearray()
        self.extremes: Extremes = {}
        self.parts: list[Extremes] = []

    @classmethod
    def stored(cls, block: Block) -> Tail:
        """The tail that a stored block is."""
        tail = cls(block.first)
        tail.count, tail.full, tail.lines = block.count, block.packed, bytearray(block.lines)
        tail.extremes, tail.parts = extremes_of(block.summary), parts_of(block.parts)
        return tail

    @property
    def room(self) -> int:
        """How many lines it takes, if they are short."""
        return LINES - self.first % LINES - self.count

    def add(self, lines: bytes, count: int) -> None:
        """Put lines behind those that are there."""
        self.lines += lines
        self.count += count
        self.full = not self.room or len(self.lines) >= _FULL_BYTES

    def summarise(self, points: Points) -> None:
        """Take points into the summaries that are about to be added."""
        position = 0
        while position < len(points.rows):
            inside = (points.start + position) % PART
            if not inside or not self.parts:
                self.parts.append({})
            rows = points.rows[position : position + PART - inside]
            found = extremes(rows, points.start + position)
            extend(self.parts[-1], found)
            extend(self.extremes, found)
            position += len(rows)

    def block(self, series: str) -> Block:
        """What is stored of it."""
        summary = _encoder.encode(self.extremes) if self.extremes else b""
        parts = _encoder.encode(self.parts) if self.parts else b""
        return Block(series, self.first, self.count, self.full, bytes(self.lines), summary, parts)


Tails = dict[str, Tail]


def tail_of(tx: Read, ns: str, experiment: str, series: str, tails: Tails) -> Tail:
    """The newest block of a series: known, stored, or a new one."""
    tail = tails.get(series)
    if tail is None:
        found = tx.last_block(ns, experiment, series)
        tail = tails[series] = Tail(0) if found is None else Tail.stored(found)
    return tail


def add(tx: Read, ns: str, experiment: str, edits: Edits, tails: Tails) -> list[Block]:
    """The blocks that the lines of some edits fill or begin; the edits are cleared."""
    changed: list[Block] = []
    if edits.logs:
        tail, position = tail_of(tx, ns, experiment, LOGS, tails), 0
        while position < len(edits.logs):
            tail = _room(LOGS, tail, tails)
            part = edits.logs[position : position + tail.room]
            tail.add(log_lines(part), len(part))
            position += len(part)
            if tail.full:
                changed.append(tail.block(LOGS))
        if not tail.full:
            changed.append(tail.block(LOGS))
    for metric, blocks in edits.points.items():
        series = series_of(metric)
        tail = tail_of(tx, ns, experiment, series, tails)
        for points in _joined(blocks):
            position = 0
            while position < len(points.rows):
                tail = _room(series, tail, tails)
                piece = _slice(points, position, position + tail.room)
                tail.summarise(piece)
                tail.add(point_lines(piece), len(piece.rows))
                position += len(piece.rows)
                if tail.full:
                    changed.append(tail.block(series))
        if not tail.full:
            changed.append(tail.block(series))
    edits.clear()
    return changed


def _room(series: str, tail: Tail, tails: Tails) -> Tail:
    if not tail.full:
        return tail
    new = tails[series] = Tail(tail.first + tail.count)
    return new


def _joined(parts: list[Points]) -> Iterator[Points]:
    """Single points come one by one or in short runs; encoding them together is cheaper."""
    waiting: list[Points] = []
    for part in parts:
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
    if start == 0 and end >= len(points.rows):
        return points
    times = points.times if isinstance(points.times, int) else points.times[start:end]
    return Points(points.start + start, points.rows[start:end], times)


def history(tx: Read, ns: str, experiment: str) -> History:
    """What the fold asks where a rewind has hit something: points that are stored."""

    def points(metric: str, start: int, end: int) -> Iterator[Past]:
        for block in tx.blocks(ns, experiment, series_of(metric), start, end):
            first, lines = block.first, block.lines
            if first < start or first + block.count > end:
                low, high = max(start, first), min(end, first + block.count)
                lines, first = b"\n".join(lines.splitlines()[low - first : high - first]), low
            yield read_points(lines, first)

    return points
