"""Series of several local experiments for charts, and the indexes that they are drawn from."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from ..core.envelope import MARKS, OF_METRIC, STEP, X_KINDS, Drawn, DrawnPage
from ..core.limits import MAX_LIMIT
from ..core.ranges import Range
from ..core.records import metric_meant, series_name
from ..core.state import State
from ..errors import InvalidValue
from . import stretches
from .cached import cache_file, database
from .drawing import Axis, Drawable, draw, draw_split, over_metric
from .indexing import Indexer, Work
from .log_index import LogIndex, extend_logs, load_logs
from .source import SeriesRequest
from .view import Lines, View

KIND: Final = "series"
"""The kind of the cache files (see `cached.cache_file`)."""
# Lines that are rather decoded each time than indexed.
_FEW_LINES: Final = 5_000


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an experiment at one moment, and where its lines are."""

    experiment: str
    journal: Path
    metric: str
    field: str
    fields: tuple[str, ...]
    lines: Lines
    superseded: tuple[Range, ...]
    created_us: int


def series_of(id: str, view: View, name: str) -> Series | None:
    """Return a series of an experiment by its name; None if it has none of that name."""
    state = view.state
    metric = state.metrics.get(metric_meant(state, name))
    field = _field_of(state, name)
    if metric is None or field is None:
        return None
    fields = tuple(sorted(metric.series))
    superseded = tuple(metric.superseded)
    created_us = state.created_ns // 1000
    return Series(id, view.journal, metric.name, field, fields, view.point_lines(metric.name), superseded, created_us)


def _field_of(state: State, name: str) -> str | None:
    metric = state.metrics.get(metric_meant(state, name))
    if metric is None:
        return None
    return next((field for field in metric.series if series_name(metric.name, field) == name), None)


def check_request(request: SeriesRequest) -> None:
    """Raise InvalidValue for a request that makes no sense."""
    if not 1 <= request.points <= MAX_LIMIT:
        raise InvalidValue(f"points is {request.points}", hint=f"use 1 to {MAX_LIMIT:,}")
    if request.x not in X_KINDS and not request.x.startswith(OF_METRIC):
        hint = f"use one of {', '.join(X_KINDS)}, or {OF_METRIC}NAME"
        raise InvalidValue(f"x is {request.x[:80]!r}", hint=hint)


