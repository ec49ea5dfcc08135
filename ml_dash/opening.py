"""Open an experiment in this process: find or make its journal, check whose it is, start a writer."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__, events
from .config import Settings, quiet
from .durable import replace_file
from .errors import AlreadyExists, ForeignFolder, JournalError, NotFound, StorageError
from .frames import OrderHeader
from .journal.reader import newest_time_ns
from .journal.segment import JOURNAL, SEGMENTS, create_journal, list_segments, parse_name, read_identity
from .journal.syncer import syncer
from .journal.writer import open_writer
from .lock import Liveness, probe
from .place import describe
from .projection import checkpoint as checkpoints
from .read import Located, at, view
from .run import Run, _say, keeper, registry

log = logging.getLogger("ml_dash")

_TAIL_TO_FOLD: int = 2 << 20


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks of `open()`."""

    project: str
    name: str
    settings: Settings
    given: dict[str, Any]
    write_protected: bool
    resume: str
    strict: bool
    child: bool
    parent: str | None


def find(wish: Wish) -> Located | None:
    """The experiment if it exists: where its documented folder points, else in the store.

    Raises ForeignFolder if a folder that would be written to holds something else.
    """
    folder = wish.settings.root / wish.project / wish.name
    home = wish.settings.store / wish.project / wish.name
    pointed = at(folder)
    journal = pointed.journal if pointed is not None else home / JOURNAL
    if (journal / SEGMENTS).is_dir():
        located = Located(wish.project, wish.name, folder, journal)
        _check_identity(located)
        return located if list_segments(journal) else None
    for place in {folder, home}:
        _check_not_foreign(place)
    return None


def _check_identity(located: Located) -> None:
    try:
        identity = read_identity(located.journal)
    except JournalError as error:
        raise ForeignFolder(f"{located.journal} cannot be continued: {error.message}", hint=error.hint) from error
    if (identity.project, identity.name) != (located.project, located.name):
        raise ForeignFolder(
            f"{located.folder} holds experiment {identity.project}/{identity.name}, not {located.project}/{located.name}",
            hint=f"open it as project={identity.project!r}, name={identity.name!r}, or use another local_path",
        )


def _check_not_foreign(folder: Path) -> None:
    try:
        found = [entry for entry in os.listdir(folder) if not entry.startswith(f"{JOURNAL}.")]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ForeignFolder(f"{folder} is not a folder", hint="use another local_path or name") from None
    except PermissionError:
        return
    if found:
        raise ForeignFolder(
            f"{folder} is not empty and holds no journal of ml-dash (it holds {sorted(found)[0]!r}); it was left alone",
            hint="use another local_path, or another name",
        )


def open_run(wish: Wish) -> tuple[Run, bool]:
    """The run of an experiment in this process, and whether it continues one. Nothing is made if this raises."""
    located = find(wish)
    _check_resume(wish, located)
    if located is not None:
        run = registry.runs.get(located.journal)
        if run is not None:
            _join(run, wish)
            return run, True
    return _start(wish, located), located is not None


def _check_resume(wish: Wish, located: Located | None) -> None:
    where = wish.settings.root / wish.project / wish.name
    if wish.resume == "must" and located is None:
        raise NotFound(f"there is no experiment {wish.project}/{wish.name} in {where} to resume")
    if wish.resume == "never" and located is not None:
        raise AlreadyExists(f"experiment {wish.project}/{wish.name} exists in {where}", hint="use another name")


def _join(run: Run, wish: Wish) -> None:
    """Another handle to the same writer: what it brings anew is an update."""
    protect = {"writeProtected": True} if wish.write_protected and not run.protected else {}
    if wish.given or protect:
        run.writer.append(events.UPDATE, {**wish.given, **protect})
    run.protected = run.protected or wish.write_protected


