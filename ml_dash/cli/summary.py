"""A summary of an experiment in a few values, for lists, comparisons and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_dash.cli import console
from ml_dash.reading.located import Located
from ml_dash.reading.view import View

_SHOWN = (
    "project", "name", "status", "description", "tags", "folder", "createdAt", "updatedAt", "endedAt",
    "counts",
)  # fmt: skip

_STATUS_STYLES = {"running": "cyan", "completed": "green", "failed": "red", "interrupted": "yellow"}


def summary(located: Located, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `experiment.json` that a list shows, with the path of the experiment's folder."""
    facts = {key: record.get(key) for key in _SHOWN}
    return {**facts, "project": located.project, "name": located.name, "path": str(located.folder)}


def final_values(view: View) -> dict[str, Any]:
    """Return series → its last value, over all metrics."""
    return {
        series: values["last"]
        for metric in view.metrics()
        for series, values in view.metric_stats(metric["name"])["series"].items()
    }


def status_cell(status: object) -> console.Cell:
    """Return a status in its colour."""
    text = str(status)
    return console.Styled(console.safe(text), _STATUS_STYLES.get(text, "red"))
