"""`pull`: what a server has, here, with the numbers that it has there."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_dash import Experiment
from ml_dash.disk.settings import Settings, resolve
from ml_dash.errors import Damaged, ForeignFolder, InvalidValue, MLDashError, NotFound, Unreachable
from ml_dash.journal import base as bases
from ml_dash.journal.segment import BASE, BLOBS, JOURNAL, ORDER, list_segments, read_identity
from ml_dash.projection.projector import catch_up
from ml_dash.reading.located import Located
from ml_dash.reading.read import view
from ml_dash.reading.verify import verify
from ml_dash.reading.view import View
from ml_dash.sync import fetch, gc
from ml_dash.sync.pull.download import PullReport
from ml_dash.sync.pull.pull import pull
from ml_dash.sync.pull.source import Deadline, Stopped
from tests.holders import ServerStub
from tests.journals import JournalFixture, WriterFixture, tree
from tests.machines import USER, Machine
from tests.sync.test_gc import run

LOSS = "metrics/loss/data.jsonl"


@pytest.fixture
def stub() -> ServerStub:
    return ServerStub()


@pytest.fixture
def place(tmp_path: Path) -> Located:
    """Where it is brought to: another machine."""
    home = tmp_path / "elsewhere/cv/run"
    return Located("cv", "run", home, home / JOURNAL)


def facts(look: View) -> dict[str, object]:
    record = look.record()
    return {
        "record": {key: value for key, value in record.items() if key not in ("updatedAt", "journal")},
        "parameters": look.parameters(),
        "stats": [look.metric_stats(one["name"]) for one in look.metrics()],
        "files": look.files(deleted=True),
        "logs": look.state.logs,
        "points": look.state.points,
        "events": look.state.events,
    }


def bring(stub: ServerStub, place: Located, **how: object) -> PullReport:
    return pull(stub, place, **how)  # type: ignore[arg-type]


def journal_tree(journal: Path) -> dict[str, bytes]:
    return {str(path.relative_to(journal)): path.read_bytes() for path in journal.rglob("*") if path.is_file()}


# -- into nothing -----------------------------------------------------------------------------------------------------


def test_everything_comes_with_its_numbers_and_files(desk: JournalFixture, stub: ServerStub, place: Located) -> None:
    first, second = run(desk, 3, close=False), run(desk, 3, close=False)
    stub.take(desk.journal)
    first.point(value=1)
    stub.take(desk.journal)
    second.point(value=2)
    second.close()
    stub.take(desk.journal)
    first.point(value=3)
    first.close()
    stub.take(desk.journal)
    report = bring(stub, place)
    assert (report.segments, report.blobs, report.missing, report.conflicts, report.new) == (2, 2, (), {}, True)
    assert tree(place.folder) == desk.tree()
    assert facts(view(place)) == facts(desk.view())
    assert verify(place).ok
    assert read_identity(place.journal).journal != desk.identity.journal
    assert (place.folder.parents[1] / ".gitignore").read_text() == "*\n"
    assert sorted(path.name for path in place.folder.parent.iterdir()) == ["run"]
    assert [path.name for path in place.folder.glob(".journal*")] == [JOURNAL]


def test_the_state_alone_stands_on_a_base(desk: JournalFixture, stub: ServerStub, place: Located) -> None:
    run(desk), run(desk)
    stub.take(desk.journal)
    report = bring(stub, place, state_only=True)
    assert (report.segments, report.blobs, report.state_only) == (0, 0, True)
    assert list_segments(place.journal) == []
    assert facts(view(place)) == facts(desk.view())
    assert verify(place).ok
    catch_up(place)
    assert (place.folder / LOSS).read_bytes() == b""
    assert view(place).metric_page("loss")["data"] == []


def test_the_state_may_come_with_the_files(desk: JournalFixture, stub: ServerStub, place: Located) -> None:
    run(desk)
    stub.take(desk.journal)
    assert bring(stub, place, state_only=True, files=True).blobs == 1
    catch_up(place)
    assert (place.folder / "files/models/01.bin").read_bytes() == (b"%032x" % 1)


def test_files_may_stay_there(desk: JournalFixture, stub: ServerStub, place: Located) -> None:
    run(desk)
    stub.take(desk.journal)
    assert bring(stub, place, files=False).blobs == 0
    assert list((place.journal / BLOBS).iterdir()) == []
    report = verify(place)
    assert report.ok
    assert [finding.kind for finding in report.findings] == ["not-brought"]
    assert (place.folder / LOSS).read_bytes() == (desk.folder / LOSS).read_bytes()


def test_bodies_that_were_too_long_for_a_frame_always_come(
    desk: JournalFixture, stub: ServerStub, place: Located
) -> None:
    from ml_dash.core import events as ev

    pen = desk.pen()
    pen.large(ev.PARAMETERS, {"large": "x" * 1000})
    pen.close()
    stub.take(desk.journal)
    bring(stub, place, files=False)
    assert view(place).parameters() == {"large": "x" * 1000}
    assert verify(place).ok


def test_content_that_the_server_does_not_have_is_told(desk: JournalFixture, stub: ServerStub, place: Located) -> None:
    run(desk)
    stub.take(desk.journal, blobs=False)
    report = bring(stub, place)
    assert report.missing == tuple(path.name for path in (desk.journal / BLOBS).iterdir())
    assert facts(view(place)) == facts(desk.view())


def test_what_the_server_does_not_have_cannot_be_pulled(stub: ServerStub, place: Located) -> None:
    with pytest.raises(NotFound, match=r"http://stub\.test has no experiment cv/run"):
        bring(stub, place)
    assert not place.folder.exists()


@pytest.mark.parametrize(
    ("flipped", "state_only"), [("segment", False), ("base", True), ("blob", False), ("blob", True)]
)
def test_what_comes_otherwise_than_it_was_sent_is_refused(
    desk: JournalFixture, stub: ServerStub, place: Located, flipped: str, state_only: bool
) -> None:
    run(desk)
    stub.take(desk.journal)
    stub.flip = flipped
    if flipped == "base":
        stub.base = lambda experiment: b"\xc1" + bases.encode(stub.folded())  # type: ignore[method-assign]
    with pytest.raises(MLDashError):
        bring(stub, place, state_only=state_only, files=True)
    assert not place.journal.exists()
    assert list(place.journal.parent.iterdir()) == []


@pytest.mark.parametrize("answers", range(6))
def test_cut_off_anywhere_it_leaves_nothing(
    desk: JournalFixture, stub: ServerStub, place: Located, answers: int
) -> None:
    run(desk)
    stub.take(desk.journal)
    stub.answers_left = answers
    with pytest.raises(Unreachable):
        bring(stub, place)
    assert not place.journal.exists()
    stub.answers_left = -1
    bring(stub, place)
    assert facts(view(place)) == facts(desk.view())


def test_nothing_of_the_users_is_taken_for_an_empty_place(
    desk: JournalFixture, stub: ServerStub, place: Located
) -> None:
    run(desk)
    stub.take(desk.journal)
    place.folder.mkdir(parents=True)
    (place.folder / "thesis.txt").write_text("mine")
    with pytest.raises(ForeignFolder, match=r"thesis\.txt"):
        bring(stub, place)
    assert [path.name for path in place.folder.iterdir()] == ["thesis.txt"]


def test_who_does_not_wait_any_more_gets_nothing_put_in_place(
    desk: JournalFixture, stub: ServerStub, place: Located
) -> None:
    run(desk)
    stub.take(desk.journal)
    deadline = Deadline()
    assert deadline.expire()
    with pytest.raises(Stopped):
        bring(stub, place, deadline=deadline)
    assert not place.journal.exists()


# -- a run goes on there ----------------------------------------------------------------------------------------------


def go_on(place: Located, tmp: Path) -> JournalFixture:
    """A writer's desk at the place that was pulled to."""
    desk = JournalFixture.__new__(JournalFixture)
    desk.store, desk.folder, desk.journal = place.folder.parents[1], place.folder, place.journal
    desk.identity = read_identity(place.journal)
    desk.pens = [object()] * 100  # type: ignore[list-item]
    desk.now_ns = 1_761_733_800_000_000_000 + 3600_000_000_000
    return desk


