"""One experiment, found and brought up to date: how every reading command starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_dash.core.values import texts_like_numbers
from ml_dash.errors import NotFound
from ml_dash.projection.project import Projector
from ml_dash.reading import read


def look(experiment: str | None, path: Path | None) -> tuple[read.Located, read.View]:
    """The experiment that is meant, its folder up to date, and a consistent view of it."""
    located = read.locate(experiment, path)
    bring_up_to_date(located)
    return located, read.view(located)


def bring_up_to_date(located: read.Located) -> None:
    """Projects what is new, and what a killed process left behind, where this user may write.

    Elsewhere, and while another process is at it, the view folds the rest in memory.
    """
    try:
        Projector(located.journal, located.folder).advance()
    except OSError:
        return


def json_point(point: Any) -> dict[str, Any]:
    """A point as in data.jsonl: `text` names the fields whose text would pass for NaN or an infinity."""
    texts = texts_like_numbers(point["data"])
    return {**point, "text": texts} if texts else point


def meant(view: read.View, text: str) -> tuple[str, str | None]:
    """(metric, its series or None for all) that a text means: a metric's name, or else one that a table shows.

    Raises NotFound naming what is near.
    """
    all_stats = {entry["name"]: view.metric_stats(entry["name"]) for entry in view.metrics()}
    if text in all_stats:
        return text, None
    for name, stats in all_stats.items():
        if text in stats["series"]:
            return name, text
    known = ", ".join(list(all_stats)[:10]) + (", ..." if len(all_stats) > 10 else "")
    series = [series for stats in all_stats.values() for series in stats["series"]]
    hint = read.nearest(text, [*all_stats, *series]) + f"it has: {known}" if all_stats else "it has no metrics"
    raise NotFound(f"no metric {text!r}", hint=hint)
