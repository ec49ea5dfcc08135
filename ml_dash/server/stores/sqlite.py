"""Documents in one SQLite file: WAL, every commit synced, one writer at a time, readers beside it.

One file, so that a backup is one copy and nothing has to be set up. WAL (write-ahead log): a commit appends to
`server.sqlite-wal` and syncs it once; readers go on with the snapshot that they began with, and no reader holds up a
writer, nor a writer a reader. A kill leaves complete transactions and perhaps the beginning of one, which SQLite
passes over when it opens the file.

    writer    one connection, one thread at a time (`_turn`); BEGIN IMMEDIATE keeps other processes out
    leases    another one, also under `_turn`, which does not sync: a lease that a power cut takes away is given anew
    readers   up to _READERS_KEPT idle connections; each used by one thread at a time, within one BEGIN ... ROLLBACK

A commit is one transaction here, though the seam does not ask for that: pages, head, and the deletion of what is
superseded. It looks first whether the lease still holds. What must not happen twice is refused by a primary key,
whoever tries it; that is why tables and indexes are checked at the start.

Large columns (`content`) are in tables with rowids, and found by a unique index beside: in a table WITHOUT ROWID they
would be part of the index's pages, and each search would read past them. `listed` repeats the few columns of `heads`
that lists need, for the same reason.

    heads      the newest version of each experiment           listed     the columns by which lists are searched
    pages      contents of experiments, each written once      leases     who folds next
    journals   which experiment each belongs to                segments   which journal each belongs to
    blobs      contents that are complete                      tokens     by their SHA-256
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from ...core.limits import INT64_MAX
from ...disk.durable import fail_point, sync_folder
from . import (
    LEASE_S,
    BlobRow,
    Busy,
    Commit,
    ExperimentRow,
    Filter,
    JournalClaim,
    Lease,
    Older,
    Place,
    SegmentClaim,
    Stale,
    StoreRefused,
    StoreTrouble,
    TokenRow,
    Vanished,
    Version,
    news_of,
    points_of,
    searched_text,
    sqlite_v1,
)
from .standstill import Standstill

log = logging.getLogger("ml_dash.server")
_VERSION: Final = 2
# How long a statement waits for a lock of another process (`ml-dash server token`, a backup) before it is an error.
_BUSY_S: Final = 10.0
# A larger file is not checked at the start: that would read all of it.
_CHECKED_BYTES: Final = 1 << 28
# Idle connections that wait for the next reader; each holds some pages in memory.
_READERS_KEPT: Final = 8
_READER_CACHE_KIB: Final = 2_000
_WRITER_CACHE_KIB: Final = 16_000
_KEYS_AT_ONCE: Final = 500
# A long reader keeps the WAL from being used again from its start, and it grows. After that it is cut to this size.
_WAL_KEPT_BYTES: Final = 64 << 20
# Numbers are signed and of 64 bits. Times are ns since the epoch; `ns` is a namespace. Every key of what a user has
# begins with it, so that no query can leave it.
_TABLES: Final = """
CREATE TABLE heads(ns TEXT, id TEXT, project TEXT, name TEXT, version INTEGER, fold_version INTEGER, state BLOB,
  status TEXT, created INTEGER, updated INTEGER, heard INTEGER, folder TEXT, tags TEXT, description TEXT, summary TEXT,
  root BLOB, epoch INTEGER, arrivals INTEGER, PRIMARY KEY(ns, id)) WITHOUT ROWID;
CREATE TABLE listed(ns TEXT, id TEXT, project TEXT, name TEXT, status TEXT, created INTEGER, updated INTEGER,
  points INTEGER, folder TEXT, tags TEXT, searched TEXT, PRIMARY KEY(ns, id)) WITHOUT ROWID;
