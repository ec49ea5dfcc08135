"""What comes by REST: events in journals of the server's own, which survive folding anew."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from time import time_ns
from typing import Any

import pytest

from ml_dash.core.protocol import Refused
from ml_dash.errors import InvalidInput, WriteProtected
from ml_dash.server.engine.services import Server
from ml_dash.server.settings import ServerSettings
from ml_dash.server.stores import StoreTrouble
from tests.server.sending import EXPERIMENT, NS, SegmentBytes, assert_refolds, held, send
from tests.server.test_ingest import Failing


@pytest.fixture
def core(pair: ServerSettings) -> Iterator[Server]:
    server = Server(pair.data, pair)
    server.upsert_experiment(NS, "cv", {"name": "run"})
    yield server
    server.close()


def add_file(core: Server, content: bytes, filename: str = "model.pt", **fields: Any) -> dict[str, Any]:
    staged = core.staging / "upload"
    staged.write_bytes(content)
    given = {
        "filename": filename, "prefix": "/models", "description": None, "tags": ["a"], "metadata": None,
        "contentType": "application/octet-stream", "sizeBytes": len(content),
        "checksum": hashlib.sha256(content).hexdigest(), **fields,
    }  # fmt: skip
    return core.add_file(NS, EXPERIMENT, staged, given)


def everything_of_it(core: Server) -> list[Any]:
    return [
        core.experiment(NS, EXPERIMENT), {**core.get_parameters(NS, EXPERIMENT), "version": 0},
        core.logs(NS, EXPERIMENT, 0, 100),
        json.loads(core.metrics(NS, EXPERIMENT))["metrics"], core.metric_page(NS, EXPERIMENT, "loss", 0, 100),
        json.loads(core.list_files(NS, EXPERIMENT))["files"],
    ]  # fmt: skip


@pytest.mark.both_ends
def test_all_writes_are_events_and_survive(core: Server, pair: ServerSettings) -> None:
    made = core.upsert_experiment(NS, "cv", {"name": "run", "description": "d", "tags": ["x"], "folder": "f"})
    assert (made["experiment"]["id"], made["experiment"]["description"], made["namespace"]) == (EXPERIMENT, "d", NS)
    assert core.add_logs(NS, EXPERIMENT, [{"message": "a"}, {"message": "b", "level": "warn"}]) == {
        "created": 2, "startSequence": 0, "endSequence": 1, "experimentId": EXPERIMENT,
    }  # fmt: skip
    core.set_parameters(NS, EXPERIMENT, {"lr": 0.1, "model.depth": 5})
    assert core.set_parameters(NS, EXPERIMENT, {"lr": 0.2})["data"] == {"lr": 0.2, "model.depth": 5}
    answer = core.append_points(NS, EXPERIMENT, "loss", [{"value": 1.0}, {"value": 2.0, "step": 1}], description="the")
    assert (answer["startIndex"], answer["endIndex"], answer["count"]) == (0, 1, 2)
    record = add_file(core, b"weights")
    assert core.update_file(NS, EXPERIMENT, record["id"], {"tags": ["b"]})["tags"] == ["b"]
    gone = add_file(core, b"gone", "gone.bin")
    assert core.delete_file(NS, EXPERIMENT, gone["id"])["id"] == gone["id"]
    assert b"".join(core.open_file(NS, EXPERIMENT, record["id"], 0, None)[1]) == b"weights"
    assert len(list(core.objects.list(""))) == 1
    before = everything_of_it(core)
    assert_refolds(core)
    assert everything_of_it(core) == before
    core.close()
    again = Server(pair.data, pair)
    assert everything_of_it(again) == before
    # A server that started anew is another writer.
    again.add_logs(NS, EXPERIMENT, [{"message": "c"}])
    assert [entry["message"] for entry in again.logs(NS, EXPERIMENT, 0, 9)["logs"]] == ["a", "b", "c"]
    assert len(again.experiment(NS, EXPERIMENT)["writers"]) == 2
    assert_refolds(again)
    again.close()


def status(core: Server) -> str:
    return str(core.experiment(NS, EXPERIMENT)["status"])


def test_what_is_written_by_rest_alone_ends_when_it_says_so(core: Server) -> None:
    core.append_points(NS, EXPERIMENT, "loss", [{"value": 1.0}])
    assert status(core) == "running"
    for ending in ("completed", "failed", "interrupted", "completed"):
        ended = core.upsert_experiment(NS, "cv", {"name": "run", "status": ending})["experiment"]
        assert (ended["status"], ended["endedAt"] is None) == (ending, False)
        assert_refolds(core)
    core.append_points(NS, EXPERIMENT, "loss", [{"value": 2.0}])
    assert status(core) == "running"
    core.upsert_experiment(NS, "cv", {"name": "run", "status": "completed"})
    assert status(core) == "completed"
    assert_refolds(core)


@pytest.mark.both_ends
def test_what_a_server_before_this_one_left_open_ends_with_it(core: Server, pair: ServerSettings) -> None:
    core.append_points(NS, EXPERIMENT, "loss", [{"value": 1.0}])
    core.close()
    again = Server(pair.data, pair)
    assert status(again) == "running"
    again.upsert_experiment(NS, "cv", {"name": "run", "status": "completed"})
    assert status(again) == "completed"
    assert_refolds(again)
    again.close()


def test_what_nobody_writes_to_any_more_is_interrupted_and_goes_on_with_the_next_write(core: Server) -> None:
    core.append_points(NS, EXPERIMENT, "loss", [{"value": 1.0}])
    assert core.end_quiet(time_ns() - 3600 * 10**9) == 0
    assert status(core) == "running"
    assert core.end_quiet(time_ns()) == 1
    assert status(core) == "interrupted"
    assert core.end_quiet(time_ns()) == 0
    assert_refolds(core)
    core.append_points(NS, EXPERIMENT, "loss", [{"value": 2.0}])
    assert status(core) == "running"
    core.upsert_experiment(NS, "cv", {"name": "run", "status": "completed"})
    assert status(core) == "completed"
    assert_refolds(core)


def test_programs_that_record_by_themselves_decide_their_status(core: Server) -> None:
    send(core, SegmentBytes().opens())
    core.upsert_experiment(NS, "cv", {"name": "run", "status": "failed"})
    assert status(core) == "running"
    assert core.end_quiet(time_ns()) == 0
    assert status(core) == "running"
    assert_refolds(core)


def test_texts_that_look_like_numbers_are_named(core: Server) -> None:
    values = {"a": "NaN", "b": float("inf"), "c": {"d": ["Infinity"]}}
    core.upsert_experiment(NS, "cv", {"name": "run", "metadata": values})
    core.set_parameters(NS, EXPERIMENT, {"a": "NaN", "b": float("inf")})
    core.add_logs(NS, EXPERIMENT, [{"message": "x", "metadata": values}, {"message": "y", "metadata": {"a": 1}}])
    record = add_file(core, b"x", metadata=values)
    assert core.experiment(NS, EXPERIMENT)["text"] == record["text"] == ["a", "c.d.0"]
    assert core.get_parameters(NS, EXPERIMENT)["text"] == ["a"]
    first, second = core.logs(NS, EXPERIMENT, 0, 9)["logs"]
    assert first["text"] == ["a", "c.d.0"]
    assert first["metadata"] == values
    assert "text" not in second


def test_what_is_written_by_rest_can_be_pulled(core: Server) -> None:
    core.add_logs(NS, EXPERIMENT, [{"message": "a"}])
    (journal,) = core.find_experiment(NS, "cv", "run")["journals"]
    ((segment, state),) = core.journal(NS, journal)["segments"].items()
    records = core.order(NS, EXPERIMENT, 0, 100)["records"]
    assert {record[1] for record in records} == {segment}
    assert records[-1][3] == state["length"]
    data, headers = core.segment_bytes(NS, segment, 0, 1 << 20)
    assert (len(data), headers["X-ML-Dash-Journal"]) == (state["length"], journal)
    assert core.base(NS, EXPERIMENT)


@pytest.mark.both_ends
def test_protected_parameters_and_files_are_final(core: Server) -> None:
    record = add_file(core, b"weights")
    core.set_parameters(NS, EXPERIMENT, {"lr": 0.1})
    core.upsert_experiment(NS, "cv", {"name": "run", "writeProtected": True})
    before = held(core)
    for refused in (
        lambda: core.set_parameters(NS, EXPERIMENT, {"lr": 0.2}),
        lambda: add_file(core, b"more", "more.bin"),
        lambda: core.update_file(NS, EXPERIMENT, record["id"], {"tags": []}),
        lambda: core.delete_file(NS, EXPERIMENT, record["id"]),
    ):
        with pytest.raises(WriteProtected):
            refused()
    assert held(core) == before
    assert len(list(core.objects.list(""))) == 1
    # What is refused ends neither the writer nor its journal.
    core.add_logs(NS, EXPERIMENT, [{"message": "still here"}])
    assert len(core.find_experiment(NS, "cv", "run")["journals"]) == 1
    assert len(core.experiment(NS, EXPERIMENT)["writers"]) == 1


@pytest.mark.both_ends
def test_a_file_added_again_releases_the_older_content(core: Server) -> None:
    first, second = add_file(core, b"old"), add_file(core, b"new")
    assert first["id"] != second["id"]
    assert [file["id"] for file in json.loads(core.list_files(NS, EXPERIMENT))["files"]] == [second["id"]]
    assert len(list(core.objects.list(""))) == 1
    with pytest.raises(Refused, match="deleted or replaced"):
        core.open_file(NS, EXPERIMENT, first["id"], 0, None)


@pytest.mark.parametrize(
    "write",
    [
        lambda core: core.add_logs(NS, EXPERIMENT, [{"message": "x", "level": "loud"}]),
        lambda core: core.add_logs(NS, EXPERIMENT, [{"message": "x", "timestamp": "yesterday"}]),
        lambda core: core.add_logs(NS, EXPERIMENT, [{"message": "fine"}, {"message": "x" * (2 << 20)}]),
        lambda core: core.add_logs(NS, EXPERIMENT, [{"message": "\ud800"}]),
        lambda core: core.set_parameters(NS, EXPERIMENT, {"big": 1 << 70}),
        lambda core: core.append_points(NS, EXPERIMENT, "", [{"value": 1.0}]),
        lambda core: core.append_points(NS, EXPERIMENT, "loss", [{"value": "x" * (2 << 20)}]),
        lambda core: core.upsert_experiment(NS, "../cv", {"name": "run"}),
        lambda core: core.upsert_experiment(NS, "cv", {"name": ""}),
        lambda core: add_file(core, b"x", "a/b"),
        lambda core: add_file(core, b"x", "a", prefix="../.."),
    ],
)
def test_what_cannot_be_stored_is_refused_whole(core: Server, write: Any) -> None:
    before = held(core)
    with pytest.raises(InvalidInput):
        write(core)
    assert held(core) == before
    assert list(core.objects.list("")) == []
    core.add_logs(NS, EXPERIMENT, [{"message": "on"}])
    assert len(core.find_experiment(NS, "cv", "run")["journals"]) == 1


def test_what_is_not_there_cannot_be_written_to(core: Server) -> None:
    for write in (
        lambda: core.add_logs(NS, "1", [{"message": "x"}]),
        lambda: core.add_logs("bob", EXPERIMENT, [{"message": "x"}]),
        lambda: core.update_file(NS, EXPERIMENT, "7", {"tags": []}),
        lambda: core.delete_file(NS, EXPERIMENT, "7"),
    ):
        with pytest.raises(Refused) as told:
            write()
        assert told.value.status == 404


@pytest.mark.both_ends
def test_a_value_set_here_wins_over_a_clock_that_is_ahead(core: Server) -> None:
    sheet = SegmentBytes().opens()
    sheet.now += 10**18
    send(core, sheet.parameters(lr=0.1))
    assert core.set_parameters(NS, EXPERIMENT, {"lr": 0.2})["data"] == {"lr": 0.2}
    assert core.upsert_experiment(NS, "cv", {"name": "run", "description": "now"})["experiment"]["description"] == "now"
    assert_refolds(core)


@pytest.mark.both_ends
def test_a_large_batch_becomes_several_frames_and_is_numbered_together(core: Server) -> None:
    rows = [{"value": float(i), "note": "x" * 900} for i in range(5_000)]
    assert core.append_points(NS, EXPERIMENT, "loss", rows)["endIndex"] == 4_999
    ragged: list[dict[str, Any]] = [{"value": 1.0}, {"other": 2}]
    assert core.append_points(NS, EXPERIMENT, "loss", ragged)["startIndex"] == 5_000
    page = json.loads(core.metric_page(NS, EXPERIMENT, "loss", 4_998, 4))
    assert [(point["index"], point["data"].get("value")) for point in page["data"]] == [
        (4998, 4998.0), (4999, 4999.0), (5000, 1.0), (5001, None),
    ]  # fmt: skip
    assert_refolds(core)


@pytest.mark.both_ends
def test_writers_at_once_get_numbers_of_their_own(core: Server) -> None:
    found: list[int] = []

    def work() -> None:
        for _ in range(15):
            found.append(core.append_points(NS, EXPERIMENT, "loss", [{"value": 1.0}])["startIndex"])
            core.add_logs(NS, EXPERIMENT, [{"message": "x"}])

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(90))
    assert core.experiment(NS, EXPERIMENT)["counts"]["logs"] == 90
    assert_refolds(core)


def test_segments_roll_over(core: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_dash.server.engine.server_writer.ROLL_BYTES", 500)
    for number in range(20):
        core.add_logs(NS, EXPERIMENT, [{"message": f"line {number}"}])
    assert [entry["message"] for entry in core.logs(NS, EXPERIMENT, 0, 99)["logs"]] == [f"line {n}" for n in range(20)]
    assert len(core.find_experiment(NS, "cv", "run")["journals"]) > 1
    assert_refolds(core)


@pytest.mark.both_ends
def test_many_experiments_are_written_with_few_in_memory(core: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_dash.server.engine.server_writer._SEGMENTS_REMEMBERED", 3)
    for turn in range(2):
        for number in range(6):
            made = core.upsert_experiment(NS, "cv", {"name": f"r{number}"})
            core.add_logs(NS, made["experiment"]["id"], [{"message": str(turn)}])
    for row in core.experiments(NS, q="/r")["experiments"]:
        assert row["counts"]["logs"] == (2 if row["name"] != "run" else 0)


@pytest.mark.every_pair
@pytest.mark.parametrize("call", ["lease", "view", "put_blobs", "commit"])
def test_a_disk_that_refuses_leaves_nothing_half_done(core: Server, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    add_file(core, b"old", "old.bin")
    before, objects = held(core), list(core.objects.list(""))
    failing = Failing(core, monkeypatch)
    failing.at(call)
    with pytest.raises(StoreTrouble):
        add_file(core, b"new", "new.bin")
    failing.mend()
    assert held(core) == before
    # Whether it is named by then is not known there, so the content stays until it is swept.
    assert list(core.objects.list("")) == objects or call in ("put_blobs", "commit")
    add_file(core, b"new", "new.bin")
    assert len(json.loads(core.list_files(NS, EXPERIMENT))["files"]) == 2
    assert_refolds(core)
