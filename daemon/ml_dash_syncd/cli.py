"""The commands of `ml-dash-syncd`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ml_dash.errors import InvalidValue, MLDashError

OK = 0
FAILURE = 1
USAGE = 2
UNSENT = 3
BROKEN_PIPE = 141

_LONG_S = 3600.0
_FOLDER = click.Path(path_type=Path)


class _Default(click.Group):
    """Without a command: run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help", "--version")):
            args.insert(0, "run")
        return super().parse_args(ctx, args)


def _print_version(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"ml-dash-syncd {version('ml-dash')}")
        ctx.exit()


@click.group(cls=_Default, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version)
def commands() -> None:
    """Sends what experiments record to servers. Without a command: run."""


def _where(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what is sent, where to, as whom."""
    for option in (
        click.option("--config", type=_FOLDER, help="The settings file. Default: syncd.toml beside the logins."),
        click.option("--user", help="Who you are there. Default: the settings, else ML_DASH_USER_NAME."),
        click.option("--remote", help="The server for these stores. Default: the settings, else ML_DASH_REMOTE."),
        click.option("--store", "stores", type=_FOLDER, multiple=True, help="A folder of experiments; repeatable."),
    ):
        command = option(command)
    return command


def _settings(stores: Sequence[Path], remote: str | None, user: str | None, config: Path | None, **more: Any) -> Any:
    from . import settings

    return settings.read(stores=stores, remote=remote, user=user, config=config, **more)


@commands.command()
@_where
@click.option("--listen", type=click.IntRange(0, 65_535), help="Answer /-/healthy, /-/ready, /metrics on this port.")
@click.option("--idle-exit", type=click.FloatRange(0), help="End after so many seconds with nothing to send.")
@click.pass_context
def run(
    ctx: click.Context,
    stores: Sequence[Path],
    remote: str | None,
    user: str | None,
    config: Path | None,
    listen: int | None,
    idle_exit: float | None,
) -> None:
    """Send what is there and what comes, until asked to end.

    SIGTERM lets it send for up to ten seconds more, a second one ends it at once; SIGHUP reads settings and logins
    again and ends all pauses.
    """
    from .service import run as serve

    def read() -> Any:
        return _settings(stores, remote, user, config, listen=listen)

    ctx.exit(serve(read, idle_exit_s=idle_exit))


@commands.command()
@_where
@click.option("--registered", "keys", metavar="KEY", multiple=True, help="Only this registration; repeatable.")
@click.pass_context
def once(
    ctx: click.Context,
    stores: Sequence[Path],
    remote: str | None,
    user: str | None,
    config: Path | None,
    keys: Sequence[str],
) -> None:
    """Send what is there until all of it is acknowledged. Exit code 3 if something stays."""
    from .service import once as drain

    left = drain(_settings(stores, remote, user, config), keys)
    _tell(left)
    ctx.exit(UNSENT if left else OK)


@commands.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_where
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def execute(
    ctx: click.Context,
    stores: Sequence[Path],
    remote: str | None,
    user: str | None,
    config: Path | None,
    command: Sequence[str],
) -> None:
    """Run COMMAND, send while it runs and after; ends with its exit code."""
    from .executing import execute as run_job

    code, left = run_job(command, _settings(stores, remote, user, config))
    _tell(left)
    ctx.exit(code)


def _tell(left: Sequence[Any]) -> None:
    from .service import stays

    for task in left:
        click.echo(f"ml-dash-syncd: {task.name} stays here: {stays(task)}", err=True)


@commands.command()
@_where
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(stores: Sequence[Path], remote: str | None, user: str | None, config: Path | None, as_json: bool) -> None:
    """Show what is sent, what waits, what is in trouble; also when no daemon runs."""
    from .discover import Discovery
    from .status import status as look

    found = look(list(Discovery(_settings(stores, remote, user, config)).find().values()))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    daemon = found["daemon"]
    click.echo(f"the daemon runs (process {daemon['pid']})" if daemon["runs"] else "no daemon runs")
    if not found["experiments"]:
        click.echo("nothing is registered: open an experiment with remote=, or run ml-dash push")
    for one in found["experiments"]:
        click.echo(_line(one))
        for name, why in one["parked"].items():
            click.echo(f"    set aside: {name}: {why}")


def _line(one: dict[str, Any]) -> str:
    name = f"{one['project']}/{one['name']}"
    if not one["there"]:
        return f"{name}: gone from this machine ({one['journal']})"
    left = one["bytes"] - one["acknowledgedBytes"]
    what = "all sent" if not left else f"{left:,} of {one['bytes']:,} bytes wait"
    if one["contents"]:
        what += f", {one['contentsDone']:,} of {one['contents']:,} files"
    trouble = f"; {one['trouble']['text']}" if one["trouble"] else ""
    return f"{name} -> {one['remote']}: {what}{trouble}{_hint(one)}"


def _hint(one: dict[str, Any]) -> str:
    """What to do about a server that has not answered for so long that its URL may be wrong."""
    trouble = one["trouble"] or {}
    since = trouble.get("since")
    if trouble.get("kind") != "unreachable" or since is None or time.time() - since < _LONG_S:
        return ""
    hours = int((time.time() - since) // 3600)
    return f"; no answer for {hours} h. If the URL is wrong: ml-dash-syncd forget {one['remote']}"


@commands.command()
@click.argument("target", metavar="EXPERIMENT|URL")
@click.pass_context
def forget(ctx: click.Context, target: str) -> None:
    """Send it no longer: an experiment, or all that goes to a server. The data stays here, and there.

    EXPERIMENT is project/name or the path of its folder. It is asked for anew when it is opened with remote=, or by
    ml-dash push.
    """
    from ml_dash.sync import register

    found = register.meant(target)
    for one in found:
        register.unregister(one)
        name = "/".join(Path(one.journal).parts[-3:-1])
        click.echo(f"{name} no longer goes to {one.remote}; it is kept in {one.journal}")
    if not found:
        click.echo(f"ml-dash-syncd: nothing is registered for {target}; ml-dash-syncd status shows what is", err=True)
        ctx.exit(FAILURE)


@commands.command(name="check-config")
@_where
def check_config(stores: Sequence[Path], remote: str | None, user: str | None, config: Path | None) -> None:
    """Read the settings, and say what they come to. Exit code 2 if they are wrong."""
    from ml_dash.sync import register

    from .discover import Discovery

    found = _settings(stores, remote, user, config)
    click.echo(f"settings file: {found.file or 'none'}")
    click.echo(f"state: {register.registered_folder().parent}")
    for name, source in found.sources.items():
        click.echo(f"{name}: from {source}")
    for store in found.stores:
        click.echo(f"store: {store}{'' if store.is_dir() else ' (not there yet)'} -> {found.remote}")
    known = Discovery(found).find().values()
    click.echo(f"experiments: {len(known)}")
    logins = {(one.remote, one.user or ""): one.has_login() for one in known}
    for (url, name), has_login in sorted(logins.items()):
        login = "a login" if has_login else f"NO login: run ml-dash login {url}"
        click.echo(f"remote: {url}{f' as {name}' if name else ''}: {login}")


@commands.command()
@click.option("--user", "kind", flag_value="user", help="For you alone.")
@click.option("--system", "kind", flag_value="system", help="For all users of this machine, as a template.")
@click.option("--print", "only_print", is_flag=True, help="Only print the unit.")
def install(kind: str | None, only_print: bool) -> None:
    """Write the systemd unit with the path of this installation."""
    from . import install as units

    if kind is None:
        raise click.UsageError("Give --user or --system.")
    name = units.USER_UNIT if kind == "user" else units.SYSTEM_UNIT
    if only_print:
        click.echo(units.unit(name), nl=False)
        return
    path = units.install(name)
    click.echo(f"wrote {path}; now run:")
    if kind == "user":
        click.echo("  systemctl --user daemon-reload && systemctl --user enable --now ml-dash-syncd")
    else:
        click.echo("  systemctl daemon-reload && systemctl enable --now ml-dash-syncd@USER")


def invoke(argv: Sequence[str]) -> int:
    """Run the command that `argv` names; its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("ml_dash.syncd").setLevel(logging.INFO)
    try:
        code = _run(argv)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except InvalidValue as error:
        click.echo(f"ml-dash-syncd: {error}", err=True)
        return USAGE
    except BrokenPipeError:
        # The reader (`| head`) has all it wants. The interpreter's own flush at exit must not complain.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        return BROKEN_PIPE
    except (MLDashError, OSError) as error:
        click.echo(f"ml-dash-syncd: {error}", err=True)
        return FAILURE
    return code


def _run(argv: Sequence[str]) -> int:
    try:
        with commands.make_context("ml-dash-syncd", list(argv)) as ctx:
            commands.invoke(ctx)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    return OK
