"""`ml-dash ui` as a process: who may see it, what it prints, how it ends. A real process, real HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

import ml_dash
from ml_dash.cli.ui import forwarding, has_display
from tests.browser import recording
from tests.browser.hosts import UiServer
from tests.server.conftest import Web

HEADER = "X-ML-Dash-Protocol"
Started = Callable[[UiServer], UiServer]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    recording.train(tmp_path / "store", "first")
    return tmp_path / "store"


@pytest.fixture
def started() -> Iterator[Started]:
    """Takes note of one that the test has started, and ends it if the test does not."""
    noted: list[UiServer] = []

    def note(ui: UiServer) -> UiServer:
        noted.append(ui)
        return ui

    yield note
    for ui in noted:
        ui.end()


@pytest.fixture
def ui(store: Path) -> Iterator[UiServer]:
    """One of the test's own."""
    running = UiServer(store).start()
    yield running
    running.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UiServer]:
    """One for all tests that change nothing. There is nothing in its folder."""
    running = UiServer(tmp_path_factory.mktemp("ui")).start()
    yield running
    running.end()


@pytest.fixture(scope="module")
def guest(shared: UiServer) -> Iterator[Web]:
    """A browser that has followed the link of the shared one."""
    yield from following(shared)


@pytest.fixture
def browser(ui: UiServer) -> Iterator[Web]:
    """A browser that has followed the link of the test's own."""
    yield from following(ui)


def following(ui: UiServer) -> Iterator[Web]:
    made = Web(ui.url, None)
    made.ask("GET", ui.link.removeprefix(ui.url), 303)
    yield made
    made.session.close()


def test_the_link_logs_one_browser_in_once(ui: UiServer, browser: Web) -> None:
    assert [one["name"] for one in browser.get("/projects")["projects"]] == ["vision"]
    [cookie] = browser.session.cookies
    assert cookie.name == f"ml_dash_ui_{urlsplit(ui.url).port}"
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "strict"
    key = ui.link.partition("?")[2]
    other = Web(ui.url, None)
    other.refused("GET", f"/login?{key}", 401, "unauthorised")
    other.refused("GET", "/projects", 401, "unauthorised")
    assert other.get("/login/ways") == {"token": False, "name": False, "mode": "local"}
    other.refused("POST", "/login", 405, "method", data={"user": "alice"})
    other.session.close()
    # The same browser may come back to it.
    browser.ask("GET", f"/login?{key}", 303)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "dash.example.org"}, {"Host": "127.0.0.1.example.org"}, {"Host": "10.0.0.1"}, {"Host": ""},
        {"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=127.0.0.1"}, {"Via": "1.1 proxy"},
        {"Origin": "http://dash.example.org"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)  # fmt: skip
def test_pages_and_machines_of_others_get_nothing(guest: Web, headers: dict[str, str]) -> None:
    for path in ("/projects", "/", "/assets/app.js"):
        guest.refused("GET", path, 403, "forbidden", headers=headers)


def test_a_link_from_elsewhere_leads_here_and_the_page_asks_by_itself(shared: UiServer) -> None:
    stranger = Web(shared.url, None)
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Accept": "text/html"}
    policy = stranger.ask("GET", "/runs", headers=headers).headers["Content-Security-Policy"]
    assert "frame-ancestors 'self'" in policy
    assert "http" not in policy
    stranger.refused("POST", "/logout", 403, "forbidden", headers=headers)
    stranger.session.close()


