"""The change of a title, notes or the like by a command."""

from __future__ import annotations

from pathlib import Path

from ml_dash.cli import console
from ml_dash.reading import read


def change(
    experiment: str,
    path: Path | None,
    as_json: bool,
    done: str,
    *,
    title: str | None = None,
    notes: str | None = None,
    archived: bool | None = None,
) -> None:
    """Record a change, and print what it has `done`. Raises NotFound, InvalidName, StorageError."""
    from ml_dash.recording.lifecycle import checked_labels
    from ml_dash.recording.relabel import relabel

    located = read.locate(experiment, path)
    relabel(located, checked_labels(title, notes, archived))
    if as_json:
        record = read.record(located)
        shown = {key: record[key] for key in ("id", "project", "name", "title", "notes", "archived")}
        console.print_json(shown)
        return
    console.print_text(f"{console.safe(f'{located.project}/{located.name}')} {console.safe(done)}")
