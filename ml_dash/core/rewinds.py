"""The effect of a rewind: points of an earlier time at or after its step (else epoch) are superseded.

The state holds no points. For each metric it keeps the statistics as they were at the ends of spans of points, and the
greatest step in each span. So a rewind finds the spans that it may hit without reading points; the points from the
first of these spans on are then read back from the sink, once for a stretch of events, and counted anew. Which points
are superseded depends only on the times of points and rewinds, never on the order of arrival, and counting anew gives
the same statistics as counting once.

Times are compared in microseconds, as lines show them. A writer gives a rewind a whole microsecond that no earlier
point of its own shares.

The spans of a metric with 9,400 points; each knows the statistics up to its end, and the least and greatest step in it:

    index   0        2000     4000     6000 7000 8000 9000 9400
            |  2000  |  2000  |  2000  |1000|1000|1000| 400 after the last span

A rewind to a step in the span from 7000 on reads back the points from 7000 on, and begins with the statistics at 7000.
Of the spans behind it, those of which all points are earlier and not before the step are superseded without being read.
Old spans are longer, so that a metric of n points has about 4 log2(n / 1000) of them; a rewind far back reads more.

The work has three steps, and each may be repeated:

1. `note` adds a rewind to the state. `count_points` adds points, and marks metrics whose new points an earlier rewind
   may hit: points may arrive late.
2. `settle` decides from which time each rewind counts, and marks the metrics that this concerns.
3. `recount`, once a sink has the lines, counts the marked metrics anew. A crash before it does no harm: a checkpoint is
   taken after it, and without one the events are folded again.

Nothing is removed by a rewind: points keep their indices, and `superseded` says which do not count.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import compress, groupby
from typing import Final

from .ranges import Range
from .state import Edits, Metric, Reach, Rewind, Series, Span, State, WriterState
from .statistics import Columns, Rows, columns_of, count_columns, step_of, steps_of
from .times import parse_time, utc_text

SPAN: Final = 1000
"""Points of a new span."""

# Spans of one size that are kept before the two oldest are joined: memory grows with the logarithm of the points.
_OF_ONE_SIZE: Final = 4
# In ns.
_MICROSECOND: Final = 1000
# Bounds of a reach of which nothing is known.
_INFINITY: Final = float("inf")
_LATEST_NS: Final = (1 << 63) - 1

Past = tuple[Rows, list[str]]
"""(fields, times as UTC text) of consecutive points."""

History = Callable[[str, int, int], Iterator[Past]]
"""history(metric, start, end): the points with these indices, in parts. Raises Elsewhere."""


class Elsewhere(Exception):
    """Some of the requested points are not on this machine: a base stands for them."""


# -- counting points as they come -------------------------------------------------------------------------------------


def count_points(
    state: State, metric: Metric, rows: Rows, times: list[int] | int, columns: Columns, edits: Edits
) -> None:
    """Count new points of a metric. If a rewind may hit some of them, mark the metric in `edits` for `recount`.

    Points are cut into pieces at the ends of spans, wherever the batches end. So the spans, and with them the whole
    state, are the same however the points were split.
    """
    position, count = 0, len(rows)
    # A column can be cut like the rows if each point has the field. Otherwise the columns of a piece are made anew.
    uniform = True
    while position < count:
        begun = metric.spans[-1].end if metric.spans else 0
        # `max`: a piece is never empty, or this would not end.
        end = min(count, position + max(1, SPAN - (metric.count - begun)))
        if position or end < count:
            piece = rows[position:end]
            uniform = uniform and all(len(values) == count for values in columns.values())
            part = {name: values[position:end] for name, values in columns.items()} if uniform else _columns(piece)
        else:
            piece, part = rows, columns
        if isinstance(times, int):
            first_ns = last_ns = times
        else:
            moments = times[position:end]
            first_ns, last_ns = min(moments), max(moments)
        reach = _reach(piece, part, _cut(first_ns), _cut(last_ns))
        # Points that are older than a rewind that was folded before them: from another writer, or sent late.
        if state.rewinds and any(_may_hit(rewind, metric.name, reach) for rewind in state.rewinds):
            edits.rewound[metric.name] = min(edits.rewound.get(metric.name, metric.count), metric.count)
        count_columns(metric.series, part)
        metric.count += len(piece)
        metric.reach = _joined(metric.reach, reach)
        if metric.count - begun >= SPAN:
            metric.spans.append(Span(metric.count, metric.reach, _copied(metric.series)))
            metric.reach = Reach()
            _join_old(metric.spans)
        position = end


def _columns(rows: Rows) -> Columns:
    """Return the columns of points whose values were checked before."""
    return columns_of(rows, checked=True) or {}


def _cut(time_ns: int) -> int:
    """Return a time in ns cut to whole microseconds, which is what a line shows."""
    return time_ns - time_ns % _MICROSECOND


def _reach(rows: Rows, columns: Columns, first_ns: int, last_ns: int) -> Reach:
    """Return the reach of some points whose times lie between these two."""
    steps = steps_of(rows, columns)
    if not steps:
        return Reach(len(rows), bare=True, first_ns=first_ns, last_ns=last_ns)
    return Reach(len(rows), min(steps), max(steps), len(steps) < len(rows), first_ns, last_ns)


def _joined(a: Reach, b: Reach) -> Reach:
    """Return the reach of two ranges of points together."""
    if not a.points or not b.points:
        return a if a.points else b
    low, high = a.low, a.high
    if low is None or (b.low is not None and b.low < low):
        low = b.low
    if high is None or (b.high is not None and b.high > high):
        high = b.high
    first_ns = a.first_ns if a.first_ns < b.first_ns else b.first_ns
    last_ns = a.last_ns if a.last_ns > b.last_ns else b.last_ns
    return Reach(a.points + b.points, low, high, a.bare or b.bare, first_ns, last_ns)


def _join_old(spans: list[Span]) -> None:
    """Keep at most four spans of each size: of five, join the two oldest. So the oldest spans are the longest."""
    size, last = SPAN, len(spans)
    # From the newest size to the oldest: joining two spans may make five of the next size.
    while True:
        first = last
        # Spans of one size lie beside each other; go back to the first of them.
        while first and spans[first - 1].end - (spans[first - 2].end if first > 1 else 0) == size:
            first -= 1
        if last - first <= _OF_ONE_SIZE:
            return
        a, b = spans[first], spans[first + 1]
        # The statistics at the end of the second one are those at the end of both.
        spans[first : first + 2] = [Span(b.end, _joined(a.reach, b.reach), b.series)]
        size, last = size * 2, first + 1


def _copied(all_series: dict[str, Series]) -> dict[str, Series]:
    """Return copies of the statistics at this moment: counting goes on in the originals."""
    return {name: replace(series) for name, series in all_series.items()}


# -- rewinds ----------------------------------------------------------------------------------------------------------


def note(state: State, rewind: Rewind) -> None:
    """Add a rewind to the state; `settle` decides what it does."""
    insort(state.rewinds, rewind, key=lambda rewind: (rewind.time_ns, rewind.writer))


def may_settle(state: State, writer: WriterState, before_ns: int) -> bool:
    """True if new events of a writer, whose last one was at `before_ns`, may change the result of `settle`.

    They may show that the writer ran beside another one that has rewound.
    """
    # Two rewinds belong together if one writer still wrote when the other began. New events show this only of a writer
    # that has rewound, and only if until now it was not known to have written after the other one's beginning.
    begun = [state.writers[rewind.writer].first_ns for rewind in state.rewinds]
    return before_ns <= max(begun) and any(rewind.writer == writer.id for rewind in state.rewinds)


def settle(state: State, edits: Edits) -> None:
    """Decide from when each rewind counts (`before_ns`), and mark in `edits` the metrics for which that has changed.

    A rewind counts from its own time. But each of several ranks of a job may rewind to the step from which all
    continue, and what the first has recorded since must stay when the next one rewinds. So the n-th rewind of a writer
    to a step counts from when the n-th one of a writer beside it did, if that was earlier. Beside: it still wrote when
    this one began.
    """
    nth: Counter[tuple[object, ...]] = Counter()
    groups: dict[tuple[object, ...], list[Rewind]] = {}
    for rewind in state.rewinds:
        # Ranks that continue together rewind to the same step, each once for each time that the job starts again: so
        # the first rewind of one belongs to the first of another, the second to the second.
        what = (rewind.step, None if rewind.metrics is None else tuple(rewind.metrics))
        number = nth[rewind.writer, what]
        nth[rewind.writer, what] += 1
        group = groups.setdefault((what, number), [])
        began_ns = state.writers[rewind.writer].first_ns
        beside = [
            other.before_ns
            for other in group
            if other.writer != rewind.writer and state.writers[other.writer].last_ns > began_ns
        ]
        # Rewinds are sorted by time, so those that may come before it are in the group already.
        group.append(rewind)
        # Up, not down: a point in the same microsecond, before the rewind, shows the same time as it.
        before_ns = min([_whole(rewind.time_ns), *beside])
        # New (-1), or an event has shown that writers ran beside each other.
        if before_ns != rewind.before_ns:
            lowered = before_ns < rewind.before_ns
            rewind.before_ns = before_ns
            _mark(state, rewind, edits, lowered=lowered)


def _whole(time_ns: int) -> int:
    """Round a time in ns up to a whole microsecond."""
    return -(-time_ns // _MICROSECOND) * _MICROSECOND


def _mark(state: State, rewind: Rewind, edits: Edits, *, lowered: bool) -> None:
    """Mark the points that a rewind may hit to be counted anew.

    With `lowered` it counts from an earlier time than before, so also the points that it no longer hits.
    """
    for name in state.metrics if rewind.metrics is None else rewind.metrics:
        metric = state.metrics.get(name)
        if metric is None:
            continue
        # A reach is of current points only. Points that were superseded until now are in none, and may become current
        # again: so nothing is known of the spans from the first such point on.
        if lowered and metric.superseded:
            start = metric.superseded[0][0]
            for span in metric.spans:
                if span.end > start:
                    span.reach = _unknown()
            metric.reach = _unknown()
        begun = 0
        # The first span that may be hit is enough: everything from there on is looked at.
        for end, reach in _reaches(metric):
            if _may_hit(rewind, name, reach):
                edits.rewound[name] = min(begun, edits.rewound.get(name, begun))
                break
            begun = end


def _reaches(metric: Metric) -> Iterator[tuple[int, Reach]]:
    """Yield (end, reach) of each span; last that of the points after all spans."""
    for span in metric.spans:
        yield span.end, span.reach
    yield metric.count, metric.reach


def _unknown() -> Reach:
    """Return the reach of points of which nothing is known: any rewind may hit some of them."""
    # `bare`, so that `covers` never takes such a span for superseded as a whole without reading it.
    return Reach(1, -_INFINITY, _INFINITY, bare=True, last_ns=_LATEST_NS)


def _may_hit(rewind: Rewind, name: str, reach: Reach) -> bool:
    """True if a rewind may supersede a point of this reach; False is certain."""
    return (
        reach.high is not None
        and reach.high >= rewind.step
        and (reach.first_ns < rewind.before_ns or rewind.before_ns < 0)
        and (rewind.metrics is None or name in rewind.metrics)
    )


def last_step(state: State) -> int | float | None:
    """Return the greatest step (else epoch) of the current points; None if none has one."""
    steps = map(last_step_of, state.metrics.values())
    return max((step for step in steps if step is not None), default=None)


def last_step_of(metric: Metric) -> int | float | None:
    """Return the greatest step (else epoch) of a metric's current points; None if none has one."""
    # Reaches hold current points only, as long as `recount` has run.
    highs = [reach.high for _, reach in _reaches(metric)]
    return max((high for high in highs if high is not None and high < _INFINITY), default=None)


