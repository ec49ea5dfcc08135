"""`ml-dash whoami`: shows the stored logins, and asks each server whether it accepts them."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from ml_dash.cli import console, options
from ml_dash.cli.codes import FAILURE
from ml_dash.errors import RemoteError


@click.command()
@click.argument("url", required=False)
@options.json_option
@click.pass_context
def command(ctx: click.Context, url: str | None, as_json: bool) -> None:
    """Show who you are at each server that there is a login for, or at the one at URL.

    Exit code 1 if there is no login, or a server does not accept it.
    """
    from ml_dash.disk import config
    from ml_dash.sync import login

    wanted = config.remote_url(url) if url is not None else None
    found = [_asked(one.url) for one in login.logins() if wanted is None or one.url == wanted]
    if wanted is not None and not found:
        found = [_asked(wanted)]
    if as_json:
        console.print_json(found)
    else:
        for row in found:
            console.print_text(console.safe(f"{row['remote']}: {_sentence(row)}"))
    if not found:
        console.print_error("there is no login; run: ml-dash login URL")
    if not found or not all(row["accepted"] for row in found):
        ctx.exit(FAILURE)


def _asked(url: str) -> dict[str, Any]:
    from ml_dash.sync import login, remote

    row: dict[str, Any] = {"remote": url, "accepted": False, "userName": None, "readOnly": None, "expiresAt": None}
    with contextlib.closing(remote.Link(url, lambda: login.token_for(url))) as link:
        try:
            answer = remote.whoami(link)
        except RemoteError as error:
            return {**row, "error": str(error)}
    return {**row, "accepted": True, **{key: answer.get(key) for key in ("userName", "readOnly", "expiresAt")}}


def _sentence(row: dict[str, Any]) -> str:
    if not row["accepted"]:
        # What the server said begins with its URL, as the line does.
        return str(row["error"]).removeprefix(f"{row['remote']}: ")
    rights = "may read" if row["readOnly"] else "may read and write"
    until = f", until {row['expiresAt']}" if row["expiresAt"] else ""
    return f"{row['userName']}, {rights}{until}"
