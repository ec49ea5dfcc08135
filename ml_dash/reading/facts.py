"""The facts of one experiment that lists, queries and columns are made of, and the names of their fields.

A field is named by a text: one of `FIELDS`, or `params.KEY`, or `metrics.SERIES` with or without one of `STATS` behind
it. A series is named as in `records.all_series`; a series whose name ends like a statistic wins over the statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

import msgspec

from ..core.json_values import to_json
from ..core.names import experiment_id
from ..core.records import ended_ns_of, old_names, reason_of, series_name, status_of
from ..core.rewinds import last_step_of
from ..core.state import Metric, Series, State
from ..core.times import utc_text

FACTS_VERSION: Final = 1
"""Grows when the same state gives other facts: what an index has kept is then made again."""

STATS: Final = ("last", "min", "max", "mean", "first", "count", "step")
"""What can be asked of a series. Without any of them, the last value is meant."""

PARAMS: Final = "params."
METRICS: Final = "metrics."

Kind = Literal["text", "tags", "status", "time", "duration", "size", "number", "boolean", "any"]

FIELDS: Final[dict[str, Kind]] = {
    "name": "text",
    "project": "text",
    "folder": "text",
    "status": "status",
    "tags": "tags",
    "description": "text",
    "notes": "text",
    "archived": "boolean",
    "created": "time",
    "updated": "time",
    "ended": "time",
    "duration": "duration",
    "host": "text",
    "user": "text",
    "commit": "text",
    "files.count": "number",
    "size": "size",
    "points": "number",
    "id": "text",
}
"""Field → the kind of its values. `params.KEY` is of any kind, `metrics.SERIES` a number."""

ALIASES: Final = {"tag": "tags", "files": "files.count"}
"""Other ways to write a field."""

Number = int | float


class SeriesFacts(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Statistics of one series, of current points; `step` is the greatest step (else epoch) of its metric."""

    count: int
    first: Number | None
    last: Number | None
    min: Number | None
    max: Number | None
    mean: float | None
    step: Number | None


class Facts(msgspec.Struct, kw_only=True, frozen=True):
    """One experiment in short. `params` is flat; `metrics` is by series; times are ns since the epoch, sizes bytes.

    In answers of an index, `params` and `metrics` are empty: what is wanted of them are columns.
    """

    id: str
    project: str
    name: str
    status: str
    title: str | None = None
    names: list[str] = []
    folder: str | None = None
    reason: dict[str, Any] | None = None
    tags: list[str] = []
    description: str | None = None
    notes: str | None = None
    archived: bool = False
    created_ns: int = 0
    updated_ns: int = 0
    ended_ns: int | None = None
    host: str | None = None
    user: str | None = None
    commit: str | None = None
    files: int = 0
    size: int = 0
    points: int = 0
    logs: int = 0
    events: int = 0
    params: dict[str, Any] = {}
    metrics: dict[str, SeriesFacts] = {}


class Missing:
    """The type of `MISSING`: an experiment has no such field."""

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing()

Getter = Callable[[Facts], Any]


# -- from the state ---------------------------------------------------------------------------------------------------


def facts_of(state: State) -> Facts:
    """Return the facts of a folded state."""
    place = _place(state)
    reason = reason_of(state)
    live = [file.size_bytes for file in state.files.values() if file.live]
    return Facts(
        id=experiment_id(state.project, state.name),
        project=state.project,
        name=state.name,
        status=status_of(state),
        title=state.title.value,
        names=old_names(state),
        folder=state.folder.value,
        reason=None if reason is None else {**reason},
        tags=list(state.tags.value or ()),
        description=state.description.value,
        notes=state.notes.value,
        archived=bool(state.archived.value),
        created_ns=state.created_ns,
        updated_ns=state.updated_ns,
        ended_ns=ended_ns_of(state),
        host=_text(place.get("host")),
        user=_text(place.get("userName")),
        commit=_text(place.get("gitCommit")),
        files=state.live_files,
        size=sum(live),
        points=state.points,
        logs=state.logs,
        events=state.events,
        params={key: register.value for key, register in state.parameters.items()},
        metrics={name: facts for _, metric in sorted(state.metrics.items()) for name, facts in _series(metric)},
    )


def _place(state: State) -> dict[str, Any]:
    """Return where the writer runs that opened the experiment last; children do not count."""
    opened = [writer for writer in state.writers.values() if writer.place is not None and not writer.child]
    last = max(opened, key=lambda writer: (writer.first_ns, writer.id), default=None)
    return (last.place or {}) if last is not None else {}


