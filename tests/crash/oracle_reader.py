"""Reads a journal by the published format alone: what the library is judged by. Shares no code with it.

docs/format.md is all that this was written from. It is simple rather than fast: structs, msgpack, zlib's CRC-32.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack

MAGIC: Final = b"\x89MLDASH\n"
LARGEST: Final = 1 << 20
OPEN, CLOSE, LOG, PARAMS, POINT, POINTS, ROWS, METRIC, FILE, FILE_UPDATE, FILE_DELETE, UPDATE, LOST = range(1, 14)

_SEGMENT_NAME: Final = re.compile(r"([0-9]{20})-([0-9a-f]{32})-([0-9]{6})\.seg")
_BLOB_NAME: Final = re.compile(r"([0-9a-f]{64})-([0-9a-f]{32})-([0-9]+)")


class FormatError(Exception):
    """The bytes are not what the format says."""


@dataclass(frozen=True)
class Header:
    """What a segment says of itself."""

    journal: bytes
    segment: bytes
    writer: bytes
    n: int
    first_seq: int
    created_ns: int
    project: str
    name: str
    size: int
    crc: int


@dataclass(frozen=True)
class Frame:
    """One event where it stands."""

    start: int
    end: int
    seq: int
    kind: int
    time_ns: int
    body: Any
    raw: bytes


@dataclass
class Segment:
    """All that could be read of one file."""

    path: Path
    size: int
    header: Header | None = None
    frames: list[Frame] = field(default_factory=list)
    # Byte ranges between frames that hold none, and what is left at the end.
    damaged: list[tuple[int, int]] = field(default_factory=list)
    tail: tuple[int, int] | None = None


def read_header(data: bytes) -> Header:
    """The header at the start of `data`. Raises FormatError, IndexError for one that is cut off."""
    if len(data) < 12:
        raise IndexError
    magic, version, length = struct.unpack_from("<8sHH", data)
    if magic != MAGIC:
        raise FormatError(f"magic {magic!r}")
    if version != 1:
        raise FormatError(f"version {version}")
    end = 12 + length
    if len(data) < end + 4:
        raise IndexError
    (crc,) = struct.unpack_from("<I", data, end)
    if zlib.crc32(data[:end]) != crc:
        raise FormatError("header checksum")
    body = msgpack.unpackb(data[12:end])
    journal, segment, writer, n, first_seq, created_ns, project, name = body[:8]
    return Header(journal, segment, writer, n, first_seq, created_ns, project, name, end + 4, crc)


def frame_at(data: bytes, position: int, crc: int) -> Frame | None:
    """The whole frame at `position`, if one holds there."""
    if position + 8 > len(data):
        return None
    length, expected = struct.unpack_from("<II", data, position)
    end = position + 8 + length
    if length > LARGEST or end > len(data):
        return None
    payload = data[position + 8 : end]
    if zlib.crc32(payload, zlib.crc32(data[position : position + 4], crc)) != expected:
        return None
    try:
        event = msgpack.unpackb(payload, strict_map_key=False)
    except (ValueError, msgpack.UnpackException):
        return None
    if not isinstance(event, list) or len(event) != 4 or not all(isinstance(part, int) for part in event[:3]):
        return None
    return Frame(position, end, event[0], event[1], event[2], event[3], payload)


def _next_frame(data: bytes, position: int, crc: int) -> Frame | None:
    # Every payload starts with the byte of a msgpack array of four, eight bytes behind the frame's start.
    at = data.find(b"\x94", position + 8)
    while at >= 0:
        found = frame_at(data, at - 8, crc)
        if found is not None:
            return found
        at = data.find(b"\x94", at + 1)
    return None


def salvage_header(data: bytes, file_name: str) -> Header | None:
    """What a damaged header was, if a frame holds behind it that starts from its checksum, stored or computed."""
    match = _SEGMENT_NAME.fullmatch(file_name)
    at = data.find(b"\x94", 24, 8192)
    while match is not None and at >= 0:
        start = at - 8
        for crc in (int.from_bytes(data[start - 4 : start], "little"), zlib.crc32(data[: start - 4])):
            frame = frame_at(data, start, crc)
            if frame is not None:
                writer, n, created = bytes.fromhex(match[2]), int(match[3]), int(match[1])
                return Header(b"", file_name.encode(), writer, n, frame.seq, created, "", "", size=start, crc=crc)
        at = data.find(b"\x94", at + 1, 8192)
    return None


def read_bytes(data: bytes, path: Path = Path("segment")) -> Segment:
    """All frames of a segment's content, what lies between them, and what is left at its end."""
    segment = Segment(path, len(data))
    try:
        segment.header = header = read_header(data)
    except (FormatError, IndexError):
        salvaged = salvage_header(data, path.name)
        if salvaged is None:
            segment.tail = (0, len(data))
            return segment
        segment.header = header = salvaged
        segment.damaged.append((0, header.size))
    position = header.size
    while position < len(data):
        frame = frame_at(data, position, header.crc)
        if frame is None:
            frame = _next_frame(data, position + 1, header.crc)
            if frame is None:
                segment.tail = (position, len(data))
                return segment
            segment.damaged.append((position, frame.start))
        segment.frames.append(frame)
        position = frame.end
    return segment


