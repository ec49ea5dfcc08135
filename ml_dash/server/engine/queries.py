"""Reads: lists, documents, pages of lines, down-sampled series; each from one consistent look at the documents."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar, cast

import msgspec

from ...core.names import check_prefix, metric_id
from ...core.protocol import MALFORMED, UNKNOWN, Refused
from ...core.ranges import Range, bounds, holes, page_of, size_of, windows
from ...core.records import (
    LogEntry,
    all_series,
    experiment_document,
    file_record,
    live_files,
    log_page,
    metric_meant,
    metric_stats,
    metric_summary,
    parameters_document,
    series_name,
)
from ...core.state import File, Metric, State
from ...core.values import texts_like_numbers, to_json, utc_text
from ...projection.lines import read_log
from ..stores import Documents, ExperimentRow, Filter, Place, Read, place_of
from .blocks import LINES, LOGS, series_of
from .ingest import decode_state
from .series import sample

_T = TypeVar("_T")
_LARGEST: Final = (1 << 63) - 1
_PAGE_BYTES: Final = 32 << 20
_SCANNED_AT_ONCE: Final = 20 * LINES


class Query:
    """Answers to readers. `ns` is a namespace, `experiment` an id. Any thread may call; raises Refused."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    # -- lists and documents -----------------------------------------------------------------------------------------

    def projects(self, ns: str) -> list[dict[str, Any]]:
        """The projects, by name, with how many experiments they have."""
        with self._documents.read() as tx:
            found = tx.projects(ns)
        return [
            {
                "name": row["project"],
                "experiments": row["experiments"],
                "createdAt": utc_text(row["created_ns"]),
                "updatedAt": utc_text(row["updated_ns"]),
            }
            for row in found
        ]

    def experiments(
        self,
        ns: str,
        *,
        project: str | None = None,
        status: str | None = None,
        tag: str | None = None,
        folder: str | None = None,
        q: str | None = None,
        sort: str = "updated",
        limit: int = 100,
        after: str | None = None,
    ) -> dict[str, Any]:
        """A page of experiments, how many there are, and what to give as `after` for the next page (or None)."""
        wanted = Filter(project=project, status=status, tag=tag, folder=folder, text=q, sort=sort)
        place = None if after is None else _read_place(after, sort)
        with self._documents.read() as tx:
            # One more than asked for tells whether there are more.
            rows = tx.experiments(ns, wanted, limit + 1, place)
            total = tx.count(ns, wanted)
        shown = rows[:limit]
        more = len(rows) > limit and bool(shown)
        return {
            "experiments": [_listed(row) for row in shown],
            "total": total,
            "next": _place_text(place_of(shown[-1], sort)) if more else None,
        }

    def experiment(self, ns: str, experiment: str) -> dict[str, Any]:
        """The mapping of `experiment.json`, and when the server last heard of it."""
        with self._looking(ns, experiment) as (_, row, state):
            document: dict[str, Any] = {**experiment_document(state)}
        document |= _text(document["metadata"])
        document["heardAt"] = utc_text(row.heard_ns)
        return document

    def get_parameters(self, ns: str, experiment: str) -> dict[str, Any]:
        """The parameters, flat, with when they were first and last set; `version` grows with every change."""
        with self._looking(ns, experiment) as (_, row, state):
            return parameters_answer(experiment, state, row.version)

    # -- logs --------------------------------------------------------------------------------------------------------

    def logs(
        self, ns: str, experiment: str, start: int, limit: int, level: str | None = None, q: str | None = None
    ) -> dict[str, Any]:
        """A page of log entries from number `start` (negative: from the end); those of a level, that hold a text.

        With a filter, `endIndex` is the last number that was looked at: go on from `endIndex + 1` while `hasMore`.
        """
        with self._looking(ns, experiment) as (tx, _, state):
            total = state.logs
            start, stop = bounds(start, limit, total)
            if level is None and q is None:
                entries = [_entry(line) for line in _bounded(_lines(tx, ns, experiment, LOGS, start, stop), len)]
                return {**log_page(entries, start, more=start + len(entries) < total and bool(entries))}
            wanted = _matching(level, q)
            entries, position = [], start
            while position < total and len(entries) < limit:
                upto = min(total, position + _SCANNED_AT_ONCE)
                for line in _lines(tx, ns, experiment, LOGS, position, upto):
                    entry = _entry(line)
                    position = entry["sequenceNumber"] + 1
                    if wanted(entry):
                        entries.append(entry)
                        if len(entries) == limit:
                            break
                else:
                    position = upto
        page = log_page(entries, start, more=position < total)
        return {**page, "endIndex": position - 1}

    # -- metrics -----------------------------------------------------------------------------------------------------

    def metrics(self, ns: str, experiment: str) -> list[dict[str, Any]]:
        """All metrics, by name, with their statistics."""
        with self._looking(ns, experiment) as (_, _, state):
            found = sorted(state.metrics.items())
            return [{**metric_summary(state, metric), "series": all_series(metric)} for _, metric in found]

    def metric_stats(self, ns: str, experiment: str, metric: str) -> dict[str, Any]:
        """Totals, times and the statistics of each series."""
        with self._looking(ns, experiment) as (_, _, state):
            return {**metric_stats(state, _metric(state, metric_meant(state, metric)))}

    def metric_page(
        self, ns: str, experiment: str, metric: str, start: int, limit: int, *, superseded: bool = True
    ) -> bytes:
        """A page of points from index `start` (negative: from the end), as JSON: the lines of `data.jsonl`.

        Without `superseded` it holds those that are current, and a negative start counts those.
        """
        with self._looking(ns, experiment) as (tx, _, state):
            metric = metric_meant(state, metric)
            known = state.metrics.get(metric)
            total = known.count if known is not None else 0
            current = list(holes(known.superseded if known is not None and not superseded else (), 0, total))
            chosen = page_of(current, start, limit)
            found = (one for window in windows(chosen, LINES) for one in _bulk(tx, ns, experiment, metric, window))
            indices, lines = _unzipped(_bounded(found, lambda one: len(one[1])))
        start = start if start >= 0 else indices[0] if indices else 0
        end = indices[-1] if indices else start - 1
        tail = {
            "startIndex": start,
            "endIndex": end,
            "total": len(lines),
            "hasMore": bool(lines) and end + 1 < (current[-1][1] if current else 0),
            "totalDataPoints": total,
        }
        return b'{"data":[' + b",".join(lines) + b"]," + msgspec.json.encode(tail)[1:]

    def series(
        self,
        ns: str,
        experiment: str,
        metric: str,
        *,
        points: int = 1000,
        start: int | None = None,
        end: int | None = None,
        field: str | None = None,
        superseded: bool = False,
    ) -> bytes:
        """Each series (or that of one field) in about `points` points, minima and maxima kept; indices [start, end).

        What is superseded is left out, unless it is asked for.
        """
        with self._looking(ns, experiment) as (tx, _, state):
            name = metric_meant(state, metric)
            if name != metric and field is None:
                field = next(one for one in state.metrics[name].series if series_name(name, one) == metric)
            metric, known = name, _metric(state, name)
            if field is not None and field not in known.series and not known.superseded:
                raise Refused(404, UNKNOWN, f"metric {metric!r} has no numeric field {field[:100]!r}")
            low, _ = bounds(start or 0, 1, known.count)
            high = known.count if end is None else bounds(end, 1, known.count)[0]
            low = min(low, known.count)
            high = max(low, min(high, known.count))
            without = () if superseded else known.superseded
            found = sample(
                tx, ns, experiment, metric, start=low, end=high, points=points, field=field, without=without
            )
        answer = {
            "metricId": metric_id(experiment, metric),
            "name": metric,
            "startIndex": low,
            "endIndex": high - 1,
            "totalDataPoints": known.count,
            "supersededDataPoints": size_of(known.superseded),
            "series": found,
        }
        return msgspec.json.encode(to_json(answer))

    # -- files -------------------------------------------------------------------------------------------------------

    def list_files(
        self, ns: str, experiment: str, prefix: str = "", tags: list[str] | None = None
    ) -> list[dict[str, Any]]:
        """Files that are listed, oldest first; `pending` where the content is still on its way."""
        with self._looking(ns, experiment) as (tx, _, state):
            here = {row.name for row in tx.blobs(ns, experiment)}
            return [file_answer(state, file, here) for file in live_files(state, check_prefix(prefix), tags)]

    def file_record(self, ns: str, experiment: str, file_id: str) -> dict[str, Any]:
        """One file, also a deleted one."""
        with self._looking(ns, experiment) as (tx, _, state):
            file = state.files.get(file_id)
            if file is None:
                raise Refused(404, UNKNOWN, "there is no such file")
            here = {file.blob} if tx.blob(ns, experiment, file.blob) is not None else set()
            return file_answer(state, file, here)

    def blob_of(self, ns: str, experiment: str, file_id: str) -> str:
        """The name of a file's content."""
        with self._looking(ns, experiment) as (_, _, state):
            file = state.files.get(file_id)
            if file is None:
                raise Refused(404, UNKNOWN, "there is no such file")
            return file.blob

    # -- how it is done ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _looking(self, ns: str, experiment: str) -> Iterator[tuple[Read, ExperimentRow, State]]:
        with self._documents.read() as tx:
            row = tx.experiment(ns, experiment)
            if row is None or not row.events:
                raise Refused(404, UNKNOWN, "there is no such experiment")
            yield tx, row, decode_state(row)


