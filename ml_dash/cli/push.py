"""`ml-dash push`: registers experiments with a server, sends the missing part, and proves that all arrived."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from ml_dash.cli import console, options, sync
from ml_dash.cli.codes import UNSENT
from ml_dash.disk.config import Settings, resolve
from ml_dash.errors import RemoteError, Unauthorised
from ml_dash.journal import blobs
from ml_dash.journal.segment import list_segments
from ml_dash.reading import read
from ml_dash.reading.located import Located
from ml_dash.sync import register
from ml_dash.sync.login import has_login

_POLL_S = 0.1

Chosen = tuple[Located, register.Registration]


@click.command()
@click.argument("experiments", nargs=-1, shell_complete=options.complete_experiment)
@click.option("--all", "everything", is_flag=True, help="All experiments that are found.")
@click.option("--remote", metavar="URL", help="The server. Default: ML_DASH_REMOTE, else where they go already.")
@click.option("--user", metavar="NAME", help="Your user name there. Default: ML_DASH_USER_NAME, else the stored login.")
@options.path_option
@options.json_option
@click.pass_context
def command(
    ctx: click.Context,
    experiments: tuple[str, ...],
    everything: bool,
    remote: str | None,
    user: str | None,
    path: Path | None,
    as_json: bool,
) -> None:
    """Register experiments with a server, send what it does not have, and prove that it has it.

    From then on ml-dash-syncd uploads what is added to them. Exit code 3 if something could not be sent.
    """
    if bool(experiments) == everything:
        raise click.UsageError("Name the experiments, or give --all.", ctx)
    located = read.find(path) if everything else [sync.locate(experiment, path) for experiment in experiments]
    settings = resolve(remote=remote, user_name=user)
    chosen = _register(list({one.journal: one for one in located}.values()), settings, ctx)
    _drain(chosen)
    shown = [sync.show(one, registration, silent=as_json) for one, registration in chosen]
    if as_json:
        console.print_json(shown)
    if not all(found["complete"] for found in shown):
        ctx.exit(UNSENT)


def _register(located: list[Located], settings: Settings, ctx: click.Context) -> list[Chosen]:
    """Register each for upload. Without a login, raises Unauthorised before anything is written."""
    if settings.remote is None:
        known = register.by_journal(register.registrations())
        registered = [(one, register.of_journal(one.journal, known)) for one in located]
        chosen = [(one, _claimed(found)) for one, there in registered for found in there]
        without = [one for one, there in registered if not there]
        if without or not chosen:
            names = ", ".join(f"{one.project}/{one.name}" for one in without[:3])
            raise click.UsageError(f"No server is known for {names or 'them'}: give --remote URL.", ctx)
        return chosen
    if settings.api_key is None and not has_login(settings.remote, settings.user_name):
        as_whom = f" as {settings.user_name}" if settings.user_name else ""
        raise Unauthorised(f"no login for {settings.remote}{as_whom} yet", hint=f"run: ml-dash login {settings.remote}")
    chosen = [(one, register.register(one.journal, settings)) for one in located]
    _drop_unclaimed(chosen)
    return chosen


def _claimed(found: register.Registration) -> register.Registration:
    """Return the registration, claimed for the stored login if nobody had. Raises Unauthorised if there is no login."""
    if found.is_claimed:
        return found
    bound = register.bind(Path(found.journal), found.remote, None)
    if not bound.is_claimed:
        raise Unauthorised(f"no login for {found.remote} yet", hint=f"run: ml-dash login {found.remote}")
    return register.claim(found, bound)


def _drop_unclaimed(chosen: list[Chosen]) -> None:
    """Remove the unclaimed registrations of what has just been registered with a login."""
    mine = {(os.path.realpath(one.journal), found.remote) for one, found in chosen}
    for waiting in {found.remote: register.unclaimed(found.remote) for _, found in chosen}.values():
        for one in waiting:
            if (os.path.realpath(one.journal), one.remote) in mine:
                register.unregister(one)


def _drain(chosen: list[Chosen]) -> None:
    """Send all of it, by `ml-dash-syncd once` in a process of its own. Raises RemoteError if that fails."""
    keys = [argument for _, registration in chosen for argument in ("--registered", registration.key)]
    command = [sys.executable, "-m", "ml_dash_syncd", "once", *keys]
    with console.progress("sending") as show_progress:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            last_line = _follow(process, chosen, show_progress)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode not in (0, UNSENT):
        raise RemoteError(f"ml-dash-syncd could not send: {last_line or f'exit code {process.returncode}'}")


def _follow(process: subprocess.Popen[bytes], chosen: list[Chosen], show_progress: console.ShowProgress | None) -> str:
    """Show how far the sending is until it ends; return the last line that it printed on stderr."""
    total = sum(_size(located) for located, _ in chosen) if show_progress is not None else 0
    while True:
        try:
            _, errors = process.communicate(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            if show_progress is not None:
                show_progress(sum(_sent(located, registration) for located, registration in chosen), total)
            continue
        lines = errors.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _size(located: Located) -> int:
    """Bytes of an experiment on this disk: segments and blobs."""
    frames = sum(path.stat().st_size for _, path in list_segments(located.journal))
    return frames + sum(blobs.names(located.journal).values())


def _sent(located: Located, registration: register.Registration) -> int:
    """Bytes of an experiment that its server has acknowledged, as far as the cursor says."""
    cursor = register.cursor_of(registration)
    if cursor is None:
        return 0
    sizes = blobs.names(located.journal)
    return sum(cursor.segments.values()) + sum(size for name, size in sizes.items() if name in cursor.blobs)
