"""Apply edits to the documented folder, so that a reader may `tail -f` its lines and never sees half a document.

Lines go by `pwrite` to the offset that the order implies, so that writing them again changes nothing; documents are
replaced as a whole; files are hard links to blobs, or copies with `ML_DASH_FILES=copy`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final
from zlib import crc32

from ..core.names import file_path, metric_path
from ..core.records import experiment_document, files_document, metric_document, parameters_document
from ..core.rewinds import Elsewhere, Past
from ..core.shown import Shown
from ..core.state import Block, Edits, File, LogLine, State
from ..disk.durable import fail_point, read_at, replace_file, write_all
from ..journal.segment import BLOBS, EXPERIMENT, parse_blob
from .checkpoint import LINES_PER_MARK, Layout, LineFile
from .lines import document, joined, log_lines, point_lines, read_points

LOGS: Final = "logs/logs.jsonl"
POINTS: Final = "data.jsonl"
METADATA: Final = "metadata.json"
PARAMETERS: Final = "parameters.json"
FILES: Final = "files/.files_metadata.json"
AWAY: Final = "NOT-UP-TO-DATE.txt"
"""What stands in a folder that has given way to the journal."""

_READ_LINES: Final = 4 * LINES_PER_MARK
# Where a projector prepares what it puts into the folder: in the journal, so that a crash leaves nothing in the folder.
_SCRATCH: Final = ".project.{:x}.tmp"
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]+\.tmp")


class FolderChanged(Exception):
    """A derived file is shorter than what was written to it: somebody removed or cut it."""


def folds_case(journal: Path) -> bool:
    """Are `a` and `A` one file there? Upper-case letters of metric names are escaped then."""
    return (journal.parent / journal.name.upper()).exists()


class Folder:
    """The documented folder of one experiment, and the layout that says what is in it."""

    def __init__(self, path: Path, journal: Path, layout: Layout) -> None:
        self.path = path
        self.journal = journal
        self.layout = layout
        self._fold_case = folds_case(journal)
        self._scratch = journal / _SCRATCH.format(os.getpid())
        # Metric → its folder and its file of lines: asked for with every stretch.
        self._places: dict[str, tuple[Path, Path]] = {}
        # Folders that are there: what was looked at while one thing is done is not looked at again.
        self._made: set[Path] = set()
        # How many points and entries `apply` may hold back, so that a file is opened once for many of them.
        self.holds = 0
        self._held = Edits()
        self._held_lines = 0
        # Where live files belong; None until that was worked out.
        self._shown: Shown | None = None

    # -- where things are --------------------------------------------------------------------------------------------

    def metric_folder(self, name: str) -> Path:
        """Where a metric's files are."""
        return self._place_of(name)[0]

    def points_file(self, name: str) -> Path:
        """Where a metric's lines are."""
        return self._place_of(name)[1]

    def _place_of(self, name: str) -> tuple[Path, Path]:
        place = self._places.get(name)
        if place is None:
            folder = self.path / "metrics" / metric_path(name, fold_case=self._fold_case)
            place = self._places[name] = folder, folder / POINTS
        return place

    def line_files(self) -> Iterator[tuple[Path, LineFile]]:
        """Every file of lines, and what is known of it."""
        yield self.path / LOGS, self.layout.logs
        for name, lines in self.layout.metrics.items():
            yield self.points_file(name), lines

    # -- when a projector begins -------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make what is there from the beginning, and remove what a projector that was killed has left half-made."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / AWAY).unlink(missing_ok=True)
        for part in ("logs", "metrics", "files"):
            self._make(self.path / part)
        for name, lines in self.layout.metrics.items():
            if not lines.size:
                self._make(self.metric_folder(name))
        for path, lines in self.line_files():
            # No line yet, or none that is not before the base.
            if not lines.size and not path.exists():
                path.touch()
        shown = {(self.path / "files" / path).parent for path in self.layout.placed}
        metrics = map(self.metric_folder, self.layout.metrics)
        # In the folder only where it is on another file system than the journal.
        for folder in {self.journal, self.path, self.path / "files", *metrics, *shown}:
            _sweep(folder)

    def _make(self, folder: Path) -> None:
        """A folder of ours: a symbolic link in its place would lead what is written elsewhere."""
        if folder in self._made:
            return
        if folder == self.path:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            self._make(folder.parent)
            try:
                folder.mkdir()
            except FileExistsError:
                if folder.is_symlink():
                    folder.unlink()
                folder.mkdir(exist_ok=True)
        self._made.add(folder)

    def mark_missing(self, state: State, edits: Edits) -> None:
        """Note in `edits` which documents are not there."""
        edits.experiment |= not (self.path / EXPERIMENT).exists()
        edits.parameters |= not (self.path / PARAMETERS).exists()
        edits.files |= not (self.path / FILES).exists()
        edits.metrics.update(name for name in state.metrics if not (self.metric_folder(name) / METADATA).exists())

    def mark_unshown(self, state: State, edits: Edits) -> None:
        """Note in `edits` whether contents have come that were not in the journal before: `pull` brings them."""
        placed = self.layout.placed
        unshown = [file.blob for path, file in Shown(state).paths.items() if path not in placed]
        edits.files |= any(_is_blob(self.journal / BLOBS / blob) for blob in unshown)

    # -- lines -------------------------------------------------------------------------------------------------------

    def apply(self, edits: Edits) -> None:
        """Write the lines of some edits, or hold them back until `flush`."""
        self._held.logs += edits.logs
        self._held_lines += len(edits.logs)
        for name, blocks in edits.points.items():
            self._held.points.setdefault(name, []).extend(blocks)
            self._held_lines += sum(len(block.rows) for block in blocks)
        edits.clear()
        if self._held_lines >= self.holds:
            self.flush()

    def flush(self) -> None:
        """Write the lines that are held back."""
        self._made = set()
        held, self._held, self._held_lines = self._held, Edits(), 0
        if held.logs:
            parts = _log_parts(held.logs)
            data = _counted(self.layout.logs, map(log_lines, parts), map(len, parts))
            _append(self.path / LOGS, self.layout.logs, data)
        for name, blocks in held.points.items():
            known = self.layout.metrics.get(name)
            if known is None:
                known = self.layout.metrics[name] = LineFile()
            if not known.size:
                self._make(self.metric_folder(name))
            _append(self.points_file(name), known, metric_lines(known, [joined(blocks)]))
        fail_point("project-lines")

    def history(self, name: str, start: int, end: int) -> Iterator[Past]:
        """Points [start, end) of a metric, in parts. Raises Elsewhere; FolderChanged if somebody edited them."""
        self.flush()
        known, path = self.layout.metrics.get(name, LineFile()), self.points_file(name)
        if start < known.first:
            raise Elsewhere
        while start < end:
            stop = min(end, start + _READ_LINES)
            try:
                part = read_points(b"\n".join(file_lines(path, known, start, stop)), start)
            except (OSError, ValueError, LookupError) as error:
                raise FolderChanged(path) from error
            if len(part[0]) != stop - start:
                raise FolderChanged(path)
            yield part
            start = stop

    def trim(self) -> None:
        """Cut what lies behind the last line: left by a crash between writing and its checkpoint, or by an editor."""
        for path, lines in self.line_files():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size > lines.size:
                    os.truncate(path, lines.size)

    # -- documents ---------------------------------------------------------------------------------------------------

    def write_documents(self, state: State, edits: Edits) -> None:
        """Replace the documents that edits made stale."""
        self._made = set()
        for name in sorted(edits.metrics & state.metrics.keys()):
            folder = self.metric_folder(name)
            if name not in self.layout.metrics:
                self._make(folder)
            _replace(folder / METADATA, document(metric_document(state, state.metrics[name])), self._scratch)
        if edits.parameters:
            _replace(self.path / PARAMETERS, document(parameters_document(state)), self._scratch)
        self._place_moved(state, edits)
        if edits.files:
            self._place_files()
            _replace(self.path / FILES, document(files_document(state)), self._scratch)
        if edits.experiment:
            _replace(self.path / EXPERIMENT, document(experiment_document(state)), self._scratch)
        fail_point("project-replace")

    # -- files -------------------------------------------------------------------------------------------------------

    def clashing(self, state: State, prefix: str, filename: str) -> File | None:
        """The live file that would be the folder of one there, or have it as its folder."""
        place = f"{prefix}/{filename}" if prefix else filename
        if self._shown is not None and self._shown.is_free(place):
            return None
        for file in state.files.values():
            if file.live and (file.place.startswith(place + "/") or place.startswith(file.place + "/")):
                return file
        return None

    def _place_moved(self, state: State, edits: Edits) -> None:
        """Show what came, and what went no more."""
        if not edits.moved and not edits.files:
            return
        if self._shown is None:
            self._shown = Shown(state)
            self._place_files()
        else:
            for path in self._shown.follow(state, edits.moved):
                self._place(path)
        edits.moved = []

    def _place_files(self) -> None:
        """See that everything is shown that is to be, and nothing else."""
        shown = self._shown
        assert shown is not None
        for path in [*(self.layout.placed.keys() - shown.paths.keys()), *shown.paths]:
            self._place(path)

    def _place(self, path: str) -> None:
        assert self._shown is not None
        file, placed = self._shown.paths.get(path), self.layout.placed
        target = self.path / "files" / path
        if file is not None:
            blob = file.blob
            if placed.get(path) == blob and target.exists():
                return
            content = self.journal / BLOBS / blob
            if _is_blob(content):
                self._make(target.parent)
                _show(content, target, self._scratch)
                placed[path] = blob
                return
        if placed.pop(path, None) is not None:
            self._remove_file(self.path / "files", path)

    def forget_unsure_files(self) -> None:
        """After another boot only what is one file with its blob is surely whole; the rest is placed again."""
        for path, blob in list(self.layout.placed.items()):
            if not _is_one_file(self.path / "files" / path, self.journal / BLOBS / blob):
                del self.layout.placed[path]

    def remove_leftovers(self, state: State) -> None:
        """What is shown no more, where the projector that showed it died before it could note that."""
        placed = self.layout.placed
        for file in state.files.values():
            path, at_top = file_path(file.prefix, file.filename), file_path("", file.filename)
            for shown in (path, f"{path}%{file.id}", f"{at_top}%{file.id}"):
                if shown not in placed and (self.path / "files" / shown).is_file():
                    self._remove_file(self.path / "files", shown)

    def remove_unknown(self, state: State) -> None:
        """What is in no event: of a journal that has lost some since this folder was written."""
        top = self.path / "metrics"
        known = set(map(self.metric_folder, state.metrics))
        for name in (POINTS, METADATA):
            for path in [path for path in top.rglob(name) if path.parent not in known and path.is_file()]:
                self._remove_file(top, str(path.relative_to(top)))
        top = self.path / "files"
        shown = {top / path for path in (*self.layout.placed, Path(FILES).name)}
        for path in [path for path in top.rglob("*") if path not in shown and not path.is_dir()]:
            self._remove_file(top, str(path.relative_to(top)))

    @staticmethod
    def _remove_file(top: Path, path: str) -> None:
        """Remove a file, and the folders up to `top` that are empty then."""
        target = top / path
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.unlink()
        for parent in target.parents:
            if parent == top:
                return
            try:
                parent.rmdir()
            except OSError:
                # Not empty, or gone already.
                return


