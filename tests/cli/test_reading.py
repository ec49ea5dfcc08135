"""The commands that show one experiment, against what was recorded."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ml_dash import Experiment

if TYPE_CHECKING:
    from tests.cli.conftest import Record, Shell


def test_show_tells_what_it_is_how_it_ended_and_what_it_holds(shell: Shell, record: Record) -> None:
    record(
        "first", description="a first try", tags=["a"], loss=(1.0, 0.5), parameters={"lr": 0.1},
        files={"model.bin": "weights"}, fails=True,
    )  # fmt: skip
    out = shell.ok("show", "cv/first").out
    for text in ("cv/first", "failed", "a first try", "2 points, 1 log entry, 1 file", "lr", "models/model.bin", "7 B"):
        assert text in out


def test_show_tells_the_error_of_a_failed_run(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError), Experiment("bad", "cv"):
        raise ZeroDivisionError("by nothing")
    assert "ZeroDivisionError: by nothing" in shell.ok("show").out
    assert shell.ok("show", "--json").json["experiment"]["error"]["type"] == "ZeroDivisionError"


def test_show_cuts_long_lists_and_says_so(shell: Shell, record: Record) -> None:
    record("first", parameters={f"p{number}": number for number in range(30)})
    result = shell.ok("show")
    assert "p19" in result.out
    assert "p20" not in result.out
    assert "10 more: ml-dash params" in result.err


def test_logs_are_printed_in_order_with_their_metadata(shell: Shell, record: Record) -> None:
    record("first", logs=("one", "two"))
    with Experiment("first", "cv") as experiment:
        experiment.log("three\nand more", level="error", code=7)
    lines = shell.ok("logs").lines
    assert [line.split()[2:] for line in lines[:2]] == [["info", "one"], ["info", "two"]]
    assert lines[2].split()[2:] == ["error", "three"]
    assert lines[3] == "    and more  code=7"


def test_logs_are_filtered_by_level_and_cut_from_the_front(shell: Shell, record: Record) -> None:
    record("first", logs=tuple(map(str, range(1500))))
    with Experiment("first", "cv") as experiment:
        experiment.log("careful", level="warning")
        experiment.log("ended")
    assert len(shell.ok("logs").lines) == 1502
    assert [e["message"] for e in shell.ok("logs", "--json", "--last", "2").json_lines] == ["careful", "ended"]
    assert [e["message"] for e in shell.ok("logs", "--json", "--level", "WARN").json_lines] == ["careful"]
    last = shell.ok("logs", "--json", "--level", "info", "--last", "2").json_lines
    assert [e["message"] for e in last] == ["1499", "ended"]
    assert shell.ok("logs", "--last", "0").out == ""


def test_json_logs_are_the_lines_of_the_file(shell: Shell, record: Record) -> None:
    folder = record("first", logs=("one", "two"))
    expected = [json.loads(line) for line in (folder / "logs/logs.jsonl").read_text().splitlines()]
    assert shell.ok("logs", "--json").json_lines == expected


def test_parameters_are_flat_in_the_order_they_were_set(shell: Shell, record: Record) -> None:
    record("first", parameters={"lr": 0.1, "model": {"layers": [1, 2], "name": "res net"}, "nothing": None})
    assert shell.ok("params", "--json").json == {
        "lr": 0.1, "model.layers": [1, 2], "model.name": "res net", "nothing": None,
    }  # fmt: skip
    lines = shell.ok("params").lines
    assert [line.split(maxsplit=1) for line in lines[1:]] == [
        ["lr", "0.1"], ["model.layers", "[1, 2]"], ["model.name", "res net"], ["nothing", "null"],
    ]  # fmt: skip


def test_metrics_are_listed_by_series(shell: Shell, record: Record) -> None:
    record("first", loss=(1.0, 0.25))
    with Experiment("first", "cv") as experiment:
        experiment.metric("accuracy").append(train=0.5, test=0.25, epoch=1)
        experiment.metric("words").append(text="no number")
    rows = {line.split()[0]: line.split()[1:] for line in shell.ok("metrics").lines[1:]}
    assert rows["loss"] == ["2", "1", "0.25", "0.25", "1", "0.625"]
    assert rows["accuracy.train"] == ["1", "0.5", "0.5", "0.5", "0.5", "0.5"]
    assert rows["words"] == ["1", "-", "-", "-", "-", "-"]
    assert "accuracy.epoch" not in rows


def test_points_are_the_last_ones(shell: Shell, record: Record) -> None:
    record("first", loss=tuple(float(number) for number in range(25)))
    shown = shell.ok("metrics", "cv/first", "loss").lines
    assert [line.split()[0] for line in shown[4:]] == [str(number) for number in range(15, 25)]
    data = shell.ok("metrics", "cv/first", "loss", "--last", "3", "--json").json["data"]
    assert [point["data"] for point in data] == [{"value": float(n), "step": n} for n in (22, 23, 24)]
    assert shell.ok("metrics", "cv/first", "loss", "--last", "0", "--json").json["data"] == []
    assert len(shell.ok("metrics", "cv/first", "loss", "--last", "99", "--json").json["data"]) == 25


def test_more_points_than_one_page_holds_are_shown(shell: Shell, record: Record) -> None:
    record("first", loss=())
    with Experiment("first", "cv") as experiment:
        experiment.metric("many").append_batch([{"value": float(n)} for n in range(20_500)])
    data = shell.ok("metrics", "cv/first", "many", "--last", "20400", "--json").json["data"]
    assert [point["index"] for point in data] == list(range(100, 20_500))


def test_not_a_number_and_infinity_are_texts_in_json(shell: Shell, record: Record) -> None:
    record("first", loss=(math.nan, math.inf, -math.inf), parameters={"x": math.nan})
    shown = shell.ok("metrics", "cv/first", "loss", "--json").json
    assert [point["data"]["value"] for point in shown["data"]] == ["NaN", "Infinity", "-Infinity"]
    assert shell.ok("params", "--json").json == {"x": "NaN"}
    with Experiment("first", "cv") as experiment:
        experiment.metric("text").append(value="NaN")
    (point,) = shell.ok("metrics", "cv/first", "text", "--json").json["data"]
    assert point["text"] == ["value"]


def test_an_unknown_metric_is_a_failure_that_names_those_there_are(shell: Shell, record: Record) -> None:
    record("first")
    result = shell("metrics", "cv/first", "los")
    assert result.code == 1
    assert "loss" in result.err


def test_a_plot_is_drawn_for_each_series(shell: Shell, record: Record) -> None:
    record("first", loss=tuple(1 / (1 + n) for n in range(50)))
    out = shell.ok("metrics", "cv/first", "loss", "--plot").out
    assert out.startswith("loss\n")
    assert any("⠀" <= character <= "⣿" for character in out)
    assert out.splitlines()[-1].split() == ["0", "49"]
    assert shell("metrics", "--plot", "--json").code == 2


def test_last_points_alone_are_plotted(shell: Shell, record: Record) -> None:
    record("first", loss=tuple(float(n) for n in range(50)))
    out = shell.ok("metrics", "cv/first", "loss", "--plot", "--last", "10").out
    assert out.splitlines()[-1].split() == ["40", "49"]


def test_files_are_listed_and_deleted_ones_when_asked(shell: Shell, record: Record) -> None:
    record("first", files={"a.bin": "aa", "b.bin": "bbb"})
    with Experiment("first", "cv") as experiment:
        experiment.file(file_id=experiment.file().list()[0]["id"]).delete()
    assert [entry["filename"] for entry in shell.ok("files", "--json").json] == ["b.bin"]
    assert [entry["filename"] for entry in shell.ok("files", "--deleted", "--json").json] == ["a.bin", "b.bin"]
    assert [line.split()[:3] for line in shell.ok("files").lines[1:]] == [["models/b.bin", "3", "B"]]
    assert len(shell.ok("files", "--deleted").lines) == 3


def test_nothing_recorded_is_said_on_stderr(shell: Shell, record: Record) -> None:
    record("empty", loss=(), logs=())
    for command in ("params", "metrics", "files"):
        result = shell.ok(command)
        assert result.out == ""
        assert result.err.startswith("no ")
        assert shell.ok(command, "--json").json in ([], {})
    assert shell.ok("logs").out == ""
    assert shell.ok("show").out.startswith("cv/empty")


def test_diff_shows_what_is_not_the_same(shell: Shell, record: Record) -> None:
    record("a", parameters={"lr": 0.1, "seed": 1, "only": "a"}, loss=(1.0, 0.5))
    record("b", parameters={"lr": 0.2, "seed": 1}, loss=(1.0, 0.25))
    shown = shell.ok("diff", "a", "b", "--json").json
    assert shown["parameters"] == {"lr": {"a": 0.1, "b": 0.2}, "only": {"a": "a"}}
    assert shown["metrics"] == {"loss": {"a": 0.5, "b": 0.25}}
    everything = shell.ok("diff", "a", "b", "--all", "--json").json
    assert everything["parameters"]["seed"] == {"a": 1, "b": 1}
    lines = shell.ok("diff", "a", "b").lines
    assert ["lr", "0.1", "0.2"] in [line.split() for line in lines]
    assert ["loss", "0.5", "0.25", "-0.25"] in [line.split() for line in lines]
    same = shell.ok("diff", "a", "a")
    assert same.out == ""
    assert "no difference" in same.err


def test_csv_holds_every_point_with_all_digits(shell: Shell, record: Record) -> None:
    values = (0.1 + 0.2, 1e-300, math.nan)
    record("first", loss=values)
    with Experiment("first", "cv") as experiment:
        experiment.metric("extra").append(value=[1, "a,b"], index=9, text='say "hi"\nthere')
    rows = list(csv.DictReader(io.StringIO(shell.ok("export", "cv/first").out)))
    loss = [row for row in rows if row["metric"] == "loss"]
    assert [float(row["value"]) for row in loss[:2]] == list(values[:2])
    assert loss[2]["value"] == "NaN"
    assert [row["step"] for row in loss] == ["0", "1", "2"]
    (extra,) = (row for row in rows if row["metric"] == "extra")
    assert json.loads(extra["value"]) == [1, "a,b"]
    assert extra["data.index"] == "9"
    assert extra["text"] == 'say "hi"\nthere'
    assert extra["step"] == ""


def test_json_lines_hold_every_point(shell: Shell, record: Record) -> None:
    folder = record("first", loss=(1.0, math.inf))
    expected = [json.loads(line) for line in (folder / "metrics/loss/data.jsonl").read_text().splitlines()]
    lines = shell.ok("export", "--format", "jsonl").json_lines
    assert lines == [{"metric": "loss", **point} for point in expected]
    assert shell.ok("export", "--json").json_lines == lines


def test_export_takes_chosen_metrics_and_refuses_unknown_ones(shell: Shell, record: Record) -> None:
    record("first")
    with Experiment("first", "cv") as experiment:
        experiment.metric("other").append(value=1)
    lines = shell.ok("export", "cv/first", "--metric", "other", "--json").json_lines
    assert [line["metric"] for line in lines] == ["other"]
    assert shell("export", "cv/first", "--metric", "none").code == 1
    assert shell("export", "cv/first", "--metric", "loss", "--what", "logs").code == 2


def test_export_writes_logs_and_experiments_too(shell: Shell, record: Record, tmp_path: Path) -> None:
    record("a", logs=("one", "two"), parameters={"lr": 0.1})
    record("b", loss=(3.0,), parameters={"seed": 1})
    shell.ok("export", "cv/a", "--what", "logs", "--output", str(tmp_path / "logs.csv"))
    rows = list(csv.DictReader((tmp_path / "logs.csv").open(newline="")))
    assert [row["message"] for row in rows] == ["one", "two"]
    rows = list(csv.DictReader(io.StringIO(shell.ok("export", "--what", "experiments").out)))
    assert [(row["name"], row["parameters.lr"], row["metrics.loss"]) for row in rows] == [
        ("a", "0.1", "0.5"), ("b", "", "3.0"),
    ]  # fmt: skip
    first, _ = shell.ok("export", "--what", "experiments", "--json").json_lines
    assert (first["name"], first["parameters"], first["metrics"]) == ("a", {"lr": 0.1}, {"loss": 0.5})
    (only,) = csv.DictReader(io.StringIO(shell.ok("export", "cv/b", "--what", "experiments").out))
    assert only["name"] == "b"
    both = csv.DictReader(io.StringIO(shell.ok("export", "cv/b", "a", "--what", "experiments").out))
    assert [row["name"] for row in both] == ["b", "a"]
    assert shell("export", "cv/b", "cv/a").code == 2
    assert {"parameters", "metrics", "parameters.lr"}.isdisjoint(only)


@pytest.mark.parametrize("level", ["warning", "WARN", "Warning"])
def test_levels_are_taken_as_everywhere(shell: Shell, record: Record, level: str) -> None:
    record("first", logs=("one",))
    with Experiment("first", "cv") as experiment:
        experiment.log("careful", level=level)
        assert [entry["message"] for entry in experiment.log().read(level=level)["logs"]] == ["careful"]
    assert [entry["message"] for entry in shell.ok("logs", "--json", "--level", level).json_lines] == ["careful"]
    refused = shell("logs", "--level", "loud")
    assert (refused.code, "use one of debug, info, warn, error, fatal" in refused.err) == (2, True)


def _with_two_series() -> None:
    with Experiment("first", "cv") as experiment:
        experiment.metric("val").append(acc=0.5, loss=2.0, epoch=1)
        experiment.metric("val").append(loss=1.0, epoch=2)


def test_a_series_is_taken_wherever_a_metric_is(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _with_two_series()
    assert "val.acc" in shell.ok("metrics", "cv/first", "val.acc").out
    plotted = shell.ok("metrics", "cv/first", "val.acc", "--plot").out
    assert "val.acc" in plotted
    assert "val.loss" not in plotted
    lines = shell.ok("export", "cv/first", "--metric", "val.loss", "--format", "jsonl").json_lines
    assert [line["data"] for line in lines] == [{"loss": 2.0, "epoch": 1}, {"loss": 1.0, "epoch": 2}]
    (line,) = shell.ok("export", "cv/first", "--metric", "val.acc", "--format", "jsonl").json_lines
    assert line["data"] == {"acc": 0.5, "epoch": 1}
    # A metric of that very name comes first.
    with Experiment("first", "cv") as experiment:
        experiment.metric("val.acc").append(value=7.0)
    assert shell.ok("metrics", "cv/first", "val.acc", "--json").json["name"] == "val.acc"


def test_what_is_mistyped_names_what_is_near(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _with_two_series()
    assert "did you mean 'cv/first'" in shell("show", "cv/frist").err
    assert "(1 other is there)" in shell("show", "zzz").err
    assert "did you mean 'val.loss'" in shell("metrics", "cv/first", "val.los").err
    assert "ml-dash metrics EXPERIMENT --plot" in shell("plot").err


def test_a_list_of_nothing_says_where_it_looked_and_what_was_left_out(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (("ls",), ("export", "--what", "experiments"), ("export", "--what", "experiments", "--json")):
        nothing = shell(*words)
        assert (nothing.code, nothing.out) == (0, "")
        assert f"no experiments in {tmp_path}" in nothing.err
    monkeypatch.chdir(tmp_path)
    _with_two_series()
    said = shell("ls", "--tag", "nope", "--status", "failed").err
    assert "no experiments with this --status and --tag in " in said
    assert said.strip().endswith("; 1 without them")
