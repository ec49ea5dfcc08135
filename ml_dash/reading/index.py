"""An index of the facts of many experiments: filtered, sorted, paged and grouped without reading any of them again.

It is made from facts that its owner puts in, and may be thrown away at any time. The owner knows what there is and
says, by a version, when facts are out of date:

    for key in index.stale({key: version, ...}):      # what is gone is forgotten
        index.put(key, version, facts_of(...))
    index.page(where, sort, columns, 0, 100)

In memory an experiment takes one `Facts` without parameters and metrics, and these two encoded, about a kilobyte in
all. What queries ask for is decoded once for all experiments, by column, and kept while it is asked for; a put brings
the columns up to date in place. With a path, rows are kept in an SQLite file as well, so that the next process begins
with them. The file is only a copy: if it is damaged, of another version or held by another process, the index does
without it.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from .facts import (
    FIELDS,
    METRICS,
    MISSING,
    PARAMS,
    Facts,
    SeriesFacts,
    getter,
    kind_of,
    of_series,
    searched,
    shown_value,
)
from .index_file import IndexFile
from .where import SEARCHED, Sort, Where

log = logging.getLogger("ml_dash")

_COLUMNS_KEPT: Final = 64
_FREQUENT: Final = 20
# A smaller share of all is sorted each time.
_FEW: Final = 0.1
_NUMBERS: Final = (int, float)
_LATEST_FIRST: Final = Sort("updated", descending=True)

_packed: Final = msgspec.msgpack.Encoder()
_read_params: Final = msgspec.msgpack.Decoder(dict[str, Any])
_read_names: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_read_metrics: Final = msgspec.msgpack.Decoder(dict[str, SeriesFacts])


class Row(NamedTuple):
    """One experiment on a page: its facts without parameters and metrics, and the values of the columns asked for.

    A column that it does not have is not in `values`. Values are plain JSON: see `facts.shown_value`.
    """

    key: str
    facts: Facts
    values: dict[str, Any]


class Page(NamedTuple):
    """Rows `start` to `start + len(rows)` of the `total` that match."""

    rows: list[Row]
    total: int


class FieldFacts(NamedTuple):
    """A field that experiments have: how many, the kind of its values, and the most frequent texts among them."""

    name: str
    kind: str
    runs: int
    values: list[str]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, standard deviation (of the sample; 0 for one value), least, greatest and number of finite values."""

    mean: float
    sd: float
    min: float
    max: float
    count: int


class Group(NamedTuple):
    """The experiments with one value of a field (None: without it), and the spread of columns over them."""

    value: Any
    runs: int
    values: dict[str, Spread]


@dataclass(slots=True)
class _Stored:
    """One experiment: its version and parts as they are in the file, and its facts without what is encoded."""

    slot: int
    version: bytes
    facts: Facts
    params: bytes
    metrics: bytes


