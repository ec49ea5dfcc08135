"""`ml-dash server check`, `sweep`, `scrub`, `migrate`: work on a server's stores, mostly beside the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ml_dash.cli import console, options
from ml_dash.cli.codes import DAMAGE, FAILURE

if TYPE_CHECKING:
    from ml_dash.server.settings import ServerSettings
    from ml_dash.server.stores import Stores

_STATES = {"ok": "green", "warning": "yellow", "wrong": "red", "skipped": "dim"}


def data_option(decorated: Any) -> Any:
    """Add `--data`: the server's data folder."""
    return click.option(
        "--data", type=click.Path(path_type=Path), help="The server's data folder. Default: the one of a server here."
    )(decorated)


def with_data(settings: ServerSettings, data: Path | None) -> ServerSettings:
    """Return the settings, with the data folder that was given to a command."""
    from dataclasses import replace

    from ml_dash.server.settings import check_data

    return replace(settings, data=check_data(data or settings.data))


def existing(settings: ServerSettings, data: Path | None) -> ServerSettings:
    """Return the settings of a server that has data; raise NotFound otherwise: looking must not create a database."""
    from ml_dash.errors import NotFound
    from ml_dash.server.stores.wiring import DATABASE

    settings = with_data(settings, data)
    if settings.mongodb_uri is None and not (settings.data / DATABASE).is_file():
        raise NotFound(f"there is no server's data in {settings.data}", hint="name its folder with --data")
    return settings


@contextmanager
def opened(settings: ServerSettings, data: Path | None) -> Iterator[Stores]:
    """Open the stores of a server, which may be running."""
    from ml_dash.server.stores.wiring import open_stores

    stores = open_stores(existing(settings, data))
    try:
        yield stores
    finally:
        stores.close()


@click.command()
@data_option
@options.json_option
@click.pass_context
def check(ctx: click.Context, data: Path | None, as_json: bool) -> None:
    """Try everything that a server here needs, and say what is wrong and what to do about it.

    Settings, tokens, disk, database, clocks and objects; beside a running server too. What it writes it removes again.
    """
    from ml_dash.server.operate.check import check as found_items

    items = []
    for item in found_items(with_data(ctx.obj, data)):
        items.append(item)
        if not as_json:
            state = console.styled(f"{item.state:8}", _STATES[item.state])
            console.print_text(f"{state} {item.name}: {console.safe(item.text)}")
            if item.do and item.state in ("warning", "wrong"):
                console.print_text(f"         to do: {console.safe(item.do)}")
    good = all(item.state != "wrong" for item in items)
    if as_json:
        console.print_json({"ok": good, "items": [asdict(item) for item in items]})
    if not good:
        ctx.exit(FAILURE)


@click.command()
@click.option(
    "--older", default="1d", show_default=True, metavar="TIME",
    help="How old an object must be that nobody names; an hour at least.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be freed, and change nothing.")
@data_option
@options.json_option
@click.pass_obj
def sweep(above: ServerSettings, older: str, dry_run: bool, data: Path | None, as_json: bool) -> None:
    """Free what crashes have left and nobody names; find contents that are lost.

    Runs beside servers, as often as you like. What is lost is listed as missing from then on, and uploaders send it
    again.
    """
    from ml_dash.errors import InvalidValue
    from ml_dash.server.operate.sweep import LEAST_OLDER_S, Sweep
    from ml_dash.server.settings import duration_s

    older_s = duration_s(older, "--older")
    if older_s < LEAST_OLDER_S:
        raise InvalidValue(f"--older is {older}", hint="give 1h or more: a younger object may be about to be named")
    with opened(above, data) as stores:
        found = Sweep(stores, older_s=older_s, dry_run=dry_run).run()
    if as_json:
        console.print_json({"dryRun": dry_run, **found.as_json()})
        return
    freed = "would free" if dry_run else "freed"
    console.print_text(
        f"{freed} {console.plural(found.objects, 'object')} ({console.size_text(found.object_bytes)}), "
        f"{console.plural(found.pages, 'page')}, {console.plural(found.rows, 'row')}, "
        f"{console.plural(found.uploads, 'abandoned upload')}"
    )
    if found.left:
        console.print_note(f"{console.plural(found.left, 'experiment')} could not be read now and were left alone")
    if found.foreign:
        console.print_note(f"{console.plural(found.foreign, 'object')} were not made by ml-dash and were left alone")
    for one in found.lost:
        what = "its uploader sends it again" if one.again else "restore it from a backup of the objects"
        console.print_error(console.safe(f"lost: {one.key} of {one.namespace}; {what}"))
    if found.lost_count > len(found.lost):
        console.print_error(f"and {found.lost_count - len(found.lost)} more")


