"""The experiments that a command is about, named or chosen by a query, on this machine or on a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ml_dash.cli.views import ExperimentView, view_of
from ml_dash.reading import read
from ml_dash.reading.located import Located

if TYPE_CHECKING:
    from ml_dash.client import RemoteClient
    from ml_dash.reading.where import Sort, Where

# Experiments that a server is asked for at once.
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for: a query, an order, fields to show, and how many at most; None where it is not."""

    where: Where | None = None
    sort: Sort | None = None
    columns: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class One:
    """One experiment: what it is called, its folder if it is here, and how to look at it."""

    project: str
    name: str
    path: Path | None
    look: Callable[[], ExperimentView]
    values: Callable[[], Mapping[str, Any]]
    """Returns the values of the columns asked for, as answers hold them (`facts.shown_value`)."""

    @property
    def label(self) -> str:
        """Project and name."""
        return f"{self.project}/{self.name}"


def chosen(
    ctx: click.Context,
    experiments: tuple[str, ...],
    asked: Asked,
    path: Path | None,
    remote: str | None,
    as_of: str | None,
) -> list[One]:
    """Return the experiments that are named, in that order unless one is asked for; else those that match.

    Raises UsageError for names and a query, NotFound for a name that none has, RemoteError.
    """
    if experiments and asked.where is not None:
        raise click.UsageError("Name experiments, or choose them with --where.", ctx)
    if remote is None:
        return [_here(located, asked.columns, as_of) for located in located_here(experiments, asked, path)]
    if as_of is not None and asked.columns:
        raise click.UsageError("A server has --columns of now: leave --as-of out.", ctx)
    if experiments and asked.sort is None:
        return [_named_there(name, asked.columns, path, remote, as_of) for name in experiments]
    if experiments:
        raise click.UsageError("--sort with --remote goes with --where.", ctx)
    return _matching_there(asked, remote, as_of)


def located_here(experiments: tuple[str, ...], asked: Asked, path: Path | None) -> list[Located]:
    """Return where the experiments are that are named; without names, all that match, archived ones too if none asks.

    Raises NotFound for a name that none has, and JournalError or OSError for an experiment that cannot be read.
    """
    named = [read.locate(one, path) for one in experiments]
    if asked.sort is None and asked.where is None:
        return named or read.find(path)
    from ml_dash.reading.chosen import choose, choose_below

    if named:
        return [one.located for one in choose(named, None, asked.sort)]
    found = choose_below(path, None, asked.where, asked.sort, archived=asked.where is None)
    return [one.located for one in found]


def _here(located: Located, columns: tuple[str, ...], as_of: str | None) -> One:
    def values() -> Mapping[str, Any]:
        from ml_dash.reading.facts import facts_of, shown_values

        return shown_values(facts_of(view_of(located, as_of).state), columns)

    look = partial(view_of, located, as_of)
    return One(located.project, located.name, located.folder, look, values)


# -- on a server ------------------------------------------------------------------------------------------------------


def listed(client: RemoteClient, asked: Asked) -> Iterator[dict[str, Any]]:
    """Yield what matches on a server, as its lists have it, page by page. Raises RemoteError."""
    from ml_dash.reading.source import decoded
    from ml_dash.reading.where import field_text

    where = None if asked.where is None else str(asked.where)
    sort = None if asked.sort is None else str(asked.sort)
    columns = [field_text(name) for name in asked.columns]
    source, start = client.source(), 0
    while asked.limit is None or start < asked.limit:
        limit = _PAGE if asked.limit is None else min(_PAGE, asked.limit - start)
        page = decoded(source.experiments(where=where, sort=sort, columns=columns, start=start, limit=limit))
        yield from page["experiments"]
        start += len(page["experiments"])
        if not page["experiments"] or start >= page["total"]:
            return


def _matching_there(asked: Asked, url: str, as_of: str | None) -> list[One]:
    from ml_dash.cli.server_view import ServerView, client_of

    client = client_of(url)
    then = client if as_of is None else client.as_of(as_of)
    return [
        One(row["project"], row["name"], None, partial(ServerView, then, row["id"]), partial(dict, row["values"]))
        for row in listed(client, asked)
    ]


def _named_there(name: str, columns: tuple[str, ...], path: Path | None, url: str, as_of: str | None) -> One:
    from ml_dash.cli.server_view import server_view

    view = server_view(name, path, url, as_of)
    record = view.record()

    def values() -> Mapping[str, Any]:
        from ml_dash.reading.where import parse

        (row,) = listed(view.client, Asked(parse(f"id = {view.id} archived in (true, false)"), None, columns))
        found: Mapping[str, Any] = row["values"]
        return found

    return One(record["project"], record["name"], None, lambda: view, values)
