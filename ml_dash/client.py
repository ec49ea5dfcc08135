"""A client of a server's REST API: each call is a method.

Results have the types of the local API. Recording does not need it: see `Experiment(remote=...)`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from ml_dash.disk.durable import BLOCK_BYTES

from .core.answers import comma_list, lenient, log_entry, metadata_of, read_metadata, read_numbers, read_values, written
from .core.json_values import flatten, texts_like_numbers, to_json
from .core.limits import MAX_LIMIT
from .core.protocol import QUERY
from .core.values import field_values
from .disk.places import remote_url
from .errors import ChecksumMismatch, InvalidValue, NotFound, RemoteError, ServerRefused, Unreachable

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    import requests
    from typing_extensions import Self

    from .core.answers import (
        CreatedExperiment,
        CreatedLogs,
        ExperimentPage,
        Health,
        Identity,
        ListedField,
        ListedGroup,
        ListedMetric,
        ListedProject,
        ParametersRecord,
        SeriesPage,
    )
    from .core.marks import MarkPage
    from .core.records import (
        AppendBatchResult,
        AppendResult,
        DeletedFile,
        ExperimentRecord,
        FileRecord,
        LogEntry,
        LogPage,
        MetricStats,
        PointPage,
    )
    from .reading.remote import RemoteSource
    from .sync.remote import Link

PathText = str | os.PathLike[str]
Metadata = Mapping[str, Any]

_CONNECT_S: Final = 5.0
# `watch` gives a stream up after so long without a byte; the server sends one every 15 seconds.
_SILENCE_S: Final = 45.0


class RemoteClient:
    """A client of one server under one login. For one thread at a time; a `with` block closes its connections.

    `api_key` is a token from the server's owner; without it, the login that `ml-dash login` stored is used, or with
    `user_name` the development login. `timeout` is in seconds, between two reads of an answer. `namespace` reads the
    data of another user, if that is allowed. Every call raises Unreachable (no connection, no answer in time,
    trouble at the server: try again), Unauthorised, ServerRefused (`status`, `code`), and NotFound for what the server
    does not have. After Unreachable, it is not known whether a write was done: an `append` that is repeated may be
    recorded twice.
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
        self._timeouts = (min(_CONNECT_S, timeout), timeout)
        self._link: Link | None = None
        self._as_of: str | None = None

    def as_of(self, moment: int | str | datetime) -> RemoteClient:
        """Return a client with connections of its own, which reads experiments as they were at a moment.

        A number of events, a time, or how long ago ("-2h"). Lists of experiments are those of now.
        """
        client = RemoteClient(
            self.base_url, self._api_key, self.user_name, namespace=self._namespace, timeout=self._timeouts[1]
        )
        client._as_of = str(moment) if isinstance(moment, (int, str)) else moment.isoformat()
        return client

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
        """Return the health of the server; needs no login. Raises Unreachable also if its storage fails."""
        from .sync.remote import Link

        # A token of nobody, so that this works without a login too.
        with contextlib.closing(Link(self.base_url, "nobody", timeout_s=self._timeouts)) as link:
            return cast("Health", link.ask("GET", "/health", ("status",)))

    def whoami(self) -> Identity:
        """Return the owner of this login, and what it allows."""
        return cast("Identity", self._json("GET", "/whoami"))

    def projects(self) -> list[ListedProject]:
        """Return all projects, sorted by name."""
        return cast("list[ListedProject]", self._json("GET", "/projects")["projects"])

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
        status: str | None = None,
    ) -> CreatedExperiment:
        """Create an experiment, or continue one: fields that are given replace earlier ones.

        `status` "completed", "failed" or "interrupted" ends the run that clients write; without it, the run counts as
        interrupted after an hour without writes. Programs that record with `Experiment` set the status of their runs.
        """
        body = _given(
            name=name, description=description, tags=tags, folder=folder, writeProtected=write_protected,
            status=status, **metadata_of(metadata),
        )  # fmt: skip
        answer = self._json("POST", f"/projects/{_part(project)}/experiments", json=body)
        return cast("CreatedExperiment", {**answer, "experiment": read_metadata(answer["experiment"])})

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
        where: str | None = None,
        columns: Sequence[str] = (),
    ) -> ExperimentPage:
        """Return a page of experiments; `q` is searched in names and descriptions, `after` is `next` of the last page.

        `where` is a query, `sort` a field or `FIELD:desc` (default: the latest written first), `columns` are fields
        whose `values` are added to each. Raises InvalidValue for a query that cannot be understood.
        """
        query = _given(
            project=project, status=status, tag=tag, folder=folder, q=q, sort=sort, limit=limit, after=after,
            where=where, columns=",".join(columns) or None,
        )  # fmt: skip
        return cast("ExperimentPage", self._json("GET", "/experiments", params=query))

    def running(self, limit: int = 100) -> ExperimentPage:
        """Return the experiments that are running, the latest written first."""
        return cast("ExperimentPage", self._json("GET", "/running", params={"limit": limit}))

    def fields(self, prefix: str = "", limit: int = 100) -> list[ListedField]:
        """Return the fields that queries, orders and columns may name, with how many experiments have each."""
        answer = self._json("GET", "/fields", params={"prefix": prefix, "limit": limit})
        return cast("list[ListedField]", answer["fields"])

    def groups(self, by: str, *, where: str | None = None, columns: Sequence[str] = ()) -> list[ListedGroup]:
        """Return the values of a field, and the mean, deviation, least and greatest of `columns` for each."""
        query = _given(by=by, where=where, columns=",".join(columns) or None)
        return cast("list[ListedGroup]", self._json("GET", "/groups", params=query)["groups"])

    def update_experiment(self, experiment_id: str, **changes: Any) -> ExperimentRecord:
        """Change `title`, `notes`, `archived`, `description`, `tags` or `folder`; None takes a value away."""
        record = self._json("PATCH", _experiment(experiment_id), json=changes)
        return cast("ExperimentRecord", read_metadata(record))

    def storage(self) -> dict[str, Any]:
        """Return how many bytes each project keeps, all together, and what may be kept."""
        return self._json("GET", "/storage")

    def source(self) -> RemoteSource:
        """Return what the server has as `ml_dash.reading.source.Source`: the interface of all that looks."""
        from .reading.remote import RemoteSource

        return RemoteSource(_Calls(self))

    def changes(self, experiment_ids: Sequence[str] = ()) -> Iterator[dict[str, int | None]]:
        """Yield {id: number of events, or None if it was removed} whenever experiments change: these, or all.

        Of these, the present numbers come first. Raises Unreachable when the connection breaks: then call it again.
        """
        for kind, data in self._stream("/changes", {"experiment": list(experiment_ids)}):
            if kind == "change":
                yield data["experiments"]
            elif kind == "removed":
                yield dict.fromkeys(data["experiments"])

    def experiment(self, experiment_id: str) -> ExperimentRecord:
        """Return one experiment, in the form of `experiment.json`."""
        return cast("ExperimentRecord", read_metadata(self._json("GET", _experiment(experiment_id))))

    def watch(self, experiment_id: str) -> Iterator[int]:
        """Yield the number of events of an experiment, now and whenever it grows; end when the experiment is removed.

        A writer that is found dead counts as an event here: then the status may have changed.

        Raises Unreachable when the connection breaks or the server ends: then call it again.
        """
        stream = self._stream(f"{_experiment(experiment_id)}/events", {})
        return _counts(stream)

    def _stream(self, path: str, params: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Return the server-sent events of a stream: (kind, data). The connection is made before this returns."""
        from .sync.remote import Link

        # A link of its own: the server says something at least every 15 seconds, however short `timeout` is.
        link = Link(self.base_url, self._token, timeout_s=(self._timeouts[0], max(self._timeouts[1], _SILENCE_S)))
        try:
            response = self._call("GET", path, link=link, stream=True, params=params)
        except BaseException:
            link.close()
            raise
        return _news(response, link)

    def history(self, experiment_id: str, start_index: int = 0, limit: int = 1000) -> MarkPage:
        """Return a page of marks, oldest first: what happened, when, who did it, and as of which event it is so."""
        query = _given(startIndex=start_index, limit=limit)
        return cast("MarkPage", self._json("GET", f"{_experiment(experiment_id)}/history", params=query))

    def remove_experiment(self, experiment_id: str) -> dict[str, Any]:
        """Remove an experiment: what its writers send later stays hidden; a new opening starts again from 0."""
        return self._json("DELETE", f"/sync/v1{_experiment(experiment_id)}")

    # -- logs --------------------------------------------------------------------------------------------------------

    def add_logs(self, experiment_id: str, logs: Iterable[Mapping[str, Any]]) -> CreatedLogs:
        """Add log entries `{message, level, timestamp, metadata}`; only the message is required.

        A `timestamp` is a datetime or ISO 8601 text; default: the time of arrival.
        """
        entries = [log_entry(entry) for entry in logs]
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
        """Return a page of log entries: with `level` of that level, with `q` those whose message contains it.

        A server examines a bounded number of entries for a page, so one may be empty with more to come: go on from
        `endIndex + 1` while `hasMore`, as `each_log` does.
        """
        query = _given(startIndex=start_index, limit=limit, level=level, q=q)
        page = self._json("GET", f"{_experiment(experiment_id)}/logs", params=query)
        page["logs"] = [read_metadata(entry) for entry in page["logs"]]
        return cast("LogPage", page)

    def each_log(
        self, experiment_id: str, start_index: int = 0, *, level: str | None = None, q: str | None = None
    ) -> Iterator[LogEntry]:
        """Yield all log entries from `start_index` on, page by page: with `level` and `q` only those of `logs`."""
        more = True
        while more:
            page = self.logs(experiment_id, start_index, MAX_LIMIT, level=level, q=q)
            yield from page["logs"]
            start_index, more = page["endIndex"] + 1, page["hasMore"]

    # -- parameters --------------------------------------------------------------------------------------------------

    def set_parameters(self, experiment_id: str, data: Mapping[str, Any]) -> ParametersRecord:
        """Merge parameters; nested mappings become dotted keys."""
        body = written("data", flatten(lenient(data)))
        return self._parameters(self._json("POST", f"{_experiment(experiment_id)}/parameters", json=body))

    def parameters(self, experiment_id: str) -> ParametersRecord:
        """Return the parameters, flat, under `data`."""
        return self._parameters(self._json("GET", f"{_experiment(experiment_id)}/parameters"))

    @staticmethod
    def _parameters(record: dict[str, Any]) -> ParametersRecord:
        return cast("ParametersRecord", read_values("data", record))

    # -- metrics -----------------------------------------------------------------------------------------------------

    def append(self, experiment_id: str, metric: str, **fields: Any) -> AppendResult:
        """Append one point."""
        return self.append_point(experiment_id, metric, fields)

    def append_point(self, experiment_id: str, metric: str, data: Mapping[str, Any]) -> AppendResult:
        """Append one point, its fields as a mapping: for names that are not valid keywords in Python."""
        body = written("data", field_values(data))
        return cast("AppendResult", self._json("POST", f"{_metric(experiment_id, metric)}/append", json=body))

    def append_batch(self, experiment_id: str, metric: str, points: Iterable[Mapping[str, Any]]) -> AppendBatchResult:
        """Append many points at once, as one event."""
        rows = [field_values(point) for point in points]
        texts = [texts_like_numbers(row) for row in rows]
        body = {"dataPoints": to_json(rows), **({"text": texts} if any(texts) else {})}
        answer = self._json("POST", f"{_metric(experiment_id, metric)}/append-batch", json=body)
        return cast("AppendBatchResult", answer)

    def points(
        self, experiment_id: str, metric: str, start_index: int = 0, limit: int = 1000, *, superseded: bool = True
    ) -> PointPage:
        """Return a page of points; a negative start counts from the end. Without `superseded`, only current points."""
        query: dict[str, Any] = {"startIndex": start_index, "limit": limit}
        if not superseded:
            query["superseded"] = "false"
        page = self._json("GET", f"{_metric(experiment_id, metric)}/data", params=query)
        page["data"] = [read_values("data", point) for point in page["data"]]
        return cast("PointPage", page)

    def stats(self, experiment_id: str, metric: str) -> MetricStats:
        """Return the statistics of a metric and of each of its series."""
        stats = read_metadata(self._json("GET", f"{_metric(experiment_id, metric)}/stats"))
        return cast("MetricStats", {**stats, "series": read_numbers(stats["series"])})

    def metrics(self, experiment_id: str) -> list[ListedMetric]:
        """Return the metrics of an experiment, sorted by name, with the statistics of their series."""
        metrics = self._json("GET", f"{_experiment(experiment_id)}/metrics")["metrics"]
        return cast("list[ListedMetric]", [{**metric, "series": read_numbers(metric["series"])} for metric in metrics])

    def series(
        self,
        experiment_id: str,
        metric: str,
        points: int = 1000,
        *,
        start: int | None = None,
        end: int | None = None,
        field: str | None = None,
        superseded: bool = False,
    ) -> SeriesPage:
        """Return each series down-sampled to about `points` points, with minima and maxima kept, for plots.

        `start` and `end` bound the index; `field` selects the series of one field. Points that a rewind has superseded
        are left out without `superseded`.
        """
        query = _given(points=points, start=start, end=end, field=field, superseded="true" if superseded else None)
        page = self._json("GET", f"{_metric(experiment_id, metric)}/series", params=query)
        return cast("SeriesPage", {**page, "series": read_numbers(page["series"])})

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
        """Add a file, and return its record. The file is read twice, once for its SHA-256, in blocks.

        A current file with the same prefix and name is replaced. Raises InvalidValue for a file that is not regular or
        that changes while it is sent, and for a tag with a comma.
        """
        from .sync.multipart import Form

        given = _given(prefix=prefix, description=description, tags=comma_list(tags))
        for name, value in metadata_of(metadata).items():
            given[name] = json.dumps(value)
        with Form.of_file(Path(path), given) as form:
            headers = {"Content-Type": form.content_type}
            try:
                record = self._json("POST", f"{_experiment(experiment_id)}/files", data=form, headers=headers)
            except RemoteError as error:
                if form.broken:
                    raise InvalidValue(f"file {str(path)!r} changed while it was sent; it was not added") from error
                raise
        return cast("FileRecord", read_metadata(record))

    def files(
        self, experiment_id: str, *, prefix: str | None = None, tags: list[str] | None = None
    ) -> list[FileRecord]:
        """Return records of current files, oldest first; below a prefix, with any of the tags."""
        query = _given(prefix=prefix, tags=comma_list(tags))
        records = self._json("GET", f"{_experiment(experiment_id)}/files", params=query)["files"]
        return cast("list[FileRecord]", [read_metadata(record) for record in records])

    def file(self, experiment_id: str, file_id: str) -> FileRecord:
        """Return the record of one file, also of a deleted one."""
        return cast("FileRecord", read_metadata(self._json("GET", _file(experiment_id, file_id))))

    def update_file(
        self,
        experiment_id: str,
        file_id: str,
        *,
        description: str | None = None,
        tags: list[str] | None = None,
        metadata: Metadata | None = None,
    ) -> FileRecord:
        """Change description, tags or metadata of a file, those that are given; return the new record."""
        body = _given(description=description, tags=tags, **metadata_of(metadata))
        return cast("FileRecord", read_metadata(self._json("PATCH", _file(experiment_id, file_id), json=body)))

    def delete_file(self, experiment_id: str, file_id: str) -> DeletedFile:
        """Delete a file, and return `{id, deletedAt}`."""
        return cast("DeletedFile", self._json("DELETE", _file(experiment_id, file_id)))

    def read_file(self, experiment_id: str, file_id: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the content of a file, or its bytes [start, end), in blocks of at most 1 MiB; no digest is checked."""
        return self._bytes(f"{_file(experiment_id, file_id)}/download", start, end)

    def _bytes(self, path: str, start: int, end: int | None) -> Iterator[bytes]:
        headers = {}
        if start or end is not None:
            if start < 0 or (end is not None and end <= start):
                raise InvalidValue(f"bytes [{start}, {end}) are none", hint="give 0 <= start < end")
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        response = self._call("GET", path, headers=headers, stream=True, linked=True)
        return _blocks(response)

    def download_file(self, experiment_id: str, file_id: str, dest_path: PathText | None = None) -> str:
        """Download a file to `dest_path` (default: its name in the working directory); return the path of the copy.

        Raises ChecksumMismatch for a wrong SHA-256, and removes the copy. The file is never whole in memory.
        """
        from hashlib import sha256

        record = self.file(experiment_id, file_id)
        # A name from a server: only its last part is used, so that it cannot lead out of the folder.
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
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Unreachable(
                f"{self.base_url} did not answer like an ml-dash server "
                f"(status {response.status_code}, {response.headers.get('Content-Type', 'no type')})",
                hint="check the URL, and whether a proxy or a sign-in page stands before it",
            )
        return answer

    def _call(self, method: str, path: str, *, link: Link | None = None, **how: Any) -> requests.Response:
        link = link or self._link
        if link is None:
            from .sync.remote import Link

            link = self._link = Link(self.base_url, self._token, timeout_s=self._timeouts)
        added = _given(namespace=self._namespace)
        if method == "GET" and path.startswith("/experiments/"):
            added |= _given(asOf=self._as_of)
        if added:
            how["params"] = {**how.get("params", {}), **added}
        try:
            return link.call(method, path, **how)
        except ServerRefused as refused:
            if refused.status == 404:
                raise NotFound(refused.message) from refused
            if refused.code == QUERY:
                raise InvalidValue(refused.message) from refused
            raise

    def _token(self) -> str | None:
        if self._api_key is not None:
            return self._api_key
        from .sync.login import token_for

        return token_for(self.base_url, self.user_name)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _part(text: str) -> str:
    from urllib.parse import quote

    # A part `..` would change the path; escaped, it is sent as it is.
    return quote(text, safe="") if text not in (".", "..") else text.replace(".", "%2E")


def _experiment(experiment_id: str) -> str:
    return f"/experiments/{_part(experiment_id)}"


def _metric(experiment_id: str, metric: str) -> str:
    return f"{_experiment(experiment_id)}/metrics/{_part(metric)}"


def _file(experiment_id: str, file_id: str) -> str:
    return f"{_experiment(experiment_id)}/files/{_part(file_id)}"


def _blocks(response: requests.Response) -> Iterator[bytes]:
    from requests import RequestException

    with contextlib.closing(response):
        try:
            yield from response.iter_content(BLOCK_BYTES)
        except (RequestException, OSError) as error:
            # The query of a link is a secret.
            address = response.url.partition("?")[0]
            raise Unreachable(f"the connection broke while {address} was read: {type(error).__name__}") from error


def _news(response: requests.Response, link: Link) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (kind, data) of a stream of server-sent events; close the link at its end."""
    from requests import RequestException

    kind = ""
    with contextlib.closing(link), contextlib.closing(response):
        try:
            for line in response.iter_lines():
                name, _, value = line.decode().partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    yield kind, json.loads(value)
        except (RequestException, OSError) as error:
            raise Unreachable(f"the connection to {link.url} broke: {error}") from error
    raise Unreachable(f"{link.url} ended the stream")


def _counts(stream: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[int]:
    """Yield the numbers of events that a stream tells, until the experiment is removed."""
    for kind, data in stream:
        if kind == "change":
            yield data["events"]
        elif kind == "removed":
            return


class _Calls:
    """A client as the transport of a source."""

    def __init__(self, client: RemoteClient) -> None:
        self._client = client

    def ask(self, method: str, path: str, params: Mapping[str, Any] | None = None, body: Any = None) -> bytes:
        """Return the JSON that a call answers."""
        return self._client._call(method, path, params=params or {}, **({} if body is None else {"json": body})).content

    def content(self, path: str, start: int, end: int | None) -> Iterator[bytes]:
        """Yield bytes [start, end) of what is at a path."""
        return self._client._bytes(path, start, end)
