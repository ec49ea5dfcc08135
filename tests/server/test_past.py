"""A server's answers about the past, and its history."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_dash.core import events as ev
from ml_dash.core.protocol import Refused
from ml_dash.server.engine.services import Server
from tests.server.sending import EXPERIMENT, NS, SegmentBytes, send, send_blob


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "data")
    yield server
    server.close()


def test_a_file_that_was_deleted_since_is_told_apart_from_one_that_has_not_come(core: Server) -> None:
    sheet = SegmentBytes().opens()
    deleted = sheet.adds_file(b"deleted", "deleted.bin")
    sheet.adds_file(b"awaited", "awaited.bin")
    sheet.deletes_file(deleted)
    send(core, sheet)
    send_blob(core, sheet, deleted, b"deleted")
    then = json.loads(core.at(3).list_files(NS, EXPERIMENT))["files"]
    assert [(file["filename"], file.get("released"), file.get("pending")) for file in then] == [
        ("deleted.bin", True, None), ("awaited.bin", None, True),
    ]  # fmt: skip
    assert core.at(3).file_record(NS, EXPERIMENT, then[0]["id"])["deletedAt"] is None
    assert len(json.loads(core.list_files(NS, EXPERIMENT))["files"]) == 1


def test_looks_at_moments_before_and_behind_each_other_do_not_disturb_each_other(core: Server) -> None:
    sheet = SegmentBytes().opens()
    for number in range(50):
        sheet.parameters(lr=number).point(value=number, step=number)
    send(core, sheet)
    for number in (40, 3, 41, 49, 0, 40):
        query = core.at(2 + 2 * number)
        assert query.get_parameters(NS, EXPERIMENT)["data"] == {"lr": number}
        page = json.loads(query.metric_page(NS, EXPERIMENT, "loss", -1, 1))
        assert page["totalDataPoints"] == number
    assert core.get_parameters(NS, EXPERIMENT)["data"] == {"lr": 49}


def test_what_was_removed_is_not_in_the_past_either(core: Server) -> None:
    send(core, SegmentBytes(1).opens().parameters(secret=1).closes())
    assert core.history(NS, EXPERIMENT)["total"] == 3
    assert core.at(2).get_parameters(NS, EXPERIMENT)["data"] == {"secret": 1}
    core.remove_experiment(NS, EXPERIMENT)
    with pytest.raises(Refused):
        core.history(NS, EXPERIMENT)
    with pytest.raises(Refused):
        core.at(2).get_parameters(NS, EXPERIMENT)
    send(core, SegmentBytes(2, journal=2).opens().parameters(other=1))
    assert [mark["event"] for mark in core.history(NS, EXPERIMENT)["marks"]] == [1, 2]
    assert core.at(2).get_parameters(NS, EXPERIMENT)["data"] == {"other": 1}
    assert core.at(1).get_parameters(NS, EXPERIMENT)["data"] == {}


def test_bodies_that_are_blobs_are_in_the_past_too(core: Server) -> None:
    sheet = SegmentBytes().opens()
    name, content = sheet.spills(ev.PARAMETERS, {"large": "x" * 100})
    sheet.parameters(large="y")
    send_blob(core, sheet, name, content, body=True)
    send(core, sheet)
    assert core.at(2).get_parameters(NS, EXPERIMENT)["data"] == {"large": "x" * 100}
    marks = [mark for mark in core.history(NS, EXPERIMENT)["marks"] if mark["kind"] == "parameter"]
    assert marks[-1]["event"] == 3
