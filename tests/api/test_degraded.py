"""A disk that refuses in the middle of a run: no call raises, and all is there once it takes again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Make, Python

resource = pytest.importorskip("resource")

# The kernel refuses to let any file of this process grow beyond where the segment ends now.
REFUSE = """
import json, os, resource, sys
from pathlib import Path
from ml_dash import Experiment

experiment = Experiment("first", "cv", strict=len(sys.argv) > 1).open()
experiment.metric("loss").append_batch([{"value": 1}] * 10_000)
(segment,) = experiment.path.glob(".journal/segments/*.seg")
Path("model.pth").write_bytes(b"weights")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

def refuse():
    resource.setrlimit(resource.RLIMIT_FSIZE, (segment.stat().st_size, hard))

def accept():
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
"""


def test_every_call_goes_on_in_memory_and_is_kept_when_the_disk_takes_again(python: Python, make: Make) -> None:
    ended = python(REFUSE + """
print(experiment.metric("loss").append(value=2)["index"])
refuse()
first = experiment.file("model.pth", prefix="/models", tags=["a"])
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
""")
    lines = ended.out.splitlines()
    assert lines[0] == "10000"
    assert lines[1] == lines[4] == "[10001, 10002, 10003] 0 1"
    assert lines[2] == "0 {} 1"
    identity, tags, stored, lost = __import__("json").loads(lines[3])
    assert (tags, stored, lost) == (["a"], True, "")
    assert "1 events of cv/first were lost" in lines[5]
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
    ended = python(REFUSE + """
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
experiment.log("yes")
experiment.close()
""", "strict")
    assert ended.out.splitlines() == ["StorageError True"] * 6
    with make(read_only=True) as reader:
        assert [entry["message"] for entry in reader.log().read()["logs"]] == ["yes"]
        assert (reader.parameters().get(), reader.file().list(), reader.status) == ({}, [], "completed")
        assert reader.metric("loss").stats()["totalDataPoints"] == 10_000


OPEN = """
import os, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
from ml_dash import Experiment
"""


@pytest.mark.skipif("__import__('os').getuid() != 0", reason="only the superuser can become somebody else")
def test_a_place_that_may_not_be_written_is_told_and_the_run_goes_on(python: Python, tmp_path: Path, runs: Path) -> None:
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(0o755)
    runs.mkdir(mode=0o755)
    ended = python(OPEN + """
experiment = Experiment("first", "cv").open()
experiment.log("one")
print(experiment.metric("loss").append(value=1)["index"], experiment.status, experiment.log().read()["total"])
try:
    experiment.close()
except OSError as error:
    print(error)
""")
    assert ended.out.splitlines()[0].startswith("0 ")
    assert "events of cv/first were lost" in ended.out
    assert "cannot write" in ended.err
    runs.chmod(0o700)
    ended = python(OPEN + """
for strict in (False, True):
    try:
        experiment = Experiment("first", "cv", strict=strict).open()
        experiment.log("one")
        experiment.close()
    except OSError as error:
        print(type(error).__name__, error)
""")
    assert [line.split()[0] for line in ended.out.splitlines()] == ["StorageError", "StorageError"]
