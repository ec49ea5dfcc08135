# ruff: noqa: E501 - tables read better with their rows on one line
"""`verify` finds every kind of damage, and does not cry wolf."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml_dash.core import events as ev
from ml_dash.reading.verify import DAMAGE, Finding, verify
from tests.journals import JournalFixture, WriterFixture, flip


def filled(desk: JournalFixture) -> WriterFixture:
    pen = desk.pen()
    for number in range(10):
        pen.point(value=number)
        pen.log(str(number))
    pen.file(b"content")
    pen.large(ev.LOG, ["info", "large", None])
    return pen


def findings(desk: JournalFixture, kind: str) -> list[Finding]:
    return [finding for finding in desk.verify().findings if finding.kind == kind]


# -- no wolf ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projected", [True, False])
def test_a_clean_run_is_whole(desk: JournalFixture, projected: bool) -> None:
    filled(desk).close()
    if projected:
        desk.catch_up()
    report = desk.verify()
    assert (report.ok, report.findings) == (True, ())
    assert (report.events, report.segments, report.blobs) == (24, 1, 1)
    assert report.bytes == desk.pens[0].segment.stat().st_size


def test_a_live_run_is_whole_at_any_moment(desk: JournalFixture) -> None:
    pens = [desk.pen(), desk.pen()]
    for number in range(12):
        pens[number % 2].point(value=number)
        if number % 3 == 0:
            desk.catch_up()
        if number == 7:
            pens[0].raw(b"\x28\x00\x00\x00half")
            assert desk.kinds() == set()
            pens[0].chop(8)
        assert desk.kinds() == set()


def test_a_run_that_crashed_after_it_was_projected_is_whole(desk: JournalFixture) -> None:
    """Nobody has noted its death yet: what the folder says of the status is no damage."""
    pen = filled(desk)
    desk.catch_up()
    pen.die()
    assert desk.kinds() == set()
    desk.catch_up()
    assert desk.kinds() == set()


def test_a_resumed_run_is_whole(desk: JournalFixture) -> None:
    filled(desk).die()
    desk.catch_up()
    filled(desk).close()
    assert desk.kinds() == set()
    desk.catch_up()
    assert desk.kinds() == {"released"}


def test_a_half_projected_folder_is_whole(desk: JournalFixture) -> None:
    pen = filled(desk)
    desk.catch_up()
    for number in range(5):
        pen.point(value=number)
    pen.close()
    assert desk.kinds() == set()
    (desk.journal / "checkpoint").unlink()
    assert desk.kinds() == set()


@pytest.mark.parametrize("tail", [b"\x28\x00\x00\x00abc", b"\x28", bytes(5000)])
def test_a_torn_tail_is_told_and_is_no_damage(desk: JournalFixture, tail: bytes) -> None:
    pen = filled(desk)
    pen.raw(tail)
    pen.die()
    desk.catch_up()
    report = desk.verify()
    assert ([finding.kind for finding in report.findings], report.ok) == (["torn"], True)


def test_a_header_that_was_never_written_whole_is_torn(desk: JournalFixture) -> None:
    filled(desk).close()
    second = desk.pen(opens=False)
    os.truncate(second.segment, 20)
    second.die()
    assert desk.kinds() == {"torn"}


def test_released_contents_are_told_and_are_no_damage(desk: JournalFixture) -> None:
    pen = desk.pen()
    pen.file(b"one")
    pen.delete_file(pen.file(b"two"))
    pen.close()
    desk.catch_up()
    report = desk.verify()
    assert ([finding.kind for finding in report.findings], report.ok) == (["released"] * 2, True)


def test_copied_files_are_whole(desk: JournalFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_DASH_FILES", "copy")
    filled(desk).close()
    desk.catch_up()
    assert desk.kinds() == set()


# -- damage -----------------------------------------------------------------------------------------------------------


def blob(desk: JournalFixture, size: int) -> Path:
    (found,) = (path for path in (desk.journal / "blobs").iterdir() if path.stat().st_size == size)
    return found


def rewrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


Harm = Callable[[JournalFixture, WriterFixture], Any]
HARMS: list[tuple[str, set[str], Harm]] = [
    ("a bit in the middle", {"damaged", "gap"}, lambda d, p: p.flip(p.frames[5][0] + 20)),
    ("a bit in the last frame", {"damaged", "projection"}, lambda d, p: p.flip(p.frames[-1][0] + 12)),
    ("a bit of the header", {"damaged"}, lambda d, p: p.flip(30)),
    ("the end was cut off", {"damaged", "projection"}, lambda d, p: p.chop(100)),
    ("a segment is gone", {"damaged", "projection"}, lambda d, p: p.segment.unlink()),
    ("a segment is rubbish", {"damaged", "projection"}, lambda d, p: p.segment.write_bytes(b"rubbish" * 300)),
    ("order is gone", {"damaged"}, lambda d, p: (d.journal / "order").unlink()),
    ("order has no header", {"damaged"}, lambda d, p: flip(d.journal / "order", 2)),
    ("a record of order", {"damaged"}, lambda d, p: flip(d.journal / "order", -100)),
    ("a content is gone", {"missing-blob"}, lambda d, p: blob(d, 7).unlink()),
    ("a content is another", {"changed-blob", "projection"}, lambda d, p: rewrite(blob(d, 7), b"CONTENT")),
    ("a bit of a content", {"changed-blob"}, lambda d, p: flip(blob(d, 7), 3)),
    ("a body is gone", {"missing-blob", "gap", "projection"}, lambda d, p: blob(d, 13).unlink()),
    ("a body is another", {"changed-blob", "gap", "projection"}, lambda d, p: flip(blob(d, 13), 8)),
    ("a line was edited", {"projection"}, lambda d, p: flip(d.folder / "metrics/loss/data.jsonl", 30)),
    ("lines are missing", {"projection"}, lambda d, p: os.truncate(d.folder / "logs/logs.jsonl", 50)),
    ("lines were added", {"projection"}, lambda d, p: (d.folder / "logs/logs.jsonl").open("a").write("{}\n")),
    ("a file of lines is gone", {"projection"}, lambda d, p: (d.folder / "logs/logs.jsonl").unlink()),
    ("a document was edited", {"projection"}, lambda d, p: flip(d.folder / "experiment.json", 30)),
    ("a document is gone", {"projection"}, lambda d, p: (d.folder / "parameters.json").unlink()),
    ("metadata was edited", {"projection"}, lambda d, p: flip(d.folder / "metrics/loss/metadata.json", 9)),
    ("an added file was replaced", {"projection"}, lambda d, p: rewrite(d.folder / "files/models/model.bin", b"CONTENT")),
    ("an added file is gone", {"projection"}, lambda d, p: (d.folder / "files/models/model.bin").unlink()),
]  # fmt: skip


@pytest.mark.parametrize(("kinds", "harm"), [row[1:] for row in HARMS], ids=[row[0] for row in HARMS])
def test_damage_is_found(desk: JournalFixture, kinds: set[str], harm: Harm) -> None:
    pen = filled(desk)
    desk.catch_up()
    pen.log("last")
    pen.close()
    desk.catch_up()
    shutil.copytree(desk.folder, desk.store / "copy", symlinks=True)
    harm(desk, pen)
    report = desk.verify()
    found = {finding.kind for finding in report.findings}
    assert report.damaged
    assert found & DAMAGE
    assert found == kinds or found - {"gap", "projection", "torn"} == kinds - {"gap", "projection", "torn"}


def test_a_gap_names_the_numbers_that_are_missing(desk: JournalFixture) -> None:
    pen = filled(desk)
    pen.close()
    for number in (4, 5, 9):
        pen.flip(pen.frames[number][0] + 12)
    told = [(finding.events, finding.what) for finding in findings(desk, "gap")]
    assert told == [(2, "events 4 to 5 are missing"), (1, "events 9 to 9 are missing")]
    where = [finding.what for finding in findings(desk, "damaged")]
    assert where == [
        f"bytes {pen.frames[4][0]} to {pen.frames[5][1]} hold no frame",
        f"bytes {pen.frames[9][0]} to {pen.frames[9][1]} hold no frame",
    ]


def test_events_that_the_writer_lost_are_told_once(desk: JournalFixture) -> None:
    pen = desk.pen()
    pen.lost(1, 5)
    pen.close()
    (finding,) = desk.verify().findings
    assert (finding.kind, finding.events) == ("lost", 5)


def test_events_that_make_no_sense_are_damage(desk: JournalFixture) -> None:
    pen = desk.pen()
    pen.frame(ev.PARAMETERS, [1])
    pen.close()
    desk.catch_up()
    (finding,) = desk.verify().findings
    assert (finding.kind, finding.events) == ("damaged", 1)


def test_a_journal_of_which_nothing_is_left_is_damaged(desk: JournalFixture) -> None:
    pen = filled(desk)
    pen.die()
    pen.segment.unlink()
    (desk.journal / "order").write_text("rubbish")
    assert desk.verify().damaged


def test_verifying_writes_nothing(desk: JournalFixture) -> None:
    filled(desk).die()
    desk.catch_up()
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in desk.store.rglob("*")}
    desk.verify()
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in desk.store.rglob("*")} == before


def test_progress_ends_with_everything(desk: JournalFixture) -> None:
    filled(desk).close()
    desk.catch_up()
    told: list[tuple[int, int]] = []
    report = verify(desk.located, lambda done, total: told.append((done, total)))
    assert all(done <= total == report.bytes for done, total in told)
