"""Series of local folders: the same envelope from the index and from the lines, whatever they hold."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_dash.core.envelope import INDEX, RELATIVE, STEP, WALL, Drawn
from ml_dash.core.ranges import holes
from ml_dash.core.state import Block
from ml_dash.errors import Damaged
from ml_dash.projection.checkpoint import LineFile
from ml_dash.projection.lines import point_lines
from ml_dash.reading import stretches
from ml_dash.reading.cached import database
from ml_dash.reading.drawing import Axis, Drawable, draw, draw_split, over_metric
from ml_dash.reading.view import Lines

BEGAN_NS = 1_790_000_000_123_456_789
VALUES = st.sampled_from([0.5, -3.0, 7, math.nan, math.inf, -math.inf, None, "text", True])


def recorded(folder: Path, rows: list[dict], first: int = 0, projected: int | None = None) -> Lines:
    """Lines of a metric as a projection lays them out, the last ones in memory if not all are `projected`."""
    known = LineFile(first=first, lines=first)
    path = folder / "data.jsonl"
    end = first + len(rows)
    here = end if projected is None else projected
    with path.open("wb") as file:
        while known.lines < here:
            stop = min(here, known.lines - known.lines % 1000 + 1000)
            data = _encoded(rows, known.lines, stop, first)
            known.marks.append(known.size)
            known.size, known.lines = known.size + len(data), stop
            file.write(data)
    memory = _encoded(rows, here, end, first).splitlines() if here < end else []
    return Lines(path, known, memory, end)


def _encoded(rows: list[dict], start: int, stop: int, first: int) -> bytes:
    times = [BEGAN_NS + index * 1_000_000 for index in range(start, stop)]
    return point_lines(Block(start, rows[start - first : stop - first], times))


def index(folder: Path, lines: Lines, fields: tuple[str, ...] = ("value",)) -> Path:
    path = folder / "index.sqlite"
    left = 1
    while left:
        with database(path, stretches.SCHEMA, stretches.VERSION) as link:
            left = stretches.extend(link, "loss", fields, lines)
    return path


def drawn(path: Path | None, lines: Lines, axis: Axis, points: int = 100, low=None, high=None, superseded=()) -> Drawn:
    if path is None:
        of = Drawable("loss", "value", lines, superseded, end=lines.total)
        return draw(of, axis, points, low, high, superseded=False)
    with database(path, stretches.SCHEMA, stretches.VERSION) as link:
        have = stretches.indexed(link, "loss", lines)
        of = Drawable("loss", "value", lines, superseded, link, have, lines.total)
        return draw(of, axis, points, low, high, superseded=False)


def plain(rows: list[dict], axis: Axis, low, high, superseded, first: int) -> list[tuple[int, float, float]]:
    """(index, x, value) of the finite values that are to be drawn, the slow way."""
    found = []
    for at, row in enumerate(rows, first):
        value, step = row.get("value"), row.get("step", row.get("epoch", at))
        if type(value) not in (int, float) or not math.isfinite(value):
            continue
        time = (BEGAN_NS + at * 1_000_000) // 1000
        x = {
            STEP: step, INDEX: at, WALL: time / 1e6, RELATIVE: (time - axis.created_us) / 1e6,
        }[axis.kind]  # fmt: skip
        if any(start <= at < end for start, end in superseded):
            continue
        if (low is None or x >= low) and (high is None or x <= high):
            found.append((at, x, value))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_an_index_changes_nothing_but_the_time_it_takes(tmp_path, data):
    folder = tmp_path / os.urandom(6).hex()
    folder.mkdir()
    cell = st.fixed_dictionaries({}, optional={"value": VALUES, "epoch": st.integers(0, 5)})
    pattern = data.draw(st.lists(cell, min_size=1, max_size=7))
    count = data.draw(st.sampled_from([3, 999, 1000, 1203, 2500, 11_234]))
    stepped = data.draw(st.booleans())
    first = data.draw(st.sampled_from([0, 0, 17, 1000]))
    rows = [
        {**pattern[at % len(pattern)], **({"step": 10 * at + 5} if stepped else {}), "other": 1}
        for at in range(count)
    ]  # fmt: skip
    kind = data.draw(st.sampled_from([STEP, INDEX, WALL, RELATIVE]))
    axis = Axis(kind, BEGAN_NS // 1000)
    superseded = data.draw(st.sampled_from([[], [(200, 457)], [(0, 30), (60, 61), (990, 2010)]]))
    lines = recorded(folder, rows, first, data.draw(st.sampled_from([None, first + count * 2 // 3])))
    bounds = (None, None)
    if data.draw(st.booleans()):
        a, b = sorted(data.draw(st.tuples(st.integers(0, count), st.integers(0, count))))
        scale = {STEP: 10 if stepped else 1, INDEX: 1, WALL: 0.001, RELATIVE: 0.001}[kind]
        zero = BEGAN_NS // 1000 / 1e6 if kind == WALL else 0
        bounds = (zero + a * scale, zero + b * scale)
    points = data.draw(st.sampled_from([1, 7, 100, 5000]))
    without = drawn(None, lines, axis, points, *bounds, superseded)
    path = index(folder, lines)
    with_index = drawn(path, lines, axis, points, *bounds, superseded)
    assert with_index == without
    wanted = plain(rows, axis, *bounds, superseded, first)
    assert sum(1 for _ in wanted) == without.total - _odd(rows, axis, bounds, superseded, first)
    if wanted:
        assert (min(without.low), max(without.high)) == (min(v for *_, v in wanted), max(v for *_, v in wanted))
    if points == 5000 and count < 5000:
        assert list(zip(without.index, without.x, without.low, strict=True)) == wanted


def _odd(rows, axis, bounds, superseded, first) -> int:
    """How many values to be drawn are not finite."""
    swapped = [
        {**row, "value": 1.0 if type(row.get("value")) is float and not math.isfinite(row["value"]) else None}
        for row in rows
    ]  # fmt: skip
    return len(plain(swapped, axis, *bounds, superseded, first))


def test_new_lines_are_added_to_the_index_and_a_replaced_file_is_indexed_anew(tmp_path):
    rows = [{"value": float(at % 97), "step": at} for at in range(4321)]
    path = index(tmp_path, recorded(tmp_path, rows[:2500]))
    with database(path, stretches.SCHEMA, stretches.VERSION) as link:
        lines = recorded(tmp_path, rows)
        have = stretches.indexed(link, "loss", lines)
        assert have is not None
        assert have.lines == 2000
    path = index(tmp_path, lines)
    assert drawn(path, lines, Axis(STEP)) == drawn(None, lines, Axis(STEP))
    other = recorded(tmp_path, [{"value": -row["value"], "step": row["step"]} for row in rows])
    with database(path, stretches.SCHEMA, stretches.VERSION) as link:
        assert stretches.indexed(link, "loss", other) is None
    assert drawn(index(tmp_path, other), other, Axis(STEP)).low == drawn(None, other, Axis(STEP)).low


def test_lines_that_somebody_edited_are_damage_and_not_points(tmp_path):
    lines = recorded(tmp_path, [{"value": 1.0}] * 50)
    content = lines.path.read_bytes().splitlines(keepends=True)
    lines.path.write_bytes(b"".join([*content[:10], *content[11:], content[10]]))
    with pytest.raises(Damaged):
        drawn(None, lines, Axis(STEP))


def test_a_damaged_cache_is_made_anew(tmp_path):
    lines = recorded(tmp_path, [{"value": float(at)} for at in range(3000)])
    path = index(tmp_path, lines)
    path.write_bytes(b"no database" * 500)
    assert drawn(index(tmp_path, lines), lines, Axis(STEP)) == drawn(None, lines, Axis(STEP))


def test_points_are_split_by_a_field(tmp_path):
    rows = [{"value": float(at), "rank": at % 3, "step": at // 3} for at in range(3000)]
    rows[5]["rank"] = "other"
    lines = recorded(tmp_path, rows)
    of = Drawable("loss", "value", lines, [], end=3000)
    found = draw_split(of, Axis(STEP), 5000, "rank", None, None, superseded=False)
    assert [one.split for one in found] == [0, 1, 2, "other"]
    assert [one.total for one in found] == [1000, 1000, 999, 1]
    assert found[1].low[:3] == [1.0, 4.0, 7.0]


def test_one_metric_is_drawn_over_another(tmp_path):
    (tmp_path / "a").mkdir()
    loss = recorded(tmp_path, [{"value": float(at), "step": at} for at in range(100)])
    tokens = recorded(tmp_path / "a", [{"value": at * 1000.0, "step": at} for at in range(10, 100, 10)])
    y, x = drawn(None, loss, Axis(STEP), 1000), drawn(None, tokens, Axis(STEP), 1000)
    found = over_metric(y, x)
    assert (found.index[0], found.x[0], found.x[15]) == (10, 10_000.0, 20_000.0)
    assert len(found.x) == len(found.low) == 90


def test_superseded_ranges_leave_the_rest(tmp_path):
    lines = recorded(tmp_path, [{"value": float(at), "step": at} for at in range(5000)])
    found = drawn(index(tmp_path, lines), lines, Axis(STEP), 10_000, superseded=[(1000, 4000)])
    assert found.index == [at for low, high in holes([(1000, 4000)], 0, 5000) for at in range(low, high)]
    assert (found.superseded, found.total) == (3000, 2000)
