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
    """A group whose default command is `run`."""

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
    """Send what experiments record to servers. Without a command: run."""


def _source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose what is sent, to which server and as which user."""
    for option in (
        click.option("--config", type=_FOLDER, help="The settings file. Default: syncd.toml beside the logins."),
        click.option("--user", help="Your user name there. Default: the settings, else ML_DASH_USER_NAME."),
        click.option("--remote", help="The server for these stores. Default: the settings, else ML_DASH_REMOTE."),
        click.option("--store", "stores", type=_FOLDER, multiple=True, help="A folder of experiments; repeatable."),
    ):
        command = option(command)
    return command


def _settings(stores: Sequence[Path], remote: str | None, user: str | None, config: Path | None, **more: Any) -> Any:
    from . import settings

    return settings.read(stores=stores, remote=remote, user=user, config=config, **more)


@commands.command()
@_source_options
@click.option("--listen", type=click.IntRange(0, 65_535), help="Answer /-/healthy, /-/ready, /metrics on this port.")
@click.option("--idle-exit", type=click.FloatRange(0), help="End after this many seconds with nothing to send.")
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
    """Send what is recorded here, and what will be, until asked to end.

    After SIGTERM it sends for up to ten seconds more; a second one ends it at once. SIGHUP makes it read settings and
    logins again and ends all pauses.
    """
    from .service import run as serve

    def read() -> Any:
        return _settings(stores, remote, user, config, listen=listen)

    ctx.exit(serve(read, idle_exit_s=idle_exit))


@commands.command()
@_source_options
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
    """Send what is recorded here until all of it is acknowledged. Exit code 3 if something could not be sent."""
    from .service import once as drain

    left = drain(_settings(stores, remote, user, config), keys)
    _print_unsent(left)
    ctx.exit(UNSENT if left else OK)


@commands.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_source_options
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
    """Run COMMAND, sending while it runs and afterwards. Ends with the exit code of COMMAND."""
    from .exec_job import run_job

    code, left = run_job(command, _settings(stores, remote, user, config))
    _print_unsent(left)
    ctx.exit(code)


def _print_unsent(left: Sequence[Any]) -> None:
    from .service import unsent_reason

    for task in left:
        click.echo(f"ml-dash-syncd: {task.name} stays here: {unsent_reason(task)}", err=True)


@commands.command()
@_source_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(stores: Sequence[Path], remote: str | None, user: str | None, config: Path | None, as_json: bool) -> None:
    """Show what has been sent, what waits, and why. Works without a running daemon."""
    from .discover import Discovery
    from .status import status as collect

    collected = collect(list(Discovery(_settings(stores, remote, user, config)).find().values()))
    if as_json:
        click.echo(json.dumps(collected, indent=2))
        return
    daemon = collected["daemon"]
    click.echo(f"the daemon is running (process {daemon['pid']})" if daemon["runs"] else "no daemon is running")
    if not collected["experiments"]:
        click.echo("nothing is registered: open an experiment with remote=, or run ml-dash push")
    for experiment in collected["experiments"]:
        click.echo(_line(experiment))
        for name, why in experiment["parked"].items():
            click.echo(f"    set aside: {name}: {why}")


def _line(one: dict[str, Any]) -> str:
    name = f"{one['project']}/{one['name']}"
    if not one["there"]:
        return f"{name}: gone from this machine ({one['journal']})"
    left = one["bytes"] - one["acknowledgedBytes"]
    what = "all sent" if not left else f"{left:,} of {one['bytes']:,} bytes waiting"
    if one["contents"]:
        what += f", {one['contentsDone']:,} of {one['contents']:,} files"
    trouble = f"; {one['trouble']['text']}" if one["trouble"] else ""
    return f"{name} -> {one['remote']}: {what}{trouble}{_hint(one)}"


def _hint(one: dict[str, Any]) -> str:
    """A hint for a server that has not answered for over an hour: its URL may be wrong. Empty otherwise."""
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
    """Stop sending an experiment, or everything that goes to a server. No data is deleted, here or there.

    EXPERIMENT is project/name or the path of its folder. It is registered again when it is opened with remote=, or by
    ml-dash push.
    """
    from ml_dash.sync.registrations import matching, unregister

    found = matching(target)
    for registration in found:
        unregister(registration)
        name = "/".join(Path(registration.journal).parts[-3:-1])
        click.echo(f"{name} is no longer sent to {registration.remote}; it is kept in {registration.journal}")
    if not found:
        click.echo(f"ml-dash-syncd: nothing is registered for {target}; ml-dash-syncd status shows what is", err=True)
        ctx.exit(FAILURE)


@commands.command(name="check-config")
@_source_options
def check_config(stores: Sequence[Path], remote: str | None, user: str | None, config: Path | None) -> None:
    """Check the settings, and show which stores, servers and logins they lead to. Exit code 2 if they are wrong."""
    from ml_dash.sync import registrations

    from .discover import Discovery

    found = _settings(stores, remote, user, config)
    click.echo(f"settings file: {found.file or 'none'}")
    click.echo(f"state: {registrations.registered_folder().parent}")
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
    """Run the command that `argv` names; return its exit code. Errors are printed on stderr."""
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
        # The reader (`| head`) has ended. Without this, the interpreter's own flush at exit would fail as well.
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
