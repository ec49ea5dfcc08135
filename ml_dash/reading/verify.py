"""Verification: every frame, every blob and every line of the folder checked, and every fault reported."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from ..core.frames import LengthCrcs, decode_order_header, find_frame, walk
from ..core.ranges import Range, holes
from ..core.records import experiment_document, files_document, metric_document, parameters_document
from ..core.rewinds import Elsewhere, Past
from ..core.shown import shown_paths
from ..core.state import Edits, File, State
from ..disk.lock import Liveness, probe
from ..errors import JournalError
from ..journal import base as bases
from ..journal import blobs
from ..journal.base import Base
from ..journal.order import MergeRecord, Order
from ..journal.reader import Gap, Segment, Tail, is_empty, is_partial, open_segment, read
from ..journal.segment import BASE, BLOBS, CHECKPOINT, EXPERIMENT, ORDER, SEGMENTS, list_segments, read_identity
from ..projection import checkpoint as checkpoints
from ..projection.checkpoint import Checkpoint, Layout, LineFile
from ..projection.folder import FILES, LOGS, METADATA, PARAMETERS, Folder, FolderChanged, metric_lines
from ..projection.lines import document, log_lines
from ..projection.replay import Replay
from ..projection.start import begin
from .located import Located

DAMAGE: Final = frozenset(("damaged", "gap", "lost", "missing-blob", "changed-blob", "projection"))
Progress = Callable[[int, int], None]
"""(bytes checked, bytes in all)"""
# How often a damaged experiment is checked again if it changed meanwhile.
_TRIES: Final = 3
_decode_record: Final = msgspec.msgpack.Decoder(list[Any]).decode


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was written.

    `kind`: damaged (bytes that are no frame although later ones are, or an unreadable segment), gap (numbers of a
    writer that are in no segment), lost (events that the disk and memory could not take), torn (a last frame cut off by
    a crash, never acknowledged), released (content of a replaced or deleted file), missing-blob, changed-blob,
    projection (a derived file differs: `ml-dash rebuild` mends it), base (what the base stands for: no damage),
    on-server (content of a file that is only there: no damage), not-brought (content of a file that was recorded
    elsewhere, and did not come with the rest: no damage). `events` says how many, 0 where unknown.
    """

    kind: str
    where: str
    what: str
    events: int = 0


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of a verification: counts of what was checked, and the findings."""

    events: int
    segments: int
    bytes: int
    blobs: int
    findings: tuple[Finding, ...] = field(default=())

    @property
    def damaged(self) -> bool:
        """True if a finding is damage."""
        return any(finding.kind in DAMAGE for finding in self.findings)

    @property
    def ok(self) -> bool:
        """True if everything that was acknowledged is there, exactly as written."""
        return not self.damaged


def verify(located: Located, progress: Progress | None = None) -> VerifyReport:
    """Check an experiment: read everything, write nothing. `progress` is called now and then.

    A run may go on meanwhile: an unfinished write is no finding.
    """
    for _ in range(_TRIES):
        before = _versions(located.journal)
        report = _Check(located, progress).run()
        if not report.damaged or _versions(located.journal) == before:
            break
        # The folder was being written, or gc or pull was at work, while it was compared.
    return report


def _versions(journal: Path) -> list[tuple[int, int, int]]:
    """Return marks of checkpoint, order and base that change when one is replaced, not when an order grows."""
    marks = []
    for name in (CHECKPOINT, ORDER, BASE):
        try:
            at = (journal / name).stat()
            marks.append((at.st_ino, 0, 0) if name == ORDER else (at.st_ino, at.st_mtime_ns, at.st_size))
        except OSError:
            marks.append((0, 0, 0))
    return marks


class _Nowhere:
    """A sink that drops events which `order` does not record yet: their numbers are not final."""

    def apply(self, edits: Edits) -> None:
        edits.clear()

    def history(self, name: str, start: int, end: int) -> Iterator[Past]:
        raise Elsewhere


class _Compare:
    """A sink that compares lines with the documented folder instead of writing them."""

    def __init__(self, folder: Folder, report: Callable[[], None]) -> None:
        # Its layout counts what was compared.
        self.folder = folder
        # How long each file of lines has to be, where it is something else, and where it ends too early.
        self.sizes: dict[Path, int] = {folder.path / LOGS: 0}
        self.wrong: dict[Path, int] = {}
        self.short: dict[Path, int] = {}
        self._report = report

    def apply(self, edits: Edits) -> None:
        if edits.logs:
            self._compare(self.folder.path / LOGS, log_lines(edits.logs))
        for name, blocks in edits.points.items():
            known = self.folder.layout.metrics.setdefault(name, LineFile())
            lines = metric_lines(known, blocks)
            known.size += len(lines)
            self._compare(self.folder.points_file(name), lines)
        edits.clear()
        self._report()

    def history(self, name: str, start: int, end: int) -> Iterator[Past]:
        """Yield points from the folder; where it does not hold them, the difference is reported already."""
        try:
            yield from self.folder.history(name, start, end)
        except FolderChanged:
            raise Elsewhere from None

    def _compare(self, path: Path, expected: bytes) -> None:
        position = self.sizes.get(path, 0)
        self.sizes[path] = position + len(expected)
        found = b""
        if path.is_file():
            with path.open("rb") as file:
                file.seek(position)
                found = file.read(len(expected))
        if found == expected:
            return
        if expected.startswith(found):
            self.short.setdefault(path, position + len(found))
        else:
            same = next(i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b)
            self.wrong.setdefault(path, position + same)


class _Check:
    """One check of everything.

    Live writers and the checkpoint are read before the segments: so a writer that ends, or another process that
    projects meanwhile, makes no false finding.
    """

    def __init__(self, located: Located, progress: Progress | None) -> None:
        self.journal = located.journal
        self.folder = Folder(located.folder, located.journal, Layout())
        self.findings: list[Finding] = []
        self.live = self._live_writers()
        self.base: Base | None = None
        self.checkpoint, start = self._start()
        self.segments = list_segments(self.journal)
        # Writers that wrote to another journal: what is here of them came from a server.
        self.elsewhere = self._writers_elsewhere()
        self.total = sum(path.stat().st_size for _, path in self.segments)
        self.replay = Replay(self.journal, start)
        # By segment id: what `order` says are frames.
        self.merged: dict[str, list[Range]] = {}
        self._progress = progress or (lambda done, total: None)

    def _start(self) -> tuple[Checkpoint | None, Checkpoint]:
        """Return (the checkpoint if it can be used, the checkpoint where folding begins)."""
        try:
            self.base = bases.load(self.journal)
            return checkpoints.load(self.journal), begin(self.journal, self.folder.path)
        except JournalError as error:
            # A broken base: what it stands for is unknown, but what is here is checked all the same.
            self.add("damaged", BASE, str(error))
            return None, Checkpoint()

    def run(self) -> VerifyReport:
        counted = Folder(self.folder.path, self.journal, deepcopy(self.replay.at.layout))
        compare = _Compare(counted, self._report_progress)
        compare.sizes.update({path: lines.size for path, lines in self._folder_at_start().line_files()})
        self.replay.catch_up(compare, record=False, unordered=_Nowhere())
        state = self.replay.state
        self._order()
        ids = {self._segment(path) for _, path in self.segments}
        stood = self.base.segments.keys() if self.base is not None else set()
        for segment in sorted(self.merged.keys() - ids - stood):
            self.add("damaged", f"segment {segment}", "order names it, but it is not in the journal")
        self._base(ids)
        self._bodies()
        self._writers(state)
        checked = self._blobs(state)
        self._projection(state, compare)
        return VerifyReport(state.events, len(self.segments), self.total, checked, tuple(self.findings))

    def add(self, kind: str, where: str, what: str, events: int = 0) -> None:
        self.findings.append(Finding(kind, where, what, events))

    def _report_progress(self) -> None:
        at = self.replay.at
        done = sum(ranges[-1][1] for ranges in at.covered.values()) - sum(at.stood.values())
        self._progress(done, self.total)

    def _live_writers(self) -> set[str]:
        """Return writers that may be alive: where locks do not work, all of them may."""
        return {
            name.writer
            for name, _ in list_segments(self.journal)
            if probe(self.journal / SEGMENTS / name.lock) is not Liveness.GONE
        }

    def _writers_elsewhere(self) -> set[str]:
        """Return writers that recorded in another journal, whose segments were pulled into this one."""
        try:
            own = read_identity(self.journal).journal
        except (OSError, JournalError):
            return set()
        stood = self.base.segments.values() if self.base is not None else ()
        writers = {freed.writer for freed in stood if freed.journal != own.hex()}
        for _, path in self.segments:
            # A segment that cannot be read is reported where it is checked.
            with contextlib.suppress(OSError, JournalError):
                segment = open_segment(path)
                if segment is not None and segment.header.journal != own:
                    writers.add(segment.writer)
        return writers

    # -- the base ----------------------------------------------------------------------------------------------------

    def _folder_at_start(self) -> Folder:
        """Return the folder with the layout at the start of the fold: the lines that the base has kept."""
        return Folder(self.folder.path, self.journal, self.replay.at.layout)

    def _base(self, ids: set[str]) -> None:
        base = self.base
        if base is None:
            return
        gone = [stood for stood in base.segments.values() if stood.id not in ids]
        remotes = ", ".join(sorted({stood.remote for stood in gone if stood.remote})) or "the server that it came from"
        what = (
            f"stands for {base.state.events:,} events up to here; {len(gone):,} of its {len(base.segments):,} segments "
            f"({sum(stood.length for stood in gone):,} bytes) and what is not here of its {len(base.blobs):,} contents "
            f"of files are on {remotes}; its checksum holds"
        )
        self.add("base", BASE, what, base.state.events)
        layout = self._folder_at_start().layout
        for name, kept in base.kept.items():
            path = self.folder.points_file(name) if name else self.folder.path / LOGS
            lines = layout.metrics[name] if name else layout.logs
            if lines.size != kept.size:
                shown = path.relative_to(self.folder.path)
                what = "does not begin with the lines that gc kept; they are on the server: run ml-dash pull"
                self.add("projection", str(shown), what)

    # -- the journal -------------------------------------------------------------------------------------------------

    def _segment(self, path: Path) -> str:
        """Report what the replay could not read of a segment (it checked the rest); return the segment's id."""
        try:
            segment = open_segment(path)
            if segment is None:
                self.add("torn", path.name, "the header was never written whole; it held no event")
                return ""
            if segment.damaged:
                self.add("damaged", path.name, "its header is damaged; the frames behind it were read")
            size = path.stat().st_size
            self._stood(segment, size)
            for start, end in holes(self.replay.at.covered.get(segment.id, []), segment.first, size):
                for item in read(segment, start, end):
                    if isinstance(item, Gap) or (isinstance(item, Tail) and item.end < size):
                        self.add("damaged", path.name, f"bytes {item.start} to {item.end} hold no frame")
                    elif isinstance(item, Tail):
                        self._tail(segment, item)
        except (OSError, JournalError) as error:
            self.add("damaged", path.name, str(error))
            return ""
        cut = max((end for _, end in self.merged.get(segment.id, [])), default=0) - size
        if cut > 0:
            self.add("damaged", path.name, f"{cut} bytes of frames that were there are cut off its end")
        return segment.id

    def _stood(self, segment: Segment, size: int) -> None:
        """Report a segment that the base stands for and that differs from it."""
        stood = self.base.segments.get(segment.id) if self.base is not None else None
        if stood is None:
            return
        if size < stood.length and segment.writer in self.elsewhere:
            # An older copy; the base stands for all of it.
            return
        if size < stood.length:
            self.add("damaged", segment.path.name, f"{stood.length - size} bytes are cut off that the server holds")
        elif blobs.digest_of(segment.path, stood.length) != stood.sha256:
            what = f"its first {stood.length} bytes are not those that the server holds"
            self.add("damaged", segment.path.name, what)

    def _tail(self, segment: Segment, tail: Tail) -> None:
        size = tail.end - tail.start
        if any(start < tail.end and tail.start < end for start, end in self.merged.get(segment.id, [])):
            self.add("damaged", segment.path.name, f"the last {size} bytes hold no frame although they did")
        elif segment.writer in self.live:
            # The frame may be half-written at this moment.
            return
        elif is_partial(segment, tail):
            what = f"the last {size} bytes are a frame cut off by a crash; it was never acknowledged"
            self.add("torn", segment.path.name, what)
        elif is_empty(segment, tail):
            self.add("torn", segment.path.name, f"the last {size} bytes were never written: the machine lost its power")
        else:
            self.add("damaged", segment.path.name, f"the last {size} bytes hold no frame")

    def _order(self) -> None:
        order = Order(self.journal)
        try:
            order.open(write=False)
            for record, _ in order.read(0):
                if isinstance(record, MergeRecord):
                    self.merged.setdefault(record.segment, []).append((record.start, record.end))
            content = order.path.read_bytes() if order.path.is_file() else b""
            for start, end in _no_records(content):
                torn = end == len(content) or not content[start:end].strip(b"\0")
                what = f"bytes {start} to {end} hold no record; what they merged is merged again"
                self.add("torn" if torn else "damaged", ORDER, what)
        except (OSError, JournalError) as error:
            self.add("damaged", ORDER, f"{error}; segments are merged by their times")
        finally:
            order.close()

    def _bodies(self) -> None:
        for where, error in self.replay.troubles.items():
            if "#" in where:
                kind = "missing-blob" if isinstance(error, FileNotFoundError) else "changed-blob"
                self.add(kind, where, f"the body of this event is lost: {error}")

    def _writers(self, state: State) -> None:
        for writer in state.writers.values():
            for first, end in writer.gaps():
                self.add("gap", f"writer {writer.id}", f"events {first} to {end - 1} are missing", end - first)
            if writer.lost:
                self.add("lost", f"writer {writer.id}", f"{writer.lost:,} events: the disk refused them", writer.lost)
        if state.malformed:
            what = "events are whole, but do not hold what their kind asks for"
            self.add("damaged", "events", f"{state.malformed:,} {what}", state.malformed)

    def _blobs(self, state: State) -> int:
        present = blobs.names(self.journal)
        gone = [file for file in state.files.values() if file.blob not in present]
        if self.live and any(file.live for file in gone):
            # A file may have been replaced, and its content released, since the journal was read.
            self.replay.catch_up(_Nowhere(), record=False)
        held = self.base.blobs if self.base is not None else {}
        for file in gone:
            if file.live and file.blob in held:
                self.add("on-server", _label(file), f"its content ({file.size_bytes:,} bytes) is on the server only")
            elif file.live and file.writer in self.elsewhere:
                what = "its content was recorded elsewhere and did not come: run ml-dash pull"
                self.add("not-brought", _label(file), what)
            elif file.live:
                self.add("missing-blob", _label(file), "its content is not in the journal")
            else:
                self.add("released", _label(file), "replaced or deleted; its content was released")
        there = [file for file in state.files.values() if file.blob in present]
        for file in there:
            if not _holds(self.journal / BLOBS / file.blob, file):
                self.add("changed-blob", _label(file), "its content is not what was recorded")
        return len(there)

    # -- the folder --------------------------------------------------------------------------------------------------

    def _projection(self, state: State, compare: _Compare) -> None:
        for path, offset in compare.wrong.items():
            self._differs(path, f"differs from the journal at byte {offset}")
        known, at = self.checkpoint, self.replay.at
        if known is None or self.replay.assumed:
            # Some events are not projected yet; what is projected was compared.
            return
        if (known.order_identity, known.order_position) != (at.order_identity, at.order_position):
            return
        for path, offset in compare.short.items():
            if path not in compare.wrong:
                self._differs(path, f"ends at byte {offset}, lines are missing")
        for path, size in compare.sizes.items():
            if not path.exists():
                self._differs(path, "is missing")
            elif path.stat().st_size > size:
                self._differs(path, f"has {path.stat().st_size - size} bytes behind its last line")
        if not self.live:
            self._documents(state, known.layout)

    def _documents(self, state: State, layout: Layout) -> None:
        for path, content in self._expected(state, layout):
            try:
                same = path.is_file() and path.read_bytes() == content
            except OSError:
                same = False
            if not same:
                self._differs(path, "differs from the journal" if path.exists() else "is missing")
        present = blobs.names(self.journal)
        for shown, file in shown_paths(state).items():
            target = self.folder.path / "files" / shown
            if shown not in layout.placed and not os.path.lexists(target):
                # The content was downloaded later; the next reader puts it into the folder.
                continue
            if file.blob in present and not self._shows(target, file):
                self._differs(target, "is not the file that was added")

    def _expected(self, state: State, layout: Layout) -> Iterator[tuple[Path, bytes]]:
        """Yield (path, content) of every document that should be up to date."""
        folder = self.folder
        if not layout.stale_experiment:
            yield folder.path / EXPERIMENT, document(experiment_document(state))
        yield folder.path / PARAMETERS, document(parameters_document(state))
        yield folder.path / FILES, document(files_document(state))
        for name, metric in state.metrics.items():
            if name not in layout.stale:
                yield folder.metric_folder(name) / METADATA, document(metric_document(state, metric))

    def _shows(self, target: Path, file: File) -> bool:
        try:
            return target.samefile(self.journal / BLOBS / file.blob) or _holds(target, file)
        except OSError:
            return False

    def _differs(self, path: Path, what: str) -> None:
        shown = path.relative_to(self.folder.path)
        self.add("projection", str(shown), f"{what}; run: ml-dash rebuild")


def _no_records(order: bytes) -> Iterator[Range]:
    """Yield ranges [start, end) of bytes of an `order` file that hold no record. Raises Damaged for its header."""
    _, position, crc = decode_order_header(order)
    crcs = LengthCrcs(crc)
    while (end := walk(order, position, crcs, _decode_record, [])) < len(order):
        position = find_frame(order, end + 1, crcs, _decode_record)
        if position < 0:
            yield end, len(order)
            return
        yield end, position


def _label(file: File) -> str:
    return f"{file.place} (file {file.id})"


def _holds(path: Path, file: File) -> bool:
    """True if this is a regular file with the content that was added."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size_bytes:
        return False
    return blobs.digest_of(path) == file.checksum
