"""`ml-dash archive`: puts an experiment away."""

from __future__ import annotations

from pathlib import Path

import click

from ml_dash.cli import options
from ml_dash.cli.labels import change


@click.command()
@click.argument("experiment", shell_complete=options.complete_experiment)
@options.path_option
@options.json_option
def command(experiment: str, path: Path | None, as_json: bool) -> None:
    """Put an experiment away: lists leave it out, nothing of it is removed."""
    change(experiment, path, as_json, "is archived", archived=True)
