"""The application loads from both hosts, under its policy, and for nobody but who may."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ml_dash
from ml_dash.server.http.assets import FOLDER
from tests.browser import recording
from tests.browser.conftest import STARTED
from tests.browser.hosts import Shown, UiServer, by_server
from tests.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_the_application_loads(browser_page: Page, shown: Callable[[Path], Shown], tmp_path: Path) -> None:
    recording.train(tmp_path / "store", "first")
    shown(tmp_path / "store").open(browser_page, "/runs")
    browser_page.get_by_role("link", name="first").wait_for()


@pytest.mark.console("Content Security Policy")
def test_no_script_runs_that_is_not_the_dashboards_own(browser_page: Page, team_server: Server) -> None:
    browser_page.goto(f"{team_server.url}/login")
    browser_page.evaluate(
        """async () => {
            const inline = document.createElement("script");
            inline.textContent = "window.ran = true";
            document.body.append(inline);
            const elsewhere = document.createElement("script");
            elsewhere.src = "data:text/javascript,window.ran=true";
            document.body.append(elsewhere);
            const button = document.createElement("button");
            button.setAttribute("onclick", "window.ran = true");
            document.body.append(button);
            button.click();
            setTimeout("window.ran = true");
            // Whatever runs has run by then.
            await new Promise((done) => setTimeout(done, 200));
        }"""
    )
    assert browser_page.evaluate("window.ran") is None


def test_every_module_is_read_by_a_browser_as_it_is_sent(browser_page: Page, team_server: Server, user: str) -> None:
    """They are sent without their comments: what that would break, the browser does not load."""
    by_server(team_server, user).open(browser_page, "/runs")
    paths = [path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.js")]
    assert len(paths) > 20
    browser_page.evaluate(
        """async (paths) => {
            const app = document.querySelector("script[type=module]").src;
            await Promise.all(paths.map((path) => import(new URL(path, app).href)));
        }""",
        paths,
    )


@pytest.mark.console("401")
def test_a_stranger_is_asked_for_the_link(
    browser_page: Page, ui_server: Callable[..., UiServer], tmp_path: Path
) -> None:
    ui = ui_server(tmp_path)
    browser_page.goto(f"{ui.url}/runs")
    browser_page.get_by_text("ml-dash ui").first.wait_for()
    browser_page.goto(ui.link)
    browser_page.wait_for_url(f"{ui.url}/*")
    browser_page.get_by_role("searchbox").wait_for()


@pytest.mark.console("401")
def test_a_user_logs_in_with_a_token_or_a_name(browser_page: Page, team_server: Server, user: str) -> None:
    browser_page.goto(f"{team_server.url}/login")
    browser_page.get_by_label("name").fill(user)
    browser_page.get_by_label("name").press("Enter")
    browser_page.get_by_role("searchbox").wait_for()
    assert not browser_page.evaluate("document.cookie")


def test_a_notebook_shows_the_dashboard_in_a_frame(browser_page: Page, tmp_path: Path) -> None:
    recording.train(tmp_path / "store", "first")
    with ml_dash.ui(tmp_path / "store") as dashboard:
        for name in ("127.0.0.1", "localhost"):
            with notebook(dashboard._repr_html_()) as page:
                STARTED.update(url.replace("127.0.0.1", name) for url in (page, dashboard.url))
                browser_page.goto(page.replace("127.0.0.1", name))
                browser_page.frame_locator("iframe").get_by_role("link", name="first").wait_for()
        # The link under it works as well.
        STARTED.add(dashboard.url)
        browser_page.goto(str(browser_page.get_by_role("link", name="open in a tab").get_attribute("href")))
        browser_page.get_by_role("link", name="first").wait_for()


@contextlib.contextmanager
def notebook(shown: str) -> Iterator[str]:
    """The address of a page at another port of this machine, with that in it."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(f'<!doctype html><link rel="icon" href="data:,"><h1>Notebook</h1>{shown}'.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
