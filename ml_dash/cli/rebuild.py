"""`ml-dash rebuild`: the documented folder, made again from the journal."""

from __future__ import annotations

from pathlib import Path

import click

from ml_dash.cli import console, options
from ml_dash.projection import project
from ml_dash.reading import read


@click.command()
@options.experiment_argument
@click.option("--all", "everything", is_flag=True, help="Every experiment that is found.")
@options.path_option
@options.json_option
@click.pass_context
def command(ctx: click.Context, experiment: str | None, everything: bool, path: Path | None, as_json: bool) -> None:
    """Make the documented folder again from the journal, byte for byte as it was.

    Only derived files are replaced; the journal is not changed.
    """
    if everything and experiment is not None:
        raise click.UsageError("Give an EXPERIMENT or --all, not both.", ctx)
    done = []
    for located in read.find(path) if everything else [read.locate(experiment, path)]:
        name = f"{located.project}/{located.name}"
        with console.progress(f"rebuild {name}") as progress:
            report = project.rebuild(located, progress)
        done.append({
            "project": located.project, "name": located.name, "path": str(located.folder),
            "events": report.events, "bytes": report.bytes, "seconds": report.seconds,
        })  # fmt: skip
        if not as_json:
            what = f"{console.plural(report.events, 'event')} in {report.seconds:.2f} s"
            console.print_text(f"{console.styled(console.safe(name), 'bold')}: rebuilt from {what}")
    if as_json:
        console.print_json(done if everything else done[0])
