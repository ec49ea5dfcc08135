"""The server as one ASGI application: routing, authentication, replies, counters.

    uvicorn -> App -> CORS -> _answer: count, find, identify, handler, reply -> _Exchange: headers, drain -> uvicorn

Every request gets an answer of the documented form, whatever happens: a handler raises, and `_refused` turns that
into a status. Only a client that has gone gets none.

All of this runs in the event loop and never waits for a disk. What does (tokens, queries, writes) runs in threads, by
`Call.read` and `Call.write`, of which there is a fixed number. So `_active` needs no lock.

The order of the checks is that of their cost, and of what they may tell a stranger: too many requests, the path, the
token, the rights, what its user may take (`limits`), and only then parameters and body.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import anyio
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...core.protocol import (
    CONFLICT,
    FORBIDDEN,
    MALFORMED,
    PROTOCOL,
    PROTOCOL_HEADER,
    QUERY,
    UNAVAILABLE,
    UNKNOWN,
    Refused,
)
from ...errors import (
    InvalidInput,
    InvalidQuery,
    JournalError,
    MLDashError,
    NotFound,
    ReadOnly,
    ReleasedData,
    StillOpen,
    UnsupportedType,
    WriteProtected,
)
from ..engine.services import Server
from ..engine.source import ServerSource
from ..settings import ServerSettings
from . import (
    routes_about,
    routes_dashboard,
    routes_experiments,
    routes_files,
    routes_live,
    routes_logs,
    routes_metrics,
    routes_stores,
    routes_sync,
)
from .auth import Authenticator, is_nearby
from .bodies import busy
from .calls import OPEN, WRITE, Call, Route, Services, compressed, malformed, refusal
from .limits import Admission, Limited, Limiter
from .observe import log, shown_path
from .page import asks_for_page, page_of
from .stream import Hub

MAX_ACTIVE: Final = 2048
"""Requests answered at once; further ones are refused with 429."""

# Seconds after which a client may try again when the disk or the database has refused.
RETRY_S: Final = 5
METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
# How much of a refused body is read and thrown away, and for how long.
LINGER_BYTES: Final = 64 << 20
LINGER_S: Final = 5.0

UNREAD_S: Final = 300.0
"""Drop a response that the client has not read for this long."""

ROUTES_READING: Final = [
    *routes_metrics.READING,
    *routes_logs.READING,
    *routes_experiments.READING,
    *routes_live.READING,
    *routes_files.READING,
    *routes_stores.READING,
    *routes_dashboard.PAGES,
]
"""What looks, and no more: over `call.source`, so over a team's server or the folders of this machine."""

ROUTES_SERVER: Final = [
    *routes_sync.ROUTES,
    *routes_metrics.WRITING,
    *routes_logs.WRITING,
    *routes_experiments.WRITING,
    *routes_files.WRITING,
    *routes_dashboard.LOGINS,
    *routes_about.ROUTES,
]
"""What only a team's server does, over `call.core`."""

ROUTES: Final = (*ROUTES_SERVER, *ROUTES_READING)

# How long an experiment that is written by REST may be silent before it counts as ended, and how often that is looked
# at.
QUIET_NS: Final = 3600 * 10**9
QUIET_EVERY_S: Final = 600.0
MEND_EVERY_S: Final = 60.0
FOLLOW_EVERY_S: Final = 0.5
# Folders of this machine are asked more often: only those that run are looked at each time.
FOLLOW_FOLDERS_EVERY_S: Final = 0.1

# An uploader takes nothing for an answer that lacks the first: a proxy's page must not count as one. The second keeps
# browsers from guessing that a stored file is a script.
_COMMON_HEADERS: Final = [
    (PROTOCOL_HEADER.lower().encode(), str(PROTOCOL).encode()),
    (b"x-content-type-options", b"nosniff"),
]


def make_app(core: Server, settings: ServerSettings, authenticator: Authenticator) -> App:
    """Return the application over an open core. The caller closes the core."""
    # Loaded here, with what only a team's server needs.
    from .figures import Figures

    hub = Hub()
    core.on_change(hub.changed)
    limiter = Limiter(settings.user_limits, settings.token_limits)
    source_for = partial(ServerSource, core)
    return App(Services(core, source_for, settings, authenticator, Figures(), hub, ROUTES, limiter))


