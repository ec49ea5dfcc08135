"""A consistent view of one experiment: the folded state, the folder's lines, and lines still in memory."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast

from ..core.limits import MAX_LIMIT
from ..core.names import check_prefix, level_of
from ..core.ranges import bounds, holes, page_of, windows
from ..core.records import (
    ExperimentRecord,
    FileRecord,
    LogEntry,
    LogPage,
    MetricStats,
    MetricSummary,
    Point,
    PointPage,
    all_series,
    experiment_document,
    file_record,
    files_in_order,
    live_files,
    log_page,
    metric_meant,
    metric_stats,
    metric_summary,
    parameters_document,
    point_page,
    series_name,
)  # fmt: skip
from ..core.rewinds import Past, last_step
from ..core.sampling import Sampling
from ..core.state import Edits, File, Metric, State
from ..disk.settings import DEFAULT_LOCAL_PATH
from ..errors import Damaged, InvalidValue, JournalError, NotFound, ReleasedData
from ..journal import base as bases
from ..journal.merge import OrderChanged
from ..projection.checkpoint import LINES_PER_MARK, Checkpoint, LineFile
from ..projection.folder import LOGS, Folder, FolderChanged, file_lines
from ..projection.lines import log_lines, point_lines, read_log, read_point, read_points
from ..projection.projector import Projector
from ..projection.replay import Replay
from ..projection.start import begin

log = logging.getLogger("ml_dash")

_TRIES: Final = 3
# What reading raises where a user has edited or removed lines, or another process is rewriting them.
_UNREADABLE: Final = (OSError, ValueError, LookupError, TypeError, AttributeError, Damaged)
_Entry = TypeVar("_Entry", LogEntry, Point)


class Memory:
    """A sink that keeps lines in memory: those that a reader has folded beyond the documented folder."""

    def __init__(self, folder: Folder | None = None) -> None:
        self._folder = folder
        self.logs: list[bytes] = []
        self.metrics: dict[str, list[bytes]] = {}

    def apply(self, edits: Edits) -> None:
        """Keep the lines of edits, and clear them."""
        if edits.logs:
            self.logs += log_lines(edits.logs).splitlines()
        for name, blocks in edits.points.items():
            lines = self.metrics.setdefault(name, [])
            for block in blocks:
                lines += point_lines(block).splitlines()
        edits.clear()

    def history(self, name: str, start: int, end: int) -> Iterator[Past]:
        """Yield points [start, end) of a metric, in parts. Raises Elsewhere and FolderChanged."""
        known = self._folder.layout.metrics.get(name) if self._folder is not None else None
        behind = known.lines if known is not None else 0
        if self._folder is not None and start < behind:
            yield from self._folder.history(name, start, min(end, behind))
        if end > behind:
            start = max(start, behind)
            yield read_points(b"\n".join(self.metrics[name][start - behind : end - behind]), start)


def look(journal: Path, folder: Path, checkpoint: Checkpoint) -> View:
    """Return a view of a checkpoint's state and the folder, with all later events folded in memory.

    Raises OrderChanged if the checkpoint does not fit the journal, or not any more.
    """
    return _look(journal, folder, checkpoint, lambda: look_anew(journal, folder))


def _look(journal: Path, folder: Path, checkpoint: Checkpoint, again: Callable[[], View]) -> View:
    documented = Folder(folder, journal, checkpoint.layout)
    memory = Memory(documented)
    replay = Replay(journal, checkpoint)
    try:
        replay.catch_up(memory, record=False)
    except FolderChanged as error:
        raise OrderChanged(folder) from error
    if bases.identity_of(journal) != checkpoint.base:
        # Segments may have been removed while they were read; another base stands for them now.
        raise OrderChanged(journal)
    return View(replay.state, documented, memory, again, replay)


def look_anew(journal: Path, folder: Path) -> View:
    """Return a view of an experiment from its journal alone, for a folder that is missing or was changed.

    Of the folder only lines are used that a base has kept there, if they are still the same. Raises JournalError if
    there is a base that cannot be used.
    """
    for _ in range(_TRIES - 1):
        try:
            return _look(journal, folder, begin(journal, folder), lambda: _look_at_journal(journal, folder))
        except OrderChanged:
            continue
    return _look(journal, folder, begin(journal, folder), lambda: _look_at_journal(journal, folder))


def _look_at_journal(journal: Path, folder: Path) -> View:
    """Return a view without anything from the folder, which changed between being checked and being read."""
    return _look(journal, folder, begin(journal), lambda: _look_at_journal(journal, folder))


def projected(projector: Projector) -> View:
    """Return a view of what a projector has written into the folder; hold its `guard` while reading from the view.

    If the folder turns out to be wrong, the projector writes it again; if it cannot, the journal alone is read.
    """

    def again() -> View:
        return projected(projector) if projector.mend() else look_anew(projector.journal, projector.folder_path)

    return View(projector.state, projector.folder, Memory(projector.folder), again)


def nearest(text: str, names: Iterable[str]) -> str:
    """Return the names similar to a text, as the beginning of a hint; empty if there are none."""
    from difflib import get_close_matches

    similar = get_close_matches(text, dict.fromkeys(names), n=3)
    return f"did you mean {' or '.join(map(repr, similar))}? " if similar else ""


# Folders for which the warning below was logged by this process.
_warned: set[str] = set()


def _warn_of_missing_start(folder: Path, what: str, first: int) -> None:
    """Warn, once for each experiment, that the first part of what was asked for is not on this machine."""
    if str(folder) not in _warned:
        _warned.add(str(folder))
        log.warning(
            "ml-dash: %s before number %d of %s are not on this machine (gc, or a pull of the state only); the server "
            "has them: read them there, or run ml-dash pull", what, first, folder,
        )  # fmt: skip


def released(state: State, journal: Path, folder: Path, what: str) -> ReleasedData:
    """Return the error for data that only a server has."""
    try:
        base = bases.load(journal)
    except (OSError, JournalError):
        base = None
    remotes = sorted({stood.remote for stood in base.segments.values() if stood.remote}) if base is not None else []
    name = f"{state.project}/{state.name}"
    where = "" if folder.parents[1].name == DEFAULT_LOCAL_PATH else f" --path {shlex.quote(str(folder.parents[1]))}"
    remote = f" --remote {remotes[0]}" if remotes else " --remote URL"
    return ReleasedData(
        f"{what} in {name}: not on this machine any more (gc, or a pull of the state alone); "
        f"{remotes[0] if remotes else 'its server'} has it",
        hint=f"read it with --remote, or bring it here: ml-dash pull {shlex.quote(name)}{remote}{where}",
    )


class Lines(NamedTuple):
    """Where the lines of the logs or of a metric are at one moment: in a file up to `known.lines`, then in memory.

    Any thread may read, also while the view goes on: lines only come after `total`.
    """

    path: Path
    known: LineFile
    memory: list[bytes]
    total: int

    def read(self, start: int, stop: int) -> bytes:
        """Return lines [start, stop), each with its end. Raises OSError or Damaged if the file lacks some.

        What the lines say is for the caller to check: somebody may have edited the file.
        """
        known, here = self.known, bytearray()
        if start < min(stop, known.lines):
            here += _bytes_of(self.path, known, start, min(stop, known.lines))
        for line in self.memory[max(0, start - known.lines) : max(0, stop - known.lines)]:
            here += line
            here += b"\n"
        return bytes(here)


def _bytes_of(path: Path, known: LineFile, start: int, stop: int) -> bytes:
    """Return lines [start, stop) of a file as they are. Raises OSError, Damaged."""
    if start < known.first:
        raise Damaged(f"{path} begins with line {known.first:,}, and line {start:,} was asked for")
    mark, number = known.mark_before(start)
    behind, last = known.mark_before(stop + LINES_PER_MARK - 1)
    offset = known.marks[mark]
    is_marked = behind < len(known.marks)
    end = known.marks[behind] if is_marked else known.size
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(end - offset)
    if len(data) < end - offset:
        raise Damaged(f"{path} is shorter than what was written to it")
    if start == number and stop == (last if is_marked else known.lines):
        return data
    lines = data.splitlines(keepends=True)[start - number : stop - number]
    if len(lines) < stop - start:
        raise Damaged(f"{path} has fewer lines than were written to it")
    return b"".join(lines)


class View:
    """A consistent view of one experiment: the state, the folder's lines, and the lines beyond them in memory.

    If the folder does not hold what it should (a user edits it, or it is being rebuilt), `again` returns the view to
    read from instead. For one thread at a time.
    """

    def __init__(
        self, state: State, folder: Folder, memory: Memory, again: Callable[[], View], replay: Replay | None = None
    ) -> None:
        self.state = state
        # What folded the state, where it can go on (see `forward`).
        self._replay = replay
        self._folder = folder
        self._memory = memory
        self._again = again
        self._replacement: View | None = None

    def _elsewhere(self) -> View:
        """Return the view to read from when this one cannot; made once."""
        if self._replacement is None:
            self._replacement = self._again()
        return self._replacement

    def forward(self) -> None:
        """Fold what came since this view was made, into its own state.

        Raises OrderChanged if it cannot: then another view has to be made. The same if the folder has turned out to be
        changed, or if events were numbered by an order that others may have decided otherwise meanwhile.
        """
        replay = self._replay
        if replay is None or self._replacement is not None:
            raise OrderChanged(self._folder.path)
        # A single writer's own events have only one order.
        if replay.assumed and len(self.state.writers) > 1 and len(self.state.alive) > 1:
            raise OrderChanged(replay.journal)
        try:
            replay.catch_up(self._memory, record=False)
        except FolderChanged as error:
            raise OrderChanged(self._folder.path) from error
        # What a folder would have to do, which nobody does here.
        replay.edits = Edits()

    @property
    def lines_in_memory(self) -> int:
        """How many lines are kept beyond those in the folder."""
        return len(self._memory.logs) + sum(map(len, self._memory.metrics.values()))

    @property
    def journal(self) -> Path:
        """The journal that it is a view of."""
        return self._folder.journal

    def elsewhere(self) -> View:
        """Return the view to read from where lines of this one turn out to be changed (see `Lines.read`)."""
        return self._elsewhere()

    def log_lines(self) -> Lines:
        """Return where the log lines are."""
        return Lines(self._folder.path / LOGS, self._folder.layout.logs, self._memory.logs, self.state.logs)

    def point_lines(self, metric: str) -> Lines:
        """Return where the lines of a metric are; `metric` is the exact name of one that has points."""
        known = self._folder.layout.metrics.get(metric, LineFile())
        memory = self._memory.metrics.setdefault(metric, [])
        return Lines(self._folder.points_file(metric), known, memory, self.state.metrics[metric].count)

    def at(self, state: State, fresh: Callable[[], View]) -> View:
        """Return a view of an earlier state, with the lines of this one: those of the moment come first in them.

        `fresh` makes a view of the present from the journal alone, for where the folder does not hold what it should.
        """
        return View(state, self._folder, self._memory, lambda: fresh().at(state, fresh))

    def past_points(self, name: str, start: int, end: int) -> Iterator[Past]:
        """Yield points [start, end) of a metric with their times, in parts. Raises Elsewhere and FolderChanged."""
        return self._memory.history(name, start, end)

    def record(self) -> ExperimentRecord:
        """Return the mapping that `experiment.json` holds."""
        return experiment_document(self.state)

    def parameters(self) -> dict[str, Any]:
        """Return the flat parameters, in the order in which they were first set."""
        return parameters_document(self.state)

    def logs(self, start_index: int = 0, limit: int = 1000, level: str | None = None) -> LogPage:
        """Return a page of log entries; with `level` only of that level, which `start_index` then counts."""
        check_limit(limit)
        if level is not None:
            return self._logs_of(level_of(level) or level, start_index, limit)
        known = self._folder.layout.logs
        start, stop = self._bounds(start_index, limit, self.state.logs, known, "logs")
        try:
            lines = _lines(self._folder.path / LOGS, known, self._memory.logs, start, stop)
            entries = _checked([read_log(line) for line in lines], "sequenceNumber", start, stop)
        except _UNREADABLE:
            return self._elsewhere().logs(start_index, limit)
        return log_page(entries, start, more=stop < self.state.logs)

    def _logs_of(self, level: str, start_index: int, limit: int) -> LogPage:
        matching = list(self.each_log(level=level))
        start, stop = bounds(start_index, limit, len(matching))
        return log_page(matching[start:stop], start, more=stop < len(matching))

    def each_log(self, start: int = 0, level: str | None = None) -> Iterator[LogEntry]:
        """Yield all log entries from number `start` on, read page by page; with `level` only those of that level."""
        known = self._folder.layout.logs
        if start < known.first:
            start = self._first_here(known, "logs", self.state.logs)
        for low in range(start, self.state.logs, MAX_LIMIT):
            yield from (entry for entry in self.logs(low, MAX_LIMIT)["logs"] if level in (None, entry["level"]))

    def metrics(self) -> list[MetricSummary]:
        """Return summaries of all metrics, sorted by name."""
        return [metric_summary(self.state, metric) for _, metric in sorted(self.state.metrics.items())]

    def metric_page(self, name: str, start_index: int = 0, limit: int = 1000, *, superseded: bool = True) -> PointPage:
        """Return a page of points of a metric, or of the metric that has such a series; empty for an unknown one.

        Without `superseded`, only points that are current.
        """
        check_limit(limit)
        name = metric_meant(self.state, name)
        metric = self.state.metrics.get(name)
        if metric is None:
            return point_page([], max(0, start_index), more=False)
        if not superseded and metric.superseded:
            return self._current_page(metric, start_index, limit)
        known = self._folder.layout.metrics.get(name, LineFile())
        start, stop = self._bounds(start_index, limit, metric.count, known, f"points of {name}")
        try:
            lines = _lines(self._folder.points_file(name), known, self._memory.metrics.get(name, []), start, stop)
            points = _checked([read_point(line) for line in lines], "index", start, stop)
        except _UNREADABLE:
            return self._elsewhere().metric_page(name, start_index, limit)
        return point_page(points, start, more=stop < metric.count)

    def _current_page(self, metric: Metric, start_index: int, limit: int) -> PointPage:
        """Return a page of points that are not superseded; a negative start counts these from the end."""
        known = self._folder.layout.metrics.get(metric.name, LineFile())
        first = self._first_here(known, f"points of {metric.name}", metric.count) if start_index < known.first else 0
        current = list(holes(metric.superseded, first, metric.count))
        chosen = page_of(current, start_index, limit)
        points: list[Point] = []
        for parts in windows(chosen, LINES_PER_MARK):
            start, stop = parts[0][0], parts[-1][1]
            page = self.metric_page(metric.name, start, stop - start)["data"]
            points += [point for low, high in parts for point in page[low - start : high - start]]
        start = max(start_index, first) if start_index >= 0 else points[0]["index"] if points else first
        return point_page(points, start, more=bool(chosen) and chosen[-1][1] < current[-1][1])

    def each_point(self, name: str, *, superseded: bool = True) -> Iterator[Point]:
        """Yield all points of a metric, or only those that are current, read page by page."""
        name = metric_meant(self.state, name)
        metric = self.state.metrics.get(name)
        if metric is None:
            return
        first = self._first_here(self._folder.layout.metrics.get(name, LineFile()), f"points of {name}", metric.count)
        for start in range(first, metric.count, MAX_LIMIT):
            page = self.metric_page(name, start, MAX_LIMIT)["data"]
            if superseded or not metric.superseded:
                yield from page
            else:
                for low, high in holes(metric.superseded, start, start + len(page)):
                    yield from page[low - start : high - start]

    def last_step(self) -> int | float | None:
        """Return the greatest step (else epoch) of current points of all metrics; None if there is none."""
        return last_step(self.state)

    def refuse_released(self, metric: str | None = None, start: int = 0) -> None:
        """Raise ReleasedData if lines of the logs, or of a metric, from number `start` on are not on this machine."""
        layout = self._folder.layout
        metric = None if metric is None else metric_meant(self.state, metric)
        first = layout.logs.first if metric is None else layout.metrics.get(metric, LineFile()).first
        if first > max(start, 0):
            what = f"{'log entries' if metric is None else f'points of {metric}'} before number {first:,}"
            raise released(self.state, self._folder.journal, self._folder.path, what)

    def _first_here(self, known: LineFile, what: str, total: int) -> int:
        """Return the number of the first line that is on this machine; warn where some are missing, but not all."""
        if 0 < known.first < total:
            _warn_of_missing_start(self._folder.path, what, known.first)
        return known.first

    def _bounds(self, start_index: int, limit: int, total: int, known: LineFile, what: str) -> tuple[int, int]:
        """Return the numbers (start, stop) of a page; it begins no earlier than the first line on this machine."""
        start, stop = bounds(start_index, limit, total)
        if start < known.first:
            return bounds(self._first_here(known, what, total), limit, total)
        return start, stop

    def metric_stats(self, name: str) -> MetricStats:
        """Return totals, times and the statistics of each series. Raises NotFound for an unknown metric."""
        return metric_stats(self.state, self._metric(name))

    def _metric(self, name: str) -> Metric:
        metric = self.state.metrics.get(metric_meant(self.state, name))
        if metric is None:
            names = [shown for known in self.state.metrics.values() for shown in (known.name, *all_series(known))]
            hint = nearest(name, names).rstrip()
            raise NotFound(f"metric {name!r} has no points in {self.state.project}/{self.state.name}", hint=hint)
        return metric

    def files(self, *, deleted: bool = False, prefix: str = "", tags: list[str] | None = None) -> list[FileRecord]:
        """Return records of current files, oldest first; with `deleted`, of all files that were ever added."""
        if deleted:
            return [file_record(self.state, file) for file in files_in_order(self.state)]
        return [file_record(self.state, file) for file in live_files(self.state, check_prefix(prefix), tags)]

    def released(self, blob: str, filename: str) -> ReleasedData | None:
        """Return the error for a content that only a server has, as the base records; None if it does not."""
        journal = self._folder.journal
        base = bases.load(journal)
        if base is None or blob not in base.blobs:
            return None
        return released(self.state, journal, self._folder.path, f"the content of {filename!r}")

    def clashing(self, prefix: str, filename: str) -> File | None:
        """Return the current file that would be the folder of a file there, or lie below it; None if there is none."""
        return self._folder.clashing(self.state, prefix, filename)

    def series(
        self, name: str, series: str | None = None, max_points: int = 1000, *, superseded: bool = False
    ) -> list[tuple[float, float]]:
        """Return (x, y) of one series, about `max_points` at most; x is `step`, else `epoch`, else the index.

        Down-sampling keeps minima and maxima. Superseded points are left out without `superseded`. Raises NotFound for
        an unknown metric or series.
        """
        metric = self._metric(name)
        field = next((field for field in metric.series if series_name(metric.name, field) == (series or name)), None)
        if field is None:
            raise NotFound(f"metric {metric.name!r} has no series {series or name!r}; it has {sorted(metric.series)}")
        sampling = Sampling(0, metric.count, max_points, field)
        known = self._folder.layout.metrics.get(metric.name, LineFile())
        first = self._first_here(known, f"points of {metric.name}", metric.count)
        for start in range(first, metric.count, MAX_LIMIT):
            rows = [point["data"] for point in self.metric_page(metric.name, start, MAX_LIMIT)["data"]]
            for low, high in holes(() if superseded else metric.superseded, start, start + len(rows)):
                sampling.add_rows(rows[low - start : high - start], low)
        sampled = sampling.series().get(field, {"x": [], "value": []})
        return [(float(x), float(y)) for x, y in zip(sampled["x"], sampled["value"], strict=True)]


def _lines(path: Path, known: LineFile, memory: list[bytes], start: int, stop: int) -> list[bytes]:
    """Return lines [start, stop): those that were projected from the folder, the rest from memory."""
    projected_lines = file_lines(path, known, start, min(stop, known.lines)) if start < min(stop, known.lines) else []
    return projected_lines + memory[max(0, start - known.lines) : max(0, stop - known.lines)]


def _checked(found: list[_Entry], number: str, start: int, stop: int) -> list[_Entry]:
    """Return `found`. Raises Damaged if its numbers are not those from `start` to before `stop`."""
    if [cast("dict[str, Any]", entry)[number] for entry in found] != list(range(start, stop)):
        raise Damaged(f"the folder does not hold entries {start} to {stop - 1} where it should")
    return found


def check_limit(limit: int) -> int:
    """Return a limit of a page, which must be from 1 to 10,000. Raises InvalidValue."""
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_LIMIT:
        raise InvalidValue(f"limit is {limit!r}", hint=f"use 1 to {MAX_LIMIT:,}; read longer series page by page")
    return limit
