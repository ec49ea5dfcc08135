"""One experiment read from a server, for the reading commands with --remote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ml_dash.core.limits import MAX_LIMIT
from ml_dash.core.names import experiment_id
from ml_dash.core.ranges import page_of
from ml_dash.errors import InvalidValue, NotFound
from ml_dash.reading import read
from ml_dash.reading.located import Located

if TYPE_CHECKING:
    from ml_dash.client import RemoteClient
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
    from ml_dash.sync.registrations import Registration

# Experiments that a name is looked for in; the latest come first.
_SEARCHED = 1000


class ServerView:
    """An `ExperimentView` of what a server has. For one command: the list of metrics is asked for once, and kept.

    `client` reads the experiment with this id, as of the moment that it is for.
    """

    def __init__(self, client: RemoteClient, identity: str) -> None:
        self.client = client
        self.id = identity
        self._metrics: list[MetricSummary] | None = None

    def record(self) -> ExperimentRecord:
        """What `experiment.json` says."""
        return self.client.experiment(self.id)

    def parameters(self) -> dict[str, Any]:
        """The flat parameters."""
        return self.client.parameters(self.id)["data"]

    def files(self) -> list[FileRecord]:
        """Records of current files, oldest first."""
        return self.client.files(self.id)

    def metrics(self) -> list[MetricSummary]:
        """All metrics, sorted by name."""
        if self._metrics is None:
            self._metrics = cast("list[MetricSummary]", self.client.metrics(self.id))
        return self._metrics

    def metric_stats(self, name: str) -> MetricStats:
        """Number of points of a metric, and the statistics of each series."""
        return self.client.stats(self.id, name)

    def metric_page(self, name: str, start_index: int = 0, limit: int = 1000, *, superseded: bool = True) -> PointPage:
        """Up to `limit` points from `start_index` on; a negative start counts from the end."""
        return self.client.points(self.id, name, start_index, limit, superseded=superseded)

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
            return self.client.logs(self.id, start_index, limit)
        matching = list(self.each_log(level=level))
        [(start, stop)] = page_of([(0, len(matching))], start_index, limit) or [(0, 0)]
        entries = matching[start:stop]
        return {
            "logs": entries, "startIndex": start, "endIndex": stop - 1, "total": len(entries),
            "hasMore": stop < len(matching),
        }  # fmt: skip

    def each_log(self, start: int = 0, level: str | None = None) -> Iterator[LogEntry]:
        """All log entries from number `start` on, with `level` only those of that level; the server searches."""
        return self.client.each_log(self.id, start, level=level)

    def refuse_released(self, metric: str | None = None, start: int = 0) -> None:
        """Do nothing: a server keeps what was freed on this machine."""

    def series(self, name: str, series: str | None = None, max_points: int = 1000) -> list[tuple[float, float]]:
        """(x, y) of one series, down-sampled to about `max_points`; the extremes stay."""
        drawn: Any = self.client.series(self.id, name, min(max_points, MAX_LIMIT))["series"]
        line = drawn.get(series or name, {"x": [], "value": []})
        return [(float(x), float(y)) for x, y in zip(line["x"], line["value"], strict=True)]


def server_view(experiment: str | None, path: Path | None, url: str, as_of: str | None = None) -> ServerView:
    """Return a view of an experiment on a server, as of a moment if one is given.

    With an empty `url`, on the one that the experiment here is sent to; of one that is not here, on that of
    `default_url`. Raises InvalidValue if no server is known, NotFound if it has no such experiment, RemoteError.
    """
    located = _here(experiment, path) if not url else None
    if located is not None:
        client, identity = connect(located), experiment_id(located.project, located.name)
    else:
        client = client_of(url)
        identity = found_there(client, experiment)
    return ServerView(client if as_of is None else client.as_of(as_of), identity)


def _here(experiment: str | None, path: Path | None) -> Located | None:
    """Return the experiment of this machine that is meant; None if none is, and a server may have it."""
    try:
        return read.locate(experiment, path)
    except NotFound:
        if default_url() is None:
            raise
        return None


def default_url() -> str | None:
    """Return the server that is meant where none is named: ML_DASH_REMOTE, else the only one with a stored login."""
    from ml_dash.disk.settings import resolve
    from ml_dash.sync.login import logins

    known = logins()
    return resolve().remote or (known[0].url if len(known) == 1 else None)


def client_of(url: str) -> RemoteClient:
    """Return a client of a server (empty: the one of `default_url`) with the login that is stored for it.

    Raises InvalidValue if none is known.
    """
    from ml_dash.client import RemoteClient
    from ml_dash.disk.settings import resolve

    wanted = url or default_url()
    if wanted is None:
        raise InvalidValue("no server is known", hint="give --remote URL, or run: ml-dash login URL")
    return RemoteClient(wanted, user_name=resolve().user_name)


def found_there(client: RemoteClient, experiment: str | None) -> str:
    """Return the id of the experiment that a text means on a server: an id, `project/name`, a name or a title.

    Without a text, the one written last. Raises NotFound, or InvalidValue if several are meant.
    """
    if experiment is not None and "/" in experiment:
        project, _, name = experiment.partition("/")
        identity = experiment_id(project, name)
        try:
            client.experiment(identity)
        except NotFound:
            found = _called(client, name, project)
        else:
            return identity
    elif experiment is not None and experiment.isdecimal() and len(experiment) > 15:
        return experiment
    else:
        found = _called(client, experiment, None)
    if len(found) > 1:
        names = ", ".join(f"{one['project']}/{one['name']}" for one in found)
        raise InvalidValue(f"{experiment!r} may be any of {names}", hint="write project/name")
    if not found:
        raise NotFound(f"{client.base_url} has no experiment {experiment!r}" if experiment else "there is none there")
    return str(found[0]["id"])


def _called(client: RemoteClient, name: str | None, project: str | None) -> list[Any]:
    """Return the experiments with a name, else with a title; without a name, the one written last."""
    if name is None:
        return list(client.experiments(limit=1)["experiments"])
    listed: list[Any] = list(client.experiments(project=project, limit=_SEARCHED)["experiments"])
    return [one for one in listed if one["name"] == name] or [one for one in listed if one.get("title") == name]


def connect(located: Located) -> RemoteClient:
    """Return a client of the server that an experiment is sent to, or else of the one of `default_url`.

    It asks with the login that the experiment is registered with. Raises InvalidValue if there is no server,
    RemoteError if it does not answer.
    """
    from ml_dash.client import RemoteClient
    from ml_dash.sync.identity import with_identity

    registration = _registration(located)

    def attempt(_: int, token: str) -> RemoteClient:
        client = RemoteClient(registration.remote, api_key=token)
        client.whoami()
        return client

    return with_identity(registration, attempt)


def _registration(located: Located) -> Registration:
    """The registration to ask with: a claimed one first, to the server of ML_DASH_REMOTE if that is set."""
    from ml_dash.disk.settings import resolve
    from ml_dash.sync import registrations

    mine = registrations.of_journal(located.journal, registrations.by_journal(registrations.read_all()))
    settings = resolve()
    here = [one for one in mine if settings.remote in (None, one.remote)]
    if here:
        return min(here, key=lambda one: not one.is_claimed)
    url = settings.remote or default_url()
    if url is None:
        raise InvalidValue(
            f"{located.project}/{located.name} is not registered with any server here", hint="set ML_DASH_REMOTE"
        )
    return registrations.registration_for(located.journal, settings._replace(remote=url))
