"""Bodies that are kept as blobs: which blob, what it must hold, and what is left out if it does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from ml_dash.core import events as ev
from ml_dash.core.frames import Event
from ml_dash.errors import Damaged
from ml_dash.journal.bodies import blobs_of, fetch_body, reference, with_bodies
from ml_dash.journal.reader import Stretch, open_segment, read
from ml_dash.journal.segment import BLOBS
from tests.journals import JournalFixture, WriterFixture

TEXTS = ["first", "second", "third"]


@pytest.fixture
def pen(desk: JournalFixture) -> WriterFixture:
    """An opening event, and three whose bodies are blobs."""
    pen = desk.pen()
    for text in TEXTS:
        pen.large(ev.LOG, ["info", text, None])
    return pen


def run_of(pen: WriterFixture) -> Stretch:
    segment = open_segment(pen.segment)
    assert segment is not None
    [run] = read(segment, segment.first)
    assert isinstance(run, Stretch)
    return run


def whole(pen: WriterFixture, **more: Any) -> tuple[list[Stretch], list[tuple[int, type[Exception]]]]:
    """The runs with their bodies, and the numbers of the events whose bodies are lost."""
    run, lost = run_of(pen), list[tuple[int, type[Exception]]]()

    def note(event: Event, error: Exception) -> None:
        lost.append((event[0], type(error)))

    fetch = partial(fetch_body, pen.desk.journal)
    data = pen.segment.read_bytes()[run.start : run.end]
    return list(with_bodies(run, pen.id, lambda: data, fetch, note, (OSError, Damaged, ValueError), **more)), lost


def texts(runs: list[Stretch]) -> list[str]:
    return [event[3][1] for run in runs for event in run.events if event[1] == ev.LOG]


def blob(pen: WriterFixture, number: int) -> Path:
    """The blob that keeps one of the three bodies."""
    return pen.desk.journal / BLOBS / list(blobs_of(run_of(pen), pen.id))[number][0]


def test_only_what_names_a_blob_is_a_reference() -> None:
    assert reference(msgspec.msgpack.Ext(1, b"d" * 32 + (5).to_bytes(8, "little"))) == (b"d" * 32, 5)
    for other in ({"a": 1}, None, msgspec.msgpack.Ext(2, b"d" * 40), msgspec.msgpack.Ext(1, b"short")):
        assert reference(other) is None


def test_events_get_their_bodies(pen: WriterFixture) -> None:
    runs, lost = whole(pen)
    assert texts(runs) == TEXTS
    assert ([(run.start, run.end) for run in runs], lost) == ([(pen.frames[0][0], pen.frames[-1][1])], [])
    assert [name for name, _ in blobs_of(run_of(pen), pen.id)] == [blob(pen, number).name for number in range(3)]


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda path: path.unlink(), FileNotFoundError),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), Damaged),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), Damaged),
    ],
)
@pytest.mark.parametrize("number", range(3))
def test_an_event_whose_body_is_lost_is_left_out(
    pen: WriterFixture, number: int, spoil: Callable[[Path], Any], error: type[Exception]
) -> None:
    spoil(blob(pen, number))
    runs, lost = whole(pen)
    assert texts(runs) == [text for text in TEXTS if text != TEXTS[number]]
    assert lost == [(number + 1, error)]
    start, end = pen.frames[number + 1]
    assert all(run.end <= start or run.start >= end for run in runs)
    assert sum(run.end - run.start for run in runs) == pen.frames[-1][1] - pen.frames[0][0] - (end - start)


def test_an_error_that_does_not_say_that_it_is_lost_goes_on(pen: WriterFixture) -> None:
    def fetch(name: str, size: int) -> Any:
        raise PermissionError(13, "not now")

    run = run_of(pen)
    data = pen.segment.read_bytes()[run.start : run.end]
    with pytest.raises(PermissionError):
        list(with_bodies(run, pen.id, lambda: data, fetch, lambda event, error: None, (FileNotFoundError,)))


def test_memory_is_bounded_where_that_is_asked_for(pen: WriterFixture) -> None:
    size = len(msgpack.packb(["info", TEXTS[0], None]))
    runs, _ = whole(pen, at_once=size)
    assert texts(runs) == TEXTS
    assert [len(run.events) for run in runs] == [3, 1]
    assert [run.start for run in runs[1:]] == [run.end for run in runs[:-1]]
