"""The projector: keeps a documented folder up to date. Resume, replay, fold, apply, checkpoint.

A journal is the truth, and the documented folder is what people read. The projector makes the second from the first,
in passes that may be interrupted anywhere. One pass, with the turn held:

    resume     position, state and layout: from memory, else from the checkpoint, else from the base or from nothing
    replay     frames -> `order` -> fold -> edits; a stretch is recorded in `order` before anything is numbered by it
    apply      lines by pwrite to the offset that the order implies
    documents  metric metadata, parameters, files, experiment.json: each replaced as a whole, and only if it is due
    release    events synced, then blobs of replaced and deleted files unlinked
    checkpoint replaced as a whole, and only if it is due

Invariants:

- Nothing in the folder comes from the clock or the machine, so that making it again gives the same bytes.
- The checkpoint never counts a line that was not written, because it is saved last.
- A document is written after the lines that it counts. It may be older than they are; then the checkpoint names it as
  stale.
- A blob is never released before the event that replaced it, and the record of that event's order, are synced.

A process that is killed in a pass leaves: records in `order` without lines (the next pass writes the lines); lines
after those that the checkpoint counts (the next pass finds the same bytes and passes over them, or writes its own
there); documents newer than the checkpoint (folding again makes the same); temporary files (`Folder.prepare` removes
them). After a power cut `trust` checks what the checkpoint counts. If that is not there, or if the folder differs in
a way that a pass notices, the checkpoint is removed and everything is folded again from the beginning.

A pass costs what is new, not what exists. In memory there are the state, which has no points, one read of a segment,
and at most `_HOLDS` lines.

Above stand `recording.folder`, which calls `advance` from a background thread while training, and readers, which call
it once. Below are `replay` (what is next), `folder` (bytes on disk), `checkpoint` and `trust`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final, Protocol

from ..core.state import Edits, State
from ..disk.durable import boot_id, data_sync
from ..disk.lock import Liveness, Turn, probe
from ..errors import JournalError, StorageError
from ..journal import blobs
from ..journal.merge import OrderChanged
from ..journal.segment import CHECKPOINT, EXPERIMENT, SEGMENTS, TURN, list_segments, parse_blob
from . import checkpoint as checkpoints
from . import trust
from .checkpoint import Checkpoint, Layout
from .folder import AWAY, PARAMETERS, Folder, FolderChanged
from .replay import Pace, PassStopped, Replay
from .start import begin

# While training, at most this share of the time goes into rewriting documents and the checkpoint.
# A document that lists much takes long to write. After one that took t seconds, the next waits t / _SHARE seconds,
# whatever the size of the experiment.
_SHARE: Final = 0.02
# The metadata of files is rewritten no more often than this: it lists all files that ever were.
_FILES_EVERY_S: Final = 1.0
# Lines that a pass without `pace` writes together; one with `pace` writes after each slice.
# More lines for one `open` of a file, for more memory. With a pace, what was folded must be in the folder when the
# pace raises PassStopped.
_HOLDS: Final = 100_000
# Seconds to wait for the turn when the disk is full. The caller is the writer's side of a training process, so this
# must be short.
_GIVE_WAY_S: Final = 5.0
_AWAY_TEXT: Final = (
    "The disk was full, and this folder was emptied to make room for the journal, which has everything.\n"
    "Once there is room, ml-dash makes it again when it is read, or by: ml-dash rebuild\n"
)
# How often a rebuild reports progress.
_REBUILD_SLICE_EVENTS: Final = 50_000
TURN_WAIT_S: Final = 30.0
"""How long whoever needs the folder waits for another process that is writing it."""


class Place(Protocol):
    """Where an experiment is on disk (see `read.Located`)."""

    @property
    def folder(self) -> Path:
        """The documented folder."""

    @property
    def journal(self) -> Path:
        """The `.journal` folder."""


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """The result of a rebuild: events folded, bytes of segments read, seconds taken."""

    events: int
    bytes: int
    seconds: float


class Projector:
    """The projection of one journal into one documented folder, in this process. Any thread may call.

    Lock order: `guard` (threads of this process), then the turn (processes, `turn.lock`). Fields change only
    under `guard`.

    `guard` is held for a whole pass. It is re-entrant, because whoever has the turn calls `advance` and reads `state`
    within it. `turn.lock` alone would not do: it keeps processes apart, not threads of one process.
    """

    def __init__(self, journal: Path, folder: Path) -> None:
        self.journal = journal
        self.folder_path = folder
        self.guard = threading.RLock()
        self._turn = Turn(journal / TURN)
        self._replay: Replay | None = None
        self._folder: Folder | None = None
        # The checkpoint file as this process last saved or loaded it. If it differs, another process has projected
        # since, and what is in memory is too old.
        self._signature: tuple[int, int, int] | None = None
        # When documents, the metadata of files and the checkpoint may be written again (time.monotonic).
        self._documents_due = 0.0
        self._files_due = 0.0
        self._checkpoint_due = 0.0
        # True until a pass has come to its end, since this process began or another one wrote the checkpoint.
        self._fresh = True
        # In the passes until then: True if the folder may hold anything, and if files were added or removed.
        self._anew = False
        self._files_changed = False
        # True while a rebuild runs: old versions of files stay.
        self._keeps = False

    @property
    def state(self) -> State:
        """The state folded so far; hold `guard` while reading it."""
        return self._replay.state if self._replay is not None else State()

    @property
    def layout(self) -> Layout:
        """The layout of the folder; hold `guard` while reading it."""
        return self._folder.layout if self._folder is not None else Layout()

    @property
    def folder(self) -> Folder:
        """The folder as projected so far; hold `guard` while reading from it. Only after a pass that returned True."""
        assert self._folder is not None
        return self._folder

    def mend(self) -> bool:
        """Write the whole folder again, because it is wrong; False if that is not possible now.

        Readers call this when what they read does not fit the layout. Without the checkpoint, the pass begins at the
        base or at the first event.
        """
        self._start_anew()
        try:
            return self.advance(wait_s=1.0, complete=False)
        except OSError:
            self._replay = self._folder = None
            return False

    # -- bringing the folder up to date ------------------------------------------------------------------------------

    def advance(self, *, wait_s: float = 0.0, pace: Pace | None = None, complete: bool = True) -> bool:
        """Bring the folder up to date; False if another process has the turn for longer than `wait_s` seconds.

        With `complete=False` experiment.json and the metadata of metrics and files may lag for some passes. Raises
        OSError if the disk refuses (the next call then begins at the last checkpoint), and PassStopped if `pace` does.
        """
        with self.having_turn(wait_s) as taken:
            if taken:
                self._advance_in_turn(pace, complete)
            return taken

    @contextmanager
    def having_turn(self, wait_s: float) -> Iterator[bool]:
        """Hold the turn, which keeps other projectors out; yields False if it is not free within `wait_s` seconds."""
        with self.guard:
            taken = self._turn.take(wait_s)
            try:
                yield taken
            finally:
                if taken:
                    self._turn.give_back()

    def abandon(self) -> None:
        """Drop this process's copy of the turn, in a forked child: it is the parent's."""
        self._turn.drop()

    def _advance_in_turn(self, pace: Pace | None, complete: bool) -> None:
        """Take passes until one comes to its end, beginning anew after each that finds a wrong folder. Has the turn.

        Three times at most: somebody who edits the folder all the time must not keep this process busy for ever.
        Errors of the disk are not tried again here: the caller knows whether anybody waits.
        """
        for _ in range(3):
            try:
                self._pass(pace, complete)
                return
            except PassStopped:
                raise
            except (FolderChanged, OrderChanged, RecursionError):
                # Files that the checkpoint counts are missing, or differ from what this code would have written.
                self._start_anew()
            except JournalError as error:
                self._forget()
                raise StorageError(f"{self.journal} cannot be projected: {error.message}", hint=error.hint) from error
            except BaseException:
                # The state in memory may be ahead of the folder: an event was folded, and then the disk refused, or
                # somebody pressed Ctrl-C. Only the checkpoint is surely consistent.
                self._forget()
                raise
        raise OSError(f"{self.folder_path} changes while it is being written")

    def _pass(self, pace: Pace | None, complete: bool) -> None:
        """Take one pass. Raises PassStopped, with folder and checkpoint consistent, if the pace ends it."""
        replay, folder = self._resume()
        folder.holds = _HOLDS if pace is None else 0
        try:
            changed = replay.catch_up(folder, record=True, pace=pace)
            folder.flush()
        except PassStopped:
            # A replay calls its pace only between slices, when all that is folded has been written. So this is a
            # valid checkpoint, and the next pass goes on from it.
            self._finish(replay, folder, complete, last=False)
            raise
        if complete:
            # A document may have been removed by hand. Not in the passes of a background thread: it costs a `stat`
            # for each metric.
            folder.mark_missing(replay.state, replay.edits)
        due = self.lagging and (complete or self._is_due(replay.edits))
        if replay.state.events and (changed or due):
            self._finish(replay, folder, complete, last=True)
        # An experiment without any event has no documents; leftovers of an older one are removed even so.
        elif self._fresh:
            self._settle(replay.state, folder)

    def _is_due(self, edits: Edits) -> bool:
        """True if a document that edits made stale may be written now."""
        now, rest = monotonic(), edits.experiment or edits.metrics or edits.parameters
        return bool(rest and now >= self._documents_due) or (edits.files and now >= self._files_due)

    @property
    def lagging(self) -> bool:
        """True if documents are older than the state, because they were not due yet. Another pass writes them."""
        edits = self._replay.edits if self._replay is not None else Edits()
        return bool(edits.experiment or edits.metrics or edits.parameters or edits.files)

    def _resume(self) -> tuple[Replay, Folder]:
        """Return replay and folder where this process, or the last one that projected, has stopped.

        `begins` is true if there is neither a checkpoint nor a folder: a new experiment. `anew` is true if the folder
        may hold anything: files were there without a checkpoint, the checkpoint did not hold, or the machine was
        started since and unsynced documents may be empty or old. Lines are not among that: `trust` has checked them,
        or they are compared when they are written again.
        """
        replay, folder = self._replay, self._folder
        if replay is not None and folder is not None and checkpoints.signature(self.journal) == self._signature:
            return replay, folder
        checkpoint = checkpoints.load(self.journal)
        begins = checkpoint is None and _is_empty(self.folder_path)
        anew = (checkpoint is None and not begins) or (checkpoint is not None and checkpoint.boot != boot_id())
        if checkpoint is None or not trust.holds(checkpoint, Folder(self.folder_path, self.journal, checkpoint.layout)):
            checkpoint, anew = begin(self.journal, self.folder_path), not begins
        self._fresh, self._anew, self._files_changed = True, anew, False
        folder = Folder(self.folder_path, self.journal, checkpoint.layout)
        replay = Replay(self.journal, checkpoint)
        # Documents that the last projector left stale.
        replay.edits.metrics.update(checkpoint.layout.stale)
        replay.edits.experiment = checkpoint.layout.stale_experiment
        replay.edits.files = checkpoint.layout.stale_files
        if self._anew or begins:
            # The folder may hold anything, or nothing: write all documents.
            replay.edits.metrics.update(checkpoint.state.metrics)
            replay.edits.experiment = replay.edits.parameters = replay.edits.files = True
            folder.forget_unsure_files()
        folder.prepare()
        if checkpoint.state.events:
            folder.mark_missing(checkpoint.state, replay.edits)
            folder.mark_unshown(checkpoint.state, replay.edits)
        # Temporary files of writers that died while they stored a blob. Not needed for anything here, so an error
        # must not end the pass.
        with contextlib.suppress(OSError):
            blobs.sweep(self.journal, self._may_live)
        self._replay, self._folder = replay, folder
        self._signature = checkpoints.signature(self.journal)
        return replay, folder

    def _may_live(self, writer: str) -> bool:
        """True unless the lock of a writer is free: one whose liveness is unknown keeps its temporary files."""
        first = next((name for name, _ in list_segments(self.journal) if name.writer == writer), None)
        return first is not None and probe(self.journal / SEGMENTS / first.lock) is not Liveness.GONE

    def _forget(self) -> None:
        """Drop what is in memory, so that the next pass begins at the checkpoint on disk."""
        self._replay = self._folder = None

    def _start_anew(self) -> None:
        """Drop the checkpoint too, so that the next pass begins at the base or at the first event."""
        (self.journal / CHECKPOINT).unlink(missing_ok=True)
        self._forget()

    def _finish(self, replay: Replay, folder: Folder, complete: bool, *, last: bool) -> None:
        """Write the documents that are due, release blobs, and save the checkpoint if that is due.

        With `last` the replay has come to the end of the journal; without, its pace has ended it. Documents that are
        not due go back to `replay.edits` afterwards, and their names into the layout, so that another process that
        takes over after a crash writes them.
        """
        edits, layout = replay.edits, folder.layout
        later = Edits()
        begun = monotonic()
        self._files_changed |= edits.files
        if not complete and begun < self._documents_due:
            later.metrics, later.experiment = edits.metrics, edits.experiment
            edits.metrics, edits.experiment = set(), False
        if not complete and begun < self._files_due:
            later.files, edits.files = edits.files, False
        folder.write_documents(replay.state, edits)
        if last and self._fresh:
            self._settle(replay.state, folder)
        ended = monotonic()
        if not later.metrics and not later.experiment:
            self._documents_due = ended + (ended - begun) / _SHARE
        if edits.files:
            self._files_due = ended + max(_FILES_EVERY_S, (ended - begun) / _SHARE)
        # Before the checkpoint: if this process is killed in between, the next pass folds the same deletions and
        # releases again. The other way round, a checkpoint would have passed the deletion, and the blob would stay
        # for ever.
        self._release(replay)
        replay.edits = later
        layout.stale, layout.stale_experiment = sorted(later.metrics), later.experiment
        layout.stale_files = later.files
        begun = monotonic()
        if complete or not last or begun >= self._checkpoint_due:
            # The CRC of `order` up to this position is needed only after another boot, so it is made here and not at
            # each record.
            trust.seal(replay.at, self.journal)
            checkpoints.save(self.journal, replay.at)
            self._signature = checkpoints.signature(self.journal)
            self._checkpoint_due = monotonic() + (monotonic() - begun) / _SHARE

    def _settle(self, state: State, folder: Folder) -> None:
        """Remove what an earlier projector left in the folder and what the journal does not, or no longer, hold.

        Only at the end of the first pass: before that, lines after the layout's end may be ones that this very pass
        is going to find equal.
        """
        folder.trim()
        if self._files_changed:
            folder.remove_leftovers(state)
        if self._anew:
            folder.remove_unknown(state)
        self._fresh = False

    def _release(self, replay: Replay) -> None:
        """Remove the blobs of files that were replaced or deleted.

        The events are synced first: after a power cut that took them, the files would be listed again without content.
        """
        released = replay.edits.released
        if not released or self._keeps or os.environ.get("ML_DASH_KEEP_VERSIONS") == "1":
            return
        replay.sync()
        for name in released:
            if parse_blob(name) is not None:
                blobs.release(self.journal, name)

    # -- for who has the turn, and changes the base -----------------------------------------------------------------

    def advance_in_turn(self) -> Checkpoint:
        """Bring the folder up to date; return the position. The caller has the turn. Raises OSError."""
        self._advance_in_turn(None, complete=True)
        assert self._replay is not None
        return self._replay.at

    @property
    def troubles(self) -> dict[str, Exception]:
        """What could not be read, and why; see `Replay.troubles`."""
        return self._replay.troubles if self._replay is not None else {}

    def sync(self) -> None:
        """Sync the events read so far, their order, and the folder's lines. Raises OSError."""
        assert self._replay is not None
        assert self._folder is not None
        self._replay.sync()
        for path, lines in self._folder.line_files():
            if lines.size:
                with path.open("rb") as file:
                    data_sync(file.fileno())

    def begin_at_base(self) -> None:
        """Project again from a base that has changed. The caller has the turn. Raises OSError.

        Lines from before the base are removed, except those that it has kept, and files whose content is not in the
        journal any more.

        `_start_anew` comes first: the checkpoint names the base from which it began, and one of another base is not
        used anyway.
        """
        self._start_anew()
        self._advance_in_turn(None, complete=True)

    def give_way(self) -> bool:
        """Remove all that can be made again, for room on a full disk, and leave a note; False if there was nothing.

        For a writer that cannot write its journal any more. Hard links into `files/` cost no room, but documents,
        lines and copies do. Lines that only a base stands for are kept, since nothing here could make them again.
        """
        with self.having_turn(_GIVE_WAY_S) as taken:
            if not taken or _is_empty(self.folder_path):
                return False
            try:
                kept = Folder(self.folder_path, self.journal, begin(self.journal, self.folder_path).layout)
            except JournalError:
                return False
            self._start_anew()
            _remove_derived(self.folder_path, {path: lines.size for path, lines in kept.line_files() if lines.size})
            with contextlib.suppress(OSError):
                (self.folder_path / AWAY).write_text(_AWAY_TEXT, encoding="utf-8")
            return True

    # -- rebuilding --------------------------------------------------------------------------------------------------

    def rebuild(self, progress: Callable[[int, int], None] | None = None) -> RebuildReport:
        """Remove every derived file and write it again from the journal and `order`, byte-identical.

        Lines that a base has kept, and that are still the same, stay: they cannot be made again here.
        `progress(events, bytes_of_segments)` is called now and then. Waits for up to 30 s for the turn. Raises
        JournalError, with nothing removed, if there is a base that cannot be used.
        """
        with self.having_turn(TURN_WAIT_S) as taken:
            if not taken:
                raise OSError(f"{self.journal}: another process has been projecting it for {TURN_WAIT_S:.0f} s")
            begun = monotonic()
            size = sum(path.stat().st_size for _, path in list_segments(self.journal))
            kept = Folder(self.folder_path, self.journal, begin(self.journal, self.folder_path).layout)
            self._start_anew()
            _remove_derived(self.folder_path, {path: lines.size for path, lines in kept.line_files() if lines.size})
            pace = None if progress is None else Pace(_REBUILD_SLICE_EVENTS, lambda: progress(self.state.events, size))
            # Old versions of files that are still here were kept on purpose: do not release them now.
            self._keeps = True
            try:
                self._advance_in_turn(pace, complete=True)
            finally:
                self._keeps = False
            return RebuildReport(self.state.events, size, monotonic() - begun)


