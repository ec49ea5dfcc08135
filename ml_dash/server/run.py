"""The server process of a team: opens its stores, announces its address, serves, and closes them."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import webbrowser

from ..disk.durable import replace_file
from .engine.services import Server
from .http.app import described_settings, make_app
from .http.auth import Authenticator
from .http.observe import log, write_logs
from .serving import listening, run, url_of
from .settings import ServerSettings, check_someone_may_enter, running_path


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
        with listening(settings.host, settings.port) as listener:
            authenticator = Authenticator(core, settings)
            app = make_app(core, settings, authenticator)
            url = url_of(listener)

            def announce() -> None:
                sys.stdout.write(f"ml-dash server listening on {url}\n")
                if settings.dev:
                    link = f"{url}/login?key={authenticator.login_key()}"
                    sys.stdout.write(f"in a browser on this machine, logged in (works once): {link}\n")
                    if opens:
                        webbrowser.open(link)
                sys.stdout.flush()
                _note_running(settings, url)
                log.info("started", extra={**described_settings(settings), "port": settings.port})

            run(app, app.services.hub, listener, announce)
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


def _take_all_descriptors() -> None:
    """Raise the limit of open files to the hard limit: each connection is one."""
    if sys.platform == "win32":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
