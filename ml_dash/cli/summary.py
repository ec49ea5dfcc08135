"""A summary of an experiment in a few values, for lists, comparisons and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_dash.cli import console
from ml_dash.cli.views import ExperimentView
from ml_dash.reading.facts import kind_of

_SHOWN = (
    "project", "name", "status", "description", "tags", "folder", "createdAt", "updatedAt", "endedAt",
    "counts",
)  # fmt: skip

_STATUS_STYLES = {"running": "cyan", "completed": "green", "failed": "red", "interrupted": "yellow"}


def summary(project: str, name: str, path: Path | None, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `experiment.json` that a list shows, with the path of the experiment's folder if it is here.

    `record` may also be an entry of a server's list.
    """
    facts = {key: record.get(key) for key in _SHOWN}
    return {**facts, "project": project, "name": name, "path": None if path is None else str(path)}


def final_values(view: ExperimentView) -> dict[str, Any]:
    """Return series → its last value, over all metrics."""
    found: dict[str, Any] = {}
    for metric in view.metrics():
        # A server lists them with their statistics.
        listed: Any = metric.get("series")
        all_series = view.metric_stats(metric["name"])["series"] if listed is None else listed
        found |= {series: values["last"] for series, values in all_series.items()}
    return found


def columns_table(
    fields: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[list[console.Cell]]]:
    """Return headers and cells of fields, for `print_table`: numbers to the right; `-` where a row has no value.

    Values are those of `facts.shown_value`.
    """
    headers = [f"{'>' if _all_numbers(field, rows) else ''}{console.safe(field)}" for field in fields]
    absent = console.Styled("-", "dim")
    return headers, [[_cell(field, row[field]) if field in row else absent for field in fields] for row in rows]


def _all_numbers(field: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    values = [row[field] for row in rows if field in row]
    return kind_of(field) in ("number", "size", "duration") or (
        bool(values) and all(type(value) in (int, float) for value in values)
    )


def _cell(field: str, value: Any) -> console.Cell:
    kind = kind_of(field)
    if kind == "status":
        return status_cell(value)
    if kind == "time":
        return console.time_text(value)
    if kind == "size":
        return console.size_text(value)
    if kind == "duration":
        return console.duration_text(value)
    if kind == "tags":
        return console.safe(", ".join(value))
    return console.value_text(value)


def status_cell(status: object) -> console.Cell:
    """Return a status in its colour."""
    text = str(status)
    return console.Styled(console.safe(text), _STATUS_STYLES.get(text, "red"))
