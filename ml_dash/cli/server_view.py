"""One experiment read from its server, for the reading commands with --remote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from ml_dash.core.limits import MAX_LIMIT
from ml_dash.core.names import experiment_id
from ml_dash.core.ranges import page_of
from ml_dash.errors import InvalidValue
from ml_dash.reading.located import Located

if TYPE_CHECKING:
    from ml_dash.client import RemoteClient
    from ml_dash.core.records import LogEntry, LogPage, MetricStats, MetricSummary, Point, PointPage
    from ml_dash.sync.registrations import Registration


class ServerView:
    """An `ExperimentView` of what a server has. For one command: the list of metrics is asked for once, and kept."""

    def __init__(self, client: RemoteClient, located: Located) -> None:
        self._client = client
        self._id = experiment_id(located.project, located.name)
        self._metrics: list[MetricSummary] | None = None

    def metrics(self) -> list[MetricSummary]:
        """All metrics, sorted by name."""
        if self._metrics is None:
            self._metrics = cast("list[MetricSummary]", self._client.metrics(self._id))
        return self._metrics

    def metric_stats(self, name: str) -> MetricStats:
        """Number of points of a metric, and the statistics of each series."""
        return self._client.stats(self._id, name)

    def metric_page(self, name: str, start_index: int = 0, limit: int = 1000, *, superseded: bool = True) -> PointPage:
        """Up to `limit` points from `start_index` on; a negative start counts from the end."""
        return self._client.points(self._id, name, start_index, limit, superseded=superseded)

    def each_point(self, name: str, *, superseded: bool = True) -> Iterator[Point]:
        """All points of a metric in order, without `superseded` only the current ones."""
        start, more = 0, True
        while more:
            page = self.metric_page(name, start, MAX_LIMIT, superseded=superseded)
            yield from page["data"]
            start, more = page["endIndex"] + 1, page["hasMore"]

    def logs(self, start_index: int = 0, limit: int = 1000, level: str | None = None) -> LogPage:
        """Up to `limit` log entries from `start_index` on; with `level`, as if only those of that level existed."""
        if level is None:
            return self._client.logs(self._id, start_index, limit)
        matching = list(self.each_log(level=level))
        [(start, stop)] = page_of([(0, len(matching))], start_index, limit) or [(0, 0)]
        entries = matching[start:stop]
        return {
            "logs": entries, "startIndex": start, "endIndex": stop - 1, "total": len(entries),
            "hasMore": stop < len(matching),
        }  # fmt: skip

    def each_log(self, start: int = 0, level: str | None = None) -> Iterator[LogEntry]:
        """All log entries from number `start` on, with `level` only those of that level; the server searches."""
        return self._client.each_log(self._id, start, level=level)

    def refuse_released(self, metric: str | None = None, start: int = 0) -> None:
        """Do nothing: a server keeps what was freed on this machine."""

    def series(self, name: str, series: str | None = None, max_points: int = 1000) -> list[tuple[float, float]]:
        """(x, y) of one series, down-sampled to about `max_points`; the extremes stay."""
        drawn: Any = self._client.series(self._id, name, min(max_points, MAX_LIMIT))["series"]
        line = drawn.get(series or name, {"x": [], "value": []})
        return [(float(x), float(y)) for x, y in zip(line["x"], line["value"], strict=True)]


def connect(located: Located) -> ServerView:
    """Return a view of an experiment on the server that it is sent to, or else on the one that ML_DASH_REMOTE names.

    It is asked with the login that the experiment is registered with. Raises InvalidValue if there is no server,
    RemoteError if it does not answer.
    """
    from ml_dash.client import RemoteClient
    from ml_dash.sync.identity import with_identity

    registration = _registration(located)

    def attempt(_: int, token: str) -> RemoteClient:
        client = RemoteClient(registration.remote, api_key=token)
        client.whoami()
        return client

    return ServerView(with_identity(registration, attempt), located)


def _registration(located: Located) -> Registration:
    """The registration to ask with: a claimed one first, to the server of ML_DASH_REMOTE if that is set."""
    from ml_dash.disk.settings import resolve
    from ml_dash.sync import registrations

    mine = registrations.of_journal(located.journal, registrations.by_journal(registrations.read_all()))
    settings = resolve()
    here = [one for one in mine if settings.remote in (None, one.remote)]
    if here:
        return min(here, key=lambda one: not one.is_claimed)
    if settings.remote is None:
        raise InvalidValue(
            f"{located.project}/{located.name} is not registered with any server here", hint="set ML_DASH_REMOTE"
        )
    return registrations.registration_for(located.journal, settings)
