"""`ml-dash login`: stores a server's token for this user, after the server has accepted it."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import click

from ml_dash.cli import console
from ml_dash.disk import config
from ml_dash.errors import InvalidValue, Unreachable


@click.command()
@click.argument("url", required=False)
@click.option("--no-check", is_flag=True, help="Do not ask the server whether it accepts the token.")
@click.option(
    "--claim/--no-claim",
    default=None,
    help="Send what was recorded for this server before anybody was logged in, or leave it. Default: ask.",
)
@click.pass_context
def command(ctx: click.Context, url: str | None, no_check: bool, claim: bool | None) -> None:
    """Store a token for the server at URL (default: ML_DASH_REMOTE).

    The token is asked for in the terminal, or read from standard input, or taken from ML_DASH_API_KEY; never from the
    command line, which others on the machine can see. What was recorded here for that server before anybody was logged
    in is listed; it goes there under this login only if you say so.
    """
    from ml_dash.sync import login, remote

    where = config.remote_url(url or os.environ.get("ML_DASH_REMOTE") or _missing(ctx))
    token = os.environ.get("ML_DASH_API_KEY") or _asked(where)
    if not token:
        raise InvalidValue("the token is empty", hint="the server's owner makes one: ml-dash server token create USER")
    if not (token.isascii() and token.isprintable()) or " " in token:
        text = "that is not a token: it contains spaces or other characters that tokens do not have"
        raise InvalidValue(text, hint="copy it again")
    user = None
    if not no_check:
        with contextlib.closing(remote.Link(where, token)) as link:
            try:
                found = remote.whoami(link)
            except Unreachable as error:
                raise Unreachable(f"nothing was stored: {error}", hint="try again, or give --no-check") from error
        user = found["userName"]
    login.store(where, token, user)
    as_whom = f" as {console.safe(user)}" if user else ""
    console.print_text(f"logged in at {console.safe(where)}{as_whom}")
    _offer(where, claim)


def _offer(where: str, claim: bool | None) -> None:
    """List what nobody has claimed for that server; claim it if `claim`, or (None) if the user says yes."""
    from ml_dash.sync import register

    waiting = register.unclaimed(where)
    if not waiting:
        return
    console.print_text(f"recorded for {console.safe(where)} while nobody was logged in there:")
    for one in waiting:
        console.print_text(f"  {console.safe(str(Path(one.journal).parent))}")
    if claim is None and console.on_terminal(sys.stdin):
        claim = click.confirm("Send all of it under this login?", default=False, err=True)
    if not claim:
        stays, them = ("it stays", "it") if len(waiting) == 1 else ("they stay", "them")
        again = f"ml-dash login --claim {console.safe(where)}"
        console.print_text(f"{stays} here; to send {them}: ml-dash push EXPERIMENT, or {again}")
        return
    for one in waiting:
        register.claim(one, register.bind(Path(one.journal), where, None))
    them = "it" if len(waiting) == 1 else "them"
    console.print_text(f"claimed {console.plural(len(waiting), 'experiment')}; ml-dash-syncd sends {them}")


def _missing(ctx: click.Context) -> str:
    raise click.UsageError("Give the URL of the server, or set ML_DASH_REMOTE.", ctx)


def _asked(url: str) -> str:
    if console.on_terminal(sys.stdin):
        return str(click.prompt(f"Token for {url}", hide_input=True, err=True)).strip()
    return sys.stdin.readline().strip()
