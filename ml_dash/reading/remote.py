"""A server as a source: the reading seam over its REST calls.

How a call is made is the caller's (`RemoteClient` has a login and connections): here is what is asked, and what the
answer means. Answers come as the bytes that the server sent, and are decoded where somebody looks into them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import quote

import msgspec

from ..core.envelope import Drawn, DrawnPage, Mark
from .source import Answer, Content, Moment, SeriesRequest, decoded

Params = Mapping[str, Any]


class Transport(Protocol):
    """A connection to a server. Each call raises NotFound, InvalidValue or RemoteError."""

    def ask(self, method: str, path: str, params: Params | None = None, body: Any = None) -> bytes:
        """Return the JSON that a call answers."""

    def content(self, path: str, start: int, end: int | None) -> Iterator[bytes]:
        """Yield bytes [start, end) of what is at a path."""


class RemoteSource:
    """The experiments of one namespace of a server. For one thread at a time, as its transport is."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def _get(self, path: str, **params: Any) -> bytes:
        return self._transport.ask("GET", path, {key: value for key, value in params.items() if value is not None})

    # -- lists -------------------------------------------------------------------------------------------------------

    def projects(self) -> Answer:
        """Return the projects, by name."""
        return self._get("/projects")

    def experiments(
        self,
        *,
        where: str | None = None,
        sort: str | None = None,
        columns: Sequence[str] = (),
        start: int = 0,
        limit: int = 100,
    ) -> Answer:
        """Return a page of the experiments that match."""
        return self._get(
            "/experiments", where=where, sort=sort, columns=",".join(columns) or None, startIndex=start, limit=limit
        )

    def fields(self, prefix: str = "", limit: int = 100) -> Answer:
        """Return the fields that begin so."""
        return self._get("/fields", prefix=prefix, limit=limit)

    def groups(self, by: str, *, where: str | None = None, columns: Sequence[str] = ()) -> Answer:
        """Return the values of a field, and the spread of columns over the experiments that have them."""
        return self._get("/groups", by=by, where=where, columns=",".join(columns) or None)

    # -- one experiment ----------------------------------------------------------------------------------------------

    def experiment(self, id: str, as_of: Moment = None) -> Answer:
        """Return the mapping of `experiment.json`, and `heardAt`."""
        return self._get(_experiment(id), asOf=_moment(as_of))

    def parameters(self, id: str, as_of: Moment = None) -> Answer:
        """Return the parameters, flat, under `data`."""
        return self._get(f"{_experiment(id)}/parameters", asOf=_moment(as_of))

    def logs(
        self,
        id: str,
        *,
        start: int = 0,
        limit: int = 1000,
        levels: Sequence[str] = (),
        q: str | None = None,
        regex: str | None = None,
        at: str | None = None,
        as_of: Moment = None,
    ) -> Answer:
        """Return a page of log entries."""
        return self._get(
            f"{_experiment(id)}/logs", startIndex=start, limit=limit, level=",".join(levels) or None, q=q, regex=regex,
            at=at, asOf=_moment(as_of),
        )  # fmt: skip

    def metrics(
        self,
        id: str,
        *,
        q: str | None = None,
        prefix: str = "",
        start: int = 0,
        limit: int | None = None,
        as_of: Moment = None,
    ) -> Answer:
        """Return a page of the metrics, by name."""
        return self._get(
            f"{_experiment(id)}/metrics", q=q, prefix=prefix or None, startIndex=start, limit=limit,
            asOf=_moment(as_of),
        )  # fmt: skip

    def metric_stats(self, id: str, metric: str, as_of: Moment = None) -> Answer:
        """Return the number of points of a metric, and the statistics of each series."""
        return self._get(f"{_metric(id, metric)}/stats", asOf=_moment(as_of))

    def metric_page(
        self, id: str, metric: str, *, start: int = 0, limit: int = 1000, superseded: bool = True, as_of: Moment = None
    ) -> Answer:
        """Return a page of points."""
        return self._get(
            f"{_metric(id, metric)}/data", startIndex=start, limit=limit, superseded=_flag(superseded),
            asOf=_moment(as_of),
        )  # fmt: skip

    def sampled(
        self,
        id: str,
        metric: str,
        *,
        points: int = 1000,
        start: int | None = None,
        end: int | None = None,
        field: str | None = None,
        superseded: bool = False,
        as_of: Moment = None,
    ) -> Answer:
        """Return the series of one metric down-sampled."""
        return self._get(
            f"{_metric(id, metric)}/series", points=points, start=start, end=end, field=field,
            superseded=_flag(superseded), asOf=_moment(as_of),
        )  # fmt: skip

    def files(self, id: str, *, prefix: str = "", tags: list[str] | None = None, as_of: Moment = None) -> Answer:
        """Return records of listed files, oldest first."""
        return self._get(
            f"{_experiment(id)}/files", prefix=prefix or None, tags=",".join(tags or ()) or None, asOf=_moment(as_of)
        )

    def file(self, id: str, file: str, as_of: Moment = None) -> Answer:
        """Return the record of one file."""
        return self._get(_file(id, file), asOf=_moment(as_of))

    def open_file(self, id: str, file: str, start: int = 0, end: int | None = None) -> Content:
        """Return bytes [start, end) of a file's content."""
        record = decoded(self.file(id, file))
        size = record["sizeBytes"]
        stop = size if end is None else min(end, size)
        # An empty range cannot be asked for.
        blocks = self._transport.content(f"{_file(id, file)}/download", start, end) if start < stop else iter(())
        return Content(record["filename"], record["contentType"], record["checksum"], size, blocks)

    def history(self, id: str, start: int = 0, limit: int = 1000) -> Answer:
        """Return a page of what happened, oldest first."""
        return self._get(f"{_experiment(id)}/history", startIndex=start, limit=limit)

    # -- charts, changes, stores -------------------------------------------------------------------------------------

    def compare_series(self, request: SeriesRequest) -> DrawnPage:
        """Return one series of several experiments, as envelopes."""
        answer = self._get(
            "/series", experiment=list(request.experiments), metric=request.metric, points=request.points, x=request.x,
            split=request.split, superseded=_flag(request.superseded), asOf=_moment(request.as_of),
            **{"from": request.low, "to": request.high},
        )  # fmt: skip
        page = msgspec.json.decode(answer)
        return DrawnPage(page["metric"], page["x"], [_drawn(one) for one in page["series"]], page["missing"])

    def comparison(self, ids: Sequence[str], *, columns: Sequence[str] = ()) -> Answer:
        """Return what several experiments are compared by."""
        return self._get("/comparison", experiment=list(ids), columns=",".join(columns) or None)

    def events(self, ids: Collection[str] | None = None) -> Mapping[str, int]:
        """Return the number of events of these experiments, or of all; 0 for one that is not there.

        Deaths do not count: a list of experiments does not hold them.
        """
        found: dict[str, int] = {}
        start, more = 0, True
        while more:
            page = decoded(self.experiments(sort="created:desc", where=_ALL, start=start, limit=_PAGE))
            found.update((one["id"], one["counts"]["events"]) for one in page["experiments"])
            start += len(page["experiments"])
            more = page["next"] is not None
        return found if ids is None else {one: found.get(one, 0) for one in ids}

    def storage(self) -> Answer:
        """Return what the namespace keeps."""
        return self._get("/storage")

    def update(self, id: str, changes: Mapping[str, Any]) -> Answer:
        """Change title, notes, archived, description, tags or folder; return the new record."""
        return self._transport.ask("PATCH", _experiment(id), body=dict(changes))

    def remove(self, id: str) -> Answer:
        """Remove an experiment."""
        return self._transport.ask("DELETE", _experiment(id))


_PAGE = 1000
_ALL = "archived = true or archived = false"


def _drawn(one: Mapping[str, Any]) -> Drawn:
    return Drawn(
        experiment=one["experiment"], split=one["split"], index=one["index"], x=one["x"], low=one["min"],
        high=one["max"], total=one["total"], superseded=one["superseded"],
        marks=[Mark(mark.get("index", 0), mark["x"], mark["value"]) for mark in one["nonFinite"]],
        breaks=one["breaks"], x_meant=one.get("xMeant"),
    )  # fmt: skip


def _part(text: str) -> str:
    # A part `..` would change the path; escaped, it is sent as it is.
    return quote(text, safe="") if text not in (".", "..") else text.replace(".", "%2E")


def _experiment(id: str) -> str:
    return f"/experiments/{_part(id)}"


def _metric(id: str, metric: str) -> str:
    return f"{_experiment(id)}/metrics/{_part(metric)}"


def _file(id: str, file: str) -> str:
    return f"{_experiment(id)}/files/{_part(file)}"


def _flag(value: bool) -> str:
    return json.dumps(value)


def _moment(as_of: Moment) -> str | None:
    return as_of.isoformat() if isinstance(as_of, datetime) else None if as_of is None else str(as_of)
