"""Summaries of stretches of a metric (`core.sampling.Extremes`) by column: for each field, few lists of numbers.

    head      msgpack: [count, [field, ...], deflated]
    field     [name, count, line, [code of each list], [length of each list]]
    line      [slope, base] if x is slope * index + base throughout, as it is where steps are regular; else nil
    lists     at         which summaries have the field; left out if all do
              counts     the number of points in each stretch
              first      the index of the first point of each
              offsets    from the first index to that of the least, of the greatest, and of the last point
              x          of the first points, of the least, of the greatest, of the last; left out if there is a line
              values     in the same order

As msgpack a summary of one field is 70 bytes, deflated 46, and by column 28. But msgpack takes a twentieth of the time
to encode, and is stored where summaries are written again soon, or are few of many fields: `fields` is nil then, and
what follows is the list of summaries, deflated or not.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from itertools import chain
from operator import add, sub
from typing import Any, Final, NamedTuple

import msgspec

from ...core.sampling import Extremes, Found
from ...errors import Damaged
from .packing import deflated, framed, inflated, most_names, pack, unframed, unpack

FORMAT: Final = 1


class _Field(msgspec.Struct, array_like=True):
    name: str
    count: int
    line: tuple[int, int] | None
    codes: list[int]
    lengths: list[int]


class _Head(msgspec.Struct, array_like=True):
    count: int
    fields: list[_Field] | None
    deflated: bool


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Head).decode
_decode_all: Final = msgspec.msgpack.Decoder(list[Extremes]).decode


def encode_summaries(summaries: list[Extremes], *, deflate: bool = False) -> bytes:
    """Encode the summaries of consecutive stretches.

    `deflate` is for what is not written again: fewer bytes, which take longer.
    """
    names = set().union(*summaries)
    # Four points of each stretch are kept.
    if not deflate or len(names) > most_names(4 * len(summaries)):
        data = _encode(summaries)
        return framed(FORMAT, _Head(len(summaries), None, deflate), [deflated(data) if deflate else data])
    fields: list[_Field] = []
    parts: list[bytes] = []
    for name in sorted(names):
        places = [place for place, summary in enumerate(summaries) if name in summary]
        lists, line = _lists([summaries[place][name] for place in places])
        if len(places) < len(summaries):
            lists.insert(0, places)
        packed = [pack(values, deflate=True) for values in lists]
        codes, lengths = [code for code, _ in packed], [len(data) for _, data in packed]
        fields.append(_Field(name, len(places), line, codes, lengths))
        parts += [data for _, data in packed]
    return framed(FORMAT, _Head(len(summaries), fields, deflate), parts)


def _lists(found: list[Found]) -> tuple[list[list[Any]], tuple[int, int] | None]:
    """Return the lists of a field, and the line of its x; the list of x is left out if there is one."""
    counts, *spots = zip(*found, strict=True)
    # First points, least, greatest, last ones; each as (indices, x, values).
    columns = [tuple(zip(*spot, strict=True)) for spot in spots]
    first, *others = (indices for indices, _, _ in columns)
    offsets = list(chain.from_iterable(map(sub, indices, first) for indices in others))
    x = list(chain.from_iterable(x for _, x, _ in columns))
    values = list(chain.from_iterable(values for _, _, values in columns))
    line = _line([*first, *chain.from_iterable(others)], x)
    lists = [list(counts), list(first), offsets, *([x] if line is None else []), values]
    return lists, line


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
        if head.fields is None:
            summaries = _decode_all(inflated(parts) if head.deflated else parts)
            return summaries if field is None else [_only(field, summary) for summary in summaries]
    except (ValueError, zlib.error, msgspec.DecodeError) as error:
        raise Damaged(f"a list of summaries, {len(data):,} bytes, cannot be read: {error}") from None
    if sum(chain.from_iterable(one.lengths for one in head.fields)) != len(parts):
        raise Damaged(f"a list of summaries is {len(data):,} bytes long, and its head describes other ones")
    summaries = [{} for _ in range(head.count)]
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


class Outline(NamedTuple):
    """The summaries of one field of consecutive stretches, by column; stretches without the field are left out.

    `counts`: the values that are not NaN. `indices`, `x`: of the first of them, `last_x`: of the last. `low`, `high`:
    the least and the greatest.
    """

    counts: list[int]
    indices: list[int]
    x: list[Any]
    last_x: list[Any]
    low: list[Any]
    high: list[Any]


def outline_of(found: Iterable[Found]) -> Outline:
    """Return summaries of one field by column."""
    lists: tuple[list[Any], ...] = ([], [], [], [], [], [])
    for count, first, least, greatest, last in found:
        row = count, first[0], first[1], last[1], least[2], greatest[2]
        for values, value in zip(lists, row, strict=True):
            values.append(value)
    return Outline(*lists)


def decode_outline(data: bytes, field: str) -> Outline:
    """Return encoded summaries of one field by column, without making each of them. Raises as `decode_summaries`."""
    encoded, parts = unframed(data, FORMAT, "a list of summaries")
    try:
        head = _decode(encoded)
    except msgspec.DecodeError as error:
        raise Damaged(f"a list of summaries, {len(data):,} bytes, cannot be read: {error}") from None
    if head.fields is None:
        return outline_of(summary[field] for summary in decode_summaries(data, field) if field in summary)
    begin = 0
    for one in head.fields:
        end = begin + sum(one.lengths)
        if one.name == field:
            return _outline(one, parts[begin:end])
        begin = end
    return Outline([], [], [], [], [], [])


def _outline(field: _Field, parts: memoryview) -> Outline:
    lists = _unpacked(field, parts)
    count = field.count
    values = lists.pop()
    x = [] if field.line else lists.pop()
    counts, first, offsets = lists[-3:]
    if field.line:
        slope, base = field.line
        at = [slope * index + base for index in first]
        last = [slope * (index + offset) + base for index, offset in zip(first, offsets[2 * count :], strict=True)]
    else:
        at, last = x[:count], x[3 * count :]
    return Outline(counts, first, at, last, values[count : 2 * count], values[2 * count : 3 * count])


def _only(field: str, summary: Extremes) -> Extremes:
    return {field: summary[field]} if field in summary else {}


def _unpacked(field: _Field, parts: memoryview) -> list[list[Any]]:
    """Return the lists of a field."""
    count, codes, lengths = field.count, list(field.codes), list(field.lengths)
    sizes = [count, count, 3 * count, *([] if field.line else [4 * count]), 4 * count]
    if len(codes) == len(sizes) + 1:
        sizes.insert(0, count)
    if not len(codes) == len(lengths) == len(sizes):
        raise Damaged(f'the summaries of "{field.name}" are {len(codes)} lists instead of {len(sizes)}')
    lists = []
    for code, length, size in zip(codes, lengths, sizes, strict=True):
        lists.append(unpack(code, parts[:length], size))
        parts = parts[length:]
    return lists


def _found(field: _Field, parts: memoryview) -> tuple[list[int] | None, list[Found]]:
    """Return the summaries of a field, and which ones they are; None for all."""
    count = field.count
    lists = _unpacked(field, parts)
    values = lists.pop()
    x = [] if field.line else lists.pop()
    counts, first, offsets = lists[-3:]
    places = lists[0] if len(lists) == 4 else None
    spots = []
    for number in range(4):
        begin = number * count
        indices = first if not number else list(map(add, first, offsets[begin - count : begin]))
        if field.line:
            slope, base = field.line
            at = [slope * index + base for index in indices]
        else:
            at = x[begin : begin + count]
        spots.append(zip(indices, at, values[begin : begin + count], strict=True))
    return places, list(zip(counts, *spots, strict=True))
