"""Lines of points decoded by column, for charts: three times as fast as one mapping for each point."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

import msgspec

from ..core.statistics import NUMBERS
from ..errors import Damaged
from ..projection.lines import read_points

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - lines are in UTC, and all are compared with this
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(slots=True)
class Points:
    """Consecutive points from index `start` on: the values of some fields, and where each point belongs.

    A value is UNSET where a point lacks the field. `steps` are the step of each point, else its epoch, else its index;
    `epochs` the epoch, else the step, else the index. `has_step`, `has_epoch`: some point has the field itself.
    """

    start: int
    values: dict[str, list[Any]]
    steps: list[float]
    epochs: list[float]
    times: list[str]
    has_step: bool
    has_epoch: bool


def decode_points(lines: bytes, start: int, count: int, fields: tuple[str, ...]) -> Points:
    """Decode `count` lines from index `start` on. Raises Damaged for other lines."""
    try:
        columns, times = _columns(lines, start, count, fields)
    except (ValueError, LookupError, TypeError) as error:
        raise Damaged(f"the lines from point {start:,} on are not what was written: {error}") from None
    steps, epochs = columns["step"], columns["epoch"]
    plain_steps, plain_epochs = all_finite(steps), all_finite(epochs)
    has_step, has_epoch = plain_steps or _any_finite(steps), plain_epochs or _any_finite(epochs)
    indices = range(start, start + count)
    shown = steps if plain_steps else _first_of(steps, epochs, indices)
    also = epochs if plain_epochs else shown if not has_epoch else _first_of(epochs, steps, indices)
    values = {field: columns[field] for field in fields}
    return Points(start, values, shown, also, times, has_step, has_epoch)


def _columns(lines: bytes, start: int, count: int, fields: tuple[str, ...]) -> tuple[dict[str, list[Any]], list[str]]:
    """Return the values of fields, of "step" and of "epoch" by name, and the times. Raises ValueError and others."""
    decoded = _decoder(fields).decode_lines(lines)
    if len(decoded) != count or (decoded[0].index, decoded[-1].index) != (start, start + count - 1):
        raise ValueError("lines are missing or moved")
    columns = {field: list(map(attrgetter(f"data.{name}"), decoded)) for field, name in _names(fields).items()}
    if any(str in set(map(type, column)) for column in columns.values()):
        # A text, or a number that JSON has no form for.
        rows, times = read_points(lines, start)
        return {field: [row.get(field, msgspec.UNSET) for row in rows] for field in columns}, times
    return columns, [line.createdAt for line in decoded]


def is_finite(value: Any) -> bool:
    """True for a number that is neither NaN nor infinite."""
    return type(value) in NUMBERS and value - value == 0


def all_finite(values: list[Any]) -> bool:
    """True if these are finite numbers, all of them."""
    if not set(map(type, values)) <= NUMBERS:
        return False
    # A finite sum has finite terms. The other way round it may have overflowed, and then each is looked at.
    total = sum(values)
    return total - total == 0 or all(map(is_finite, values))


def _any_finite(values: list[Any]) -> bool:
    return not NUMBERS.isdisjoint(set(map(type, values))) and any(map(is_finite, values))


def _first_of(wanted: list[Any], otherwise: list[Any], indices: range) -> list[float]:
    return [
        one if is_finite(one) else other if is_finite(other) else index
        for one, other, index in zip(wanted, otherwise, indices, strict=True)
    ]


def microseconds(text: str) -> int:
    """Return the microseconds since 1970 of a time as lines have it: 27 characters, in UTC."""
    return (datetime.fromisoformat(text[:26]) - _EPOCH) // _MICROSECOND


def _names(fields: tuple[str, ...]) -> dict[str, str]:
    """Return field → attribute of the struct that `_decoder` fills."""
    return {field: f"f{number}" for number, field in enumerate(dict.fromkeys((*fields, "step", "epoch")))}


@lru_cache(maxsize=256)
def _decoder(fields: tuple[str, ...]) -> msgspec.json.Decoder[Any]:
    """Return a decoder of lines into structs that have these fields alone: others are passed over undecoded."""
    names = _names(fields)
    data = msgspec.defstruct(
        "Data",
        [(name, Any, msgspec.UNSET) for name in names.values()],
        rename={name: field for field, name in names.items()},
        gc=False,
    )
    line = msgspec.defstruct("Line", [("index", int), ("data", data), ("createdAt", str)], gc=False)
    return msgspec.json.Decoder(line)
