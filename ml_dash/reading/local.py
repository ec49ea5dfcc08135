"""Local folders as a source (see `reading.source`): many stores at once, without a database.

    places      which experiments there are            (a scan of folders, repeated)
    runs        their facts, for lists and queries     (an index, in the cache)
    live        views, brought forward                 (in memory)
    charts      series and log lines                   (indexes, in the cache)

Where experiments are, nothing is written here but what any reader writes: the folder of a run that was killed long
before all of it was there. What changes one (`update`, `remove`) is given as `edits`, since it needs what stands above:
the writer of a recording, and what is known of servers. All indexes can be made again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec

from ..core.envelope import OF_METRIC, Drawn, DrawnPage
from ..core.json_values import texts_like_numbers, to_json
from ..core.limits import MAX_LIMIT
from ..core.names import metric_id
from ..core.ranges import Range, bounds, holes, page_of, size_of, windows
from ..core.records import (
    all_series,
    experiment_document,
    file_record,
    metric_meant,
    metric_stats,
    metric_summary,
    parameters_document,
    series_name,
)
from ..core.sampling import Sampling
from ..core.state import File, Metric, State
from ..core.times import utc_text
from ..disk.places import cache_folder
from ..errors import Damaged, InvalidValue, NotFound, ReadOnly
from ..journal.segment import BLOBS
from ..projection.checkpoint import LINES_PER_MARK
from ..projection.lines import read_points
from . import charts, log_search
from .as_of import view_as_of
from .cached import sweep
from .charts import Charts, Series
from .history import history
from .index import Row
from .indexing import Indexer
from .listing import Asked, comparison_answer, experiments_answer, fields_answer, groups_answer, projects_answer
from .live import LiveViews
from .located import Located
from .log_search import Search
from .places import Found, places_of
from .runs import Runs
from .source import Answer, Content, Moment, SeriesRequest
from .view import Lines, View, check_limit

_T = TypeVar("_T")
_BLOCK_BYTES: Final = 256 << 10
_encode: Final = msgspec.json.Encoder().encode


class Edits(Protocol):
    """What may change local experiments, and what is known of them beside the folders."""

    def update(self, located: Located, changes: Mapping[str, Any]) -> None:
        """Record changes of an experiment as an event. Raises InvalidInput, StorageError."""

    def remove(self, located: Located) -> None:
        """Remove an experiment for good. Raises StillOpen while a writer lives."""

    def uploads(
        self, located: Located, seen: Mapping[str, Sequence[Range]], contents: Set[str]
    ) -> list[dict[str, Any]]:
        """Return what each server to which an experiment is sent has acknowledged: `{remote, user, acknowledged, ...}`.

        `seen`: the numbers of the events that are counted, by writer; `contents`: the blobs of its present files.
        """

    def storage(self, experiments: Iterable[Found]) -> dict[str, Any]:
        """Return how many bytes experiments take, and what is known of their upload; see `Source.storage`."""


class LocalSource:
    """The experiments below some paths, of stores that are there or appear later. Any thread may call.

    With `patience_s` None every answer is complete. Otherwise an answer waits so long for indexes and then says how far
    they are; a thread goes on with them. `cache` is the folder for indexes (default: the user's).
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        edits: Edits | None = None,
        cache: Path | None = None,
        patience_s: float | None = None,
    ) -> None:
        folder = cache if cache is not None else cache_folder()
        with suppress(OSError):
            # Nobody else's: facts of experiments are in it.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._edits = edits
        self._places = places_of(paths, folder)
        self._views = LiveViews()
        self._indexer = Indexer(patience_s)
        self._runs = Runs(self._places, self._views, self._indexer, folder)
        self._charts = Charts(folder, self._indexer)
        if patience_s is not None:
            # Who stays a while also tidies up.
            self._indexer.begin("sweep", partial(_sweep, folder))

    @property
    def paths(self) -> list[Path]:
        """The paths that were given."""
        return self._places.paths

    @property
    def read_only(self) -> bool:
        """True if nothing can be changed."""
        return self._edits is None

    def close(self) -> None:
        """End the thread that makes indexes, and close their files."""
        self._indexer.close()
        self._runs.close()

    # -- lists --------------------------------------------------------------------------------------------------------

    def projects(self) -> Answer:
        """See `Source.projects`."""
        progress = self._runs.refresh()
        return _with(projects_answer(self._runs.index), progress)

    def experiments(
        self,
        *,
        where: str | None = None,
        sort: str | None = None,
        columns: Sequence[str] = (),
        start: int = 0,
        limit: int = 100,
    ) -> Answer:
        """See `Source.experiments`."""
        asked = Asked.of(where, sort, columns)
        progress = self._runs.refresh()
        return _with(experiments_answer(self._runs.index, asked, start, limit, more=self._beside), progress)

    def _beside(self, rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
        """Return what lists have beside the facts."""
        known = ((row, self._runs.found(row.key)) for row in rows)
        return {
            row.key: {"id": found.id, "heardAt": utc_text(row.facts.updated_ns)}
            for row, found in known
            if found is not None
        }

    def fields(self, prefix: str = "", limit: int = 100) -> Answer:
        """See `Source.fields`."""
        progress = self._runs.refresh()
        return _with(fields_answer(self._runs.index, prefix, limit), progress)

    def groups(self, by: str, *, where: str | None = None, columns: Sequence[str] = ()) -> Answer:
        """See `Source.groups`."""
        asked = Asked.of(where, None, columns)
        progress = self._runs.refresh()
        return _with(groups_answer(self._runs.index, by, asked), progress)

    def comparison(self, ids: Sequence[str], *, columns: Sequence[str] = ()) -> Answer:
        """See `Source.comparison`."""
        asked = Asked.of(None, None, columns)
        progress = self._runs.refresh()
        keys = {id: found.key for id in ids if (found := self._places.get(id)) is not None}
        answer = comparison_answer(self._runs.index, list(keys.values()), asked.columns, self._beside)
        known = {one["id"] for one in answer["experiments"]}
        return _with({**answer, "missing": [id for id in ids if id not in known]}, progress)

    # -- one experiment -----------------------------------------------------------------------------------------------

    def located(self, id: str) -> Located:
        """Return where an experiment is. Raises NotFound."""
        found = self._places.get(id)
        if found is None:
            raise NotFound("there is no such experiment", hint="see: ml-dash ls")
        return found.located

    def experiment(self, id: str, as_of: Moment = None) -> Answer:
        """See `Source.experiment`."""
        with self._looking(id, as_of) as view:
            state = view.state
            document: dict[str, Any] = {**experiment_document(state)}
            heard = state.updated_ns
            sent = self._edits is not None and as_of is None
            seen = {writer.id: list(writer.seen) for writer in state.writers.values()} if sent else {}
            contents = {file.blob for file in state.files.values() if file.live} if sent else set()
        answer = {**to_json(document), **_text(document["metadata"]), "id": id, "heardAt": utc_text(heard)}
        if self._edits is not None and sent:
            answer["uploads"] = self._edits.uploads(self.located(id), seen, contents)
        return answer

    def parameters(self, id: str, as_of: Moment = None) -> Answer:
        """See `Source.parameters`. `version` is the number of events."""
        with self._looking(id, as_of) as view:
            data = parameters_document(view.state)
            times = [register.stamp[0] for register in view.state.parameters.values()]
            version = view.state.events
        return {
            "id": f"{id}/parameters",
            "experimentId": id,
            "data": to_json(data),
            **_text(data),
            "version": version,
            "createdAt": utc_text(min(times)) if times else None,
            "updatedAt": utc_text(max(times)) if times else None,
        }

    def logs(
        self,
        id: str,
        *,
        start: int = 0,
        limit: int = 1000,
        levels: Sequence[str] = (),
        q: str | None = None,
        regex: str | None = None,
        at: str | None = None,
        as_of: Moment = None,
    ) -> Answer:
        """See `Source.logs`."""
        check_limit(limit)
        condition = log_search.wanted(levels, q, regex)

        def read(view: View) -> tuple[View, Lines]:
            return view, view.log_lines()

        def answer(view: View, lines: Lines) -> Answer:
            index = None
            if condition.levels:
                index = self._charts.log_index(view.journal, lines)
                if index is not None and index.end > lines.total:
                    # Of a moment in the past, which has fewer lines than are indexed.
                    index = None
            return Search(lines, index).page(condition, start, limit, at)

        return self._from_lines(id, as_of, read, answer)

    def metrics(
        self, id: str, *, q: str | None = None, prefix: str = "", start: int = 0, limit: int | None = None,
        as_of: Moment = None,
    ) -> Answer:  # fmt: skip
        """See `Source.metrics`."""
        wanted = (q or "").casefold()
        with self._looking(id, as_of) as view:
            state = view.state
            names = sorted(
                name for name in state.metrics if name.startswith(prefix) and wanted in name.casefold()
            )  # fmt: skip
            chosen = names[start:] if limit is None else names[start : start + limit]
            # One at a time: there may be a hundred thousand.
            entries = [
                _json({**metric_summary(state, metric), "series": all_series(metric)})
                for metric in map(state.metrics.__getitem__, chosen)
            ]
        return b'{"metrics":[' + b",".join(entries) + b'],"total":%d}' % len(names)

    def metric_stats(self, id: str, metric: str, as_of: Moment = None) -> Answer:
        """See `Source.metric_stats`."""
        with self._looking(id, as_of) as view:
            found = _metric(view.state, metric)
            stats: dict[str, Any] = {**metric_stats(view.state, found)}
        return {**to_json(stats), **_text(stats["metadata"])}

    def metric_page(
        self, id: str, metric: str, *, start: int = 0, limit: int = 1000, superseded: bool = True, as_of: Moment = None
    ) -> Answer:
        """See `Source.metric_page`."""
        check_limit(limit)

        def read(view: View) -> tuple[Lines | None, list[tuple[int, int]], int]:
            known = view.state.metrics.get(metric_meant(view.state, metric))
            if known is None or not known.count:
                return None, [], 0
            without = () if superseded else tuple(known.superseded)
            lines = view.point_lines(known.name)
            return lines, list(holes(without, lines.known.first, known.count)), known.count

        def answer(lines: Lines | None, current: list[tuple[int, int]], total: int) -> Answer:
            found: list[bytes] = []
            indices: list[int] = []
            for parts in windows(page_of(current, start, limit), LINES_PER_MARK):
                low = parts[0][0]
                here = _lines(lines, low, parts[-1][1]) if lines is not None else []
                for begin, end in parts:
                    found += here[begin - low : end - low]
                    indices += range(begin, end)
            kept = _within_bytes(found)
            indices = indices[:kept]
            first = start if start >= 0 else indices[0] if indices else 0
            last = indices[-1] if indices else first - 1
            tail = {
                "startIndex": first,
                "endIndex": last,
                "total": kept,
                "hasMore": bool(kept) and last + 1 < (current[-1][1] if current else 0),
                "totalDataPoints": total,
            }
            return b'{"data":[' + b",".join(found[:kept]) + b"]," + _encode(tail)[1:]

        return self._from_lines(id, as_of, read, answer)

    def sampled(
        self,
        id: str,
        metric: str,
        *,
        points: int = 1000,
        start: int | None = None,
        end: int | None = None,
        field: str | None = None,
        superseded: bool = False,
        as_of: Moment = None,
    ) -> Answer:
        """See `Source.sampled`."""

        def read(view: View) -> tuple[Metric, str | None, tuple[tuple[int, int], ...], Lines]:
            known = _metric(view.state, metric)
            chosen = field
            if known.name != metric and field is None:
                chosen = next(key for key in known.series if series_name(known.name, key) == metric)
            if chosen is not None and chosen not in known.series and not known.superseded:
                raise NotFound(f"metric {metric!r} has no numeric field {chosen[:100]!r}")
            return known, chosen, tuple(known.superseded), view.point_lines(known.name)

        def answer(
            known: Metric, chosen: str | None, without: tuple[tuple[int, int], ...], lines: Lines
        ) -> Answer:  # fmt: skip
            low, high = _range(start, end, lines.total)
            sampling = Sampling(low, high, points, chosen)
            for begin, stop in holes(() if superseded else without, max(low, lines.known.first), high):
                for first in range(begin, stop, MAX_LIMIT):
                    rows, _ = read_points(lines.read(first, min(stop, first + MAX_LIMIT)), first)
                    sampling.add_rows(rows, first)
            return _json(
                {
                    "metricId": metric_id(id, known.name),
                    "name": known.name,
                    "startIndex": low,
                    "endIndex": high - 1,
                    "totalDataPoints": lines.total,
                    "supersededDataPoints": size_of(without),
                    "series": {series_name(known.name, key): shown for key, shown in sampling.series().items()},
                }
            )

        return self._from_lines(id, as_of, read, answer)

    # -- files --------------------------------------------------------------------------------------------------------

    def files(self, id: str, *, prefix: str = "", tags: list[str] | None = None, as_of: Moment = None) -> Answer:
        """See `Source.files`."""
        with self._looking(id, as_of) as view:
            chosen = view.files(prefix=prefix, tags=tags)
        return b'{"files":[' + b",".join(_json({**record, **_text(record["metadata"])}) for record in chosen) + b"]}"

    def file(self, id: str, file: str, as_of: Moment = None) -> Answer:
        """See `Source.file`."""
        with self._looking(id, as_of) as view:
            record: dict[str, Any] = {**file_record(view.state, _file(view.state, file))}
        return {**to_json(record), **_text(record["metadata"])}

    def open_file(self, id: str, file: str, start: int = 0, end: int | None = None) -> Content:
        """See `Source.open_file`."""
        with self._looking(id, None) as view:
            found = _file(view.state, file)
            away = None
            path = view.journal / BLOBS / found.blob
            if not path.is_file():
                away = view.released(found.blob, found.filename)
        if away is not None:
            raise away
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            what = "was deleted or replaced" if not found.live else "is not on this machine"
            raise NotFound(f"the content of {found.filename!r} {what}", hint="run: ml-dash verify") from None
        stop = size if end is None else min(end, size)
        return Content(found.filename, found.content_type, found.checksum, size, _blocks(path, start, stop))

    def history(self, id: str, start: int = 0, limit: int = 1000) -> Answer:
        """See `Source.history`."""
        return history(self.located(id), start, limit)

    # -- charts, changes, stores --------------------------------------------------------------------------------------

    def compare_series(self, request: SeriesRequest) -> DrawnPage:
        """See `Source.compare_series`."""
        charts.check_request(request)
        over = request.x[len(OF_METRIC) :] if request.x.startswith(OF_METRIC) else None
        series: dict[str, Series | None] = {}
        others: dict[str, Series | None] = {}
        for id in dict.fromkeys(request.experiments):
            try:
                with self._looking(id, request.as_of) as view:
                    series[id] = charts.series_of(id, view, request.metric)
                    others[id] = charts.series_of(id, view, over) if over is not None else None
            except NotFound:
                series[id] = others[id] = None
        self._charts.bring([one for one in (*series.values(), *others.values()) if one is not None])
        drawn: dict[str, tuple[list[Drawn], int]] = {}
        with self._indexer.first():
            for id, one in series.items():
                if one is None:
                    continue
                try:
                    drawn[id] = self._charts.draw(one, request, others[id])
                except (OSError, Damaged):
                    # Somebody has changed the folder: what the journal says is drawn without an index.
                    again = self._again(id, request.as_of)
                    fresh = charts.series_of(id, again, request.metric)
                    other = charts.series_of(id, again, over) if over is not None else None
                    if fresh is not None:
                        drawn[id] = self._charts.draw(fresh, request, other)
        return charts.page_of(request, series, drawn)

    def events(self, ids: Collection[str] | None = None) -> Mapping[str, int]:
        """See `Source.events`. A writer that is found dead counts as an event."""
        return self._runs.events(ids)

    def storage(self) -> Answer:
        """See `Source.storage`."""
        return self._changing().storage(self._places.all(now=True).values())

    def update(self, id: str, changes: Mapping[str, Any]) -> Answer:
        """See `Source.update`. Raises ReadOnly without `edits`."""
        self._changing().update(self.located(id), changes)
        self._runs.refresh(now=True)
        return self.experiment(id)

    def remove(self, id: str) -> Answer:
        """See `Source.remove`. Raises ReadOnly without `edits`."""
        located = self.located(id)
        self._changing().remove(located)
        self._views.forget(located.journal)
        self._charts.forget(located.journal)
        self._runs.refresh(now=True)
        return {"id": id, "removed": True}

    # -- how it is done -----------------------------------------------------------------------------------------------

    def _changing(self) -> Edits:
        if self._edits is None:
            raise ReadOnly("experiments were opened for reading only", hint="use: ml-dash ui, or the command line")
        return self._edits

    @contextmanager
    def _looking(self, id: str, as_of: Moment) -> Iterator[View]:
        """Give a view of an experiment. Raises NotFound, InvalidValue, ReleasedData."""
        located = self.located(id)
        looking: AbstractContextManager[View] = (
            self._views.looking(located) if as_of is None else nullcontext(view_as_of(located, as_of))
        )
        try:
            with looking as view:
                yield view
        except FileNotFoundError as error:
            if isinstance(error, NotFound):
                raise
            raise NotFound("there is no such experiment any more", hint="see: ml-dash ls") from error

    def _again(self, id: str, as_of: Moment) -> View:
        """Return the view to read from where lines of the folder are not what was written."""
        with self._looking(id, as_of) as view:
            return view.elsewhere()

    def _from_lines(
        self, id: str, as_of: Moment, read: Callable[[View], tuple[Any, ...]], answer: Callable[..., _T]
    ) -> _T:
        """Return what `answer` makes of what `read` takes from a view; again from the journal if lines are changed.

        `answer` is called without the lock of the view: lines that are there stay there.
        """
        with self._looking(id, as_of) as view:
            taken = read(view)
        try:
            return answer(*taken)
        except (OSError, ValueError, LookupError, Damaged) as error:
            if isinstance(error, NotFound | InvalidValue):
                raise
            return answer(*read(self._again(id, as_of)))


def _sweep(folder: Path) -> bool:
    sweep(folder, time.time())
    return False


def _with(answer: dict[str, Any], progress: Mapping[str, int] | None) -> dict[str, Any]:
    return answer if progress is None else {**answer, "indexing": dict(progress)}


def _metric(state: State, name: str) -> Metric:
    metric = state.metrics.get(metric_meant(state, name))
    if metric is None or not metric.count:
        raise NotFound(f"there is no metric {name!r}")
    return metric


def _file(state: State, identity: str) -> File:
    found = state.files.get(identity)
    if found is None:
        raise NotFound("there is no such file")
    return found


def _range(start: int | None, end: int | None, total: int) -> tuple[int, int]:
    """Return the range that is asked for, both ends counted from the end if negative, within [0, total]."""
    low = min(bounds(start or 0, 1, total)[0], total)
    high = total if end is None else bounds(end, 1, total)[0]
    return low, max(low, min(high, total))


def _lines(lines: Lines, start: int, stop: int) -> list[bytes]:
    """Return lines of points; the first one is looked at, since somebody may have edited the file."""
    found = lines.read(start, stop).splitlines()
    if len(found) != stop - start or not found[0].startswith(b'{"index":%d,' % start):
        raise Damaged(f"{lines.path} does not hold points {start} to {stop - 1} where it should")
    return found


def _within_bytes(lines: Sequence[bytes]) -> int:
    """Return how many lines fit into one answer; at least one."""
    size = 0
    for place, line in enumerate(lines):
        size += len(line)
        if place and size > log_search.PAGE_BYTES:
            return place
    return len(lines)


def _blocks(path: Path, start: int, end: int) -> Iterator[bytes]:
    """Yield bytes [start, end) of a file, opened once the first is asked for."""
    if start >= end:
        return
    with path.open("rb") as file:
        file.seek(start)
        left = end - start
        while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
            left -= len(block)
            yield block


def _json(content: Any) -> bytes:
    return _encode(to_json(content))


def _text(values: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """Return {"text": names of texts that a JSON reader must not take for NaN or an infinity}; {} if there are none."""
    texts = texts_like_numbers(values) if values else []
    return {"text": texts} if texts else {}
