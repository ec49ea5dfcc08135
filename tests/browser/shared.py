"""One host for all tests of a module: it starts once, and each test looks at it with a page of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from tests.browser.conftest import STARTED
from tests.browser.hosts import Shown, UiServer, by_server
from tests.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

UNTIL_S: Final = 30.0


def until(holds: Callable[[], bool]) -> None:
    """Waits until something holds. The page's policy allows no expression that is evaluated in it again and again."""
    deadline = monotonic() + UNTIL_S
    while not holds():
        assert monotonic() < deadline
        Event().wait(0.05)


@contextmanager
def shown_by(kind: str, store: Path, server: Server, user: str) -> Iterator[Shown]:
    """What a store has, shown by a team's server (`server`) or by `ml-dash ui` (`ui`) to any number of pages."""
    if kind == "server":
        yield by_server(server, user, store)
        return
    ui = UiServer(store).start()
    STARTED.add(ui.url)
    kept: list[Any] = []

    def log_in(page: Page) -> None:
        # The link works once; later pages are given the cookie that it gave.
        if kept:
            page.context.add_cookies(kept)
        else:
            page.goto(ui.link)
            kept.extend(page.context.cookies(ui.url))

    try:
        yield Shown("ui", ui.url, log_in)
    finally:
        ui.end()
