"""Reading segments: from any position, frames from gaps, a torn end from damage."""

from __future__ import annotations

from typing import Any

import pytest

from ml_dash.core import events as ev
from ml_dash.errors import NewerFormat
from ml_dash.journal.reader import (
    Frame,
    Gap,
    Segment,
    Stretch,
    Tail,
    is_partial,
    last_event,
    last_frame_end,
    newest_time_ns,
    open_segment,
    read,
    scan,
)
from tests.journals import JournalFixture, WriterFixture


def opened(pen: WriterFixture) -> Segment:
    segment = open_segment(pen.segment)
    assert segment is not None
    return segment


def items(pen: WriterFixture, start: int | None = None, end: int | None = None, **more: int) -> list[tuple[Any, ...]]:
    """Runs as (start, end, numbers), gaps and tails as their kind and bytes."""
    segment = opened(pen)
    return [
        (item.start, item.end, [event[0] for event in item.events])
        if isinstance(item, Stretch)
        else (type(item).__name__, item.start, item.end)
        for item in read(segment, segment.first if start is None else start, end, **more)
    ]


def numbers(pen: WriterFixture, **more: int) -> list[int]:
    return [number for item in items(pen, **more) if isinstance(item[2], list) for number in item[2]]


@pytest.fixture
def pen(desk: JournalFixture) -> WriterFixture:
    """Six frames: 0 is the opening."""
    pen = desk.pen()
    for number in range(1, 6):
        pen.log(str(number))
    return pen


def test_an_unbroken_segment_is_one_run(pen: WriterFixture) -> None:
    assert items(pen) == [(pen.frames[0][0], pen.frames[-1][1], [0, 1, 2, 3, 4, 5])]


def test_reading_begins_and_ends_where_it_is_told(pen: WriterFixture) -> None:
    start, end = pen.frames[2][0], pen.frames[3][1]
    assert items(pen, start, end) == [(start, end, [2, 3])]
    assert items(pen, start, end - 1) == [(start, pen.frames[2][1], [2]), ("Tail", pen.frames[3][0], end - 1)]
    assert items(pen, pen.frames[-1][1]) == []


def test_reading_that_begins_inside_a_frame_goes_on_at_the_next(pen: WriterFixture) -> None:
    inside = pen.frames[2][0] + 5
    assert items(pen, inside) == [("Gap", inside, pen.frames[3][0]), (pen.frames[3][0], pen.frames[5][1], [3, 4, 5])]


def test_damage_in_the_middle_is_a_gap_of_exactly_its_frames(pen: WriterFixture) -> None:
    pen.flip(pen.frames[2][0] + 9)
    pen.flip(pen.frames[3][0])
    gap = ("Gap", pen.frames[2][0], pen.frames[3][1])
    assert items(pen) == [(pen.frames[0][0], gap[1], [0, 1]), gap, (gap[2], pen.frames[5][1], [4, 5])]


@pytest.mark.parametrize(
    ("tail", "partial"), [(b"\x28\0\0\0abc", True), (b"\x28", True), (bytes(100), False), (b"\xff" * 90, False)]
)
def test_at_the_end_anything_odd_means_not_yet(pen: WriterFixture, tail: bytes, partial: bool) -> None:
    end = pen.frames[-1][1]
    pen.raw(tail)
    assert items(pen)[-1] == ("Tail", end, end + len(tail))
    assert is_partial(opened(pen), Tail(end, end + len(tail))) == partial


def test_a_tail_becomes_a_gap_once_a_frame_follows(pen: WriterFixture) -> None:
    end = pen.frames[-1][1]
    pen.raw(b"half")
    pen.log("behind")
    assert items(pen)[1:] == [("Gap", end, end + 4), (end + 4, pen.frames[-1][1], [6])]


def test_a_newer_segment_is_refused_by_name(pen: WriterFixture) -> None:
    from zlib import crc32

    data = pen.segment.read_bytes()
    first = opened(pen).first
    head = data[:8] + b"\x02\x00" + data[10 : first - 4]
    pen.segment.write_bytes(head + crc32(head).to_bytes(4, "little") + data[first:])
    with pytest.raises(NewerFormat, match=r"segment 0.*format 2"):
        open_segment(pen.segment)


# -- what is asked of journals ----------------------------------------------------------------------------------------


def test_the_newest_time_is_found_without_reading_everything(
    desk: JournalFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = desk.pen(), desk.pen()
    first.log("x")
    newest = desk.now_ns
    assert newest_time_ns(desk.journal, {}) == newest
    second.raw(b"torn")
    assert newest_time_ns(desk.journal, {}) == newest
    sizes = {pen.segment.name: pen.segment.stat().st_size for pen in (first, second)}
    monkeypatch.setattr("ml_dash.journal.reader._last_time_ns", None)
    assert newest_time_ns(desk.journal, sizes) == second.created_ns


def test_a_time_that_no_clock_says_leaves_room_for_later_ones(desk: JournalFixture) -> None:
    desk.pen().frame(ev.LOG, ["info", "x", None], time_ns=2**64 - 1)
    assert newest_time_ns(desk.journal, {}) <= 2**62


@pytest.mark.parametrize("payload", [10, 200_000])
def test_the_last_frame_is_found_behind_damage_and_before_a_torn_end(desk: JournalFixture, payload: int) -> None:
    pen = desk.pen()
    for number in range(1, 5):
        pen.log(str(number) * payload)
    segment = opened(pen)
    pen.flip(pen.frames[2][0] + 9)
    pen.raw(b"\x28\0\0\0torn")
    size = pen.segment.stat().st_size
    assert (last_event(segment, size), last_frame_end(segment, size)) == ((4, ev.LOG), pen.frames[4][1])
    before = pen.frames[4][1] - 1
    assert (last_event(segment, before), last_frame_end(segment, before)) == ((3, ev.LOG), pen.frames[3][1])
    assert (last_event(segment, segment.first), last_frame_end(segment, segment.first)) == (None, segment.first)


def test_a_scan_shows_every_frame_where_it_lies(pen: WriterFixture) -> None:
    pen.flip(pen.frames[3][0] + 9)
    found = list(scan(pen.segment))
    assert [(item.offset, item.offset + item.size) for item in found if isinstance(item, Frame)] == [
        *pen.frames[:3],
        *pen.frames[4:],
    ]
    assert [item for item in found if isinstance(item, Gap)] == [Gap(*pen.frames[3])]
    assert [item.seq for item in found if isinstance(item, Frame)] == [0, 1, 2, 4, 5]
