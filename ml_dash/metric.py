"""Metrics: points appended one by one or in batches, read back by index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, cast

from .errors import Damaged, InvalidValue, NotFound, StorageError, UnsupportedType
from .events import METRIC, POINT, POINTS, ROWS
from .names import check_metric_name, experiment_id, metric_id
from .values import PLAIN, field_values

if TYPE_CHECKING:
    from .experiment import Experiment
    from .records import AppendBatchResult, AppendResult, MetricStats, MetricSummary, PointPage

CHUNK_SIZE: Final = 10_000
_FRAME_BUDGET: Final = 900_000
_BYTES_PER_NUMBER: Final = 9


class _Lazy(dict[str, Any]):
    """A mapping whose numbers are computed when somebody asks for them: who does not ask pays nothing."""

    __slots__ = ("_compute", "_ordinal")

    _compute: Any
    _ordinal: int | None

    def _fill(self) -> None:
        compute = self._compute
        if compute is not None:
            compute._index(self)
            self._compute = None

    def __missing__(self, key: str) -> Any:
        if self._compute is None:
            raise KeyError(key)
        self._fill()
        return self[key]

    def get(self, key: str, default: Any = None) -> Any:
        self._fill()
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._fill()
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return super().__iter__()

    def __len__(self) -> int:
        self._fill()
        return super().__len__()

    def keys(self) -> Any:
        self._fill()
        return super().keys()

    def values(self) -> Any:
        self._fill()
        return super().values()

    def items(self) -> Any:
        self._fill()
        return super().items()

    def __eq__(self, other: object) -> bool:
        self._fill()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __repr__(self) -> str:
        self._fill()
        return super().__repr__()

    def __reduce__(self) -> Any:
        self._fill()
        return dict, (dict(super().items()),)

    def copy(self) -> dict[str, Any]:
        """A plain dict of it."""
        self._fill()
        return dict(super().items())


class MetricsBuilder:
    """All metrics of an experiment."""

    def __init__(self, handle: Experiment) -> None:
        self._handle = handle

    def list_all(self) -> list[MetricSummary]:
        """`[{metricId, name, description, tags, totalDataPoints, createdAt}]` of the whole experiment, by name."""
        with self._handle._looking() as view:
            return view.metrics()


class MetricBuilder:
    """One metric of an experiment."""

    __slots__ = ("_handle", "_name", "_template", "given")

    def __init__(self, handle: Experiment, name: str, given: dict[str, Any]) -> None:
        self._handle = handle
        self._name = check_metric_name(name)
        self._template = {
            "metricId": metric_id(experiment_id(handle.project, handle.name), name),
            "chunkSize": CHUNK_SIZE,
        }
        self.given = given

    def append(self, *arguments: Any, **fields: Any) -> AppendResult:
        """Record one point with any fields; on return it survives the death of this process.

        Returns `{metricId, index, bufferedDataPoints, chunkSize}`; the numbers are computed when asked for. Raises
        InvalidValue or UnsupportedType naming the field; nothing is recorded then.
        """
        if arguments or not fields:
            _refuse_slip(arguments)
        for value in fields.values():
            if type(value) not in PLAIN:
                fields = field_values(fields)
                break
        handle = self._handle
        if self.given:
            self._describe()
        try:
            ordinal = handle._append(POINT, (self._name, fields), handle._tallies[self._name])
        except InvalidValue:
            # The fast path lets long integers and lone surrogates through; this names the culprit.
            field_values(fields)
            raise
        result = _Lazy(self._template)
        result._compute = self
        result._ordinal = ordinal
        return cast("AppendResult", result)

    def append_batch(self, points: Iterable[Mapping[str, Any]]) -> AppendBatchResult:
        """Record many points at once; returns `{metricId, startIndex, endIndex, count, bufferedDataPoints, chunkSize}`.

        One event (several where they do not fit into 1 MiB). Raises InvalidValue for an empty list; nothing is
        recorded if any point is not acceptable.
        """
        rows = points if type(points) is list else _listed(points)
        if not rows:
            raise InvalidValue("append_batch() was given no points", hint="give at least one, like [{'value': 0.5}]")
        table = _columns(rows)
        plain = None if table is not None else [_checked_point(row) for row in rows]
        if self.given:
            self._handle._check_open()
            self._describe()
        try:
            first, last = self._append_table(table) if table is not None else self._append_rows(plain or [])
        except InvalidValue:
            for row in rows:
                _checked_point(row)
            raise
        result = _Lazy({**self._template, "count": len(rows)})
        result._compute = _Batch(self, first, last)
        return cast("AppendBatchResult", result)

    def _append_table(self, table: tuple[list[str], list[list[Any]]]) -> tuple[int | None, int | None]:
        names, columns = table
        count = len(columns[0])
        most = max(1, _FRAME_BUDGET // (_BYTES_PER_NUMBER * len(names)))
        handle = self._handle
        tally = handle._tallies[self._name]
        if count <= most:
            first = handle._append(POINTS, (self._name, names, columns), tally, count)
            return first, first if first is None else first + count - 1
        ordinals: list[int | None] = []
        for start in range(0, count, most):
            part = [column[start : start + most] for column in columns]
            size = len(part[0])
            begun = handle._append(POINTS, (self._name, names, part), tally, size)
            ordinals += [begun, None if begun is None else begun + size - 1]
        return ordinals[0], ordinals[-1]

    def _append_rows(self, rows: list[dict[str, Any]]) -> tuple[int | None, int | None]:
        handle = self._handle
        tally = handle._tallies[self._name]
        ordinals: list[int | None] = []
        for part in _parts(rows):
            begun = handle._append(ROWS, (self._name, part), tally, len(part))
            ordinals += [begun, None if begun is None else begun + len(part) - 1]
        return ordinals[0], ordinals[-1]

    def _describe(self) -> None:
        self._handle._append(METRIC, (self._name, self.given))
        self.given = {}

    def read(self, start_index: int = 0, limit: int = 1000) -> PointPage:
        """A page of points: `{data: [{index, data, createdAt}], startIndex, endIndex, total, hasMore}`.

        A negative start counts from the end; `total` counts this answer; `limit` is at most 10,000, else InvalidValue;
        an unknown metric gives an empty page. Sees every append of this process.
        """
        with self._handle._looking() as view:
            try:
                return view.metric_page(self._name, start_index, limit)
            except Damaged:
                # Somebody edited the folder: the journal still knows.
                return self._fresh_page(start_index, limit)

    def _fresh_page(self, start_index: int, limit: int) -> PointPage:
        from .read import Located, fresh_view

        run, reading = self._handle._run, self._handle._reading
        located: Located | None = run.located if run is not None else reading
        assert located is not None
        return fresh_view(located).metric_page(self._name, start_index, limit)

    def stats(self) -> MetricStats:
        """Totals, times and the statistics of each series. Raises NotFound for a metric without points."""
        with self._handle._looking() as view:
            return view.metric_stats(self._name)

    def list_all(self) -> list[MetricSummary]:
        """All metrics of the experiment, by name."""
        return MetricsBuilder(self._handle).list_all()

    def _index(self, result: _Lazy) -> None:
        index = self._index_of(result._ordinal)
        dict.__setitem__(result, "index", index)
        dict.__setitem__(result, "bufferedDataPoints", (index + 1) % CHUNK_SIZE)

    def _index_of(self, ordinal: int | None) -> int:
        if ordinal is None:
            raise StorageError("this point has no index: the disk refused it, and it is not in the journal (yet)")
        from .fold import index_of

        run = self._handle._run
        if run is None:
            raise NotFound("the index of a point is known while its experiment is open", hint="ask before close()")
        with run.looking() as view:
            metric = view.state.metrics.get(self._name)
            index = index_of(metric, run.writer.id, ordinal) if metric is not None else None
        if index is None:
            raise NotFound("the index of this point is no longer known", hint="ask sooner, or use read()")
        return index


class _Batch:
    """Computes the numbers of a batch when they are asked for."""

    def __init__(self, metric: MetricBuilder, first: int | None, last: int | None) -> None:
        self._metric = metric
        self._first = first
        self._last = last

    def _index(self, result: _Lazy) -> None:
        end = self._metric._index_of(self._last)
        dict.__setitem__(result, "startIndex", self._metric._index_of(self._first))
        dict.__setitem__(result, "endIndex", end)
        dict.__setitem__(result, "bufferedDataPoints", (end + 1) % CHUNK_SIZE)


def _refuse_slip(arguments: tuple[Any, ...]) -> None:
    if not arguments:
        raise InvalidValue("append() was given no fields", hint="name them, like append(value=0.5, step=1)")
    shown = arguments[0] if isinstance(arguments[0], (int, float)) else "0.5"
    raise UnsupportedType("append() takes named fields only", hint=f"use append(value={shown})")


def _listed(points: Iterable[Mapping[str, Any]]) -> list[Any]:
    if isinstance(points, (Mapping, str, bytes)) or not isinstance(points, Iterable):
        raise UnsupportedType(f"points are {type(points).__name__}, expected a list of mappings")
    return list(points)


def _columns(rows: list[Any]) -> tuple[list[str], list[list[Any]]] | None:
    """The points as columns if all have the same fields and plain values; else None."""
    if set(map(type, rows)) != {dict}:
        return None
    names = list(rows[0])
    if not names or set(map(len, rows)) != {len(names)} or set(map(type, names)) != {str}:
        return None
    try:
        columns = [list(map(itemgetter(name), rows)) for name in names]
    except KeyError:
        return None
    return (names, columns) if all(set(map(type, column)) <= PLAIN for column in columns) else None


def _checked_point(row: object) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise UnsupportedType(f"a point is {type(row).__name__}, expected a mapping", hint="like {'value': 0.5}")
    if not row:
        raise InvalidValue("a point has no fields", hint="name at least one, like {'value': 0.5}")
    return field_values(row)


def _parts(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows in parts of about a frame's size."""
    import msgspec

    part: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        length = len(msgspec.msgpack.encode(row))
        if part and size + length > _FRAME_BUDGET:
            yield part
            part, size = [], 0
        part.append(row)
        size += length
    yield part
