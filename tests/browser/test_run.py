"""One run on its page: what it is, how it ended, its changes, its parameters; also where its texts are markup."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ml_dash import Experiment
from ml_dash.disk.settings import resolve
from ml_dash.sync import registrations
from tests.browser.accessibility import serious
from tests.browser.hosts import Shown, UiServer, by_server, by_ui, send
from tests.browser.recording import HOSTILE_NAME, HOSTILE_TEXTS, hostile, killed, train
from tests.browser.shared import shown_by, until
from tests.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

TABS = ["Charts", "Logs", "Files", "Parameters", "Timeline"]
NOTES = "# Plan\n\nFirst **bs=128**, see [the sheet](https://example.org), [this](javascript:alert(1)).\n\n- [x] run\n"
SEED = 2**63 - 25


@pytest.fixture(scope="module")
def ids() -> dict[str, str]:
    """The runs of the store by what they are; filled as they are recorded."""
    return {}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, ids: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("run") / "store"
    parameters = {"lr": 0.1, "seed": SEED, "model": {"layers": 2, "width": 64}, "text": "NaN"}
    about: dict[str, Any] = {"description": "the first try", "tags": ["baseline"], "folder": "/nov"}
    ids["good"] = train(folder, "baseline", parameters=parameters, **about)
    with Experiment(name="baseline", project="vision", local_path=str(folder)) as experiment:
        experiment.update(notes=NOTES)
    ids["failed"] = train(folder, "out-of-memory", fails="CUDA out of memory")
    killed(folder)
    ids["hostile"] = hostile(folder, tmp_path_factory.mktemp("files"))
    for name in ("to-edit", "to-delete"):
        ids[name] = train(folder, name)
    return folder


@pytest.fixture(scope="module", params=["server", "ui"])
def host(request: pytest.FixtureRequest, store: Path, team_server: Server) -> Iterator[Shown]:
    with shown_by(request.param, store, team_server, f"test-run-{request.param}") as shown:
        yield shown


@pytest.fixture
def at(browser_page: Page, host: Shown, ids: dict[str, str]) -> Callable[..., Page]:
    """Opens a run at a tab."""

    def go(run: str, tab: str = "parameters", more: str = "") -> Page:
        host.open(browser_page, f"/runs/{ids[run]}?tab={tab}{more}")
        browser_page.get_by_role("heading", level=1).wait_for()
        return browser_page

    return go


def status(page: Page) -> str:
    return page.get_by_role("status", name="Status of the run").inner_text()


def test_the_header_says_what_the_run_is_where_it_ran_and_how_safe_it_is(at: Callable[..., Page]) -> None:
    page = at("good")
    assert page.get_by_role("heading", level=1).inner_text() == "baseline"
    assert status(page) == "completed"
    header = page.locator(".run-header")
    # A command is there where the program is a script; pytest's own workers are none.
    for text in ("vision", "/nov", "baseline", "the first try", "Host", "Duration", "events"):
        assert text in header.inner_text()
    assert page.title() == "baseline · ml-dash"


def test_notes_are_elements_and_their_links_give_nothing_away(at: Callable[..., Page]) -> None:
    notes = at("good").get_by_role("region", name="Notes")
    notes.get_by_role("heading", name="Plan").wait_for()
    assert notes.locator("strong").inner_text() == "bs=128"
    links = notes.get_by_role("link")
    assert links.count() == 1
    assert links.get_attribute("href") == "https://example.org"
    assert "noopener" in (links.get_attribute("rel") or "")
    assert "[this](javascript:alert(1))" in notes.inner_text()


def test_a_failure_is_told_in_a_line_and_its_traceback_on_demand(at: Callable[..., Page]) -> None:
    page = at("failed")
    assert status(page).startswith("failed")
    traceback = page.get_by_label("Traceback")
    traceback.wait_for(state="hidden")
    page.get_by_text("RuntimeError: CUDA out of memory").first.click()
    assert "recording.py" in traceback.inner_text()


def test_a_killed_run_is_interrupted(browser_page: Page, host: Shown) -> None:
    host.open(browser_page, "/runs?where=name%3Dkilled")
    browser_page.get_by_role("link", name="killed", exact=True).click()
    browser_page.get_by_role("heading", level=1, name="killed").wait_for()
    assert status(browser_page).startswith("interrupted")


def test_tabs_have_their_names_keys_and_addresses(at: Callable[..., Page]) -> None:
    page = at("good", "logs")
    assert page.get_by_role("tab").evaluate_all("tabs => tabs.map((tab) => tab.getAttribute('aria-label'))") == TABS
    page.keyboard.press("4")
    page.wait_for_url(re.compile("tab=parameters"))
    assert page.get_by_role("tab", name="Parameters").get_attribute("aria-selected") == "true"
    page.get_by_role("tab", name="Parameters").press("ArrowLeft")
    page.wait_for_url(re.compile("tab=files"))
    page.go_back()
    page.wait_for_url(re.compile("tab=parameters"))
    page.get_by_role("table", name="Parameters").wait_for()
    page.go_back()
    page.get_by_role("list", name="Log entries").wait_for()


def test_parameters_are_exact_and_found_by_name_and_value(at: Callable[..., Page]) -> None:
    page = at("good")
    table = page.get_by_role("table", name="Parameters")
    table.get_by_text(str(SEED), exact=True).wait_for()
    page.get_by_role("searchbox").fill("width")
    page.get_by_text("1 parameter", exact=True).wait_for()
    assert table.get_by_role("row").count() == 2
    page.get_by_role("searchbox").fill("")
    table.get_by_role("button", name="model").click()
    table.get_by_text("layers", exact=True).wait_for(state="hidden")


def test_parameters_are_copied_as_json(at: Callable[..., Page], host: Shown) -> None:
    page = at("good")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=host.url)
    page.get_by_role("button", name="Copy as JSON").click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert copied == {"lr": 0.1, "seed": SEED, "model.layers": 2, "model.width": 64, "text": "NaN"}


def test_a_run_is_renamed_described_and_archived_here(at: Callable[..., Page]) -> None:
    page = at("to-edit")
    page.get_by_role("button", name="Change this run").click()
    page.get_by_role("menuitem", name="Edit…").click()
    page.get_by_label("Name", exact=True).fill("a better name")
    page.get_by_label("Tags, with commas between").fill("x, y z")
    page.get_by_label("Notes, in Markdown").fill("it *worked*")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("heading", level=1, name="a better name").wait_for()
    header = page.locator(".run-header")
    assert "recorded as to-edit" in header.inner_text()
    header.get_by_role("link", name="y z").wait_for()
    assert header.locator("em").inner_text() == "worked"
    page.get_by_role("button", name="Change this run").click()
    page.get_by_role("menuitem", name="Archive").click()
    page.get_by_role("button", name="Archive", exact=True).click()
    header.get_by_text("archived", exact=True).wait_for()


@pytest.mark.console("404")
def test_a_run_is_deleted_once_its_name_was_typed(at: Callable[..., Page]) -> None:
    page = at("to-delete")
    page.get_by_role("button", name="Change this run").click()
    page.get_by_role("menuitem", name="Delete…").click()
    button = page.get_by_role("button", name="Delete", exact=True)
    assert button.is_disabled()
    page.get_by_label("to confirm").fill("to-delete")
    button.click()
    page.wait_for_url(re.compile("/runs$"))
    page.get_by_role("link", name="baseline", exact=True).wait_for()
    assert page.get_by_role("link", name="to-delete", exact=True).count() == 0


@pytest.mark.console("404")
def test_a_run_that_is_not_there_is_said_to_be_so(browser_page: Page, host: Shown) -> None:
    host.open(browser_page, "/runs/12345?tab=logs")
    browser_page.get_by_role("heading", name="Not found").wait_for()


@pytest.mark.parametrize("tab", [tab.lower() for tab in TABS])
def test_hostile_texts_are_texts_on_every_tab(at: Callable[..., Page], tab: str) -> None:
    page = at("hostile", tab)
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    assert page.get_by_role("heading", level=1).inner_text() == HOSTILE_NAME
    page.get_by_role("tabpanel").locator(":scope > *").first.wait_for()
    if tab == "logs":
        lines = page.get_by_role("list", name="Log entries")
        lines.get_by_text(HOSTILE_TEXTS[1], exact=True).wait_for()
        lines.get_by_text("⟨ESC⟩[31mred⟨ESC⟩[0m", exact=False).wait_for()
        lines.get_by_text("⟨U+202E⟩gnp.exe", exact=True).wait_for()
    if tab == "parameters":
        page.get_by_role("cell", name=HOSTILE_NAME).wait_for()
    assert page.locator("main img[src='x'], main script").count() == 0
    assert page.title() == f"{HOSTILE_NAME} · ml-dash"
    assert page.evaluate("window.stolen") is None
    assert asked == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_is_accessible(at: Callable[..., Page], scheme: Any) -> None:
    page = at("failed", "logs")
    page.emulate_media(color_scheme=scheme)
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        page.get_by_role("tabpanel").locator(":scope > *").first.wait_for()
        assert serious(page) == [], tab


def test_a_narrow_page_scrolls_down_and_never_sideways(at: Callable[..., Page]) -> None:
    page = at("hostile", "logs")
    page.set_viewport_size({"width": 400, "height": 800})
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        page.get_by_role("tabpanel").locator(":scope > *").first.wait_for()
        until(lambda: page.evaluate("document.documentElement.scrollWidth") <= 400)


# Effects run three seconds after what they belong to is drawn: by the next frame, or by a timeout of 35 ms.
_LATE_EFFECTS = """{
    const later = window.setTimeout;
    window.requestAnimationFrame = (call) => later(call, 3000);
    window.setTimeout = (call, ms, ...rest) => later(call, ms === 35 ? 3000 : ms, ...rest);
}"""


def test_a_tab_is_shown_that_was_loaded_after_it_was_drawn_and_before_its_effects(
    browser_page: Page, host: Shown, ids: dict[str, str]
) -> None:
    held: list[Any] = []
    host.open(browser_page)
    browser_page.route("**/run-parameters.js", lambda route: held.append(route))
    browser_page.add_init_script(_LATE_EFFECTS)
    # Of a moment, so that nothing new draws it again.
    browser_page.goto(f"{host.url}/runs/{ids['good']}?tab=parameters&asOf=4")
    browser_page.get_by_role("tabpanel").locator("[aria-busy]").wait_for(state="attached")
    held[0].continue_()
    browser_page.get_by_role("tabpanel").get_by_text("width").wait_for()


def test_what_is_added_shows_and_the_status_follows(
    browser_page: Page, host: Shown, store: Path, team_server: Server
) -> None:
    name = f"live-{host.name}"

    def sent() -> None:
        if host.name == "server":
            send(team_server, "test-run-server", store)

    with Experiment(name=name, project="vision", local_path=str(store)) as experiment:
        experiment.log("first")
        sent()
        host.open(browser_page, f"/runs/{experiment.id}?tab=logs")
        lines = browser_page.get_by_role("list", name="Log entries")
        lines.get_by_text("first", exact=True).wait_for()
        assert status(browser_page).startswith("running")
        experiment.log("second")
        experiment.parameters().set(lr=1)
        sent()
        lines.get_by_text("second", exact=True).wait_for()
        browser_page.get_by_role("tab", name="Parameters").get_by_text("1").wait_for()
    sent()
    browser_page.get_by_role("status", name="Status of the run").get_by_text("completed").wait_for()


def test_the_header_says_what_a_server_has_acknowledged(
    browser_page: Page, ui_server: Callable[..., UiServer], team_server: Server, tmp_path: Path
) -> None:
    with Experiment(name="kept", project="vision", local_path=str(tmp_path / "store")) as experiment:
        experiment.log("first")
        (tmp_path / "model.bin").write_bytes(b"x" * 1000)
        experiment.file(str(tmp_path / "model.bin")).save()
    registrations.register(tmp_path / "store/vision/kept/.journal", resolve(remote=team_server.url, user_name="keeps"))
    by_ui(ui_server(tmp_path / "store")).open(browser_page, f"/runs/{experiment.id}")
    safe = browser_page.locator("dl.facts div").filter(has=browser_page.get_by_text("Safe", exact=True))
    address = team_server.url.removeprefix("http://")
    safe.get_by_text(f"0 acknowledged by {address}, 1 file to send").wait_for()
    safe.get_by_text("no ml-dash-syncd runs; start it with: ml-dash-syncd run").wait_for()
    assert serious(browser_page) == []
    # Nothing is recorded any more: an acknowledgement alone is shown, too.
    send(team_server, "keeps", tmp_path / "store")
    safe.get_by_text(f"all acknowledged by {address}").wait_for()
    assert "syncd" not in safe.inner_text()
    by_server(team_server, "keeps").open(browser_page, f"/runs/{experiment.id}")
    safe.get_by_text(re.compile("events stored on the server")).wait_for()
    assert "acknowledged" not in safe.inner_text()


def test_what_is_stored_is_told_by_project(browser_page: Page, host: Shown) -> None:
    host.open(browser_page, "/storage")
    browser_page.get_by_role("heading", name="Storage").wait_for()
    row = browser_page.get_by_role("row", name=re.compile("^vision"))
    assert re.search(r"\d (B|KiB|MiB)", row.inner_text())
    browser_page.get_by_role("row", name=re.compile("^<b>hostile")).wait_for()
    assert serious(browser_page) == []
