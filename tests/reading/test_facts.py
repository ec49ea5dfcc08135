"""Facts of an experiment, as it was recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash.reading import read
from ml_dash.reading.facts import MISSING, Facts, facts_of, value_of


def recorded(path: Path, name: str = "run") -> Facts:
    return facts_of(read.view(read.locate(name, path)).state)


def fails(store: Path, file: Path) -> None:
    named = {"tags": ["baseline"], "folder": "a/b", "description": "first"}
    with Experiment(name="run", project="cv", local_path=store, **named) as experiment:
        experiment.parameters().set(lr=0.1, opt={"name": "adam"})
        for step in range(3):
            experiment.metric("loss").append(value=3 - step, step=step)
            experiment.metric("val").append(acc=step / 10, epoch=step * 2)
        experiment.log("hello")
        experiment.file(file_path=str(file), prefix="/").save()
        raise ZeroDivisionError("by nothing")


def test_facts_are_what_was_recorded(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(1000))
    with pytest.raises(ZeroDivisionError):
        fails(tmp_path / "store", file)
    facts = recorded(tmp_path / "store")
    assert (facts.project, facts.name, facts.status, facts.folder) == ("cv", "run", "failed", "a/b")
    assert (facts.tags, facts.description, facts.archived) == (["baseline"], "first", False)
    assert facts.params == {"lr": 0.1, "opt.name": "adam"}
    loss, acc = facts.metrics["loss"], facts.metrics["val.acc"]
    assert (loss.count, loss.first, loss.last, loss.min, loss.max, loss.mean, loss.step) == (3, 3, 1, 1, 3, 2.0, 2)
    assert (acc.last, acc.step) == (0.2, 4)
    assert (facts.files, facts.size, facts.points, facts.logs) == (1, 1000, 6, 1)
    assert facts.reason is not None
    assert facts.reason["kind"] == "exception"
    assert facts.host
    assert facts.ended_ns is not None
    assert facts.created_ns <= facts.updated_ns <= facts.ended_ns
    assert value_of(facts, "duration") == (facts.ended_ns - facts.created_ns) / 1e9


def test_of_an_experiment_without_anything_most_is_missing(tmp_path: Path) -> None:
    with Experiment(name="run", project="cv", local_path=tmp_path / "store"):
        pass
    facts = recorded(tmp_path / "store")
    assert facts.params == {}
    assert facts.metrics == {}
    assert value_of(facts, "description") is MISSING
    assert value_of(facts, "params.lr") is MISSING
    assert value_of(facts, "size") == 0