CREATE INDEX listed_updated ON listed(ns, updated, id);
CREATE INDEX listed_project ON listed(ns, project, updated, id);
CREATE INDEX listed_created ON listed(ns, created, id);
CREATE INDEX listed_name ON listed(ns, name, id);
CREATE INDEX listed_points ON listed(ns, points, id);
CREATE TABLE leases(ns TEXT, experiment TEXT, epoch INTEGER, free INTEGER, PRIMARY KEY(ns, experiment)) WITHOUT ROWID;
CREATE TABLE pages(ns TEXT, experiment TEXT, id TEXT, content BLOB);
CREATE UNIQUE INDEX pages_id ON pages(ns, experiment, id);
CREATE TABLE journals(ns TEXT, id TEXT, experiment TEXT, project TEXT, name TEXT, PRIMARY KEY(ns, id)) WITHOUT ROWID;
CREATE TABLE segments(ns TEXT, id TEXT, journal TEXT, file TEXT, writer TEXT, experiment TEXT,
  PRIMARY KEY(ns, id)) WITHOUT ROWID;
CREATE TABLE blobs(ns TEXT, experiment TEXT, name TEXT, digest TEXT, size INTEGER, key TEXT,
  PRIMARY KEY(ns, experiment, name)) WITHOUT ROWID;
CREATE INDEX blobs_digest ON blobs(ns, digest);
CREATE TABLE tokens(id TEXT PRIMARY KEY, digest TEXT, user TEXT, read_only INTEGER, read_all INTEGER, created INTEGER,
  expires INTEGER, revoked INTEGER) WITHOUT ROWID;