# -- counting anew ----------------------------------------------------------------------------------------------------


def recount(state: State, edits: Edits, history: History) -> None:
    """Count anew the metrics that `edits` marks, each from the last span before the first point that is hit.

    Their lines must have been applied: `history` reads them back.
    """
    # Taken once, so that a second call does nothing.
    rewound, edits.rewound = edits.rewound, {}
    for name, start in rewound.items():
        metric = state.metrics[name]
        try:
            _recount(metric, start, Judge(state, name), history)
        except Elsewhere:
            # The points are on a server only. What was counted before stays, and is marked: a wrong answer that says
            # so.
            metric.unsure = True
        edits.metrics.add(name)


def _recount(metric: Metric, start: int, judge: Judge, history: History) -> None:
    """Count a metric anew, from the last span that ends at or before index `start`.

    Nothing of the metric changes until all is counted: `history` may raise Elsewhere in between.
    """
    # These are as they were: their statistics are what counting begins with.
    spans = [span for span in metric.spans if span.end <= start]
    begun, series = (spans[-1].end, _copied(spans[-1].series)) if spans else (0, {})
    superseded = [(low, min(high, begun)) for low, high in metric.superseded if low < begun]
    open_reach = Reach()
    for end, known in list(_reaches(metric))[len(spans) :]:
        reach = Reach()
        # Also a span of which nothing was current: it stays superseded.
        if judge.covers(known):
            _add(superseded, begun, end)
        elif begun < end:
            reach = _count_again(series, judge, history(metric.name, begun, end), begun, end, superseded)
        # All but the last of `_reaches` are spans; the last one is what comes after them.
        if end < metric.count or len(spans) < len(metric.spans):
            spans.append(Span(end, reach, _copied(series)))
        else:
            open_reach = reach
        begun = end
    metric.series, metric.spans, metric.reach, metric.superseded = series, spans, open_reach, superseded


