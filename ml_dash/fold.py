"""What an event means: the pure function (state, events) → edits, the only place that knows.

The folder, the server's tables and the readers in memory all fold with this code. The state holds no points and no log
lines, but for each writer the ranges of numbers it has seen: an event may come any number of times and counts once.
Registers (parameters, metadata, the file at a path) go to the greatest stamp, whatever the order of arrival; series
(logs, points) are numbered in the order of folding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any, Final

from . import events as ev
from .frames import Event
from .names import check_filename, check_metric_name, check_prefix, file_id

FOLD_VERSION: Final = 1
RUNNING: Final = "running"
NO_SERIES: Final = frozenset(("step", "epoch", "timestamp"))
_RUNS_KEPT: Final = 64
_ERRORS: Final = (TypeError, ValueError, KeyError, AttributeError, IndexError)
_NUMBERS: Final = frozenset((int, float))

StampTuple = tuple[int, str, int]
_BEFORE_ALL: Final[StampTuple] = (-1, "", -1)


@dataclass(slots=True)
class Register:
    """A value that a later event replaces."""

    value: Any = None
    stamp: StampTuple = _BEFORE_ALL

    def offer(self, value: Any, stamp: StampTuple) -> bool:
        """Take the value if its stamp is the greatest so far."""
        if stamp <= self.stamp:
            return False
        self.value, self.stamp = value, stamp
        return True


@dataclass(slots=True)
class Series:
    """Statistics of one numeric field. NaN is counted, but is neither minimum nor maximum nor part of the mean."""

    count: int = 0
    first: float | int | None = None
    last: float | int | None = None
    min: float | int | None = None
    max: float | int | None = None
    total: float = 0.0
    counted: int = 0


@dataclass(slots=True)
class Metric:
    """One metric: how many points, when, and the statistics of its series."""

    name: str
    created_ns: int
    count: int = 0
    first_ns: int = 0
    last_ns: int = 0
    updated_ns: int = 0
    description: Register = field(default_factory=Register)
    tags: Register = field(default_factory=Register)
    metadata: Register = field(default_factory=Register)
    series: dict[str, Series] = field(default_factory=dict)
    # Which index a writer's ordinals start at, newest last: (writer, ordinal, index). Bounded; a hint for callers.
    runs: list[tuple[str, int, int]] = field(default_factory=list)
    tallies: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class File:
    """One added file. It is live until it is deleted or another one is added at its path."""

    id: str
    writer: str
    seq: int
    added_ns: int
    path: str
    prefix: str
    filename: str
    size_bytes: int
    checksum: str
    content_type: str
    description: Register = field(default_factory=Register)
    tags: Register = field(default_factory=Register)
    metadata: Register = field(default_factory=Register)
    updated_ns: int = 0
    deleted_ns: int = 0
    replaced_ns: int = 0

    @property
    def live(self) -> bool:
        """Is it listed?"""
        return not self.deleted_ns and not self.replaced_ns

    @property
    def blob(self) -> str:
        """The name of its content in the journal."""
        return ev.blob_name(self.checksum, self.writer, self.seq)

    @property
    def place(self) -> str:
        """What two files share that replace each other."""
        return f"{self.prefix}/{self.filename}" if self.prefix else self.filename


@dataclass(slots=True)
class WriterState:
    """One process that wrote: what it said of itself, what it ended as, which of its numbers were seen."""

    id: str
    seen: list[tuple[int, int]] = field(default_factory=list)
    first_ns: int = 0
    last_ns: int = 0
    place: dict[str, Any] | None = None
    child: bool = False
    ended: str | None = None
    ended_ns: int = 0
    error: dict[str, Any] | None = None
    dead: bool = False
    lost: int = 0
    unused: list[tuple[int, int]] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Neither closed nor found dead."""
        return self.ended is None and not self.dead

    def gaps(self) -> list[tuple[int, int]]:
        """Numbers [a, b) that are missing between those seen, and that no `lost` event explains."""
        missing: list[tuple[int, int]] = []
        expected = 0
        for start, end in self.seen:
            if start > expected and not any(a <= expected and start <= b for a, b in self.unused):
                missing.append((expected, start))
            expected = end
        return missing

    def admit(self, number: int) -> bool:
        """Note that a number was seen; False if it was seen before."""
        position = len(self.seen)
        while position and self.seen[position - 1][0] > number:
            position -= 1
        if position and number < self.seen[position - 1][1]:
            return False
        start, end = number, number + 1
        if position and self.seen[position - 1][1] == number:
            position -= 1
            start = self.seen.pop(position)[0]
        if position < len(self.seen) and self.seen[position][0] == end:
            end = self.seen.pop(position)[1]
        self.seen.insert(position, (start, end))
        return True


