"""Open any experiment for reading, live or at rest, without writing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec

from ..core.events import OPEN
from ..core.records import ExperimentRecord
from ..disk.config import Settings, resolve
from ..errors import InvalidValue, JournalError, NotFound
from ..journal import base as bases
from ..journal.merge import OrderChanged
from ..journal.reader import Run, open_segment, read
from ..journal.segment import BASE, JOURNAL, SEGMENTS, list_segments, read_identity
from ..projection import checkpoint as checkpoints
from ..projection import trust
from ..projection.folder import EXPERIMENT, Folder
from .view import MAX_LIMIT, STORE, Memory, View, check_limit, look, look_anew, nearest

__all__ = [
    "MAX_LIMIT", "Located", "Memory", "View", "at", "check_limit", "find", "fresh_view", "locate", "points_back",
    "record", "view",
]  # fmt: skip

_OPENING_BYTES: Final = 64 << 10
_OPENINGS_READ: Final = 256
_MOST_PARENTS: Final = 3
_record: Final = msgspec.json.Decoder(ExperimentRecord)


@dataclass(frozen=True, slots=True)
class Located:
    """An experiment on disk: its documented folder, and its journal (the `.journal` folder)."""

    project: str
    name: str
    folder: Path
    journal: Path


# -- one experiment --------------------------------------------------------------------------------------------------


def view(located: Located) -> View:
    """A consistent look at an experiment; reads the folder as far as it is projected, and folds the rest in memory.

    Raises JournalError if a base stands for what is not here and cannot be used.
    """
    found = checkpoints.load(located.journal)
    if found is not None and trust.holds(found, Folder(located.folder, located.journal, found.layout)):
        try:
            return look(located.journal, located.folder, found)
        except OrderChanged:
            return fresh_view(located)
    return fresh_view(located)


def fresh_view(located: Located) -> View:
    """The same, from the journal alone: for a folder that is not there, or not what it should be."""
    return look_anew(located.journal, located.folder)


def record(located: Located) -> ExperimentRecord:
    """The `experiment.json` mapping, up to date: from the file where it surely is, else from the journal."""
    path = located.folder / EXPERIMENT
    try:
        document = _record.decode(path.read_bytes() if path.is_file() else b"")
        if _is_final(document, located, path):
            return document
    except (OSError, ValueError):
        pass
    return view(located).record()


def _is_final(document: ExperimentRecord, located: Located, path: Path) -> bool:
    """Is this all there is to say? Every writer of the journal is in it, and ended: who has closed writes no more."""
    ends = {writer.get("id"): writer.get("ended") for writer in document["writers"]}
    if document["status"] == "running" or None in ends.values():
        return False
    if (document["project"], document["name"]) != (located.project, located.name):
        return False
    written_ns = path.stat().st_mtime_ns
    for name, segment in list_segments(located.journal):
        end = ends.get(name.writer)
        # Where locks do not work, one that was taken for dead may go on.
        if end is None or (end == "died" and segment.stat().st_mtime_ns >= written_ns):
            return False
    return True


# -- from a folder to an experiment ----------------------------------------------------------------------------------


def at(path: Path) -> Located | None:
    """The experiment whose documented folder, home in the store, or `.journal` this is; None if it is none."""
    home = path.parent if path.name == JOURNAL else path
    journal = home / JOURNAL
    if os.path.isdir(f"{journal}/{SEGMENTS}"):  # noqa: PTH112 - asked of every folder in a store
        return _located(journal)
    pointed = _pointed_to(home)
    return _located(pointed, folder=home) if pointed is not None else None


def _pointed_to(folder: Path) -> Path | None:
    """The journal that a documented folder's `experiment.json` points to."""
    path = folder / EXPERIMENT
    try:
        pointer = _pointer.decode(path.read_bytes()).journal if path.is_file() else None
    except (OSError, ValueError):
        return None
    if not pointer or "\0" in pointer:
        return None
    journal = Path(os.path.normpath(folder / pointer))
    return journal if journal.name == JOURNAL and (journal / SEGMENTS).is_dir() else None


class _Pointer(msgspec.Struct):
    journal: str | None = None


_pointer: Final = msgspec.json.Decoder(_Pointer)


def points_back(folder: Path, journal: Path) -> bool:
    """Does a documented folder say that this is its journal?"""
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
    """Where the documented folder of a journal is: beside it, or where its newest opening event says.

    A journal may come from anywhere, so what it says is believed only of a folder that points back, or of one that is
    not there yet and is `<project>/<name>` in the store or in a folder that holds the store.
    """
    home = journal.parent
    if (home / EXPERIMENT).exists():
        return home
    store = home.parent.parent
    for path in chain(_folder_paths(journal), _folder_path_of_base(journal)):
        folder = Path(os.path.normpath(store / path))
        above = path.split("/")[:-2]
        expected = path.split("/")[-2:] == [project, name] and above == [".."] * len(above)
        is_new = expected and len(above) <= _MOST_PARENTS and not os.path.lexists(folder)
        return folder if is_new or points_back(folder, journal) else home
    return home


