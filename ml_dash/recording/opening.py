"""Opening an experiment for recording: find or create its journal, check that it fits, start a writer."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..core import events
from ..core.frames import OrderHeader
from ..core.names import check_name
from ..core.version import __version__
from ..disk.durable import fail_point
from ..disk.lock import Liveness, Turn, probe
from ..disk.places import quiet
from ..disk.settings import ARGUMENT, Settings
from ..errors import AlreadyExists, ForeignFolder, JournalError, NotFound, StorageError
from ..journal.segment import (
    BASE,
    JOURNAL,
    SEGMENTS,
    TITLES,
    TURN,
    create_journal,
    has_segments,
    list_segments,
    make_store,
    parse_name,
    read_identity,
    refuse_foreign,
)
from ..journal.syncer import syncer
from ..journal.writer import open_writer
from ..reading.located import Located, at
from . import process
from .environment import describe
from .messages import cannot, print_line
from .run import Run, registry

if TYPE_CHECKING:
    from ..core.state import State

log = logging.getLogger("ml_dash")

# After the import of logging: see there.
process.let_forks_wait()

# At opening, a longer unprojected tail of the journal is not folded.
_TAIL_TO_FOLD_BYTES: Final = 2 << 20


# Errors that last until somebody mends them. Others (no space, a quota, a disk or mount in trouble) may pass.
# ENOENT: missing folders are created, so a parent takes none (an automounter, /proc), or was removed meanwhile.
_NEVER_PASSES: Final = frozenset((
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ELOOP,
    errno.ENAMETOOLONG, errno.ENOTCONN,
))  # fmt: skip


class OpenRequest(NamedTuple):
    """The arguments of one opening.

    `given_anew` is False if an earlier opening of the same handle has recorded `given`: it must not undo what others
    have changed since. `child`: opened in a process that was forked or got the handle by pickle; `parent`: the writer
    id there. `silent`: announce nothing.
    """

    project: str
    name: str
    settings: Settings
    given: dict[str, Any]
    given_anew: bool
    write_protected: bool
    resume: str
    strict: bool
    child: bool
    parent: str | None
    silent: bool

    @property
    def home(self) -> Path:
        """The folder in the store in which a new journal would lie."""
        return self.settings.store / self.project / self.name


class _Known:
    """An existing experiment as known at opening: its state, if cheap to read, and whether that is complete.

    `settled`: bytes by segment file name that the checkpoint has folded.
    """

    def __init__(
        self, state: State | None = None, complete: bool = True, settled: dict[str, int] | None = None
    ) -> None:
        self.state = state
        self.complete = complete
        self.settled = settled

    @property
    def protected(self) -> bool:
        return self.state is not None and self.state.protected is not None


def find(request: OpenRequest) -> Located | None:
    """Return the experiment if it exists: where its documented folder points, else in the store; else None.

    Where nothing has the name, the one experiment of the project that was renamed to it.

    Raises ForeignFolder if a folder that would be written to holds something else.
    """
    folder = request.settings.root / request.project / request.name
    home = request.home
    pointed = at(folder)
    journal = pointed.journal if pointed is not None else home / JOURNAL
    if (journal / SEGMENTS).is_dir():
        located = Located(request.project, request.name, folder, journal)
        _check_identity(located)
        return located if has_segments(journal) or (journal / BASE).exists() else None
    try:
        for place in {folder, home}:
            refuse_foreign(place, hint="use another local_path, or another name")
    except ForeignFolder:
        # Another process may have created it since `is_dir` above.
        if (home / JOURNAL / SEGMENTS).is_dir():
            return find(request)
        raise
    return _by_title(request)


def _by_title(request: OpenRequest) -> Located | None:
    """Return the one experiment of the project that was renamed to this name; None if there is none, or several."""
    project = request.settings.root / request.project
    if not (project / TITLES).exists():
        return None
    from ..projection.titles import titled

    found = titled(project, request.name)
    return find(request._replace(name=found[0].name)) if len(found) == 1 and found[0].name != request.name else None


def where(request: OpenRequest) -> Located:
    """Return where the experiment is, or would be created. Raises ForeignFolder as `find` does."""
    located = find(request)
    if located is not None:
        return located
    folder = request.settings.root / request.project / request.name
    return Located(request.project, request.name, folder, request.home / JOURNAL)


def _check_identity(located: Located) -> None:
    try:
        identity = read_identity(located.journal)
    except JournalError as error:
        raise ForeignFolder(f"{located.journal} cannot be continued: {error.message}", hint=error.hint) from error
    if (identity.project, identity.name) != (located.project, located.name):
        raise ForeignFolder(
            f"{located.folder} holds experiment {identity.project}/{identity.name}, "
            f"not {located.project}/{located.name}",
            hint=f"open it as project={identity.project!r}, name={identity.name!r}, or use another local_path",
        )


def open_run(request: OpenRequest) -> tuple[Run, bool]:
    """Return (the run of an experiment, whether the experiment existed). Creates nothing if it raises."""
    if request.resume == "new":
        return _open_new(request), False
    try:
        located = find(request)
    except OSError as error:
        if request.strict or error.errno in _NEVER_PASSES:
            raise cannot("use", request.settings.root, error) from error
        # A disk that cannot be read now may be back soon; the writer keeps events in memory until then.
        located = None
    if located is not None:
        # It may have been found by its title.
        request = request._replace(name=located.name)
    journal = located.journal if located is not None else request.home / JOURNAL
    run = registry.run_of(journal)
    existing = located is not None or run is not None
    _check_resume(request, existing)
    if run is not None:
        _join(run, request)
    else:
        run = _start(request, located)
    return run, existing


def _open_new(request: OpenRequest) -> Run:
    """Return the run of a new experiment, under the first free of `name`, `name-2`, `name-3`, ...

    The first segment of a journal is written by the holder of its turn. So processes that begin at once get different
    names, and the name of one that is killed meanwhile is free again. Where locks do not work, two that begin in the
    same moment may get the same name, as with resume="allow".
    """
    for number in itertools.count(1):
        name = request.name if number == 1 else f"{request.name}-{number}"
        run = _claim(request._replace(name=check_name("name", name)))
        if run is not None:
            return run
    raise AssertionError("names do not end")


def _claim(request: OpenRequest) -> Run | None:
    """Return the run of a new experiment of exactly this name; None if the name is taken."""
    home = request.home
    try:
        if _is_taken(request):
            return None
        make_store(request.settings.store)
        create_journal(home, request.project, request.name, sync=request.settings.durability == "always")
        turn = Turn(home / JOURNAL / TURN)
        if not turn.take():
            # Another process is writing its first segment, or projects it already.
            return None
    except OSError as error:
        raise cannot("use", home, error) from error
    try:
        fail_point("name-claimed")
        return None if _is_taken(request) else _start(request, None)
    finally:
        turn.give_back()


def _is_taken(request: OpenRequest) -> bool:
    """True if an experiment or a foreign folder has the name, on disk or in this process."""
    try:
        journal = where(request).journal
        return find(request) is not None or registry.run_of(journal) is not None
    except ForeignFolder:
        return True


def _check_resume(request: OpenRequest, existing: bool) -> None:
    where = request.settings.root / request.project / request.name
    if request.resume == "must" and not existing:
        raise NotFound(
            f'resume="must", but there is no experiment {request.project}/{request.name} in {where}',
            hint='use resume="allow" to begin one',
        )
    if request.resume == "never" and existing:
        raise AlreadyExists(
            f'resume="never", but experiment {request.project}/{request.name} exists in {where}',
            hint='use another name, or resume="allow" to continue it',
        )


def _join(run: Run, request: OpenRequest) -> None:
    """Add another handle to a run; its description, tags, folder and metadata become an update."""
    given = dict(request.given) if request.given_anew else {}
    if request.write_protected and not run.protected:
        given["writeProtected"] = True
    if given:
        run.writer.append(events.UPDATE, given)
    if request.write_protected:
        run.protect()
    asked = request.settings.durability
    if asked != run.writer.durability and request.settings.sources.get("durability") == ARGUMENT:
        log.warning(
            "ml-dash: %s/%s is open in this process with durability=%r already; that goes on, %r is not used",
            request.project, request.name, run.writer.durability, asked,
        )  # fmt: skip


def _start(request: OpenRequest, located: Located | None) -> Run:
    settings = request.settings
    home = located.journal.parent if located is not None else request.home
    place = Located(request.project, request.name, settings.root / request.project / request.name, home / JOURNAL)
    body = _opening(request, place, anew=request.given_anew or located is None)
    known = _Known()
    try:
        if located is None:
            make_store(settings.store)
            identity = create_journal(home, request.project, request.name, sync=settings.durability == "always")
        else:
            identity = read_identity(home / JOURNAL)
            known = _known(located)
        floor = _floor_ns(home / JOURNAL, known)
        for folder in (home / JOURNAL, home / JOURNAL / SEGMENTS):
            _check_writable(folder)
    except OSError as error:
        if request.strict or error.errno in _NEVER_PASSES:
            raise cannot("use", home, error) from error
        log.warning("ml-dash: cannot use %s: %s", home, error.strerror or error)
        identity, floor = OrderHeader(os.urandom(16), request.project, request.name), 0
    writer = open_writer(
        home / JOURNAL, identity, syncer, durability=settings.durability, strict=request.strict, floor_ns=floor
    )
    run = Run(place, identity, writer, child=request.child)
    if known.protected or request.write_protected:
        run.protect()
    syncer.hold_back()
    syncer.add(writer)
    try:
        writer.append(events.OPEN, body)
    except BaseException:
        # Strict, and the disk refused after all: this run has not begun.
        with contextlib.suppress(StorageError):
            writer.close({"status": "failed"})
        syncer.remove(writer)
        syncer.start()
        raise
    registry.enter(run)
    if not request.silent:
        _announce(run, known, new=located is None)
    return run


def _check_writable(folder: Path) -> None:
    """Raise OSError if this user may not create files in a folder that exists.

    EROFS on a read-only file system, ELOOP for a symbolic link: a writer follows none out of its journal.
    """
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "it is a symbolic link", str(folder))
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
        code = errno.EROFS if read_only else errno.EACCES
        raise OSError(code, os.strerror(code), str(folder))


def _opening(request: OpenRequest, place: Located, *, anew: bool) -> dict[str, Any]:
    store = place.journal.parents[2]
    body = events.opening(
        given=request.given if anew else {},
        project=request.project,
        name=request.name,
        protected=request.write_protected,
        folder_path=Path(os.path.relpath(place.folder, store)).as_posix(),
        remote=request.settings.remote,
        user_name=request.settings.user_name,
        place=describe(__version__),
        parent=request.parent,
        child=request.child,
    )
    body["journalPath"] = Path(os.path.relpath(place.journal, place.folder)).as_posix()
    return body


def _floor_ns(journal: Path, known: _Known) -> int:
    """Return the newest time in a journal, in ns since the epoch: a new writer's times begin behind it."""
    if not has_segments(journal) and known.state is None:
        return 0
    with process.loading():
        from ..journal.reader import newest_time_ns

    newest = newest_time_ns(journal, known.settled or {})
    return newest if known.state is None else max(newest, known.state.updated_ns)


