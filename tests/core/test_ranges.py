"""Ranges, against sets of numbers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ml_dash.core.ranges import Range, holes, overlapping, union

NUMBER = st.integers(0, 40)
RANGE = st.tuples(NUMBER, NUMBER).map(sorted).map(lambda pair: (pair[0], pair[1]))
ADDED = st.lists(RANGE.filter(lambda pair: pair[0] < pair[1]), max_size=8)


def numbers(ranges: list[Range]) -> set[int]:
    return {number for start, end in ranges for number in range(start, end)}


def made(added: list[Range]) -> list[Range]:
    covered: list[Range] = []
    for start, end in added:
        covered = union(covered, start, end)
    return covered


@given(ADDED)
def test_a_union_holds_what_was_added_sorted_and_joined(added: list[Range]) -> None:
    covered = made(added)
    assert numbers(covered) == numbers(added)
    assert covered == sorted(covered)
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(covered))


@given(ADDED, RANGE)
def test_holes_and_overlaps_share_a_range_between_them(added: list[Range], wanted: Range) -> None:
    covered = made(added)
    missing, there = list(holes(covered, *wanted)), overlapping(covered, *wanted)
    assert numbers(missing) == numbers([wanted]) - numbers(covered)
    assert numbers(there) == numbers([wanted]) & numbers(covered)
    assert missing == sorted(missing)


def test_ranges_that_overlap_are_walked_once() -> None:
    assert list(holes([(0, 5), (2, 3), (4, 8)], 0, 10)) == [(8, 10)]