@dataclass(slots=True)
class State:
    """All of an experiment but its points and log lines."""

    version: int = FOLD_VERSION
    project: str = ""
    name: str = ""
    events: int = 0
    malformed: int = 0
    unknown: int = 0
    created_ns: int = 0
    updated_ns: int = 0
    status: str = RUNNING
    session: list[str] = field(default_factory=list)
    protected: StampTuple | None = None
    description: Register = field(default_factory=Register)
    tags: Register = field(default_factory=Register)
    folder: Register = field(default_factory=Register)
    metadata: Register = field(default_factory=Register)
    folder_path: Register = field(default_factory=Register)
    journal_path: Register = field(default_factory=Register)
    parameters: dict[str, Register] = field(default_factory=dict)
    logs: int = 0
    points: int = 0
    metrics: dict[str, Metric] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    early: dict[str, list[tuple[int, StampTuple, dict[str, Any]]]] = field(default_factory=dict)
    writers: dict[str, WriterState] = field(default_factory=dict)


@dataclass(slots=True)
class LogLine:
    """One numbered log entry."""

    number: int
    time_ns: int
    level: str
    message: str
    metadata: dict[str, Any] | None


@dataclass(slots=True)
class Block:
    """Consecutive points of a metric: their first index, their fields, and a time for each (or one for all)."""

    start: int
    rows: list[dict[str, Any]]
    times: list[int] | int


@dataclass(slots=True)
class Edits:
    """What a sink has to do: lines and points to add, and which registers to write anew."""

    logs: list[LogLine] = field(default_factory=list)
    points: dict[str, list[Block]] = field(default_factory=dict)
    metrics: set[str] = field(default_factory=set)
    released: list[str] = field(default_factory=list)
    parameters: bool = False
    files: bool = False
    experiment: bool = False

    def clear(self) -> None:
        """Forget lines and points that were applied; what is dirty stays so."""
        self.logs = []
        self.points = {}


class _Batch:
    """One stretch of one writer being folded: single points wait here to be counted column by column."""

    __slots__ = ("edits", "rows", "state", "writer")

    def __init__(self, state: State, writer: WriterState, edits: Edits) -> None:
        self.state = state
        self.writer = writer
        self.edits = edits
        self.rows: dict[str, tuple[list[dict[str, Any]], list[int]]] = {}

    def start(self, name: Any) -> tuple[list[dict[str, Any]], list[int]]:
        """Where the single points of a metric wait."""
        check_metric_name(name)
        waiting: tuple[list[dict[str, Any]], list[int]] = ([], [])
        self.rows[name] = waiting
        return waiting

    def flush(self, name: str) -> None:
        """Count the single points of a metric that wait."""
        rows, times = self.rows.pop(name)
        fields: set[Any] = set().union(*rows)
        if set(map(type, fields)) - {str}:
            kept = [(row, time) for row, time in zip(rows, times, strict=True) if set(map(type, row)) <= {str}]
            self.state.malformed += len(rows) - len(kept)
            rows, times = [row for row, _ in kept], [time for _, time in kept]
            fields = set().union(*rows)
        if not rows:
            return
        columns = {name: [row[name] for row in rows if name in row] for name in rows[0]}
        for extra in sorted(fields - columns.keys()):
            columns[extra] = [row[extra] for row in rows if extra in row]
        self.add(name, rows, times, columns)

    def add(
        self, name: str, rows: list[dict[str, Any]], times: list[int] | int, columns: dict[str, list[Any]]
    ) -> None:
        """Number points that follow each other and count their columns."""
        state, writer_id = self.state, self.writer.id
        first_ns, last_ns = (times, times) if isinstance(times, int) else (times[0], times[-1])
        metric = state.metrics.get(name)
        if metric is None:
            metric = state.metrics[name] = Metric(name, first_ns)
        if not metric.count:
            metric.first_ns = first_ns
        start, count = metric.count, len(rows)
        tally = metric.tallies.get(writer_id, 0)
        if not metric.runs or metric.runs[-1][0] != writer_id:
            metric.runs = [*metric.runs[1 - _RUNS_KEPT :], (writer_id, tally, start)]
        metric.tallies[writer_id] = tally + count
        metric.count = start + count
        metric.last_ns = last_ns
        metric.updated_ns = max(metric.updated_ns, last_ns)
        state.points += count
        for field_name, values in columns.items():
            if field_name not in NO_SERIES:
                _count_values(metric.series, field_name, values)
        self.edits.points.setdefault(name, []).append(Block(start, rows, times))
        self.edits.metrics.add(name)


