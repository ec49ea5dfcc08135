"""Repair of a segment's header in which one byte has changed.

All checksums of a segment continue from the header's. So one changed bit there would make every frame in it unreadable:
64 MiB for one bit. But a header is redundant enough to find the change:

    magic and ids     one wrong byte: try all values at all places until the stored checksum holds
    length            wrong: try each place at which a frame may begin, until the stored checksum holds
    checksum          wrong: the header is right, and the first frame shows it, since it continues from the true one

Only in memory: the file stays as it is, and each reader mends it again. A header of at most 1 KiB costs at most some
260,000 checksums, which is what bounds the search to one byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from zlib import crc32

from ..core.frames import CANDIDATE, CRC, HEAD, PREFIX, header_size

# Two names of at most 200 bytes each, three ids, three numbers.
_LARGEST_HEADER_BYTES: Final = 1 << 10


def mend_header(start: bytes) -> bytes | None:
    """Return `start` with its header repaired, if damage to one byte explains the wrong checksum; else None.

    Nothing is guessed: the checksum must be right afterwards. Damage to the checksum itself (up to four bytes) is found
    by the first frame, whose checksum continues from the true one; a wrong length, by the size at which everything
    verifies.
    """
    # For each size take the header to end there, with the length that goes with it.
    for size in _possible_sizes(start):
        head, stored = bytearray(start[: size - CRC.size]), int.from_bytes(start[size - CRC.size : size], "little")
        head[PREFIX.size - 2 : PREFIX.size] = (size - PREFIX.size - CRC.size).to_bytes(2, "little")
        computed = crc32(head)
        # Either only the length was wrong, or (a frame holds) the stored checksum was.
        if computed == stored or _frame_holds(start, size, computed):
            return bytes(head) + CRC.pack(computed) + start[size:]
        # Only for the stated size: a change of one byte elsewhere means that the length is right.
        mended = _with_one_byte_changed(head, stored) if size == header_size(start) else None
        if mended is not None:
            return mended + start[size - CRC.size :]
    return None


def _possible_sizes(start: bytes) -> Iterator[int]:
    """Yield the size that the header states, then every other size after which a frame may begin."""
    stated = header_size(start)
    if PREFIX.size + CRC.size <= stated <= min(len(start), _LARGEST_HEADER_BYTES):
        yield stated
    for match in CANDIDATE.finditer(start, PREFIX.size + CRC.size, _LARGEST_HEADER_BYTES):
        if match.start() != stated:
            yield match.start()


def _frame_holds(buffer: bytes, position: int, header_crc: int) -> bool:
    """True if a frame at `position` has a checksum that continues from `header_crc`.

    An empty payload proves nothing.
    """
    if position + HEAD.size > len(buffer):
        return False
    length, crc = HEAD.unpack_from(buffer, position)
    payload = buffer[position + HEAD.size : position + HEAD.size + length]
    if not length or len(payload) != length:
        return False
    return crc32(payload, crc32(length.to_bytes(4, "little"), header_crc)) == int(crc)


def _with_one_byte_changed(head: bytearray, wanted: int) -> bytes | None:
    """Return `head` with the one byte changed that makes its CRC `wanted`; None if there is none."""
    for position, right in enumerate(bytes(head)):
        before = crc32(head[:position])
        # The checksum of what is before is computed once for all 256 values.
        rest = bytes(head[position + 1 :])
        for value in range(256):
            if value != right and crc32(rest, crc32(bytes((value,)), before)) == wanted:
                return bytes(head[:position]) + bytes((value,)) + rest
    return None
