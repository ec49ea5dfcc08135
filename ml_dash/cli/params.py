"""`ml-dash params`: the parameters of an experiment."""

from __future__ import annotations

from pathlib import Path

import click

from ml_dash.cli import console, options
from ml_dash.cli.views import local_view


@click.command()
@options.experiment_argument
@options.path_option
@options.json_option
def command(experiment: str | None, path: Path | None, as_json: bool) -> None:
    """Print parameters, flat, with dotted keys."""
    _, view = local_view(experiment, path)
    parameters = view.parameters()
    if as_json:
        console.print_json(parameters)
    elif parameters:
        console.print_table(
            ["parameter", "value"],
            [(console.safe(key), console.value_text(value)) for key, value in parameters.items()],
        )
    else:
        console.print_note("no parameters")
