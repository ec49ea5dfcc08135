"""The projector: the folder is always what the journal says, however it came about."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from ml_dash.core import events as ev
from ml_dash.journal.segment import EXPERIMENT
from ml_dash.projection import checkpoint as checkpoints
from ml_dash.projection import projector as projectors
from ml_dash.projection import trust
from ml_dash.projection.folder import FILES, LOGS, PARAMETERS
from ml_dash.projection.projector import Projector
from ml_dash.projection.replay import Pace, PassStopped
from ml_dash.reading.view import projected
from tests.journals import JournalFixture, Tree, WriterFixture, flip


def projector(desk: JournalFixture) -> Projector:
    return Projector(desk.journal, desk.folder)


def fill(desk: JournalFixture) -> WriterFixture:
    """One writer that does everything, and lives."""
    pen = desk.pen(tags=["a"])
    pen.log("hello", metadata={"n": float("nan")})
    pen.parameters(lr=0.1, raw=b"x")
    for step in range(5):
        pen.point(value=step / 2, step=step)
    pen.points("acc", value=[1, 2, 3], step=[1, 2, 3])
    pen.rows("odd/..", {"a": None}, {"b": "NaN", "c": [1]})
    pen.describe("acc", description="accuracy")
    first = pen.file(b"first", tags=["old"])
    pen.file(b"second")
    pen.delete_file(pen.file(b"gone", filename="gone.txt"))
    pen.update_file(first, tags=["older"])
    pen.update(description="changed")
    return pen


def rebuilt(desk: JournalFixture) -> Tree:
    """What a rebuild gives; it must be what is there."""
    before = desk.tree()
    desk.rebuild()
    assert desk.tree() == before
    return before


# -- exact ------------------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_was_recorded(desk: JournalFixture) -> None:
    fill(desk).close()
    desk.catch_up()
    assert json.loads(desk.lines(LOGS)[0])["message"] == "hello"
    assert json.loads((desk.folder / PARAMETERS).read_text()) == {"lr": 0.1, "raw": "eA=="}
    assert [json.loads(line)["index"] for line in desk.lines("metrics/loss/data.jsonl")] == [0, 1, 2, 3, 4]
    assert (desk.folder / "files/models/model.bin").read_bytes() == b"second"
    assert not (desk.folder / "files/models/gone.txt").exists()
    assert len(json.loads((desk.folder / FILES).read_text())["files"]) == 3
    assert json.loads((desk.folder / EXPERIMENT).read_text()) == desk.record()
    assert desk.record()["status"] == "completed"
    rebuilt(desk)


def test_every_derived_file_may_be_deleted(desk: JournalFixture) -> None:
    fill(desk).close()
    desk.catch_up()
    before = desk.tree()
    for entry in desk.folder.iterdir():
        if entry.name != ".journal":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    desk.catch_up()
    assert desk.tree() == before


@pytest.mark.parametrize(
    "gone", [LOGS, PARAMETERS, EXPERIMENT, FILES, "files", "metrics", "metrics/loss/metadata.json"]
)
def test_what_is_deleted_is_made_again_by_the_next_projector(desk: JournalFixture, gone: str) -> None:
    fill(desk).close()
    desk.catch_up()
    before = desk.tree()
    path = desk.folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    desk.catch_up()
    assert desk.tree() == before


def test_catching_up_event_by_event_gives_what_one_pass_gives(desk: JournalFixture) -> None:
    pen = fill(desk)
    data = pen.segment.read_bytes()
    ends = [end for _, end in pen.frames]
    pen.segment.write_bytes(data[: pen.frames[0][0]])
    worker = projector(desk)
    for start, end in zip([pen.frames[0][0], *ends], ends, strict=False):
        pen.raw(data[start:end])
        worker.advance(complete=False)
    pen.close()
    worker.advance()
    rebuilt(desk)


def test_concurrent_writers_keep_the_numbers_that_were_given_first(desk: JournalFixture) -> None:
    """Merged as they were met, deaths included; a rebuild follows the record."""
    rng = random.Random(1)
    pens = [desk.pen() for _ in range(4)]
    worker = projector(desk)
    for number in range(60):
        pen = rng.choice(pens)
        pen.point(value=number)
        pen.log(str(number))
        if rng.random() < 0.3:
            (worker if rng.random() < 0.5 else projector(desk)).advance(complete=rng.random() < 0.5)
        if number == 40:
            pens.pop().die()
    for pen in pens:
        pen.close()
    desk.catch_up()
    numbers = [json.loads(line)["sequenceNumber"] for line in desk.lines(LOGS)]
    assert numbers == list(range(60))
    assert desk.record()["status"] == "interrupted"
    rebuilt(desk)


@pytest.mark.parametrize("seed", range(6))
def test_a_pass_that_is_stopped_anywhere_leaves_what_another_can_go_on_from(desk: JournalFixture, seed: int) -> None:
    """A pass ends in the middle of a stretch; other writers go on; the numbers are still those of a rebuild."""
    rng = random.Random(seed)
    pens = [desk.pen() for _ in range(3)]
    worker = projector(desk)
    for number in range(40):
        rng.choice(pens).point(value=number)
        if rng.random() < 0.4:
            left = [rng.randrange(3)]

            def step(left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise PassStopped

            try:
                (worker if rng.random() < 0.6 else projector(desk)).advance(pace=Pace(2, step), complete=False)
            except PassStopped:
                continue
    desk.catch_up()
    assert [json.loads(line)["index"] for line in desk.lines("metrics/loss/data.jsonl")] == list(range(40))
    rebuilt(desk)


def test_a_failure_at_any_write_leaves_what_the_next_pass_can_go_on_from(
    desk: JournalFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(desk).close()
    desk.catch_up()
    wanted = desk.tree()
    desk.rebuild()
    real = os.pwrite
    failures = 0
    for nth in range(12):
        desk_folder_removed = [entry for entry in desk.folder.iterdir() if entry.name != ".journal"]
        for entry in desk_folder_removed:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        calls = [0]

        def failing(fd: int, data: Any, offset: int, calls: list[int] = calls, nth: int = nth) -> int:
            calls[0] += 1
            if calls[0] == nth + 1:
                real(fd, bytes(data)[: len(data) // 2], offset)
                raise OSError(28, "No space left on device")
            return real(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", failing)
        try:
            desk.catch_up()
        except OSError:
            failures += 1
        monkeypatch.setattr(os, "pwrite", real)
        desk.catch_up()
        assert desk.tree() == wanted
    assert failures > 2


def test_lines_behind_the_last_one_are_cut_off(desk: JournalFixture) -> None:
    fill(desk).close()
    desk.catch_up()
    before = desk.tree()
    with (desk.folder / LOGS).open("a") as file:
        file.write('{"half')
    desk.catch_up()
    assert desk.tree() == before


def test_a_file_shown_by_a_projector_that_died_and_deleted_since_is_shown_no_more(desk: JournalFixture) -> None:
    pen = desk.pen()
    desk.catch_up()
    saved = (desk.journal / "checkpoint").read_bytes()
    added = pen.file(b"content")
    desk.catch_up()
    pen.delete_file(added)
    (desk.journal / "checkpoint").write_bytes(saved)
    desk.catch_up()
    assert not (desk.folder / "files/models").exists()
    rebuilt(desk)


# -- late, twice, damaged ---------------------------------------------------------------------------------------------


def test_frames_that_were_damaged_and_are_mended_fill_their_gap(desk: JournalFixture) -> None:
    pen = desk.pen()
    for number in range(9):
        pen.log(str(number))
    pen.close()
    pen.flip(pen.frames[4][0] + 12)
    desk.catch_up()
    assert desk.record()["writers"][0]["missing"] == [[4, 4]]
    pen.flip(pen.frames[4][0] + 12)
    desk.catch_up()
    assert [json.loads(line)["message"] for line in desk.lines(LOGS)] == ["0", "1", "2", "4", "5", "6", "7", "8", "3"]
    assert "missing" not in desk.record()["writers"][0]
    rebuilt(desk)


def test_an_event_that_stands_in_two_segments_counts_once(desk: JournalFixture) -> None:
    pen = desk.pen()
    pen.point(value=1)
    pen.roll()
    pen.frame(ev.POINT, ["loss", {"value": 1}], seq=1)
    pen.point(value=2)
    pen.close()
    desk.catch_up()
    assert len(desk.lines("metrics/loss/data.jsonl")) == 2
    rebuilt(desk)


def test_a_segment_that_cannot_be_read_is_set_aside_and_the_rest_goes_on(desk: JournalFixture) -> None:
    broken, whole = desk.pen(), desk.pen()
    broken.segment.write_bytes(b"rubbish" * 100)
    whole.log("whole")
    whole.close()
    desk.catch_up()
    assert [json.loads(line)["message"] for line in desk.lines(LOGS)] == ["whole"]


def test_an_event_whose_body_is_lost_is_a_gap_that_is_filled_when_it_comes_back(desk: JournalFixture) -> None:
    pen = desk.pen()
    pen.log("before")
    number = pen.large(ev.LOG, ["info", "large", None])
    pen.log("after")
    pen.close()
    (blob,) = (desk.journal / "blobs").iterdir()
    blob.rename(desk.store / "kept")
    desk.catch_up()
    assert [json.loads(line)["message"] for line in desk.lines(LOGS)] == ["before", "after"]
    assert desk.record()["writers"][0]["missing"] == [[number, number]]
    rebuilt(desk)
    (desk.store / "kept").rename(blob)
    desk.catch_up()
    assert [json.loads(line)["message"] for line in desk.lines(LOGS)] == ["before", "after", "large"]
    rebuilt(desk)


@pytest.mark.parametrize("damage", ["lost", "no header", "cut", "middle"])
def test_without_a_whole_order_nothing_is_lost_or_doubled(desk: JournalFixture, damage: str) -> None:
    pens = [desk.pen() for _ in range(3)]
    for number in range(30):
        pens[number % 3].point(value=number)
        if number % 7 == 0:
            desk.catch_up()
    for pen in pens:
        pen.close()
    desk.catch_up()
    order = desk.journal / "order"
    if damage == "lost":
        order.unlink()
    elif damage == "no header":
        flip(order, 3)
    elif damage == "cut":
        os.truncate(order, order.stat().st_size - 30)
    else:
        flip(order, order.stat().st_size // 2)
    desk.catch_up()
    if damage == "middle":
        desk.rebuild()
    values = [json.loads(line)["data"]["value"] for line in desk.lines("metrics/loss/data.jsonl")]
    assert sorted(values) == list(range(30))
    for pen in range(3):
        own = [value for value in values if value % 3 == pen]
        assert own == sorted(own)
    rebuilt(desk)


def test_a_segment_that_is_shorter_than_it_was_is_folded_again(desk: JournalFixture) -> None:
    pen = desk.pen()
    for number in range(5):
        pen.log(str(number))
    pen.die()
    desk.catch_up()
    pen.chop(pen.frames[-1][1] - pen.frames[-2][0])
    desk.catch_up()
    assert len(desk.lines(LOGS)) == 3
    rebuilt(desk)


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_with_any_byte_changed_or_cut_off_is_not_used(desk: JournalFixture) -> None:
    fill(desk).close()
    desk.catch_up()
    path = desk.journal / "checkpoint"
    whole = path.read_bytes()
    for place in [*range(20), *range(20, len(whole), 11)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert checkpoints.load(desk.journal) is None
        path.write_bytes(whole[:place])
        assert checkpoints.load(desk.journal) is None


def test_the_checkpoint_of_another_journal_is_not_used(desk: JournalFixture) -> None:
    fill(desk).close()
    desk.catch_up()
    before = desk.tree()
    other = JournalFixture(desk.store, "cv", "other")
    pen = other.pen()
    for _ in range(5):
        pen.log("other")
        pen.point(value=1)
    pen.close()
    other.catch_up()
    shutil.copy(other.journal / "checkpoint", desk.journal / "checkpoint")
    assert desk.record()["name"] == "run"
    desk.catch_up()
    assert desk.tree() == before


@pytest.mark.parametrize("field", ["fold_version", "layout_version"])
def test_a_checkpoint_of_another_version_is_not_used(desk: JournalFixture, field: str) -> None:
    fill(desk)
    desk.catch_up()
    found = checkpoints.load(desk.journal)
    assert found is not None
    setattr(found, field, 99)
    checkpoints.save(desk.journal, found)
    assert checkpoints.load(desk.journal) is None


def crafted(desk: JournalFixture, change: Any) -> None:
    found = checkpoints.load(desk.journal)
    assert found is not None
    change(found)
    checkpoints.save(desk.journal, found)


def test_a_crafted_checkpoint_leads_nowhere(desk: JournalFixture, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    pen = fill(desk)
    pen.close()
    desk.catch_up()
    before = desk.tree()
    changes: list[Any] = [
        lambda c: c.layout.placed.update({"../../../../victim": "x"}),
        lambda c: c.layout.placed.update({str(victim): "x"}),
        lambda c: c.state.session.append("nobody"),
        lambda c: c.state.places.update({"a": ["1"]}),
        lambda c: c.layout.metrics["loss"].marks.clear(),
        lambda c: setattr(c.layout.logs, "lines", 5),
        lambda c: c.state.parameters["lr"].__setattr__("value", deep),
        lambda c: c.state.tags.__setattr__("value", [[1]]),
        lambda c: setattr(c, "order_position", 10**9),
    ]
    for change in changes:
        crafted(desk, change)
        desk.view().record()
        desk.catch_up()
        assert desk.tree() == before
    assert victim.read_text() == "precious"


# -- after another boot ------------------------------------------------------------------------------------------------


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch) -> Any:
    def reboot(name: str) -> None:
        for module in (checkpoints, trust, projectors):
            monkeypatch.setattr(module, "boot_id", lambda: name)

    return reboot


@pytest.mark.parametrize(
    "lost", ["nothing", LOGS, "metrics/loss/data.jsonl", PARAMETERS, EXPERIMENT, "segment", "order"]
)
def test_after_a_power_cut_what_was_not_on_disk_is_made_again(desk: JournalFixture, reboot: Any, lost: str) -> None:
    """Zeros where there was something; the checkpoint, written later, survived."""
    reboot("first")
    pen = fill(desk)
    pen.die()
    desk.catch_up()
    path = pen.segment if lost == "segment" else desk.journal / lost if lost == "order" else desk.folder / lost
    if lost != "nothing":
        data = path.read_bytes()
        keep = len(data) * 2 // 3
        path.write_bytes(data[:keep] + bytes(len(data) - keep))
    reboot("second")
    desk.view().record()
    desk.catch_up()
    rebuilt(desk)


def test_another_boot_alone_does_not_fold_again(
    desk: JournalFixture, reboot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reboot("first")
    fill(desk).close()
    desk.catch_up()
    reboot("second")
    monkeypatch.setattr("ml_dash.projection.replay.fold", None)
    desk.catch_up()
    assert desk.view().record()["counts"]["points"] == 10


def test_a_boot_that_was_checked_is_not_checked_again(desk: JournalFixture, reboot: Any) -> None:
    reboot("first")
    pen = fill(desk)
    desk.catch_up()
    reboot("second")
    desk.catch_up()
    found = checkpoints.load(desk.journal)
    assert found is not None
    assert found.layout.logs.safe == found.layout.logs.size > 0
    assert found.safe[pen.segment.name] == pen.frames[-1][1]


# -- blobs ------------------------------------------------------------------------------------------------------------


def blobs(desk: JournalFixture) -> int:
    return len(list((desk.journal / "blobs").iterdir()))


def test_a_replaced_content_is_released_after_what_replaced_it_is_synced(
    desk: JournalFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    monkeypatch.setattr("ml_dash.projection.replay.data_sync", lambda fd: log.append("segment"))
    monkeypatch.setattr("ml_dash.projection.replay.sync_folder", lambda path: log.append("folder"))
    monkeypatch.setattr("ml_dash.journal.order.data_sync", lambda fd: log.append("order"))
    monkeypatch.setattr("ml_dash.journal.blobs.release", lambda journal, name: log.append("released"))
    pen = desk.pen()
    pen.file(b"one")
    desk.catch_up()
    assert log == []
    pen.file(b"two")
    desk.catch_up()
    assert log == ["segment", "folder", "order", "released"]


def test_versions_are_kept_where_that_is_asked_for_and_a_rebuild_keeps_them(
    desk: JournalFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_DASH_KEEP_VERSIONS", "1")
    pen = desk.pen()
    pen.file(b"one")
    pen.file(b"two")
    desk.catch_up()
    monkeypatch.delenv("ML_DASH_KEEP_VERSIONS")
    desk.rebuild()
    assert blobs(desk) == 2
    pen.file(b"three")
    desk.catch_up()
    assert blobs(desk) == 2


def test_files_are_copied_where_that_is_asked_for(desk: JournalFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    pen = desk.pen()
    pen.file(b"one")
    desk.catch_up()
    shown = desk.folder / "files/models/model.bin"
    assert shown.stat().st_nlink == 2
    monkeypatch.setenv("ML_DASH_FILES", "copy")
    desk.rebuild()
    assert (shown.stat().st_nlink, shown.read_bytes()) == (1, b"one")


# -- several projectors, readers ---------------------------------------------------------------------------------------


def test_two_projectors_in_turns_write_the_same_bytes(desk: JournalFixture) -> None:
    pen = fill(desk)
    workers = [projector(desk), projector(desk)]
    for number in range(10):
        pen.point(value=number)
        assert workers[number % 2].advance(complete=number % 3 == 0)
    pen.close()
    workers[0].advance()
    rebuilt(desk)


def test_where_locks_lie_everybody_follows_one_order(desk: JournalFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process records what it finds while this one is at work: what was recorded first comes first."""
    monkeypatch.setattr("ml_dash.disk.lock.Turn.take", lambda *_: True)
    pens = [desk.pen(), desk.pen(), desk.pen()]
    for pen in pens:
        pen.point(value=0.0)
    desk.catch_up()
    mine, theirs = projector(desk), projector(desk)
    pens[0].point(value=1.0)
    pens[2].point(value=2.0)
    steps = iter(range(1))

    def meanwhile() -> None:
        for _ in steps:
            theirs.advance()
            pens[1].point(value=3.0)
            pens[2].point(value=4.0)

    mine.advance(pace=Pace(1, meanwhile))
    theirs.advance()
    for pen in pens:
        pen.close()
    mine.advance()
    values = [json.loads(line)["data"]["value"] for line in desk.lines("metrics/loss/data.jsonl")]
    assert values == [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]
    rebuilt(desk)