@click.command()
@click.option(
    "--repair", is_flag=True,
    help="Drop contents of files that are wrong, so that they are sent again; fold anew what does not hold.",
)  # fmt: skip
@click.option("--rate", metavar="SIZE", help="Read at most this much in a second: 50MB. Default: as fast as it goes.")
@data_option
@options.json_option
@click.pass_context
def scrub(ctx: click.Context, repair: bool, rate: str | None, data: Path | None, as_json: bool) -> None:
    """Read all that is stored, and compare it with its checksums.

    Runs beside servers. Exit code 4 if something is wrong and was not repaired.
    """
    from ml_dash.server.operate.scrub import Scrub
    from ml_dash.server.settings import size_bytes

    rate_bytes = None if rate is None else size_bytes(rate, "--rate")
    faults = []
    with opened(ctx.obj, data) as stores:
        work = Scrub(stores, repair=repair, rate_bytes=rate_bytes)
        for fault in work.faults():
            faults.append(fault)
            if not as_json:
                state = "repaired" if fault.repaired else "wrong"
                place = f"{fault.kind} of {fault.namespace} {fault.experiment}".rstrip()
                console.print_text(console.safe(f"{state}: {place}, {fault.where}: {fault.what}"))
    damaged = any(not fault.repaired for fault in faults)
    if as_json:
        facts = {"experiments": work.experiments, "segments": work.segments, "blobs": work.blobs, "left": work.left}
        console.print_json({"ok": not damaged, "bytes": work.read, **facts, "faults": [asdict(one) for one in faults]})
    else:
        verdict = console.styled("DAMAGED", "bold red") if damaged else console.styled("intact", "green")
        console.print_text(
            f"{verdict}: {console.plural(len(faults), 'fault')} in {console.plural(work.experiments, 'experiment')}, "
            f"{console.plural(work.segments, 'segment')}, {console.plural(work.blobs, 'blob')}, "
            f"{console.size_text(work.read)}"
        )
        if work.left:
            console.print_note(f"{console.plural(work.left, 'experiment')} could not be read now and were left out")
    if damaged:
        ctx.exit(DAMAGE)


@click.command()
@click.option(
    "--to-env", "to_env", required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="The environment of the new server: a file of lines NAME=VALUE, such as ML_DASH_DATA, MONGODB_URI, S3_BUCKET.",
)  # fmt: skip
@click.option(
    "--freeze", is_flag=True,
    help="Make the old server read-only first, for good: it answers reads, and writes with 503.",
)  # fmt: skip
@data_option
@options.json_option
@click.pass_context
def migrate(ctx: click.Context, to_env: Path, freeze: bool, data: Path | None, as_json: bool) -> None:
    """Copy everything from this server's stores to those of another one.

    The old server may run meanwhile. Run it as often as you like: what is there already is passed over. The last time
    with --freeze; then start the new server.
    """
    from ml_dash.errors import InvalidValue
    from ml_dash.server.engine.services import READ_ONLY, lock_data, release_data
    from ml_dash.server.operate.migrate import Migration, environment_of
    from ml_dash.server.settings import server_settings
    from ml_dash.server.stores.wiring import make_data, open_stores

    here = existing(ctx.obj, data)
    there = server_settings(env=environment_of(to_env.read_text(encoding="utf-8")))
    if here.data.resolve() == there.data.resolve():
        hint = "give the new server a folder of its own: ML_DASH_DATA=..."
        raise InvalidValue(f"{to_env} names the same data folder, {there.data}", hint=hint)
    if here.mongodb_uri and here.mongodb_uri == there.mongodb_uri:
        raise InvalidValue(f"{to_env} names the same database", hint="migrate into a database of its own")
    if here.s3 and there.s3 and (here.s3.endpoint, here.s3.bucket) == (there.s3.endpoint, there.s3.bucket):
        raise InvalidValue(f"{to_env} names the same bucket", hint="migrate into a bucket of its own")
    make_data(there.data)
    if freeze:
        (here.data / READ_ONLY).touch()
    # A server that runs there would fold what is there only in part.
    lock = lock_data(there.data)
    try:
        target = open_stores(there)
        try:
            with opened(ctx.obj, data) as source:
                work = Migration(
                    source, target, there.data / "incoming", frozen=freeze, progress=_show_experiment(as_json)
                )
                moved = work.run()
        finally:
            target.close()
    finally:
        release_data(lock)
    if as_json:
        console.print_json({"complete": not moved.left, **{_camel(key): value for key, value in asdict(moved).items()}})
    else:
        console.print_text(
            f"copied {console.plural(moved.experiments, 'experiment')} and {console.plural(moved.objects, 'object')} "
            f"({console.size_text(moved.object_bytes)}); {moved.unchanged} were there already"
        )
        if moved.left:
            console.print_error(
                f"{console.plural(moved.left, 'experiment')} could not be copied now: start this version of the old "
                "server once, so that it brings them up to date, and run this again"
            )
        elif freeze:
            console.print_note(f"everything is there; {here.data} stays read-only until {READ_ONLY} in it is removed")
        else:
            console.print_note("what still arrives here is copied by another run; end with --freeze")
    if moved.left:
        ctx.exit(FAILURE)


def _show_experiment(as_json: bool) -> Any:
    def show(namespace: str, experiment: str) -> None:
        if not as_json:
            console.print_note(console.safe(f"{namespace} {experiment}"))

    return show


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)
