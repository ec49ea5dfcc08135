"""One namespace of the server as readers ask it: the reading seam (`reading.source`) over `queries`.

Handlers of reading calls, and whatever else only looks, know the seam and not the server. So the same handlers serve
the folders of one machine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...core.envelope import DrawnPage
from ...core.protocol import Refused
from ...reading.listing import Asked, fields_answer, groups_answer
from ...reading.log_search import wanted
from ...reading.source import Answer, Content, Moment, SeriesRequest
from .run_index import RunIndex
from .services import Server


class ServerSource:
    """The experiments of one namespace. Any thread may call. Raises Refused (404, 400), NotFound, InvalidValue."""

    def __init__(self, core: Server, ns: str) -> None:
        self._core = core
        self._ns = ns

    # -- lists -------------------------------------------------------------------------------------------------------

    def projects(self) -> Answer:
        """Return {"projects": by name, with the number of their experiments, and of those that run}."""
        projects = self._core.projects(self._ns)
        return {"projects": projects}

    def experiments(
        self,
        *,
        where: str | None = None,
        sort: str | None = None,
        columns: Sequence[str] = (),
        start: int = 0,
        limit: int = 100,
    ) -> Answer:
        """Return a page of the experiments that match a query."""
        return self._index().experiments(Asked.of(where, sort, columns), start, limit)

    def fields(self, prefix: str = "", limit: int = 100) -> Answer:
        """Return the fields that begin so."""
        index, progress = self._index().whole()
        return fields_answer(index, prefix, limit) | progress

    def groups(self, by: str, *, where: str | None = None, columns: Sequence[str] = ()) -> Answer:
        """Return the values of a field, and the spread of columns over the experiments that have them."""
        asked = Asked.of(where, None, columns)
        index, progress = self._index().whole()
        return groups_answer(index, by, asked) | progress

    def comparison(self, ids: Sequence[str], *, columns: Sequence[str] = ()) -> Answer:
        """Return what some experiments are compared by."""
        asked = Asked.of(None, None, columns)
        return self._index().comparison(ids, asked.columns)

    def _index(self) -> RunIndex:
        return self._core.indexes.of(self._ns)

    # -- one experiment ----------------------------------------------------------------------------------------------

    def experiment(self, id: str, as_of: Moment = None) -> Answer:
        """Return the mapping of `experiment.json`, and `heardAt`."""
        return self._core.at(as_of).experiment(self._ns, id)

    def parameters(self, id: str, as_of: Moment = None) -> Answer:
        """Return the parameters, flat, under `data`."""
        return self._core.at(as_of).get_parameters(self._ns, id)

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
        """Return a page of log entries from number `start`, or from a time on."""
        return self._core.at(as_of).logs(self._ns, id, start, limit, wanted(levels, q, regex), at)

    def metrics(
        self,
        id: str,
        *,
        q: str | None = None,
        prefix: str = "",
        start: int = 0,
        limit: int | None = None,
        as_of: Moment = None,
    ) -> Answer:
        """Return a page of the metrics, by name, with the statistics of each series."""
        return self._core.at(as_of).metrics(self._ns, id, q=q, prefix=prefix, start=start, limit=limit)

    def metric_stats(self, id: str, metric: str, as_of: Moment = None) -> Answer:
        """Return the number of points of a metric, and the statistics of each series."""
        return self._core.at(as_of).metric_stats(self._ns, id, metric)

    def metric_page(
        self, id: str, metric: str, *, start: int = 0, limit: int = 1000, superseded: bool = True, as_of: Moment = None
    ) -> Answer:
        """Return a page of points from index `start` on; a negative one counts from the end."""
        return self._core.at(as_of).metric_page(self._ns, id, metric, start, limit, superseded=superseded)

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
        """Return the series of one metric down-sampled, see `Query.series`."""
        return self._core.at(as_of).series(
            self._ns, id, metric, points=points, start=start, end=end, field=field, superseded=superseded
        )

    # -- files -------------------------------------------------------------------------------------------------------

    def files(self, id: str, *, prefix: str = "", tags: list[str] | None = None, as_of: Moment = None) -> Answer:
        """Return {"files": records of listed files, oldest first}."""
        return self._core.at(as_of).list_files(self._ns, id, prefix, tags)

    def file(self, id: str, file: str, as_of: Moment = None) -> Answer:
        """Return the record of one file, also of a deleted one."""
        return self._core.at(as_of).file_record(self._ns, id, file)

    def open_file(self, id: str, file: str, start: int = 0, end: int | None = None) -> Content:
        """Return bytes [start, end) of a file's content."""
        record, blocks, size = self._core.open_file(self._ns, id, file, start, end)
        return Content(record["filename"], record["contentType"], record["checksum"], size, blocks)

    def history(self, id: str, start: int = 0, limit: int = 1000) -> Answer:
        """Return a page of what happened to the experiment, oldest first."""
        return self._core.history(self._ns, id, start, limit)

    # -- charts and changes ------------------------------------------------------------------------------------------

    def compare_series(self, request: SeriesRequest) -> DrawnPage:
        """Return one series of several experiments, as envelopes."""
        query = self._core.at(request.as_of)
        page = DrawnPage(request.metric, request.x, [], [])
        for experiment in request.experiments:
            try:
                drawn = query.drawn(self._ns, experiment, request)
            except Refused as refused:
                if refused.status != 404:
                    raise
                drawn = []
            page.series.extend(drawn)
            if not drawn:
                page.missing.append(experiment)
        return page

    def events(self, ids: Collection[str] | None = None) -> Mapping[str, int]:
        """See `Source.events`. A writer that is found dead counts as an event; 0 for one that was removed."""
        if ids is None:
            return self._index().events()
        found = self._core.events([(self._ns, experiment) for experiment in ids])
        return {experiment: found.get((self._ns, experiment), 0) for experiment in ids}

    # -- stores and changes ------------------------------------------------------------------------------------------

    def storage(self) -> Answer:
        """Return bytes of each project, and the quota of the namespace."""
        return self._core.storage(self._ns)

    def update(self, id: str, changes: Mapping[str, Any]) -> Answer:
        """Change title, notes, archived, description, tags or folder; return the new record."""
        self._core.update_experiment(self._ns, id, changes)
        return self.experiment(id)

    def remove(self, id: str) -> Answer:
        """Hide an experiment, and free the contents of its files."""
        self._core.remove_experiment(self._ns, id)
        return {"id": id, "removed": True}
