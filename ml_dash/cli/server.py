"""`ml-dash server`: the server, and the tokens of its users."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ml_dash.cli import console, options
from ml_dash.cli.codes import FAILURE
from ml_dash.cli.server_operate import check, data_option, existing, migrate, scrub, sweep, with_data

if TYPE_CHECKING:
    from ml_dash.server.settings import ServerSettings


@click.group(name="server", invoke_without_command=True)
@click.option(
    "--data", type=click.Path(path_type=Path),
    help="The folder to keep everything in. Default: ~/.local/share/ml-dash/server.",
)  # fmt: skip
@click.option("--host", help="The address to listen on. Default: 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65_535), help="The port; 0 takes a free one. Default: $PORT, else 3000.")
@click.option("--dev", is_flag=True, help="Accept the development login, user_name= alone; on loopback only.")
@click.option("--open", "opens", is_flag=True, help="With --dev: open the page in a browser, logged in.")
@click.pass_context
def command(ctx: click.Context, data: Path | None, host: str | None, port: int | None, dev: bool, opens: bool) -> None:
    """Collect what many machines record, and answer questions about it.

    It prints on stdout where it listens. After SIGTERM, requests under way are completed.
    """
    _check_installed(ctx)
    from ml_dash.server.settings import server_settings

    if opens and not dev:
        raise click.UsageError("--open goes with --dev: where tokens are asked for, give yours in the browser.", ctx)
    settings = server_settings(data=data, host=host, port=port, dev=dev)
    ctx.obj = settings
    if ctx.invoked_subcommand is None:
        from ml_dash.server.run import serve

        serve(settings, opens=opens)


@command.command()
@click.option("--print", "only_print", is_flag=True, help="Print the unit, and write nothing.")
def install(only_print: bool) -> None:
    """Write the systemd unit with the path of this installation; as root."""
    from ml_dash.server import install as units

    if only_print:
        console.print_text(units.unit().rstrip())
        return
    path = units.install()
    console.print_text(f"wrote {path}; now run: systemctl daemon-reload && systemctl enable --now {path.stem}")


for _verb in (check, sweep, scrub, migrate):
    command.add_command(_verb)


@command.group()
def token() -> None:
    """Tokens of users: make, list and revoke them."""


@token.command()
@click.argument("user")
@click.option("--read-only", is_flag=True, help="It may read, and change nothing.")
@click.option("--read-all", is_flag=True, help="It may read every user's namespace.")
@click.option("--expires", metavar="TIME", help="How long it is valid: 90d, 12h. Default: until it is revoked.")
@data_option
@options.json_option
@click.pass_obj
def create(
    above: ServerSettings,
    user: str,
    read_only: bool,
    read_all: bool,
    expires: str | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Make a token for USER. It is printed this once, and stored only as a digest."""
    from ml_dash.server.engine.services import open_tokens
    from ml_dash.server.settings import duration_s, running_elsewhere

    expires_ns = None if expires is None else time.time_ns() + duration_s(expires, "--expires") * 1_000_000_000
    settings = with_data(above, data)
    with open_tokens(settings) as tokens:
        identity, text = tokens.create_token(user, read_only=read_only, read_all=read_all, expires_ns=expires_ns)
    here = data is None and settings.mongodb_uri is None
    other = running_elsewhere(settings.data) if here else None
    if other is not None:
        url, folder = other
        console.print_error(
            f"the token is for {settings.data}, but the server at {url} uses {folder}: give --data {folder}"
        )
    if as_json:
        console.print_json({"id": identity, "user": user, "token": text})
        return
    console.print_text(text)
    console.print_note(f"token {identity} of {console.safe(user)}: it is not shown again. There: ml-dash login URL")


@token.command(name="list")
@data_option
@options.json_option
@click.pass_obj
def list_tokens(above: ServerSettings, data: Path | None, as_json: bool) -> None:
    """List all tokens ever made, without the secret texts, which are not stored."""
    from ml_dash.server.engine.services import open_tokens

    with open_tokens(existing(above, data)) as tokens:
        found = tokens.list_tokens()
    rows = [
        {
            "id": row["id"],
            "user": row["user"],
            "readOnly": row["read_only"],
            "readAll": row["read_all"],
            "createdAt": _moment(row["created_ns"]),
            "expiresAt": _moment(row["expires_ns"]),
            "revokedAt": _moment(row["revoked_ns"]),
        }
        for row in found
    ]
    if as_json:
        console.print_json(rows)
        return
    console.print_table(
        ["ID", "USER", "MAY", "CREATED", "EXPIRES", "REVOKED"],
        [
            [row["id"], row["user"], _rights(row), row["createdAt"] or "", row["expiresAt"] or "never",
             row["revokedAt"] or ""]
            for row in rows
        ],
    )  # fmt: skip


@token.command()
@click.argument("identity", metavar="ID")
@data_option
@click.pass_context
def revoke(ctx: click.Context, identity: str, data: Path | None) -> None:
    """End the token with that ID, at once."""
    from ml_dash.server.engine.services import open_tokens

    with open_tokens(existing(ctx.obj, data)) as tokens:
        if not tokens.revoke_token(identity):
            console.print_error(f"there is no token {identity!r}; ml-dash server token list shows them")
            ctx.exit(FAILURE)
    console.print_note(f"token {identity} is revoked")


def _rights(row: dict[str, Any]) -> str:
    return ("read" if row["readOnly"] else "read, write") + (", all namespaces" if row["readAll"] else "")


def _moment(time_ns: int | None) -> str | None:
    if not time_ns:
        return None
    return datetime.fromtimestamp(time_ns // 1_000_000_000, timezone.utc).isoformat().replace("+00:00", "Z")


def _check_installed(ctx: click.Context) -> None:
    from ml_dash.server.install import is_installed

    if not is_installed():
        console.print_error("a server needs more than is installed here; run: pip install 'ml-dash[server]'")
        ctx.exit(FAILURE)
