"""An application on a socket: binds, serves with limits on slow clients, and shuts down in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import StorageError
from .http.stream import Hub

DRAIN_S: Final = 10
"""How long requests that are being answered may take after SIGTERM."""

HEADERS_S: Final = 20.0
"""How long a request's headers may take; a slower connection is closed."""

KEEP_ALIVE_S: Final = 75
_BACKLOG: Final = 1024
_HEADER_BYTES: Final = 64 << 10


@contextlib.contextmanager
def listening(host: str, port: int, *, or_free: bool = False) -> Generator[socket.socket, None, None]:
    """Bind and listen; port 0 is a free one, as is with `or_free` one that is taken. Closes the socket at the end.

    Raises StorageError if the address cannot be bound.
    """
    host = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            if not or_free or error.errno != errno.EADDRINUSE:
                raise
            listener.bind((address[0], 0, *address[2:]))
        # From here on the kernel accepts connections, so whoever reads the address may use it at once.
        listener.listen(_BACKLOG)
    except OSError as error:
        raise StorageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another --port or --host",
        ) from error
    with contextlib.closing(listener):
        yield listener


def url_of(listener: socket.socket) -> str:
    """Return the address of a listening socket as a URL, without a path."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: ASGIApp, hub: Hub, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests under way, and end the streams of `hub`.

    `announce` is called when signals are taken, and connections wait for their answer.
    """
    config = uvicorn.Config(
        app, http=_Protocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
        date_header=True, timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=DRAIN_S,
        h11_max_incomplete_event_size=_HEADER_BYTES, proxy_headers=False, backlog=_BACKLOG,
    )  # fmt: skip
    server = _Server(config, hub)
    with server.capture_signals():
        announce()
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Uvicorn's server, ending the streams of live readers at shutdown, and with exit code 0 after a signal."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A second signal ends requests that are still being answered.
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._hub.close()
        await super().shutdown(sockets)


class _Protocol(H11Protocol):
    """A connection that is closed if the headers of a request take longer than HEADERS_S (slow loris)."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            # The first bytes of the next request, most likely.
            if self._timer is None:
                self._await_headers()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        self._timer = self.loop.call_later(HEADERS_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