def _count_again(
    series: dict[str, Series], judge: Judge, points: Iterator[Past], start: int, end: int, superseded: list[Range]
) -> Reach:
    """Count the current ones of points [start, end), note the others as superseded; return the reach of the current."""
    total = Reach()
    for rows, times in points:
        columns, count = _columns(rows), len(rows)
        current = judge.current(rows, columns, times)
        if current is not None:
            # Ranges, not single indices: a rewind mostly supersedes points that lie beside each other.
            for is_current, group in groupby(current):
                size = len(list(group))
                if not is_current:
                    _add(superseded, start, start + size)
                start += size
            rows, times = list(compress(rows, current)), list(compress(times, current))
            # Each point has each field, so a column can be filtered like the rows; this is faster than making it anew.
            if all(len(values) == count for values in columns.values()):
                columns = {name: list(compress(values, current)) for name, values in columns.items()}
            else:
                columns = _columns(rows)
        else:
            start += count
        if rows:
            count_columns(series, columns)
            total = _joined(total, _reach(rows, columns, parse_time(min(times)), parse_time(max(times))))
    # The history ended early: some of the points are not here.
    if start != end:
        raise Elsewhere
    return total


def _add(ranges: list[Range], start: int, end: int) -> None:
    """Add [start, end), which comes after all ranges."""
    if ranges and ranges[-1][1] == start:
        ranges[-1] = (ranges[-1][0], end)
    elif start < end:
        ranges.append((start, end))


