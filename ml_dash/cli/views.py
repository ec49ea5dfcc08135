"""The start of every reading command: one experiment, found and brought up to date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ml_dash.core.json_values import texts_like_numbers
from ml_dash.errors import NotFound
from ml_dash.projection.projector import Projector
from ml_dash.reading import read
from ml_dash.reading.located import Located
from ml_dash.reading.view import View, nearest

if TYPE_CHECKING:
    from ml_dash.core.records import (
        ExperimentRecord,
        FileRecord,
        LogEntry,
        LogPage,
        MetricStats,
        MetricSummary,
        Point,
        PointPage,
    )


def local_view(experiment: str | None, path: Path | None, as_of: str | None = None) -> tuple[Located, View]:
    """Find an experiment and bring its folder up to date; return its place and a view of it, consistent in itself.

    With `as_of`, as it was at that moment. Raises NotFound if there is none, InvalidValue if there are several.
    """
    located = read.locate(experiment, path)
    bring_up_to_date(located)
    return located, view_of(located, as_of)


def view_of(located: Located, as_of: str | None) -> View:
    """Return a view of an experiment on this machine as it is, or with `as_of` as it was at that moment."""
    if as_of is None:
        return read.view(located)
    from ml_dash.reading.as_of import view_as_of

    return view_as_of(located, as_of)


class ExperimentView(Protocol):
    """What reading commands ask of an experiment, on this machine (`View`) or on a server (`ServerView`).

    Indices and numbers count from 0 in the order of the experiment; a negative `start_index` counts from the end. On
    this machine, what `gc` freed or `pull` did not bring is missing: call `refuse_released` before using them.
    """

    def record(self) -> ExperimentRecord:
        """What `experiment.json` says."""
        ...

    def parameters(self) -> dict[str, Any]:
        """The flat parameters, in the order in which they were first set."""
        ...

    def files(self) -> list[FileRecord]:
        """Records of current files, oldest first."""
        ...

    def metrics(self) -> list[MetricSummary]:
        """All metrics, sorted by name."""
        ...

    def metric_stats(self, name: str) -> MetricStats:
        """Number of points of a metric, and the statistics of each series. Raises NotFound."""
        ...

    def metric_page(self, name: str, start_index: int = 0, limit: int = 1000, *, superseded: bool = True) -> PointPage:
        """Up to `limit` points from `start_index` on, without `superseded` only current ones. Raises NotFound."""
        ...

    def each_point(self, name: str, *, superseded: bool = True) -> Iterator[Point]:
        """All points of a metric in order, without `superseded` only the current ones. Raises NotFound."""
        ...

    def logs(self, start_index: int = 0, limit: int = 1000, level: str | None = None) -> LogPage:
        """Up to `limit` log entries from `start_index` on; with `level`, as if only those of that level existed."""
        ...

    def each_log(self, start: int = 0, level: str | None = None) -> Iterator[LogEntry]:
        """All log entries from number `start` on, in order; with `level` only those of that level."""
        ...

    def refuse_released(self, metric: str | None = None, start: int = 0) -> None:
        """Raise ReleasedData if points of a metric (None: log entries) from `start` on are not on this machine."""
        ...

    def series(self, name: str, series: str | None = None, max_points: int = 1000) -> list[tuple[float, float]]:
        """(x, y) of one series (None: the one named like the metric), down-sampled to about `max_points`."""
        ...


def choose_view(
    experiment: str | None, path: Path | None, *, remote: str | None = None, as_of: str | None = None
) -> ExperimentView:
    """Return a view of an experiment: as it is on this machine, brought up to date, or as a server has it.

    `remote` and `as_of` are the values of the options of these names.
    """
    if remote is None:
        return local_view(experiment, path, as_of)[1]
    from ml_dash.cli.server_view import server_view

    return server_view(experiment, path, remote, as_of)


def bring_up_to_date(located: Located) -> None:
    """Project what is new, and what a killed process left behind, where this user may write.

    Where that is not possible, or another process is doing it, nothing is lost: views fold the rest in memory.
    """
    try:
        Projector(located.journal, located.folder).advance()
    except OSError:
        return


def json_point(point: Any) -> dict[str, Any]:
    """A point as in data.jsonl: `text` names the fields whose text could be mistaken for NaN or an infinity."""
    texts = texts_like_numbers(point["data"])
    return {**point, "text": texts} if texts else point


def resolve_metric(view: ExperimentView, text: str) -> tuple[str, str | None]:
    """Return (metric, series) for a name that a user gave: a metric (series None: all), or else a series of one.

    Raises NotFound, suggesting names that are near.
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
