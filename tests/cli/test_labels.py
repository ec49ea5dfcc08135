"""Commands that give names and notes, put away, and tell what happened."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cli.conftest import Record, Shell


def test_a_renamed_experiment_is_found_by_any_of_its_names(shell: Shell, record: Record) -> None:
    record("first")
    record("second")
    shell.ok("rename", "cv/first", "baseline")
    shell.ok("rename", "baseline", "the one")
    for name in ("first", "cv/first", "baseline", "cv/baseline", "the one", "cv/the one"):
        assert shell.ok("show", name, "--json").json["experiment"]["name"] == "first"
    out = shell.ok("show", "first").out
    assert "cv/the one" in out
    assert "first, baseline" in out
    result = shell("rename", "first", "a/b")
    assert result.code == 1
    assert 'title "a/b"' in result.err


def test_notes_are_replaced_added_to_and_read_from_standard_input(shell: Shell, record: Record) -> None:
    record("first")
    assert "no notes" in shell.ok("note", "first").err
    shell.ok("note", "first", "one")
    shell.ok("note", "first", "two", "--add")
    assert shell.ok("note", "first").out == "one\n\ntwo\n"
    assert shell("note", "first", "-", stdin="# three\n").code == 0
    assert shell.ok("note", "first", "--json").json == {"notes": "# three"}
    shell.ok("note", "first", "\x1b[2Jevil")
    assert "\\x1b[2Jevil" in shell.ok("note", "first").out


def test_labels_leave_the_status_as_it_is(shell: Shell, record: Record) -> None:
    folder = record("first", fails=True)
    shell.ok("archive", "first")
    shell.ok("unarchive", "first")
    shell.ok("rename", "first", "x")
    document = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
    assert (document["status"], document["archived"], document["title"]) == ("failed", False, "x")
    assert document["reason"]["kind"] == "closed"


def test_history_tells_what_happened(shell: Shell, record: Record) -> None:
    record("first", parameters={"lr": 0.1}, files={"model.bin": "weights"}, fails=True)
    shell.ok("rename", "first", "x")
    out = shell.ok("history", "first").out
    for text in ("opened by process", "set lr = 0.1", "added models/model.bin", "failed", "renamed to x"):
        assert text in out
    last = shell.ok("history", "first", "--last", "1", "--json").json
    assert [mark["kind"] for mark in last["marks"]] == ["updated"]
    assert last["startIndex"] == last["total"] - 1
    assert f"{last['startIndex']} earlier" in shell.ok("history", "first", "--last", "1").err
