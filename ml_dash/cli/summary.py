"""An experiment in a few values: what lists, comparisons and tables of experiments show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_dash.cli import console
from ml_dash.reading import read
from ml_dash.reading.view import View

_SHOWN = (
    "project", "name", "status", "description", "tags", "folder", "createdAt", "updatedAt", "endedAt",
    "counts",
)  # fmt: skip

_STATUS_STYLES = {"running": "cyan", "completed": "green", "failed": "red", "interrupted": "yellow"}


def summary(located: read.Located, record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `experiment.json` that a list shows, and where the experiment is."""
    facts = {key: record.get(key) for key in _SHOWN}
    return {**facts, "project": located.project, "name": located.name, "path": str(located.folder)}


def final_values(view: View) -> dict[str, Any]:
    """Series → its last value."""
    return {
        series: values["last"]
        for metric in view.metrics()
        for series, values in view.metric_stats(metric["name"])["series"].items()
    }


def status_cell(status: object) -> console.Cell:
    text = str(status)
    return console.Styled(console.safe(text), _STATUS_STYLES.get(text, "red"))
