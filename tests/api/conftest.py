"""What the tests of the public API share: experiments in a folder of the test's own, and real Python processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from ml_dash import Experiment

TIMEOUT_S = 60


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing on stderr, and the working directory is the test's own."""
    monkeypatch.setenv("ML_DASH_QUIET", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The folder that experiments of a test are kept in."""
    return tmp_path / "runs"


Make = Callable[..., Experiment]


@pytest.fixture
def make(runs: Path) -> Iterator[Make]:
    """Experiments that are closed when the test ends."""
    made: list[Experiment] = []

    def make(name: str = "first", project: str = "cv", **keywords: Any) -> Experiment:
        if not {"local_path", "local_prefix"} & keywords.keys():
            keywords["local_path"] = runs
        experiment = Experiment(name, project, **keywords)
        made.append(experiment)
        return experiment

    yield make
    for experiment in made:
        experiment.close()


@pytest.fixture
def opened(make: Make) -> Experiment:
    """A new experiment, open."""
    return make().open()


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


class Started:
    """A Python process that runs a script."""

    def __init__(self, script: Path, arguments: tuple[object, ...], env: dict[str, str], folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)], cwd=folder, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def tell(self, text: str = "") -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def end(self) -> Ended:
        """Wait for its end."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        return Ended(self.process.returncode, out, err)


class Python:
    """Starts scripts as processes of their own; an experiment is at `ml_dash.Experiment` as usual."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Started] = []

    def start(self, text: str, *arguments: object, env: dict[str, str] | None = None) -> Started:
        """Start a script; it runs in the folder of the test, with `runs` as the default place."""
        script = self.folder / f"script{len(self.started)}.py"
        script.write_text(textwrap.dedent(text), encoding="utf-8")
        environment = {
            **os.environ,
            "ML_DASH_LOCAL_PATH": str(self.folder / "runs"),
            # From Python 3.12 on, every fork beside a thread warns.
            "PYTHONWARNINGS": "ignore:This process:DeprecationWarning",
            **(env or {}),
        }
        started = Started(script, arguments, environment, self.folder)
        self.started.append(started)
        return started

    def __call__(self, text: str, *arguments: object, env: dict[str, str] | None = None, code: int = 0) -> Ended:
        """Run a script to its end, which must have that exit code."""
        ended = self.start(text, *arguments, env=env).end()
        assert ended.code == code, f"exit code {ended.code}\n{ended.out}\n{ended.err}"
        return ended


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Python]:
    """Runs scripts in processes of their own."""
    starter = Python(tmp_path)
    yield starter
    for started in starter.started:
        if started.process.poll() is None:
            started.process.kill()
        started.process.communicate()


@pytest.fixture
def read_lines() -> Callable[[Path], list[dict[str, Any]]]:
    """The objects of a JSON-lines file."""
    return lambda path: [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def read_json() -> Callable[[Path], Any]:
    """The content of a JSON file; what is no strict JSON is an error."""

    def refuse(text: str) -> Any:
        raise AssertionError(f"{text} is no JSON")

    return lambda path: json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], None]:
    """Waits for something that another thread or process does."""

    def wait(holds: Callable[[], Any]) -> None:
        deadline = monotonic() + TIMEOUT_S
        while not holds():
            assert monotonic() < deadline, "it did not happen"
            threading.Event().wait(0.005)

    return wait
