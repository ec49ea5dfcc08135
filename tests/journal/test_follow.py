"""What comes next in a journal: by `order`, by what is named anew, and the same as whoever folds it would say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import pytest

from ml_dash.core.state import State, WriterState
from ml_dash.disk.lock import Turn
from ml_dash.errors import Damaged
from ml_dash.journal import base as bases
from ml_dash.journal.follow import Follower
from ml_dash.journal.merge import OrderChanged
from ml_dash.journal.order import Death, MergeRecord, Order, stretch_payload
from ml_dash.journal.reader import Gap, Segment, open_segment, read, read_stretches, whole_frames
from ml_dash.journal.segment import ORDER, SEGMENTS, TURN
from tests.journals import SECOND, JournalFixture, WriterFixture, flip, recorded


def opened(pen: WriterFixture, path: Path | None = None) -> Segment:
    found = open_segment(path or pen.segment)
    assert found is not None
    return found


def whole(pen: WriterFixture) -> MergeRecord:
    """All frames of the pen's current segment."""
    segment = opened(pen)
    return MergeRecord(segment.id, segment.first, pen.segment.stat().st_size)


# -- naming -----------------------------------------------------------------------------------------------------------


def test_what_is_new_is_named_and_recorded(desk: JournalFixture) -> None:
    pen = desk.pen()
    follower = Follower(desk.journal)
    assert list(follower.follow()) == [whole(pen)] == recorded(desk.journal)
    assert list(follower.follow()) == []
    before = pen.segment.stat().st_size
    pen.log("more")
    assert list(follower.follow()) == [MergeRecord(opened(pen).id, before, pen.segment.stat().st_size)]


def test_what_order_says_comes_as_it_says(desk: JournalFixture) -> None:
    one, two = desk.pen(), desk.pen()
    desk.catch_up()
    for number in range(4):
        (two, one)[number % 2].log(f"{number}")
        desk.catch_up()
    written = recorded(desk.journal)
    first, second, *rest = written
    assert isinstance(second, MergeRecord)
    assert isinstance(rest[0], MergeRecord)
    # Those that join come as one.
    joined = MergeRecord(second.segment, second.start, rest[0].end)
    assert list(Follower(desk.journal).follow()) == [first, joined, *rest[1:]]
    assert len(rest) == 4
    assert recorded(desk.journal) == written


def test_whoever_folds_follows_what_was_named_here(desk: JournalFixture) -> None:
    one, two = desk.pen(), desk.pen()
    follower = Follower(desk.journal)
    for number in range(6):
        (two, one)[number % 2].log(f"{number}")
        list(follower.follow())
    named = recorded(desk.journal)
    desk.catch_up()
    assert recorded(desk.journal) == named
    assert [f'"{number}"' in line for number, line in enumerate(desk.lines("logs/logs.jsonl"))] == [True] * 6


def test_stretches_that_join_come_as_one(desk: JournalFixture) -> None:
    pen = desk.pen()
    follower = Follower(desk.journal)
    for number in range(5):
        pen.log(f"{number}")
        list(follower.follow())
    assert len(recorded(desk.journal)) == 5
    assert list(Follower(desk.journal).follow()) == [whole(pen)]


def test_the_beginning_of_a_frame_is_not_named(desk: JournalFixture) -> None:
    pen = desk.pen()
    end = pen.segment.stat().st_size
    pen.raw(b"\x40\x00\x00\x00\x12\x34")
    [stretch] = Follower(desk.journal).follow()
    assert isinstance(stretch, MergeRecord)
    assert stretch.end == end


def test_an_empty_segment_and_one_without_its_header_yet(desk: JournalFixture) -> None:
    pen = desk.pen(opens=False)
    follower = Follower(desk.journal)
    assert list(follower.follow()) == []
    content = pen.segment.read_bytes()
    pen.segment.write_bytes(content[:20])
    assert list(Follower(desk.journal).follow()) == []
    pen.segment.write_bytes(content)
    pen.log("one")
    assert list(follower.follow()) == [whole(pen)]


@pytest.mark.parametrize("byte", range(0, 60))
def test_damage_is_left_out_and_hides_nothing(desk: JournalFixture, byte: int) -> None:
    """Each byte of the frame before the last, its length and checksum too."""
    pen = desk.pen()
    pen.log("before")
    pen.log("x" * 40)
    pen.log("behind")
    start, end = pen.frames[-2]
    flip(pen.segment, start + byte, 7)
    segment = opened(pen)
    assert list(Follower(desk.journal).follow()) == [
        MergeRecord(segment.id, segment.first, start),
        MergeRecord(segment.id, end, pen.segment.stat().st_size),
    ]
    assert Gap(start, end) in list(read(segment, segment.first))


def test_a_segment_that_cannot_be_read_does_not_hold_up_the_others(desk: JournalFixture) -> None:
    bad, good = desk.pen(), desk.pen()
    content = bytearray(bad.segment.read_bytes())
    content[20:60] = bytes(40)
    bad.segment.write_bytes(content)
    follower = Follower(desk.journal)
    assert list(follower.follow()) == [whole(good)]
    assert bad.segment.name in follower.troubles


def test_what_a_writer_wrote_before_is_waited_for(desk: JournalFixture) -> None:
    """On a network file system a new segment may be seen before the end of the one before it."""
    pen, other = desk.pen(), desk.pen()
    pen.log("seen")
    pen.log("late")
    first, content, end = pen.segment, pen.segment.read_bytes(), pen.frames[-1][0]
    first.write_bytes(content[:end])
    pen.roll()
    pen.log("in the next")
    follower = Follower(desk.journal)
    segment = opened(pen, first)
    assert list(follower.follow()) == [MergeRecord(segment.id, segment.first, end), whole(other)]
    assert follower.pending
    first.write_bytes(content)
    assert list(follower.follow()) == [MergeRecord(segment.id, end, len(content)), whole(pen)]
    assert not follower.pending


def test_a_segment_that_cannot_be_read_is_waited_for(desk: JournalFixture) -> None:
    pen = desk.pen()
    first, content = pen.segment, pen.segment.read_bytes()
    first.write_bytes(content[:30] + bytes(40) + content[70:])
    pen.roll()
    pen.log("in the next")
    follower = Follower(desk.journal)
    assert list(follower.follow()) == []
    assert first.name in follower.troubles
    first.write_bytes(content)
    assert [record.segment for record in follower.follow() if isinstance(record, MergeRecord)] == [
        opened(pen, first).id, opened(pen).id
    ]  # fmt: skip
    assert not follower.troubles


def test_what_does_not_come_is_not_waited_for_without_end(desk: JournalFixture) -> None:
    pen = desk.pen()
    pen.log("lost")
    pen.chop(3)
    pen.roll()
    pen.log("in the next")
    assert len(list(Follower(desk.journal).follow())) == 1
    follower = Follower(desk.journal, patience_s=0.0)
    assert whole(pen) in list(follower.follow())
    assert not follower.pending


def test_a_write_that_was_given_up_is_not_waited_for(desk: JournalFixture) -> None:
    """A full disk tears a frame, and the writer goes on with it in a new segment: nothing is missing."""
    pen = desk.pen()
    pen.raw(b"\x40\x00\x00\x00half")
    pen.roll()
    pen.log("in the next")
    follower = Follower(desk.journal)
    assert list(follower.follow())[-1] == whole(pen)
    assert not follower.pending


# -- who died ---------------------------------------------------------------------------------------------------------


def test_a_death_is_noted_behind_all_that_was_written(desk: JournalFixture) -> None:
    pen = desk.pen()
    follower = Follower(desk.journal)
    list(follower.follow())
    pen.log("last words")
    pen.die()
    end = pen.segment.stat().st_size
    assert list(follower.follow())[-1] == Death(pen.id, opened(pen).id, end)
    assert list(follower.follow()) == []
    assert list(Follower(desk.journal).follow())[-1] == Death(pen.id, opened(pen).id, end)
    assert sum(isinstance(record, Death) for record in recorded(desk.journal)) == 1
    desk.catch_up()
    assert desk.record()["status"] == "interrupted"


def test_whoever_has_closed_has_not_died(desk: JournalFixture) -> None:
    pen = desk.pen()
    pen.close()
    assert list(Follower(desk.journal).follow()) == [whole(pen)]


def test_whoever_has_written_nothing_has_not_died(desk: JournalFixture) -> None:
    desk.pen(opens=False).die()
    assert list(Follower(desk.journal).follow()) == []


def test_a_death_behind_a_segment_that_was_just_begun(desk: JournalFixture) -> None:
    pen = desk.pen()
    pen.roll()
    pen.die()
    assert list(Follower(desk.journal).follow())[-1] == Death(pen.id, opened(pen).id, 0)
    pen.segment.write_bytes(pen.segment.read_bytes()[:5])
    (desk.journal / ORDER).unlink()
    assert list(Follower(desk.journal).follow())[-1] == Death(pen.id)


def test_a_death_that_was_none_is_noted_again_when_it_is_one(desk: JournalFixture) -> None:
    """On a network file system a lock may look free although it is not."""
    pen = desk.pen()
    pen.die()
    list(Follower(desk.journal).follow())
    pen.log("alive after all")
    [stretch, death] = list(Follower(desk.journal).follow())[-2:]
    assert death == Death(pen.id, opened(pen).id, pen.segment.stat().st_size)
    assert isinstance(stretch, MergeRecord)


def test_who_died_before_a_writer_came_is_noted_before_it(desk: JournalFixture) -> None:
    first = desk.pen()
    follower = Follower(desk.journal)
    list(follower.follow())
    first.die()
    second = desk.pen()
    assert [type(record) for record in follower.follow()] == [Death, MergeRecord]
    second.close()
    desk.catch_up()
    assert desk.record()["status"] == "completed"


def test_deaths_are_the_same_as_whoever_folds_would_note(tmp_path: Path) -> None:
    """The same journal twice: one is followed by this, the other folded."""
    notes = []
    for folds in (False, True):
        desk = JournalFixture(tmp_path / f"{folds}")
        try:
            torn, closed, rolled = desk.pen(), desk.pen(), desk.pen()
            torn.raw(b"\x40\x00")
            rolled.log("one")
            rolled.roll()
            closed.close()
            for pen in (torn, rolled):
                pen.die()
            desk.pen()
            if folds:
                desk.catch_up()
            else:
                list(Follower(desk.journal).follow())
            notes.append({record for record in recorded(desk.journal) if isinstance(record, Death)})
        finally:
            desk.let_go()
    assert notes[0] == notes[1]
    assert {death.writer for death in notes[0]} == {torn.id, rolled.id}


# -- what came from elsewhere -----------------------------------------------------------------------------------------


@pytest.fixture
def brought(desk: JournalFixture, tmp_path: Path) -> Iterator[tuple[JournalFixture, WriterFixture]]:
    """A journal into which a segment of another one was brought; its writer has not closed."""
    there = JournalFixture(tmp_path / "there")
    pen = WriterFixture(there, 7)
    there.pens.append(pen)
    pen.open()
    pen.log("elsewhere")
    (desk.journal / SEGMENTS / pen.segment.name).write_bytes(pen.segment.read_bytes())
    desk.now_ns = there.now_ns + SECOND
    yield desk, pen
    there.let_go()


def test_locks_say_nothing_of_writers_elsewhere(brought: tuple[JournalFixture, WriterFixture]) -> None:
    desk, pen = brought
    follower = Follower(desk.journal)
    assert list(follower.follow()) == [whole(pen)]
    assert not follower.is_of_here(opened(pen))
    assert follower.first_of_here() is None


def test_a_writer_of_here_takes_over(brought: tuple[JournalFixture, WriterFixture]) -> None:
    desk, pen = brought
    follower = Follower(desk.journal)
    list(follower.follow())
    own = desk.pen()
    assert list(follower.follow()) == [Death(pen.id, opened(pen).id, pen.segment.stat().st_size), whole(own)]
    first = follower.first_of_here()
    assert first is not None
    assert first.path == own.segment
    # One that goes on writing takes over from nobody, after a restart as well.
    pen.log("alive after all")
    (desk.journal / SEGMENTS / pen.segment.name).write_bytes(pen.segment.read_bytes())
    own.log("more")
    again = Follower(desk.journal)
    assert not [record for record in list(again.follow())[3:] if isinstance(record, Death)]


def test_what_a_base_stands_for_is_known(desk: JournalFixture) -> None:
    pen, gone = desk.pen(), "ee" * 16
    segment = opened(pen)
    state = State(project="cv", name="run")
    state.writers[gone] = WriterState(id=gone)
    state.alive.append(gone)
    stood = bases.FreedSegment(segment.id, pen.segment.name, pen.id, segment.header.journal.hex(), whole(pen).end, "")
    base = bases.Base("cv", "run", state, {segment.id: stood}, {"a-blob": 3})
    bases.save(desk.journal, desk.identity, base)
    follower = Follower(desk.journal)
    assert follower.freed(segment.id) == whole(pen).end
    assert follower.freed("00" * 16) == 0
    assert follower.blobs == {"a-blob"}
    assert list(follower.follow()) == []
    # A writer of here takes over from those that only the base knows.
    own = desk.pen()
    assert list(follower.follow()) == [Death(gone), whole(own)]


def test_another_base_begins_again(desk: JournalFixture) -> None:
    pen = desk.pen()
    follower = Follower(desk.journal)
    list(follower.follow())
    bases.save(desk.journal, desk.identity, bases.Base("cv", "run", State(), {}))
    pen.log("more")
    with pytest.raises(OrderChanged):
        list(follower.follow())


def test_a_damaged_base_is_an_error(desk: JournalFixture) -> None:
    desk.pen()
    (desk.journal / "base").write_bytes(b"nonsense")
    with pytest.raises(Damaged):
        Follower(desk.journal)


# -- order itself -----------------------------------------------------------------------------------------------------


def test_another_order_begins_again(desk: JournalFixture) -> None:
    pen = desk.pen()
    follower = Follower(desk.journal)
    list(follower.follow())
    (desk.journal / ORDER).unlink()
    order = Order(desk.journal)
    order.open(write=True)  # begun anew
    order.close()
    pen.log("more")
    with pytest.raises(OrderChanged):
        list(follower.follow())


def test_an_order_that_became_shorter_begins_again(desk: JournalFixture) -> None:
    desk.pen()
    follower = Follower(desk.journal)
    list(follower.follow())
    os.truncate(desk.journal / ORDER, (desk.journal / ORDER).stat().st_size - 3)
    with pytest.raises(OrderChanged):
        list(follower.follow())


def test_who_has_the_turn_names_what_is_new(desk: JournalFixture) -> None:
    pen = desk.pen()
    turn = Turn(desk.journal / TURN)
    assert turn.take()
    follower = Follower(desk.journal)
    try:
        assert list(follower.follow()) == []
        assert follower.pending
    finally:
        turn.give_back()
    assert list(follower.follow()) == [whole(pen)]
    assert not follower.pending


def test_where_it_may_not_write_segments_come_by_their_stamps(
    desk: JournalFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = desk.pen(), desk.pen()
    one.die()

    def refuse(self: Turn, wait_s: float = 0.0) -> bool:
        raise PermissionError(13, "not yours")

    monkeypatch.setattr(Turn, "take", refuse)
    before = (desk.journal / ORDER).read_bytes()
    follower = Follower(desk.journal)
    assert list(follower.follow()) == [
        whole(one), Death(one.id, opened(one).id, one.segment.stat().st_size), whole(two)
    ]  # fmt: skip
    assert follower.read_only
    assert (desk.journal / ORDER).read_bytes() == before
    assert list(follower.follow()) == []


def test_records_that_name_what_is_gone(desk: JournalFixture) -> None:
    pen = desk.pen()
    order = Order(desk.journal)
    order.open(write=True)
    order.append([stretch_payload("ab" * 16, 100, 200)])
    order.close()
    follower = Follower(desk.journal)
    assert list(follower.follow()) == [MergeRecord("ab" * 16, 100, 200), whole(pen)]
    assert follower.segment("ab" * 16) is None
    assert follower.segment(opened(pen).id) is not None


def test_a_record_written_while_the_rest_is_taken(desk: JournalFixture) -> None:
    """`follow` gives one at a time; another process appends meanwhile, of a writer that was not there."""
    first = desk.pen()
    follower = Follower(desk.journal)
    running = follower.follow()
    second: WriterFixture | None = None
    taken = []
    for record in running:
        taken.append(record)
        if second is None:
            second = desk.pen()
            desk.catch_up()
    assert second is not None
    taken += follower.follow()
    assert taken == [whole(first), whole(second)]
    second.die()
    assert list(follower.follow()) == [Death(second.id, opened(second).id, second.segment.stat().st_size)]


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_runs_are_bounded_and_leave_nothing_out(desk: JournalFixture) -> None:
    pen = desk.pen()
    for _ in range(12):
        pen.log("x" * 900_000)
    segment = opened(pen)
    runs = list(read_stretches(segment, segment.first))
    assert len(runs) > 2
    assert all(end - start <= 4 << 20 for start, end in runs)
    assert [start for start, _ in runs] == [segment.first, *(end for _, end in runs[:-1])]
    assert runs[-1][1] == pen.segment.stat().st_size


@pytest.mark.parametrize("cut", range(1, 40))
def test_only_whole_frames_count(desk: JournalFixture, cut: int) -> None:
    pen = desk.pen()
    pen.log("one")
    pen.log("x" * 60)
    segment = opened(pen)
    data = pen.segment.read_bytes()[segment.first : -cut]
    assert whole_frames(data, segment.crcs) == pen.frames[-1][0] - segment.first


def test_a_backlog_is_walked_quickly(desk: JournalFixture) -> None:
    """A million points are 53 MB: walking them is a small part of the seconds that sending them may take."""
    pen = desk.pen()
    pen.point(step=1, loss=0.5)
    start, end = pen.frames[-1]
    data = pen.segment.read_bytes()[start:end] * 200_000
    segment = opened(pen)
    begun = perf_counter()
    assert whole_frames(data, segment.crcs) == len(data)
    assert perf_counter() - begun < 2.0
