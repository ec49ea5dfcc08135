"""`ml-dash note`: remarks about an experiment."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ml_dash.cli import console, options
from ml_dash.cli.labels import change
from ml_dash.cli.views import local_view


@click.command()
@click.argument("experiment", shell_complete=options.complete_experiment)
@click.argument("text", required=False)
@click.option("--add", is_flag=True, help="Add a paragraph to what is there, instead of replacing it.")
@options.path_option
@options.json_option
def command(experiment: str, text: str | None, add: bool, path: Path | None, as_json: bool) -> None:
    """Print the notes of an experiment; with TEXT (Markdown; - reads it from standard input), replace them."""
    notes = local_view(experiment, path)[1].record()["notes"] if text is None or add else None
    if text is None:
        if as_json:
            console.print_json({"notes": notes})
        elif notes:
            console.print_text(console.safe_lines(notes, indent=""))
        else:
            console.print_note("no notes")
        return
    if text == "-":
        text = sys.stdin.read()
    text = text.rstrip("\n")
    change(experiment, path, as_json, "has these notes now", notes=f"{notes}\n\n{text}" if notes else text)
