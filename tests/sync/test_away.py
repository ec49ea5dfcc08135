"""What is not here any more: one answer from all who are asked, and a way to it that works as printed."""

from __future__ import annotations

import re
import shlex

import pytest

from ml_dash import Experiment, ReleasedData
from ml_dash.journal.segment import list_segments
from tests.machines import Machine

UNSENT = 3


def test_a_file_that_another_machine_has_replaced_is_judged_alike_by_all(first: Machine, second: Machine) -> None:
    replaced = """
import sys
from pathlib import Path
from ml_dash import Experiment
Path("model.bin").write_text(sys.argv[1])
with Experiment("model", "e2e", local_path="runs", resume_from_remote=sys.argv[1] != "one") as experiment:
    experiment.file("model.bin", prefix="/models")
"""
    for machine, content in ((first, "one"), (second, "two")):
        assert machine.run("-c", replaced, content).returncode == 0
        machine.sync()
    assert "1 of 1 files, digests equal" in first.dash("sync", "status", "e2e/model")
    assert "1 segment, 0 files" in first.dash("gc", "--synced", "e2e/model")
    assert not list_segments(first.at("model").journal)
    # The only copy of what was replaced stays until this machine knows of that.
    assert (first.at("model").folder / "files/models/model.bin").read_text() == "one"
    first.view("model")
    first.dash("pull", "e2e/model")
    assert (first.at("model").folder / "files/models/model.bin").read_text() == "two"
    assert "1 of 1 files, digests equal" in first.dash("sync", "status", "e2e/model")
    assert "freed" in first.dash("gc", "--synced", "e2e/model")


def test_what_was_freed_is_an_error_that_says_how_to_read_it(first: Machine, caplog: pytest.LogCaptureFixture) -> None:
    first.train("freed", 5)
    first.sync()
    before = {
        command: first.dash(*shlex.split(command))
        for command in ("logs freed", "metrics freed loss", "export freed", "export freed --what logs --format jsonl")
    }
    first.dash("gc", "--synced", "e2e/freed")
    for command, printed in before.items():
        said = first.dash(*shlex.split(command), code=UNSENT)
        assert said.count("not on this machine") == 1
        assert first.dash(*shlex.split(command), "--remote") == printed
    assert first.dash("metrics", "freed", "--plot", "--remote").startswith("loss")
    assert first.dash("logs", "freed", "--last", "2", "--level", "info", "--remote").count("\n") == 2
    assert "loss" in first.dash("metrics", "freed")
    with Experiment("freed", "e2e", local_path=first.root, read_only=True) as experiment:
        assert experiment.metric("loss").stats()["totalDataPoints"] == 5
        for read in (
            experiment.metric("loss").read, experiment.metric("loss").last, experiment.log().read,
            lambda: experiment.log().read(level="info"),
            lambda: experiment.file(file_id=experiment.file().list()[0]["id"]).download(),
        ):  # fmt: skip
            with pytest.raises(ReleasedData, match="not on this machine any more") as raised:
                read()
    assert not caplog.records
    command = re.search(r"ml-dash (pull .*)", str(raised.value))
    assert command is not None
    first.dash(*shlex.split(command[1]))
    for command_line, printed in before.items():
        assert first.dash(*shlex.split(command_line)) == printed


def test_what_was_recorded_since_is_read_without_the_server(first: Machine) -> None:
    first.train("goes-on", 5)
    first.sync()
    first.dash("gc", "--synced", "e2e/goes-on")
    first.train("goes-on", 3)
    with Experiment("goes-on", "e2e", local_path=first.root, read_only=True) as experiment:
        metric = experiment.metric("loss")
        assert [point["index"] for point in metric.read(5)["data"]] == [5, 6, 7]
        assert [point["index"] for point in metric.read(-3)["data"]] == [5, 6, 7]
        last = metric.last()
        assert last is not None
        assert last["index"] == 7
        assert metric.read(-4)["startIndex"] == 5
    assert first.dash("logs", "goes-on", "--last", "3").count("\n") == 3
    assert "log entries before number 5" in first.dash("logs", "goes-on", code=UNSENT)
    assert "points of loss before number 5" in first.dash("export", "goes-on", "--metric", "loss", code=UNSENT)


def test_one_that_goes_nowhere_has_no_server_to_read_from(first: Machine) -> None:
    for name in ("ML_DASH_REMOTE", "ML_DASH_USER_NAME"):
        del first.environment[name]
    code = "from ml_dash import Experiment; Experiment('local', 'e2e', local_path='runs').open().close()"
    assert first.run("-c", code).returncode == 0
    text = "is not registered with any server here; set ML_DASH_REMOTE"
    assert text in first.dash("logs", "local", "--remote", code=1)


@pytest.mark.parametrize("token", [False, True])
def test_a_pull_needs_no_registration(first: Machine, second: Machine, token: bool) -> None:
    from ml_dash.sync.login import development_token
    from tests.machines import USER

    name = f"brought-{token}"
    first.train(name, 3)
    first.sync()
    del second.environment["ML_DASH_USER_NAME"]
    if token:
        second.environment["ML_DASH_API_KEY"] = development_token(USER)
    else:
        second.environment["ML_DASH_API_KEY"] = development_token(USER)
        second.dash("login", second.url)
        del second.environment["ML_DASH_API_KEY"]
    assert "events" in second.dash("pull", f"e2e/{name}")
    assert second.view(name).state.points == 3