class Charts:
    """Draws series, and keeps indexes of points and log lines in a folder of the cache. Any thread may call."""

    def __init__(self, folder: Path, indexer: Indexer) -> None:
        self._folder = folder
        self._indexer = indexer
        self._logs: dict[Path, LogIndex] = {}

    # -- indexes ------------------------------------------------------------------------------------------------------

    def bring(self, series: Iterable[Series]) -> None:
        """Bring the indexes of series up to date, as far as the indexer's patience goes."""
        jobs: dict[object, Work] = {}
        for one in series:
            have = self._indexed(one)
            start = have.lines if have is not None else one.lines.known.first
            if one.lines.known.lines - start > _FEW_LINES:
                jobs[one.journal, one.metric] = partial(self._extend, one)
        self._indexer.bring(jobs)

    def _extend(self, one: Series) -> bool:
        with self._database(one.journal) as link:
            return stretches.extend(link, one.metric, one.fields, one.lines) > 0

    def _indexed(self, one: Series) -> stretches.Indexed | None:
        if not self._path(one.journal).exists():
            return None
        with contextlib.suppress(OSError, sqlite3.Error), self._database(one.journal) as link:
            return stretches.indexed(link, one.metric, one.lines)
        return None

    def _path(self, journal: Path) -> Path:
        return cache_file(self._folder, KIND, journal)

    @contextmanager
    def _database(self, journal: Path) -> Iterator[sqlite3.Connection]:
        with database(self._path(journal), stretches.SCHEMA, stretches.VERSION) as link:
            yield link

    def log_index(self, journal: Path, lines: Lines) -> LogIndex | None:
        """Return the index of log lines, brought up to date as far as patience goes; None if there is none."""
        known = self._logs.get(journal)
        start = known.end if known is not None else lines.known.first
        if lines.known.lines - start > _FEW_LINES:
            self._indexer.bring({(journal, None): partial(self._extend_logs, journal, lines)})
        if not self._path(journal).exists():
            return None
        try:
            with self._database(journal) as link:
                found = load_logs(link, lines, known)
        except (OSError, sqlite3.Error):
            return None
        if found is None:
            self._logs.pop(journal, None)
        else:
            self._logs[journal] = found
        return found

    def _extend_logs(self, journal: Path, lines: Lines) -> bool:
        with self._database(journal) as link:
            return extend_logs(link, lines) > 0

    def forget(self, journal: Path) -> None:
        """Remove what is kept of an experiment."""
        self._logs.pop(journal, None)
        with contextlib.suppress(OSError):
            self._path(journal).unlink(missing_ok=True)

    # -- drawing ------------------------------------------------------------------------------------------------------

    def draw(self, one: Series, request: SeriesRequest, other: Series | None = None) -> tuple[list[Drawn], int]:
        """Return the envelopes of a series, and how many of its points are drawn as long as it is being indexed.

        `other` is the series over which it is drawn, if that was asked for. Raises OSError or Damaged if the lines are
        not what was written.
        """
        if not request.x.startswith(OF_METRIC):
            return self._draw(one, request, Axis(request.x, one.created_us))
        plain = replace(request, x=STEP, low=None, high=None)
        drawn, drawn_of = self._draw(one, plain, Axis(STEP))
        if other is None:
            for each in drawn:
                each.x_meant = each.x_meant or STEP
            return drawn, drawn_of
        fine = replace(plain, points=MAX_LIMIT, split=None)
        [over], _ = self._draw(other, fine, Axis(STEP))
        found = [over_metric(each, over) for each in drawn]
        for each in found:
            _cut(each, request.low, request.high)
        return found, drawn_of

    def _draw(self, one: Series, request: SeriesRequest, axis: Axis) -> tuple[list[Drawn], int]:
        is_busy = self._indexer.is_busy((one.journal, one.metric))
        with self._opened(one.journal) as link:
            have = stretches.indexed(link, one.metric, one.lines) if link is not None else None
            # What is not indexed yet would take too long to read from the lines.
            end = one.lines.total if not is_busy else have.lines if have is not None else one.lines.known.first
            end = min(end, one.lines.total)
            bounds = request.low, request.high
            of = Drawable(one.metric, one.field, one.lines, one.superseded, link, have, end)
            if request.split is None:
                found = [draw(of, axis, request.points, *bounds, superseded=request.superseded)]
            else:
                of = replace(of, end=one.lines.total)
                found = draw_split(of, axis, request.points, request.split, *bounds, superseded=request.superseded)
        for each in found:
            each.experiment = one.experiment
        return found, end - one.lines.known.first

    @contextmanager
    def _opened(self, journal: Path) -> Iterator[sqlite3.Connection | None]:
        """Give the database of an experiment; None if there is none, or it cannot be used."""
        with contextlib.ExitStack() as stack:
            link = None
            if self._path(journal).exists():
                with contextlib.suppress(OSError, sqlite3.Error):
                    link = stack.enter_context(self._database(journal))
            yield link


def _cut(drawn: Drawn, low: float | None, high: float | None) -> None:
    """Leave out the buckets of a series whose x is not within bounds."""
    if low is None and high is None:
        return
    kept = [
        place for place, x in enumerate(drawn.x) if (low is None or x >= low) and (high is None or x <= high)
    ]  # fmt: skip
    # A line must not be joined across what was left out.
    drawn.breaks = sorted(
        new
        for new in range(1, len(kept))
        if kept[new] - kept[new - 1] > 1 or any(kept[new - 1] < place <= kept[new] for place in drawn.breaks)
    )
    drawn.index, drawn.x = [drawn.index[place] for place in kept], [drawn.x[place] for place in kept]
    drawn.low, drawn.high = [drawn.low[place] for place in kept], [drawn.high[place] for place in kept]
    drawn.marks = [
        mark for mark in drawn.marks if (low is None or mark.x >= low) and (high is None or mark.x <= high)
    ][:MARKS]


def page_of(
    request: SeriesRequest, series: Mapping[str, Series | None], drawn: Mapping[str, tuple[list[Drawn], int]]
) -> DrawnPage:
    """Return the answer: what was drawn, what is missing, and how far indexes have come."""
    missing = [id for id in request.experiments if not drawn.get(id, ([], 0))[0]]
    shown = [one for id in dict.fromkeys(request.experiments) for one in drawn.get(id, ([], 0))[0]]
    known = [one for one in series.values() if one is not None]
    points = sum(one.lines.total - one.lines.known.first for one in known)
    done = sum(drawn[one.experiment][1] for one in known if one.experiment in drawn)
    return DrawnPage(request.metric, request.x, shown, missing, (done, points) if done < points else None)


