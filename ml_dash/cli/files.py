"""`ml-dash files`: the files of an experiment."""

from __future__ import annotations

from pathlib import Path

import click

from ml_dash.cli import console, options
from ml_dash.cli.views import local_view


@click.command()
@options.experiment_argument
@click.option("--deleted", is_flag=True, help="Deleted and replaced files too.")
@options.path_option
@options.json_option
def command(experiment: str | None, deleted: bool, path: Path | None, as_json: bool) -> None:
    """List files, oldest first."""
    _, view = local_view(experiment, path)
    records = view.files(deleted=deleted)
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
