"""Changes of an experiment: leased, made in memory, committed as its next version.

Whoever changes an experiment (an upload, a write by REST, the archiver, a removal, folding anew) opens it with
`Changes.changing`, changes its `Change`, and commits. Until then nobody sees anything; a block that ends without a
commit, or whose commit fails, leaves nothing changed.

Locks: one per experiment in this process, then its lease, which keeps other servers away. Work is done under both and
under nothing else, so experiments do not wait for each other. Reading goes past all of them. Deleting objects and
telling listeners comes after the commit, outside of both; an object that a crash leaves behind then is garbage, never
a file that is missing.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import time_ns
from typing import Final

from ...core.protocol import UNAVAILABLE, Refused
from ...core.records import ended_at, experiment_counts
from ...core.rewinds import recount
from ...core.state import RUNNING, Edits, State
from ...disk.durable import fail_point
from ..stores import (
    Busy,
    Commit,
    Documents,
    ExperimentRow,
    Lease,
    Objects,
    Stale,
    StoreTrouble,
    Vanished,
)
from .blocks import OpenBlocks, add, history, store_open
from .contents import TABLES_VERSION, Arrival, Draft, Reader
from .parts import close_state, kept_parts
from .quota import Quota
from .tree import pages_of

# Kinds of arrivals.
STRETCH: Final = 1
DEATH: Final = 2
# Bounds of the cache, all experiments together; the oldest leave it first. A part takes about 3 kB.
_EXPERIMENTS_CACHED: Final = 256
_PARTS_CACHED: Final = 20_000
_BLOCK_BYTES_CACHED: Final = 32 << 20
# Of one experiment.
_OPEN_BLOCKS_CACHED: Final = 1000
_OPEN_BLOCK_BYTES_CACHED: Final = 4 << 20
# Raw bytes of an experiment after which the archiver looks at it.
ARCHIVED_BYTES: Final = 4 << 20
# How long a request waits for another server's lease before it is refused, to come again: while one server has it, and
# in all while servers take turns, as they do when many send to the same experiment at once.
_LEASE_WAIT_S: Final = 1.0
_TURNS_WAIT_S: Final = 10.0
# When a client comes again to a server that is read-only.
_MOVED_RETRY_S: Final = 30
_LEASE_PAUSE_S: Final = 0.02

Changed = Callable[[str, str, "int | None"], None]
"""changed(namespace, experiment, `news_of` it): called after a commit, in its thread; None for a removed one.
"""

log = logging.getLogger("ml_dash.server")


class Change:
    """An experiment that is being changed, under its lease: its next version, folded state and open blocks.

    What is changed becomes visible with `commit`, which may be called several times; `changed` says that there is
    something to commit. Kept in memory between changes as long as no other server has changed the experiment:
    otherwise each request would decode the state and the open block of each series.
    """

    def __init__(self, documents: Documents, reader: Reader, lease: Lease, row: ExperimentRow) -> None:
        self._documents = documents
        self._reader = reader
        self.ns = lease.ns
        self.stored = row
        self.draft = Draft(reader, lease.ns, row, self._fetch)
        self.state: State = self.draft.state()
        self.open_blocks: OpenBlocks = {}
        self.edits = Edits()
        # Names of blobs that are not needed any more, by what is committed.
        self.released: list[str] = []
        # Something was committed, and those who wait for changes do not know of it yet.
        self.committed = False
        # A commit has failed: what is in memory may differ from what is stored.
        self.failed = False
        # What the archiver may move: series that have a full range, and whether there are raw bytes enough.
        self.filled: set[str] = set()
        self.has_raw = False
        # What is in memory of it: parts of the state, and about how many bytes of open blocks.
        self.weight = 0, 0
        self.raw_bytes = 0
        # Raw bytes of all segments; None: not known, and summed up by the next commit.
        self._bytes: int | None = row.summary.get("bytes")
        # Writers that were found dead, and that no stored summary counts yet.
        self._deaths = 0
        # Raw bytes that were taken, and that the namespace's quota does not know of yet.
        self.taken = 0
        self.begin(lease)

    @property
    def row(self) -> ExperimentRow:
        """The newest head, as far as it is known before the commit."""
        return self.draft.row

    def _fetch(self, ids: Sequence[str]) -> dict[str, bytes]:
        # Whoever has the lease is the only one to supersede pages, so these are here.
        with self._documents.view() as view:
            return view.pages(self.ns, self.stored.id, ids)

    def begin(self, lease: Lease) -> None:
        """Begin the next version, under a new lease."""
        self.lease: Lease | None = lease
        self.changed = False
        row = replace(self.stored, version=lease.version, epoch=lease.epoch)
        self.draft.begin(row, f"{lease.version:x}.{lease.epoch:x}")

    def forget(self, project: str, name: str) -> None:
        """Go on with an empty state of these names and no blocks, as where everything is folded anew."""
        self.draft.drop_blocks()
        self.draft.drop_state()
        self.state = self.draft.state()
        self.state.project, self.state.name = project, name
        self.open_blocks = {}
        self.changed = True
        self._bytes = None

    def arrive(self, kind: int, who: str, start: int, end: int, segment: str = "") -> None:
        """Record what was folded, under the next arrival number.

        `start` and `end` are bytes of the segment `who` for a stretch; for a death, `who` is the writer, and `segment`
        and `end` are what its observer had read.
        """
        self.draft.put_arrival(Arrival(self.row.arrivals, kind, who, start, end, segment))
        if kind == DEATH:
            self.draft.put_death(who, segment, end)
            self._deaths += 1
        self.draft.row = replace(self.row, arrivals=self.row.arrivals + 1)
        self.changed = True

    def put_raw(self, segment: str, start: int, content: bytes) -> None:
        """Store raw bytes of a segment from `start` on, where none are yet."""
        self.draft.put_raw(segment, start, content)
        self.taken += len(content)
        if self._bytes is not None:
            self._bytes += len(content)
        self.raw_bytes += len(content)
        if self.raw_bytes >= ARCHIVED_BYTES:
            self.raw_bytes, self.has_raw = 0, True

    def apply(self) -> None:
        """Add the lines of the edits to their blocks. All else that has changed waits for the commit."""
        self.filled |= add(self.draft, self.edits, self.open_blocks)
        if self.edits.rewound:
            store_open(self.draft, self.open_blocks)
            recount(self.state, self.edits, history(self.draft))
        if (
            len(self.open_blocks) > _OPEN_BLOCKS_CACHED
            or sum(block.size for block in self.open_blocks.values()) > _OPEN_BLOCK_BYTES_CACHED
        ):
            # They are read again when they are needed.
            store_open(self.draft, self.open_blocks)
            self.open_blocks = {}

    def heard(self) -> None:
        """Note that something has arrived just now."""
        self.draft.row = replace(self.row, heard_ns=time_ns())

    def commit(self, *, finished: bool = True) -> None:
        """Make all that has changed visible and durable. Ends the lease. Raises Stale, StoreTrouble.

        Not `finished`: the experiment is being folded anew, and stays out of date; lists go on to show it as before.
        """
        assert self.lease is not None
        self.failed = True
        self.apply()
        released = self.edits.released
        self.edits = Edits()
        store_open(self.draft, self.open_blocks)
        state = self.state
        if state.status != self.row.status and state.status != RUNNING:
            # A writer may have ended: what is left of its segments can be merged.
            self.has_raw = True
        # Before the pages get their ids, for it reads parts.
        summary = {"counts": experiment_counts(state), "endedAt": ended_at(state), "bytes": self._kept_bytes()}
        if deaths := self.row.summary.get("deaths", 0) + self._deaths:
            summary["deaths"] = deaths
        core = close_state(state)
        self.weight = kept_parts(state), sum(block.size for block in self.open_blocks.values())
        root, nodes, superseded = self.draft.tree.flush(self.draft.name)
        row = replace(self.row, root=root)
        if finished:
            row = replace(
                row,
                fold_version=TABLES_VERSION,
                state=core,
                project=state.project,
                name=state.name,
                status=state.status if state.events else "interrupted",
                created_ns=state.created_ns,
                updated_ns=state.updated_ns,
                folder=state.folder.value or "",
                tags=tuple(state.tags.value or ()),
                description=state.description.value or "",
                summary=summary,
            )
        pages = [*self.draft.new.items(), *pages_of(nodes)]
        self._documents.commit(self.lease, Commit(row, pages, superseded))
        self._reader.cache.add(self.ns, row.id, nodes)
        self.stored = self.draft.row = row
        if finished:
            self._deaths = 0
        self.released += released
        self.lease, self.failed, self.changed, self.committed = None, False, False, True

    def _kept_bytes(self) -> int:
        """Return how many raw bytes the segments have, all together."""
        if self._bytes is None:
            draft = self.draft
            self._bytes = sum(row.length for journal in draft.journals() for row in draft.segments(journal.id))
        return self._bytes


class Changes:
    """The one place where experiments are changed. Any thread may call.

    `_guard` protects `_cache` and `_locks`. A cached experiment is taken out of `_cache` before it is changed, and
    comes back only after the commit: a commit that fails leaves nothing changed in memory, and the next one reads what
    is stored.
    """

    def __init__(self, documents: Documents, objects: Objects, changed: Changed, quota: Quota | None = None) -> None:
        self.documents = documents
        self.objects = objects
        self.quota = quota or Quota(documents)
        self.reader = Reader(objects)
        self._changed = changed
        self._guard = threading.Lock()
        self._cache: OrderedDict[tuple[str, str], Change] = OrderedDict()
        # Experiment → (its lock, how many threads have it or wait for it).
        self._locks: dict[tuple[str, str], tuple[threading.Lock, int]] = {}
        # True while nothing may be changed, because everything is being copied elsewhere.
        self.read_only: Callable[[], bool] = lambda: False
        # archiver(namespace, experiment, series with a full range), after a commit. None: nothing is archived.
        self.archiver: Callable[[str, str, set[str]], None] | None = None

    # -- changes -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def changing(
        self, ns: str, experiment: str, project: str = "", name: str = "", *, anew: bool = False
    ) -> Iterator[Change]:
        """Hold the lease of an experiment. What was not committed when the block ends is forgotten.

        After it, what the commits released is deleted, and those who wait for changes are notified. With `anew`, also
        an experiment whose state another version of the code made, as if it had none.

        Raises StoreTrouble, and Refused (503) if another server has it, or came first.
        """
        key = (ns, experiment)
        news: _News | None = None
        try:
            with self._locked(key):
                lease = self._lease(ns, experiment)
                change: Change | None = None
                done = False
                try:
                    # Under the lease: who copies waits for it, and knows then that nobody changes this any more.
                    self.require_writable()
                    change = self._opened(lease, project, name, anew=anew)
                    yield change
                    done = True
                # Vanished: another process took the lease over while this one stood still, and has committed since.
                except (Stale, Vanished) as error:
                    raise Refused(503, UNAVAILABLE, "another server changed this first", retry_after_s=1) from error
                finally:
                    held = change.lease if change is not None else lease
                    if held is not None:
                        self.documents.release(held)
                    if change is not None:
                        # Here, because another thread may have the change once the lock is free.
                        news = _news(change)
                        if done and not change.changed and not change.failed:
                            self._keep(key, change)
        finally:
            if news is not None:
                self._notify(ns, experiment, news)

    def require_writable(self) -> None:
        """Raise Refused (503) while nothing may be changed."""
        if self.read_only():
            message = "this server is read-only, because its data is being moved; send it again later"
            raise Refused(503, UNAVAILABLE, message, retry_after_s=_MOVED_RETRY_S)

    @contextlib.contextmanager
    def _locked(self, key: tuple[str, str]) -> Iterator[None]:
        """Hold the lock of an experiment in this process."""
        with self._guard:
            lock, users = self._locks.get(key) or (threading.Lock(), 0)
            self._locks[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = lock, users - 1

    def _lease(self, ns: str, experiment: str) -> Lease:
        """Return the lease of an experiment. Raises Refused (503) if another server keeps it."""
        until = time.monotonic() + _TURNS_WAIT_S
        while True:
            try:
                return self.documents.lease(ns, experiment)
            except Busy as error:
                if error.still_s > _LEASE_WAIT_S or time.monotonic() > until:
                    raise Refused(503, UNAVAILABLE, "another server is changing this", retry_after_s=1) from error
            # Its fold takes about this long; there is nothing to be woken by.
            time.sleep(_LEASE_PAUSE_S)

    def _opened(self, lease: Lease, project: str, name: str, *, anew: bool) -> Change:
        """Return the experiment to be changed; from memory where that equals what is stored."""
        with self._guard:
            cached = self._cache.pop((lease.ns, lease.experiment), None)
        stored = lease.row
        if stored is None:
            stored = ExperimentRow(lease.experiment, project, name, 0, TABLES_VERSION, b"", "", 0, 0, 0)
        elif stored.fold_version != TABLES_VERSION:
            if not anew:
                message = "this experiment is being brought up to date after an update of the server"
                raise Refused(503, UNAVAILABLE, message, retry_after_s=2)
            stored = replace(stored, state=b"")
        elif cached is not None and _same(cached.stored, stored):
            cached.begin(lease)
            return cached
        change = Change(self.documents, self.reader, lease, stored)
        if cached is not None:
            # Servers that take turns would else count from 0 each time, and never have enough to archive.
            change.raw_bytes = cached.raw_bytes
        return change

    def _keep(self, key: tuple[str, str], change: Change) -> None:
        """Keep an experiment in memory for its next change."""
        with self._guard:
            self._cache[key] = change
            parts, size = (sum(weights) for weights in zip(*(one.weight for one in self._cache.values()), strict=True))
            while len(self._cache) > 1 and (
                len(self._cache) > _EXPERIMENTS_CACHED or parts > _PARTS_CACHED or size > _BLOCK_BYTES_CACHED
            ):
                # The one that was not used for longest: what is used is taken out and put back at the end.
                _, dropped = self._cache.popitem(last=False)
                parts, size = parts - dropped.weight[0], size - dropped.weight[1]

    def renew(self, change: Change) -> None:
        """Lease a changed experiment again, after a commit, to go on with it. Raises Refused (503)."""
        lease = self._lease(change.ns, change.row.id)
        if lease.row is None or not _same(change.stored, lease.row):
            self.documents.release(lease)
            raise Refused(503, UNAVAILABLE, "another server changed this meanwhile", retry_after_s=1)
        change.begin(lease)

    def _notify(self, ns: str, experiment: str, news: _News) -> None:
        """Delete what was released and notify those who wait for changes. Outside of the lease, for it may be slow."""
        self.quota.took(ns, news.taken)
        if news.released:
            try:
                self.drop_blobs(ns, experiment, news.released)
            except StoreTrouble as error:
                log.warning("contents of %s are not needed any more and could not be removed: %s", experiment, error)
        if self.archiver is not None and (news.filled or news.has_raw):
            self.archiver(ns, experiment, news.filled)
        self._changed(ns, experiment, news.events or None)

    def drop_blobs(self, ns: str, experiment: str, names: Sequence[str]) -> None:
        """Delete rows of blobs, then their objects. Raises StoreTrouble; what is left then is garbage."""
        with self.documents.view() as view:
            rows = [view.blob(ns, experiment, name) for name in names]
        keys = [row.key for row in rows if row is not None]
        self.documents.drop_blobs(ns, experiment, names)
        fail_point("blob-row-dropped")
        for key in keys:
            self.objects.delete(key)


@dataclass(frozen=True, slots=True)
class _News:
    """What the commits of a change mean for others."""

    released: list[str]
    filled: set[str]
    has_raw: bool
    events: int
    taken: int


def _news(change: Change) -> _News | None:
    """Take what others need to know out of a change; None if nothing was committed."""
    if not change.committed:
        return None
    news = _News(change.released, change.filled, change.has_raw, change.stored.news, change.taken)
    change.taken = 0
    change.released, change.filled, change.has_raw, change.committed = [], set(), False, False
    return news


def _same(ours: ExperimentRow, stored: ExperimentRow) -> bool:
    """True if what is in memory is the version that is stored."""
    return (ours.version, ours.epoch) == (stored.version, stored.epoch)
