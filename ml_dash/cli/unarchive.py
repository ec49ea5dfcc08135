"""`ml-dash unarchive`: brings an experiment that was put away back into lists."""

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
    """Show an archived experiment in lists again."""
    change(experiment, path, as_json, "is in lists again", archived=False)
