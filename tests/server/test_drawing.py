"""Series drawn from stored blocks: the same as the envelope of all points, whatever is stored where."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_dash.core import events as ev
from ml_dash.core.envelope import Drawn, Envelope, points_as_columns
from ml_dash.core.ranges import holes
from ml_dash.reading.source import SeriesRequest
from ml_dash.server.engine.services import Server
from ml_dash.server.engine.source import ServerSource
from tests.server.sending import EXPERIMENT, NS, SegmentBytes, send

COUNT = 24_500
# Chunks, full blocks and an open one, all of which are cut by this.
REWOUND = 15_700


def value_of(name: str, number: int) -> float:
    if name == "odd" and (number % 7_919 == 5 or 3_000 <= number < 3_060):
        return math.nan if number % 2 else math.inf
    return math.sin(number / 300) + (50 if number == 12_345 else 0)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("core"))
    sheet = SegmentBytes().opens()
    for name in ("clean", "odd"):
        for start in range(0, COUNT, 500):
            numbers = range(start, min(COUNT, start + 500))
            sheet.add(
                ev.POINTS, [name, ["step", "value"], [[2 * n for n in numbers], [value_of(name, n) for n in numbers]]]
            )
    for number in range(0, 3_000):
        row: dict[str, Any] = {"epoch": number // 3, "rank": number % 3}
        sheet.add(ev.ROWS, ["sparse", [row if number % 4 else {**row, "value": float(number)}]])
    sheet.add(ev.REWIND, {"step": 2 * REWOUND, "metrics": ["odd"]})
    for number in range(REWOUND, REWOUND + 800):
        sheet.add(ev.POINT, ["odd", {"step": 2 * number, "value": -1.0}])
    send(server, sheet)
    server.archiver.wait()
    # The plain points are read once.
    server.metric_page = functools.cache(server.metric_page)
    yield server
    server.close()


pytestmark = pytest.mark.leaks("the server of the module lives longer than one test")


def plain(core: Server, request: SeriesRequest) -> Drawn:
    """The envelope of all points, each read by itself."""
    points, superseded = [], []
    start, more = 0, True
    while more:
        page = json.loads(core.metric_page(NS, EXPERIMENT, request.metric, start, 10_000))
        points += page["data"]
        start, more = page["endIndex"] + 1, page["hasMore"]
    stats = core.metric_stats(NS, EXPERIMENT, request.metric)
    if not request.superseded and stats["supersededDataPoints"]:
        current = [point["index"] for point in _current(core, request.metric)]
        wanted = set(current)
        superseded = [(index, index + 1) for index in range(len(points)) if index not in wanted]
    kept: list[tuple[int, float, float]] = []
    for start, end in holes(superseded, 0, len(points)):
        for point in points[start:end]:
            x, value = x_of(request.x, point), point["data"].get("value")
            if (
                value is None
                or (request.low is not None and x < request.low)
                or (request.high is not None and x > request.high)
            ):
                continue
            kept.append((point["index"], x, float(value)))
    if request.low is None and request.high is None:
        pieces = list(holes(superseded, 0, len(points)))
        low, high = pieces[0][0], pieces[-1][1]
    else:
        low, high = (kept[0][0], kept[-1][0] + 1) if kept else (0, 0)
    envelope = Envelope(low, high, request.points)
    if kept:
        columns, marks = points_as_columns(*map(list, zip(*kept, strict=True)))
        envelope.add(columns)
        envelope.mark(marks)
    return envelope.drawn()


def _current(core: Server, metric: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    start, more = 0, True
    while more:
        page = json.loads(core.metric_page(NS, EXPERIMENT, metric, start, 10_000, superseded=False))
        found += page["data"]
        start, more = page["endIndex"] + 1, page["hasMore"]
    return found


def x_of(kind: str, point: dict[str, Any]) -> float:
    return point["index"] if kind == "index" else point["data"].get("step", point["data"].get("epoch"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metric=st.sampled_from(["clean", "odd", "sparse"]),
    points=st.sampled_from([1, 7, 20, 100, 400, 3_000, 40_000]),
    bounds=st.one_of(st.none(), st.tuples(st.integers(-5, 2 * COUNT), st.integers(0, 2 * COUNT))),
    superseded=st.booleans(),
    x=st.sampled_from(["step", "index"]),
)
def test_summaries_say_what_the_points_say(
    core: Server, metric: str, points: int, bounds: tuple[int, int] | None, superseded: bool, x: str
) -> None:
    low, length = bounds if bounds is not None else (None, 0)
    high = None if low is None else low + length
    request = SeriesRequest((EXPERIMENT,), metric, points, x, low, high, superseded=superseded)
    (drawn,) = ServerSource(core, NS).compare_series(request).series
    expected = plain(core, request)
    for name in ("index", "x", "low", "high", "total", "breaks"):
        assert getattr(drawn, name) == getattr(expected, name), name
    assert [mark[1:] for mark in drawn.marks] == [mark[1:] for mark in expected.marks]
