"""Charts of one run: what is drawn is what was recorded, and says what it leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ml_dash import Experiment
from tests.browser.hosts import Shown, by_server, send
from tests.browser.looking import address, drag, drawn, figure, plot_area, serious, until
from tests.browser.recording import hostile, rewound, train, value_at
from tests.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

Show = Callable[[Path], Shown]


@pytest.fixture
def served(team_server: Server, user: str) -> Show:
    """Shows what a store has by a team's server: for what does not depend on the source."""
    return lambda store: by_server(team_server, user, store)

SPIKE = 30.0


def record(store: Path, metric: str, rows: list[dict[str, Any]], name: str = "run") -> str:
    with Experiment(name, "vision", local_path=str(store)) as experiment:
        experiment.metric(metric).append_batch(rows)
        return str(experiment.id)


def noisy(store: Path, points: int = 20_000) -> str:
    """A long series with one spike in it."""
    values = [math.sin(step / 500) + 0.1 * math.sin(step * 12.9898) for step in range(points)]
    values[12_345] = SPIKE
    return record(store, "loss", [{"value": value, "step": step} for step, value in enumerate(values)])


def test_points_are_drawn_as_they_were_recorded(browser_page: Page, shown: Show, tmp_path: Path) -> None:
    run = train(tmp_path, "run", metrics=("loss", "val/accuracy"), steps=40)
    shown(tmp_path).open(browser_page, f"/runs/{run}?tab=charts")
    [curve] = drawn(browser_page, "loss")
    expected = [value_at("loss", step, 0) for step in range(40)]
    assert (curve["run"], curve["x"], curve["min"]) == (run, list(range(40)), pytest.approx(expected))
    assert (curve["max"], curve["shown"], curve["total"]) == (curve["min"], 40, 40)
    assert "40 points" in figure(browser_page, "loss").inner_text()
    # In a group by its prefix; the table below says the same to who cannot see it.
    browser_page.get_by_role("button", name="val 1").wait_for()
    assert figure(browser_page, "val/accuracy").get_by_role("table").count() == 1


def test_a_long_series_shows_its_spike_and_zooming_comes_down_to_its_points(
    browser_page: Page, shown: Show, tmp_path: Path
) -> None:
    run = noisy(tmp_path)
    shown(tmp_path).open(browser_page, f"/runs/{run}?tab=charts")
    # All is drawn once it is indexed.
    [whole] = drawn(browser_page, "loss", lambda runs: bool(runs) and runs[0]["total"] == 20_000)
    assert whole["shown"] < 2500
    assert max(whole["max"]) == SPIKE
    assert any(low < high for low, high in zip(whole["min"], whole["max"], strict=True))
    assert f"{whole['shown']:,} of 20,000 points" in figure(browser_page, "loss").inner_text()

    browser_page.goto(browser_page.url + "&zoom=12340..12350")
    [near] = drawn(browser_page, "loss", lambda runs: bool(runs) and runs[0]["total"] < 100)
    assert near["shown"] == near["total"]
    assert near["min"] == near["max"]
    assert near["max"][near["x"].index(12_345)] == SPIKE

    browser_page.go_back()
    drawn(browser_page, "loss", lambda runs: bool(runs) and runs[0]["total"] == 20_000)


def test_dragging_zooms_all_charts_and_a_double_click_shows_everything(
    browser_page: Page, served: Show, tmp_path: Path
) -> None:
    run = train(tmp_path, "run", steps=200)
    served(tmp_path).open(browser_page, f"/runs/{run}?tab=charts")
    drawn(browser_page, "accuracy")
    drawn(browser_page, "loss")
    drag(browser_page, "loss", 0.25, 0.5)
    for name in ("loss", "accuracy"):
        [curve] = drawn(browser_page, name, lambda runs: len(runs[0]["x"]) < 100)
        assert 40 < min(curve["x"]) < 60 < 90 < max(curve["x"]) < 110
    assert "zoom=" in browser_page.url
    area = plot_area(browser_page, "loss")
    browser_page.mouse.dblclick(area["x"] + 50, area["y"] + 50)
    drawn(browser_page, "loss", lambda runs: len(runs[0]["x"]) == 200)
    assert "zoom=" not in browser_page.url


def test_values_that_are_not_finite_are_gaps_with_marks(browser_page: Page, shown: Show, tmp_path: Path) -> None:
    values = [1.0, 2.0, math.nan, math.nan, 3.0, math.inf, 4.0, -math.inf]
    run = record(tmp_path, "loss", [{"value": value, "step": step} for step, value in enumerate(values)])
    shown(tmp_path).open(browser_page, f"/runs/{run}?tab=charts")
    [curve] = drawn(browser_page, "loss")
    assert curve["x"] == [0, 1, 4, 6]
    assert [(mark["x"], mark["value"]) for mark in curve["nonFinite"]] == [
        (2, "NaN"), (3, "NaN"), (5, "Infinity"), (7, "-Infinity"),
    ]  # fmt: skip
    # Nothing is joined over a gap.
    assert curve["stretches"] == [[0, 2], [2, 3], [3, 4]]


