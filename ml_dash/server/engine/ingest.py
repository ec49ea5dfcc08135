"""Ingest of segment bytes: check, store, fold, and acknowledge, in one commit of the experiment.

A request brings bytes [offset, offset + n) of a segment; `compare` says what of it is new. One commit then holds all of
it: the raw bytes, the segment's new length, the blocks of lines that the fold makes of them, the arrival numbers, and
the parts of the folded state that have changed. Only when it is durable is the length answered. So:

- A length that was answered is durable and folded. A server that is killed before the commit has changed nothing that
  anybody sees; killed after it, it has only failed to answer, and the client sends the bytes again, which are compared
  and found equal.
- An event counts once: the fold remembers the numbers of each writer. Two requests with the same bytes, here or at
  another server, cannot both be stored, because each is a version of the experiment, and a version is taken once.
- Folding all arrivals in their order gives the same contents (`refold`).

A request whose events touch thousands of parts is committed in several versions, each a whole number of frames, so that
memory stays bounded; a crash in between has stored the first of them.

Locks: one per experiment in this process, then its lease, which keeps other servers away. The fold runs under both and
under nothing else, so experiments do not wait for each other. Reading goes past all of them. Deleting objects and
telling listeners comes after the commit; an object that a crash leaves behind then is garbage, never a file that is
missing.

Memory: one request (8 MiB of segment at most), its decoded events, at most about _BODY_BYTES_AT_ONCE of long bodies,
and the cache.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import time_ns
from typing import Any, Final

from ...core.fold import fold, fold_death
from ...core.frames import Event, Header
from ...core.names import check_name, experiment_id
from ...core.protocol import CONFLICT, GAP, MALFORMED, NEEDS_BLOBS, UNAVAILABLE, UNKNOWN, Appended, Refused
from ...core.ranges import Range, holes
from ...core.records import ended_at, experiment_counts
from ...core.rewinds import recount
from ...core.state import RUNNING, Edits, State
from ...disk.durable import fail_point
from ...errors import InvalidInput
from ...journal import bodies
from ...journal.reader import Stretch
from ...journal.segment import SegmentName, parse_name
from ..stores import (
    BlobRow,
    Busy,
    Commit,
    Documents,
    ExperimentRow,
    JournalClaim,
    Lease,
    Objects,
    SegmentClaim,
    Stale,
    StoreTrouble,
    Vanished,
)
from .blocks import OpenBlocks, add, history, store_open
from .compare import Contradiction, Part, appended, differing, header_of, mended
from .contents import TABLES_VERSION, Arrival, Draft, JournalRow, Reader, SegmentRow
from .parts import close_state, kept_parts, touched_parts
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
# A request is committed in parts where its events touch more parts of the state than this.
_PARTS_AT_ONCE: Final = 4_000
# Raw bytes of an experiment after which the archiver looks at it.
ARCHIVED_BYTES: Final = 4 << 20
# Long bodies that are decoded together. A batch of small frames may name gigabytes of them.
_BODY_BYTES_AT_ONCE: Final = 16 << 20
# How long a request waits for another server's lease before it is refused, to come again.
_LEASE_WAIT_S: Final = 1.0
# When a client comes again to a server that is read-only.
_MOVED_RETRY_S: Final = 30
_LEASE_PAUSE_S: Final = 0.02
_ID: Final = re.compile("[0-9a-f]{32}")

Changed = Callable[[str, str, "int | None"], None]
"""changed(namespace, experiment, number of events): called after a commit, in its thread; None for a removed one.
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
        self.released += released
        self.lease, self.failed, self.changed, self.committed = None, False, False, True

    def _kept_bytes(self) -> int:
        """Return how many raw bytes the segments have, all together."""
        if self._bytes is None:
            draft = self.draft
            self._bytes = sum(row.length for journal in draft.journals() for row in draft.segments(journal.id))
        return self._bytes


