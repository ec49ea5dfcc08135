"""Routes for projects, experiments and parameters, and the event stream for live readers."""

from __future__ import annotations

from functools import partial
from typing import Any, Final, TypedDict

from starlette.responses import Response, StreamingResponse

from ...core.events import STATUSES
from ...core.json_values import flatten
from ...core.names import check_name
from ...core.protocol import MAX_BATCH_BYTES
from .calls import READ, WRITE, Call, Route, answer, malformed, recorded

PAGE: Final = 1000
"""The most experiments of one page."""

SORTS: Final = ("updated", "created", "name", "points")


class _Named(TypedDict):
    name: str


class NewExperiment(_Named, total=False):
    """The body of `POST /projects/{project}/experiments`; `text` names texts in `metadata` that look like numbers."""

    description: str | None
    tags: list[str] | None
    folder: str | None
    metadata: dict[str, Any] | None
    writeProtected: bool | None
    status: str | None
    text: list[str]


class _Data(TypedDict):
    data: dict[str, Any]


class NewParameters(_Data, total=False):
    """The body of `POST /experiments/{id}/parameters`; `text` names texts that look like numbers."""

    text: list[str]


async def projects(call: Call) -> Response:
    """The projects of the namespace, with the number of their experiments."""
    return answer(await call.read(call.source.projects))


async def upsert_experiment(call: Call) -> Response:
    """Create an experiment, or change the given fields of the one of that name."""
    project = check_name("project", call.parts["project"])
    async with call.json(NewExperiment) as body:
        check_name("name", body["name"])
        if body.get("status") not in (None, *STATUSES):
            malformed(f"status must be one of {', '.join(STATUSES)}")
        given = {name: value for name, value in body.items() if value is not None and name != "text"}
        if body.get("metadata") is not None:
            given["metadata"] = recorded(body["metadata"] or {}, body.get("text", ()))
        return answer(await call.write(call.core.upsert_experiment, call.namespace, project, given))


async def experiments(call: Call) -> Response:
    """A page of experiments, filtered and sorted."""
    status, sort = call.text("status"), call.text("sort") or SORTS[0]
    if status not in (None, *STATUSES):
        malformed(f"status must be one of {', '.join(STATUSES)}")
    if sort not in SORTS:
        malformed(f"sort must be one of {', '.join(SORTS)}")
    return answer(
        await call.read(
            call.source.listed,
            project=call.text("project"),
            status=status,
            tag=call.text("tag"),
            folder=call.text("folder"),
            q=call.text("q"),
            sort=sort,
            limit=call.integer("limit", 100, 1, PAGE),
            after=call.text("after", 2000),
        )
    )


async def experiment(call: Call) -> Response:
    """The document of one experiment."""
    return answer(await call.read(call.source.experiment, call.experiment()))


async def set_parameters(call: Call) -> Response:
    """Merge parameters into those that are there. Nested ones are flattened."""
    async with call.json(NewParameters, MAX_BATCH_BYTES) as body:
        data = flatten(recorded(body["data"], body.get("text", ())))
        return answer(await call.write(call.core.set_parameters, call.namespace, call.experiment(), data))


async def get_parameters(call: Call) -> Response:
    """The parameters of an experiment, flat."""
    return answer(await call.read(call.source.parameters, call.experiment()))


async def events(call: Call) -> Response:
    """A stream of server-sent events: how many events the experiment has, each time that changes."""
    hub, name = call.services.hub, call.experiment()
    if call.request.method == "HEAD":
        await call.read(call.source.experiment, name)
        return Response(media_type="text/event-stream")
    text = call.request.headers.get("last-event-id", "")
    known = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None
    if call.admission is not None:
        call.admission.stream()
    listener = hub.join(call.namespace, name)
    try:
        # Join before asking, so that no change between the two is missed.
        document = await call.read(call.source.experiment, name)
        listener.notify(document["counts"]["events"])
    except BaseException:
        hub.leave(call.namespace, name, listener)
        raise
    return _Stream(call, name, listener, known)


class _Stream(StreamingResponse):
    """The response to a live reader; removes its listener when it ends, however it ends."""

    def __init__(self, call: Call, name: str, listener: Any, known: int | None) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        hub = call.services.hub
        stream = hub.stream(name, listener, known)
        super().__init__(stream, headers=headers, media_type="text/event-stream")
        self._leave = partial(hub.leave, call.namespace, name, listener)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


READING: Final = [
    Route("GET", "/projects", projects, READ),
    Route("GET", "/experiments", experiments, READ),
    Route("GET", "/experiments/{experiment}", experiment, READ),
    Route("GET", "/experiments/{experiment}/parameters", get_parameters, READ),
    Route("GET", "/experiments/{experiment}/events", events, READ),
]

WRITING: Final = [
    Route("POST", "/projects/{project}/experiments", upsert_experiment, WRITE),
    Route("POST", "/experiments/{experiment}/parameters", set_parameters, WRITE),
]
