"""Metrics: points appended one by one or in batches, read back by index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, cast

from .core.events import METRIC, POINT, POINTS, ROWS
from .core.limits import CHUNK_SIZE
from .core.names import check_metric_name, metric_id
from .core.values import INT_MAX, INT_MIN, PLAIN, field_values, page_arguments
from .errors import Damaged, InvalidValue, UnsupportedType, WriterGone
from .recording.process import loading

if TYPE_CHECKING:
    from .core.records import AppendBatchResult, AppendResult, MetricStats, MetricSummary, Point, PointPage
    from .reading.view import View
    from .recording.lifecycle import Handle
    from .recording.run import MetricTally
    from .recording.session import Session

Rows = list[dict[str, Any]]
Table = tuple[list[str], list[list[Any]]]

# A batch is split into events below the limit of a frame (1 MiB), with room for the names.
_FRAME_BUDGET_BYTES: Final = 900_000
_BYTES_PER_NUMBER: Final = 9


class _DeferredResult(dict[str, Any]):
    """Result of `append`: a dict whose numbers are computed at the first access, so an unused result costs nothing.

    `_tally` is None once they are computed. Every method of dict that reads is replaced by one that computes first.
    """

    __slots__ = ("_ordinal", "_tally")

    _tally: MetricTally | None
    _ordinal: int | None

    def _fill(self) -> None:
        tally = self._tally
        if tally is not None:
            index = tally.index_of(self._ordinal)
            self._set(index, index=index)
            self._tally = None

    def _set(self, last: int, **numbers: int) -> None:
        dict.update(self, numbers, bufferedDataPoints=(last + 1) % CHUNK_SIZE)

    def __missing__(self, key: str) -> Any:
        if self._tally is None:
            raise KeyError(key)
        self._fill()
        return self[key]

    def __reduce__(self) -> Any:
        return dict, (self.copy(),)

    def copy(self) -> dict[str, Any]:
        """Return a plain dict with the numbers."""
        self._fill()
        return dict(super().items())


def _filled(name: str) -> Any:
    """Return a method of dict that computes the numbers before it reads the dict."""
    inherited = getattr(dict, name)

    def method(self: _DeferredResult, *arguments: Any) -> Any:
        self._fill()
        return inherited(self, *arguments)

    return method


for _name in (
    "get", "keys", "values", "items", "pop", "popitem", "setdefault", "__contains__", "__iter__", "__reversed__",
    "__len__", "__eq__", "__ne__", "__repr__", "__or__", "__ror__", "__ior__",
):  # fmt: skip
    setattr(_DeferredResult, _name, _filled(_name))


class _DeferredBatchResult(_DeferredResult):
    """Result of `append_batch`, computed at the first access."""

    __slots__ = ("_last",)

    _last: int | None

    def _fill(self) -> None:
        tally = self._tally
        if tally is not None:
            last = tally.index_of(self._last)
            self._set(last, startIndex=tally.index_of(self._ordinal), endIndex=last)
            self._tally = None


class MetricsBuilder:
    """Lists the metrics of an experiment."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def list_all(self) -> list[MetricSummary]:
        """Return `[{metricId, name, description, tags, totalDataPoints, createdAt}]` of all metrics, sorted by name."""
        with self._handle.session.looking() as view:
            return view.metrics()


