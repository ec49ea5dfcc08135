"""What every sink of the fold must do: the same points and entries come back, under the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_dash.core.fold import fold
from ml_dash.core.names import metric_path
from ml_dash.core.state import Block, Edits, LogLine, State
from ml_dash.projection.checkpoint import Layout
from ml_dash.projection.folder import LOGS, Folder
from ml_dash.projection.lines import log_lines, point_lines, read_log, read_point
from ml_dash.reading.view import Memory
from tests.core.test_fold import A, B, canonical, histories, lines


class IntoMemory:
    """Lines kept by a reader."""

    def __init__(self, path: Path) -> None:
        self.sink = Memory()

    def lines(self, metric: str | None) -> bytes:
        found = self.sink.logs if metric is None else self.sink.metrics.get(metric, [])
        return b"".join(line + b"\n" for line in found)


class IntoFolder:
    """Lines written to the documented folder."""

    def __init__(self, path: Path) -> None:
        (path / "journal").mkdir()
        self.path = path / "folder"
        self.sink = Folder(self.path, path / "journal", Layout())
        self.sink.prepare()

    def lines(self, metric: str | None) -> bytes:
        path = self.path / (LOGS if metric is None else f"metrics/{metric_path(metric)}/data.jsonl")
        return path.read_bytes() if path.exists() else b""


SINKS = pytest.mark.parametrize("made", [IntoMemory, IntoFolder])


@SINKS
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=histories(), size=st.integers(1, 5))
def test_lines_are_those_of_the_fold_and_edits_are_cleared(
    made: Any, tmp_path_factory: pytest.TempPathFactory, history: dict[str, list[Any]], size: int
) -> None:
    target = made(tmp_path_factory.mktemp("sink"))
    state, edits, whole_state, whole = State(), Edits(), State(), Edits()
    for writer, events in history.items():
        for start in range(0, len(events), size):
            fold(state, writer, events[start : start + size], edits)
            target.sink.apply(edits)
            assert (edits.logs, edits.points) == ([], {})
        if events:
            fold(whole_state, writer, events, whole)
    expected = lines(whole)
    assert target.lines(None) == expected.pop("logs")
    for metric, content in expected.items():
        assert target.lines(metric) == content
        assert [read_point(line)["index"] for line in content.splitlines()] == list(range(state.metrics[metric].count))
    assert edits.metrics == whole.metrics
    assert canonical(state) == canonical(whole_state)


@SINKS
def test_what_is_dirty_stays_so_when_lines_were_applied(made: Any, tmp_path: Path) -> None:
    edits = Edits(metrics={"loss"}, released=["x"], parameters=True, files=True, experiment=True)
    made(tmp_path).sink.apply(edits)
    assert edits == Edits(metrics={"loss"}, released=["x"], parameters=True, files=True, experiment=True)


@SINKS
def test_points_of_two_writers_stand_in_one_series(made: Any, tmp_path: Path) -> None:
    target, state, edits = made(tmp_path), State(), Edits()
    for writer, number in ((A, 0), (B, 0), (A, 1)):
        fold(state, writer, [(number, 5, 10, ["../loss", {"value": 1}])], edits)
        target.sink.apply(edits)
    assert [read_point(line)["index"] for line in target.lines("../loss").splitlines()] == [0, 1, 2]


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.sampled_from(["NaN", "Infinity", "-Infinity"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=4), VALUES, min_size=1, max_size=3), min_size=1, max_size=4)


@settings(max_examples=100)
@given(ROWS)
def test_a_line_gives_back_every_value_bit_by_bit(rows: list[dict[str, Any]]) -> None:
    encoded = point_lines(Block(7, rows, 1_000_000_000))
    found = [read_point(line) for line in encoded.splitlines()]
    assert [point["index"] for point in found] == list(range(7, 7 + len(rows)))
    assert repr([point["data"] for point in found]) == repr(rows)
    assert encoded == b"".join(point_lines(Block(7 + n, [row], [1_000_000_000])) for n, row in enumerate(rows))


@settings(max_examples=50)
@given(ROWS, st.text())
def test_an_entry_gives_back_its_metadata_bit_by_bit(rows: list[dict[str, Any]], message: str) -> None:
    entries = [LogLine(number, 5, "info", message, row) for number, row in enumerate(rows)]
    found = [read_log(line) for line in log_lines(entries).splitlines()]
    assert repr([entry["metadata"] for entry in found]) == repr(rows)
    assert {entry["message"] for entry in found} == {message}
