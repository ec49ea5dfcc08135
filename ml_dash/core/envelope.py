"""The envelope of a series: buckets of consecutive points, each with its least and greatest value. Nothing is sampled.

A range of indices is cut into at most `points` parts of equal length. All finite values of a part become one bucket:
the index and x of its first point, its minimum and its maximum. A part of one point is that point. So a spike of one
point among a million stays visible, and where parts hold one point each the series is drawn as it was recorded.

    indices     0         100       200       300       400
    parts       |         |         |         |         |          [0, 400) in four parts
    buckets     x=0       x=100     (none)    x=300                [200, 300) holds NaN alone
                min max   min max             min max
    breaks                                    ^                    the line must not be joined here

NaN and infinities are in no bucket. They are `marks`, and a part that holds nothing else breaks the line.

What is added are columns of stretches (`Columns`): single points, or stored summaries of `Envelope.unit` points. The
result depends on the range, the number of points asked for and the points, not on how they were split: so a chart of
local folders and one of a server show the same.
"""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from .sampling import UNITS
from .statistics import NUMBERS

MARKS: Final = 100
"""The most marks of values that are not finite, for each series."""

STEP: Final = "step"
EPOCH: Final = "epoch"
INDEX: Final = "index"
RELATIVE: Final = "relative"
WALL: Final = "wall"
OF_METRIC: Final = "metric:"
X_KINDS: Final = (STEP, EPOCH, INDEX, RELATIVE, WALL)
"""What a series may be drawn over, beside `metric:NAME`.

`step` and `epoch` are fields of the point: a point without the one is drawn at the other, one without both at its
index. `relative` is in seconds since the experiment was created, `wall` in seconds since 1970.
"""

BINARY: Final = "application/vnd.ml-dash.series"
"""The media type of `as_binary`."""

_INFINITY: Final = math.inf


class Columns(NamedTuple):
    """Consecutive stretches of a series, in the order of their indices; a single point is a stretch of one.

    `starts`: where each begins. `counts`: its finite values. `odd`: its values that are not finite. `indices`, `x`: of
    its first finite value. `low`, `high`: the least and greatest of these; +infinity and -infinity if there are none.
    """

    starts: Sequence[int | float]
    counts: Sequence[int | float]
    odd: Sequence[int | float]
    indices: Sequence[int | float]
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


class Mark(NamedTuple):
    """A value that is not finite: the index of its point (`at`), its x, and its name (see `name_of`)."""

    at: int
    x: float
    value: str


@dataclass(slots=True)
class Drawn:
    """One series as it is drawn: its buckets by column, and what they leave out.

    `shown`: buckets. `total`: points of the series in the range, those in `marks` and beyond included. `superseded`:
    points of its metric that rewinds have superseded. `x_meant`: over what it is drawn if that is not what was asked
    for. `split`: the value of the field by which points were split, None without one.
    """

    experiment: str = ""
    split: Any = None
    index: list[int] = field(default_factory=list)
    x: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    total: int = 0
    superseded: int = 0
    marks: list[Mark] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    x_meant: str | None = None

    @property
    def shown(self) -> int:
        """How many buckets there are; as many as `total` if each is a single point and all are finite."""
        return len(self.index)


@dataclass(frozen=True, slots=True)
class DrawnPage:
    """The answer to a request for series: of each experiment at most one, or one for each value of `split`.

    `missing` are the ids of experiments that have no such series. `indexed`, where an index is still being made: how
    many points it holds, and of how many; the series shows these alone until then.
    """

    metric: str
    x: str
    series: list[Drawn]
    missing: list[str]
    indexed: tuple[int, int] | None = None


