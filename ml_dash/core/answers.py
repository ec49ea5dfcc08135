"""Types of the REST API's requests and replies, and values to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypedDict

from ..errors import InvalidValue
from .json_values import from_json, texts_like_numbers, to_json
from .values import lenient_values

if TYPE_CHECKING:
    from .records import SeriesStats


class Health(TypedDict, total=False):
    """The state of a server: `status` ("ok"), `uptime` in seconds, and the state of each store."""

    status: str
    timestamp: str
    uptime: float
    database: str
    storage: str
    mongodb: str
    s3: str


class CreatedExperiment(TypedDict):
    """The result of `create_experiment`; other calls take `experiment["id"]`."""

    experiment: dict[str, Any]
    project: str
    folder: str | None
    namespace: str


class ListedProject(TypedDict):
    """A project in `projects()`: how many experiments it has and how many run, and its first and last time."""

    name: str
    experiments: int
    running: int
    createdAt: str
    updatedAt: str


class _OfAQuery(TypedDict, total=False):
    """What an experiment in a list has too, unless it was asked for by the older parameters alone."""

    title: str | None
    notes: str | None
    archived: bool
    reason: dict[str, Any] | None
    values: dict[str, Any]


class ListedExperiment(_OfAQuery):
    """An experiment in `experiments()`; `heardAt` is when the server last received something of it."""

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
    """A page of `total` experiments; `next` is what to give as `after` for the next page, None at the end."""

    experiments: list[ListedExperiment]
    total: int
    next: str | None


class ListedField(TypedDict):
    """A field of experiments: how many have it, the kind of its values, and the most frequent texts among them."""

    name: str
    kind: str
    runs: int
    values: list[str]


class ListedGroup(TypedDict):
    """The experiments with one value of a field: how many, and for each column {mean, sd, min, max, count}."""

    value: Any
    runs: int
    values: dict[str, dict[str, float]]


class CreatedLogs(TypedDict):
    """The result of `add_logs`: how many entries, and their first and last number."""

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
    """The user of a login, what it allows, and until when."""

    userName: str
    namespace: str
    kind: str
    readOnly: bool
    expiresAt: str | None


class ListedMetric(TypedDict):
    """A metric in `metrics()`, with the statistics of its series."""

    metricId: str
    name: str
    description: str | None
    tags: list[str] | None
    totalDataPoints: int
    createdAt: str
    series: dict[str, SeriesStats]


class SampledSeries(TypedDict):
    """A sample of `count` points: their indices, their x (`step`, else `epoch`, else the index) and their values."""

    index: list[int]
    x: list[float]
    value: list[float]
    count: int


class SeriesPage(TypedDict):
    """The result of `series`: each series by its name, of the points `startIndex` to `endIndex`, inclusive."""

    metricId: str
    name: str
    startIndex: int
    endIndex: int
    totalDataPoints: int
    series: dict[str, SampledSeries]


def lenient(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values of a mapping of any objects, converted as the local API does."""
    return lenient_values(mapping, lambda text: None)


def written(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Encode values for a server under `name`; `text` names the texts that look like numbers."""
    texts = texts_like_numbers(values)
    return {name: to_json(values), **({"text": texts} if texts else {})}


def metadata_of(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the request fields for metadata; {} if it is None."""
    return written("metadata", lenient(metadata)) if metadata is not None else {}


def read_values(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Decode the field `name` of a record to the values that were recorded."""
    texts = record.get("text", ())
    read = {field: value for field, value in record.items() if field != "text"}
    if read[name] is not None:
        read[name] = from_json(read[name], texts)
    return read


def read_metadata(record: dict[str, Any]) -> dict[str, Any]:
    """Decode the metadata of a record to the values that were recorded."""
    return read_values("metadata", record)


def read_numbers(series: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Decode statistics or samples: the texts for NaN and infinities become floats."""
    return {name: from_json(values) for name, values in series.items()}


def log_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request form of a log entry."""
    sent = dict(entry)
    if isinstance(moment := sent.get("timestamp"), datetime):
        sent["timestamp"] = moment.astimezone(timezone.utc).isoformat()
    metadata = sent.pop("metadata", None)
    return {**sent, **metadata_of(metadata)}


def comma_list(tags: list[str] | None) -> str | None:
    """Join tags into one text; None if there are none. Raises InvalidValue for a tag with a comma."""
    for tag in tags or ():
        if "," in tag:
            raise InvalidValue(f"tag {tag[:80]!r} has a comma", hint="add the file, then give its tags by update_file")
    return ",".join(tags) if tags else None
