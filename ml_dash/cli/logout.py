"""`ml-dash logout`: removes the login stored for a server."""

from __future__ import annotations

import os

import click

from ml_dash.cli import console
from ml_dash.cli.codes import FAILURE
from ml_dash.disk import config


@click.command()
@click.argument("url", required=False)
@click.pass_context
def command(ctx: click.Context, url: str | None) -> None:
    """Remove the stored login, and tokens that programs brought, for the server at URL (default: ML_DASH_REMOTE).

    Experiments that go there are kept here until there is a login again.
    """
    from ml_dash.sync import login

    given = url or os.environ.get("ML_DASH_REMOTE")
    if given is None:
        raise click.UsageError("Give the URL of the server, or set ML_DASH_REMOTE.", ctx)
    where = config.remote_url(given)
    if not login.forget(where):
        console.print_error(f"there is no login for {where}")
        ctx.exit(FAILURE)
    console.print_text(f"logged out at {console.safe(where)}")
