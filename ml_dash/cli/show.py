"""`ml-dash show`: one experiment at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ml_dash.cli import console, options
from ml_dash.cli.metrics import SERIES_DROPPED, series_table
from ml_dash.cli.summary import status_cell
from ml_dash.cli.views import ExperimentView, local_view

MAX_ROWS = 20


@click.command(cls=options.RemoteCommand)
@options.experiment_argument
@options.as_of_option
@options.remote_option
@options.path_option
@options.json_option
def command(
    experiment: str | None, as_of: str | None, remote: str | None, path: Path | None, as_json: bool
) -> None:
    """Show one experiment: what it is, how it ended, what it holds."""
    view: ExperimentView
    if remote is None:
        located, view = local_view(experiment, path, as_of)
        record = {**view.record(), "path": str(located.folder), "journalPath": str(located.journal)}
    else:
        from ml_dash.cli.server_view import server_view

        view = server_view(experiment, path, remote, as_of)
        record = {**view.record(), "remote": view.client.base_url}
    metrics = [view.metric_stats(entry["name"]) for entry in view.metrics()]
    if as_json:
        parts = {"parameters": view.parameters(), "metrics": metrics, "files": view.files()}
        console.print_json({"experiment": record, **parts})
        return
    _print_facts(record, looking_back=as_of is not None)
    parameters = [(console.safe(key), console.value_text(value)) for key, value in view.parameters().items()]
    _print_section(["parameter", "value"], parameters, "ml-dash params")
    _print_section(*series_table(metrics), "ml-dash metrics", drop=SERIES_DROPPED)
    files = [
        (console.safe((file["prefix"] + file["filename"]).lstrip("/")), console.size_text(file["sizeBytes"]))
        for file in view.files()
    ]
    _print_section(["file", ">size"], files, "ml-dash files")


def _print_facts(record: dict[str, Any], *, looking_back: bool) -> None:
    counts = record["counts"]
    status = status_cell(record["status"])
    shown = f"{record['project']}/{record['title'] or record['name']}"
    console.print_text(console.styled(console.safe(shown), "bold"))
    reason = record.get("reason")
    facts = {
        "as of": f"event {counts['events']:,}" if looking_back else None,
        "status": status if isinstance(status, str) else console.styled(status.text, status.style),
        "named": ", ".join(record["names"]) if record["names"] else None,
        "archived": "lists leave it out" if record["archived"] else None,
        # Of an exception, the error says more.
        "reason": reason["text"] if reason and not record.get("error") else None,
        "error": _error(record.get("error")),
        "description": record.get("description"),
        "tags": ", ".join(map(str, record.get("tags") or ())),
        "folder": record.get("folder"),
        "notes": record.get("notes"),
        "metadata": console.json_text(record["metadata"]) if record.get("metadata") else None,
        "protected": "parameters and files are final" if record.get("writeProtected") else None,
        "written": f"{console.time_text(record['createdAt'])} to {console.time_text(record['updatedAt'])} UTC",
        "holds": ", ".join(
            console.plural(counts[part], noun)
            for part, noun in (("points", "point"), ("logs", "log entry"), ("files", "file"))
        ),
        "lost": console.plural(counts["lost"], "event") if counts["lost"] else None,
        "path": record.get("path"),
        "remote": record.get("remote"),
    }
    for name, fact in facts.items():
        if fact:
            shown = fact if name == "status" else console.safe_lines(str(fact), " " * 15)
            console.print_text(f"  {name:<12} {shown}")
    headers = ["writer", "host", ">pid", "started (UTC)", "ended", "commit"]
    # The newest last; those that only changed a title or the like were no part of the run.
    rows = [_writer(writer) for writer in record["writers"] if not writer.get("relabels")]
    left_out = record["writersTotal"] - len(record["writers"]) + max(0, len(rows) - MAX_ROWS)
    _print_section(headers, rows[-MAX_ROWS:], drop=("commit", "started (UTC)", ">pid", "host"))
    if left_out:
        console.print_note(f"  {left_out:,} earlier: ml-dash history")


def _error(error: dict[str, Any] | None) -> str | None:
    return f"{error.get('type')}: {error.get('message')}" if error else None


def _writer(writer: dict[str, Any]) -> list[console.Cell]:
    ended = writer.get("ended")
    return [
        str(writer["id"])[:8],
        console.safe(str(writer.get("host", "-"))),
        console.safe(str(writer.get("pid", "-"))),
        console.time_text(writer.get("startedAt")),
        status_cell(ended) if ended else console.Styled("writing", "cyan"),
        console.safe(str(writer.get("gitCommit", "-"))[:12]),
    ]


def _print_section(headers: list[str], rows: list[Any], more: str = "", *, drop: Sequence[str] = ()) -> None:
    if rows:
        console.print_text()
        console.print_table(headers, rows[:MAX_ROWS], drop=drop)
    if len(rows) > MAX_ROWS:
        console.print_note(f"  {len(rows) - MAX_ROWS:,} more{': ' + more if more else ''}")
