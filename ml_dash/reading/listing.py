"""How lists of experiments are answered from an index: the same for local folders and for a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from ..core.times import utc_text
from ..errors import InvalidValue
from .facts import PARAMS, Facts, shown_value
from .index import Index, Row
from .where import Sort, Where, parse, parse_columns, parse_sort

More = Callable[[Sequence[Row]], Mapping[str, Mapping[str, Any]]]
"""more(rows): for the keys of a page, what is listed beside the facts, as `heardAt`."""


class Asked(NamedTuple):
    """A list as it was asked for, understood."""

    where: Where | None
    sort: Sort | None
    columns: tuple[str, ...]

    @classmethod
    def of(cls, where: str | None, sort: str | None = None, columns: Sequence[str] = ()) -> Asked:
        """Return what these texts mean. Raises InvalidQuery."""
        return cls(
            parse(where) if where is not None and where.strip() else None,
            parse_sort(sort) if sort else None,
            tuple(name for column in columns for name in parse_columns(column)),
        )


def listed(facts: Facts) -> dict[str, Any]:
    """Return an experiment as lists show it."""
    return {
        "id": facts.id,
        "name": facts.name,
        "title": facts.title,
        "project": facts.project,
        "status": facts.status,
        "reason": facts.reason,
        "description": facts.description,
        "notes": facts.notes,
        "tags": facts.tags or None,
        "folder": facts.folder,
        "archived": facts.archived,
        "createdAt": _time(facts.created_ns),
        "updatedAt": _time(facts.updated_ns),
        "endedAt": _time(facts.ended_ns),
        "counts": {"events": facts.events, "points": facts.points, "logs": facts.logs, "files": facts.files},
    }


def experiments_answer(
    index: Index,
    asked: Asked,
    start: int,
    limit: int,
    *,
    keys: Iterable[str] | None = None,
    more: More | None = None,
) -> dict[str, Any]:
    """Return a page of the experiments that match: {"experiments", "total", "startIndex", "next"}.

    `next` is where the next page starts, as text, None at the end. `keys` bounds what is looked at.
    """
    page = index.page(asked.where, asked.sort, asked.columns, start, limit, keys)
    beside = more(page.rows) if more is not None else {}
    behind = start + len(page.rows)
    return {
        "experiments": [{**listed(row.facts), **beside.get(row.key, {}), "values": row.values} for row in page.rows],
        "total": page.total,
        "startIndex": start,
        "next": str(behind) if page.rows and behind < page.total else None,
    }


def fields_answer(index: Index, prefix: str, limit: int) -> dict[str, Any]:
    """Return {"fields": [{"name", "kind", "runs", "values"}]}."""
    return {"fields": [field._asdict() for field in index.fields(prefix, limit)]}


def groups_answer(index: Index, by: str, asked: Asked) -> dict[str, Any]:
    """Return {"groups": [{"value", "runs", "values": {column: mean, sd, min, max, count}}], "total"}."""
    named = parse_columns(by)
    if len(named) != 1:
        raise InvalidValue(f"groups are by one field, and {by[:80]!r} names {len(named)}", hint="name one, like tags")
    [field] = named
    groups = [
        {
            "value": group.value,
            "runs": group.runs,
            "values": {column: asdict(spread) for column, spread in group.values.items()},
        }
        for group in index.groups(field, asked.where, asked.columns)
    ]
    return {"groups": groups, "total": len(groups)}


def comparison_answer(
    index: Index, keys: Sequence[str], columns: Sequence[str], more: More | None = None
) -> dict[str, Any]:
    """Return what several experiments are compared by: {"experiments", "metrics"}, archived ones included.

    Experiments come in the order of `keys`, each with its "params"; those that the index does not have are left out.
    Metrics are the names of all their series, {"name", "runs"}, those of most experiments first.
    """
    page = index.page(None, None, columns, 0, len(keys), keys, archived=True)
    beside = more(page.rows) if more is not None else {}
    rows = {row.key: row for row in page.rows}
    experiments, runs = [], Counter[str]()
    for key in keys:
        facts = index.get(key)
        if facts is None or key not in rows:
            continue
        runs.update(facts.metrics.keys())
        params = {name: shown_value(PARAMS + name, value) for name, value in sorted(facts.params.items())}
        experiments.append(
            {**listed(facts), **beside.get(key, {}), "values": rows[key].values, "params": params},
        )
    return {
        "experiments": experiments,
        "metrics": [{"name": name, "runs": n} for name, n in sorted(runs.items(), key=lambda one: (-one[1], one[0]))],
    }


def projects_answer(index: Index) -> dict[str, Any]:
    """Return {"projects": by name, with the number of their experiments, also archived ones, and of those that run}."""
    found: dict[str, dict[str, Any]] = {}
    for facts in index.heads():
        project = found.setdefault(
            facts.project,
            {"name": facts.project, "experiments": 0, "running": 0, "created": facts.created_ns, "updated": 0},
        )
        project["experiments"] += 1
        project["running"] += facts.status == "running"
        project["created"] = min(project["created"], facts.created_ns)
        project["updated"] = max(project["updated"], facts.updated_ns)
    projects = []
    for name in sorted(found):
        one = found[name]
        created, updated = one.pop("created"), one.pop("updated")
        projects.append({**one, "createdAt": _time(created), "updatedAt": _time(updated)})
    return {"projects": projects}


def _time(time_ns: int | None) -> str | None:
    return utc_text(time_ns) if time_ns else None
