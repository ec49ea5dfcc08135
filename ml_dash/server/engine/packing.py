"""A list of values as few bytes: numbers as arrays of one width, anything else as msgpack.

A packed list is a code and bytes. The code says which of these it is:

    FLOATS    doubles                                       all values are float; every bit stays, also of a NaN
    INTS      integers of 1, 2, 4 or 8 bytes                all are int, and fit into 8 bytes
    STEPS     the first in 8 bytes, then the differences    where these take less room: steps, times
    VALUES    msgpack                                       the rest: texts, mixed types, lists, bool, large integers

    code      bits 0-2: which    bits 3-4: width, as power of two    bit 5: deflated

Packed lists stand one behind the other, after a head that says what they are:

    format: 1 byte    CRC-32 of the rest: 4 bytes    length of the head: 4 bytes    head: msgpack    packed lists

Arrays are little-endian. Of values that lie near each other the upper bytes are nearly equal and the lower ones are
noise. So before an array is deflated its bytes are sorted by their place in the value; each place gets a Huffman code
of its own, or stays as it is. Measured on random doubles of one exponent: 7.6 bytes become 6.8, on doubles that were
floats of 32 bits: 3.9 become 3.0. Zstandard is four times as fast, its output is no smaller, and its package takes
24 MB.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from itertools import accumulate, compress
from operator import sub
from typing import Any, Final, Literal, TypeAlias

import msgspec

from ...errors import Damaged, NewerFormat

VALUES: Final = 0
FLOATS: Final = 1
INTS: Final = 2
STEPS: Final = 3

# Of a thousand random bytes 251 are different ones. To deflate such takes most of the time, and gains nothing.
_NOISE: Final = 240

_KIND: Final = 0b111
_WIDTH: Final = 3
_DEFLATED: Final = 1 << 5

# As text: arrays have no parameters at run time before Python 3.12.
Column: TypeAlias = "list[Any] | array[Any]"
"""Values to which more are added: an array of doubles or of integers of 8 bytes while all are such, else a list."""

IntType = Literal["b", "h", "i", "q"]
_INT_TYPES: Final[tuple[IntType, ...]] = ("b", "h", "i", "q")
# The exact types: a bool is an int for isinstance, and would come back as one.
_FLOAT: Final[set[type]] = {float}
_INT: Final[set[type]] = {int}
_FIRST: Final = struct.Struct("<q")
_START: Final = struct.Struct("<BI")
_LENGTH: Final = struct.Struct("<I")
_BIG_ENDIAN: Final = sys.byteorder == "big"
assert (_FIRST.size, _START.size, _LENGTH.size) == (8, 5, 4)
assert array("d").itemsize == 8
assert [array(kind).itemsize for kind in _INT_TYPES] == [1, 2, 4, 8]

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Any]).decode


def most_names(rows: int) -> int:
    """Return up to how many names so many rows become columns: each column costs as much as several values."""
    return max(64, 4 * rows)


def pack(values: list[Any], *, deflate: bool = False) -> tuple[int, bytes]:
    """Return (code, bytes) of plain values (see `core.values`); `deflate` takes longer and gives fewer bytes."""
    kinds = set(map(type, values))
    if kinds == _FLOAT:
        return _finished(FLOATS, 3, b"", array("d", values), deflate)
    if kinds == _INT:
        packed = _pack_ints(values, deflate)
        if packed is not None:
            return packed
    data = _encode(values)
    if deflate:
        smaller = deflated(data)
        if len(smaller) < len(data):
            return VALUES | _DEFLATED, smaller
    return VALUES, data


def pack_column(column: Column, *, deflate: bool = False) -> tuple[int, bytes]:
    """Return (code, bytes) of a column; without `deflate` that takes hardly longer than to copy it."""
    if deflate or isinstance(column, list):
        return pack(list(column), deflate=deflate)
    # Swapping bytes happens in place.
    return _finished(FLOATS if column.typecode == "d" else INTS, 3, b"", array(column.typecode, column), False)


def extended(column: Column, values: list[Any]) -> Column:
    """Return a column with some values added: the same one if these are of its type, else another one."""
    kinds = set(map(type, values))
    kind: Literal["d", "q"] | None = "d" if kinds == _FLOAT else "q" if kinds == _INT else None
    if kind is not None and (not column or (isinstance(column, array) and column.typecode == kind)):
        try:
            more: array[Any] | None = array(kind, values)
        except OverflowError:
            # An integer needs more than 8 bytes.
            more = None
        if more is not None:
            if not isinstance(column, array):
                return more
            column.extend(more)
            return column
    if not isinstance(column, list):
        column = column.tolist()
    column += values
    return column


def _pack_ints(values: list[int], deflate: bool) -> tuple[int, bytes] | None:
    """Return (code, bytes) of integers; None if one of them needs more than 8 bytes."""
    low, high = min(values), max(values)
    width = _width(low, high)
    if width is None:
        return None
    count = len(values)
    if width and count > 1:
        steps = list(map(sub, values[1:], values))
        least, most = min(steps), max(steps)
        narrow = _width(least, most)
        if narrow is not None and (
            _FIRST.size + (count - 1 << narrow) < count << width
            # Of the same width: what varies less deflates better.
            or (deflate and narrow <= width and most - least < high - low and count > 8)
        ):
            return _finished(STEPS, narrow, _FIRST.pack(values[0]), array(_INT_TYPES[narrow], steps), deflate)
    return _finished(INTS, width, b"", array(_INT_TYPES[width], values), deflate)


def _width(low: int, high: int) -> int | None:
    """Return the width, as power of two, in which all of [low, high] fit; None if there is none."""
    # The bits of a negative number but its sign are those of its complement.
    bits = max(low if low >= 0 else ~low, high if high >= 0 else ~high).bit_length()
    return 0 if bits < 8 else 1 if bits < 16 else 2 if bits < 32 else 3 if bits < 64 else None


def _finished(kind: int, width: int, first: bytes, numbers: array[Any], deflate: bool) -> tuple[int, bytes]:
    if _BIG_ENDIAN:
        numbers.byteswap()
    code, data = kind | width << _WIDTH, numbers.tobytes()
    if deflate:
        smaller = _by_place(data, 1 << width)
        if len(smaller) < len(data):
            return code | _DEFLATED, first + smaller
    return code, first + data


def deflated(data: bytes) -> bytes:
    """Return bytes deflated, with neither header nor checksum: both stand elsewhere."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def _by_place(data: bytes, width: int) -> bytes:
    """Return the bytes of values of `width` bytes, sorted by their place in the value; what is not noise is deflated.

    The first byte has a bit for each place of noise, whose bytes stand before the deflated ones.
    """
    places = [data[place::width] for place in range(width)]
    noise = [len(set(place)) >= _NOISE for place in places]
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, strategy=zlib.Z_FILTERED)
    pieces = [bytes([sum(bit << place for place, bit in enumerate(noise))]), *compress(places, noise)]
    for place, noisy in zip(places, noise, strict=True):
        if not noisy:
            # A block for each place: its bytes are unlike those of the others.
            pieces += [packer.compress(place), packer.flush(zlib.Z_BLOCK)]
    return b"".join(pieces) + packer.flush()


