"""Points of a metric by column: a block of up to a thousand, and ten such blocks in one object.

A block is written as a whole, and read field by field: who needs one field unpacks that alone.

    head      msgpack: [count, time, names, shapes, [code of each part], [length of each part]]
    parts     the times, if each point has its own; the shape of each row, if there are several; a column per name

`packing` says how head and parts are put together, and what a part is. A shape is the fields of a row in their order.
Nearly always all rows have the same one, and `shapes` is empty; else it lists, for each, positions in `names`, and a
column holds only the values of the rows that have it. Rows of more shapes, or more names than a table can gain from,
stand as msgpack in one part: `names` is nil then. Otherwise a thousand rows that have nothing in common would cost a
thousand columns each time.

    chunk     magic: 4 bytes     number of blocks: 4 bytes     length of each: 4 bytes     the blocks

A chunk is what object storage gets. The offset and the length of a block in it are known when it is made, so that a
request for a range of bytes brings one block, which has its own checksum.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from struct import Struct
from typing import Any, Final

import msgspec

from ...core import sampling
from ...core.sampling import Extremes, Spot
from ...core.state import Block
from ...core.statistics import NO_SERIES, NUMBERS, Columns, Rows
from ...errors import Damaged
from ...projection.lines import point_lines
from .packing import Column, are_numbers, extended, framed, most_names, pack_column, unframed, unpack

FORMAT: Final = 1

_CHUNK: Final = Struct("<4sI")
_LENGTH: Final = Struct("<I")
_MAGIC: Final = b"mdc1"
assert (_CHUNK.size, _LENGTH.size) == (8, 4)

# Of more shapes, a table has no more use: see above.
_MOST_SHAPES: Final = 256


class _Head(msgspec.Struct, array_like=True):
    count: int
    time: int | None
    names: list[str] | None
    shapes: list[list[int]]
    codes: list[int]
    lengths: list[int]


_decode: Final = msgspec.msgpack.Decoder(_Head).decode


def encode(rows: Rows, times: list[int] | int, *, deflate: bool = False) -> bytes:
    """Encode consecutive points and their times in ns (one for all, or one each); `deflate` as in `Table.encode`."""
    table = Table()
    table.add(rows, times)
    return table.encode(deflate=deflate)


class Table:
    """Consecutive points to which more are added. An integer takes 8 bytes meanwhile, so that adding costs what is new.

    One thread at a time. Rows that make no table are kept as they are, and must not be changed by who gave them.
    """

    def __init__(self) -> None:
        self.count = 0
        """The number of points."""
        self._times: int | Column = []
        # Shape → its number, name → its place; the number of each row's shape, and a column per name.
        self._shapes: dict[tuple[str, ...], int] = {}
        self._names: dict[str, int] = {}
        self._numbers = array("H")
        self._columns: list[Column] = []
        # All rows, once they make no table.
        self._rows: Rows | None = None

    @classmethod
    def of(cls, points: Points) -> Table:
        """Return a table of points that were encoded, to add more."""
        table = cls()
        if points.count:
            table.add(points.rows(), points.times)
        return table

    def add(self, rows: Rows, times: list[int] | int) -> None:
        """Add points that follow, and their times in ns: one for all, or one each."""
        assert isinstance(times, int) or len(times) == len(rows)
        if not rows:
            return
        self._add_times(times, len(rows))
        self.count += len(rows)
        if self._rows is not None:
            self._rows += rows
            return
        shapes, columns = _columns(rows)
        for shape in dict.fromkeys(shapes):
            self._add_shape(shape)
        if len(self._shapes) > _MOST_SHAPES or len(self._names) > most_names(self.count):
            self._rows = self._kept_rows() + rows
            return
        numbers = array("H", [self._shapes[shape] for shape in shapes])
        self._numbers += numbers if len(shapes) > 1 else numbers * len(rows)
        for name, values in columns.items():
            place = self._names[name]
            self._columns[place] = extended(self._columns[place], values)

    def _add_times(self, times: list[int] | int, count: int) -> None:
        if not self.count:
            self._times = times if isinstance(times, int) else extended([], times)
            return
        if isinstance(times, int) and times == self._times:
            return
        if isinstance(self._times, int):
            self._times = extended([], [self._times] * self.count)
        self._times = extended(self._times, [times] * count if isinstance(times, int) else times)

    def _add_shape(self, shape: tuple[str, ...]) -> None:
        if shape in self._shapes:
            return
        self._shapes[shape] = len(self._shapes)
        for name in shape:
            if name not in self._names:
                self._names[name] = len(self._names)
                self._columns.append([])

    def _kept_rows(self) -> Rows:
        """Return the rows that are in columns."""
        shapes = list(self._shapes)
        rest = dict(zip(self._names, map(iter, self._columns), strict=True))
        return [{name: next(rest[name]) for name in shapes[number]} for number in self._numbers]

    def encode(self, *, deflate: bool = False) -> bytes:
        """Return the points as bytes; `deflate` is for what is not written again: fewer bytes, which take longer."""
        times = self._times
        columns: list[Column] = [] if isinstance(times, int) else [times]
        names, shapes = None, []
        if self._rows is not None:
            columns.append(self._rows)
        else:
            names = list(self._names)
            # One shape is that of all rows, and its names are all names, in their order.
            if len(self._shapes) > 1:
                shapes = [[self._names[name] for name in shape] for shape in self._shapes]
                columns.append(self._numbers.tolist())
            columns += self._columns
        parts = [pack_column(column, deflate=deflate) for column in columns]
        time = times if isinstance(times, int) else None
        head = _Head(self.count, time, names, shapes, [code for code, _ in parts], [len(data) for _, data in parts])
        return framed(FORMAT, head, [data for _, data in parts])


def _columns(rows: Rows) -> tuple[list[tuple[str, ...]], Columns]:
    """Return the shapes (of each row, or one for all), and the values of each field, of those rows that have it."""
    names = list(rows[0])
    # In C. No row has a name twice; so if all names one after the other are those of the first row again and again,
    # then each row has them, in that order.
    if list(chain.from_iterable(rows)) == names * len(rows):
        return [tuple(names)], {name: [row[name] for row in rows] for name in names}
    shapes = list(map(tuple, rows))
    columns: Columns = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return shapes, columns


def decode(data: bytes) -> Points:
    """Return the points of an encoded block; columns are unpacked when they are asked for.

    Raises NewerFormat for a format that this program does not know, Damaged for what is no block.
    """
    head, parts = unframed(data, FORMAT, "a block of points")
    try:
        return Points(_decode(head), parts)
    except msgspec.DecodeError as error:
        raise Damaged(f"the head of a block of points, {len(data):,} bytes, cannot be read: {error}") from None


class Points:
    """Consecutive points, read by column. What it returns is kept and must not be changed."""

    def __init__(self, head: _Head, data: memoryview) -> None:
        self.count = head.count
        """The number of points."""
        names = head.names or []
        special = (head.time is None) + (bool(head.shapes) or head.names is None)
        fitting = len(head.codes) == len(head.lengths) == special + len(names)
        if not fitting or sum(head.lengths) != len(data) or min(head.lengths, default=0) < 0 or head.count < 0:
            raise Damaged(f"a block of points is {len(data):,} bytes long, and its head describes other parts")
        self._head = head
        self._data = data
        self._begins = list(accumulate(head.lengths, initial=0))
        self._place_of = {name: place for place, name in enumerate(names, special)}
        # Part → its values.
        self._unpacked: dict[int, list[Any]] = {}
        # Field → the rows that have it.
        self._having: dict[str, list[int]] = {}

    @property
    def fields(self) -> list[str]:
        """The names of all fields, in the order in which they first occur."""
        if self._head.names is None:
            return list(dict.fromkeys(chain.from_iterable(self.rows())))
        return self._head.names

    @property
    def times(self) -> list[int] | int:
        """The times in ns: one for all points, or one each."""
        return self._part(0, self.count) if self._head.time is None else self._head.time

    def column(self, field: str) -> tuple[list[Any], list[int] | None]:
        """Return the values of a field, and which points have it: their places, None if all do.

        A field that no point has gives two empty lists.
        """
        if self._head.names is None:
            found = [(place, row[field]) for place, row in enumerate(self.rows()) if field in row]
            return [value for _, value in found], [place for place, _ in found]
        part = self._place_of.get(field)
        if part is None:
            return [], []
        places = self._places(field)
        return self._part(part, self.count if places is None else len(places)), places

    def columns(self) -> Columns:
        """Return the values of each field, of those points that have it: as `core.statistics.columns_of`."""
        return {name: self.column(name)[0] for name in self.fields}

    def rows(self, start: int = 0, stop: int | None = None) -> Rows:
        """Return the points [start, stop) as they were encoded."""
        stop = self.count if stop is None else min(stop, self.count)
        names, shapes = self._head.names, self._head.shapes
        if names is None:
            return self._part(self._special - 1, self.count)[start:stop]
        found: Rows = [{} for _ in range(start, stop)]
        if not shapes:
            # Column by column: faster than a dict from each row of a transposed table.
            for name, part in self._place_of.items():
                for row, value in zip(found, self._part(part, self.count)[start:stop], strict=True):
                    row[name] = value
            return found
        rest = []
        for name in names:
            values, places = self.column(name)
            rest.append(iter(values if not places else values[bisect_left(places, start) :]))
        for row, number in zip(found, self._numbers[start:stop], strict=True):
            for place in shapes[number]:
                row[names[place]] = next(rest[place])
        return found

    def lines(self, first: int, start: int = 0, stop: int | None = None) -> bytes:
        """Return the points [start, stop) as lines of `data.jsonl`; `first` is the index of point 0 of the block."""
        times = self.times
        return point_lines(
            Block(first + start, self.rows(start, stop), times if isinstance(times, int) else times[start:stop])
        )

    def extremes(self, first: int, start: int = 0, stop: int | None = None, field: str | None = None) -> Extremes:
        """Return the summary of the points [start, stop), field by field or of one field, as `core.sampling.extremes`.

        `first` is the index of point 0 of the block.
        """
        stop = self.count if stop is None else min(stop, self.count)
        if self._head.names is None:
            return sampling.extremes(self.rows(start, stop), first + start, field)
        found: Extremes = {}
        for name in self._place_of if field is None else (field,):
            if field is None and name in NO_SERIES:
                continue
            values, places = self.column(name)
            low, high = (start, stop) if places is None else (bisect_left(places, start), bisect_left(places, stop))
            values = values[low:high]
            # Which of all points each value belongs to; a range where no value is left out.
            at: Sequence[int] = range(low, high) if places is None else places[low:high]
            if not self._all_numbers(name, values):
                kept = [i for i, value in enumerate(values) if type(value) in NUMBERS and value == value]
                values, at = [values[i] for i in kept], [at[i] for i in kept]
            if not values:
                continue
            chosen = (0, values.index(min(values)), values.index(max(values)), len(values) - 1)
            spots = [self._spot(first, at[i], values[i]) for i in chosen]
            found[name] = (len(values), spots[0], spots[1], spots[2], spots[3])
        return found

    def _all_numbers(self, field: str, values: list[Any]) -> bool:
        """Return True if some values of a field are int or float, and surely none is NaN."""
        part = self._place_of.get(field)
        if part is None or (not are_numbers(self._head.codes[part]) and not set(map(type, values)) <= NUMBERS):
            return False
        return not sampling.may_hold_nan(values)

    def _spot(self, first: int, place: int, value: Any) -> Spot:
        return first + place, sampling.x_of(self._step_fields(place), first + place), value

    def _step_fields(self, place: int) -> dict[str, Any]:
        """Return of one point what it may be drawn at."""
        row = {}
        for name in ("step", "epoch"):
            values, places = self.column(name)
            at = place if places is None else bisect_left(places, place)
            if places is None or (at < len(places) and places[at] == place):
                row[name] = values[at]
        return row

    @property
    def _special(self) -> int:
        """The number of parts before the columns."""
        return len(self._head.codes) - len(self._place_of)

    @property
    def _numbers(self) -> list[int]:
        """The number of each row's shape."""
        return self._part(self._special - 1, self.count)

    def _places(self, field: str) -> list[int] | None:
        """Return which points have a field of the table; None if all do."""
        if not self._head.shapes:
            return None
        places = self._having.get(field)
        if places is None:
            position = self._place_of[field] - self._special
            having = {number for number, shape in enumerate(self._head.shapes) if position in shape}
            places = [place for place, number in enumerate(self._numbers) if number in having]
            self._having[field] = places
        return places

    def _part(self, part: int, count: int) -> list[Any]:
        values = self._unpacked.get(part)
        if values is None:
            data = self._data[self._begins[part] : self._begins[part + 1]]
            values = self._unpacked[part] = unpack(self._head.codes[part], data, count)
        return values


