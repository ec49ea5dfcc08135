"""Keep the documented folder up to date: resume, replay, fold, apply, checkpoint."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final, Protocol

from .. import blobs
from ..fold import State
from ..journal.segment import SEGMENTS, TURN, list_segments
from ..lock import Turn
from ..view import Memory, View
from . import checkpoint as checkpoints
from .checkpoint import Checkpoint, Layout
from .folder import Folder, FolderChanged
from .replay import Enough, Pace, Replay

# While training, metadata of metrics is rewritten for at most this share of the time.
_METADATA_SHARE: Final = 0.02
_REBUILD_SLICE: Final = 50_000


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
    """What a rebuild has done."""

    events: int
    bytes: int
    seconds: float


class Projector:
    """Projects one journal into one documented folder, in this process. Any thread may call."""

    def __init__(self, journal: Path, folder: Path) -> None:
        self.journal = journal
        self.folder_path = folder
        self.guard = threading.RLock()
        self._turn = Turn(journal / TURN)
        self._replay: Replay | None = None
        self._folder: Folder | None = None
        self._signature: tuple[int, int, int] | None = None
        self._metadata_due = 0.0

    @property
    def state(self) -> State:
        """What was folded so far; hold `guard` while reading it."""
        return self._replay.state if self._replay is not None else State()

    @property
    def layout(self) -> Layout:
        """What the folder holds; hold `guard` while reading it."""
        return self._folder.layout if self._folder is not None else Layout()

    def view(self) -> View:
        """What was projected; hold `guard` while reading from it."""
        assert self._folder is not None
        return View(self.state, self.layout, self.folder_path, Memory(), fold_case=self._folder.fold_case)

    def advance(self, *, wait_s: float = 0.0, pace: Pace | None = None, complete: bool = True) -> bool:
        """Bring the folder up to date; False if another process has the turn for longer than `wait_s` seconds.

        With `complete=False` the metadata of metrics may lag behind for some passes. Raises OSError if the disk
        refuses (the next call begins at the last checkpoint then), and Enough if `pace` does.
        """
        with self.guard:
            if not self._turn.take(wait_s):
                return False
            try:
                self._advance_in_turn(pace, complete)
            except Enough:
                raise
            except BaseException:
                # What is in memory may be ahead of the folder.
                self._replay = self._folder = None
                raise
            finally:
                self._turn.give_back()
            return True

    def _advance_in_turn(self, pace: Pace | None, complete: bool) -> None:
        for _ in range(3):
            try:
                replay, folder, fresh = self._resume()
                try:
                    changed = replay.catch_up(folder, record=True, pace=pace)
                except Enough:
                    self._finish(replay, folder, complete, trim=False)
                    raise
                if changed or fresh or (complete and folder.layout.stale) or _dirty(replay):
                    self._finish(replay, folder, complete, trim=fresh)
                return
            except FolderChanged:
                self._start_anew()
        raise OSError(f"{self.folder_path} changes while it is being written")

    def _resume(self) -> tuple[Replay, Folder, bool]:
        """Go on where this process, or the last one, has stopped; (replay, folder, is it new in memory?)."""
        if self._replay is not None and self._folder is not None:
            if checkpoints.signature(self.journal) == self._signature:
                return self._replay, self._folder, False
        found = checkpoints.load(self.journal)
        if found is None or not self._same_folder(found):
            found = Checkpoint(folder=os.fspath(self.folder_path))
        self._replay = Replay(self.journal, found)
        self._folder = Folder(self.folder_path, self.journal, found.layout)
        if found.state.events:
            self._folder.check()
        self._folder.prepare()
        return self._replay, self._folder, True

    def _same_folder(self, found: Checkpoint) -> bool:
        """A journal may be moved with its folder; but a folder that was never written is begun anew."""
        return not found.state.events or (self.folder_path / "logs").is_dir()

    def _start_anew(self) -> None:
        (self.journal / "checkpoint").unlink(missing_ok=True)
        self._replay = self._folder = None

    def _finish(self, replay: Replay, folder: Folder, complete: bool, *, trim: bool) -> None:
        edits, layout = replay.edits, folder.layout
        stale = edits.metrics | set(layout.stale)
        due = complete or monotonic() >= self._metadata_due
        begun = monotonic()
        folder.write_documents(replay.state, edits, stale if due else set())
        layout.stale = [] if due else sorted(stale)
        if due:
            now = monotonic()
            self._metadata_due = now + (now - begun) / _METADATA_SHARE
        if trim:
            folder.trim()
        self._release(replay)
        edits.metrics, edits.released = set(), []
        edits.parameters = edits.files = edits.experiment = False
        checkpoints.save(self.journal, replay.at)
        self._signature = checkpoints.signature(self.journal)

    def _release(self, replay: Replay) -> None:
        if os.environ.get("ML_DASH_KEEP_VERSIONS") == "1":
            return
        live = {file.blob for file in replay.state.files.values() if file.live}
        for name in replay.edits.released:
            if name not in live:
                blobs.release(self.journal, name)

    def abandon(self) -> None:
        """In a forked child: the turn is the parent's."""
        self._turn.drop()

    @contextmanager
    def having_turn(self, wait_s: float) -> Iterator[bool]:
        """Keep every other projector out for a while; yields whether that succeeded."""
        with self.guard:
            taken = self._turn.take(wait_s)
            try:
                yield taken
            finally:
                if taken:
                    self._turn.give_back()

    def rebuild(self, progress: Callable[[int, int], None] | None = None) -> RebuildReport:
        """Write every derived file again from the journal and `order`; what is right already is left as it is.

        `progress(events, bytes_of_segments)` is called now and then. Waits for up to 30 s for the turn.
        """
        with self.having_turn(30.0) as taken:
            if not taken:
                raise OSError(f"{self.journal}: another process has been projecting it for 30 s")
            begun = monotonic()
            size = sum(path.stat().st_size for _, path in list_segments(self.journal))
            self._start_anew()
            _remove_derived(self.folder_path)
            pace = None if progress is None else Pace(_REBUILD_SLICE, lambda: progress(self.state.events, size))
            self._advance_in_turn(pace, complete=True)
            return RebuildReport(self.state.events, size, monotonic() - begun)


def _dirty(replay: Replay) -> bool:
    edits = replay.edits
    return bool(edits.parameters or edits.files or edits.experiment or edits.metrics)


def _remove_derived(folder: Path) -> None:
    """Remove what a projection writes, and nothing else."""
    for name in ("experiment.json", "parameters.json"):
        (folder / name).unlink(missing_ok=True)
    for name in ("logs", "metrics", "files"):
        if (folder / name).is_symlink():
            (folder / name).unlink()
        else:
            shutil.rmtree(folder / name, ignore_errors=True)


def journal_is_there(journal: Path) -> bool:
    """Does this folder hold a journal?"""
    return (journal / SEGMENTS).is_dir()


def catch_up(located: Place) -> None:
    """Bring the documented folder up to date, as readers do for runs that were killed. Waits for up to 30 s."""
    Projector(located.journal, located.folder).advance(wait_s=30.0)


def rebuild(located: Place, progress: Callable[[int, int], None] | None = None) -> RebuildReport:
    """Write every derived file again; byte-identical to what was there. Waits for up to 30 s for other projectors."""
    return Projector(located.journal, located.folder).rebuild(progress)