@dataclass
class Journal:
    """All events of a journal, each once, and what was found wrong on the way."""

    path: Path
    segments: list[Segment] = field(default_factory=list)
    # (writer in hex, seq) → (kind, time_ns, body with blobs put in)
    events: dict[tuple[str, int], tuple[int, int, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    rewritten: int = 0

    def writers(self) -> dict[str, list[int]]:
        """Writer → its numbers, ascending."""
        numbers: dict[str, list[int]] = {}
        for writer, seq in self.events:
            numbers.setdefault(writer, []).append(seq)
        return {writer: sorted(found) for writer, found in numbers.items()}

    def in_order(self) -> Iterator[tuple[str, int, int, int, Any]]:
        """(writer, seq, kind, time_ns, body), writers in the order in which they were created."""
        created: dict[str, int] = {}
        for segment in self.segments:
            if segment.header is not None:
                writer = segment.header.writer.hex()
                created[writer] = min(segment.header.created_ns, created.get(writer, 1 << 63))
        for writer, seq in sorted(self.events, key=lambda key: (created[key[0]], key[0], key[1])):
            kind, time_ns, body = self.events[writer, seq]
            yield writer, seq, kind, time_ns, body

    @property
    def damaged_bytes(self) -> int:
        """Bytes in the middle of segments that hold no frame."""
        return sum(end - start for segment in self.segments for start, end in segment.damaged)


def read_journal(path: Path) -> Journal:
    """Everything in `<...>/.journal`; what breaks a rule of the format is listed in `problems`."""
    journal = Journal(path)
    folder = path / "segments"
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _SEGMENT_NAME.fullmatch(file.name)
        if match is None:
            if file.suffix != ".lock":
                journal.problems.append(f"{file.name} does not belong into segments/")
            continue
        segment = read_bytes(file.read_bytes(), file)
        journal.segments.append(segment)
        if segment.header is None:
            continue
        _check_names(journal, segment, match)
        _take_events(journal, segment)
    return journal


def _check_names(journal: Journal, segment: Segment, match: re.Match[str]) -> None:
    header = segment.header
    assert header is not None
    if (int(match[1]), match[2], int(match[3])) != (header.created_ns, header.writer.hex(), header.n):
        journal.problems.append(f"{segment.path.name} holds the header of another segment")
    for other in journal.segments:
        if other is not segment and other.header is not None and other.header.segment == header.segment:
            journal.problems.append(f"{segment.path.name} and {other.path.name} have one id")


def _take_events(journal: Journal, segment: Segment) -> None:
    assert segment.header is not None
    writer = segment.header.writer.hex()
    last_ns, last_seq = 0, -1
    for frame in segment.frames:
        if frame.time_ns < last_ns:
            journal.problems.append(f"{segment.path.name}: time goes back at event {frame.seq}")
        if frame.seq <= last_seq:
            journal.problems.append(f"{segment.path.name}: event {frame.seq} follows {last_seq}")
        last_ns, last_seq = frame.time_ns, frame.seq
        known = journal.events.get((writer, frame.seq))
        body = _with_blob(journal, writer, frame)
        if known is None:
            journal.events[writer, frame.seq] = (frame.kind, frame.time_ns, body)
            continue
        journal.rewritten += 1
        if known != (frame.kind, frame.time_ns, body) and not _same(known, (frame.kind, frame.time_ns, body)):
            journal.problems.append(f"writer {writer} has two different events {frame.seq}")


def _same(one: Any, other: Any) -> bool:
    # NaN is not equal to itself, its bytes are.
    return bool(msgpack.packb(one) == msgpack.packb(other))


def _with_blob(journal: Journal, writer: str, frame: Frame) -> Any:
    body = frame.body
    if not (isinstance(body, msgpack.ExtType) and body.code == 1):
        return body
    digest, size = struct.unpack("<32sQ", body.data)
    path = journal.path / "blobs" / f"{digest.hex()}-{writer}-{frame.seq}"
    if not path.is_file():
        journal.problems.append(f"event {frame.seq} of {writer} names a blob that is not there: {path.name}")
        return body
    content = path.read_bytes()
    if len(content) != size or hashlib.sha256(content).digest() != digest:
        journal.problems.append(f"blob {path.name} is not what its name says")
        return body
    return msgpack.unpackb(content, strict_map_key=False)


def blobs(path: Path) -> dict[tuple[str, int], Path]:
    """(writer, seq) → the blob that belongs to that event."""
    folder = path / "blobs"
    found: dict[tuple[str, int], Path] = {}
    for file in folder.iterdir() if folder.is_dir() else []:
        match = _BLOB_NAME.fullmatch(file.name)
        if match is not None:
            found[match[2], int(match[3])] = file
    return found


# -- the same rules the other way round, for tests that make journals -----------------------------------------------


def make_header(
    writer: bytes,
    *,
    journal: bytes = b"J" * 16,
    segment: bytes = b"S" * 16,
    n: int = 0,
    first_seq: int = 0,
    created_ns: int = 1_700_000_000_000_000_000,
    project: str = "p",
    name: str = "e",
) -> bytes:
    """The header of a segment."""
    body = msgpack.packb([journal, segment, writer, n, first_seq, created_ns, project, name])
    head: bytes = struct.pack("<8sHH", MAGIC, 1, len(body)) + body
    return head + struct.pack("<I", zlib.crc32(head))


def make_frame(header: bytes, seq: int, kind: int, time_ns: int, body: Any) -> bytes:
    """A frame that holds in the segment that starts with `header`."""
    payload: bytes = msgpack.packb([seq, kind, time_ns, body])
    length = struct.pack("<I", len(payload))
    start = zlib.crc32(length, int.from_bytes(header[-4:], "little"))
    return length + struct.pack("<I", zlib.crc32(payload, start)) + payload


def segment_name(writer: bytes, *, n: int = 0, created_ns: int = 1_700_000_000_000_000_000) -> str:
    """The file name that goes with `make_header`."""
    return f"{created_ns:020d}-{writer.hex()}-{n:06d}.seg"
