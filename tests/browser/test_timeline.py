"""The history of a run: its marks, and charts, parameters and files as of a moment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from ml_dash import Experiment
from tests.browser.accessibility import serious
from tests.browser.hosts import Shown
from tests.browser.shared import shown_by, until
from tests.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

RESUMES: Final = 120


@pytest.fixture(scope="module")
def ids() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, ids: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("timeline")
    about: dict[str, Any] = {"project": "time", "local_path": str(folder / "store")}
    (folder / "first.txt").write_text("first")
    (folder / "second.txt").write_text("second")
    with Experiment(name="travelled", **about) as experiment:
        experiment.parameters().set(lr=0.1, seed=3)
        experiment.metric("loss").append_batch([{"value": 1.0, "step": step} for step in range(20)])
        experiment.file(str(folder / "first.txt")).save()
    with Experiment(name="travelled", **about) as experiment:
        experiment.parameters().set(lr=0.001)
        experiment.rewind(10)
        experiment.metric("loss").append_batch([{"value": 0.5, "step": step} for step in range(10, 30)])
        experiment.file(str(folder / "second.txt")).save()
        ids["travelled"] = str(experiment.id)
    for number in range(RESUMES):
        with Experiment(name="resumed", **about) as experiment:
            experiment.metric("loss").append(value=1.0, step=number)
            ids["resumed"] = str(experiment.id)
    return folder / "store"


@pytest.fixture(scope="module", params=["server", "ui"])
def host(request: pytest.FixtureRequest, store: Path, team_server: Server) -> Iterator[Shown]:
    with shown_by(request.param, store, team_server, f"test-timeline-{request.param}") as shown:
        yield shown


@pytest.fixture
def timeline(browser_page: Page, host: Shown, ids: dict[str, str]) -> Page:
    host.open(browser_page, f"/runs/{ids['travelled']}?tab=timeline")
    browser_page.get_by_role("list", name="Marks").wait_for()
    return browser_page


def mark(page: Page, kind: str, number: int = 0) -> Any:
    return page.get_by_role("list", name="Marks").locator(f".kind-{kind}").nth(number)


def test_marks_tell_what_happened(timeline: Page) -> None:
    for kind in ("opened", "resumed", "rewound", "parameter", "file", "completed"):
        mark(timeline, kind).wait_for()
    assert "lr" in mark(timeline, "parameter", 1).inner_text()
    assert "second.txt" in mark(timeline, "file", 1).inner_text()


def test_parameters_are_shown_as_they_were(timeline: Page) -> None:
    timeline.get_by_role("button", name="Parameters", exact=True).click()
    table = timeline.get_by_role("table", name="Parameters")
    table.get_by_text("0.001", exact=True).wait_for()
    mark(timeline, "parameter", 0).click()
    timeline.wait_for_url(re.compile(r"asOf=\d+"))
    table.get_by_text("0.1", exact=True).wait_for()
    timeline.get_by_role("button", name="Back to now").click()
    table.get_by_text("0.001", exact=True).wait_for()
    assert "asOf" not in timeline.url
    timeline.go_back()
    table.get_by_text("0.1", exact=True).wait_for()


def test_files_are_shown_as_they_were_on_every_tab(timeline: Page) -> None:
    mark(timeline, "file", 0).click()
    timeline.wait_for_url(re.compile(r"asOf=\d+"))
    timeline.get_by_role("tab", name="Files").click()
    tree = timeline.get_by_role("tree", name="Files")
    tree.get_by_text("first.txt").wait_for()
    assert tree.get_by_text("second.txt").count() == 0
    tree.get_by_text("first.txt").click()
    timeline.get_by_role("list", name="Text of first.txt").get_by_text("first").wait_for()
    timeline.get_by_role("status", name="Connection").get_by_text("live").wait_for()


def test_charts_are_drawn_as_they_were(timeline: Page) -> None:
    def drawn() -> tuple[int, set[float]]:
        total, greatest = timeline.evaluate(
            """() => {
                const run = window.mlDash.chart("loss")?.runs[0];
                return [run?.total ?? 0, Array.from(run?.max ?? [])];
            }"""
        )
        return total, set(greatest)

    until(lambda: drawn() == (30, {1.0, 0.5}))
    mark(timeline, "file", 0).click()
    until(lambda: drawn() == (20, {1.0}))


def test_the_slider_goes_through_the_events_by_keys(timeline: Page) -> None:
    slider = timeline.get_by_role("slider", name="Event")
    events = int(slider.get_attribute("max") or 0)
    slider.press("Home")
    slider.press("ArrowRight")
    slider.press("ArrowRight")
    timeline.wait_for_url(re.compile(r"asOf=2$"))
    assert slider.get_attribute("aria-valuetext").startswith(f"Event 2 of {events}")  # type: ignore[union-attr]
    slider.press("End")
    timeline.wait_for_url(lambda url: "asOf" not in url)


def test_kinds_of_marks_are_chosen_and_stepped_through(timeline: Page) -> None:
    timeline.get_by_role("group", name="Kinds of marks").get_by_role("button", name=re.compile("Parameters")).click()
    timeline.wait_for_url(re.compile("kinds=parameter"))
    timeline.get_by_text("2 marks", exact=True).wait_for()
    timeline.get_by_role("button", name="Mark before").click()
    timeline.wait_for_url(re.compile(r"asOf=\d+"))
    second = timeline.url
    timeline.get_by_role("button", name="Mark before").click()
    timeline.wait_for_url(lambda url: url != second)
    timeline.get_by_role("button", name="Mark after").click()
    timeline.wait_for_url(second)


def test_it_plays_to_the_end(timeline: Page) -> None:
    timeline.get_by_role("button", name="Play").click()
    timeline.wait_for_url(re.compile(r"asOf=\d+"))
    timeline.get_by_role("button", name="Stop").click()
    at = timeline.url
    timeline.get_by_role("button", name="Play").wait_for()
    assert timeline.url == at


def test_hundreds_of_resumes_are_a_few_rows_in_the_page(browser_page: Page, host: Shown, ids: dict[str, str]) -> None:
    host.open(browser_page, f"/runs/{ids['resumed']}?tab=timeline&kinds=resumed")
    browser_page.get_by_text(f"{RESUMES - 1} marks", exact=True).wait_for()
    assert browser_page.get_by_role("list", name="Marks").get_by_role("listitem").count() < 80
    assert "processes" in browser_page.locator(".run-header").inner_text()


def test_the_timeline_is_accessible_wide_and_narrow(timeline: Page) -> None:
    assert serious(timeline) == []
    timeline.set_viewport_size({"width": 400, "height": 800})
    until(lambda: timeline.evaluate("document.documentElement.scrollWidth") <= 400)
    assert serious(timeline) == []
