"""Machines of one user, each with folders of its own, and a real server that they share."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from ml_dash import cli
from ml_dash.journal.segment import JOURNAL, list_segments
from ml_dash.reading.located import Located
from ml_dash.reading.read import view
from ml_dash.reading.verify import verify
from ml_dash.reading.view import View
from ml_dash.sync import remote
from ml_dash.sync.login import development_token
from ml_dash.sync.proof import prove
from ml_dash.sync.register import Registration
from tests.journals import Tree, tree

USER = "alice"

_TRAIN = """
import json, os, signal, sys
from pathlib import Path
from ml_dash import Experiment
name, url, points, end, options = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], json.loads(sys.argv[5])
experiment = Experiment(name, "e2e", local_path="runs", remote=url, user_name="alice", **options).open()
before = experiment.parameters().get()
experiment.parameters().set(**{f"of_{before.get('openings', 0)}": True, "openings": before.get("openings", 0) + 1})
metric, indices = experiment.metric("loss"), []
for number in range(points):
    indices.append(metric.append(value=number / 7, step=number)["index"])
    experiment.log(f"{before.get('openings', 0)}: {number}")
Path("weights.bin").write_bytes(str(before).encode() * 1000)
experiment.file("weights.bin", prefix=f"run{before.get('openings', 0)}").save()
files = sorted(file["path"] + "/" + file["filename"] for file in experiment.file().list())
print(json.dumps({"before": before, "indices": indices, "files": files, "resumed": experiment.resumed}), flush=True)
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
experiment.close()
"""


class Machine:
    """A home of its own: what is recorded under `runs`, what is registered, how far the upload is."""

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        self.url = url
        self.root = home / "runs"
        self.root.mkdir(parents=True)
        self.environment = {
            **os.environ, "ML_DASH_REMOTE": url, "ML_DASH_USER_NAME": USER, "ML_DASH_LOCAL_PATH": str(self.root),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }  # fmt: skip
        for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
            self.environment[name] = str(home / name.lower())

    def at(self, name: str) -> Located:
        """Where an experiment is, or would be."""
        folder = self.root / "e2e" / name
        return Located("e2e", name, folder, folder / JOURNAL)

    def view(self, name: str) -> View:
        """What is known of it here; everything is sound."""
        report = verify(self.at(name))
        assert report.ok, report.findings
        return view(self.at(name))

    def tree(self, name: str) -> Tree:
        """Its documented folder."""
        return tree(self.at(name).folder)

    def segments(self, name: str) -> dict[str, bytes]:
        """Its segments, by file name."""
        return {path.name: path.read_bytes() for _, path in list_segments(self.at(name).journal)}

    def run(self, *command: str, fail: str = "", timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """A command of this user on this machine; with `fail` it dies there by SIGKILL."""
        environment = self.environment | ({"ML_DASH_FAIL": f"{fail}:kill"} if fail else {})
        done = subprocess.run(
            [sys.executable, *command], env=environment, cwd=self.home, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert not fail or done.returncode == -signal.SIGKILL, (done.returncode, done.stdout, done.stderr)
        return done

    def dash(self, *arguments: str, code: int = 0, fail: str = "") -> str:
        """`ml-dash ...`, in this process unless it is to die; what it prints."""
        if fail:
            return self.run("-m", "ml_dash", *arguments, fail=fail).stdout
        said, complained = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment, clear=True),
            contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained),
        ):  # fmt: skip
            found = cli.run(arguments)
        assert found == code, (found, said.getvalue(), complained.getvalue())
        return said.getvalue() + complained.getvalue()

    def train(self, name: str, points: int, *, kill: bool = False, **options: Any) -> dict[str, Any]:
        """A run of some points, each with a log entry, and a file; how it went."""
        done = self.run("-c", _TRAIN, name, self.url, str(points), "kill" if kill else "close", json.dumps(options))
        assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        found["told"] = done.stderr
        return found

    def sync(self) -> None:
        """Send everything, and have it proven."""
        done = self.run("-m", "ml_dash_syncd", "once")
        assert done.returncode == 0, (done.stdout, done.stderr)

    def prove(self, name: str) -> None:
        """The digests of both sides are the same, and nothing is missing there."""
        located = self.at(name)
        with self.link() as link:
            found = prove(located, Registration(str(located.journal), self.url, USER), link)
        assert found.complete, found

    @contextlib.contextmanager
    def link(self) -> Iterator[remote.Link]:
        """To the server, as this user."""
        with contextlib.closing(remote.Link(self.url, development_token(USER))) as link:
            yield link

    def points_there(self, name: str) -> list[dict[str, Any]]:
        """All points of the loss that the server has."""
        with self.link() as link:
            experiment = remote.find_experiment(link, "e2e", name)["experiment"]
            path = f"/experiments/{experiment}/metrics/loss/data"
            page = link.call("GET", path, params={"limit": "10000"}).json()
            return list(page["data"])
