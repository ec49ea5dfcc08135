"""The fold: the pure function (state, events) → edits that gives events their meaning.

The folder, the server's tables and the readers in memory all fold with this code. The state holds no points and no log
lines, but for each writer the ranges of numbers that were seen: an event may come any number of times and counts once.
Of a register (a parameter, metadata, the file at a path) the greatest stamp wins, whatever the order of arrival. Series
(logs, points) are numbered in the order of folding. Folding a stretch at once or in parts gives the same state.

A state changes in place; what a sink (the folder, the server's tables) has to do about it is added to `Edits`. Nothing
here depends on a clock, a machine or a file, so the same events in the same order give the same state and the same
bytes everywhere, and a state that was lost is made again by folding from the start.

What each part of a state depends on:

    registers, files     only on which events were folded, not on their order
    numbers of lines     on the order of folding, which `order` records
    superseded points    only on the times of points and rewinds (see `rewinds`)

Bodies come from disk or from a network, and a checksum does not say that they make sense. So a handler checks all of a
body before it changes anything: an event that is malformed counts as one, and leaves no half of it behind.

An event mostly costs a comparison of its number and one look-up; points are collected and counted by column. Memory
grows with writers, metrics, parameters, files and gaps in the numbers, never with points. One thread folds a state at a
time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from . import events as ev
from . import rewinds
from .events import Malformed
from .frames import Event
from .limits import INT64_MAX
from .names import check_filename, check_metric_name, check_prefix, file_id
from .ranges import Range
from .state import (
    FOLD_VERSION,
    NOBODY,
    RUNNING,
    RUNS_KEPT,
    TITLES_KEPT,
    Block,
    Edits,
    File,
    LogLine,
    Metric,
    Register,
    Rewind,
    StampTuple,
    State,
    WriterState,
    index_of,
)  # fmt: skip
from .statistics import Columns, Rows, all_plain, columns_of

__all__ = ["FOLD_VERSION", "Edits", "State", "fold", "fold_death", "index_of"]

# What a body of the wrong shape makes a handler raise. Any other exception is a mistake in this code, and is not
# hidden.
_ERRORS: Final = (TypeError, ValueError, LookupError, ArithmeticError)
_TEXT: Final = {str}
# A time in ns later than any that an event can have.
_NEVER: Final = 1 << 64

# -- the fold ---------------------------------------------------------------------------------------------------------


def fold(state: State, writer_id: str, batch: Iterable[Event], edits: Edits) -> None:
    """Fold a stretch of one writer's events into the state, and add to `edits` what a sink has to do.

    Events seen before are skipped; a gap in the numbers is accepted and may be filled later. An event whose body does
    not have the shape of its kind is counted as malformed and changes nothing else. Never raises for what a body holds.
    """
    writer = state.writers.get(writer_id)
    if writer is None:
        writer = state.writers[writer_id] = WriterState(writer_id)
        state.alive.append(writer_id)
    # A death is void once an event of that writer comes that is new; one that was seen before proves nothing.
    if writer.dead:
        batch = list(batch)
        if any(writer.is_new(event[0]) for event in batch):
            _void_death(state, writer)
    work = _Batch(state, writer, edits)
    rows = work.rows
    # Numbers [first, expected) were folded here and are not in `seen` yet: in the usual case, where numbers follow each
    # other, the ranges are changed once for a stretch and not for each event.
    expected = first = writer.seen[-1][1] if writer.seen else 0
    folded, first_ns, last_ns = 0, _NEVER, -_NEVER
    for number, kind, time_ns, body in batch:
        # The end of the last range that was seen, so this number is new.
        if number == expected:
            expected += 1
        else:
            # A gap, or an event that comes again: note what came so far, and let the ranges decide.
            _extend(writer, first, expected)
            admitted = writer.admit(number)
            expected = first = writer.seen[-1][1] if writer.seen else 0
            if not admitted:
                continue
        folded += 1
        if time_ns > last_ns:
            last_ns = time_ns
        if time_ns < first_ns:
            first_ns = time_ns
        try:
            # The most frequent kind by far, without a call. Its values are checked by column, in `flush`.
            if kind == ev.POINT:
                name, data = body
                if type(data) is not dict:
                    raise Malformed
                waiting = rows.get(name) or work.start(name)
                waiting[0].append(data)
                waiting[1].append(time_ns)
            else:
                handler = _HANDLERS.get(kind)
                if handler is None:
                    # Of a newer version. It was counted as seen, and another version of the fold begins anew, so it is
                    # not lost.
                    state.unknown += 1
                else:
                    # Handlers ask when the writer began, and this event may be the first one.
                    work.first_ns = first_ns
                    handler(work, body, (time_ns, writer_id, number))
        except _ERRORS:
            state.malformed += 1
    # Metric by metric. Points of one metric are in their order, and how those of several lay between each other changes
    # nothing.
    for name in list(rows):
        # Single points of this metric came before these.
        work.flush(name)
    _extend(writer, first, expected)
    if folded:
        # After all events of the stretch: whether a rewind counts from an earlier one depends on when writers ran.
        before_ns = writer.last_ns
        _note_progress(state, writer, folded, first_ns, last_ns)
        if state.rewinds and (work.rewound or rewinds.may_settle(state, writer, before_ns)):
            rewinds.settle(state, edits)
        edits.experiment = True


def _extend(writer: WriterState, first: int, expected: int) -> None:
    """Add numbers [first, expected), which follow the last range seen.

    Numbers that join the last range lengthen it. Without any range these are the first numbers of the writer.
    """
    if expected == first:
        return
    if writer.seen:
        writer.seen[-1] = (writer.seen[-1][0], expected)
    else:
        writer.seen.append((first, expected))


def _note_progress(state: State, writer: WriterState, folded: int, first_ns: int, last_ns: int) -> None:
    """Count the folded events, and take their times into those of the writer and of the experiment."""
    state.events += folded
    writer.first_ns = min(writer.first_ns or first_ns, first_ns)
    writer.last_ns = max(writer.last_ns, last_ns)
    state.created_ns = min(state.created_ns or first_ns, first_ns)
    state.updated_ns = max(state.updated_ns, last_ns)


# -- writers, and the status ------------------------------------------------------------------------------------------


def fold_death(state: State, writer_id: str, edits: Edits) -> None:
    """Fold the death of a writer: an observer found its lock free, and no closing event."""
    writer = state.writers.get(writer_id)
    if writer is None or not writer.alive:
        return
    writer.dead = True
    _retire(state, writer, writer.first_ns)
    edits.experiment = True


def _void_death(state: State, writer: WriterState) -> None:
    """Undo the death of a writer: an event of it came later, so the observer was wrong.

    Its tallies may have been dropped since, so its ordinals cannot be told from here on: see `WriterState.uncounted`.
    """
    writer.dead = False
    state.alive.append(writer.id)
    writer.uncounted = True
    for metric in state.metrics.values():
        # Its count of points would begin at 0 again where it was dropped, and these entries would give wrong indices
        # together with later ones.
        metric.tallies.pop(writer.id, None)
        metric.runs = [run for run in metric.runs if run[0] != writer.id]
    if state.last_ended == writer.id:
        state.last_ended = last_ended(state)
    if not writer.child and writer.id not in state.session:
        state.session.append(writer.id)
    _decide_status(state)


def _retire(state: State, writer: WriterState, began_ns: int) -> None:
    """Take a writer that has closed or was found dead out of the running ones, and decide the status."""
    if writer.id in state.alive:
        state.alive.remove(writer.id)
    # Its tallies are dropped by each metric when its next points come: an end must not cost all metrics.
    state.ends += 1
    _note_end(state, writer)
    if writer.place is None and writer.id not in state.session:
        # Its opening event is lost; it counts like any other writer.
        _join_session(state, writer, began_ns)
    # A child has no say, unless there are only children.
    if not writer.child or not state.session:
        _decide_status(state)


def _note_end(state: State, writer: WriterState) -> None:
    """Note a writer that is not alive as the one that ended last, if it is."""
    if writer.place is not None and (not state.last_ended or _end(writer) > _end(state.writers[state.last_ended])):
        state.last_ended = writer.id


def last_ended(state: State) -> str:
    """Find the writer for `State.last_ended` among all writers; empty if there is none."""
    ended = (writer for writer in state.writers.values() if writer.place is not None and not writer.alive)
    last = max(ended, key=_end, default=None)
    return "" if last is None else last.id


def _end(writer: WriterState) -> tuple[int, str]:
    return writer.end_ns, writer.id


def _join_session(state: State, writer: WriterState, began_ns: int) -> None:
    """Add a writer to those that decide the status; they begin anew with it if the experiment was not running."""
    if state.status != RUNNING:
        # Writers that still wrote when this one began ran beside it, however early their end was read.
        state.session = [other for other in state.session if state.writers[other].last_ns > began_ns]
    state.session.append(writer.id)


def _decide_status(state: State) -> None:
    """Decide the status by the writers of the session: running, else failed, else interrupted, else completed.

        one of them is alive               running
        else one has failed                failed
        else one was killed                interrupted (it said so, or left no closing event)
        else                               completed

    A job that starts again after its writers have ended begins a new session: what became of them does not count any
    more.
    """
    writers = [state.writers[writer] for writer in state.session]
    if not writers:
        # Only children, as where all came by REST: one that is alive, else the one that ended last.
        alive = [writer for writer in map(state.writers.__getitem__, state.alive) if writer.place is not None]
        writers = alive or [state.writers[writer] for writer in [state.last_ended] if writer]
    if not writers or any(writer.alive for writer in writers):
        state.status = RUNNING
    elif any(writer.ended == "failed" for writer in writers):
        state.status = "failed"
    elif any(writer.ended in (None, "interrupted") for writer in writers):
        # None: found dead, without a closing event.
        state.status = "interrupted"
    else:
        state.status = "completed"


# Keys of an opening event that are about the experiment; all others say where the writer runs.
_NOT_OF_THE_WRITER: Final = frozenset((
    "id", "project", "name", "description", "tags", "folder", "metadata", "folderPath", "journalPath", "writeProtected",
    "child",
))  # fmt: skip


def _open(work: _Batch, body: Any, stamp: StampTuple) -> None:
    """Fold an opening: where the writer runs, what was given, and that it is one of those that decide the status."""
    state, writer = work.state, work.writer
    body = ev.mapping(body)
    project, name = ev.text(body["project"]), ev.text(body["name"])
    given = ev.changes(body, "description", "tags", "folder", "metadata")
    journal_path = ev.text(body["journalPath"]) if "journalPath" in body else None
    # A writer opens once. A second opening under its id is damage or forgery.
    if writer.place is not None:
        raise Malformed
    # From here on nothing raises: all that may be wrong was looked at above.
    writer.child = body.get("child") is True
    writer.place = {key: value for key, value in body.items() if key not in _NOT_OF_THE_WRITER}
    # The first one counts: a journal belongs to one experiment.
    state.project, state.name = state.project or project, state.name or name
    _offer(state, given, stamp)
    if journal_path is not None and not writer.child:
        state.journal_path.offer(journal_path, stamp)
    _protect(state, body, stamp)
    if writer.child and writer.id in state.session:
        # This event came late, and the writer was taken for one that opened the experiment itself.
        state.session.remove(writer.id)
    elif not writer.child and writer.id not in state.session:
        _join_session(state, writer, work.began_ns)
    if not writer.alive:
        _note_end(state, writer)
    _decide_status(state)


def _close(work: _Batch, body: Any, stamp: StampTuple) -> None:
    """Fold a closing event: how the run ended. A second one is malformed."""
    writer, body = work.writer, ev.mapping(body)
    error = body.get("error")
    # A writer ends once; `dead` does not matter, because the closing event may be read after an observer found the lock
    # free.
    if body["status"] not in ev.ENDINGS or writer.ended is not None:
        raise Malformed
    signal, exit_code = (ev.natural(body[key]) if key in body else None for key in ("signal", "exitCode"))
    writer.error = None if error is None else ev.mapping(error)
    writer.signal, writer.exit_code = signal, exit_code
    # Before the writer has ended: no indices are noted for one that has.
    work.flush_all()
    writer.ended, writer.ended_ns, writer.dead = body["status"], stamp[0], False
    _retire(work.state, writer, work.began_ns)


def _update(work: _Batch, body: Any, stamp: StampTuple) -> None:
    """Fold new values of the experiment's own registers."""
    state, body = work.state, ev.mapping(body)
    given = ev.changes(body, "description", "tags", "folder", "metadata", "title", "notes", "archived")
    _offer(state, given, stamp)
    if given.get("title") is not None:
        _note_title(state, given["title"], stamp)
    _protect(state, body, stamp)


