"""`ml-dash pull`: brings an experiment, or all of a project, from a server to this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ml_dash.cli import console, options
from ml_dash.cli.codes import FAILURE
from ml_dash.core.names import check_name
from ml_dash.disk.settings import Settings, resolve
from ml_dash.errors import MLDashError, NotFound
from ml_dash.journal.segment import JOURNAL
from ml_dash.reading.located import Located, at
from ml_dash.sync import registrations

if TYPE_CHECKING:
    from ml_dash.sync.pull.download import PullReport

_PAGE = 1000


@click.command()
@click.argument("what", metavar="PROJECT[/NAME]")
@click.option("--remote", metavar="URL", help="The server. Default: ML_DASH_REMOTE, else the only one with a login.")
@click.option("--user", metavar="NAME", help="Your user name there. Default: ML_DASH_USER_NAME, else the stored login.")
@click.option("--path", type=click.Path(path_type=Path), help="The root to bring it to. Default: as for recording.")
@click.option("--state-only", is_flag=True, help="Only what is needed to go on: no points, logs and files.")
@click.option("--files", is_flag=True, help="With --state-only: the contents of files, too.")
@options.json_option
@click.pass_context
def command(
    ctx: click.Context,
    what: str,
    remote: str | None,
    user: str | None,
    path: Path | None,
    state_only: bool,
    files: bool,
    as_json: bool,
) -> None:
    """Bring an experiment, or what is missing of it here, from a server; with PROJECT alone, all experiments of it.

    They can be continued here: numbers, parameters and files go on where they stopped.
    """
    from ml_dash.cli.server_view import default_url

    project, slash, name = what.partition("/")
    settings = resolve(remote=remote, user_name=user, local_path=str(path) if path is not None else None)
    if settings.remote is None:
        settings = settings._replace(remote=default_url())
    if settings.remote is None:
        raise click.UsageError("No server is named: give --remote URL, or set ML_DASH_REMOTE.")
    if slash:
        found = _pull(settings, project, name, state_only=state_only, files=files)
        if as_json:
            console.print_json(_as_json(found, project, name, settings.remote))
        else:
            _print(found, what)
        return
    brought, code = [], 0
    for one in _names(settings, check_name("project", project)):
        try:
            found = _pull(settings, project, one, state_only=state_only, files=files)
        except (MLDashError, OSError) as error:
            # The others are brought all the same.
            console.print_error(f"{project}/{one}: {error}")
            code = FAILURE
            continue
        brought.append(_as_json(found, project, one, settings.remote))
        if not as_json:
            _print(found, f"{project}/{one}")
    if as_json:
        console.print_json(brought)
    ctx.exit(code)


def _names(settings: Settings, project: str) -> Iterator[str]:
    """Yield the names of the experiments that a server has of a project. Raises NotFound if there are none."""
    from ml_dash.sync.identity import connect

    registration = registrations.registration_for(settings.store / project / JOURNAL, settings)
    after: str | None = None
    count = 0
    with contextlib.closing(connect(registration)) as link:
        while True:
            params = {"project": project, "sort": "name", "limit": str(_PAGE), **({"after": after} if after else {})}
            page = link.ask("GET", "/experiments", ("experiments", "next"), params=params)
            for one in page["experiments"]:
                count += 1
                yield check_name("name", one["name"])
            after = page["next"]
            if after is None:
                break
    if not count:
        raise NotFound(f"{settings.remote} has no experiments of project {project!r}", hint="write project/name")


def _pull(settings: Settings, project: str, name: str, *, state_only: bool, files: bool) -> PullReport:
    """Bring one experiment."""
    from ml_dash.sync import remote as remotes
    from ml_dash.sync.identity import connect
    from ml_dash.sync.pull.pull import pull

    folder = settings.root / check_name("project", project) / check_name("name", name)
    located = at(folder) or Located(project, name, folder, settings.store / project / name / JOURNAL)
    registration = registrations.registration_for(located.journal, settings)
    title = f"bringing {project}/{name}"
    with contextlib.closing(connect(registration)) as link, console.progress(title) as show_progress:
        report = pull(
            remotes.ServerSource(link), located, state_only=state_only, files=(True if files else None),
            progress=show_progress,
        )  # fmt: skip
    # What is recorded here from now on goes to that server too.
    registrations.register_again(report.located.journal, settings)
    return report


def _as_json(report: PullReport, project: str, name: str, remote: str) -> dict[str, Any]:
    return {
        "project": project, "name": name, "path": str(report.located.folder), "remote": remote,
        "events": report.events, "segments": report.segments, "files": report.blobs, "bytes": report.bytes,
        "stateOnly": report.state_only, "new": report.new, "missing": list(report.missing),
        "conflicts": report.conflicts,
    }  # fmt: skip


def _print(report: PullReport, experiment: str) -> None:
    what = "the state" if report.state_only else f"{console.plural(report.segments, 'segment')}"
    console.print_text(
        f"{console.safe(experiment)}: {report.events:,} events, {what} and {console.plural(report.blobs, 'file')}, "
        f"{console.size_text(report.bytes)}, in {console.safe(str(report.located.folder))}"
    )
    for missing in report.missing:
        console.print_note(f"the server does not have the file {console.safe(missing)} yet")
    for segment, why in report.conflicts.items():
        console.print_note(f"{console.safe(segment)} was left as it is here: {console.safe(why)}")
