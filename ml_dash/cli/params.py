"""`ml-dash params`: the parameters of an experiment."""

from __future__ import annotations

from pathlib import Path

import click

from ml_dash.cli import console, options
from ml_dash.cli.views import choose_view


@click.command(cls=options.RemoteCommand)
@options.experiment_argument
@options.as_of_option
@options.remote_option
@options.path_option
@options.json_option
def command(
    experiment: str | None, as_of: str | None, remote: str | None, path: Path | None, as_json: bool
) -> None:
    """Print parameters, flat, with dotted keys."""
    parameters = choose_view(experiment, path, remote=remote, as_of=as_of).parameters()
    if as_json:
        console.print_json(parameters)
    elif parameters:
        console.print_table(
            ["parameter", "value"],
            [(console.safe(key), console.value_text(value)) for key, value in parameters.items()],
        )
    else:
        console.print_note("no parameters")
