"""Statistics of points: per field, in index order, equal however the points are split.

*Equal however split* has a price: sums are added from left to right, one value after the other, although that is
neither the fastest nor the most exact way. With another way a folder made anew would differ in the last digit from the
one before, and the server's statistics from those here.

Values are counted by column, so that the loops run in C. Superseded points are left out by counting anew, never by
subtracting: `rewinds` keeps copies of the statistics to begin with.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any, Final, cast

from . import events as ev
from .state import Series

# Fields that say where a point belongs, and not what was measured: no statistics are made of them.
NO_SERIES: Final = frozenset(("step", "epoch", "timestamp"))
# Exact types: a bool is an int for isinstance, and is no measurement.
NUMBERS: Final = frozenset((int, float))
_TEXT: Final = {str}

Row = dict[str, Any]
Rows = list[Row]
Columns = dict[str, list[Any]]


def step_of(row: Row) -> int | float | None:
    """Return the step of a point, else its epoch; None if it has no such number."""
    for key in ("step", "epoch"):
        value = row.get(key)
        # NaN does not equal itself.
        if type(value) in NUMBERS and value == value:
            return cast("int | float", value)
    return None


def steps_of(rows: Rows, columns: Columns) -> list[int | float]:
    """Return the step (else epoch) of each point that has one."""
    # The usual case: each point has a number as its step, and the column is the answer. If there is a step column with
    # fewer values, or with texts, each point is asked by itself below, where its epoch may stand in.
    values = columns.get("step") or columns.get("epoch")
    if values is None:
        return []
    if len(values) == len(rows) and set(map(type, values)) <= NUMBERS:
        # A sum is NaN if one of the values is; it is also NaN for infinities of both signs, and then the slow way says
        # the same.
        total = sum(values)
        if total == total:
            return values
    return [step for step in map(step_of, rows) if step is not None]


def columns_of(rows: Rows, *, checked: bool = False) -> Columns | None:
    """Return the values of some points by field; None if one is a value that no caller can have appended."""
    # All fields of all points, found in C.
    names: set[Any] = set().union(*rows)
    if not checked and set(map(type, names)) - _TEXT:
        return None
    # Every point has every field: no test for each value.
    if set(map(len, rows)) == {len(names)}:
        columns = {name: [row[name] for row in rows] for name in names}
    else:
        columns = {name: [row[name] for row in rows if name in row] for name in names}
    return columns if checked or all(map(all_plain, columns.values())) else None


def all_plain(values: list[Any]) -> bool:
    """True if a caller can have recorded each of these values."""
    return ev.all_leaves(values) or all(map(ev.plain, values))


def count_columns(all_series: dict[str, Series], columns: Columns) -> None:
    """Add the values of new points to the statistics, field by field."""
    for name, values in columns.items():
        if name not in NO_SERIES:
            _count_values(all_series, name, values)


def _count_values(all_series: dict[str, Series], name: str, values: list[Any]) -> None:
    """Add the values of one field, in their order."""
    kinds = set(map(type, values))
    if not kinds <= NUMBERS:
        # Texts, bools, lists, None: shown with the point, and not counted.
        values = [value for value in values if type(value) in NUMBERS]
    if not values:
        return
    series = all_series.get(name)
    if series is None:
        series = all_series[name] = Series(first=values[0])
    series.count += len(values)
    series.last = values[-1]
    # Plain left-to-right addition gives the same result however the points are split. `sum` does not: since
    # Python 3.12 it compensates rounding errors.
    total = reduce(add, map(float, values) if int in kinds else values, series.total)
    # NaN among the values (or infinities of both signs): add again without it.
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
    """Return the sum, continued from `total`, of the values that are not NaN, and these values."""
    numbers = [value for value in values if value == value]
    return reduce(add, map(float, numbers), total), numbers