def _note_title(state: State, title: str, stamp: StampTuple) -> None:
    """Remember a title. Which ones are kept depends on their stamps alone, whatever the order of arrival."""
    state.titles[title] = max(stamp, state.titles.get(title, stamp))
    if len(state.titles) > TITLES_KEPT:
        del state.titles[min(state.titles, key=lambda one: state.titles[one])]


def _protect(state: State, body: dict[str, Any], stamp: StampTuple) -> None:
    """Note since when the experiment is write-protected: the least stamp, whatever the order of arrival."""
    if body.get("writeProtected") is True:
        state.protected = min(state.protected or stamp, stamp)


def _lost(work: _Batch, body: Any, stamp: StampTuple) -> None:
    """Fold a report of lost events: numbers that nobody needs to wait for, and how many they were."""
    writer, body = work.writer, ev.mapping(body)
    count = ev.natural(body["count"])
    unused: list[Range] = [(ev.natural(body["from"]), ev.natural(body["to"]) + 1)] if "from" in body else []
    # Counts are read from disk, and a sum of them must still fit where states are stored.
    writer.lost = min(writer.lost + count, INT64_MAX)
    work.state.lost = min(work.state.lost + count, INT64_MAX)
    writer.unused += unused


def _offer(target: State | Metric | File, given: dict[str, Any], stamp: StampTuple) -> None:
    """Offer the given values to the registers of these names."""
    for key, value in given.items():
        getattr(target, key).offer(value, stamp)


