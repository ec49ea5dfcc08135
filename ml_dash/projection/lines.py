"""The lines of `data.jsonl` and `logs.jsonl`: made from folded points and log entries, and parsed.

One encoding for the folder, the server's blocks and what the REST interface sends, so that the same points have the
same bytes everywhere. A folder that is made again has to be byte-identical, so whoever changes the encoding lets
`LAYOUT_VERSION` and `TABLES_VERSION` grow: then all is made again.

JSON has no NaN and no infinities. They are written as texts ("NaN"), and `text` in the line names those fields that
really are such texts; without it the value would come back as another type. Finding them means looking at each value,
which is slow; so lines are first encoded at full speed, and only a block in which a suspect byte sequence occurs is
encoded again with care. A false alarm costs time, never correctness.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any, Final, cast

import msgspec
from msgspec.structs import asdict

from ..core.json_values import from_json, texts_like_numbers, to_json
from ..core.records import LogEntry, Point
from ..core.state import Block, LogLine
from ..core.times import utc_text

_encoder: Final = msgspec.json.Encoder()
_decode: Final = msgspec.json.Decoder().decode
# A plain encoding with one of these may be wrong: null may be a NaN, and a text may look like the name of a number.
_NUMBER_NAMES: Final = (b'NaN"', b'Infinity"')
_SUSPECT: Final = (b"null", *_NUMBER_NAMES)


class _PointLine(msgspec.Struct, gc=False):
    # A struct is made and encoded in half the time of a dict.
    index: int
    data: dict[str, Any]
    createdAt: str  # noqa: N815 - as the lines have it


def point_lines(block: Block) -> bytes:
    """Encode consecutive points as lines of `data.jsonl`."""
    rows, times = block.rows, block.times
    assert isinstance(times, int) or len(times) == len(rows)
    # All points of a batch have one time; its text is made once.
    texts = repeat(utc_text(times)) if isinstance(times, int) else map(utc_text, times)
    lines = list(map(_PointLine, range(block.start, block.start + len(rows)), rows, texts))
    encoded = _encoder.encode_lines(lines)
    if any(suspect in encoded for suspect in _SUSPECT):
        return _careful(map(asdict, lines), "data")
    return encoded


def joined(blocks: list[Block]) -> Block:
    """Join consecutive blocks into one: encoding many together costs little more than encoding one."""
    # The usual case while training, and the one that keeps one time for many points.
    if len(blocks) == 1:
        return blocks[0]
    rows: list[dict[str, Any]] = []
    times: list[int] = []
    for block in blocks:
        rows += block.rows
        times += [block.times] * len(block.rows) if isinstance(block.times, int) else block.times
    return Block(blocks[0].start, rows, times)


def log_lines(entries: list[LogLine]) -> bytes:
    """Encode consecutive log entries as lines of `logs.jsonl`."""
    lines = [
        {
            "timestamp": utc_text(entry.time_ns),
            "level": entry.level,
            "message": entry.message,
            "metadata": entry.metadata,
            "sequenceNumber": entry.number,
        }
        for entry in entries
    ]
    return _careful(lines, "metadata")


def _careful(lines: Iterable[dict[str, Any]], key: str) -> bytes:
    """Encode lines as strict JSON: NaN and infinities as texts; `text` names real texts that look like those.

    Log entries always go this way: their metadata may hold anything, and there are few of them.
    """
    encoded = bytearray()
    for line in lines:
        data = line[key]
        if data:
            texts = texts_like_numbers(data)
            line = {**line, key: to_json(data)} | ({"text": texts} if texts else {})
        encoded += _encoder.encode(line) + b"\n"
    return bytes(encoded)


def document(content: Any) -> bytes:
    """Encode a JSON document, indented for people, ending in a newline."""
    return msgspec.json.format(_encoder.encode(to_json(content)), indent=2) + b"\n"


def read_point(line: bytes) -> Point:
    """Decode a line into a point, values as they were appended. Raises ValueError for any other line."""
    raw = _decode(line)
    return cast(
        "Point",
        {"index": raw["index"], "data": from_json(raw["data"], raw.get("text", ())), "createdAt": raw["createdAt"]},
    )


class _Line(msgspec.Struct):
    index: int
    data: dict[str, Any]
    createdAt: str  # noqa: N815 - as the lines have it
    text: list[str] = []


_lines: Final = msgspec.json.Decoder(_Line)


def read_points(lines: bytes, start: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Decode lines of points from index `start` on into (fields, times). Raises ValueError for other lines."""
    points = _lines.decode_lines(lines)
    # Somebody may have edited the file: lines that are missing or moved must not be taken for others.
    if not points or (points[0].index, points[-1].index) != (start, start + len(points) - 1):
        raise ValueError(f"the lines do not begin with point {start}")
    rows = [point.data for point in points]
    # As in encoding: only where such a text occurs is each value looked at.
    if any(suspect in lines for suspect in _NUMBER_NAMES):
        rows = [from_json(point.data, point.text) for point in points]
    return rows, [point.createdAt for point in points]


def read_log(line: bytes) -> LogEntry:
    """Decode a line into a log entry. Raises ValueError for any other line."""
    raw = _decode(line)
    texts = raw.pop("text", ())
    if raw["metadata"] is not None:
        raw["metadata"] = from_json(raw["metadata"], texts)
    return cast("LogEntry", raw)
