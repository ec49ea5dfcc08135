"""`ml-dash ls`: the list of experiments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ml_dash.cli import console, options
from ml_dash.cli.chosen import Asked, listed
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
    from ml_dash.reading.where import Sort, Where

Entry = dict[str, Any]

# Columns that are left out in a narrow terminal, in this order.
_DROPPED = ("tags", ">files", ">logs", "updated (UTC)", ">points", "status")


@click.command(cls=options.RemoteCommand)
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
@options.remote_option
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
    remote: str | None,
    path: Path | None,
    as_json: bool,
) -> None:
    """List experiments, the latest first."""
    # What the list is sorted by is worth a column, unless every list shows it.
    if sort is not None and "." in sort.field and sort.field not in columns:
        columns = (*columns, sort.field)
    given = {
        "--where": where, "--project": project, "--status": status, "--tag": tags, "--folder": folder,
        "--since": since,
    }  # fmt: skip
    filters = [name for name, value in given.items() if value]
    asked = Asked(_joined(where, project, status, tags, folder, since), sort, columns, limit)
    if remote is not None:
        found = _of_server(remote, asked)
        entries, code = [_entry_there(one) for one in found], OK
        lines = [_line_there(one) for one in found]
        nothing = "no experiments there" + (f" with this {' and '.join(filters)}" if filters else "")
    else:
        troubles = _Troubles()
        chosen = _here(path, project, asked, troubles)
        entries = [entry for one in chosen if (entry := troubles.entry(one))] if as_json else []
        lines, code = [_line(one) for one in chosen], troubles.code
        nothing = _nothing(path, filters, code) if not chosen else ""
    if as_json:
        console.print_json(entries)
    elif lines and columns:
        _print_columns(lines, columns)
    elif lines:
        _print_table(lines, wide)
    else:
        console.print_note(nothing)
    ctx.exit(code)


def list_found() -> bool:
    """List experiments as `ml-dash ls` without options does; False if there are none."""
    found = read.find(None)
    if found:
        click.get_current_context().invoke(command)
    return bool(found)


def _joined(
    where: Where | None, project: str | None, status: str | None, tags: Sequence[str], folder: str | None,
    since: int | None,
) -> Where | None:  # fmt: skip
    """Return the query that means what all options together mean."""
    if where is None and not (project or status or tags or folder or since):
        return None
    from ml_dash.reading.where import parse, value_text

    parts = [] if where is None else [f"({where})"]
    if project is not None:
        parts.append(f"project = {value_text(project)}")
    if status is not None:
        parts.append(f"status = {status}")
    parts += [f"tag:{value_text(tag)}" for tag in tags]
    if folder is not None:
        below = f"^/*{re.escape(folder.strip('/'))}/*($|/)"
        parts.append(f"folder ~ {value_text(below)}")
    if since is not None:
        parts.append(f"updated >= {utc_text(since)}")
    return parse(" and ".join(parts))


@dataclass(frozen=True, slots=True)
class _Line:
    """A row of the table; `updated` is an ISO text."""

    label: str
    status: str
    points: int
    logs: int
    files: int
    updated: str | None
    tags: Sequence[str]
    values: Mapping[str, Any]


# -- of this machine --------------------------------------------------------------------------------------------------


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
        """Return an experiment for `--json`; None if it cannot be read."""
        try:
            record, (project, name, folder, _) = read.record(one.located), one.located
            return {**summary(project, name, folder, record), "values": one.values}
        except (MLDashError, OSError) as error:
            self.note(one.located, error)
            return None


def _here(path: Path | None, project: str | None, asked: Asked, troubles: _Troubles) -> list[Chosen]:
    """Return what matches here. Folders that a killed process left behind are brought up to date."""
    from ml_dash.reading.chosen import choose_below

    chosen = choose_below(
        path, project, asked.where, asked.sort, asked.columns, asked.limit, failed=troubles.note
    )  # fmt: skip
    for one in chosen:
        # Then whoever reads the folder sees that it is interrupted.
        if one.facts.status == "interrupted" and _status_in_folder(one.located) != "interrupted":
            bring_up_to_date(one.located)
    return chosen


def _status_in_folder(located: Located) -> object:
    try:
        return json.loads((located.folder / "experiment.json").read_bytes())["status"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _line(one: Chosen) -> _Line:
    facts = one.facts
    return _Line(
        label=f"{one.located.project}/{facts.title or one.located.name}",
        status=facts.status,
        points=facts.points,
        logs=facts.logs,
        files=facts.files,
        updated=utc_text(facts.updated_ns) if facts.updated_ns else None,
        tags=facts.tags,
        values=one.values,
    )


def _nothing(path: Path | None, filters: list[str], code: int) -> str:
    """Return what to print for an empty list: where was looked, and how many the filters left out."""
    if code != OK:
        return "no experiment that can be read"
    where, there = read.places(path), len(read.find(path))
    if not there:
        return f"no experiments in {where}; name another folder with --path"
    if not filters:
        archived = console.plural(there, "experiment")
        return f"only archived experiments in {where}: {archived}; to list them: --where 'archived = true'"
    without = "it" if len(filters) == 1 else "them"
    return f"no experiments with this {' and '.join(filters)} in {where}; {there:,} without {without}"


# -- of a server ------------------------------------------------------------------------------------------------------


def _of_server(url: str, asked: Asked) -> list[Entry]:
    """Return what matches on a server. Raises RemoteError."""
    from ml_dash.cli.server_view import client_of

    with client_of(url) as client:
        return list(listed(client, asked))


def _entry_there(row: Mapping[str, Any]) -> Entry:
    return {**summary(row["project"], row["name"], None, row), "values": row["values"]}


def _line_there(row: Mapping[str, Any]) -> _Line:
    counts = row["counts"]
    return _Line(
        label=f"{row['project']}/{row.get('title') or row['name']}",
        status=row["status"],
        points=counts.get("points", 0),
        logs=counts.get("logs", 0),
        files=counts.get("files", 0),
        updated=row["updatedAt"],
        tags=row["tags"] or (),
        values=row["values"],
    )


# -- tables -----------------------------------------------------------------------------------------------------------


def _print_table(lines: list[_Line], wide: bool) -> None:
    console.print_table(
        ["experiment", "status", ">points", ">logs", ">files", "updated (UTC)", "tags"],
        [
            (
                console.safe(line.label),
                status_cell(line.status),
                f"{line.points:,}",
                f"{line.logs:,}",
                f"{line.files:,}",
                console.time_text(line.updated),
                console.safe(", ".join(map(str, line.tags))),
            )
            for line in lines
        ],
        drop=() if wide else _DROPPED,
    )


def _print_columns(lines: list[_Line], columns: tuple[str, ...]) -> None:
    """Print the names, and the fields that were asked for; a narrow terminal breaks no line."""
    headers, cells = columns_table(columns, [line.values for line in lines])
    rows = [[console.safe(line.label), *row] for line, row in zip(lines, cells, strict=True)]
    console.print_table(["experiment", *headers], rows)