class Index:
    """Facts of experiments by key; any thread may call. Keys are texts, versions anything that msgpack can hold."""

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.RLock()
        self._stored: dict[str, _Stored] = {}
        # Slot → what lies there; None where one was forgotten, until the next put takes its place.
        self._slots: list[_Stored | None] = []
        self._keys: list[str] = []
        self._free: list[int] = []
        self._columns: OrderedDict[str, list[Any]] = OrderedDict()
        # Field → how many experiments have values of which kind; made when it is first asked for.
        self._fields: dict[str, Counter[str]] | None = None
        # All slots in the order of lists without another, until anything is put or forgotten.
        self._latest: list[int] | None = None
        # Field → its most frequent texts, until a value of the column changes.
        self._texts: dict[str, list[str]] = {}
        self._file = IndexFile(path) if path is not None else None
        if self._file is not None:
            for key, version, head, params, metrics in self._file.rows():
                self._place(key, version, head, params, metrics)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, key: object) -> bool:
        return key in self._stored

    def close(self) -> None:
        """Close the file; the index goes on in memory."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    # -- what there is ------------------------------------------------------------------------------------------------

    def stale(self, present: Mapping[str, Any]) -> list[str]:
        """Return the keys of `present`, key → version, that are new or of another version; forget all other keys."""
        with self._lock:
            self.forget([key for key in self._stored if key not in present])
            stored = self._stored
            return [
                key
                for key, version in present.items()
                if key not in stored or stored[key].version != _packed.encode(version)
            ]

    def put(self, key: str, version: Any, facts: Facts) -> None:
        """Take the facts of an experiment in place of those that were there."""
        self.put_all([(key, version, facts)])

    def put_all(self, rows: Iterable[tuple[str, Any, Facts]]) -> None:
        """Take many facts at once, (key, version, facts): with a file, faster than one by one."""
        with self._lock:
            written = []
            for key, version, facts in rows:
                params, metrics = _packed.encode(facts.params), _packed.encode(facts.metrics)
                head = msgspec.structs.replace(facts, params={}, metrics={})
                packed_version = _packed.encode(version)
                before = self._stored.get(key)
                stored = self._place(key, packed_version, head, params, metrics)
                self._note(before, stored)
                self._refresh(stored.slot, facts)
                written.append((key, packed_version, _packed.encode(head), params, metrics))
            if self._file is not None:
                self._file.write(written)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop experiments, as far as they are there."""
        with self._lock:
            gone = [key for key in keys if key in self._stored]
            for key in gone:
                stored = self._stored.pop(key)
                self._note(stored, None)
                slot = stored.slot
                self._slots[slot] = None
                self._free.append(slot)
                for column in self._columns.values():
                    column[slot] = MISSING
            if gone:
                self._latest = None
                self._texts.clear()
            if gone and self._file is not None:
                self._file.remove(gone)

    def get(self, key: str) -> Facts | None:
        """Return all facts of an experiment; None if it is not there."""
        with self._lock:
            stored = self._stored.get(key)
            return None if stored is None else _whole(stored)

    def _place(self, key: str, version: bytes, head: Facts, params: bytes, metrics: bytes) -> _Stored:
        known = self._stored.get(key)
        if known is not None:
            slot = known.slot
        elif self._free:
            slot = self._free.pop()
        else:
            slot = len(self._slots)
            self._slots.append(None)
            self._keys.append("")
            for column in self._columns.values():
                column.append(MISSING)
        if known is None:
            self._texts.clear()
        stored = _Stored(slot, version, head, params, metrics)
        self._latest = None
        self._stored[key] = self._slots[slot] = stored
        self._keys[slot] = key
        return stored

    def heads(self) -> list[Facts]:
        """Return the facts of all experiments, archived ones too, without their parameters and metrics."""
        with self._lock:
            return [stored.facts for stored in self._stored.values()]

    # -- lists --------------------------------------------------------------------------------------------------------

    def page(
        self,
        where: Where | None = None,
        sort: Sort | None = None,
        columns: Sequence[str] = (),
        start: int = 0,
        limit: int = 100,
        keys: Iterable[str] | None = None,
        *,
        archived: bool = False,
    ) -> Page:
        """Return a page of the experiments that match, in the order of `sort` (default: the latest written first).

        Experiments without the field sorted by come last; equal ones by the time of their last event, then by name.
        `keys` bounds what is looked at. Archived ones are left out, unless `archived` or a query that names the field.
        """
        with self._lock:
            rows = self._sorted(self._matching(where, keys, archived=archived), sort or _LATEST_FIRST)
            chosen = rows[start : start + limit]
            return Page([self._row(slot, columns) for slot in chosen], len(rows))

    def groups(
        self, by: str, where: Where | None = None, columns: Sequence[str] = (), *, archived: bool = False
    ) -> list[Group]:
        """Return the values of a field with the spread of columns over the experiments that have them, largest first.

        An experiment with several tags counts in the group of each.
        """
        with self._lock:
            members: dict[Any, tuple[Any, list[int]]] = {}
            rows = self._matching(where, None, archived=archived)
            values = self._load((by, *columns))
            for slot in rows:
                value = values[by][slot]
                for one in _members(by, value):
                    members.setdefault(_hashable(one), (one, []))[1].append(slot)
            found = [Group(value, len(slots), _spreads(columns, values, slots)) for value, slots in members.values()]
            return sorted(found, key=lambda group: (group.value is None, -group.runs, str(group.value)))

    def fields(self, prefix: str = "", limit: int = 100) -> list[FieldFacts]:
        """Return the fields whose name begins with `prefix` or has it behind its first dot, those of most runs first.

        The fields that every experiment has come first. A series is listed once, without its statistics.
        """
        with self._lock:
            counted = self._counted()
            wanted = prefix.lower()
            fixed = [name for name in FIELDS if name.startswith(wanted)]
            others = [name for name in counted if _begins(name.lower(), wanted)]
            others.sort(key=lambda name: (-counted[name].total(), name))
            named = [*fixed, *others][:limit]
            having = [name for name in named if _has_texts(name, counted)]
            columns = self._load([name for name in having if name not in self._texts])
            texts = self._texts | {name: _frequent(column) for name, column in columns.items()}
            self._texts = {name: found for name, found in texts.items() if name in self._columns}
            return [self._field(name, counted, texts[name] if name in having else []) for name in named]

    def _field(self, name: str, counted: dict[str, Counter[str]], texts: list[str]) -> FieldFacts:
        kinds = counted.get(name)
        if kinds is None:
            kind = {"time": "time", "boolean": "boolean"}.get(str(kind_of(name)), "number")
            kind = "text" if kind_of(name) in ("text", "tags", "status") else kind
            runs = len(self._stored)
        else:
            kind = next(iter(kinds)) if len(kinds) == 1 else "mixed"
            runs = kinds.total()
        return FieldFacts(name, kind, runs, texts)

    def _matching(self, where: Where | None, keys: Iterable[str] | None, *, archived: bool) -> Sequence[int]:
        """Return the slots that match, in any order."""
        if keys is None:
            slots: Sequence[int] = [stored.slot for stored in self._stored.values()]
        else:
            slots = [self._stored[key].slot for key in dict.fromkeys(keys) if key in self._stored]
        if not archived and (where is None or "archived" not in where.fields):
            column = self._load(("archived",))["archived"]
            slots = [slot for slot in slots if column[slot] is not True]
        if where is None:
            return slots
        loaded = self._load(where.fields)
        return where.select(slots, loaded.__getitem__)

    def _sorted(self, slots: Sequence[int], sort: Sort) -> list[int]:
        values = self._load((sort.field,))[sort.field]
        ordered = self._latest_first(slots)
        if sort == _LATEST_FIRST:
            return ordered
        # A stable sort keeps that order among equal values.
        having = [slot for slot in ordered if values[slot] is not MISSING and values[slot] == values[slot]]
        without = [slot for slot in ordered if values[slot] is MISSING or values[slot] != values[slot]]
        having.sort(key=lambda slot: _sort_key(values[slot]), reverse=sort.descending)
        return having + without

    def _latest_first(self, slots: Sequence[int]) -> list[int]:
        if len(slots) < _FEW * len(self._stored):
            return sorted(slots, key=self._rank)
        if self._latest is None:
            self._latest = sorted((stored.slot for stored in self._stored.values()), key=self._rank)
        wanted = set(slots)
        return [slot for slot in self._latest if slot in wanted]

    def _rank(self, slot: int) -> tuple[int, str, str, str]:
        facts = _there(self._slots[slot]).facts
        return -facts.updated_ns, facts.project, facts.name, self._keys[slot]

    def _row(self, slot: int, columns: Sequence[str]) -> Row:
        stored = _there(self._slots[slot])
        # A page is short: what no query has asked for is not worth a column.
        whole = _whole(stored) if any(field not in self._columns for field in columns) else stored.facts
        found = {f: self._columns[f][slot] if f in self._columns else getter(f)(whole) for f in columns}
        values = {field: shown_value(field, value) for field, value in found.items() if value is not MISSING}
        return Row(self._keys[slot], stored.facts, values)

    # -- columns ------------------------------------------------------------------------------------------------------

    def _load(self, fields: Iterable[str]) -> dict[str, list[Any]]:
        """Return the columns of fields, field → values by slot; those that are not there are made in one pass."""
        wanted = list(dict.fromkeys(fields))
        missing = [field for field in wanted if field not in self._columns]
        params = [field for field in missing if field.startswith(PARAMS)]
        metrics = [field for field in missing if field.startswith(METRICS)]
        for field in missing:
            if field not in params and field not in metrics:
                take = _taker(field)
                self._columns[field] = [MISSING if s is None else take(s.facts) for s in self._slots]
        if params:
            self._decode(params, lambda stored: _read_params.decode(stored.params), _param)
        if metrics:
            self._decode(metrics, lambda stored: _read_metrics.decode(stored.metrics), of_series)
        loaded = {field: self._columns[field] for field in wanted}
        for field in wanted:
            self._columns.move_to_end(field)
        while len(self._columns) > _COLUMNS_KEPT:
            # Nothing says any more whether a value changes.
            self._texts.pop(self._columns.popitem(last=False)[0], None)
        return loaded

    def _decode(
        self,
        fields: list[str],
        read: Callable[[_Stored], dict[str, Any]],
        taker: Callable[[str], Callable[[dict[str, Any]], Any]],
    ) -> None:
        takers = [taker(field) for field in fields]
        columns: list[list[Any]] = [[] for _ in fields]
        for stored in self._slots:
            values = {} if stored is None else read(stored)
            for take, column in zip(takers, columns, strict=True):
                column.append(take(values))
        self._columns.update(zip(fields, columns, strict=True))

    def _refresh(self, slot: int, facts: Facts) -> None:
        """Bring the columns up to date with new facts."""
        for field, column in self._columns.items():
            value = _taker(field)(facts)
            if column[slot] != value:
                self._texts.pop(field, None)
            column[slot] = value

    # -- names of fields ----------------------------------------------------------------------------------------------

    def _counted(self) -> dict[str, Counter[str]]:
        if self._fields is None:
            # Most experiments have the same fields as another.
            alike = Counter(tuple(_kinds(stored).items()) for stored in self._stored.values())
            self._fields = {}
            for kinds, runs in alike.items():
                _count(self._fields, dict(kinds), runs)
        return self._fields

    def _note(self, before: _Stored | None, after: _Stored | None) -> None:
        """Count the fields of an experiment in place of those that it had before."""
        if self._fields is None:
            return
        had = _kinds(before) if before is not None else {}
        has = _kinds(after) if after is not None else {}
        if had != has:
            _count(self._fields, had, -1)
            _count(self._fields, has, 1)


