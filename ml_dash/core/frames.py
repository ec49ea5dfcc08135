"""The layout of a segment: its header and its frames, as bytes. Knows no files.

A segment is a header followed by frames. All integers are little-endian.

    header   magic 8 | version u16 | length u16 | body (msgpack array, `length` bytes) | crc32 u32 of all before it
    frame    length u32 | crc32 u32 | payload (msgpack array [seq, kind, time_ns, body], `length` bytes)

A frame's CRC covers its length and its payload and starts from the header's CRC, so that a frame of one segment is
never taken for a frame of another. CRC-32 is the one of zlib (ISO 3309); it does not detect deliberate forgery.
docs/format.md draws the same bytes, with an example that a test decodes.

Why a CRC and not only a length: after a crash a file system may show zeros, old content, or blocks of another file. Why
it covers the length: a changed length would otherwise make the reader take the wrong bytes for a frame, and miss the
next.

Reading has two ways. `walk` takes frames one behind the other, as long as they hold. Where one does not, `find_frame`
looks for the next place at which one does; what lies between is damaged. Both are linear in what they read, apart from
places that look like a frame and are none.

Pure functions on bytes: nothing here opens a file, and any thread may be in it. The same layout serves segments,
`order` and the base, each with a magic of its own, so that none is taken for another.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgpack

from ..errors import Damaged, NewerFormat

# A byte beyond ASCII and a line feed: a file that was copied as text is noticed at once.
MAGIC: Final = b"\x89MLDASH\n"
ORDER_MAGIC: Final = b"\x89MLDORD\n"
BASE_MAGIC: Final = b"\x89MLDBAS\n"
VERSION: Final = 1
MAX_PAYLOAD: Final = 1 << 20
"""Bytes of the largest payload. A `write` of this size was never torn by SIGKILL; most of 10 MiB were."""
# Of a frame: length of the payload, checksum.
HEAD: Final = struct.Struct("<II")
# Of a header: magic, version, length of the body.
PREFIX: Final = struct.Struct("<8sHH")
CRC: Final = struct.Struct("<I")
SPILLED: Final = 1
"""msgpack ext type in place of a body that is stored as a blob: SHA-256 (32 bytes), size u64."""
SPILL: Final = struct.Struct("<32sQ")

assert HEAD.size == 8
assert PREFIX.size == 12

# A frame begins with a length of at most 1 MiB and, after its CRC, an array of four. One compiled look-ahead finds
# every such place; the CRC decides.
# In little-endian bytes: the third byte of a length of at most 1 MiB is at most 0x10, the fourth is 0; 0x94 begins an
# array of four. Look-ahead, so that candidates may overlap.
CANDIDATE: Final = re.compile(rb"(?s)(?=..[\x00-\x10]\x00....\x94)")


Event = tuple[int, int, int, Any]
"""(seq, kind, time_ns, body)"""
Decode = Callable[[bytes], Any]


class Header(NamedTuple):
    """The header of a segment: its writer and journal. Ids are 16 random bytes, times ns since the epoch."""

    journal: bytes
    segment: bytes
    writer: bytes
    n: int
    first_seq: int
    created_ns: int
    project: str
    name: str


class OrderHeader(NamedTuple):
    """The header of an `order` file: the journal to which it belongs."""

    journal: bytes
    project: str
    name: str
    # Differs between an `order` that was begun anew and the one before it.
    nonce: bytes = b""


class LengthCrcs(dict[int, int]):
    """length → CRC of its four bytes, continued from the header's CRC; filled as lengths appear.

    `crc32(payload, crcs[length])` is then the checksum of a frame. Most events of a run have one of a few lengths.
    """

    def __init__(self, header_crc: int) -> None:
        super().__init__()
        self.header_crc = header_crc

    def __missing__(self, length: int) -> int:
        self[length] = crc = crc32(length.to_bytes(4, "little"), self.header_crc)
        return crc


def encode_header(header: Header | OrderHeader, magic: bytes = b"") -> bytes:
    """Encode the header of a segment or `order`, or with its magic of a base. The last four bytes are its CRC.

    The checksums of frames continue from that CRC.
    """
    magic = magic or (MAGIC if isinstance(header, Header) else ORDER_MAGIC)
    body: bytes = msgpack.packb(header)
    head = PREFIX.pack(magic, VERSION, len(body)) + body
    return head + CRC.pack(crc32(head))


def header_size(start: bytes) -> int:
    """Return the size in bytes of the header at the beginning of `start`; 0 if there are too few bytes to know."""
    if len(start) < PREFIX.size:
        return 0
    return PREFIX.size + int(PREFIX.unpack_from(start)[2]) + CRC.size


def _header_fields(start: bytes, magic: bytes, count: int) -> tuple[list[Any], int, int]:
    """Return (fields, size in bytes, CRC) of a header with that magic, with at least `count` fields.

    Raises Damaged, NewerFormat.
    """
    size = header_size(start)
    if not size or len(start) < size:
        raise Damaged(f"the header is cut off after {len(start)} bytes")
    actual, version, length = PREFIX.unpack_from(start)
    if actual != magic:
        raise Damaged(f"the file starts with {actual!r}, expected {magic!r}")
    (crc,) = CRC.unpack_from(start, size - CRC.size)
    expected = crc32(start[: size - CRC.size])
    if crc != expected:
        raise Damaged(f"header checksum {crc:08x}, expected {expected:08x}")
    # Every version keeps this frame around its header, so that "newer" is never a flipped bit.
    if version > VERSION:
        raise NewerFormat(
            f"the file is format {version}, this ml-dash reads up to {VERSION}",
            hint="upgrade ml-dash (the file was not changed)",
        )
    try:
        fields = msgpack.unpackb(start[PREFIX.size : PREFIX.size + length])
    except (ValueError, msgpack.UnpackException) as error:
        raise Damaged(f"the header is not msgpack: {error}") from None
    # More fields are no error: later versions may append some.
    if not isinstance(fields, list) or len(fields) < count:
        raise Damaged("the header does not hold the fields of its format")
    return fields, size, crc


def decode_header(start: bytes) -> tuple[Header, int, int]:
    """Decode a segment's header: (header, its size in bytes, its CRC). Raises Damaged or NewerFormat."""
    fields, size, crc = _header_fields(start, MAGIC, 8)
    ids, numbers, texts = fields[:3], fields[3:6], fields[6:8]
    _check_types(ids, numbers, texts)
    return Header(*fields[:8]), size, crc