def test_a_change_needs_the_header_that_a_foreign_page_cannot_send(browser: Web) -> None:
    [run] = browser.get("/experiments")["experiments"]
    path = f"/experiments/{run['id']}"
    browser.refused("PATCH", path, 401, "unauthorised", json={"title": "other"})
    browser.refused("DELETE", path, 401, "unauthorised")
    changed = browser.ask("PATCH", path, json={"title": "other"}, headers={HEADER: "1"}).json()
    assert changed["title"] == "other"
    own = {"Origin": browser.url, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", HEADER: "1"}
    assert browser.ask("DELETE", path, headers=own).json() == {"id": run["id"], "removed": True}
    assert browser.get("/experiments")["total"] == 0


def test_runs_are_renamed_and_removed_and_their_storage_is_counted(store: Path, browser: Web) -> None:
    own = {HEADER: "1"}
    [run] = browser.get("/experiments")["experiments"]
    path = f"/experiments/{run['id']}"
    assert browser.get("/me")["can"] == {"edit": True, "remove": True, "archive": True}
    [project] = browser.get("/storage")["projects"]
    assert (project["name"], project["experiments"], project["bytes"] > 1000) == ("vision", 1, True)
    change = {"title": "other", "tags": ["kept"], "notes": "**why**"}
    changed = browser.ask("PATCH", path, headers=own, json=change).json()
    assert (changed["title"], changed["tags"], changed["status"]) == ("other", ["kept"], run["status"])
    assert [one["title"] for one in browser.get("/experiments", where="tag:kept")["experiments"]] == ["other"]
    assert browser.ask("DELETE", path, headers=own).json() == {"id": run["id"], "removed": True}
    assert browser.get("/experiments")["total"] == 0
    assert not (store / "vision" / "first").exists()


def test_a_run_that_is_being_written_is_not_removed(ui: UiServer, browser: Web, store: Path) -> None:
    with ml_dash.Experiment(name="running", project="vision", local_path=str(store)) as experiment:
        experiment.log("here")
        path = f"/experiments/{experiment.id}"
        browser.refused("DELETE", path, 409, "still_open", headers={HEADER: "1"})
        assert browser.get(path)["status"] == "running"


def test_what_only_a_teams_server_does_is_not_there(guest: Web) -> None:
    for method, path in (
        ("POST", "/projects/x/experiments"), ("GET", "/sync/v1/experiments"), ("GET", "/metrics"),
    ):  # fmt: skip
        assert guest.session.request(method, guest.url + path, headers={HEADER: "1"}, timeout=20).status_code in (
            404, 405,
        )  # fmt: skip


def test_it_says_what_it_shows_and_the_link_is_the_last_word_of_a_line(shared: UiServer) -> None:
    [folder] = shared.paths
    where = "in a browser on this machine, logged in (works once)"
    assert shared.said == [f"ml-dash ui: {folder}", f"{where}: {shared.link}"]


def test_over_ssh_it_says_how_to_forward_the_port(store: Path, started: Started) -> None:
    ui = started(UiServer(store).start(environment={"SSH_CONNECTION": "10.0.0.9 50000 10.0.0.1 22"}))
    port = urlsplit(ui.url).port
    ui.end()
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in ui.said[1]
    assert ui.said[1].endswith("@10.0.0.1")
    assert ui.said[2].split()[-1] == ui.link


def test_the_way_by_ssh_has_the_port_of_ssh_and_no_display() -> None:
    assert forwarding({"SSH_CONNECTION": "::1 5 fe80::2 2222"}, 3001) is not None
    assert "ssh -N -p 2222 -L 3001:127.0.0.1:3001 " in str(forwarding({"SSH_CONNECTION": "::1 5 fe80::2 2222"}, 3001))
    assert forwarding({}, 3001) is None
    assert not has_display({"SSH_CONNECTION": "a 1 b 22", "DISPLAY": ":0"})
    assert has_display({"DISPLAY": ":0"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well_also_with_readers(store: Path, number: int, started: Started) -> None:
    ui = started(UiServer(store).start())
    browser = requests.Session()
    browser.get(ui.link, timeout=20)
    with browser.get(f"{ui.url}/changes", stream=True, timeout=20) as stream:
        assert stream.status_code == 200
        next(stream.iter_lines())
        ui.end(number)
    browser.close()


def test_a_port_that_is_taken_is_an_error_and_the_default_one_is_not(store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "ml_dash", "ui", str(store), "--no-open", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, f"cannot listen on 127.0.0.1:{port}" in done.stderr) == (1, True)


def test_folders_that_appear_later_are_found(tmp_path: Path, started: Started) -> None:
    ui = started(UiServer(tmp_path / "later").start())
    browser = requests.Session()
    browser.get(ui.link, timeout=20)
    assert browser.get(f"{ui.url}/experiments", timeout=20).json()["total"] == 0
    recording.train(tmp_path / "later", "first")
    with browser.get(f"{ui.url}/changes", stream=True, timeout=20) as stream:
        told = next(line for line in stream.iter_lines(decode_unicode=True) if line.startswith("data:"))
    [(identity, events)] = json.loads(told[5:])["experiments"].items()
    assert events > 0
    assert browser.get(f"{ui.url}/experiments/{identity}", timeout=20).json()["name"] == "first"
    browser.close()
    ui.end()


def test_from_python_it_is_one_process_that_gives_links(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ml_dash.ui(store) as dashboard:
        link = capsys.readouterr().out.split()[-1]
        assert link.startswith(f"{dashboard.url}/login?key=")
        assert ml_dash.ui(store) is dashboard
        shown = dashboard._repr_html_()
        assert shown.count("/login?key=") == 2
        assert '<iframe id="ml-dash-' in shown
        browser = requests.Session()
        for one in (link, dashboard.link(), dashboard.link()):
            assert browser.get(one, timeout=20).status_code == 200
        policy = browser.get(dashboard.url, timeout=20).headers["Content-Security-Policy"]
        assert "frame-ancestors 'self' http://localhost:*" in policy
        browser.close()
    assert not dashboard.is_open
    with pytest.raises(ml_dash.NotOpen, match="has ended"):
        dashboard.link()
    with ml_dash.ui(store) as another:
        assert another is not dashboard


def test_it_ends_with_the_process_that_asked_for_it(store: Path) -> None:
    program = f"import ml_dash, os, signal; print(ml_dash.ui({str(store)!r}).url, flush=True); os.kill(os.getpid(), 9)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ.copy(), stdout=subprocess.PIPE, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    # Its standard output is ours as well, so all of it has ended once that has.
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(requests.ConnectionError):
        requests.get(done.stdout.split()[-1], timeout=20)
