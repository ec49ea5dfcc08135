"""A disk that refuses in the middle of a run: no call raises, and all is there once it takes again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Make, Python

resource = pytest.importorskip("resource")

# The kernel lets no file of this process grow beyond a size.
REFUSE = """
import json, os, resource, sys
from pathlib import Path
from ml_dash import Experiment

experiment = Experiment("first", "cv", strict=len(sys.argv) > 1).open()
experiment.metric("loss").append_batch([{"value": 1}] * 10_000)
(segment,) = experiment.path.glob(".journal/segments/*.seg")
Path("model.pth").write_bytes(b"weights")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

def refuse(size=0):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

def accept():
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
"""


def test_every_call_goes_on_in_memory_and_is_kept_when_the_disk_takes_again(python: Python, make: Make) -> None:
    ended = python(
        REFUSE
        + """
print(experiment.metric("loss").append(value=2)["index"])
refuse(segment.stat().st_size)
first = experiment.file("model.pth", prefix="/models", tags=["a"])
refuse()
results = [experiment.metric("loss").append(value=3) for _ in range(3)]
batch = experiment.metric("other").append_batch([{"value": 4}] * 2)
experiment.log("in the dark")
experiment.parameters().set(lr=0.1)
experiment.update(description="d")
second = experiment.file("model.pth", prefix="/other")
print([result["index"] for result in results], batch["startIndex"], batch["endIndex"])
print(experiment.log().read()["total"], experiment.parameters().get(), experiment.metric("loss").read(limit=1)["total"])
state = experiment.durable_state()
assert state["accepted"] > state["written"], state
accept()
while experiment.durable_state()["written"] < experiment.durable_state()["accepted"]:
    experiment.log("again")
print(json.dumps([first["id"], first["tags"], first["checksum"] != "", second["id"]]))
print([result["index"] for result in results], batch["startIndex"], batch["endIndex"])
experiment.metric("loss").append(value=5)
try:
    experiment.close()
except OSError as error:
    print(error)
"""
    )
    lines = ended.out.splitlines()
    assert lines[0] == "10000"
    assert lines[1] == lines[4] == "[10001, 10002, 10003] 0 1"
    assert lines[2] == "0 {} 1"
    identity, tags, stored, lost = json.loads(lines[3])
    assert (tags, stored, lost) == (["a"], True, "")
    assert "1 event of cv/first was lost" in lines[5]
    assert ended.err.count("Training goes on") == 2
    with make(read_only=True) as reader:
        assert [record["id"] for record in reader.file().list()] == [identity]
        copy = reader.file(file_id=identity, dest_path="copy").download()
        assert Path(copy).read_bytes() == b"weights"
        assert reader.log().read()["logs"][0]["message"] == "in the dark"
        assert (reader.parameters().get(), reader.description) == ({"lr": 0.1}, "d")
        assert reader.metric("loss").stats()["totalDataPoints"] == 10_005
        assert reader.status == "completed"


def test_strict_raises_at_the_call_and_says_what_holds(python: Python, make: Make) -> None:
    ended = python(
        REFUSE
        + """
refuse()
for call in (
    lambda: experiment.log("no"), lambda: experiment.metric("loss").append(value=1),
    lambda: experiment.metric("loss").append_batch([{"value": 1}]), lambda: experiment.parameters().set(a=1),
    lambda: experiment.update(description="no"), lambda: experiment.file("model.pth"),
):
    try:
        call()
    except OSError as error:
        print(type(error).__name__, "not recorded" in str(error) or "nothing was recorded" in str(error))
accept()
while True:
    try:
        experiment.log("yes")
        break
    except OSError:
        continue
experiment.close()
""",
        "strict",
    )
    assert ended.out.splitlines() == ["StorageError True"] * 6
    with make(read_only=True) as reader:
        assert [entry["message"] for entry in reader.log().read()["logs"]] == ["yes"]
        assert (reader.parameters().get(), reader.file().list(), reader.status) == ({}, [], "completed")
        assert reader.metric("loss").stats()["totalDataPoints"] == 10_000


# Becomes somebody else, once all that is needed is loaded: the interpreter's own files may be out of reach then.
BECOME = """
import os, sys
from ml_dash import Experiment
with Experiment("warm", "up", local_path="warm") as experiment:
    experiment.metric("loss").append(value=1)
    experiment.metric("loss").stats()
    experiment.file("model.pth")
    try:
        1 / 0
    except ArithmeticError:
        experiment.close()
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
"""


@pytest.mark.skipif("__import__('os').getuid() != 0", reason="only the superuser can become somebody else")
def test_a_place_that_may_not_be_written_is_told_at_open(python: Python, tmp_path: Path, runs: Path) -> None:
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(0o755)
    script = (
        BECOME
        + """
for strict in (False, True):
    try:
        experiment = Experiment("first", "cv", strict=strict).open()
        experiment.log("one")
        print(experiment.metric("loss").append(value=1)["index"], experiment.file("model.pth")["id"] == "")
        experiment.close()
    except OSError as error:
        print(error)
"""
    )
    (tmp_path / "model.pth").write_bytes(b"weights")
    for mode in (0o755, 0o700):
        runs.mkdir(mode=mode)
        ended = python(script)
        lines = ended.out.splitlines()
        assert len(lines) == 2
        for line in lines:
            assert re.match(f"cannot use {runs}.*: Permission denied; .*local_path=, or ML_DASH_LOCAL_PATH", line)
        assert list(runs.iterdir()) == []
        runs.rmdir()
