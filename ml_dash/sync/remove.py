"""Remove an experiment: its journal and its documented folder together, never while a writer lives."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..disk.lock import Liveness, Turn, probe
from ..errors import ForeignFolder, StillOpen
from ..journal.segment import JOURNAL, SEGMENTS, TURN, list_segments
from ..reading.located import Located, at, points_back

_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class RemoveReport:
    """Result of a removal, or of a dry run: folder, journal, and the count and bytes of their files."""

    folder: Path
    journal: Path
    files: int
    bytes: int


def remove(located: Located, *, dry_run: bool = False) -> RemoveReport:
    """Remove journal and folder. Raises StillOpen if a writer lives; nothing is removed then.

    A folder that does not say that it belongs to this journal is left alone. Cut short, it can be called again: the
    folder goes first, and what is left is the whole journal.
    """
    home = located.journal.parent
    own = at(located.journal)
    if own is not None and own.folder.resolve() != located.folder.resolve():
        raise ForeignFolder(
            f"{located.folder} points to a journal that belongs to another folder, {own.folder}; nothing was removed",
            hint="name that one",
        )
    homes = {home, *([located.folder] if points_back(located.folder, located.journal) else [])}
    paths = [Path(base, name) for place in homes for base, _, names in os.walk(place) for name in names]
    report = RemoveReport(located.folder, located.journal, len(paths), sum(map(_size, paths)))
    _refuse_living(located)
    if dry_run:
        return report
    turn = Turn(located.journal / TURN)
    if not turn.take(_WAIT_S):
        raise StillOpen(f"the folder of {located.project}/{located.name} is being written; nothing was removed")
    try:
        _refuse_living(located)
        for place in sorted(homes, key=lambda place: place == home):
            _empty(place)
        # By one rename: what is left if this is cut short is not taken for an experiment.
        doomed = home / f"{JOURNAL}.removed-{os.urandom(4).hex()}"
        located.journal.rename(doomed)
    finally:
        turn.give_back()
    for left in home.glob(f"{JOURNAL}.removed-*"):
        shutil.rmtree(left, ignore_errors=True)
    for place in homes:
        for folder in (place, place.parent):
            # Not empty, or gone already.
            with contextlib.suppress(OSError):
                folder.rmdir()
    return report


def _refuse_living(located: Located) -> None:
    for name, _ in list_segments(located.journal):
        lock = located.journal / SEGMENTS / name.lock
        if probe(lock) is Liveness.ALIVE:
            raise StillOpen(
                f"{located.project}/{located.name} is being written by writer {name.writer}; nothing was removed",
                hint="end that run first",
            )


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _empty(place: Path) -> None:
    """Remove everything in a folder but a journal and the remains of one."""
    for entry in place.iterdir():
        if entry.name.startswith(JOURNAL):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
