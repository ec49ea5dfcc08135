"""`ml-dash gc`: frees data that a server has proven to hold."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from ml_dash.cli import console, options, sync
from ml_dash.cli.codes import UNSENT
from ml_dash.errors import RemoteError, StillOpen
from ml_dash.reading import read
from ml_dash.reading.located import Located, at
from ml_dash.sync import register


@click.command(name="gc")
@click.argument("experiments", nargs=-1, shell_complete=options.complete_experiment)
@click.option("--synced", is_flag=True, help="Free what every server that it goes to has proven to hold. Required.")
@click.option("--older-than", metavar="TIME", callback=options.moment, help="Only what ended before: 7d, a date.")
@click.option("--keep-projection", is_flag=True, help="Leave the documented folder as it is.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be freed.")
@options.path_option
@options.json_option
@click.pass_context
def command(
    ctx: click.Context,
    experiments: tuple[str, ...],
    synced: bool,
    older_than: int | None,
    keep_projection: bool,
    dry_run: bool,
    path: Path | None,
    as_json: bool,
) -> None:
    """Free what servers have just proven, by digests, to hold. Without EXPERIMENTS: of all that are registered.

    A small snapshot stays, so that the experiment can be listed and continued; ml-dash pull brings the rest back. Exit
    code 3 if nothing of an experiment could be freed because a server did not answer, or it is not registered with one.
    """
    if not synced:
        raise click.UsageError("Give --synced: only what a server has proven to hold is freed.", ctx)
    registered = register.registrations()
    known = register.by_journal(registered)
    if experiments or path is not None:
        chosen = [sync.locate(text, path) for text in experiments] if experiments else read.find(path)
    else:
        chosen = [found for one in registered if (found := at(Path(one.journal))) is not None]
    shown = []
    for located in {one.journal: one for one in chosen}.values():
        mine = register.of_journal(located.journal, known)
        if mine or experiments:
            shown.append(_collect(located, mine, older_than, keep_projection, dry_run))
    if as_json:
        console.print_json(shown)
    else:
        for row in shown:
            console.print_text(_sentence(row, dry_run))
            for name, why in row["kept"].items():
                console.print_text(f"    kept: {console.safe(name)}: {console.safe(why)}")
    if any("error" in row for row in shown):
        ctx.exit(UNSENT)


def _collect(
    located: Located,
    mine: list[register.Registration],
    older_than: int | None,
    keep_projection: bool,
    dry_run: bool,
) -> dict[str, Any]:
    from ml_dash.sync import gc, remote
    from ml_dash.sync.identity import connect

    row: dict[str, Any] = {
        "project": located.project, "name": located.name, "path": str(located.folder),
        "remotes": [one.remote for one in mine], "segments": 0, "files": 0, "bytes": 0, "kept": {},
    }  # fmt: skip
    if not mine:
        return {**row, "error": "it is not registered with any server; nothing was freed. See: ml-dash push"}
    try:
        with contextlib.ExitStack() as stack:
            links = [stack.enter_context(contextlib.closing(connect(one))) for one in mine]
            report = gc.collect(
                located, [remote.ServerHolder(link) for link in links], ended_before_ns=older_than,
                keep_projection=keep_projection, dry_run=dry_run,
            )  # fmt: skip
    except (RemoteError, StillOpen) as error:
        return {**row, "error": str(error)}
    return {**row, "segments": report.segments, "files": report.blobs, "bytes": report.bytes, "kept": report.kept}


def _sentence(row: dict[str, Any], dry_run: bool) -> str:
    name = console.safe(f"{row['project']}/{row['name']}")
    if "error" in row:
        return f"{name}: {console.styled('nothing freed', 'yellow')}: {console.safe(row['error'])}"
    counts = f"{console.plural(row['segments'], 'segment')}, {console.plural(row['files'], 'file')}"
    return f"{name}: {counts}, {console.size_text(row['bytes'])} {'would be freed' if dry_run else 'freed'}"