CREATE UNIQUE INDEX tokens_digest ON tokens(digest);
"""
# A place is (value, id) of the last row that was shown. Each has an index in the same order, so a page costs what it
# shows, wherever it is in the list.
# `Filter.sort` → (ORDER BY, the condition for rows after a place).
_SORTS: Final = {
    "updated": ("updated DESC, id DESC", "(updated, id) < (?, ?)"),
    "created": ("created DESC, id DESC", "(created, id) < (?, ?)"),
    "name": ("name, id", "(name, id) > (?, ?)"),
    "points": ("points DESC, id DESC", "(points, id) < (?, ?)"),
}


class SqliteDocuments:
    """`Documents` in the SQLite file `path`. Raises StoreRefused if it is damaged, or of another version.

    `_turn` admits one writing thread and protects `_writer` and `_leases`; `_guard` protects `_readers`. Only `close`
    takes both, `_turn` first, and sets `_closed` under both.
    """

    def __init__(self, path: Path, *, alone: bool = False) -> None:
        """Open or make the file; `alone`: no other process folds here, so leases that are in it are left over."""
        self.path = path
        self._guard = threading.Lock()
        self._turn = threading.Lock()
        self._readers: list[sqlite3.Connection] = []
        self._writer: sqlite3.Connection | None = None
        self._leases: sqlite3.Connection | None = None
        self._standstill = Standstill()
        self._closed = False
        self._prepare()
        if alone:
            with self._writing() as tx:
                tx.drop_leases()

    # -- opening -----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make the file or check it, and keep the connection as the writing one. Raises StoreRefused."""
        connection: sqlite3.Connection | None = None
        try:
            connection = self._connect(_WRITER_CACHE_KIB, mode="rwc")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and not connection.execute("SELECT name FROM sqlite_master").fetchall():
                connection.execute("PRAGMA journal_mode=WAL")
                # The version is in the same transaction: a file with a version has all tables.
                connection.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version={_VERSION};COMMIT;")
                # SQLite syncs what is in its file, not the folder's entry for it.
                sync_folder(self.path.parent)
            elif version == sqlite_v1.VERSION:
                sqlite_v1.begin(connection, _TABLES, _VERSION)
            elif version != _VERSION:
                raise StoreRefused(
                    f"{self.path} has version {version}, this server reads version {_VERSION}",
                    hint="use the ml-dash that wrote it, or a newer one (the file was not changed)",
                )
            self._check(connection)
        # This is a DatabaseError too, so it comes first: it says nothing against the content.
        except sqlite3.OperationalError as error:
            _close(connection)
            raise StoreRefused(
                f"{self.path} cannot be used now: {error}",
                hint="check the disk, the permissions, and which program holds the file; nothing was changed",
            ) from error
        except sqlite3.DatabaseError as error:
            _close(connection)
            raise StoreRefused(
                f"{self.path} is damaged: {error}",
                hint="restore it from a backup; uploaders send again what that lacks",
            ) from error
        except BaseException:
            _close(connection)
            raise
        self._writer = connection

    def _check(self, connection: sqlite3.Connection) -> None:
        """Check that every table and index is there: without a unique index an event could count twice."""
        # The tables as this code makes them, to compare with: what SQLite stores is the text of each statement.
        expected = sqlite3.connect(":memory:")
        try:
            expected.executescript(_TABLES)
            missing = set(_schema(expected)) - set(_schema(connection))
        finally:
            expected.close()
        if missing:
            names = ", ".join(sorted(name for name, _ in missing))
            raise StoreRefused(
                f"{self.path} lacks or has changed: {names}", hint="restore it from a backup; nothing was changed"
            )
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise StoreRefused(
                f"{self.path} cannot be kept in WAL mode (it is in {mode})",
                hint="put the data folder on a local disk: readers would hold up uploads here",
            )
        if self.path.stat().st_size > _CHECKED_BYTES:
            return
        problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise StoreRefused(f"{self.path} is damaged: {problem}", hint="restore it from a backup")

    def _connect(self, cache_kib: int, mode: str = "rw") -> sqlite3.Connection:
        """Open a connection. With no isolation level, transactions begin and end only where this module says so."""
        # Without "c" in the mode: if the file is moved away while the server runs, no new one is created.
        uri = f"file:{quote(os.fspath(self.path.absolute()))}?mode={mode}"
        # A connection goes from thread to thread, but is used by one at a time; `_turn` and `_take_reader` see to
        # that.
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            # In WAL mode FULL syncs each commit, before it is acknowledged.
            connection.execute("PRAGMA synchronous=FULL")
            # On macOS a plain fsync stops at the drive's cache. Elsewhere these two change nothing.
            connection.execute("PRAGMA fullfsync=1")
            connection.execute("PRAGMA checkpoint_fullfsync=1")
            connection.execute(f"PRAGMA cache_size=-{cache_kib}")
            # A shrinking or failing file must be an error, not a SIGBUS.
            connection.execute("PRAGMA mmap_size=0")
            connection.execute(f"PRAGMA journal_size_limit={_WAL_KEPT_BYTES}")
            connection.execute("PRAGMA trusted_schema=0")
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close all connections; one that is in use is closed when its transaction ends. Waits for a writer."""
        with self._turn, self._guard:
            self._closed = True
            readers, self._readers = self._readers, []
            writer, self._writer = self._writer, None
            leases, self._leases = self._leases, None
        for connection in (*readers, writer, leases):
            _close(connection)

    def check(self) -> None:
        """Raise StoreTrouble if it cannot be used now."""
        with self.view() as view:
            view.all_experiments(None, 1)

    # -- transactions ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def view(self) -> Iterator[_View]:
        """Open a consistent snapshot. Raises StoreTrouble."""
        with _trouble():
            connection = self._take_reader()
        good = True
        try:
            with _trouble():
                # The snapshot is that of the first statement after this.
                connection.execute("BEGIN")
                yield _View(connection)
        except StoreTrouble:
            good = False
            raise
        finally:
            self._give_back(connection, good)

    def _take_reader(self) -> sqlite3.Connection:
        """Return an idle connection, or a new one. The one used last is taken first, since its pages are cached."""
        with self._guard:
            if self._closed:
                raise StoreTrouble("the server is stopping")
            if self._readers:
                return self._readers.pop()
        return self._connect(_READER_CACHE_KIB)

    def _give_back(self, connection: sqlite3.Connection, good: bool) -> None:
        """Keep a connection for the next reader. One that failed (not `good`) is closed."""
        try:
            # Nothing was written; a transaction that stays open would keep the WAL from being used again.
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            good = False
        with self._guard:
            if good and not self._closed and len(self._readers) < _READERS_KEPT:
                self._readers.append(connection)
                return
        _close(connection)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[_View]:
        """Open a transaction: durable when the block has ended without an exception. Raises StoreTrouble."""
        with self._turn:
            with _trouble():
                connection = self._begin()
            try:
                with _trouble():
                    yield _View(connection)
                    connection.execute("COMMIT")
            except BaseException as error:
                self._undo(connection, keep=not isinstance(error, StoreTrouble))
                raise

    def _begin(self) -> sqlite3.Connection:
        """Begin a transaction on the writing connection, a new one after trouble. Holds `_turn`."""
        if self._closed:
            raise StoreTrouble("the server is stopping")
        if self._writer is None:
            self._writer = self._connect(_WRITER_CACHE_KIB)
        try:
            # Not a plain BEGIN: that would take the lock at the first write, when the snapshot may be too old for it,
            # and the transaction would fail in the middle.
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:
            self._undo(self._writer, keep=False)
            raise
        return self._writer

    def _undo(self, connection: sqlite3.Connection, *, keep: bool) -> None:
        """Roll back a transaction. After an error of the disk (not `keep`), the next one gets a new connection."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            keep = False
        if not keep:
            self._writer = None
            _close(connection)

    # -- leases and commits ------------------------------------------------------------------------------------------

    def lease(self, ns: str, experiment: str) -> Lease:
        """Return the right to commit the next version. Raises Busy, StoreTrouble."""
        key = (ns, experiment)
        with self._turn, _trouble():
            leases = self._lease_connection()
            leases.execute("BEGIN IMMEDIATE")
            try:
                view = _View(leases)
                version, epoch, leased, free = view.epochs(ns, experiment)
                held = leased > epoch and not free
                if held and (still_s := self._standstill.seconds(key, (version, leased), time.monotonic())) < LEASE_S:
                    raise Busy(experiment, still_s)
                lease = Lease(ns, experiment, max(epoch, leased) + 1, view.experiment(ns, experiment))
                view.put_lease(ns, experiment, lease.epoch)
                leases.execute("COMMIT")
            finally:
                if leases.in_transaction:
                    leases.execute("ROLLBACK")
            self._standstill.forget(key)
        fail_point("commit-lease")
        return lease

    def _lease_connection(self) -> sqlite3.Connection:
        """Return the connection that writes leases, which does not sync. Holds `_turn`."""
        if self._closed:
            raise StoreTrouble("the server is stopping")
        if self._leases is None:
            self._leases = self._connect(_READER_CACHE_KIB)
            self._leases.execute("PRAGMA synchronous=OFF")
        return self._leases

    def release(self, lease: Lease) -> None:
        """Give a lease back, with nothing committed."""
        try:
            with self._turn, _trouble():
                # Only this one: another process may have taken over since. The row stays, so that no epoch comes twice.
                self._lease_connection().execute(
                    "UPDATE leases SET free=1 WHERE ns=? AND experiment=? AND epoch=?",
                    (lease.ns, lease.experiment, lease.epoch),
                )
        except StoreTrouble as error:
            log.info("a lease could not be given back, and runs out: %s", error)

    def commit(self, lease: Lease, commit: Commit) -> None:
        """Store a version of an experiment, in one transaction. Raises Stale, StoreTrouble."""
        assert commit.row.version == lease.version
        assert commit.row.epoch == lease.epoch
        ns, experiment = lease.ns, lease.experiment
        with self._writing() as tx:
            version, _, leased, _ = tx.epochs(ns, experiment)
            if leased != lease.epoch or version != lease.version - 1:
                raise Stale(f"experiment {experiment} was changed by another process")
            tx.put_pages(ns, experiment, commit.pages)
            fail_point("commit-pages")
            tx.drop_pages(ns, experiment, commit.superseded)
            tx.put_head(ns, commit.row)
            fail_point("commit-head")
            fail_point("ingest-before-commit")
        fail_point("commit-listed")
        fail_point("ingest-after-commit")

    # -- single rows -------------------------------------------------------------------------------------------------

    def claim_journal(self, ns: str, claim: JournalClaim) -> JournalClaim:
        """Store the claim unless there is one; return the one that is stored."""
        with self._writing() as tx:
            tx.put_journal(ns, claim)
            return tx.journal(ns, claim.id) or claim

    def claim_segment(self, ns: str, claim: SegmentClaim) -> SegmentClaim:
        """Store the claim unless there is one; return the one that is stored."""
        with self._writing() as tx:
            tx.put_segment(ns, claim)
            return tx.segment(ns, claim.id) or claim

    def put_blobs(self, ns: str, rows: Sequence[BlobRow]) -> None:
        """Store complete blobs."""
        with self._writing() as tx:
            tx.put_blobs(ns, rows)

    def drop_blobs(self, ns: str, experiment: str, names: Iterable[str]) -> None:
        """Delete rows of blobs."""
        with self._writing() as tx:
            tx.drop_blobs(ns, experiment, names)

    def put_token(self, row: TokenRow) -> None:
        """Store a token."""
        with self._writing() as tx:
            tx.put_token(row)

    def older(self, ns: str, experiment: str) -> Older | None:
        """Return what version 1 holds of an experiment."""
        with self.view() as view:
            return sqlite_v1.older(view.connection, self.view, self._writing, ns, experiment)

    def mend(self) -> int:
        """Return 0: transactions leave nothing to mend."""
        return 0

    def page_ids(self, ns: str, experiment: str) -> Iterator[str]:
        """Yield the ids of all pages of an experiment, sorted."""
        last = ""
        while True:
            with self.view() as view:
                ids = view.page_ids(ns, experiment, last, _KEYS_AT_ONCE)
            yield from ids
            if len(ids) < _KEYS_AT_ONCE:
                return
            last = ids[-1]

    def drop_pages(self, ns: str, experiment: str, ids: Sequence[str]) -> None:
        """Delete pages that no head names."""
        with self._writing() as tx:
            tx.drop_pages(ns, experiment, ids)

    def facts(self) -> Mapping[str, str]:
        """Return kind, version and place of the database."""
        return {"kind": "SQLite", "version": sqlite3.sqlite_version, "place": str(self.path)}


