"""`ml-dash history`: what happened to an experiment, when, and who did it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ml_dash.cli import console, options
from ml_dash.cli.views import bring_up_to_date
from ml_dash.core.limits import MAX_LIMIT
from ml_dash.reading import read

LAST = 50
_STYLES = {
    "crashed": "red", "failed": "red", "lost": "red", "interrupted": "yellow", "rewound": "yellow", "merged": "yellow",
    "completed": "green", "opened": "cyan", "resumed": "cyan", "joined": "cyan",
}  # fmt: skip


@click.command()
@options.experiment_argument
@click.option("--last", type=click.IntRange(min=1, max=MAX_LIMIT), metavar="N", help=f"The last N (default {LAST}).")
@options.path_option
@options.json_option
def command(experiment: str | None, last: int | None, path: Path | None, as_json: bool) -> None:
    """Tell what happened: begun, resumed, rewound, crashed, parameters and files changed; who, when, at which event.

    An event is what --as-of takes.
    """
    from ml_dash.reading.history import history

    located = read.locate(experiment, path)
    bring_up_to_date(located)
    page = history(located, -(last or LAST), last or LAST)
    if as_json:
        console.print_json(page)
        return
    print_marks(page)


def print_marks(page: dict[str, Any]) -> None:
    """Print a page of marks as a table."""
    rows = [
        [
            f"{mark['event']:,}",
            console.time_text(mark["time"]),
            console.Styled(mark["kind"], _STYLES[mark["kind"]]) if mark["kind"] in _STYLES else mark["kind"],
            console.safe(mark["text"]),
            console.safe(f"{mark['writer'][:8]}{' on ' + mark['host'] if mark['host'] else ''}"),
        ]
        for mark in page["marks"]
    ]
    console.print_table([">event", "time (UTC)", "what", "", "writer"], rows, drop=("writer", "time (UTC)"))
    if page["startIndex"]:
        console.print_note(f"{page['startIndex']:,} earlier: --last N")
    if page.get("since"):
        console.print_note(f"what happened before event {page['since']:,} is on the server")
