"""The list of commands, each loaded from its own module when it is used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click
from click.shell_completion import shell_complete

COMPLETE: Final = "_ML_DASH_COMPLETE"
"""The environment variable by which a shell asks for completions."""

COMMANDS: Final[dict[str, str]] = {
    "demo": "Train a small model, kill it half-way, resume it, and show that nothing was lost.",
    "ls": "List experiments.",
    "show": "Show one experiment: what it is, how it ended, what it holds.",
    "logs": "Print log entries, and follow them.",
    "tail": "Follow log entries, points and status of experiments.",
    "params": "Print parameters.",
    "metrics": "List metrics, or show the points of one, as numbers or as a plot.",
    "files": "List files.",
    "diff": "Compare parameters and final values of experiments.",
    "history": "Tell what happened to an experiment, when, and who did it.",
    "export": "Write points, logs or experiments as CSV or JSON lines.",
    "verify": "Check every frame, blob and file of an experiment.",
    "rebuild": "Make the documented folder again from the journal.",
    "dump": "Print the frames of a journal, for people.",
    "ui": "Show experiments in a browser on this machine.",
    "server": "Collect what many machines record; and the tokens of its users.",
    "login": "Store a token for a server.",
    "logout": "Remove the stored login for a server.",
    "whoami": "Show who you are at each server.",
    "sync": "Show, by comparing digests, what a server has of the experiments here.",
    "push": "Register experiments for upload, and send what a server does not have.",
    "pull": "Bring an experiment, or a whole project, from a server to this machine.",
    "rename": "Call an experiment by another name.",
    "note": "Print or replace the notes of an experiment.",
    "archive": "Put an experiment away.",
    "unarchive": "Show an archived experiment in lists again.",
    "gc": "Free what a server has proven to hold.",
    "rm": "Remove experiments, journal and folder together.",
    "completion": "Print the script that completes this command in your shell.",
}
"""Name → what it does. Here and not in the modules, so that `ml-dash --help` need not load them."""


class Commands(click.Group):
    """A group whose commands are modules of this package, each loaded when it is first asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"ml_dash.cli.{cmd_name}").command
        command.help = command.help or COMMANDS[cmd_name]
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            if args[0] in ("plot", "chart"):
                raise click.UsageError(f"No such command {args[0]!r}. Use: ml-dash metrics EXPERIMENT --plot", ctx)
            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"ml-dash {version('ml-dash')}")
        ctx.exit()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="EXPERIMENT is a path, project/name, or a name that only one experiment has; left out, the latest "
    "written. Without a command: ls.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version)
@click.pass_context
def ml_dash(ctx: click.Context) -> None:
    """Experiments, recorded in plain folders."""
    if ctx.invoked_subcommand is None:
        from ml_dash.cli import ls

        if not ls.list_found():
            click.echo(ctx.get_help())


def invoke(argv: Sequence[str]) -> int:
    """Run the command that `argv` names; return its exit code.

    Used in place of click's own `main`, which handles a broken pipe and Ctrl-C differently.
    """
    asked = os.environ.get(COMPLETE)
    if asked:
        return shell_complete(ml_dash, {}, "ml-dash", COMPLETE, asked)
    try:
        with ml_dash.make_context("ml-dash", list(argv)) as ctx:
            ml_dash.invoke(ctx)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    return 0
