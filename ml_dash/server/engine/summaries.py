"""Summaries of stretches of a metric (`core.sampling.Extremes`) by column: for each field, few lists of numbers.

    head      msgpack: [count, [field, ...]]
    field     [name, count, slope, base, [code of each list], [length of each list]]
    lists     at         which summaries have the field; left out if all do
              counts     the number of points in each stretch
              first      the index of the first point of each
              offsets    from the first index to that of the least, of the greatest, and of the last point
              x          of the first points, of the least, of the greatest, of the last; left out if x is
                         slope * index + base throughout, as it is where steps are regular
              values     in the same order

Summaries are read by the thousand, to draw a chart, and made one at a time. As msgpack, a summary of one field is about
100 bytes, and its numbers deflate badly between each other's names and lengths.
"""

from __future__ import annotations

from itertools import chain
from operator import add, sub
from typing import Any, Final

import msgspec

from ...core.sampling import Extremes, Found
from ...errors import Damaged
from .packing import framed, pack, unframed, unpack

FORMAT: Final = 1

_NO_LINE: Final = (0, 0)


class _Field(msgspec.Struct, array_like=True):
    name: str
    count: int
    slope: int
    base: int
    codes: list[int]
    lengths: list[int]


class _Head(msgspec.Struct, array_like=True):
    count: int
    fields: list[_Field]


_decode: Final = msgspec.msgpack.Decoder(_Head).decode


def encode_summaries(summaries: list[Extremes], *, deflate: bool = False) -> bytes:
    """Encode the summaries of consecutive stretches; `deflate` as in `packing.pack`."""
    fields: list[_Field] = []
    parts: list[bytes] = []
    for name in sorted(set().union(*summaries)):
        places = [place for place, summary in enumerate(summaries) if name in summary]
        lists, line = _lists([summaries[place][name] for place in places])
        if len(places) < len(summaries):
            lists.insert(0, places)
        packed = [pack(values, deflate=deflate) for values in lists]
        codes, lengths = [code for code, _ in packed], [len(data) for _, data in packed]
        fields.append(_Field(name, len(places), *line, codes, lengths))
        parts += [data for _, data in packed]
    return framed(FORMAT, _Head(len(summaries), fields), parts)


def _lists(found: list[Found]) -> tuple[list[list[Any]], tuple[int, int]]:
    """Return the lists of a field, and (slope, base) of its x; the list of x is left out where these say all."""
    counts, *spots = zip(*found, strict=True)
    # First points, least, greatest, last ones; each as (indices, x, values).
    columns = [tuple(zip(*spot, strict=True)) for spot in spots]
    first, *others = (indices for indices, _, _ in columns)
    offsets = list(chain.from_iterable(map(sub, indices, first) for indices in others))
    x = list(chain.from_iterable(x for _, x, _ in columns))
    values = list(chain.from_iterable(values for _, _, values in columns))
    line = _line([*first, *chain.from_iterable(others)], x)
    lists = [list(counts), list(first), offsets, *([] if line else [x]), values]
    return lists, line or _NO_LINE


def _line(indices: list[int], x: list[Any]) -> tuple[int, int] | None:
    """Return (slope, base) if every x is slope * index + base and an int; else None."""
    if set(map(type, x)) != {int}:
        return None
    end = max(range(len(indices)), key=indices.__getitem__)
    apart = indices[end] - indices[0]
    slope = (x[end] - x[0]) // apart if apart else 1
    base = x[0] - slope * indices[0]
    # What does not fit into 8 bytes is not worth it.
    if max(abs(slope), abs(base)) >> 62 or any(
        slope * index + base != at for index, at in zip(indices, x, strict=True)
    ):
        return None
    return slope, base


def decode_summaries(data: bytes, field: str | None = None) -> list[Extremes]:
    """Return encoded summaries in their order, of all fields or of one; one without that field is empty.

    Raises NewerFormat for a format that this program does not know, Damaged for what are no summaries.
    """
    encoded, parts = unframed(data, FORMAT, "a list of summaries")
    try:
        head = _decode(encoded)
    except msgspec.DecodeError as error:
        raise Damaged(f"the head of a list of summaries, {len(data):,} bytes, cannot be read: {error}") from None
    if sum(chain.from_iterable(one.lengths for one in head.fields)) != len(parts):
        raise Damaged(f"a list of summaries is {len(data):,} bytes long, and its head describes other ones")
    summaries: list[Extremes] = [{} for _ in range(head.count)]
    begin = 0
    for one in head.fields:
        end = begin + sum(one.lengths)
        if field is None or one.name == field:
            places, found = _found(one, parts[begin:end])
            if places is None and len(found) == head.count:
                places = list(range(head.count))
            if places is None or not all(0 <= place < head.count for place in places):
                raise Damaged(f'a list of summaries names other ones than it has for "{one.name}"')
            for place, spots in zip(places, found, strict=True):
                summaries[place][one.name] = spots
        begin = end
    return summaries


def _found(field: _Field, parts: memoryview) -> tuple[list[int] | None, list[Found]]:
    """Return the summaries of a field, and which ones they are; None for all."""
    count, codes, lengths = field.count, list(field.codes), list(field.lengths)
    straight = (field.slope, field.base) != _NO_LINE
    sizes = [count, count, 3 * count, *([] if straight else [4 * count]), 4 * count]
    if len(codes) == len(sizes) + 1:
        sizes.insert(0, count)
    if not len(codes) == len(lengths) == len(sizes):
        raise Damaged(f'the summaries of "{field.name}" are {len(codes)} lists instead of {len(sizes)}')
    lists = []
    for code, length, size in zip(codes, lengths, sizes, strict=True):
        lists.append(unpack(code, parts[:length], size))
        parts = parts[length:]
    values = lists.pop()
    x = None if straight else lists.pop()
    counts, first, offsets = lists[-3:]
    places = lists[0] if len(lists) == 4 else None
    spots = []
    for number in range(4):
        begin = number * count
        indices = first if not number else list(map(add, first, offsets[begin - count : begin]))
        at = [field.slope * index + field.base for index in indices] if x is None else x[begin : begin + count]
        spots.append(zip(indices, at, values[begin : begin + count], strict=True))
    return places, list(zip(counts, *spots, strict=True))
