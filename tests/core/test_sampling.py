"""Down-sampling: the choice of a unit, and the same chart whichever summaries it is made from."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash.core.sampling import LINES, PART, UNITS, Extremes, Sampling, extend, extremes


@pytest.mark.parametrize(
    ("size", "points", "unit"),
    [
        (1, 1000, 1),
        (24_999, 1000, 1),
        (25_000, 1000, PART),
        (499_999, 1000, PART),
        (500_000, 1000, LINES),
        (4_999_999, 1000, LINES),
        (5_000_000, 1000, 10_000),
        (10_000_000, 1000, 10_000),
        (100_000_000, 1000, 100_000),
        (10_000_000, 10, 100_000),
    ],
)
def test_the_unit_is_the_longest_that_is_not_longer_than_a_part(size: int, points: int, unit: int) -> None:
    assert Sampling(7, 7 + size, points).unit == unit


def test_each_unit_is_whole_units_of_the_one_before() -> None:
    """So a summary of a unit can be joined from stored ones of a shorter unit, and none lies in two."""
    assert all(longer % shorter == 0 for shorter, longer in pairwise(UNITS))


def summary(rng: random.Random, first: int) -> Extremes:
    """The summary of a thousand points of which only a few have numbers; values repeat, so that ties are met."""
    rows = [{"value": rng.randrange(5), "acc": float(rng.randrange(3)), "step": first + n} for n in range(8)]
    for row in rng.sample(rows, 4):
        del row[rng.choice(("value", "acc"))]
    return extremes(rows, first + rng.randrange(LINES - len(rows)))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    unit=st.sampled_from([LINES, 10_000, 100_000]),
    points=st.sampled_from([1, 2, 10, 200, 1000]),
)
def test_a_chart_of_joined_summaries_is_that_of_short_ones(seed: int, unit: int, points: int) -> None:
    """Of up to 5 * 10^8 points: one summary for a unit, or those of the thousands in it, as far as there are any."""
    rng = random.Random(seed)
    size = max(1, points // 2) * unit + rng.randrange(9 * unit)
    start = rng.randrange(2 * unit)
    short, long = Sampling(start, start + size, points), Sampling(start, start + size, points)
    assert short.unit >= unit
    unit = short.unit
    # Units that lie in the range; also the first and the last of these.
    whole = range(-(-start // unit), (start + size) // unit)
    for number in sorted({*rng.sample(whole, min(len(whole), 40)), *whole[:1], *whole[-1:]}):
        together: Extremes = {}
        for thousand in sorted(rng.sample(range(unit // LINES), min(unit // LINES, 5))):
            first = number * unit + thousand * LINES
            found = summary(rng, first)
            short.add(first, found)
            extend(together, found)
        long.add(number * unit, together)
    assert short.series() == long.series()
