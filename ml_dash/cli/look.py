"""One experiment, found and brought up to date: how every reading command starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_dash.core.values import texts_like_numbers
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