class Ingest:
    """The one place where events come into the documents. Any thread may call.

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
        # Refused contradictions since the start, for whoever watches the server.
        self.conflicts = 0

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
        until = time.monotonic() + _LEASE_WAIT_S
        while True:
            try:
                return self.documents.lease(ns, experiment)
            except Busy as error:
                if time.monotonic() > until:
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

    # -- segments ----------------------------------------------------------------------------------------------------

    def append(
        self,
        ns: str,
        journal: str,
        file: str,
        offset: int,
        data: bytes,
        damaged: Iterable[Range] = (),
        without: Iterable[str] = (),
    ) -> Appended:
        """Take bytes [offset, offset + len(data)) of a segment: store and fold what continues our copy.

        `damaged` are the ranges (in bytes of the segment) that the client calls damaged, `without` the blobs that it
        cannot send. All is durable on return. Raises Refused (see protocol.py) and StoreTrouble; then nothing is
        changed, or only the first whole frames are stored.
        """
        name = parse_name(file)
        if name is None:
            raise Refused(422, MALFORMED, f"{file[:100]!r} is not the name of a segment")
        damaged = sorted(damaged)
        claim = self._belongs(ns, journal, name, offset, data, damaged)
        with self.changing(ns, claim.experiment, claim.project, claim.name) as change:
            length = self.take(change, claim, name, offset, data, damaged, without)
            if change.changed:
                change.commit()
            row = change.row
        return _appended(length, row)

    def _belongs(
        self, ns: str, journal: str, name: SegmentName, offset: int, data: bytes, damaged: list[Range]
    ) -> JournalClaim:
        """Return to which experiment a journal belongs; where it is new, to the one that its first bytes name."""
        with self.documents.view() as view:
            claim = view.journal(ns, journal)
        if claim is None:
            if offset:
                raise Refused(409, GAP, "this segment is not here yet", length=0)
            project, experiment = _named(header_of(data, _header_is_damaged(damaged))[0], journal, name)
            claim = JournalClaim(journal, experiment_id(project, experiment), project, experiment)
        return claim

    def take(
        self,
        change: Change,
        claim: JournalClaim,
        name: SegmentName,
        offset: int,
        data: bytes,
        damaged: list[Range],
        without: Iterable[str] = (),
        *,
        removes: bool = False,
    ) -> int:
        """Do the work of `append` under a lease, up to the last commit; return the length of the segment then.

        `removes`: the events only remove something, which no quota forbids.
        """
        draft = change.draft
        row = draft.segment(claim.id, str(name))
        is_new = row is None
        if row is None:
            if offset:
                raise Refused(409, GAP, "this segment is not here yet", length=0)
            row = _begun(claim, name, data, damaged)
        if offset > row.length:
            raise Refused(409, GAP, f"{row.length} bytes are here, not {offset}", length=row.length)
        # From here on: first everything for which the request may be refused, then everything that is stored.
        part = Part(row, offset, data, damaged)
        ours = b"".join(draft.bytes_of(row.id, offset, min(row.length, part.end))) if offset < row.length else b""
        try:
            replaced = differing(part, ours)
        except Contradiction as error:
            self.conflicts += 1
            log.error("conflict: segment %s has another frame at %d", row.id, error.at)
            raise
        again = [stretch for low, high in replaced for stretch in mended(part, low, high)]
        end = max(row.length, part.end)
        new, gaps = appended(part) if end > row.length else ([], [])
        # Nothing new: a repeated request.
        if end == row.length and not replaced:
            return end
        if not removes:
            self.quota.check(change.ns, end - row.length)
        # Bodies of a removed writer's events are not taken, since nothing folds them.
        if not draft.is_removed(row.writer):
            self._require_bodies(change.ns, row, [*again, *new], frozenset(without))
        if is_new:
            self._claim(change, claim, row)
        change.changed = True
        change.heard()
        for low, high in replaced:
            draft.replace_bytes(row.id, low, part.bytes(low, high))
        # What was mended is taken out of the ranges that never verified, and the new gaps are added.
        kept = [hole for gap in row.damaged for hole in holes([(one.start, one.end) for one in again], *gap)]

        def store(start: int, stop: int) -> None:
            """Store what is appended, up to `stop`."""
            if stop > start:
                change.put_raw(row.id, start, part.bytes(start, stop))
            never = [(low, min(high, stop)) for low, high in gaps if low < stop]
            draft.put_segment(replace(row, length=max(row.length, stop), damaged=tuple(sorted([*kept, *never]))))

        stored = row.length
        # Events of a removed experiment's writers are stored, so that they are acknowledged, and not folded, so that
        # they are not shown.
        if not draft.is_removed(row.writer):
            arrivals = _Arrivals(change, row.id)
            for stretch in again:
                self._fold(change, part, stretch, arrivals)
            arrivals.close()
            for index, stretch in enumerate(new, 1):
                self._fold(change, part, stretch, arrivals)
                if touched_parts(change.state) > _PARTS_AT_ONCE and index < len(new):
                    arrivals.close()
                    store(stored, stretch.end)
                    change.commit()
                    stored = stretch.end
                    self.renew(change)
            arrivals.close()
        store(stored, end)
        return end

    def _claim(self, change: Change, claim: JournalClaim, row: SegmentRow) -> None:
        """Claim the ids of a new segment and, if need be, its journal. Raises Refused where they are taken.

        A crash behind this leaves claims of which nothing is here; the same bytes, sent again, find their own.
        """
        if change.draft.journal(claim.id) is None:
            if self.documents.claim_journal(change.ns, claim) != claim:
                raise Refused(422, MALFORMED, f"journal {claim.id} holds another experiment here")
            fail_point("journal-claimed")
            change.draft.put_journal(JournalRow(claim.id, claim.project, claim.name))
        made = SegmentClaim(row.id, row.journal, row.file, row.writer, claim.experiment)
        if self.documents.claim_segment(change.ns, made) != made:
            # Ids are random, so this is the same segment under another name of its file.
            self.conflicts += 1
            raise Refused(409, CONFLICT, "a segment of this id is here under another name", offset=0)
        fail_point("segment-claimed")

    def _fold(self, change: Change, part: Part, stretch: Stretch, arrivals: _Arrivals) -> None:
        """Fold a stretch of frames, and note which bytes were folded: a frame whose body is lost is left out."""
        row = part.row
        for piece in self.pieces(change.ns, row.writer, stretch, partial(part.bytes, stretch.start, stretch.end)):
            arrivals.add(piece.start, piece.end)
            fold(change.state, row.writer, piece.events, change.edits)
            change.apply()

    # -- bodies that are blobs ---------------------------------------------------------------------------------------

    def _require_bodies(self, ns: str, row: SegmentRow, stretches: list[Stretch], without: frozenset[str]) -> None:
        """Raise Refused if bodies of these events are not here and the client has not given them up (`without`)."""
        names = [name for stretch in stretches for name, _ in bodies.blobs_of(stretch, row.writer)]
        missing = [name for name in names if name not in without and self._body_row(ns, name) is None]
        if missing:
            raise Refused(409, NEEDS_BLOBS, f"{len(missing)} bodies of these events are not here", blobs=missing)

    def _body_row(self, ns: str, name: str) -> BlobRow | None:
        """Return the row of a body; None if it is not here, or its object was lost.

        Bodies belong to no experiment (""): they come before the event, and so before the experiment may be known.
        """
        with self.documents.view() as view:
            blob = view.blob(ns, "", name)
        return blob if blob is not None and self.objects.size(blob.key) == blob.size else None

    def pieces(self, ns: str, writer: str, stretch: Stretch, frames: Callable[[], bytes]) -> Iterator[Stretch]:
        """Yield the stretch with its bodies, in pieces that fit in memory. An event whose body is lost is left out.

        `frames` returns the bytes of the stretch.
        """

        def lost(event: Event, error: Exception) -> None:
            log.warning("event %d of writer %s is left out: its body is lost (%s)", event[0], writer, error)

        lost_if = (FileNotFoundError, ValueError)
        fetch = partial(self._body, ns)
        return bodies.with_bodies(stretch, writer, frames, fetch, lost, lost_if, at_once=_BODY_BYTES_AT_ONCE)

    def _body(self, ns: str, name: str, size: int) -> Any:
        """Return a body. Raises FileNotFoundError if it is not here, ValueError if it cannot be decoded."""
        blob = self._body_row(ns, name)
        if blob is None or blob.size != size:
            raise FileNotFoundError(name)
        return bodies.decode(b"".join(self.objects.open(blob.key)))

    # -- deaths ------------------------------------------------------------------------------------------------------

    def deaths(self, ns: str, journal: str, notes: list[dict[str, Any]]) -> int:
        """Fold the deaths of writers that observers noted; return how many writers of the journal are known to be dead.

        A note counts once. It is void if a later event of its writer was folded, before it came or after.
        """
        for note in notes:
            if not (_ID.fullmatch(note["writer"]) and _ID.fullmatch(note["segment"]) and 0 <= note["end"] < 1 << 62):
                raise Refused(
                    422, MALFORMED, "a death needs a writer and a segment (32 hex digits each) and an end in bytes"
                )
        with self.documents.view() as view:
            claim = view.journal(ns, journal)
        if claim is None:
            raise Refused(404, UNKNOWN, "this journal is not here")
        with self.changing(ns, claim.experiment, claim.project, claim.name) as change:
            for note in notes:
                who, segment, end = note["writer"], note["segment"], note["end"]
                if not self._is_void(change, who, segment, end):
                    fold_death(change.state, who, change.edits)
                    change.arrive(DEATH, who, 0, end, segment)
                    change.changed = True
            if change.changed:
                change.commit()
            writers = {row.writer for row in change.draft.segments(journal)}
            known = [change.state.writers.get(writer) for writer in writers]
            return sum(writer is not None and writer.dead for writer in known)

    def _is_void(self, change: Change, who: str, segment: str, end: int) -> bool:
        """True if a death does not count: known, nothing of its writer is here, or more than the observer had read."""
        draft = change.draft
        if who not in change.state.writers or draft.has_death(who, segment, end):
            return True
        with self.documents.view() as view:
            claim = view.segment(change.ns, segment)
        row = draft.segment(claim.journal, claim.file) if claim is not None else None
        if row is None:
            # The observer had read nothing of that writer, and we have folded something.
            return True
        later = [other for other in draft.segments(row.journal) if other.writer == who and other.file > row.file]
        # We have more of the writer than its observer had read: it lived on after the note.
        return row.writer != who or row.length > end or any(other.length > other.first for other in later)


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
    news = _News(change.released, change.filled, change.has_raw, change.stored.events, change.taken)
    change.taken = 0
    change.released, change.filled, change.has_raw, change.committed = [], set(), False, False
    return news


class _Arrivals:
    """The bytes of one segment that are being folded: pieces that follow each other are one arrival."""

    def __init__(self, change: Change, segment: str) -> None:
        self._change = change
        self._segment = segment
        self._start = self._end = 0

    def add(self, start: int, end: int) -> None:
        """Note that [start, end) is folded next."""
        # A body between the two is lost. The arrival ends before it, so that folding anew leaves out the same.
        if start != self._end:
            self.close()
            self._start = start
        self._end = end

    def close(self) -> None:
        """Record what was noted."""
        if self._end > self._start:
            self._change.arrive(STRETCH, self._segment, self._start, self._end)
        self._start = self._end


def _same(ours: ExperimentRow, stored: ExperimentRow) -> bool:
    """True if what is in memory is the version that is stored."""
    return (ours.version, ours.epoch) == (stored.version, stored.epoch)


def _begun(claim: JournalClaim, name: SegmentName, data: bytes, damaged: list[Range]) -> SegmentRow:
    """Return the row of a new segment that begins with `data`. Raises Refused where its header does not fit."""
    header, first, crc = header_of(data, _header_is_damaged(damaged))
    project, experiment = _named(header, claim.id, name)
    if experiment_id(project, experiment) != claim.experiment:
        raise Refused(422, MALFORMED, f"journal {claim.id} holds {claim.project}/{claim.name} here")
    return SegmentRow(header.segment.hex(), claim.id, str(name), header.writer.hex(), 0, first, crc)


def _header_is_damaged(damaged: list[Range]) -> bool:
    return any(low == 0 for low, _ in damaged)


def _named(header: Header, journal: str, name: SegmentName) -> tuple[str, str]:
    """Return (project, name) of the experiment that a header names. Raises Refused where it is not of this segment."""
    if header.journal.hex() != journal or header.writer.hex() != name.writer or header.n != name.n:
        raise Refused(422, MALFORMED, "the segment's header names another journal, writer or number")
    try:
        return check_name("project", header.project), check_name("name", header.name)
    except InvalidInput as error:
        raise Refused(422, MALFORMED, f"the segment names no legal experiment: {error}") from None


def _appended(length: int, row: ExperimentRow) -> Appended:
    """Return the answer to a request."""
    counts = row.summary.get("counts", {})
    return Appended(length=length, events=counts.get("events", 0), files=bool(counts.get("files")))