def encode_chunk(blocks: Iterable[bytes]) -> tuple[bytes, list[tuple[int, int]]]:
    """Return encoded blocks as one object, and (offset, length) of each in it."""
    blocks = list(blocks)
    offset = _CHUNK.size + _LENGTH.size * len(blocks)
    pieces, ranges = [_CHUNK.pack(_MAGIC, len(blocks))], []
    for block in blocks:
        pieces.append(_LENGTH.pack(len(block)))
        ranges.append((offset, len(block)))
        offset += len(block)
    return b"".join([*pieces, *blocks]), ranges


def decode_chunk(data: bytes) -> list[bytes]:
    """Return the encoded blocks of a chunk; `decode` checks each. Raises Damaged if the chunk is cut off."""
    view = memoryview(data)
    if len(data) < _CHUNK.size or data[:4] != _MAGIC:
        raise Damaged(f"an object of {len(data):,} bytes is no chunk of points: it begins with {data[:4]!r}")
    count = _CHUNK.unpack_from(data)[1]
    offset = _CHUNK.size + _LENGTH.size * count
    if len(data) < offset:
        raise Damaged(f"a chunk of {count:,} blocks of points is cut off after {len(data):,} bytes")
    blocks = []
    for (length,) in _LENGTH.iter_unpack(view[_CHUNK.size : offset]):
        blocks.append(bytes(view[offset : offset + length]))
        offset += length
    if offset != len(data):
        raise Damaged(f"a chunk of {count:,} blocks of points is {len(data):,} bytes long instead of {offset:,}")
    return blocks
