"""`gc`: only what is proven goes, and whatever happens the journal stays whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash.core import fold
from ml_dash.disk.lock import Turn
from ml_dash.errors import StillOpen, Unreachable
from ml_dash.journal import base as bases
from ml_dash.journal.segment import BLOBS, SEGMENTS, TURN, list_segments, parse_name
from ml_dash.projection.folder import LOGS
from ml_dash.reading.located import Located
from ml_dash.reading.read import view
from ml_dash.sync import gc, remote
from tests.holders import ServerStub
from tests.journals import JournalFixture, WriterFixture, flip
from tests.machines import Machine
from tests.running import Server
from tests.stored import flip_raw_bit

LOSS = "metrics/loss/data.jsonl"


def run(desk: JournalFixture, points: int = 5, *, close: bool = True, **opening: object) -> WriterFixture:
    """One writer with a bit of everything."""
    pen = desk.pen(**opening)
    pen.parameters(rate=0.1, **{f"of_{pen.id[-2:]}": pen.id})
    for number in range(points):
        pen.point(value=number / 8, step=number)
        pen.log(f"{pen.id[-2:]}: {number}")
    pen.file(pen.id.encode(), filename=f"{pen.id[-2:]}.bin")
    if close:
        pen.close()
    return pen


@pytest.fixture
def stub(desk: JournalFixture) -> ServerStub:
    return ServerStub()


def facts(desk: JournalFixture) -> dict[str, object]:
    """What must be the same with a base and without."""
    look = desk.view()
    return {
        "record": {key: value for key, value in look.record().items() if key != "updatedAt"},
        "parameters": look.parameters(),
        "metrics": look.metrics(),
        "stats": [look.metric_stats(one["name"]) for one in look.metrics()],
        "files": look.files(),
        "deleted": look.files(deleted=True),
        "logs": look.state.logs,
        "points": look.state.points,
        "events": look.state.events,
    }


def segments(desk: JournalFixture) -> list[Path]:
    return [path for _, path in list_segments(desk.journal)]


def indices(desk: JournalFixture) -> list[int]:
    return [json.loads(line)["index"] for line in desk.lines(LOSS)]


# -- what goes, and what stays ----------------------------------------------------------------------------------------


def test_what_is_proven_goes_and_nothing_that_is_known_changes(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk), run(desk)
    desk.catch_up()
    before = facts(desk)
    stub.take(desk.journal)
    report = gc.collect(desk.located, [stub])
    assert (report.segments, report.blobs, report.kept) == (2, 2, {})
    assert report.bytes == sum(map(len, stub.segments.values())) + sum(stub.blobs.values())
    assert segments(desk) == []
    assert list((desk.journal / BLOBS).iterdir()) == []
    assert list((desk.journal / SEGMENTS).iterdir()) == []
    assert facts(desk) == before
    assert desk.verify().ok
    assert indices(desk) == []
    assert not (desk.folder / "files/models/01.bin").exists()


def test_numbering_goes_on_behind_the_base(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk)
    stub.take(desk.journal)
    gc.collect(desk.located, [stub])
    run(desk, 3)
    desk.catch_up()
    assert indices(desk) == [5, 6, 7]
    assert [json.loads(line)["sequenceNumber"] for line in desk.lines(LOGS)] == [5, 6, 7]
    tree = desk.tree()
    desk.rebuild()
    assert desk.tree() == tree
    assert desk.verify().ok


def test_nothing_goes_that_was_not_sent(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk)
    report = gc.collect(desk.located, [stub])
    assert (report.segments, report.blobs) == (0, 0)
    assert list(report.kept.values()) == [
        f"not every server has the content {next((desk.journal / BLOBS).iterdir()).name} of its writer"
    ]
    assert not bases.exists(desk.journal)


def test_a_segment_of_which_the_server_has_a_part_stays(desk: JournalFixture, stub: ServerStub) -> None:
    pen = run(desk)
    stub.take(desk.journal)
    identity = next(iter(stub.segments))
    stub.segments[identity] = stub.segments[identity][: pen.frames[-1][0]]
    report = gc.collect(desk.located, [stub])
    assert report.segments == 0
    assert "has" in report.kept[pen.segment.name]
    assert pen.segment.exists()


def test_a_segment_of_which_the_server_holds_other_bytes_stays(desk: JournalFixture, stub: ServerStub) -> None:
    pen = run(desk)
    stub.take(desk.journal)
    identity, data = next(iter(stub.segments.items()))
    stub.segments[identity] = data[:-1] + bytes([data[-1] ^ 1])
    report = gc.collect(desk.located, [stub])
    assert report.kept == {pen.segment.name: "http://stub.test holds other bytes; see ml-dash verify"}
    assert pen.segment.exists()


def test_what_was_removed_on_the_server_stays_here(desk: JournalFixture, stub: ServerStub) -> None:
    """It holds the bytes, but gives them back to nobody."""
    pen = run(desk)
    stub.take(desk.journal)
    stub.silenced = {pen.id}
    report = gc.collect(desk.located, [stub])
    assert report.kept == {pen.segment.name: "it was removed on http://stub.test, which shows it to nobody"}
    assert (report.segments, report.blobs) == (0, 0)
    assert pen.segment.exists()


def test_all_servers_must_hold_it(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk)
    stub.take(desk.journal)
    assert gc.collect(desk.located, [stub, ServerStub()]).segments == 0
    assert gc.collect(desk.located, [stub, stub]).segments == 1


def test_segments_of_a_writer_whose_content_is_not_there_stay(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk), run(desk)
    stub.take(desk.journal)
    second = sorted(stub.blobs, key=lambda name: name.split("-")[1])[1]
    del stub.blobs[second]
    report = gc.collect(desk.located, [stub])
    assert (report.segments, report.blobs) == (1, 1)
    assert (desk.journal / BLOBS / second).exists()
    assert (desk.folder / "files/models/02.bin").exists()
    assert desk.verify().ok


def test_a_living_writer_keeps_what_is_its_own_and_what_came_after(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk)
    living = run(desk, close=False)
    desk.catch_up()
    last = run(desk)
    desk.catch_up()
    stub.take(desk.journal)
    report = gc.collect(desk.located, [stub])
    assert report.segments == 1
    assert segments(desk) == [living.segment, last.segment]
    assert report.kept == {
        living.segment.name: "its writer may go on",
        last.segment.name: "it was merged with segments that stay",
    }
    assert indices(desk) == list(range(5, 15))
    living.point(value=1)
    desk.catch_up()
    assert indices(desk) == list(range(5, 16))
    assert desk.verify().ok


def test_interleaved_writers_go_together_or_not_at_all(desk: JournalFixture, stub: ServerStub) -> None:
    first, second = run(desk, 2, close=False), run(desk, 2, close=False)
    desk.catch_up()
    first.point(value=1)
    desk.catch_up()
    second.point(value=1)
    desk.catch_up()
    first.close()
    stub.take(desk.journal)
    assert gc.collect(desk.located, [stub]).segments == 0
    second.close()
    stub.take(desk.journal)
    assert gc.collect(desk.located, [stub]).segments == 2


def test_a_dead_writers_torn_end_does_not_keep_its_segment(desk: JournalFixture, stub: ServerStub) -> None:
    pen = run(desk, close=False)
    desk.catch_up()
    stub.take(desk.journal)
    pen.raw(b"\x40\x00\x00\x00\x01\x02")
    pen.die()
    assert gc.collect(desk.located, [stub]).segments == 1
    assert desk.record()["status"] == "interrupted"
    assert list((desk.journal / SEGMENTS).iterdir()) == []


def test_what_is_behind_the_last_frame_and_no_torn_end_keeps_it(desk: JournalFixture, stub: ServerStub) -> None:
    pen = run(desk)
    stub.take(desk.journal)
    pen.raw(b"\xff" * 4096)
    assert gc.collect(desk.located, [stub]).kept == {
        pen.segment.name: "not all of it could be read; see ml-dash verify"
    }


def test_only_what_ended_long_enough_ago_goes(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk)
    between = desk.tick()
    second = run(desk)
    stub.take(desk.journal)
    report = gc.collect(desk.located, [stub], ended_before_ns=between)
    assert report.segments == 1
    assert report.kept == {second.segment.name: "its writer ended too recently"}


def test_a_large_body_goes_with_its_segment_and_only_if_it_is_there(desk: JournalFixture, stub: ServerStub) -> None:
    from ml_dash.core import events as ev

    pen = desk.pen()
    pen.large(ev.PARAMETERS, {"large": "x" * 1000})
    pen.close()
    stub.take(desk.journal, blobs=False)
    assert gc.collect(desk.located, [stub]).segments == 0
    stub.take(desk.journal)
    assert gc.collect(desk.located, [stub]).blobs == 1
    assert desk.view().parameters() == {"large": "x" * 1000}


def test_replaced_content_that_was_kept_but_never_sent_holds_nothing_up(
    desk: JournalFixture, stub: ServerStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_DASH_KEEP_VERSIONS", "1")
    pen = desk.pen()
    pen.file(b"one")
    pen.file(b"two")
    pen.close()
    desk.catch_up()
    stub.take(desk.journal)
    old = min(stub.blobs, key=lambda name: int(name.rpartition("-")[2]))
    del stub.blobs[old]
    assert gc.collect(desk.located, [stub]).segments == 1
    assert [path.name for path in (desk.journal / BLOBS).iterdir()] == [old]


def test_dry_run_says_what_would_go_and_removes_nothing(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk)
    desk.catch_up()
    stub.take(desk.journal)
    before = {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*") if path.is_file()}
    planned = gc.collect(desk.located, [stub], dry_run=True)
    assert {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*") if path.is_file()} == before
    assert gc.collect(desk.located, [stub]) == planned


def test_a_server_that_does_not_answer_costs_nothing(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk)
    stub.take(desk.journal)
    stub.away = True
    with pytest.raises(Unreachable):
        gc.collect(desk.located, [stub])
    assert len(segments(desk)) == 1
    assert not bases.exists(desk.journal)


def test_it_keeps_out_of_the_way_of_another_projector(
    desk: JournalFixture, stub: ServerStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(desk)
    monkeypatch.setattr(gc, "TURN_WAIT_S", 0.01)
    turn = Turn(desk.journal / TURN)
    assert turn.take()
    with pytest.raises(StillOpen, match="nothing was freed"):
        gc.collect(desk.located, [stub])
    turn.give_back()


# -- again and again --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_a_newer_base_includes_the_one_before(desk: JournalFixture, stub: ServerStub, keep: bool) -> None:
    for number in range(3):
        run(desk, 2)
        desk.catch_up()
        before = facts(desk)
        stub.take(desk.journal)
        assert gc.collect(desk.located, [stub], keep_projection=keep).segments == 1
        assert gc.collect(desk.located, [stub], keep_projection=keep).segments == 0
        assert facts(desk) == before
        base = bases.load(desk.journal)
        assert base is not None
        assert len(base.segments) == number + 1
        assert desk.verify().ok
    assert indices(desk) == (list(range(6)) if keep else [])


def test_the_projection_can_be_kept_and_is_never_lost(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk, 1500), run(desk, 3)
    desk.catch_up()
    tree = desk.tree()
    stub.take(desk.journal)
    report = gc.collect(desk.located, [stub], keep_projection=True)
    assert report.blobs == 0
    assert desk.tree() == tree
    desk.rebuild()
    assert desk.tree() == tree
    run(desk, 1200)
    desk.catch_up()
    assert indices(desk) == list(range(2703))
    tree = desk.tree()
    desk.rebuild()
    assert desk.tree() == tree
    page = desk.view().metric_page("loss", 1400, 700)
    assert [point["index"] for point in page["data"]] == list(range(1400, 2100))
    assert desk.verify().ok


def test_the_projection_may_go_later(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk)
    stub.take(desk.journal)
    gc.collect(desk.located, [stub], keep_projection=True)
    assert indices(desk) == list(range(5))
    gc.collect(desk.located, [stub])
    assert indices(desk) == []
    assert list((desk.journal / BLOBS).iterdir()) == []
    assert desk.verify().ok


def test_the_base_may_stand_before_lines_that_stay(desk: JournalFixture, stub: ServerStub) -> None:
    """Kept lines are those up to the base; the others are made again."""
    run(desk, 1100)
    living = run(desk, 1100, close=False)
    desk.catch_up()
    stub.take(desk.journal)
    tree = desk.tree()
    assert gc.collect(desk.located, [stub], keep_projection=True).segments == 1
    assert desk.tree() == tree
    base = bases.load(desk.journal)
    assert base is not None
    assert base.kept["loss"].lines == 1100
    desk.rebuild()
    assert desk.tree() == tree
    living.close()


# -- killed on the way ------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from ml_dash.reading import read
from ml_dash.sync import gc
from tests.holders import ServerStub
located = read.locate(sys.argv[1])
stub = ServerStub()
stub.take(located.journal)
gc.collect(located, [stub], keep_projection=sys.argv[2] == "keep")
"""


