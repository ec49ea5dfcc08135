"""The plot of a series: what is drawn where, and that nothing which a float can be breaks it."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from ml_dash.cli.plot import plot

NUMBERS = st.floats() | st.integers(-(2**63), 2**64).map(float)


def _dots(lines: list[str]) -> list[str]:
    return [line.split("┤")[-1].split("│")[-1] for line in lines[:-2]]


def test_a_rising_line_goes_from_the_lower_left_to_the_upper_right() -> None:
    lines = plot([(0, 0), (1, 1)], width=40, height=5)
    rows = _dots(lines)
    starts = [len(row) - len(row.lstrip(" ")) for row in rows]
    assert starts == sorted(starts, reverse=True)
    assert rows[-1][0] != " "
    assert lines[0].lstrip().startswith("1 ┤")
    assert lines[4].lstrip().startswith("0 ┤")
    assert lines[-1].split() == ["0", "1"]


def test_one_point_is_one_dot() -> None:
    assert sum(character != " " for row in _dots(plot([(3, 7)], 40, 5)) for character in row) == 1


def test_what_is_not_finite_leaves_a_gap() -> None:
    whole = _dots(plot([(0, 0), (1, 0), (2, 0), (3, 0)], 60, 3))
    broken = _dots(plot([(0, 0), (1, 0), (1.5, math.nan), (2, 0), (3, 0)], 60, 3))
    assert "".join(whole).count(" ") < "".join(broken).count(" ")


def test_nothing_to_draw_is_no_line_at_all() -> None:
    assert plot([], 40, 5) == []
    assert plot([(0, math.nan), (math.inf, 1)], 40, 5) == []


def test_labels_have_the_digits_that_tell_them_apart() -> None:
    lines = plot([(0, 1.000001), (1, 1.000002)], 60, 5)
    assert lines[0].split()[0] != lines[4].split()[0]


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=20), st.integers(40, 120), st.integers(3, 12))
def test_any_series_fits_its_width_and_height(points: list[tuple[float, float]], width: int, height: int) -> None:
    lines = plot(points, width, height)
    assert len(lines) in (0, height + 2)
    assert all(len(line) <= width for line in lines)
