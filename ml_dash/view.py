"""A consistent look at one experiment: the folded state, the folder's lines, and lines that are only in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from .errors import Damaged, InvalidValue, NotFound
from .fold import Edits, Metric, State
from .names import check_prefix, metric_path
from .projection.checkpoint import LINES_PER_MARK, Layout, LineFile
from .projection.folder import LOGS
from .projection.lines import log_lines, point_lines, read_log, read_point
from .records import (
    ExperimentRecord,
    FileRecord,
    LogEntry,
    LogPage,
    MetricStats,
    MetricSummary,
    Point,
    PointPage,
    experiment_document,
    file_record,
    files_in_order,
    live_files,
    log_page,
    metric_stats,
    metric_summary,
    parameters_document,
    point_page,
    series_name,
)  # fmt: skip

MAX_LIMIT: Final = 10_000


class Memory:
    """A sink that keeps lines: what a reader has folded beyond the documented folder."""

    def __init__(self) -> None:
        self.logs: list[bytes] = []
        self.metrics: dict[str, list[bytes]] = {}

    def apply(self, edits: Edits) -> None:
        """Keep the lines of some edits."""
        if edits.logs:
            self.logs += log_lines(edits.logs).splitlines()
        for name, blocks in edits.points.items():
            lines = self.metrics.setdefault(name, [])
            for block in blocks:
                lines += point_lines(block).splitlines()
        edits.clear()


class View:
    """A consistent look at one experiment: the state, the folder's lines, and the lines beyond them in memory."""

    def __init__(self, state: State, layout: Layout, folder: Path, memory: Memory, *, fold_case: bool) -> None:
        self.state = state
        self._layout = layout
        self._folder = folder
        self._memory = memory
        self._fold_case = fold_case

    def record(self) -> ExperimentRecord:
        """The mapping that `experiment.json` holds."""
        return experiment_document(self.state)

    def parameters(self) -> dict[str, Any]:
        """Flat parameters, in the order of first setting, values as they were set."""
        return parameters_document(self.state)

    def logs(self, start_index: int = 0, limit: int = 1000, level: str | None = None) -> LogPage:
        """A page of log entries. With `level` only entries of that level count; `start_index` counts those then."""
        check_limit(limit)
        total = self.state.logs
        if level is not None:
            return self._logs_of(level, start_index, limit)
        start = _start(start_index, total)
        lines = self._lines(self._folder / LOGS, self._layout.logs, self._memory.logs, start, min(total, start + limit))
        entries = [read_log(line) for line in lines]
        if entries and entries[0]["sequenceNumber"] != start:
            raise Damaged(f"{self._folder / LOGS} does not hold entry {start} where it should")
        return log_page(entries, start, more=start + len(entries) < total)

    def _logs_of(self, level: str, start_index: int, limit: int) -> LogPage:
        matching = [entry for entry in self.each_log() if entry["level"] == level]
        start = _start(start_index, len(matching))
        return log_page(matching[start : start + limit], start, more=start + limit < len(matching))

    def each_log(self) -> Iterator[LogEntry]:
        """All log entries, in flat memory."""
        for start in range(0, self.state.logs, MAX_LIMIT):
            yield from self.logs(start, MAX_LIMIT)["logs"]

    def metrics(self) -> list[MetricSummary]:
        """All metrics, by name."""
        return [metric_summary(self.state, metric) for _, metric in sorted(self.state.metrics.items())]

    def metric_page(self, name: str, start_index: int = 0, limit: int = 1000) -> PointPage:
        """A page of points; empty for an unknown metric."""
        check_limit(limit)
        metric = self.state.metrics.get(name)
        if metric is None:
            return point_page([], max(0, start_index), more=False)
        start = _start(start_index, metric.count)
        stop = min(metric.count, start + limit)
        path = self._folder / "metrics" / metric_path(name, fold_case=self._fold_case) / "data.jsonl"
        known = self._layout.metrics.get(name, LineFile())
        points = [read_point(line) for line in self._lines(path, known, self._memory.metrics.get(name, []), start, stop)]
        if points and points[0]["index"] != start:
            raise Damaged(f"{path} does not hold point {start} where it should")
        return point_page(points, start, more=start + len(points) < metric.count)

    def each_point(self, name: str) -> Iterator[Point]:
        """All points of a metric, in flat memory."""
        metric = self.state.metrics.get(name)
        for start in range(0, metric.count if metric is not None else 0, MAX_LIMIT):
            yield from self.metric_page(name, start, MAX_LIMIT)["data"]

    def metric_stats(self, name: str) -> MetricStats:
        """Totals, times and the statistics of each series. Raises NotFound for an unknown metric."""
        return metric_stats(self.state, self._metric(name))

    def _metric(self, name: str) -> Metric:
        metric = self.state.metrics.get(name)
        if metric is None:
            raise NotFound(f"metric {name!r} has no points in {self.state.project}/{self.state.name}")
        return metric

    def files(self, *, deleted: bool = False, prefix: str = "", tags: list[str] | None = None) -> list[FileRecord]:
        """Files that are listed, oldest first; with `deleted` all that ever were."""
        if deleted:
            return [file_record(self.state, file) for file in files_in_order(self.state)]
        return [file_record(self.state, file) for file in live_files(self.state, check_prefix(prefix), tags)]

    def series(self, name: str, series: str | None = None, max_points: int = 1000) -> list[tuple[float, float]]:
        """(x, y) of one series; x is `step`, else `epoch`, else the index. Keeps minima and maxima when thinning."""
        metric = self._metric(name)
        field = next((field for field in metric.series if series_name(name, field) == (series or name)), None)
        if field is None:
            raise NotFound(f"metric {name!r} has no series {series or name!r}; it has {sorted(metric.series)}")
        bucket = max(1, -(-metric.count * 2 // max(2, max_points)))
        thinned: list[tuple[float, float]] = []
        waiting: list[tuple[float, float]] = []
        for point in self.each_point(name):
            y = point["data"].get(field)
            if isinstance(y, (int, float)) and not isinstance(y, bool) and y == y:
                waiting.append((_x(point), float(y)))
            if len(waiting) == bucket:
                thinned += _extremes(waiting)
                waiting = []
        return thinned + _extremes(waiting)

    def _lines(self, path: Path, known: LineFile, memory: list[bytes], start: int, stop: int) -> list[bytes]:
        found: list[bytes] = []
        if start < known.lines:
            found = _file_lines(path, known, start, min(stop, known.lines))
        if stop > known.lines:
            found += memory[max(0, start - known.lines) : stop - known.lines]
        return found


def _extremes(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= 2:
        return points
    low, high = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
    return sorted({points.index(low): low, points.index(high): high}.values(), key=points.index)


def _x(point: Point) -> float:
    for key in ("step", "epoch"):
        x = point["data"].get(key)
        if isinstance(x, (int, float)) and not isinstance(x, bool) and x == x:
            return float(x)
    return float(point["index"])


def _file_lines(path: Path, known: LineFile, start: int, stop: int) -> list[bytes]:
    """Lines [start, stop) of a file, read from the last mark before them."""
    first = start // LINES_PER_MARK
    last = -(-stop // LINES_PER_MARK)
    begin = known.marks[first]
    end = known.marks[last] if last < len(known.marks) else known.size
    try:
        with path.open("rb") as file:
            file.seek(begin)
            lines = file.read(end - begin).splitlines()
    except FileNotFoundError:
        raise Damaged(f"{path} is not there", hint="run: ml-dash rebuild") from None
    skip = start - first * LINES_PER_MARK
    return lines[skip : skip + stop - start]


def _start(start_index: int, total: int) -> int:
    return max(0, total + start_index) if start_index < 0 else start_index


def check_limit(limit: int) -> int:
    """Pages have 1 to 10,000 entries."""
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_LIMIT:
        raise InvalidValue(f"limit is {limit!r}", hint=f"use 1 to {MAX_LIMIT:,}; read longer series page by page")
    return limit