def _is_empty(folder: Path) -> bool:
    """True if a folder holds nothing that a projection writes."""
    places = [folder / name for name in (EXPERIMENT, PARAMETERS, "logs", "metrics", "files")]
    return not any(path.is_symlink() or path.exists() for path in places)


def _remove_derived(folder: Path, kept: dict[Path, int]) -> None:
    """Remove what a projection writes, and nothing else; of the files in `kept`, the first bytes stay (path → size)."""
    for name in (EXPERIMENT, PARAMETERS, "logs", "metrics", "files"):
        path = folder / name
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
        elif any(path in file.parents for file in kept):
            _empty_but(path, kept)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _empty_but(top: Path, kept: dict[Path, int]) -> None:
    """Remove all below a folder except the files in `kept`, which are cut to the sizes there.

    From the bottom up, so that a folder is empty when its turn comes. Symbolic links are removed and never followed:
    what they lead to is not ours.
    """
    for base, folders, names in os.walk(top, topdown=False):
        for name in [*names, *folders]:
            path = Path(base, name)
            if path in kept:
                os.truncate(path, kept[path])
            elif path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
            else:
                # Not empty if it holds a file that is kept.
                with contextlib.suppress(OSError):
                    path.rmdir()


def catch_up(located: Place) -> None:
    """Bring the documented folder up to date, as readers do after a run was killed. Waits up to 30 s for the turn."""
    Projector(located.journal, located.folder).advance(wait_s=TURN_WAIT_S)


def rebuild(located: Place, progress: Callable[[int, int], None] | None = None) -> RebuildReport:
    """Write every derived file again; byte-identical to what was there. Waits for up to 30 s for other projectors."""
    return Projector(located.journal, located.folder).rebuild(progress)
