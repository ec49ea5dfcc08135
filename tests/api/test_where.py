"""Where an experiment is kept: arguments, environment, foreign folders, moved ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ml_dash
from ml_dash import Experiment, ForeignFolder, InvalidName, InvalidValue, OperationMode, StorageError, UnsupportedType

if TYPE_CHECKING:
    from tests.api.conftest import Make, Python


def _record(**keywords: Any) -> Path:
    """Record an experiment; its journal."""
    with Experiment("first", "cv", **keywords) as experiment:
        experiment.metric("loss").append(value=1.0)
    return (experiment.path / experiment.data["journal"]).resolve()


# -- root and store ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "root", "store"),
    [
        ({}, ".ml-dash", ".ml-dash"),
        ({"local_path": "runs"}, "runs", "runs"),
        ({"local_path": Path("runs") / "deep"}, "runs/deep", "runs/deep"),
        ({"local_path": "./a/../runs/"}, "runs", "runs"),
        ({"local_prefix": "./experiments"}, "experiments", "experiments/.ml-dash"),
        ({"local_prefix": "experiments", "local_path": ".ml-dash"}, "experiments", "experiments/.ml-dash"),
        ({"local_prefix": Path("experiments"), "local_path": "journals"}, "experiments", "experiments/journals"),
        ({"local_prefix": "experiments", "local_path": "../elsewhere"}, "experiments", "elsewhere"),
    ],
)
def test_root_and_store_come_from_the_two_paths(tmp_path: Path, keywords: Any, root: str, store: str) -> None:
    journal = _record(**keywords)
    folder = tmp_path / root / "cv" / "first"
    assert Experiment("first", "cv", **keywords).path == folder
    assert (folder / "metrics" / "loss" / "data.jsonl").exists()
    assert journal == tmp_path / store / "cv" / "first" / ".journal"
    assert (tmp_path / store / ".gitignore").read_text() == "*\n"
    assert {path.name for path in (tmp_path / root / "cv").iterdir()} == {"first"}
    for place in (root, store, f"{root}/cv", f"{root}/cv/first"):
        assert [one["name"] for one in ml_dash.experiments(place)] == ["first"], place


def test_absolute_paths_home_and_a_later_chdir(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert make(local_path="~/runs").path == tmp_path / "home" / "runs" / "cv" / "first"
    assert make(local_prefix="~", local_path="/store").path == tmp_path / "home" / "cv" / "first"
    relative = make(local_path="relative")
    monkeypatch.chdir("/")
    with relative:
        relative.log("one")
        monkeypatch.chdir(tmp_path)
        relative.log("two")
    assert (tmp_path / "relative" / "cv" / "first" / "logs" / "logs.jsonl").exists()


def test_the_label_never_changes_the_path(make: Make, runs: Path) -> None:
    with make(folder="/deep/label") as experiment:
        assert (experiment.path, experiment.folder) == (runs / "cv" / "first", "/deep/label")


def test_a_store_that_exists_is_left_as_it_is(runs: Path) -> None:
    runs.mkdir()
    _record(local_path=runs)
    assert not (runs / ".gitignore").exists()


@pytest.mark.parametrize(
    ("local_path", "project", "name", "argument"),
    [
        ("store", "store", "any", "project"),
        ("store", "STORE", "any", "project"),
        ("cv/first", "cv", "first", "name"),
        ("cv/first/deep", "cv", "first", "name"),
    ],
)
def test_a_store_inside_the_root_is_nobodys_folder(
    tmp_path: Path, local_path: str, project: str, name: str, argument: str
) -> None:
    value = project if argument == "project" else name
    text = rf"{argument} '{value}' stands for the folder .*, which holds the journals .*'{local_path}'\); use another"
    with pytest.raises(InvalidName, match=text):
        Experiment(name, project, local_prefix="root", local_path=local_path)
    with Experiment("other", "other", local_prefix="root", local_path=local_path) as experiment:
        experiment.log("one")
    with Experiment("other", "cv", local_prefix="root", local_path=local_path) as experiment:
        experiment.log("one")
    assert len(ml_dash.experiments("root")) == 2


# -- the environment --------------------------------------------------------------------------------------------------


def test_an_argument_wins_then_the_environment_then_the_default(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_DASH_LOCAL_PREFIX", str(tmp_path / "env"))
    monkeypatch.setenv("ML_DASH_LOCAL_PATH", "journals")
    assert Experiment("first", "cv").path == tmp_path / "env" / "cv" / "first"
    assert _record() == tmp_path / "env" / "journals" / "cv" / "first" / ".journal"
    assert [one["name"] for one in ml_dash.experiments()] == ["first"]
    assert make(local_path="given").path == tmp_path / "given" / "cv" / "first"
    monkeypatch.setenv("ML_DASH_LOCAL_PREFIX", "")
    assert Experiment("first", "cv").path == tmp_path / "journals" / "cv" / "first"


def test_remote_user_and_durability_come_from_the_environment_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_DASH_REMOTE", "http://localhost:3000")
    monkeypatch.setenv("ML_DASH_USER_NAME", "alice")
    monkeypatch.setenv("ML_DASH_DURABILITY", "always")
    with make() as experiment:
        experiment.log("one")
        assert experiment.durable_state()["synced"] == 2
    assert experiment.mode is OperationMode.HYBRID
    assert Experiment("first", "cv").mode is OperationMode.REMOTE
    (writer,) = experiment.data["writers"]
    assert (writer["remote"], writer["userName"]) == ("http://localhost:3000", "alice")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ML_DASH_REMOTE", "localhost:3000"), ("ML_DASH_DURABILITY", "often"),
        ("ML_DASH_LOCAL_PATH", "~nobody-of-that-name/x"), ("ML_DASH_API_KEY", "two words"),
        ("ML_DASH_USER_NAME", "\x01"), ("ML_DASH_DISABLED", "maybe"),
    ],
)  # fmt: skip
def test_a_bad_variable_raises_and_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidValue, match=f"^{variable}") as caught:
        Experiment("first", "cv")
    assert caught.value.hint
    assert (value in str(caught.value)) == (variable not in ("ML_DASH_API_KEY", "ML_DASH_USER_NAME"))


@pytest.mark.parametrize("argument", ["local_path", "local_prefix"])
def test_a_path_that_is_none_is_refused(argument: str) -> None:
    for value, error in (("", InvalidValue), ("a\0b", InvalidValue), (5, UnsupportedType), (b"x", UnsupportedType)):
        with pytest.raises(error, match=f"^{argument} is "):
            Experiment("first", "cv", **{argument: value})  # type: ignore[arg-type]


def test_a_key_is_in_no_file_that_is_written(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_DASH_API_KEY", "canary-of-the-environment")
    with pytest.raises(ValueError, match="wrong"), make(remote="https://far.example", user_name="alice") as experiment:
        raise ValueError("wrong: canary-of-the-environment")
    assert experiment.data["error"]["message"] == "wrong: ***"
    assert "canary" not in repr(experiment) + repr(experiment._handle.arguments)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"canary" not in path.read_bytes(), path


# -- folders that are not ours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keywords", [{"local_path": "root"}, {"local_prefix": "root"}], ids=str)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_foreign_folder_is_never_written_to(tmp_path: Path, keywords: Any, read_only: bool) -> None:
    folder = tmp_path / "root" / "cv" / "first"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("mine")
    experiment = Experiment("first", "cv", read_only=read_only, **keywords)
    text = rf"{folder} is not empty and holds no journal .*'thesis.tex'.*left alone; use another local_path"
    with pytest.raises(ValueError, match=text) as caught:
        experiment.open()
    assert isinstance(caught.value, ForeignFolder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    assert experiment.status == "not open"


def test_an_empty_folder_is_taken(runs: Path) -> None:
    (runs / "cv" / "first").mkdir(parents=True)
    assert _record(local_path=runs) == runs / "cv" / "first" / ".journal"


@pytest.mark.parametrize("resume", ["allow", "new"])
@pytest.mark.parametrize("part", ["runs", "runs/cv"])
def test_a_file_where_a_folder_above_should_be_is_told_at_open(tmp_path: Path, part: str, resume: str) -> None:
    (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / part).write_text("mine")
    with pytest.raises(StorageError, match=r"Not a directory; .*local_path=, or ML_DASH_LOCAL_PATH"):
        Experiment("first", "cv", local_path="runs", resume=resume).open()
    assert (tmp_path / part).read_text() == "mine"


def test_a_file_in_the_place_of_the_experiment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "runs" / "cv").mkdir(parents=True)
    (tmp_path / "runs" / "cv" / "first").write_text("mine")
    with pytest.raises(ForeignFolder, match="is not a folder; use another local_path"):
        Experiment("first", "cv", local_path="runs").open()
    assert Experiment("first", "cv", local_path="runs", resume="new").open().name == "first-2"
    assert (tmp_path / "runs" / "cv" / "first").read_text() == "mine"


def test_a_link_that_leads_nowhere_is_told_as_one(tmp_path: Path) -> None:
    """As to a store on a file system that is not mounted."""
    (tmp_path / "runs").symlink_to(tmp_path / "mnt" / "runs")
    with pytest.raises(StorageError, match=r"runs is a link to .*mnt/runs, which is not there; .*local_path="):
        Experiment("first", "cv", local_path="runs").open()
    assert not (tmp_path / "mnt").exists()


# As a user without rights: (what stands in the way, where the run wants to be).
_PREPARE = """
import json, os, pathlib, sys  # now: later the interpreter may be out of reach
top = pathlib.Path(sys.argv[1]); kind = sys.argv[2]
from ml_dash import Experiment, MLDashError
where = top / "runs"
def record(where=where):
    with Experiment("first", "cv", local_path=where) as experiment:
        experiment.metric("loss").append(value=1.0)
