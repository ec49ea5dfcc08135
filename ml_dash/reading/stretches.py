"""The series index: summaries of stretches of a metric's points, kept in the cache and built as points come.

A chart of ten million points needs a thousand buckets, not ten million lines. So for each field of a metric a row is
kept for every 50, 1,000, 10,000 and 100,000 lines of `data.jsonl` (`core.sampling.UNITS`); its columns are the `Row`
below. All are float64, by column, in chunks of `ROWS` rows; times are in microseconds since 1970, exact until 2255.
Only whole thousands of lines are indexed. What follows is read from the lines.

The folder's files only grow. `trail` is a CRC of the last bytes that were indexed: if it does not hold, the file was
replaced by another one, and the metric is indexed anew.

A database holds one experiment. It is a cache (see `reading.cached`): deleting it costs time alone.
"""

from __future__ import annotations

import sqlite3
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from zlib import crc32

from ..core.envelope import name_of
from ..core.sampling import UNITS
from ..core.statistics import NUMBERS
from ..projection.checkpoint import LINES_PER_MARK
from .points import Points, all_finite, decode_points, is_finite, microseconds
from .view import Lines

VERSION: Final = 1
SCHEMA: Final = """
CREATE TABLE metric (name TEXT PRIMARY KEY, first INTEGER, lines INTEGER, size INTEGER, trail INTEGER,
                     steps INTEGER, epochs INTEGER) WITHOUT ROWID;
CREATE TABLE chunk (metric TEXT, field TEXT, unit INTEGER, number INTEGER, rows BLOB,
                    PRIMARY KEY (metric, field, unit, number));
CREATE TABLE odd (metric TEXT, field TEXT, point INTEGER, step REAL, epoch REAL, time REAL, value TEXT,
                  PRIMARY KEY (metric, field, point)) WITHOUT ROWID;
CREATE TABLE logs (number INTEGER PRIMARY KEY, levels BLOB, offsets BLOB)
"""
ROWS: Final = 200
"""Rows of a chunk."""
LEVELS: Final = UNITS[1:]
BATCH: Final = 20 * LINES_PER_MARK
"""Lines that are indexed in one transaction, at most."""

# Bytes before the end of what is indexed whose CRC is kept.
_TRAIL_BYTES: Final = 4096
# Values that are not finite of which the places are kept, for each field.
_MOST_ODD: Final = 10_000
_NAN: Final = float("nan")
_INFINITY: Final = float("inf")
_NOWHERE: Final = (_INFINITY, -_INFINITY) * 3


class Row(NamedTuple):
    """The summary of one stretch of one field. Of an empty one numbers are NaN, and bounds infinite.

    `start`: its first line. `counts`: finite values; `odd`: NaN and infinities. `at` (the index), `value`, `step`,
    `epoch`, `time`: of its first finite value; `low`, `high`: bounds of these. The others are the bounds of where all
    its numbers belong, also those that are not finite.
    """

    start: float
    counts: float
    odd: float
    at: float
    low: float
    high: float
    value: float
    step: float
    epoch: float
    time: float
    least_step: float
    greatest_step: float
    least_epoch: float
    greatest_epoch: float
    earliest: float
    latest: float


WIDTH: Final = len(Row._fields)


@dataclass(frozen=True, slots=True)
class Indexed:
    """How much of a metric is in its index: lines [first, lines); whether any point had a step, and an epoch."""

    first: int
    lines: int
    has_step: bool
    has_epoch: bool


# -- reading ----------------------------------------------------------------------------------------------------------


def indexed(database: sqlite3.Connection, metric: str, lines: Lines) -> Indexed | None:
    """Return what is indexed of a metric; None if that is nothing, or of another file."""
    found = database.execute(
        "SELECT first, lines, size, trail, steps, epochs FROM metric WHERE name = ?", (metric,)
    ).fetchone()
    if found is None:
        return None
    first, count, size, trail, steps, epochs = found
    known = lines.known
    place = known.mark_before(count)[0]
    ends = [*known.marks[place : place + 1], known.size]
    if first != known.first or count > known.lines or ends[0] != size or _trail(lines, size) != trail:
        return None
    return Indexed(first, count, bool(steps), bool(epochs))


