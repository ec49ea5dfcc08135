"""One series of one experiment drawn as an envelope: from the series index where that reaches, else from the lines.

    lines   0        first                                     indexed              total
            | freed    |  rows of 50 ... 100,000 lines           |  lines, decoded     |

A range is fed to the envelope in the longest stretches that lie in one of its units. Where a stretch is wanted in part
(at the ends of the range, beside superseded points, at the bounds of x) shorter ones are taken, and lines in the end.
"""

from __future__ import annotations

import sqlite3
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ..core.envelope import (
    EPOCH,
    INDEX,
    MARKS,
    RELATIVE,
    STEP,
    WALL,
    Columns,
    Drawn,
    Envelope,
    Mark,
    split_key,
    split_order,
)
from ..core.envelope import points_as_columns as as_columns
from ..core.ranges import Range, holes, size_of
from ..core.sampling import UNITS
from ..core.statistics import NUMBERS
from ..projection.checkpoint import LINES_PER_MARK
from .points import Points, decode_points, microseconds
from .stretches import Indexed, Row, marks, rows
from .view import Lines

# Lines that are decoded at once.
_LINES: Final = 10 * LINES_PER_MARK
_COLUMN: Final = {name: place for place, name in enumerate(Row._fields)}
# What is drawn over → the columns of its first, least and greatest value.
_OVER: Final = {
    STEP: ("step", "least_step", "greatest_step"),
    EPOCH: ("epoch", "least_epoch", "greatest_epoch"),
    WALL: ("time", "earliest", "latest"),
    RELATIVE: ("time", "earliest", "latest"),
}
_Rows: TypeAlias = "tuple[list[array[float]], int]"
"""(rows by column, the unit of their stretches)."""

MOST_SPLITS: Final = 64
"""Values of the field by which points are split; points with further ones are not drawn."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What a series is drawn over: one of `envelope.X_KINDS`. `created_us` is where relative times begin."""

    kind: str
    created_us: int = 0

    def of_times(self, times: Sequence[float]) -> list[float]:
        """Return x of times in microseconds since 1970."""
        zero = self.created_us if self.kind == RELATIVE else 0
        return [(time - zero) / 1_000_000 for time in times]


@dataclass(frozen=True, slots=True)
class Drawable:
    """One field of a metric of an experiment, at one moment: its lines, and what the index has of it."""

    metric: str
    field: str
    lines: Lines
    superseded: Sequence[Range]
    database: sqlite3.Connection | None = None
    indexed: Indexed | None = None
    # Lines that may be drawn: less than there are while the index is being made.
    end: int = 0


def draw(
    of: Drawable, axis: Axis, points: int, low: float | None = None, high: float | None = None, *, superseded: bool
) -> Drawn:
    """Return the envelope of a series, or of its points with x in [low, high]. Raises Damaged, OSError."""
    pieces = list(holes(() if superseded else of.superseded, of.lines.known.first, of.end))
    feed = _Feed(of, axis, low, high)
    if (low is not None or high is not None) and pieces:
        pieces = _within(pieces, feed)
    start, end = (pieces[0][0], pieces[-1][1]) if pieces else (0, 0)
    envelope = Envelope(start, end, points)
    for piece in pieces:
        feed.into(envelope, *piece)
    drawn = envelope.drawn()
    drawn.superseded = size_of(of.superseded)
    drawn.x_meant = feed.meant()
    return drawn


def draw_split(
    of: Drawable, axis: Axis, points: int, by: str, low: float | None, high: float | None, *, superseded: bool
) -> list[Drawn]:
    """Return an envelope for each value of the field `by` of the points; None for those without it."""
    pieces = list(holes(() if superseded else of.superseded, of.lines.known.first, of.end))
    feed = _Feed(of, axis, low, high)
    if (low is not None or high is not None) and pieces:
        pieces = _within(pieces, feed)
    start, end = (pieces[0][0], pieces[-1][1]) if pieces else (0, 0)
    envelopes: dict[Any, tuple[Any, Envelope]] = {}
    for piece in pieces:
        for found in feed.points(*piece, also=(by,)):
            keys = [split_key(value) for value in found.values[by]]
            for key in dict.fromkeys(keys):
                if key not in envelopes and len(envelopes) < MOST_SPLITS:
                    value = None if key is None else key[1]
                    envelopes[key] = value, Envelope(start, end, points)
                if key in envelopes:
                    chosen = [place for place, other in enumerate(keys) if other == key]
                    feed.add(envelopes[key][1], found, chosen)
    drawn = []
    for key in sorted(envelopes, key=split_order):
        value, envelope = envelopes[key]
        one = envelope.drawn()
        if not one.total:
            continue
        one.split, one.superseded, one.x_meant = value, size_of(of.superseded), feed.meant()
        drawn.append(one)
    return drawn


