"""Types of the REST API's requests and replies, and values to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypedDict

from ..errors import InvalidValue
from .values import from_json, lenient_values, texts_like_numbers, to_json

if TYPE_CHECKING:
    from .records import SeriesStats


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


class ListedMetric(TypedDict):
    """One of `metrics()`."""

    metricId: str
    name: str
    description: str | None
    tags: list[str] | None
    totalDataPoints: int
    createdAt: str
    series: dict[str, SeriesStats]


class SampledSeries(TypedDict):
    """Some of `count` points: their indices, their x (`step`, else `epoch`, else the index) and their values."""

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


def lenient(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a mapping of anything, as the local API keeps it."""
    return lenient_values(mapping, lambda text: None)


def written(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Values as a server reads them, under `name`; `text` says which texts are none of the numbers they look like."""
    texts = texts_like_numbers(values)
    return {name: to_json(values), **({"text": texts} if texts else {})}


def metadata_of(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields that say it; none where none is given."""
    return written("metadata", lenient(metadata)) if metadata is not None else {}


def read_values(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """A record whose field `name` has the values that were written."""
    texts = record.get("text", ())
    read = {field: value for field, value in record.items() if field != "text"}
    if read[name] is not None:
        read[name] = from_json(read[name], texts)
    return read


def read_metadata(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose metadata has the values that were written."""
    return read_values("metadata", record)


def read_numbers(series: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Statistics or samples, of which some may be NaN or infinite."""
    return {name: from_json(values) for name, values in series.items()}


def log_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A log entry as it is sent."""
    sent = dict(entry)
    if isinstance(moment := sent.get("timestamp"), datetime):
        sent["timestamp"] = moment.astimezone(timezone.utc).isoformat()
    metadata = sent.pop("metadata", None)
    return {**sent, **metadata_of(metadata)}


def comma_list(tags: list[str] | None) -> str | None:
    """Tags in one text. Raises InvalidValue for one with a comma."""
    for tag in tags or ():
        if "," in tag:
            raise InvalidValue(f"tag {tag[:80]!r} has a comma", hint="add the file, then give its tags by update_file")
    return ",".join(tags) if tags else None