# -- logs and parameters ----------------------------------------------------------------------------------------------


def _log(work: _Batch, body: Any, stamp: StampTuple) -> None:
    """Number a log entry. A text or mapping of the wrong type raises before the entry is counted."""
    if type(body) is not list:
        raise Malformed
    level, message, metadata = body
    if metadata is not None:
        ev.mapping(metadata)
    work.edits.logs.append(LogLine(work.state.logs, stamp[0], ev.text(level), ev.text(message), metadata))
    work.state.logs += 1


def _parameters(work: _Batch, body: Any, stamp: StampTuple) -> None:
    """Fold new values of parameters. Each is a register, so writers that set different keys do not collide."""
    registers = work.state.parameters
    for key, value in ev.mapping(body).items():
        register = registers.get(key)
        if register is None:
            register = registers[key] = Register()
        register.offer(value, stamp)
    work.edits.parameters = True


# -- metrics ----------------------------------------------------------------------------------------------------------


class _Batch:
    """One stretch of one writer while it is folded. Single points wait in `rows` to be counted column by column.

    Counting by column is what makes folding fast: `min`, `max` and the sum of a list of a thousand numbers run in C. So
    single points are not counted one by one. They must be counted before anything that depends on how many there are:
    other points of the metric, its closing, a rewind.
    """

    __slots__ = ("edits", "first_ns", "rewound", "rows", "state", "writer")

    def __init__(self, state: State, writer: WriterState, edits: Edits) -> None:
        self.state = state
        self.writer = writer
        self.edits = edits
        # Metric → fields and times (ns) of its waiting points.
        self.rows: dict[str, tuple[Rows, list[int]]] = {}
        self.first_ns = _NEVER
        self.rewound = False

    @property
    def began_ns(self) -> int:
        """The time of the writer's first event so far."""
        return min(self.writer.first_ns or self.first_ns, self.first_ns)

    def start(self, name: Any) -> tuple[Rows, list[int]]:
        """Begin to collect single points of a metric: return the lists of their rows and times. Raises InvalidName."""
        check_metric_name(name)
        waiting: tuple[Rows, list[int]] = ([], [])
        self.rows[name] = waiting
        return waiting

    def flush_all(self) -> None:
        """Count the waiting points of all metrics."""
        for name in list(self.rows):
            self.flush(name)

    def flush(self, name: str) -> None:
        """Count the waiting points of a metric, if there are any."""
        if name not in self.rows:
            return
        rows, times = self.rows.pop(name)
        # One check for all. If it fails, at least one point is malformed, and each is looked at by itself.
        columns = columns_of(rows)
        if columns is None:
            kept = [(row, time) for row, time in zip(rows, times, strict=True) if _is_point(row)]
            self.state.malformed += len(rows) - len(kept)
            rows, times = [row for row, _ in kept], [time for _, time in kept]
            columns = columns_of(rows, checked=True)
        if rows and columns is not None:
            self.add(name, rows, times, columns)

    def add(self, name: str, rows: Rows, times: list[int] | int, columns: Columns) -> None:
        """Number consecutive points and count their columns."""
        first_ns, last_ns = (times, times) if isinstance(times, int) else (min(times), max(times))
        metric = self.metric(name, first_ns)
        metric.first_ns = min(metric.first_ns or first_ns, first_ns)
        # The index of the first point. `count_points` changes `metric.count`.
        start, count = metric.count, len(rows)
        if metric.ends != self.state.ends:
            self._drop_ended(metric)
        self._note_index(metric, start, count)
        metric.last_ns = max(metric.last_ns, last_ns)
        metric.updated_ns = max(metric.updated_ns, last_ns)
        self.state.points += count
        rewinds.count_points(self.state, metric, rows, times, columns, self.edits)
        # The rows themselves, not copies: the sink writes them and drops them.
        self.edits.points.setdefault(name, []).append(Block(start, rows, times))
        self.edits.metrics.add(name)

    def metric(self, name: str, time_ns: int) -> Metric:
        """Return the metric of that name, a new one if it has none yet."""
        metric = self.state.metrics.get(name)
        if metric is None:
            metric = self.state.metrics[name] = Metric(name, time_ns)
        # Stretches of several writers come in any order of time.
        metric.created_ns = min(metric.created_ns, time_ns)
        return metric

    def _drop_ended(self, metric: Metric) -> None:
        """Drop the tallies of writers that have ended: they append no more, and would add up for ever."""
        writers = self.state.writers
        metric.tallies = {writer: tally for writer, tally in metric.tallies.items() if writers[writer].alive}
        metric.ends = self.state.ends

    def _note_index(self, metric: Metric, start: int, count: int) -> None:
        """Note at which index the writer's points begin, if another writer's came before (see `Metric.runs`).

        A brings 5 points, B brings 2, A brings 3 more: the runs are (A, 0, 0), (B, 0, 5), (A, 5, 7). So the point of A
        with the ordinal 6 has the index 7 + 6 - 5 = 8.
        """
        # Points of a writer that has ended fill a gap, so their ordinals are not known. They end the run of another
        # writer all the same.
        counts = self.writer.alive and not self.writer.uncounted
        writer = self.writer.id if counts else NOBODY
        tally = metric.tallies.get(writer, 0)
        if not metric.runs or metric.runs[-1][0] != writer:
            # Only where writers alternate is there a new entry: one writer alone has one, however many points it
            # brings.
            metric.runs = [*metric.runs[1 - RUNS_KEPT :], (writer, tally, start)]
        if counts:
            metric.tallies[writer] = tally + count