def test_while_another_has_the_turn_a_reader_folds_in_memory(desk: JournalFixture) -> None:
    pen = fill(desk)
    with projector(desk).having_turn(0) as taken:
        assert taken
        assert not projector(desk).advance()
        assert desk.view().metric_page("loss")["total"] == 5
    pen.close()


def test_documents_that_lag_are_finished_by_a_later_pass(desk: JournalFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(projectors, "monotonic", lambda: now[0])
    pen = desk.pen()
    pen.point(value=1)
    worker = projector(desk)
    worker.advance(complete=False)
    worker._documents_due = 200.0
    pen.point(value=2)
    worker.advance(complete=False)
    path = desk.folder / "metrics/loss/metadata.json"
    assert (worker.lagging, json.loads(path.read_text())["totalDataPoints"]) == (True, 1)
    assert desk.kinds() == set()
    now[0] = 200.0
    worker.advance(complete=False)
    assert (worker.lagging, json.loads(path.read_text())["totalDataPoints"]) == (False, 2)
    pen.die()
    rebuilt_after_death = projector(desk)
    rebuilt_after_death.advance()
    rebuilt(desk)


@pytest.mark.parametrize("harm", ["removed", "cut", "edited", "swapped"])
def test_a_view_of_an_edited_folder_still_tells_the_truth(desk: JournalFixture, harm: str) -> None:
    pen = desk.pen()
    pen.points(value=list(range(2500)))
    pen.log("hello")
    worker = projector(desk)
    worker.advance()
    views = [desk.view(), projected(worker)]
    for path in (desk.folder / "metrics/loss/data.jsonl", desk.folder / LOGS):
        data = path.read_bytes()
        if harm == "removed":
            path.unlink()
        elif harm == "cut":
            path.write_bytes(data[: len(data) // 3])
        elif harm == "edited":
            path.write_bytes(b"[]\n" + data)
        else:
            path.write_bytes(b"\n".join(reversed(data.splitlines())) + b"\n")
    for view in views:
        with worker.guard:
            assert [row["data"]["value"] for row in view.metric_page("loss", -10)["data"]] == list(range(2490, 2500))
            assert [row["data"]["value"] for row in view.each_point("loss")] == list(range(2500))
            assert view.logs()["logs"][0]["message"] == "hello"


# -- marks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 1999, 2000, 2001])
@pytest.mark.parametrize("form", ["single", "batched", "mixed"])
def test_every_page_is_found_at_once_wherever_it_begins(desk: JournalFixture, count: int, form: str) -> None:
    pen = desk.pen()
    half = {"single": count, "batched": 0, "mixed": count // 2}[form]
    for value in range(half):
        pen.point(value=value)
    if count > half:
        pen.points(value=list(range(half, count)))
    for number in range(count):
        pen.log(str(number))
    worker = projector(desk)
    worker.advance(pace=Pace(333, lambda: None))
    known = worker.layout.metrics["loss"]
    assert (known.lines, len(known.marks), len(worker.layout.logs.marks)) == (
        count,
        -(-count // 1000),
        -(-count // 1000),
    )
    for view in (projected(worker), desk.view()):
        for start in {0, 1, count - 1, min(999, count - 1), min(1000, count - 1)}:
            page = view.metric_page("loss", start, 3)
            assert [row["data"]["value"] for row in page["data"]] == list(range(start, min(count, start + 3)))
            assert page["hasMore"] == (start + 3 < count)
            assert [entry["message"] for entry in view.logs(start, 2)["logs"]] == [
                str(number) for number in range(start, min(count, start + 2))
            ]
        assert view.metric_page("loss", count + 5, 3)["data"] == []


@pytest.mark.parametrize("document", [PARAMETERS, EXPERIMENT, FILES, "metrics/loss/metadata.json"])
def test_beginning_anew_mends_documents_of_which_no_event_tells(desk: JournalFixture, document: str) -> None:
    """What a power cut left: no checkpoint, and a document that is all zeros."""
    desk.pen().point(value=1)
    desk.catch_up()
    before = desk.tree()
    path = desk.folder / document
    path.write_bytes(bytes(path.stat().st_size))
    (desk.journal / "checkpoint").unlink()
    desk.catch_up()
    assert desk.tree() == before


def test_a_journal_without_events_gets_no_documents(desk: JournalFixture) -> None:
    desk.pen(opens=False)
    desk.catch_up()
    assert not (desk.folder / EXPERIMENT).exists()
    assert desk.record()["status"] == "interrupted"
    assert desk.kinds() == set()