@pytest.mark.parametrize("state_only", [False, True])
def test_a_run_that_was_killed_goes_on_with_its_numbers(
    desk: JournalFixture, stub: ServerStub, place: Located, tmp_path: Path, state_only: bool
) -> None:
    """The server never says that a writer died; who goes on elsewhere says so."""
    killed = run(desk, close=False)
    stub.take(desk.journal)
    bring(stub, place, state_only=state_only)
    catch_up(place)
    assert view(place).record()["status"] == "running"
    there = go_on(place, tmp_path)
    pen = run(there, 2)
    there.pens = [pen]
    catch_up(place)
    indices = [json.loads(line)["index"] for line in (place.folder / LOSS).read_text().splitlines()]
    assert indices == ([5, 6] if state_only else list(range(7)))
    assert view(place).record()["status"] == "completed"
    assert verify(place).ok
    stub.take(place.journal)
    assert stub.folded().state.points == 7
    # It was alive after all: its next event says so, there and here.
    killed.point(value=9)
    stub.take(desk.journal)
    bring(stub, place, fill=False)
    assert view(place).state.points == 8
    assert view(place).record()["status"] == "running"


def test_a_copy_alone_says_nothing_of_writers_elsewhere(desk: JournalFixture, stub: ServerStub, place: Located) -> None:
    run(desk, close=False)
    stub.take(desk.journal)
    bring(stub, place)
    size = (place.journal / ORDER).stat().st_size
    catch_up(place)
    assert (place.journal / ORDER).stat().st_size == size


