"""Routes for projects, experiments and parameters."""

from __future__ import annotations

import json
from typing import Any, Final, TypedDict

from starlette.responses import Response

from ...core.events import STATUSES
from ...core.json_values import flatten
from ...core.limits import MAX_LIMIT
from ...core.names import check_name
from ...core.protocol import MAX_BATCH_BYTES
from ...core.state import RUNNING
from .calls import LARGEST_INDEX, READ, WRITE, Call, Route, answer, encoded, malformed, recorded

MOST_COMPARED: Final = 100
"""Experiments whose parameters may be asked for at once."""

PAGE: Final = 1000
"""The most experiments of one page."""

SORTS: Final = ("updated", "created", "name", "points")
_OLDER: Final = frozenset((None, *SORTS))
# Parameters that ask for a query, or for pages by number.
_NEWER: Final = frozenset(("where", "columns", "startIndex"))


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


class ExperimentChange(TypedDict, total=False):
    """The body of `PATCH /experiments/{id}`: null takes a value away, what is not given stays."""

    title: str | None
    notes: str | None
    archived: bool
    description: str | None
    tags: list[str] | None
    folder: str | None


class _Data(TypedDict):
    data: dict[str, Any]


class NewParameters(_Data, total=False):
    """The body of `POST /experiments/{id}/parameters`; `text` names texts that look like numbers."""

    text: list[str]


async def projects(call: Call) -> Response:
    """The projects of the namespace, with the number of their experiments."""
    return encoded(await call.read(call.source.projects))


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
    """A page of experiments, filtered by a query and sorted by any field, with the values of columns."""
    query = call.request.query_params
    after = call.text("after", 2000)
    place = after is not None and after.isascii() and after.isdecimal() and len(after) < 16
    if call.services.core is not None and not place and not _NEWER & query.keys() and query.get("sort") in _OLDER:
        return await _older(call)
    start = int(after or 0) if place else call.integer("startIndex", 0, 0, LARGEST_INDEX)
    page = await call.read(
        call.source.experiments,
        where=_where(call),
        sort=call.text("sort"),
        columns=_columns(call),
        start=start,
        limit=call.integer("limit", 100, 1, PAGE),
    )
    return encoded(page)


async def running(call: Call) -> Response:
    """The experiments that are running, the latest written first."""
    page = await call.read(
        call.source.experiments,
        where=f"status = {RUNNING}",
        columns=_columns(call),
        start=call.integer("startIndex", 0, 0, LARGEST_INDEX),
        limit=call.integer("limit", 100, 1, PAGE),
    )
    return encoded(page)


async def fields(call: Call) -> Response:
    """The fields that queries, orders and columns may name, and their most frequent values."""
    prefix, limit = call.text("prefix") or "", call.integer("limit", 100, 1, PAGE)
    return encoded(await call.read(call.source.fields, prefix, limit))


async def groups(call: Call) -> Response:
    """The values of a field, with the spread of columns over the experiments that have each."""
    by = call.text("by")
    if by is None:
        malformed("by is missing")
    return encoded(await call.read(call.source.groups, by, where=_where(call), columns=_columns(call)))


async def comparison(call: Call) -> Response:
    """What some experiments are compared by: their parameters, values of columns, and the names of their metrics."""
    ids = call.experiments(MOST_COMPARED)
    return encoded(await call.read(call.source.comparison, ids, columns=_columns(call)))


async def _older(call: Call) -> Response:
    """A page of experiments by the parameters that there were before queries, which stays where others are added."""
    status, sort = call.text("status"), call.text("sort") or SORTS[0]
    if status not in (None, *STATUSES):
        malformed(f"status must be one of {', '.join(STATUSES)}")
    if sort not in SORTS:
        malformed(f"sort must be one of {', '.join(SORTS)}")
    return answer(
        await call.read(
            call.core.experiments,
            call.namespace,
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


def _where(call: Call) -> str | None:
    """Return the query of a call; the older parameters are conditions beside it."""
    where = call.text("where", 4000)
    parts = [f"({where})"] if where is not None and where.strip() else []
    for name in ("project", "status", "tag", "folder"):
        value = call.text(name)
        if value is not None:
            parts.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    words = call.text("q")
    if words:
        parts.append(json.dumps(words, ensure_ascii=False))
    # Alone it stays as it is, so that an error shows what was written.
    return where if len(parts) == 1 and where is not None else " and ".join(parts) or None


def _columns(call: Call) -> tuple[str, ...]:
    columns = call.text("columns", 8000)
    return (columns,) if columns else ()


async def experiment(call: Call) -> Response:
    """The document of one experiment."""
    return encoded(await call.read(call.source.experiment, call.experiment(), call.moment()))


async def history(call: Call) -> Response:
    """What happened to an experiment, oldest first: opened, resumed, rewound, crashed, files and parameters."""
    start = call.integer("startIndex", 0, -LARGEST_INDEX, LARGEST_INDEX)
    return encoded(
        await call.read(call.source.history, call.experiment(), start, call.integer("limit", 1000, 1, MAX_LIMIT))
    )


async def update_experiment(call: Call) -> Response:
    """Change title, notes, archived, description, tags or folder of an experiment; answers with its document."""
    async with call.json(ExperimentChange) as body:
        return encoded(await call.write(call.source.update, call.experiment(), dict(body)))


async def remove_experiment(call: Call) -> Response:
    """Remove an experiment: it is hidden, with all that its writers may still send, and its files are released."""
    return encoded(await call.write(call.source.remove, call.experiment()))


async def set_parameters(call: Call) -> Response:
    """Merge parameters into those that are there. Nested ones are flattened."""
    async with call.json(NewParameters, MAX_BATCH_BYTES) as body:
        data = flatten(recorded(body["data"], body.get("text", ())))
        return answer(await call.write(call.core.set_parameters, call.namespace, call.experiment(), data))


async def get_parameters(call: Call) -> Response:
    """The parameters of an experiment, flat."""
    return encoded(await call.read(call.source.parameters, call.experiment(), call.moment()))


READING: Final = [
    Route("GET", "/projects", projects, READ),
    Route("GET", "/experiments", experiments, READ),
    Route("GET", "/running", running, READ),
    Route("GET", "/fields", fields, READ),
    Route("GET", "/groups", groups, READ),
    Route("GET", "/comparison", comparison, READ),
    Route("GET", "/experiments/{experiment}", experiment, READ),
    Route("GET", "/experiments/{experiment}/history", history, READ),
    Route("PATCH", "/experiments/{experiment}", update_experiment, WRITE),
    Route("DELETE", "/experiments/{experiment}", remove_experiment, WRITE),
    Route("GET", "/experiments/{experiment}/parameters", get_parameters, READ),
]

WRITING: Final = [
    Route("POST", "/projects/{project}/experiments", upsert_experiment, WRITE),
    Route("POST", "/experiments/{experiment}/parameters", set_parameters, WRITE),
]
