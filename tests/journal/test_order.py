"""`order`: what was recorded is read back, whatever lies between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_dash.errors import JournalError
from ml_dash.journal.order import Death, MergeRecord, Order, Record, death_payload, stretch_payload
from ml_dash.journal.segment import JOURNAL, create_journal
from tests.journals import flip

SEGMENT, WRITER = "ab" * 16, "cd" * 16


@pytest.fixture
def order(tmp_path: Path) -> Iterator[Order]:
    create_journal(tmp_path, "cv", "run", sync=False)
    order = Order(tmp_path / JOURNAL)
    order.open(write=True)
    yield order
    order.close()


def stretch(n: int) -> MergeRecord:
    return MergeRecord(SEGMENT, 100 * n, 100 * n + 100)


def fill(order: Order, count: int = 5) -> list[int]:
    """The offsets behind some stretches."""
    return [order.append([stretch_payload(SEGMENT, 100 * n, 100 * n + 100)]) for n in range(count)]


def records(order: Order, start: int = 0) -> list[Record]:
    return [record for record, _ in order.read(start)]


def test_records_come_back_with_the_offset_behind_each(order: Order) -> None:
    behind = [*fill(order, 3), order.append([death_payload(WRITER, SEGMENT, 300)])]
    expected: list[Record] = [stretch(0), stretch(1), stretch(2), Death(WRITER, SEGMENT, 300)]
    assert list(order.read(0)) == list(zip(expected, behind, strict=True))
    for position in range(4):
        assert records(order, behind[position]) == expected[position + 1 :]


@pytest.mark.parametrize("damaged", range(5))
def test_a_damaged_record_costs_only_itself(order: Order, damaged: int) -> None:
    behind = [order.first, *fill(order)]
    for offset in range(behind[damaged], behind[damaged + 1], 7):
        flip(order.path, offset, 3)
        assert records(order) == [stretch(n) for n in range(5) if n != damaged]
        flip(order.path, offset, 3)


def test_a_record_that_was_cut_off_is_passed_over_and_what_follows_is_read(order: Order) -> None:
    behind = fill(order)
    os.truncate(order.path, behind[-1] - 3)
    assert records(order) == [stretch(n) for n in range(4)]
    fill(order, 2)
    assert records(order) == [*(stretch(n) for n in range(4)), stretch(0), stretch(1)]


def test_kinds_of_a_later_version_are_passed_over(order: Order) -> None:
    import msgpack

    order.append([msgpack.packb([9, b"x", 5, 5]), stretch_payload(SEGMENT, 0, 100)])
    assert records(order) == [stretch(0)]


def create_segment(journal: Path) -> None:
    """Something that still says whose journal this is."""
    from ml_dash.core.frames import Header, encode_header

    name = f"{1:020d}-{WRITER}-000000.seg"
    (journal / "segments" / name).write_bytes(
        encode_header(Header(b"J" * 16, b"S" * 16, b"W" * 16, 0, 0, 1, "cv", "run"))
    )


def test_an_order_of_which_nothing_says_whose_it_is_is_not_begun_anew(order: Order) -> None:
    order.close()
    order.path.unlink()
    with pytest.raises(JournalError, match="does not say"):
        order.open(write=True)
    assert not order.path.exists()


def test_a_header_with_one_damaged_byte_is_mended(order: Order) -> None:
    fill(order)
    flip(order.path, 5)
    reading = Order(order.path.parent)
    reading.open(write=False)
    assert records(reading) == [stretch(n) for n in range(5)]
    reading.close()
