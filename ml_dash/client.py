"""A server's data for Python programs: every call of its REST API as a method.

The types of what comes back are those of the local API. Nothing here is needed to record: see `Experiment(remote=...)`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict, cast

from .config import remote_url
from .errors import ChecksumMismatch, InvalidValue, NotFound, ServerRefused, Unreachable
from .values import field_values, from_json, lenient_values, texts_like_numbers, to_json

if TYPE_CHECKING:
    from types import TracebackType

    import requests
    from typing_extensions import Self

    from .records import (
        AppendBatchResult,
        AppendResult,
        DeletedFile,
        ExperimentRecord,
        FileRecord,
        LogPage,
        MetricStats,
        MetricSummary,
        PointPage,
        SeriesStats,
    )

PathText = str | os.PathLike[str]
Metadata = Mapping[str, Any]

_BLOCK: Final = 1 << 20


class Health(TypedDict, total=False):
    """How a server is: `status` "ok", since when in seconds (`uptime`), and what it stores in."""

    status: str
    timestamp: str
    uptime: float
    database: str
    storage: str
    mongodb: str
    s3: str


class CreatedExperiment(TypedDict):
    """What `create_experiment` returns; `experiment["id"]` is what the other calls take."""

    experiment: dict[str, Any]
    project: str
    folder: str | None
    namespace: str


class ListedProject(TypedDict):
    """One of `projects()`: how many experiments it has, and when it was first and last written to."""

    name: str
    experiments: int
    createdAt: str
    updatedAt: str


class ListedExperiment(TypedDict):
    """One of `experiments()`; `heardAt` is when the server was last sent something of it."""

    id: str
    name: str
    project: str
    status: str
    description: str | None
    tags: list[str] | None
    folder: str | None
    createdAt: str
    updatedAt: str
    endedAt: str | None
    heardAt: str
    counts: dict[str, int]


class ExperimentPage(TypedDict):
    """Some of `total` experiments, and what to give as `after` for the next ones; None at the end."""

    experiments: list[ListedExperiment]
    total: int
    next: str | None


class CreatedLogs(TypedDict):
    """What `add_logs` returns: how many, and their first and last number."""

    created: int
    startSequence: int
    endSequence: int
    experimentId: str


class ParametersRecord(TypedDict):
    """An experiment's parameters on the server; `version` counts their changes."""

    id: str
    experimentId: str
    data: dict[str, Any]
    version: int
    createdAt: str | None
    updatedAt: str | None


class Identity(TypedDict):
    """Whose login it is, and what it allows until when."""

    userName: str
    namespace: str
    kind: str
    readOnly: bool
    expiresAt: str | None


class SampledSeries(TypedDict):
    """Down-sampled points: their indices, their x (`step`, else `epoch`, else the index) and values; how many of how many."""

    index: list[int]
    x: list[float]
    value: list[float]
    count: int


class SeriesPage(TypedDict):
    """What `series` returns: each series by its name, of the points `startIndex` to `endIndex`."""

    metricId: str
    name: str
    startIndex: int
    endIndex: int
    totalDataPoints: int
    series: dict[str, SampledSeries]


