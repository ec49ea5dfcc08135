"""Apply edits to the documented folder, so that a reader may `tail -f` its lines and never sees half a document.

Lines go by `pwrite` to the offset that the order implies, so that writing them again changes nothing; documents are
replaced as a whole; files are hard links to blobs, or copies with `ML_DASH_FILES=copy`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

from ..durable import fail_point, read_at, replace_file, write_all
from ..fold import Block, Edits, State
from ..journal.segment import BLOBS
from ..names import metric_path
from ..records import experiment_document, files_document, metric_document, parameters_document, shown_paths
from .checkpoint import LINES_PER_MARK, Layout, LineFile
from .lines import document, log_lines, point_lines

LOGS: Final = "logs/logs.jsonl"
PARAMETERS: Final = "parameters.json"
EXPERIMENT: Final = "experiment.json"
FILES: Final = "files/.files_metadata.json"


class FolderChanged(Exception):  # noqa: N818 - tells the projector to write everything again, never seen by users
    """A derived file is shorter than what was written to it: somebody removed or cut it."""


class Folder:
    """The documented folder of one experiment, and the layout that says what is in it."""

    def __init__(self, path: Path, journal: Path, layout: Layout) -> None:
        self.path = path
        self.journal = journal
        self.layout = layout
        # Where `a` and `A` are one file, upper-case letters of metric names are escaped.
        self.fold_case = (journal.parent / journal.name.upper()).exists()

    def prepare(self) -> None:
        """Make what is there from the beginning."""
        for part in ("logs", "metrics", "files"):
            (self.path / part).mkdir(parents=True, exist_ok=True)
        logs = self.path / LOGS
        if not logs.exists():
            logs.touch()

    def metric_folder(self, name: str) -> Path:
        """Where a metric's files are."""
        return self.path / "metrics" / metric_path(name, fold_case=self.fold_case)

    def apply(self, edits: Edits) -> None:
        """Write the lines of some edits."""
        if edits.logs:
            _append_lines(self.path / LOGS, self.layout.logs, [log_lines(part) for part in _parts(edits)])
        for name, blocks in edits.points.items():
            self._append_points(name, blocks)
        edits.clear()
        fail_point("project-lines")

    def _append_points(self, name: str, blocks: list[Block]) -> None:
        known = self.layout.metrics.get(name)
        if known is None:
            self.metric_folder(name).mkdir(parents=True, exist_ok=True)
            known = self.layout.metrics[name] = LineFile()
        pieces = [point_lines(piece) for block in blocks for piece in _pieces(block)]
        _append_lines(self.metric_folder(name) / "data.jsonl", known, pieces, [len(p.rows) for b in blocks for p in _pieces(b)])

    def write_documents(self, state: State, edits: Edits, metrics: set[str]) -> None:
        """Replace the documents that edits made stale; `metrics` says whose metadata."""
        for name in sorted(metrics):
            if name in state.metrics:
                folder = self.metric_folder(name)
                folder.mkdir(parents=True, exist_ok=True)
                _replace(folder / "metadata.json", document(metric_document(state, state.metrics[name])))
        if edits.parameters or not (self.path / PARAMETERS).exists():
            _replace(self.path / PARAMETERS, document(parameters_document(state)))
        if edits.files or not (self.path / FILES).exists():
            self._place_files(state)
            _replace(self.path / FILES, document(files_document(state)))
        if edits.experiment or not (self.path / EXPERIMENT).exists():
            _replace(self.path / EXPERIMENT, document(experiment_document(state)))
        fail_point("project-replace")

    def _place_files(self, state: State) -> None:
        wanted = {path: file.blob for path, file in shown_paths(state).items()}
        placed = self.layout.placed
        for path in [path for path in placed if path not in wanted]:
            self._remove_file(path)
            del placed[path]
        for path, blob in wanted.items():
            target = self.path / "files" / path
            if placed.get(path) != blob or not target.exists():
                if _show(self.journal / BLOBS / blob, target):
                    placed[path] = blob
                else:
                    placed.pop(path, None)

    def _remove_file(self, path: str) -> None:
        target = self.path / "files" / path
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.unlink()
        for parent in target.parents:
            if parent == self.path / "files":
                return
            try:
                parent.rmdir()
            except OSError:
                # Not empty, or gone already.
                return

    def trim(self) -> None:
        """Cut what lies behind the last line: left by a crash between writing and its checkpoint, or by an editor."""
        files = [(self.path / LOGS, self.layout.logs)]
        files += [(self.metric_folder(name) / "data.jsonl", lines) for name, lines in self.layout.metrics.items()]
        for path, lines in files:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size > lines.size:
                    os.truncate(path, lines.size)

    def check(self) -> None:
        """Raise FolderChanged if a file of lines is shorter than it should be, or a document is missing."""
        for path, lines in [
            (self.path / LOGS, self.layout.logs),
            *((self.metric_folder(name) / "data.jsonl", lines) for name, lines in self.layout.metrics.items()),
        ]:
            if not path.exists() or path.stat().st_size < lines.size:
                raise FolderChanged(path)
        for name in self.layout.metrics:
            if name not in self.layout.stale and not (self.metric_folder(name) / "metadata.json").exists():
                raise FolderChanged(name)
        for text in (PARAMETERS, EXPERIMENT, FILES):
            if not (self.path / text).exists():
                raise FolderChanged(text)


