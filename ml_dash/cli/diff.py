"""`ml-dash diff`: the differences between two experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ml_dash.cli import console, options
from ml_dash.cli.summary import final_values
from ml_dash.reading import read

Pair = dict[str, Any]


@click.command()
@click.argument("a", metavar="A", shell_complete=options.complete_experiment)
@click.argument("b", metavar="B", shell_complete=options.complete_experiment)
@click.option("--all", "everything", is_flag=True, help="Also what is equal.")
@options.path_option
@options.json_option
def command(a: str, b: str, everything: bool, path: Path | None, as_json: bool) -> None:
    """Compare parameters and final values of two experiments."""
    left, right = read.locate(a, path), read.locate(b, path)
    views = read.view(left), read.view(right)
    parameters = _pairs(views[0].parameters(), views[1].parameters(), everything)
    values = _pairs(final_values(views[0]), final_values(views[1]), everything)
    if as_json:
        who = {key: {"project": e.project, "name": e.name} for key, e in (("a", left), ("b", right))}
        console.print_json({**who, "parameters": parameters, "metrics": values})
        return
    names = [console.safe(f"{e.project}/{e.name}") for e in (left, right)]
    if parameters:
        console.print_table(["parameter", *names], [_row(key, pair) for key, pair in parameters.items()])
    if parameters and values:
        console.print_text()
    if values:
        headers = ["final value", *(f">{name}" for name in names), ">difference"]
        console.print_table(headers, [[*_row(key, pair), _difference(pair)] for key, pair in values.items()])
    if not parameters and not values:
        console.print_note("no difference")


def _pairs(left: dict[str, Any], right: dict[str, Any], everything: bool) -> dict[str, Pair]:
    """Return key → {"a": value, "b": value}; a side without the key has no entry. Equal ones only with `everything`."""
    pairs = {}
    for key in {**left, **right}:
        pair = {letter: side[key] for letter, side in (("a", left), ("b", right)) if key in side}
        if everything or len(pair) == 1 or not _same(pair["a"], pair["b"]):
            pairs[key] = pair
    return pairs


def _same(a: object, b: object) -> bool:
    """True if two values are equal in type and value; NaN equals NaN."""
    return type(a) is type(b) and (a == b or (a != a and b != b))


def _row(key: str, pair: Pair) -> list[console.Cell]:
    absent = console.Styled("-", "dim")
    return [
        console.safe(key),
        *(console.value_text(pair[letter]) if letter in pair else absent for letter in "ab"),
    ]


def _difference(pair: Pair) -> str:
    if len(pair) < 2:
        return ""
    return console.value_text(float(pair["b"]) - float(pair["a"])) if pair["a"] != pair["b"] else "0"