def are_numbers(code: int) -> bool:
    """Return True if a packed list holds only int, or only float; False says nothing."""
    return code & _KIND != VALUES


def unpack(code: int, data: bytes | memoryview, count: int) -> list[Any]:
    """Return the `count` values of (code, bytes). Raises Damaged if they are not what `pack` made of so many values."""
    kind, width = code & _KIND, code >> _WIDTH & 0b11
    try:
        if kind == VALUES:
            values = _decode(inflated(data) if code & _DEFLATED else data)
        elif kind == STEPS:
            rest = _numbers(_INT_TYPES[width], data[_FIRST.size :], code, count - 1)
            values = list(accumulate(rest, initial=_FIRST.unpack_from(data)[0]))
        else:
            values = _numbers("d" if kind == FLOATS else _INT_TYPES[width], data, code, count)
    except (ValueError, IndexError, zlib.error, msgspec.DecodeError, struct.error) as error:
        raise Damaged(f"packed values of code {code}, {len(data):,} bytes, cannot be read: {error}") from None
    if len(values) != count:
        raise Damaged(f"packed values of code {code}: {len(values):,} instead of {count:,}")
    return values


def _numbers(kind: Literal["d"] | IntType, data: bytes | memoryview, code: int, count: int) -> list[Any]:
    numbers: array[Any] = array(kind)
    width = numbers.itemsize
    if code & _DEFLATED:
        data = _by_value(data, width, count)
    numbers.frombytes(data)
    if _BIG_ENDIAN:
        numbers.byteswap()
    return numbers.tolist()


def _by_value(data: bytes | memoryview, width: int, count: int) -> bytes:
    """Return `count` values from what `_by_place` made of them. Raises ValueError if it was another number."""
    noise = [data[0] >> place & 1 for place in range(width)]
    behind = 1 + sum(noise) * count
    raw, rest = data[1:behind], inflated(data[behind:], (width - sum(noise)) * count)
    values = bytearray(count * width)
    for place, noisy in enumerate(noise):
        # Of another length than the slice they raise.
        if noisy:
            values[place::width], raw = raw[:count], raw[count:]
        else:
            values[place::width], rest = rest[:count], rest[count:]
    if rest:
        raise ValueError("the deflated bytes are of more values")
    return bytes(values)


def inflated(data: bytes | memoryview, size: int | None = None) -> bytes:
    """Inflate bytes; with `size`, never more than one byte beyond it."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(data) if size is None else inflater.decompress(data, size + 1)
    if not inflater.eof:
        raise ValueError("the deflated bytes end too early, or are of more values")
    return data


def framed(version: int, head: Any, parts: list[bytes]) -> bytes:
    """Return packed lists behind a head, which says what they are."""
    encoded = _encode(head)
    body = b"".join([_LENGTH.pack(len(encoded)), encoded, *parts])
    return _START.pack(version, zlib.crc32(body)) + body


def unframed(data: bytes, version: int, what: str) -> tuple[memoryview, memoryview]:
    """Return (head, packed lists) of what `framed` made; `what` is for messages.

    Raises NewerFormat if the version is another one, Damaged if the checksum does not hold.
    """
    if data and data[0] != version:
        raise NewerFormat(f"{what} has format {data[0]}, this ml-dash reads {version}", hint="upgrade ml-dash here")
    body = memoryview(data)[_START.size :]
    if len(body) < _LENGTH.size or _START.unpack_from(data)[1] != zlib.crc32(body):
        raise Damaged(f"{what}, {len(data):,} bytes, is damaged: its checksum does not hold")
    end = _LENGTH.size + _LENGTH.unpack_from(body)[0]
    return body[_LENGTH.size : end], body[end:]
