"""Sorted, disjoint half-open ranges [start, end) of whole numbers: their gaps and their union.

Three things are kept as ranges instead of single numbers: which events of a writer were seen, which bytes of a segment
were taken, and which points are superseded. Where nothing is missing each is a single pair, however many numbers it
holds.

`holes` and `union` take and give sorted lists that overlap nowhere. Nothing here changes its arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

Range = tuple[int, int]


def holes(covered: Iterable[Range], start: int, end: int) -> Iterator[Range]:
    """Yield the parts of [start, end) that none of the ranges covers, in order. `covered` must be sorted by start."""
    for first, last in covered:
        # The whole range lies before what is asked for; or is empty.
        if last <= start:
            continue
        if first >= end:
            break
        if first > start:
            # What is left of [start, end) begins behind this range.
            yield start, first
        start = max(start, last)
    if start < end:
        yield start, end


def size_of(ranges: Iterable[Range]) -> int:
    """Return how many numbers the ranges hold."""
    return sum(end - start for start, end in ranges)


def bounds(start: int, limit: int, total: int) -> Range:
    """Return the range [start, stop) of a page of `total` items; a negative start counts from the end."""
    start = max(0, total + start) if start < 0 else start
    return start, max(start, min(total, start + limit))


def page_of(ranges: list[Range], start: int, limit: int) -> list[Range]:
    """Return the first `limit` numbers of the ranges from `start` on; a negative start counts from their end."""
    if start < 0:
        # How many numbers come before the page.
        skipped, start = size_of(ranges) + start, 0
    else:
        skipped = 0
    page: list[Range] = []
    for first, last in ranges:
        # May lie behind `last` now: the range is then before the page, and gives nothing.
        first = max(first, start)
        left_out = min(max(0, skipped), max(0, last - first))
        skipped, first = skipped - left_out, first + left_out
        last = min(last, first + limit)
        if first < last:
            page.append((first, last))
            limit -= last - first
        if not limit:
            break
    return page


def windows(ranges: Iterable[Range], size: int) -> Iterator[list[Range]]:
    """Yield the ranges cut at the multiples of `size`: those between two multiples together.

    So each list lies in one block of `size` numbers, which a reader can read at once.
    """

    def cut() -> Iterator[Range]:
        for start, end in ranges:
            while start < end:
                # The next multiple, or the end of the range.
                stop = min(end, (start // size + 1) * size)
                yield start, stop
                start = stop

    for _, parts in groupby(cut(), key=lambda part: part[0] // size):
        yield list(parts)


def overlapping(ranges: Iterable[Range], start: int, end: int) -> list[Range]:
    """Return the parts of the ranges that lie in [start, end), in order; the ranges may be in any order."""
    return [(max(first, start), min(last, end)) for first, last in sorted(ranges) if first < end and last > start]


def union(covered: list[Range], start: int, end: int) -> list[Range]:
    """Return a new list of the ranges with [start, end) added, sorted, adjacent ones joined."""
    if covered and covered[-1][1] == start:
        # The usual case: the new range continues the last one.
        return [*covered[:-1], (covered[-1][0], end)]
    merged: list[Range] = []
    for first, last in sorted([*covered, (start, end)]):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged
