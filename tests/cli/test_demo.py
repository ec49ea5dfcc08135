"""`ml-dash demo`: it really trains, really kills, really counts, and its count can fail."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import ml_dash
from ml_dash import Experiment
from ml_dash.demo import services, steps
from ml_dash.demo.network import SPECIES, Network, load_flowers
from ml_dash.demo.train import EPOCHS
from ml_dash.disk import places
from ml_dash.reading import read
from ml_dash.reading.located import Located

if TYPE_CHECKING:
    from tests.cli.conftest import Shell


def test_the_demo_kills_resumes_counts_and_shows(shell: Shell) -> None:
    out = shell.ok("demo").out
    counts = re.findall(r"^(when it was killed|at the end) +([\d,]+) +([\d,]+) +nothing lost$", out, re.MULTILINE)
    assert [when for when, _, _ in counts] == ["when it was killed", "at the end"]
    assert all(acknowledged == found for _, acknowledged, found in counts)
    assert int(counts[0][1].replace(",", "")) > 1000
    for text in (
        "Killed the server",
        "Started the server again",
        "digests equal",
        "Status: interrupted",
        "Status: completed",
        "intact",
        "data.jsonl",
        "loss over epochs",
        "ml-dash show",
    ):
        assert text in out
    (entry,) = shell.ok("ls", "--json").json
    assert (entry["project"], entry["name"], entry["status"]) == ("demo", "iris-1", "completed")


def test_what_the_demo_leaves_is_a_killed_and_a_resumed_run(shell: Shell, tmp_path: Path) -> None:
    shell.ok("demo", "--path", "here")
    folder = tmp_path / "here/demo/iris-1"
    document = json.loads((folder / "experiment.json").read_text())
    assert [writer["ended"] for writer in document["writers"]] == ["died", "completed"]
    epochs = [json.loads(line)["data"]["epoch"] for line in (folder / "metrics/loss/data.jsonl").open()]
    assert set(epochs) == set(range(EPOCHS))
    # None twice where the kill came right after a checkpoint.
    assert EPOCHS <= len(epochs) < EPOCHS + 25, "epochs after the last checkpoint were trained twice, no others"
    saved = json.loads((folder / "files/checkpoints/network.json").read_text())
    assert saved["epoch"] == EPOCHS
    flowers = load_flowers()
    assert Network(saved["hidden"], saved["output"]).accuracy(flowers) > 0.9
    shell.ok("verify", "--path", "here")


@pytest.mark.usefixtures("own_home")
def test_nothing_that_the_demo_started_is_left(shell: Shell, tmp_path: Path) -> None:
    shell.ok("demo", "--path", "here")
    (backstage,) = tmp_path.glob("here/.demo/*")
    state = backstage / "state"
    assert {path.name for path in backstage.iterdir()} >= {"server", "state", "server.log", "daemon.log"}
    running = [
        process.pid
        for process in psutil.process_iter()
        if str(backstage) in _environment_of(process).get("XDG_STATE_HOME", "") or _folder_of(process) == backstage
    ]
    assert not running
    # Nor has it touched the user's own state, login or daemon.
    assert list(state.rglob("registered/*.json"))
    assert not list(places.state_folder(shell.environment()).glob("registered/*"))


def _environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:  # of somebody else, or gone
        return {}


def _folder_of(process: psutil.Process) -> Path | None:
    try:
        return Path(process.cwd())
    except (psutil.Error, OSError):
        return None


def test_without_a_server_installed_the_demo_shows_the_rest_and_says_how_to_get_it(shell: Shell) -> None:
    program = "import sys; sys.modules['uvicorn'] = None; from ml_dash.cli import main; main(['demo'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=shell.folder, env=shell.environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nothing lost" in done.stdout
    assert "pip install 'ml-dash[server]'" in done.stdout
    assert "digests" not in done.stdout
    assert [path.name for path in (shell.folder / ".ml-dash").iterdir() if path.name != ".gitignore"] == ["demo"]


def test_a_server_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    words = "import sys; print('first'); sys.exit('no port is free')"
    process = services._Process("server", ["-c", words], tmp_path, steps.environment({}))
    with pytest.raises(steps.DemoError, match=r"the server did not start: no port is free; see .*server\.log"):
        process.wait_for_output(re.compile("http://"), 30)
    process.end()
    assert (tmp_path / "server.log").read_text() == "first\nno port is free\n"


def test_cues_come_at_their_count_and_training_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    cues = {50: lambda: said.append("fifty"), 10: lambda: said.append("ten")}
    reported = steps.run("cued", tmp_path, kill_after=200, progress=lambda _: None, actions=cues)
    assert said == ["ten", "fifty"]
    assert reported.count >= 200


def test_a_second_demo_takes_the_next_name(tmp_path: Path) -> None:
    assert steps.free_name(tmp_path / "nothing") == "iris-1"
    for name in ("iris-1", "iris-3"):
        with Experiment(name, "demo", local_path=tmp_path):
            pass
    assert steps.free_name(tmp_path) == "iris-2"


def test_the_demo_ignores_a_server_and_a_disabled_library_of_the_environment(shell: Shell) -> None:
    env = {"ML_DASH_DISABLED": "1", "ML_DASH_REMOTE": "https://dash.example", "ML_DASH_LOCAL_PATH": "elsewhere"}
    assert "nothing lost" in shell("demo", env=env).out
    assert (shell.folder / "elsewhere/demo/iris-1/experiment.json").exists()


def test_the_demo_runs_from_a_plain_copy_of_the_package(tmp_path: Path) -> None:
    """As when it is installed not in editable form, and where its files cannot be written."""
    site = tmp_path / "site"
    source = Path(ml_dash.__file__).parent
    for path in source.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            target = site / "ml_dash" / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            target.chmod(0o444)
    program = f"import sys; sys.path.insert(0, {str(site)!r}); import ml_dash.cli; assert ml_dash.__file__.startswith({str(site)!r}); ml_dash.cli.main(['demo'])"  # noqa: E501
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=work, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nothing lost" in done.stdout


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Located, steps.Acknowledged]:
    """A short run, and the calls that the process that made it would report."""
    reported = steps.Acknowledged()
    with Experiment("short", "demo", local_path=tmp_path) as experiment:
        experiment.parameters().set(model={"width": 3})
        reported.note("parameters", [{"model": {"width": 3}}])
        experiment.log("starts")
        reported.note("log", ["starts"])
        for epoch in range(5):
            experiment.metric("loss").append(value=1 / (epoch + 1), epoch=epoch)
            reported.note("point", ["loss", {"value": 1 / (epoch + 1), "epoch": epoch}])
    return read.locate("demo/short", tmp_path), reported


Facts = list[Any]
LIES: dict[str, tuple[str, Facts]] = {
    "a point that is not there": ("point", ["loss", {"value": 0.0, "epoch": 5}]),
    "a metric that is not there": ("point", ["other", {"value": 0.0}]),
    "a log entry that is not there": ("log", ["ended"]),
    "a parameter with another value": ("parameters", [{"model": {"width": 4}}]),
    "a file that is not there": ("file", ["123", "0" * 64]),
}


def test_the_count_is_complete_when_all_is_there(recorded: tuple[Located, steps.Acknowledged]) -> None:
    located, reported = recorded
    assert steps.count(read.view(located), [reported]) == steps.Count(acknowledged=7, recovered=7, beyond=0)


@pytest.mark.parametrize("lie", LIES)
def test_the_count_notices(recorded: tuple[Located, steps.Acknowledged], lie: str) -> None:
    located, reported = recorded
    reported.note(*LIES[lie])
    count = steps.count(read.view(located), [reported])
    assert count.recovered < count.acknowledged == reported.count
    assert not count.complete


def test_the_count_tells_what_was_written_beyond_what_was_acknowledged(
    recorded: tuple[Located, steps.Acknowledged],
) -> None:
    located, reported = recorded
    reported.points["loss"].pop()
    assert steps.count(read.view(located), [reported]) == steps.Count(acknowledged=6, recovered=6, beyond=1)


def test_the_count_notices_what_is_there_twice(recorded: tuple[Located, steps.Acknowledged], tmp_path: Path) -> None:
    located, reported = recorded
    with Experiment("short", "demo", local_path=tmp_path) as experiment:
        for point in reported.points["loss"][:2]:
            experiment.metric("loss").append(**point)
    count = steps.count(read.view(located), [reported])
    assert count == steps.Count(acknowledged=7, recovered=7, beyond=2)
    assert not count.complete


def test_a_value_that_differs_in_its_last_bit_is_not_found(recorded: tuple[Located, steps.Acknowledged]) -> None:
    located, reported = recorded
    reported.points["loss"][2]["value"] = 1 / 3 + 2**-54
    assert not steps.count(read.view(located), [reported]).complete


def test_the_data_are_fishers() -> None:
    path = Path(steps.__file__).with_name("iris.csv")
    rows = list(csv.DictReader(path.open(newline="", encoding="utf-8")))
    assert [sum(row["species"] == species for row in rows) for species in SPECIES] == [50, 50, 50]
    means = [sum(float(row[column]) for row in rows) / 150 for column in list(rows[0])[:4]]
    assert [round(mean, 3) for mean in means] == [5.843, 3.057, 3.758, 1.199]
    # The two rows that are wrong in the copy of the UCI repository.
    assert list(rows[34].values()) == ["4.9", "3.1", "1.5", "0.2", "setosa"]
    assert list(rows[37].values()) == ["4.9", "3.6", "1.4", "0.1", "setosa"]
    text = path.with_name("IRIS.md").read_text(encoding="utf-8")
    assert "Fisher" in text
    assert "CC BY 4.0" in text


def test_learning_follows_the_gradient() -> None:
    """Against a difference quotient: the loss before a small step, less the loss after it, is rate x |gradient|²."""
    rng = random.Random(7)
    network, flower = Network.fresh(5, rng), load_flowers()[70]
    rows = [*network.hidden, *network.output]
    before = [list(row) for row in rows]
    rate = 1e-6
    loss = network.learn(flower, rate)
    gradient = [(a - b) / rate for old, new in zip(before, rows, strict=True) for a, b in zip(old, new, strict=True)]
    after = network.learn(flower, 0.0)
    assert (loss - after) / rate == pytest.approx(sum(slope * slope for slope in gradient), rel=1e-3)


def test_the_training_script_runs_by_itself(shell: Shell) -> None:
    environment = {**shell.environment(), "ML_DASH_QUIET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "ml_dash.demo.train"],
        cwd=shell.folder, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"accuracy on flowers it never saw: 9\d\.\d%\n", done.stdout)
    assert os.listdir(shell.folder) == [".ml-dash"]
