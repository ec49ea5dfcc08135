"""The facts of all experiments of a namespace, kept in memory and on disk, so that lists cost no look at each of them.

    commit ─> changed() ─> dirty ids ┐
    start, or shared stores: versions┴─> stale ids ─> folded state ─> facts ─> `reading.index`

A server that has the stores for itself hears of every commit. Where several servers share them, the versions of all
experiments are read again before a list, at most every LOOK_S. Facts are made when a list is asked for: while an
experiment is written to and nobody looks, it costs nothing.

The first list of a namespace that nobody has looked at may have ten thousand experiments to read. It takes no longer
than PATIENCE_S; the latest written come first, the others are read beside, and the answer says how far that is. What a
database can tell by its own indexes (project, status, tag, folder) bounds what has to be read for a query.

All of it is disposable: the file is made again if it is missing, damaged or of another version.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ...core.protocol import Refused
from ...core.times import utc_text
from ...reading.facts import Facts, facts_of
from ...reading.index import Index, Row
from ...reading.listing import Asked, comparison_answer, experiments_answer
from ..stores import Documents, ExperimentRow, Filter, StoreTrouble, Version, View, place_of
from .contents import Reader, steady

PATIENCE_S: Final = 0.2
"""How long a list waits for facts that are not there yet."""
LOOK_S: Final = 0.5
_NAMESPACES: Final = 64
_PAGE: Final = 1000
_TOGETHER: Final = 50

log = logging.getLogger("ml_dash.server")


class RunIndexes:
    """The indexes of all namespaces of a server. Any thread may call."""

    def __init__(self, documents: Documents, reader: Reader, folder: Path, *, shared: bool) -> None:
        """`folder` is where their files are; `shared`: other servers commit to these stores too."""
        self._documents = documents
        self._reader = reader
        self._folder = folder
        self._shared = shared
        self._guard = threading.Lock()
        self._indexes: OrderedDict[str, RunIndex] = OrderedDict()

    def of(self, ns: str) -> RunIndex:
        """Return the index of a namespace; those that nobody has asked for lately are dropped from memory."""
        with self._guard:
            index = self._indexes.get(ns)
            if index is None:
                name = hashlib.sha256(ns.encode()).hexdigest()[:32]
                path = self._folder / f"{name}.sqlite"
                index = self._indexes[ns] = RunIndex(self._documents, self._reader, ns, path, shared=self._shared)
            self._indexes.move_to_end(ns)
            dropped = self._indexes.popitem(last=False)[1] if len(self._indexes) > _NAMESPACES else None
        if dropped is not None:
            dropped.close()
        return index

    def changed(self, ns: str, experiment: str, _events: int | None) -> None:
        """Note that an experiment has changed, or was removed."""
        with self._guard:
            index = self._indexes.get(ns)
        if index is not None:
            index.changed(experiment)

    def close(self) -> None:
        """End what is being read, and close the files."""
        with self._guard:
            indexes, self._indexes = list(self._indexes.values()), OrderedDict()
        for index in indexes:
            index.close()


class RunIndex:
    """The index of one namespace. Any thread may call. Raises StoreTrouble where the database refuses."""

    def __init__(self, documents: Documents, reader: Reader, ns: str, path: Path, *, shared: bool) -> None:
        self._documents = documents
        self._reader = reader
        self._ns = ns
        self._path = path
        self._shared = shared
        # Protects what follows. Facts are made without it, so that no list waits for more than it needs.
        self._guard = threading.Lock()
        self._index: Index | None = None
        self._versions: dict[str, Version] = {}
        self._stale: set[str] = set()
        self._dirty: set[str] = set()
        self._looked_s = 0.0
        self._filling: threading.Thread | None = None
        self._closing = False

    def changed(self, experiment: str) -> None:
        """Note that an experiment has changed."""
        with self._guard:
            self._dirty.add(experiment)

    def close(self) -> None:
        """End what is being read, and close the file."""
        with self._guard:
            self._closing = True
            filling, index = self._filling, self._index
        if filling is not None:
            filling.join()
        if index is not None:
            index.close()

    # -- answers -----------------------------------------------------------------------------------------------------

    def experiments(self, asked: Asked, start: int, limit: int) -> dict[str, Any]:
        """Return a page of the experiments that match, see `listing.experiments_answer`."""
        simple = asked.where.simple() if asked.where is not None else {}
        index = self._looked()
        if self._stale:
            with self._documents.view() as view:
                self._make(view, self._matching(view, simple) if simple else None)
        answer = experiments_answer(index, asked, start, limit, more=self._beside)
        if self._stale:
            answer["indexing"] = self._progress()
            if asked.where is None:
                answer["total"] = max(answer["total"], len(self._versions))
        return answer

    def comparison(self, ids: Sequence[str], columns: Sequence[str]) -> dict[str, Any]:
        """Return what these experiments are compared by, see `listing.comparison_answer`, and which are "missing"."""
        index = self._looked()
        with self._documents.view() as view:
            # Few and asked for by name: what is not known of them yet is waited for.
            self._make_of(view, [key for key in ids if key in self._stale], None)
            answer = comparison_answer(index, ids, columns, self._beside)
        known = {one["id"] for one in answer["experiments"]}
        return answer | {"missing": [id for id in ids if id not in known]}

    def whole(self) -> tuple[Index, dict[str, Any]]:
        """Return the index as far as it can be up to date, and {"indexing": ...} if it is not."""
        index = self._looked()
        if self._stale:
            with self._documents.view() as view:
                self._make(view, None)
        return index, {"indexing": self._progress()} if self._stale else {}

    def events(self) -> dict[str, int]:
        """Return what live readers are told of all experiments, see `stores.news_of`."""
        with self._documents.view() as view:
            return {key: version.news for key, version in view.versions(self._ns).items()}

    def _progress(self) -> dict[str, int]:
        return {"done": len(self._versions) - len(self._stale), "total": len(self._versions)}

    def _beside(self, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """Return what a list has beside the facts."""
        versions = self._versions
        return {
            row.key: {"heardAt": utc_text(versions[row.key].heard_ns), "counts": versions[row.key].counts}
            for row in rows
            if row.key in versions
        }

    # -- keeping it up to date ---------------------------------------------------------------------------------------

    def _looked(self) -> Index:
        """Return the index; `_stale` then says what is not up to date in it."""
        with self._guard:
            first = self._index is None
            if self._index is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._index = Index(self._path)
            index = self._index
            dirty, self._dirty = self._dirty, set()
            now = time.monotonic()
            whole = first or (self._shared and now - self._looked_s >= LOOK_S)
            if whole:
                self._looked_s = now
                # A view that is opened now has what was noted as changed.
                with self._documents.view() as view:
                    self._versions = view.versions(self._ns)
            elif dirty:
                with self._documents.view() as view:
                    found = view.versions(self._ns, sorted(dirty))
                gone = dirty - found.keys()
                self._versions.update(found)
                for experiment in gone:
                    self._versions.pop(experiment, None)
                self._stale = (self._stale | found.keys()) - gone
                index.forget(gone)
            if whole:
                versions = {experiment: version.version for experiment, version in self._versions.items()}
                self._stale = set(index.stale(versions))
            return index

    def _matching(self, view: View, simple: Mapping[str, str]) -> list[str]:
        """Return the ids of experiments that the database finds by its own indexes."""
        wanted = Filter(
            project=simple.get("project"), status=simple.get("status"), tag=simple.get("tag"),
            folder=simple.get("folder"),
        )  # fmt: skip
        return [row.id for row in _each(view, self._ns, wanted)]

    def _make(self, view: View, first: Collection[str] | None) -> None:
        """Make the facts that are missing: of `first`, or of those written last; the rest beside."""
        deadline = time.monotonic() + PATIENCE_S
        if first is not None:
            self._make_of(view, [key for key in first if key in self._stale], deadline)
        elif len(self._stale) < _PAGE:
            self._make_of(view, sorted(self._stale), deadline)
        else:
            latest = view.experiments(self._ns, Filter(), _PAGE, None)
            self._make_of(view, [row.id for row in latest if row.id in self._stale], deadline)
        with self._guard:
            if self._stale and self._filling is None and not self._closing:
                self._filling = threading.Thread(target=self._fill, name="index", daemon=True)
                self._filling.start()

    def _make_of(self, view: View, keys: Iterable[str], deadline: float | None) -> None:
        """Make the facts of some experiments, until a time."""
        rows: list[tuple[str, int, Facts]] = []
        for key in keys:
            found = _facts(view, self._reader, self._ns, key)
            if found is not None:
                rows.append((key, *found))
            if len(rows) >= _TOGETHER:
                self._put(rows)
                rows = []
            if deadline is not None and time.monotonic() >= deadline:
                break
        self._put(rows)

    def _put(self, rows: list[tuple[str, int, Facts]]) -> None:
        with self._guard:
            assert self._index is not None
            self._index.put_all(rows)
            for key, version, _ in rows:
                known = self._versions.get(key)
                if known is None or known.version <= version:
                    self._stale.discard(key)

    def _fill(self) -> None:
        """Make all facts that are missing."""
        while True:
            with self._guard:
                keys = sorted(self._stale)[:_TOGETHER]
                if not keys or self._closing:
                    self._filling = None
                    return
            try:
                with self._documents.view() as view:
                    self._make_of(view, keys, None)
            except StoreTrouble as error:
                log.warning("experiments of %s could not be listed now: %s", self._ns, error)
                with self._guard:
                    self._filling = None
                return
            with self._guard:
                # What could not be read (it is being folded anew, or was removed) must not be tried for ever.
                self._stale -= set(keys)


def _each(view: View, ns: str, wanted: Filter) -> Iterable[ExperimentRow]:
    """Yield all experiments that a filter lists."""
    place = None
    while rows := view.experiments(ns, wanted, _PAGE, place):
        yield from rows
        if len(rows) < _PAGE:
            return
        place = place_of(rows[-1], wanted.sort)


@steady
def _facts(view: View, reader: Reader, ns: str, experiment: str) -> tuple[int, Facts] | None:
    """Return (version, facts) of an experiment; None if readers may not see it, or not now."""
    row = view.experiment(ns, experiment)
    if row is None or not row.events:
        return None
    with suppress(Refused):
        return row.version, facts_of(reader.contents(view, ns, row).state())
    return None
