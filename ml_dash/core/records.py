"""The mappings shown to callers, in files and by the REST API, built from the state."""

from __future__ import annotations

from binascii import b2a_base64
from typing import Any, Final, TypedDict

from .limits import CHUNK_SIZE
from .names import experiment_id, metric_id
from .ranges import size_of
from .state import RUNNING, File, Metric, Series, State, WriterState
from .times import utc_text

WRITERS_SHOWN: Final = 50
"""The newest writers in `experiment.json`, besides the first: a run may be resumed thousands of times."""
_REASON_CHARACTERS: Final = 300
# By number, as Linux has them: the machine that reads may have others, or be Windows.
_SIGNALS: Final = {1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 6: "SIGABRT", 9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV",
                   12: "SIGUSR2", 15: "SIGTERM", 24: "SIGXCPU"}  # fmt: skip


class LogEntry(TypedDict):
    """A log entry: one line of `logs/logs.jsonl`."""

    timestamp: str
    level: str
    message: str
    metadata: dict[str, Any] | None
    sequenceNumber: int


class LogPage(TypedDict):
    """A page of log entries; `total` is the number of entries in it."""

    logs: list[LogEntry]
    startIndex: int
    endIndex: int
    total: int
    hasMore: bool


class Point(TypedDict):
    """A point: one line of `metrics/<metric>/data.jsonl`."""

    index: int
    data: dict[str, Any]
    createdAt: str


class PointPage(TypedDict):
    """A page of points; `total` is the number of points in it."""

    data: list[Point]
    startIndex: int
    endIndex: int
    total: int
    hasMore: bool


class AppendResult(TypedDict):
    """The result of `append`."""

    metricId: str
    index: int
    bufferedDataPoints: int
    chunkSize: int


class AppendBatchResult(TypedDict):
    """The result of `append_batch`."""

    metricId: str
    startIndex: int
    endIndex: int
    count: int
    bufferedDataPoints: int
    chunkSize: int


class SeriesStats(TypedDict):
    """Statistics of one numeric field."""

    count: int
    first: float | int | None
    last: float | int | None
    min: float | int | None
    max: float | int | None
    mean: float | None


class MetricSummary(TypedDict):
    """One entry of `list_all()`."""

    metricId: str
    name: str
    description: str | None
    tags: list[str] | None
    totalDataPoints: int
    createdAt: str


class _WhereUnsure(TypedDict, total=False):
    supersededElsewhere: bool


class _Superseded(_WhereUnsure):
    superseded: list[list[int]]
    supersededDataPoints: int


class MetricStats(_Superseded):
    """The result of `stats()`.

    `superseded` holds indices [start, end) of points that a rewind has superseded: `totalDataPoints` counts them, the
    statistics of the series do not. `supersededElsewhere` is there if a rewind hit points that are not on this machine:
    `superseded` and the statistics may be wrong then.
    """

    metricId: str
    name: str
    description: str | None
    tags: list[str] | None
    metadata: dict[str, Any] | None
    totalDataPoints: int
    bufferedDataPoints: int
    chunkedDataPoints: int
    totalChunks: int
    chunkSize: int
    firstDataAt: str | None
    lastDataAt: str | None
    createdAt: str
    updatedAt: str
    series: dict[str, SeriesStats]


class FileRecord(TypedDict):
    """One added file, as listed and in `.files_metadata.json`."""

    id: str
    experimentId: str
    path: str
    prefix: str
    filename: str
    description: str | None
    tags: list[str] | None
    contentType: str
    sizeBytes: int
    checksum: str
    metadata: dict[str, Any] | None
    uploadedAt: str
    updatedAt: str
    deletedAt: str | None


class Reason(TypedDict, total=False):
    """Why an experiment is not running any more, though it was not completed; only what is known is there.

    `kind`: "exception" (with its `type`), "exit" (with the exit `code`), "signal" (with its number, `signal`), "closed"
    (by a call that gave the status), "died" (it was found dead; `host` is where), "silent" (it says it is running, and
    nothing was heard of it for long). `text` says it in a line, `at` when it happened or was last heard.
    """

    kind: str
    text: str
    type: str
    signal: int
    code: int
    host: str
    at: str | None


class _WhereItApplies(TypedDict, total=False):
    afterProtection: dict[str, list[str]]
    malformedEvents: int


