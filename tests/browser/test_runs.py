"""The list of runs: what it shows, how it is asked, and what is done from it; read back from the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ml_dash import Experiment
from tests.browser import recording
from tests.browser.hosts import Shown, by_server, send
from tests.browser.looking import until
from tests.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

RUNS = 120
"""More than one page of the list."""


@pytest.fixture(scope="module")
def sweep(team_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """A sweep, a run that was killed and one that failed: nothing of it changes."""
    store = tmp_path_factory.mktemp("sweep")
    recording.many(store, RUNS, steps=5)
    recording.killed(store)
    recording.train(store, "broken", fails="shapes do not match")
    return by_server(team_server, "runs-sweep", store)


def grid(page: Page) -> Locator:
    return page.get_by_role("grid", name="Runs")


def total(page: Page) -> int:
    """As many as match; waits for the list."""
    grid(page).locator("[role=row] a").first.wait_for()
    return int(grid(page).get_attribute("aria-rowcount") or -1)


def shows(page: Page, count: int) -> None:
    """Waits until that many match."""
    page.locator(f"[role=grid][aria-rowcount='{count}']").wait_for()


def names(page: Page) -> list[str]:
    """The names of the rows that are there, from above."""
    return grid(page).locator("[role=gridcell] a").all_inner_texts()


def cells(page: Page, title: str) -> list[str]:
    """What a column shows, from above."""
    titles = [text.rstrip(" ↓↑") for text in grid(page).get_by_role("columnheader").all_inner_texts()]
    return grid(page).locator(f"[aria-rowindex] > :nth-child({titles.index(title) + 1})").all_inner_texts()


def row(page: Page, name: str) -> Locator:
    return grid(page).get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))


def state(page: Page) -> dict[str, str]:
    """The parameters of the page's URL."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def ask(page: Page, query: str) -> None:
    page.get_by_role("searchbox").fill(query)
    page.get_by_role("searchbox").press("Enter")


# -- the list ---------------------------------------------------------------------------------------------------------


def test_every_run_is_in_the_list_and_only_those_that_are_seen_are_drawn(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page)
    assert total(browser_page) == RUNS + 2
    assert browser_page.get_by_role("status", name="Runs that match").inner_text() == f"{RUNS + 2} runs"
    assert names(browser_page)[:2] == ["broken", "killed"]
    assert len(names(browser_page)) < 60
    grid(browser_page).evaluate("grid => { grid.scrollTop = grid.scrollHeight; }")
    row(browser_page, "run-0000").wait_for()
    assert row(browser_page, "run-0000").get_attribute("aria-rowindex") == str(RUNS + 2)


def test_a_status_has_its_reason(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page)
    assert "shapes do not match" in row(browser_page, "broken").inner_text()
    assert "failed" in row(browser_page, "broken").inner_text()
    assert "interrupted" in row(browser_page, "killed").inner_text()


def test_a_query_filters_as_it_is_typed_and_stands_in_the_url(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page)
    total(browser_page)
    browser_page.get_by_role("searchbox").fill("params.seed < 10 and tag:even")
    shows(browser_page, 5)
    assert names(browser_page) == ["run-0008", "run-0006", "run-0004", "run-0002", "run-0000"]
    assert state(browser_page)["where"] == "params.seed < 10 and tag:even"
    browser_page.reload()
    shows(browser_page, 5)
    assert browser_page.get_by_role("searchbox").input_value() == "params.seed < 10 and tag:even"


@pytest.mark.console("400")
def test_a_wrong_query_says_where_and_leaves_the_list(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page)
    total(browser_page)
    ask(browser_page, "status = failedd and params.lr > 1")
    said = browser_page.get_by_role("alert")
    said.wait_for()
    lines = said.inner_text().splitlines()
    query = next(line for line in lines if "failedd" in line and "status =" in line)
    caret = lines[lines.index(query) + 1]
    assert caret.index("^") == query.index("failedd")
    assert "failed" in lines[-1]
    assert total(browser_page) == RUNS + 2
    ask(browser_page, "status = failed")
    said.wait_for(state="detached")
    assert names(browser_page) == ["broken"]