class MetricBuilder:
    """Records and reads one metric of an experiment."""

    __slots__ = ("_given", "_handle", "_name", "_template")

    def __init__(self, handle: Handle, name: str, given: dict[str, Any]) -> None:
        self._handle = handle
        self._name = name = check_metric_name(name)
        self._template = {
            "metricId": metric_id(handle.id, name),
            "chunkSize": CHUNK_SIZE,
        }
        # Description, tags and metadata to record with the next append.
        self._given = given

    def append(self, /, *arguments: Any, **fields: Any) -> AppendResult:
        """Record one point with any fields. On return it survives the end of this process.

        Returns `{metricId, index, bufferedDataPoints, chunkSize}`; its numbers are computed at the first access, and
        the index is -1 if the disk refused the point. Raises InvalidValue or UnsupportedType, naming the field; nothing
        is recorded then.
        """
        if arguments or not fields:
            _refuse_slip(arguments)
        for value in fields.values():
            if type(value) not in PLAIN:
                fields = field_values(fields)
                break
        if self._given:
            field_values(fields)
            self._describe()
        session = self._handle.session
        try:
            tally = session.tallies[self._name]
            ordinal = session.append(POINT, (self._name, fields), tally)
        except InvalidValue:
            # The fast path does not see long integers and lone surrogates: this check names the field.
            field_values(fields)
            raise
        except WriterGone:
            self._handle.session.refuse()
        result = _DeferredResult(self._template)
        result._tally = tally
        result._ordinal = ordinal
        return result  # type: ignore[return-value]  # an AppendResult that fills itself; cast() would cost a call

    def append_batch(self, points: Iterable[Mapping[str, Any]]) -> AppendBatchResult:
        """Record many points at once, as one event, or several if they do not fit into 1 MiB.

        Returns `{metricId, startIndex, endIndex, count, bufferedDataPoints, chunkSize}`. Raises InvalidValue or
        UnsupportedType for an empty list, or if any point is not acceptable; nothing is recorded then.
        """
        rows = points if type(points) is list else _listed(points)
        if not rows:
            raise InvalidValue("append_batch() was given no points", hint="give at least one, like [{'value': 0.5}]")
        table = _columns(rows)
        plain = None if table is not None else [_checked_point(row) for row in rows]
        if self._given:
            for row in rows:
                _checked_point(row)
            self._describe()
        session = self._handle.session
        try:
            tally = session.tallies[self._name]
            if table is None:
                first, last = self._append_rows(plain, session, tally)
            else:
                first, last = self._append_table(table, session, tally, rows)
        except InvalidValue:
            for row in rows:
                _checked_point(row)
            raise
        except WriterGone:
            self._handle.session.refuse()
        result = _DeferredBatchResult(self._template, count=len(rows))
        result._tally = tally
        result._ordinal = first
        result._last = last
        return cast("AppendBatchResult", result)

    def _append_table(
        self, table: Table, session: Session, tally: MetricTally, rows: Rows
    ) -> tuple[int | None, int | None]:
        names, columns = table
        count = len(columns[0])
        most = max(1, _FRAME_BUDGET_BYTES // (_BYTES_PER_NUMBER * len(names)))
        append = session.append
        if count <= most:
            first = append(POINTS, (self._name, names, columns), tally, count)
            return first, None if first is None else first + count - 1
        _check_encodable(columns, rows)
        begun: list[tuple[int | None, int]] = []
        for start in range(0, count, most):
            part = [column[start : start + most] for column in columns]
            size = len(part[0])
            begun.append((append(POINTS, (self._name, names, part), tally, size), size))
        return _ends(begun)

    def _append_rows(self, rows: Rows | None, session: Session, tally: MetricTally) -> tuple[int | None, int | None]:
        append = session.append
        return _ends([(append(ROWS, (self._name, part), tally, len(part)), len(part)) for part in _parts(rows or [])])

    def _describe(self) -> None:
        """Record description, tags and metadata. The caller has checked the points that follow: all or nothing."""
        self._handle.record(METRIC, (self._name, self._given))
        self._given = {}

    def read(self, start_index: int = 0, limit: int = 1000, superseded: bool = True) -> PointPage:
        """Return a page of points: `{data: [{index, data, createdAt}], startIndex, endIndex, total, hasMore}`.

        A negative start counts from the end; `total` is the number of points in the page; an unknown metric has an
        empty page. `superseded=False` leaves out points that a rewind has superseded, and fills the page with later
        ones: the next page starts at `endIndex + 1`. Includes every append of this process. If `gc` has freed points,
        a page begins with the first one on this machine. Raises InvalidValue for a `limit` over 10,000, ReleasedData if
        the whole page is not on this machine.
        """
        start, count = page_arguments(start_index, limit)

        def page(view: View) -> PointPage:
            points = view.metric_page(self._name, start, count, superseded=bool(superseded))
            if not points["data"]:
                view.refuse_released(self._name, start)
            return points

        with self._handle.session.looking() as view:
            try:
                return page(view)
            except Damaged:
                # The folder was edited: read from the journal alone.
                from .reading.read import fresh_view

                return page(fresh_view(self._handle.session.located()))

    def last(self) -> Point | None:
        """Return the last point that is not superseded, `{index, data, createdAt}`; None if there is none."""
        points = self.read(-1, 1, superseded=False)["data"]
        return points[0] if points else None

    def stats(self) -> MetricStats:
        """Return totals, times and the statistics of each series. Raises NotFound for a metric without points."""
        with self._handle.session.looking() as view:
            return view.metric_stats(self._name)

    def list_all(self) -> list[MetricSummary]:
        """Return all metrics of the experiment, sorted by name, as `MetricsBuilder.list_all`."""
        return MetricsBuilder(self._handle).list_all()


def _refuse_slip(arguments: tuple[Any, ...]) -> None:
    if not arguments:
        raise InvalidValue("append() was given no fields", hint="name them, like append(value=0.5, step=1)")
    first = arguments[0]
    if isinstance(first, Mapping):
        raise UnsupportedType("append() takes named fields, not a mapping", hint="use append(**{...}), or append_batch")
    given = repr(first) if isinstance(first, (int, float)) else "0.5"
    raise UnsupportedType("append() takes named fields only", hint=f"use append(value={given})")


def _listed(points: Iterable[Mapping[str, Any]]) -> list[Any]:
    if isinstance(points, (Mapping, str, bytes)) or not isinstance(points, Iterable):
        raise UnsupportedType(f"points are {type(points).__name__}, expected a list of mappings")
    return list(points)


def _columns(rows: list[Any]) -> Table | None:
    """Return the points as columns if all have the same fields and plain values; else None."""
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


def _check_encodable(columns: list[list[Any]], rows: Rows) -> None:
    """Check all points of a batch that takes several events, before the first event is recorded."""
    for column in columns:
        kinds = set(map(type, column))
        if str in kinds or (int in kinds and not _in_range([value for value in column if type(value) is int])):
            for row in rows:
                field_values(row)
            return


def _in_range(integers: list[int]) -> bool:
    return min(integers) >= INT_MIN and max(integers) <= INT_MAX


def _ends(begun: list[tuple[int | None, int]]) -> tuple[int | None, int | None]:
    """Return the ordinals of the first and the last point, from (ordinal of the first, size) of each part."""
    last, size = begun[-1]
    return begun[0][0], None if last is None else last + size - 1


def _parts(rows: Rows) -> Iterator[Rows]:
    """Yield rows in parts that each fit into a frame."""
    with loading():
        import msgspec

    part: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        length = len(msgspec.msgpack.encode(row))
        if part and size + length > _FRAME_BUDGET_BYTES:
            yield part
            part, size = [], 0
        part.append(row)
        size += length
    yield part