class ExperimentRecord(_WhereItApplies):
    """`experiment.json`. Times are null, and the status `interrupted`, while there is no event.

    `title` is what it is called since it was renamed, `names` what it was called before. `writers` has the first one
    and the newest; there are `writersTotal`, of which `writersRunning` have not ended.
    """

    id: str
    name: str
    title: str | None
    names: list[str]
    project: str
    description: str | None
    notes: str | None
    tags: list[str] | None
    folder: str | None
    metadata: dict[str, Any] | None
    archived: bool
    writeProtected: bool
    status: str
    reason: Reason | None
    createdAt: str | None
    updatedAt: str | None
    endedAt: str | None
    error: dict[str, Any] | None
    counts: dict[str, int]
    journal: str | None
    writersTotal: int
    writersRunning: int
    writers: list[dict[str, Any]]


class DeletedFile(TypedDict):
    """The result of `delete()` of a file."""

    id: str
    deletedAt: str


class DurableState(TypedDict):
    """Counts of events by how safe they are."""

    accepted: int
    written: int
    synced: int
    remote: int
    lost: int


def log_page(logs: list[LogEntry], start: int, *, more: bool) -> LogPage:
    """Return a page that begins with entry `start`."""
    return LogPage(logs=logs, startIndex=start, endIndex=start + len(logs) - 1, total=len(logs), hasMore=more)


def point_page(data: list[Point], start: int, *, more: bool) -> PointPage:
    """Return a page of points from `start` on; if points are left out, its first index may be greater."""
    end = data[-1]["index"] if data else start - 1
    return PointPage(data=data, startIndex=start, endIndex=end, total=len(data), hasMore=more)


