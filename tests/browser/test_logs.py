"""The logs of a run: any of many lines, what a filter finds, the newest as they come, and text that stays text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from ml_dash import Experiment
from tests.browser.hosts import Shown, send
from tests.browser.shared import shown_by
from tests.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

MANY: Final = 30_000
LEVELS: Final = ("debug", "info", "warn", "error")
SPECIAL: Final = (
    ("\x1b[31mred\x1b[0m \x1b]0;title\x07", "⟨ESC⟩[31mred⟨ESC⟩[0m ⟨ESC⟩]0;title⟨U+0007⟩"),
    ("<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)>"),
    ("\u202egnp.exe", "⟨U+202E⟩gnp.exe"),
)
LONG: Final = "long " + "x" * 30_000
TRACE: Final = "Traceback\n  File 'train.py', line 1\nValueError: <b>shape</b>"
TOTAL: Final = MANY + len(SPECIAL) + 2


def text_of(number: int) -> str:
    return f"step {number}: loss {1 / (number + 1):.5f}"


@pytest.fixture(scope="module")
def ids() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, ids: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("logs") / "store"
    with Experiment(name="many", project="logs", local_path=str(folder)) as experiment:
        for number in range(MANY):
            experiment.log(text_of(number), level=LEVELS[number % 4], metadata={"step": number, "gpu": {"mem": 3}})
        for message, _ in SPECIAL:
            experiment.log(message, level="error")
        experiment.log(TRACE, level="fatal")
        experiment.log(LONG, level="info")
        ids["many"] = str(experiment.id)
    with Experiment(name="none", project="logs", local_path=str(folder)) as experiment:
        experiment.parameters().set(lr=1)
        ids["none"] = str(experiment.id)
    return folder


@pytest.fixture(scope="module", params=["server", "ui"])
def host(request: pytest.FixtureRequest, store: Path, team_server: Server) -> Iterator[Shown]:
    with shown_by(request.param, store, team_server, f"test-logs-{request.param}") as shown:
        yield shown


@pytest.fixture
def logs(browser_page: Page, host: Shown, ids: dict[str, str]) -> Callable[..., Page]:
    """Opens the logs of a run."""

    def go(more: str = "", run: str = "many") -> Page:
        host.open(browser_page, f"/runs/{ids[run]}?tab=logs{more}")
        browser_page.get_by_role("heading", level=1).wait_for()
        return browser_page

    return go


def line(page: Page, number: int) -> Locator:
    return page.locator(f"[data-line='{number}']")


def rows(page: Page) -> int:
    return page.locator("[data-line]").count()


def test_the_newest_lines_show_first_and_only_those_in_sight_are_in_the_page(logs: Callable[..., Page]) -> None:
    page = logs()
    line(page, TOTAL - 1).wait_for()
    page.get_by_text(f"{TOTAL:,} entries", exact=True).wait_for()
    assert 10 < rows(page) < 100


def test_a_style_sheet_that_comes_late_makes_no_page_ask_for_all_lines(
    browser_page: Page, host: Shown, ids: dict[str, str]
) -> None:
    page = browser_page
    held: list[Route] = []
    asked: list[str] = []
    page.route("**/run.css", lambda route: held.append(route))
    page.on("request", lambda request: asked.append(request.url) if "/logs?" in request.url else None)
    host.log_in(page)
    with (
        page.expect_event("requestfinished", lambda request: request.url.endswith("/run-logs.js")),
        page.expect_event("requestfinished", lambda request: f"/experiments/{ids['many']}" in request.url),
    ):
        page.goto(f"{host.url}/runs/{ids['many']}?tab=logs", wait_until="commit")
    # All but the styles is there, and what could be drawn of it was.
    page.evaluate("new Promise((done) => requestIdleCallback(done))")
    assert page.get_by_role("list", name="Log entries").count() == 0
    page.get_by_text("Loading the run").wait_for()
    held.pop().continue_()
    line(page, TOTAL - 1).wait_for()
    # The first page, and those of the last lines.
    assert len(asked) <= 3


@pytest.mark.console("Failed to load resource")
def test_a_style_sheet_that_does_not_come_is_told(browser_page: Page, host: Shown, ids: dict[str, str]) -> None:
    browser_page.route("**/run.css", lambda route: route.abort())
    host.open(browser_page, f"/runs/{ids['many']}?tab=logs")
    browser_page.get_by_role("alert").get_by_text("run.css could not be loaded").wait_for()
    browser_page.unroute("**/run.css")
    browser_page.get_by_role("button", name="Try again").click()
    line(browser_page, TOTAL - 1).wait_for()


@pytest.mark.console("503")
def test_lines_that_could_not_be_fetched_are_asked_for_again(logs: Callable[..., Page], browser_page: Page) -> None:
    browser_page.route("**/logs?startIndex=29800&*", lambda route: route.fulfill(status=503), times=1)
    page = logs()
    line(page, TOTAL - 1).wait_for()
    line(page, MANY - 1).wait_for()


def test_an_answer_may_have_less_than_was_asked_for_or_begin_later(
    logs: Callable[..., Page], browser_page: Page
) -> None:
    def asked(was: str, instead: str) -> None:
        browser_page.route(
            f"**/logs?{was}*", lambda route: route.continue_(url=route.request.url.replace(was, instead))
        )

    # As where entries are long.
    asked("startIndex=12400&limit=200", "startIndex=12400&limit=50")
    # As where the first ones are not on this machine any more.
    asked("startIndex=0&limit=200", "startIndex=5&limit=195")
    page = logs("&line=12470")
    line(page, 12470).get_by_text(text_of(12470)).wait_for()
    page.get_by_role("list", name="Log entries").focus()
    page.keyboard.press("Home")
    line(page, 6).get_by_text(text_of(6)).wait_for()
    assert line(page, 5).count() == 1
    assert line(page, 4).count() == 0


def test_any_line_is_reached_by_its_address_by_scrolling_and_by_keys(logs: Callable[..., Page]) -> None:
    page = logs("&line=12345")
    line(page, 12345).get_by_text(text_of(12345)).wait_for()
    assert "current" in (line(page, 12345).get_attribute("class") or "")
    area = page.get_by_role("list", name="Log entries")
    area.evaluate("(area) => { area.scrollTop = area.scrollHeight / 4; }")
    line(page, 7500).get_by_text(text_of(7500)).wait_for()
    area.focus()
    page.keyboard.press("Home")
    line(page, 0).get_by_text(text_of(0)).wait_for()
    page.keyboard.press("End")
    line(page, TOTAL - 1).wait_for()


def test_levels_narrow_the_list(logs: Callable[..., Page]) -> None:
    page = logs()
    page.get_by_role("button", name="error", exact=True).click()
    page.get_by_role("button", name="fatal", exact=True).click()
    page.wait_for_url(re.compile("level=error,fatal"))
    page.get_by_text(f"{MANY // 4 + len(SPECIAL) + 1:,} matches", exact=True).wait_for()
    levels = page.locator(".log-level").all_inner_texts()
    assert levels
    assert set(levels) <= {"error", "fatal"}


def test_a_text_is_found_whatever_its_case_and_marked(logs: Callable[..., Page]) -> None:
    page = logs()
    page.get_by_role("searchbox").fill("STEP 2999")
    page.get_by_text("11 matches", exact=True).wait_for()
    assert page.locator("mark").first.inner_text() == "step 2999"
    page.wait_for_url(re.compile(r"q=STEP"))
    # From what was found, to the lines around it.
    page.locator("[data-line='29990'] .log-number").click()
    page.get_by_role("link", name="Lines around it").click()
    line(page, 29991).get_by_text(text_of(29991)).wait_for()


def test_a_regular_expression_is_found(logs: Callable[..., Page]) -> None:
    page = logs()
    page.get_by_role("button", name="Regular expression").click()
    page.get_by_role("searchbox").fill(r"^step 1\d{3}0: ")
    page.get_by_text(f"{1000:,} matches", exact=True).wait_for()
    assert re.fullmatch(r"step 1\d{3}0: ", page.locator("mark").first.inner_text())


@pytest.mark.console("400")
def test_a_wrong_expression_is_told_and_not_a_crash(logs: Callable[..., Page]) -> None:
    page = logs("&regex=true&q=%28unclosed")
    page.get_by_role("alert").get_by_text("unterminated subpattern").wait_for()


def test_nothing_found_is_said_with_how_much_was_examined(logs: Callable[..., Page]) -> None:
    page = logs("&q=there%20is%20no%20such%20text")
    page.get_by_role("heading", name="No entry matches").wait_for()
    page.get_by_text(f"{TOTAL:,} entries examined.").wait_for()


def test_escapes_and_markup_are_shown_as_they_were_logged(logs: Callable[..., Page]) -> None:
    page = logs()
    for number, (_, shown) in enumerate(SPECIAL):
        assert line(page, MANY + number).locator(".log-text").inner_text() == shown
    assert page.locator("main img").count() == 0


def test_long_entries_are_folded_and_open_with_their_metadata(logs: Callable[..., Page]) -> None:
    page = logs()
    long = line(page, TOTAL - 1)
    assert "29,005 more characters" in (long.locator(".log-text").text_content() or "")
    trace = line(page, TOTAL - 2)
    assert trace.locator(".log-text").inner_text() == "Traceback ⏎ 2 more"
    trace.get_by_role("button", name=f"Line {TOTAL - 2}").press("Enter")
    assert trace.get_by_label("Message").inner_text() == TRACE
    page.goto(page.url + "&line=100")
    line(page, 100).locator(".log-number").click()
    assert '"step": 100' in line(page, 100).get_by_label("Metadata").inner_text()


def test_a_line_is_copied(logs: Callable[..., Page], host: Shown) -> None:
    page = logs()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=host.url)
    line(page, TOTAL - 2).locator(".log-number").click()
    line(page, TOTAL - 2).get_by_role("button", name="Copy message").click()
    page.get_by_text("Copied", exact=False).first.wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == TRACE


def test_a_line_leads_to_the_charts_at_its_moment_and_back(logs: Callable[..., Page]) -> None:
    page = logs("&line=500")
    time = line(page, 500).get_by_role("link").first
    moment = (time.get_attribute("title") or "").split(" ")[0]
    time.click()
    page.wait_for_url(re.compile("tab=charts.*at="))
    page.go_back()
    line(page, 500).wait_for()
    # From the charts back to the lines around the moment.
    page.goto(page.url.replace("line=500", f"at={moment}"))
    page.locator(".log-line.current").wait_for()
    assert page.locator(".log-line.current .log-time").get_attribute("title").startswith(moment)  # type: ignore[union-attr]


def test_times_are_shown_since_the_beginning_if_wanted(logs: Callable[..., Page]) -> None:
    page = logs()
    page.get_by_role("button", name="Relative times").click()
    assert line(page, TOTAL - 1).locator(".log-time").inner_text().startswith("+")
    page.reload()
    assert line(page, TOTAL - 1).locator(".log-time").inner_text().startswith("+")


def test_a_run_without_logs_says_how_to_log(logs: Callable[..., Page]) -> None:
    page = logs(run="none")
    page.get_by_role("heading", name="No log entries").wait_for()
    assert "experiment.log" in page.get_by_role("tabpanel").inner_text()


def test_the_end_is_followed_until_somebody_scrolls_up(
    browser_page: Page, host: Shown, store: Path, team_server: Server
) -> None:
    with Experiment(name=f"tail-{host.name}", project="logs", local_path=str(store)) as experiment:

        def log(start: int, end: int) -> None:
            for number in range(start, end):
                experiment.log(text_of(number))
            if host.name == "server":
                send(team_server, "test-logs-server", store)

        log(0, 300)
        host.open(browser_page, f"/runs/{experiment.id}?tab=logs")
        line(browser_page, 299).wait_for()
        log(300, 320)
        line(browser_page, 319).wait_for()
        browser_page.get_by_text("following the newest").wait_for()
        browser_page.get_by_role("list", name="Log entries").hover()
        browser_page.mouse.wheel(0, -1500)
        line(browser_page, 319).wait_for(state="detached")
        log(320, 330)
        browser_page.get_by_text("330 entries", exact=True).wait_for()
        assert line(browser_page, 319).count() == line(browser_page, 329).count() == 0
        browser_page.get_by_role("button", name="Newest").click()
        line(browser_page, 329).wait_for()
