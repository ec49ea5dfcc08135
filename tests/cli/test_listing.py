"""`ml-dash ls`, and which experiment a command means."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ml_dash.cli.codes import DAMAGE, OK

if TYPE_CHECKING:
    from tests.cli.conftest import Record, Shell


def _names(shell: Shell, *options: str) -> list[str]:
    return [entry["name"] for entry in shell.ok("ls", "--json", *options).json]


def test_bare_command_prints_help_where_there_is_nothing(shell: Shell) -> None:
    result = shell.ok()
    assert "Usage: ml-dash" in result.out
    assert shell.ok("ls").out == ""
    assert "no experiments" in shell("ls").err


def test_bare_command_lists_what_is_there(shell: Shell, record: Record) -> None:
    record("first")
    assert shell.ok().out == shell.ok("ls").out
    assert "cv/first" in shell.ok().out


def test_a_list_has_one_line_for_each_experiment_the_latest_first(shell: Shell, record: Record) -> None:
    record("first", tags=["a", "b"])
    record("second", "nlp", loss=(1.0,) * 1200, fails=True)
    header, *rows = shell.ok("ls").lines
    assert header.split() == ["experiment", "status", "points", "logs", "files", "updated", "(UTC)", "tags"]
    assert rows[0].split()[:5] == ["nlp/second", "failed", "1,200", "1", "0"]
    assert rows[1].split()[:2] == ["cv/first", "completed"]
    assert rows[1].endswith("a, b")


def test_lists_are_filtered(shell: Shell, record: Record) -> None:
    record("first", tags=["a", "b"], folder="sweeps/lr")
    record("second", "nlp", tags=["b"], folder="sweeps-2", fails=True)
    assert _names(shell, "--project", "nlp") == ["second"]
    assert _names(shell, "--status", "failed") == ["second"]
    assert _names(shell, "--tag", "b") == ["second", "first"]
    assert _names(shell, "--tag", "b", "--tag", "a") == ["first"]
    assert _names(shell, "--folder", "sweeps") == ["first"]
    assert _names(shell, "--folder", "/sweeps/lr/") == ["first"]
    assert _names(shell, "--project", "none") == []


def test_since_takes_times_and_ages(shell: Shell, record: Record) -> None:
    record("first")
    assert _names(shell, "--since", "1h") == ["first"]
    assert _names(shell, "--since", "2020-01-01") == ["first"]
    assert _names(shell, "--since", "2999-01-01T00:00") == []
    assert shell("ls", "--since", "yesterday").code == 2


def test_lists_are_sorted_and_cut(shell: Shell, record: Record) -> None:
    record("b", loss=(1.0,))
    record("c", loss=(1.0, 1.0, 1.0))
    record("a", loss=(1.0, 1.0))
    assert _names(shell, "--sort", "updated") == ["a", "c", "b"]
    assert _names(shell, "--sort", "created") == ["a", "c", "b"]
    assert _names(shell, "--sort", "name") == ["a", "b", "c"]
    assert _names(shell, "--sort", "points") == ["c", "a", "b"]
    assert _names(shell, "--sort", "points", "--limit", "1") == ["c"]


def test_one_unreadable_experiment_does_not_hide_the_others(shell: Shell, record: Record) -> None:
    good = record("good")
    bad = record("bad")
    (bad / "experiment.json").write_text("[1, 2")
    (bad / ".journal/checkpoint").write_bytes(b"rubbish")
    shutil.rmtree(bad / ".journal/segments")
    (bad / ".journal/segments").mkdir()
    (segment,) = (good / ".journal/segments").glob("*.seg")
    (bad / ".journal/segments" / segment.name).mkdir()
    result = shell("ls", "--json")
    assert "good" in [entry["name"] for entry in result.json]
    assert result.code in (OK, DAMAGE)


@pytest.mark.parametrize("text", ["{}", "[]", "null", "rubbish", '{"status": 3, "counts": []}'])
def test_a_folder_that_was_edited_does_not_break_a_list(shell: Shell, record: Record, text: str) -> None:
    (record("first") / "experiment.json").write_text(text)
    (entry,) = shell.ok("ls", "--json").json
    assert (entry["name"], entry["status"], entry["counts"]["points"]) == ("first", "completed", 2)
    assert shell.ok("ls").lines[1].split()[:3] == ["cv/first", "completed", "2"]


def test_without_an_experiment_the_one_written_last_is_meant(shell: Shell, record: Record) -> None:
    record("first", parameters={"lr": 1})
    record("second", parameters={"lr": 2})
    assert shell.ok("params", "--json").json == {"lr": 2}
    record("first", parameters={"lr": 3})
    assert shell.ok("params", "--json").json == {"lr": 3}


@pytest.mark.parametrize("text", ["cv/first", "first", ".ml-dash/cv/first", "./.ml-dash/cv/first/"])
def test_an_experiment_is_a_name_or_a_path(shell: Shell, record: Record, text: str) -> None:
    record("first", parameters={"lr": 1})
    record("second", parameters={"lr": 2})
    assert shell.ok("params", text, "--json").json == {"lr": 1}


def test_an_ambiguous_name_is_refused_and_the_message_names_them(shell: Shell, record: Record) -> None:
    record("same", "cv")
    record("same", "nlp")
    result = shell("show", "same")
    assert result.code == 1
    assert "cv/same" in result.err
    assert "nlp/same" in result.err
    assert result.out == ""


def test_an_unknown_experiment_is_a_failure_that_says_where_it_looked(shell: Shell, record: Record) -> None:
    record("first")
    result = shell("show", "cv/frist")
    assert result.code == 1
    assert "cv/frist" in result.err
    assert ".ml-dash" in result.err


@pytest.mark.parametrize("place", [".ml-dash", ".ml-dash/cv", ".ml-dash/cv/first", "."])
def test_path_may_be_a_store_a_project_an_experiment_or_the_folder_above(
    shell: Shell, record: Record, place: str, tmp_path: Path
) -> None:
    record("first")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = shell("ls", "--json", "--path", str(tmp_path / place), folder=elsewhere)
    assert [entry["name"] for entry in result.json] == ["first"]
    assert shell("show", "--path", str(tmp_path / place), folder=elsewhere).code == 0


def test_root_and_store_apart_are_both_accepted(shell: Shell, record: Record, tmp_path: Path) -> None:
    folder = record("first", local_prefix="experiments", local_path="journals", parameters={"lr": 1})
    assert folder == tmp_path / "experiments/cv/first"
    for place in ("experiments", "experiments/journals", "experiments/cv/first", "experiments/journals/cv/first"):
        assert _names(shell, "--path", place) == ["first"], place
    environment = {"ML_DASH_LOCAL_PREFIX": "experiments", "ML_DASH_LOCAL_PATH": "journals"}
    assert shell.ok("params", "cv/first", "--json", env=environment).json == {"lr": 1}


def test_a_store_one_folder_below_is_found(shell: Shell, record: Record, tmp_path: Path) -> None:
    record("first", local_path="work/.ml-dash")
    assert _names(shell) == ["first"]


def test_a_bad_setting_in_the_environment_is_named(shell: Shell) -> None:
    result = shell("ls", env={"ML_DASH_DURABILITY": "sometimes"})
    assert result.code == 1
    assert "ML_DASH_DURABILITY" in result.err


def test_counts_and_times_are_those_of_the_folder(shell: Shell, record: Record) -> None:
    folder = record("first", loss=(1.0, 0.5, 0.25), files={"model.bin": "x"})
    (entry,) = shell.ok("ls", "--json").json
    document = json.loads((folder / "experiment.json").read_text())
    assert entry["counts"] == document["counts"]
    assert entry["updatedAt"] == document["updatedAt"]
    assert entry["path"] == str(folder)
