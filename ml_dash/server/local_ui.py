"""The process of `ml-dash ui`: the dashboard over folders of this machine, on loopback, for who started it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ..reading.local import LocalSource
from ..recording.local_edits import LocalEdits
from .http.app import ROUTES_READING, App
from .http.calls import Services
from .http.limits import Limiter
from .http.observe import Observer
from .http.one_user import OneUser, OwnPagesOnly
from .http.stream import Hub
from .serving import listening, run, url_of
from .settings import Limits, ServerSettings

DEFAULT_PORT: Final = 3001
HOST: Final = "127.0.0.1"
NOTEBOOKS: Final = ("'self'", "http://localhost:*", "http://127.0.0.1:*")
"""Whose pages may show the dashboard in a frame, where it was started for a notebook of this machine."""

PATIENCE_S: Final = 0.4
"""How long an answer waits for an index that is being made; then it says how far that is."""

_UNLIMITED: Final = Limits(0, 0, 0, 0)


def serve_folders(
    paths: Sequence[Path], port: int | None, announce: Callable[[str], None], *, notebook: bool = False
) -> None:
    """Show the experiments in these folders until SIGTERM or SIGINT.

    `announce` gets a link that logs one browser in, once. Without a port it is DEFAULT_PORT, or a free one where that
    is taken. With `notebook`, each line on standard input asks for another link, printed on standard output, and its
    end ends the process. Raises StorageError if the port cannot be bound.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="ml-dash ui: %(message)s")
    with listening(HOST, DEFAULT_PORT if port is None else port, or_free=port is None) as listener:
        user = OneUser(listener.getsockname()[1])
        url = url_of(listener)

        def link() -> str:
            return f"{url}/login?key={user.login_key()}"

        hub = Hub()
        source = LocalSource(paths, edits=LocalEdits(), patience_s=PATIENCE_S)
        app = App(_services(source, user, hub, NOTEBOOKS if notebook else ("'self'",)))

        def begin() -> None:
            announce(link())
            if notebook:
                threading.Thread(target=_follow_parent, args=(link,), daemon=True).start()

        try:
            run(OwnPagesOnly(app), hub, listener, begin)
        finally:
            source.close()


def _services(source: LocalSource, user: OneUser, hub: Hub, frames: tuple[str, ...]) -> Services:
    """Return what the calls share: one source for every namespace, and no stores."""
    settings = ServerSettings(Path(), log_level="warning")
    limiter = Limiter(_UNLIMITED, _UNLIMITED)
    return Services(
        None, lambda _: source, settings, user, Observer(), hub, tuple(ROUTES_READING), limiter,
        stores=tuple(map(str, source.paths)), frames=frames,
    )  # fmt: skip


def _follow_parent(link: Callable[[], str]) -> None:
    """Print a link for each line on standard input; at its end, the process that started this one has gone: end too."""
    for _ in sys.stdin:
        print(link(), flush=True)  # noqa: T201 - the answer to the process that asks
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: Sequence[str]) -> None:
    """Serve the folders named by the arguments, for a notebook that holds the other end of standard input."""

    def announce(link: str) -> None:
        print(link, flush=True)  # noqa: T201 - the answer to the process that asks

    serve_folders([Path(argument) for argument in arguments], 0, announce, notebook=True)


if __name__ == "__main__":
    main(sys.argv[1:])
