"""Several handles of one process: they share a writer, each closes for itself, and any thread may use them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ml_dash
from ml_dash import Experiment

if TYPE_CHECKING:
    from tests.api.conftest import Make


def _segments(experiment: Experiment) -> list[Path]:
    return sorted((experiment.path / ".journal" / "segments").glob("*.seg"))


# -- sharing ----------------------------------------------------------------------------------------------------------


def test_handles_of_one_process_share_a_writer(make: Make) -> None:
    with make() as first, make() as second:
        first.log("one")
        second.log("two")
        first.log("three")
        assert (first.resumed, second.resumed) == (False, True)
        assert [entry["message"] for entry in second.log().read()["logs"]] == ["one", "two", "three"]
    assert len(_segments(first)) == 1
    assert len(first.data["writers"]) == 1


def test_a_path_that_leads_there_by_a_link_is_the_same_experiment(make: Make, runs: Path, tmp_path: Path) -> None:
    runs.mkdir()
    (tmp_path / "link").symlink_to(runs)
    with make() as first, make(local_path=tmp_path / "link") as second:
        first.log("one")
        assert second.log().read()["total"] == 1
    assert len(_segments(first)) == 1


def test_the_run_ends_with_its_last_handle(make: Make) -> None:
    first, second = make().open(), make().open()
    first.close()
    assert second.status == "running"
    with pytest.raises(ml_dash.NotOpen):
        first.log("refused, though the other goes on")
    second.log("goes on")
    second.close()
    assert second.status == "completed"
    assert second.data["counts"]["logs"] == 1


@pytest.mark.parametrize(
    ("endings", "status"),
    [
        (["completed", "failed"], "failed"),
        (["failed", "completed"], "failed"),
        (["failed", "interrupted"], "failed"),
        (["interrupted", "completed"], "interrupted"),
        (["completed", "completed"], "completed"),
    ],
)
def test_the_run_has_failed_if_any_handle_did(make: Make, endings: list[Any], status: str) -> None:
    handles = [make().open() for _ in endings]
    for handle, ending in zip(handles, endings, strict=True):
        handle.close(ending)
    assert handles[0].status == status


def test_a_failure_of_the_first_handle_is_kept_to_the_end(make: Make) -> None:
    last = make().open()
    with pytest.raises(ValueError, match="wrong"), make():
        raise ValueError("wrong")
    assert last.status == "running"
    last.close()
    assert (last.status, last.data["error"]["message"]) == ("failed", "wrong")


def test_a_closed_handle_that_opens_again_continues(make: Make) -> None:
    experiment = make()
    for number in range(3):
        with experiment:
            assert experiment.metric("loss").append(value=number)["index"] == number
            assert experiment.resumed == (number > 0)
    assert [entry["ended"] for entry in experiment.data["writers"]] == ["completed"] * 3


def test_builders_go_on_when_their_experiment_is_opened_again(make: Make) -> None:
    experiment = make().open()
    metric, parameters, log = experiment.metric("loss"), experiment.parameters(), experiment.log()
    metric.append(value=0)
    experiment.close()
    for call in (lambda: metric.append(value=1), lambda: parameters.set(a=1), lambda: log.info("x"), metric.stats):
        with pytest.raises(ml_dash.NotOpen):
            call()
    experiment.open()
    assert metric.append(value=1)["index"] == 1
    assert parameters.set(a=1).get() == {"a": 1}
    log.info("on")
    experiment.close()
    assert experiment.data["counts"] == {**experiment.data["counts"], "points": 2, "logs": 1}


def test_a_second_handle_brings_what_it_was_given(make: Make) -> None:
    with make(description="first", tags=["a"]) as first, make(description="second"):
        assert (first.description, first.tags) == ("second", ["a"])


def test_a_durability_that_cannot_be_had_is_told(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with make(), make(durability="always") as second:
        second.log("one")
    assert "is open in this process with durability='interval' already" in caplog.text


def test_any_number_of_experiments_may_be_open(make: Make) -> None:
    experiments = [make(f"number-{number}").open() for number in range(30)]
    for number, experiment in enumerate(experiments):
        experiment.metric("loss").append(value=number)
    for number, experiment in enumerate(experiments):
        assert experiment.metric("loss").read()["data"][0]["data"]["value"] == number
        experiment.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ml-dash")]


def test_what_a_run_took_is_given_back_when_it_ends(make: Make) -> None:
    def used() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/dev/fd"))

    with make():
        pass
    before = used()
    for number in range(50):
        with Experiment(f"e{number % 5}", "cv", local_path="runs") as experiment:
            experiment.metric("loss").append(value=number)
    assert used() == before


# -- results ----------------------------------------------------------------------------------------------------------


def test_an_index_is_exact_after_closing_and_after_opening_again(make: Make) -> None:
    experiment = make().open()
    results = [experiment.metric("loss").append(value=0)]
    batches = [experiment.metric("loss").append_batch([{"value": 0}] * 3)]
    experiment.close()
    experiment.open()
    results.append(experiment.metric("loss").append(value=0))
    batches.append(experiment.metric("loss").append_batch([{"value": 0}] * 2))
    experiment.metric("other").append(value=0)
    experiment.close()
    assert [result["index"] for result in results] == [0, 4]
    assert [(batch["startIndex"], batch["endIndex"]) for batch in batches] == [(1, 3), (5, 6)]


# -- threads ----------------------------------------------------------------------------------------------------------


def _together(count: int, work: Callable[[int], None]) -> None:
    """Run `work` in so many threads that all start at once; the first exception goes on."""
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count)))


def test_64_threads_record_through_one_handle_and_keep_their_order(make: Make) -> None:
    with make() as experiment:

        def work(number: int) -> None:
            for step in range(50):
                experiment.metric("shared").append(thread=number, step=step)
                experiment.metric(f"own/{number}").append(value=step)
                experiment.log("x", thread=number, step=step)

        _together(64, work)
        points = experiment.metric("shared").read(limit=10_000)["data"]
        logs = experiment.log().read(limit=10_000)["logs"]
        assert [point["index"] for point in points] == list(range(3200))
        assert [entry["sequenceNumber"] for entry in logs] == list(range(3200))
        for number in range(64):
            assert [p["data"]["step"] for p in points if p["data"]["thread"] == number] == list(range(50))
            assert [e["metadata"]["step"] for e in logs if e["metadata"]["thread"] == number] == list(range(50))
            own = experiment.metric(f"own/{number}").read()["data"]
            assert [point["data"]["value"] for point in own] == list(range(50))
        assert len(experiment.data["writers"]) == 1


def test_indices_that_threads_ask_for_are_those_of_their_points(make: Make) -> None:
    with make() as experiment:
        results: list[tuple[Any, Any]] = []

        def work(number: int) -> None:
            for step in range(20):
                mark = number * 1000 + step
                results.append((mark, experiment.metric("loss").append(mark=mark)))
                if step % 7 == number % 7:
                    assert results[-1][1]["index"] >= 0

        _together(16, work)
        found = {point["data"]["mark"]: point["index"] for point in experiment.metric("loss").read()["data"]}
        assert {mark: result["index"] for mark, result in results} == found


def test_threads_that_open_and_close_do_not_disturb_each_other(make: Make, runs: Path) -> None:
    def work(number: int) -> None:
        for step in range(5):
            with Experiment("shared", "cv", local_path=runs) as experiment:
                experiment.metric("loss").append(thread=number, step=step)
                experiment.parameters().set({f"p{number}": step})
                assert experiment.parameters().get()[f"p{number}"] == step

    _together(16, work)
    with make("shared", read_only=True) as reader:
        assert reader.status == "completed"
        assert reader.metric("loss").stats()["totalDataPoints"] == 80
        assert reader.parameters().get() == {f"p{number}": 4 for number in range(16)} | reader.parameters().get()


def test_a_call_that_meets_a_close_is_recorded_or_refused(make: Make) -> None:
    """Never anything else: no error of the writer's own, no point that was refused and is there."""
    for turn in range(20):
        experiment = make(f"turn-{turn}").open()
        started, accepted = threading.Event(), []

        def work(experiment: Experiment = experiment, started: Any = started, accepted: Any = accepted) -> None:
            metric = experiment.metric("loss")
            try:
                for step in range(1_000_000):
                    metric.append(step=step)
                    accepted.append(step)
                    started.set()
            except ml_dash.NotOpen:
                return
            raise AssertionError("it was never refused")

        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        experiment.close()
        thread.join()
        with make(f"turn-{turn}", read_only=True) as reader:
            assert reader.metric("loss").stats()["totalDataPoints"] == len(accepted)
            assert reader.status == "completed"


@pytest.mark.parametrize("kind", ["log", "parameters", "batch", "file", "update"])
def test_other_calls_that_meet_a_close_are_refused_in_the_same_words(make: Make, tmp_path: Path, kind: str) -> None:
    """The writer has closed, and the handle's own state does not say so yet."""
    (tmp_path / "model.bin").write_bytes(b"weights")
    experiment = make().open()
    experiment._handle.session.recording().writer.close({"status": "completed"})
    calls: dict[str, Callable[[], object]] = {
        "log": lambda: experiment.log("x"),
        "parameters": lambda: experiment.parameters().set(a=1),
        "batch": lambda: experiment.metric("m").append_batch([{"value": 1}]),
        "file": lambda: experiment.file("model.bin"),
        "update": lambda: experiment.update(description="d"),
    }
    with pytest.raises(ml_dash.NotOpen, match="cv/first is not open"):
        calls[kind]()