def file_answer(state: State, file: File, here: set[str]) -> dict[str, Any]:
    """A file's record; one whose content is not whole here is `pending`."""
    record: dict[str, Any] = {**file_record(state, file)}
    record |= _text(record["metadata"])
    if file.live and file.blob not in here:
        record["pending"] = True
    return record


def parameters_answer(experiment: str, state: State, version: int) -> dict[str, Any]:
    """What `GET` and `POST` of parameters answer."""
    times = [register.stamp[0] for register in state.parameters.values()]
    data = parameters_document(state)
    return {
        "id": f"{experiment}/parameters",
        "experimentId": experiment,
        "data": data,
        **_text(data),
        "version": version,
        "createdAt": utc_text(min(times)) if times else None,
        "updatedAt": utc_text(max(times)) if times else None,
    }


def _listed(row: ExperimentRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "project": row.project,
        "status": row.status,
        "description": row.description or None,
        "tags": list(row.tags) or None,
        "folder": row.folder or None,
        "createdAt": utc_text(row.created_ns),
        "updatedAt": utc_text(row.updated_ns),
        "endedAt": row.summary.get("endedAt"),
        "heardAt": utc_text(row.heard_ns),
        "counts": row.summary.get("counts", {}),
    }


def _place_text(place: Place) -> str:
    """A place as clients give it back; only for the same sorting."""
    return f"{place[1]}:{place[0]}"


