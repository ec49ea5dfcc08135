"""`ml-dash params`: the parameters of an experiment."""

from __future__ import annotations

from pathlib import Path

import click

from ml_dash.cli import console, options
from ml_dash.cli.look import look


@click.command()
@options.experiment_argument
@options.path_option
@options.json_option
def command(experiment: str | None, path: Path | None, as_json: bool) -> None:
    """Print parameters, flat, with dotted keys."""
    _, view = look(experiment, path)
    parameters = view.parameters()
    if as_json:
        console.say_json(parameters)
    elif parameters:
        console.say_table(
            ["parameter", "value"],
            [(console.safe(key), console.number(value)) for key, value in parameters.items()],
        )
    else:
        console.note("no parameters")
