"""`ml-dash ls`: the list of experiments."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ml_dash.cli import console, options
from ml_dash.cli.codes import DAMAGE, FAILURE, OK
from ml_dash.cli.summary import status_cell, summary
from ml_dash.cli.views import bring_up_to_date
from ml_dash.core.events import STATUSES
from ml_dash.core.values import utc_text
from ml_dash.errors import JournalError, MLDashError, NewerFormat
from ml_dash.reading import read
from ml_dash.reading.located import Located

Entry = dict[str, Any]

# Columns that are left out in a narrow terminal, in this order.
_DROPPED = ("tags", ">files", ">logs", "updated (UTC)", ">points", "status")

_SORTS: dict[str, Callable[[Entry], Any]] = {
    "updated": lambda entry: entry["updatedAt"] or "",
    "created": lambda entry: entry["createdAt"] or "",
    "name": lambda entry: (entry["project"], entry["name"]),
    "points": lambda entry: entry["counts"]["points"],
}


@click.command()
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
@click.option("--sort", type=click.Choice(list(_SORTS)), default="updated", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N.")
@click.option("--wide", is_flag=True, help="All columns, also where the terminal is too narrow for them.")
@options.path_option
@options.json_option
@click.pass_context
def command(
    ctx: click.Context,
    project: str | None,
    status: str | None,
    tags: tuple[str, ...],
    folder: str | None,
    since: int | None,
    sort: str,
    limit: int | None,
    wide: bool,
    path: Path | None,
    as_json: bool,
) -> None:
    """List experiments, the latest first (--sort name: by name)."""

    def wanted(entry: Entry) -> bool:
        label = (entry["folder"] or "").strip("/")
        return (
            (status is None or entry["status"] == status)
            and set(tags) <= set(entry["tags"] or ())
            and (folder is None or label == folder.strip("/") or label.startswith(folder.strip("/") + "/"))
            and (since is None or (entry["updatedAt"] or "") >= utc_text(since))
        )

    found = read.find(path, project)
    entries, code = _entries(found)
    entries = sorted(filter(wanted, entries), key=_SORTS[sort], reverse=sort != "name")[:limit]
    if as_json:
        console.print_json(entries)
    elif entries:
        _print_table(entries, wide)
    else:
        filters = {"--project": project, "--status": status, "--tag": tags, "--folder": folder, "--since": since}
        console.print_note(_nothing(path, [name for name, value in filters.items() if value], code))
    ctx.exit(code)


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


def _entries(found: list[Located]) -> tuple[list[Entry], int]:
    """Return a row for each experiment that can be read, and the exit code. Errors of the others are printed."""
    entries, code = [], OK
    for located in found:
        try:
            entries.append(summary(located, _record(located)))
        except (MLDashError, OSError) as error:
            console.print_error(f"{located.project}/{located.name}: {error}")
            damaged = isinstance(error, JournalError) and not isinstance(error, NewerFormat)
            code = max(code, DAMAGE if damaged else FAILURE)
    return entries, code


def _record(located: Located) -> Mapping[str, Any]:
    """Return the record. If a killed process left an outdated folder, update it: then the next list is fast again."""
    record = read.record(located)
    if record["status"] == "interrupted" and _status_in_folder(located) != "interrupted":
        bring_up_to_date(located)
    return record


def _status_in_folder(located: Located) -> object:
    try:
        return json.loads((located.folder / "experiment.json").read_bytes())["status"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _print_table(entries: list[Entry], wide: bool) -> None:
    console.print_table(
        ["experiment", "status", ">points", ">logs", ">files", "updated (UTC)", "tags"],
        [
            (
                console.safe(f"{entry['project']}/{entry['name']}"),
                status_cell(entry["status"]),
                f"{entry['counts']['points']:,}",
                f"{entry['counts']['logs']:,}",
                f"{entry['counts']['files']:,}",
                console.time_text(entry["updatedAt"]),
                console.safe(", ".join(map(str, entry["tags"] or ()))),
            )
            for entry in entries
        ],
        drop=() if wide else _DROPPED,
    )
