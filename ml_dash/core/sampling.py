"""Down-sampling of a metric: some points of each of its series, minima and maxima kept, the same here and on a server.

The range of indices is cut into equal parts. Of each part the least and the greatest value are kept, of the whole the
first and the last point. Where parts are long, points count by stretches of 50 to 100,000 indices, so that a server can
take stored summaries of these: a stretch belongs to the part in which it begins. NaN is left out.

An example: [0, 100,000) with 1,000 points asked for gives 500 parts of 200 indices. Stretches of 50 lie within them, so
a part is joined from four summaries, and no point has to be read where these are stored:

    indices     0         50        100       150       200
    stretches   | min max | min max | min max | min max |
    part        |               min max                 | ...

Two points of each part are kept, so that a spike of one point among a million stays visible. The result depends only on
the range, the number of points asked for and the points: not on how they were split when they were added. So a chart of
this machine and one of the server show the same.

Cost: linear in the points read, once; memory grows with the number of parts and fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from .statistics import NO_SERIES, NUMBERS, Rows, step_of

PART: Final = 50
"""Indices of a short stretch; stretches begin at multiples of their length."""

LINES: Final = 1000
"""Indices of a long stretch."""

UNITS: Final = (1, PART, LINES, 10_000, 100_000)
"""Indices of a stretch, each a multiple of the one before: so 10^8 points are a few summaries for each part."""

# (index, x, value) of the first, least, greatest and last point of a field, and how many there are.
# One point of a field.
Spot = tuple[int, Any, Any]
Found = tuple[int, Spot, Spot, Spot, Spot]
Extremes = dict[str, Found]


def x_of(row: dict[str, Any], index: int) -> Any:
    """What a point is drawn at: its step, else its epoch, else its index."""
    step = step_of(row)
    return index if step is None else step


def extremes(rows: Rows, start: int, field: str | None = None) -> Extremes:
    """The summary of consecutive points, field by field, or of one field."""
    found: Extremes = {}
    names = set().union(*rows) - NO_SERIES if field is None else {field}
    for name in names:
        values = [row.get(name) for row in rows]
        places: list[int] | None = None
        # NaN is the value that does not equal itself. It is left out, as are texts and what a point does not have.
        if not set(map(type, values)) <= NUMBERS or may_hold_nan(values):
            places = [i for i, value in enumerate(values) if type(value) in NUMBERS and value == value]
            values = [values[i] for i in places]
            if not values:
                continue
        low, high = min(values), max(values)  # type: ignore[type-var]  # numbers only
        # The first of equal values, so that the choice does not depend on how points were split.
        chosen = (0, values.index(low), values.index(high), len(values) - 1)
        spots = []
        for choice in chosen:
            place = choice if places is None else places[choice]
            spots.append((start + place, x_of(rows[place], start + place), values[choice]))
        found[name] = (len(values), spots[0], spots[1], spots[2], spots[3])
    return found


def may_hold_nan(numbers: list[Any]) -> bool:
    """True if one of these numbers is NaN, and also if there are infinities of both signs."""
    # A sum takes a tenth of the time of a look at each.
    total = sum(numbers)
    return bool(total != total)


def joined(a: Found, b: Found) -> Found:
    """The summary of two stretches, `a` before `b`.

    Of equal values that of `a` stays: it comes first.
    """
    low = b[2] if b[2][2] < a[2][2] else a[2]
    high = b[3] if b[3][2] > a[3][2] else a[3]
    return a[0] + b[0], a[1], low, high, b[4]


def extend(known: Extremes, more: Extremes) -> None:
    """Add the summary of what follows."""
    for name, found in more.items():
        earlier = known.get(name)
        known[name] = found if earlier is None else joined(earlier, found)


class Sampling:
    """About `points` points of each series in [start, end), given in their order by `add` and `add_rows`."""

    def __init__(self, start: int, end: int, points: int, field: str | None = None) -> None:
        self.start = start
        self._size = max(1, end - start)
        # Two points for each part: its least and its greatest.
        self._parts = min(self._size, max(1, points // 2))
        self._field = field
        # Field → part → summary.
        self._found: dict[str, dict[int, Found]] = {}
        # The longest stretch that is not longer than a part.
        self.unit = next(unit for unit in reversed(UNITS) if self._size >= unit * self._parts)
        """Indices of a stretch: one of `UNITS`."""

    def add_rows(self, rows: Rows, first: int) -> None:
        """Add consecutive points, the first of them with that index."""
        for low, high in self.pieces(first, first + len(rows)):
            self.add(low, extremes(rows[low - first : high - first], low, self._field))

    def pieces(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield [first, end) in pieces that lie in one stretch each: `add` takes the summary of one."""
        while first < end:
            stop = min(end, self._behind(first))
            yield first, stop
            first = stop

    def add(self, first: int, summary: Extremes) -> None:
        """Add the summary of points that lie in one stretch, the first of them with that index or a later one."""
        part = self._part(first)
        for name, spots in summary.items():
            if self._field is None or name == self._field:
                known = self._found.setdefault(name, {})
                earlier = known.get(part)
                known[part] = spots if earlier is None else joined(earlier, spots)

    def _part(self, index: int) -> int:
        """Return the part to which the stretch of an index belongs: that in which the stretch begins."""
        # The first stretch may begin before the range; what of it lies in the range belongs to the first part.
        begin = max(self.start, index - index % self.unit)
        return (begin - self.start) * self._parts // self._size

    def _behind(self, index: int) -> int:
        """The first index of the next stretch, or where each index counts by itself, of the next part."""
        if self.unit > 1:
            return index - index % self.unit + self.unit
        # Rounded up, since `_part` rounds down: the first index whose part is the next one.
        return self.start - -(self._part(index) + 1) * self._size // self._parts

    def series(self) -> dict[str, dict[str, Any]]:
        """What is shown of each field: {field: {"index", "x", "value", "count"}}."""
        return {name: _shown(parts) for name, parts in sorted(self._found.items())}


def _shown(parts: dict[int, Found]) -> dict[str, Any]:
    """Return what is shown of a field: the points that were kept, each once, by index."""
    ordered = [parts[part] for part in sorted(parts)]
    # By index: the first point may also be the least one.
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
