"""Routes for log entries."""

from __future__ import annotations

from typing import Any, Final, TypedDict

from starlette.responses import Response

from ...core.limits import MAX_LIMIT
from ...core.protocol import MAX_BATCH_BYTES
from .calls import READ, WRITE, Call, Route, answer, encoded, malformed, recorded


class _Message(TypedDict):
    message: str


class NewLog(_Message, total=False):
    """One log entry in a request."""

    timestamp: str | None
    level: str | None
    metadata: dict[str, Any] | None
    text: list[str]


class NewLogs(TypedDict):
    """The body of `POST /experiments/{id}/logs`."""

    logs: list[NewLog]


async def add_logs(call: Call) -> Response:
    """Add log entries; answers with their numbers."""
    async with call.json(NewLogs, MAX_BATCH_BYTES) as body:
        if not 1 <= len(body["logs"]) <= MAX_LIMIT:
            malformed(f"logs has {len(body['logs'])} entries; send 1 to {MAX_LIMIT}")
        return answer(
            await call.write(call.core.add_logs, call.namespace, call.experiment(), [_plain(e) for e in body["logs"]])
        )


def _plain(entry: NewLog) -> dict[str, Any]:
    """Return an entry's given fields, with metadata as it is recorded."""
    given: dict[str, Any] = {name: value for name, value in entry.items() if value is not None and name != "text"}
    if "metadata" in given:
        given["metadata"] = recorded(given["metadata"], entry.get("text", ()))
    return given


async def logs(call: Call) -> Response:
    """A page of log entries, also filtered, or from a time on; each keeps its number."""
    start, limit = call.page()
    levels = tuple(filter(None, map(str.strip, (call.text("level") or "").split(","))))
    return encoded(
        await call.read(
            call.source.logs,
            call.experiment(),
            start=start,
            limit=limit,
            levels=levels,
            q=call.text("q"),
            regex=call.text("regex"),
            at=call.text("at"),
            as_of=call.moment(),
        )
    )


READING: Final = [Route("GET", "/experiments/{experiment}/logs", logs, READ)]

WRITING: Final = [Route("POST", "/experiments/{experiment}/logs", add_logs, WRITE)]
