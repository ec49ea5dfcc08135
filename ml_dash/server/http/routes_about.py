"""Routes about the server itself: health, metrics, description, the caller."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any, Final

from starlette.responses import Response

from ...core.protocol import UNAVAILABLE, Refused
from .auth import Who
from .calls import OPEN, READ, Call, Route, answer, raw_json
from .openapi import description


async def health(call: Call) -> Response:
    """State of the server and its stores; 503 if one is unavailable."""
    states = await call.read(call.core.health)
    good = all(state == "connected" for state in states.values())
    now = datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
    uptime = round(time.monotonic() - call.services.observer.began, 3)
    document = {"status": "ok" if good else "degraded", "timestamp": now, "uptime": uptime, **states}
    return answer(document, 200 if good else 503)


async def ready(call: Call) -> Response:
    """Readiness for requests; 503 while the server cannot store, or is stopping."""
    states = await call.read(call.core.health)
    if call.services.hub.closing or any(state != "connected" for state in states.values()):
        raise Refused(503, UNAVAILABLE, "not ready", retry_after_s=5)
    return answer({"status": "ready"})


async def figures(call: Call) -> Response:
    """Metrics of the server in the text format of Prometheus."""
    from .figures import METRICS_TYPE, Figures

    counted = call.services.observer
    assert isinstance(counted, Figures), "figures were routed where nothing is counted"
    data = await call.read(counted.exposition)
    return Response(data, headers={"Cache-Control": "no-store", "Content-Type": METRICS_TYPE})


async def openapi(call: Call) -> Response:
    """Description of all calls, as OpenAPI 3.1."""
    return raw_json(description(call.services.routes))


async def whoami(call: Call) -> Response:
    """The user of this token, and what it allows."""
    assert call.who is not None
    return answer(described(call.who))


def described(who: Who) -> dict[str, Any]:
    """Return what `whoami` answers about somebody."""
    expires = None if who.expires_s is None else datetime.fromtimestamp(who.expires_s, timezone.utc)
    return {
        "userName": who.user,
        "namespace": who.user,
        "kind": who.kind,
        "readOnly": who.read_only,
        "expiresAt": None if expires is None else expires.isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


ROUTES: Final = [
    Route("GET", "/whoami", whoami, READ),
    Route("GET", "/health", health, OPEN),
    Route("GET", "/-/ready", ready, OPEN),
    Route("GET", "/metrics", figures, READ),
    Route("GET", "/openapi.json", openapi, OPEN),
]
