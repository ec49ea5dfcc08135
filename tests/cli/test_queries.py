"""Queries, order and columns on the command line and in Python: what is chosen, shown and refused."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import pytest

import ml_dash
from ml_dash.cli.codes import DAMAGE, USAGE

if TYPE_CHECKING:
    from tests.cli.conftest import Record, Shell


@pytest.fixture
def three(record: Record) -> None:
    record("a", parameters={"lr": 0.1, "seed": 1}, loss=(3.0, 1.0), tags=["base"])
    record("b", parameters={"lr": 0.01, "seed": 1}, loss=(3.0, 0.5))
    record("c", "nlp", parameters={"lr": "auto", "seed": 1}, loss=(2.0, 2.0), fails=True)


def _names(shell: Shell, *options: str) -> list[str]:
    return [entry["name"] for entry in shell.ok("ls", "--json", *options).json]


@pytest.mark.usefixtures("three")
def test_a_list_has_what_matches_in_the_order_that_is_asked_for(shell: Shell) -> None:
    assert _names(shell, "--where", "params.lr >= 0.01", "--sort", "params.lr") == ["b", "a"]
    assert _names(shell, "--sort", "metrics.loss.min:desc") == ["c", "a", "b"]
    assert _names(shell, "--where", "status = failed or tag:base", "--project", "cv") == ["a"]
    assert _names(shell, "--sort", "metrics.loss.min", "--limit", "1") == ["b"]
    assert _names(shell, "--where", "nothing-like-this") == []


@pytest.mark.usefixtures("three")
def test_columns_are_shown_and_what_is_sorted_by_is_one_of_them(shell: Shell) -> None:
    lines = shell.ok("ls", "--sort", "metrics.loss.min", "--columns", "params.lr,status,tags").lines
    assert [line.split() for line in lines] == [
        ["experiment", "params.lr", "status", "tags", "metrics.loss.min"],
        ["cv/b", "0.01", "completed", "0.5"],
        ["cv/a", "0.1", "completed", "base", "1"],
        ["nlp/c", "auto", "failed", "2"],
    ]
    first = shell.ok("ls", "--json", "--sort", "name", "--columns", "params.lr,user,files.count").json[0]
    assert first["values"] == {"params.lr": 0.1, "files.count": 0}
    assert shell.ok("ls", "--columns", "params.nothing").lines[1].split() == ["nlp/c", "-"]


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("command", ["ls", "diff", "export", "rm"])
def test_a_wrong_query_is_shown_with_its_place(shell: Shell, command: str) -> None:
    result = shell(command, "--where", "params.lr == 0.1")
    assert result.code == USAGE
    assert result.out == ""
    assert result.err.splitlines() == [
        "ml-dash: '=' does not belong here",
        "  params.lr == 0.1",
        "             ^",
        "write = for equal",
    ]


def test_a_wrong_order_or_column_is_refused(shell: Shell) -> None:
    assert shell("ls", "--sort", "loss").code == USAGE
    assert "metrics.loss" in shell("ls", "--sort", "loss").err
    assert shell("ls", "--columns", "params.lr,nam").code == USAGE


def test_an_empty_list_names_the_query(shell: Shell, record: Record) -> None:
    record("a")
    assert "no experiments with this --where in" in shell.ok("ls", "--where", "status = failed").err


def test_one_unreadable_experiment_does_not_hide_those_that_match(shell: Shell, record: Record) -> None:
    record("good")
    bad = record("bad")
    (bad / ".journal/base").write_bytes(b"rubbish")
    result = shell("ls", "--json", "--where", "status = completed")
    assert [entry["name"] for entry in result.json] == ["good"]
    assert result.code == DAMAGE
    assert "cv/bad" in result.err


@pytest.mark.usefixtures("three")
def test_any_number_of_experiments_is_compared(shell: Shell) -> None:
    shown = shell.ok("diff", "a", "b", "c", "--json").json
    assert [shown[letter]["name"] for letter in "abc"] == ["a", "b", "c"]
    assert shown["parameters"] == {"lr": {"a": 0.1, "b": 0.01, "c": "auto"}}
    assert shown["metrics"] == {"loss": {"a": 1.0, "b": 0.5, "c": 2.0}}
    lines = [line.split() for line in shell.ok("diff", "a", "b", "c", "--all").lines]
    assert ["parameter", "cv/a", "cv/b", "nlp/c"] in lines
    assert ["seed", "1", "1", "1"] in lines
    assert ["final", "value", "cv/a", "cv/b", "nlp/c"] in lines


@pytest.mark.usefixtures("three")
def test_what_is_compared_may_be_chosen_and_sorted(shell: Shell) -> None:
    shown = shell.ok("diff", "--where", "project = cv", "--sort", "metrics.loss.min", "--json").json
    assert (shown["a"]["name"], shown["b"]["name"]) == ("b", "a")
    columns = "metrics.loss.max,metrics.loss.min,status,params.lr"
    fields = shell.ok("diff", "a", "b", "--columns", columns, "--json").json["fields"]
    assert fields == {"metrics.loss.min": {"a": 1.0, "b": 0.5}, "params.lr": {"a": 0.1, "b": 0.01}}
    lines = [line.split() for line in shell.ok("diff", "a", "c", "--columns", columns).lines]
    assert lines[0] == ["field", "cv/a", "nlp/c"]
    assert ["status", "completed", "failed"] in lines
    assert "no experiments match" in shell.ok("diff", "--where", "project = x").err
    assert shell("diff", "a", "--where", "project = cv").code == USAGE
    assert shell("diff").code == USAGE


def test_more_experiments_than_letters_are_compared(shell: Shell, record: Record) -> None:
    for number in range(28):
        record(f"r{number:02}", parameters={"n": number}, loss=(), logs=())
    shown = shell.ok("diff", "--where", "cv", "--sort", "name", "--json").json
    assert (shown["z"]["name"], shown["aa"]["name"], shown["ab"]["name"]) == ("r25", "r26", "r27")
    assert shown["parameters"]["n"]["ab"] == 27


@pytest.mark.usefixtures("three")
def test_what_matches_is_exported(shell: Shell) -> None:
    rows = list(csv.DictReader(io.StringIO(shell.ok("export", "--where", "project = cv", "--sort", "params.lr").out)))
    assert [(row["experiment"], row["value"]) for row in rows if row["metric"] == "loss"] == [
        ("cv/b", "3.0"), ("cv/b", "0.5"), ("cv/a", "3.0"), ("cv/a", "1.0"),
    ]  # fmt: skip
    lines = shell.ok("export", "--where", "tag:base", "--what", "logs", "--json").json_lines
    assert {line["experiment"] for line in lines} == {"cv/a"}
    table = shell.ok(
        "export", "--what", "experiments", "--sort", "params.lr", "--columns", "params.lr,metrics.loss.min"
    )
    assert table.lines[0] == "project,name,params.lr,metrics.loss.min"
    assert sorted(table.lines[1:]) == ["cv,a,0.1,1.0", "cv,b,0.01,0.5", "nlp,c,auto,2.0"]
    assert "no experiments that match" in shell.ok("export", "--where", "tag:none").err
    assert shell("export", "a", "--columns", "params.lr").code == USAGE


def test_experiments_with_different_fields_are_exported_under_one_header(shell: Shell, record: Record) -> None:
    record("a", loss=(1.0,))
    with ml_dash.Experiment(name="b", project="cv", local_path=str(shell.folder / ".ml-dash")) as experiment:
        experiment.metric("acc").append(top1=0.5)
    rows = list(csv.DictReader(io.StringIO(shell.ok("export", "--where", "cv", "--sort", "name").out)))
    assert [(row["experiment"], row["metric"], row["top1"]) for row in rows][-1] == ("cv/b", "acc", "0.5")
    assert rows[0]["top1"] == ""
    only = shell.ok("export", "--where", "cv", "--metric", "acc", "--json").json_lines
    assert [line["experiment"] for line in only] == ["cv/b"]


@pytest.mark.usefixtures("three")
def test_what_matches_is_removed_and_nothing_else(shell: Shell) -> None:
    dry = shell.ok("rm", "--where", "status = completed", "--dry-run", "--json").json
    assert sorted(entry["name"] for entry in dry) == ["a", "b"]
    assert shell("rm", "--where", "status = completed").code == USAGE
    assert shell.ok("rm", "--where", "tag:none", "--yes").err.startswith("no experiments match")
    shell.ok("rm", "--where", "status = completed", "--yes")
    assert _names(shell) == ["c"]
    assert shell("rm").code == USAGE


@pytest.mark.usefixtures("three")
def test_python_asks_the_same(shell: Shell) -> None:
    def names(**given: object) -> list[str]:
        return [run["name"] for run in ml_dash.experiments(shell.folder, **given)]  # type: ignore[arg-type]

    assert names() == ["a", "b", "c"]
    assert names(where="params.lr >= 0.01") == ["a", "b"]
    assert names(where="project = cv or status = failed", sort="metrics.loss.min", limit=2) == ["b", "a"]
    assert names(sort="metrics.loss.max:desc") in (["b", "a", "c"], ["a", "b", "c"])
    assert names(limit=1) == ["a"]
    with pytest.raises(ml_dash.InvalidQuery):
        names(where="loss < 1")
    with pytest.raises(ml_dash.InvalidQuery):
        names(sort="loss")


def test_archived_experiments_are_listed_where_they_are_asked_for(shell: Shell, record: Record) -> None:
    record("a")
    record("b")
    with ml_dash.Experiment(name="b", project="cv", local_path=str(shell.folder / ".ml-dash")) as experiment:
        experiment.update(archived=True)
    assert _names(shell) == ["a"]
    assert _names(shell, "--where", "archived = true") == ["b"]
    assert len(ml_dash.experiments(shell.folder)) == 2
    assert [run["name"] for run in ml_dash.experiments(shell.folder, where="cv")] == ["a"]
    shell.ok("archive", "cv/a")
    shell.ok("rm", "cv/b", "--yes")
    assert "/.ml-dash: 1 experiment; to list them: --where 'archived = true'" in shell.ok("ls").err


@pytest.mark.usefixtures("three")
def test_a_shell_completes_fields_and_values(shell: Shell) -> None:
    def completed(*words: str) -> list[str]:
        env = {
            "_ML_DASH_COMPLETE": "bash_complete", "COMP_WORDS": "ml-dash " + " ".join(words),
            "COMP_CWORD": str(len(words)),
        }  # fmt: skip
        return [line.partition(",")[2] for line in shell.ok(env=env).lines]

    assert "metrics.loss.min" in completed("ls", "--sort", "metrics.l")
    assert "params.lr,params.seed" in completed("ls", "--columns", "params.lr,params.s")
    assert completed("ls", "--where", "params.l") == ["params.lr"]
    assert completed("ls", "--where", "'status = f'") == ["status = failed"]
    assert completed("ls", "--where", "status=c") == ["status=completed"]


@pytest.mark.usefixtures("three")
def test_names_and_values_are_safe_in_a_table(shell: Shell, record: Record) -> None:
    record("evil", parameters={"k\x1b[31m": "v\x1b[0m"})
    out = shell.ok("ls", "--columns", "params.k\x1b[31m").out
    assert "\x1b" not in out
    assert r"\x1b[31m" in out
    wrong = shell("ls", "--where", "\x1b[31m = 1")
    assert wrong.code == USAGE
    assert "\x1b" not in wrong.err.replace("\x1b[31mml-dash:\x1b[0m", "")