# -- into a copy that is here -----------------------------------------------------------------------------------------


def test_what_is_missing_comes_and_the_rest_stays(desk: JournalFixture, stub: ServerStub, place: Located) -> None:
    run(desk)
    stub.take(desk.journal)
    bring(stub, place)
    before = journal_tree(place.journal)
    assert bring(stub, place).bytes == 0
    assert journal_tree(place.journal) == before
    run(desk, 2)
    stub.take(desk.journal)
    report = bring(stub, place)
    assert (report.segments, report.blobs, report.new) == (1, 1, False)
    assert facts(view(place)) == facts(desk.view())
    assert tree(place.folder) == desk.tree()
    assert verify(place).ok


def test_a_segment_that_has_grown_there_is_replaced_whole(
    desk: JournalFixture, stub: ServerStub, place: Located
) -> None:
    pen = run(desk, close=False)
    stub.take(desk.journal)
    bring(stub, place)
    pen.point(value=1)
    pen.close()
    stub.take(desk.journal)
    bring(stub, place)
    assert facts(view(place)) == facts(desk.view())
    assert tree(place.folder) == desk.tree()


def test_other_events_in_a_segment_here_are_left_alone(desk: JournalFixture, stub: ServerStub, place: Located) -> None:
    pen = run(desk, close=False)
    stub.take(desk.journal)
    bring(stub, place)
    copy = list_segments(place.journal)[0][1]
    data = copy.read_bytes()
    copy.chmod(0o644)
    copy.write_bytes(data[: pen.frames[-2][0]])
    damaged = stub.segments[next(iter(stub.segments))]
    stub.segments[next(iter(stub.segments))] = damaged[:200] + bytes([damaged[200] ^ 1]) + damaged[201:]
    report = bring(stub, place)
    assert list(report.conflicts) == [copy.name]
    assert copy.read_bytes() == data[: pen.frames[-2][0]]


def test_the_end_that_a_power_cut_took_comes_back(desk: JournalFixture, stub: ServerStub) -> None:
    pen = run(desk)
    stub.take(desk.journal)
    before = facts(desk.view())
    pen.chop(pen.segment.stat().st_size - pen.frames[-3][0] - 5)
    bring(stub, desk.located)
    assert facts(desk.view()) == before
    assert desk.verify().ok


def test_a_living_writers_segment_is_never_touched(desk: JournalFixture, stub: ServerStub) -> None:
    pen = run(desk, close=False)
    stub.take(desk.journal)
    pen.chop(3)
    data = pen.segment.read_bytes()
    report = bring(stub, desk.located)
    assert list(report.conflicts) == [pen.segment.name]
    assert pen.segment.read_bytes() == data


def test_what_gc_has_freed_comes_back(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk), run(desk)
    desk.catch_up()
    before, shown = desk.tree(), facts(desk.view())
    stub.take(desk.journal)
    gc.collect(desk.located, [stub])
    run(desk, 2)
    desk.catch_up()
    report = bring(stub, desk.located)
    assert report.segments == 2
    assert not bases.exists(desk.journal)
    assert facts(desk.view())["points"] == 12
    assert desk.lines(LOSS)[:10] == before[LOSS].decode().splitlines()  # type: ignore[union-attr]
    assert facts(desk.view())["parameters"] == {**shown["parameters"], "of_03": f"{3:032x}"}  # type: ignore[dict-item]
    assert desk.verify().ok
    tree_now = desk.tree()
    desk.rebuild()
    assert desk.tree() == tree_now