@pytest.mark.parametrize("keep", ["keep", "free"])
@pytest.mark.parametrize("point", ["base-before:1", "gc-base:1", "gc-removed:1", "gc-removed:2", "checkpoint-before:1"])
def test_killed_anywhere_it_leaves_a_journal_that_goes_on(
    desk: JournalFixture, stub: ServerStub, point: str, keep: str
) -> None:
    run(desk), run(desk), run(desk)
    desk.catch_up()
    before, lines = facts(desk), desk.lines(LOGS)
    stub.take(desk.journal)
    # One checkpoint is written before the base and one behind it.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(desk.folder), keep],
        env={**os.environ, "ML_DASH_FAIL": f"{point}:kill", "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert facts(desk) == before
    assert desk.verify().ok
    run(desk, 2)
    desk.catch_up()
    assert desk.verify().ok
    if keep == "keep":
        assert indices(desk) == list(range(17))
        assert desk.lines(LOGS)[:15] == lines
    stub.take(desk.journal)
    before = facts(desk)
    gc.collect(desk.located, [stub], keep_projection=keep == "keep")
    assert facts(desk) == before
    assert segments(desk) == []
    assert indices(desk) == (list(range(17)) if keep == "keep" else [])
    assert desk.verify().ok


# -- through the public API -------------------------------------------------------------------------------------------


def test_an_experiment_goes_on_after_it(tmp_path: Path) -> None:
    def train(first: int) -> Experiment:
        experiment = Experiment("run", "cv", local_path=str(tmp_path))
        with experiment:
            experiment.parameters().set(first=first)
            for step in range(first, first + 10):
                experiment.metric("loss").append(value=step)
                experiment.log(str(step))
        return experiment

    train(0)
    located = Located("cv", "run", tmp_path / "cv/run", tmp_path / "cv/run/.journal")
    stub = ServerStub()
    stub.take(located.journal)
    assert gc.collect(located, [stub]).segments == 1
    with Experiment("run", "cv", local_path=str(tmp_path), resume="must") as experiment:
        assert experiment.resumed
        assert experiment.parameters().get() == {"first": 0}
        assert experiment.metric("loss").append(value=10)["index"] == 10
        assert experiment.metric("loss").stats()["totalDataPoints"] == 11
        page = experiment.metric("loss").read()
        assert [point["index"] for point in page["data"]] == [10]
        assert (page["startIndex"], page["endIndex"]) == (10, 10)
    stub.take(located.journal)
    gc.collect(located, [stub])
    train(11)
    look = view(located)
    assert look.state.logs == 20
    assert [point["data"]["value"] for point in look.each_point("loss")] == list(range(11, 21))
    assert look.record()["status"] == "completed"
    assert look.state.version == fold.FOLD_VERSION


def test_an_experiment_that_is_open_stays_whole(tmp_path: Path) -> None:
    """In the same process, and while it goes on."""
    located = Located("cv", "run", tmp_path / "cv/run", tmp_path / "cv/run/.journal")
    stub = ServerStub()
    with Experiment("run", "cv", local_path=str(tmp_path)) as experiment:
        experiment.metric("loss").append(value=0)
    with Experiment("run", "cv", local_path=str(tmp_path)) as experiment:
        experiment.metric("loss").append(value=1)
        experiment.metric("loss").read()
        stub.take(located.journal)
        assert gc.collect(located, [stub]).segments == 1
        experiment.metric("loss").append(value=2)
        assert [point["index"] for point in experiment.metric("loss").read()["data"]] == [1, 2]
    assert [point["index"] for point in view(located).metric_page("loss")["data"]] == [1, 2]


def test_damage_in_what_was_freed_is_no_matter_of_this_machine(desk: JournalFixture, stub: ServerStub) -> None:
    """A gap that both have is in the base, too."""
    pen = run(desk)
    flip(pen.segment, pen.frames[4][0] + 12)
    desk.catch_up()
    before = facts(desk)
    stub.take(desk.journal)
    assert gc.collect(desk.located, [stub]).segments == 1
    assert facts(desk) == before
    assert "gap" in desk.kinds()


# -- with a real server -----------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path, server: Server) -> Machine:
    return Machine(tmp_path / "machine", server.url)


def points_here(machine: Machine, name: str) -> list[int]:
    return [json.loads(line)["index"] for line in (machine.at(name).folder / LOSS).read_text().splitlines()]


def test_a_killed_run_is_freed_and_goes_on_with_its_numbers(machine: Machine) -> None:
    machine.train("goes_on", 30, kill=True)
    machine.sync()
    machine.prove("goes_on")
    parameters = machine.view("goes_on").parameters()
    assert "1 segment, 0 files" in machine.dash("gc", "--synced", "--keep-projection", "--dry-run")
    assert len(machine.segments("goes_on")) == 1
    (row,) = json.loads(machine.dash("gc", "--synced", "--json"))
    assert (row["segments"], row["files"], row["kept"]) == (1, 1, {})
    assert row["bytes"] > 0
    assert machine.segments("goes_on") == {}
    assert machine.view("goes_on").record()["status"] == "interrupted"
    machine.prove("goes_on")

    again = machine.train("goes_on", 5)
    assert again["before"] == parameters
    assert again["indices"] == list(range(30, 35))
    assert again["files"] == ["run0/weights.bin", "run1/weights.bin"]
    machine.sync()
    machine.prove("goes_on")
    there = machine.points_there("goes_on")
    assert [point["index"] for point in there] == list(range(35))
    assert [point["data"]["step"] for point in there] == [*range(30), *range(5)]
    assert machine.view("goes_on").state.logs == 35

    tree = machine.tree("goes_on")
    assert points_here(machine, "goes_on") == list(range(30, 35))
    machine.dash("rebuild", "e2e/goes_on")
    assert machine.tree("goes_on") == tree
    assert "2 segments" not in machine.dash("gc", "--synced")
    assert machine.view("goes_on").state.points == 35


def test_what_was_kept_of_the_folder_stays_byte_for_byte(machine: Machine) -> None:
    machine.train("kept", 40, kill=True)
    machine.train("kept", 10)
    machine.sync()
    machine.dash("rebuild", "e2e/kept")
    tree = machine.tree("kept")
    machine.dash("gc", "--synced", "--keep-projection")
    assert machine.segments("kept") == {}
    assert machine.tree("kept") == tree
    machine.dash("rebuild", "e2e/kept")
    assert machine.tree("kept") == tree
    machine.train("kept", 10)
    assert points_here(machine, "kept") == list(range(60))
    machine.sync()
    machine.prove("kept")


def test_what_was_not_sent_yet_stays(machine: Machine) -> None:
    machine.train("unsent", 3)
    machine.sync()
    machine.train("unsent", 3)
    (row,) = json.loads(machine.dash("gc", "--synced", "--json"))
    assert row["segments"] == 1
    assert len(row["kept"]) == len(machine.segments("unsent")) == 1
    machine.sync()
    machine.prove("unsent")


def test_a_server_that_holds_other_bytes_frees_nothing(tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    try:
        machine = Machine(tmp_path / "machine", server.url)
        machine.train("other", 20)
        machine.sync()
        server.end()
        (segment,) = machine.segments("other")
        flip_raw_bit(server.data, parse_name(Path(segment).name).writer, -3)  # type: ignore[union-attr]
        server.start()
        before = machine.segments("other")
        (row,) = json.loads(machine.dash("gc", "--synced", "--json"))
        assert row["segments"] == row["files"] == 0
        assert list(row["kept"].values()) == [f"{server.url} holds other bytes; see ml-dash verify"]
        assert machine.segments("other") == before
        # Nor does one that is gone.
        server.end()
        (row,) = json.loads(machine.dash("gc", "--synced", "--json", code=3))
        assert "cannot be reached" in row["error"]
        assert machine.segments("other") == before
    finally:
        server.end()


def test_an_experiment_that_was_removed_there_is_not_freed(machine: Machine) -> None:
    machine.train("removed", 5)
    machine.sync()
    with machine.link() as link:
        remote.remove(link, remote.find_experiment(link, "e2e", "removed")["experiment"])
    before = machine.segments("removed")
    (row,) = json.loads(machine.dash("gc", "--synced", "--json"))
    assert (row["segments"], row["files"]) == (0, 0)
    # Opened again, it begins anew there; what was removed still lies here only.
    machine.train("removed", 5)
    machine.sync()
    machine.dash("gc", "--synced")
    assert before.items() <= machine.segments("removed").items()
    assert machine.view("removed").state.points == 10


def test_versions_that_were_kept_here_and_not_sent_are_not_freed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server says of what was replaced that it need not be sent; that is not to say that it has it."""
    monkeypatch.setitem(machine.environment, "ML_DASH_KEEP_VERSIONS", "1")
    program = """
from pathlib import Path
from ml_dash import Experiment
with Experiment("versions", "e2e", local_path="runs") as experiment:
    for content in ("one", "two", ""):
        Path("note.txt").write_text(content)
        experiment.file("note.txt", prefix="p").save()
    experiment.parameters().set(long="x" * 3_000_000)
"""
    assert machine.run("-c", program).returncode == 0
    machine.sync()
    machine.prove("versions")
    (row,) = json.loads(machine.dash("gc", "--synced", "--json"))
    assert (row["segments"], row["kept"]) == (1, {})
    left = sorted(path.read_text() for path in (machine.at("versions").journal / BLOBS).iterdir())
    assert left == ["one", "two"]
    assert machine.view("versions").parameters() == {"long": "x" * 3_000_000}
    machine.dash("pull", "e2e/versions")
    assert machine.view("versions").parameters() == {"long": "x" * 3_000_000}
    assert (machine.at("versions").folder / "files/p/note.txt").read_bytes() == b""


def test_killed_on_the_way_nothing_is_lost_and_the_next_call_ends_it(machine: Machine) -> None:
    name, points = "killed", 0
    for point in ("base-before:1", "gc-base:1", "gc-removed:1", "gc-removed:3"):
        found = machine.train(name, 10, kill=point.startswith("gc"))
        assert found["indices"] == list(range(points, points + 10))
        points += 10
        machine.sync()
        machine.dash("gc", "--synced", fail=point)
        assert machine.view(name).state.points == points
        assert machine.view(name).parameters()["openings"] * 10 == points
    machine.prove(name)
    machine.dash("gc", "--synced")
    assert machine.segments(name) == {}
    assert machine.view(name).state.points == points
    assert [point["index"] for point in machine.points_there(name)] == list(range(points))
    machine.dash("pull", f"e2e/{name}")
    assert len(machine.segments(name)) == 4
    assert points_here(machine, name) == list(range(points))
    machine.prove(name)
