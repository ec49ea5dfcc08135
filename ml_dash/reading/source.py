"""The reading seam: what everything that looks may ask, of local folders and of a server alike.

The command line, `ml_dash.experiments`, the dashboard and the REST calls for reading ask a `Source`. It has two
implementations, `reading.local.LocalSource` and `server.engine.source.ServerSource`, and one contract suite,
`tests/contracts/test_source.py`: the same recorded data give equal answers.

    list      projects  experiments  fields  groups
    one run   experiment  parameters  logs  metrics  metric_stats  metric_page  sampled  files  file  history
    charts    compare_series
    live      events
    store     storage
    change    update  remove

An answer is a mapping that can be encoded as JSON, or JSON already (`bytes`) where decoding it would be waste:
`decoded` gives the mapping of either. Shapes are those of the REST calls (docs/server.md). Numbers that JSON does not
have are the texts "NaN", "Infinity", "-Infinity"; `text` beside them names texts that only look like these.

Errors: NotFound for an experiment, metric or file that is not there; InvalidValue for an argument or a query;
ReleasedData for what was freed on this machine; InvalidInput and StillOpen for changes that are refused. Any thread
may call.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec

from ..core.envelope import STEP, DrawnPage

Answer: TypeAlias = "Mapping[str, Any] | bytes"
"""A mapping for JSON, or JSON."""

Moment: TypeAlias = "int | str | datetime | None"
"""The moment as of which to read: a number of events, a time (ISO 8601, or relative as `-2h`), or None for now."""


def decoded(answer: Answer) -> dict[str, Any]:
    """Return the mapping of an answer."""
    return msgspec.json.decode(answer) if isinstance(answer, bytes) else dict(answer)


@dataclass(frozen=True, slots=True)
class SeriesRequest:
    """A request for one series of some experiments, as envelopes of about `points` buckets each.

    `metric` is the name of a series (`loss`, `val.acc`). `x`: over what, one of `envelope.X_KINDS` or `metric:NAME`.
    `low`, `high`: bounds of x, both inclusive, None for none. `split`: a field of the points, by whose values each
    experiment gives several series. With `superseded`, points that a rewind has superseded are drawn too.
    """

    experiments: tuple[str, ...]
    metric: str
    points: int = 1000
    x: str = STEP
    low: float | None = None
    high: float | None = None
    split: str | None = None
    superseded: bool = False
    as_of: Moment = None


class Content(NamedTuple):
    """The content of a file, or bytes [start, end) of it: `blocks` to be read in turn and closed.

    `size_bytes` is that of the whole content.
    """

    filename: str
    content_type: str
    checksum: str
    size_bytes: int
    blocks: Iterator[bytes]


class Source(Protocol):
    """What can be read of some experiments, by their ids."""

    # -- lists --------------------------------------------------------------------------------------------------------

    def projects(self) -> Answer:
        """Return {"projects": [{"name", "experiments", "running", "createdAt", "updatedAt"}]}, by name."""

    def experiments(
        self,
        *,
        where: str | None = None,
        sort: str | None = None,
        columns: Sequence[str] = (),
        start: int = 0,
        limit: int = 100,
    ) -> Answer:
        """Return {"experiments": a page of those that match, "total": of all that match, "startIndex"}.

        `where` is a query, `sort` is FIELD or FIELD:desc (default `updated:desc`), `columns` are fields whose values
        are added to each. Archived ones are left out unless the query names `archived`. While an index is being made,
        `indexing` is {"done", "total"}: experiments that are known, and all. Raises InvalidValue for a wrong query.
        """

    def fields(self, prefix: str = "", limit: int = 100) -> Answer:
        """Return {"fields": [{"name", "kind", "runs", "values"}]}: fields that begin so, the most frequent first."""

    def groups(self, by: str, *, where: str | None = None, columns: Sequence[str] = ()) -> Answer:
        """Return {"groups": [{"value", "runs", "values": {column: {mean, sd, min, max, count}}}], "total"}."""

    def comparison(self, ids: Sequence[str], *, columns: Sequence[str] = ()) -> Answer:
        """Return {"experiments", "metrics", "missing"}: what these are compared by, archived ones included.

        Experiments are as in lists, in the order of `ids`, each with "params", all its parameters, flat. Metrics are
        the names of all their series, [{"name", "runs"}], those of most experiments first. Missing are ids of others.
        """

    # -- one experiment -----------------------------------------------------------------------------------------------

    def experiment(self, id: str, as_of: Moment = None) -> Answer:
        """Return the mapping of `experiment.json`, and `heardAt`: when something of it last arrived.

        `ml-dash ui` adds `uploads`: what each server to which it is sent has acknowledged.
        """

    def parameters(self, id: str, as_of: Moment = None) -> Answer:
        """Return {"id", "experimentId", "data", "version", "createdAt", "updatedAt"}; `data` is flat."""

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
        """Return a page of log entries from number `start`, negative from the end: {"logs", "startIndex", ...}.

        Only those of `levels`, holding the text `q` (in any case) or matching `regex`, if given. Filtered, `endIndex`
        is the last number that was examined: continue from `endIndex + 1` while `hasMore`; a negative `start` then
        means the last ones that match. `at`: the page whose middle is the first entry at or after that time.
        `totalEntries` counts all, `matching` those of `levels` where that is known.
        """

    def metrics(
        self, id: str, *, q: str | None = None, prefix: str = "", start: int = 0, limit: int | None = None,
        as_of: Moment = None,
    ) -> Answer:  # fmt: skip
        """Return {"metrics": [summary and `series` statistics], "total"}, by name; `q` is a part of the name."""

    def metric_stats(self, id: str, metric: str, as_of: Moment = None) -> Answer:
        """Return a metric's number of points, times, and the statistics of each series."""

    def metric_page(
        self, id: str, metric: str, *, start: int = 0, limit: int = 1000, superseded: bool = True, as_of: Moment = None
    ) -> Answer:
        """Return a page of points from index `start`, negative from the end, as in lines of `data.jsonl`."""

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
        """Return each series (or that of `field`) of points [start, end) in about `points` points (`core.sampling`)."""

    def files(self, id: str, *, prefix: str = "", tags: list[str] | None = None, as_of: Moment = None) -> Answer:
        """Return {"files": the records of listed ones, oldest first}."""

    def file(self, id: str, file: str, as_of: Moment = None) -> Answer:
        """Return the record of one file, also of a deleted one."""

    def open_file(self, id: str, file: str, start: int = 0, end: int | None = None) -> Content:
        """Return bytes [start, end) of a file's content. Raises NotFound; ReleasedData if it is on a server only."""

    def history(self, id: str, start: int = 0, limit: int = 1000) -> Answer:
        """Return {"marks": a page of what happened, oldest first, "total", "events", "firstAt", "lastAt"}."""

    # -- charts, changes, stores --------------------------------------------------------------------------------------

    def compare_series(self, request: SeriesRequest) -> DrawnPage:
        """Return one series of several experiments, as envelopes."""

    def events(self, ids: Collection[str] | None = None) -> Mapping[str, int]:
        """Return {id: events} of these experiments, or of all; a death that was found counts too, if it is known.

        A number that differs says that there is news.
        """

    def storage(self) -> Answer:
        """Return bytes of each project and what could be freed, the uploader's state, parked data, and the like."""

    def update(self, id: str, changes: Mapping[str, Any]) -> Answer:
        """Change title, notes, archived, description, tags or folder, as an event; return the new record."""

    def remove(self, id: str) -> Answer:
        """Remove an experiment for good; return {"id", "removed": True}. Raises StillOpen while a writer lives."""
