"""The arguments and replies of a handler: the caller, checked parameters, a thread to work in, forms of reply.

A handler gets a `Call` and nothing else. It takes checked values from it, so that no handler parses text; it does its
work in threads, so that no handler holds the event loop up; and what it raises becomes an answer in `app`.

Two pools of threads, because writes wait for one another (one turn, one database) and would fill a common pool. When
a pool is full, requests wait in the event loop without a thread.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol, TypeVar

import anyio.to_thread
import msgspec
from anyio import CapacityLimiter
from starlette.requests import Request
from starlette.responses import Response

from ...core.json_values import from_json, to_json
from ...core.limits import MAX_LIMIT
from ...core.protocol import MALFORMED, UNKNOWN, Refused
from ...core.values import field_values
from ...reading.source import Answer, Moment, Source
from ..engine.services import Server
from ..settings import ServerSettings
from .auth import Authentication, Who
from .bodies import JSON_BYTES, Budget, body_of, decode_json
from .limits import Admission, Limiter
from .observe import Observer
from .stream import Hub

if TYPE_CHECKING:
    from collections.abc import Awaitable

Result = TypeVar("Result")
Shape = TypeVar("Shape")

OPEN: Final = "open"
READ: Final = "read"
WRITE: Final = "write"

LARGEST_INDEX: Final = 10**15
"""The largest index in a query, in either direction."""

READERS: Final = 16
WRITERS: Final = 8
"""Threads for readers and for writers: writes wait for each other anyway, and must not keep reads waiting."""

UPLOADS: Final = 128
"""Files that may be uploaded at once; each holds a descriptor and a parser, but no thread."""

COMPRESSED_FROM_BYTES: Final = 1 << 10
"""Shorter answers are sent as they are."""

LARGE_JSON: Final = 3
"""Large JSON bodies decoded at once: JSON grows when it is decoded, twenty times at worst."""

# Smaller JSON is decoded in the event loop: that takes less than going to a thread and back.
_SMALL_JSON_BYTES: Final = 64 << 10
# A third of the time of the usual level, for a tenth more bytes.
_LEVEL: Final = 3
_HEX: Final = re.compile(r"[0-9a-f]{32}")
_ID: Final = re.compile(r"[0-9]{1,20}")
# Bounded before `int` sees it, and ASCII only: `int` also takes other scripts' digits, spaces and underscores.
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
# Control characters would get into logs, and half a surrogate pair cannot be stored.
_UNSAFE_TEXT: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass
class Services:
    """What all calls of one application share.

    `source_for(namespace)` is what its reading calls ask. `core` is None where folders of this machine are shown: there
    only the calls of ROUTES_READING are served. `frames` are the origins whose pages may show the dashboard in a frame.
    """

    core: Server | None
    source_for: Callable[[str], Source]
    settings: ServerSettings
    authenticator: Authentication
    observer: Observer
    hub: Hub
    routes: tuple[Route, ...]
    limiter: Limiter
    # The folders that are shown, where it is not a team\'s server.
    stores: tuple[str, ...] = ()
    frames: tuple[str, ...] = ("'self'",)
    budget: Budget = field(default_factory=Budget)
    readers: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(READERS))
    writers: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(WRITERS))
    uploads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(UPLOADS))
    large_json: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(LARGE_JSON))

    @property
    def polls(self) -> bool:
        """True where other processes change experiments without telling: folders, or stores of several servers."""
        return self.core is None or self.core.stores.shared


@dataclass
class Call:
    """One request that is being answered.

    Its methods raise Refused (400, 404) for arguments that are not acceptable.
    """

    request: Request
    services: Services
    parts: dict[str, str]
    who: Who | None = None
    namespace: str = ""
    admission: Admission | None = None

    @property
    def core(self) -> Server:
        """The server without HTTP."""
        core = self.services.core
        assert core is not None, "a call of a team's server was routed without one"
        return core

    @property
    def source(self) -> Source:
        """What readers of the call's namespace ask."""
        return self.services.source_for(self.namespace)

    # -- work --------------------------------------------------------------------------------------------------------

    async def read(self, work: Callable[..., Result], *args: Any, **named: Any) -> Result:
        """Run `work` in a reader thread; return its result."""
        return await anyio.to_thread.run_sync(partial(work, *args, **named), limiter=self.services.readers)

    async def write(self, work: Callable[..., Result], *args: Any, **named: Any) -> Result:
        """Run `work` in a writer thread; return its result. It is finished even if the client has gone."""
        return await anyio.to_thread.run_sync(partial(work, *args, **named), limiter=self.services.writers)

    # -- the path ----------------------------------------------------------------------------------------------------

    def experiment(self) -> str:
        """Return the experiment's id in the path. Raises Refused (404) for another form."""
        return self._matching("experiment", _ID)

    def file(self) -> str:
        """Return the file's id in the path. Raises Refused (404) for another form."""
        return self._matching("file", _ID)

    def journal(self) -> str:
        """Return the journal's id in the path, in hex. Raises Refused (404) for another form."""
        return self._matching("journal", _HEX)

    def segment(self) -> str:
        """Return the segment's id in the path, in hex. Raises Refused (404) for another form."""
        return self._matching("segment", _HEX)

    def _matching(self, name: str, form: re.Pattern[str]) -> str:
        """Return an id in the path. One of another form cannot be known: 404, not 400."""
        if not form.fullmatch(self.parts[name]):
            raise Refused(404, UNKNOWN, f"there is no such {name}")
        return self.parts[name]

    # -- the query ---------------------------------------------------------------------------------------------------

    def text(self, name: str, longest: int = 1000) -> str | None:
        """Return a query parameter; None if it is not given.

        Raises Refused (400) if given twice, too long or unsafe.
        """
        given = self.request.query_params.getlist(name)
        if len(given) > 1:
            malformed(f"{name} is given more than once")
        if given and (len(given[0]) > longest or _UNSAFE_TEXT.search(given[0])):
            malformed(f"{name} is longer than {longest} characters, or has control characters")
        return given[0] if given else None

    def integer(self, name: str, default: int | None, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`.

        Raises Refused (400) for others, and if missing without a default.
        """
        text = self.text(name)
        if text is None:
            if default is None:
                malformed(f"{name} is missing")
            return default
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            malformed(f"{name} is not a number from {low} to {high}")
        return int(text)

    def page(self) -> tuple[int, int]:
        """Return (first index, most lines) of a page; a negative index counts from the end. Raises Refused (400)."""
        return self.integer("startIndex", 0, -LARGEST_INDEX, LARGEST_INDEX), self.integer("limit", 1000, 1, MAX_LIMIT)

    def number_or_none(self, name: str, low: int, high: int) -> int | None:
        """Return a whole number from `low` to `high`; None if it is not given. Raises Refused (400)."""
        return None if self.text(name) is None else self.integer(name, low, low, high)

    def flag(self, name: str, default: bool) -> bool:
        """Return a parameter that is `true` or `false`. Raises Refused (400) for others."""
        text = self.text(name)
        if text not in (None, "true", "false"):
            malformed(f"{name} is neither true nor false")
        return default if text is None else text == "true"

    def experiments(self, most: int) -> tuple[str, ...]:
        """Return the ids in the query, of which there may be several (`experiment=1&experiment=2`), each once.

        Raises Refused (400) if there are more than `most`.
        """
        given = tuple(dict.fromkeys(self.request.query_params.getlist("experiment")))
        if len(given) > most:
            malformed(f"experiment is given {len(given):,} times, and may be {most:,} times")
        for one in given:
            if not _ID.fullmatch(one):
                malformed("experiment is not an id")
        return given

    def moment(self) -> Moment:
        """Return the moment as of which to read: a number of events or a time; None for now. Raises Refused (400)."""
        return self.text("asOf", 100)

    def number(self, name: str) -> float | None:
        """Return a finite number; None if it is not given. Raises Refused (400) for others."""
        text = self.text(name, 100)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            malformed(f"{name} is not a number")
        if value - value != 0:
            malformed(f"{name} is not a finite number")
        return value

    # -- the body ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def body(self, limit: int) -> AsyncIterator[bytes]:
        """Read the whole body, decompressed, at most `limit` bytes. Raises Refused (see `body_of`)."""
        async with body_of(self.request, limit, self.services.budget) as data:
            self.services.observer.received(len(data))
            yield data

    @asynccontextmanager
    async def json(self, shape: type[Shape], limit: int = JSON_BYTES) -> AsyncIterator[Shape]:
        """Read the JSON body as a value of `shape`. Raises Refused (400) that says where it differs."""
        async with self.body(limit) as data:
            if len(data) <= _SMALL_JSON_BYTES:
                yield shaped(data, shape)
            else:
                async with self.services.large_json:
                    yield await self.read(shaped, data, shape)


class Handler(Protocol):
    """An async function that answers a call; what it raises is answered by `App`."""

    def __call__(self, call: Call, /) -> Awaitable[Response]: ...


class Route(NamedTuple):
    """A call that the server answers.

    `{name}` in the path is one part, `{name...}` one or more. `access` is OPEN, READ or WRITE. With `page`, a browser
    that goes to this path gets the dashboard's page instead, whoever it is.
    """

    method: str
    path: str
    handler: Handler
    access: str
    page: bool = False


# -- shapes and answers ----------------------------------------------------------------------------------------------


def shaped(data: bytes, shape: type[Shape]) -> Shape:
    """Decode JSON as a value of `shape`. Raises Refused (400) that says where it differs."""
    try:
        return msgspec.convert(decode_json(data), shape)
    except msgspec.ValidationError as error:
        malformed(f"the body is not what this call takes: {error}")
    except RecursionError:
        malformed("the body's JSON is nested too deeply")


def recorded(values: Mapping[str, Any], texts: Iterable[str] = ()) -> dict[str, Any]:
    """Return values from JSON as they are recorded; `texts` names the texts that look like numbers.

    Raises InvalidInput for integers out of range and for what is nested too deeply, as the library does.
    """
    return from_json(field_values(values), texts)


def answer(content: Any, status: int = 200) -> Response:
    """Return a response of strict JSON: NaN and infinities as texts."""
    return raw_json(msgspec.json.encode(to_json(content)), status)


def encoded(content: Answer, status: int = 200) -> Response:
    """Return a response of what a source has answered."""
    return raw_json(content, status) if isinstance(content, bytes) else answer(content, status)


async def compressed(call: Call, response: Response) -> Response:
    """Return a response of JSON in fewer bytes, if it is long and the client takes that.

    Streams, and what is not JSON, stay as they are: contents of files, and series as numbers in memory.
    """
    body = getattr(response, "body", b"")
    headers = response.headers
    if len(body) <= COMPRESSED_FROM_BYTES or not headers.get("content-type", "").startswith("application/json"):
        return response
    headers.add_vary_header("Accept-Encoding")
    if not takes_gzip(call.request.headers.get("accept-encoding", "")) or "content-encoding" in headers:
        return response
    pack = partial(gzip.compress, body, _LEVEL, mtime=0)
    response.body = pack() if len(body) <= _SMALL_JSON_BYTES else await call.read(pack)
    headers["Content-Encoding"] = "gzip"
    headers["Content-Length"] = str(len(response.body))
    return response


def takes_gzip(accepted: str) -> bool:
    """True if a client that sends this Accept-Encoding takes gzip."""
    for one in accepted.lower().split(","):
        name, *parameters = (part.strip() for part in one.split(";"))
        if name == "gzip":
            return not any(part.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for part in parameters)
    return False


def raw_json(data: bytes, status: int = 200) -> Response:
    """Return a response of JSON that is encoded already."""
    return Response(data, status, {"Cache-Control": "no-store"}, media_type="application/json")


def refusal(refused: Refused) -> Response:
    """Return the response that reports an error, the same for all calls."""
    response = answer(refused.body(), refused.status)
    if refused.retry_after_s is not None:
        response.headers["Retry-After"] = str(refused.retry_after_s)
    for name, value in getattr(refused, "headers", {}).items():
        response.headers[name] = value
    return response


def malformed(message: str) -> NoReturn:
    """Raise Refused (400)."""
    raise Refused(400, MALFORMED, message)
