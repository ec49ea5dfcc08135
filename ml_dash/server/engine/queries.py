"""Queries: lists, documents, pages of lines, down-sampled series; each from one version of an experiment.

Readers never wait for a writer, and see either all of a commit or nothing of it. There is one page of the database for
each thousand lines; so a page of an answer costs the blocks that it touches, and is made of the stored lines as they
are, without decoding them (`metric_page`).

Limits keep one request from taking all memory, or a thread for minutes: _PAGE_BYTES of lines in an answer, and
SEARCH_S in a search. A page that ends early says so (`hasMore`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar, cast

import msgspec

from ...core.as_of import AsOf, Moment, as_of_of
from ...core.envelope import Drawn
from ...core.json_values import texts_like_numbers, to_json
from ...core.limits import INT64_MAX
from ...core.names import check_prefix, metric_id
from ...core.protocol import MALFORMED, UNKNOWN, Refused
from ...core.ranges import Range, bounds, holes, page_of, size_of, windows
from ...core.records import (
    LogEntry,
    all_series,
    experiment_document,
    file_record,
    is_listed,
    log_page,
    metric_meant,
    metric_stats,
    metric_summary,
    parameters_document,
    series_name,
)
from ...core.sampling import LINES
from ...core.state import RUNNING, File, Metric, State
from ...core.times import utc_text
from ...projection.lines import read_log
from ...reading.log_search import Wanted
from ...reading.source import SeriesRequest
from ..stores import BlobRow, Documents, ExperimentRow, Filter, Place, place_of
from .blocks import LOGS, blocks_of, series_of
from .contents import Contents, Reader, steady
from .drawing import draw
from .log_search import LogIndexes, number_at, search
from .past import Past
from .series import sample

_T = TypeVar("_T")
# Most bytes of lines in one answer. Few answers come near it: a line may have a megabyte, but has a hundred bytes as
# a rule.
_PAGE_BYTES: Final = 32 << 20
EVERYTHING: Final = Wanted()
_ROWS: Final = 1000


class Query:
    """Answers to readers. `ns` is a namespace, `experiment` an id. Any thread may call; raises Refused (404, 400)."""

    def __init__(self, documents: Documents, reader: Reader, past: Past, until: AsOf | None = None) -> None:
        self._documents = documents
        self._reader = reader
        self._past = past
        self._until = until
        self._log_indexes = LogIndexes()

    def at(self, as_of: Moment) -> Query:
        """Return the same, of which each answer about an experiment is as it was at a moment. Raises InvalidValue."""
        until = as_of_of(as_of, time.time_ns())
        if until is None:
            return self
        then = Query(self._documents, self._reader, self._past, until)
        # Lines of a moment come first in those that are stored.
        then._log_indexes = self._log_indexes
        return then

    # -- lists and documents -----------------------------------------------------------------------------------------

    def projects(self, ns: str) -> list[dict[str, Any]]:
        """Return the projects, by name, with the number of their experiments."""
        with self._documents.view() as view:
            rows = view.projects(ns)
            running = [view.count(ns, Filter(project=row["project"], status=RUNNING)) for row in rows]
        return [
            {
                "name": row["project"],
                "experiments": row["experiments"],
                "running": alive,
                "createdAt": utc_text(row["created_ns"]),
                "updatedAt": utc_text(row["updated_ns"]),
            }
            for row, alive in zip(rows, running, strict=True)
        ]

    def stored(self, ns: str) -> dict[str, dict[str, int]]:
        """Return project → {"experiments", "bytes"}: raw bytes of segments, and the complete contents of files."""
        found: dict[str, dict[str, int]] = {}
        place: Place | None = None
        with self._documents.view() as view:
            while rows := view.experiments(ns, Filter(), _ROWS, place):
                for row in rows:
                    project = found.setdefault(row.project, {"experiments": 0, "bytes": 0})
                    project["experiments"] += 1
                    project["bytes"] += int(row.summary.get("bytes", 0))
                    if row.summary.get("counts", {}).get("files"):
                        project["bytes"] += sum(blob.size for blob in view.blobs(ns, row.id))
                place = place_of(rows[-1], Filter().sort)
        return found

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
        """Return {"experiments": a page, "total", "next": what to give as `after` for the next page, or None}."""
        wanted = Filter(project=project, status=status, tag=tag, folder=folder, text=q, sort=sort)
        place = None if after is None else _read_place(after, sort)
        with self._documents.view() as view:
            # One more than asked for shows whether there is a next page.
            rows = view.experiments(ns, wanted, limit + 1, place)
            total = view.count(ns, wanted)
        shown = rows[:limit]
        more = len(rows) > limit and bool(shown)
        return {
            "experiments": [_listed(row) for row in shown],
            "total": total,
            "next": _place_text(place_of(shown[-1], sort)) if more else None,
        }

    @steady
    def experiment(self, ns: str, experiment: str) -> dict[str, Any]:
        """Return the mapping of `experiment.json`, and `heardAt`: when the server last received something of it."""
        with self._looking(ns, experiment) as (contents, state):
            document: dict[str, Any] = {**experiment_document(state)}
        document |= _text(document["metadata"])
        document["heardAt"] = utc_text(contents.row.heard_ns)
        return document

    @steady
    def get_parameters(self, ns: str, experiment: str) -> dict[str, Any]:
        """Return the parameters, flat, and the times of the first and last change; `version` grows by each."""
        with self._looking(ns, experiment) as (contents, state):
            return parameters_answer(experiment, state, contents.row.version)

    # -- logs --------------------------------------------------------------------------------------------------------

    @steady
    def logs(
        self, ns: str, experiment: str, start: int, limit: int, wanted: Wanted = EVERYTHING, at: str | None = None
    ) -> dict[str, Any]:
        """Return a page of log entries from number `start` (negative: from the end), or from a time on; those wanted.

        With a filter, `endIndex` is the last number that was examined, and a page may be empty with more to come:
        continue from `endIndex + 1` while `hasMore`; a negative `start` then means the last ones that match.
        """
        with self._looking(ns, experiment) as (contents, state):
            total = state.logs
            if at is not None:
                start = number_at(contents, total, at)
            if not wanted:
                start, stop = bounds(start, limit, total)
                entries = [_entry(line) for line in _bounded(_lines(contents, LOGS, start, stop), len)]
                page = log_page(entries, start, more=start + len(entries) < total and bool(entries))
                return {**page, "totalEntries": total}
            found = search(contents, self._log_indexes, total, start, limit, wanted)
        entries = [shown_entry(entry) for entry in found.entries]
        page = log_page(entries, found.first, more=found.more)
        matching = {} if found.matching is None else {"matching": found.matching}
        return {**page, "endIndex": found.last, "totalEntries": total, **matching}

    # -- metrics -----------------------------------------------------------------------------------------------------

    @steady
    def metrics(
        self,
        ns: str,
        experiment: str,
        *,
        q: str | None = None,
        prefix: str = "",
        start: int = 0,
        limit: int | None = None,
    ) -> bytes:
        """Return {"metrics": a page of them, by name, with the statistics of each series, "total"} as JSON.

        Of those whose name begins with `prefix` and holds `q`, whatever its case.
        """
        with self._looking(ns, experiment) as (_, state):
            names: Iterable[str] = state.metrics
            if prefix or q:
                words = (q or "").casefold()
                names = (name for name in names if name.startswith(prefix) and words in name.casefold())
            wanted = list(names)
            # In the order of names, and one at a time: there may be a hundred thousand.
            stop = len(wanted) if limit is None else start + limit
            entries = []
            for name in wanted[start:stop]:
                metric = state.metrics[name]
                entries.append(_json({**metric_summary(state, metric), "series": all_series(metric)}))
        return b'{"metrics":[' + b",".join(entries) + b'],"total":' + str(len(wanted)).encode() + b"}"

    @steady
    def metric_stats(self, ns: str, experiment: str, metric: str) -> dict[str, Any]:
        """Return a metric's number of points, times, and the statistics of each series."""
        with self._looking(ns, experiment) as (contents, state):
            name = metric_meant(state, metric)
            stats: dict[str, Any] = {**metric_stats(state, _metric(state, name))}
            return stats | tiers(contents, name, stats["totalDataPoints"])

    @steady
    def metric_page(
        self, ns: str, experiment: str, metric: str, start: int, limit: int, *, superseded: bool = True
    ) -> bytes:
        """Return a page of points from index `start` (negative: from the end) as JSON: the lines of `data.jsonl`.

        Without `superseded`, only current points are counted and returned.
        """
        with self._looking(ns, experiment) as (contents, state):
            metric = metric_meant(state, metric)
            known = state.metrics.get(metric)
            total = known.count if known is not None else 0
            # The ranges of indices that count, in order; a page is then counted over them as if they were one.
            current = list(holes(known.superseded if known is not None and not superseded else (), 0, total))
            chosen = page_of(current, start, limit)
            # Ranges that lie within a thousand indices share their blocks, so they are read together.
            pairs = (pair for window in windows(chosen, LINES) for pair in _bulk(contents, metric, window))
            indices, lines = _unzipped(_bounded(pairs, lambda pair: len(pair[1])))
        # A start that was counted from the end becomes the index that it stands for. `total` is that of this page.
        start = start if start >= 0 else indices[0] if indices else 0
        end = indices[-1] if indices else start - 1
        tail = {
            "startIndex": start,
            "endIndex": end,
            "total": len(lines),
            "hasMore": bool(lines) and end + 1 < (current[-1][1] if current else 0),
            "totalDataPoints": total,
        }
        # The stored lines are JSON already: they are joined, and the other fields follow without their opening brace.
        return b'{"data":[' + b",".join(lines) + b"]," + msgspec.json.encode(tail)[1:]

    @steady
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
        """Return each series (or that of `field`) in about `points` points, as JSON, with all minima and maxima.

        Of points with indices [start, end); superseded ones are left out unless `superseded`.
        """
        with self._looking(ns, experiment) as (contents, state):
            name = metric_meant(state, metric)
            # Readers may name a series, `metric.field`: then its field is meant.
            if name != metric and field is None:
                field = next(key for key in state.metrics[name].series if series_name(name, key) == metric)
            metric, folded = name, _metric(state, name)
            if field is not None and field not in folded.series and not folded.superseded:
                raise Refused(404, UNKNOWN, f"metric {metric!r} has no numeric field {field[:100]!r}")
            # Both ends may be negative, that is counted from the end; they are brought into [0, count] and into
            # order.
            low, _ = bounds(start or 0, 1, folded.count)
            high = folded.count if end is None else bounds(end, 1, folded.count)[0]
            low = min(low, folded.count)
            high = max(low, min(high, folded.count))
            without = () if superseded else folded.superseded
            sampled = sample(contents, metric, start=low, end=high, points=points, field=field, without=without)
        answer = {
            "metricId": metric_id(experiment, metric),
            "name": metric,
            "startIndex": low,
            "endIndex": high - 1,
            "totalDataPoints": folded.count,
            "supersededDataPoints": size_of(folded.superseded),
            "series": sampled,
        }
        return _json(answer)

    @steady
    def drawn(self, ns: str, experiment: str, request: SeriesRequest) -> list[Drawn]:
        """Return a series of one experiment as envelopes, see `drawing.draw`; none if it has no such series."""
        with self._looking(ns, experiment) as (contents, state):
            return draw(contents, state, experiment, request)

    # -- files -------------------------------------------------------------------------------------------------------

    @steady
    def list_files(self, ns: str, experiment: str, prefix: str = "", tags: list[str] | None = None) -> bytes:
        """Return {"files": the records of listed ones, oldest first} as JSON.

        `pending` is true where the content has not arrived yet, `released` where the file was deleted or replaced since
        the moment that is looked back to.
        """
        prefix = check_prefix(prefix)
        with self._looking(ns, experiment) as (contents, state):
            here = {row.name for row in self._blobs(ns, experiment)}
            now = None if self._until is None else contents.state()
            # One at a time: there may be a hundred thousand.
            entries = [
                (file.stamp, _json(file_answer(state, file, here, now)))
                for file in state.files.values()
                if is_listed(file, prefix, tags)
            ]
        return b'{"files":[' + b",".join(entry for _, entry in sorted(entries)) + b"]}"

    @steady
    def file_record(self, ns: str, experiment: str, file_id: str) -> dict[str, Any]:
        """Return the record of one file, also of a deleted one."""
        with self._looking(ns, experiment) as (contents, state):
            file = state.files.get(file_id)
            if file is None:
                raise Refused(404, UNKNOWN, "there is no such file")
            record = file_answer(state, file, {file.blob})
            if file.live:
                with self._documents.view() as view:
                    here = view.blob(ns, experiment, file.blob) is not None
                now = None if self._until is None else contents.state()
                record = record if here else file_answer(state, file, set(), now)
            return record

    @steady
    def blob_of(self, ns: str, experiment: str, file_id: str) -> str:
        """Return the name of the blob that holds a file's content."""
        with self._looking(ns, experiment) as (_, state):
            file = state.files.get(file_id)
            if file is None:
                raise Refused(404, UNKNOWN, "there is no such file")
            return file.blob

    # -- how it is done ----------------------------------------------------------------------------------------------

    def _blobs(self, ns: str, experiment: str) -> list[BlobRow]:
        with self._documents.view() as view:
            return view.blobs(ns, experiment)

    @contextlib.contextmanager
    def _looking(self, ns: str, experiment: str) -> Iterator[tuple[Contents, State]]:
        """Give the contents of an experiment and its state. Raises Refused (404) if readers may not see it."""
        with self._documents.view() as view:
            row = view.experiment(ns, experiment)
            if row is None or not row.events:
                raise Refused(404, UNKNOWN, "there is no such experiment")
            contents = self._reader.contents(view, ns, row)
            yield contents, contents.state() if self._until is None else self._past.state(contents, self._until)


