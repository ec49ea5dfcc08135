"""Folded lines in blocks of 1,000: points by column, log entries as JSON lines, and summaries for down-sampling.

A block ends where a thousand of indices ends, and earlier if its lines are long. It has a summary of the whole, and one
for each part of it that lies between two multiples of 50.

    index      0 .. 9999         10000 .. 10999    11000 .. 11999    12000 .. 12311
               a chunk           full              full              open: made anew with each request, until full
    lines      in an object      in a page         in a page         in a page, or if it is short, in the tree
    summary    in the tree: least, greatest, first and last value of each field, with their indices
    blocks     index page        the same for each thousand of a chunk
    parts      index page        in the page       the same for 50 points each: 20 parts in a block of 1,000

Why a thousand: a row and an index entry for each point cost ten times as much. Why they end at multiples of a
thousand, and parts at multiples of 50: then down-sampling may put whole blocks, or whole parts, together.

The open block is in memory with its experiment, so that a request of one point appends to it without reading it. It
is stored in the same commit as what it was made from. A full block is never written again; ten of them that fill a
multiple of 10,000 are moved to a chunk (`archive`). Rewinds change which points count, and not the lines.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec

from ...core.rewinds import History, Past
from ...core.sampling import LINES, PART, Extremes, extend, extremes
from ...core.state import Block as NewPoints
from ...core.state import Edits, LogLine
from ...core.times import utc_text
from ...projection.lines import joined as joined_blocks
from ...projection.lines import log_lines
from .columns import Points, Table, decode
from .contents import BlockEntry, Contents, Draft
from .summaries import decode_summaries, encode_summaries

LOGS: Final = "logs"
CHUNK_BLOCKS: Final = 10
"""Blocks of a chunk."""

# Pages that are read at once: full blocks have 20 KB, those of long lines 1 MiB.
_AHEAD: Final = 16
# Of a chunk, blocks are read together up to this size.
_TOGETHER_BYTES: Final = 1 << 20
_Place = tuple[int, int, int, int]
# Long lines fill a block before it has 1,000 of them, because a block is read and written as a whole.
_FULL_BYTES: Final = 1 << 20
# A block with no more than this stands in its entry in the tree.
_SHORT_BYTES: Final = 600

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Extremes)
_page: Final = msgspec.msgpack.Decoder(tuple[bytes, bytes])
_index: Final = msgspec.msgpack.Decoder(tuple[list[tuple[int, int, int, int]], bytes, bytes])


def series_of(metric: str) -> str:
    """Return the name under which a metric's lines are stored."""
    return f"points/{metric}"


def extremes_of(summary: bytes) -> Extremes:
    """Decode the summary of a block or chunk: the summary of each field, by its name."""
    return _decoder.decode(summary) if summary else {}


