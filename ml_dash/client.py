"""A client of a server's REST API: each call is a method.

The types of what comes back are those of the local API. Nothing here is needed to record: see `Experiment(remote=...)`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from ml_dash.disk.durable import BLOCK_BYTES

from .core.answers import comma_list, lenient, log_entry, metadata_of, read_metadata, read_numbers, read_values, written
from .core.values import field_values, flatten, texts_like_numbers, to_json
from .disk.config import remote_url
from .errors import ChecksumMismatch, InvalidValue, NotFound, RemoteError, ServerRefused, Unreachable

if TYPE_CHECKING:
    from types import TracebackType

    import requests
    from typing_extensions import Self

    from .core.answers import (
        CreatedExperiment,
        CreatedLogs,
        ExperimentPage,
        Health,
        Identity,
        ListedMetric,
        ListedProject,
        ParametersRecord,
        SeriesPage,
    )
    from .core.records import (
        AppendBatchResult,
        AppendResult,
        DeletedFile,
        ExperimentRecord,
        FileRecord,
        LogPage,
        MetricStats,
        PointPage,
    )
    from .sync.remote import Link

PathText = str | os.PathLike[str]
Metadata = Mapping[str, Any]

_CONNECT_S: Final = 5.0
_SILENCE_S: Final = 45.0


class RemoteClient:
    """One server, one login. For one thread at a time; a `with` block closes its connections.

    `api_key` is a token from the server's owner; without one, what `ml-dash login` stored, or for `user_name` the
    development login. `timeout` is in seconds, for each answer. `namespace` reads another user's data where that is
    allowed. Every call raises Unreachable (no connection, no answer in time, trouble at the server: try again),
    Unauthorised, ServerRefused (`status`, `code`), and NotFound for what the server does not have. After Unreachable it
    is not known whether a write was done: an `append` that is repeated may be there twice.
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
        """How the server is; needs no login. Raises Unreachable for one that cannot reach what it stores in."""
        from .sync.remote import Link

        # Nobody's token, so that this also works where there is none, or none that is accepted.
        with contextlib.closing(Link(self.base_url, "nobody", timeout_s=self._timeouts)) as link:
            return cast("Health", link.ask("GET", "/health", ("status",)))

    def whoami(self) -> Identity:
        """Whose login this is, and what it allows."""
        return cast("Identity", self._json("GET", "/whoami"))

    def projects(self) -> list[ListedProject]:
        """The projects that there are, by name."""
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
        """Create an experiment, or continue it: what is given replaces what was there.

        `status` "completed", "failed" or "interrupted" ends what was written through clients; without, it is
        interrupted after an hour in which nothing came. Programs that record by themselves decide their own.
        """
        body = _given(
            name=name, description=description, tags=tags, folder=folder, writeProtected=write_protected,
            status=status, **metadata_of(metadata),
        )  # fmt: skip
        found = self._json("POST", f"/projects/{_part(project)}/experiments", json=body)
        return cast("CreatedExperiment", {**found, "experiment": read_metadata(found["experiment"])})

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
        """A page of experiments; `q` is looked for in names and descriptions, `after` is `next` of the page before.

        `sort` is "updated" (the default), "created", "name" or "points".
        """
        query = _given(project=project, status=status, tag=tag, folder=folder, q=q, sort=sort, limit=limit, after=after)
        return cast("ExperimentPage", self._json("GET", "/experiments", params=query))

    def experiment(self, experiment_id: str) -> ExperimentRecord:
        """One experiment, as `experiment.json` has it."""
        return cast("ExperimentRecord", read_metadata(self._json("GET", _experiment(experiment_id))))

    def watch(self, experiment_id: str) -> Iterator[int]:
        """How many events an experiment has, now and each time it has more; ends when it is removed.

        Raises Unreachable when the connection breaks or the server ends: then begin anew.
        """
        from .sync.remote import Link

        # A link of its own: the server says something at least every 15 seconds, however short `timeout` is.
        link = Link(self.base_url, self._token, timeout_s=(self._timeouts[0], max(self._timeouts[1], _SILENCE_S)))
        try:
            response = self._call("GET", f"{_experiment(experiment_id)}/events", link=link, stream=True)
        except BaseException:
            link.close()
            raise
        return _news(response, link)

    def remove_experiment(self, experiment_id: str) -> dict[str, Any]:
        """Remove an experiment: what its writers send later is kept out of sight; a new opening starts anew at 0."""
        return self._json("DELETE", f"/sync/v1{_experiment(experiment_id)}")

    # -- logs --------------------------------------------------------------------------------------------------------

    def add_logs(self, experiment_id: str, logs: Iterable[Mapping[str, Any]]) -> CreatedLogs:
        """Add entries `{message, level, timestamp, metadata}`; all but the message may be left out.

        A `timestamp` is a datetime or ISO 8601 text; default: when they arrive.
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
        """A page of log entries; only of a level, only those whose message holds `q`."""
        query = _given(startIndex=start_index, limit=limit, level=level, q=q)
        page = self._json("GET", f"{_experiment(experiment_id)}/logs", params=query)
        page["logs"] = [read_metadata(entry) for entry in page["logs"]]
        return cast("LogPage", page)

    # -- parameters --------------------------------------------------------------------------------------------------

    def set_parameters(self, experiment_id: str, data: Mapping[str, Any]) -> ParametersRecord:
        """Merge parameters; nested mappings become dotted keys."""
        body = written("data", flatten(lenient(data)))
        return self._parameters(self._json("POST", f"{_experiment(experiment_id)}/parameters", json=body))

    def parameters(self, experiment_id: str) -> ParametersRecord:
        """The parameters, flat, in `data`."""
        return self._parameters(self._json("GET", f"{_experiment(experiment_id)}/parameters"))

    @staticmethod
    def _parameters(record: dict[str, Any]) -> ParametersRecord:
        return cast("ParametersRecord", read_values("data", record))

    # -- metrics -----------------------------------------------------------------------------------------------------

    def append(self, experiment_id: str, metric: str, **fields: Any) -> AppendResult:
        """Append one point."""
        return self.append_point(experiment_id, metric, fields)

    def append_point(self, experiment_id: str, metric: str, data: Mapping[str, Any]) -> AppendResult:
        """Append one point, its fields as a mapping: for fields that are no names of Python."""
        body = written("data", field_values(data))
        return cast("AppendResult", self._json("POST", f"{_metric(experiment_id, metric)}/append", json=body))

    def append_batch(self, experiment_id: str, metric: str, points: Iterable[Mapping[str, Any]]) -> AppendBatchResult:
        """Append many points at once; they become one event."""
        rows = [field_values(point) for point in points]
        texts = [texts_like_numbers(row) for row in rows]
        body = {"dataPoints": to_json(rows), **({"text": texts} if any(texts) else {})}
        found = self._json("POST", f"{_metric(experiment_id, metric)}/append-batch", json=body)
        return cast("AppendBatchResult", found)

    def points(
        self, experiment_id: str, metric: str, start_index: int = 0, limit: int = 1000, *, superseded: bool = True
    ) -> PointPage:
        """A page of points; a negative start counts from the end. Without `superseded` those that are current."""
        query: dict[str, Any] = {"startIndex": start_index, "limit": limit}
        if not superseded:
            query["superseded"] = "false"
        page = self._json("GET", f"{_metric(experiment_id, metric)}/data", params=query)
        page["data"] = [read_values("data", point) for point in page["data"]]
        return cast("PointPage", page)

    def stats(self, experiment_id: str, metric: str) -> MetricStats:
        """The statistics of a metric and of each of its series."""
        found = read_metadata(self._json("GET", f"{_metric(experiment_id, metric)}/stats"))
        return cast("MetricStats", {**found, "series": read_numbers(found["series"])})

    def metrics(self, experiment_id: str) -> list[ListedMetric]:
        """The metrics of an experiment, by name, with the statistics of their series."""
        found = self._json("GET", f"{_experiment(experiment_id)}/metrics")["metrics"]
        return cast("list[ListedMetric]", [{**metric, "series": read_numbers(metric["series"])} for metric in found])

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
        """Each series down-sampled to about `points` points, its minima and maxima kept; for plots.

        `start` and `end` bound the index, `field` asks for the series of one field only. What a rewind has superseded
        is left out, unless it is asked for.
        """
        query = _given(points=points, start=start, end=end, field=field, superseded="true" if superseded else None)
        found = self._json("GET", f"{_metric(experiment_id, metric)}/series", params=query)
        return cast("SeriesPage", {**found, "series": read_numbers(found["series"])})

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

        A live file with the same prefix and name is replaced. Raises InvalidValue for what is no regular file, for one
        that changes while it is sent, and for a tag with a comma.
        """
        from .sync.multipart import Form

        given = _given(prefix=prefix, description=description, tags=comma_list(tags))
        for name, value in metadata_of(metadata).items():
            given[name] = json.dumps(value)
        with Form.of_file(Path(path), given) as form:
            headers = {"Content-Type": form.content_type}
            try:
                found = self._json("POST", f"{_experiment(experiment_id)}/files", data=form, headers=headers)
            except RemoteError as error:
                if form.broken:
                    raise InvalidValue(f"file {str(path)!r} changed while it was sent; it was not added") from error
                raise
        return cast("FileRecord", read_metadata(found))

    def files(
        self, experiment_id: str, *, prefix: str | None = None, tags: list[str] | None = None
    ) -> list[FileRecord]:
        """Records of files that are not deleted, oldest first; below a prefix, with any of the tags."""
        query = _given(prefix=prefix, tags=comma_list(tags))
        found = self._json("GET", f"{_experiment(experiment_id)}/files", params=query)["files"]
        return cast("list[FileRecord]", [read_metadata(record) for record in found])

    def file(self, experiment_id: str, file_id: str) -> FileRecord:
        """The record of one file, also of a deleted one."""
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
        """Change what is said about a file; what is not given stays. The new record."""
        body = _given(description=description, tags=tags, **metadata_of(metadata))
        return cast("FileRecord", read_metadata(self._json("PATCH", _file(experiment_id, file_id), json=body)))

    def delete_file(self, experiment_id: str, file_id: str) -> DeletedFile:
        """Delete a file: `{id, deletedAt}`."""
        return cast("DeletedFile", self._json("DELETE", _file(experiment_id, file_id)))

    def read_file(self, experiment_id: str, file_id: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
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
                f"{self.base_url} did not answer like an ml-dash server "
                f"(status {response.status_code}, {response.headers.get('Content-Type', 'no type')})",
                hint="check the URL, and whether a proxy or a sign-in page stands before it",
            )
        return found

    def _call(self, method: str, path: str, *, link: Link | None = None, **how: Any) -> requests.Response:
        link = link or self._link
        if link is None:
            from .sync.remote import Link

            link = self._link = Link(self.base_url, self._token, timeout_s=self._timeouts)
        if self._namespace is not None:
            how["params"] = {**how.get("params", {}), "namespace": self._namespace}
        try:
            return link.call(method, path, **how)
        except ServerRefused as refused:
            if refused.status == 404:
                raise NotFound(refused.message) from refused
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

    # A part `..` would lead elsewhere; written so, it is sent as it is.
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
            raise Unreachable(f"the connection broke while {response.url} was read: {error}") from error


def _news(response: requests.Response, link: Link) -> Iterator[int]:
    """The numbers in a stream of server-sent events; closes the link at its end."""
    from requests import RequestException

    kind = ""
    with contextlib.closing(link), contextlib.closing(response):
        try:
            for line in response.iter_lines():
                name, _, value = line.decode().partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "change":
                    yield json.loads(value)["events"]
                elif name == "data" and kind == "removed":
                    return
        except (RequestException, OSError) as error:
            raise Unreachable(f"the connection to {link.url} broke: {error}") from error
    raise Unreachable(f"{link.url} ended the stream")
