"""`ml-dash ls`: the list of experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ml_dash.cli import console, options
from ml_dash.cli.codes import DAMAGE, FAILURE, OK
from ml_dash.cli.summary import columns_table, status_cell, summary
from ml_dash.cli.views import bring_up_to_date
from ml_dash.core.events import STATUSES
from ml_dash.core.times import utc_text
from ml_dash.errors import JournalError, MLDashError, NewerFormat
from ml_dash.reading import read
from ml_dash.reading.located import Located

if TYPE_CHECKING:
    from ml_dash.reading.chosen import Chosen
    from ml_dash.reading.facts import Facts
    from ml_dash.reading.where import Sort, Where

Entry = dict[str, Any]

# Columns that are left out in a narrow terminal, in this order.
_DROPPED = ("tags", ">files", ">logs", "updated (UTC)", ">points", "status")


@click.command()
@options.where_option
@click.option("--project", help="Only experiments of this project.")
@click.option("--status", type=click.Choice(STATUSES), help="Only experiments with this status.")
@click.option("--tag", "tags", multiple=True, help="Only experiments with this tag; if repeated, with all.")
@click.option("--folder", help="Only experiments with this folder label, or one below it.")
@click.option(
    "--since",
    callback=options.moment,
    metavar="TIME",
    help="Only what was written since: 2025-10-29T10:30, 90min, 12h, 7d.",
)
@options.sort_option
@options.columns_option
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N.")
@click.option("--wide", is_flag=True, help="All columns, also where the terminal is too narrow for them.")
@options.path_option
@options.json_option
@click.pass_context
def command(
    ctx: click.Context,
    where: Where | None,
    project: str | None,
    status: str | None,
    tags: tuple[str, ...],
    folder: str | None,
    since: int | None,
    sort: Sort | None,
    columns: tuple[str, ...],
    limit: int | None,
    wide: bool,
    path: Path | None,
    as_json: bool,
) -> None:
    """List experiments, the latest first."""

    def wanted(facts: Facts) -> bool:
        label = (facts.folder or "").strip("/")
        return (
            (status is None or facts.status == status)
            and set(tags) <= set(facts.tags)
            and (folder is None or label == folder.strip("/") or label.startswith(folder.strip("/") + "/"))
            and (since is None or facts.updated_ns >= since)
        )

    from ml_dash.reading.chosen import choose_below

    # What the list is sorted by is worth a column, unless every list shows it.
    if sort is not None and "." in sort.field and sort.field not in columns:
        columns = (*columns, sort.field)
    troubles = _Troubles()
    found = choose_below(path, project, where, sort, columns, failed=troubles.note)
    chosen = [one for one in found if wanted(one.facts)][:limit]
    for one in chosen:
        _bring_up_to_date(one)
    if as_json:
        console.print_json([{**entry, "values": one.values} for one in chosen if (entry := troubles.entry(one))])
    elif chosen and columns:
        _print_columns(chosen, columns)
    elif chosen:
        _print_table(chosen, wide)
    else:
        filters = {
            "--where": where, "--project": project, "--status": status, "--tag": tags, "--folder": folder,
            "--since": since,
        }  # fmt: skip
        console.print_note(_nothing(path, [name for name, value in filters.items() if value], troubles.code))
    ctx.exit(troubles.code)


def _nothing(path: Path | None, filters: list[str], code: int) -> str:
    """Return what to print for an empty list: where was looked, and how many the filters left out."""
    if code != OK:
        return "no experiment that can be read"
    where, there = read.places(path), len(read.find(path))
    if not there:
        return f"no experiments in {where}; name another folder with --path"
    without = "it" if len(filters) == 1 else "them"
    return f"no experiments with this {' and '.join(filters)} in {where}; {there:,} without {without}"


def list_found() -> bool:
    """List experiments as `ml-dash ls` without options does; False if there are none."""
    found = read.find(None)
    if found:
        click.get_current_context().invoke(command)
    return bool(found)


class _Troubles:
    """Experiments that cannot be read: they are named on stderr, and decide the exit code."""

    def __init__(self) -> None:
        self.code = OK

    def note(self, located: Located, error: Exception) -> None:
        """Print the error of an experiment."""
        console.print_error(f"{located.project}/{located.name}: {error}")
        damaged = isinstance(error, JournalError) and not isinstance(error, NewerFormat)
        self.code = max(self.code, DAMAGE if damaged else FAILURE)

    def entry(self, one: Chosen) -> Entry | None:
        """Return the row of an experiment; None if it cannot be read."""
        try:
            return summary(one.located, read.record(one.located))
        except (MLDashError, OSError) as error:
            self.note(one.located, error)
            return None


def _bring_up_to_date(one: Chosen) -> None:
    """Update the folder that a killed process left behind: then whoever reads it sees that it is interrupted."""
    if one.facts.status == "interrupted" and _status_in_folder(one.located) != "interrupted":
        bring_up_to_date(one.located)


def _status_in_folder(located: Located) -> object:
    try:
        return json.loads((located.folder / "experiment.json").read_bytes())["status"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _print_table(chosen: list[Chosen], wide: bool) -> None:
    console.print_table(
        ["experiment", "status", ">points", ">logs", ">files", "updated (UTC)", "tags"],
        [
            (
                _name(one),
                status_cell(one.facts.status),
                f"{one.facts.points:,}",
                f"{one.facts.logs:,}",
                f"{one.facts.files:,}",
                console.time_text(utc_text(one.facts.updated_ns) if one.facts.updated_ns else None),
                console.safe(", ".join(one.facts.tags)),
            )
            for one in chosen
        ],
        drop=() if wide else _DROPPED,
    )


def _print_columns(chosen: list[Chosen], columns: tuple[str, ...]) -> None:
    """Print the names, and the fields that were asked for; a narrow terminal breaks no line."""
    headers, cells = columns_table(columns, [one.values for one in chosen])
    rows = [[_name(one), *row] for one, row in zip(chosen, cells, strict=True)]
    console.print_table(["experiment", *headers], rows)


def _name(one: Chosen) -> str:
    """Return the project and what the experiment is called since it was renamed."""
    return console.safe(f"{one.located.project}/{one.facts.title or one.located.name}")
