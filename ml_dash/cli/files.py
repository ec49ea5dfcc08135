"""`ml-dash files`: the files of an experiment."""

from __future__ import annotations

from pathlib import Path

import click

from ml_dash.cli import console, options
from ml_dash.cli.look import look


@click.command()
@options.experiment_argument
@click.option("--deleted", is_flag=True, help="Deleted and replaced files too.")
@options.path_option
@options.json_option
def command(experiment: str | None, deleted: bool, path: Path | None, as_json: bool) -> None:
    """List files, oldest first."""
    _, view = look(experiment, path)
    records = view.files(deleted=deleted)
    if as_json:
        console.say_json(records)
        return
    if not records:
        console.note("no files")
        return
    console.say_table(
        ["file", ">size", "added (UTC)", "sha256", "id", *(["deleted (UTC)"] if deleted else [])],
        [
            [
                console.safe((record["prefix"] + record["filename"]).lstrip("/")),
                console.size(record["sizeBytes"]),
                console.moment(record["uploadedAt"]),
                record["checksum"][:12],
                record["id"],
                *([console.moment(record["deletedAt"])] if deleted else []),
            ]
            for record in records
        ],
        drop=("sha256", "added (UTC)", ">size"),
    )
