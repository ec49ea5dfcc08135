"""Rewinds: which points are current, and what their statistics are, against a plain loop over all of them."""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from ml_dash.core import events as ev
from ml_dash.core import rewinds
from ml_dash.core.fold import fold
from ml_dash.core.ranges import holes, page_of, size_of, windows
from ml_dash.core.records import metric_stats
from ml_dash.core.rewinds import Elsewhere, recount
from ml_dash.core.state import Edits, Metric, Reach, State
from ml_dash.core.times import utc_text
from ml_dash.core.upgrade import upgrade
from ml_dash.projection.checkpoint import Layout
from ml_dash.projection.folder import Folder
from ml_dash.projection.lines import read_point
from ml_dash.reading.view import Memory
from tests.core.test_fold import canonical

WRITERS: Final = ("aa" * 16, "bb" * 16, "cc" * 16)
OPENING: Final = (ev.OPEN, {"project": "p", "name": "n", "folderPath": "p/n"})
Events = list[tuple[int, int, int, Any]]


# -- the plain loop ---------------------------------------------------------------------------------------------------


def plainly(histories: dict[str, Events], lines: dict[str, list[bytes]]) -> dict[str, tuple[list[int], dict[str, Any]]]:
    """Metric → (indices of its current points, statistics of those by series)."""
    span = {writer: (min(e[2] for e in events), max(e[2] for e in events)) for writer, events in histories.items()}
    found: list[tuple[int, str, float, Any, int]] = []
    counted: Counter[Any] = Counter()
    stated = sorted(
        (time, writer, body["step"], tuple(sorted(set(body.get("metrics") or ()))) or None)
        for writer, events in histories.items()
        for _, kind, time, body in events
        if kind == ev.REWIND
    )
    for time, writer, step, names in stated:
        nth = counted[writer, step, names]
        counted[writer, step, names] += 1
        beside = [
            before
            for before, other, same, what, number in found
            if (same, what, number) == (step, names, nth) and other != writer and span[other][1] > span[writer][0]
        ]
        found.append((min([time, *beside]), writer, step, names, nth))
    result = {}
    for name, stored in lines.items():
        current, values = [], list[Any]()
        for point in map(read_point, stored):
            place = point["data"].get("step")
            if not _is_number(place) or place != place:
                place = point["data"].get("epoch")
            known = isinstance(place, (int, float)) and not isinstance(place, bool) and place == place
            if not any(
                known and place is not None and place >= step and point["createdAt"] < utc_text(before)
                for before, _, step, names, _ in found
                if names is None or name in names
            ):
                current.append(point["index"])
                values += [point["data"]["value"]] if _is_number(point["data"].get("value")) else []
        result[name] = (current, _statistics(name, values))
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _statistics(name: str, values: list[Any]) -> dict[str, Any]:
    if not values:
        return {}
    rest = [value for value in values if value == value]
    total = 0.0
    for value in rest:
        total += float(value)
    numbers = (len(values), values[0], values[-1], min(rest, default=None), max(rest, default=None))
    mean = total / len(rest) if rest else None
    return {name: dict(zip(("count", "first", "last", "min", "max", "mean"), (*numbers, mean), strict=True))}


# -- random histories -------------------------------------------------------------------------------------------------


