"""The order of a journal: an append-only record of how its segments were merged, and of observed deaths.

Each record is a frame of the same form as an event's, its payload an array of four:

    [1, segment id, start, end]   the frames in bytes [start, end) of that segment come next
    [2, writer id, segment, end]  that writer's lock was free, and its segments, read to `end`, hold no closing event

Readers follow the records, skip stretches that they have read, and pass over damaged records: what those named is then
found as not yet covered, and merged again.

Why it exists: positions in the merged sequence are the numbers of log entries and the indices of points. Two readers
that merged by themselves would number differently. A record, once written, is a fact for all.

A record is written by one `write` in append mode. A crash leaves none, all of it, or a torn end, which readers pass
over; `append` then writes behind it, and the torn bytes count as a damaged record. Records are not synced one by one:
whoever is about to remove something that depends on them calls `sync`. A power cut may take the end of the file: the
numbers may come out differently then, and no event is lost or doubled, because records hold positions and no events.

Appending is for the process that has the turn. Where locks do not work several may have it: `put` then tells where the
records came to lie, and the merger sees that others came first.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import msgspec

from ..core.frames import (
    HEAD,
    LengthCrcs,
    decode_order_header,
    encode_frame,
    encode_header,
    find_frame,
    header_size,
    walk,
)
from ..disk.durable import data_sync, fail_point, read_at, write_all
from ..errors import Damaged
from .mend import mend_header
from .segment import ORDER, read_identity

# Kinds of records in the file.
# Numbers in the format: never used again for anything else.
STRETCH: Final = 1
DEATH: Final = 2

# Bytes read at once: some 100,000 records.
_CHUNK_BYTES: Final = 4 << 20
# Records of this one shape only; the third element is a number or an id.
_decode: Final = msgspec.msgpack.Decoder(tuple[int, bytes, Any, int]).decode


@dataclass(frozen=True, slots=True)
class MergeRecord:
    """The frames in bytes [start, end) of a segment come next in the sequence."""

    segment: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Death:
    """A writer was found dead; its last segment had been read to `end` then (zeros if nothing was read)."""

    writer: str
    segment: str = "00" * 16
    end: int = 0


Record = MergeRecord | Death


def stretch_payload(segment: str, start: int, end: int) -> bytes:
    """Encode the merge record of a stretch."""
    packed: bytes = msgpack.packb([STRETCH, bytes.fromhex(segment), start, end])
    return packed


def death_payload(writer: str, segment: str, end: int) -> bytes:
    """Encode the record of a death: how far the writer had been read when its lock was found free."""
    packed: bytes = msgpack.packb([DEATH, bytes.fromhex(writer), bytes.fromhex(segment), end])
    return packed


class Order:
    """The `order` file of a journal. Only the process that has the turn appends; anyone may read."""

    def __init__(self, journal: Path) -> None:
        self.path = journal / ORDER
        # -1 also while there is no file: `read` yields nothing then.
        self._fd = -1
        self._crcs = LengthCrcs(0)
        # The offset of the first record; 0 if there is no file.
        self.first = 0

    def open(self, *, write: bool) -> None:
        """Open the file and check its header. Without `write`, a missing or headless file counts as empty.

        With `write`, it is begun anew under the journal's identity. Raises OSError, JournalError.
        """
        flags = (os.O_RDWR | os.O_APPEND if write else os.O_RDONLY) | getattr(os, "O_CLOEXEC", 0)
        # What lies at the path may be a pipe, which would block, or a link to somewhere else. Windows needs O_BINARY.
        for extra in ("O_BINARY", "O_NONBLOCK", "O_NOFOLLOW"):
            flags |= getattr(os, extra, 0)
        try:
            self._fd = os.open(self.path, flags)
            self._read_header()
        except (FileNotFoundError, Damaged):
            # A newer format is not caught: it is no damage, and nothing is begun anew over it.
            self.close()
            if not write:
                return
            self._begin_anew()
            self._fd = os.open(self.path, flags)
            self._read_header()

    def _read_header(self) -> None:
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise Damaged(f"{self.path} is not a regular file")
        start = read_at(self._fd, 4096, 0)
        size = header_size(start)
        if size > len(start):
            start = read_at(self._fd, size, 0)
        try:
            _, self.first, crc = decode_order_header(start)
        except Damaged:
            # One changed byte in the header must not cost all records: their checksums continue from it.
            mended = mend_header(start)
            if mended is None:
                raise
            _, self.first, crc = decode_order_header(mended)
        self._crcs = LengthCrcs(crc)

    def _begin_anew(self) -> None:
        """Begin a new file; a damaged one is renamed and stays as evidence: its records are lost with its header."""
        # The nonce makes the header's checksum another one, so that a reader with a position in the old file notices.
        identity = read_identity(self.path.parent)._replace(nonce=os.urandom(8))
        if self.path.exists():
            os.replace(self.path, self.path.with_name(f"{ORDER}.damaged.{os.urandom(4).hex()}"))
        # Written aside, then linked: the file appears with its whole header, and `link` refuses if another one is
        # there.
        temporary = self.path.with_name(f".{ORDER}.{os.urandom(4).hex()}.tmp")
        temporary.write_bytes(encode_header(identity))
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            # Another process was first, although we have the turn: locks do not work here. There is one order for all.
            temporary.unlink()
        except OSError:
            # A file system without links.
            os.replace(temporary, self.path)
        else:
            temporary.unlink()

    @property
    def identity(self) -> str:
        """The header's CRC in hex, by which this file differs from another one at the same path."""
        return f"{self._crcs.header_crc:08x}"

    def read(self, start: int) -> Iterator[tuple[Record, int]]:
        """Yield the records from byte `start` on, each with the offset behind it; damaged ones are passed over."""
        if self._fd < 0:
            return
        position = max(start, self.first)
        # Fixed at the beginning: another process may append meanwhile.
        size = os.fstat(self._fd).st_size
        while position < size:
            buffer = read_at(self._fd, min(_CHUNK_BYTES, size - position), position)
            records: list[tuple[int, bytes, Any, int]] = []
            stop = walk(buffer, 0, self._crcs, _decode, records)
            if not stop:
                # A damaged record, or the torn end of one. The next one is looked for in this buffer.
                at = find_frame(buffer, 1, self._crcs, _decode)
                if at < 0:
                    return
                position += at
                continue
            # `walk` gives payloads without offsets; the lengths in the buffer give them again.
            offset = 0
            for kind, who, third, end in records:
                offset += HEAD.size + int(HEAD.unpack_from(buffer, offset)[0])
                if kind == STRETCH and isinstance(third, int):
                    yield MergeRecord(who.hex(), third, end), position + offset
                elif kind == DEATH:
                    segment = third.hex() if isinstance(third, bytes) and len(third) == 16 else "00" * 16
                    yield Death(who.hex(), segment, max(0, end)), position + offset
            position += stop

    def append(self, payloads: list[bytes]) -> int:
        """Append records; return the offset behind them. On return they are with the operating system."""
        return self.put(payloads)[1]

    def put(self, payloads: list[bytes]) -> tuple[int, int]:
        """Append records; return the offsets [start, end) at which they lie.

        Where locks do not work, another process may have appended meanwhile: `start` is then not where this one
        expected.
        """
        fail_point("order-append")
        data = b"".join(encode_frame(payload, self._crcs) for payload in payloads)
        write_all(self._fd, data)
        # In append mode the system sets the position behind what was just written, also if another process had appended
        # before.
        end = os.lseek(self._fd, 0, os.SEEK_CUR)
        return end - len(data), end

    def sync(self) -> None:
        """Make the records survive a power cut."""
        data_sync(self._fd)

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
