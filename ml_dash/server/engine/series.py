"""Down-sample a metric: N points of each of its series, minima and maxima kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from ...core.ranges import Range, holes
from ...core.records import series_name
from ...projection.lines import read_point
from ..stores import Read
from .blocks import LINES, PART, Extremes, FieldSummary, Spot, extremes, extremes_of, joined, parts_of, series_of

MAX_POINTS: Final = 100_000


def sample(
    tx: Read,
    ns: str,
    experiment: str,
    metric: str,
    *,
    start: int,
    end: int,
    points: int,
    field: str | None,
    without: Sequence[Range] = (),
) -> dict[str, dict[str, Any]]:
    """Return about `points` of the points [start, end) of each series: {name: {"index", "x", "value", "count"}}.

    The range is cut into `points / 2` equal parts; of each the least and the greatest value are kept, and of the whole
    the first and the last point. Where a part is longer than a stored summary, it is made of those that begin in it.
    Indices in the ranges `without` are left out.
    """
    width = max(1.0, (end - start) / max(1, points // 2))
    series = series_of(metric)
    by_field: dict[str, dict[int, FieldSummary]] = {}
    for index, summary in _summaries(tx, ns, experiment, series, start, end, width, without):
        part = int((index - start) / width)
        for name, spots in summary.items():
            if field is None or name == field:
                summaries = by_field.setdefault(name, {})
                earlier = summaries.get(part)
                summaries[part] = spots if earlier is None else joined(earlier, spots)
    return {series_name(metric, name): _shown(parts) for name, parts in sorted(by_field.items())}


def _summaries(
    tx: Read, ns: str, experiment: str, series: str, start: int, end: int, width: float, without: Sequence[Range]
) -> Iterator[tuple[int, Extremes]]:
    """Yield (first index, summary) of ranges no longer than `width` that together are [start, end).

    The coarsest summaries that are short enough are taken: of whole blocks, of their parts, or counted from the lines.
    """
    if width < PART:
        for low, high in holes(without, start, end):
            for block in tx.blocks(ns, experiment, series, low, high):
                yield from _of_lines(block.lines, block.first, [(low, high)], width, start)
        return
    whole = width >= LINES
    for first, count, stored in tx.summaries(ns, experiment, series, start, end, parts=not whole):
        stretches = [extremes_of(stored)] if whole else parts_of(stored)
        length = count if whole else PART
        for number, summary in enumerate(stretches):
            low = first + number * length
            high = min(low + length, first + count)
            wanted = list(holes(without, max(low, start), min(high, end)))
            if wanted == [(low, high)]:
                yield low, summary
            elif wanted:
                # At an end of the range, or beside what is left out, only some of its lines count.
                for block in tx.blocks(ns, experiment, series, low, low + 1):
                    yield from _of_lines(block.lines, block.first, wanted, width, start)


def _of_lines(
    lines: bytes, first: int, wanted: list[Range], width: float, origin: int
) -> Iterator[tuple[int, Extremes]]:
    """Yield (first index, summary) of the `wanted` lines of a block, counted from the lines themselves."""
    all_lines = lines.splitlines()
    for start, end in wanted:
        low, high = max(start, first), min(end, first + len(all_lines))
        rows = [read_point(line)["data"] for line in all_lines[low - first : high - first]]
        base = low
        while low < high:
            part = int((low - origin) / width)
            # The first index that belongs to the next part.
            stop = min(high, max(low + 1, origin + -int(-(part + 1) * width // 1)))
            yield low, extremes(rows[low - base : stop - base], low)
            low = stop


def _shown(parts: dict[int, FieldSummary]) -> dict[str, Any]:
    ordered = [parts[part] for part in sorted(parts)]
    spots: dict[int, Spot] = {ordered[0][1][0]: ordered[0][1]}
    for _, _, low, high, _ in ordered:
        spots[low[0]] = low
        spots[high[0]] = high
    spots[ordered[-1][4][0]] = ordered[-1][4]
    chosen = [spots[index] for index in sorted(spots)]
    return {
        "index": [spot[0] for spot in chosen],
        "x": [spot[1] for spot in chosen],
        "value": [spot[2] for spot in chosen],
        "count": sum(found[0] for found in ordered),
    }