def _is_point(row: dict[Any, Any]) -> bool:
    """True if the fields of a point are values that a caller can have recorded, under text."""
    return set(map(type, row)) <= _TEXT and all(map(ev.plain, row.values()))


def _points(work: _Batch, body: Any, stamp: StampTuple) -> None:
    """Fold a batch of points with the same fields, given as columns."""
    name, fields, columns = body
    check_metric_name(name)
    if type(fields) is not list or type(columns) is not list or set(map(type, fields)) != _TEXT:
        raise Malformed
    count = len(columns[0])
    if not count or len(set(fields)) != len(fields) or len(fields) != len(columns):
        raise Malformed
    for column in columns:
        if type(column) is not list or len(column) != count or not all_plain(column):
            raise Malformed
    work.flush(name)
    work.add(name, _rows(fields, columns), stamp[0], dict(zip(fields, columns, strict=True)))


def _rows(fields: Sequence[str], columns: Sequence[list[Any]]) -> Rows:
    # Literal dicts for one and two fields are three times as fast as dict(zip()).
    if len(fields) == 1:
        (a,) = fields
        return [{a: x} for x in columns[0]]
    if len(fields) == 2:
        a, b = fields
        return [{a: x, b: y} for x, y in zip(*columns, strict=True)]
    return [dict(zip(fields, values, strict=True)) for values in zip(*columns, strict=True)]