def _parts(edits: Edits) -> list[list]:  # type: ignore[type-arg]
    """Log entries, parted before every number that gets a mark."""
    entries = edits.logs
    cuts = [0, *(i for i, entry in enumerate(entries) if i and entry.number % LINES_PER_MARK == 0), len(entries)]
    return [entries[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


def _pieces(block: Block) -> list[Block]:
    """The block, parted before every index that gets a mark."""
    first_cut = -block.start % LINES_PER_MARK
    if first_cut >= len(block.rows) or (first_cut == 0 and len(block.rows) <= LINES_PER_MARK):
        return [block]
    cuts = [0, *range(first_cut or LINES_PER_MARK, len(block.rows), LINES_PER_MARK), len(block.rows)]
    return [
        Block(block.start + a, block.rows[a:b], block.times if isinstance(block.times, int) else block.times[a:b])
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]


def _append_lines(path: Path, known: LineFile, pieces: list[bytes], counts: list[int] | None = None) -> None:
    size = known.size
    for number, piece in enumerate(pieces):
        if known.lines % LINES_PER_MARK == 0:
            known.marks.append(size)
        known.lines += counts[number] if counts is not None else piece.count(b"\n")
        size += len(piece)
    _write_missing(path, known.size, b"".join(pieces))
    known.size = size


def _write_missing(path: Path, offset: int, data: bytes) -> None:
    """Write `data` at `offset`, but only what is not there already."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NOFOLLOW", 0)
    fd = os.open(path, flags, 0o666)
    try:
        size = os.fstat(fd).st_size
        if size < offset:
            raise FolderChanged(path)
        if size > offset and read_at(fd, len(data), offset) == data:
            return
        write_all(fd, data, offset)
    finally:
        os.close(fd)


def _replace(path: Path, content: bytes) -> None:
    try:
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)


def _show(blob: Path, target: Path) -> bool:
    """Make `target` the content of a blob; False if the blob is not there."""
    if not blob.exists():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name[:200]}.{os.getpid():x}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    if os.environ.get("ML_DASH_FILES", "link") == "copy" or not _link(blob, temporary):
        shutil.copyfile(blob, temporary)
    os.replace(temporary, target)
    # rename(2) does nothing, and leaves both names, when they are links to one file already.
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    return True


def _link(blob: Path, target: Path) -> bool:
    try:
        os.link(blob, target)
    except OSError:
        # Another file system, or one without links: a copy does as well.
        return False
    return True