def test_the_filter_completes_fields_and_values(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page)
    total(browser_page)
    box = browser_page.get_by_role("searchbox")
    box.press_sequentially("params.mo")
    browser_page.get_by_role("option", name="params.model").wait_for()
    box.press("ArrowDown")
    box.press("Enter")
    assert box.input_value() == "params.model "
    box.press_sequentially("= ")
    browser_page.get_by_role("option", name="small").wait_for()
    box.press("ArrowDown")
    box.press("Tab")
    assert box.input_value() == "params.model = small "
    shows(browser_page, RUNS + 1)


def test_a_completion_that_was_gone_to_stays_when_later_ones_come(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page)
    total(browser_page)
    held: list[Route] = []
    browser_page.route("**/fields?prefix=params.mo&*", lambda route: held.append(route))
    box = browser_page.get_by_role("searchbox")
    box.press_sequentially("params.m")
    option = browser_page.get_by_role("option", name="params.model")
    option.wait_for()
    box.press("o")
    box.press("ArrowDown")
    browser_page.locator("[role=option][aria-selected=true]").wait_for()
    until(lambda: browser_page.evaluate("0") or held, bool, "the question for the longer word")
    with browser_page.expect_response("**/fields?prefix=params.mo&*"):
        held[0].continue_()
    # The next frame has what the answer changes.
    browser_page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    box.press("Enter")
    assert box.input_value() == "params.model "


def test_a_column_sorts_both_ways(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page, "/runs?columns=params.seed,metrics.loss&where=project = sweep")
    total(browser_page)
    title = grid(browser_page).get_by_role("columnheader").filter(has_text="seed")
    title.get_by_role("button").click()
    row(browser_page, f"run-{RUNS - 1:04}").wait_for()
    assert title.get_attribute("aria-sort") == "descending"
    assert cells(browser_page, "seed")[:3] == [str(RUNS - 1), str(RUNS - 2), str(RUNS - 3)]
    title.get_by_role("button").click()
    browser_page.wait_for_url(re.compile("sort=params.seed$"))
    row(browser_page, "run-0000").wait_for()
    assert cells(browser_page, "seed")[:3] == ["0", "1", "2"]


def test_columns_are_chosen_moved_and_kept_in_the_url(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page, "/runs?columns=status,params.lr&where=project = sweep")
    total(browser_page)
    browser_page.get_by_role("button", name="Columns").click()
    browser_page.get_by_role("textbox", name="Find a field").fill("accuracy")
    browser_page.get_by_role("button", name="Add metrics.accuracy.max").click()
    browser_page.get_by_role("button", name="Move metrics.accuracy.max up").click()
    browser_page.get_by_role("button", name="Pin params.lr").click()
    browser_page.keyboard.press("Escape")
    assert state(browser_page)["columns"] == "status,metrics.accuracy.max,params.lr"
    assert state(browser_page)["pin"] == "params.lr"
    titles = [text.rstrip(" ↓↑") for text in grid(browser_page).get_by_role("columnheader").all_inner_texts()]
    assert titles == ["Name", "lr", "Status", "accuracy.max"]
    grid(browser_page).locator("[aria-rowindex='1'] > :last-child").filter(has_text=re.compile(r"\d")).wait_for()
    header = grid(browser_page).get_by_role("columnheader")
    header.filter(has_text="accuracy.max").drag_to(header.filter(has_text="Status"))
    browser_page.wait_for_url(re.compile("columns=params.lr,metrics.accuracy.max,status"))