def over_metric(drawn: Drawn, other: Drawn) -> Drawn:
    """Return a series that was drawn over steps, over the values of another one that was drawn over them too.

    Its x is the value of the other at the last step that is not greater: buckets before the first one are left out.
    Where buckets of the other hold several points, it is the middle between their least and greatest value.
    """
    order = sorted(range(len(other.x)), key=other.x.__getitem__)
    steps = [other.x[place] for place in order]
    values = [(other.low[place] + other.high[place]) / 2 for place in order]
    places = [bisect_right(steps, step) - 1 for step in drawn.x]
    kept = [place for place, found in enumerate(places) if found >= 0]
    drawn.breaks = sorted({bisect_right(kept, place - 1) for place in drawn.breaks} - {0, len(kept)})
    drawn.marks = [
        Mark(mark.at, values[found], mark.value)
        for mark in drawn.marks
        if (found := bisect_right(steps, mark.x) - 1) >= 0
    ]
    drawn.x = [values[places[place]] for place in kept]
    drawn.index = [drawn.index[place] for place in kept]
    drawn.low, drawn.high = [drawn.low[place] for place in kept], [drawn.high[place] for place in kept]
    return drawn


def _within(pieces: list[Range], feed: _Feed) -> list[Range]:
    """Return the pieces cut to the smallest range of indices that holds all points within the bounds of x."""
    first = next((found for piece in pieces if (found := feed.end_of(*piece, last=False)) is not None), None)
    if first is None:
        return []
    last = next(found for piece in reversed(pieces) if (found := feed.end_of(*piece, last=True)) is not None)
    return [(max(low, first), min(high, last + 1)) for low, high in pieces if low <= last and high > first]


