"""Down-sampled series: what is shown was measured, and no peak is lost, whatever the number of points."""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_dash.core import events as ev
from ml_dash.core.protocol import Refused
from ml_dash.core.ranges import holes, union
from ml_dash.core.records import series_name
from ml_dash.core.sampling import LINES, PART, Sampling
from ml_dash.core.state import Block as Points
from ml_dash.core.state import Edits
from ml_dash.server.engine.blocks import OpenBlock, add, series_of, store_open
from ml_dash.server.engine.series import sample
from ml_dash.server.engine.services import Server
from ml_dash.server.settings import ServerSettings
from tests.journals import JournalFixture
from tests.server.sending import EXPERIMENT, NS, SegmentBytes, forget, send

COUNT = 3 * LINES + 170


@pytest.fixture
def core(pair: ServerSettings) -> Iterator[Server]:
    server = Server(pair.data, pair)
    yield server
    server.close()


def series(core: Server, metric: str = "loss", **how: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(core.series(NS, EXPERIMENT, metric, **how))
    return answer


def noisy(seed: int, count: int) -> list[Any]:
    """Values with peaks, repeats, gaps, and what is no number."""
    rng = random.Random(seed)
    odd = [math.nan, None, True, "text", 2**64 - 1, -(2**63), 1e308, -0.0]
    return [rng.choice(odd) if rng.random() < 0.02 else round(rng.gauss(0, 3), 1) for _ in range(count)]


def numeric(value: Any) -> bool:
    return type(value) in (int, float) and value == value


def assert_shows(
    found: dict[str, Any], rows: list[dict[str, Any]], field: str, start: int, end: int, points: int
) -> None:
    """The laws: real points in their order, the ends, the extremes, and no point outside of what is shown near it."""
    there = [(i, rows[i][field]) for i in range(start, end) if numeric(rows[i].get(field))]
    shown = list(zip(found["index"], found["value"], strict=True))
    assert found["count"] == len(there)
    assert set(shown) <= set(there)
    assert [index for index, _ in shown] == sorted({index for index, _ in shown})
    assert found["x"] == [rows[i].get("step", rows[i].get("epoch", i)) for i, _ in shown]
    assert shown[0] == there[0]
    assert shown[-1] == there[-1]
    values = [value for _, value in there]
    assert min(found["value"]) == min(values)
    assert max(found["value"]) == max(values)
    width = max(1.0, (end - start) / max(1, points // 2))
    assert len(shown) <= 2 * math.ceil((end - start) / width) + 2
    # A stretch that is made whole of stored summaries reaches past its part by one of those.
    reach = width + (LINES if width >= LINES else PART if width >= PART else 1)
    places, heights = found["index"], found["value"]
    for index, value in there:
        near = heights[bisect_left(places, index - reach) : bisect_right(places, index + reach)]
        assert min(near) <= value <= max(near), (index, value)


def put(core: Server, rows: list[dict[str, Any]], cuts: list[int]) -> None:
    """The rows as points, in batches and single ones, in several requests."""
    sheet, sent = SegmentBytes().opens(), 0
    for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        if end - begin > 3:
            sheet.add(ev.ROWS, ["loss", rows[begin:end]])
        else:
            for row in rows[begin:end]:
                sheet.point(**row)
        send(core, sheet, sent)
        sent = len(sheet.data)


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 32), data=st.data())
def test_no_peak_is_lost(tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject) -> None:
    rng = random.Random(seed)
    values, others = noisy(seed, COUNT), noisy(seed + 1, COUNT)
    rows = [{"value": a, "x": b, "step": 2 * i} for i, (a, b) in enumerate(zip(values, others, strict=True))]
    for row in rng.sample(rows, 200):
        del row[rng.choice(["value", "x", "step"])]
    core = Server(tmp_path_factory.mktemp("core"))
    put(core, rows, sorted(rng.sample(range(1, COUNT), 40)))
    for _ in range(4):
        start = data.draw(st.integers(0, COUNT - 1))
        end = data.draw(st.integers(start + 1, COUNT))
        start, end = data.draw(st.sampled_from([(start, end), (0, COUNT), (0, end), (start, COUNT)]))
        points = data.draw(st.sampled_from([1, 2, 3, 5, 10, 50, 100, 127, 500, 1000, 100_000]))
        found = series(core, points=points, start=start, end=end)
        for field, name in (("value", "loss"), ("x", "loss.x")):
            if any(numeric(row.get(field)) for row in rows[start:end]):
                assert_shows(found["series"][name], rows, field, start, end, points)
    core.close()


def test_one_peak_among_many_points_is_shown(core: Server) -> None:
    rows: list[dict[str, Any]] = [{"value": 0.0} for _ in range(COUNT)]
    rows[1717]["value"] = 9.0
    put(core, rows, [])
    for points in (2, 4, 20, 100, 1000):
        found = series(core, points=points)["series"]["loss"]
        assert (found["index"][found["value"].index(9.0)], max(found["value"])) == (1717, 9.0)


def test_few_points_are_shown_whole(core: Server) -> None:
    rows = [{"value": float(i % 7), "epoch": i} for i in range(40)]
    put(core, rows, [10, 20])
    found = series(core, points=1000)
    assert found["series"]["loss"] == {
        "index": list(range(40)), "x": list(range(40)), "value": [float(i % 7) for i in range(40)], "count": 40,
    }  # fmt: skip
    assert (found["startIndex"], found["endIndex"], found["totalDataPoints"]) == (0, 39, 40)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 40, (0, 40)),
        (-10, None, (30, 40)),
        (5, -5, (5, 35)),
        (39, 9999, (39, 40)),
        (40, 50, (40, 40)),
        (20, 10, (20, 20)),
    ],
)
def test_ranges_may_count_from_the_end(core: Server, start: int, end: int | None, expected: tuple[int, int]) -> None:
    put(core, [{"value": float(i)} for i in range(40)], [])
    found = series(core, start=start, end=end)
    assert (found["startIndex"], found["endIndex"] + 1) == expected
    shown = found["series"].get("loss", {"index": []})["index"]
    assert shown == list(range(*expected))