class App:
    """The ASGI application: finds the route, identifies the caller, runs the handler, records the answer."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._active = 0
        # In the order of the routes: the first pattern that fits decides, and those that uploaders use come first.
        self._table = [(_pattern(path), path, methods) for path, methods in _by_path(services.routes).items()]
        self._inner: ASGIApp = self._answer
        # Without any, pages of other sites get no answer that their scripts may read.
        origins = services.settings.cors_origins
        if origins:
            self._inner = CORSMiddleware(
                self._answer,
                allow_origins=list(origins),
                allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
                allow_headers=["Authorization", "Content-Type", "Range", "If-Range", "Last-Event-ID", PROTOCOL_HEADER],
                expose_headers=["Content-Range", "ETag", "Retry-After", PROTOCOL_HEADER],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # uvicorn also knows WebSockets; they are switched off there.
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            exchange = _Exchange(scope, receive, send)
            await self._inner(scope, exchange.receive, exchange.send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Answer the start and the end of the application, and run beside it what is done at intervals."""
        async with anyio.create_task_group() as beside:
            while True:
                message = await receive()
                if message["type"] == "lifespan.startup":
                    self.services.hub.start()
                    core = self.services.core
                    if core is not None:
                        beside.start_soon(self._end_quiet, core)
                        beside.start_soon(self._bring_up_to_date, core)
                    if core is not None and core.stores.shared:
                        beside.start_soon(self._mend, core)
                    if self.services.polls:
                        beside.start_soon(self._follow_others)
                    await send({"type": "lifespan.startup.complete"})
                else:
                    beside.cancel_scope.cancel()
                    await send({"type": "lifespan.shutdown.complete"})
                    return

    async def _bring_up_to_date(self, core: Server) -> None:
        """Fold anew what another version of this code has made, beside the requests."""
        try:
            await anyio.to_thread.run_sync(core.bring_up_to_date, abandon_on_cancel=True)
        except (Refused, MLDashError, OSError) as error:
            log.error("experiments could not be brought up to date: %s", error)

    async def _mend(self, core: Server) -> None:
        """Every MEND_EVERY_S: repair what other servers have left when they were killed."""
        while True:
            try:
                await anyio.to_thread.run_sync(core.mend, abandon_on_cancel=True)
            except (MLDashError, OSError) as error:
                log.warning("the documents could not be mended now: %s", error)
            await anyio.sleep(MEND_EVERY_S)

    async def _follow_others(self) -> None:
        """Every FOLLOW_EVERY_S: tell live readers what other processes have added to their experiments."""
        every_s = FOLLOW_EVERY_S if self.services.core is not None else FOLLOW_FOLDERS_EVERY_S
        while True:
            began = time.monotonic()
            for namespace, experiments in _by_namespace(self.services.hub.followed()).items():
                events = await self._events(namespace, experiments)
                for experiment in experiments if events is not None else ():
                    # One without events was removed.
                    self.services.hub.changed(namespace, experiment, (events or {}).get(experiment) or None)
            for namespace in self.services.hub.followed_whole():
                events = await self._events(namespace, None)
                if events is not None:
                    self.services.hub.compare(namespace, events)
            # Where there is much to look at, looking must not become all that this machine does.
            await anyio.sleep(max(every_s, 5 * (time.monotonic() - began)))

    async def _events(self, namespace: str, experiments: list[str] | None) -> Mapping[str, int] | None:
        """Return the number of events of experiments, or of all; None where that cannot be found out now."""
        source = self.services.source_for(namespace)
        try:
            return await anyio.to_thread.run_sync(source.events, experiments, abandon_on_cancel=True)
        except (MLDashError, OSError) as error:
            log.warning("live readers do not hear of what others add: %s", error)
            return None

    async def _end_quiet(self, core: Server) -> None:
        """Every QUIET_EVERY_S: end experiments to which only REST clients wrote, the last of them QUIET_NS ago."""
        while True:
            try:
                await anyio.to_thread.run_sync(core.end_quiet, time.time_ns() - QUIET_NS)
            except (Refused, OSError) as error:
                log.warning("quiet experiments could not be ended: %s", error)
            await anyio.sleep(QUIET_EVERY_S)

    # -- one request -------------------------------------------------------------------------------------------------

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, count it, and write it to the log."""
        began = time.perf_counter()
        record = _Record()
        observer = self.services.observer

        async def counting() -> Message:
            message = await receive()
            if record.admission is not None and (wait_s := record.admission.received(len(message.get("body", b"")))):
                await anyio.sleep(wait_s)
            return message

        request = Request(scope, counting, send)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        self._active += 1
        observer.entered()
        try:
            # Errors of the handler end there; what can still be raised here is that the connection is gone.
            response = await self._response(request, record)
            await response(scope, receive, noting)
        except (ClientDisconnect, ConnectionError):
            record.gone = True
        finally:
            if record.admission is not None:
                record.admission.leave()
            self._active -= 1
            observer.left(self.services.budget.used, self.services.hub.count)
            seconds = time.perf_counter() - began
            observer.answered(record.method, record.route, record.status, seconds)
            _note(request, record, seconds)

    async def _response(self, request: Request, record: _Record) -> Response:
        """Return the answer, whatever happens. Raises ClientDisconnect where nobody waits for it."""
        # Bound the metric's label: unknown methods count as OTHER.
        record.method = request.method if request.method in METHODS else "OTHER"
        try:
            # This request is among them.
            if self._active > MAX_ACTIVE:
                raise busy()
            route, parts = self._find(request)
            record.route, record.method = route.path, route.method
            call = Call(request, self.services, parts)
            if route.page and asks_for_page(call):
                return await page_of(call)
            if route.access != OPEN:
                record.user, token = await self._identify(call, write=route.access == WRITE)
                record.admission = call.admission = self.services.limiter.enter(record.user, token)
            return await compressed(call, await route.handler(call))
        except ClientDisconnect:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer and the log the reason
            return self._failed(error, request, record)

    def _find(self, request: Request) -> tuple[Route, dict[str, str]]:
        """Return the route of a request and the parts of its path. `%2F` in a name does not count as a slash.

        Raises Refused: 404 for an unknown path, 405 for a method that the path does not have.
        """
        # The path before decoding: names of metrics and files may contain slashes, which come as `%2F`.
        path = request.scope.get("raw_path", b"").decode("ascii", "replace")
        for pattern, _, methods in self._table:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            method = "GET" if request.method == "HEAD" else request.method
            if method not in methods:
                raise _NotAllowed(methods)
            if not _is_framed_once(request):
                malformed("a request has either Content-Length or Transfer-Encoding")
            return methods[method], {name: _decoded(text) for name, text in match.groupdict().items()}
        raise Refused(404, UNKNOWN, "there is nothing at this path; GET /openapi.json lists all calls")

    async def _identify(self, call: Call, *, write: bool) -> tuple[str, str]:
        """Set the caller and the namespace of a call; return the user and a digest of the token.

        Raises Refused: 401, 403, 404, and 400 for another protocol.
        """
        authenticator = self.services.authenticator
        # A browser sends its cookie also with what another site has it send. So a cookie changes things only beside a
        # header that no foreign page can add.
        token = authenticator.token_of(call.request, cookie=not write or PROTOCOL_HEADER in call.request.headers)
        call.who = await call.read(authenticator.who, token, nearby=is_nearby(call.request))
        call.namespace = call.who.namespace(call.text("namespace"), write=write)
        version = call.request.headers.get(PROTOCOL_HEADER)
        if version not in (None, str(PROTOCOL)):
            malformed(f"{PROTOCOL_HEADER} is {version[:20]!a}, and this server speaks version {PROTOCOL}")
        return call.who.user, sha256(token.encode()).hexdigest()

    def _failed(self, error: Exception, request: Request, record: _Record) -> Response:
        """Return the answer to an error; count it, and log what the server's owner should see."""
        refused = _refused(error)
        self.services.observer.refused(refused.code)
        record.code = refused.code
        if isinstance(refused, Limited):
            self.services.observer.limited(refused.limit)
        if refused.code == CONFLICT:
            log.error("conflict: %s", refused.message, extra={"path": shown_path(request.url.path), **refused.extra})
        if refused.status >= 500:
            self.services.observer.failed()
            if not isinstance(error, Refused):
                log.error("%s %s failed", request.method, shown_path(request.url.path), exc_info=error)
        return refusal(refused)


class _NotAllowed(Refused):
    """405, with the methods that the path has."""

    def __init__(self, methods: dict[str, Route]) -> None:
        super().__init__(405, "method", "this path has no such method")
        allowed = sorted({*methods, *(["HEAD"] if "GET" in methods else [])})
        self.headers = {"Allow": ", ".join(allowed)}


class _WrongQuery(Refused):
    """400, with the place in the query and what would be right."""

    def __init__(self, error: InvalidQuery) -> None:
        super().__init__(400, QUERY, error.message)
        self._at, self._hint = error.at, error.hint

    def body(self) -> dict[str, Any]:
        inner = {"code": self.code, "message": self.message, "at": self._at, "hint": self._hint}
        return {"error": inner}


def _refused(error: Exception) -> Refused:
    """Return the refusal with which an error is answered."""
    match error:
        case Refused():
            return error
        case WriteProtected():
            return Refused(409, "write_protected", str(error))
        case StillOpen():
            return Refused(409, "still_open", str(error))
        case ReleasedData():
            return Refused(404, "released", str(error))
        case ReadOnly():
            return Refused(403, FORBIDDEN, str(error))
        case JournalError():
            return Refused(500, "damaged", str(error))
        case NotFound():
            return Refused(404, UNKNOWN, str(error))
        case InvalidQuery():
            return _WrongQuery(error)
        case InvalidInput() | UnsupportedType():
            return Refused(400, MALFORMED, str(error))
        # 503 and not 500: an uploader then keeps everything and tries again, where it would set the segment aside
        # otherwise.
        case OSError() | MemoryError():
            text = "the server cannot store or read now; this request was not carried out, send it again"
            return Refused(503, UNAVAILABLE, text, retry_after_s=RETRY_S)
    return Refused(500, "internal", "the server failed at this request; its log says why")


def _by_namespace(keys: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return namespace → experiments."""
    found: dict[str, list[str]] = {}
    for namespace, experiment in keys:
        found.setdefault(namespace, []).append(experiment)
    return found


# -- paths -----------------------------------------------------------------------------------------------------------


def _by_path(routes: Iterable[Route]) -> dict[str, dict[str, Route]]:
    """Return path → method → route, in the order of the routes."""
    table: dict[str, dict[str, Route]] = {}
    for route in routes:
        table.setdefault(route.path, {})[route.method] = route
    return table


def _pattern(path: str) -> re.Pattern[str]:
    """Return the pattern of a route's path, for paths before decoding."""
    parts = re.split(r"(\{[a-z]+(?:\.\.\.)?\})", path)
    return re.compile("".join(_part(part) for part in parts))


def _part(part: str) -> str:
    """Return the pattern of a piece of a route's path: fixed text, or a part with a name."""
    if not part.startswith("{"):
        return re.escape(part)
    name = part.strip("{}.")
    return f"(?P<{name}>.+)" if part.endswith("...}") else f"(?P<{name}>[^/]+)"


def _decoded(text: str) -> str:
    """Decode a part of a path. Raises Refused (400) if it is not UTF-8."""
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        malformed("the path is not UTF-8")


def _is_framed_once(request: Request) -> bool:
    """False with two lengths for one body: a proxy that believes the other one lets a request be smuggled past it."""
    return not ("transfer-encoding" in request.headers and "content-length" in request.headers)


# -- what is sent ----------------------------------------------------------------------------------------------------


class _Record:
    """What the log records about one request."""

    def __init__(self) -> None:
        self.method = ""
        self.route = "none"
        self.status = 0
        self.user: str | None = None
        self.code: str | None = None
        self.admission: Admission | None = None
        self.gone = False


def _note(request: Request, record: _Record, seconds: float) -> None:
    """Write a request to the log. Those of monitoring, which come all the time, only at the level of debugging."""
    level = "info" if record.route not in ("/health", "/-/ready", "/metrics") else "debug"
    getattr(log, level)(
        "request",
        extra={
            "method": request.method,
            "path": shown_path(request.url.path),
            "status": record.status,
            "ms": round(seconds * 1000, 2),
            "user": record.user,
            "peer": request.client.host if request.client else None,
            **({"code": record.code} if record.code else {}),
            **({"client_gone": True} if record.gone else {}),
        },
    )


class _Exchange:
    """One request and its answer on the wire: common headers, and a clean end where the request was not read in full.

    If the connection were closed while the client still sends, TCP would reset it, and the client might never see the
    answer. So an early answer is held open until the rest has come: at most LINGER_BYTES, for at most LINGER_S.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        headers = dict(scope["headers"])
        # True while the client has not sent all of the body.
        self._unread = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        self._expects = b"expect" in headers

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), *_COMMON_HEADERS]
            if self._unread:
                # What still comes on this connection belongs to the old request.
                headers.append((b"connection", b"close"))
            await self._sent({**message, "headers": headers})
        elif self._unread and not message.get("more_body", False):
            # The answer goes out now, and its end after the drain: a client that reads it may stop sending.
            await self._sent({**message, "more_body": True})
            # A client that sent `Expect: 100-continue` and got an answer does not send the body.
            if not self._expects:
                await self._drain()
            await self._sent({"type": "http.response.body", "body": b""})
        else:
            await self._sent(message)

    async def _sent(self, message: Message) -> None:
        """Send, and wait until the client has read nearly all.

        Raises ConnectionError if it reads nothing for UNREAD_S.
        """
        try:
            with anyio.fail_after(UNREAD_S):
                await self._send(message)
        except TimeoutError:
            raise ConnectionAbortedError("the answer is not read") from None

    async def _drain(self) -> None:
        """Read what the client still sends, and throw it away."""
        drained = 0
        with contextlib.suppress(TimeoutError), anyio.fail_after(LINGER_S):
            while self._unread and drained < LINGER_BYTES:
                drained += len((await self.receive()).get("body", b""))


def described_settings(settings: ServerSettings) -> dict[str, Any]:
    """Return what the log records about a server that starts."""
    return {"data": str(settings.data), "host": settings.host, "dev": settings.dev}
