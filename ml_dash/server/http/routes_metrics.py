"""The calls about metrics: append points, read pages, statistics and series for plots."""

from __future__ import annotations

from typing import Any, Final, TypedDict

from starlette.responses import Response

from ...core.limits import MAX_LIMIT
from ...core.names import check_metric_name
from ...core.protocol import MAX_BATCH_BYTES
from .calls import LARGEST_INDEX, READ, WRITE, Call, Route, answer, malformed, raw_json, recorded

BATCH: Final = 100_000


class _Extras(TypedDict, total=False):
    description: str | None
    tags: list[str] | None
    metadata: dict[str, Any] | None


class _Point(TypedDict):
    data: dict[str, Any]


class NewPoint(_Point, _Extras, total=False):
    """What `.../append` takes; `text` names the fields that are text though they look like numbers."""

    text: list[str]


class _Points(TypedDict):
    dataPoints: list[dict[str, Any]]


class NewPoints(_Points, _Extras, total=False):
    """What `.../append-batch` takes; `text` has a list for each point."""

    text: list[list[str]]


async def append(call: Call) -> Response:
    async with call.json(NewPoint) as body:
        if not body["data"]:
            malformed("data has no fields")
        row = recorded(body["data"], body.get("text", ()))
        made = await call.write(
            call.core.append_points, call.namespace, call.experiment(), _metric(call), [row], **_extras(body)
        )
    kept = ("metricId", "bufferedDataPoints", "chunkSize")
    return answer({"index": made["startIndex"], **{name: made[name] for name in kept}})


async def append_batch(call: Call) -> Response:
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
    """A page of points, as the lines that `data.jsonl` would have."""
    start, limit = call.page()
    page = await call.read(
        call.core.metric_page, call.namespace, call.experiment(), _metric(call), start, limit,
        superseded=call.flag("superseded", True),
    )  # fmt: skip
    return raw_json(page)


async def stats(call: Call) -> Response:
    return answer(await call.read(call.core.metric_stats, call.namespace, call.experiment(), _metric(call)))


async def metrics(call: Call) -> Response:
    return answer({"metrics": await call.read(call.core.metrics, call.namespace, call.experiment())})


async def series(call: Call) -> Response:
    """One series, down-sampled so that no minimum or maximum is lost."""
    found = await call.read(
        call.core.series,
        call.namespace,
        call.experiment(),
        _metric(call),
        points=call.integer("points", 1000, 1, MAX_LIMIT),
        start=call.number_or_none("start", -LARGEST_INDEX, LARGEST_INDEX),
        end=call.number_or_none("end", -LARGEST_INDEX, LARGEST_INDEX),
        field=call.text("field"),
        superseded=call.flag("superseded", False),
    )
    return raw_json(found)


def _metric(call: Call) -> str:
    return check_metric_name(call.parts["metric"])


def _extras(body: Any) -> dict[str, Any]:
    """Description, tags and metadata of the metric, as far as they are given."""
    given = {name: body[name] for name in ("description", "tags") if body.get(name) is not None}
    if body.get("metadata") is not None:
        given["metadata"] = recorded(body["metadata"])
    return given


_METRIC: Final = "/experiments/{experiment}/metrics/{metric...}"

ROUTES: Final = [
    Route("GET", "/experiments/{experiment}/metrics", metrics, READ),
    Route("POST", f"{_METRIC}/append", append, WRITE),
    Route("POST", f"{_METRIC}/append-batch", append_batch, WRITE),
    Route("GET", f"{_METRIC}/data", data, READ),
    Route("GET", f"{_METRIC}/stats", stats, READ),
    Route("GET", f"{_METRIC}/series", series, READ),
]
