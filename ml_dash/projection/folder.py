"""Edits applied to the documented folder: lines can be followed with `tail -f`, documents are never half-written.

Lines go by `pwrite` to the offset that the order implies, so that writing them again changes nothing; documents are
replaced as a whole; files are hard links to blobs, or copies with `ML_DASH_FILES=copy`.

Four kinds of files, each written in its own way:

    logs.jsonl, data.jsonl   appended at the offset that the layout knows; bytes that are there already are compared
    metadata.json, ...       replaced by rename; left alone if the content is the same
    files/<path>             a hard link to the blob, or a copy of it, renamed into place
    NOT-UP-TO-DATE.txt       only in a folder that was emptied on a full disk

So a reader with `tail -f` sees lines grow and never shrink (except for what no event stands for, see `trim`), and who
reads a document sees a whole one.

The layout says what this projection wrote: sizes, marks, CRCs, and which blob is shown where. A file that is shorter
than the layout says was changed by somebody, and cannot be continued: FolderChanged makes the projector begin anew. A
longer one is normal after a crash.

Nothing here is synced. In memory are the lines held back (`holds`) and, once files were placed, a table of all
places.

Users can put anything into this folder, also symbolic links. So lines are opened with O_NOFOLLOW, links in the place
of our folders are removed, blobs must be regular files, and nothing is removed but what this projection may have
written.
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
from .titles import note_title

LOGS: Final = "logs/logs.jsonl"
POINTS: Final = "data.jsonl"
METADATA: Final = "metadata.json"
PARAMETERS: Final = "parameters.json"
FILES: Final = "files/.files_metadata.json"
AWAY: Final = "NOT-UP-TO-DATE.txt"
"""The only file in a folder that was emptied to make room for the journal on a full disk."""

# Lines read back at once after a rewind: a multiple of a mark's, so that each part begins at one.
_READ_LINES: Final = 4 * LINES_PER_MARK
# Where new files are prepared: in the journal, so that a crash leaves nothing in the folder.
_SCRATCH: Final = ".project.{:x}.tmp"
_TEMPORARY: Final = re.compile(r"\..+\.[0-9a-f]+\.tmp")


class FolderChanged(Exception):
    """A derived file is shorter than what was written to it: somebody removed, cut or edited it."""


def folds_case(journal: Path) -> bool:
    """True if `a` and `A` are one file there. Upper-case letters of metric names are escaped then."""
    return (journal.parent / journal.name.upper()).exists()


class Folder:
    """The documented folder of one experiment, and the layout that says what is in it. For one thread at a time.

    The layout is the checkpoint's own: what is changed here is saved with it.
    """

    def __init__(self, path: Path, journal: Path, layout: Layout) -> None:
        self.path = path
        self.journal = journal
        self.layout = layout
        self._fold_case = folds_case(journal)
        # With the process id: where locks do not work, two projectors may be at work at once.
        self._scratch = journal / _SCRATCH.format(os.getpid())
        # Metric → (its folder, its file of lines): needed for every stretch.
        self._places: dict[str, tuple[Path, Path]] = {}
        # Folders that exist, as checked during the present flush or set of documents.
        self._made: set[Path] = set()
        # How many points and log entries `apply` may hold back, so that a file is opened once for many of them.
        self.holds = 0
        self._held = Edits()
        self._held_lines = 0
        # Where listed files belong; None until that is computed.
        self._shown: Shown | None = None
        # The title that was noted last, see `titles`.
        self._titled: str | None = None

    # -- where things are --------------------------------------------------------------------------------------------

    def metric_folder(self, name: str) -> Path:
        """Return the folder of a metric."""
        return self._place_of(name)[0]

    def points_file(self, name: str) -> Path:
        """Return the path of a metric's `data.jsonl`."""
        return self._place_of(name)[1]

    def _place_of(self, name: str) -> tuple[Path, Path]:
        place = self._places.get(name)
        if place is None:
            folder = self.path / "metrics" / metric_path(name, fold_case=self._fold_case)
            place = self._places[name] = folder, folder / POINTS
        return place

    def line_files(self) -> Iterator[tuple[Path, LineFile]]:
        """Yield every file of lines with its layout."""
        yield self.path / LOGS, self.layout.logs
        for name, lines in self.layout.metrics.items():
            yield self.points_file(name), lines

    # -- when a projector begins -------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the folders and empty files that every experiment has; remove temporary files of a killed projector."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / AWAY).unlink(missing_ok=True)
        for part in ("logs", "metrics", "files"):
            self._make(self.path / part)
        for name, lines in self.layout.metrics.items():
            if not lines.size:
                self._make(self.metric_folder(name))
        for path, lines in self.line_files():
            # No line yet, or only lines before the base.
            if not lines.size and not path.exists():
                path.touch()
        shown = {(self.path / "files" / path).parent for path in self.layout.placed}
        metrics = map(self.metric_folder, self.layout.metrics)
        # Temporary files are in the folder only if it is on another file system than the journal.
        for folder in {self.journal, self.path, self.path / "files", *metrics, *shown}:
            _sweep(folder)

    def _make(self, folder: Path) -> None:
        """Make a folder and its parents.

        A symbolic link in its place is removed: it would lead our writes elsewhere.
        """
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
        """Mark in `edits` the documents that do not exist."""
        edits.experiment |= not (self.path / EXPERIMENT).exists()
        edits.parameters |= not (self.path / PARAMETERS).exists()
        edits.files |= not (self.path / FILES).exists()
        edits.metrics.update(name for name in state.metrics if not (self.metric_folder(name) / METADATA).exists())

    def mark_unshown(self, state: State, edits: Edits) -> None:
        """Mark in `edits` that files must be placed if contents have come that were missing: `pull` brings them."""
        placed = self.layout.placed
        unshown = [file.blob for path, file in Shown(state).paths.items() if path not in placed]
        edits.files |= any(_is_blob(self.journal / BLOBS / blob) for blob in unshown)

    # -- lines -------------------------------------------------------------------------------------------------------

    def apply(self, edits: Edits) -> None:
        """Write the lines of edits, or hold them back until `flush`. Raises OSError, FolderChanged."""
        self._held.logs += edits.logs
        self._held_lines += len(edits.logs)
        for name, blocks in edits.points.items():
            self._held.points.setdefault(name, []).extend(blocks)
            self._held_lines += sum(len(block.rows) for block in blocks)
        edits.clear()
        if self._held_lines >= self.holds:
            self.flush()

    def flush(self) -> None:
        """Write the lines that are held back. Raises OSError, FolderChanged.

        What is held is taken out first: after an error it is dropped, and the projector forgets this folder and its
        state together.
        """
        self._made = set()
        held, self._held, self._held_lines = self._held, Edits(), 0
        if held.logs:
            parts = _log_parts(held.logs)
            data = _counted(self.layout.logs, map(log_lines, parts), map(len, parts))
            _append(self.path / LOGS, self.layout.logs, data)
        for name, blocks in held.points.items():
            lines = self.layout.metrics.get(name)
            if lines is None:
                lines = self.layout.metrics[name] = LineFile()
            if not lines.size:
                self._make(self.metric_folder(name))
            _append(self.points_file(name), lines, metric_lines(lines, [joined(blocks)]))
        fail_point("project-lines")

    def history(self, name: str, start: int, end: int) -> Iterator[Past]:
        """Yield points [start, end) of a metric, read back in parts.

        Raises Elsewhere if a base stands for some, FolderChanged if somebody edited them.
        """
        self.flush()
        lines, path = self.layout.metrics.get(name, LineFile()), self.points_file(name)
        if start < lines.first:
            raise Elsewhere
        while start < end:
            stop = min(end, start + _READ_LINES)
            try:
                # These lines decide which points are current, so they are decoded and their indices checked.
                part = read_points(b"\n".join(file_lines(path, lines, start, stop)), start)
            except (OSError, ValueError, LookupError) as error:
                raise FolderChanged(path) from error
            if len(part[0]) != stop - start:
                raise FolderChanged(path)
            yield part
            start = stop

    def trim(self) -> None:
        """Cut bytes after the last line: a crash between a write and its checkpoint left them, or an editor."""
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
        # Before the files' metadata, so that what it lists is there already; experiment.json is last for the same
        # reason.
        self._place_moved(state, edits)
        if edits.files:
            self._place_files()
            _replace(self.path / FILES, document(files_document(state)), self._scratch)
        if edits.experiment:
            _replace(self.path / EXPERIMENT, document(experiment_document(state)), self._scratch)
            if state.title.value is not None and state.title.value != self._titled:
                self._titled = state.title.value
                note_title(self.path, self._titled)
        fail_point("project-replace")

    # -- files -------------------------------------------------------------------------------------------------------

    def clashing(self, state: State, prefix: str, filename: str) -> File | None:
        """Return the listed file that would have to be a folder of one at this place, or the other way round."""
        place = f"{prefix}/{filename}" if prefix else filename
        if self._shown is not None and self._shown.is_free(place):
            return None
        for file in state.files.values():
            if file.live and (file.place.startswith(place + "/") or place.startswith(file.place + "/")):
                return file
        return None

    def _place_moved(self, state: State, edits: Edits) -> None:
        """Place files that were added, and remove those that were deleted or replaced."""
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
        """Place every file that is to be shown, and remove all others."""
        shown = self._shown
        assert shown is not None
        for path in [*(self.layout.placed.keys() - shown.paths.keys()), *shown.paths]:
            self._place(path)

    def _place(self, path: str) -> None:
        """Show at `path` the file that belongs there, or remove what is there if none does.

        If its content is not here (`pull` may bring it later), an older version must not be shown in its place.
        """
        assert self._shown is not None
        file, placed = self._shown.paths.get(path), self.layout.placed
        target = self.path / "files" / path
        if file is not None:
            blob = file.blob
            # The metadata changed and the content did not, or it was placed before a crash.
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
        """Forget placed files that are not hard links to their blobs, to place them again.

        After another boot only a link is surely whole: a copy may not have reached the disk.
        """
        for path, blob in list(self.layout.placed.items()):
            if not _is_one_file(self.path / "files" / path, self.journal / BLOBS / blob):
                del self.layout.placed[path]

    def remove_leftovers(self, state: State) -> None:
        """Remove files that are not to be shown, left by a projector that died before its checkpoint."""
        placed = self.layout.placed
        for file in state.files.values():
            # A file whose place is taken by another one has its id in its name, at its place or at the top (see
            # `core.shown`).
            path, at_top = file_path(file.prefix, file.filename), file_path("", file.filename)
            for shown in (path, f"{path}%{file.id}", f"{at_top}%{file.id}"):
                if shown not in placed and (self.path / "files" / shown).is_file():
                    self._remove_file(self.path / "files", shown)

    def remove_unknown(self, state: State) -> None:
        """Remove metrics and files that no event names: the journal may have lost events since they were written."""
        top = self.path / "metrics"
        folders = set(map(self.metric_folder, state.metrics))
        for name in (POINTS, METADATA):
            for path in [path for path in top.rglob(name) if path.parent not in folders and path.is_file()]:
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
    """Split log entries before every number that gets a mark."""
    cuts = _cuts(entries[0].number, len(entries))
    return [entries[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


def _pieces(block: Block) -> list[Block]:
    """Split a block before every index that gets a mark."""
    cuts = _cuts(block.start, len(block.rows))
    if len(cuts) == 2:
        return [block]
    return [
        Block(block.start + a, block.rows[a:b], block.times if isinstance(block.times, int) else block.times[a:b])
        for a, b in zip(cuts, cuts[1:], strict=False)
    ]


def _cuts(start: int, count: int) -> list[int]:
    """Return 0, the positions before which a mark is needed, and `count`, for lines numbered from `start` on."""
    first = -start % LINES_PER_MARK or LINES_PER_MARK
    return [0, *range(first, count, LINES_PER_MARK), count]


def file_lines(path: Path, line_file: LineFile, start: int, stop: int) -> list[bytes]:
    """Return lines [start, stop) of a file, or as many of them as are there, read from the last mark before them."""
    mark, number = line_file.mark_before(start)
    behind, _ = line_file.mark_before(stop + LINES_PER_MARK - 1)
    offset = line_file.marks[mark]
    end = line_file.marks[behind] if behind < len(line_file.marks) else line_file.size
    if not path.is_file():
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.read(end - offset).splitlines()
    return lines[start - number : stop - number]


def metric_lines(line_file: LineFile, blocks: list[Block]) -> bytes:
    """Encode blocks as lines, and count the lines in `line_file`; its size grows only once they are written."""
    pieces = [piece for block in blocks for piece in _pieces(block)]
    return _counted(line_file, map(point_lines, pieces), [len(piece.rows) for piece in pieces])


def _counted(line_file: LineFile, pieces: Iterable[bytes], counts: Iterable[int]) -> bytes:
    """Join encoded pieces that were split at marks; note the marks and the number of lines.

    An offset of a mark is only right if the bytes are then appended at `line_file.size`, which is what all callers
    do.
    """
    written = bytearray()
    for piece, count in zip(pieces, counts, strict=True):
        if line_file.lines % LINES_PER_MARK == 0 or line_file.lines == line_file.first:
            line_file.marks.append(line_file.size + len(written))
        line_file.lines += count
        written += piece
    return bytes(written)


def _append(path: Path, line_file: LineFile, data: bytes) -> None:
    """Write lines at the end that the layout knows, then let the layout grow."""
    _write_missing(path, line_file.size, data)
    line_file.size += len(data)
    line_file.crc = crc32(data, line_file.crc)


def _write_missing(path: Path, offset: int, data: bytes) -> None:
    """Write `data` at `offset`, unless it is there already.

    Raises FolderChanged if the file is shorter than `offset`.
    """
    flags = os.O_RDWR | os.O_CREAT
    # A symbolic link here would lead our writes elsewhere, and a FIFO could make a call hang. Windows lacks some of
    # these, others lack O_BINARY.
    for extra in ("O_CLOEXEC", "O_BINARY", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, extra, 0)
    fd = os.open(path, flags, 0o666)
    try:
        size = os.fstat(fd).st_size
        if size < offset:
            raise FolderChanged(path)
        # A projector that was killed had written them already.
        if size > offset and read_at(fd, len(data), offset) == data:
            return
        # Either the file ends at `offset`, or what follows is not what the journal says: part of a line, or lines of
        # another order that was never recorded.
        write_all(fd, data, offset)
    finally:
        os.close(fd)


def _replace(path: Path, content: bytes, scratch: Path) -> None:
    """Replace a document by rename, unless it has this content already."""
    try:
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_size == len(content) and path.read_bytes() == content:
            return
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content, scratch=scratch)


def _sweep(folder: Path) -> None:
    """Remove temporary files in a folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    Path(entry.path).unlink()


def _is_blob(path: Path) -> bool:
    """True if a path is a regular file named as a blob. A journal from elsewhere may hold links that lead out of it."""
    try:
        return parse_blob(path.name) is not None and stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _show(blob: Path, target: Path, scratch: Path) -> None:
    """Put the content of a blob at `target`, as a hard link or a copy, in one step."""
    temporary = scratch
    # A rename works only within one file system.
    if scratch.parent.stat().st_dev != target.parent.stat().st_dev:
        temporary = target.with_name(f".{target.name[:200]}.{os.getpid():x}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    if os.environ.get("ML_DASH_FILES", "link") == "copy" or not _link(blob, temporary):
        shutil.copyfile(blob, temporary)
    os.replace(temporary, target)
    # If both names are links to one file already, rename(2) does nothing and leaves this one.
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
        # Another file system, or one without hard links: a copy serves as well.
        return False
    return True