def rows(database: sqlite3.Connection, metric: str, field: str, unit: int, start: int, end: int) -> list[array[float]]:
    """Return the rows of stretches that begin in [start, end), by column."""
    columns = [array("d") for _ in range(WIDTH)]
    if start >= end:
        return columns
    each = unit * ROWS
    found = database.execute(
        "SELECT rows FROM chunk WHERE metric = ? AND field = ? AND unit = ? AND number BETWEEN ? AND ? ORDER BY number",
        (metric, field, unit, start // each, (end - 1) // each),
    )
    for (blob,) in found:
        numbers = array("d")
        numbers.frombytes(blob)
        height = len(numbers) // WIDTH
        starts = numbers[:height]
        low, high = bisect_left(starts, start), bisect_left(starts, end)
        for place, column in enumerate(columns):
            column.extend(numbers[place * height + low : place * height + high])
    return columns


def marks(
    database: sqlite3.Connection, metric: str, field: str, start: int, end: int, limit: int
) -> list[tuple[int, float, float, float, str]]:
    """Return (point, step, epoch, time, value) of values that are not finite, of points [start, end)."""
    return database.execute(
        "SELECT point, step, epoch, time, value FROM odd WHERE metric = ? AND field = ? AND point >= ? AND point < ? "
        "ORDER BY point LIMIT ?",
        (metric, field, start, end, limit),
    ).fetchall()


# -- building ---------------------------------------------------------------------------------------------------------


def extend(database: sqlite3.Connection, metric: str, fields: Sequence[str], lines: Lines) -> int:
    """Index up to `BATCH` more lines of a metric; return how many are still to be indexed.

    Raises Damaged, OSError if lines are not what they should be, sqlite3.Error.
    """
    known = lines.known
    have = indexed(database, metric, lines)
    if have is None:
        forget(database, metric)
        have = Indexed(known.first, known.first, has_step=False, has_epoch=False)
    end = known.lines - known.lines % LINES_PER_MARK
    position, stop = have.lines, min(end, have.lines - have.lines % LINES_PER_MARK + BATCH)
    if position >= stop:
        return 0
    steps, epochs = have.has_step, have.has_epoch
    fresh: dict[str, list[Row]] = {field: [] for field in fields}
    while position < stop:
        behind = position - position % LINES_PER_MARK + LINES_PER_MARK
        points = decode_points(lines.read(position, behind), position, behind - position, tuple(fields))
        for field, of_field in fresh.items():
            of_field += _summarised(points, field)
            _keep_odd(database, metric, field, points)
        steps, epochs = steps or points.has_step, epochs or points.has_epoch
        position = behind
    for field, of_field in fresh.items():
        _append(database, metric, field, LEVELS[0], of_field)
        for finer, unit in zip(LEVELS, LEVELS[1:], strict=False):
            joined = []
            for low in range(have.lines - have.lines % unit, position - unit + 1, unit):
                parts = rows(database, metric, field, finer, low, low + unit)
                if parts[0]:
                    joined.append(_joined(parts))
            _append(database, metric, field, unit, joined)
    note(database, metric, lines, position, has_step=steps, has_epoch=epochs)
    return end - position


def note(
    database: sqlite3.Connection, metric: str, lines: Lines, end: int, *, has_step: bool, has_epoch: bool
) -> None:
    """Note that the lines before `end`, which is a multiple of a thousand, are indexed."""
    known = lines.known
    size = known.marks[known.mark_before(end)[0]] if end < known.lines else known.size
    database.execute(
        "REPLACE INTO metric VALUES (?, ?, ?, ?, ?, ?, ?)",
        (metric, known.first, end, size, _trail(lines, size), has_step, has_epoch),
    )


def forget(database: sqlite3.Connection, metric: str) -> None:
    """Drop what is indexed of a metric."""
    database.execute("DELETE FROM metric WHERE name = ?", (metric,))
    database.execute("DELETE FROM chunk WHERE metric = ?", (metric,))
    database.execute("DELETE FROM odd WHERE metric = ?", (metric,))


def _trail(lines: Lines, size: int) -> int:
    """Return the CRC of the last bytes of a file before `size`; -1 if they are not there."""
    begin = max(0, size - _TRAIL_BYTES)
    try:
        with lines.path.open("rb") as file:
            file.seek(begin)
            data = file.read(size - begin)
    except OSError:
        return -1
    return crc32(data) if len(data) == size - begin else -1


def _summarised(points: Points, field: str) -> list[Row]:
    """Return the rows of the stretches of `LEVELS[0]` points."""
    values, unit = points.values[field], LEVELS[0]
    clean = all_finite(values)
    found, low = [], 0
    while low < len(values):
        start = points.start + low
        high = min(len(values), low + unit - start % unit)
        if clean:
            part = slice(low, high)
            where = _bounds(points.steps[part], points.epochs[part], points.times[part])
            found.append(_row(points, start, 0, values[part], low, where))
        else:
            numbers = [place for place in range(low, high) if type(values[place]) in NUMBERS]
            finite = [place for place in numbers if is_finite(values[place])]
            of = (points.steps, points.epochs, points.times)
            where = _bounds(*([column[place] for place in numbers] for column in of)) if numbers else _NOWHERE
            chosen = [values[place] for place in finite]
            first = finite[0] if finite else low
            found.append(_row(points, start, len(numbers) - len(finite), chosen, first, where))
        low = high
    return found


def _bounds(steps: list[Any], epochs: list[Any], times: list[Any]) -> tuple[float, ...]:
    """Return the least and greatest step, epoch and time."""
    least, greatest = min(steps), max(steps)
    # Mostly the same numbers: where points have no epochs.
    of_epochs = (least, greatest) if epochs == steps else (min(epochs), max(epochs))
    # Texts of one length are in the order of their times.
    return least, greatest, *of_epochs, microseconds(min(times)), microseconds(max(times))


def _row(points: Points, start: int, odd: int, finite: list[Any], first: int, where: tuple[float, ...]) -> Row:
    """Return the row of a stretch with these finite values, the first of them at place `first`."""
    if not finite:
        return Row(start, 0, odd, start, _INFINITY, -_INFINITY, _NAN, _NAN, _NAN, _NAN, *where)
    at = points.start + first
    belongs = points.steps[first], points.epochs[first], microseconds(points.times[first])
    return Row(start, len(finite), odd, at, min(finite), max(finite), finite[0], *belongs, *where)


def _joined(parts: list[array[float]]) -> Row:
    """Return the row of consecutive stretches together."""
    by_name = dict(zip(Row._fields, parts, strict=True))
    counts = by_name["counts"]
    first = next((place for place, count in enumerate(counts) if count), 0)
    return Row(
        by_name["start"][0], sum(counts), sum(by_name["odd"]), by_name["at"][first],
        min(by_name["low"]), max(by_name["high"]),
        *(by_name[name][first] for name in ("value", "step", "epoch", "time")),
        *(
            extreme(by_name[name])
            for extreme, name in (
                (min, "least_step"), (max, "greatest_step"), (min, "least_epoch"), (max, "greatest_epoch"),
                (min, "earliest"), (max, "latest"),
            )
        ),
    )  # fmt: skip


def _append(database: sqlite3.Connection, metric: str, field: str, unit: int, new: list[Row]) -> None:
    """Add rows to the chunks in which they lie."""
    each = unit * ROWS
    place = 0
    while place < len(new):
        number = int(new[place].start) // each
        stop = place
        while stop < len(new) and int(new[stop].start) // each == number:
            stop += 1
        columns = rows(database, metric, field, unit, number * each, int(new[place].start))
        for column, values in zip(columns, zip(*new[place:stop], strict=True), strict=True):
            column.extend(values)
        blob = b"".join(column.tobytes() for column in columns)
        database.execute("REPLACE INTO chunk VALUES (?, ?, ?, ?, ?)", (metric, field, unit, number, blob))
        place = stop


def _keep_odd(database: sqlite3.Connection, metric: str, field: str, points: Points) -> None:
    """Keep where values are that are not finite, up to `_MOST_ODD` of them."""
    values = points.values[field]
    if all_finite(values):
        return
    odd = [place for place, value in enumerate(values) if type(value) in NUMBERS and not is_finite(value)]
    if not odd:
        return
    (known,) = database.execute("SELECT COUNT(*) FROM odd WHERE metric = ? AND field = ?", (metric, field)).fetchone()
    database.executemany(
        "REPLACE INTO odd VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (metric, field, points.start + place, points.steps[place], points.epochs[place],
             microseconds(points.times[place]), name_of(values[place]))
            for place in odd[: max(0, _MOST_ODD - known)]
        ],
    )  # fmt: skip
