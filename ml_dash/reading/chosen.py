"""The experiments on this machine that a query means, in its order.

Those below a path come from the index in the cache, so that only what has changed is read. Named ones are few, and are
read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..disk.places import cache_folder
from ..errors import MLDashError
from .facts import Facts, facts_of
from .index import FieldFacts, Index
from .indexing import Indexer
from .live import LiveViews
from .located import Located
from .places import places_of
from .read import search_paths, view
from .runs import Runs
from .where import Sort, Where

Failed = Callable[[Located, Exception], None]


class Chosen(NamedTuple):
    """An experiment, its facts without parameters and metrics, and the values of columns, as in `index.Row`."""

    located: Located
    facts: Facts
    values: dict[str, Any]


def choose(
    found: Sequence[Located], where: Where | None = None, sort: Sort | None = None, columns: Sequence[str] = ()
) -> list[Chosen]:
    """Return those of some experiments that match, in order, as `Index.page` does; archived ones too.

    Raises JournalError or OSError for one that cannot be read.
    """
    index = Index()
    _add(index, found, None)
    return _page(index, found, where, sort, columns, None, archived=True)


def choose_below(
    path: Path | None,
    project: str | None = None,
    where: Where | None = None,
    sort: Sort | None = None,
    columns: Sequence[str] = (),
    limit: int | None = None,
    *,
    archived: bool = False,
    failed: Failed | None = None,
) -> list[Chosen]:
    """Return the first `limit` of the experiments that `read.find` finds and that match, as `Index.page` does.

    One that cannot be read is given to `failed` with the error, and left out; without it, the error is raised.
    """
    with _indexed(path) as (everything, index):
        found = [located for located in everything if project is None or located.project == project]
        _add(index, [located for located in found if str(located.journal) not in index], failed)
        return _page(index, found, where, sort, columns, limit, archived=archived)


def fields_below(path: Path | None, prefix: str = "", limit: int = 100) -> list[FieldFacts]:
    """Return the fields that the experiments below a path have, as `Index.fields` does."""
    with _indexed(path) as (_, index):
        return index.fields(prefix, limit)


@contextmanager
def _indexed(path: Path | None) -> Iterator[tuple[list[Located], Index]]:
    """Give the experiments that `read.find` finds, and an index of them, up to date."""
    cache = cache_folder()
    places = places_of(search_paths(path), cache, exact=True)
    with closing(Runs(places, LiveViews(), Indexer(None), cache)) as runs:
        runs.refresh(now=True)
        yield [found.located for found in places.all().values()], runs.index


def _add(index: Index, found: Sequence[Located], failed: Failed | None) -> None:
    for located in found:
        try:
            index.put(str(located.journal), None, facts_of(view(located).state))
        except (MLDashError, OSError) as error:
            if failed is None:
                raise
            failed(located, error)


def _page(
    index: Index,
    found: Sequence[Located],
    where: Where | None,
    sort: Sort | None,
    columns: Sequence[str],
    limit: int | None,
    *,
    archived: bool,
) -> list[Chosen]:
    by_key = {str(located.journal): located for located in found}
    page = index.page(where, sort, columns, 0, len(found) if limit is None else limit, by_key, archived=archived)
    return [Chosen(by_key[row.key], row.facts, row.values) for row in page.rows]
