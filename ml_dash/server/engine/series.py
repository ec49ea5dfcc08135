"""Down-sample a metric: N points of each of its series, minima and maxima kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from ...core.records import series_name
from ...projection.lines import read_point
from ..stores import Read
from .blocks import LINES, PART, Extremes, Found, Spot, extremes, extremes_of, joined, parts_of, series_of

MAX_POINTS: Final = 100_000


def sample(
    tx: Read, ns: str, experiment: str, metric: str, *, start: int, end: int, points: int, field: str | None
) -> dict[str, dict[str, Any]]:
    """Of points [start, end), at most about `points` of each series: {name: {"index", "x", "value", "count"}}.

    The range is cut into `points / 2` equal parts; of each the least and the greatest value are kept, and of the whole
    the first and the last point. Where a part is longer than a stored summary, it is made of those that begin in it.
    """
    width = max(1.0, (end - start) / max(1, points // 2))
    series = series_of(metric)
    found: dict[str, dict[int, Found]] = {}
    for index, summary in _summaries(tx, ns, experiment, series, start, end, width):
        part = int((index - start) / width)
        for name, spots in summary.items():
            if field is None or name == field:
                known = found.setdefault(name, {})
                earlier = known.get(part)
                known[part] = spots if earlier is None else joined(earlier, spots)
    return {series_name(metric, name): _shown(parts) for name, parts in sorted(found.items())}


def _summaries(
    tx: Read, ns: str, experiment: str, series: str, start: int, end: int, width: float
) -> Iterator[tuple[int, Extremes]]:
    """(first index, summary) of stretches that are no longer than `width`, one after the other; all of [start, end)."""
    if width < PART:
        for block in tx.blocks(ns, experiment, series, start, end):
            yield from _of_lines(block.lines, block.first, start, end, width, start)
        return
    whole = width >= LINES
    for first, count, stored in tx.summaries(ns, experiment, series, start, end, parts=not whole):
        stretches = [extremes_of(stored)] if whole else parts_of(stored)
        length = count if whole else PART
        for number, summary in enumerate(stretches):
            low = first + number * length
            high = min(low + length, first + count)
            if low >= start and high <= end:
                yield low, summary
            elif low < end and high > start:
                # One at the ends of the range: only a part of it counts.
                for block in tx.blocks(ns, experiment, series, low, low + 1):
                    yield from _of_lines(block.lines, block.first, max(low, start), min(high, end), width, start)


def _of_lines(
    lines: bytes, first: int, start: int, end: int, width: float, origin: int
) -> Iterator[tuple[int, Extremes]]:
    """The same of the lines of a block that lie in [start, end), by counting them anew."""
    low, high = max(start, first), min(end, first + lines.count(b"\n"))
    rows = [read_point(line)["data"] for line in lines.splitlines()[low - first : high - first]]
    base = low
    while low < high:
        part = int((low - origin) / width)
        # The first index that belongs to the next part.
        stop = min(high, max(low + 1, origin + -int(-(part + 1) * width // 1)))
        yield low, extremes(rows[low - base : stop - base], low)
        low = stop


def _shown(parts: dict[int, Found]) -> dict[str, Any]:
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