def _ragged_rows(work: _Batch, body: Any, stamp: StampTuple) -> None:
    """Fold a batch of points whose fields vary: they wait as single points do, all with the time of the event."""
    name, rows = body
    check_metric_name(name)
    if type(rows) is not list or not rows:
        raise Malformed
    for row in rows:
        ev.mapping(row)
    waiting = work.rows.get(name) or work.start(name)
    waiting[0].extend(rows)
    waiting[1].extend([stamp[0]] * len(rows))


def _metric(work: _Batch, body: Any, stamp: StampTuple) -> None:
    """Fold new values of a metric's own registers; the metric may have no points yet."""
    name, given = body
    check_metric_name(name)
    given = ev.changes(ev.mapping(given), "description", "tags", "metadata")
    work.flush(name)
    metric = work.metric(name, stamp[0])
    _offer(metric, given, stamp)
    metric.updated_ns = max(metric.updated_ns, stamp[0])
    work.edits.metrics.add(name)


def _rewind(work: _Batch, body: Any, stamp: StampTuple) -> None:
    """Fold a rewind. Only noted here: what it does is decided after the stretch, by `rewinds.settle`."""
    body = ev.mapping(body)
    step, names = ev.step(body["step"]), body.get("metrics")
    if names is not None:
        if type(names) is not list or not names:
            raise Malformed
        names = sorted(set(map(check_metric_name, names)))
    # `count_points` marks points that a rewind may hit, by the rewinds that it knows then; those before it are found by
    # `settle`.
    work.flush_all()
    rewinds.note(work.state, Rewind(stamp[0], stamp[1], step, names))
    work.rewound = True


