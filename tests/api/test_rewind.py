"""`rewind`, `resume_step=`, `last_step`, `last()`: what is current after a job has gone on from its checkpoint."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_dash import (
    Experiment,
    InvalidName,
    InvalidValue,
    NotOpen,
    ReadOnly,
    StorageError,
    UnsupportedType,
    ml_dash_experiment,
)
from ml_dash.projection.project import rebuild
from ml_dash.reading.located import at
from ml_dash.reading.verify import verify
from tests.journals import tree

from .conftest import Make


def steps(experiment: Experiment, name: str = "loss", **how: Any) -> list[Any]:
    return [point["data"].get("step") for point in experiment.metric(name).read(limit=10_000, **how)["data"]]


def train(experiment: Experiment, start: int, end: int, sign: int = 1) -> None:
    for step in range(start, end):
        experiment.metric("loss").append(value=sign * step, step=step)


def test_a_job_that_goes_on_from_its_checkpoint_has_one_curve(make: Make, runs: Path) -> None:
    with make() as experiment:
        assert (experiment.last_step, experiment.metric("loss").last()) == (None, None)
        train(experiment, 0, 400)
        experiment.metric("size").append(value=7)
        experiment.log("killed at 400")
    with make(resume_step=200) as experiment:
        assert (experiment.resumed, experiment.last_step) == (True, 199)
        train(experiment, 200, 300, -1)
        assert steps(experiment, superseded=False) == list(range(300))
        assert steps(experiment) == [*range(400), *range(200, 300)]
        assert experiment.last_step == 299
        last = experiment.metric("loss").last()
        assert last is not None
        assert (last["index"], last["data"]) == (499, {"value": -299, "step": 299})
        assert experiment.metric("size").last() is not None
        stats = experiment.metric("loss").stats()
        assert (stats["superseded"], stats["supersededDataPoints"]) == ([[200, 400]], 200)
        assert stats["totalDataPoints"] == 500
        values = [*range(200), *(-step for step in range(200, 300))]
        assert stats["series"]["loss"] == {
            "count": 300, "first": 0, "last": -299, "min": -299, "max": 199, "mean": sum(values) / 300,
        }  # fmt: skip
        assert experiment.log().read()["total"] == 1
    document = json.loads((runs / "cv/first/metrics/loss/metadata.json").read_text())
    assert (document["superseded"], document["supersededDataPoints"]) == ([[200, 400]], 200)
    assert len((runs / "cv/first/metrics/loss/data.jsonl").read_text().splitlines()) == 500
    located = at(runs / "cv/first")
    assert located is not None
    before = tree(located.folder)
    rebuild(located)
    assert tree(located.folder) == before
    assert verify(located).findings == ()


def test_a_page_is_filled_with_what_is_current(opened: Experiment) -> None:
    train(opened, 0, 50)
    opened.rewind(10)
    train(opened, 10, 30)
    page = opened.metric("loss").read(5, 10, superseded=False)
    assert [point["index"] for point in page["data"]] == [5, 6, 7, 8, 9, 50, 51, 52, 53, 54]
    assert (page["startIndex"], page["endIndex"], page["total"], page["hasMore"]) == (5, 54, 10, True)
    page = opened.metric("loss").read(page["endIndex"] + 1, 100, superseded=False)
    assert ([point["index"] for point in page["data"]], page["hasMore"]) == (list(range(55, 70)), False)
    page = opened.metric("loss").read(-22, 100, superseded=False)
    assert ([point["index"] for point in page["data"]], page["startIndex"]) == ([8, 9, *range(50, 70)], 8)
    page = opened.metric("loss").read(20, 5, superseded=False)
    assert ([point["index"] for point in page["data"]], page["startIndex"]) == ([50, 51, 52, 53, 54], 20)
    assert opened.metric("loss").read(70, 5, superseded=False)["data"] == []


def test_only_what_is_named_goes_back(opened: Experiment) -> None:
    for name in ("loss", "acc", "lr"):
        opened.metric(name).append_batch([{"value": step, "step": step} for step in range(10)])
    opened.rewind(5, metrics=["acc", "not there yet"])
    opened.rewind(7, metrics="lr")
    assert [len(steps(opened, name, superseded=False)) for name in ("loss", "acc", "lr")] == [10, 5, 7]


def test_the_epoch_counts_where_there_is_no_step_and_points_without_both_stay(opened: Experiment) -> None:
    metric = opened.metric("loss")
    points: list[dict[str, Any]] = [
        {"value": 1, "epoch": 3}, {"value": 2, "step": 1, "epoch": 9}, {"value": 3}, {"value": 4, "step": math.nan},
        {"value": 5, "step": math.nan, "epoch": 4}, {"value": 6, "step": "9"}, {"value": 7, "step": 2.5},
    ]  # fmt: skip
    metric.append_batch(points)
    for point in points:
        metric.append(**point)
    opened.rewind(2.5)
    kept = [point["data"]["value"] for point in metric.read(superseded=False)["data"]]
    assert kept == [2, 3, 4, 6, 2, 3, 4, 6]


def test_twice_past_the_beginning_and_beyond_the_end(opened: Experiment) -> None:
    train(opened, 5, 20)
    opened.rewind(10)
    opened.rewind(10)
    assert (steps(opened, superseded=False), opened.last_step) == ([5, 6, 7, 8, 9], 9)
    train(opened, 10, 15)
    opened.rewind(12)
    assert opened.last_step == 11
    opened.rewind(1000)
    assert opened.last_step == 11
    opened.rewind(0)
    assert (steps(opened, superseded=False), opened.last_step, opened.metric("loss").last()) == ([], None, None)
    stats = opened.metric("loss").stats()
    assert (stats["series"], stats["superseded"]) == ({}, [[0, 20]])
    train(opened, 0, 3)
    assert opened.last_step == 2


@pytest.mark.parametrize("step", [-1, -0.5, math.nan, math.inf, -math.inf, "200", "", None, True, [1], {}, 2**64, 1j])
def test_a_step_that_is_none_is_refused_and_nothing_is_recorded(make: Make, step: Any) -> None:
    with make() as experiment:
        train(experiment, 0, 3)
        before = experiment.durable_state()["accepted"]
        with pytest.raises(InvalidValue, match=r"step is .*; use the step to go on from: a number that is not neg"):
            experiment.rewind(step)
        assert experiment.durable_state()["accepted"] == before
    if step is not None:
        with pytest.raises(InvalidValue, match="resume_step is"):
            make(resume_step=step)


@pytest.mark.parametrize("step", [np.int64(2), np.float32(2), Decimal(2), np.array(2)])
def test_numbers_of_other_kinds_are_steps(opened: Experiment, step: Any) -> None:
    train(opened, 0, 3)
    opened.rewind(step)
    assert opened.last_step == 1


@pytest.mark.parametrize(
    ("metrics", "error"), [([], InvalidValue), (["ok", ""], InvalidName), ([5], UnsupportedType), (5, UnsupportedType)]
)
def test_names_that_are_none_are_refused(opened: Experiment, metrics: Any, error: type[Exception]) -> None:
    before = opened.durable_state()["accepted"]
    with pytest.raises(error):
        opened.rewind(1, metrics=metrics)
    assert opened.durable_state()["accepted"] == before


def test_it_needs_an_experiment_that_is_open_for_recording(make: Make) -> None:
    closed = make()
    with pytest.raises(NotOpen):
        closed.rewind(1)
    with pytest.raises(NotOpen):
        _ = closed.last_step
    closed.open().close()
    with make(read_only=True) as experiment:
        assert experiment.last_step is None
        with pytest.raises(ReadOnly):
            experiment.rewind(1)
    with make(read_only=True, resume_step=5) as experiment:
        assert experiment.last_step is None


def test_one_that_is_new_has_nothing_to_go_back_in(make: Make) -> None:
    with make(resume_step=5) as experiment:
        train(experiment, 5, 8)
        assert (experiment.resumed, experiment.last_step) == (False, 7)
    with make(resume="new", resume_step=5) as other:
        train(other, 5, 8)
        assert (other.name, other.last_step) == ("first-2", 7)


def test_a_handle_goes_back_at_its_first_opening_alone(make: Make) -> None:
    with make() as experiment:
        train(experiment, 0, 10)
    experiment = make(resume_step=5)
    with experiment:
        train(experiment, 5, 8)
    with experiment:
        assert experiment.last_step == 7
        copy = pickle.loads(pickle.dumps(experiment))
        copy.log("here")
        copy.close()
        assert experiment.last_step == 7


def test_another_handle_of_the_process_goes_back_too(make: Make) -> None:
    with make() as experiment:
        train(experiment, 0, 10)
        with make(resume_step=4) as other:
            assert other.last_step == 3
        train(experiment, 4, 6)
        assert steps(experiment, superseded=False) == [0, 1, 2, 3, 4, 5]


def test_a_decorated_function_takes_it(runs: Path) -> None:
    @ml_dash_experiment(name="run", project="p", local_path=runs, resume_step=2)
    def once(experiment: Experiment) -> list[Any]:
        before = steps(experiment, superseded=False)
        train(experiment, len(before), 5)
        return before

    assert [once(), once(), once()] == [[], [0, 1], [0, 1]]


def test_protection_does_not_hold_it_up(make: Make) -> None:
    with make(write_protected=True) as experiment:
        train(experiment, 0, 5)
        experiment.rewind(3)
        assert experiment.last_step == 2


def test_points_of_other_threads_come_before_it_or_after_it(opened: Experiment) -> None:
    """What a thread appends after `rewind` has returned is current, whatever the clock says."""
    stop = threading.Event()

    def run(name: str) -> None:
        while not stop.is_set():
            opened.metric(name).append(value=1, step=9)
            stop.wait(0.0001)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for round_ in range(100):
        opened.rewind(5)
        index = opened.metric("mine").append(value=round_, step=6)["index"]
        last = opened.metric("mine").last()
        assert last is not None
        assert last["index"] == index
        for name in ("mine", *("ab" if round_ > 50 else "")):
            # One end of the series is current: the times of a writer never go back.
            stats = opened.metric(name).stats()
            assert stats["superseded"] in ([], [[0, stats["supersededDataPoints"]]])
    stop.set()
    for thread in threads:
        thread.join()


def test_the_clock_that_stands_still_is_no_matter(opened: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    import ml_dash.journal.segment_file
    import ml_dash.journal.writer

    now = [ml_dash.journal.writer.time_ns() + 10**9 + 1]
    for module in (ml_dash.journal.writer, ml_dash.journal.segment_file):
        monkeypatch.setattr(module, "time_ns", lambda: now[0])
    for _ in range(3):
        train(opened, 0, 10)
        opened.rewind(5)
        assert steps(opened, superseded=False)[-5:] == [0, 1, 2, 3, 4]
        train(opened, 5, 8)
        assert steps(opened, superseded=False)[-3:] == [5, 6, 7]
        opened.rewind(0)


def test_a_full_disk_keeps_it_in_memory_in_its_place(opened: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    import ml_dash.journal.segment_file
    import ml_dash.journal.writer

    train(opened, 0, 10)
    full = True

    def write(fd: int, data: Any) -> int:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(fd, data)

    monkeypatch.setattr(ml_dash.journal.writer, "os_write", write)
    monkeypatch.setattr(ml_dash.journal.segment_file.os, "write", write)
    train(opened, 10, 12)
    opened.rewind(5)
    train(opened, 5, 7)
    full = False
    monkeypatch.undo()
    opened.close()
    opened.open()
    assert steps(opened, superseded=False) == [0, 1, 2, 3, 4, 5, 6]


def test_strict_raises_where_the_disk_refuses_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    import ml_dash.journal.segment_file

    def refuse(fd: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    experiment = make(strict=True).open()
    train(experiment, 0, 4)
    with monkeypatch.context() as patched:
        patched.setattr(ml_dash.journal.segment_file.os, "write", refuse)
        with pytest.raises(StorageError):
            experiment.rewind(2)
    assert experiment.last_step == 3


def test_ranks_go_back_together_and_keep_what_each_has_recorded_since(runs: Path) -> None:
    """Four processes, not one waiting for another: each goes back to step 5 as it opens, and records at once."""
    program = """
import os, sys
from ml_dash import Experiment
store, rank, start, end = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
experiment = Experiment("run", "p", local_path=store, resume_step=5).open()
for step in range(start, end):
    experiment.metric("loss/" + rank).append(value=step, step=step, run=start)
print("ready", flush=True)
sys.stdin.readline()
experiment.log("together")
os._exit(1)
"""
    for start, end in ((0, 10), (5, 8), (5, 12)):
        ranks = []
        for rank in "0123":
            process = subprocess.Popen(
                [sys.executable, "-c", program, str(runs), rank, str(start), str(end)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            ranks.append(process)
        for process in ranks:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in ranks:
            process.communicate("go\n")
        with Experiment("run", "p", local_path=runs, read_only=True) as experiment:
            for rank in "0123":
                assert steps(experiment, f"loss/{rank}", superseded=False) == list(range(end))
