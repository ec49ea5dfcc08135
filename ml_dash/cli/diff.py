"""`ml-dash diff`: what differs between experiments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ml_dash.cli import console, options
from ml_dash.cli.chosen import Asked, chosen
from ml_dash.cli.summary import columns_table, final_values
from ml_dash.reading import read

if TYPE_CHECKING:
    from ml_dash.reading.where import Sort, Where

Values = Mapping[str, Any]
Row = dict[str, Any]
"""Letter of an experiment → its value; without a letter where it has none."""


@click.command(cls=options.RemoteCommand)
@options.experiments_argument
@options.where_option
@options.sort_option
@options.columns_option
@click.option("--all", "everything", is_flag=True, help="Also what is equal.")
@options.as_of_option
@options.remote_option
@options.path_option
@options.json_option
@click.pass_context
def command(
    ctx: click.Context,
    experiments: tuple[str, ...],
    where: Where | None,
    sort: Sort | None,
    columns: tuple[str, ...],
    everything: bool,
    as_of: str | None,
    remote: str | None,
    path: Path | None,
    as_json: bool,
) -> None:
    """Compare parameters and final values of experiments, side by side."""
    if where is None and len(experiments) < 2:
        raise click.UsageError("Name two or more experiments, or choose them with --where.", ctx)
    found = chosen(ctx, experiments, Asked(where, sort, columns), path, remote, as_of)
    if not found:
        console.print_note(f"no experiments match in {read.places(path) if remote is None else 'what is there'}")
        return
    letters = [_letters(number) for number in range(len(found))]
    if columns:
        tables = {"fields": _rows(letters, [one.values() for one in found], everything)}
    else:
        views = [one.look() for one in found]
        tables = {
            "parameters": _rows(letters, [view.parameters() for view in views], everything),
            "metrics": _rows(letters, [final_values(view) for view in views], everything),
        }
    if as_json:
        who = {letter: {"project": e.project, "name": e.name} for letter, e in zip(letters, found, strict=True)}
        console.print_json({**who, **tables})
    elif any(tables.values()):
        _print([console.safe(one.label) for one in found], letters, tables)
    else:
        console.print_note("no difference")


def _letters(number: int) -> str:
    """Return the letters of the n-th experiment, as spreadsheets name columns: a, b, ..., z, aa, ab, ..."""
    higher, last = divmod(number, 26)
    return (_letters(higher - 1) if higher else "") + "abcdefghijklmnopqrstuvwxyz"[last]


def _rows(letters: Sequence[str], sides: Sequence[Values], everything: bool) -> dict[str, Row]:
    """Return key → the value of each experiment that has it; those that all have, equal, only with `everything`."""
    rows = {}
    for key in dict.fromkeys(key for side in sides for key in side):
        row = {letter: side[key] for letter, side in zip(letters, sides, strict=True) if key in side}
        if everything or len(row) < len(sides) or not _all_same(row.values()):
            rows[key] = row
    return rows


def _all_same(values: Iterable[Any]) -> bool:
    first, *others = values
    return all(_same(first, other) for other in others)


def _same(a: object, b: object) -> bool:
    """True if two values are equal in type and value; NaN equals NaN."""
    return type(a) is type(b) and (a == b or (a != a and b != b))


# -- tables -----------------------------------------------------------------------------------------------------------


def _print(names: list[str], letters: list[str], tables: Mapping[str, dict[str, Row]]) -> None:
    """Print a table for each kind of rows; two experiments have the difference of their final values beside them."""
    filled = [kind for kind, rows in tables.items() if rows]
    for number, kind in enumerate(filled):
        if number:
            console.print_text()
        rows = tables[kind]
        if kind == "fields":
            _print_fields(names, letters, rows)
        elif kind == "parameters":
            console.print_table(["parameter", *names], [_row(key, letters, row) for key, row in rows.items()])
        else:
            pair = len(letters) == 2
            headers = ["final value", *(f">{name}" for name in names), *([">difference"] if pair else [])]
            shown = [[*_row(key, letters, row), *([_difference(row)] if pair else [])] for key, row in rows.items()]
            console.print_table(headers, shown)


def _print_fields(names: list[str], letters: list[str], rows: dict[str, Row]) -> None:
    """Print fields, one a row: times, sizes and durations as in lists."""
    shown = []
    for field, row in rows.items():
        sides = [{field: row[letter]} if letter in row else {} for letter in letters]
        _, cells = columns_table([field], sides)
        shown.append([console.safe(field), *(cell for [cell] in cells)])
    console.print_table(["field", *names], shown)


def _row(key: str, letters: Sequence[str], row: Row) -> list[console.Cell]:
    absent = console.Styled("-", "dim")
    return [console.safe(key), *(console.value_text(row[one]) if one in row else absent for one in letters)]


def _difference(row: Row) -> str:
    if len(row) < 2:
        return ""
    return console.value_text(float(row["b"]) - float(row["a"])) if row["a"] != row["b"] else "0"