if os.getuid() == 0:
    # Modules may lie where only this user reads: so all are loaded first.
    record(sys.argv[4])
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
if kind == "folder": top.chmod(0o555)
elif kind == "search": where.mkdir(); where.chmod(0)
elif kind == "store": where.mkdir(); where.chmod(0o555)
elif kind == "project": (where / "cv").mkdir(parents=True); (where / "cv").chmod(0o555)
elif kind == "experiment": (where / "cv" / "first").mkdir(parents=True); (where / "cv" / "first").chmod(0o555)
elif kind == "segments": record(); (where / "cv" / "first" / ".journal" / "segments").chmod(0o555)
elif kind == "journal": record(); (where / "cv" / "first" / ".journal").chmod(0)
elif kind == "loop": where.symlink_to(where)
elif kind == "long": where = top / ("x" * 300)
elif kind == "file": where = top / "file" / "runs"; (top / "file").write_text("mine")
elif kind == "device": where = pathlib.Path("/dev/null/runs")
elif kind == "another's": where = pathlib.Path(sys.argv[3])
before = sorted(str(path) for path in top.rglob("*")) if kind not in ("search", "journal", "loop") else None
try:
    Experiment("first", "cv", local_path=where).open()
except MLDashError as error:
    print(type(error).__name__, error)
    if before is not None:
        assert sorted(str(path) for path in top.rglob("*")) == before, "something was left"
"""


@pytest.mark.parametrize(
    "kind",
    ["folder", "search", "store", "project", "experiment", "segments", "journal", "loop", "long", "file", "device",
     "another's"],
)  # fmt: skip
def test_a_place_that_can_never_work_is_told_at_open(kind: str) -> None:
    """Not after hours of training, when what was kept in memory is lost."""
    # Not in `tmp_path`: the user without rights could not reach that.
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as foreign:
        Path(foreign).chmod(0o555)
        if os.getuid() == 0:
            shutil.chown(folder, 65534, 65534)
        with tempfile.TemporaryDirectory() as loaded:
            command = [sys.executable, "-c", _PREPARE, folder, kind, foreign, loaded]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", check=False)
        subprocess.run(["chmod", "-R", "u+rwX", folder, foreign], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("StorageError cannot use", "ForeignFolder")), (done.stdout, done.stderr)
    assert "local_path" in done.stdout


@pytest.mark.parametrize("keywords", [{"local_path": "root"}, {"local_prefix": "root"}], ids=str)
def test_a_copied_folder_says_whose_it_is(tmp_path: Path, keywords: Any) -> None:
    _record(**keywords)
    root = tmp_path / "root"
    shutil.copytree(root / "cv" / "first", root / "cv" / "copy")
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    text = r"holds experiment cv/first, not cv/copy; open it as project='cv', name='first', or use another local_path"
    with pytest.raises(ForeignFolder, match=text):
        Experiment("copy", "cv", **keywords).open()
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before


def test_a_documented_folder_leads_to_its_journal_whatever_the_arguments(tmp_path: Path) -> None:
    journal = _record(local_prefix="root", local_path="journals")
    with Experiment("first", "cv", local_path="root") as experiment:
        assert experiment.resumed
        assert experiment.metric("loss").append(value=2.0)["index"] == 1
    with Experiment("first", "cv", local_prefix="root", local_path="others", read_only=True) as experiment:
        assert experiment.metric("loss").stats()["totalDataPoints"] == 2
    assert not (tmp_path / "root" / "others").exists()
    assert len(list((journal / "segments").glob("*.seg"))) == 2


def test_a_root_and_its_store_can_be_moved_together(tmp_path: Path) -> None:
    _record(local_prefix="root")
    (tmp_path / "root").rename(tmp_path / "moved")
    with Experiment("first", "cv", local_prefix="moved", resume="must") as experiment:
        assert experiment.metric("loss").append(value=2.0)["index"] == 1
    assert not (tmp_path / "root").exists()
    assert len((tmp_path / "moved/cv/first/metrics/loss/data.jsonl").read_text().splitlines()) == 2


def test_a_documented_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    _record(local_prefix="root")
    shutil.rmtree(tmp_path / "root" / "cv")
    with Experiment("first", "cv", local_prefix="root", resume="must") as experiment:
        experiment.log("one")
    assert len((tmp_path / "root/cv/first/metrics/loss/data.jsonl").read_text().splitlines()) == 1


def test_an_experiment_killed_before_its_first_projection_is_found_in_its_place(python: Python, tmp_path: Path) -> None:
    """The opening event says where the folder belongs: beside the store, not inside it."""
    python("""
        import os
        from ml_dash import Experiment
        for keywords in ({"local_path": "plain"}, {"local_prefix": "root", "local_path": "store"}):
            Experiment("first", "cv", **keywords).open().metric("loss").append(value=1.0)
        os._exit(0)
    """)
    for place in ("plain", "root/store"):
        (found,) = ml_dash.experiments(place)
        assert (found["name"], found["status"], found["counts"]["points"]) == ("first", "interrupted", 1)
    for keywords in ({"local_path": "plain"}, {"local_prefix": "root", "local_path": "store"}):
        with Experiment("first", "cv", **keywords) as experiment:
            experiment.log("one")
    documents = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("experiment.json"))
    assert documents == ["plain/cv/first/experiment.json", "root/cv/first/experiment.json"]


# -- what an opening records of its place -----------------------------------------------------------------------------


def test_an_opening_records_where_it_runs_and_never_its_arguments(python: Python, make: Make, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", "-b", "work", "."], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    script = """
        from ml_dash import Experiment
        with Experiment("first", "cv"):
            pass
    """
    env = {
        "RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "SLURM_JOB_ID": "3", "SLURM_ARRAY_TASK_ID": "4",
        "SLURM_RESTART_COUNT": "5",
    }  # fmt: skip
    python(script, "--password=canary", env=env)
    subprocess.run(["git", "pack-refs", "--all"], check=True)
    python(script)
    subprocess.run(["git", "checkout", "-q", "--detach"], check=True)
    python(script)
    first, packed, detached = make().data["writers"]
    assert (first["host"], first["script"]) == (os.uname().nodename, str(tmp_path / "script0.py"))
    assert re.fullmatch(r"3\.\d+\.\d+", first["python"])
    assert first["mlDash"] == ml_dash.__version__
    keys = ("rank", "localRank", "worldSize", "slurmJobId", "slurmArrayTaskId", "slurmRestartCount")
    assert [first[key] for key in keys] == ["0", "1", "2", "3", "4", "5"]
    for writer in (first, packed):
        assert (writer["gitCommit"], writer["gitBranch"]) == (commit, "work")
    assert (detached["gitCommit"], "gitBranch" in detached) == (commit, False)
    for path in (tmp_path / "runs").rglob("*"):
        assert not path.is_file() or b"canary" not in path.read_bytes(), path


def test_a_working_directory_that_is_gone_stops_nobody(python: Python, make: Make, runs: Path) -> None:
    python("""
        import os, sys
        from pathlib import Path
        from ml_dash import Experiment
        Path("gone").mkdir()
        os.chdir("gone")
        os.rmdir("../gone")
        del sys.modules["__main__"].__file__
        with Experiment("first", "cv") as experiment:
            experiment.log("one")
    """)
    assert make().status == "completed"
