"""What changes while one looks: a run that is killed, a server that is away and back, and whose runs one sees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import recording
from tests.browser.conftest import STARTED
from tests.browser.hosts import UiServer, by_server, by_ui, send
from tests.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


def row(page: Page, name: str) -> Locator:
    runs = page.get_by_role("grid", name="Runs")
    return runs.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))


def connection(page: Page, word: str) -> Locator:
    return page.get_by_role("status", name="Connection").filter(has_text=word)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may end and start again."""
    running = Server(tmp_path / "data").start()
    STARTED.add(running.url)
    yield running
    running.end()


_RUNNING = """
import sys
from ml_dash import Experiment
experiment = Experiment(name="long", project="vision", local_path=sys.argv[1]).open()
experiment.metric("loss").append(value=1.0, step=0)
print("running", flush=True)
sys.stdin.read()
"""


def test_a_run_that_is_killed_turns_interrupted(
    browser_page: Page, ui_server: Callable[..., UiServer], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    recording.train(store, "before", steps=3)
    shown = by_ui(ui_server(store))
    command = [sys.executable, "-c", _RUNNING, str(store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ.copy()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"running\n"
        shown.open(browser_page)
        row(browser_page, "long").get_by_text("running").wait_for()
        browser_page.get_by_role("button", name="Running now").wait_for()
        process.kill()
    row(browser_page, "long").get_by_text("interrupted").wait_for()
    browser_page.get_by_role("button", name="Running now").wait_for(state="detached")


@pytest.mark.console("Failed to load resource|ERR_")
def test_a_server_that_is_away_is_said_to_be_and_what_it_got_meanwhile_shows_when_it_is_back(
    browser_page: Page, own_server: Server, user: str, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    recording.train(store, "before", steps=3)
    by_server(own_server, user, store).open(browser_page)
    row(browser_page, "before").wait_for()
    connection(browser_page, "live").wait_for()
    own_server.end()
    connection(browser_page, "offline").wait_for()
    # What was there stays on the page.
    row(browser_page, "before").wait_for()
    recording.train(store, "meanwhile", steps=3)
    own_server.start()
    send(own_server, user, store)
    row(browser_page, "meanwhile").wait_for()
    connection(browser_page, "live").wait_for()


@pytest.mark.console("Failed to load resource|ERR_")
def test_a_page_whose_server_is_away_from_the_start_says_what_helps(
    browser_page: Page, team_server: Server, user: str
) -> None:
    by_server(team_server, user).log_in(browser_page)
    browser_page.route("**/experiments?*", lambda route: route.abort())
    browser_page.goto(f"{team_server.url}/runs")
    browser_page.get_by_role("heading", name="The server does not answer").wait_for()
    browser_page.unroute("**/experiments?*")
    browser_page.get_by_role("button", name="Try again").click()
    browser_page.get_by_role("heading", name="No runs yet").wait_for()


def test_everybody_sees_their_own_runs(browser_page: Page, team_server: Server, user: str, tmp_path: Path) -> None:
    for name in ("ana", "ben"):
        recording.train(tmp_path / name, f"run of {name}", steps=3)
        send(team_server, f"{user[:60]}-{name}", tmp_path / name)
    by_server(team_server, f"{user[:60]}-ana").open(browser_page)
    row(browser_page, "run of ana").wait_for()
    browser_page.context.clear_cookies()
    by_server(team_server, f"{user[:60]}-ben").open(browser_page)
    row(browser_page, "run of ben").wait_for()
    assert browser_page.get_by_text("run of ana").count() == 0