def _readable(value: Any) -> Any:
    """Return a value as callers read it: bytes as base64 text."""
    kind = type(value)
    if kind is bytes:
        return b2a_base64(value, newline=False).decode("ascii")
    if kind is dict:
        return {key: _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if kind is list else value


def _time(time_ns: int) -> str | None:
    return utc_text(time_ns) if time_ns else None


def series_stats(series: Series) -> SeriesStats:
    """Return the statistics of a series; the mean leaves NaN out."""
    mean = series.total / series.counted if series.counted else None
    return SeriesStats(
        count=series.count, first=series.first, last=series.last, min=series.min, max=series.max, mean=mean
    )


def series_name(metric: str, field: str) -> str:
    """Return the name of a series: the metric's own name for the field `value`, `metric.field` for others."""
    return metric if field == "value" else f"{metric}.{field}"


def metric_meant(state: State, name: str) -> str:
    """The metric that is meant: the one of that name, else the one with a series that is shown under it.

    Of several such metrics the one with the longest name. Costs a look-up for each dot in the name.
    """
    if name in state.metrics:
        return name
    dot = name.rfind(".")
    while dot > 0:
        # Names and fields may have dots of their own, so each dot may be the one between them (see `series_name`).
        metric, field = name[:dot], name[dot + 1 :]
        known = state.metrics.get(metric)
        if known is not None and field in known.series and field != "value":
            return metric
        dot = name.rfind(".", 0, dot)
    return name


def all_series(metric: Metric) -> dict[str, SeriesStats]:
    """Return the statistics of every numeric field, sorted by name: the order of meeting depends on the stretches."""
    return {series_name(metric.name, field): series_stats(series) for field, series in sorted(metric.series.items())}


def metric_id_of(state: State, name: str) -> str:
    """Return the stable id of a metric."""
    return metric_id(experiment_id(state.project, state.name), name)


def buffered(count: int) -> int:
    """Return how many of `count` points are not in a full chunk."""
    return count % CHUNK_SIZE


def metric_summary(state: State, metric: Metric) -> MetricSummary:
    """One entry of `list_all()`."""
    return MetricSummary(
        metricId=metric_id_of(state, metric.name),
        name=metric.name,
        description=metric.description.value,
        tags=metric.tags.value,
        totalDataPoints=metric.count,
        createdAt=utc_text(metric.created_ns),
    )


def metric_stats(state: State, metric: Metric) -> MetricStats:
    """Return the result of `stats()`."""
    return MetricStats(
        metricId=metric_id_of(state, metric.name),
        name=metric.name,
        description=metric.description.value,
        tags=metric.tags.value,
        metadata=_readable(metric.metadata.value),
        totalDataPoints=metric.count,
        bufferedDataPoints=buffered(metric.count),
        chunkedDataPoints=metric.count - buffered(metric.count),
        totalChunks=metric.count // CHUNK_SIZE,
        chunkSize=CHUNK_SIZE,
        firstDataAt=_time(metric.first_ns),
        lastDataAt=_time(metric.last_ns),
        createdAt=utc_text(metric.created_ns),
        updatedAt=utc_text(metric.updated_ns),
        **_superseded(metric),
        series=all_series(metric),
    )


def _superseded(metric: Metric) -> _Superseded:
    shown = _Superseded(
        superseded=[[start, end] for start, end in metric.superseded], supersededDataPoints=size_of(metric.superseded)
    )
    if metric.unsure:
        shown["supersededElsewhere"] = True
    return shown


def metric_document(state: State, metric: Metric) -> dict[str, Any]:
    """Return the content of `metrics/<metric>/metadata.json`."""
    document: dict[str, Any] = {
        "metricId": metric_id_of(state, metric.name),
        "name": metric.name,
        "description": metric.description.value,
        "tags": metric.tags.value,
        "metadata": _readable(metric.metadata.value),
        "totalDataPoints": metric.count,
        "nextIndex": metric.count,
        "firstDataAt": _time(metric.first_ns),
        "lastDataAt": _time(metric.last_ns),
        "createdAt": utc_text(metric.created_ns),
        "updatedAt": utc_text(metric.updated_ns),
        **_superseded(metric),
        "series": all_series(metric),
    }
    return document


def file_record(state: State, file: File) -> FileRecord:
    """Return one file as callers see it."""
    ended = [time for time in (file.deleted_ns, file.replaced_ns) if time]
    record = FileRecord(
        id=file.id,
        experimentId=experiment_id(state.project, state.name),
        path=file.path,
        prefix=file.path.rstrip("/") + "/",
        filename=file.filename,
        description=file.description.value,
        tags=file.tags.value,
        contentType=file.content_type,
        sizeBytes=file.size_bytes,
        checksum=file.checksum,
        metadata=_readable(file.metadata.value),
        uploadedAt=utc_text(file.added_ns),
        updatedAt=utc_text(file.changed[0]),
        deletedAt=utc_text(min(ended)) if ended else None,
    )
    if _after_protection(state, file.changed):
        record["afterProtection"] = True  # type: ignore[typeddict-unknown-key]  # only where it applies
    return record


def _after_protection(state: State, stamp: tuple[int, str, int]) -> bool:
    return state.protected is not None and stamp > state.protected


def files_in_order(state: State) -> list[File]:
    """Return all files ever added, oldest first."""
    return sorted(state.files.values(), key=lambda file: file.stamp)


def live_files(state: State, prefix: str = "", tags: list[str] | None = None) -> list[File]:
    """Return the listed files, oldest first: below a canonical prefix, with any of the tags."""
    return [file for file in files_in_order(state) if is_listed(file, prefix, tags)]


def is_listed(file: File, prefix: str = "", tags: list[str] | None = None) -> bool:
    """True if a file is listed below a canonical prefix, with any of the tags."""
    return (
        file.live
        and (not prefix or file.prefix == prefix or file.prefix.startswith(prefix + "/"))
        and (not tags or not set(tags).isdisjoint(file.tags.value or ()))
    )


def writer_record(writer: WriterState) -> dict[str, Any]:
    """Return one entry of `writers` in `experiment.json`."""
    ended = writer.ended or ("died" if writer.dead else None)
    record: dict[str, Any] = {
        "id": writer.id,
        **(writer.place or {}),
        "startedAt": _time(writer.first_ns),
        "lastEventAt": _time(writer.last_ns),
        "ended": ended,
        "endedAt": _time(writer.ended_ns),
    }
    if writer.child:
        record["child"] = True
    if writer.error:
        record["error"] = writer.error
    if writer.lost:
        record["lost"] = writer.lost
    if gaps := writer.gaps():
        record["missing"] = [[first, end - 1] for first, end in gaps]
    return record


def experiment_counts(state: State) -> dict[str, int]:
    """Return the `counts` of `experiment.json`: a few look-ups, whatever the size of the experiment."""
    return {
        "events": state.events,
        "logs": state.logs,
        "points": state.points,
        "metrics": len(state.metrics),
        "parameters": len(state.parameters),
        "files": state.live_files,
        "lost": state.lost,
    }


def status_of(state: State) -> str:
    """Return the status as shown: `interrupted` while there is no event."""
    return state.status if state.events else "interrupted"


def ended_ns_of(state: State) -> int | None:
    """Return when the writers that decide the status had all ended, in ns; None while the experiment is running."""
    if state.status == RUNNING:
        return None
    # Without a session there are only children: the one that ended last decides.
    ids = state.session or [writer for writer in [state.last_ended] if writer]
    return max((state.writers[writer].end_ns for writer in ids), default=0) or None


def ended_at(state: State) -> str | None:
    """Return the time of `ended_ns_of` as text; None while the experiment is running."""
    return _time(ended_ns_of(state) or 0)


def shown_name(state: State) -> str:
    """Return what an experiment is called: its title, else its name."""
    return state.title.value or state.name


def old_names(state: State) -> list[str]:
    """Return what an experiment was called before, oldest first: its name, if it has a title, and older titles."""
    by_age = sorted(state.titles, key=lambda title: state.titles[title])
    return [name for name in dict.fromkeys([state.name, *by_age]) if name != shown_name(state)]


def reason_of(state: State) -> Reason | None:
    """Return why an experiment failed or was interrupted; None if it did not, or nothing is known of it."""
    status = status_of(state)
    if status not in ("failed", "interrupted") or not state.events:
        return None
    ids = state.session or [writer for writer in [state.last_ended] if writer]
    ended = (None, "interrupted") if status == "interrupted" else (status,)
    deciding = [state.writers[writer] for writer in ids]
    deciding = sorted((writer for writer in deciding if writer.ended in ended), key=lambda writer: writer.end_ns)
    # The first that failed, for others may have failed because of it; the last that stopped.
    return _reason(deciding[0 if status == "failed" else -1]) if deciding else None


def _reason(writer: WriterState) -> Reason:
    """Return how a writer ended."""
    place = writer.place or {}
    reason = Reason(kind="closed", text=f"closed as {writer.ended}", at=_time(writer.end_ns))
    if writer.ended is None:
        host = str(place.get("host", "an unknown host"))
        reason |= Reason(kind="died", text=f"died on {host}, last heard {utc_text(writer.last_ns)}", host=host)
    elif writer.signal is not None:
        reason |= Reason(kind="signal", text=f"ended by {_signal_name(writer.signal)}", signal=writer.signal)
    elif writer.exit_code is not None:
        reason |= Reason(kind="exit", text=f"ended with exit code {writer.exit_code}", code=writer.exit_code)
    elif writer.error and "type" in writer.error:
        kind, message = str(writer.error["type"]), str(writer.error.get("message", ""))
        # The whole of it is in `error`.
        first = message.strip().split("\n", 1)[0][:_REASON_CHARACTERS]
        reason |= Reason(kind="exception", type=kind, text=f"{kind}: {first}" if first else kind)
    return reason


def _signal_name(number: int) -> str:
    return _SIGNALS.get(number, f"signal {number}")


def _shown_writers(state: State) -> list[WriterState]:
    """Return the writers that `experiment.json` lists: the first and the newest ones, by when they began."""
    writers = sorted(state.writers.values(), key=lambda writer: (writer.first_ns, writer.id))
    return writers if len(writers) <= WRITERS_SHOWN + 1 else [writers[0], *writers[-WRITERS_SHOWN:]]


def experiment_document(state: State) -> ExperimentRecord:
    """Return the content of `experiment.json`. All of it comes from events and from what `order` records."""
    session = [state.writers[writer] for writer in state.session or state.writers]
    error = next((writer.error for writer in reversed(session) if writer.error), None)
    document: ExperimentRecord = {
        "id": experiment_id(state.project, state.name),
        "name": state.name,
        "title": state.title.value,
        "names": old_names(state),
        "project": state.project,
        "description": state.description.value,
        "notes": state.notes.value,
        "tags": state.tags.value,
        "folder": state.folder.value,
        "metadata": _readable(state.metadata.value),
        "archived": bool(state.archived.value),
        "writeProtected": state.protected is not None,
        "status": status_of(state),
        "reason": reason_of(state),
        "createdAt": _time(state.created_ns),
        "updatedAt": _time(state.updated_ns),
        "endedAt": ended_at(state),
        "error": error if state.status == "failed" else None,
        "counts": experiment_counts(state),
        "journal": state.journal_path.value,
        "writersTotal": len(state.writers),
        "writersRunning": len(state.alive),
        "writers": [writer_record(writer) for writer in _shown_writers(state)],
    }
    late = [key for key, register in state.parameters.items() if _after_protection(state, register.stamp)]
    if late:
        document["afterProtection"] = {"parameters": late}
    if state.malformed:
        document["malformedEvents"] = state.malformed
    return document


def parameters_document(state: State) -> dict[str, Any]:
    """Return the content of `parameters.json`: flat, in the order in which keys were first set."""
    return {key: _readable(register.value) for key, register in state.parameters.items()}


def files_document(state: State) -> dict[str, Any]:
    """Return the content of `files/.files_metadata.json`, deleted files included."""
    return {"files": [file_record(state, file) for file in files_in_order(state)]}