def _count_values(all_series: dict[str, Series], name: str, values: list[Any]) -> None:
    kinds = set(map(type, values))
    if not kinds <= _NUMBERS:
        values = [value for value in values if type(value) in _NUMBERS]
    if not values:
        return
    series = all_series.get(name)
    if series is None:
        series = all_series[name] = Series(first=values[0])
    series.count += len(values)
    series.last = values[-1]
    # Plain left-to-right addition: the same result whatever the stretches, and in every Python version.
    total = reduce(add, map(float, values) if int in kinds else values, series.total)
    if total != total:
        total, values = _without_nan(series.total, values)
        if not values:
            return
    series.total = total
    series.counted += len(values)
    low, high = min(values), max(values)
    if series.min is None or series.max is None:
        series.min, series.max = low, high
        return
    if low < series.min:
        series.min = low
    if high > series.max:
        series.max = high


def _without_nan(total: float, values: list[Any]) -> tuple[float, list[Any]]:
    kept = [value for value in values if value == value]
    return reduce(add, map(float, kept), total), kept


def fold(state: State, writer_id: str, batch: Iterable[Event], edits: Edits) -> None:
    """Fold a stretch of one writer's events into the state, and note in `edits` what a sink has to do.

    Events seen before are passed over, a gap is accepted and may be filled later. An event whose body is not what its
    kind asks for is counted and passed over.
    """
    writer = state.writers.get(writer_id)
    if writer is None:
        writer = state.writers[writer_id] = WriterState(writer_id)
    work = _Batch(state, writer, edits)
    rows = work.rows
    expected = first = writer.seen[-1][1] if writer.seen else 0
    folded, last_ns = 0, 0
    for number, kind, time_ns, body in batch:
        if number == expected:
            expected += 1
        else:
            _extend(writer, first, expected)
            admitted = writer.admit(number)
            expected = first = writer.seen[-1][1]
            if not admitted:
                continue
        folded += 1
        if not writer.first_ns:
            writer.first_ns = time_ns
        last_ns = time_ns
        try:
            if kind == ev.POINT:
                name, data = body
                if type(data) is not dict:
                    raise TypeError
                waiting = rows.get(name) or work.start(name)
                waiting[0].append(data)
                waiting[1].append(time_ns)
            else:
                handler = _HANDLERS.get(kind)
                if handler is None:
                    state.unknown += 1
                else:
                    handler(work, body, (time_ns, writer_id, number))
        except _ERRORS:
            state.malformed += 1
    for name in list(rows):
        work.flush(name)
    _extend(writer, first, expected)
    if folded:
        _note_progress(state, writer, folded, last_ns, edits)


def _extend(writer: WriterState, first: int, expected: int) -> None:
    """Numbers [first, expected) follow the last range seen."""
    if expected == first:
        return
    if writer.seen:
        writer.seen[-1] = (writer.seen[-1][0], expected)
    else:
        writer.seen.append((first, expected))


def _note_progress(state: State, writer: WriterState, folded: int, last_ns: int, edits: Edits) -> None:
    state.events += folded
    writer.last_ns = max(writer.last_ns, last_ns)
    state.updated_ns = max(state.updated_ns, writer.last_ns)
    state.created_ns = min(state.created_ns or writer.first_ns, writer.first_ns)
    edits.experiment = True
    if writer.dead and writer.ended is None:
        # The note was wrong, or is of an earlier silence: this writer lives.
        writer.dead = False
        _decide_status(state)


def fold_death(state: State, writer_id: str, edits: Edits) -> None:
    """An observer found that a writer without a closing event holds its lock no longer."""
    writer = state.writers.get(writer_id)
    if writer is None or not writer.alive:
        return
    writer.dead = True
    _forget_tallies(state, writer_id)
    _decide_status(state)
    edits.experiment = True


def _decide_status(state: State) -> None:
    writers = [state.writers[writer] for writer in state.session if writer in state.writers]
    if not writers or any(writer.alive for writer in writers):
        state.status = RUNNING
    elif any(writer.ended == "failed" for writer in writers):
        state.status = "failed"
    elif any(writer.ended in (None, "interrupted") for writer in writers):
        state.status = "interrupted"
    else:
        state.status = "completed"


