"""`ml-dash files`: the files of an experiment."""

from __future__ import annotations

from pathlib import Path

import click

from ml_dash.cli import console, options
from ml_dash.cli.views import choose_view, local_view


@click.command(cls=options.RemoteCommand)
@options.experiment_argument
@click.option("--deleted", is_flag=True, help="Deleted and replaced files too.")
@options.as_of_option
@options.remote_option
@options.path_option
@options.json_option
@click.pass_context
def command(
    ctx: click.Context,
    experiment: str | None,
    deleted: bool,
    as_of: str | None,
    remote: str | None,
    path: Path | None,
    as_json: bool,
) -> None:
    """List files, oldest first."""
    if remote is None:
        records = local_view(experiment, path, as_of)[1].files(deleted=deleted)
    elif deleted:
        raise click.UsageError("--deleted lists what was recorded here: leave --remote out.", ctx)
    else:
        records = choose_view(experiment, path, remote=remote, as_of=as_of).files()
    if as_json:
        console.print_json(records)
        return
    if not records:
        console.print_note("no files")
        return
    console.print_table(
        ["file", ">size", "added (UTC)", "sha256", "id", *(["deleted (UTC)"] if deleted else [])],
        [
            [
                console.safe((record["prefix"] + record["filename"]).lstrip("/")),
                console.size_text(record["sizeBytes"]),
                console.time_text(record["uploadedAt"]),
                record["checksum"][:12],
                record["id"],
                *([console.time_text(record["deletedAt"])] if deleted else []),
            ]
            for record in records
        ],
        drop=("sha256", "added (UTC)", ">size"),
    )