class Judge:
    """Decides which points of a metric are superseded, by their times and steps.

    Times are compared as texts: UTC with a fixed number of digits sorts as time does, and lines hold texts.
    """

    def __init__(self, state: State, name: str) -> None:
        # A later rewind to the same or a smaller step covers an earlier one. Without those, times and steps both grow,
        # and one bisection by time finds the smallest step that applies.
        self._times: list[str] = []
        self._steps: list[int | float] = []
        applying = [rewind for rewind in state.rewinds if rewind.metrics is None or name in rewind.metrics]
        for rewind in sorted(applying, key=lambda rewind: (-rewind.before_ns, rewind.step)):
            if not self._steps or rewind.step < self._steps[-1]:
                self._times.append(utc_text(rewind.before_ns))
                self._steps.append(rewind.step)
        self._times.reverse()
        self._steps.reverse()

    def covers(self, reach: Reach) -> bool:
        """True if none of the points that were current stays so: then they need not be read."""
        if not reach.points:
            return True
        return reach.low is not None and not reach.bare and self._covers(utc_text(reach.last_ns), reach.low)

    def current(self, rows: Rows, columns: Columns, times: list[str]) -> list[bool] | None:
        """Return for each of some points whether it is current; None if all are."""
        first, last = bisect_right(self._times, min(times)), bisect_right(self._times, max(times))
        # All are at or later than the last rewind that applies.
        if first == len(self._times):
            return None
        steps: list[int | float | None] = [*steps_of(rows, columns)]
        if len(steps) < len(rows):
            steps = list(map(step_of, rows))
        # No rewind lies between the earliest and the latest of them, so one step decides for all.
        if first == last:
            limit = self._steps[first]
            return [step is None or step < limit for step in steps]
        return [not self._covers(time, step) for time, step in zip(times, steps, strict=True)]

    def _covers(self, time: str, step: int | float | None) -> bool:
        """True if a point of this time and step (or later steps, for a span) is superseded."""
        place = bisect_right(self._times, time)
        return step is not None and place < len(self._times) and step >= self._steps[place]


# -- states of older versions -----------------------------------------------------------------------------------------


def add_spans(state: State) -> None:
    """Give the metrics of a state of version 1, which knows only their number of points, a span: any rewind may hit."""
    for metric in state.metrics.values():
        if metric.count and not metric.spans:
            metric.spans = [Span(metric.count, _unknown(), _copied(metric.series))]