# -- values -----------------------------------------------------------------------------------------------------------


def _there(stored: _Stored | None) -> _Stored:
    assert stored is not None, "a slot that a list names is in use"
    return stored


def _whole(stored: _Stored) -> Facts:
    params, metrics = _read_params.decode(stored.params), _read_metrics.decode(stored.metrics)
    return msgspec.structs.replace(stored.facts, params=params, metrics=metrics)


def _taker(field: str) -> Callable[[Facts], Any]:
    return searched if field == SEARCHED else getter(field)


def _param(field: str) -> Callable[[dict[str, Any]], Any]:
    key = field[len(PARAMS) :]
    return lambda params: params.get(key, MISSING)


def _kind(value: Any) -> str:
    """Return the kind of a value, as `fields` names it."""
    if type(value) is bool:
        return "boolean"
    return "number" if type(value) in _NUMBERS else "text" if type(value) is str else "mixed"


def _kinds(stored: _Stored) -> dict[str, str]:
    """Return the fields of an experiment beside those that all have, and the kinds of their values."""
    kinds = {f"{PARAMS}{key}": _kind(value) for key, value in _read_params.decode(stored.params).items()}
    kinds.update((f"{METRICS}{name}", "number") for name in _read_names.decode(stored.metrics))
    return kinds


