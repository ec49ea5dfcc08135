"""A segment written by the library that holds every kind of frame, and verbs to damage copies of it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ml_dash.errors import JournalError
from ml_dash.journal.reader import Gap, Stretch, Tail, open_segment, read

from . import oracle_reader as disk
from .oracle import Reporter
from .victims import Caller, experiment, journal_of

KINDS: Final = frozenset(range(disk.OPEN, disk.UPDATE + 1))


@dataclass(frozen=True)
class Specimen:
    """The bytes of a segment, and where its frames are, found by the independent reader."""

    name: str
    data: bytes
    header: disk.Header
    frames: tuple[disk.Frame, ...]
    other: bytes
    copy: Path

    def reset(self) -> None:
        """Let the copy be the segment as it was written."""
        self.copy.write_bytes(self.data)


def _write_one(folder: Path, at_least: int, seed: int) -> Path:
    rng = random.Random(seed)
    folder.mkdir()
    source = folder / "source.bin"
    source.write_bytes(b"content")
    with experiment(folder, description="specimen") as target:
        caller = Caller(target, Reporter(-1), rng, big=300)
        entry = target.file(str(source), prefix="/models")
        target.file(file_id=entry["id"], description="new").update()
        target.file(file_id=entry["id"]).delete()
        target.metric("told", description="with a description").append(value=1.5)
        target.update(tags=["a", "b"])
        written = 0
        while written < at_least:
            for call in caller.calls:
                call()
            written = sum(path.stat().st_size for path in (journal_of(folder) / "segments").glob("*.seg"))
    (segment,) = (journal_of(folder) / "segments").glob("*.seg")
    return segment


@contextlib.contextmanager
def specimen_of(workdir: Path, at_least: int) -> Iterator[Specimen]:
    """A setup for rows: one specimen of at least that size."""
    first, second = (_write_one(workdir / f"made-{n}", at_least, n) for n in range(2))
    data = first.read_bytes()
    segment = disk.read_bytes(data)
    assert segment.header is not None
    assert not segment.damaged
    assert segment.tail is None
    assert {frame.kind for frame in segment.frames} >= KINDS
    copy = workdir / first.name
    made = Specimen(first.name, data, segment.header, tuple(segment.frames), second.read_bytes(), copy)
    made.reset()
    yield made


@dataclass
class Reading:
    """What the library's reader says of a file: frames by place, gaps, the tail; or why it refuses the file."""

    refused: str = ""
    found: list[tuple[Any, ...]] = None  # type: ignore[assignment]
    gaps: list[tuple[int, int]] = None  # type: ignore[assignment]
    tail: tuple[int, int] | None = None
    header_damaged: bool = False


def read_copy(path: Path) -> Reading:
    """Read a segment with the library; any other exception than its own errors is the caller's finding."""
    reading = Reading(found=[], gaps=[])
    try:
        segment = open_segment(path)
    except JournalError as error:
        reading.refused = type(error).__name__
        return reading
    if segment is None:
        reading.refused = "not yet"
        return reading
    reading.header_damaged = segment.damaged
    for item in read(segment, segment.first):
        if isinstance(item, Stretch):
            reading.found += item.events
        elif isinstance(item, Gap):
            reading.gaps.append((item.start, item.end))
        elif isinstance(item, Tail):
            reading.tail = (item.start, item.end)
    return reading


def identity(frame: disk.Frame) -> tuple[int, int, int]:
    """What is compared of each event, for speed; bodies are compared by `same_bodies`."""
    return frame.seq, frame.kind, frame.time_ns


def expect(reading: Reading, want: list[disk.Frame], *, damaged: bool) -> list[str]:
    """Exactly these frames, and a note of damage exactly where some is."""
    problems = []
    got = [event[:3] for event in reading.found]
    if got != [identity(frame) for frame in want]:
        missing = sorted({identity(frame)[0] for frame in want} - {event[0] for event in got})
        invented = sorted({event[0] for event in got} - {frame.seq for frame in want})
        problems.append(
            f"{len(want)} frames are whole, {len(got)} were read; missing {missing[:5]}, too many {invented[:5]}"
        )
    if damaged != bool(reading.gaps or reading.tail):
        problems.append(f"damage: {damaged}, told: gaps {reading.gaps[:3]}, tail {reading.tail}")
    return problems


def same_bodies(reading: Reading, want: list[disk.Frame]) -> list[str]:
    """Are the bodies those that were written, byte for byte?"""
    import msgpack

    for event, frame in zip(reading.found, want, strict=False):
        body = event[3]
        if type(body).__name__ == "Ext":
            body = msgpack.ExtType(body.code, bytes(body.data))
        if msgpack.packb(body) != msgpack.packb(frame.body):
            return [f"event {frame.seq} has another body"]
    return []
