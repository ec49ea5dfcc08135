"""Migration: everything of one pair of stores into another, experiment by experiment, each proven before it counts.

    tokens, claims        first wins, so that whatever is sent to the new server finds its own
    objects, rows         an object is put, read again and compared by its SHA-256, then its row
    pages                 under the head of an experiment that says it is under way: a server answers 503 for it
    proof                 digests of all segments, the folded state, the number of entries
    head                  now it counts; it notes of which version of the source it is the copy

It may be killed at any step and started again. An experiment whose copy notes the present version is passed over, one
that has changed since is copied anew, except for objects that are there already; so a second run is short, and one of
which nothing has changed copies nothing. What the target has of its own is never replaced.

The old server may run meanwhile. With `freeze`, a file in its data folder makes it read-only first: it answers 503 to
what would change anything, and uploaders come again later, to the new server. Each experiment is then leased once
before it is copied, which waits for a commit under way; so the copy is the last version.

Memory: _PAGES_BYTES of pages, the rows of blobs and the state of one experiment.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from ...disk.durable import fail_point
from ...errors import MLDashError
from ..engine.contents import TABLES_VERSION, Contents, Draft, Reader, page_in, with_page
from ..engine.parts import whole_state
from ..engine.refold import MOVED
from ..engine.tree import pages_of
from ..stores import BlobRow, Busy, Commit, ExperimentRow, Lease, Stores, StoreTrouble, Vanished
from .owners import all_experiments

_PAGES_BYTES: Final = 16 << 20
_ATTEMPTS: Final = 10
_BUSY_S: Final = 60.0
_BUSY_PAUSE_S: Final = 0.1
_encode: Final = msgspec.msgpack.Encoder().encode


class MigrationRefused(MLDashError):
    """The migration cannot go on: what was copied so far stays, and the source is unchanged."""


@dataclass(slots=True)
class Moved:
    """What a run has copied, and passed over. `left` are experiments that another version of the code made."""

    experiments: int = 0
    unchanged: int = 0
    objects: int = 0
    object_bytes: int = 0
    tokens: int = 0
    left: int = 0


class Migration:
    """One run from `source` to `target`. `incoming` is a folder for objects on their way."""

    def __init__(
        self,
        source: Stores,
        target: Stores,
        incoming: Path,
        *,
        frozen: bool = False,
        progress: Callable[[str, str], None] = lambda ns, experiment: None,
    ) -> None:
        """Prepare a run; `frozen`: the source is read-only, so commits under way are waited for, and no more come."""
        self._source, self._target = source, target
        self._incoming = incoming
        self._frozen = frozen
        self._progress = progress
        self._from, self._to = Reader(source.objects), Reader(target.objects)
        self.moved = Moved()

    def run(self) -> Moved:
        """Copy what the target lacks; return what it was. Raises MigrationRefused, StoreTrouble."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        self._tokens()
        last: str | None = None
        for ns, experiment in all_experiments(self._source.documents):
            if ns != last:
                last = ns
                self._blobs(ns, "")
            self._progress(ns, experiment)
            if self._frozen:
                self._drain(ns, experiment)
            self._experiment(ns, experiment)
        return self.moved

    def _tokens(self) -> None:
        with self._target.documents.view() as view:
            known = {row.id: row for row in view.tokens()}
        with self._source.documents.view() as view:
            rows = view.tokens()
        for row in rows:
            if known.get(row.id) != row:
                self._target.documents.put_token(row)
                self.moved.tokens += 1

    def _drain(self, ns: str, experiment: str) -> None:
        """Wait for a commit of the source that began before it was read-only."""
        self._source.documents.release(_leased(self._source, ns, experiment, "source"))

    def _experiment(self, ns: str, experiment: str) -> None:
        for _ in range(_ATTEMPTS):
            with self._source.documents.view() as view:
                row = view.experiment(ns, experiment)
            if row is None or row.fold_version != TABLES_VERSION:
                self.moved.left += 1
                return
            try:
                self._copied(ns, row)
                return
            except Vanished:
                # It has a newer version: begin again with that one.
                continue
        # The next run finds it, with the old server at rest.
        self.moved.left += 1

    def _copied(self, ns: str, row: ExperimentRow) -> None:
        """Copy one version of an experiment. Raises Vanished where it is not the newest one any more."""
        with self._target.documents.view() as view:
            there = view.experiment(ns, row.id)
        mark = there.summary.get(MOVED) if there is not None else None
        if there is not None and mark is None:
            raise MigrationRefused(
                f"experiment {row.project}/{row.name} of {ns} is in the target, and was not copied there",
                hint="migrate into stores of which no server has had the use; nothing of this experiment was changed",
            )
        source = Contents(self._from, ns, row, self._fetch(self._source, ns, row.id))
        # Contents may be sent without a commit, so they are compared in any case.
        self._blobs(ns, row.id)
        if mark == [row.version, row.epoch]:
            self.moved.unchanged += 1
            return
        self._claims(ns, source)
        for key in source.objects():
            self._object(key, None)
        copy = self._pages(ns, row, source)
        self._prove(ns, source, copy)
        fail_point("migrate-before-head")
        lease = _leased(self._target, ns, row.id, "target")
        final = replace(
            copy.row, version=lease.version, epoch=lease.epoch, fold_version=row.fold_version,
            summary={**row.summary, MOVED: [row.version, row.epoch]},
        )  # fmt: skip
        self._target.documents.commit(lease, Commit(final))
        fail_point("migrate-head")
        self.moved.experiments += 1

    def _fetch(self, stores: Stores, ns: str, experiment: str) -> Callable[[Any], dict[str, bytes]]:
        def fetch(ids: Any) -> dict[str, bytes]:
            with stores.documents.view() as view:
                return view.pages(ns, experiment, ids)

        return fetch

    def _claims(self, ns: str, source: Contents) -> None:
        """Copy whose each journal and segment is. Raises MigrationRefused where the target says otherwise."""
        for journal in source.journals():
            segments = source.segments(journal.id)
            with self._source.documents.view() as view:
                claim = view.journal(ns, journal.id)
                claims = [view.segment(ns, segment.id) for segment in segments]
            if claim is not None and self._target.documents.claim_journal(ns, claim) != claim:
                raise MigrationRefused(f"journal {journal.id} belongs to another experiment in the target")
            for each in claims:
                if each is not None and self._target.documents.claim_segment(ns, each) != each:
                    raise MigrationRefused(f"segment {each.id} belongs to another journal in the target")
        fail_point("migrate-claims")

    # -- objects -----------------------------------------------------------------------------------------------------

    def _blobs(self, ns: str, experiment: str) -> None:
        """Copy the complete blobs of an experiment, or of a namespace; drop those that were released since."""
        with self._source.documents.view() as view:
            rows = {row.name: row for row in view.blobs(ns, experiment)}
        with self._target.documents.view() as view:
            there = {row.name: row for row in view.blobs(ns, experiment)}
        gone = [name for name in there if name not in rows]
        if gone:
            self._target.documents.drop_blobs(ns, experiment, gone)
            for name in gone:
                self._target.objects.delete(there[name].key)
        sizes = self._target.objects.sizes([row.key for row in rows.values()])
        for name, row in rows.items():
            if there.get(name) == row and sizes.get(row.key) == row.size:
                continue
            if self._object(row.key, row):
                self._target.documents.put_blobs(ns, [row])
                fail_point("migrate-row")

    def _object(self, key: str, row: BlobRow | None) -> bool:
        """Copy an object and prove the copy; return False if the source has lost it, or it is not what its row says."""
        size = self._source.objects.size(key)
        if size is None or (row is not None and size != row.size):
            if row is None:
                raise StoreTrouble(
                    f"the object {key} is not in the source", hint="ml-dash server scrub says what is lost"
                )
            # It counts as missing there and here, and its uploader sends it again.
            return False
        # Contents have random ids, so one of this name and size is the same one; a file's is proven by its row.
        if row is None and self._target.objects.size(key) == size:
            return True
        path = self._incoming / f"moving-{os.urandom(8).hex()}"
        digest = hashlib.sha256()
        try:
            with path.open("xb") as file:
                for piece in self._source.objects.open(key):
                    digest.update(piece)
                    file.write(piece)
            if row is not None and digest.hexdigest() != row.digest:
                return False
            self._target.objects.put(key, path)
        except FileNotFoundError:
            # Released while it was copied.
            return False
        finally:
            path.unlink(missing_ok=True)
        fail_point("migrate-object")
        again = hashlib.sha256()
        for piece in self._target.objects.open(key):
            again.update(piece)
        if again.digest() != digest.digest():
            raise MigrationRefused(
                f"the object {key} is not in the target as it was put", hint="see to the target first"
            )
        self.moved.objects += 1
        self.moved.object_bytes += size
        return True

    # -- pages -------------------------------------------------------------------------------------------------------

    def _pages(self, ns: str, row: ExperimentRow, source: Contents) -> Contents:
        """Copy all entries and the pages that they name, in versions that are under way; return the copy."""
        target = self._target.documents
        lease = _leased(self._target, ns, row.id, "target")
        fetch = self._fetch(self._target, ns, row.id)
        # What an earlier run has left is not gone on with: pages are few beside objects.
        old = list(Contents(self._to, ns, lease.row, fetch).pages()) if lease.row is not None else []
        empty = replace(row, version=lease.version, epoch=lease.epoch, root=b"", fold_version=0, summary={MOVED: []})
        draft = Draft(self._to, ns, empty, fetch)
        draft.begin(empty, _prefix(lease))
        size = 0

        def store(superseded: list[str]) -> None:
            root, nodes, replaced = draft.tree.flush(draft.name)
            draft.row = replace(draft.row, root=root)
            pages = [*draft.new.items(), *pages_of(nodes)]
            target.commit(lease, Commit(draft.row, pages, [*superseded, *replaced]))
            fail_point("migrate-pages")

        for key, value in source.tree.items("", "\U0010ffff"):
            value, copied = _with_page(source, draft, key, value)
            draft.tree.put(key, value)
            size += copied + len(value)
            if size > _PAGES_BYTES:
                store(old)
                old, size = [], 0
                lease = _leased(self._target, ns, row.id, "target")
                draft.begin(replace(draft.row, version=lease.version, epoch=lease.epoch), _prefix(lease))
        store(old)
        return Contents(self._to, ns, draft.row, fetch)

    def _prove(self, ns: str, source: Contents, copy: Contents) -> None:
        """Compare a copy with its source. Raises MigrationRefused where they differ."""
        name = f"{source.row.project}/{source.row.name} of {ns}"
        for journal in source.journals():
            for segment in source.segments(journal.id):
                if copy.segment(journal.id, segment.file) != segment:
                    raise MigrationRefused(f"the copy of {name} lacks segment {segment.file}")
                if _digest(source, segment.id, segment.length) != _digest(copy, segment.id, segment.length):
                    raise MigrationRefused(
                        f"segment {segment.file} of {name} has other bytes in the copy",
                        hint="run ml-dash server scrub on the source; its data was not changed",
                    )
        if _encode(whole_state(source.state())) != _encode(whole_state(copy.state())):
            raise MigrationRefused(f"the copy of {name} has another state")
        both = zip(_entries(source), _entries(copy), strict=False)
        if any(ours != theirs for ours, theirs in both) or _count(source) != _count(copy):
            raise MigrationRefused(f"the copy of {name} has other entries")


