"""`ml-dash rm`: removes experiments, journal and folder together."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ml_dash import read
from ml_dash.cli import FAILURE, console, options
from ml_dash.remove import remove


@click.command()
@click.argument("experiments", nargs=-1, required=True, shell_complete=options.complete_experiment)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be removed.")
@options.path_option
@options.json_option
@click.pass_context
def command(
    ctx: click.Context,
    experiments: tuple[str, ...],
    yes: bool,
    dry_run: bool,
    path: Path | None,
    as_json: bool,
) -> None:
    """Remove experiments, journal and folder together.

    Unlike elsewhere, EXPERIMENT must be given. An experiment that a live process has open is not removed.
    """
    found = [read.locate(experiment, path) for experiment in experiments]
    chosen = list({located.journal: located for located in found}.values())
    plans = [(located, remove(located, dry_run=True)) for located in chosen]
    if not dry_run and not yes:
        if not console.on_terminal(sys.stdin):
            raise click.UsageError("There is no terminal to ask on: give --yes (or --dry-run).", ctx)
        for located, plan in plans:
            amount = _amount(plan.files, plan.bytes)
            console.note(f"{located.project}/{located.name}: {amount} in {plan.folder}")
        if not click.confirm(f"Remove {console.plural(len(plans), 'experiment')} for ever?", err=True):
            ctx.exit(FAILURE)
    done = []
    for located in chosen:
        report = remove(located, dry_run=dry_run)
        done.append({
            "project": located.project, "name": located.name, "path": str(report.folder),
            "journal": str(report.journal), "files": report.files, "bytes": report.bytes,
            "removed": not dry_run,
        })  # fmt: skip
        if not as_json:
            verb = "would remove" if dry_run else "removed"
            name = console.safe(f"{located.project}/{located.name}")
            console.say(f"{verb} {name}: {_amount(report.files, report.bytes)}")
    if as_json:
        console.say_json(done)


def _amount(files: int, size_bytes: int) -> str:
    return f"{console.plural(files, 'file')}, {console.size(size_bytes)}"
