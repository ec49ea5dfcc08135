"""What shows the dashboard in a test: a team's server, or `ml-dash ui` over folders; processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ml_dash.disk.settings import resolve
from ml_dash.reading import read
from ml_dash.sync import registrations
from ml_dash.sync.login import development_token
from tests.running import Server, once

if TYPE_CHECKING:
    from playwright.sync_api import Page

END_S: Final = 30.0
_AT_ONCE: Final = 500
COOKIE: Final = "ml_dash_token"


def chromium_program() -> str | None:
    """Where the browser is; None if there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class UiServer:
    """`ml-dash ui` over some folders."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths
        self.link = self.url = ""
        self.said: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    def start(self, *options: str, environment: dict[str, str] | None = None) -> UiServer:
        """Returns once it has printed its link."""
        command = [sys.executable, "-m", "ml_dash", "ui", *map(str, self.paths), "--no-open", *options]
        if "--port" not in options:
            command += ["--port", "0"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line.rstrip("\n"))
            last = line.split()[-1] if line.split() else ""
            if last.startswith("http://"):
                self.link = last
                self.url = last.partition("/login")[0]
                return self
        raise AssertionError(f"ml-dash ui ended with {self._process.wait()}: {self.said}")

    def end(self, number: int = signal.SIGTERM) -> None:
        """Ends it; it must end well."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        assert process.stdout is not None
        try:
            code = process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdout.close()
        assert code == 0


@dataclass
class Shown:
    """Somebody's experiments, shown by one of the two."""

    name: str
    url: str
    log_in: Callable[[Page], None]

    def open(self, page: Page, path: str = "/runs") -> None:
        """Goes to a path of the application, logged in."""
        self.log_in(page)
        page.goto(self.url + path)


def by_server(server: Server, user: str, store: Path | None = None) -> Shown:
    """The experiments of a store, sent to a user's namespace of a server."""
    if store is not None:
        send(server, user, store)

    def log_in(page: Page) -> None:
        cookie = {"name": COOKIE, "value": development_token(user), "url": server.url, "sameSite": "Strict"}
        page.context.add_cookies([cookie])  # type: ignore[list-item]  # a mapping of these keys

    return Shown("server", server.url, log_in)


def by_ui(ui: UiServer) -> Shown:
    """The folders of an `ml-dash ui`. Its link works once, so for one page."""

    def log_in(page: Page) -> None:
        if not any(cookie.get("name", "").startswith("ml_dash_ui") for cookie in page.context.cookies(ui.url)):
            page.goto(ui.link)

    return Shown("ui", ui.url, log_in)


def send(server: Server, user: str, store: Path) -> None:
    """Sends all that a store has to a user's namespace, and waits for that."""
    settings = resolve(remote=server.url, user_name=user)
    keys = [registrations.register(located.journal, settings).key for located in read.find(store)]
    # Some at a time: each call is given a minute or two.
    for first in range(0, len(keys), _AT_ONCE):
        assert once(None, *(part for key in keys[first : first + _AT_ONCE] for part in ("--registered", key))) == 0
