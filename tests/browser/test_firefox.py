"""One look with another browser: the list, a chart, and a point that comes while it is looked at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_dash import Experiment
from tests.browser import recording
from tests.browser.firefox import Firefox
from tests.browser.hosts import UiServer


def test_firefox_shows_the_list_and_a_live_chart(ui_server: Callable[..., UiServer], tmp_path: Path) -> None:
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no Firefox: apt-get install firefox-esr")
        pytest.skip("there is no Firefox here: apt-get install firefox-esr")
    store = tmp_path / "store"
    recording.train(store, "first", steps=5000)
    firefox = Firefox(program, tmp_path / "profile")
    try:
        with Experiment(name="live", project="vision", local_path=str(store)) as experiment:
            experiment.metric("loss").append(value=1.0, step=0)
            ui = ui_server(store)
            firefox.go(ui.link)
            rows = """document.querySelectorAll("[role=grid] [role=row] a")"""
            href = firefox.until(f"""[...{rows}].find((link) => link.textContent === "live")?.href""")
            assert firefox.until("""document.querySelector("[role=grid]").getAttribute("aria-rowcount")""") == "2"
            firefox.go(href)
            firefox.until("""window.mlDash.chart("loss").runs[0].total === 1""")
            experiment.metric("loss").append(value=0.5, step=1)
            drawn = firefox.until("""window.mlDash.chart("loss").runs[0].total === 2 && window.mlDash.chart("loss")""")
            assert (drawn["runs"][0]["x"], drawn["runs"][0]["min"]) == ([0, 1], [1, 0.5])
    finally:
        firefox.end()
