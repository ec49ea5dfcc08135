"""Commands that look back, and their forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ml_dash import Experiment
from ml_dash.cli.options import _with_values

if TYPE_CHECKING:
    from tests.cli.conftest import Shell


@pytest.fixture
def recorded(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shell.folder)
    with Experiment("a", "cv") as experiment:
        experiment.parameters().set(lr=0.1)
        experiment.metric("loss").append(value=1, step=0)
        experiment.log("first")
        experiment.parameters().set(lr=0.2)
        experiment.metric("loss").append(value=2, step=1)
        experiment.log("second")


@pytest.mark.usefixtures("recorded")
def test_reading_commands_look_back(shell: Shell) -> None:
    shown = shell.ok("show", "a", "--as-of", "4", "--json").json
    assert (shown["experiment"]["counts"]["events"], shown["parameters"]) == (4, {"lr": 0.1})
    assert "event 4" in shell.ok("show", "a", "--as-of", "4").out
    assert shell.ok("params", "a", "--as-of", "5", "--json").json == {"lr": 0.2}
    assert shell.ok("metrics", "a", "loss", "--as-of", "4", "--json").json["totalDataPoints"] == 1
    assert [line["message"] for line in shell.ok("logs", "a", "--as-of", "6", "--json").json_lines] == ["first"]
    assert [line["data"]["value"] for line in shell.ok("export", "a", "--as-of", "5", "--json").json_lines] == [1]
    assert shell.ok("files", "a", "--as-of", "1", "--json").json == []
    assert "no experiments" not in shell.ok("diff", "a", "a", "--as-of", "3").err
    line = shell.ok("export", "a", "--what", "experiments", "--as-of", "4", "--json").json_lines[0]
    assert (line["parameters"], line["metrics"]) == ({"lr": 0.1}, {"loss": 1})


@pytest.mark.usefixtures("recorded")
def test_what_is_no_moment_is_refused_with_what_is_one(shell: Shell) -> None:
    result = shell("show", "a", "--as-of", "soon")
    assert result.code == 1
    assert "give a number of events, a time" in result.err


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (["--remote"], ["--remote="]),
        (["--remote", "cv/a"], ["--remote=", "cv/a"]),
        (["--remote", "http://x", "cv/a"], ["--remote=http://x", "cv/a"]),
        (["--remote=http://x"], ["--remote=http://x"]),
        (["cv/a", "--remote", "--json"], ["cv/a", "--remote=", "--json"]),
        (["--", "--remote", "http://x"], ["--", "--remote", "http://x"]),
    ],
)
def test_what_follows_remote_is_its_url_if_it_is_one(given: list[str], parsed: list[str]) -> None:
    assert _with_values(given) == parsed
