"""Draw a series from stored blocks: its envelope (`core.envelope`) in about n buckets, with few blocks opened.

A pyramid of summaries is stored (see `series`). Of each stretch that lies wholly in the range only the summary is read,
by column and without making an object of each: a hundred series of a hundred thousand points are two hundred thousand
stretches. Points are opened where a summary does not say enough:

    at both ends of the range          a part of the stretch counts
    beside superseded points           its least value may belong to one of those
    where values are not finite        a summary leaves NaN out, and does not say where it is
    with `split`                       a summary is of all values of the field together

What summaries know of x is the step, else the epoch, else the index. Over anything else the buckets are made by index,
and then the x of each bucket's first point is looked up.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from math import ceil, floor, inf
from typing import Any, Final, cast

from ...core.envelope import (
    EPOCH,
    INDEX,
    OF_METRIC,
    RELATIVE,
    STEP,
    WALL,
    Columns,
    Drawn,
    Envelope,
    name_of,
    points_as_columns,
    split_key,
    split_order,
)
from ...core.ranges import Range, holes, size_of
from ...core.records import metric_meant, series_name
from ...core.sampling import LINES, PART, UNITS
from ...core.state import Metric, Series, State
from ...core.statistics import NUMBERS
from ...reading.drawing import MOST_SPLITS, over_metric
from ...reading.source import SeriesRequest
from .blocks import CHUNK_BLOCKS, block_in, blocks_of, extremes_of, index_in, series_of, with_pages
from .columns import Points
from .contents import BlockEntry, Contents
from .series import LEVEL
from .summaries import Outline, decode_outline, outline_of

_CHUNK: Final = CHUNK_BLOCKS * LINES
_NONE: Final = Outline([], [], [], [], [], [])


def draw(contents: Contents, state: State, experiment: str, request: SeriesRequest) -> list[Drawn]:
    """Return the series as it is asked for, one for each value of `split`; none if the experiment has no such series.

    Raises InvalidValue for an x that there cannot be.
    """
    found = series_in(state, request.metric)
    if found is None:
        return []
    metric, name = found
    points = _Points(contents, state, metric, name, () if request.superseded else metric.superseded)
    meant = points.meant(request.x)
    drawn = points.split(request, meant) if request.split is not None else [points.whole(request, meant)]
    for one in drawn:
        one.experiment = experiment
        one.superseded = size_of(metric.superseded)
        one.x_meant = meant if meant != request.x else None
    return drawn


def series_in(state: State, name: str) -> tuple[Metric, str] | None:
    """Return the metric and the field that a series is made of."""
    metric = state.metrics.get(metric_meant(state, name))
    if metric is None:
        return None
    fields = (each for each in metric.series if series_name(metric.name, each) == name)
    found = next(fields, None)
    return None if found is None else (metric, found)


@dataclass(slots=True)
class _Line:
    """Some points of a series, by column, each with its own x."""

    indices: list[int] = field(default_factory=list)
    x: list[float] = field(default_factory=list)
    values: list[int | float] = field(default_factory=list)

    def within(self, low: float | None, high: float | None) -> _Line:
        """Return those whose x lies in [low, high]."""
        if low is None and high is None:
            return self
        line = _Line()
        for index, x, value in zip(self.indices, self.x, self.values, strict=True):
            if (low is None or x >= low) and (high is None or x <= high):
                line.add(index, x, value)
        return line

    def add(self, index: int, x: float, value: int | float) -> None:
        """Add a point."""
        self.indices.append(index)
        self.x.append(x)
        self.values.append(value)


class _Points:
    """The points of one series that are drawn: all but those in the ranges `without`. For one request."""

    def __init__(self, contents: Contents, state: State, metric: Metric, name: str, without: Sequence[Range]) -> None:
        self._contents = contents
        self._state = state
        self._metric = metric
        self._field = name
        self._key = series_of(metric.name)
        self._without = without
        self._bends = [end for _, end in metric.superseded]
        # Statistics are of current points; with the others in, nothing is known.
        self._clean = _is_clean(metric.series[name]) and (bool(without) or not metric.superseded)
        self._fields = self._newest_fields()
        # What summaries have as x: the epoch only where there is no step.
        self._stored_x = STEP if STEP in self._fields or EPOCH not in self._fields else EPOCH
        # The series over which this one is drawn.
        self._other: _Points | None = None

    # -- over what ---------------------------------------------------------------------------------------------------

    def meant(self, x: str) -> str:
        """Return over what the series is drawn if `x` is asked for."""
        if x in (INDEX, RELATIVE, WALL):
            return x
        fields = self._fields
        if x.startswith(OF_METRIC):
            found = series_in(self._state, x[len(OF_METRIC) :])
            if found is not None:
                other, its_field = found
                without = other.superseded if self._without or not self._metric.superseded else ()
                self._other = _Points(self._contents, self._state, other, its_field, without)
                return x
            x = STEP
        first, second = (STEP, EPOCH) if x == STEP else (EPOCH, STEP)
        return first if first in fields else second if second in fields else INDEX

    def _newest_fields(self) -> list[str]:
        """Return the fields of the newest points."""
        entry = self._contents.last_block(self._key)
        if entry is None:
            return []
        blocks = blocks_of(self._contents, self._key, entry.first + entry.count - 1, entry.first + entry.count)
        return next(blocks).points().fields

    # -- what is drawn -----------------------------------------------------------------------------------------------

    def whole(self, request: SeriesRequest, x: str) -> Drawn:
        """Return the series in one piece."""
        if x.startswith(OF_METRIC):
            assert self._other is not None
            over_steps = replace(request, x=STEP, low=None, high=None)
            other = self._other.whole(over_steps, STEP)
            return over_metric(self.whole(over_steps, STEP), other)
        low, high = request.low, request.high
        start, end = self._bounds(x, low, high)
        envelope = Envelope(start, end, request.points)
        if envelope.unit < PART:
            self._add_lines(envelope, start, end, x, low, high)
            return envelope.drawn()
        stored = x == self._stored_x
        # Summaries know of no other x: that is bounded by the indices alone.
        bounds = (low, high) if stored else (None, None)
        self._add_summaries(envelope, start, end, envelope.unit, *bounds)
        drawn = envelope.drawn()
        if x == INDEX:
            drawn.x = list(map(float, drawn.index))
            drawn.marks = [mark._replace(x=float(mark.at)) for mark in drawn.marks]
        elif not stored:
            drawn.x = self._x_at(drawn.index, x)
            at = self._x_at([mark.at for mark in drawn.marks], x)
            drawn.marks = [mark._replace(x=x) for mark, x in zip(drawn.marks, at, strict=True)]
        return drawn

    def split(self, request: SeriesRequest, x: str) -> list[Drawn]:
        """Return one series for each value of a field of the points, sorted by it; last of those without the field."""
        assert request.split is not None
        start, end = self._bounds(x, request.low, request.high)
        envelopes: dict[Any, tuple[Any, Envelope]] = {}
        for begin, stop in holes(self._without, start, end):
            for points, first, low, high in self._opened(begin, stop):
                line = self._line(points, first, low, high, x).within(request.low, request.high)
                found = _by_place(points, request.split)
                parts: dict[Any, _Line] = {}
                for index, at, value in zip(line.indices, line.x, line.values, strict=True):
                    key = split_key(found(index - first))
                    parts.setdefault(key, _Line()).add(index, at, value)
                for key, part in parts.items():
                    if key not in envelopes and len(envelopes) < MOST_SPLITS:
                        envelopes[key] = None if key is None else key[1], Envelope(start, end, request.points)
                    if key in envelopes:
                        _add(envelopes[key][1], part)
        drawn = []
        for key in sorted(envelopes, key=split_order):
            value, envelope = envelopes[key]
            one = envelope.drawn()
            # JSON has no infinities.
            one.split = name_of(value) if isinstance(value, float) and value - value != 0 else value
            drawn.append(one)
        return drawn

    # -- summaries ---------------------------------------------------------------------------------------------------

    def _add_summaries(
        self, envelope: Envelope, start: int, end: int, unit: int, low: float | None, high: float | None
    ) -> None:
        """Add the points [start, end) to an envelope, by summaries of `unit` points as far as these say enough."""
        for begin, stop, outline in self._outlines(start, end, unit):
            if self._suffices(begin, stop, start, end, outline, low, high):
                add_outline(envelope, outline)
                continue
            for first, last, one in _singly(begin, stop, outline):
                if self._suffices(first, last, start, end, one, low, high):
                    add_outline(envelope, one)
                    continue
                if self._clean and self._is_outside(first, last, one, low, high):
                    continue
                first, last = max(first, start), min(last, end)
                if first < last and unit > PART:
                    # Shorter ones say more.
                    self._add_summaries(envelope, first, last, _below(unit), low, high)
                elif first < last:
                    self._add_lines(envelope, first, last, self._stored_x, low, high)

    def _suffices(
        self, begin: int, stop: int, start: int, end: int, outline: Outline, low: float | None, high: float | None
    ) -> bool:
        """True if the summaries of [begin, stop) count as they are."""
        if begin < start or stop > end or next(holes(self._without, begin, stop), None) != (begin, stop):
            return False
        if not self._clean and not (sum(outline.counts) == stop - begin and _are_finite(outline)):
            return False
        if low is None and high is None:
            return True
        if self._is_bent(begin, stop):
            return False
        hull = _hull(outline)
        return hull is None or ((low is None or hull[0] >= low) and (high is None or hull[1] <= high))

    def _is_outside(self, begin: int, stop: int, outline: Outline, low: float | None, high: float | None) -> bool:
        """True if all points of [begin, stop) surely lie outside of the bounds of x."""
        hull = _hull(outline)
        if hull is None or self._is_bent(begin, stop):
            return False
        return (low is not None and hull[1] < low) or (high is not None and hull[0] > high)

    def _is_bent(self, begin: int, stop: int) -> bool:
        """True if x goes back within [begin, stop), behind superseded points: first and last say nothing of it then."""
        place = bisect_right(self._bends, begin)
        return place < len(self._bends) and self._bends[place] < stop

    def _outlines(self, start: int, end: int, unit: int) -> Iterator[tuple[int, int, Outline]]:
        """Yield (first index, index behind the last, summaries by column) of stretches that hold [start, end).

        Each summary is of `unit` points, or of fewer where such are not stored.
        """
        position = start
        if unit >= LEVEL:
            for first, count, summary in self._contents.levels(self._key, start, end):
                yield from self._shorter(position, first, unit)
                yield first, first + count, self._one(summary)
                position = first + count
        yield from self._shorter(position, end, unit)

    def _shorter(self, start: int, end: int, unit: int) -> Iterator[tuple[int, int, Outline]]:
        """Yield summaries of chunks, of blocks, or of parts."""

        def says_enough(entry: BlockEntry) -> bool:
            return unit >= (_CHUNK if entry.chunk else LINES)

        entries = self._contents.blocks(self._key, start, end) if start < end else iter(())
        for enough, group in groupby((entry for entry in entries if entry.first + entry.count > start), says_enough):
            if enough:
                for entry in group:
                    yield entry.first, entry.first + entry.count, self._one(entry.summary)
                continue
            for entry, page in with_pages(self._contents, group):
                yield entry.first, entry.first + entry.count, self._in_page(entry, page, unit)

    def _in_page(self, entry: BlockEntry, page: bytes, unit: int) -> Outline:
        """Return the summaries in the page of a chunk or a block: of its blocks or of its parts."""
        if not entry.chunk:
            encoded = block_in(page, self._key, entry).parts
        else:
            index = index_in(page)
            encoded = index.blocks if unit >= LINES else index.parts
        return decode_outline(encoded, self._field) if encoded else _NONE

    def _one(self, summary: bytes) -> Outline:
        found = extremes_of(summary).get(self._field)
        return _NONE if found is None else outline_of([found])

    # -- points ------------------------------------------------------------------------------------------------------

    def lines(self, start: int, end: int, x: str) -> Iterator[_Line]:
        """Yield the points [start, end) of the series, block by block."""
        for begin, stop in holes(self._without, start, end):
            for points, first, low, high in self._opened(begin, stop):
                yield self._line(points, first, low, high, x)

    def _add_lines(
        self, envelope: Envelope, start: int, end: int, x: str, low: float | None, high: float | None
    ) -> None:
        for line in self.lines(start, end, x):
            _add(envelope, line.within(low, high))

    def _opened(self, start: int, end: int) -> Iterator[tuple[Points, int, int, int]]:
        """Yield (points of a block, the index of its first one, begin, stop): places within it that are in range."""
        for block in blocks_of(self._contents, self._key, start, end):
            begin, stop = max(0, start - block.first), min(block.count, end - block.first)
            yield block.points(), block.first, begin, stop

    def _line(self, points: Points, first: int, begin: int, stop: int, x: str) -> _Line:
        """Return the points at places [begin, stop) of a block that have a number in the field."""
        values, places = points.column(self._field)
        if places is None:
            at: Sequence[int] = range(begin, stop)
            values = values[begin:stop]
        else:
            low, high = bisect_left(places, begin), bisect_left(places, stop)
            at, values = places[low:high], values[low:high]
        if not set(map(type, values)) <= NUMBERS:
            kept = [place for place, value in enumerate(values) if type(value) in NUMBERS]
            at, values = [at[place] for place in kept], [values[place] for place in kept]
        along = self._x_of(points, first, x)
        return _Line([first + place for place in at], [along(place) for place in at], values)

    def _x_of(self, points: Points, first: int, x: str) -> Callable[[int], float]:
        """Return the function that gives the x of a place in a block."""
        if x == INDEX:
            return lambda place: first + place
        if x in (RELATIVE, WALL):
            # In microseconds, as lines have them.
            times, since = points.times, self._state.created_ns // 1000 if x == RELATIVE else 0
            if isinstance(times, int):
                return lambda place: (times // 1000 - since) / 1_000_000
            return lambda place: (times[place] // 1000 - since) / 1_000_000
        names = (EPOCH, STEP) if x == EPOCH else (STEP, EPOCH)
        columns = [_by_place(points, name) for name in names]

        def along(place: int) -> float:
            for column in columns:
                value = column(place)
                if type(value) in NUMBERS and value - value == 0:
                    return cast("float", value)
            return first + place

        return along

    # -- bounds and look-ups -----------------------------------------------------------------------------------------

    def _bounds(self, x: str, low: float | None, high: float | None) -> Range:
        """Return the least range of indices that holds all points whose x lies in [low, high]."""
        count = self._metric.count
        if low is None and high is None:
            pieces = list(holes(self._without, 0, count))
            return (pieces[0][0], pieces[-1][1]) if pieces else (0, 0)
        least, most = -inf if low is None else low, inf if high is None else high
        if x == INDEX:
            start, end = max(0, ceil(max(least, 0))), min(count, floor(min(most, count - 1)) + 1)
            least, most = -inf, inf
        elif x == self._stored_x:
            start, end = 0, count
        else:
            # It is in no summary, and grows with the index, as times do.
            start = self._first_with(x, 0, count, lambda at: at >= least)
            end = self._first_with(x, start, count, lambda at: at > most)
            least, most = -inf, inf
        first = self._edge(start, end, LEVEL, least, most, last=False) if start < end else None
        last = None if first is None else self._edge(first, end, LEVEL, least, most, last=True)
        return (0, 0) if first is None or last is None else (first, last + 1)

    def _edge(self, start: int, end: int, unit: int, low: float, high: float, *, last: bool) -> int | None:
        """Return the first, or the last, index in [start, end) whose stored x lies in [low, high]."""
        batches = self._outlines(start, end, unit)
        stretches: Iterable[tuple[int, int, Outline]] = (one for batch in batches for one in _singly(*batch))
        for begin, stop, outline in reversed(list(stretches)) if last else stretches:
            if not outline.x or self._is_outside(begin, stop, outline, low, high):
                continue
            begin, stop = max(begin, start), min(stop, end)
            if begin >= stop:
                continue
            if unit > PART:
                found = self._edge(begin, stop, _below(unit), low, high, last=last)
            else:
                lines = (line.within(low, high).indices for line in self.lines(begin, stop, self._stored_x))
                indices = list(chain.from_iterable(lines))
                found = indices[-1 if last else 0] if indices else None
            if found is not None:
                return found
        return None

    def _first_with(self, x: str, start: int, end: int, fits: Callable[[float], bool]) -> int:
        """Return the first index in [start, end) from which on x fits; `end` if there is none."""
        while start < end:
            middle = (start + end) // 2
            # Superseded points and those without the field have no x: the next one decides.
            at = next(((line.indices[0], line.x[0]) for line in self.lines(middle, end, x) if line.indices), None)
            if at is None or fits(at[1]):
                end = middle
            else:
                start = at[0] + 1
        return start

    def _x_at(self, indices: Sequence[int], x: str) -> list[float]:
        """Return the x of points of the series, given by growing indices."""
        found: list[float] = []
        block, along = None, None
        for index in indices:
            if block is None or along is None or index >= block.first + block.count:
                block = next(blocks_of(self._contents, self._key, index, index + 1))
                along = self._x_of(block.points(), block.first, x)
            found.append(along(index - block.first))
        return found


def add_outline(envelope: Envelope, outline: Outline) -> None:
    """Add summaries, which hold finite values only, to an envelope."""
    if outline.counts:
        nothing = [0] * len(outline.counts)
        envelope.add(
            Columns(
                outline.indices, outline.counts, nothing, outline.indices, _finite_x(outline.x, outline.indices),
                outline.low, outline.high,
            )
        )  # fmt: skip


def _add(envelope: Envelope, line: _Line) -> None:
    """Add points to an envelope."""
    if line.indices:
        columns, marks = points_as_columns(line.indices, line.x, line.values)
        envelope.add(columns)
        envelope.mark(marks)


def _is_clean(series: Series) -> bool:
    """True if all values of a series are finite."""
    low, high = series.min, series.max
    return series.count == series.counted and (low is None or high is None or high - high + (low - low) == 0)


def _are_finite(outline: Outline) -> bool:
    return all(value - value == 0 for value in chain(outline.low, outline.high))


def _hull(outline: Outline) -> tuple[float, float] | None:
    """Return the least and greatest x that summaries know of; None if they are of no points."""
    if not outline.x:
        return None
    return min(min(outline.x), min(outline.last_x)), max(max(outline.x), max(outline.last_x))


def _singly(begin: int, stop: int, outline: Outline) -> Iterator[tuple[int, int, Outline]]:
    """Yield (first index, index behind the last, summary) of each stretch of a batch; together they cover all of it.

    Each reaches to the first value of the next one: what has no value belongs to the one before.
    """
    firsts = [begin, *outline.indices[1:], stop]
    for place in range(max(1, len(outline.counts))):
        yield firsts[place], firsts[place + 1], Outline(*(values[place : place + 1] for values in outline))


def _below(unit: int) -> int:
    """Return the length of the next shorter stretches."""
    return UNITS[UNITS.index(unit) - 1]


def _finite_x(x: list[Any], indices: list[int]) -> list[Any]:
    """Return x, and the index where it is an infinity: nothing can be drawn there."""
    total = sum(x)
    if total - total == 0:
        return x
    return [at if at - at == 0 else index for at, index in zip(x, indices, strict=True)]


def _between(outline: Outline, start: int, end: int) -> Outline:
    """Return the summaries of [start, end)."""
    low, high = bisect_left(outline.indices, start), bisect_left(outline.indices, end)
    return Outline(*(values[low:high] for values in outline))


def _by_place(points: Points, name: str) -> Callable[[int], Any]:
    """Return the function that gives the value of a field at a place of a block; None where there is none."""
    values, places = points.column(name)
    if places is None:
        return values.__getitem__
    return dict(zip(places, values, strict=True)).get
