"""`ml-dash history`: what happened to an experiment, when, and who did it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ml_dash.cli import console, options
from ml_dash.cli.views import bring_up_to_date
from ml_dash.core.limits import MAX_LIMIT
from ml_dash.reading import read

if TYPE_CHECKING:
    from ml_dash.core.marks import MarkPage

LAST = 50
_STYLES = {
    "crashed": "red", "failed": "red", "lost": "red", "interrupted": "yellow", "rewound": "yellow", "merged": "yellow",
    "completed": "green", "opened": "cyan", "resumed": "cyan", "joined": "cyan",
}  # fmt: skip


@click.command(cls=options.RemoteCommand)
@options.experiment_argument
@click.option("--last", type=click.IntRange(min=1, max=MAX_LIMIT), metavar="N", help=f"The last N (default {LAST}).")
@options.remote_option
@options.path_option
@options.json_option
def command(experiment: str | None, last: int | None, remote: str | None, path: Path | None, as_json: bool) -> None:
    """Tell what happened: begun, resumed, rewound, crashed, parameters and files changed; who, when, at which event.

    An event is what --as-of takes.
    """
    count = last or LAST
    if remote is not None:
        from ml_dash.cli.server_view import server_view

        there = server_view(experiment, path, remote)
        page = there.client.history(there.id, -count, count)
    else:
        from ml_dash.reading.history import history

        located = read.locate(experiment, path)
        bring_up_to_date(located)
        page = history(located, -count, count)
    if as_json:
        console.print_json(page)
        return
    print_marks(page)


def print_marks(page: MarkPage) -> None:
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
