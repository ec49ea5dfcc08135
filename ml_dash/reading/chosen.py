"""The experiments on this machine that a query means, in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ..errors import MLDashError
from .facts import Facts, facts_of
from .index import FieldFacts, Index
from .located import Located
from .read import view
from .where import Sort, Where

Failed = Callable[[Located, Exception], None]


class Chosen(NamedTuple):
    """An experiment, its facts without parameters and metrics, and the values of columns, as in `index.Row`."""

    located: Located
    facts: Facts
    values: dict[str, Any]


def choose(
    found: Sequence[Located],
    where: Where | None = None,
    sort: Sort | None = None,
    columns: Sequence[str] = (),
    limit: int | None = None,
    failed: Failed | None = None,
    *,
    archived: bool = False,
) -> list[Chosen]:
    """Return the first `limit` of the experiments found that match, in order, as `Index.page` does.

    One that cannot be read is given to `failed` with the error, and left out; without it, the error is raised.
    """
    index = index_of(found, failed)
    page = index.page(where, sort, columns, 0, len(found) if limit is None else limit, archived=archived)
    return [Chosen(found[int(row.key)], row.facts, row.values) for row in page.rows]


def index_of(found: Sequence[Located], failed: Failed | None = None) -> Index:
    """Return an index of experiments by their places in `found`; errors as in `choose`."""
    index = Index()
    index.put_all((str(place), None, facts) for place, facts in _facts(found, failed))
    return index


def fields(found: Sequence[Located], prefix: str = "", limit: int = 100) -> list[FieldFacts]:
    """Return the fields that experiments have, as `Index.fields` does; those that cannot be read are left out."""
    return index_of(found, lambda located, error: None).fields(prefix, limit)


def _facts(found: Sequence[Located], failed: Failed | None) -> Iterable[tuple[int, Facts]]:
    for place, located in enumerate(found):
        try:
            yield place, facts_of(view(located).state)
        except (MLDashError, OSError) as error:
            if failed is None:
                raise
            failed(located, error)