def environment_of(text: str) -> dict[str, str]:
    """Return the variables that a file sets, as systemd's EnvironmentFile: lines NAME=VALUE, others empty or `#`.

    Raises MigrationRefused for other lines; no message shows a value.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith(("#", ";")):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.strip().isidentifier():
            raise MigrationRefused(f"line {number} of the environment is not NAME=VALUE", hint="write one each line")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        found[name.strip()] = value
    return found


def _prefix(lease: Lease) -> str:
    return f"{lease.version:x}.{lease.epoch:x}"


def _leased(stores: Stores, ns: str, experiment: str, which: str) -> Lease:
    """Return a lease; wait for whoever has it. Raises MigrationRefused if that takes too long."""
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            return stores.documents.lease(ns, experiment)
        except Busy:
            if time.monotonic() > until:
                raise MigrationRefused(
                    f"another process keeps changing experiment {experiment} of {ns} in the {which}",
                    hint="end the server of the target, and run this again",
                ) from None
        # It lasts as long as a fold; there is nothing to be woken by.
        time.sleep(_BUSY_PAUSE_S)


def _with_page(source: Contents, draft: Draft, key: str, value: bytes) -> tuple[bytes, int]:
    """Copy the page that an entry names, if it names one; return (the entry that names the copy, bytes of the page)."""
    page = page_in(key, value)
    if not page:
        return value, 0
    content = source.pages_of([page])[page]
    return with_page(key, value, draft.page(content)), len(content)


def _entries(contents: Contents) -> Iterator[tuple[str, bytes]]:
    """Yield (key, value) of all entries; of those that name a page, its digest in place of its id."""
    for key, value in contents.tree.items("", "\U0010ffff"):
        page = page_in(key, value)
        yield key, with_page(key, value, _page_digest(contents, page)) if page else value


def _page_digest(contents: Contents, page: str) -> str:
    return hashlib.sha256(contents.pages_of([page])[page]).hexdigest()


def _count(contents: Contents) -> int:
    return sum(1 for _ in contents.tree.items("", "\U0010ffff"))


def _digest(contents: Contents, segment: str, length: int) -> str:
    digest, size = hashlib.sha256(), 0
    for piece in contents.bytes_of(segment, 0, length):
        digest.update(piece)
        size += len(piece)
    return f"{size}-{digest.hexdigest()}"
