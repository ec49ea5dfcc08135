"""Opening an experiment for reading, live or at rest, without writing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ..core.limits import LATEST_NS
from ..core.records import ExperimentRecord
from ..core.times import utc_text
from ..disk.settings import DEFAULT_LOCAL_PATH, Settings, resolve
from ..errors import InvalidValue, NotFound
from ..journal.merge import OrderChanged
from ..journal.segment import BASE, EXPERIMENT, list_segments
from ..projection import checkpoint as checkpoints
from ..projection import trust
from ..projection.folder import Folder
from ..projection.titles import names_of
from .located import Located, at
from .view import View, look, look_anew, nearest

_record: Final = msgspec.json.Decoder(ExperimentRecord)


# -- one experiment --------------------------------------------------------------------------------------------------


def view(located: Located) -> View:
    """Return a consistent view of an experiment: the folder as far as it is projected, the rest folded in memory.

    Raises JournalError if there is a base that cannot be used.
    """
    checkpoint = checkpoints.load(located.journal)
    if checkpoint is not None and trust.holds(checkpoint, Folder(located.folder, located.journal, checkpoint.layout)):
        try:
            return look(located.journal, located.folder, checkpoint)
        except OrderChanged:
            return fresh_view(located)
    return fresh_view(located)


def fresh_view(located: Located) -> View:
    """Return a view of an experiment from its journal alone, for a folder that is missing or was changed."""
    return look_anew(located.journal, located.folder)


def record(located: Located) -> ExperimentRecord:
    """Return the up-to-date `experiment.json` mapping: from the file if that is final, else from the journal."""
    path = located.folder / EXPERIMENT
    try:
        document = _record.decode(path.read_bytes() if path.is_file() else b"")
        if _is_final(document, located, path):
            return document
    except (OSError, ValueError):
        pass
    return view(located).record()


def _is_final(document: ExperimentRecord, located: Located, path: Path) -> bool:
    """True if nothing can be added to the document: it has every writer of the journal, and all of them have ended."""
    if document["status"] == "running" or document["writersRunning"]:
        return False
    if (document["project"], document["name"]) != (located.project, located.name):
        return False
    ends = {writer["id"]: writer.get("ended") for writer in document["writers"]}
    # Of many writers only the newest are listed. One that is not began before these: a name that says otherwise is of
    # a writer that came later than the document.
    newest = [str(writer["startedAt"]) for writer in document["writers"][1:]]
    listed_since = min(newest) if document["writersTotal"] > len(ends) else ""
    written_ns = path.stat().st_mtime_ns
    for name, segment in list_segments(located.journal):
        if name.writer not in ends and utc_text(min(name.created_ns, LATEST_NS)) > listed_since:
            return False
        # Where locks do not work, a writer that was taken for dead may go on; of one that is not listed, nobody knows
        # how it ended.
        if ends.get(name.writer, "died") == "died" and segment.stat().st_mtime_ns >= written_ns:
            return False
    return True


# -- finding experiments ---------------------------------------------------------------------------------------------


def _children(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    except OSError:
        return []


def _below(folder: Path) -> Iterator[Located]:
    """Yield the experiments in a root, a store or a project, or the one whose folder this is."""
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
    """Return the settings of the environment without those of a server: reading needs none, so they cannot be wrong."""
    server = ("ML_DASH_REMOTE", "ML_DASH_USER_NAME", "ML_DASH_API_KEY")
    return resolve(env={name: value for name, value in os.environ.items() if name not in server})


def search_paths(path: Path | None) -> list[Path]:
    """Return the folders in which `find` looks for experiments."""
    if path is not None:
        base = Path(path).expanduser().absolute()
        return [base, base / DEFAULT_LOCAL_PATH] if (base / DEFAULT_LOCAL_PATH).is_dir() else [base]
    settings = _paths()
    if settings.store.is_dir():
        return [settings.store]
    return sorted(Path.cwd().glob(f"*/{DEFAULT_LOCAL_PATH}"))


def default_folder() -> Path:
    """Return the folder in which readers look that are given none: the store of the environment, else the current."""
    store = _paths().store
    return store.parent if store == Path.cwd() / DEFAULT_LOCAL_PATH else store


def find(path: Path | None = None, project: str | None = None) -> list[Located]:
    """Return the experiments in a root, store, project or experiment folder, sorted by project and name.

    Without a path, look where the environment says, else in `.ml-dash`, else in `*/.ml-dash`.
    """
    found: dict[tuple[int, int], Located] = {}
    for place in search_paths(path):
        for located in _below(place):
            if project is None or located.project == project:
                entry = os.stat(located.journal)  # noqa: PTH116 - once for each experiment of a store
                found.setdefault((entry.st_dev, entry.st_ino), located)
    return sorted(found.values(), key=lambda located: (located.project, located.name, str(located.journal)))


def locate(text: str | None, path: Path | None = None) -> Located:
    """Return the experiment that a path, `project/name` or name refers to; without a text, the one written last.

    A name may also be a title, or one that it had before it was renamed again.

    Raises NotFound, or InvalidValue if a name is ambiguous.
    """
    direct = _at_text(text) if text is not None else None
    if direct is not None:
        return direct
    known = find(path)
    where = places(path)
    if not known:
        raise NotFound(f"no experiments in {where}", hint="name the folder with --path")
    if text is None:
        return max(known, key=_last_written)
    matching = [located for located in known if f"{located.project}/{located.name}" == text]
    matching = matching or [located for located in known if located.name == text]
    matching = matching or [located for located in known if text in _other_names(located)]
    if not matching:
        others = "1 other is" if len(known) == 1 else f"{len(known):,} others are"
        near = nearest(text, (name for other in known for name in (f"{other.project}/{other.name}", other.name)))
        raise NotFound(f"no experiment {text!r} in {where} ({others} there)", hint=f"{near}see: ml-dash ls")
    if len(matching) > 1:
        names = ", ".join(f"{located.project}/{located.name}" for located in matching)
        raise InvalidValue(f"{text!r} may be any of {names}", hint="write project/name")
    return matching[0]


def _other_names(located: Located) -> list[str]:
    """Return what an experiment is and was called besides its name, alone and with its project."""
    names = names_of(located.folder)
    return [*names, *(f"{located.project}/{name}" for name in names)]


def places(path: Path | None) -> str:
    """Return the places where experiments are looked for, as text for a message."""
    return ", ".join(str(place) for place in search_paths(path)) or f"{_paths().store}, */{DEFAULT_LOCAL_PATH}"


def _at_text(text: str) -> Located | None:
    try:
        direct = Path(text).expanduser().absolute()
        return at(direct) if direct.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        # Not a path (too long, not encodable, `~` of an unknown user), but perhaps a name.
        return None


def _last_written(located: Located) -> int:
    newest = 0
    for path in [*(path for _, path in list_segments(located.journal)[-8:]), located.journal / BASE]:
        try:
            newest = max(newest, path.stat().st_mtime_ns)
        except FileNotFoundError:
            continue
    return newest
