"""What the tests of the server's core need: segments made in memory, a server without HTTP, and all that it holds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack

from ml_dash.core import events as ev
from ml_dash.core.fold import fold
from ml_dash.core.frames import SPILL, Header, LengthCrcs, encode_frame, encode_header, spilled
from ml_dash.core.names import experiment_id, file_id
from ml_dash.core.protocol import Appended
from ml_dash.core.state import Edits, State
from ml_dash.journal.segment import SegmentName
from ml_dash.server.engine.blocks import blocks_of
from ml_dash.server.engine.parts import whole_state
from ml_dash.server.engine.refold import refold
from ml_dash.server.engine.services import Server
from tests.core.test_fold import canonical, lines

NS = "alice"
START_NS = 1_761_733_800_000_000_000
EXPERIMENT = experiment_id("cv", "run")
Event = tuple[int, int, int, Any]


class SegmentBytes:
    """One segment of one writer: its bytes, where its frames end, and the events that are in it."""

    def __init__(
        self,
        writer: int | str = 1,
        n: int = 0,
        *,
        journal: int = 1,
        project: str = "cv",
        name: str = "run",
        seq: int = 0,
    ) -> None:
        self.writer = writer if isinstance(writer, str) else f"{writer:032x}"
        self.journal = f"{journal:032x}"
        self.id = hashlib.sha256(f"{self.journal}-{self.writer}-{n}".encode()).hexdigest()[:32]
        self.file = str(SegmentName(START_NS, self.writer, n))
        self.header = encode_header(
            Header(bytes.fromhex(self.journal), bytes.fromhex(self.id), bytes.fromhex(self.writer), n, seq, START_NS,
                   project, name)
        )  # fmt: skip
        self.data = self.header
        self.crcs = LengthCrcs(int.from_bytes(self.header[-4:], "little"))
        self.ends = [len(self.header)]
        self.events: list[Event] = []
        self.seq = seq
        self.now = START_NS

    def add(self, kind: int, body: Any, *, seq: int | None = None, at: int | None = None) -> SegmentBytes:
        """One event more."""
        self.now += 1_000_000
        event = (self.seq if seq is None else seq, kind, self.now if at is None else at, body)
        return self.put([event])

    def put(self, events: Iterable[Event]) -> SegmentBytes:
        """Events as they are."""
        for event in events:
            self.payload(msgpack.packb(event))
            self.events.append(event)
            self.seq = max(self.seq, event[0] + 1)
        return self

    def payload(self, payload: bytes) -> SegmentBytes:
        self.data += encode_frame(payload, self.crcs)
        self.ends.append(len(self.data))
        return self

    def opens(self, **more: Any) -> SegmentBytes:
        return self.add(ev.OPEN, {"project": "cv", "name": "run", "folderPath": "cv/run", "journalPath": ".j", **more})

    def log(self, message: str = "hello", **metadata: Any) -> SegmentBytes:
        return self.add(ev.LOG, ["info", message, metadata or None])

    def logs(self, count: int) -> SegmentBytes:
        for number in range(count):
            self.log(f"line {number}")
        return self

    def point(self, metric: str = "loss", **fields: Any) -> SegmentBytes:
        return self.add(ev.POINT, [metric, fields])

    def parameters(self, **values: Any) -> SegmentBytes:
        return self.add(ev.PARAMETERS, values)

    def closes(self, status: str = "completed") -> SegmentBytes:
        return self.add(ev.CLOSE, {"status": status})

    def adds_file(self, content: bytes, filename: str = "model.pt", prefix: str = "models") -> str:
        """An event that names a file; the name of its blob."""
        checksum = hashlib.sha256(content).hexdigest()
        body = {
            "path": prefix, "prefix": prefix, "filename": filename, "sizeBytes": len(content), "checksum": checksum,
            "contentType": "application/octet-stream",
        }  # fmt: skip
        name = ev.blob_name(checksum, self.writer, self.seq)
        self.add(ev.FILE, body)
        return name

    def deletes_file(self, blob: str) -> SegmentBytes:
        return self.add(ev.FILE_DELETE, {"id": identity_of(blob)})

    def spills(self, kind: int, body: Any, content: bytes | None = None) -> tuple[str, bytes]:
        """An event whose body is a blob: the name and the content of that."""
        content = msgpack.packb(body) if content is None else content
        digest = hashlib.sha256(content)
        name = ev.blob_name(digest.hexdigest(), self.writer, self.seq)
        self.add(kind, spilled(digest.digest(), len(content)))
        # What folding has to see instead.
        seq, kind, time, _ = self.events.pop()
        self.events.append((seq, kind, time, body))
        return name, content

    def damaged(self, start: int, end: int) -> bytes:
        """The bytes, with those of a range turned to zeros, as a network file system does it."""
        return self.data[:start] + bytes(end - start) + self.data[end:]


assert SPILL.size == 40


def identity_of(blob: str) -> str:
    """The id of the file that a blob is the content of."""
    _, writer, seq = blob.split("-")
    return file_id(bytes.fromhex(writer), int(seq))


def send(core: Server, sheet: SegmentBytes, start: int = 0, end: int | None = None, **how: Any) -> Appended:
    """Bytes [start, end) of a segment."""
    data = how.pop("data", sheet.data)
    return core.append_segment(NS, sheet.journal, sheet.file, start, data[start:end], **how)


def send_blob(
    core: Server, sheet: SegmentBytes, name: str, content: bytes, *, body: bool = False, piece: int = 1 << 20
) -> Any:
    """The whole of a blob, in pieces."""
    state: Any = None
    for start in range(0, max(1, len(content)), piece):
        part = content[start : start + piece]
        state = core.append_blob(NS, sheet.journal, name, start, len(content), part, body=body)
    return state


def held(core: Server, experiment: str = EXPERIMENT, ns: str = NS) -> dict[str, Any]:
    """All that the server has folded of an experiment, from its documents."""
    with core.documents.view() as view:
        row = view.experiment(ns, experiment)
        assert row is not None
        contents = core._changes.reader.contents(view, ns, row)
        state = whole_state(contents.state())
        found = {"logs": b"".join(block.lines(0, 1 << 60) for block in blocks_of(contents, "logs", 0, 1 << 60))}
        for metric in state.metrics:
            found[metric] = b"".join(
                block.lines(0, 1 << 60) for block in blocks_of(contents, f"points/{metric}", 0, 1 << 60)
            )
    return {"state": canonical(state), "lines": {name: text for name, text in found.items() if text}}


def folded(*stretches: tuple[SegmentBytes, Iterable[Event]]) -> dict[str, Any]:
    """The same by folding here."""
    state, edits = State(project="cv", name="run"), Edits()
    for sheet, events in stretches:
        batch = list(events)
        if batch:
            fold(state, sheet.writer, batch, edits)
    return {"state": canonical(state), "lines": {name: text for name, text in lines(edits).items() if text}}


def assert_refolds(core: Server, experiment: str = EXPERIMENT, ns: str = NS) -> None:
    """Folding the raw bytes anew, in the order of arrival, gives what was folded as they came."""
    before = held(core, experiment, ns)
    refold(core._ingest, ns, experiment)
    assert held(core, experiment, ns) == before


def forget(core: Server) -> None:
    """As after a start: nothing is in memory."""
    core._changes._cache.clear()


def everything(folder: Path) -> dict[str, bytes]:
    """The files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def random_bytes(size: int) -> bytes:
    return os.urandom(size)
