"""The OpenAPI description of the server, made from its tables of routes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any, Final

import msgspec

from ...core.events import STATUSES
from ...core.limits import MAX_LIMIT
from ...core.protocol import MAX_BATCH_BYTES, ORDER_PAGE
from ...core.version import __version__
from . import routes_experiments, routes_files, routes_logs, routes_metrics, routes_sync
from .calls import LARGEST_INDEX, OPEN, Route

_INTEGER: Final = {"type": "integer"}
_TEXT: Final = {"type": "string", "maxLength": 1000}
_ID: Final = {"type": "string", "pattern": "^[0-9]{1,20}$"}
_HEX: Final = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_PART: Final = {"type": "string", "minLength": 1}

_PATH: Final[dict[str, dict[str, Any]]] = {
    "experiment": _ID,
    "file": _ID,
    "journal": _HEX,
    "segment": _HEX,
    "metric": _PART,
    "project": _PART,
    "blob": _PART,
    "path": _PART,
    "run": _PART,
}

Query = dict[str, tuple[dict[str, Any], bool]]


def _between(low: int, high: int) -> dict[str, Any]:
    return {**_INTEGER, "minimum": low, "maximum": high}


def _optional(**schemas: dict[str, Any]) -> Query:
    return {name: (schema, False) for name, schema in schemas.items()}


_INDEX: Final = _between(-LARGEST_INDEX, LARGEST_INDEX)
_LINES: Final = _optional(startIndex=_INDEX, limit=_between(1, MAX_LIMIT))
_BOOLEAN: Final[dict[str, Any]] = {"enum": ["true", "false"]}
_FROM_0: Final = _between(0, LARGEST_INDEX)
_QUERY: Final = {"type": "string", "maxLength": 4000}
_COLUMNS: Final = {"type": "string", "maxLength": 8000}
# Given once for each: `experiment=1&experiment=2`.
_IDS: Final = {"type": "array", "items": _ID}
_OFFSET: Final = _between(0, routes_sync.LARGEST_OFFSET)

_QUERIES: Final[dict[str, Query]] = {
    "experiments": _optional(
        where=_QUERY, sort=_TEXT, columns=_COLUMNS, startIndex=_FROM_0,
        project=_TEXT, tag=_TEXT, folder=_TEXT, q=_TEXT, status={"enum": list(STATUSES)},
        limit=_between(1, routes_experiments.PAGE), after={"type": "string", "maxLength": 2000},
    ),
    "history": _LINES,
    **{name: _optional(asOf=_TEXT) for name in ("experiment", "get_parameters", "stats", "file")},
    "running": _optional(columns=_COLUMNS, startIndex=_FROM_0, limit=_between(1, routes_experiments.PAGE)),
    "fields": _optional(prefix=_TEXT, limit=_between(1, routes_experiments.PAGE)),
    "groups": {"by": (_TEXT, True), **_optional(where=_QUERY, columns=_COLUMNS)},
    "comparison": _optional(experiment=_IDS, columns=_COLUMNS),
    "changes": _optional(experiment=_IDS),
    "logs": {**_LINES, **_optional(level=_TEXT, q=_TEXT, regex=_TEXT, at=_TEXT, asOf=_TEXT)},
    "metrics": _optional(q=_TEXT, prefix=_TEXT, startIndex=_FROM_0, limit=_between(1, MAX_LIMIT), asOf=_TEXT),
    "compare": {
        "metric": (_TEXT, True),
        **_optional(
            experiment=_IDS, points=_between(1, MAX_LIMIT), x=_TEXT, split=_TEXT, superseded=_BOOLEAN,
            asOf=_TEXT, **{"from": {"type": "number"}, "to": {"type": "number"}},
        ),
    },
    "data": {**_LINES, **_optional(superseded=_BOOLEAN, asOf=_TEXT)},
    "series": _optional(
        points=_between(1, MAX_LIMIT), start=_INDEX, end=_INDEX, field=_TEXT, superseded=_BOOLEAN, asOf=_TEXT
    ),
    "files": _optional(prefix=_TEXT, tags=_TEXT, asOf=_TEXT),
    "follow_link": _optional(key=_TEXT),
    "append_segment": {"offset": (_OFFSET, True), **_optional(damaged=_TEXT, without=_TEXT)},
    "append_blob": {"offset": (_OFFSET, True), "size": (_OFFSET, True), "kind": ({"enum": ["body", "file"]}, False)},
    "find_experiment": {"project": (_TEXT, True), "name": (_TEXT, True)},
    "order": _optional(after=_OFFSET, limit=_between(1, ORDER_PAGE)),
    "segment_bytes": _optional(offset=_OFFSET, limit=_between(1, MAX_BATCH_BYTES)),
}  # fmt: skip

_BODIES: Final[dict[str, Any]] = {
    "upsert_experiment": routes_experiments.NewExperiment,
    "update_experiment": routes_experiments.ExperimentChange,
    "set_parameters": routes_experiments.NewParameters,
    "add_logs": routes_logs.NewLogs,
    "append": routes_metrics.NewPoint,
    "append_batch": routes_metrics.NewPoints,
    "update_file": routes_files.FileChange,
    "deaths": routes_sync.Deaths,
    "digests": routes_sync.Digests,
}

_RAW: Final = dict.fromkeys(("append_segment", "append_blob", "append_blobs"), "application/octet-stream")
_FORMS: Final = {
    "add_file": ("multipart/form-data", ["file"], [
        "prefix", "checksum", "sizeBytes", "description", "tags", "metadata", "text",
    ]),
    "log_in": ("application/x-www-form-urlencoded", [], ["token", "user"]),
}  # fmt: skip
_OTHER_ANSWERS: Final = {
    "page": "text/html",
    "follow_link": "text/html",
    "asset": "application/octet-stream",
    "figures": "text/plain",
    "events": "text/event-stream",
    "changes": "text/event-stream",
    "download_file": "application/octet-stream",
    "file_content": "application/octet-stream",
    "experiment_blob": "application/octet-stream",
    "segment_bytes": "application/octet-stream",
    "base": "application/vnd.msgpack",
}
_REDIRECTS: Final = ("follow_link", "log_in", "log_out")
"""Calls that send a browser to the page, and answer a script with 200."""


@cache
def description(routes: tuple[Route, ...]) -> bytes:
    """Return the OpenAPI description of these calls, as JSON."""
    return msgspec.json.encode(_described(routes))


def _described(routes: Iterable[Route]) -> dict[str, Any]:
    _, components = msgspec.json.schema_components(list(_BODIES.values()), ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        shown = re.sub(r"\.\.\.\}", "}", route.path)
        paths.setdefault(shown, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ml-dash server",
            "version": __version__,
            "description": "Experiments of a team. A metric's name is percent-encoded whole, slashes too.",
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": _error_schema()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    name = getattr(route.handler, "__name__", "")
    text = (getattr(route.handler, "__doc__", None) or name.replace("_", " ").capitalize()).split("\n")[0]
    module = getattr(route.handler, "__module__", "").rpartition("routes_")[2]
    operation: dict[str, Any] = {
        "operationId": f"{module}_{name}",
        "summary": text,
        "tags": [module],
        "parameters": [*_in_path(route.path), *_in_query(name, route)],
        "responses": {**_good(name), "default": _refused()},
    }
    if route.access != OPEN:
        operation["security"] = [{"token": []}]
    if name == "follow_link":
        content = {"text/html": {"schema": {"type": "string"}}, **_refused()["content"]}
        why = "The link was used, or is of another server."
        operation["responses"]["401"] = {"description": why, "content": content}
    if name == "download_file":
        operation["responses"]["307"] = {"description": "To the object store, by a link that is good for some minutes."}
    body = _body(name)
    if body is not None:
        operation["requestBody"] = body
    return operation


def _in_path(path: str) -> list[dict[str, Any]]:
    names = re.findall(r"\{([a-z]+)(?:\.\.\.)?\}", path)
    files = "/segments/{file}" in path
    return [
        {"name": name, "in": "path", "required": True, "schema": _PART if files and name == "file" else _PATH[name]}
        for name in names
    ]


def _in_query(name: str, route: Route) -> list[dict[str, Any]]:
    parameters = [
        {"name": key, "in": "query", "required": required, "schema": schema}
        for key, (schema, required) in _QUERIES.get(name, {}).items()
    ]
    if route.access != OPEN:
        schema = {**_TEXT, "description": "Another's namespace, where the token may read it."}
        parameters.append({"name": "namespace", "in": "query", "required": False, "schema": schema})
    return parameters


def _body(name: str) -> dict[str, Any] | None:
    if name in _BODIES:
        schema: dict[str, Any] = {"$ref": f"#/components/schemas/{_BODIES[name].__name__}"}
        return {"required": True, "content": {"application/json": {"schema": schema}}}
    if name in _RAW:
        return {"required": True, "content": {_RAW[name]: {"schema": {"type": "string", "format": "binary"}}}}
    if name in _FORMS:
        kind, required, optional = _FORMS[name]
        fields = {field: {"type": "string", "format": "binary"} for field in required}
        fields |= {field: {"type": "string"} for field in optional}
        schema = {"type": "object", "properties": fields, "required": required, "additionalProperties": False}
        return {"required": True, "content": {kind: {"schema": schema}}}
    return None


def _good(name: str) -> dict[str, Any]:
    kind = _OTHER_ANSWERS.get(name, "application/json")
    schema: dict[str, Any] = {"type": "object"} if kind == "application/json" else {"type": "string"}
    good: dict[str, Any] = {"200": {"description": "Done.", "content": {kind: {"schema": schema}}}}
    if name in _REDIRECTS:
        good["303"] = {"description": "To the page."}
    return good


def _refused() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": "Refused: `code` says why, for programs, `message` for people.", "content": content}


def _error_schema() -> dict[str, Any]:
    inner = {"code": {"type": "string"}, "message": {"type": "string"}}
    error = {"type": "object", "properties": inner, "required": ["code", "message"]}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}
