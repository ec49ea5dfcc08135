"""What several commands take: which experiment, where to look for it, how to print."""

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
    """project/name of the experiments that start with what was typed."""
    from ml_dash.reading import read

    try:
        found = read.find(ctx.params.get("path"))
    except (MLDashError, OSError):
        return []
    return [CompletionItem(text) for e in found if (text := f"{e.project}/{e.name}").startswith(typed)]


def experiment_argument(command: Decorated) -> Decorated:
    """The argument EXPERIMENT, None where it is left out."""
    return click.argument("experiment", required=False, shell_complete=complete_experiment)(command)


def experiments_argument(command: Decorated) -> Decorated:
    """Any number of arguments EXPERIMENT."""
    return click.argument("experiments", nargs=-1, metavar="[EXPERIMENT]...", shell_complete=complete_experiment)(
        command
    )


def path_option(command: Decorated) -> Decorated:
    return click.option(
        "--path",
        type=click.Path(path_type=Path, exists=True),
        help="Where to look: a root, store, project or experiment. Default: the environment, else .ml-dash, "
        "else */.ml-dash.",
    )(command)


def remote_option(command: Decorated) -> Decorated:
    return click.option(
        "--remote", "away", is_flag=True, help="Read from the server that the experiment goes to, not from here."
    )(command)


def json_option(command: Decorated) -> Decorated:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def moment(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """The time, in ns, that `2025-10-29T10:30:00Z`, `2025-10-29` or an age (`90min`, `12h`, `7d`) means."""
    if text is None:
        return None
    age = re.fullmatch(r"(\d{1,9})\s*(s|m|min|h|d|w)", text.strip())
    if age:
        return time.time_ns() - int(age[1]) * _UNITS_S[age[2]] * 1_000_000_000
    try:
        return parse_time(text)
    except MLDashError:
        told = f"{text!r} is neither a time (2025-10-29T10:30) nor an age (90min, 12h, 7d)"
        raise click.BadParameter(told, ctx, param) from None
