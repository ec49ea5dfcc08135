"""`ml-dash sync status`: how much of each experiment a server holds, proven by comparing digests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ml_dash.cli import console, options
from ml_dash.cli.codes import UNSENT
from ml_dash.errors import InvalidValue, JournalError, NotFound, RemoteError
from ml_dash.reading import read
from ml_dash.reading.located import Located, at
from ml_dash.sync.register import Registration, by_journal, of_journal, registrations

if TYPE_CHECKING:
    from ml_dash.sync.proof import Proof


@click.group(name="sync")
def command() -> None:
    """What a server has of the experiments here."""


@command.command()
@options.experiment_argument
@options.path_option
@options.json_option
@click.pass_context
def status(ctx: click.Context, experiment: str | None, path: Path | None, as_json: bool) -> None:
    """Prove what the server has, by digests of every segment and the state of every file.

    Without EXPERIMENT: of all that are registered for upload (with --path, those in that folder). Exit code 3 if
    something is missing there, or if the comparison failed.
    """
    shown = []
    for located, registration in _wanted(experiment, path):
        found = show(located, registration, silent=as_json)
        shown.append(found)
    if as_json:
        console.print_json(shown)
    if not all(found["complete"] for found in shown):
        ctx.exit(UNSENT)


def show(located: Located, registration: Registration, *, silent: bool = False) -> dict[str, Any]:
    """Compare an experiment with its server; return the result as a JSON object and, unless `silent`, print it."""
    from ml_dash.sync import proof
    from ml_dash.sync.identity import connect

    name = console.safe(f"{located.project}/{located.name}")
    try:
        with contextlib.closing(connect(registration)) as link, console.progress(f"comparing {name}") as show_progress:
            found = proof.prove(located, registration, link, show_progress)
    except (RemoteError, JournalError) as error:
        if not silent:
            console.print_text(f"{name}: {console.styled('not proven', 'red')}: {console.safe(str(error))}")
        return _unproven(located, registration, str(error))
    if not silent:
        console.print_text(f"{name}: {summary(found)}")
        for reason in found.reasons:
            console.print_text(f"    {console.safe(reason)}")
    return _document(located, registration, found)


def summary(found: Proof) -> str:
    """Return a proof as one line for people."""
    counts = f"{found.events_there:,} of {found.events:,} events, {found.files_there:,} of {found.files:,} files"
    if found.conflicts:
        what = console.styled(f"digests of {console.plural(len(found.conflicts), 'segment')} differ", "red")
    elif found.complete:
        what = console.styled("digests equal", "green")
    elif found.removed:
        what = console.styled("removed there", "red")
    elif not found.bytes_there:
        what = console.styled("nothing is there yet", "yellow")
    else:
        what = console.styled("digests equal as far as they go", "yellow")
    return f"{counts}, {what} ({console.safe(found.remote)})"


def _wanted(experiment: str | None, path: Path | None) -> Iterator[tuple[Located, Registration]]:
    """Yield each chosen experiment with each of its registrations. Raises NotFound for a named one without any."""
    known = registrations()
    if experiment is None and path is None:
        for registration in known:
            located = at(Path(registration.journal))
            if located is not None and registration in of_journal(located.journal, by_journal([registration])):
                yield located, registration
            else:
                console.print_note(f"{registration.journal} is registered, and gone")
        return
    if experiment is not None and path is None and (meant := _named(experiment, known)):
        yield from meant
        return
    chosen = [read.locate(experiment, path)] if experiment is not None else read.find(path)
    mine_of = by_journal(known)
    for located in chosen:
        mine = of_journal(located.journal, mine_of)
        yield from ((located, registration) for registration in mine)
        if not mine and experiment is not None:
            raise NotFound(
                f"{located.project}/{located.name} is not registered for any server on this host",
                hint=f"run: ml-dash push {located.project}/{located.name} --remote URL",
            )


def locate(experiment: str, path: Path | None) -> Located:
    """Find an experiment as `read.locate` does, or else one that is registered on this machine under that name.

    Raises NotFound if there is none, InvalidValue if there are several.
    """
    try:
        return read.locate(experiment, path)
    except NotFound:
        meant = {} if path is not None else {one.journal: one for one, _ in _named(experiment, registrations())}
        if not meant:
            raise
    if len(meant) > 1:
        raise InvalidValue(
            f"{experiment!r} may be in any of {', '.join(str(one.folder) for one in meant.values())}",
            hint="give its path",
        )
    return next(iter(meant.values()))


def _named(experiment: str, known: Iterable[Registration]) -> list[tuple[Located, Registration]]:
    """Registered experiments called `project/name`, wherever on this machine they are."""
    there = [(found, one) for one in known if (found := at(Path(one.journal))) is not None]
    return [(found, one) for found, one in there if f"{found.project}/{found.name}" == experiment]


def _document(located: Located, registration: Registration, found: Proof) -> dict[str, Any]:
    return {
        "project": located.project,
        "name": located.name,
        "path": str(located.folder),
        "remote": registration.remote,
        "user": registration.user,
        "complete": found.complete,
        "events": {"here": found.events, "there": found.events_there},
        "files": {"here": found.files, "there": found.files_there},
        "segments": {"here": found.segments, "equal": found.segments_equal},
        "bytes": {"here": found.bytes, "there": found.bytes_there},
        "conflicts": list(found.conflicts),
        "missingFiles": list(found.missing_files),
        "removed": found.removed,
        "reasons": list(found.reasons),
        "error": None,
    }


def _unproven(located: Located, registration: Registration, error: str) -> dict[str, Any]:
    nothing = {"here": 0, "there": 0}
    return {
        "project": located.project, "name": located.name, "path": str(located.folder),
        "remote": registration.remote, "user": registration.user, "complete": False,
        "events": nothing, "files": nothing, "segments": {"here": 0, "equal": 0}, "bytes": nothing,
        "conflicts": [], "missingFiles": [], "removed": False, "reasons": [], "error": error,
    }  # fmt: skip