@pytest.mark.parametrize("state_only", [False, True])
def test_a_damaged_base_is_mended_by_a_pull(desk: JournalFixture, stub: ServerStub, state_only: bool) -> None:
    run(desk), run(desk)
    before = facts(desk.view())
    stub.take(desk.journal)
    gc.collect(desk.located, [stub])
    base = desk.journal / BASE
    content = base.read_bytes()
    base.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(Damaged, match="ml-dash pull"):
        desk.view()
    bring(stub, desk.located, state_only=state_only)
    assert bases.exists(desk.journal) is state_only
    assert facts(desk.view()) == before
    assert len(list(desk.journal.glob("base.damaged.*"))) == 1
    assert desk.verify().ok


def test_the_base_stays_where_the_server_holds_less(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk), run(desk)
    stub.take(desk.journal)
    gc.collect(desk.located, [stub])
    before = (desk.journal / BASE).read_bytes()
    stub.records.pop()
    lost = stub.segments.popitem()[0]
    del stub.files[lost]
    for state_only in (False, True):
        with pytest.raises(Damaged):
            bring(stub, desk.located, state_only=state_only)
    assert (desk.journal / BASE).read_bytes() == before
    assert desk.verify().ok


def test_the_state_alone_is_no_substitute_for_a_journal(desk: JournalFixture, stub: ServerStub) -> None:
    run(desk)
    stub.take(desk.journal)
    with pytest.raises(InvalidValue, match="pull without --state-only"):
        bring(stub, desk.located, state_only=True)


def test_the_state_of_now_takes_the_place_of_an_older_one(
    desk: JournalFixture, stub: ServerStub, place: Located
) -> None:
    run(desk)
    stub.take(desk.journal)
    bring(stub, place, state_only=True)
    run(desk)
    stub.take(desk.journal)
    bring(stub, place, state_only=True)
    assert facts(view(place)) == facts(desk.view())
    assert verify(place).ok


def test_what_came_after_the_state_can_be_brought_alone(desk: JournalFixture, stub: ServerStub, place: Located) -> None:
    run(desk)
    stub.take(desk.journal)
    bring(stub, place, state_only=True)
    run(desk, 2)
    stub.take(desk.journal)
    assert bring(stub, place, fill=False).segments == 1
    assert facts(view(place)) == facts(desk.view())
    assert [point["index"] for point in view(place).metric_page("loss")["data"]] == [5, 6]


def test_gc_frees_what_has_grown_since_the_base_and_what_the_base_has_outgrown(
    desk: JournalFixture, stub: ServerStub, place: Located
) -> None:
    living = run(desk, close=False)
    stub.take(desk.journal)
    bring(stub, place, state_only=True)
    living.point(value=1)
    stub.take(desk.journal)
    bring(stub, place, fill=False)
    assert len(list_segments(place.journal)) == 1
    # The base now stands for more than the copy has.
    living.point(value=2)
    living.close()
    stub.take(desk.journal)
    bring(stub, place, state_only=True)
    assert verify(place).ok
    assert facts(view(place)) == facts(desk.view())
    identity = next(iter(stub.segments))
    whole = stub.segments[identity]
    stub.segments[identity] = whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]
    assert list(gc.collect(place, [stub]).kept.values()) == ["http://stub.test holds other bytes; see ml-dash verify"]
    stub.segments[identity] = whole
    assert gc.collect(place, [stub]).segments == 1
    assert facts(view(place)) == facts(desk.view())
    # And one that has grown behind the base.
    other = run(desk, close=False)
    stub.take(desk.journal)
    bring(stub, place, state_only=True)
    other.point(value=3)
    other.close()
    stub.take(desk.journal)
    bring(stub, place, fill=False)
    assert gc.collect(place, [stub]).segments == 1
    assert list_segments(place.journal) == []
    assert facts(view(place)) == facts(desk.view())
    assert verify(place).ok


def test_a_journal_of_another_experiment_is_refused(desk: JournalFixture, stub: ServerStub, place: Located) -> None:
    run(desk)
    stub.take(desk.journal)
    other = JournalFixture(place.folder.parents[1], name="other")
    shutil.copytree(other.journal, place.journal)
    with pytest.raises(ForeignFolder, match="holds experiment cv/other"):
        bring(stub, place)


