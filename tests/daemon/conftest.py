"""A server for all tests of the daemon's processes, and for each test folders of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash import Experiment
from ml_dash.core.names import experiment_id
from ml_dash.errors import ServerRefused
from ml_dash.sync import remote
from ml_dash.sync.login import development_token
from tests.running import Server

WAIT_S = 30.0


class Home:
    """A user of the server with a store, settings and a state that nobody else has."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.user = re.sub(r"\W", "", folder.name)
        self.store = folder / "store"
        self.state = Path(os.environ["XDG_STATE_HOME"])

    def open(self, name: str = "one", **more: Any) -> Experiment:
        """An open experiment that goes to the server."""
        return Experiment(name, "p", local_path=self.store, remote=self.url, user_name=self.user, **more).open()

    def record(self, name: str = "one", logs: int = 3, **more: Any) -> None:
        """A closed one, with so many log entries."""
        with self.open(name, **more) as experiment:
            for number in range(logs):
                experiment.log(str(number))

    def logs(self, name: str = "one") -> int:
        """How many log entries the server has."""
        link = remote.Link(self.url, development_token(self.user))
        path = f"/experiments/{experiment_id('p', name)}/logs"
        try:
            return len(link.ask("GET", path, ("logs",), params={"limit": 1000})["logs"])
        except ServerRefused:
            return 0
        finally:
            link.close()

    def file(self, name: str) -> Path:
        """A file of the daemon's state."""
        (found,) = self.state.rglob(name)
        return found

    def syncd(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """`ml-dash-syncd ARGUMENTS`, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "ml_dash_syncd", *arguments], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=WAIT_S, check=False, **more,
        )  # fmt: skip


@pytest.fixture(scope="package")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("daemon") / "data").start()
    yield running
    running.end()


@pytest.fixture
def home(one_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Home(tmp_path, one_server.url)