def test_nan_is_left_out_and_infinities_are_texts(core: Server) -> None:
    put(core, [{"value": math.nan}, {"value": math.inf}, {"value": 1.0}, {"value": -math.inf}], [])
    found = series(core)["series"]["loss"]
    assert found == {"index": [1, 2, 3], "x": [1, 2, 3], "value": ["Infinity", 1.0, "-Infinity"], "count": 3}


def test_one_field_is_chosen_and_an_unknown_one_is_refused(core: Server) -> None:
    put(core, [{"value": 1.0, "acc": 2.0}], [])
    assert list(series(core)["series"]) == ["loss.acc", "loss"]
    assert list(series(core, field="acc")["series"]) == ["loss.acc"]
    with pytest.raises(Refused, match="no numeric field"):
        series(core, field="nothing")
    with pytest.raises(Refused, match="no metric"):
        series(core, "nothing")


def test_blocks_that_were_full_before_their_time_count_alike(core: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines may be long; then a block holds fewer."""
    monkeypatch.setattr("ml_dash.server.engine.blocks._FULL_BYTES", 9_000)
    rng = random.Random(5)
    rows = [{"value": rng.random(), "note": "x" * rng.randrange(300)} for _ in range(COUNT)]
    put(core, rows, sorted(rng.sample(range(1, COUNT), 90)))
    with core.documents.view() as view:
        row = view.experiment(NS, EXPERIMENT)
        assert row is not None
        contents = core._changes.reader.contents(view, NS, row)
        sizes = [entry.count for entry in contents.blocks("points/loss", 0, COUNT)]
    assert sum(sizes) == COUNT
    assert len(sizes) > 10
    for points in (2, 10, 100, 1000):
        for start, end in ((0, COUNT), (333, 2999)):
            found = series(core, points=points, start=start, end=end)["series"]["loss"]
            assert found["count"] == end - start
            assert max(found["value"]) == max(row["value"] for row in rows[start:end])
    for start in (0, 1, 999, 1000, 2500):
        page = json.loads(core.metric_page(NS, EXPERIMENT, "loss", start, 40))
        assert [(line["index"], line["data"]) for line in page["data"]] == list(enumerate(rows))[start : start + 40]


@pytest.mark.parametrize("first", [{"value": math.nan}, {}, {"note": "no number"}])
def test_points_without_a_number_count_in_their_block(core: Server, first: dict[str, Any]) -> None:
    """Also when the server was started again between them: a loss may be NaN from the first step on."""
    sheet = SegmentBytes().opens()
    rows = [first] * (PART + 3) + [{"value": float(i)} for i in range(PART)]
    for row in rows:
        begin = len(sheet.data) if sheet.events[1:] else 0
        sheet.point(**row)
        send(core, sheet, begin)
        forget(core)
    found = series(core)["series"]["loss"]
    assert (found["index"], found["count"]) == (list(range(PART + 3, len(rows))), PART)
    few = series(core, points=4)["series"]["loss"]["index"]
    assert (few[0], few[-1], len(few) <= 6) == (PART + 3, len(rows) - 1, True)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    seed=st.integers(0, 1 << 32),
    count=st.sampled_from([1, 3, 60, 999, 2600]),
    points=st.sampled_from([1, 2, 7, 30, 100, 128, 1000, 10_000]),
    long=st.booleans(),
    projected=st.booleans(),
    superseded=st.booleans(),
)
def test_a_plot_here_and_a_chart_there_show_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    count: int,
    points: int,
    long: bool,
    projected: bool,
    superseded: bool,
) -> None:
    """Also where lines are long and blocks short, and where rewinds have superseded a part."""
    rng = random.Random(seed)
    monkeypatch.setattr("ml_dash.server.engine.blocks._FULL_BYTES", 6_000 if long else 1 << 20)
    desk = JournalFixture(tmp_path_factory.mktemp("desk"))
    core = Server(tmp_path_factory.mktemp("core"))
    pen, step, sent = desk.pen(), 0, 0
    fields = {"value": noisy(seed, count), "acc": noisy(seed + 1, count)}
    rows: list[dict[str, Any]] = []
    for number in range(count):
        if step and rng.random() < 3 / count:
            step = rng.randrange(step)
            pen.rows("loss", *rows)
            rows = []
            pen.frame(ev.REWIND, {"step": step})
        rows.append({"value": fields["value"][number], "acc": fields["acc"][number], "step": step})
        if long:
            rows[-1]["note"] = "x" * rng.randrange(200)
        step += 1
        if rng.random() < 20 / count or number == count - 1:
            pen.rows("loss", *rows)
            rows = []
            data = pen.segment.read_bytes()
            core.append_segment(NS, desk.identity.journal.hex(), pen.segment.name, sent, data[sent:])
            sent = len(data)
    if projected:
        desk.catch_up()
    view = desk.view()
    there = series(core, points=points, superseded=superseded)["series"]
    for field, name in (("value", "loss"), ("acc", "loss.acc")):
        if field not in view.state.metrics["loss"].series:
            continue
        here = view.series("loss", name, points, superseded=superseded)
        shown = there.get(name, {"x": [], "value": []})
        assert here == [(float(x), float(y)) for x, y in zip(shown["x"], shown["value"], strict=True)]
    desk.let_go()
    core.close()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    seed=st.integers(0, 1 << 32),
    unit=st.sampled_from([LINES, 10_000, 100_000]),
    points=st.sampled_from([1, 2, 7, 100, 1000]),
    long=st.booleans(),
)
def test_charts_of_a_hundred_million_points_are_those_of_a_plot_here(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    unit: int,
    points: int,
    long: bool,
) -> None:
    """All but a few windows of the points are superseded: only what lies in these is stored, and read."""
    rng = random.Random(seed)
    monkeypatch.setattr("ml_dash.server.engine.blocks._FULL_BYTES", 6_000 if long else 1 << 20)
    size = max(1, points // 2) * unit + rng.randrange(9 * unit)
    start = rng.randrange(2 * unit)
    end = start + size
    # At the ends of the range, across the ends of units, and anywhere. None touches another.
    around = [start, end, *(unit * rng.randrange(start // unit + 1, end // unit + 1) for _ in range(2))]
    around += [rng.randrange(start, end) for _ in range(2)]
    windows: list[tuple[int, int]] = []
    for low in sorted(max(0, place - rng.randrange(1500)) for place in around):
        if not windows or low > windows[-1][1]:
            windows.append((low, low + rng.randrange(1, 2800)))
    core = Server(tmp_path_factory.mktemp("core"))
    here = Sampling(start, end, points)
    assert here.unit >= unit
    # Within the windows some points are superseded as well.
    without = list(holes(windows, 0, end + 5000))
    for low in [rng.randrange(*window) for window in windows[::2]]:
        without = union(without, low, low + rng.randrange(1, 300))
    with core._changes.changing(NS, EXPERIMENT, "cv", "run") as change:
        for low, high in windows:
            values, others = noisy(rng.randrange(1 << 32), high - low), noisy(rng.randrange(1 << 32), high - low)
            pairs = enumerate(zip(values, others, strict=True), low)
            rows = [{"value": value, "acc": other, "step": index} for index, (value, other) in pairs]
            edits = Edits(points={"loss": [Points(low, rows, 1)]})
            change.open_blocks = {series_of("loss"): OpenBlock(low)}
            add(change.draft, edits, change.open_blocks)
            store_open(change.draft, change.open_blocks)
            for first, stop in holes(without, max(low, start), min(high, end)):
                here.add_rows(rows[first - low : stop - low], first)
        how = {"start": start, "end": end, "points": points, "field": None, "without": without}
        there = sample(change.draft, "loss", **how)  # type: ignore[arg-type]
    core.close()
    assert repr(there) == repr({series_name("loss", name): shown for name, shown in here.series().items()})