def _forget_tallies(state: State, writer_id: str) -> None:
    for metric in state.metrics.values():
        metric.tallies.pop(writer_id, None)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or set(map(type, value)) - {str}:
        raise TypeError
    return value


def _open(work: _Batch, body: Any, stamp: StampTuple) -> None:
    state, writer = work.state, work.writer
    body = _mapping(body)
    if writer.place is not None:
        return
    writer.child = body.get("child") is True
    state.project = state.project or _text(body.get("project", ""))
    state.name = state.name or _text(body.get("name", ""))
    _offer_given(state, body, stamp, work.edits)
    for key, register in (("folderPath", state.folder_path), ("journalPath", state.journal_path)):
        if key in body and not writer.child:
            register.offer(_text(body[key]), stamp)
    if body.get("writeProtected") is True:
        state.protected = min(state.protected or stamp, stamp)
    writer.place = {key: value for key, value in body.items() if key not in _NOT_OF_THE_WRITER}
    if writer.child:
        return
    if state.status != RUNNING:
        state.session = []
    state.session.append(writer.id)
    _decide_status(state)


_NOT_OF_THE_WRITER: Final = frozenset(
    ("project", "name", "description", "tags", "folder", "metadata", "folderPath", "journalPath", "writeProtected", "child")
)


def _close(work: _Batch, body: Any, stamp: StampTuple) -> None:
    writer = work.writer
    body = _mapping(body)
    status = _text(body["status"])
    if writer.ended is not None:
        return
    writer.ended, writer.ended_ns = status, stamp[0]
    error = body.get("error")
    writer.error = _mapping(error) if error is not None else None
    writer.dead = False
    for name in list(work.rows):
        work.flush(name)
    _forget_tallies(work.state, writer.id)
    if not writer.child:
        _decide_status(work.state)


def _log(work: _Batch, body: Any, stamp: StampTuple) -> None:
    level, message, metadata = body
    line = LogLine(work.state.logs, stamp[0], _text(level), _text(message), None if metadata is None else _mapping(metadata))
    work.edits.logs.append(line)
    work.state.logs += 1


def _parameters(work: _Batch, body: Any, stamp: StampTuple) -> None:
    registers = work.state.parameters
    for key, value in _mapping(body).items():
        register = registers.get(key)
        if register is None:
            register = registers[key] = Register()
        register.offer(value, stamp)
    work.edits.parameters = True


def _points(work: _Batch, body: Any, stamp: StampTuple) -> None:
    name, fields, columns = body
    check_metric_name(name)
    count = len(columns[0])
    if not fields or set(map(type, fields)) != {str} or len(set(fields)) != len(columns):
        raise ValueError
    if any(type(column) is not list or len(column) != count for column in columns):
        raise ValueError
    if name in work.rows:
        work.flush(name)
    if not count:
        return
    named = dict(zip(fields, columns, strict=True))
    work.add(name, _rows(fields, columns), stamp[0], named)


def _rows(fields: Sequence[str], columns: Sequence[list[Any]]) -> list[dict[str, Any]]:
    # The displays for one and two fields are three times as fast as dict(zip()).
    if len(fields) == 1:
        (a,) = fields
        return [{a: x} for x in columns[0]]
    if len(fields) == 2:
        a, b = fields
        return [{a: x, b: y} for x, y in zip(*columns, strict=True)]
    return [dict(zip(fields, values, strict=True)) for values in zip(*columns, strict=True)]


def _ragged_rows(work: _Batch, body: Any, stamp: StampTuple) -> None:
    name, rows = body
    check_metric_name(name)
    for row in rows:
        _mapping(row)
    waiting = work.rows.get(name) or work.start(name)
    waiting[0].extend(rows)
    waiting[1].extend([stamp[0]] * len(rows))


def _metric(work: _Batch, body: Any, stamp: StampTuple) -> None:
    name, given = body
    check_metric_name(name)
    given = _mapping(given)
    metric = work.state.metrics.get(name)
    if metric is None:
        metric = work.state.metrics[name] = Metric(name, stamp[0])
    _offer_given(metric, given, stamp, None)
    metric.updated_ns = max(metric.updated_ns, stamp[0])
    work.edits.metrics.add(name)