class RemoteClient:
    """One server, one login. Safe for one thread at a time; a `with` block closes its connections.

    `api_key` is a token from the server's owner; without one, what `ml-dash login` stored, or for `user_name` the
    development login. Every call raises Unreachable (no connection, no answer in time, trouble at the server; trying
    again is right), Unauthorised, ServerRefused (`status`, `code`), and NotFound for what the server does not have.
    `namespace` reads another user's data where that is allowed.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        user_name: str | None = None,
        *,
        namespace: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.base_url = remote_url(base_url, "base_url")
        self.user_name = user_name
        self._api_key = api_key
        self._namespace = namespace
        self._timeout_s = timeout
        self._link: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; a later call opens them again."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def __repr__(self) -> str:
        return f"<RemoteClient {self.base_url}>"

    # -- the server --------------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """How the server is; needs no login."""
        return cast("Health", self._json("GET", "/health"))

    def projects(self) -> list[dict[str, Any]]:
        """The projects that there are, by name."""
        return cast("list[dict[str, Any]]", self._json("GET", "/projects")["projects"])

    # -- experiments -------------------------------------------------------------------------------------------------

    def create_experiment(
        self,
        project: str,
        name: str,
        *,
        description: str | None = None,
        tags: list[str] | None = None,
        folder: str | None = None,
        metadata: Metadata | None = None,
        write_protected: bool | None = None,
    ) -> CreatedExperiment:
        """Create an experiment, or continue it: what is given replaces what was there."""
        body = _given(
            name=name, description=description, tags=tags, folder=folder, metadata=_lenient(metadata),
            writeProtected=write_protected,
        )  # fmt: skip
        return cast("CreatedExperiment", self._json("POST", f"/projects/{_part(project)}/experiments", json=body))

    def experiments(
        self,
        *,
        project: str | None = None,
        status: str | None = None,
        tag: str | None = None,
        folder: str | None = None,
        q: str | None = None,
        sort: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> ExperimentPage:
        """A page of experiments; `q` is looked for in names and descriptions, `after` is `next` of the page before."""
        query = _given(project=project, status=status, tag=tag, folder=folder, q=q, sort=sort, limit=limit, after=after)
        return cast("ExperimentPage", self._json("GET", "/experiments", params=query))

    def experiment(self, experiment_id: str) -> ExperimentRecord:
        """One experiment, as `experiment.json` has it."""
        return cast("ExperimentRecord", self._json("GET", _experiment(experiment_id)))

    def remove_experiment(self, experiment_id: str) -> dict[str, Any]:
        """Remove an experiment: what its writers send later is kept out of sight; a new opening starts anew at 0."""
        return self._json("DELETE", f"/sync/v1{_experiment(experiment_id)}")

    # -- logs --------------------------------------------------------------------------------------------------------

    def add_logs(self, experiment_id: str, logs: Iterable[Mapping[str, Any]]) -> CreatedLogs:
        """Add entries `{message, level, timestamp, metadata}`; all but the message may be left out."""
        entries = [
            {**entry, **({"metadata": to_json(_lenient(entry["metadata"]))} if entry.get("metadata") else {})}
            for entry in logs
        ]
        return cast("CreatedLogs", self._json("POST", f"{_experiment(experiment_id)}/logs", json={"logs": entries}))

    def logs(
        self,
        experiment_id: str,
        start_index: int = 0,
        limit: int = 1000,
        *,
        level: str | None = None,
        q: str | None = None,
    ) -> LogPage:
        """A page of log entries; only of a level, only those whose message holds `q`."""
        query = _given(startIndex=start_index, limit=limit, level=level, q=q)
        page = self._json("GET", f"{_experiment(experiment_id)}/logs", params=query)
        for entry in page["logs"]:
            texts = entry.pop("text", ())
            if entry.get("metadata"):
                entry["metadata"] = from_json(entry["metadata"], texts)
        return cast("LogPage", page)

    # -- parameters --------------------------------------------------------------------------------------------------

    def set_parameters(self, experiment_id: str, data: Mapping[str, Any]) -> ParametersRecord:
        """Merge parameters; nested mappings become dotted keys."""
        from .values import flatten

        body = {"data": to_json(flatten(_lenient(data) or {}))}
        return self._parameters(self._json("POST", f"{_experiment(experiment_id)}/parameters", json=body))

    def parameters(self, experiment_id: str) -> ParametersRecord:
        """The parameters, flat, in `data`."""
        return self._parameters(self._json("GET", f"{_experiment(experiment_id)}/parameters"))

    @staticmethod
    def _parameters(record: dict[str, Any]) -> ParametersRecord:
        return cast("ParametersRecord", {**record, "data": from_json(record["data"])})

    # -- metrics -----------------------------------------------------------------------------------------------------

    def append(self, experiment_id: str, metric: str, **fields: Any) -> AppendResult:
        """Append one point."""
        return self.append_point(experiment_id, metric, fields)

    def append_point(self, experiment_id: str, metric: str, data: Mapping[str, Any]) -> AppendResult:
        """Append one point, its fields as a mapping: for fields that are no names of Python."""
        row = field_values(data)
        texts = texts_like_numbers(row)
        body = {"data": to_json(row), **({"text": texts} if texts else {})}
        return cast("AppendResult", self._json("POST", f"{_metric(experiment_id, metric)}/append", json=body))

    def append_batch(
        self, experiment_id: str, metric: str, points: Iterable[Mapping[str, Any]]
    ) -> AppendBatchResult:
        """Append many points at once; they become one event."""
        rows = [field_values(point) for point in points]
        texts = [texts_like_numbers(row) for row in rows]
        body = {"dataPoints": to_json(rows), **({"text": texts} if any(texts) else {})}
        found = self._json("POST", f"{_metric(experiment_id, metric)}/append-batch", json=body)
        return cast("AppendBatchResult", found)

    def points(self, experiment_id: str, metric: str, start_index: int = 0, limit: int = 1000) -> PointPage:
        """A page of points; a negative start counts from the end."""
        query = {"startIndex": start_index, "limit": limit}
        page = self._json("GET", f"{_metric(experiment_id, metric)}/data", params=query)
        page["data"] = [_point(point) for point in page["data"]]
        return cast("PointPage", page)

    def stats(self, experiment_id: str, metric: str) -> MetricStats:
        """The statistics of a metric and of each of its series."""
        return cast("MetricStats", self._json("GET", f"{_metric(experiment_id, metric)}/stats"))

    def metrics(self, experiment_id: str) -> list[MetricSummary]:
        """The metrics of an experiment, by name."""
        return cast("list[MetricSummary]", self._json("GET", f"{_experiment(experiment_id)}/metrics")["metrics"])

    def series(
        self,
        experiment_id: str,
        metric: str,
        points: int = 1000,
        *,
        start: int | None = None,
        end: int | None = None,
        field: str | None = None,
    ) -> dict[str, Any]:
        """One series, down-sampled to about `points` points that keep minima and maxima; for plots.

        `start` and `end` bound the index, `field` names the series (default: `value`, else the first).
        """
        query = _given(points=points, start=start, end=end, field=field)
        return self._json("GET", f"{_metric(experiment_id, metric)}/series", params=query)

    # -- files -------------------------------------------------------------------------------------------------------

    def upload_file(
        self,
        experiment_id: str,
        path: PathText,
        prefix: str = "/",
        *,
        description: str | None = None,
        tags: list[str] | None = None,
        metadata: Metadata | None = None,
    ) -> FileRecord:
        """Add a file: it is read twice, once for its SHA-256, and never held in memory; its record.

        A live file with the same prefix and name is replaced. Raises InvalidValue for what is no regular file.
        """
        from .multipart import Form

        with Form.of_file(
            Path(path), prefix=prefix, description=description, tags=tags, metadata=to_json(_lenient(metadata))
        ) as form:
            headers = {"Content-Type": form.content_type}
            found = self._json("POST", f"{_experiment(experiment_id)}/files", data=form, headers=headers)
        return cast("FileRecord", found)

    def files(
        self, experiment_id: str, *, prefix: str | None = None, tags: list[str] | None = None
    ) -> list[FileRecord]:
        """Records of files that are not deleted, oldest first; below a prefix, with any of the tags."""
        query = _given(prefix=prefix, tags=",".join(tags) if tags else None)
        return cast("list[FileRecord]", self._json("GET", f"{_experiment(experiment_id)}/files", params=query)["files"])

    def file(self, experiment_id: str, file_id: str) -> FileRecord:
        """The record of one file."""
        return cast("FileRecord", self._json("GET", _file(experiment_id, file_id)))

    def update_file(
        self,
        experiment_id: str,
        file_id: str,
        *,
        description: str | None = None,
        tags: list[str] | None = None,
        metadata: Metadata | None = None,
    ) -> FileRecord:
        """Change what is said about a file; what is not given stays. The new record."""
        body = _given(description=description, tags=tags, metadata=to_json(_lenient(metadata)))
        return cast("FileRecord", self._json("PATCH", _file(experiment_id, file_id), json=body))

    def delete_file(self, experiment_id: str, file_id: str) -> DeletedFile:
        """Delete a file: `{id, deletedAt}`."""
        return cast("DeletedFile", self._json("DELETE", _file(experiment_id, file_id)))

    def read_file(
        self, experiment_id: str, file_id: str, start: int = 0, end: int | None = None
    ) -> Iterator[bytes]:
        """The content of a file, or its bytes [start, end), in blocks of at most 1 MiB; nothing is checked."""
        headers = {}
        if start or end is not None:
            if start < 0 or (end is not None and end <= start):
                raise InvalidValue(f"bytes [{start}, {end}) are none", hint="give 0 <= start < end")
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        response = self._call("GET", f"{_file(experiment_id, file_id)}/download", headers=headers, stream=True)
        return _blocks(response)

    def download_file(self, experiment_id: str, file_id: str, dest_path: PathText | None = None) -> str:
        """Fetch a file to `dest_path` (default: its name in the working directory); the path of the copy.

        SHA-256 is checked; a bad copy is removed and ChecksumMismatch raised. Memory stays flat.
        """
        from hashlib import sha256

        record = self.file(experiment_id, file_id)
        # A name from afar: only its last part, so that it cannot lead elsewhere.
        name = Path(record["filename"]).name
        target = Path(dest_path) if dest_path is not None else Path(name)
        if target.is_dir() or (dest_path is not None and os.fspath(dest_path).endswith(("/", os.sep))):
            target = target / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{os.urandom(8).hex()}.part")
        digest = sha256()
        try:
            with temporary.open("xb") as file:
                for block in self.read_file(experiment_id, file_id):
                    digest.update(block)
                    file.write(block)
            if digest.hexdigest() != record["checksum"]:
                raise ChecksumMismatch(
                    f"what arrived of {name!r} has SHA-256 {digest.hexdigest()}, recorded was {record['checksum']}; "
                    "the copy was removed",
                    hint="try again",
                )
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return str(target)

    # -- how ---------------------------------------------------------------------------------------------------------

    def _json(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        response = self._call(method, path, **how)
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Unreachable(
                f"{self.base_url} answered with something that is none of an ml-dash server "
                f"({response.headers.get('Content-Type', 'no type')})",
                hint="check the URL, and whether a proxy or a sign-in page stands before it",
            )
        return found

    def _call(self, method: str, path: str, **how: Any) -> requests.Response:
        link = self._link
        if link is None:
            from .remote import Link

            link = self._link = Link(self.base_url, self._token, timeout_s=(5.0, self._timeout_s))
        if self._namespace is not None:
            how["params"] = {**how.get("params", {}), "namespace": self._namespace}
        try:
            return cast("requests.Response", link.call(method, path, **how))
        except ServerRefused as refused:
            if refused.status == 404:
                raise NotFound(refused.message) from refused
            raise

    def _token(self) -> str | None:
        if self._api_key is not None:
            return self._api_key
        from .login import token_for

        return token_for(self.base_url, self.user_name)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _lenient(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Plain values of a mapping of anything, as the local API keeps it."""
    return lenient_values(metadata, lambda text: None) if metadata is not None else None


def _part(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def _experiment(experiment_id: str) -> str:
    return f"/experiments/{_part(experiment_id)}"


def _metric(experiment_id: str, metric: str) -> str:
    return f"{_experiment(experiment_id)}/metrics/{_part(metric)}"


def _file(experiment_id: str, file_id: str) -> str:
    return f"{_experiment(experiment_id)}/files/{_part(file_id)}"


def _point(point: dict[str, Any]) -> Point:
    data = from_json(point["data"], point.get("text", ()))
    return cast("Point", {"index": point["index"], "data": data, "createdAt": point["createdAt"]})


def _blocks(response: requests.Response) -> Iterator[bytes]:
    from requests import RequestException

    with contextlib.closing(response):
        try:
            yield from response.iter_content(_BLOCK)
        except RequestException as error:
            raise Unreachable(f"the connection broke while {response.url} was read: {error}") from error