def summary_of(found: Extremes) -> bytes:
    """Encode the summary of a block or chunk."""
    return _encoder.encode(found) if found else b""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive lines of a series, from number `first` on, encoded; `parts` are encoded summaries of its parts."""

    series: str
    first: int
    count: int
    data: bytes
    parts: bytes

    def points(self) -> Points:
        """Return the points of a block of a metric."""
        return decode(self.data)

    def lines(self, start: int, stop: int) -> bytes:
        """Return the lines with numbers [start, stop) that the block has."""
        low, high = max(0, start - self.first), max(0, min(self.count, stop - self.first))
        if self.series != LOGS:
            return self.points().lines(self.first, low, high)
        lines = zlib.decompress(self.data)
        return lines if high - low == self.count else b"".join(lines.splitlines(keepends=True)[low:high])


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """What is in a chunk: (first line, count, offset, length in bytes) of each block, and encoded summaries.

    `blocks` are those of the blocks, `parts` those of the parts of all of them.
    """

    entries: list[tuple[int, int, int, int]]
    blocks: bytes
    parts: bytes

    def encoded(self) -> bytes:
        """Return the content of the index page."""
        return _encoder.encode((self.entries, self.blocks, self.parts))


def with_pages(contents: Contents, entries: Iterable[BlockEntry]) -> Iterator[tuple[BlockEntry, bytes]]:
    """Yield entries with their pages, of which a few are read at once: a page may be a round trip away."""
    rest = iter(entries)
    while some := list(islice(rest, _AHEAD)):
        pages = contents.pages_of([entry.page for entry in some if entry.page])
        for entry in some:
            yield entry, pages.pop(entry.page) if entry.page else entry.content


def index_of(contents: Contents, entry: BlockEntry) -> ChunkIndex:
    """Return what is in a chunk."""
    return index_in(contents.pages_of([entry.page])[entry.page])


def block_of(contents: Contents, series: str, entry: BlockEntry) -> Block:
    """Return a block that is in a page, or in its entry."""
    content = contents.pages_of([entry.page])[entry.page] if entry.page else entry.content
    return block_in(content, series, entry)


def index_in(page: bytes) -> ChunkIndex:
    """Return what is in a chunk, from its page."""
    return ChunkIndex(*_index.decode(page))


def block_in(page: bytes, series: str, entry: BlockEntry) -> Block:
    """Return the block that a page holds."""
    data, parts = _page.decode(page)
    return Block(series, entry.first, entry.count, data, parts)


def blocks_of(contents: Contents, series: str, start: int, end: int) -> Iterator[Block]:
    """Yield the blocks of a series that hold any of the lines [start, end), in their order, few in memory at a time."""
    for entry, page in with_pages(contents, contents.blocks(series, start, end)):
        if not entry.chunk:
            yield block_in(page, series, entry)
            continue
        wanted = [each for each in index_in(page).entries if each[0] < end and each[0] + each[1] > start]
        for group in _near(wanted):
            begin, behind = group[0][2], group[-1][2] + group[-1][3]
            content = b"".join(contents.object(entry.chunk, begin, behind))
            for first, count, offset, length in group:
                yield Block(series, first, count, content[offset - begin : offset - begin + length], b"")


def _near(blocks: Iterable[_Place]) -> Iterator[list[_Place]]:
    """Yield blocks of a chunk that are read together: neighbours, about _TOGETHER_BYTES."""
    group: list[_Place] = []
    for block in blocks:
        if group and block[2] + block[3] - group[0][2] > _TOGETHER_BYTES:
            yield group
            group = []
        group.append(block)
    if group:
        yield group


class OpenBlock:
    """The newest block of a series, to which lines are still added. Touched only under the experiment's lease.

    Summaries are of all points, also superseded ones; who reads leaves those out. `page` is where it is stored.
    """

    __slots__ = ("changed", "count", "extremes", "first", "full", "lines", "page", "parts", "size", "table")

    def __init__(self, first: int) -> None:
        self.first = first
        self.count = 0
        self.full = False
        # Points are in the table, log entries in the lines.
        self.table = Table()
        self.lines = bytearray()
        self.extremes: Extremes = {}
        self.parts: list[Extremes] = []
        self.page = ""
        # About how many bytes it has.
        self.size = 0
        # It differs from what the page holds.
        self.changed = False

    @classmethod
    def stored(cls, draft: Draft, series: str) -> OpenBlock:
        """Return the newest block that is stored; an empty one if there is none, or if that is full."""
        entry = draft.last_block(series)
        if entry is None or entry.full:
            return cls(0 if entry is None else entry.first + entry.count)
        block = cls(entry.first)
        found = block_of(draft, series, entry)
        block.count, block.page = entry.count, entry.page
        if series == LOGS:
            block.lines += zlib.decompress(found.data)
            block.size = len(block.lines)
        else:
            block.table = Table.of(found.points())
            block.size = len(found.data)
            block.extremes, block.parts = extremes_of(entry.summary), decode_summaries(found.parts)
        return block

    @property
    def room(self) -> int:
        """The number of short lines that still fit."""
        return LINES - self.first % LINES - self.count

    def add_logs(self, entries: list[LogLine]) -> None:
        """Append log entries."""
        lines = log_lines(entries)
        self.lines += lines
        self._added(len(entries), len(lines))

    def add_points(self, points: NewPoints) -> None:
        """Append points, and extend the summaries by them."""
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
        self.table.add(points.rows, points.times)
        self._added(len(points.rows), len(_encoder.encode(points.rows)))

    def _added(self, count: int, size: int) -> None:
        self.count += count
        self.size += size
        self.changed = True
        # The next block begins behind this one, wherever that is, and ends at the same multiple of a thousand as this
        # one would have.
        self.full = not self.room or self.size >= _FULL_BYTES

    def store(self, draft: Draft, series: str) -> None:
        """Store it in a page of its own, in place of the one that it had; a short one in its entry."""
        if self.page:
            draft.drop_page(self.page)
        # More is spent on bytes once it is full: an open one is made anew often.
        if series == LOGS:
            data, parts = zlib.compress(self.lines, 6 if self.full else 1), b""
        else:
            data = self.table.encode(deflate=self.full)
            parts = encode_summaries(self.parts, deflate=self.full)
        content = _encoder.encode((data, parts))
        # Thousands of metrics with a few points each would else be as many pages.
        self.page, kept = ("", content) if len(content) <= _SHORT_BYTES else (draft.page(content), b"")
        summary = summary_of(self.extremes)
        draft.put_block(series, BlockEntry(self.first, self.count, self.full, self.page, summary, content=kept))
        self.changed = False


OpenBlocks = dict[str, OpenBlock]


def open_block_of(draft: Draft, series: str, open_blocks: OpenBlocks) -> OpenBlock:
    """Return the newest block of a series: from memory, from the store, or a new one."""
    block = open_blocks.get(series)
    if block is None:
        block = open_blocks[series] = OpenBlock.stored(draft, series)
    return block


def add(draft: Draft, edits: Edits, open_blocks: OpenBlocks) -> set[str]:
    """Add the lines of `edits` to the blocks of their series, and store full blocks. The edits are cleared.

    `store_open` stores the others. Returns the series of which a range is full that makes a chunk.
    """
    filled: set[str] = set()
    if edits.logs:
        block, position = open_block_of(draft, LOGS, open_blocks), 0
        while position < len(edits.logs):
            block = _room(draft, LOGS, block, open_blocks)
            part = edits.logs[position : position + block.room]
            block.add_logs(part)
            position += len(part)
            _note_filled(LOGS, block, filled)
    for metric, blocks in edits.points.items():
        series = series_of(metric)
        block = open_block_of(draft, series, open_blocks)
        for points in _joined(blocks):
            position = 0
            while position < len(points.rows):
                block = _room(draft, series, block, open_blocks)
                piece = _slice(points, position, position + block.room)
                block.add_points(piece)
                position += len(piece.rows)
                _note_filled(series, block, filled)
    edits.clear()
    return filled


def _note_filled(series: str, block: OpenBlock, filled: set[str]) -> None:
    if block.full and (block.first + block.count) % (CHUNK_BLOCKS * LINES) == 0:
        filled.add(series)


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


def _joined(parts: list[NewPoints]) -> Iterator[NewPoints]:
    """Join points that came one by one or a few at a time: encoding them together is cheaper."""
    waiting: list[NewPoints] = []
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


def _slice(points: NewPoints, start: int, end: int) -> NewPoints:
    """Return points [start, end) of a batch, counted within it."""
    if start == 0 and end >= len(points.rows):
        return points
    times = points.times if isinstance(points.times, int) else points.times[start:end]
    return NewPoints(points.start + start, points.rows[start:end], times)


def history(contents: Contents) -> History:
    """Return the function by which the fold reads stored points again after a rewind."""

    def points(metric: str, start: int, end: int) -> Iterator[Past]:
        for block in blocks_of(contents, series_of(metric), start, end):
            low, high = max(0, start - block.first), min(block.count, end - block.first)
            found = block.points()
            times = found.times
            texts = [utc_text(times)] * (high - low) if isinstance(times, int) else map(utc_text, times[low:high])
            yield found.rows(low, high), list(texts)

    return points