def _folder_path_of_base(journal: Path) -> Iterator[str]:
    """The same from a base, which may stand for all opening events. A damaged one is told where it is read for more."""
    with contextlib.suppress(OSError, JournalError):
        base = bases.load(journal)
        if base is not None and base.folder_path and "\0" not in base.folder_path:
            yield base.folder_path


def _folder_paths(journal: Path) -> Iterator[str]:
    """What opening events say of where the folder is, the newest first."""
    firsts = [path for name, path in list_segments(journal) if name.n == 0]
    for path in firsts[: -_OPENINGS_READ - 1 : -1]:
        try:
            segment = open_segment(path)
            items = read(segment, segment.first, segment.first + _OPENING_BYTES) if segment is not None else ()
            for _, kind, _, body in (event for item in items if isinstance(item, Run) for event in item.events[:1]):
                if kind == OPEN and isinstance(body, dict) and body.get("child") is not True:
                    stated = body.get("folderPath")
                    if isinstance(stated, str) and "\0" not in stated:
                        yield stated
        except (OSError, JournalError):
            continue


# -- finding experiments ---------------------------------------------------------------------------------------------


def _children(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    except OSError:
        return []


def _below(folder: Path) -> Iterator[Located]:
    """Experiments in a root, a store or a project, or the experiment that this is."""
    own = at(folder)
    if own is not None:
        yield own
        return
    for child in _children(folder):
        located = at(child)
        if located is not None:
            yield located
            continue
        yield from filter(None, map(at, _children(child)))


def _paths() -> Settings:
    """Where the environment says that experiments are; reading needs no server and no login."""
    server = ("ML_DASH_REMOTE", "ML_DASH_USER_NAME", "ML_DASH_API_KEY")
    return resolve(env={name: value for name, value in os.environ.items() if name not in server})


def _places(path: Path | None) -> list[Path]:
    if path is not None:
        base = Path(path).expanduser().absolute()
        return [base, base / STORE] if (base / STORE).is_dir() else [base]
    settings = _paths()
    if settings.store.is_dir():
        return [settings.store]
    return sorted(Path.cwd().glob(f"*/{STORE}"))


def find(path: Path | None = None, project: str | None = None) -> list[Located]:
    """The experiments in a root, store, project or experiment folder, by project and name.

    Without a path: where the environment says, else `.ml-dash`, else `*/.ml-dash`.
    """
    found: dict[tuple[int, int], Located] = {}
    for place in _places(path):
        for located in _below(place):
            if project is None or located.project == project:
                entry = os.stat(located.journal)  # noqa: PTH116 - once for each experiment of a store
                found.setdefault((entry.st_dev, entry.st_ino), located)
    return sorted(found.values(), key=lambda located: (located.project, located.name, str(located.journal)))


def locate(text: str | None, path: Path | None = None) -> Located:
    """The experiment that a path, `project/name` or an unambiguous name means; without a text the latest written.

    Raises NotFound, or InvalidValue where a name is ambiguous.
    """
    located = _at_text(text) if text is not None else None
    if located is not None:
        return located
    known = find(path)
    where = places(path)
    if not known:
        raise NotFound(f"no experiments in {where}", hint="name the folder with --path")
    if text is None:
        return max(known, key=_last_written)
    matching = [one for one in known if f"{one.project}/{one.name}" == text]
    matching = matching or [one for one in known if one.name == text]
    if not matching:
        others = "1 other is" if len(known) == 1 else f"{len(known):,} others are"
        near = nearest(text, (name for one in known for name in (f"{one.project}/{one.name}", one.name)))
        raise NotFound(f"no experiment {text!r} in {where} ({others} there)", hint=f"{near}see: ml-dash ls")
    if len(matching) > 1:
        names = ", ".join(f"{one.project}/{one.name}" for one in matching)
        raise InvalidValue(f"{text!r} may be any of {names}", hint="write project/name")
    return matching[0]


def places(path: Path | None) -> str:
    """Where experiments are looked for, for a message."""
    return ", ".join(str(place) for place in _places(path)) or f"{_paths().store}, */{STORE}"


def _at_text(text: str) -> Located | None:
    try:
        direct = Path(text).expanduser().absolute()
        return at(direct) if direct.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        # Too long, not text for this system, or of no such user: no path, maybe a name.
        return None


def _last_written(located: Located) -> int:
    newest = 0
    for path in [*(path for _, path in list_segments(located.journal)[-8:]), located.journal / BASE]:
        try:
            newest = max(newest, path.stat().st_mtime_ns)
        except FileNotFoundError:
            continue
    return newest
