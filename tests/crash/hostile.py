"""Journals that no ml-dash wrote: every checksum is right, every name and value is chosen to do harm."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any, Final

import msgpack

from . import oracle_reader as disk

PATHS: Final = (
    "../../../../outside",
    "/outside",
    "..",
    ".",
    "",
    "a/../../b",
    "\0",
    "a\0b",
    "\n",
    ".journal/segments/x",
    "../.journal",
    "~/x",
    "x" * 5_000,
    "\ud7ff",
    "con",
    "a/" * 300,
    "metadata.json",
    "data.jsonl",
    "%2e%2e/%2e%2e/x",
    "..%2f..%2foutside",
    "outside/../..",
    "files/../../..",
    ".files_metadata.json",
    "-rf",
    "$(touch outside)",
    "`x`",
    "\u202e",
    "logs",
    "experiment.json",
)
_VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    -1,
    2**64 - 1,
    1.5,
    float("nan"),
    "text",
    b"\xff",
    [],
    {},
    [[]],
    {"a": {}},
    {1: 2},
    "x" * 3_000,
)


def text_of(rng: random.Random) -> Any:
    """A path, or not even that."""
    return rng.choice(PATHS) if rng.random() < 0.8 else rng.choice(_VALUES)


def body_of(rng: random.Random, kind: int, ids: list[str]) -> Any:
    """A body for that kind, wrong in one way or another."""
    digest = rng.choice(("0" * 64, "a" * 64, "../" * 20, "z" * 64, "A" * 64, ""))
    shapes: dict[int, Any] = {
        disk.OPEN: {
            "project": text_of(rng),
            "name": text_of(rng),
            "folderPath": text_of(rng),
            "journalPath": text_of(rng),
            "host": text_of(rng),
            "description": text_of(rng),
            "tags": text_of(rng),
            "parent": text_of(rng),
            "child": rng.choice((True, False, "yes")),
            "writeProtected": rng.choice((True, None, 3)),
            "pid": text_of(rng),
        },
        disk.CLOSE: {"status": text_of(rng), "error": rng.choice((None, {"type": 1}, "x", {"message": "\x1b[31m"}))},
        disk.LOG: [rng.choice(("info", "root", 5)), text_of(rng), rng.choice((None, {"k": 1}, {1: 2}, "x"))],
        disk.PARAMS: {str(text_of(rng)): rng.choice(_VALUES) for _ in range(3)},
        disk.POINT: [text_of(rng), rng.choice(({"value": 1}, {"value": rng.choice(_VALUES)}, [], {1: 2}, {"../x": 1}))],
        disk.POINTS: [
            text_of(rng),
            rng.choice((["value"], ["a", "a"], [1], "value")),
            rng.choice(([[1, 2]], [[1], [2]], [], [[]], 5)),
        ],
        disk.ROWS: [text_of(rng), rng.choice(([{"value": 1}], [{}], [[]], "x", [{1: 2}]))],
        disk.METRIC: [
            text_of(rng),
            {"description": text_of(rng), "tags": text_of(rng), "metadata": rng.choice(_VALUES)},
        ],
        disk.FILE: {
            "path": text_of(rng),
            "prefix": text_of(rng),
            "filename": text_of(rng),
            "sizeBytes": rng.choice((0, -1, 2**63, "9")),
            "checksum": digest,
            "contentType": text_of(rng),
            "metadata": rng.choice(_VALUES),
        },
        disk.FILE_UPDATE: {"id": rng.choice([*ids, "1", "../x"]), "description": text_of(rng)},
        disk.FILE_DELETE: {"id": rng.choice([*ids, "1", "../x"])},
        disk.UPDATE: {"description": rng.choice(_VALUES), "tags": rng.choice(_VALUES), "folder": text_of(rng)},
        disk.LOST: {
            "count": rng.choice((1, -1, 2**63, "x")),
            "from": rng.choice((0, -5, 2**60)),
            "to": rng.choice((0, 2**60, -1)),
        },
    }
    body = shapes.get(kind, rng.choice(_VALUES))
    if rng.random() < 0.1:
        return rng.choice(_VALUES)
    if isinstance(body, dict) and rng.random() < 0.2 and body:
        body.pop(rng.choice(sorted(body, key=str)))
    return body


def write_journal(home: Path, rng: random.Random, *, project: str, name: str, events: int = 25) -> None:
    """`<home>/.journal`, with one or two writers, and blobs under the names that the events give them."""
    path = home / ".journal"
    (path / "segments").mkdir(parents=True)
    (path / "blobs").mkdir()
    journal = rng.randbytes(16)
    head = msgpack.packb([journal, project, name])
    order = b"\x89MLDORD\n" + (1).to_bytes(2, "little") + len(head).to_bytes(2, "little") + head
    (path / "order").write_bytes(order + _crc(order))
    for n in range(rng.randrange(1, 3)):
        writer, created = rng.randbytes(16), 1_700_000_000_000_000_000 + n
        header = disk.make_header(
            writer, journal=journal, segment=rng.randbytes(16), created_ns=created, project=project, name=name
        )
        content = bytearray(header)
        content += disk.make_frame(header, 0, disk.OPEN, created, body_of(rng, disk.OPEN, []))
        seq = 0
        for _ in range(events):
            seq += rng.choice((1, 1, 1, 2, 10**6))
            kind = rng.choice((*range(0, 16), 99, 2**40, -1))
            time_ns = rng.choice((created + seq, 0, 2**63 - 1, -1))
            content += disk.make_frame(header, seq, kind, time_ns, body_of(rng, kind, []))
            if kind == disk.FILE and rng.random() < 0.5:
                (path / "blobs" / f"{'0' * 64}-{writer.hex()}-{seq}").write_bytes(b"hostile")
        if rng.random() < 0.2:
            content += _ext_frame(header, seq + 1, rng)
        (path / "segments" / disk.segment_name(writer, created_ns=created)).write_bytes(content)


def _crc(data: bytes) -> bytes:
    import zlib

    return zlib.crc32(data).to_bytes(4, "little")


def _ext_frame(header: bytes, seq: int, rng: random.Random) -> bytes:
    reference = rng.choice((b"\0" * 32 + b"\xff" * 8, os.urandom(40), b"short", b"\0" * 40))
    return disk.make_frame(header, seq, disk.LOG, 1_700_000_000_000_000_100, msgpack.ExtType(1, reference))