def test_points_that_a_rewind_left_behind_are_hidden_until_asked_for(
    browser_page: Page, shown: Show, tmp_path: Path
) -> None:
    run = rewound(tmp_path)
    shown(tmp_path).open(browser_page, f"/runs/{run}?tab=charts")
    [curve] = drawn(browser_page, "loss")
    assert (curve["x"], curve["total"]) == (list(range(40)), 40)
    assert max(curve["max"][20:]) < 0.5
    behind = "window.mlDash.chart('loss').behind.map((curve) => curve.total)"
    assert browser_page.evaluate(behind) == []
    browser_page.get_by_role("button", name="Superseded").click()
    assert until(lambda: browser_page.evaluate(behind), bool, "superseded points") == [60]


def test_the_axis_smoothing_and_logarithms_are_in_the_address(browser_page: Page, served: Show, tmp_path: Path) -> None:
    run = train(tmp_path, "run", metrics=("loss", "other"), steps=60)
    served(tmp_path).open(browser_page, f"/runs/{run}?tab=charts&smooth=0.9&x=metric:other&log=y")
    [curve] = drawn(browser_page, "loss")
    assert curve["x"] == pytest.approx([value_at("other", step, 0) for step in range(60)])
    browser_page.get_by_label("x axis", exact=True).select_option("relative")
    until(lambda: browser_page.evaluate("window.mlDash.chart('loss').x"), lambda x: x == "relative", "the axis")
    [curve] = drawn(browser_page, "loss")
    assert min(curve["x"]) > 0
    assert "x=relative" in browser_page.url
    # The raw values stay what they are, under the smoothed line.
    assert curve["min"] == pytest.approx([value_at("loss", step, 0) for step in range(60)])
    assert max(abs(a - b) for a, b in zip(curve["line"], curve["min"], strict=True)) > 0.01
    slider = browser_page.get_by_role("slider", name="Smooth")
    for _ in range(5):
        slider.press("ArrowRight")
    address(browser_page, lambda url: "smooth=0.95" in url)


def test_a_series_is_split_by_a_field_of_its_points(browser_page: Page, served: Show, tmp_path: Path) -> None:
    rows = [{"value": step + 10 * rank, "step": step, "rank": f"r{rank}"} for step in range(10) for rank in range(3)]
    run = record(tmp_path, "loss", rows)
    served(tmp_path).open(browser_page, f"/runs/{run}?tab=charts")
    drawn(browser_page, "loss")
    browser_page.get_by_label("Split by").fill("rank")
    browser_page.get_by_label("Split by").press("Enter")
    curves = drawn(browser_page, "loss", lambda runs: len(runs) == 3)
    by_rank = {curve["split"]: curve["min"] for curve in curves}
    assert by_rank == {f"r{rank}": [step + 10 * rank for step in range(10)] for rank in range(3)}
    assert len({curve["color"] + str(curve["dash"]) for curve in curves}) == 3


def test_one_cursor_is_shown_in_all_charts_and_a_click_leads_to_the_logs(
    browser_page: Page, served: Show, tmp_path: Path
) -> None:
    run = train(tmp_path, "run", steps=101)
    served(tmp_path).open(browser_page, f"/runs/{run}?tab=charts")
    drawn(browser_page, "loss")
    drawn(browser_page, "accuracy")
    area = plot_area(browser_page, "loss")
    browser_page.mouse.move(area["x"] + area["width"] / 2, area["y"] + 20)
    tip = figure(browser_page, "loss").locator(".chart-tip")
    tip.wait_for()
    assert "step 50" in tip.inner_text()
    readout = figure(browser_page, "accuracy").locator(".chart-readout")
    until(readout.inner_text, lambda text: text == f"{value_at('accuracy', 50, 0):.6g}", "the other chart's value")
    browser_page.mouse.click(area["x"] + area["width"] / 2, area["y"] + 20)
    link = figure(browser_page, "loss").get_by_role("link", name="Logs at this moment")
    link.wait_for()
    assert "tab=logs" in (link.get_attribute("href") or "")


