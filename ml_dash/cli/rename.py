"""`ml-dash rename`: another name for an experiment."""

from __future__ import annotations

from pathlib import Path

import click

from ml_dash.cli import options
from ml_dash.cli.labels import change


@click.command()
@click.argument("experiment", shell_complete=options.complete_experiment)
@click.argument("title", metavar="NEW-NAME")
@options.path_option
@options.json_option
def command(experiment: str, title: str, path: Path | None, as_json: bool) -> None:
    """Call an experiment by another name. Its id and its folder stay, and the old name still finds it."""
    change(experiment, path, as_json, f"is called {title} now", title=title)
