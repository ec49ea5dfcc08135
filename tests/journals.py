"""Journals written byte by byte, without the library's writer: every time, id and number is chosen by the test."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Any

import msgpack

from ml_dash.core import events as ev
from ml_dash.core.frames import Header, LengthCrcs, encode_frame, encode_header
from ml_dash.core.names import file_id
from ml_dash.core.records import ExperimentRecord
from ml_dash.journal.order import Order, Record
from ml_dash.journal.segment import BLOBS, JOURNAL, SEGMENTS, SegmentName, create_journal
from ml_dash.projection.projector import RebuildReport, catch_up, rebuild
from ml_dash.reading.located import Located
from ml_dash.reading.read import view
from ml_dash.reading.verify import VerifyReport, verify
from ml_dash.reading.view import View

SECOND = 1_000_000_000
START_NS = 1_761_733_800 * SECOND  # 2025-10-29T10:30:00Z

Tree = dict[str, bytes | None]
"""Relative path → content, None for a folder."""


def tree(folder: Path) -> Tree:
    """What the documented folder holds; the journal is left out."""
    paths = sorted(path for path in folder.rglob("*") if JOURNAL not in path.relative_to(folder).parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in paths}


class JournalFixture:
    """One experiment in a store of its own, and the pens that write to it."""

    def __init__(self, store: Path, project: str = "cv", name: str = "run") -> None:
        self.store = store
        self.folder = store / project / name
        self.identity = create_journal(self.folder, project, name, sync=False)
        self.journal = self.folder / JOURNAL
        self.pens: list[WriterFixture] = []
        self.now_ns = START_NS

    @property
    def located(self) -> Located:
        return Located(self.identity.project, self.identity.name, self.folder, self.journal)

    def pen(self, *, opens: bool = True, **opening: Any) -> WriterFixture:
        """A writer that lives. Its id counts from 1."""
        pen = WriterFixture(self, len(self.pens) + 1)
        self.pens.append(pen)
        if opens:
            pen.open(**opening)
        return pen

    def tick(self) -> int:
        """The next moment: every event has one of its own."""
        self.now_ns += 1_000_000
        return self.now_ns

    def catch_up(self) -> None:
        catch_up(self.located)

    def rebuild(self) -> RebuildReport:
        return rebuild(self.located)

    def view(self) -> View:
        return view(self.located)

    def record(self) -> ExperimentRecord:
        return self.view().record()

    def verify(self) -> VerifyReport:
        return verify(self.located)

    def kinds(self) -> set[str]:
        """What `verify` finds."""
        return {finding.kind for finding in self.verify().findings}

    def tree(self) -> Tree:
        return tree(self.folder)

    def lines(self, path: str) -> list[str]:
        return (self.folder / path).read_text(encoding="utf-8").splitlines()

    def let_go(self) -> None:
        """Every pen that still lives dies."""
        for pen in self.pens:
            pen.die()


class WriterFixture:
    """A writer of a journal: frames as the format page draws them, and a real lock."""

    def __init__(self, desk: JournalFixture, number: int) -> None:
        self.desk = desk
        self.id = f"{number:032x}"
        self.seq = 0
        self.created_ns = desk.tick()
        self.segments: list[Path] = []
        # (offset of the frame, offset behind it) in the current segment
        self.frames: list[tuple[int, int]] = []
        self._lock_path = self._folder / SegmentName(self.created_ns, self.id, 0).lock
        self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.roll()

    @property
    def _folder(self) -> Path:
        return self.desk.journal / SEGMENTS

    @property
    def segment(self) -> Path:
        """The file it writes to."""
        return self.segments[-1]

    def roll(self) -> None:
        """Go on in a new segment."""
        n = len(self.segments)
        identity = self.desk.identity
        segment_id = hashlib.sha256(f"{self.id}-{n}".encode()).digest()[:16]
        header = encode_header(
            Header(identity.journal, segment_id, bytes.fromhex(self.id), n, self.seq, self.created_ns,
                   identity.project, identity.name)
        )  # fmt: skip
        self.segments.append(self._folder / str(SegmentName(self.created_ns, self.id, n)))
        self.segment.write_bytes(header)
        self._crcs = LengthCrcs(int.from_bytes(header[-4:], "little"))
        self.frames = []

    def frame(self, kind: int, body: Any, *, seq: int | None = None, time_ns: int | None = None) -> int:
        """Write one event; its number."""
        number = self.seq if seq is None else seq
        payload = msgpack.packb([number, kind, self.desk.tick() if time_ns is None else time_ns, body])
        self.payload(payload)
        self.seq = max(self.seq, number + 1)
        return number

    def payload(self, payload: bytes) -> None:
        """Write one frame, whatever it holds."""
        start = self.segment.stat().st_size
        self.raw(encode_frame(payload, self._crcs))
        self.frames.append((start, self.segment.stat().st_size))

    def raw(self, data: bytes) -> None:
        """Write bytes that need not be a frame."""
        with self.segment.open("ab") as file:
            file.write(data)

    # -- events ------------------------------------------------------------------------------------------------------

    def open(self, **more: Any) -> int:
        identity = self.desk.identity
        body = {
            "project": identity.project, "name": identity.name, "folderPath": f"{identity.project}/{identity.name}",
            "journalPath": JOURNAL, "host": "gpu3", "pid": 4121, **more,
        }  # fmt: skip
        return self.frame(ev.OPEN, body)

    def log(self, message: str, level: str = "info", metadata: dict[str, Any] | None = None) -> int:
        return self.frame(ev.LOG, [level, message, metadata])

    def parameters(self, **values: Any) -> int:
        return self.frame(ev.PARAMETERS, values)

    def point(self, metric: str = "loss", **fields: Any) -> int:
        return self.frame(ev.POINT, [metric, fields])

    def points(self, metric: str = "loss", **columns: list[Any]) -> int:
        return self.frame(ev.POINTS, [metric, list(columns), list(columns.values())])

    def rows(self, metric: str, *rows: dict[str, Any]) -> int:
        return self.frame(ev.ROWS, [metric, list(rows)])

    def describe(self, metric: str, **given: Any) -> int:
        return self.frame(ev.METRIC, [metric, given])

    def update(self, **given: Any) -> int:
        return self.frame(ev.UPDATE, given)

    def lost(self, first: int, last: int) -> int:
        """Numbers that the disk refused."""
        self.seq = max(self.seq, last + 1)
        return self.frame(ev.LOST, {"count": last - first + 1, "from": first, "to": last, "reason": "disk full"})

    def file(self, content: bytes, filename: str = "model.bin", prefix: str = "/models", **given: Any) -> str:
        """Add a file; its id."""
        checksum = hashlib.sha256(content).hexdigest()
        self.blob(content, self.seq).chmod(0o444)
        body = {
            "path": prefix, "prefix": prefix.strip("/"), "filename": filename, "sizeBytes": len(content),
            "checksum": checksum, "contentType": "application/octet-stream", **given,
        }  # fmt: skip
        return file_id(bytes.fromhex(self.id), self.frame(ev.FILE, body))

    def large(self, kind: int, body: Any, *, keeps_blob: bool = True) -> int:
        """An event whose body is kept as a blob, whatever its size."""
        content = msgpack.packb(body)
        digest = hashlib.sha256(content).digest()
        if keeps_blob:
            self.blob(content, self.seq)
        return self.frame(kind, msgpack.ExtType(1, digest + len(content).to_bytes(8, "little")))

    def blob(self, content: bytes, seq: int) -> Path:
        name = ev.blob_name(hashlib.sha256(content).hexdigest(), self.id, seq)
        path = self.desk.journal / BLOBS / name
        path.write_bytes(content)
        return path

    def delete_file(self, identity: str) -> int:
        return self.frame(ev.FILE_DELETE, {"id": identity})

    def update_file(self, identity: str, **given: Any) -> int:
        return self.frame(ev.FILE_UPDATE, {"id": identity, **given})

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self, status: str = "completed", **more: Any) -> None:
        """End cleanly: a closing event, and no lock is left."""
        self.frame(ev.CLOSE, {"status": status, **more})
        self._lock_path.unlink(missing_ok=True)
        self.die()

    def die(self) -> None:
        """End as a kill does it: the lock is free, its file is left."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # -- damage ------------------------------------------------------------------------------------------------------

    def flip(self, offset: int, bit: int = 0) -> None:
        """Change one bit of the current segment."""
        flip(self.segment, offset, bit)

    def chop(self, size: int) -> None:
        """Cut the last bytes off the current segment."""
        os.truncate(self.segment, self.segment.stat().st_size - size)


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Change one bit of a file; a negative offset counts from its end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.chmod(0o644)
    path.write_bytes(data)


def recorded(journal: Path) -> list[Record]:
    """What `order` of a journal says, from its beginning."""
    order = Order(journal)
    order.open(write=False)
    try:
        return [record for record, _ in order.read(0)]
    finally:
        order.close()
