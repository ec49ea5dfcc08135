"""The library without what only POSIX systems have: the three styles on a simulated Windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REMOVE = """
import os, sys
sys.modules["fcntl"] = None
del os.fork, os.fdatasync
"""

# What else Windows lacks and the library asks for by name. (What it does only where `os.name` is not "nt" cannot be
# taken away here: the interpreter itself is a POSIX one.)
REMOVE_MORE = (
    REMOVE
    + """
for module in ("grp", "pwd", "resource", "termios", "syslog"):
    sys.modules[module] = None
for name in (
    "pread", "pwrite", "preadv", "pwritev", "writev", "readv", "register_at_fork", "fchmod", "fchown",
    "chown", "lchown", "getuid", "geteuid", "getgid", "getegid", "statvfs", "fstatvfs", "sync",
    "posix_fadvise", "posix_fallocate", "copy_file_range", "mkfifo", "getpgid", "setsid", "uname", "nice",
    "sched_getaffinity", "O_NONBLOCK", "O_SYNC", "O_DSYNC",
):
    if hasattr(os, name):
        delattr(os, name)
import signal
del signal.SIGKILL, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.pthread_sigmask
"""
)

STYLES = """
import logging
from pathlib import Path
from ml_dash import Experiment, LogHandler, ml_dash_experiment

def record(experiment):
    experiment.log("hello", level="warn", n=1)
    experiment.parameters().set(lr=0.1, model={"layers": 2})
    for step in range(100):
        experiment.metric("train/loss").append(value=1 / (step + 1), step=step)
    experiment.metric("fast").append_batch([{"value": i} for i in range(1000)])
    Path("model.bin").write_bytes(b"weights")
    experiment.file("model.bin", prefix="/models")

with Experiment(name="with", project="styles") as experiment:
    record(experiment)

experiment = Experiment(name="open", project="styles", durability="always")
experiment.open()
record(experiment)
experiment.close()

@ml_dash_experiment(name="decorated", project="styles")
def train(experiment):
    record(experiment)

train()
train()

for name, runs in (("with", 1), ("open", 1), ("decorated", 2)):
    with Experiment(name=name, project="styles", read_only=True) as experiment:
        assert experiment.status == "completed", experiment.status
        assert experiment.metric("train/loss").stats()["totalDataPoints"] == 100 * runs
        assert [p["index"] for p in experiment.metric("fast").read(start_index=-2)["data"]] == [
            1000 * runs - 2, 1000 * runs - 1
        ]
        assert experiment.parameters().get() == {"lr": 0.1, "model.layers": 2}
        assert len(experiment.log().read()["logs"]) == runs
        [record_] = experiment.file().list()
        path = experiment.file(file_id=record_["id"], dest_path=f"{name}.bin").download()
        assert Path(path).read_bytes() == b"weights"
    folder = Path(".ml-dash/styles") / name
    assert len((folder / "logs/logs.jsonl").read_text().splitlines()) == runs
    assert len((folder / "metrics/train/loss/data.jsonl").read_text().splitlines()) == 100 * runs
print("all three")
"""


@pytest.mark.parametrize("removed", [REMOVE, REMOVE_MORE], ids=["fcntl-fork-fdatasync", "all-posix"])
def test_three_styles_run_without_what_only_posix_has(removed: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(removed + STYLES, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all three"