def _offer_given(target: Any, given: dict[str, Any], stamp: StampTuple, edits: Edits | None) -> None:
    for key in ("description", "tags", "folder", "metadata"):
        if key in given and hasattr(target, key):
            getattr(target, key).offer(given[key], stamp)
            if edits is not None:
                edits.experiment = True


def _file(work: _Batch, body: Any, stamp: StampTuple) -> None:
    state, body = work.state, _mapping(body)
    time_ns, writer, number = stamp
    checksum = _text(body["checksum"])
    if len(checksum) != 64 or set(checksum) - set("0123456789abcdef"):
        raise ValueError
    added = File(
        id=file_id(bytes.fromhex(writer), number),
        writer=writer,
        seq=number,
        added_ns=time_ns,
        path=_text(body["path"]),
        prefix=check_prefix(body["prefix"]),
        filename=check_filename(body["filename"]),
        size_bytes=int(body["sizeBytes"]),
        checksum=checksum,
        content_type=_text(body["contentType"]),
        updated_ns=time_ns,
    )
    _offer_given(added, body, stamp, None)
    state.files[added.id] = added
    same_place = state.places.setdefault(added.place, [])
    same_place.append(added.id)
    same_place.sort(key=lambda file: _file_stamp(state.files[file]))
    for older, newer in zip(same_place, same_place[1:], strict=False):
        if not state.files[older].replaced_ns:
            _end_file(work, state.files[older], replaced_ns=state.files[newer].added_ns)
    for kind, later, change in state.early.pop(added.id, []):
        (_file_delete if kind == ev.FILE_DELETE else _file_update)(work, change, later)
    work.edits.files = True


def _file_stamp(file: File) -> StampTuple:
    return file.added_ns, file.writer, file.seq


def _end_file(work: _Batch, file: File, *, replaced_ns: int = 0, deleted_ns: int = 0) -> None:
    if file.live:
        work.edits.released.append(file.blob)
    file.replaced_ns = file.replaced_ns or replaced_ns
    file.deleted_ns = file.deleted_ns or deleted_ns
    work.edits.files = True


def _file_update(work: _Batch, body: Any, stamp: StampTuple) -> None:
    body = _mapping(body)
    file = work.state.files.get(_text(body["id"]))
    if file is None:
        work.state.early.setdefault(body["id"], []).append((ev.FILE_UPDATE, stamp, body))
        return
    _offer_given(file, body, stamp, None)
    file.updated_ns = max(file.updated_ns, stamp[0])
    work.edits.files = True


def _file_delete(work: _Batch, body: Any, stamp: StampTuple) -> None:
    body = _mapping(body)
    file = work.state.files.get(_text(body["id"]))
    if file is None:
        work.state.early.setdefault(body["id"], []).append((ev.FILE_DELETE, stamp, body))
        return
    _end_file(work, file, deleted_ns=stamp[0])
    file.updated_ns = max(file.updated_ns, stamp[0])


def _update(work: _Batch, body: Any, stamp: StampTuple) -> None:
    body = _mapping(body)
    _offer_given(work.state, body, stamp, work.edits)
    if body.get("writeProtected") is True:
        work.state.protected = min(work.state.protected or stamp, stamp)


def _lost(work: _Batch, body: Any, stamp: StampTuple) -> None:
    body = _mapping(body)
    count = body["count"]
    if not isinstance(count, int) or count < 0:
        raise ValueError
    work.writer.lost += count
    if isinstance(body.get("from"), int) and isinstance(body.get("to"), int):
        work.writer.unused.append((body["from"], body["to"] + 1))


_HANDLERS: Final[dict[int, Callable[[_Batch, Any, StampTuple], None]]] = {
    ev.OPEN: _open,
    ev.CLOSE: _close,
    ev.LOG: _log,
    ev.PARAMETERS: _parameters,
    ev.POINTS: _points,
    ev.ROWS: _ragged_rows,
    ev.METRIC: _metric,
    ev.FILE: _file,
    ev.FILE_UPDATE: _file_update,
    ev.FILE_DELETE: _file_delete,
    ev.UPDATE: _update,
    ev.LOST: _lost,
}


def index_of(metric: Metric, writer_id: str, ordinal: int) -> int | None:
    """The index of a writer's `ordinal`-th point of a metric; None if that was too long ago to be remembered."""
    for writer, first_ordinal, first_index in reversed(metric.runs):
        if writer == writer_id and first_ordinal <= ordinal:
            return first_index + ordinal - first_ordinal
    return None
