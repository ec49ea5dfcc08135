"""Who may see folders of this machine: the browsers that followed a link which `ml-dash ui` has made, and nobody else.

The address is on loopback, where every user and every web page of this machine may knock. What keeps them out:

    a link's key        128 random bits, good once, for one browser
    the cookie          256 random bits of this process; no script reads it, no other site's page sends it
    Host, proxies       another name than this machine's (DNS rebinding), or a proxy before us: refused
    Origin, Sec-Fetch   a page of another origin: refused, also one of this machine
    changes             need a header of ours, which a page of another origin cannot send (`App`)
"""

from __future__ import annotations

import getpass
import secrets

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ...core.protocol import FORBIDDEN, Refused
from .auth import Unauthorised, Who, is_nearby, token_of
from .calls import refusal


class OneUser:
    """Knows one user, who started this process, by a secret that ends with it.

    All but `login_by`, which belongs to the event loop, may be called from any thread.
    """

    def __init__(self, port: int) -> None:
        # A browser sends cookies of one host to all its ports: each process has a name of its own.
        self.cookie = f"ml_dash_ui_{port}"
        self._secret = secrets.token_urlsafe(32)
        self._user = _user_name()
        self._keys: set[str] = set()

    def token_of(self, request: Request, *, cookie: bool) -> str:
        """Return the token in a request's header or, with `cookie`, in its cookie. Raises Unauthorised."""
        try:
            return token_of(request, self.cookie if cookie else None)
        except Unauthorised:
            raise _stranger() from None

    def who(self, token: str, *, nearby: bool) -> Who:
        """Return the one user. Raises Unauthorised for another token, or from elsewhere."""
        if not nearby or not secrets.compare_digest(token.encode(), self._secret.encode()):
            raise _stranger()
        return Who(self._user, kind="local")

    def login_key(self) -> str:
        """Return a new key for a link, which logs in one browser, once."""
        self._keys.add(key := secrets.token_urlsafe(16))
        return key

    def login_by(self, key: str, *, nearby: bool) -> str | None:
        """Use up a key: return the token, or None if it is unknown, was used, or comes from elsewhere."""
        if not nearby:
            return None
        for known in tuple(self._keys):
            if secrets.compare_digest(known.encode(), key.encode()):
                self._keys.discard(known)
                return self._secret
        return None


class OwnPagesOnly:
    """Passes on to an application what comes from this machine, to a name of it, and from no other origin's page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (why := _foreign(Request(scope))) is not None:
            await refusal(Refused(403, FORBIDDEN, why))(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _foreign(request: Request) -> str | None:
    """Return why a request is not one of this machine's own pages or programs; None if it is."""
    headers = request.headers
    if not is_nearby(request):
        return "ml-dash ui answers on this machine only: http://127.0.0.1 or localhost, through no proxy (but ssh -L)"
    if headers.get("origin") not in (None, f"http://{headers['host']}"):
        return "a page of another origin asks"
    # A link from elsewhere may lead here: then the page is loaded, and asks by itself.
    goes_here = headers.get("sec-fetch-mode") == "navigate" and request.method == "GET"
    if headers.get("sec-fetch-site") not in (None, "none", "same-origin") and not goes_here:
        return "a page of another site asks"
    return None


def _stranger() -> Unauthorised:
    return Unauthorised("this browser is not logged in: use the link that ml-dash ui has printed, or start it again")


def _user_name() -> str:
    """Return the name of the user who runs this process; a number where there is no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry in the system's list of users
        return "me"
