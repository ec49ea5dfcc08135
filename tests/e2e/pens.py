"""Journals written by the published format alone: cheap, and every event of them is known to the trial."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack

from tests.crash import oracle_reader as disk

ORDER_MAGIC: Final = b"\x89MLDORD\n"
UNKNOWN_KIND: Final = 77
Event = tuple[int, int, Any]
"""(kind, time_ns, body)"""


@dataclass(frozen=True)
class Place:
    """A journal on disk, and whose it is."""

    home: Path
    project: str
    name: str
    identity: bytes

    @property
    def journal(self) -> Path:
        """The `.journal` folder."""
        return self.home / ".journal"

    @property
    def segments(self) -> Path:
        """Its segments."""
        return self.journal / "segments"

    @property
    def blobs(self) -> Path:
        """Its blobs."""
        return self.journal / "blobs"


def make_place(store: Path, project: str, name: str, identity: bytes | None = None) -> Place:
    """A new empty journal."""
    place = Place(store / project / name, project, name, identity or os.urandom(16))
    place.segments.mkdir(parents=True)
    place.blobs.mkdir()
    body: bytes = msgpack.packb([place.identity, project, name, os.urandom(8)])
    head = struct.pack("<8sHH", ORDER_MAGIC, 1, len(body)) + body
    (place.journal / "order").write_bytes(head + struct.pack("<I", zlib.crc32(head)))
    return place


class WriterFixture:
    """One writer: its segments, its lock, and every event it ever issued."""

    def __init__(self, place: Place, *, opens: bool = True, locked: bool = True, created_ns: int = 0) -> None:
        self.place = place
        self.writer = os.urandom(16)
        self.seq = 0
        self.n = 0
        self.created_ns = created_ns or time.time_ns()
        self.now_ns = self.created_ns
        self.issued: dict[tuple[str, int], Event] = {}
        self._fd = -1
        self._header = b""
        self._lock = -1
        self.path = Path()
        if locked:
            lock = place.segments / f"{self.created_ns:020d}-{self.writer.hex()}.lock"
            self._lock = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.roll()
        if opens:
            self.open()

    # -- bytes -------------------------------------------------------------------------------------------------------

    def roll(self) -> None:
        """Begin a segment."""
        place = self.place
        if self._fd >= 0:
            os.close(self._fd)
            self.n += 1
        self.segment = os.urandom(16)
        self._header = disk.make_header(
            self.writer,
            journal=place.identity,
            segment=self.segment,
            n=self.n,
            first_seq=self.seq,
            created_ns=self.created_ns,
            project=place.project,
            name=place.name,
        )
        self.path = place.segments / disk.segment_name(self.writer, n=self.n, created_ns=self.created_ns)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        os.write(self._fd, self._header)

    def encoded(self, kind: int, body: Any, *, seq: int | None = None, time_ns: int | None = None) -> bytes:
        """The frame of an event in the current segment; nothing is written."""
        return disk.make_frame(self._header, self.seq if seq is None else seq, kind, time_ns or self.tick(), body)

    def raw(self, data: bytes) -> None:
        """Write bytes as they are."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def tick(self) -> int:
        """The next moment."""
        self.now_ns = max(self.now_ns + 1, time.time_ns())
        return self.now_ns

    def write(self, kind: int, body: Any, *, shown: Any = None, pieces: int = 1) -> int:
        """Append an event and remember it; its number. With `pieces` a frame goes by several writes."""
        time_ns, seq = self.tick(), self.seq
        self.issued[self.writer.hex(), seq] = (kind, time_ns, body if shown is None else shown)
        frame = self.encoded(kind, body, time_ns=time_ns)
        self.seq += 1
        step = -(-len(frame) // pieces)
        for start in range(0, len(frame), step):
            self.raw(frame[start : start + step])
        return seq

    @property
    def size(self) -> int:
        """Bytes in the current segment."""
        return self.path.stat().st_size

    # -- events ------------------------------------------------------------------------------------------------------

    def open(self) -> int:
        """The opening event."""
        place = self.place
        body = {
            "project": place.project,
            "name": place.name,
            "folderPath": f"{place.project}/{place.name}",
            "journalPath": ".journal",
            "host": "gpu3",
            "pid": os.getpid(),
        }
        return self.write(disk.OPEN, body)

    def log(self, message: str, level: str = "info", metadata: dict[str, Any] | None = None) -> int:
        """A log entry."""
        return self.write(disk.LOG, [level, message, metadata])

    def point(self, metric: str = "loss", **fields: Any) -> int:
        """A point."""
        return self.write(disk.POINT, [metric, fields or {"value": self.seq * 0.5, "step": self.seq}])

    def points(self, metric: str, count: int) -> int:
        """A batch."""
        columns = [[self.seq + n * 0.25 for n in range(count)], list(range(count))]
        return self.write(disk.POINTS, [metric, ["value", "step"], columns])

    def parameters(self, **values: Any) -> int:
        """Parameters."""
        return self.write(disk.PARAMS, values)

    def file(self, content: bytes, filename: str = "model.bin", prefix: str = "/models") -> int:
        """An added file; its blob first."""
        checksum = hashlib.sha256(content).hexdigest()
        blob = self.blob(checksum)
        blob.write_bytes(content)
        blob.chmod(0o444)
        body = {
            "path": prefix,
            "prefix": prefix.strip("/"),
            "filename": filename,
            "sizeBytes": len(content),
            "checksum": checksum,
            "contentType": "application/octet-stream",
        }
        return self.write(disk.FILE, body)

    def blob(self, checksum: str) -> Path:
        """Where the next event's blob is."""
        return self.place.blobs / f"{checksum}-{self.writer.hex()}-{self.seq}"

    def large(self, kind: int, body: Any) -> int:
        """An event whose body is kept as a blob."""
        content: bytes = msgpack.packb(body)
        digest = hashlib.sha256(content).digest()
        self.blob(digest.hex()).write_bytes(content)
        spilled = msgpack.ExtType(1, struct.pack("<32sQ", digest, len(content)))
        return self.write(kind, spilled, shown=body)

    def unknown(self, body: Any) -> int:
        """An event of a kind that nobody knows yet."""
        return self.write(UNKNOWN_KIND, body)

    def any(self, rng: Any, *, files: bool = True, size: int = 40) -> int:
        """An event of some kind, with content of its own."""
        tag = f"{self.writer.hex()[:6]}:{self.seq}"
        kind = rng.randrange(12 if files else 10)
        if kind < 4:
            return self.point(f"m{rng.randrange(3)}", value=rng.random(), step=self.seq, tag=tag)
        if kind < 6:
            return self.log(f"{tag} " + "x" * rng.randrange(size), metadata={"tag": tag} if kind == 4 else None)
        if kind == 6:
            return self.points("batch", rng.randrange(1, 9))
        if kind == 7:
            return self.write(disk.ROWS, ["rows", [{"value": 1.0, "tag": tag}, {"other": 2, "tag": tag}]])
        if kind < 10:
            return self.parameters(**{"again": tag, f"p{rng.randrange(9)}.q": rng.random()})
        return self.file(tag.encode() + rng.randbytes(rng.randrange(200)), f"f{rng.randrange(3)}.bin")

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self, status: str = "completed") -> None:
        """End cleanly."""
        self.write(disk.CLOSE, {"status": status})
        if self._lock >= 0:
            (self.place.segments / f"{self.created_ns:020d}-{self.writer.hex()}.lock").unlink(missing_ok=True)
        self.die()

    def die(self) -> None:
        """End as by a kill."""
        for descriptor in (self._fd, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._fd = self._lock = -1