def _read_place(text: str, sort: str) -> Place:
    identity, _, value = text.partition(":")
    numeric = sort != "name"
    if not identity.isdecimal() or (numeric and not (value.isascii() and value.isdecimal() and len(value) < 20)):
        raise Refused(400, MALFORMED, "after is not what `next` of a page was")
    return (min(int(value), _LARGEST) if numeric else value), identity


def _metric(state: State, name: str) -> Metric:
    metric = state.metrics.get(name)
    if metric is None:
        raise Refused(404, UNKNOWN, f"there is no metric {name!r}")
    return metric


def _lines(tx: Read, ns: str, experiment: str, series: str, start: int, stop: int) -> Iterator[bytes]:
    """Lines [start, stop) of a series of lines."""
    if start >= stop:
        return
    for block in tx.blocks(ns, experiment, series, start, stop):
        lines = block.lines.splitlines()
        yield from lines[max(0, start - block.first) : stop - block.first]


def _bulk(tx: Read, ns: str, experiment: str, metric: str, ranges: list[Range]) -> Iterator[tuple[int, bytes]]:
    """(index, line) of the points in some ranges that lie near each other."""
    start, stop = ranges[0][0], ranges[-1][1]
    lines = list(_lines(tx, ns, experiment, series_of(metric), start, stop))
    for low, high in ranges:
        yield from zip(range(low, high), lines[low - start : high - start], strict=True)


def _unzipped(pairs: Iterable[tuple[int, bytes]]) -> tuple[list[int], list[bytes]]:
    both = list(pairs)
    return [index for index, _ in both], [line for _, line in both]


def _bounded(found: Iterable[_T], size_of: Callable[[_T], int]) -> Iterator[_T]:
    """No more of them than an answer may hold; at least one."""
    size = 0
    for one in found:
        if size and size + size_of(one) > _PAGE_BYTES:
            return
        size += size_of(one)
        yield one


def _entry(line: bytes) -> LogEntry:
    """A log entry, with `text` where its metadata has texts that look like numbers."""
    entry = read_log(line)
    return cast("LogEntry", {**entry, **_text(entry["metadata"])})


def _text(values: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """`text`: which texts a reader of JSON is not to take for NaN or an infinity; nothing if there are none."""
    texts = texts_like_numbers(values) if values else []
    return {"text": texts} if texts else {}


def _matching(level: str | None, q: str | None) -> Callable[[LogEntry], bool]:
    text = (q or "").casefold()

    def matches(entry: LogEntry) -> bool:
        return (level is None or entry["level"] == level) and text in entry["message"].casefold()

    return matches
