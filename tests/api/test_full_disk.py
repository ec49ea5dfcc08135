"""A full disk: the journal comes first, and what can be made again gives way to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash.projection.project import rebuild
from ml_dash.reading.located import at
from ml_dash.reading.verify import verify
from ml_dash.recording import folder

from .conftest import Make


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A command that gives a process a disk of 4 MiB of its own at `<tmp_path>/disk`."""
    (tmp_path / "disk").mkdir()
    unshare = shutil.which("unshare")
    script = f'mount -t tmpfs -o size=4m none {tmp_path}/disk && exec "$@"'
    for options in (["-m"], ["-Urm"]) if unshare else ():
        command = [str(unshare), *options, "sh", "-c", script, "sh"]
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return "\0".join(command)
    pytest.skip("this user may not mount anything")


FILL = """
import os, sys
from pathlib import Path
from ml_dash import Experiment
disk = Path("disk")
experiment = Experiment("run", "p", local_path=disk / "store").open()
for step in range(12_000):
    experiment.metric("loss").append(value=step, step=step)
print(experiment.metric("loss").stats()["totalDataPoints"])
folder = disk / "store/p/run"
assert (folder / "metrics/loss/data.jsonl").exists()
# Somebody else fills the rest.
with open(disk / "other", "wb") as other:
    try:
        while True:
            os.write(other.fileno(), bytes(4096))
    except OSError as full:
        print(full.strerror)
for step in range(12_000, 14_000):
    experiment.metric("loss").append(value=step, step=step)
experiment.log("the last")
print(experiment.metric("loss").stats()["totalDataPoints"])
experiment.close()
print(sorted(path.name for path in folder.iterdir() if path.name != ".journal"))
os.unlink(disk / "other")
with Experiment("run", "p", local_path=disk / "store", read_only=True) as experiment:
    print(experiment.metric("loss").stats()["totalDataPoints"], experiment.log().read()["total"], experiment.status)
from ml_dash.cli import run
print(run(["rebuild", "p/run", "--path", str(disk / "store")]), run(["verify", "p/run", "--path", str(disk / "store")]))
print(sorted(path.name for path in folder.iterdir() if path.name != ".journal"))
"""


def test_the_folder_gives_way_before_an_event_is_lost(tmp_path: Path, small: str) -> None:
    done = subprocess.run(
        [*small.split("\0"), sys.executable, "-c", FILL], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "ML_DASH_QUIET": "1"}, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[:2] == ["12000", "No space left on device"]
    assert int(lines[2]) >= 12_000
    assert lines[3] == "['NOT-UP-TO-DATE.txt']"
    assert lines[4] == "14000 1 completed"
    assert lines[-1] == "['experiment.json', 'files', 'logs', 'metrics', 'parameters.json']"
    assert "has given way to what is still to be recorded" in done.stderr
    assert "were lost" not in done.stderr


def test_nothing_is_projected_while_there_is_little_room(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, runs: Path
) -> None:
    room = [1 << 20, 10 << 30]
    monkeypatch.setattr(folder, "free_bytes", lambda _: tuple(room))
    with make() as experiment:
        experiment.metric("loss").append(value=1)
        assert experiment.metric("loss").read()["total"] == 1
        assert not (runs / "cv/first/metrics/loss").exists()
        room[0] = 1 << 30
        assert experiment.metric("loss").read()["total"] == 1
        assert (runs / "cv/first/metrics/loss/data.jsonl").exists()
    assert caplog.text.count("the disk is nearly full") == 1
    located = at(runs / "cv/first")
    assert located is not None
    rebuild(located)
    assert verify(located).ok


def test_a_small_disk_leaves_a_hundredth(make: Make, monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    monkeypatch.setattr(folder, "free_bytes", lambda _: (2 << 20, 100 << 20))
    with make() as experiment:
        experiment.metric("loss").append(value=1)
    assert (runs / "cv/first/metrics/loss/data.jsonl").exists()
    assert isinstance(experiment, Experiment)
