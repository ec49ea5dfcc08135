"""Several runs beside each other: curves, means of seeds, parameters, files."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ml_dash import Experiment
from tests.browser.hosts import Shown, by_server
from tests.browser.looking import drawn, serious, until
from tests.browser.recording import train, value_at
from tests.running import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

Show = Callable[[Path], Shown]


@pytest.fixture
def served(team_server: Server, user: str) -> Show:
    """Shows what a store has by a team's server: for what does not depend on the source."""
    return lambda store: by_server(team_server, user, store)


def seeds(store: Path, count: int = 6) -> list[str]:
    """Runs of two learning rates, with seeds."""
    return [
        train(
            store, f"seed-{seed}", seed=seed, steps=30, logs=0,
            parameters={"lr": 0.1 if seed % 2 else 0.001, "seed": seed, "model": "small"},
        )
        for seed in range(count)
    ]  # fmt: skip


def test_runs_are_drawn_over_each_other_in_colours_of_their_own(
    browser_page: Page, shown: Show, tmp_path: Path
) -> None:
    runs = seeds(tmp_path)
    shown(tmp_path).open(browser_page, f"/compare?runs={','.join(runs)}")
    curves = drawn(browser_page, "loss", lambda found: len(found) == 6)
    assert {curve["run"] for curve in curves} == set(runs)
    for curve in curves:
        seed = runs.index(curve["run"])
        assert curve["min"] == pytest.approx([value_at("loss", step, seed) for step in range(30)])
    assert len({curve["color"] + str(curve["dash"]) for curve in curves}) == 6
    assert browser_page.get_by_role("searchbox").count() == 1


def test_runs_with_the_same_parameter_are_drawn_as_their_mean_with_a_band(
    browser_page: Page, served: Show, tmp_path: Path
) -> None:
    runs = seeds(tmp_path)
    served(tmp_path).open(browser_page, f"/compare?runs={','.join(runs)}")
    drawn(browser_page, "loss", lambda found: len(found) == 6)
    browser_page.get_by_label("Mean over").select_option("params.lr")
    first = drawn(browser_page, "loss", lambda found: len(found) == 2)
    curves = {curve["run"]: curve for curve in first}
    assert set(curves) == {"lr = 0.001", "lr = 0.1"}
    values = [value_at("loss", 7, seed) for seed in (1, 3, 5)]
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    band = curves["lr = 0.1"]
    expected = (mean, mean - deviation, mean + deviation)
    assert (band["line"][7], band["min"][7], band["max"][7]) == pytest.approx(expected)
    browser_page.get_by_label("Band").select_option("range")
    again = drawn(browser_page, "loss", lambda found: bool(found) and found[0]["max"][7] != first[0]["max"][7])
    band = next(curve for curve in again if curve["run"] == "lr = 0.1")
    assert (band["min"][7], band["max"][7]) == pytest.approx((min(values), max(values)))
    assert "mean=params.lr" in browser_page.url
    assert "spread=range" in browser_page.url


def test_equal_parameters_are_hidden_until_asked_for(browser_page: Page, shown: Show, tmp_path: Path) -> None:
    runs = seeds(tmp_path, 3)
    shown(tmp_path).open(browser_page, f"/compare?runs={','.join(runs)}&tab=parameters")
    table = browser_page.get_by_role("table")
    table.wait_for()
    rows = table.locator("tbody tr")
    assert rows.locator("th").all_inner_texts() == ["lr", "seed"]
    assert rows.first.locator("td").all_inner_texts() == ["0.001", "0.1", "0.001"]
    browser_page.get_by_role("checkbox").check()
    table.get_by_role("row", name="model").wait_for()


def test_a_parameter_is_drawn_against_a_metric_and_a_brush_chooses_runs(
    browser_page: Page, served: Show, tmp_path: Path
) -> None:
    runs = seeds(tmp_path)
    served(tmp_path).open(browser_page, f"/compare?runs={','.join(runs)}&tab=scatter&param=seed")
    until(browser_page.locator("circle.dot").count, lambda count: count == 6, "dots")
    named = browser_page.locator("figure a").evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
    assert sorted(named) == [f"seed-{seed}" for seed in range(6)]
    browser_page.get_by_role("tab", name="Parallel").click()
    until(browser_page.locator("path.run").count, lambda count: count == 6, "lines")
    axis = browser_page.locator("rect.reach[data-axis='params.lr']").bounding_box()
    assert axis is not None
    # The upper half of the axis: the greater learning rate.
    browser_page.mouse.move(axis["x"] + 10, axis["y"] + 1)
    browser_page.mouse.down()
    browser_page.mouse.move(axis["x"] + 10, axis["y"] + axis["height"] / 2, steps=4)
    browser_page.mouse.up()
    browser_page.get_by_text("3 of 6 runs chosen").wait_for()
    browser_page.get_by_role("button", name="Keep these").click()
    browser_page.get_by_role("heading", name="Compare 3 runs").wait_for()
    kept = browser_page.evaluate("new URLSearchParams(location.search).get('runs')").split(",")
    assert set(kept) == {runs[1], runs[3], runs[5]}


def test_files_that_differ_have_their_sizes_and_sums(browser_page: Page, served: Show, tmp_path: Path) -> None:
    runs = []
    for number in range(2):
        (tmp_path / "same.txt").write_text("same")
        (tmp_path / "model.bin").write_bytes(b"x" * (100 + number))
        with Experiment(f"run-{number}", "vision", local_path=str(tmp_path / "store")) as experiment:
            experiment.file(str(tmp_path / "same.txt"))
            experiment.file(str(tmp_path / "model.bin"), prefix="models")
            runs.append(str(experiment.id))
    served(tmp_path / "store").open(browser_page, f"/compare?runs={','.join(runs)}&tab=files")
    table = browser_page.get_by_role("table")
    table.wait_for()
    assert table.locator("tbody th").all_inner_texts() == ["models/model.bin"]
    assert [text.split(" B")[0] for text in table.locator("tbody td").all_inner_texts()] == ["100", "101"]
    browser_page.get_by_role("checkbox", name="Show 1 equal file").check()
    table.get_by_role("row", name="same.txt").wait_for()


def test_runs_that_are_gone_are_said_and_none_at_all_is_explained(
    browser_page: Page, served: Show, tmp_path: Path
) -> None:
    [run] = seeds(tmp_path, 1)
    host = served(tmp_path)
    host.open(browser_page, f"/compare?runs={run},123456")
    browser_page.get_by_text("1 run of the address is not here").wait_for()
    browser_page.get_by_role("button", name="Leave seed-0 out").click()
    browser_page.get_by_role("heading", name="No runs to compare").wait_for()


def test_comparing_keeps_nobody_out(browser_page: Page, served: Show, tmp_path: Path) -> None:
    runs = seeds(tmp_path, 3)
    browser_page.set_viewport_size({"width": 400, "height": 900})
    served(tmp_path).open(browser_page, f"/compare?runs={','.join(runs)}")
    for tab in ("Charts", "Parameters", "Scatter", "Parallel", "Files"):
        browser_page.get_by_role("tab", name=tab).click()
        browser_page.get_by_role("tabpanel").locator("section, .state").first.wait_for()
        assert serious(browser_page) == []
        assert browser_page.evaluate("document.documentElement.scrollWidth") <= 400
