"""The envelope of a series: minima and maxima kept, gaps where nothing finite lies, and equal however it is fed."""

from __future__ import annotations

import json
import math
import struct
from array import array

from hypothesis import given
from hypothesis import strategies as st

from ml_dash.core.envelope import Columns, Drawn, DrawnPage, Envelope, as_binary, as_json, points_as_columns

VALUES = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf]))


def drawn(values: list[float], points: int, start: int = 0) -> Drawn:
    envelope = Envelope(start, start + len(values), points)
    indices = range(start, start + len(values))
    columns, marks = points_as_columns(indices, [float(index) for index in indices], values)
    envelope.add(columns)
    envelope.mark(marks)
    return envelope.drawn()


def summary(values: list[float], start: int) -> Columns:
    finite = [(start + at, value) for at, value in enumerate(values) if math.isfinite(value)]
    first = finite[0][0] if finite else start
    low = min((value for _, value in finite), default=math.inf)
    high = max((value for _, value in finite), default=-math.inf)
    odd = len(values) - len(finite)
    return Columns([start], [len(finite)], [odd], [first], [float(first)], [low], [high])


def test_few_points_are_drawn_as_they_are():
    one = drawn([3.0, 1.0, 2.0], 10)
    assert (one.index, one.low, one.high, one.shown, one.total) == ([0, 1, 2], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0], 3, 3)


def test_a_spike_among_many_points_is_the_maximum_of_its_bucket():
    values = [0.0] * 100_000
    values[70_123] = 9.0
    one = drawn(values, 100)
    assert len(one.index) == 100
    assert (max(one.high), one.high.index(9.0), one.total) == (9.0, 70, 100_000)


def test_nan_is_a_mark_and_breaks_the_line():
    one = drawn([1.0, math.nan, 3.0, 4.0, math.inf], 10)
    assert one.index == [0, 2, 3]
    assert one.breaks == [1]
    assert [(mark.at, mark.value) for mark in one.marks] == [(1, "NaN"), (4, "Infinity")]
    assert one.total == 5


@given(st.lists(VALUES, min_size=1, max_size=400), st.integers(1, 120), st.integers(0, 130))
def test_every_bucket_has_the_extremes_of_its_part_and_nothing_is_left_out(values, points, start):
    one = drawn(values, points, start)
    finite = {start + at: value for at, value in enumerate(values) if math.isfinite(value)}
    ends = [*one.index[1:], start + len(values)] if one.index else []
    for begin, end, low, high in zip(one.index, ends, one.low, one.high, strict=True):
        mine = [value for index, value in finite.items() if begin <= index < end]
        assert (min(mine), max(mine)) == (low, high)
    assert one.total == len(values)
    assert bool(one.index) == bool(finite)
    assert one.shown <= max(points, 1)


@given(st.lists(VALUES, min_size=1, max_size=90), st.integers(1, 150), st.integers(1, 40), st.integers(0, 130))
def test_summaries_of_whole_units_give_what_the_points_give(part, times, points, start):
    values = part * times
    whole = drawn(values, points, start)
    envelope = Envelope(start, start + len(values), points)
    at = start
    while at < start + len(values):
        stop = min(start + len(values), at - at % envelope.unit + envelope.unit)
        envelope.add(summary(values[at - start : stop - start], at))
        at = stop
    fed = envelope.drawn()
    assert (fed.index, fed.low, fed.high, fed.breaks, fed.total) == (
        whole.index, whole.low, whole.high, whole.breaks, whole.total
    )  # fmt: skip


def test_the_binary_form_holds_the_same_numbers_as_json():
    one = drawn([0.5, math.nan, 2.5], 10)
    one.experiment = "12"
    page = DrawnPage("loss", "step", [one], ["13"])
    plain = json.loads(as_json(page))
    data = as_binary(page)
    (length,) = struct.unpack_from("<I", data)
    head = json.loads(data[4 : 4 + length])
    numbers = array("d", data[4 + length :])
    (series,) = head["series"]
    for name in ("index", "x", "min", "max"):
        place = series[name]
        series[name] = list(numbers[place["offset"] : place["offset"] + place["count"]])
    assert (4 + length) % 8 == 0
    assert head == plain
    assert plain["series"][0]["nonFinite"] == [{"x": 1.0, "value": "NaN"}]
    assert plain["missing"] == ["13"]
