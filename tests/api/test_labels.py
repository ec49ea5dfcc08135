"""Title, notes and archiving: another name, remarks, put away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash.errors import InvalidName, UnsupportedType


def test_title_notes_and_archiving_are_recorded_and_read_again(tmp_path: Path) -> None:
    with Experiment("a", "p", local_path=tmp_path) as experiment:
        experiment.update(title="baseline")
        experiment.notes = "# why\n*wide*"
        experiment.update(archived=True)
        assert (experiment.title, experiment.notes, experiment.archived) == ("baseline", "# why\n*wide*", True)
    document = json.loads((tmp_path / "p" / "a" / "experiment.json").read_text(encoding="utf-8"))
    assert [document[key] for key in ("name", "title", "names", "notes", "archived")] == [
        "a", "baseline", ["a"], "# why\n*wide*", True,
    ]  # fmt: skip


def test_what_it_was_called_before_is_remembered(tmp_path: Path) -> None:
    with Experiment("a", "p", local_path=tmp_path) as experiment:
        for title in ("b", "c", "b", "d"):
            experiment.update(title=title)
        assert experiment.data["names"] == ["a", "c", "b"]
        experiment.update(title="a")
        assert experiment.data["names"] == ["c", "b", "d"]


@pytest.mark.parametrize("title", ["", "a/b", "..", "x" * 300])
def test_a_title_that_could_not_be_a_name_is_refused(tmp_path: Path, title: str) -> None:
    with Experiment("a", "p", local_path=tmp_path) as experiment:
        with pytest.raises(InvalidName):
            experiment.update(title=title)
        assert experiment.title is None


def test_labels_of_the_wrong_type_are_refused(tmp_path: Path) -> None:
    with Experiment("a", "p", local_path=tmp_path) as experiment:
        with pytest.raises(UnsupportedType):
            experiment.update(notes=1)  # type: ignore[arg-type]
        with pytest.raises(UnsupportedType):
            experiment.update(archived="yes")  # type: ignore[arg-type]
        assert (experiment.notes, experiment.archived) == (None, False)


ENDS = {
    "raise ValueError('no\\nmore')": ("failed", {"kind": "exception", "type": "ValueError", "text": "ValueError: no"}),
    "sys.exit(3)": ("failed", {"kind": "exit", "code": 3, "text": "ended with exit code 3"}),
    "sys.exit(143)": ("interrupted", {"kind": "signal", "signal": 15, "text": "ended by SIGTERM"}),
    "raise KeyboardInterrupt": ("interrupted", {"kind": "signal", "signal": 2, "text": "ended by SIGINT"}),
    "e.close('interrupted')": ("interrupted", {"kind": "closed", "text": "closed as interrupted"}),
    "pass": ("completed", None),
}


@pytest.mark.parametrize("statement", ENDS)
def test_it_says_why_it_ended(tmp_path: Path, statement: str) -> None:
    begin = "import sys\nfrom ml_dash import Experiment\nwith Experiment('a', 'p', local_path='.') as e:\n    "
    program = begin + statement
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    document = json.loads((tmp_path / "p" / "a" / "experiment.json").read_text(encoding="utf-8"))
    status, reason = ENDS[statement]
    at = {"at": document["endedAt"]} if reason else {}
    assert (document["status"], document["reason"]) == (status, {**reason, **at} if reason else None)


def test_one_that_was_killed_says_where_and_when_it_was_last_heard(tmp_path: Path) -> None:
    program = (
        "import os, signal\nfrom ml_dash import Experiment\n"
        "e = Experiment('a', 'p', local_path='.').open()\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    with Experiment("a", "p", local_path=tmp_path, read_only=True) as experiment:
        reason = experiment.data["reason"]
        (writer,) = experiment.data["writers"]
    assert reason == {
        "kind": "died", "host": writer["host"], "at": writer["lastEventAt"],
        "text": f"died on {writer['host']}, last heard {writer['lastEventAt']}",
    }  # fmt: skip


def test_of_many_writers_the_first_and_the_newest_are_listed(tmp_path: Path) -> None:
    for number in range(60):
        with Experiment("a", "p", local_path=tmp_path) as experiment:
            experiment.log(f"{number}")
    document = experiment.data
    assert (document["writersTotal"], document["writersRunning"], len(document["writers"])) == (60, 0, 51)
    began = [writer["startedAt"] for writer in document["writers"]]
    assert began == sorted(began)
    assert document["createdAt"] == began[0]
    # It is still known from the file alone that nothing more comes.
    with Experiment("a", "p", local_path=tmp_path) as experiment:
        assert experiment.data["writersRunning"] == 1
    assert experiment.data["status"] == "completed"


# -- found by either name ---------------------------------------------------------------------------------------------


def test_a_renamed_experiment_goes_on_under_either_name(tmp_path: Path) -> None:
    with Experiment("a", "p", local_path=tmp_path) as experiment:
        experiment.update(title="baseline")
        identity = experiment.id
    with Experiment("baseline", "p", local_path=tmp_path) as again:
        again.log("goes on")
        assert (again.name, again.id, again.title, again.resumed) == ("a", identity, "baseline", True)
    with Experiment("a", "p", local_path=tmp_path) as again:
        assert again.resumed
    assert [path.name for path in (tmp_path / "p").iterdir() if path.is_dir()] == ["a"]
    with Experiment("baseline", "p", local_path=tmp_path, read_only=True) as reader:
        assert (len(reader.log().read()["logs"]), reader.path) == (1, tmp_path / "p" / "a")


def test_a_name_is_meant_before_a_title_and_a_title_that_two_have_is_nobodys(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Experiment(name, "p", local_path=tmp_path) as experiment:
            experiment.update(title="same")
    with Experiment("same", "p", local_path=tmp_path) as experiment:
        assert (experiment.name, experiment.resumed) == ("same", False)
    with Experiment("b", "p", local_path=tmp_path) as experiment:
        experiment.update(title="a")
    with Experiment("a", "p", local_path=tmp_path) as experiment:
        assert (experiment.name, experiment.title) == ("a", "same")


def test_a_title_that_was_given_up_finds_nothing_anymore(tmp_path: Path) -> None:
    with Experiment("a", "p", local_path=tmp_path) as experiment:
        experiment.update(title="old")
    with Experiment("a", "p", local_path=tmp_path) as experiment:
        experiment.update(title="new")
    with Experiment("old", "p", local_path=tmp_path) as experiment:
        assert (experiment.name, experiment.resumed) == ("old", False)


HINTS = ('["t", "../../elsewhere"]', '["t", 1]', "[", '{"a": 1}', '["t", ""]', '["t", "gone"]')


@pytest.mark.parametrize("line", HINTS)
def test_a_hint_that_makes_no_sense_finds_nothing(tmp_path: Path, line: str) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / ".titles").write_text(line + "\n", encoding="utf-8")
    with Experiment("t", "p", local_path=tmp_path) as experiment:
        assert not experiment.resumed
