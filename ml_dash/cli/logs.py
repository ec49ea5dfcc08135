"""`ml-dash logs`: the log of an experiment, followed as it grows if asked to."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ml_dash.cli import console, options
from ml_dash.cli.views import ExperimentView, choose_view, local_view
from ml_dash.core.limits import MAX_LIMIT
from ml_dash.core.names import LEVELS, level_of
from ml_dash.core.records import LogEntry
from ml_dash.journal.segment import list_segments
from ml_dash.reading import read
from ml_dash.reading.located import Located

POLL_S = 0.5

_STYLES = {"debug": "dim", "info": "green", "warn": "yellow", "error": "red", "fatal": "bold red"}


def _level(_ctx: click.Context, _param: click.Parameter, text: str | None) -> str | None:
    """Return the level as it is recorded; upper case, `warning` and `critical` are accepted too."""
    if text is None or (level := level_of(text)) is not None:
        return text if text is None else level
    raise click.BadParameter(f"{text!r} is not a level; use one of {', '.join(LEVELS)}")


@click.command(cls=options.RemoteCommand)
@options.experiment_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until interrupted.")
@click.option("--level", callback=_level, metavar="LEVEL", help="Only entries of this level.")
@click.option("--last", type=click.IntRange(min=0), metavar="N", help="Only the last N entries.")
@options.as_of_option
@options.remote_option
@options.path_option
@options.json_option
@click.pass_context
def command(
    ctx: click.Context,
    experiment: str | None,
    follow: bool,
    level: str | None,
    last: int | None,
    as_of: str | None,
    remote: str | None,
    path: Path | None,
    as_json: bool,
) -> None:
    """Print log entries, oldest first. With --json one object a line, as in logs.jsonl."""
    if remote is not None or as_of is not None:
        if follow:
            raise click.UsageError("--follow reads what is recorded here, now; ml-dash tail follows a server.", ctx)
        there = choose_view(experiment, path, remote=remote, as_of=as_of)
        _print_entries(there, 0 if last is None else _start_of_last(there, level, last), level, as_json)
        return
    located, view = local_view(experiment, path)
    if last is None:
        view.refuse_released()
    start = 0
    while True:
        known = _sizes(located)
        view = read.view(located)
        if last is not None:
            begun, last = _start_of_last(view, level, last), None
            start = view.state.logs if begun is None else begun
        _print_entries(view, start, level, as_json)
        if not follow:
            return
        start = view.state.logs
        console.flush()
        while _sizes(located) == known:
            if console.reader_is_gone():
                raise BrokenPipeError
            time.sleep(POLL_S)


def _print_entries(view: ExperimentView, start: int | None, level: str | None, as_json: bool) -> None:
    for entry in view.each_log(start, level) if start is not None else ():
        console.print_text(console.json_text(entry) if as_json else line_of(entry))


def _start_of_last(view: ExperimentView, level: str | None, count: int) -> int | None:
    """The number of the first of the last `count` entries of a level (None: of any); None if there are no entries."""
    if count == 0:
        return None
    page = view.logs(-count, min(count, MAX_LIMIT), level)["logs"]
    if not page:
        view.refuse_released()
    return page[0]["sequenceNumber"] if page else None


def _sizes(located: Located) -> dict[str, int]:
    """The size of every segment in bytes. Read it before the view, so that later growth is noticed."""
    return {path.name: path.stat().st_size for _, path in list_segments(located.journal)}


def line_of(entry: LogEntry) -> str:
    """Return a log entry as a line for people, safe to print."""
    level = f"{entry['level']:<5}"
    level = console.styled(console.safe(level), _STYLES.get(entry["level"], "bold"))
    text = f"{console.time_text(entry['timestamp'])} {level} "
    text += console.safe_lines(entry["message"], indent=" " * 4)
    extras = entry["metadata"] or {}
    pairs = "  ".join(f"{console.safe(key)}={console.value_text(value)}" for key, value in extras.items())
    return f"{text}  {console.styled(pairs, 'dim')}" if pairs else text