def tiers(contents: Contents, metric: str, count: int) -> dict[str, int]:
    """Return how many of a metric's points are in chunks, how many are not, and the number of chunks."""
    series = series_of(metric)
    chunks = [entry.count for entry in contents.blocks(series, 0, contents.archived(series)) if entry.chunk]
    return {"bufferedDataPoints": count - sum(chunks), "chunkedDataPoints": sum(chunks), "totalChunks": len(chunks)}


def file_answer(state: State, file: File, here: set[str], now: State | None = None) -> dict[str, Any]:
    """Return a file's record; `here` names the complete blobs: a file whose content is not among them is `pending`.

    `now` is the present state, where `state` is of the past: by it, the content may be `released`.
    """
    record: dict[str, Any] = {**file_record(state, file)}
    record |= _text(record["metadata"])
    if file.live and file.blob not in here:
        known = None if now is None else now.files.get(file.id)
        record["pending" if known is None or known.live else "released"] = True
    return record


def parameters_answer(experiment: str, state: State, version: int) -> dict[str, Any]:
    """Return the answer to `GET` and `POST` of parameters."""
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
    """Return an experiment as lists show it, from its row alone."""
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
    """Encode a place as text that clients give back. Valid for the same `sort` only."""
    return f"{place[1]}:{place[0]}"