@pytest.mark.console("400")
def test_what_cannot_be_grouped_is_told(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page, "/runs?group=nonsense")
    told = browser_page.locator(".groups").get_by_role("alert")
    told.get_by_text("there is no field 'nonsense'").wait_for()
    assert "did you mean notes?" in told.inner_text()
    assert browser_page.locator("main [aria-busy=true]").count() == 0
    for name in ("__proto__", "constructor"):
        browser_page.goto(f"{sweep.url}/runs?group={name}")
        told.get_by_text(f"there is no field '{name}'").wait_for()
    browser_page.goto(f"{sweep.url}/runs?group=tags")
    browser_page.get_by_role("grid", name="Runs by tags").wait_for()
    # The groups stay while the query is being typed.
    browser_page.get_by_role("searchbox").fill("status =")
    told.get_by_text("status =").wait_for()
    assert browser_page.get_by_role("grid", name="Runs by tags").is_visible()
    browser_page.get_by_role("searchbox").fill("status = completed")
    told.wait_for(state="detached")
    browser_page.get_by_role("button", name="Show single runs").click()
    browser_page.get_by_role("grid", name="Runs").wait_for()


def test_runs_are_grouped_with_mean_and_spread(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page, "/runs?columns=params.seed&where=project = sweep")
    total(browser_page)
    browser_page.get_by_role("combobox", name="Group by").select_option("tags")
    groups = browser_page.get_by_role("grid", name="Runs by tags")
    even = groups.get_by_role("row").filter(has_text="even")
    even.wait_for()
    shown = even.get_by_role("gridcell").all_inner_texts()
    assert shown[:2] == ["even", str(RUNS // 2)]
    mean, spread = (float(text) for text in shown[2].replace(" ", "").split("±"))
    assert mean == RUNS / 2 - 1
    assert spread == pytest.approx(RUNS / 12**0.5, rel=0.02)
    even.get_by_role("link").click()
    shows(browser_page, RUNS // 2)
    browser_page.go_back()
    even.wait_for()


def test_a_project_is_a_part_of_the_filter(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page)
    total(browser_page)
    projects = browser_page.get_by_role("navigation", name="Projects")
    projects.get_by_role("button", name=re.compile(r"^vision\s*2$")).click()
    shows(browser_page, 2)
    assert browser_page.get_by_role("searchbox").input_value() == "project = vision"
    browser_page.go_back()
    shows(browser_page, RUNS + 2)
    browser_page.go_forward()
    shows(browser_page, 2)
    browser_page.goto(f"{sweep.url}/runs?project=sweep")
    shows(browser_page, RUNS)


def test_what_matches_nothing_says_so(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page, '/runs?where="no such run"')
    browser_page.get_by_role("heading", name="No run matches").wait_for()
    browser_page.get_by_role("link", name="Show all runs").click()
    shows(browser_page, RUNS + 2)


def test_all_that_matches_is_downloaded_as_csv(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page, "/runs?columns=status,params.seed&where=project = sweep&sort=params.seed")
    total(browser_page)
    with browser_page.expect_download() as download:
        browser_page.get_by_role("button", name="CSV").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[:2] == ["name,status,params.seed", "run-0000,completed,0"]
    assert lines[-1] == f"run-{RUNS - 1:04},completed,{RUNS - 1}"
    assert len(lines) == RUNS + 1


def test_a_view_is_kept_under_a_name(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page, "/runs?where=tag:even&columns=status")
    total(browser_page)
    browser_page.get_by_role("button", name="Views").click()
    browser_page.get_by_role("textbox", name="Name of the view").fill("even ones")
    browser_page.get_by_role("button", name="Save").click()
    browser_page.get_by_role("link", name="even ones").wait_for()
    sweep.open(browser_page)
    total(browser_page)
    browser_page.get_by_role("button", name="Views").click()
    browser_page.get_by_role("link", name="even ones").click()
    shows(browser_page, RUNS // 2)
    assert state(browser_page) == {"where": "tag:even", "columns": "status"}


# -- doing things -----------------------------------------------------------------------------------------------------


def test_selected_runs_are_compared(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page, "/runs?where=params.seed < 3 and project = sweep")
    shows(browser_page, 3)
    browser_page.get_by_role("checkbox", name="Select run-0000").check()
    browser_page.get_by_role("checkbox", name="Select run-0002").check()
    assert row(browser_page, "run-0002").get_attribute("aria-selected") == "true"
    ids = state(browser_page)["selected"]
    assert len(ids.split(",")) == 2
    browser_page.get_by_role("button", name="Compare").click()
    browser_page.wait_for_url(re.compile("/compare"))
    assert state(browser_page)["runs"] == ids
    browser_page.go_back()
    browser_page.get_by_text("2 selected").wait_for()


def test_a_run_is_tagged_renamed_archived_and_deleted(browser_page: Page, shown: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name in ("first", "second"):
        recording.train(store, name, steps=3)
    where = shown(store)
    where.open(browser_page, "/runs?columns=status,tags")
    shows(browser_page, 2)
    browser_page.get_by_role("checkbox", name="Select first").check()
    browser_page.get_by_role("button", name="Tag").click()
    browser_page.get_by_role("textbox").fill("baseline, new")
    browser_page.get_by_role("button", name="Save").click()
    row(browser_page, "first").get_by_text("baseline").wait_for()
    browser_page.get_by_role("button", name="Rename").click()
    browser_page.get_by_role("textbox", name="New name").fill("the first")
    browser_page.get_by_role("dialog").get_by_role("button", name="Rename").click()
    row(browser_page, "the first").wait_for()
    browser_page.get_by_role("button", name="Archive").click()
    browser_page.get_by_role("dialog").get_by_role("button", name="Archive").click()
    shows(browser_page, 1)
    browser_page.reload()
    shows(browser_page, 1)
    browser_page.get_by_role("checkbox", name="Select second").check()
    browser_page.get_by_role("button", name="Delete").click()
    delete = browser_page.get_by_role("dialog").get_by_role("button", name="Delete")
    assert delete.is_disabled()
    browser_page.get_by_role("textbox", name=re.compile("confirm")).fill("first")
    assert delete.is_disabled()
    browser_page.get_by_role("textbox", name=re.compile("confirm")).fill("second")
    delete.click()
    browser_page.get_by_role("heading", name="No runs yet").wait_for()
    where.open(browser_page, "/runs?where=archived = true")
    row(browser_page, "the first").wait_for()
    assert "new" in row(browser_page, "the first").inner_text()


def test_everything_works_from_the_keyboard(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page)
    total(browser_page)
    keys = browser_page.keyboard
    keys.press("/")
    keys.type("project = sweep and params.seed < 4")
    keys.press("Enter")
    shows(browser_page, 4)
    keys.press("Escape")
    keys.press("j")
    keys.press("j")
    keys.press("x")
    keys.press("k")
    keys.press("x")
    # The second of two, once it is there.
    grid(browser_page).locator("[aria-selected=true]").nth(1).wait_for()
    keys.press("?")
    browser_page.get_by_role("dialog", name="Keys").wait_for()
    assert "compare what is selected" in browser_page.get_by_role("dialog").inner_text()
    keys.press("Escape")
    browser_page.get_by_role("dialog").wait_for(state="detached")
    keys.press("c")
    browser_page.wait_for_url(re.compile(r"/compare\?runs="))
    browser_page.go_back()
    shows(browser_page, 4)
    keys.press("Escape")
    keys.press("j")
    keys.press("Enter")
    browser_page.wait_for_url(re.compile("/runs/."))


def test_keys_that_come_faster_than_the_page_paints_all_count(browser_page: Page, sweep: Shown) -> None:
    sweep.open(browser_page, "/runs?where=project = sweep and params.seed < 4")
    shows(browser_page, 4)
    browser_page.evaluate(
        """async () => {
            for (const key of "jjxkx") {
                document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
                // What the key has changed is drawn anew, and nothing is painted meanwhile.
                for (let times = 0; times < 100; times += 1) await null;
            }
        }"""
    )
    grid(browser_page).locator("[aria-selected=true]").nth(1).wait_for()


def test_a_run_that_begins_shows_by_itself_and_so_does_its_end(
    browser_page: Page, team_server: Server, user: str, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    recording.train(store, "before", steps=3)
    by_server(team_server, user, store).open(browser_page)
    shows(browser_page, 1)
    browser_page.get_by_role("status", name="Connection").get_by_text("live").wait_for()
    with Experiment(name="now", project="vision", local_path=str(store)) as experiment:
        experiment.metric("loss").append(value=1.0, step=0)
        send(team_server, user, store)
        row(browser_page, "now").get_by_text("running").wait_for()
    send(team_server, user, store)
    row(browser_page, "now").get_by_text("completed").wait_for()


# -- for everybody, and whatever it is --------------------------------------------------------------------------------


def test_hostile_texts_are_texts(browser_page: Page, shown: Callable[[Path], Shown], tmp_path: Path) -> None:
    store = tmp_path / "store"
    recording.hostile(store, tmp_path)
    shown(store).open(browser_page, '/runs?columns=project,description,tags,params."<i>key",trend."<s>loss"')
    shows(browser_page, 1)
    assert names(browser_page) == [recording.HOSTILE_NAME]
    text = grid(browser_page).locator("[aria-rowindex='1']").inner_text()
    assert "<b>hostile" in text
    assert recording.HOSTILE_TEXTS[1] in text
    assert browser_page.locator(".grid img, .grid script, .grid s, .grid b").count() == 0
    browser_page.get_by_role("checkbox").check()
    browser_page.get_by_role("button", name="Delete").click()
    assert recording.HOSTILE_NAME in browser_page.get_by_role("dialog").inner_text()
    browser_page.keyboard.press("Escape")
    grid(browser_page).locator(".sparkline path[d^=M]").wait_for(state="attached")


def test_a_phone_shows_names_and_states_and_the_page_does_not_scroll_sideways(browser_page: Page, sweep: Shown) -> None:
    browser_page.set_viewport_size({"width": 400, "height": 760})
    sweep.open(browser_page)
    total(browser_page)
    assert "interrupted" in row(browser_page, "killed").get_by_role("gridcell").first.inner_text()
    assert browser_page.evaluate("document.documentElement.scrollWidth") == 400
    bar = browser_page.get_by_role("banner").bounding_box()
    assert bar is not None
    assert bar["height"] < 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_assistive_technology_finds_its_way(browser_page: Page, sweep: Shown, scheme: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    browser_page.emulate_media(color_scheme=scheme)
    sweep.open(browser_page)
    total(browser_page)
    assert browser_page.get_by_role("searchbox").count() == 1

    def check() -> None:
        found = Axe().run(browser_page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert [(one["id"], [node["html"] for node in one["nodes"]][:3]) for one in serious] == []

    check()
    browser_page.get_by_role("checkbox", name="Select broken").check()
    check()
    browser_page.get_by_role("button", name="Columns").click()
    browser_page.get_by_role("button", name="Add metrics.loss.min").wait_for()
    check()
    browser_page.keyboard.press("Escape")
    browser_page.get_by_role("searchbox").fill("params.")
    browser_page.get_by_role("option").first.wait_for()
    check()


def test_the_first_page_asks_for_little(browser_page: Page, sweep: Shown) -> None:
    asked: list[str] = []
    browser_page.context.on("request", lambda request: asked.append(request.url))
    sweep.open(browser_page)
    total(browser_page)
    grid(browser_page).get_by_role("columnheader").nth(6).wait_for()
    # Rows that came before it was known which columns there are, are asked for once more.
    assert len({url.partition("?")[0] for url in asked}) <= 25
