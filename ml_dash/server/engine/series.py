"""Down-sample a metric from stored blocks: what `core.sampling` shows of its points, with few blocks opened.

A request for about n points of [start, end) takes a unit: one point, or a stretch of 50, 1,000, 10,000 or 100,000
(`Sampling.unit`). Summaries of stretches are stored as a pyramid, so of each stretch only the summary is read: ten
million points cost a thousand summaries and no lines, and so do a hundred million.

    100,000    level       in the tree         made once ten chunks are full
     10,000    chunk       in the tree
      1,000    block       in the tree, or in the index page of its chunk
         50    part        in the page of its block, or in that index page

What lies above the newest full stretch of a unit is read from the one below. Lines are opened where a summary does not
say enough: at the two ends of the range, and where points are left out (superseded by a rewind), because a least value
may belong to a point that is not current.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from ...core.ranges import Range, holes
from ...core.records import series_name
from ...core.sampling import LINES, PART, Extremes, Sampling
from .blocks import CHUNK_BLOCKS, ChunkIndex, block_in, blocks_of, extremes_of, index_in, series_of, with_pages
from .contents import BlockEntry, Contents
from .summaries import decode_summaries

_CHUNK = CHUNK_BLOCKS * LINES
LEVEL = 10 * _CHUNK
"""Lines of the highest stretches."""

_Whole = Callable[[int, int], bool]
"""whole(low, high): all points of [low, high) are wanted."""
_Summary = tuple[int, int, Extremes]


def sample(
    contents: Contents,
    metric: str,
    *,
    start: int,
    end: int,
    points: int,
    field: str | None,
    without: Sequence[Range] = (),
) -> dict[str, dict[str, Any]]:
    """Return about `points` of the points [start, end) of each series: {name: {"index", "x", "value", "count"}}.

    Indices in the ranges `without` are left out.
    """
    sampling = Sampling(start, end, points, field)
    series = series_of(metric)

    def wanted(low: int, high: int) -> list[Range]:
        return list(holes(without, max(low, start), min(high, end)))

    def add_lines(low: int, high: int) -> None:
        for block in blocks_of(contents, series, low, high):
            found = block.points()
            for first, stop in sampling.pieces(max(low, block.first), min(high, block.first + block.count)):
                sampling.add(first, found.extremes(block.first, first - block.first, stop - block.first, field))

    if sampling.unit < PART:
        for low, high in wanted(start, end):
            add_lines(low, high)
    else:
        whole: _Whole = lambda low, high: wanted(low, high) == [(low, high)]  # noqa: E731 - two words for the reader
        for low, high, summary in _summaries(contents, series, start, end, sampling.unit, whole):
            parts = wanted(low, high)
            if parts == [(low, high)]:
                sampling.add(low, summary)
            else:
                # At the ends of the range, or beside what is left out: only a part of it counts.
                for part in parts:
                    add_lines(*part)
    return {series_name(metric, name): shown for name, shown in sampling.series().items()}


def _summaries(contents: Contents, series: str, start: int, end: int, unit: int, whole: _Whole) -> Iterator[_Summary]:
    """Yield (first index, index behind the last, summary) of stretches that hold [start, end), in order.

    Those of `unit` where they are stored and wholly wanted; else shorter ones.
    """
    position = start
    if unit >= LEVEL:
        for first, count, summary in contents.levels(series, start, end):
            if whole(first, first + count):
                yield from _below(contents, series, position, first, unit, whole)
                yield first, first + count, extremes_of(summary)
                position = first + count
    yield from _below(contents, series, position, end, unit, whole)


def _below(contents: Contents, series: str, start: int, end: int, unit: int, whole: _Whole) -> Iterator[_Summary]:
    """Yield summaries of chunks, of blocks, or of parts."""

    def says_enough(entry: BlockEntry) -> bool:
        """True if the summary in the tree will do; else those in its page are needed."""
        return unit >= _CHUNK and whole(entry.first, entry.first + entry.count) if entry.chunk else unit >= LINES

    entries = contents.blocks(series, start, end) if start < end else iter(())
    for enough, group in groupby((entry for entry in entries if entry.first + entry.count > start), says_enough):
        if enough:
            for entry in group:
                # It ends at a multiple of its length, so it does not reach into another unit.
                yield entry.first, entry.first + entry.count, extremes_of(entry.summary)
            continue
        for entry, page in with_pages(contents, group):
            for summary in _of_page(series, entry, page, unit):
                if summary[0] < end and summary[1] > start:
                    yield summary


def _of_page(series: str, entry: BlockEntry, page: bytes, unit: int) -> Iterator[_Summary]:
    """Return the summaries in a page: of the blocks of a chunk, or of the parts of a chunk or a block."""
    if not entry.chunk:
        return _of_parts([(entry.first, entry.count, 0, 0)], block_in(page, series, entry).parts)
    index = index_in(page)
    return _of_blocks(index) if unit >= LINES else _of_parts(index.entries, index.parts)


def _of_blocks(index: ChunkIndex) -> Iterator[_Summary]:
    """Yield the summaries of the blocks of a chunk."""
    for (first, count, _, _), summary in zip(index.entries, decode_summaries(index.blocks), strict=True):
        yield first, first + count, summary


def _of_parts(blocks: Sequence[tuple[int, int, int, int]], parts: bytes) -> Iterator[_Summary]:
    """Yield the summaries of the parts of blocks, given as (first line, count, ...)."""
    summaries = iter(decode_summaries(parts))
    for first, count, _, _ in blocks:
        # Parts have no index of their own: each begins where the one before has ended.
        low = first
        while low < first + count:
            high = min(low - low % PART + PART, first + count)
            yield low, high, next(summaries)
            low = high
