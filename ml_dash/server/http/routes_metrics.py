"""Routes for metrics: append points, read pages, statistics and series for plots."""

from __future__ import annotations

from typing import Any, Final, TypedDict

from starlette.responses import Response

from ...core.envelope import BINARY, OF_METRIC, STEP, X_KINDS, as_binary, as_json
from ...core.limits import MAX_LIMIT
from ...core.names import check_metric_name
from ...core.protocol import MAX_BATCH_BYTES
from ...reading.source import SeriesRequest
from .calls import LARGEST_INDEX, READ, WRITE, Call, Route, answer, encoded, malformed, recorded

MOST_COMPARED: Final = 1000
"""The most experiments in one request for series."""

BATCH: Final = 100_000
"""The most points of one request."""


class _Extras(TypedDict, total=False):
    description: str | None
    tags: list[str] | None
    metadata: dict[str, Any] | None


class _Point(TypedDict):
    data: dict[str, Any]


class NewPoint(_Point, _Extras, total=False):
    """The body of `.../append`; `text` names fields whose texts look like numbers."""

    text: list[str]


class _Points(TypedDict):
    dataPoints: list[dict[str, Any]]


class NewPoints(_Points, _Extras, total=False):
    """The body of `.../append-batch`; `text` has a list of such fields for each point."""

    text: list[list[str]]


async def append(call: Call) -> Response:
    """Append one point; answers with its index."""
    async with call.json(NewPoint) as body:
        if not body["data"]:
            malformed("data has no fields")
        row = recorded(body["data"], body.get("text", ()))
        appended = await call.write(
            call.core.append_points, call.namespace, call.experiment(), _metric(call), [row], **_extras(body)
        )
    fields = ("metricId", "bufferedDataPoints", "chunkSize")
    return answer({"index": appended["startIndex"], **{name: appended[name] for name in fields}})


async def append_batch(call: Call) -> Response:
    """Append points with consecutive indices."""
    async with call.json(NewPoints, MAX_BATCH_BYTES) as body:
        given, texts = body["dataPoints"], body.get("text") or []
        if not 1 <= len(given) <= BATCH:
            malformed(f"dataPoints has {len(given)} points; send 1 to {BATCH}")
        if texts and len(texts) != len(given):
            malformed("text and dataPoints differ in length")
        if not all(given):
            malformed("a point has no fields")
        return answer(
            await call.write(_append_batch, call, call.experiment(), _metric(call), given, texts, _extras(body))
        )


def _append_batch(
    call: Call,
    experiment: str,
    metric: str,
    given: list[dict[str, Any]],
    texts: list[list[str]],
    extras: dict[str, Any],
) -> Any:
    if texts:
        rows = [recorded(row, names) for row, names in zip(given, texts, strict=True)]
    else:
        rows = [recorded(row) for row in given]
    return call.core.append_points(call.namespace, experiment, metric, rows, **extras)


async def data(call: Call) -> Response:
    """A page of points, as in the lines of `data.jsonl`."""
    start, limit = call.page()
    page = await call.read(
        call.source.metric_page, call.experiment(), _metric(call), start=start, limit=limit,
        superseded=call.flag("superseded", True), as_of=call.moment(),
    )  # fmt: skip
    return encoded(page)


async def stats(call: Call) -> Response:
    """The statistics of one metric."""
    return encoded(await call.read(call.source.metric_stats, call.experiment(), _metric(call), call.moment()))


async def metrics(call: Call) -> Response:
    """All metrics of an experiment, or a page of those whose names fit, with their statistics."""
    page = await call.read(
        call.source.metrics,
        call.experiment(),
        q=call.text("q"),
        prefix=call.text("prefix") or "",
        start=call.integer("startIndex", 0, 0, LARGEST_INDEX),
        limit=call.number_or_none("limit", 1, MAX_LIMIT),
        as_of=call.moment(),
    )
    return encoded(page)


async def compare(call: Call) -> Response:
    """One series of many experiments, each as an envelope of minima and maxima; as JSON, or as binary arrays."""
    metric = call.text("metric")
    if metric is None:
        malformed("metric is missing")
    x = call.text("x") or STEP
    if x not in X_KINDS and (not x.startswith(OF_METRIC) or x == OF_METRIC):
        malformed(f"x must be one of {', '.join(X_KINDS)} or {OF_METRIC}NAME")
    request = SeriesRequest(
        experiments=call.experiments(MOST_COMPARED),
        metric=metric,
        points=call.integer("points", 1000, 1, MAX_LIMIT),
        x=x,
        low=call.number("from"),
        high=call.number("to"),
        split=call.text("split"),
        superseded=call.flag("superseded", False),
        as_of=call.moment(),
    )
    binary = BINARY in call.request.headers.get("accept", "")

    def drawn() -> bytes:
        page = call.source.compare_series(request)
        return as_binary(page) if binary else as_json(page)

    data = await call.read(drawn)
    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    return Response(data, headers=headers, media_type=BINARY if binary else "application/json")


async def series(call: Call) -> Response:
    """The series of a metric, down-sampled so that no minimum or maximum is lost."""
    sampled = await call.read(
        call.source.sampled,
        call.experiment(),
        _metric(call),
        points=call.integer("points", 1000, 1, MAX_LIMIT),
        start=call.number_or_none("start", -LARGEST_INDEX, LARGEST_INDEX),
        end=call.number_or_none("end", -LARGEST_INDEX, LARGEST_INDEX),
        field=call.text("field"),
        superseded=call.flag("superseded", False),
        as_of=call.moment(),
    )
    return encoded(sampled)


def _metric(call: Call) -> str:
    return check_metric_name(call.parts["metric"])


def _extras(body: Any) -> dict[str, Any]:
    """Return the given ones of description, tags and metadata of the metric."""
    given = {name: body[name] for name in ("description", "tags") if body.get(name) is not None}
    if body.get("metadata") is not None:
        given["metadata"] = recorded(body["metadata"])
    return given


_METRIC: Final = "/experiments/{experiment}/metrics/{metric...}"

READING: Final = [
    Route("GET", "/series", compare, READ),
    Route("GET", "/experiments/{experiment}/metrics", metrics, READ),
    Route("GET", f"{_METRIC}/data", data, READ),
    Route("GET", f"{_METRIC}/stats", stats, READ),
    Route("GET", f"{_METRIC}/series", series, READ),
]

WRITING: Final = [
    Route("POST", f"{_METRIC}/append", append, WRITE),
    Route("POST", f"{_METRIC}/append-batch", append_batch, WRITE),
]
