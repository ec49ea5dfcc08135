"""Sweep: find and free what nobody names, and report what is named and lost. Runs beside servers.

Crashes leave garbage, never a name without its content: pages before their head, objects before their row or commit,
rows before their event. What is freed, and when nobody can name it any more:

    pages     that the newest head does not name, of its version or an older one     no later head names them either
    objects   without a row, or of contents that no head names                       older than `older_s`
    rows      of files that are deleted, replaced or unknown, then their objects     the object is older than `older_s`
    uploads   that nobody continued for STAGED_S

An object is put before what names it, in one request or one background step; so one that is older than any of those
lasts (`older_s`, an hour at least) and still has no name is garbage. The one exception is the content of a live file
without a row: its uploader comes back and finds it. Such an object is never freed.

Each thing is looked at again right before it is freed, and an object's row once more after it: a sweep that was stopped
between look and deletion, for longer than any machine should sleep, is then noticed by itself, and the row goes as
well. A row without its object, or of another size, is dropped: `journal` lists the content as missing then, and
uploaders send it again. Rows of bodies stay, since nobody sends those again; they are reported.

Memory: rows and named objects of one experiment, and _IDS_AT_ONCE ids of pages; more pages are compared in several
rounds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from zlib import crc32

from ...core.protocol import Refused
from ...disk.durable import fail_point
from ..engine.contents import Contents, Reader, steady
from ..engine.uploads import STAGED_S, file_key
from ..stores import BlobRow, ExperimentRow, Stores
from .owners import BODIES, CONTENTS, FILES, KINDS, Owner, all_experiments, is_live, owner_of, readable

LEAST_OLDER_S: Final = 3_600
"""The least age, in seconds, at which the command lets objects be freed."""

_IDS_AT_ONCE: Final = 200_000
_KEYS_AT_ONCE: Final = 500
# Objects that are deleted after one look.
_FREED_AT_ONCE: Final = 50
# Lost contents that are listed one by one; the others are only counted.
_LISTED: Final = 1_000
log = logging.getLogger("ml_dash.server")


@dataclass(frozen=True, slots=True)
class Lost:
    """A content that is named and not there, or has another size. `key` is the object's, `blob` the name of the blob.

    `again`: its row was dropped (or would be), so that an uploader sends it again.
    """

    namespace: str
    experiment: str
    blob: str
    key: str
    again: bool


@dataclass(slots=True)
class Swept:
    """What a sweep has freed (or would), and what it has found lost. `left` are experiments it could not read."""

    pages: int = 0
    objects: int = 0
    object_bytes: int = 0
    rows: int = 0
    uploads: int = 0
    mended: int = 0
    left: int = 0
    foreign: int = 0
    lost_count: int = 0
    lost: list[Lost] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it as the command prints it."""
        return {
            "pages": self.pages,
            "objects": self.objects,
            "objectBytes": self.object_bytes,
            "rows": self.rows,
            "uploads": self.uploads,
            "mended": self.mended,
            "left": self.left,
            "foreign": self.foreign,
            "lostCount": self.lost_count,
            "lost": [
                {"namespace": one.namespace, "experiment": one.experiment, "blob": one.blob, "key": one.key,
                 "again": one.again}
                for one in self.lost
            ],
        }  # fmt: skip