def decode_order_header(start: bytes, magic: bytes = ORDER_MAGIC) -> tuple[OrderHeader, int, int]:
    """Decode the header of an `order` file, or with its magic of a base: (header, size in bytes, CRC).

    Raises Damaged or NewerFormat.
    """
    fields, size, crc = _header_fields(start, magic, 3)
    _check_types(fields[:1], [], fields[1:3])
    nonce = fields[3] if len(fields) > 3 and isinstance(fields[3], bytes) else b""
    return OrderHeader(fields[0], fields[1], fields[2], nonce), size, crc


def _check_types(ids: list[Any], numbers: list[Any], texts: list[Any]) -> None:
    """Raise Damaged if the fields of a header are not of their types: a checksum can also be right by forgery."""
    good = (
        all(isinstance(value, bytes) and len(value) == 16 for value in ids)
        and all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in numbers)
        and all(isinstance(value, str) for value in texts)
    )
    if not good:
        raise Damaged("the header does not hold the fields of its format")


def encode_frame(payload: bytes, crcs: LengthCrcs) -> bytes:
    """Encode the frame that holds `payload` (at most 1 MiB)."""
    length = len(payload)
    # Callers store longer bodies as blobs. Readers would take such a frame for damage.
    assert length <= MAX_PAYLOAD
    return HEAD.pack(length, crc32(payload, crcs[length])) + payload


def walk(buffer: bytes, start: int, crcs: LengthCrcs, decode: Decode, payloads: list[Any]) -> int:
    """Append the decoded payloads of the whole frames from `start` on to `payloads`; return the offset after them.

    It stops before a frame that is not whole, and before a payload for which `decode` raises ValueError.
    """
    size, position = len(buffer), start
    # Local names: this loop runs once for each event that is ever read.
    unpack, append, head, largest = HEAD.unpack_from, payloads.append, HEAD.size, MAX_PAYLOAD
    try:
        while position + head <= size:
            length, crc = unpack(buffer, position)
            end = position + head + length
            # Too long, or not whole in this buffer: the caller decides which.
            if length > largest or end > size:
                break
            payload = buffer[position + head : end]
            if crc32(payload, crcs[length]) != crc:
                break
            append(decode(payload))
            position = end
    except (ValueError, RecursionError):
        pass
    return position


def might_grow(buffer: bytes, position: int) -> bool:
    """True if the bytes from `position` on can be the beginning of a frame that is not complete yet."""
    rest = len(buffer) - position
    if rest < HEAD.size:
        return True
    length = int(HEAD.unpack_from(buffer, position)[0])
    # A frame that is all there and does not hold is damaged, and no further bytes will make it hold.
    return length <= MAX_PAYLOAD and rest < HEAD.size + length


def find_frame(buffer: bytes, start: int, crcs: LengthCrcs, decode: Decode) -> int:
    """Return the first offset from `start` on at which a whole frame verifies, or -1."""
    size = len(buffer)
    for match in CANDIDATE.finditer(buffer, start):
        position = match.start()
        length, crc = HEAD.unpack_from(buffer, position)
        end = position + HEAD.size + length
        if length > MAX_PAYLOAD or end > size:
            continue
        payload = buffer[position + HEAD.size : end]
        # Not by `crcs[length]`: lengths that chance put there would fill that dictionary.
        if crc32(payload, crc32(length.to_bytes(4, "little"), crcs.header_crc)) != crc:
            continue
        if _decodes(payload, decode):
            return position
    return -1


def _decodes(payload: bytes, decode: Decode) -> bool:
    """True if a payload decodes: CRC-32 alone would let one in four billion candidates pass."""
    try:
        decode(payload)
    except (ValueError, RecursionError):
        return False
    return True


def spilled(digest: bytes, size: int) -> msgpack.ExtType:
    """Return the value that replaces a body stored as a blob in its frame."""
    return msgpack.ExtType(SPILLED, SPILL.pack(digest, size))
