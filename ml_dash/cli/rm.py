"""`ml-dash rm`: removes experiments, journal and folder together."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ml_dash.cli import console, options
from ml_dash.cli.chosen import Asked, located_here
from ml_dash.cli.codes import FAILURE
from ml_dash.core.names import experiment_id
from ml_dash.core.protocol import UNKNOWN
from ml_dash.errors import NotFound, RemoteError, ServerRefused
from ml_dash.reading import read
from ml_dash.reading.located import Located
from ml_dash.sync.registrations import Registration, by_journal, of_journal, read_all, unregister
from ml_dash.sync.remove import remove

if TYPE_CHECKING:
    from ml_dash.reading.where import Where


@click.command()
@options.experiments_argument
@options.where_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--remote", "there_too", is_flag=True, help="Also on the servers that they are sent to.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be removed.")
@options.path_option
@options.json_option
@click.pass_context
def command(
    ctx: click.Context,
    experiments: tuple[str, ...],
    where: Where | None,
    yes: bool,
    there_too: bool,
    dry_run: bool,
    path: Path | None,
    as_json: bool,
) -> None:
    """Remove experiments, journal and folder together.

    Unlike elsewhere, EXPERIMENT or --where must be given. An experiment that a live process has open is not removed.
    With --remote, it is removed from the servers first; if one cannot be reached, nothing is removed.
    """
    if where is None and not experiments:
        raise click.UsageError("Name the experiments, or choose them with --where.", ctx)
    if experiments and where is not None:
        raise click.UsageError("Name experiments, or choose them with --where.", ctx)
    found = located_here(experiments, Asked(where), path)
    if not found:
        console.print_note(f"no experiments match in {read.places(path)}; nothing was removed")
    chosen = list({located.journal: located for located in found}.values())
    plans = [(located, remove(located, dry_run=True)) for located in chosen]
    goes_to = _destinations(chosen, needed=there_too)
    if plans and not dry_run and not yes:
        if not console.on_terminal(sys.stdin):
            raise click.UsageError("There is no terminal to ask on: give --yes (or --dry-run).", ctx)
        for located, plan in plans:
            amount = _amount(plan.files, plan.bytes)
            also = f", and on {_urls(goes_to[located.journal])}" if there_too else ""
            console.print_note(f"{located.project}/{located.name}: {amount} in {plan.folder}{also}")
        if not click.confirm(f"Remove {console.plural(len(plans), 'experiment')} for ever?", err=True):
            ctx.exit(FAILURE)
    if there_too and not dry_run:
        # All servers, before anything is removed.
        for one in {(one.remote, one.user, one.login): one for mine in goes_to.values() for one in mine}.values():
            _check_reachable(one)
    done = []
    for located in chosen:
        if there_too and not dry_run:
            for one in goes_to[located.journal]:
                _remove_there(located, one)
        report = remove(located, dry_run=dry_run)
        if not dry_run:
            for one in goes_to[located.journal]:
                unregister(one)
        done.append({
            "project": located.project, "name": located.name, "path": str(report.folder),
            "journal": str(report.journal), "files": report.files, "bytes": report.bytes,
            "remotes": [one.remote for one in goes_to[located.journal]] if there_too else [],
            "removed": not dry_run,
        })  # fmt: skip
        if not as_json:
            verb = "would remove" if dry_run else "removed"
            name = console.safe(f"{located.project}/{located.name}")
            console.print_text(f"{verb} {name}: {_amount(report.files, report.bytes)}")
    if as_json:
        console.print_json(done)


def _destinations(chosen: list[Located], *, needed: bool) -> dict[Path, list[Registration]]:
    """The registrations of each journal. With `needed`, raises NotFound for one that has none."""
    known = by_journal(read_all())
    found = {located.journal: of_journal(located.journal, known) for located in chosen}
    for located in chosen:
        if needed and not found[located.journal]:
            raise NotFound(
                f"{located.project}/{located.name} is not registered for any server on this host; nothing was removed",
                hint="leave --remote away to remove what is here",
            )
    return found


def _urls(goes_to: list[Registration]) -> str:
    return ", ".join(one.remote for one in goes_to)


def _check_reachable(registration: Registration) -> None:
    from ml_dash.sync.identity import connect

    try:
        connect(registration).close()
    except RemoteError as error:
        raise RemoteError(f"nothing was removed: {error.message}", hint=error.hint) from error


def _remove_there(located: Located, registration: Registration) -> None:
    from ml_dash.sync import remote
    from ml_dash.sync.identity import connect

    with contextlib.closing(connect(registration)) as link:
        try:
            remote.remove(link, experiment_id(located.project, located.name))
        except ServerRefused as refused:
            if refused.code != UNKNOWN:  # nothing of it ever arrived there
                raise


def _amount(files: int, size_bytes: int) -> str:
    return f"{console.plural(files, 'file')}, {console.size_text(size_bytes)}"
