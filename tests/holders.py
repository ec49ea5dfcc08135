"""A server in miniature: it is sent journals in their order, and answers what `gc` and `pull` ask of a server."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ml_dash.core.frames import LengthCrcs, OrderHeader, encode_frame, encode_header
from ml_dash.core.protocol import Digest, FoundExperiment, OrderPage
from ml_dash.errors import ServerRefused, Unreachable
from ml_dash.journal import base as bases
from ml_dash.journal.order import MergeRecord, Order, death_payload, stretch_payload
from ml_dash.journal.reader import open_segment
from ml_dash.journal.segment import BLOBS, JOURNAL, ORDER, SEGMENTS, list_segments, parse_blob, read_identity
from ml_dash.projection.projector import catch_up
from ml_dash.reading.located import at
from ml_dash.reading.view import look_anew

EXPERIMENT = "17675888590217166603"


class ServerStub:
    """Keeps segments, blobs and their order of arrival, as a server that has been sent them."""

    name = "http://stub.test"

    def __init__(self) -> None:
        self.segments: dict[str, bytes] = {}
        # Segment id → (file name, id of its journal).
        self.files: dict[str, tuple[str, str]] = {}
        self.records: list[list[object]] = []
        self.contents: dict[str, bytes] = {}
        self.blobs: dict[str, int] = {}
        self.project = self.experiment = ""
        # What goes wrong: no answer at all, none after so many calls, one flipped bit.
        self.away = False
        self.answers_left = -1
        self.flip = ""
        # Writers whose events were removed there.
        self.silenced: set[str] = set()
        self.calls: list[str] = []

    # -- being sent things -------------------------------------------------------------------------------------------

    def take(self, journal: Path, *, blobs: bool = True) -> None:
        """Everything new in a journal, in its order, as an uploader sends it."""
        located = at(journal)
        assert located is not None
        catch_up(located)
        self.project, self.experiment = located.project, located.name
        own = read_identity(journal).journal
        here = {}
        for _, path in list_segments(journal):
            segment = open_segment(path)
            if segment is not None and segment.header.journal == own:
                here[segment.id] = path
                self.files[segment.id] = path.name, segment.header.journal.hex()
        order = Order(journal)
        order.open(write=False)
        for record, _ in order.read(0):
            if not isinstance(record, MergeRecord):
                self._arrive([2, record.writer, "00" * 16, 0])
            elif record.segment in here:
                stored = self.segments.get(record.segment, b"")
                if record.end > len(stored):
                    self._arrive([1, record.segment, len(stored), record.end])
                    self.segments[record.segment] = here[record.segment].read_bytes()[: record.end]
        order.close()
        if blobs:
            for path in (journal / BLOBS).iterdir():
                if parse_blob(path.name) is not None:
                    self.contents[path.name] = path.read_bytes()
                    self.blobs[path.name] = path.stat().st_size

    def _arrive(self, record: list[object]) -> None:
        if record not in self.records:
            self.records.append(record)

    # -- being asked -------------------------------------------------------------------------------------------------

    def removed(self, journal: str) -> set[str]:
        self._answer("removed")
        return self.silenced

    def digests(self, journal: str, wanted: dict[str, int]) -> dict[str, Digest]:
        self._answer("digests")
        found: dict[str, Digest] = {}
        for segment, length in wanted.items():
            if segment in self.segments:
                data = self.segments[segment][:length]
                found[segment] = Digest(
                    length=len(self.segments[segment]), of=len(data), sha256=hashlib.sha256(data).hexdigest()
                )
        return found

    def complete_blobs(self, journal: str, wanted: dict[str, int]) -> set[str]:
        self._answer("blobs")
        return {name for name, size in wanted.items() if self.blobs.get(name) == size}

    def let_go(self, journal: str, wanted: dict[str, int]) -> set[str]:
        self._answer("blobs")
        return set()

    def find(self, project: str, name: str) -> FoundExperiment | None:
        self._answer("find")
        if (project, name) != (self.project, self.experiment):
            return None
        return FoundExperiment(
            experiment=EXPERIMENT, project=project, name=name,
            journals=sorted({journal for _, journal in self.files.values()}), events=0, version=len(self.records),
        )  # fmt: skip

    def order(self, experiment: str, after: int, limit: int) -> OrderPage:
        self._answer("order")
        page = self.records[after : after + min(limit, 3)]
        behind = after + len(page)
        return OrderPage(records=[list(record) for record in page], next=behind if behind < len(self.records) else None)

    def segment(self, segment: str, offset: int, limit: int) -> tuple[bytes, str, str]:
        self._answer("segment")
        file, journal = self.files[segment]
        return self._maybe_flipped("segment", self.segments[segment][offset : offset + min(limit, 700)]), file, journal

    def base(self, experiment: str) -> bytes:
        self._answer("base")
        return self._maybe_flipped("base", bases.encode(self.folded()))

    def blob(self, experiment: str, name: str) -> Iterator[bytes]:
        self._answer("blob")
        if name not in self.contents:
            raise ServerRefused(f"no content {name}", status=404, code="unknown")
        data = self._maybe_flipped("blob", self.contents[name])
        yield data[:3]
        yield data[3:]

    def folded(self) -> bases.Base:
        """The base that the server's fold gives."""
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder) / JOURNAL
            (journal / SEGMENTS).mkdir(parents=True)
            shutil.rmtree(journal / BLOBS, ignore_errors=True)
            (journal / BLOBS).mkdir()
            header = encode_header(OrderHeader(bytes(16), self.project, self.experiment))
            crcs = LengthCrcs(int.from_bytes(header[-4:], "little"))
            payloads = [
                stretch_payload(*record[1:]) if record[0] == 1 else death_payload(*record[1:])  # type: ignore[arg-type]
                for record in self.records
            ]
            (journal / ORDER).write_bytes(header + b"".join(encode_frame(payload, crcs) for payload in payloads))
            for identity, data in self.segments.items():
                (journal / SEGMENTS / self.files[identity][0]).write_bytes(data)
            for name, content in self.contents.items():
                (journal / BLOBS / name).write_bytes(content)
            # A server never infers that a writer died: each has a lock that is held elsewhere, so to speak.
            state = look_anew(journal, Path(folder) / "nowhere").state
        segments = {
            identity: bases.FreedSegment(
                identity, file, file[21:53], journal_id, len(self.segments[identity]),
                hashlib.sha256(self.segments[identity]).hexdigest(),
            )
            for identity, (file, journal_id) in self.files.items()
        }  # fmt: skip
        live = {file.blob: file.size_bytes for file in state.files.values() if file.live}
        blobs = {name: size for name, size in live.items() if name in self.blobs}
        return bases.Base(self.project, self.experiment, state, segments, blobs)

    def _answer(self, call: str) -> None:
        self.calls.append(call)
        if self.away or self.answers_left == 0:
            raise Unreachable(f"{self.name} does not answer")
        self.answers_left -= 1

    def _maybe_flipped(self, what: str, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if what == self.flip and data else data