def _log_parts(entries: list[LogLine]) -> list[list[LogLine]]:
    """Log entries, parted before every number that gets a mark."""
    cuts = _cuts(entries[0].number, len(entries))
    return [entries[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


def _pieces(block: Block) -> list[Block]:
    """The block, parted before every index that gets a mark."""
    cuts = _cuts(block.start, len(block.rows))
    if len(cuts) == 2:
        return [block]
    return [
        Block(block.start + a, block.rows[a:b], block.times if isinstance(block.times, int) else block.times[a:b])
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]


def _cuts(start: int, count: int) -> list[int]:
    first = -start % LINES_PER_MARK or LINES_PER_MARK
    return [0, *range(first, count, LINES_PER_MARK), count]


def file_lines(path: Path, known: LineFile, start: int, stop: int) -> list[bytes]:
    """Lines [start, stop) of a file, read from the last mark before them; of those, as many as are there."""
    mark, number = known.mark_before(start)
    behind, _ = known.mark_before(stop + LINES_PER_MARK - 1)
    offset = known.marks[mark]
    end = known.marks[behind] if behind < len(known.marks) else known.size
    if not path.is_file():
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.read(end - offset).splitlines()
    return lines[start - number : stop - number]


def metric_lines(known: LineFile, blocks: list[Block]) -> bytes:
    """The lines of some blocks, which `known` counts from now on; its size waits for their being written."""
    pieces = [piece for block in blocks for piece in _pieces(block)]
    return _counted(known, map(point_lines, pieces), [len(piece.rows) for piece in pieces])


def _counted(known: LineFile, pieces: Iterable[bytes], counts: Iterable[int]) -> bytes:
    written = bytearray()
    for piece, count in zip(pieces, counts, strict=True):
        if known.lines % LINES_PER_MARK == 0 or known.lines == known.first:
            known.marks.append(known.size + len(written))
        known.lines += count
        written += piece
    return bytes(written)


def _append(path: Path, known: LineFile, data: bytes) -> None:
    _write_missing(path, known.size, data)
    known.size += len(data)
    known.crc = crc32(data, known.crc)


def _write_missing(path: Path, offset: int, data: bytes) -> None:
    """Write `data` at `offset`, but only what is not there already."""
    flags = os.O_RDWR | os.O_CREAT
    for extra in ("O_CLOEXEC", "O_BINARY", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, extra, 0)
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


def _replace(path: Path, content: bytes, scratch: Path) -> None:
    try:
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_size == len(content) and path.read_bytes() == content:
            return
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content, scratch=scratch)


def _sweep(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    Path(entry.path).unlink()


def _is_blob(path: Path) -> bool:
    """Is it there, and a file of its own? A journal from elsewhere may hold links that lead out of it."""
    try:
        return parse_blob(path.name) is not None and stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _show(blob: Path, target: Path, scratch: Path) -> None:
    """Make `target` the content of a blob."""
    temporary = scratch
    if scratch.parent.stat().st_dev != target.parent.stat().st_dev:
        temporary = target.with_name(f".{target.name[:200]}.{os.getpid():x}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    if os.environ.get("ML_DASH_FILES", "link") == "copy" or not _link(blob, temporary):
        shutil.copyfile(blob, temporary)
    os.replace(temporary, target)
    # rename(2) does nothing, and leaves both names, when they are links to one file already.
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()


def _is_one_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _link(blob: Path, target: Path) -> bool:
    try:
        os.link(blob, target)
    except OSError:
        # Another file system, or one without links: a copy does as well.
        return False
    return True
