"""Marks of an experiment: what happened, when, by whom, and as of which event it is so."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ml_dash.reading.as_of import view_as_of
from ml_dash.reading.history import History, history
from tests.journals import SECOND, JournalFixture


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[JournalFixture]:
    desk = JournalFixture(tmp_path / "store")
    yield desk
    desk.let_go()


def marks(desk: JournalFixture) -> list[dict[str, Any]]:
    return History(desk.located).page(0, 1000)["marks"]  # type: ignore[no-any-return]


def kinds(desk: JournalFixture) -> list[tuple[int, str]]:
    return [(mark["event"], mark["kind"]) for mark in marks(desk)]


def test_every_kind_has_its_mark(desk: JournalFixture) -> None:
    pen = desk.pen()
    pen.point(value=1, step=1)
    pen.parameters(lr=0.1)
    identity = pen.file(b"content")
    pen.update(title="t", notes="n")
    pen.lost(50, 59)
    pen.frame(14, {"step": 3, "metrics": ["loss"]})
    pen.delete_file(identity)
    desk.catch_up()
    pen.die()
    desk.catch_up()
    other = desk.pen()
    beside = desk.pen()
    other.close("failed", error={"type": "ValueError", "message": "no"})
    beside.close("interrupted", signal=15)
    desk.catch_up()
    assert kinds(desk) == [
        (1, "opened"), (3, "parameter"), (4, "file"), (5, "updated"), (6, "lost"), (7, "rewound"), (8, "fileDeleted"),
        (8, "crashed"), (9, "resumed"), (10, "failed"), (11, "joined"), (12, "interrupted"),
    ]  # fmt: skip
    by_kind = {mark["kind"]: mark for mark in marks(desk)}
    assert by_kind["file"]["data"] == {"id": identity, "path": "models/model.bin", "sizeBytes": 7}
    assert by_kind["rewound"]["data"] == {"step": 3, "metrics": ["loss"]}
    assert by_kind["lost"]["data"] == {"count": 10, "reason": "disk full"}
    assert by_kind["failed"]["text"] == "failed: ValueError: no"
    assert by_kind["interrupted"]["data"] == {"signal": 15}
    assert by_kind["crashed"]["text"] == "process 4121 on gpu3 was killed or lost"
    assert {mark["host"] for mark in by_kind.values()} == {"gpu3"}


def test_a_mark_tells_who_changed_a_parameter_from_what_to_what(desk: JournalFixture) -> None:
    pen = desk.pen()
    pen.parameters(lr=0.1, width=3)
    desk.now_ns += 5 * SECOND
    pen.parameters(lr=0.2, width=3)
    desk.now_ns += 5 * SECOND
    pen.parameters(lr=0.2)
    desk.catch_up()
    first, second = (mark for mark in marks(desk) if mark["kind"] == "parameter")
    assert first["data"] == {"keys": ["lr", "width"], "values": {"lr": 0.1, "width": 3}, "before": {}}
    assert second["data"] == {"keys": ["lr"], "values": {"lr": 0.2}, "before": {"lr": 0.1}}
    assert (second["writer"], second["text"]) == (pen.id, "set lr = 0.2")
    assert view_as_of(desk.located, second["event"]).parameters()["lr"] == 0.2
    assert view_as_of(desk.located, second["event"] - 1).parameters()["lr"] == 0.1
    assert view_as_of(desk.located, second["time"]).parameters()["lr"] == 0.2


def test_values_set_one_after_the_other_are_one_mark(desk: JournalFixture) -> None:
    pen = desk.pen()
    for number in range(300):
        pen.parameters(**{f"k{number}": number})
    desk.catch_up()
    (mark,) = (mark for mark in marks(desk) if mark["kind"] == "parameter")
    assert (mark["event"], len(mark["data"]["keys"])) == (301, 300)
    assert mark["text"] == "set k0 = 0, k1 = 1, k2 = 2, k3 = 3, k4 = 4 and 295 more"


def test_data_that_is_older_than_what_was_there_is_marked_as_brought_in_late(desk: JournalFixture) -> None:
    early = desk.pen()
    early.point(value=1)
    desk.now_ns += 600 * SECOND
    other = desk.pen()
    other.point(value=2)
    desk.catch_up()
    start = early.desk.now_ns - 500 * SECOND
    for number in range(3):
        early.frame(5, ["loss", {"value": number}], time_ns=start + number)
    desk.catch_up()
    late = marks(desk)[-1]
    assert (late["kind"], late["writer"], late["data"]["events"], late["event"]) == ("merged", early.id, 3, 7)


def test_a_death_that_was_none_leaves_no_mark(desk: JournalFixture) -> None:
    pen = desk.pen()
    desk.catch_up()
    pen.die()
    desk.catch_up()
    assert kinds(desk)[-1] == (1, "crashed")
    pen.log("it lives")
    desk.catch_up()
    # The lock is still free, so it is found dead again.
    assert kinds(desk) == [(1, "opened"), (2, "crashed")]


def test_what_is_new_is_added_to_what_was_read(desk: JournalFixture) -> None:
    pen = desk.pen()
    desk.catch_up()
    kept = History(desk.located)
    assert kept.page(0, 10)["total"] == 1
    pen.frame(14, {"step": 1})
    # Not recorded in the order yet: it is shown, and read again once it is.
    for _ in range(2):
        assert [mark["kind"] for mark in kept.page(0, 10)["marks"]] == ["opened", "rewound"]
    desk.catch_up()
    pen.frame(14, {"step": 2})
    page = kept.page(-1, 10)
    assert (page["total"], page["startIndex"], page["events"]) == (3, 2, 3)
    assert page["marks"][0]["data"] == {"step": 2}


def test_another_order_is_read_from_its_start(desk: JournalFixture) -> None:
    pen = desk.pen()
    desk.catch_up()
    assert history(desk.located)["total"] == 1
    pen.close()
    (desk.journal / "order").write_bytes(b"no order at all")
    desk.rebuild()
    assert [mark["kind"] for mark in history(desk.located)["marks"]] == ["opened", "completed"]


def test_bodies_that_make_no_sense_or_are_lost_make_no_mark(desk: JournalFixture) -> None:
    pen = desk.pen()
    for body in (None, {"step": -1}, {"step": 1, "metrics": "x" * 3}, 7):
        pen.frame(14, body)
    pen.large(4, {"lr": 1}, keeps_blob=False)
    pen.large(4, {"width": 1})
    desk.catch_up()
    assert [mark["kind"] for mark in marks(desk)][-1] == "parameter"
    assert marks(desk)[-1]["data"]["keys"] == ["width"]


def test_reading_changes_nothing(desk: JournalFixture, tmp_path: Path) -> None:
    desk.pen().close()
    shutil.copytree(desk.journal, tmp_path / "copy")
    before = {path: path.read_bytes() for path in desk.journal.rglob("*") if path.is_file()}
    found = marks(desk)
    assert copy.deepcopy(found) == marks(desk)
    assert {path: path.read_bytes() for path in desk.journal.rglob("*") if path.is_file()} == before
