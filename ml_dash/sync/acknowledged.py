"""What a server has acknowledged of a journal, by the uploader's cursor: perhaps too little, never too much.

No network: `sync.proof` asks the server itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from zlib import crc32

from ..core.frames import HEAD, MAX_PAYLOAD
from ..core.ranges import Range, overlapping, size_of
from ..disk.durable import read_at
from ..journal.blobs import names
from ..journal.reader import Segment, Stretch, Tail, decode_event, is_partial, open_segment, read
from ..journal.segment import list_segments
from .cursor import Cursor


def _first_unsent(path: Path, acknowledged: int) -> int | None:
    """Return the number of the first event in a segment behind byte `acknowledged`; None if there is none.

    Raises OSError, JournalError.
    """
    if path.stat().st_size <= acknowledged:
        return None
    segment = open_segment(path)
    if segment is None:
        return None
    if acknowledged <= segment.first:
        return segment.header.first_seq if path.stat().st_size > segment.first else None
    seq = _number_at(segment, acknowledged)
    if seq is not None:
        return seq
    item = next(read(segment, acknowledged), None)
    if item is None or (isinstance(item, Tail) and is_partial(segment, item)):
        return None  # cut off by the disk, or on its way
    # No frame begins there: damage, or a cursor of another file. The whole frames before that byte count.
    last = segment.header.first_seq - 1
    for before in read(segment, segment.first, acknowledged):
        if isinstance(before, Stretch):
            last = before.events[-1][0]
    return last + 1


def _number_at(segment: Segment, offset: int) -> int | None:
    """Return the number of the event whose frame is at `offset`; None if no whole frame is there."""
    with segment.path.open("rb") as file:
        head = read_at(file.fileno(), HEAD.size, offset)
        if len(head) < HEAD.size:
            return None
        length = int(HEAD.unpack(head)[0])
        if length > MAX_PAYLOAD:
            return None
        payload = read_at(file.fileno(), length, offset + HEAD.size)
    if len(payload) < length or crc32(payload, segment.crcs[length]) != HEAD.unpack(head)[1]:
        return None
    try:
        return decode_event(payload)[0]
    except ValueError:
        return None


def unsent(journal: Path, cursor: Cursor, writer: str | None = None) -> dict[str, int]:
    """Return the number of the first event that is not acknowledged, by the id of its writer; absent if all are.

    With `writer`, only that one is looked at. Raises OSError, JournalError.
    """
    found: dict[str, int] = {}
    for name, path in list_segments(journal):
        if name.writer in found or (writer is not None and name.writer != writer):
            continue
        try:
            seq = _first_unsent(path, cursor.segments.get(path.name, 0))
        except FileNotFoundError:
            continue  # freed meanwhile, so it was proven to be there
        if seq is not None:
            found[name.writer] = seq
    return found


def acknowledged_events(journal: Path, cursor: Cursor | None, seen: Mapping[str, Sequence[Range]]) -> int:
    """Return how many of the events that were `seen`, ranges of numbers by writer, are acknowledged.

    `cursor` is read after what was seen. Raises OSError, JournalError.
    """
    if cursor is None:
        return 0
    ends = unsent(journal, cursor)
    return sum(
        size_of(overlapping(ranges, 0, ends[writer]) if writer in ends else ranges) for writer, ranges in seen.items()
    )


def acknowledged_bytes(journal: Path, cursors: Sequence[Cursor | None]) -> int:
    """Return the bytes of segments and contents that every server to which they are sent has acknowledged."""
    known = [cursor for cursor in cursors if cursor is not None]
    if not known or len(known) < len(cursors):
        return 0
    size = 0
    for _, path in list_segments(journal):
        with suppress(OSError):
            length = path.stat().st_size
            if all(cursor.segments.get(path.name, 0) >= length for cursor in known):
                size += length
    return size + sum(length for name, length in names(journal).items() if all(name in one.blobs for one in known))


def waiting_files(journal: Path, cursor: Cursor | None, contents: Set[str]) -> int:
    """Return how many of these contents, names of blobs, are here and not acknowledged."""
    left = contents - (cursor.blobs if cursor is not None else set())
    return len(left & names(journal).keys()) if left else 0
