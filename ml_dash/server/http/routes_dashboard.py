"""Routes of the dashboard: its page and its files, and how a browser logs in and out.

The page is the same at every path of the application, and holds no data: its scripts ask the REST calls for that, with
the cookie that a login left. So these routes are open to everybody.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

from starlette.responses import RedirectResponse, Response

from .auth import MAX_TOKEN, Authenticator, Unauthorised, is_nearby, is_user_name
from .calls import OPEN, Call, Route, answer, malformed
from .page import PAGE_HEADERS, asks_for_page, asset_of, page_of
from .routes_about import described

_FORM_BYTES: Final = 8 << 10
_COOKIE_S: Final = 30 * 86_400


async def page(call: Call) -> Response:
    """The dashboard's page."""
    return await page_of(call)


async def asset(call: Call) -> Response:
    """A file of the dashboard: script, style, picture."""
    return await asset_of(call, call.parts["path"])


# -- logging in and out -----------------------------------------------------------------------------------------------


async def ways(call: Call) -> Response:
    """How one may log in here: with a token, and with a mere name on the machine of a development server."""
    if call.services.core is None:
        return answer({"token": False, "name": False, "mode": "local"})
    return answer({"token": True, "name": _takes_names(call), "mode": "server"})


async def log_in(call: Call) -> Response:
    """Store a token as a cookie in this browser."""
    async with call.body(_FORM_BYTES) as data:
        try:
            form = dict(parse_qsl(data.decode(), max_num_fields=8))
        except ValueError:
            malformed("the body is not a form")
    authenticator = _logins(call)
    token = form.get("token", "").strip()
    if not token and _takes_names(call) and is_user_name(form.get("user")):
        token = authenticator.development_login(form["user"])
    if not token or len(token) > MAX_TOKEN or not token.isascii():
        malformed("the form has no token")
    who = await call.read(authenticator.who, token, nearby=is_nearby(call.request))
    return _with_cookie(call, answer(described(who)) if _asks_for_json(call) else RedirectResponse("/", 303), token)


async def follow_link(call: Call) -> Response:
    """The page; with the key that the server printed, log in one browser on this machine, once."""
    key, authenticator, nearby = call.text("key"), call.services.authenticator, is_nearby(call.request)
    if key is None:
        return await page_of(call)
    token = authenticator.login_by(key, nearby=nearby)
    if token is not None:
        return _with_cookie(call, RedirectResponse("/", 303), token)
    try:
        await call.read(authenticator.who, authenticator.token_of(call.request, cookie=True), nearby=nearby)
    except Unauthorised:
        if not asks_for_page(call):
            raise Unauthorised("this link was used before, or belongs to another server") from None
        # The page says so: it finds the key in its address.
        return await page_of(call, 401)
    # The browser that used the link came back to it.
    return RedirectResponse("/", 303, PAGE_HEADERS)


async def log_out(call: Call) -> Response:
    """Forget the token in this browser."""
    response = answer({}) if _asks_for_json(call) else RedirectResponse("/", 303)
    response.headers.update(PAGE_HEADERS)
    response.delete_cookie(call.services.authenticator.cookie, httponly=True, samesite="strict")
    return response


def _takes_names(call: Call) -> bool:
    """True if any user's name is a login here: in development, for who is on this machine."""
    return call.services.settings.accepts_development_logins and is_nearby(call.request)


def _logins(call: Call) -> Authenticator:
    """Return what makes logins: a team's server has it."""
    found = call.services.authenticator
    assert isinstance(found, Authenticator), "a login was routed where there are none"
    return found


def _asks_for_json(call: Call) -> bool:
    return "application/json" in call.request.headers.get("accept", "")


def _with_cookie(call: Call, response: Response, token: str) -> Response:
    """Return the response with the token as a cookie that no script reads and no other site's page sends."""
    response.headers.update({**PAGE_HEADERS, "Cache-Control": "no-store"})
    secure = call.request.headers.get("x-forwarded-proto") == "https" or call.request.url.scheme == "https"
    name = call.services.authenticator.cookie
    response.set_cookie(name, token, httponly=True, samesite="strict", secure=secure, max_age=_COOKIE_S)
    return response


PAGES: Final = [
    Route("GET", "/", page, OPEN),
    Route("GET", "/runs", page, OPEN),
    Route("GET", "/runs/{run}", page, OPEN),
    Route("GET", "/compare", page, OPEN),
    Route("GET", "/latest", page, OPEN),
    Route("GET", "/assets/{path...}", asset, OPEN),
    Route("GET", "/login", follow_link, OPEN),
    Route("GET", "/login/ways", ways, OPEN),
    Route("POST", "/logout", log_out, OPEN),
]
"""Of a team's server and of `ml-dash ui` alike."""

LOGINS: Final = [Route("POST", "/login", log_in, OPEN)]