def _count(counted: dict[str, Counter[str]], kinds: Mapping[str, str], by: int) -> None:
    for name, kind in kinds.items():
        counter = counted.setdefault(name, Counter())
        counter[kind] += by
        if not counter[kind]:
            del counter[kind]
        if not counter:
            del counted[name]


def _has_texts(name: str, counted: Mapping[str, Counter[str]]) -> bool:
    return kind_of(name) in ("text", "tags", "status") or "text" in counted.get(name, ())


def _frequent(column: Sequence[Any]) -> list[str]:
    """Return the most frequent texts of a column, in lists too."""
    counted = Counter([value for value in column if type(value) is str])
    lists = [value for value in column if type(value) is list]
    counted.update([item for value in lists for item in value if type(item) is str])
    return [text for text, _ in counted.most_common(_FREQUENT)]


def _begins(name: str, wanted: str) -> bool:
    return name.startswith(wanted) or name.partition(".")[2].startswith(wanted)


def _sort_key(value: Any) -> tuple[int, Any]:
    """Return a key by which all values can be compared: numbers (and truths among them) before texts before others."""
    if type(value) in (int, float, bool):
        return 0, value
    if type(value) is str:
        return 1, value
    if type(value) is list and value and type(value[0]) is str:
        # Names and tags: by the first, which is the one shown.
        return 1, value[0]
    return 2, str(value)


def _members(by: str, value: Any) -> list[Any]:
    if value is MISSING or value == []:
        return [None]
    if by == "name":
        return [value[0]]
    return list(dict.fromkeys(value)) if by == "tags" else [shown_value(by, value)]


def _hashable(value: Any) -> Any:
    """Return what is equal for values of one group: `1` and `1.0` are, `true` and `1` are not."""
    return (type(value) is bool, value) if isinstance(value, int | float | str | None) else str(value)


def _spreads(columns: Sequence[str], loaded: Mapping[str, list[Any]], slots: list[int]) -> dict[str, Spread]:
    found = {}
    for field in columns:
        column = loaded[field]
        numbers = [float(v) for slot in slots if type(v := column[slot]) in _NUMBERS and v - v == 0]
        if numbers:
            found[field] = _spread(numbers)
    return found


def _spread(numbers: list[float]) -> Spread:
    count = len(numbers)
    mean = sum(numbers) / count
    sd = sqrt(sum((number - mean) ** 2 for number in numbers) / (count - 1)) if count > 1 else 0.0
    return Spread(mean, sd, min(numbers), max(numbers), count)