def test_many_metrics_are_searched_and_only_charts_in_view_exist(
    browser_page: Page, served: Show, tmp_path: Path
) -> None:
    with Experiment("wide", "vision", local_path=str(tmp_path)) as experiment:
        for number in range(1500):
            experiment.metric(f"layer/{number // 100}/w{number}").append(value=number, step=1)
        run = str(experiment.id)
    served(tmp_path).open(browser_page, f"/runs/{run}?tab=charts")
    browser_page.get_by_text("1,500 charts").wait_for()
    browser_page.locator("figure.chart").first.wait_for()
    assert browser_page.locator("figure.chart").count() <= 20
    browser_page.get_by_role("searchbox").fill("layer w1321")
    browser_page.get_by_text("1 of 1,500 charts").wait_for()
    [curve] = drawn(browser_page, "layer/13/w1321")
    assert curve["max"] == [1321]
    address(browser_page, lambda url: "q=layer" in url)


def test_a_new_point_is_drawn_by_itself(
    browser_page: Page, shown: Show, team_server: Server, user: str, tmp_path: Path
) -> None:
    with Experiment("live", "vision", local_path=str(tmp_path)) as experiment:
        experiment.metric("loss").append(value=1.0, step=0)
        host = shown(tmp_path)
        host.open(browser_page, f"/runs/{experiment.id}?tab=charts")
        drawn(browser_page, "loss", lambda runs: bool(runs) and runs[0]["total"] == 1)
        experiment.metric("loss").append(value=0.5, step=1)
        if host.name == "server":
            send(team_server, user, tmp_path)
        [curve] = drawn(browser_page, "loss", lambda runs: bool(runs) and runs[0]["total"] == 2)
        assert curve["min"] == [1.0, 0.5]


def test_a_chart_is_read_with_the_keyboard_alone(browser_page: Page, served: Show, tmp_path: Path) -> None:
    run = train(tmp_path, "run", steps=101)
    served(tmp_path).open(browser_page, f"/runs/{run}?tab=charts")
    drawn(browser_page, "loss")
    chart = figure(browser_page, "loss")
    chart.focus()
    chart.press("ArrowRight")
    until(chart.locator(".chart-readout").inner_text, lambda text: text.startswith("step 5"), "what is said")
    chart.press("+")
    drawn(browser_page, "loss", lambda runs: len(runs[0]["x"]) < 60)
    chart.press("0")
    drawn(browser_page, "loss", lambda runs: len(runs[0]["x"]) == 101)


def test_a_chart_is_saved_as_a_table_and_as_a_picture(browser_page: Page, served: Show, tmp_path: Path) -> None:
    run = train(tmp_path, "run", steps=3)
    served(tmp_path).open(browser_page, f"/runs/{run}?tab=charts")
    drawn(browser_page, "loss")
    figure(browser_page, "loss").hover()
    with browser_page.expect_download() as table:
        browser_page.get_by_role("button", name="Save loss as CSV").click()
    lines = Path(table.value.path()).read_text().splitlines()
    assert (lines[0], len(lines)) == ("run,name,step,min,max", 4)
    with browser_page.expect_download() as picture:
        browser_page.get_by_role("button", name="Save loss as PNG").click()
    assert Path(picture.value.path()).read_bytes().startswith(b"\x89PNG")


def test_a_chart_is_enlarged_and_a_view_is_saved_under_a_name(browser_page: Page, served: Show, tmp_path: Path) -> None:
    run = train(tmp_path, "run")
    host = served(tmp_path)
    host.open(browser_page, f"/runs/{run}?tab=charts&smooth=0.5&size=s")
    drawn(browser_page, "accuracy")
    figure(browser_page, "loss").hover()
    browser_page.get_by_role("button", name="Enlarge loss").click()
    figure(browser_page, "accuracy").wait_for(state="detached")
    browser_page.go_back()
    drawn(browser_page, "accuracy")

    browser_page.get_by_role("button", name="Views").click()
    browser_page.get_by_role("menuitem", name="Save this view").click()
    browser_page.get_by_label("Name").fill("smooth and small")
    browser_page.get_by_role("button", name="Save", exact=True).click()
    host.open(browser_page, f"/runs/{run}?tab=charts")
    browser_page.get_by_role("button", name="Views").click()
    browser_page.get_by_role("menuitem", name="smooth and small", exact=True).click()
    address(browser_page, lambda url: "smooth=0.5" in url and "size=s" in url)


def test_hostile_names_are_text(browser_page: Page, served: Show, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run = hostile(store, tmp_path)
    served(store).open(browser_page, f"/runs/{run}?tab=charts")
    drawn(browser_page, "<s>loss")
    assert browser_page.locator("main s, main img").count() == 0


def test_charts_keep_nobody_out(browser_page: Page, served: Show, tmp_path: Path) -> None:
    run = train(tmp_path, "run", steps=20)
    served(tmp_path).open(browser_page, f"/runs/{run}?tab=charts")
    for width in (1400, 400):
        browser_page.set_viewport_size({"width": width, "height": 900})
        drawn(browser_page, "loss")
        assert serious(browser_page) == []
        assert browser_page.evaluate("document.documentElement.scrollWidth") <= width
