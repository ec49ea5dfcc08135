"""Sorted, disjoint half-open ranges [start, end) of whole numbers: what they leave out, and their union."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Range = tuple[int, int]


def holes(covered: Iterable[Range], start: int, end: int) -> Iterator[Range]:
    """The parts of [start, end) that none of the ranges covers, in order. `covered` is sorted by start."""
    for first, last in covered:
        if last <= start:
            continue
        if first >= end:
            break
        if first > start:
            yield start, first
        start = max(start, last)
    if start < end:
        yield start, end


def overlapping(ranges: Iterable[Range], start: int, end: int) -> list[Range]:
    """The parts of the ranges that lie in [start, end), in order; the ranges may be in any order."""
    return [(max(first, start), min(last, end)) for first, last in sorted(ranges) if first < end and last > start]


def union(covered: list[Range], start: int, end: int) -> list[Range]:
    """The ranges with [start, end) added, sorted, what touches joined; a new list."""
    if covered and covered[-1][1] == start:
        # Nearly always: what comes next follows what came last.
        return [*covered[:-1], (covered[-1][0], end)]
    merged: list[Range] = []
    for first, last in sorted([*covered, (start, end)]):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged
