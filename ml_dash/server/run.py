"""The server process: binds, announces its address, serves, and shuts down in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import sys
import webbrowser
from collections.abc import Generator
from types import FrameType
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..disk.durable import replace_file
from ..errors import StorageError
from .engine.services import Server
from .http.app import App, described_settings, make_app
from .http.auth import Authenticator
from .http.observe import log, write_logs
from .settings import ServerSettings, check_someone_may_enter, running_path

DRAIN_S: Final = 10
"""How long requests that are being answered may take after SIGTERM."""

HEADERS_S: Final = 20.0
"""How long a request's headers may take; a slower connection is closed."""

KEEP_ALIVE_S: Final = 75
_BACKLOG: Final = 1024
_HEADER_BYTES: Final = 64 << 10


def serve(settings: ServerSettings, *, opens: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests under way; `opens` shows the page in a browser.

    Raises InvalidValue if nobody could log in, StoreRefused if the data folder cannot be used, StorageError if the
    address cannot be bound.
    """
    write_logs(settings.log_level)
    _take_all_descriptors()
    _look_for_cycles_rarely()
    core = Server(settings.data, settings)
    try:
        check_someone_may_enter(settings, any(not token["revoked_ns"] for token in core.list_tokens()))
        with _listening(settings) as listener:
            app = make_app(core, settings)
            config = uvicorn.Config(
                app, http=_Protocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
                date_header=True, timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=DRAIN_S,
                h11_max_incomplete_event_size=_HEADER_BYTES, proxy_headers=False, backlog=_BACKLOG,
            )  # fmt: skip
            server = _Server(config, app)
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            with server.capture_signals():
                sys.stdout.write(f"ml-dash server listening on http://{shown}:{port}\n")
                if settings.dev:
                    assert isinstance(app.services.authenticator, Authenticator)
                    link = f"http://{shown}:{port}/login?key={app.services.authenticator.login_key()}"
                    sys.stdout.write(f"in a browser on this machine, logged in (works once): {link}\n")
                    if opens:
                        webbrowser.open(link)
                sys.stdout.flush()
                _note_running(settings, f"http://{shown}:{port}")
                log.info("started", extra={**described_settings(settings), "port": port})
                server.run(sockets=[listener])
    finally:
        core.close()
    log.info("ended")


def _note_running(settings: ServerSettings, url: str) -> None:
    """Record where this server's data is, for `token create`, whose default may be another folder."""
    path = running_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, json.dumps({"pid": os.getpid(), "data": str(settings.data), "url": url}).encode())
    except OSError as error:
        log.info("could not record that the server runs: %s", error)


def _look_for_cycles_rarely() -> None:
    """Make the cycle collector run rarely: it took 40 % of the time to fold a batch, which has no cycles."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@contextlib.contextmanager
def _listening(settings: ServerSettings) -> Generator[socket.socket, None, None]:
    """Bind and listen; the socket is closed at the end. Raises StorageError if the address cannot be bound."""
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # From here on the kernel accepts connections, so whoever reads the address may use it at once.
        listener.listen(_BACKLOG)
    except OSError as error:
        raise StorageError(
            f"cannot listen on {host}:{settings.port}: {error.strerror or error}",
            hint="choose another --port or --host",
        ) from error
    with contextlib.closing(listener):
        yield listener


class _Server(uvicorn.Server):
    """Uvicorn's server, ending the streams of live readers at shutdown, and with exit code 0 after a signal."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app

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
        self._app.services.hub.close()
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


def _take_all_descriptors() -> None:
    """Raise the limit of open files to the hard limit: each connection is one."""
    if sys.platform == "win32":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