def _close(connection: sqlite3.Connection | None) -> None:
    """Close a connection, whatever state it is in."""
    if connection is not None:
        # What it could not checkpoint on closing is still in the WAL.
        with contextlib.suppress(sqlite3.Error):
            connection.close()


def _schema(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Return (name, SQL) of all tables and indexes, with white space made equal."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return [(name, " ".join(sql.split())) for name, sql in rows]


@contextlib.contextmanager
def _trouble() -> Iterator[None]:
    """Turn errors of SQLite into StoreTrouble."""
    try:
        yield
    except sqlite3.Error as error:
        hint = "nothing was acknowledged; free space or mend the disk"
        raise StoreTrouble(f"the database refused: {error}", hint=hint) from error


class _View:
    """`View` on one connection, within one transaction.

    The methods have their contracts in `View`. Values above 2^63 - 1 are cut to that, because SQLite has no greater
    integers: as the bound of a search it means the same, as a time it still comes last.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._all = connection.execute
        self._many = connection.executemany

    def _one(self, sql: str, values: tuple[Any, ...]) -> Any:
        return self._all(sql, values).fetchone()

    # -- experiments -------------------------------------------------------------------------------------------------

    def experiment(self, ns: str, experiment: str) -> ExperimentRow | None:
        row = self._one(f"SELECT {_HEAD} FROM heads WHERE ns=? AND id=?", (ns, experiment))
        return _experiment(row) if row is not None else None

    def pages(self, ns: str, experiment: str, ids: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for start in range(0, len(ids), _KEYS_AT_ONCE):
            part = ids[start : start + _KEYS_AT_ONCE]
            sql = f"SELECT id, content FROM pages WHERE ns=? AND experiment=? AND id IN ({_marks(len(part))})"
            found.update(self._all(sql, (ns, experiment, *part)))
        if len(found) < len(set(ids)):
            raise Vanished(f"{len(set(ids)) - len(found)} pages of experiment {experiment}")
        return found

    def experiments(self, ns: str, wanted: Filter, limit: int, after: Place | None) -> list[ExperimentRow]:
        where, values = _where(ns, wanted)
        order, behind = _SORTS[wanted.sort]
        if after is not None:
            value = min(after[0], INT64_MAX) if isinstance(after[0], int) else after[0]
            where, values = f"{where} AND {behind}", (*values, value, after[1])
        # Lists do not need the states, which are the largest part of a row: an empty one takes their place.
        columns = ", ".join("x''" if name in ("state", "root") else f"h.{name}" for name in _HEAD.split(", "))
        sql = (
            # CROSS JOIN keeps SQLite from changing the order of the two, and with it that of the rows.
            f"SELECT {columns} FROM (SELECT ns AS n, id AS i FROM listed WHERE {where} ORDER BY {order} LIMIT ?) "
            "CROSS JOIN heads h ON h.ns=n AND h.id=i"
        )
        return [_experiment(row) for row in self._all(sql, (*values, limit)).fetchall()]

    def count(self, ns: str, wanted: Filter) -> int:
        where, values = _where(ns, wanted)
        return int(self._one(f"SELECT count(*) FROM listed WHERE {where}", values)[0])

    def projects(self, ns: str) -> list[dict[str, Any]]:
        rows = self._all(
            "SELECT project, count(*), min(created), max(updated) FROM listed WHERE ns=? GROUP BY project", (ns,)
        )
        return [dict(zip(("project", "experiments", "created_ns", "updated_ns"), row, strict=True)) for row in rows]

    def stale(self, fold_version: int) -> list[tuple[str, str]]:
        return list(self._all("SELECT ns, id FROM heads WHERE fold_version<>?", (fold_version,)))

    def quiet(self, before_ns: int) -> list[tuple[str, str]]:
        return list(self._all("SELECT ns, id FROM heads WHERE status='running' AND heard<?", (before_ns,)))

    def all_experiments(self, after: tuple[str, str] | None, limit: int) -> list[tuple[str, str]]:
        sql = "SELECT ns, id FROM heads WHERE (ns, id) > (?, ?) ORDER BY ns, id LIMIT ?"
        return self._all(sql, (*(after or ("", "")), limit)).fetchall()

    def events(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, int]]:
        found = {}
        for key in keys:
            row = self._one("SELECT version, summary FROM heads WHERE ns=? AND id=?", key)
            if row is not None:
                found[key] = row[0], news_of(json.loads(row[1]))
        return found

    def versions(self, ns: str, ids: Sequence[str] | None = None) -> dict[str, Version]:
        if ids is None:
            # Through the list, which has those with events only.
            rows: Iterable[Any] = self._all(
                "SELECT h.id, h.version, h.heard, h.summary FROM listed l "
                "CROSS JOIN heads h ON h.ns=l.ns AND h.id=l.id WHERE l.ns=?",
                (ns,),
            )
        else:
            sql = "SELECT id, version, heard, summary FROM heads WHERE ns=? AND id=?"
            rows = (row for identity in ids if (row := self._one(sql, (ns, identity))) is not None)
        # Numbers of more than 63 bits are none of SQLite's.
        found = {
            identity: Version(version, heard, json.loads(text))
            for identity, version, heard, text in rows
        }
        return {identity: version for identity, version in found.items() if version.events}

    def usage(self, ns: str) -> int:
        raw = self._one("SELECT coalesce(sum(json_extract(summary, '$.bytes')), 0) FROM heads WHERE ns=?", (ns,))
        blobs = self._one("SELECT coalesce(sum(size), 0) FROM blobs WHERE ns=?", (ns,))
        return int(raw[0]) + int(blobs[0])

    # -- claims, blobs, tokens ---------------------------------------------------------------------------------------

    def journal(self, ns: str, journal: str) -> JournalClaim | None:
        row = self._one(f"SELECT {_JOURNAL} FROM journals WHERE ns=? AND id=?", (ns, journal))
        return JournalClaim(*row) if row is not None else None

    def segment(self, ns: str, segment: str) -> SegmentClaim | None:
        row = self._one(f"SELECT {_SEGMENT} FROM segments WHERE ns=? AND id=?", (ns, segment))
        return SegmentClaim(*row) if row is not None else None

    def blob(self, ns: str, experiment: str, name: str) -> BlobRow | None:
        row = self._one(f"SELECT {_BLOB} FROM blobs WHERE ns=? AND experiment=? AND name=?", (ns, experiment, name))
        return BlobRow(*row) if row is not None else None

    def blobs(self, ns: str, experiment: str) -> list[BlobRow]:
        rows = self._all(f"SELECT {_BLOB} FROM blobs WHERE ns=? AND experiment=?", (ns, experiment))
        return [BlobRow(*row) for row in rows]

    def same_content(self, ns: str, digest: str, size: int) -> list[BlobRow]:
        # Any of them will do; more than one, because an object may be missing.
        rows = self._all(f"SELECT {_BLOB} FROM blobs WHERE ns=? AND digest=? AND size=? LIMIT 8", (ns, digest, size))
        return [BlobRow(*row) for row in rows.fetchall()]

    def token(self, digest: str) -> TokenRow | None:
        row = self._one(f"SELECT {_TOKEN} FROM tokens WHERE digest=?", (digest,))
        return _token(row) if row is not None else None

    def tokens(self) -> list[TokenRow]:
        return list(map(_token, self._all(f"SELECT {_TOKEN} FROM tokens ORDER BY created, id")))

    # -- what the documents write, within a transaction --------------------------------------------------------------

    def put_head(self, ns: str, row: ExperimentRow) -> None:
        """Store the newest version of an experiment, and what lists show of it."""
        tags = json.dumps(row.tags)
        values = (
            ns, row.id, row.project, row.name, row.version, row.fold_version, row.state, row.status,
            min(row.created_ns, INT64_MAX), min(row.updated_ns, INT64_MAX), row.heard_ns, row.folder, tags,
            row.description, json.dumps(row.summary), row.root, row.epoch, row.arrivals,
        )  # fmt: skip
        self._all(f"INSERT OR REPLACE INTO heads(ns, {_HEAD}) VALUES({_marks(18)})", values)
        # An experiment of which only removed writers sent anything is not listed.
        if not row.events:
            self._all("DELETE FROM listed WHERE ns=? AND id=?", (ns, row.id))
            return
        listed = (
            ns, row.id, row.project, row.name, row.status, min(row.created_ns, INT64_MAX),
            min(row.updated_ns, INT64_MAX), min(points_of(row), INT64_MAX), row.folder, tags, searched_text(row),
        )  # fmt: skip
        self._all(f"INSERT OR REPLACE INTO listed VALUES({_marks(11)})", listed)

    def put_pages(self, ns: str, experiment: str, pages: Iterable[tuple[str, bytes]]) -> None:
        """Insert pages."""
        self._many("INSERT INTO pages VALUES(?,?,?,?)", ((ns, experiment, *page) for page in pages))

    def drop_pages(self, ns: str, experiment: str, ids: Iterable[str]) -> None:
        """Delete pages."""
        sql = "DELETE FROM pages WHERE ns=? AND experiment=? AND id=?"
        self._many(sql, ((ns, experiment, page) for page in ids))

    def epochs(self, ns: str, experiment: str) -> tuple[int, int, int, bool]:
        """Return (version, epoch) of the head, 0 without one, and (epoch, whether given back) of the newest lease."""
        head = self._one("SELECT version, epoch FROM heads WHERE ns=? AND id=?", (ns, experiment)) or (0, 0)
        lease = self._one("SELECT epoch, free FROM leases WHERE ns=? AND experiment=?", (ns, experiment)) or (0, 0)
        return head[0], head[1], lease[0], bool(lease[1])

    def put_lease(self, ns: str, experiment: str, epoch: int) -> None:
        """Store the newest lease."""
        self._all("INSERT OR REPLACE INTO leases VALUES(?,?,?,0)", (ns, experiment, epoch))

    def drop_leases(self) -> None:
        """Delete all leases that no commit has ended."""
        self._all("DELETE FROM leases")

    def put_blobs(self, ns: str, rows: Iterable[BlobRow]) -> None:
        """Store rows of blobs."""
        values = ((ns, row.experiment, row.name, row.digest, row.size, row.key) for row in rows)
        self._many(f"INSERT OR REPLACE INTO blobs VALUES({_marks(6)})", values)

    def drop_blobs(self, ns: str, experiment: str, names: Iterable[str]) -> None:
        """Delete rows of blobs."""
        sql = "DELETE FROM blobs WHERE ns=? AND experiment=? AND name=?"
        self._many(sql, ((ns, experiment, name) for name in names))

    def put_journal(self, ns: str, claim: JournalClaim) -> None:
        """Store a claim, unless there is one."""
        values = (ns, claim.id, claim.experiment, claim.project, claim.name)
        self._all(f"INSERT OR IGNORE INTO journals VALUES({_marks(5)})", values)

    def put_segment(self, ns: str, claim: SegmentClaim) -> None:
        """Store a claim, unless there is one."""
        values = (ns, claim.id, claim.journal, claim.file, claim.writer, claim.experiment)
        self._all(f"INSERT OR IGNORE INTO segments VALUES({_marks(6)})", values)

    def put_token(self, row: TokenRow) -> None:
        """Store a token; of one that is there, only its end changes."""
        values = (
            row.id, row.digest, row.user, int(row.read_only), int(row.read_all), row.created_ns, row.expires_ns,
            row.revoked_ns,
        )  # fmt: skip
        self._all(
            f"INSERT INTO tokens VALUES({_marks(8)}) ON CONFLICT(id) DO UPDATE SET expires=excluded.expires, "
            "revoked=excluded.revoked",
            values,
        )

    def page_ids(self, ns: str, experiment: str, after: str, limit: int) -> list[str]:
        """Return at most `limit` ids of pages behind `after`, sorted."""
        sql = "SELECT id FROM pages WHERE ns=? AND experiment=? AND id>? ORDER BY id LIMIT ?"
        return [row[0] for row in self._all(sql, (ns, experiment, after, limit))]


_HEAD: Final = (
    "id, project, name, version, fold_version, state, status, created, updated, heard, folder, tags, description, "
    "summary, root, epoch, arrivals"
)
_JOURNAL: Final = "id, experiment, project, name"
_SEGMENT: Final = "id, journal, file, writer, experiment"
_BLOB: Final = "name, digest, size, key, experiment"
_TOKEN: Final = "id, digest, user, read_only, read_all, created, expires, revoked"


def _marks(count: int) -> str:
    """Return this many placeholders for values."""
    return ",".join("?" * count)


def _where(ns: str, wanted: Filter) -> tuple[str, tuple[Any, ...]]:
    """Return the condition of a filter, and its values.

    Column names come from here and never from a request; what users give is always bound to a placeholder.
    """
    parts: list[tuple[str, Any]] = [("ns=?", ns)]
    for column in ("project", "status", "folder"):
        value = getattr(wanted, column)
        if value is not None:
            parts.append((f"{column}=?", value))
    if wanted.tag is not None:
        parts.append(("EXISTS(SELECT 1 FROM json_each(tags) WHERE value=?)", wanted.tag))
    if wanted.since_ns:
        parts.append(("updated>=?", min(wanted.since_ns, INT64_MAX)))
    if wanted.text:
        parts.append(("instr(searched, ?) > 0", wanted.text.casefold()))
    return " AND ".join(part for part, _ in parts), tuple(value for _, value in parts)


def _experiment(row: tuple[Any, ...]) -> ExperimentRow:
    """Return an experiment from the columns in `_HEAD`."""
    values: Any = (*row[:11], tuple(json.loads(row[11])), row[12], json.loads(row[13]), *row[14:])
    return ExperimentRow(*values)


def _token(row: tuple[Any, ...]) -> TokenRow:
    return TokenRow(row[0], row[1], row[2], bool(row[3]), bool(row[4]), *row[5:])