class Sweep:
    """One sweep over the stores. `steps` does it; between two steps anything may happen."""

    def __init__(
        self,
        stores: Stores,
        *,
        older_s: float,
        dry_run: bool = False,
        now_ns: Callable[[], int] = time.time_ns,
        ids_at_once: int = _IDS_AT_ONCE,
    ) -> None:
        """Prepare to free what is older than `older_s` by the clock `now_ns`; with `dry_run`, only count it."""
        self._documents, self._objects, self._uploads = stores.documents, stores.objects, stores.uploads
        self._older_ns = int(older_s * 1e9)
        self._dry_run = dry_run
        self._now_ns = now_ns
        self._ids_at_once = ids_at_once
        self._reader = Reader(stores.objects)
        self.found = Swept()

    def run(self) -> Swept:
        """Sweep everything; return what was found. Raises StoreTrouble; what was freed by then was garbage."""
        for _ in self.steps():
            pass
        return self.found

    def steps(self) -> Iterator[None]:
        """Sweep, pausing after each look and each deletion. Raises StoreTrouble."""
        if not self._dry_run:
            self.found.mended = self._documents.mend()
            self.found.uploads = self._uploads.sweep(self._now_ns() / 1e9 - STAGED_S)
        for ns, experiment in all_experiments(self._documents):
            yield
            try:
                if self._newest(ns, experiment) is None:
                    self.found.left += 1
                    continue
                yield from self._pages(ns, experiment)
                yield from self._rows(ns, experiment)
            except Refused as error:
                # It changes all the time, or is being brought up to date: the next sweep finds it quiet.
                log.info("experiment %s of %s was left out: %s", experiment, ns, error.message)
                self.found.left += 1
        for kind in KINDS:
            yield from self._all_objects(kind)

    @steady
    def _newest(self, ns: str, experiment: str) -> ExperimentRow | None:
        """Return the newest head; None if there is none that can be read."""
        with self._documents.view() as view:
            row = view.experiment(ns, experiment)
            return row if readable(self._reader, view, ns, row) is not None else None

    # -- pages -------------------------------------------------------------------------------------------------------

    def _pages(self, ns: str, experiment: str) -> Iterator[None]:
        rounds = 1 + sum(1 for _ in self._documents.page_ids(ns, experiment)) // self._ids_at_once
        for part in range(rounds):
            version, named = self._named_pages(ns, experiment, part, rounds)
            yield
            unnamed = [
                page
                for page in self._documents.page_ids(ns, experiment)
                if _part_of(page, rounds) == part and page not in named and _version_of(page) <= version
            ]
            del named
            if not unnamed:
                continue
            yield
            # Pages of a version are written before its head. So what a head of that version or a later one does not
            # name is never named again; two looks, because a database may once answer with an older head.
            _, still = self._named_pages(ns, experiment, part, rounds)
            unnamed = [page for page in unnamed if page not in still]
            for start in range(0, len(unnamed), _KEYS_AT_ONCE):
                some = unnamed[start : start + _KEYS_AT_ONCE]
                if not self._dry_run:
                    fail_point("sweep-pages")
                    self._documents.drop_pages(ns, experiment, some)
                    fail_point("sweep-pages-gone")
                self.found.pages += len(some)
                yield

    @steady
    def _named_pages(self, ns: str, experiment: str, part: int, rounds: int) -> tuple[int, set[str]]:
        """Return (version of the newest head, ids of the pages that it names), of one part of all ids."""
        with self._documents.view() as view:
            row = view.experiment(ns, experiment)
            contents = readable(self._reader, view, ns, row)
            if row is None or contents is None:
                # Nothing is older than this.
                return -1, set()
            return row.version, {page for page in contents.pages() if _part_of(page, rounds) == part}

    # -- rows of blobs -----------------------------------------------------------------------------------------------

    def _rows(self, ns: str, experiment: str) -> Iterator[None]:
        with self._documents.view() as view:
            rows = view.blobs(ns, experiment)
        yield from self._lost_rows(ns, experiment, rows)
        unwanted = [row for row in rows if not self._is_live(ns, experiment, row.name)]
        for row in unwanted:
            yield
            if self._is_old(row.key) and not self._is_live(ns, experiment, row.name):
                if not self._dry_run:
                    fail_point("sweep-row")
                    self._documents.drop_blobs(ns, experiment, [row.name])
                    fail_point("sweep-row-gone")
                    self._objects.delete(row.key)
                self.found.rows += 1
                self.found.objects += 1
                self.found.object_bytes += row.size

    def _lost_rows(self, ns: str, experiment: str, rows: Sequence[BlobRow]) -> Iterator[None]:
        for start in range(0, len(rows), _KEYS_AT_ONCE):
            some = rows[start : start + _KEYS_AT_ONCE]
            sizes = self._objects.sizes([row.key for row in some])
            for row in some:
                if sizes.get(row.key) == row.size:
                    continue
                yield
                with self._documents.view() as view:
                    same = view.blob(ns, experiment, row.name) == row
                if same and self._objects.size(row.key) != row.size:
                    if row.experiment and not self._dry_run:
                        fail_point("sweep-lost")
                        self._documents.drop_blobs(ns, experiment, [row.name])
                    self._note_lost(ns, row)

    def _note_lost(self, ns: str, row: BlobRow) -> None:
        self.found.lost_count += 1
        if len(self.found.lost) < _LISTED:
            self.found.lost.append(Lost(ns, row.experiment, row.name, row.key, bool(row.experiment)))

    @steady
    def _is_live(self, ns: str, experiment: str, blob: str) -> bool:
        """True if a file of this content is live, also where that cannot be read now."""
        with self._documents.view() as view:
            contents = readable(self._reader, view, ns, view.experiment(ns, experiment))
            return contents is None or is_live(contents.state(), blob)

    def _is_old(self, key: str) -> bool:
        """True if an object was put longer ago than anything that is about to name it."""
        found = next((entry for entry in self._objects.entries(key) if entry[0] == key), None)
        return found is not None and found[2] < self._now_ns() - self._older_ns

    # -- objects -----------------------------------------------------------------------------------------------------

    def _all_objects(self, kind: str) -> Iterator[None]:
        """Free objects of a kind that nobody names. Keys come experiment by experiment, whatever the storage is."""
        if kind == BODIES:
            yield from self._lost_bodies()
        known: tuple[tuple[str, str], frozenset[str]] | None = None
        waiting: list[tuple[Owner, str, int]] = []
        for key, size, changed_ns in self._objects.entries(kind):
            owner = owner_of(key)
            if owner is None:
                # Something else in the bucket; not ours to judge.
                self.found.foreign += 1
                continue
            if changed_ns >= self._now_ns() - self._older_ns:
                continue
            # Of bodies all keys are asked for one by one; of experiments once, as long as their keys follow each other.
            if known is None or known[0] != (owner.ns, owner.experiment) or kind == BODIES:
                yield from self._free(waiting)
                known = (owner.ns, owner.experiment), self._named(owner)
                yield
            if key not in known[1]:
                waiting.append((owner, key, size))
            if len(waiting) >= _FREED_AT_ONCE:
                yield from self._free(waiting)
        yield from self._free(waiting)

    def _free(self, waiting: list[tuple[Owner, str, int]]) -> Iterator[None]:
        """Delete the objects of one owner that still have no name and are still old; empty the list."""
        some, waiting[:] = list(waiting), []
        if not some:
            return
        yield
        owner = some[0][0]
        named = self._named(owner)
        freed = []
        for _, key, size in some:
            # The age right before the deletion: whoever is about to name an object has just put it.
            if key in named or not self._is_old(key):
                continue
            freed.append(key)
            if not self._dry_run:
                fail_point("sweep-object")
                self._objects.delete(key)
                fail_point("sweep-object-gone")
            self.found.objects += 1
            self.found.object_bytes += size
        if freed and not self._dry_run and owner.kind != CONTENTS:
            self._unname(owner, freed)
        yield

    def _unname(self, owner: Owner, keys: Sequence[str]) -> None:
        """Drop rows that came to name objects while those were deleted: these are lost, and come again."""
        with self._documents.view() as view:
            body = view.blob(owner.ns, "", owner.name)
            rows = view.blobs(owner.ns, owner.experiment) if owner.kind == FILES else [body] if body else []
        for row in rows:
            if row.key in keys and self._objects.size(row.key) is None:
                self._documents.drop_blobs(owner.ns, row.experiment, [row.name])
                self._note_lost(owner.ns, row)

    def _named(self, owner: Owner) -> frozenset[str]:
        """Return what `_names` does; everything for an experiment that changes faster than it can be read."""
        try:
            return self._names(owner)
        except Refused:
            return _EVERYTHING

    @steady
    def _names(self, owner: Owner) -> frozenset[str]:
        """Return the keys that are named: those of an experiment and kind, or the one of a body.

        Also the keys of contents that an uploader is going to name. What cannot be read now counts as named.
        """
        with self._documents.view() as view:
            if owner.kind == BODIES:
                body = view.blob(owner.ns, "", owner.name)
                return frozenset([body.key] if body is not None else [])
            row = view.experiment(owner.ns, owner.experiment)
            contents = readable(self._reader, view, owner.ns, row)
            if row is not None and contents is None:
                return _EVERYTHING
            if owner.kind == CONTENTS:
                return frozenset(contents.objects()) if contents is not None else frozenset()
            keys = {blob.key for blob in view.blobs(owner.ns, owner.experiment)}
            return frozenset(keys | _awaited(contents, owner.ns))

    def _lost_bodies(self) -> Iterator[None]:
        """Find rows of bodies whose objects are lost; nobody else looks for them."""
        last: str | None = None
        for ns, _ in all_experiments(self._documents):
            if ns != last:
                last = ns
                with self._documents.view() as view:
                    rows = view.blobs(ns, "")
                yield from self._lost_rows(ns, "", rows)


class _Everything(frozenset[str]):
    """The keys of an experiment that cannot be read now: all of them."""

    def __contains__(self, key: object) -> bool:
        return True


_EVERYTHING: Final = _Everything()


def _awaited(contents: Contents | None, ns: str) -> set[str]:
    """Return the keys of live files' contents, as uploads make them."""
    if contents is None:
        return set()
    state = contents.state()
    return {
        file_key(ns, state.project, contents.row.id, file.id, file.filename)
        for file in state.files.values()
        if file.live
    }


def _part_of(page: str, rounds: int) -> int:
    return crc32(page.encode()) % rounds


def _version_of(page: str) -> int:
    """Return the version that wrote a page; the greatest of all for an id that is not made by this code."""
    try:
        return int(page.partition(".")[0], 16)
    except ValueError:
        return 1 << 64
