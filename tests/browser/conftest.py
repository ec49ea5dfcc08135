"""A browser and what it looks at. Each page is watched: errors in its console and requests elsewhere fail the test."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.browser.hosts import Shown, UiServer, by_server, by_ui, chromium_program
from tests.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS: Final = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDE: Final = {"width": 1400, "height": 900}
TIMEOUT_MS: Final = 30_000


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a module run one after the other, with one browser."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group(f"browser-{item.path.stem}"))


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """A browser. Where there is none the tests are skipped, but not where all must run."""
    program = chromium_program()
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no Chromium: apt-get install chromium")
        pytest.skip("there is no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def browser_page(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page in a profile of its own, 1400 pixels wide; `@pytest.mark.console("401")` expects such errors."""
    mark = request.node.get_closest_marker("console")
    expected = [re.compile(pattern) for pattern in mark.args] if mark is not None else []
    context = chromium.new_context(viewport=WIDE)  # type: ignore[arg-type]  # a mapping of these keys
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    with watched(page, expected):
        yield page
    context.close()


class watched:  # noqa: N801 - used as a statement
    """At its end there must have been no error in the page's console, and no request to another machine's address."""

    def __init__(self, page: Page, expected: list[re.Pattern[str]] | None = None) -> None:
        self._page = page
        self._expected = expected or []
        self._errors: list[str] = []
        self._elsewhere: list[str] = []

    def __enter__(self) -> watched:
        context = self._page.context
        context.on("console", lambda message: self._note(message.text, message.type))
        context.on("weberror", lambda error: self._errors.append(str(error.error)))
        context.on("request", lambda asked: self._went(asked.url))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            assert self._errors == [], "errors in the console"
            assert self._elsewhere == [], "requests to another origin"

    def _note(self, text: str, kind: str) -> None:
        if kind == "error" and not any(pattern.search(text) for pattern in self._expected):
            self._errors.append(text)

    def _went(self, url: str) -> None:
        if not url.startswith(("data:", "blob:", "about:")) and not any(url.startswith(f"{one}/") for one in STARTED):
            self._elsewhere.append(url)


STARTED: Final[set[str]] = set()
"""The addresses of the servers that these tests have started."""


@pytest.fixture(scope="session")
def team_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that do it no harm; each has a user of its own."""
    running = Server(tmp_path_factory.mktemp("team") / "data").start()
    STARTED.add(running.url)
    yield running
    running.end()


@pytest.fixture
def ui_server() -> Iterator[Callable[..., UiServer]]:
    """Starts `ml-dash ui` over the given folders; it ends with the test, and must end well."""
    started: list[UiServer] = []

    def start(*paths: Path) -> UiServer:
        started.append(UiServer(*paths).start())
        STARTED.add(started[-1].url)
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def user(request: pytest.FixtureRequest) -> str:
    """A user that no other test has."""
    return re.sub(r"\W+", "-", f"{request.module.__name__.rpartition('.')[2]}-{request.node.name}")[:100]


@pytest.fixture(params=["server", "ui"])
def shown(request: pytest.FixtureRequest, user: str) -> Callable[[Path], Shown]:
    """Shows what a store has: the test runs with a team's server and with `ml-dash ui`."""

    def show(store: Path) -> Shown:
        if request.param == "ui":
            return by_ui(request.getfixturevalue("ui_server")(store))
        return by_server(request.getfixturevalue("team_server"), user, store)

    # Started before the test, so that what they keep open is not the test's.
    request.getfixturevalue("ui_server" if request.param == "ui" else "team_server")
    return show
