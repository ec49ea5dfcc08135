"""What the tests of the command line share: the real command in a process of its own, and experiments to show."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment, cli

COMMAND = [sys.executable, "-m", "ml_dash"]


@dataclass(frozen=True)
class Result:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.lines]


@dataclass(frozen=True)
class Shell:
    """Runs `ml-dash` in a folder."""

    folder: Path

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
        return {**kept, "TERM": "xterm-256color", "PYTHONWARNINGS": "error", **(extra or {})}

    def __call__(
        self, *arguments: str, env: Mapping[str, str] | None = None, stdin: str = "", folder: Path | None = None
    ) -> Result:
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=folder or self.folder,
            env=self.environment(env),
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str, env: Mapping[str, str] | None = None) -> Result:
        result = self(*arguments, env=env)
        assert result.code == 0, result.err
        return result

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def in_terminal(
        self, *arguments: str, env: Mapping[str, str] | None = None, typed: str = "", columns: int = 80
    ) -> Result:
        """The same with stdin, stdout and stderr on a pseudo terminal; all that it shows is `out`."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment({"COLUMNS": str(columns), **(env or {})}),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        os.write(ours, typed.encode())
        shown = b""
        while block := _read(ours):
            shown += block
        os.close(ours)
        code = process.wait()
        watchdog.cancel()
        return Result(code, shown.decode().replace("\r\n", "\n"), "")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # nobody has the other end open any more
        return b""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


Dash = Callable[..., Result]


@pytest.fixture
def dash(capfd: pytest.CaptureFixture[str]) -> Dash:
    """Runs `ml-dash` in this process: for where one of its own would show no more."""

    def run(*arguments: str, code: int | None = 0) -> Result:
        capfd.readouterr()
        ended = cli.run(arguments)
        out, err = capfd.readouterr()
        assert "Traceback" not in err, err
        assert code is None or ended == code, err or out
        return Result(ended, out, err)

    return run


Record = Callable[..., Path]


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """Records an experiment in the shell's folder, as training would; returns its documented folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ML_DASH_QUIET", "1")

    def record(
        name: str,
        project: str = "cv",
        *,
        loss: tuple[float, ...] = (1.0, 0.5),
        logs: tuple[str, ...] = ("training starts",),
        parameters: dict[str, object] | None = None,
        files: dict[str, str] | None = None,
        fails: bool = False,
        **arguments: Any,
    ) -> Path:
        experiment = Experiment(name, project, **arguments).open()
        for message in logs:
            experiment.log(message)
        if parameters:
            experiment.parameters().set(parameters)
        for step, value in enumerate(loss):
            experiment.metric("loss").append(value=value, step=step)
        for file, content in (files or {}).items():
            (tmp_path / file).write_text(content)
            experiment.file(str(tmp_path / file), prefix="/models")
        experiment.close("failed" if fails else None)
        return experiment.path

    return record