def test_two_journals_become_one_copy(desk: JournalFixture, stub: ServerStub, place: Located, tmp_path: Path) -> None:
    second = JournalFixture(tmp_path / "second")
    second.pens = [WriterFixture.__new__(WriterFixture)] * 10
    for pen in second.pens:
        pen._lock = -1
    second.now_ns += 50_000_000_000
    run(desk, 2)
    stub.take(desk.journal)
    run(second, 2)
    stub.take(second.journal)
    run(desk, 2)
    stub.take(desk.journal)
    bring(stub, place)
    assert view(place).state.points == 6
    assert len(set(stub.files.values())) == 3
    base = stub.folded()
    assert view(place).state.parameters == base.state.parameters
    assert verify(place).ok


# -- with a real server -----------------------------------------------------------------------------------------------


def numbers(machine: Machine, name: str) -> list[int]:
    return [json.loads(line)["index"] for line in (machine.at(name).folder / LOSS).read_text().splitlines()]


def test_a_preempted_job_goes_on_elsewhere(first: Machine, second: Machine) -> None:
    killed = first.train("job", 20, kill=True)
    first.sync()
    there = second.train("job", 10, resume_from_remote=True)
    assert there["resumed"]
    assert there["before"] == {"of_0": True, "openings": 1}
    assert there["indices"] == list(range(20, 30))
    assert there["files"] == ["run0/weights.bin", "run1/weights.bin"]
    shown = second.at("job").folder / "files/run0/weights.bin"
    assert shown.read_bytes() == str(killed["before"]).encode() * 1000
    second.sync()
    second.prove("job")
    assert [point["index"] for point in second.points_there("job")] == list(range(30))
    assert second.view("job").record()["status"] == "completed"
    # And back again, where the beginning still is.
    back = first.train("job", 5, kill=True, resume_from_remote=True)
    assert back["before"]["openings"] == 2
    assert back["indices"] == list(range(30, 35))
    first.sync()
    first.prove("job")
    points = first.points_there("job")
    assert [point["index"] for point in points] == list(range(35))
    assert [point["data"]["step"] for point in points] == [*range(20), *range(10), *range(5)]
    assert numbers(first, "job") == list(range(35))
    assert first.view("job").state.logs == 35


def test_a_whole_copy_is_the_same_byte_for_byte(first: Machine, second: Machine) -> None:
    first.train("whole", 30, kill=True)
    first.train("whole", 3)
    first.sync()
    first.dash("rebuild", "e2e/whole")
    (row,) = [json.loads(second.dash("pull", "e2e/whole", "--json"))]
    assert (row["segments"], row["files"], row["new"], row["stateOnly"]) == (2, 2, True, False)
    assert second.segments("whole") == first.segments("whole")
    assert second.tree("whole") == first.tree("whole")
    assert second.view("whole").record() == first.view("whole").record()
    second.prove("whole")
    # It can be freed like any other, and brought again.
    second.dash("gc", "--synced")
    assert second.segments("whole") == {}
    second.dash("pull", "e2e/whole")
    assert second.tree("whole") == first.tree("whole")


def test_both_machines_go_on_and_the_server_puts_them_together(first: Machine, second: Machine) -> None:
    """The first one was thought dead, and was only offline."""
    first.train("both", 10)
    first.sync()
    first.train("both", 4)
    assert second.train("both", 5, resume_from_remote=True)["indices"] == list(range(10, 15))
    second.sync()
    first.sync()
    for machine in (first, second):
        machine.prove("both")
        machine.dash("pull", "e2e/both")
        assert numbers(machine, "both") == list(range(19))
        assert machine.view("both").state.points == 19
        machine.prove("both")
    there = [point["data"] for point in second.points_there("both")]
    assert [point["step"] for point in there] == [*range(10), *range(5), *range(4)]
    assert first.view("both").parameters() == second.view("both").parameters()


