"""Recording switched off: the same calls and reads, in a folder that goes with the process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ml_dash import Experiment

if TYPE_CHECKING:
    from tests.api.conftest import Python

SCRIPT = """
import sys
from pathlib import Path
import ml_dash
from ml_dash import Experiment, ml_dash_experiment

Path("model.bin").write_bytes(b"weights")
given = dict(local_path=sys.argv[1], remote="https://far.example", resume="must", write_protected=False, strict=True)
with Experiment("first", "cv", tags=["a"], **given) as experiment:
    experiment.log("one", odd=object())
    experiment.parameters().set(lr=0.1)
    assert experiment.metric("loss").append(value=1.0)["index"] == 0
    record = experiment.file("model.bin", prefix="/models")
    assert Path(experiment.file(file_id=record["id"], dest_path="copy").download()).read_bytes() == b"weights"
    assert experiment.log().read()["total"] == 1
    assert experiment.parameters().get() == {"lr": 0.1}
    assert experiment.metric("loss").stats()["totalDataPoints"] == 1
    assert experiment.tags == ["a"]
    assert experiment.wait_synced() is True
with Experiment("first", "cv", **given) as experiment:
    assert experiment.resumed
    assert experiment.metric("loss").append(value=2.0)["index"] == 1
with Experiment("first", "cv", read_only=True, local_path=sys.argv[1]) as experiment:
    assert experiment.metric("loss").read()["total"] == 2
    assert experiment.status == "completed"

@ml_dash_experiment(name="second", project="cv")
def train(experiment):
    experiment.log("one")
    return experiment.path

train()
left_open = Experiment("third", "cv").open()
left_open.log("one")
print(left_open.path)
"""


@pytest.mark.parametrize("value", ["1", "true"])
def test_the_same_script_runs_records_nothing_and_leaves_nothing(python: Python, tmp_path: Path, value: str) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    env = {
        "ML_DASH_DISABLED": value, "ML_DASH_QUIET": "", "TMPDIR": str(temporary), "ML_DASH_REMOTE": "https://far.example",
        "ML_DASH_LOCAL_PREFIX": str(tmp_path / "prefix"),
    }  # fmt: skip
    ended = python(SCRIPT, tmp_path / "given", env=env)
    assert ended.err == ""
    folder = Path(ended.out.strip())
    assert folder.parts[-2:] == ("cv", "third")
    assert temporary in folder.parents
    assert list(temporary.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "model.bin", "script0.py", "temporary"]


def test_children_of_a_disabled_process_leave_the_folder_to_it(python: Python, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    ended = python(
        """
        import multiprocessing, os, sys
        from ml_dash import Experiment

        def work(experiment):
            experiment.metric("loss").append(value=1.0)

        if __name__ == "__main__":
            with Experiment("first", "cv") as experiment:
                for method in ("fork", "spawn"):
                    process = multiprocessing.get_context(method).Process(target=work, args=(experiment,))
                    process.start()
                    process.join()
                    assert process.exitcode == 0
                if os.fork() == 0:
                    work(experiment)
                    sys.exit(0)
                os.wait()
                print(experiment.metric("loss").read()["total"])
    """,
        env={"ML_DASH_DISABLED": "1", "ML_DASH_QUIET": "", "TMPDIR": str(temporary)},
    )
    assert (ended.out, ended.err) == ("3\n", "")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("value", ["0", "false", ""])
def test_it_can_be_said_that_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ML_DASH_DISABLED", value)
    assert Experiment("first", "cv").path == tmp_path / ".ml-dash" / "cv" / "first"
    assert not str(Experiment("first", "cv").path).startswith(tempfile.gettempdir() + "/ml-dash-disabled")
