"""One namespace of the server as readers ask it: the reading seam (`reading.source`) over `queries`.

Handlers of reading calls, and whatever else only looks, know this and not the server. So the same handlers serve the
folders of one machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .services import Server


class ServerSource:
    """The experiments of one namespace. Any thread may call. Raises Refused (404, 400), NotFound, InvalidValue."""

    def __init__(self, core: Server, ns: str) -> None:
        self._core = core
        self._ns = ns

    # -- lists -------------------------------------------------------------------------------------------------------

    def projects(self) -> dict[str, Any]:
        """Return {"projects": by name, with the number of their experiments}."""
        return {"projects": self._core.projects(self._ns)}

    def listed(self, **wanted: Any) -> dict[str, Any]:
        """Return a page of experiments by the older parameters, see `Query.experiments`."""
        return self._core.experiments(self._ns, **wanted)

    # -- one experiment ----------------------------------------------------------------------------------------------

    def experiment(self, experiment: str) -> dict[str, Any]:
        """Return the mapping of `experiment.json`, and `heardAt`."""
        return self._core.experiment(self._ns, experiment)

    def parameters(self, experiment: str) -> dict[str, Any]:
        """Return the parameters, flat, under `data`."""
        return self._core.get_parameters(self._ns, experiment)

    def logs(
        self, experiment: str, start: int, limit: int, levels: Sequence[str] = (), q: str | None = None
    ) -> dict[str, Any]:
        """Return a page of log entries from number `start` on; a negative one counts from the end."""
        return self._core.logs(self._ns, experiment, start, limit, levels[0] if levels else None, q)

    def metrics(self, experiment: str) -> bytes:
        """Return {"metrics": by name, with the statistics of each series} as JSON."""
        return self._core.metrics(self._ns, experiment)

    def metric_stats(self, experiment: str, metric: str) -> dict[str, Any]:
        """Return the number of points of a metric, and the statistics of each series."""
        return self._core.metric_stats(self._ns, experiment, metric)

    def metric_page(self, experiment: str, metric: str, start: int, limit: int, *, superseded: bool = True) -> bytes:
        """Return a page of points as JSON, from index `start` on; a negative one counts from the end."""
        return self._core.metric_page(self._ns, experiment, metric, start, limit, superseded=superseded)

    def series(self, experiment: str, metric: str, **how: Any) -> bytes:
        """Return the series of one metric down-sampled, as JSON, see `Query.series`."""
        return self._core.series(self._ns, experiment, metric, **how)

    # -- files -------------------------------------------------------------------------------------------------------

    def files(self, experiment: str, prefix: str = "", tags: list[str] | None = None) -> bytes:
        """Return {"files": records of listed files, oldest first} as JSON."""
        return self._core.list_files(self._ns, experiment, prefix, tags)

    def file(self, experiment: str, file: str) -> dict[str, Any]:
        """Return the record of one file, also of a deleted one."""
        return self._core.file_record(self._ns, experiment, file)

    def open_file(self, experiment: str, file: str, start: int, end: int | None) -> tuple[Iterator[bytes], int]:
        """Return the bytes [start, end) of a file in pieces, and its size in bytes."""
        _, pieces, size = self._core.open_file(self._ns, experiment, file, start, end)
        return pieces, size

    def link(self, experiment: str, record: dict[str, Any], seconds: int) -> str | None:
        """Return a URL at which anybody may download a file for so many seconds; None if there is none."""
        return self._core.link_file(self._ns, experiment, record, seconds)

    # -- changes -----------------------------------------------------------------------------------------------------

    def events(self, experiments: Sequence[str]) -> dict[str, int]:
        """Return the number of events of these experiments; 0 for one that is not there, or was removed."""
        found = self._core.events([(self._ns, experiment) for experiment in experiments])
        return {experiment: found.get((self._ns, experiment), 0) for experiment in experiments}