# -- files ------------------------------------------------------------------------------------------------------------


def _file(work: _Batch, body: Any, stamp: StampTuple) -> None:
    """Fold an added file, and the changes of it that came before it."""
    state, body = work.state, ev.mapping(body)
    time_ns, writer, number = stamp
    given = ev.changes(body, "description", "tags", "metadata")
    checksum = ev.text(body["checksum"])
    # It becomes part of a file name.
    if len(checksum) != 64 or set(checksum) - set("0123456789abcdef"):
        raise Malformed
    added = File(
        id=file_id(bytes.fromhex(writer), number),
        writer=writer,
        seq=number,
        added_ns=time_ns,
        path=ev.text(body["path"]),
        prefix=check_prefix(ev.text(body["prefix"])),
        filename=check_filename(body["filename"]),
        size_bytes=ev.natural(body["sizeBytes"]),
        checksum=checksum,
        content_type=ev.text(body["contentType"]),
        changed=stamp,
    )
    _offer(added, given, stamp)
    state.files[added.id] = added
    state.live_files += 1
    # All checks are done: from here on nothing raises.
    _take_place(work, added)
    # Changes that came before the file, as from another machine whose segments arrived first.
    for kind, later, change in state.early.pop(added.id, []):
        (_file_delete if kind == ev.FILE_DELETE else _file_update)(work, change, later)
    work.edits.moved.append(added.id)
    work.edits.files = True


