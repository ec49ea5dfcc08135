"""Routes about the server itself: health, metrics, description, the caller; and the HTML page."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Final
from urllib.parse import parse_qsl

from starlette.responses import RedirectResponse, Response

from ...core.protocol import UNAVAILABLE, Refused
from .auth import COOKIE, MAX_TOKEN, Authenticator, is_nearby, is_user_name
from .calls import OPEN, READ, Call, Route, answer, malformed, raw_json
from .observe import METRICS_TYPE
from .openapi import description
from .page import experiments_page, login_page

_FORM_BYTES: Final = 8 << 10
_PAGE: Final = 200
_PAGE_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


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
    data = await call.read(call.services.observer.exposition)
    return Response(data, headers={"Cache-Control": "no-store", "Content-Type": METRICS_TYPE})


async def openapi(call: Call) -> Response:
    """Description of all calls, as OpenAPI 3.1."""
    return raw_json(description(call.services.routes))


async def whoami(call: Call) -> Response:
    """The user of this token, and what it allows."""
    who = call.who
    assert who is not None
    expires = None if who.expires_s is None else datetime.fromtimestamp(who.expires_s, timezone.utc)
    return answer(
        {
            "userName": who.user,
            "namespace": who.user,
            "kind": who.kind,
            "readOnly": who.read_only,
            "expiresAt": None if expires is None else expires.isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
    )


# -- the page for people ----------------------------------------------------------------------------------------------


async def page(call: Call) -> Response:
    """The projects and experiments of the logged-in user, with links to their data; else a login form."""
    services = call.services
    development = services.settings.accepts_development_logins and is_nearby(call.request)
    try:
        token = services.authenticator.token_of(call.request, cookie=True)
        who = await call.read(services.authenticator.who, token, nearby=is_nearby(call.request))
    except Refused as refused:
        if "text/html" not in call.request.headers.get("accept", "text/html"):
            raise
        return _html(login_page(development), 200 if refused.status == 401 else refused.status)
    namespace = who.namespace(call.text("namespace"), write=False)
    project, after = call.text("project"), call.text("after")
    listing = await call.read(call.core.experiments, namespace, project=project, limit=_PAGE, after=after)
    projects = await call.read(call.core.projects, namespace)
    return _html(experiments_page(who.user, namespace, projects, listing, project))


async def log_in(call: Call) -> Response:
    """Store a token as a cookie in this browser, for reading."""
    async with call.body(_FORM_BYTES) as data:
        try:
            form = dict(parse_qsl(data.decode(), max_num_fields=8))
        except ValueError:
            malformed("the body is not a form")
    services, nearby = call.services, is_nearby(call.request)
    token = form.get("token", "").strip()
    if not token and services.settings.accepts_development_logins and nearby and is_user_name(form.get("user")):
        token = _logins(call).development_login(form["user"])
    try:
        if not token or len(token) > MAX_TOKEN or not token.isascii():
            malformed("the form has no token")
        await call.read(services.authenticator.who, token, nearby=nearby)
    except Refused as refused:
        if "text/html" not in call.request.headers.get("accept", "") or refused.status not in (400, 401):
            raise
        # For a person in a browser: show the form again, with the reason.
        development = services.settings.accepts_development_logins and nearby
        return _html(login_page(development, refused.message.partition(";")[0]), refused.status)
    response = RedirectResponse("/", 303, _PAGE_HEADERS)
    secure = call.request.headers.get("x-forwarded-proto") == "https" or call.request.url.scheme == "https"
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure, max_age=30 * 86_400)
    return response


async def follow_link(call: Call) -> Response:
    """Follow the link that the server prints with --dev: log in one browser on this machine, once."""
    services, nearby = call.services, is_nearby(call.request)
    token = None
    if services.settings.accepts_development_logins and nearby:
        token = _logins(call).development_login_by(call.text("key") or "")
    if token is None:
        development = services.settings.accepts_development_logins and nearby
        return _html(login_page(development, "this link was used before, or belongs to another server"), 401)
    response = RedirectResponse("/", 303, _PAGE_HEADERS)
    response.set_cookie(COOKIE, token, httponly=True, samesite="strict", max_age=30 * 86_400)
    return response


async def log_out(call: Call) -> Response:
    """Forget the token in this browser."""
    response = RedirectResponse("/", 303, _PAGE_HEADERS)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


def _logins(call: Call) -> Authenticator:
    """Return what makes logins: a team's server has it."""
    found = call.services.authenticator
    assert isinstance(found, Authenticator), "a login was routed where there are none"
    return found


def _html(text: str, status: int = 200) -> Response:
    return Response(text, status, _PAGE_HEADERS, media_type="text/html")


ROUTES: Final = [
    Route("GET", "/", page, OPEN),
    Route("GET", "/login", follow_link, OPEN),
    Route("POST", "/login", log_in, OPEN),
    Route("POST", "/logout", log_out, OPEN),
    Route("GET", "/whoami", whoami, READ),
    Route("GET", "/health", health, OPEN),
    Route("GET", "/-/ready", ready, OPEN),
    Route("GET", "/metrics", figures, READ),
    Route("GET", "/openapi.json", openapi, OPEN),
]