def _known(located: Located) -> _Known:
    """Return the state of an experiment, if cheap: what is projected, and a short tail behind that.

    A base that cannot be used is logged as an error; what this run records is kept all the same.
    """
    with process.loading():
        from ..projection import checkpoint as checkpoints

    try:
        checkpoint = checkpoints.load(located.journal)
        if checkpoint is None and (located.journal / BASE).exists():
            with process.loading():
                from ..projection.start import begin

            checkpoint = begin(located.journal)
    except JournalError as error:
        log.error("ml-dash: %s", error)
        return _Known(None, False)
    settled = checkpoint.settled if checkpoint is not None else {}
    unread = 0
    for _, path in list_segments(located.journal):
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            if settled.get(path.name) != size:
                unread += size
    if 0 < unread <= _TAIL_TO_FOLD_BYTES:
        with process.loading():
            from ..reading.read import view

        with contextlib.suppress(OSError, JournalError):
            return _Known(view(located).state, True, settled)
    return _Known(checkpoint.state if checkpoint is not None else None, not unread, settled)


def _announce(run: Run, known: _Known, *, new: bool) -> None:
    """Print one line about the run, once per process."""
    if registry.announced or run.child or quiet():
        return
    registry.announced = True
    what = "new"
    if not new:
        points, logs = (known.state.points, known.state.logs) if known.state is not None else (0, 0)
        held = f"{points:,} point{'' if points == 1 else 's'}, {logs:,} log entr{'y' if logs == 1 else 'ies'}"
        what = f"continued: {'' if known.complete else 'at least '}{held}"
        if others := _others(run):
            what += f"; also open in {others}"
    print_line(f"ml-dash: {run.located.project}/{run.located.name} -> {run.located.folder} ({what})")


def _others(run: Run) -> str:
    """Return where live writers of other processes run, as text; empty if there are none."""
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
    with process.loading():
        from ..reading.read import view

    places = view(run.located).state.writers
    shown = [
        f"pid {place.get('pid')} on {place.get('host')}"
        for writer in alive[:3]
        if (place := (places[writer].place if writer in places else None)) is not None
    ]
    return ", ".join(shown) + (f" and {len(alive) - 3} more" if len(alive) > 3 else "") or f"{len(alive)} processes"
