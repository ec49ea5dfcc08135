"""`ml-dash tail`, and reading commands on a server: with real processes, of which some are killed."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from ml_dash import RemoteClient
from ml_dash.sync import progress
from tests import running

if TYPE_CHECKING:
    from tests.cli.conftest import Dash, Shell

_WAIT_S = 60.0
PROGRAM = """
import sys
from ml_dash import Experiment
experiment = Experiment("run", "cv").open()
for line in sys.stdin:
    step = int(line)
    experiment.log(f"step {step}")
    experiment.metric("loss").append(value=1 / (step + 1), step=step)
experiment.close("failed")
"""


class Lines:
    """A process, and the lines of JSON that it prints, as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)

    def until(self, **wanted: Any) -> list[dict[str, Any]]:
        """The lines up to the one that has these values."""
        found: list[dict[str, Any]] = []
        deadline = monotonic() + _WAIT_S
        while not found or any(found[-1].get(key) != value for key, value in wanted.items()):
            found.append(json.loads(self._lines.get(timeout=max(0.1, deadline - monotonic()))))
        return found

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(_WAIT_S)
        self._thread.join()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return code


@pytest.fixture
def training(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A run that makes a step for each line that it gets."""
    monkeypatch.setenv("ML_DASH_QUIET", "1")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=shell.folder, stdin=subprocess.PIPE, text=True, bufsize=1
    )
    yield process
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def steps(process: subprocess.Popen[str], *numbers: int) -> None:
    assert process.stdin is not None
    process.stdin.write("".join(f"{number}\n" for number in numbers))
    process.stdin.flush()


def wait_for_run(shell: Shell) -> None:
    deadline = monotonic() + _WAIT_S
    while not list((shell.folder / ".ml-dash/cv/run/.journal/segments").glob("*.seg")):
        assert monotonic() < deadline
        threading.Event().wait(0.05)


def test_it_shows_what_comes_and_ends_when_the_process_is_killed(shell: Shell, training: subprocess.Popen[str]) -> None:
    steps(training, 0, 1)
    wait_for_run(shell)
    tail = Lines(shell.start("tail", "cv/run", "--json"))
    tail.until(kind="log", message="step 1")
    tail.until(kind="status", status="running")
    steps(training, 2)
    point = tail.until(kind="point")[-1]
    assert (point["metric"], point["data"]["step"]) == ("loss", 2)
    training.kill()
    status = tail.until(kind="status")[-1]
    assert (status["status"], status["reason"]["kind"]) == ("interrupted", "died")
    assert tail.end() == 0


def test_it_ends_with_the_run_and_follows_the_next_only_if_asked(shell: Shell, training: subprocess.Popen[str]) -> None:
    steps(training, 0)
    wait_for_run(shell)
    short, long = (Lines(shell.start("tail", "cv/run", "--json", *more)) for more in ((), ("-f",)))
    for tail in (short, long):
        tail.until(kind="status", status="running")
    assert training.stdin is not None
    training.stdin.close()
    assert short.until(kind="status", status="failed")
    assert short.end() == 0
    long.until(kind="status", status="failed")
    again = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=shell.folder, input="7\n", text=True, timeout=_WAIT_S, check=True
    )
    assert again.returncode == 0
    long.until(kind="log", message="step 7")
    assert long.end(signal.SIGINT) == 130


# -- on a server ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[running.Server]:
    serving = running.Server(tmp_path_factory.mktemp("tail") / "data").start()
    yield serving
    serving.end()


@pytest.fixture
def client(server: running.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteClient]:
    """The test's user, whose logins and registrations are its own."""
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "home" / name))
    monkeypatch.setenv("ML_DASH_USER_NAME", tmp_path.name)
    monkeypatch.setattr(progress, "_process", progress._Process(os.getpid(), progress.deque(), set()))
    with RemoteClient(server.url, user_name=tmp_path.name) as client:
        yield client


def test_a_restarted_server_only_delays_it(shell: Shell, server: running.Server, client: RemoteClient) -> None:
    identity = client.create_experiment("cv", "there")["experiment"]["id"]
    client.add_logs(identity, [{"message": "first"}])
    tail = Lines(shell.start("tail", "cv/there", "--remote", server.url, "--json"))
    tail.until(kind="log", message="first")
    tail.until(kind="status", status="running")
    server.end(signal.SIGKILL)
    server.start()
    client.append(identity, "loss", value=0.5, step=3)
    client.add_logs(identity, [{"message": "second"}])
    found = tail.until(kind="log", message="second")
    assert [line["message"] for line in found if line["kind"] == "log"] == ["second"]
    if not any(line["kind"] == "point" for line in found):
        found = tail.until(kind="point")
    client.create_experiment("cv", "there", status="completed")
    tail.until(kind="status", status="completed")
    assert tail.end() == 0


def test_reading_commands_read_a_server_now_and_then(dash: Dash, server: running.Server, client: RemoteClient) -> None:
    identity = client.create_experiment("cv", "there", tags=["t"])["experiment"]["id"]
    client.set_parameters(identity, {"lr": 0.1})
    client.append(identity, "loss", value=1.0, step=0)
    client.add_logs(identity, [{"message": "first"}])
    then = client.experiment(identity)["counts"]["events"]
    client.set_parameters(identity, {"lr": 0.2})
    client.append(identity, "loss", value=2.0, step=1)
    client.add_logs(identity, [{"message": "second"}])
    there = ("cv/there", "--remote", server.url)
    assert dash("params", *there, "--json").json == {"lr": 0.2}
    assert dash("params", *there, "--json", "--as-of", str(then)).json == {"lr": 0.1}
    shown = dash("show", "there", "--remote", server.url, "--json", "--as-of", str(then)).json
    assert (shown["experiment"]["counts"]["events"], shown["parameters"]) == (then, {"lr": 0.1})
    assert shown["experiment"]["remote"] == server.url
    assert [line["message"] for line in dash("logs", *there, "--json", "--as-of", str(then)).json_lines] == ["first"]
    points = dash("metrics", "cv/there", "loss", "--remote", server.url, "--json", "--as-of", str(then)).json
    assert [point["data"]["value"] for point in points["data"]] == [1.0]
    assert dash("files", *there, "--json").json == []
    kinds = [mark["kind"] for mark in dash("history", *there, "--json").json["marks"]]
    assert kinds.count("parameter") >= 1
    assert "lr" in dash("diff", "cv/there", "cv/there", "--remote", server.url, "--all").out
    assert "no experiment" in dash("show", "cv/absent", "--remote", server.url, code=1).err


def test_a_whole_project_is_pulled(dash: Dash, server: running.Server, client: RemoteClient, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        identity = client.create_experiment("cv", name)["experiment"]["id"]
        client.append(identity, "loss", value=1.0)
    client.create_experiment("other", "d")
    result = dash("pull", "cv", "--remote", server.url, "--path", str(tmp_path / "here"), "--json")
    assert [one["name"] for one in result.json] == ["a", "b", "c"]
    assert sorted(path.name for path in (tmp_path / "here" / "cv").iterdir()) == ["a", "b", "c"]
    assert "no experiments of project" in dash("pull", "none", "--remote", server.url, code=1).err
