"""Authentication: tokens of the server's owner, signed logins, and their rights.

    mld_...         a token of the owner (`ml-dash server token`): looked up by its hash; may expire or be revoked
    a.b.c (JWT)     a signed login: HS256 with the server's own secret, or a development login

Development logins are signed with a secret that is in the source code, so everybody can make one. They are accepted
only if the server is set up for that, and only from this very machine (`is_nearby`).

A namespace is a user's name. `Who.namespace` is the only place where a request gets one, so no handler can reach
another user's data.
"""

from __future__ import annotations

import getpass
import os
import secrets
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

import jwt
from starlette.requests import Request

from ...core.protocol import DEVELOPMENT_SECRET, FORBIDDEN, UNAUTHORISED, UNKNOWN, Refused, user_id
from ..engine.services import Server
from ..settings import ServerSettings, is_loopback_host

COOKIE: Final = "ml_dash_token"
"""The cookie in which a browser keeps the token. `SameSite=Strict`, and good for reading only."""

MAX_TOKEN: Final = 4096  # characters
MAX_USER_NAME: Final = 200  # characters
CLOCK_LEEWAY_S: Final = 2 * 3600
"""How far the clock of the machine that signed a login may be ahead; a wrong time zone makes it an hour or so."""

_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="ml-dash"'}


@dataclass(frozen=True, slots=True)
class Who:
    """Somebody whose token was accepted: a user, whose name is their namespace."""

    user: str
    read_only: bool = False
    read_all: bool = False
    kind: str = "token"
    expires_s: float | None = None

    def namespace(self, asked: str | None, *, write: bool) -> str:
        """Return the namespace of a request.

        Raises Refused: 403 if the token may not use it, 404 if it may not know it.
        """
        if write and self.read_only:
            raise Refused(403, FORBIDDEN, "this token may only read; ask the server's owner for one that may write")
        if asked is None or asked == self.user:
            return self.user
        if not self.read_all:
            raise Refused(404, UNKNOWN, "there is no such namespace, or it is not yours to read")
        if write:
            raise Refused(403, FORBIDDEN, "this token can read another namespace, but not write to it")
        return asked


class Unauthorised(Refused):
    """401, with the same text for all reasons, so that an attacker learns nothing from it."""

    def __init__(self, message: str = "the token is not accepted: unknown, expired or revoked; run: ml-dash login URL"):
        super().__init__(401, UNAUTHORISED, message)
        self.headers = _CHALLENGE


class Authentication(Protocol):
    """What an application asks about the caller of a request."""

    @property
    def cookie(self) -> str:
        """The name of the cookie in which a browser keeps its token."""

    def token_of(self, request: Request, *, cookie: bool) -> str:
        """Return the token in a request's header or, with `cookie`, in its cookie. Raises Refused (401)."""

    def who(self, token: str, *, nearby: bool) -> Who:
        """Return whose token this is, in a thread; `nearby` as `is_nearby`. Raises Refused (401)."""

    def login_by(self, key: str, *, nearby: bool) -> str | None:
        """Use up the key of a link: return the token it stands for, or None if there is none. In the event loop."""


