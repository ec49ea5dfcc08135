"""Options shared by several commands: the experiment, the place to look, the form of output."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ml_dash.core.values import parse_time
from ml_dash.errors import MLDashError

Decorated = TypeVar("Decorated", bound=Any)

_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}


def complete_experiment(ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Return the `project/name` of each experiment that begins with `typed`; none if they cannot be read."""
    from ml_dash.reading import read

    try:
        found = read.find(ctx.params.get("path"))
    except (MLDashError, OSError):
        return []
    return [CompletionItem(text) for e in found if (text := f"{e.project}/{e.name}").startswith(typed)]


def experiment_argument(command: Decorated) -> Decorated:
    """Add the argument EXPERIMENT; None where it is left out."""
    return click.argument("experiment", required=False, shell_complete=complete_experiment)(command)


def experiments_argument(command: Decorated) -> Decorated:
    """Any number of arguments EXPERIMENT."""
    return click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...", shell_complete=complete_experiment)(
        command
    )


def path_option(command: Decorated) -> Decorated:
    """Add `--path`: where to look for experiments."""
    return click.option(
        "--path",
        type=click.Path(path_type=Path, exists=True),
        help="Where to look: a root, store, project or experiment. Default: the environment, else .ml-dash, "
        "else */.ml-dash.",
    )(command)


def remote_option(command: Decorated) -> Decorated:
    """Add `--remote`, as `from_server`: read from the experiment's server."""
    return click.option(
        "--remote", "from_server", is_flag=True, help="Read from the server that the experiment goes to, not from here."
    )(command)


def json_option(command: Decorated) -> Decorated:
    """Add `--json`, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def moment(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """Return a time (`2025-10-29T10:30:00Z`, `2025-10-29`) or an age (`90min`, `12h`, `7d`) in ns since the epoch."""
    if text is None:
        return None
    age = re.fullmatch(r"(\d{1,9})\s*(s|m|min|h|d|w)", text.strip())
    if age:
        return time.time_ns() - int(age[1]) * _UNITS_S[age[2]] * 1_000_000_000
    try:
        return parse_time(text)
    except MLDashError:
        message = f"{text!r} is neither a time (2025-10-29T10:30) nor an age (90min, 12h, 7d)"
        raise click.BadParameter(message, ctx, param) from None