class _Feed:
    """The points of a series, as an envelope takes them."""

    def __init__(self, of: Drawable, axis: Axis, low: float | None, high: float | None) -> None:
        self._of = of
        self._axis = axis
        self._low = low
        self._high = high
        self._indexed = of.indexed.lines if of.indexed is not None and of.database is not None else 0
        self._has_step = of.indexed is not None and of.indexed.has_step
        self._has_epoch = of.indexed is not None and of.indexed.has_epoch

    def meant(self) -> str | None:
        """Return what x means if no point has what was asked for; None if some have."""
        if self._axis.kind == STEP and not self._has_step:
            return EPOCH if self._has_epoch else INDEX
        if self._axis.kind == EPOCH and not self._has_epoch:
            return STEP if self._has_step else INDEX
        return None

    def into(self, envelope: Envelope, start: int, end: int) -> None:
        """Add points [start, end) within the bounds of x to an envelope."""
        for item in self._stretches(start, end, UNITS.index(envelope.unit)):
            if isinstance(item, Points):
                self.add(envelope, item)
            else:
                columns, unit = item
                envelope.add(self._columns(columns))
                if sum(columns[_COLUMN["odd"]]):
                    envelope.mark(self._stored_marks(columns, unit))

    def add(self, envelope: Envelope, points: Points, chosen: list[int] | None = None) -> None:
        """Add decoded points to an envelope: those at these places, or all."""
        values, x = points.values[self._of.field], self._x_of(points)
        places: Sequence[int] = range(len(values)) if chosen is None else chosen
        if not set(map(type, values)) <= NUMBERS:
            places = [place for place in places if type(values[place]) in NUMBERS]
        if self._low is not None or self._high is not None:
            places = [place for place in places if self._holds(x[place])]
        if not places:
            return
        if len(places) < len(values):
            values, x = [values[place] for place in places], [x[place] for place in places]
        columns, marks = as_columns([points.start + place for place in places], x, values)
        envelope.add(columns)
        envelope.mark(marks)

    def points(self, start: int, end: int, also: tuple[str, ...] = ()) -> Iterator[Points]:
        """Yield points [start, end), decoded."""
        while start < end:
            stop = min(end, start - start % LINES_PER_MARK + _LINES)
            fields = tuple(dict.fromkeys((self._of.field, *also)))
            found = decode_points(self._of.lines.read(start, stop), start, stop - start, fields)
            self._has_step, self._has_epoch = self._has_step or found.has_step, self._has_epoch or found.has_epoch
            yield found
            start = stop

    def end_of(self, start: int, end: int, *, last: bool) -> int | None:
        """Return the first point of [start, end) within the bounds of x, or the last one; None if there is none."""
        return self._end_of(start, end, len(UNITS) - 1, last=last)

    def _end_of(self, start: int, end: int, level: int, *, last: bool) -> int | None:
        parts = self._parts(start, end, level)
        for low, high, depth in reversed(parts) if last else parts:
            if depth == 0:
                found = [
                    points.start + place
                    for points in self.points(low, high)
                    for place, x in enumerate(self._x_of(points))
                    if self._holds(x) and type(points.values[self._of.field][place]) in NUMBERS
                ]
                if found:
                    return found[-1 if last else 0]
                continue
            columns = rows(self._of.database, self._of.metric, self._of.field, UNITS[depth], low, high)  # type: ignore[arg-type]  # there are such parts only where there is one
            least, greatest = self._bounds(columns, depth)
            places = range(len(least))
            for place in reversed(places) if last else places:
                if self._meets(least[place], greatest[place]):
                    begin = int(columns[0][place])
                    stop = begin - begin % UNITS[depth] + UNITS[depth]
                    inside = self._end_of(begin, stop, depth - 1, last=last)
                    if inside is not None:
                        return inside
        return None

    def _parts(self, start: int, end: int, level: int) -> list[tuple[int, int, int]]:
        """Return (low, high, level) of [start, end) in order: whole units where they are indexed, else shorter ones."""
        if start >= end:
            return []
        unit = UNITS[level]
        if level == 0 or start >= self._indexed:
            return [(start, end, 0)]
        first = self._of.lines.known.first
        low = start if start == first else -(-start // unit) * unit
        high = min(end, self._indexed) // unit * unit
        if low >= high:
            return self._parts(start, end, level - 1)
        return [*self._parts(start, low, level - 1), (low, high, level), *self._parts(high, end, level - 1)]

    def _stretches(self, start: int, end: int, level: int) -> Iterator[Points | _Rows]:
        """Yield the rows of whole stretches within the bounds of x, and decoded points, in order."""
        for low, high, depth in self._parts(start, end, level):
            if depth == 0:
                yield from self.points(low, high)
                continue
            columns = rows(self._of.database, self._of.metric, self._of.field, UNITS[depth], low, high)  # type: ignore[arg-type]  # as above
            if self._low is None and self._high is None:
                yield columns, UNITS[depth]
                continue
            yield from self._cut(columns, depth)

    def _cut(self, columns: list[array[float]], level: int) -> Iterator[Points | _Rows]:
        """Yield rows that lie within the bounds of x, and in place of those that do in part what they consist of."""
        least, greatest = self._bounds(columns, level)
        begin = 0
        for place in range(len(least)):
            if self._holds(least[place]) and self._holds(greatest[place]):
                continue
            if begin < place:
                yield [column[begin:place] for column in columns], UNITS[level]
            begin = place + 1
            if self._meets(least[place], greatest[place]):
                start = int(columns[0][place])
                yield from self._stretches(start, start - start % UNITS[level] + UNITS[level], level - 1)
        if begin < len(least):
            yield [column[begin:] for column in columns], UNITS[level]

    def _columns(self, columns: list[array[float]]) -> Columns:
        """Return rows as an envelope takes them."""
        at = columns[_COLUMN["at"]]
        if self._axis.kind == INDEX:
            x: Sequence[float] = at
        else:
            x = columns[_COLUMN[_OVER[self._axis.kind][0]]]
            if self._axis.kind in (WALL, RELATIVE):
                x = self._axis.of_times(x)
        return Columns(
            columns[0], columns[_COLUMN["counts"]], columns[_COLUMN["odd"]], at, x, columns[_COLUMN["low"]],
            columns[_COLUMN["high"]],
        )  # fmt: skip

    def _bounds(self, columns: list[array[float]], level: int) -> tuple[Sequence[float], Sequence[float]]:
        """Return the least and greatest x of each row."""
        if self._axis.kind == INDEX:
            unit = UNITS[level]
            return columns[0], [start - start % unit + unit - 1 for start in columns[0]]
        _, low, high = (columns[_COLUMN[name]] for name in _OVER[self._axis.kind])
        if self._axis.kind in (WALL, RELATIVE):
            return self._axis.of_times(low), self._axis.of_times(high)
        return low, high

    def _x_of(self, points: Points) -> Sequence[float]:
        """Return x of decoded points."""
        kind = self._axis.kind
        if kind == STEP:
            return points.steps
        if kind == EPOCH:
            return points.epochs
        if kind == INDEX:
            return range(points.start, points.start + len(points.times))
        return self._axis.of_times([microseconds(time) for time in points.times])

    def _holds(self, x: float) -> bool:
        """True if x is within the bounds that were asked for."""
        return (self._low is None or x >= self._low) and (self._high is None or x <= self._high)

    def _meets(self, least: float, greatest: float) -> bool:
        """True if a stretch with this least and greatest x may have points within the bounds."""
        return (self._low is None or greatest >= self._low) and (self._high is None or least <= self._high)

    def _stored_marks(self, columns: list[array[float]], unit: int) -> list[Mark]:
        """Return the marks of values in some rows that are not finite."""
        start, last = int(columns[0][0]), int(columns[0][-1])
        end = last - last % unit + unit
        found = marks(self._of.database, self._of.metric, self._of.field, start, end, MARKS)  # type: ignore[arg-type]  # as above
        names = {STEP: 1, EPOCH: 2, WALL: 3, RELATIVE: 3, INDEX: 0}
        place = names[self._axis.kind]
        x = [float(mark[place]) for mark in found]
        if place == 3:
            x = self._axis.of_times(x)
        return [Mark(mark[0], at, mark[4]) for mark, at in zip(found, x, strict=True)]