class Authenticator:
    """Finds out who is asking, from tokens and signed logins.

    `who` may be called from any thread; the keys of links (`login_key`, `login_by`) belong to the event loop.
    """

    cookie = COOKIE

    def __init__(self, core: Server, settings: ServerSettings) -> None:
        self._core = core
        self._settings = settings
        # Keys of login links that nobody has followed yet.
        self._keys: set[str] = set()

    def token_of(self, request: Request, *, cookie: bool) -> str:
        """Return the token in a request's header or, with `cookie`, in its cookie. Raises Unauthorised."""
        return token_of(request, self.cookie if cookie else None)

    def who(self, token: str, *, nearby: bool) -> Who:
        """Return whose token this is. Asks the database, so call it in a thread. Raises Unauthorised.

        `nearby`: the request came over loopback, through no proxy, and to a name of this machine. Only then are
        development logins accepted.
        """
        # A token of the owner has no dots.
        if token.count(".") == 2:
            return self._signed(token, nearby)
        record = self._core.find_token(token)
        if record is None:
            raise Unauthorised
        expires_ns = record.get("expires_ns")
        return Who(
            user=record["user"],
            read_only=bool(record.get("read_only")),
            read_all=bool(record.get("read_all")),
            expires_s=expires_ns / 1e9 if expires_ns else None,
        )

    def development_login(self, user: str) -> str:
        """Return a signed development login for a user, for a browser on this machine."""
        now = int(time.time())
        claims = {
            "userId": user_id(user),
            "userName": user,
            "iat": now,
            "exp": now + self._settings.jwt_expiration_s,
        }
        return jwt.encode(claims, DEVELOPMENT_SECRET, algorithm="HS256")

    def login_key(self) -> str:
        """Return a new key that logs in one browser on this machine, once, as the user who runs the server."""
        self._keys.add(key := secrets.token_urlsafe(16))
        return key

    def login_by(self, key: str, *, nearby: bool) -> str | None:
        """Use up a key: return the login it stands for, or None if it is unknown, was used, or is not for there."""
        if not (nearby and self._settings.accepts_development_logins):
            return None
        for known in self._keys:
            if secrets.compare_digest(known.encode(), key.encode()):
                self._keys.discard(known)
                return self.development_login(os.environ.get("ML_DASH_USER_NAME") or getpass.getuser())
        return None

    def _signed(self, token: str, nearby: bool) -> Who:
        """Return whose signed login this is. Raises Unauthorised if no secret of this server has signed it."""
        secrets = [] if self._settings.jwt_secret is None else [self._settings.jwt_secret]
        if self._settings.accepts_development_logins and nearby:
            secrets.append(DEVELOPMENT_SECRET)
        for secret in secrets:
            claims = _claims(token, secret)
            if claims is not None:
                return self._checked(claims)
        raise Unauthorised

    def _checked(self, claims: dict[str, Any]) -> Who:
        """Return the user that verified claims name.

        Raises Unauthorised if they are expired or contradict each other.
        """
        now, issued, expires = time.time(), claims["iat"], claims["exp"]
        user: Any = claims.get("userName")
        # The signature is right, but with the development secret anybody can sign, so nothing here may be taken on
        # trust.
        if not _is_number(issued) or not _is_number(expires) or not is_user_name(user):
            raise Unauthorised
        # The server's own limit counts too: a login must not live longer because its maker wrote so.
        if issued > now + CLOCK_LEEWAY_S or now >= min(expires, issued + self._settings.jwt_expiration_s):
            raise Unauthorised
        if str(claims.get("userId")) != user_id(user):
            raise Unauthorised
        return Who(user=user, kind="login", expires_s=float(min(expires, issued + self._settings.jwt_expiration_s)))


def token_of(request: Request, cookie: str | None) -> str:
    """Return the token in a request's header, or else in the cookie of that name. Raises Unauthorised."""
    given = request.headers.getlist("authorization")
    if len(given) > 1:
        raise Unauthorised("there is more than one Authorization header")
    if given:
        scheme, _, token = given[0].partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorised("the Authorization header must be: Bearer TOKEN")
    elif cookie is not None:
        token = request.cookies.get(cookie, "")
    else:
        token = ""
    token = token.strip()
    if not token:
        raise Unauthorised("a token is needed, in the header Authorization: Bearer TOKEN")
    if len(token) > MAX_TOKEN or not token.isascii():
        raise Unauthorised
    return token


def is_user_name(value: Any) -> bool:
    """True if a value can be the name of a user."""
    return isinstance(value, str) and 0 < len(value) <= MAX_USER_NAME and value.isprintable() and bool(value.strip())


def is_nearby(request: Request) -> bool:
    """True if a request came over loopback, through no proxy, and to a name of this machine.

    The name is checked against DNS rebinding: a page whose host name was made to resolve to 127.0.0.1 sends that name.
    """
    headers = request.headers
    if any(name in headers for name in ("forwarded", "x-forwarded-for", "x-forwarded-host", "via")):
        return False
    host = headers.get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return is_loopback_peer(request) and is_loopback_host(name)


def is_loopback_peer(request: Request) -> bool:
    """True if the other end of the connection is on this machine."""
    return request.client is not None and is_loopback_host(request.client.host)


def _claims(token: str, secret: str) -> dict[str, Any] | None:
    """Return the claims of a login, or None if that secret did not sign it.

    Times must be there; `_checked` judges them.
    """
    options: Any = {"require": ["exp", "iat"], "verify_exp": False, "verify_iat": False, "verify_aud": False}
    try:
        # The list of algorithms is fixed: the token's own header must not choose (`none`, or a public key taken for a
        # secret).
        claims: dict[str, Any] = jwt.decode(token, secret, algorithms=["HS256"], options=options)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        return None
    return claims


def _is_number(value: Any) -> bool:
    """True for a number that can be a time in seconds; True and False are no numbers here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12