def _read_place(text: str, sort: str) -> Place:
    """Decode what `_place_text` has encoded. Raises Refused (400) for any other text."""
    identity, _, value = text.partition(":")
    numeric = sort != "name"
    if not identity.isdecimal() or (numeric and not (value.isascii() and value.isdecimal() and len(value) < 20)):
        raise Refused(400, MALFORMED, "after is not what `next` of a page was")
    return (min(int(value), INT64_MAX) if numeric else value), identity


def _metric(state: State, name: str) -> Metric:
    """Return a metric. Raises Refused (404)."""
    metric = state.metrics.get(name)
    if metric is None:
        raise Refused(404, UNKNOWN, f"there is no metric {name!r}")
    return metric


def _lines(contents: Contents, series: str, start: int, stop: int) -> Iterator[bytes]:
    """Yield lines [start, stop) of the logs or of a metric."""
    if start >= stop:
        return
    for block in blocks_of(contents, series, start, stop):
        yield from block.lines(start, stop).splitlines()


def _bulk(contents: Contents, metric: str, ranges: list[Range]) -> Iterator[tuple[int, bytes]]:
    """Yield (index, line) of the points in some ranges that lie near each other, read together."""
    start, stop = ranges[0][0], ranges[-1][1]
    lines = list(_lines(contents, series_of(metric), start, stop))
    for low, high in ranges:
        yield from zip(range(low, high), lines[low - start : high - start], strict=True)


def _unzipped(pairs: Iterable[tuple[int, bytes]]) -> tuple[list[int], list[bytes]]:
    """Return the first and the second ones of pairs."""
    both = list(pairs)
    return [index for index, _ in both], [line for _, line in both]


def _bounded(items: Iterable[_T], size_of: Callable[[_T], int]) -> Iterator[_T]:
    """Yield items until they have as many bytes as one answer may hold; at least one."""
    size = 0
    for item in items:
        if size and size + size_of(item) > _PAGE_BYTES:
            return
        size += size_of(item)
        yield item


def _entry(line: bytes) -> LogEntry:
    """Decode a log entry as it is answered."""
    return shown_entry(read_log(line))


def shown_entry(entry: LogEntry) -> LogEntry:
    """Return a log entry with `text` where its metadata has texts that look like numbers."""
    return cast("LogEntry", {**entry, **_text(entry["metadata"])})


def _json(content: Any) -> bytes:
    """Encode an answer, or a part of one, as strict JSON."""
    return msgspec.json.encode(to_json(content))


def _text(values: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Return {"text": names of texts that a JSON reader must not take for NaN or an infinity}; {} if there are none."""
    texts = texts_like_numbers(values) if values else []
    return {"text": texts} if texts else {}