@pytest.mark.parametrize("how", ["whole", "state"])
def test_killed_anywhere_it_leaves_what_can_be_pulled_again(first: Machine, second: Machine, how: str) -> None:
    name, points = f"killed_{how}", 0
    options = ("--state-only", "--files") if how == "state" else ()
    first.train(name, 10, kill=True)
    first.sync()
    for point in ("pull-brought:1", "pull-placed:1"):
        second.dash("pull", f"e2e/{name}", *options, fail=point)
        if point == "pull-brought:1":
            assert not second.at(name).journal.exists()
    assert second.view(name).state.points == 10
    for point in ("pull-brought:1", "base-before:1" if how == "state" else "pull-placed:1", "checkpoint-before:1"):
        found = first.train(name, 10)
        points = found["indices"][-1] + 1
        first.sync()
        second.dash("pull", f"e2e/{name}", *options, fail=point)
        assert second.view(name).state.points in (points - 10, points)
        second.dash("pull", f"e2e/{name}", *options)
        assert second.view(name).state.points == points
    first.dash("rebuild", f"e2e/{name}")
    if how == "whole":
        assert second.tree(name) == first.tree(name)
    # What gc has freed comes back, wherever that is cut off.
    if how == "whole":
        for point in ("pull-brought:1", "pull-placed:1", "pull-order:1", "pull-base:1"):
            first.dash("gc", "--synced")
            assert first.segments(name) == {}
            first.dash("pull", f"e2e/{name}", fail=point)
            assert first.view(name).state.points == points
            first.dash("pull", f"e2e/{name}")
            assert first.view(name).state.points == points
        assert second.tree(name) == first.tree(name)
        assert first.segments(name) == second.segments(name)
    assert second.train(name, 2)["indices"] == [points, points + 1]
    second.sync()
    second.prove(name)
    assert [point["index"] for point in second.points_there(name)] == list(range(points + 2))


# -- opening, with a bounded wait -------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of something that takes connections and never answers."""
    listening = socket.create_server(("127.0.0.1", 0))
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()


@pytest.mark.leaks("whoever did not get an answer waits for it in the background")
def test_opening_does_not_wait_for_a_server_that_does_not_answer(
    tmp_path: Path, silent: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = resolve(remote=silent, user_name=USER, local_path=str(tmp_path))
    home = tmp_path / "cv/run"
    begun = time.monotonic()
    fetch.fetch(Located("cv", "run", home, home / JOURNAL), settings, wait_s=0.2)
    assert time.monotonic() - begun < 5
    assert "it did not answer in time" in caplog.text
    with Experiment("run", "cv", local_path=str(tmp_path)) as experiment:
        assert not experiment.resumed
        assert experiment.metric("loss").append(value=1)["index"] == 0


def test_what_comes_too_late_is_not_put_in_place(
    first: Machine, second: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first.train("late", 3)
    first.sync()
    located, base = second.at("late"), fetch.ServerSource.base
    asked, waited_for = threading.Event(), threading.Event()

    def slow(source: fetch.ServerSource, experiment: str) -> bytes:
        asked.set()
        assert waited_for.wait(60)
        return base(source, experiment)

    monkeypatch.setattr(fetch.ServerSource, "base", slow)
    settings = _settings(second)
    with caplog.at_level(logging.WARNING):
        fetch.fetch(located, settings, wait_s=0.3)
    assert asked.is_set()
    assert "nothing was fetched" in caplog.text
    with Experiment("late", "e2e", local_path=str(second.root)) as experiment:
        waited_for.set()
        for thread in threading.enumerate():
            if thread.name == "ml-dash-fetch":
                thread.join(60)
        assert experiment.metric("loss").append(value=1)["index"] == 0
    assert not bases.exists(located.journal)


def test_an_experiment_that_is_open_is_not_fetched_again(first: Machine, second: Machine) -> None:
    first.train("open", 3)
    first.sync()
    with Experiment("open", "e2e", local_path=str(second.root)) as experiment:
        experiment.metric("loss").append(value=1)
        fetch.fetch(second.at("open"), _settings(second))
        assert experiment.metric("loss").append(value=1)["index"] == 1
    assert not bases.exists(second.at("open").journal)


def test_lines_that_gc_kept_are_not_lost_by_resuming(first: Machine, second: Machine) -> None:
    first.train("kept", 5)
    first.sync()
    first.dash("gc", "--synced", "--keep-projection")
    assert second.train("kept", 5, resume_from_remote=True)["indices"] == list(range(5, 10))
    second.sync()
    assert first.train("kept", 5, resume_from_remote=True)["indices"] == list(range(10, 15))
    assert numbers(first, "kept") == list(range(15))
    assert "pull without --state-only" in first.dash("pull", "e2e/kept", "--state-only", code=1)


def _settings(machine: Machine) -> Settings:
    return resolve(remote=machine.url, user_name=USER, local_path=str(machine.root))
