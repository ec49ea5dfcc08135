"""Open any experiment for reading, live or at rest, without writing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from .config import resolve
from .errors import InvalidValue, JournalError, NotFound
from .journal.segment import CHECKPOINT, JOURNAL, SEGMENTS, list_segments, read_identity
from .projection import checkpoint as checkpoints
from .projection.checkpoint import Checkpoint
from .projection.folder import EXPERIMENT, LOGS, Folder
from .projection.replay import Replay
from .records import ExperimentRecord
from .view import MAX_LIMIT, Memory, View, check_limit


@dataclass(frozen=True, slots=True)
class Located:
    """An experiment on disk: its documented folder, and its journal (the `.journal` folder)."""

    project: str
    name: str
    folder: Path
    journal: Path


# -- one experiment --------------------------------------------------------------------------------------------------


def view(located: Located) -> View:
    """A consistent look at an experiment; reads the folder as far as it is projected, and folds the rest in memory."""
    found = checkpoints.load(located.journal)
    if found is not None and _folder_holds(located, found):
        return _look(located, found)
    return fresh_view(located)


def fresh_view(located: Located) -> View:
    """The same, from the journal alone: for a folder that is not there, or not what it should be."""
    return _look(located, Checkpoint())


def _look(located: Located, found: Checkpoint) -> View:
    memory = Memory()
    replay = Replay(located.journal, found)
    replay.catch_up(memory, record=False)
    fold_case = (located.journal.parent / located.journal.name.upper()).exists()
    return View(replay.state, found.layout, located.folder, memory, fold_case=fold_case)


def _folder_holds(located: Located, found: Checkpoint) -> bool:
    """Is the folder at least as far as the checkpoint says?"""
    folder = Folder(located.folder, located.journal, found.layout)
    files = [(located.folder / LOGS, found.layout.logs)]
    files += [(folder.metric_folder(name) / "data.jsonl", lines) for name, lines in found.layout.metrics.items()]
    try:
        return all(path.stat().st_size >= lines.size for path, lines in files)
    except OSError:
        return False


def record(located: Located) -> ExperimentRecord:
    """The `experiment.json` mapping, up to date: from the file where it surely is, else from the journal."""
    import msgspec

    try:
        document = cast("ExperimentRecord", msgspec.json.decode((located.folder / EXPERIMENT).read_bytes()))
        projected = (located.journal / CHECKPOINT).stat().st_mtime_ns
        written = (located.journal / SEGMENTS).stat().st_mtime_ns
    except (OSError, ValueError):
        return view(located).record()
    if document.get("status") == "running" or projected <= written:
        return view(located).record()
    return document


# -- finding experiments ---------------------------------------------------------------------------------------------


def at(path: Path) -> Located | None:
    """The experiment whose documented folder, home in the store, or `.journal` this is; None if it is none."""
    if path.name == JOURNAL:
        path = path.parent
    if (path / JOURNAL / SEGMENTS).is_dir():
        return _located(path / JOURNAL)
    journal = _pointed_to(path)
    return _located(journal, folder=path) if journal is not None else None


def _pointed_to(folder: Path) -> Path | None:
    """The journal that a documented folder's `experiment.json` points to."""
    import json

    try:
        pointer = json.loads((folder / EXPERIMENT).read_bytes()).get("journal")
    except (OSError, ValueError, AttributeError):
        return None
    if not isinstance(pointer, str):
        return None
    journal = Path(os.path.normpath(folder / pointer))
    return journal if (journal / SEGMENTS).is_dir() else None


def _located(journal: Path, folder: Path | None = None) -> Located | None:
    home = journal.parent
    try:
        identity = read_identity(journal)
    except (OSError, JournalError):
        return Located(home.parent.name, home.name, folder or home, journal)
    return Located(identity.project, identity.name, folder or _folder_of(journal), journal)


def _folder_of(journal: Path) -> Path:
    """Where the documented folder of a journal is: beside it, or where its opening event says."""
    home = journal.parent
    if (home / EXPERIMENT).exists():
        return home
    found = checkpoints.load(journal)
    state = found.state if found is not None and found.state.events else None
    if state is None:
        replay = Replay(journal, Checkpoint())
        replay.catch_up(Memory(), record=False)
        state = replay.state
    path = state.folder_path.value
    return Path(os.path.normpath(home.parent.parent / path)) if path else home


def _children(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.name[0] != "." and entry.is_dir())
    except OSError:
        return []


def _below(folder: Path) -> list[Located]:
    """Experiments in a root, a store or a project, or the experiment that this is."""
    own = at(folder)
    if own is not None:
        return [own]
    children = _children(folder)
    found = [located for child in children if (located := at(child)) is not None]
    found += [
        located for child in children for grandchild in _children(child) if (located := at(grandchild)) is not None
    ]
    return found


def _places(path: Path | None) -> list[Path]:
    if path is not None:
        base = Path(path).expanduser().absolute()
        return [base, *sorted(base.glob(".ml-dash"))] if (base / ".ml-dash").is_dir() else [base]
    settings = resolve()
    if settings.store.is_dir():
        return [settings.store]
    return sorted(Path.cwd().glob("*/.ml-dash"))


def find(path: Path | None = None, project: str | None = None) -> list[Located]:
    """The experiments in a root, store, project or experiment folder, by project and name.

    Without a path: where the environment says, else `.ml-dash`, else `*/.ml-dash`.
    """
    found: dict[Path, Located] = {}
    for place in _places(path):
        for located in _below(place):
            if project is None or located.project == project:
                found.setdefault(located.journal.resolve(), located)
    return sorted(found.values(), key=lambda located: (located.project, located.name))


def locate(text: str | None, path: Path | None = None) -> Located:
    """The experiment that a path, `project/name` or an unambiguous name means; without a text the latest written.

    Raises NotFound, or InvalidValue where a name is ambiguous.
    """
    if text is not None:
        direct = Path(text).expanduser()
        located = at(direct.absolute()) if direct.is_dir() else None
        if located is not None:
            return located
    known = find(path)
    where = ", ".join(str(place) for place in _places(path)) or f"{resolve().store}, */.ml-dash"
    if not known:
        raise NotFound(f"no experiments in {where}", hint="name the folder with --path")
    if text is None:
        return max(known, key=_last_written)
    matching = [one for one in known if f"{one.project}/{one.name}" == text] or [one for one in known if one.name == text]
    if not matching:
        raise NotFound(f"no experiment {text!r} in {where} ({len(known):,} others are there)", hint="see: ml-dash ls")
    if len(matching) > 1:
        names = ", ".join(f"{one.project}/{one.name}" for one in matching)
        raise InvalidValue(f"{text!r} may be any of {names}", hint="write project/name")
    return matching[0]


def _last_written(located: Located) -> int:
    times = [path.stat().st_mtime_ns for _, path in list_segments(located.journal)[-8:]]
    return max(times, default=0)


__all__ = ["MAX_LIMIT", "Located", "Memory", "View", "at", "check_limit", "find", "fresh_view", "locate", "record", "view"]
