"""`ml-dash completion`: the script that completes this command in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ml_dash.cli import app


@click.command(
    epilog='For bash, add to ~/.bashrc:  eval "$(ml-dash completion bash)"',
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes this command in your shell."""
    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(ctx.find_root().command, {}, "ml-dash", app.COMPLETE).source())
