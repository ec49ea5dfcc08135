"""Down-sample a metric from stored blocks: what `core.sampling` shows of its points, with few blocks opened.

A request for about n points of [start, end) takes a unit (`Sampling.unit`): one point, a part of 50, a block of 1,000,
or several blocks. Only summaries of parts or blocks are read, so a million points cost a thousand rows of summaries and
no lines; those of one unit are joined by `Sampling`, which knows where units begin. Lines are opened where a summary
does not say enough: at the two ends of the range, and where points are left out (superseded by a rewind), because a
least value may belong to a point that is not current.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...core.ranges import Range, holes
from ...core.records import series_name
from ...core.sampling import LINES, PART, Extremes, Sampling
from ...projection.lines import read_point
from .blocks import blocks_of, extremes_of, parts_of, series_of
from .contents import Contents


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

    def add_lines(low: int, high: int) -> None:
        for block in blocks_of(contents, series, low, high):
            first, stop = max(low, block.first), min(high, block.first + block.count)
            lines = block.lines.splitlines()[first - block.first : stop - block.first]
            sampling.add_rows([read_point(line)["data"] for line in lines], first)

    series = series_of(metric)
    if sampling.unit < PART:
        for low, high in holes(without, start, end):
            add_lines(low, high)
    else:
        for low, high, summary in _summaries(contents, series, start, end, whole=sampling.unit >= LINES):
            wanted = list(holes(without, max(low, start), min(high, end)))
            if wanted == [(low, high)]:
                sampling.add(low, summary)
            else:
                # At the ends of the range, or beside what is left out: only a part of it counts.
                for part in wanted:
                    add_lines(*part)
    return {series_name(metric, name): shown for name, shown in sampling.series().items()}


def _summaries(
    contents: Contents, series: str, start: int, end: int, *, whole: bool
) -> Iterator[tuple[int, int, Extremes]]:
    """Yield (first index, index behind the last, summary) of the blocks or parts that hold [start, end), in order."""
    if whole:
        for entry in contents.blocks(series, start, end):
            if entry.first + entry.count > start:
                # It ends at a multiple of its length, so it does not reach into another unit.
                yield entry.first, entry.first + entry.count, extremes_of(entry.summary)
        return
    for block in blocks_of(contents, series, start, end):
        # Parts have no index of their own: each begins where the one before has ended.
        low = block.first
        for summary in parts_of(block.parts):
            high = min(low - low % PART + PART, block.first + block.count)
            if low < end and high > start:
                yield low, high, summary
            low = high