def history(rng: random.Random, writers: int, length: int) -> dict[str, Events]:
    """What some writers wrote, in sessions that overlap or do not; times of rewinds are whole microseconds."""
    histories: dict[str, Events] = {}
    for writer in WRITERS[:writers]:
        now = rng.randrange(1, 400) * 1000
        events: Events = [(0, *_at(now, OPENING))]
        step = rng.randrange(5)
        for number in range(1, rng.randrange(2, length)):
            now += rng.randrange(0, 4000)
            chance = rng.random()
            if chance < 0.08:
                target = rng.choice((0, 2, 5, 5, 5.0, 30, 1e9))
                body: dict[str, Any] = {"step": target}
                if rng.random() < 0.3:
                    body["metrics"] = rng.choice((["loss"], ["acc", "loss"], ["later"], ["loss", "loss"]))
                now = (now // 1000 + 1) * 1000
                events.append((number, ev.REWIND, now, body))
                step = int(min(target, 50))
            elif chance < 0.2:
                rows = [_row(rng, step + i) for i in range(rng.randrange(1, 12))]
                events.append((number, ev.ROWS, now, [rng.choice(("loss", "acc")), rows]))
                step += len(rows)
            elif chance < 0.3:
                count = rng.randrange(1, 25)
                columns = [[rng.random() for _ in range(count)], [step + i for i in range(count)]]
                events.append((number, ev.POINTS, now, ["loss", ["value", "step"], columns]))
                step += count
            elif chance < 0.9:
                events.append((number, ev.POINT, now, [rng.choice(("loss", "acc", "later")), _row(rng, step)]))
                step += 1
            else:
                events.append((number, ev.LOG, now, ["info", "x", None]))
        histories[writer] = events
    return histories


def _at(now: int, event: tuple[int, Any]) -> tuple[int, int, Any]:
    return event[0], now, event[1]


def _row(rng: random.Random, step: int) -> dict[str, Any]:
    value = rng.choice((rng.random(), rng.randrange(9), math.nan, math.inf, "NaN", None))
    row = {"value": value}
    place = rng.choice(("step", "step", "step", "epoch", "both", "nan", "text", "none", "float"))
    if place in ("step", "epoch"):
        row[place] = step
    elif place == "both":
        row |= {"step": step, "epoch": 0}
    elif place == "nan":
        row |= {"step": math.nan, "epoch": step}
    elif place == "text":
        row |= {"step": "7", "epoch": True}
    elif place == "float":
        row["step"] = step + 0.5
    return row


def stretches(rng: random.Random, histories: dict[str, Events], *, mixed: bool) -> list[tuple[str, Events]]:
    """The histories in parts, each writer's in its order unless `mixed`."""
    queues = {}
    for writer, events in histories.items():
        cuts = sorted({0, len(events), *(rng.randrange(len(events)) for _ in range(rng.randrange(6)))})
        queues[writer] = [events[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    if mixed:
        parts = [(writer, part) for writer, queue in queues.items() for part in queue]
        rng.shuffle(parts)
        return parts
    found = []
    while any(queues.values()):
        writer = rng.choice([writer for writer, queue in queues.items() if queue])
        found.append((writer, queues[writer].pop(0)))
    return found


def folded(parts: list[tuple[str, Events]], sink: Any) -> State:
    state, edits = State(), Edits()
    for writer, events in parts:
        fold(state, writer, copy.deepcopy(events), edits)
        sink.apply(edits)
        recount(state, edits, sink.history)
        assert edits.rewound == {}
    return state


def compared(state: State, histories: dict[str, Events], sink: Memory) -> dict[str, set[str]]:
    """Raises AssertionError unless the state says what the plain loop does; metric → its current points."""
    kept = {}
    for name, (current, series) in plainly(histories, sink.metrics).items():
        metric, stats = state.metrics[name], metric_stats(state, state.metrics[name])
        found = [index for start, end in holes(metric.superseded, 0, metric.count) for index in range(start, end)]
        assert found == current, name
        assert stats["supersededDataPoints"] == metric.count - len(current)
        assert repr({key: value for key, value in stats["series"].items() if key == name}) == repr(series), name
        kept[name] = {repr(read_point(sink.metrics[name][i])["data"]) for i in current}
    return kept


@pytest.fixture
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewinds, "SPAN", 4)


@pytest.mark.parametrize("seed", range(150))
def test_current_points_and_their_statistics_are_those_of_a_plain_loop(seed: int, small_spans: None) -> None:
    rng = random.Random(f"rewinds:{seed}")
    histories = history(rng, rng.randrange(1, 4), rng.choice((8, 30, 80)))
    outcomes = []
    for mixed in (False, False, True):
        sink = Memory()
        state = folded(stretches(rng, histories, mixed=mixed), sink)
        assert state.malformed == 0
        outcomes.append(compared(state, histories, sink))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("seed", range(40))
def test_the_state_is_the_same_whatever_the_stretches(seed: int, small_spans: None) -> None:
    """What arrives in the same order, in other parts, gives the same spans, ranges and sums."""
    rng = random.Random(f"parts:{seed}")
    histories = history(rng, rng.randrange(1, 4), 60)
    arrival = stretches(rng, histories, mixed=rng.random() < 0.5)
    finer = [(writer, [event]) for writer, events in arrival for event in events]
    assert canonical(folded(arrival, Memory())) == canonical(folded(finer, Memory()))


@pytest.mark.parametrize("seed", range(15))
def test_a_folder_and_memory_behind_it_say_the_same(seed: int, tmp_path: Path, small_spans: None) -> None:
    rng = random.Random(f"folder:{seed}")
    histories = history(rng, 2, 60)
    parts = stretches(rng, histories, mixed=True)
    (tmp_path / "journal").mkdir()
    folder = Folder(tmp_path / "folder", tmp_path / "journal", Layout())
    folder.prepare()
    half = len(parts) // 2
    state, edits, memory = State(), Edits(), Memory(folder)
    for number, (writer, events) in enumerate(parts):
        sink: Any = folder if number < half else memory
        fold(state, writer, copy.deepcopy(events), edits)
        sink.apply(edits)
        recount(state, edits, sink.history)
    assert canonical(state) == canonical(folded(parts, Memory()))


# -- what a rewind costs ----------------------------------------------------------------------------------------------


def points(number: int, time: int, start: int, end: int, name: str = "loss") -> tuple[int, int, int, Any]:
    steps = list(range(start, end))
    return number, ev.POINTS, time, [name, ["value", "step"], [list(map(float, steps)), steps]]


class Counting(Memory):
    """Counts the points that are read again."""

    read = 0

    def history(self, name: str, start: int, end: int) -> Any:
        self.read += end - start
        return super().history(name, start, end)


def resumed(*more: tuple[int, int, int, Any], size: int = 100_000) -> tuple[State, Counting]:
    sink = Counting()
    return folded([(WRITERS[0], [points(0, 1000, 0, size)]), *((WRITERS[0], [event]) for event in more)], sink), sink


@pytest.mark.parametrize("step", [100_000, 1e9])
def test_a_rewind_that_hits_nothing_reads_nothing(step: float) -> None:
    state, sink = resumed((1, ev.REWIND, 2000, {"step": step}))
    assert sink.read == 0
    assert state.metrics["loss"].superseded == []


@pytest.mark.parametrize(("hit", "most"), [(1, 1000), (900, 1000), (5000, 2000), (50_500, 16_000), (100_000, 0)])
def test_what_is_read_again_is_near_to_what_is_hit(hit: int, most: int) -> None:
    state, sink = resumed((1, ev.REWIND, 2000, {"step": 100_000 - hit}))
    assert sink.read <= most
    assert state.metrics["loss"].superseded == [(100_000 - hit, 100_000)]


def test_the_same_step_again_reads_nothing_more() -> None:
    state, sink = resumed((1, ev.REWIND, 2000, {"step": 50_000}), (2, ev.REWIND, 3000, {"step": 50_000}))
    before = sink.read
    folded_again = resumed((1, ev.REWIND, 2000, {"step": 50_000}))[1]
    assert before == folded_again.read
    assert state.metrics["loss"].superseded == [(50_000, 100_000)]


def test_the_spans_of_a_long_metric_are_few() -> None:
    state, _ = resumed(size=1_000_000)
    spans = state.metrics["loss"].spans
    assert len(spans) < 60
    assert [span.end for span in spans] == sorted({span.end for span in spans})
    assert spans[-1].end == 1_000_000


def test_other_metrics_than_those_named_stay() -> None:
    rewind = (2, ev.REWIND, 2000, {"step": 5, "metrics": ["acc"]})
    state = folded([(WRITERS[0], [points(0, 1000, 0, 10), points(1, 1000, 0, 10, "acc"), rewind])], Memory())
    assert state.metrics["loss"].superseded == []
    assert state.metrics["acc"].superseded == [(5, 10)]


def test_ranks_that_say_the_same_one_after_the_other_take_nothing_from_each_other() -> None:
    first, second = WRITERS[:2]
    before = [(0, *_at(1000, OPENING)), points(1, 1000, 0, 10)]
    rank = [(0, *_at(10_000, OPENING)), (1, ev.REWIND, 11_000, {"step": 5}), points(2, 12_000, 5, 8)]
    rank.append(points(3, 30_000, 8, 9))
    other = [(0, *_at(10_500, OPENING)), (1, ev.REWIND, 20_000, {"step": 5}), points(2, 21_000, 5, 6, "acc")]
    for parts in (
        [(WRITERS[2], before), (first, rank), (second, other)],
        [(second, other), (first, rank), (WRITERS[2], before)],
        [(WRITERS[2], before), (first, rank[:3]), (second, other), (first, rank[3:])],
    ):
        state = folded(parts, Memory())
        assert size_of(state.metrics["loss"].superseded) == 5
        assert state.metrics["acc"].superseded == []


def test_one_that_began_when_the_other_had_ended_supersedes_what_that_has_recorded() -> None:
    first, second = WRITERS[:2]
    rank = [(0, *_at(10_000, OPENING)), (1, ev.REWIND, 11_000, {"step": 5}), points(2, 12_000, 5, 8)]
    later = [(0, *_at(12_000, OPENING)), (1, ev.REWIND, 13_000, {"step": 5}), points(2, 14_000, 5, 6)]
    state = folded([(first, rank), (second, later)], Memory())
    assert state.metrics["loss"].superseded == [(0, 3)]


@pytest.mark.parametrize("body", [
    None, {}, {"step": -1}, {"step": math.nan}, {"step": math.inf}, {"step": "5"}, {"step": True}, {"step": None},
    {"step": 1, "metrics": []}, {"step": 1, "metrics": "loss"}, {"step": 1, "metrics": [5]},
    {"step": 1, "metrics": [""]},
])  # fmt: skip
def test_a_rewind_that_no_caller_can_have_recorded_changes_nothing(body: Any) -> None:
    state = folded([(WRITERS[0], [points(0, 1000, 0, 10), (1, ev.REWIND, 2000, body)])], Memory())
    assert state.malformed == 1
    assert state.rewinds == []
    assert state.metrics["loss"].superseded == []


def test_what_is_elsewhere_leaves_the_statistics_as_they_were_and_says_so() -> None:
    class Away(Memory):
        def history(self, name: str, start: int, end: int) -> Any:
            raise Elsewhere

    state = folded([(WRITERS[0], [points(0, 1000, 0, 10), (1, ev.REWIND, 2000, {"step": 5})])], Away())
    stats = metric_stats(state, state.metrics["loss"])
    assert (stats["superseded"], stats["supersededElsewhere"]) == ([], True)
    assert stats["series"]["loss"]["count"] == 10


def test_a_state_of_version_1_is_read_again_from_its_beginning() -> None:
    sink = Memory()
    state = folded([(WRITERS[0], [points(0, 1000, 0, 2500)])], sink)
    expected = canonical(state.metrics["loss"].series)
    state.metrics["loss"].spans, state.metrics["loss"].reach = [], Reach()
    upgrade(state, 1)
    assert [span.end for span in state.metrics["loss"].spans] == [2500]
    edits = Edits()
    fold(state, WRITERS[0], [(1, ev.REWIND, 2000, {"step": 2000})], edits)
    recount(state, edits, sink.history)
    assert state.metrics["loss"].superseded == [(2000, 2500)]
    assert rewinds.last_step(state) == 1999
    assert canonical(state.metrics["loss"].series) != expected


def test_the_last_step_is_that_of_what_is_current() -> None:
    assert rewinds.last_step(State()) is None
    state, _ = resumed((1, ev.REWIND, 2000, {"step": 200}), size=1500)
    assert rewinds.last_step(state) == 199
    state, _ = resumed((1, ev.REWIND, 2000, {"step": 0}), size=1500)
    assert rewinds.last_step(state) is None
    state.metrics["other"] = Metric("other", 1, reach=Reach(1, 7, 7))
    assert rewinds.last_step(state) == 7


# -- pages of what is current -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_pages_hold_what_the_ranges_do(seed: int) -> None:
    rng = random.Random(f"pages:{seed}")
    bounds = sorted(rng.sample(range(60), 2 * rng.randrange(1, 8)))
    ranges = list(zip(bounds[::2], bounds[1::2], strict=True))
    numbers = [number for start, end in ranges for number in range(start, end)]
    assert size_of(ranges) == len(numbers)
    for _ in range(20):
        start, limit = rng.randrange(-70, 70), rng.randrange(1, 70)
        chosen = [number for low, high in page_of(ranges, start, limit) for number in range(low, high)]
        if start >= 0:
            assert chosen == [number for number in numbers if number >= start][:limit]
        else:
            assert chosen == numbers[start:][:limit] if -start <= len(numbers) else numbers[:limit]
    for size in (1, 7, 100):
        parts = list(windows(ranges, size))
        assert [number for part in parts for low, high in part for number in range(low, high)] == numbers
        places = [{number // size for low, high in part for number in range(low, high)} for part in parts]
        assert all(len(place) == 1 for place in places)
        assert len(set().union(*places)) == len(parts)
