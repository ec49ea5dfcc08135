"""Is everything there? Checks every frame, every blob and every line of the folder, and says what is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from . import blobs
from .errors import JournalError
from .fold import Edits, State
from .journal.order import Order, Stretch
from .journal.reader import Gap, Tail, is_partial, open_segment, read
from .journal.segment import BLOBS, SEGMENTS, list_segments
from .lock import Liveness, probe
from .names import metric_path
from .projection import checkpoint as checkpoints
from .projection.checkpoint import Checkpoint
from .projection.folder import EXPERIMENT, FILES, LOGS, PARAMETERS
from .projection.lines import document, log_lines, point_lines
from .projection.replay import Replay
from .read import Located
from .records import experiment_document, files_document, metric_document, parameters_document, shown_paths

DAMAGE: Final = frozenset(("damaged", "gap", "lost", "missing-blob", "changed-blob", "projection"))
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was written.

    `kind`: damaged (bytes that are no frame although later ones are, or an unreadable segment), gap (numbers of a
    writer that are in no segment), lost (events that the disk and memory could not take), torn (a last frame cut off by
    a crash, never acknowledged), released (content of a replaced or deleted file), missing-blob, changed-blob,
    projection (a derived file differs: `ml-dash rebuild` mends it). `events` says how many, 0 where unknown.
    """

    kind: str
    where: str
    what: str
    events: int = 0


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked, and what was found."""

    events: int
    segments: int
    bytes: int
    blobs: int
    findings: tuple[Finding, ...] = field(default=())

    @property
    def damaged(self) -> bool:
        """Is anything wrong that should not be?"""
        return any(finding.kind in DAMAGE for finding in self.findings)

    @property
    def ok(self) -> bool:
        """Is everything that was acknowledged there, exactly as written?"""
        return not self.damaged


def verify(located: Located, progress: Progress | None = None) -> VerifyReport:
    """Check an experiment; reads everything, writes nothing. `progress(bytes checked, bytes in all)` now and then."""
    return _Check(located, progress).run()


class _Compare:
    """A sink that compares lines with the documented folder instead of writing them."""

    def __init__(self, folder: Path, *, fold_case: bool, tell: Callable[[], None]) -> None:
        self.folder = folder
        self.fold_case = fold_case
        self.positions: dict[Path, int] = {}
        self.wrong: dict[Path, int] = {}
        self.short: dict[Path, int] = {}
        self._tell = tell

    def path_of(self, metric: str) -> Path:
        """Where the lines of a metric are."""
        return self.folder / "metrics" / metric_path(metric, fold_case=self.fold_case) / "data.jsonl"

    def apply(self, edits: Edits) -> None:
        """Compare the lines of some edits."""
        if edits.logs:
            self._compare(self.folder / LOGS, log_lines(edits.logs))
        for name, blocks in edits.points.items():
            self._compare(self.path_of(name), b"".join(map(point_lines, blocks)))
        edits.clear()
        self._tell()

    def _compare(self, path: Path, expected: bytes) -> None:
        position = self.positions.get(path, 0)
        self.positions[path] = position + len(expected)
        try:
            with path.open("rb") as file:
                file.seek(position)
                found = file.read(len(expected))
        except OSError:
            found = b""
        if found == expected:
            return
        if expected.startswith(found):
            self.short.setdefault(path, position + len(found))
        elif path not in self.wrong:
            same = os.path.commonprefix([found, expected])
            self.wrong[path] = position + len(same)



class _Check:
    def __init__(self, located: Located, progress: Progress | None) -> None:
        self.located = located
        self.journal = located.journal
        self.findings: list[Finding] = []
        self.total = sum(path.stat().st_size for _, path in list_segments(self.journal))
        self.live = self._live_writers()
        self._progress = progress or (lambda done, total: None)
        self._segment_ids: set[str] = set()

    def run(self) -> VerifyReport:
        segments = list_segments(self.journal)
        checkpoint = checkpoints.load(self.journal)
        fold_case = (self.journal.parent / self.journal.name.upper()).exists()
        compare = _Compare(self.located.folder, fold_case=fold_case, tell=self._tell)
        self.replay = Replay(self.journal, Checkpoint())
        self.replay.catch_up(compare, record=False)
        for _, path in segments:
            self._segment(path)
        self._order()
        for where, what in self.replay.troubles.items():
            if not any(finding.where == where for finding in self.findings):
                self.add("damaged", where, what)
        state = self.replay.state
        self._writers(state)
        checked = self._blobs(state)
        self._projection(state, compare, checkpoint, fold_case)
        return VerifyReport(state.events, len(segments), self.total, checked, tuple(self.findings))

    def add(self, kind: str, where: str, what: str, events: int = 0) -> None:
        self.findings.append(Finding(kind, where, what, events))

    def _tell(self) -> None:
        done = sum(end - start for ranges in self.replay.at.covered.values() for start, end in ranges)
        self._progress(done, self.total)

    def _live_writers(self) -> set[str]:
        folder = self.journal / SEGMENTS
        return {
            name.writer
            for name, _ in list_segments(self.journal)
            if (folder / name.lock).exists() and probe(folder / name.lock) is Liveness.ALIVE
        }

    def _segment(self, path: Path) -> None:
        """What of a segment the replay could not read: the rest is checked already."""
        try:
            segment = open_segment(path)
        except (OSError, JournalError) as error:
            self.add("damaged", path.name, str(error))
            return
        if segment is None:
            self.add("torn", path.name, "the header was never written whole; it held no event")
            return
        self._segment_ids.add(segment.id)
        position = segment.first
        for start, end in [*self.replay.at.covered.get(segment.id, []), (path.stat().st_size,) * 2]:
            if start <= position:
                position = max(position, end)
                continue
            for item in read(segment, position, start if start != end else None):
                if isinstance(item, Gap):
                    self.add("damaged", path.name, f"bytes {item.start} to {item.end} hold no frame")
                elif isinstance(item, Tail):
                    self._tail(segment.writer, path, item, is_partial(segment, item), last=start == end)
            position = end

    def _tail(self, writer: str, path: Path, tail: Tail, partial: bool, *, last: bool) -> None:
        size = tail.end - tail.start
        if not last:
            self.add("damaged", path.name, f"bytes {tail.start} to {tail.end} hold no frame")
        elif writer in self.live:
            return
        elif partial:
            self.add("torn", path.name, f"the last {size} bytes are a frame cut off by a crash; it was never acknowledged")
        else:
            self.add("damaged", path.name, f"the last {size} bytes hold no frame")

    def _order(self) -> None:
        order = Order(self.journal)
        try:
            order.open(write=False)
            named = {record.segment for record, _ in order.read(0) if isinstance(record, Stretch)}
        except (OSError, JournalError) as error:
            self.add("damaged", "order", str(error))
            return
        finally:
            order.close()
        for segment in sorted(named - self._segment_ids):
            self.add("damaged", f"segment {segment}", "order names it, but it is not in the journal")

    def _writers(self, state: State) -> None:
        for writer in state.writers.values():
            for first, end in writer.gaps():
                self.add("gap", f"writer {writer.id}", f"events {first} to {end - 1} are missing", end - first)
            if writer.lost:
                self.add("lost", f"writer {writer.id}", f"{writer.lost:,} events were lost: the disk refused them", writer.lost)

    def _blobs(self, state: State) -> int:
        present = blobs.names(self.journal)
        checked = 0
        for file in state.files.values():
            label = f"{file.place} (file {file.id})"
            if file.blob not in present:
                if file.live:
                    self.add("missing-blob", label, "its content is not in the journal")
                else:
                    self.add("released", label, "replaced or deleted; its content was released")
                continue
            checked += 1
            if blobs.digest_of(self.journal / BLOBS / file.blob) != file.checksum:
                self.add("changed-blob", label, "its content is not what was recorded")
        return checked

    def _projection(self, state: State, compare: _Compare, checkpoint: Checkpoint | None, fold_case: bool) -> None:
        for path, offset in compare.wrong.items():
            self._differs(path, f"differs from the journal at byte {offset}")
        behind = checkpoint is None or checkpoint.state.events < state.events
        if behind:
            # Not projected yet: the next reader does it. What is there was compared.
            return
        for path, offset in compare.short.items():
            if path not in compare.wrong:
                self._differs(path, f"ends at byte {offset}, lines are missing")
        for path, size in compare.positions.items():
            if path.exists() and path.stat().st_size > size:
                self._differs(path, f"has {path.stat().st_size - size} bytes behind its last line")
        self._documents(state, compare)

    def _documents(self, state: State, compare: _Compare) -> None:
        folder = self.located.folder
        expected = {
            folder / EXPERIMENT: document(experiment_document(state)),
            folder / PARAMETERS: document(parameters_document(state)),
            folder / FILES: document(files_document(state)),
        }
        for name, metric in state.metrics.items():
            expected[compare.path_of(name).with_name("metadata.json")] = document(metric_document(state, metric))
        if self.live:
            # A live run's documents may be a moment behind.
            expected = {}
        for path, content in expected.items():
            try:
                same = path.read_bytes() == content
            except OSError:
                same = False
            if not same:
                self._differs(path, "differs from the journal" if path.exists() else "is missing")
        for shown, file in shown_paths(state).items():
            target = folder / "files" / shown
            if not target.exists() or target.stat().st_size != file.size_bytes:
                self._differs(target, "is not the file that was added")

    def _differs(self, path: Path, what: str) -> None:
        shown = path.relative_to(self.located.folder) if path.is_relative_to(self.located.folder) else path
        self.add("projection", str(shown), f"{what}; run: ml-dash rebuild")