def _take_place(work: _Batch, added: File) -> None:
    """Insert a file among those of its path, by stamps: each is replaced by the next one.

    A file that arrives late does not replace a newer one: it is replaced by it, at the time at which that one was
    added.
    """
    files = work.state.files
    same_place = work.state.places.setdefault(added.place, [])
    position = bisect_right(same_place, added.stamp, key=lambda file: files[file].stamp)
    if position:
        _end_file(work, files[same_place[position - 1]], replaced_ns=added.added_ns)
    if position < len(same_place):
        _end_file(work, added, replaced_ns=files[same_place[position]].added_ns)
    same_place.insert(position, added.id)


def _end_file(work: _Batch, file: File, *, replaced_ns: int = 0, deleted_ns: int = 0) -> None:
    was_live = file.live
    # The first end releases its content; a later event about it must not release it again.
    if was_live:
        work.edits.released.append(file.blob)
    file.replaced_ns = replaced_ns or file.replaced_ns
    # The earliest deletion counts, whichever comes first. Zero means: none.
    file.deleted_ns = min(file.deleted_ns or deleted_ns, deleted_ns or file.deleted_ns)
    # Not by the call alone: an end at time 0 is none.
    work.state.live_files -= was_live and not file.live
    work.edits.moved.append(file.id)
    work.edits.files = True


def _file_update(work: _Batch, body: Any, stamp: StampTuple) -> None:
    """Fold new values of a file's registers; they count also if the file was deleted or replaced since."""
    body = ev.mapping(body)
    given = ev.changes(body, "description", "tags", "metadata")
    file = _file_of(work, ev.FILE_UPDATE, body, stamp)
    if file is not None:
        _offer(file, given, stamp)


def _file_delete(work: _Batch, body: Any, stamp: StampTuple) -> None:
    """Fold the deletion of a file: it is listed no longer, and its content is released."""
    file = _file_of(work, ev.FILE_DELETE, ev.mapping(body), stamp)
    if file is not None:
        _end_file(work, file, deleted_ns=stamp[0])


def _file_of(work: _Batch, kind: int, body: dict[str, Any], stamp: StampTuple) -> File | None:
    """Return the file that a change is about; None if it has not come yet: the change then waits for it."""
    # Bodies were checked by the callers, so a change that waits is never malformed.
    file = work.state.files.get(ev.text(body["id"]))
    if file is None:
        work.state.early.setdefault(body["id"], []).append((kind, stamp, body))
        return None
    file.changed = max(file.changed, stamp)
    work.edits.files = True
    return file


# POINT is not here: `fold` handles it itself.
# handler(work, body, stamp): checks the body, raises one of _ERRORS if it has the wrong shape, else changes the state.
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
    ev.REWIND: _rewind,
}
