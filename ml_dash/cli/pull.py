"""`ml-dash pull`: brings an experiment from a server to this machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from ml_dash.cli import console, options
from ml_dash.core.names import check_name
from ml_dash.disk.settings import resolve
from ml_dash.errors import InvalidValue
from ml_dash.journal.segment import JOURNAL
from ml_dash.reading.located import Located, at
from ml_dash.sync import registrations


@click.command()
@click.argument("experiment", metavar="PROJECT/NAME")
@click.option("--remote", metavar="URL", help="The server. Default: ML_DASH_REMOTE.")
@click.option("--user", metavar="NAME", help="Your user name there. Default: ML_DASH_USER_NAME, else the stored login.")
@click.option("--path", type=click.Path(path_type=Path), help="The root to bring it to. Default: as for recording.")
@click.option("--state-only", is_flag=True, help="Only what is needed to go on: no points, logs and files.")
@click.option("--files", is_flag=True, help="With --state-only: the contents of files, too.")
@options.json_option
def command(
    experiment: str,
    remote: str | None,
    user: str | None,
    path: Path | None,
    state_only: bool,
    files: bool,
    as_json: bool,
) -> None:
    """Bring an experiment, or what is missing of it here, from a server to this machine.

    It can be continued here: numbers, parameters and files go on where they stopped.
    """
    from ml_dash.sync import remote as remotes
    from ml_dash.sync.identity import connect
    from ml_dash.sync.pull.pull import pull

    project, slash, name = experiment.partition("/")
    if not slash:
        raise InvalidValue(f"{experiment!r} is not of the form project/name", hint="write both")
    settings = resolve(remote=remote, user_name=user, local_path=str(path) if path is not None else None)
    if settings.remote is None:
        raise click.UsageError("No server is named: give --remote URL, or set ML_DASH_REMOTE.")
    folder = settings.root / check_name("project", project) / check_name("name", name)
    located = at(folder) or Located(project, name, folder, settings.store / project / name / JOURNAL)
    registration = registrations.registration_for(located.journal, settings)
    with contextlib.closing(connect(registration)) as link, console.progress(f"bringing {experiment}") as show_progress:
        report = pull(
            remotes.ServerSource(link), located, state_only=state_only, files=(True if files else None),
            progress=show_progress,
        )  # fmt: skip
    # What is recorded here from now on goes to that server too.
    registrations.register_again(report.located.journal, settings)
    if as_json:
        console.print_json({
            "project": project, "name": name, "path": str(report.located.folder), "remote": settings.remote,
            "events": report.events, "segments": report.segments, "files": report.blobs, "bytes": report.bytes,
            "stateOnly": report.state_only, "new": report.new, "missing": list(report.missing),
            "conflicts": report.conflicts,
        })  # fmt: skip
        return
    what = "the state" if report.state_only else f"{console.plural(report.segments, 'segment')}"
    console.print_text(
        f"{console.safe(experiment)}: {report.events:,} events, {what} and {console.plural(report.blobs, 'file')}, "
        f"{console.size_text(report.bytes)}, in {console.safe(str(report.located.folder))}"
    )
    for missing in report.missing:
        console.print_note(f"the server does not have the file {console.safe(missing)} yet")
    for segment, why in report.conflicts.items():
        console.print_note(f"{console.safe(segment)} was left as it is here: {console.safe(why)}")
