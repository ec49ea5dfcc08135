"""Download of an experiment into a temporary folder, every byte checked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ...core.frames import decode_header
from ...core.protocol import ORDER_PAGE
from ...core.state import State
from ...disk.durable import sync_folder, write_all
from ...errors import Damaged, ServerRefused
from ...journal import base as bases
from ...journal import blobs
from ...journal.base import Base
from ...journal.bodies import blobs_of
from ...journal.reader import Stretch, open_segment, read
from ...journal.segment import BLOBS, SEGMENTS, list_segments, parse_blob, parse_name
from ...reading.located import Located
from .order import checked
from .scratch import scratch_in
from .source import Deadline, Progress, Source

PAGE_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class PullReport:
    """Result of a pull: what was downloaded.

    `missing` names contents that the server does not have yet; `conflicts` gives, by file name, why a segment was left
    as it is.
    """

    located: Located
    events: int
    segments: int
    blobs: int
    bytes: int
    state_only: bool
    new: bool
    missing: tuple[str, ...] = ()
    conflicts: dict[str, str] = field(default_factory=dict)


class Download:
    """One pull: its requests to the server, and counts of what has come so far."""

    def __init__(
        self, source: Source, located: Located, experiment: str, deadline: Deadline, progress: Progress | None
    ) -> None:
        self.source = source
        self.located = located
        self.experiment = experiment
        self.deadline = deadline
        self.progress = progress or (lambda done, total: None)
        self.segments = 0
        self.blobs = 0
        self.bytes = 0
        self.total = 0
        self.missing: list[str] = []
        self.conflicts: dict[str, str] = {}

    def report(self, state: State, *, state_only: bool, new: bool) -> PullReport:
        """Return the counts so far as a report."""
        return PullReport(
            self.located, state.events, self.segments, self.blobs, self.bytes, state_only, new,
            tuple(sorted(set(self.missing))), dict(sorted(self.conflicts.items())),
        )  # fmt: skip

    # -- what the server says ----------------------------------------------------------------------------------------

    def remote_base(self) -> Base:
        """Download the server's state of the experiment. Raises Damaged for an answer that is no base of it."""
        body = self.source.base(self.experiment)
        self.bytes += len(body)
        try:
            base = bases.decode(body)
        except Damaged as error:
            raise Damaged(f"{self.source.name} did not answer with a valid base: {error.message}") from None
        if (base.project, base.name) != (self.located.project, self.located.name):
            raise Damaged(f"{self.source.name} answered with the base of {base.project}/{base.name}")
        # Only this machine knows these.
        return replace(base, order_identity="", order_position=0, folder_path="", kept={})

    def records(self) -> Iterator[list[Any]]:
        """Yield the records of the server's order, fetched page by page."""
        after: int | None = 0
        while after is not None:
            page = self.source.order(self.experiment, after, ORDER_PAGE)
            yield from map(checked, page["records"])
            following = page["next"]
            after = following if page["records"] and following is not None and following > after else None

    # -- segments ----------------------------------------------------------------------------------------------------

    def bring_segments(self, totals: dict[str, int], into: Path) -> None:
        """Download the first `totals[id]` bytes of each segment into a journal, checked and synced."""
        self.total += sum(totals.values())
        brought: dict[str, dict[str, tuple[int, str]]] = {}
        for identity, length in totals.items():
            journal, digest = self._bring_segment(identity, length, into)
            brought.setdefault(journal, {})[identity] = length, digest
        for journal, segments in brought.items():
            answer = self.source.digests(journal, {identity: length for identity, (length, _) in segments.items()})
            for identity, (length, digest) in segments.items():
                proof = answer.get(identity)
                if proof is None or (proof["of"], proof["sha256"]) != (length, digest):
                    raise Damaged(
                        f"segment {identity} came with other bytes than {self.source.name} says that it has",
                        hint="try again; nothing was put in place",
                    )

    def _bring_segment(self, identity: str, length: int, into: Path) -> tuple[str, str]:
        """Download one segment; return (id of its journal, SHA-256 of the bytes)."""
        digest, offset, file, journal = hashlib.sha256(), 0, "", ""
        temporary = into / SEGMENTS / f".{identity}.tmp"
        with temporary.open("wb") as target:
            while offset < length:
                data, file, journal = self.source.segment(identity, offset, min(PAGE_BYTES, length - offset))
                data = data[: length - offset]
                if not data:
                    raise Damaged(f"{self.source.name} has {offset} bytes of segment {identity}, and said {length}")
                write_all(target.fileno(), data)
                digest.update(data)
                offset += len(data)
                self._count(len(data))
            os.fsync(target.fileno())
        name = parse_name(file)
        with temporary.open("rb") as source:
            header = decode_header(source.read(1 << 16))[0]
        identities = (header.segment.hex(), header.writer.hex(), header.journal.hex())
        if name is None or identities != (identity, name.writer, journal):
            raise Damaged(f"{self.source.name} answered with something that is not segment {identity}")
        os.replace(temporary, into / SEGMENTS / file)
        self.segments += 1
        return journal, digest.hexdigest()

    def _count(self, size: int) -> None:
        self.deadline.check()
        self.bytes += size
        self.progress(self.bytes, self.total)

    # -- blobs -------------------------------------------------------------------------------------------------------

    def bring_bodies(self, into: Path) -> None:
        """Download the bodies of events that were too long for a frame: without them the events cannot be folded."""
        for _, path in list_segments(into):
            segment = open_segment(path)
            items = read(segment, segment.first) if segment is not None else ()
            for item in items:
                for name, _ in (
                    blobs_of(item, segment.writer) if isinstance(item, Stretch) and segment is not None else ()
                ):
                    self._bring_blob(name, into)

    def bring_files(self, state: State, into: Path) -> bool:
        """Download the contents of current files that are missing in a journal; True if there were any."""
        wanted = {file.blob: file.size_bytes for file in state.files.values() if file.live}
        present = blobs.names(into)
        lacking = [name for name, size in wanted.items() if present.get(name) != size]
        self.total += sum(wanted[name] for name in lacking)
        for name in lacking:
            self._bring_blob(name, into)
        return bool(lacking)

    def _bring_blob(self, name: str, into: Path) -> None:
        try:
            bring_blob(self.source, self.experiment, name, into, self._count)
            self.blobs += 1
        except ServerRefused as error:
            if error.status != 404:
                raise
            self.missing.append(name)


def bring_blob(
    source: Source, experiment: str, name: str, journal: Path, count: Callable[[int], None] = lambda size: None
) -> Path:
    """Download a blob into a journal, checked and synced, and return its path.

    `count` is called with the size of each piece, in bytes. Raises ServerRefused if the server does not have all of
    the blob, Damaged if the content has another digest.
    """
    parsed = parse_blob(name)
    assert parsed is not None
    temporary = scratch_in(journal / BLOBS)
    digest = hashlib.sha256()
    try:
        with temporary.open("xb") as target:
            for block in source.blob(experiment, name):
                write_all(target.fileno(), block)
                digest.update(block)
                count(len(block))
            os.fsync(target.fileno())
        if digest.hexdigest() != parsed[0]:
            raise Damaged(
                f"{source.name} sent content with SHA-256 {digest.hexdigest()}, expected {parsed[0]}", hint="try again"
            )
        temporary.chmod(0o444)
        os.replace(temporary, journal / BLOBS / name)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(journal / BLOBS)
    return journal / BLOBS / name
