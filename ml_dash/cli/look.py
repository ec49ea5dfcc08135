"""One experiment, found and brought up to date: how every reading command starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ml_dash.core.values import texts_like_numbers
from ml_dash.errors import NotFound
from ml_dash.projection.project import Projector
from ml_dash.reading import read
from ml_dash.reading.view import nearest

if TYPE_CHECKING:
    from ml_dash.core.records import LogEntry, LogPage, MetricStats, MetricSummary, Point, PointPage


def look(experiment: str | None, path: Path | None) -> tuple[read.Located, read.View]:
    """The experiment that is meant, its folder up to date, and a consistent view of it."""
    located = read.locate(experiment, path)
    bring_up_to_date(located)
    return located, read.view(located)


class Reading(Protocol):
    """What reading commands ask, of an experiment here or on a server; see `View`."""

    def metrics(self) -> list[MetricSummary]: ...
    def metric_stats(self, name: str) -> MetricStats: ...
    def metric_page(
        self, name: str, start_index: int = 0, limit: int = 1000, *, superseded: bool = True
    ) -> PointPage: ...
    def each_point(self, name: str, *, superseded: bool = True) -> Iterator[Point]: ...
    def logs(self, start_index: int = 0, limit: int = 1000, level: str | None = None) -> LogPage: ...
    def each_log(self) -> Iterator[LogEntry]: ...
    def refuse_released(self, metric: str | None = None, start: int = 0) -> None: ...
    def series(self, name: str, series: str | None = None, max_points: int = 1000) -> list[tuple[float, float]]: ...


def look_at(experiment: str | None, path: Path | None, *, away: bool) -> Reading:
    """A view of the experiment that is meant: here, up to date, or as its server has it."""
    if not away:
        return look(experiment, path)[1]
    from ml_dash.cli.away import connect

    return connect(read.locate(experiment, path))


def bring_up_to_date(located: read.Located) -> None:
    """Projects what is new, and what a killed process left behind, where this user may write.

    Elsewhere, and while another process is at it, the view folds the rest in memory.
    """
    try:
        Projector(located.journal, located.folder).advance()
    except OSError:
        return


def json_point(point: Any) -> dict[str, Any]:
    """A point as in data.jsonl: `text` names the fields whose text would pass for NaN or an infinity."""
    texts = texts_like_numbers(point["data"])
    return {**point, "text": texts} if texts else point


def meant(view: Reading, text: str) -> tuple[str, str | None]:
    """(metric, its series or None for all) that a text means: a metric's name, or else one that a table shows.

    Raises NotFound naming what is near.
    """
    all_stats = {entry["name"]: view.metric_stats(entry["name"]) for entry in view.metrics()}
    if text in all_stats:
        return text, None
    for name, stats in all_stats.items():
        if text in stats["series"]:
            return name, text
    known = ", ".join(list(all_stats)[:10]) + (", ..." if len(all_stats) > 10 else "")
    series = [series for stats in all_stats.values() for series in stats["series"]]
    hint = nearest(text, [*all_stats, *series]) + f"it has: {known}" if all_stats else "it has no metrics"
    raise NotFound(f"no metric {text!r}", hint=hint)
