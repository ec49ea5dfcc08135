"""Location of the experiment in a folder. Imports little, because `open()` needs it first."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ..core.events import OPEN
from ..errors import JournalError
from ..journal.segment import EXPERIMENT, JOURNAL, SEGMENTS, list_segments, read_identity

# Bounds for `_folder_paths`: bytes read of a segment for its opening event, and first segments that are read.
_OPENING_BYTES: Final = 64 << 10
_OPENINGS_READ: Final = 256
# A new documented folder may be so many levels above the store at most.
_MOST_PARENTS: Final = 3


class Located(NamedTuple):
    """An experiment on disk: its documented folder, and its journal (the `.journal` folder)."""

    project: str
    name: str
    folder: Path
    journal: Path


def at(path: Path) -> Located | None:
    """Return the experiment whose documented folder, home in the store, or `.journal` this is; else None."""
    home = path.parent if path.name == JOURNAL else path
    journal = home / JOURNAL
    if os.path.isdir(f"{journal}/{SEGMENTS}"):  # noqa: PTH112 - asked of every folder in a store
        return _located(journal)
    pointed = _pointed_to(home)
    return _located(pointed, folder=home) if pointed is not None else None


def _pointed_to(folder: Path) -> Path | None:
    """Return the journal that a documented folder's `experiment.json` points to; None if there is none."""
    path = folder / EXPERIMENT
    try:
        if not path.is_file():
            return None
        import json

        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    pointer = document.get("journal") if isinstance(document, dict) else None
    if not isinstance(pointer, str) or not pointer or "\0" in pointer:
        return None
    journal = Path(os.path.normpath(folder / pointer))
    return journal if journal.name == JOURNAL and (journal / SEGMENTS).is_dir() else None


def points_back(folder: Path, journal: Path) -> bool:
    """True if a documented folder points to this journal."""
    pointed = _pointed_to(folder)
    try:
        return pointed is not None and pointed.samefile(journal)
    except OSError:
        return False


def _located(journal: Path, folder: Path | None = None) -> Located:
    home = journal.parent
    try:
        identity = read_identity(journal)
        project, name = identity.project, identity.name
    except (OSError, JournalError):
        project, name = home.parent.name, home.name
    return Located(project, name, folder or _folder_of(journal, project, name), journal)


def _folder_of(journal: Path, project: str, name: str) -> Path:
    """Return the documented folder of a journal: beside it, or where its newest opening event says.

    A journal may come from anywhere, and writing to a path that it names could harm other files. So the path is
    believed only if the folder there points back, or if it does not exist yet and is `<project>/<name>` in the store or
    in a folder that holds the store.
    """
    home = journal.parent
    if (home / EXPERIMENT).exists():
        return home
    store = home.parent.parent
    for path in _folder_paths(journal):
        folder = Path(os.path.normpath(store / path))
        above = path.split("/")[:-2]
        expected = path.split("/")[-2:] == [project, name] and above == [".."] * len(above)
        is_new = expected and len(above) <= _MOST_PARENTS and not os.path.lexists(folder)
        return folder if is_new or points_back(folder, journal) else home
    return home


def _folder_paths(journal: Path) -> Iterator[str]:
    """Yield the folder paths of opening events, the newest first, then that of a base, which may stand for all of them.

    A damaged base yields none here; it is reported by those that need its state.
    """
    from ..journal import base as bases
    from ..journal.reader import Stretch, open_segment, read

    firsts = [path for name, path in list_segments(journal) if name.n == 0]
    for path in firsts[: -_OPENINGS_READ - 1 : -1]:
        try:
            segment = open_segment(path)
            items = read(segment, segment.first, segment.first + _OPENING_BYTES) if segment is not None else ()
            for _, kind, _, body in (event for item in items if isinstance(item, Stretch) for event in item.events[:1]):
                if kind == OPEN and isinstance(body, dict) and body.get("child") is not True:
                    stated = body.get("folderPath")
                    if isinstance(stated, str) and "\0" not in stated:
                        yield stated
        except (OSError, JournalError):
            continue
    with contextlib.suppress(OSError, JournalError):
        base = bases.load(journal)
        if base is not None and base.folder_path and "\0" not in base.folder_path:
            yield base.folder_path