class Envelope:
    """The envelope of points with indices [start, end), in at most `points` buckets. Columns are added in order."""

    def __init__(self, start: int, end: int, points: int) -> None:
        self.start = start
        self._size = max(1, end - start)
        self._parts = min(self._size, max(1, points))
        self.unit = next(unit for unit in reversed(UNITS) if self._size >= unit * self._parts)
        """Points of the longest stretches that may be added as a whole: one of `sampling.UNITS`."""
        self._drawn = Drawn()
        # Part → non-finite values in it, and the parts of the buckets.
        self._odd: dict[int, int] = {}
        self._filled: list[int] = []

    def add(self, columns: Columns) -> None:
        """Add consecutive stretches, each inside one unit."""
        self._note_odd(columns)
        starts, counts, _, indices, x, low, high = columns
        drawn, filled, end = self._drawn, self._filled, len(starts)
        drawn.total += int(sum(counts))
        begin, together = 0, 1
        while begin < end:
            part = self._part(int(starts[begin]))
            behind = self._behind(part)
            # Mostly as many as were in the part before.
            stop = begin + together
            if stop > end or starts[stop - 1] >= behind or (stop < end and starts[stop] < behind):
                stop = bisect_left(starts, behind, begin + 1, end)
                together = stop - begin
            greatest = high[begin] if together == 1 else max(high[begin:stop])
            if greatest != -_INFINITY:
                least = low[begin] if together == 1 else min(low[begin:stop])
                if filled and filled[-1] == part:
                    drawn.low[-1] = min(drawn.low[-1], least)
                    drawn.high[-1] = max(drawn.high[-1], greatest)
                else:
                    place = begin
                    while not counts[place]:
                        place += 1
                    filled.append(part)
                    drawn.index.append(int(indices[place]))
                    drawn.x.append(x[place])
                    drawn.low.append(least)
                    drawn.high.append(greatest)
            begin = stop

    def _note_odd(self, columns: Columns) -> None:
        """Count the values that are not finite, by part."""
        if not any(columns.odd):
            return
        for start, number in zip(columns.starts, columns.odd, strict=True):
            if number:
                part = self._part(int(start))
                self._odd[part] = self._odd.get(part, 0) + int(number)
                self._drawn.total += int(number)

    def mark(self, marks: Iterable[Mark]) -> None:
        """Note values that are not finite; beyond `MARKS` they are left out."""
        room = MARKS - len(self._drawn.marks)
        self._drawn.marks += list(marks)[:room]

    def drawn(self) -> Drawn:
        """Return the series as far as it was added; experiment and the like are the caller's to fill in."""
        drawn = self._drawn
        if self._odd:
            alone = sorted(self._odd.keys() - set(self._filled))
            # A bucket is behind a break if a part with nothing but NaN lies between it and the bucket before.
            places = {bisect_left(self._filled, part) for part in alone}
            drawn.breaks = sorted(place for place in places if 0 < place < len(self._filled))
        return drawn

    def _part(self, index: int) -> int:
        """Return the part to which the stretch that begins here belongs: by the unit in which it lies."""
        return max(0, index - index % self.unit - self.start) * self._parts // self._size

    def _behind(self, part: int) -> int:
        """Return the first index whose part is a later one; stretches are cut at the multiples of the unit."""
        # Rounded up, since `_part` rounds down.
        behind = self.start - -(part + 1) * self._size // self._parts
        return -(-behind // self.unit) * self.unit


def points_as_columns(
    indices: Sequence[int], x: Sequence[float], values: Sequence[int | float]
) -> tuple[Columns, list[Mark]]:
    """Return single points as stretches of one, and the marks of those whose values are not finite."""
    total = sum(values)
    # A finite sum has finite terms; the other way round it may have overflowed, and then each is looked at.
    if total - total == 0:
        one = [1] * len(indices)
        return Columns(indices, one, [0] * len(indices), indices, x, values, values), []
    finite = [value - value == 0 for value in values]
    marks = [
        Mark(index, at, name_of(value))
        for index, at, value, whole in zip(indices, x, values, finite, strict=True)
        if not whole
    ]
    low = [value if whole else _INFINITY for value, whole in zip(values, finite, strict=True)]
    high = [value if whole else -_INFINITY for value, whole in zip(values, finite, strict=True)]
    counts = list(map(int, finite))
    return Columns(indices, counts, [1 - one for one in counts], indices, x, low, high), marks


def name_of(value: float) -> str:
    """Return the name of a value that is not finite: "NaN", "Infinity" or "-Infinity"."""
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


# -- answers -----------------------------------------------------------------------------------------------------------


def as_json(page: DrawnPage) -> bytes:
    """Return the answer as JSON."""
    return json.dumps(
        _answer(page, [[one.index, one.x, one.low, one.high] for one in page.series]),
        separators=(",", ":"),
        allow_nan=False,
    ).encode()


def as_binary(page: DrawnPage) -> bytes:
    """Return the answer as a u32 with the length of a JSON head, that head, and the arrays as float64.

    All numbers are little-endian. The head is the answer as JSON, with {"offset", "count"} in place of each array,
    counted in float64s behind the head. The head is padded with spaces so that these begin at a multiple of eight.
    """
    numbers, places = array("d"), []
    for one in page.series:
        mine = []
        for column in (one.index, one.x, one.low, one.high):
            mine.append({"offset": len(numbers), "count": len(column)})
            numbers.extend(column)
        places.append(mine)
    head = json.dumps(_answer(page, places), separators=(",", ":"), allow_nan=False).encode()
    head += b" " * (-(len(head) + 4) % 8)
    if array("H", [1]).tobytes() != b"\1\0":
        numbers.byteswap()
    return len(head).to_bytes(4, "little") + head + numbers.tobytes()


def _answer(page: DrawnPage, arrays: list[list[Any]]) -> dict[str, Any]:
    answer: dict[str, Any] = {"metric": page.metric, "x": page.x, "series": [], "missing": page.missing}
    for one, (index, x, low, high) in zip(page.series, arrays, strict=True):
        answer["series"].append({
            "experiment": one.experiment, "split": one.split, "index": index, "x": x, "min": low, "max": high,
            "shown": one.shown, "total": one.total, "superseded": one.superseded,
            "nonFinite": [{"x": mark.x, "value": mark.value} for mark in one.marks], "breaks": one.breaks,
            **({"xMeant": one.x_meant} if one.x_meant is not None else {}),
        })  # fmt: skip
    if page.indexed is not None:
        answer["indexed"], answer["ofPoints"] = page.indexed
    return answer


def split_key(value: Any) -> tuple[str, Any] | None:
    """Return what a value of a field is told apart by: numbers by value, texts and truths by themselves."""
    if type(value) in NUMBERS:
        return ("number", value) if value == value else None
    return (type(value).__name__, value) if type(value) in (str, bool) else None


def split_order(key: tuple[str, Any] | None) -> tuple[bool, str, Any]:
    """Return what keys are sorted by; those without a value come last."""
    return (True, "", 0) if key is None else (False, *key)