def _start(wish: Wish, located: Located | None) -> Run:
    settings = wish.settings
    folder = settings.root / wish.project / wish.name
    home = located.journal.parent if located is not None else settings.store / wish.project / wish.name
    known = checkpoints.load(home / JOURNAL) if located is not None else None
    protected, tail = _known_protection(located, known)
    try:
        if located is None:
            _ignore(settings.store)
            identity = create_journal(home, wish.project, wish.name, sync=settings.durability == "always")
        else:
            identity = read_identity(home / JOURNAL)
        floor = newest_time_ns(home / JOURNAL, known.settled if known is not None else {})
        if known is not None:
            floor = max(floor, known.state.updated_ns)
    except OSError as error:
        if wish.strict:
            raise StorageError(f"{home} cannot be written: {error.strerror or error}", hint="choose a local_path") from error
        identity, floor = OrderHeader(os.urandom(16), wish.project, wish.name), 0
    writer = open_writer(
        home / JOURNAL, identity, syncer, durability=settings.durability, strict=wish.strict, floor_ns=floor
    )
    run = Run(Located(wish.project, wish.name, folder, home / JOURNAL), identity, writer, child=wish.child)
    run.protected = protected or wish.write_protected
    syncer.add(writer)
    writer.append(events.OPEN, _opening(wish, run))
    registry.runs[run.located.journal] = run
    keeper.add(run)
    _announce(run, known, tail, new=located is None)
    return run


def _opening(wish: Wish, run: Run) -> dict[str, Any]:
    store, home = run.located.journal.parents[3], run.located.journal.parent
    body = events.opening(
        given=wish.given,
        project=wish.project,
        name=wish.name,
        protected=wish.write_protected,
        folder_path=Path(os.path.relpath(run.located.folder, store)).as_posix(),
        remote=wish.settings.remote,
        user_name=wish.settings.user_name,
        place=describe(__version__),
        parent=wish.parent,
        child=wish.child,
    )
    body["journalPath"] = Path(os.path.relpath(home / JOURNAL, run.located.folder)).as_posix()
    return body


def _known_protection(located: Located | None, known: checkpoints.Checkpoint | None) -> tuple[bool, bool]:
    """(is it write-protected as far as can be known cheaply?, is there more than the checkpoint has seen?)"""
    if located is None:
        return False, False
    settled = known.settled if known is not None else {}
    unread = 0
    for _, path in list_segments(located.journal):
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            if settled.get(path.name) != size:
                unread += size
    if not unread:
        return known is not None and known.state.protected is not None, False
    if unread <= _TAIL_TO_FOLD:
        return view(located).state.protected is not None, True
    return known is not None and known.state.protected is not None, True


def _ignore(store: Path) -> None:
    """A store is not for version control."""
    if not store.exists():
        store.mkdir(parents=True, exist_ok=True)
        replace_file(store / ".gitignore", b"*\n")


def _announce(run: Run, known: checkpoints.Checkpoint | None, tail: bool, *, new: bool) -> None:
    """One line on stderr, once per process."""
    if registry.told or quiet() or run.child:
        return
    registry.told = True
    what = "new"
    if not new:
        state = known.state if known is not None else None
        more = "at least " if tail else ""
        points, logs = (state.points, state.logs) if state is not None else (0, 0)
        what = f"continued: {more}{points:,} points, {logs:,} logs"
        if others := _others(run):
            what += f"; also open in {others}"
    _say(f"ml-dash: {run.located.project}/{run.located.name} -> {run.located.folder} ({what})")


def _others(run: Run) -> str:
    """Live writers in other processes: where they run, as far as the folder tells."""
    folder = run.located.journal / SEGMENTS
    alive = []
    for _, path in list_segments(run.located.journal):
        name = parse_name(path.name)
        if name is None or name.n or name.writer == run.writer.id:
            continue
        if (folder / name.lock).exists() and probe(folder / name.lock) is Liveness.ALIVE:
            alive.append(name.writer)
    if not alive:
        return ""
    places = view(run.located).state.writers
    shown = [
        f"pid {place.get('pid')} on {place.get('host')}"
        for writer in alive[:3]
        if (place := (places[writer].place if writer in places else None)) is not None
    ]
    return ", ".join(shown) + (f" and {len(alive) - 3} more" if len(alive) > 3 else "") or f"{len(alive)} processes"


def say_unless_quiet(text: str) -> None:
    """A line on stderr for trouble."""
    if not quiet() and sys.stderr is not None:
        _say(text)
