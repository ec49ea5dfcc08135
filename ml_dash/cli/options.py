"""Options shared by several commands: the experiment, the place to look, the form of output."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ml_dash.core.times import parse_time
from ml_dash.errors import MLDashError

if TYPE_CHECKING:
    from ml_dash.reading.index import FieldFacts

Decorated = TypeVar("Decorated", bound=Any)

_MOST_FIELDS = 1000
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


class RemoteCommand(click.Command):
    """A command whose `--remote` may have a URL or none: what follows is one if it has `://` in it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse arguments, after each `--remote` has got a value: its URL, or nothing."""
        return super().parse_args(ctx, _with_values(args))


def _with_values(args: list[str]) -> list[str]:
    made: list[str] = []
    rest = iter(args)
    for argument in rest:
        if argument == "--":
            return [*made, argument, *rest]
        if made and made[-1] == "--remote=" and "://" in argument:
            made[-1] += argument
        else:
            made.append("--remote=" if argument == "--remote" else argument)
    return made


def remote_option(command: Decorated) -> Decorated:
    """Add `--remote`: the URL of a server to read from, empty for the one that the experiment goes to, None for here.

    For a `RemoteCommand`.
    """
    return click.option(
        "--remote",
        metavar="[URL]",
        help="Read from a server, not from here: the one that the experiment goes to, else ML_DASH_REMOTE, else the "
        "only one with a login.",
    )(command)


def as_of_option(command: Decorated) -> Decorated:
    """Add `--as-of`: a moment to look back to, as text, or None."""
    return click.option(
        "--as-of",
        metavar="MOMENT",
        help="As it was then: a number of events (see ml-dash history), a time, or how long ago: -90min, -2h, -7d.",
    )(command)


def where_option(command: Decorated) -> Decorated:
    """Add `--where`: a parsed query, or None."""
    return click.option(
        "--where",
        callback=_parsed("parse"),
        metavar="QUERY",
        shell_complete=complete_query,
        help="Only experiments that match: 'status = failed and params.lr > 0.1'. See docs/query.md.",
    )(command)


def sort_option(command: Decorated) -> Decorated:
    """Add `--sort`: a parsed order, or None."""
    return click.option(
        "--sort",
        callback=_parsed("parse_sort"),
        metavar="FIELD[:desc]",
        shell_complete=complete_fields,
        help="By this field: metrics.loss.min, params.lr, name, ... With :desc the greatest first. "
        "Default: updated, the latest first.",
    )(command)


def columns_option(command: Decorated) -> Decorated:
    """Add `--columns`: a tuple of fields, empty where it is left out."""
    return click.option(
        "--columns",
        default="",
        callback=_parsed("parse_columns"),
        metavar="FIELD,...",
        shell_complete=complete_fields,
        help="Show these fields: params.lr,metrics.val.acc.max",
    )(command)


def _parsed(parse: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return what reads the text of an option by a function of `where`, which is loaded only then. None stays None."""

    def parsed(_ctx: click.Context, _param: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        from ml_dash.reading import where

        return getattr(where, parse)(text)

    return parsed


def complete_query(ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Return the queries that go on from the one that is typed; none if experiments cannot be read."""
    from ml_dash.reading.completion import complete, with_statistics

    fields = {field.name: field.values for field in _fields(ctx)}
    names = [name for field in fields for name in _with_statistics(field, with_statistics)]
    found = complete(typed, len(typed), names, lambda field: fields.get(field, []))
    return [CompletionItem(typed[: one.start] + one.text) for one in found]


def complete_fields(ctx: click.Context, _param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Return the lists of fields that go on from the one that is typed."""
    from ml_dash.reading.completion import with_statistics
    from ml_dash.reading.where import field_text

    before, comma, begun = typed.rpartition(",")
    names = [name for field in _fields(ctx) for name in _with_statistics(field.name, with_statistics)]
    return [CompletionItem(before + comma + text) for name in names if (text := field_text(name)).startswith(begun)]


def _with_statistics(field: str, with_statistics: Callable[[list[str]], list[str]]) -> list[str]:
    series = field.removeprefix("metrics.")
    return with_statistics([series]) if series != field else [field]


def _fields(ctx: click.Context) -> list[FieldFacts]:
    from ml_dash.reading.chosen import fields_below

    try:
        return fields_below(ctx.params.get("path"), limit=_MOST_FIELDS)
    except (MLDashError, OSError):
        return []


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
