"""Down-sample a metric: N points of each of its series, minima and maxima kept."""

from __future__ import annotations

from typing import Any, Final

from ..projection.lines import read_point
from ..records import series_name
from .blocks import LINES, Extremes, Spot, extremes, extremes_of, joined, series_of
from .stores import Read

MAX_POINTS: Final = 100_000

Found = tuple[int, Spot, Spot, Spot, Spot]


def sample(
    tx: Read, ns: str, experiment: str, metric: str, *, start: int, end: int, points: int, field: str | None
) -> dict[str, dict[str, Any]]:
    """Of points [start, end), at most about `points` of each series: {name: {"index", "x", "value", "count"}}.

    The range is cut into `points / 2` equal parts; of each the least and the greatest value are kept, and of the whole
    the first and the last point.
    """
    parts = max(1, points // 2)
    width = max(1.0, (end - start) / parts)
    found: dict[str, dict[int, Found]] = {}

    def offer(summary: Extremes, index: int) -> None:
        part = int((index - start) / width)
        for name, spots in summary.items():
            if field is None or name == field:
                known = found.setdefault(name, {})
                earlier = known.get(part)
                known[part] = spots if earlier is None else joined(earlier, spots)

    if width >= LINES:
        _from_summaries(tx, ns, experiment, metric, start, end, offer)
    else:
        for block in tx.blocks(ns, experiment, series_of(metric), start, end):
            _from_lines(block.lines, block.first, start, end, width, offer)
    return {series_name(metric, name): _shown(parts) for name, parts in sorted(found.items())}


def _from_summaries(tx: Read, ns: str, experiment: str, metric: str, start: int, end: int, offer: Any) -> None:
    """Blocks that are whole inside the range count by their summary, those at its ends line by line."""
    series = series_of(metric)
    for first, count, summary in tx.summaries(ns, experiment, series, start, end):
        if first >= start and first + count <= end:
            offer(extremes_of(summary), first)
        else:
            for block in tx.blocks(ns, experiment, series, first, first + 1):
                _from_lines(block.lines, first, start, end, float(LINES), offer)


def _from_lines(lines: bytes, first: int, start: int, end: int, width: float, offer: Any) -> None:
    rows = [read_point(line)["data"] for line in lines.splitlines()]
    low, high = max(start, first), min(end, first + len(rows))
    while low < high:
        part = int((low - start) / width)
        # The first index that belongs to the next part.
        stop = min(high, max(low + 1, start + -int(-(part + 1) * width // 1)))
        offer(extremes(rows[low - first : stop - first], low), low)
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