def _text(value: object) -> str | None:
    # An opening event may come from anywhere: only texts are texts.
    return value if isinstance(value, str) else None


def _series(metric: Metric) -> list[tuple[str, SeriesFacts]]:
    step = last_step_of(metric)
    return [(series_name(metric.name, field), _facts(series, step)) for field, series in sorted(metric.series.items())]


def _facts(series: Series, step: Number | None) -> SeriesFacts:
    mean = series.total / series.counted if series.counted else None
    return SeriesFacts(series.count, series.first, series.last, series.min, series.max, mean, step)


# -- fields -----------------------------------------------------------------------------------------------------------


def kind_of(field: str) -> Kind | None:
    """Return the kind of a field's values; None if there is no such field."""
    if field.startswith(PARAMS) and field != PARAMS:
        return "any"
    if field.startswith(METRICS) and field != METRICS:
        return "number"
    return FIELDS.get(field)


def value_of(facts: Facts, field: str) -> Any:
    """Return the value of a field; MISSING if the experiment has none, or there is no such field.

    Times are ns since the epoch, the duration is in seconds, the size in bytes; tags and names are lists.
    """
    return getter(field)(facts)


def getter(field: str) -> Getter:
    """Return the function that takes a field's value from facts, as `value_of` does."""
    if field.startswith(PARAMS):
        key = field[len(PARAMS) :]
        return lambda facts: facts.params.get(key, MISSING)
    if field.startswith(METRICS):
        series = of_series(field)
        return lambda facts: series(facts.metrics)
    return _GETTERS.get(field, lambda facts: MISSING)


def of_series(field: str) -> Callable[[dict[str, SeriesFacts]], Any]:
    """Return the function that takes the value of a `metrics.` field from the series of an experiment."""
    whole = field[len(METRICS) :]
    name, _, stat = whole.rpartition(".")
    place = STATS.index(stat) if name and stat in STATS else None

    def value(metrics: dict[str, SeriesFacts]) -> Any:
        found = metrics.get(whole)
        if found is not None:
            return _or_missing(found.last)
        if place is None:
            return MISSING
        found = metrics.get(name)
        return _or_missing(getattr(found, stat)) if found is not None else MISSING

    return value


def _or_missing(value: Any) -> Any:
    return MISSING if value is None else value


def all_names(facts: Facts) -> list[str]:
    """Return the names under which an experiment is found, the one that is shown first."""
    shown = [] if facts.title is None else [facts.title]
    return list(dict.fromkeys([*shown, facts.name, *facts.names]))


def duration_s(facts: Facts) -> float | Missing:
    """Return the seconds from the first event to the end, or to the latest event if it has not ended."""
    if not facts.created_ns:
        return MISSING
    end_ns = facts.ended_ns if facts.ended_ns is not None else facts.updated_ns
    return max(0, end_ns - facts.created_ns) / 1e9


def searched(facts: Facts) -> str:
    """Return the text, casefolded, in which words of a query are searched."""
    texts = [*all_names(facts), facts.project, facts.description or "", facts.notes or "", *facts.tags]
    return "\n".join(texts).casefold()


_GETTERS: Final[dict[str, Getter]] = {
    "id": lambda facts: facts.id,
    "name": all_names,
    "project": lambda facts: facts.project,
    "folder": lambda facts: _or_missing(facts.folder),
    "status": lambda facts: facts.status,
    "tags": lambda facts: facts.tags,
    "description": lambda facts: _or_missing(facts.description),
    "notes": lambda facts: _or_missing(facts.notes),
    "archived": lambda facts: facts.archived,
    "created": lambda facts: facts.created_ns or MISSING,
    "updated": lambda facts: facts.updated_ns or MISSING,
    "ended": lambda facts: _or_missing(facts.ended_ns),
    "duration": duration_s,
    "host": lambda facts: _or_missing(facts.host),
    "user": lambda facts: _or_missing(facts.user),
    "commit": lambda facts: _or_missing(facts.commit),
    "files.count": lambda facts: facts.files,
    "size": lambda facts: facts.size,
    "points": lambda facts: facts.points,
}


def shown_value(field: str, value: Any) -> Any:
    """Return a field's value as answers and tables hold it: times as ISO text, the name that is shown, plain JSON."""
    kind = kind_of(field)
    if kind == "time":
        return utc_text(value)
    if field == "name":
        return value[0]
    return to_json(value)


def shown_values(facts: Facts, fields: Iterable[str]) -> dict[str, Any]:
    """Return the values of fields as answers hold them, those that an experiment has."""
    found = {field: value_of(facts, field) for field in fields}
    return {field: shown_value(field, value) for field, value in found.items() if value is not MISSING}
