"""Documents in one SQLite file: WAL, every commit synced, one writer at a time, readers beside it.

One file, so that a backup is one copy and nothing has to be set up. WAL (write-ahead log): a commit appends to
`server.sqlite-wal` and syncs it once; readers go on with the snapshot that they began with, and no reader holds up a
writer, nor a writer a reader. A kill leaves complete transactions and perhaps the beginning of one, which SQLite
passes over when it opens the file.

    writer    one connection, one thread at a time (`_turn`); BEGIN IMMEDIATE keeps other processes out
    readers   up to _READERS_KEPT idle connections; each used by one thread at a time, within one BEGIN ... ROLLBACK

What must not happen twice is claimed by a unique index (`stretches_id`, the primary key of `arrivals`): a second
insert raises Claimed, whoever makes it. That is why the indexes are checked at the start.

Large columns (`content`, `lines`) are in tables with rowids, and found by a unique index beside: in a table WITHOUT
ROWID they would be part of the index's pages, and each search would read past them. `listed` repeats the few columns
of `experiments` that lists need, for the same reason: `experiments` has the folded states.

Results may be large, so keys are read first and contents in pieces of about _PIECE_BYTES.

    experiments   folded state, and what lists show of it      listed      the columns by which lists are searched
    journals      which experiment each belongs to             segments    length, header, what never verified
    stretches     raw bytes, as they came                      arrivals    in which order they were folded
    blocks        folded lines and their summaries             blobs       contents that are complete
    tokens        by their SHA-256                             settings    name and value
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from ...core.limits import INT64_MAX
from ...core.ranges import Range
from ...disk.durable import sync_folder
from . import (
    Arrival,
    BlobRow,
    Block,
    Claimed,
    ExperimentRow,
    Filter,
    JournalRow,
    Place,
    SegmentRow,
    StoreRefused,
    StoreTrouble,
    TokenRow,
    points_of,
    searched_text,
)

_VERSION: Final = 1
# How long a statement waits for a lock of another process (`ml-dash server token`, a backup) before it is an error.
_BUSY_S: Final = 10.0
# A larger file is not checked at the start: that would read all of it.
_CHECKED_BYTES: Final = 1 << 28
# Idle connections that wait for the next reader; each holds some pages in memory.
_READERS_KEPT: Final = 8
_READER_CACHE_KIB: Final = 2_000
_WRITER_CACHE_KIB: Final = 16_000
_PIECE_BYTES: Final = 1 << 20
_KEYS_AT_ONCE: Final = 1000
# A long reader keeps the WAL from being used again from its start, and it grows. After that it is cut to this size.
_WAL_KEPT_BYTES: Final = 64 << 20
# Numbers are signed and of 64 bits. Times are ns since the epoch; `ns` is a namespace. Every key of what a user has
# begins with it, so that no query can leave it.
_TABLES: Final = """
CREATE TABLE experiments(ns TEXT, id TEXT, project TEXT, name TEXT, version INTEGER, fold_version INTEGER, state BLOB,
  status TEXT, created INTEGER, updated INTEGER, heard INTEGER, folder TEXT, tags TEXT, description TEXT, summary TEXT,
  removed TEXT, PRIMARY KEY(ns, id)) WITHOUT ROWID;
CREATE TABLE listed(ns TEXT, id TEXT, project TEXT, name TEXT, status TEXT, created INTEGER, updated INTEGER,
  points INTEGER, folder TEXT, tags TEXT, searched TEXT, PRIMARY KEY(ns, id)) WITHOUT ROWID;
CREATE INDEX listed_updated ON listed(ns, updated, id);
CREATE INDEX listed_project ON listed(ns, project, updated, id);
CREATE INDEX listed_created ON listed(ns, created, id);
CREATE INDEX listed_name ON listed(ns, name, id);
CREATE INDEX listed_points ON listed(ns, points, id);
CREATE TABLE journals(ns TEXT, id TEXT, experiment TEXT, project TEXT, name TEXT, removed INTEGER,
  PRIMARY KEY(ns, id)) WITHOUT ROWID;
CREATE INDEX journals_experiment ON journals(ns, experiment);
CREATE TABLE segments(ns TEXT, id TEXT, journal TEXT, file TEXT, writer TEXT, experiment TEXT, length INTEGER,
  first INTEGER, crc INTEGER, damaged TEXT, PRIMARY KEY(ns, id)) WITHOUT ROWID;
CREATE UNIQUE INDEX segments_file ON segments(ns, journal, file);
CREATE TABLE stretches(ns TEXT, segment TEXT, start INTEGER, length INTEGER, content BLOB);
CREATE UNIQUE INDEX stretches_id ON stretches(ns, segment, start);
CREATE TABLE arrivals(ns TEXT, experiment TEXT, n INTEGER, kind INTEGER, who TEXT, start INTEGER, "end" INTEGER,
  segment TEXT, PRIMARY KEY(ns, experiment, n)) WITHOUT ROWID;
CREATE INDEX arrivals_deaths ON arrivals(ns, experiment, who) WHERE kind=2;
CREATE TABLE blocks(ns TEXT, experiment TEXT, series TEXT, first INTEGER, count INTEGER, packed INTEGER, lines BLOB,
  summary BLOB, parts BLOB);
CREATE UNIQUE INDEX blocks_id ON blocks(ns, experiment, series, first);
CREATE TABLE blobs(ns TEXT, experiment TEXT, name TEXT, digest TEXT, size INTEGER, key TEXT,
  PRIMARY KEY(ns, experiment, name)) WITHOUT ROWID;
CREATE INDEX blobs_digest ON blobs(ns, digest);
CREATE TABLE tokens(id TEXT PRIMARY KEY, digest TEXT, user TEXT, read_only INTEGER, read_all INTEGER, created INTEGER,
  expires INTEGER, revoked INTEGER) WITHOUT ROWID;
CREATE UNIQUE INDEX tokens_digest ON tokens(digest);
CREATE TABLE settings(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
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

    `_turn` admits one writing thread and protects `_writer`; `_guard` protects `_readers`. Only `close` takes both,
    `_turn` first, and sets `_closed` under both.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._turn = threading.Lock()
        self._readers: list[sqlite3.Connection] = []
        self._writer: sqlite3.Connection | None = None
        self._closed = False
        self._prepare()

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
        for connection in (*readers, writer):
            _close(connection)

    def check(self) -> None:
        """Raise StoreTrouble if it cannot be used now."""
        with self.read() as tx:
            tx.setting("")

    # -- transactions ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def read(self) -> Iterator[_Transaction]:
        """Open a consistent snapshot. Raises StoreTrouble."""
        with _trouble():
            connection = self._take_reader()
        good = True
        try:
            with _trouble():
                # The snapshot is that of the first statement after this.
                connection.execute("BEGIN")
                yield _Transaction(connection)
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
    def write(self) -> Iterator[_Transaction]:
        """Open a transaction: durable when the block has ended without an exception. Raises Claimed, StoreTrouble."""
        with self._turn:
            with _trouble():
                connection = self._begin()
            try:
                with _trouble():
                    yield _Transaction(connection)
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
    """Turn errors of SQLite into Claimed (a unique index refused) and StoreTrouble (everything else)."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise Claimed(str(error)) from error
    except sqlite3.Error as error:
        hint = "nothing was acknowledged; free space or mend the disk"
        raise StoreTrouble(f"the database refused: {error}", hint=hint) from error


class _Transaction:
    """`Read` and `Write` on one connection, within one transaction.

    The methods have their contracts in `Read` and `Write`. Values above 2^63 - 1 are cut to that, because SQLite has
    no greater integers: as the bound of a search it means the same, as a time it still comes last.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._all = connection.execute
        self._many = connection.executemany

    def _one(self, sql: str, values: tuple[Any, ...]) -> Any:
        return self._all(sql, values).fetchone()

    # -- experiments -------------------------------------------------------------------------------------------------

    def experiment(self, ns: str, experiment: str) -> ExperimentRow | None:
        row = self._one(f"SELECT {_EXPERIMENT} FROM experiments WHERE ns=? AND id=?", (ns, experiment))
        return _experiment(row) if row is not None else None

    def experiments(self, ns: str, wanted: Filter, limit: int, after: Place | None) -> list[ExperimentRow]:
        where, values = _where(ns, wanted)
        order, behind = _SORTS[wanted.sort]
        if after is not None:
            where, values = f"{where} AND {behind}", (*values, *after)
        # Lists do not need the states, which are the largest part of a row: an empty one takes their place.
        columns = ", ".join("x''" if name == "state" else f"e.{name}" for name in _EXPERIMENT.split(", "))
        sql = (
            # CROSS JOIN keeps SQLite from changing the order of the two, and with it that of the rows.
            f"SELECT {columns} FROM (SELECT ns AS n, id AS i FROM listed WHERE {where} ORDER BY {order} LIMIT ?) "
            "CROSS JOIN experiments e ON e.ns=n AND e.id=i"
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
        return list(self._all("SELECT ns, id FROM experiments WHERE fold_version<>?", (fold_version,)))

    def quiet(self, before_ns: int) -> list[tuple[str, str]]:
        rows = self._all("SELECT ns, id FROM experiments WHERE status='running' AND heard<?", (before_ns,))
        return list(rows)

    def put_experiment(self, ns: str, row: ExperimentRow) -> None:
        tags = json.dumps(row.tags)
        values = (
            ns, row.id, row.project, row.name, row.version, row.fold_version, row.state, row.status,
            min(row.created_ns, INT64_MAX), min(row.updated_ns, INT64_MAX), row.heard_ns, row.folder, tags,
            row.description, json.dumps(row.summary), json.dumps(row.removed_writers),
        )  # fmt: skip
        self._all(f"INSERT OR REPLACE INTO experiments(ns, {_EXPERIMENT}) VALUES({_marks(16)})", values)
        # An experiment of which only removed writers sent anything is not listed.
        if not row.events:
            self._all("DELETE FROM listed WHERE ns=? AND id=?", (ns, row.id))
            return
        listed = (
            ns, row.id, row.project, row.name, row.status, min(row.created_ns, INT64_MAX),
            min(row.updated_ns, INT64_MAX), min(points_of(row), INT64_MAX), row.folder, tags, searched_text(row),
        )  # fmt: skip
        self._all(f"INSERT OR REPLACE INTO listed VALUES({_marks(11)})", listed)

    # -- journals, segments, stretches -------------------------------------------------------------------------------

    def journal(self, ns: str, journal: str) -> JournalRow | None:
        row = self._one(f"SELECT {_JOURNAL} FROM journals WHERE ns=? AND id=?", (ns, journal))
        return _journal(row) if row is not None else None

    def journals(self, ns: str, experiment: str) -> list[JournalRow]:
        sql = f"SELECT {_JOURNAL} FROM journals WHERE ns=? AND experiment=? ORDER BY id"
        return list(map(_journal, self._all(sql, (ns, experiment))))

    def put_journal(self, ns: str, row: JournalRow) -> None:
        values = (ns, row.id, row.experiment, row.project, row.name, int(row.removed))
        self._all(f"INSERT OR REPLACE INTO journals VALUES({_marks(6)})", values)

    def segment(self, ns: str, segment: str) -> SegmentRow | None:
        row = self._one(f"SELECT {_SEGMENT} FROM segments WHERE ns=? AND id=?", (ns, segment))
        return _segment(row) if row is not None else None

    def segment_by_file(self, ns: str, journal: str, file: str) -> SegmentRow | None:
        row = self._one(f"SELECT {_SEGMENT} FROM segments WHERE ns=? AND journal=? AND file=?", (ns, journal, file))
        return _segment(row) if row is not None else None

    def segments(self, ns: str, journal: str) -> list[SegmentRow]:
        rows = self._all(f"SELECT {_SEGMENT} FROM segments WHERE ns=? AND journal=? ORDER BY file", (ns, journal))
        return list(map(_segment, rows))

    def put_segment(self, ns: str, row: SegmentRow) -> None:
        values = (
            ns, row.id, row.journal, row.file, row.writer, row.experiment, row.length, row.first, row.crc,
            json.dumps(row.damaged),
        )  # fmt: skip
        self._all(
            # What the header says is stored once, with the first bytes.
            f"INSERT INTO segments VALUES({_marks(10)}) ON CONFLICT(ns, id) DO UPDATE SET length=excluded.length, "
            "damaged=excluded.damaged",
            values,
        )

    def claim_stretch(self, ns: str, segment: str, start: int, content: bytes) -> None:
        self._all("INSERT INTO stretches VALUES(?,?,?,?,?)", (ns, segment, start, len(content), content))

    def replace_bytes(self, ns: str, segment: str, start: int, content: bytes) -> None:
        end = start + len(content)
        # A range that is mended may lie in several stretches; each keeps its length.
        for first, old in list(self._stretches(ns, segment, start, end)):
            low, high = max(first, start), min(first + len(old), end)
            new = old[: low - first] + content[low - start : high - start] + old[high - first :]
            self._all("UPDATE stretches SET content=? WHERE ns=? AND segment=? AND start=?", (new, ns, segment, first))

    def _stretches(self, ns: str, segment: str, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield (start, bytes) of the stretches that hold any of the bytes [start, end).

        No statement stays open between two of them, so that the caller may write.
        """
        # The stretch that holds `start` begins at or before it.
        sql = "SELECT max(start) FROM stretches WHERE ns=? AND segment=? AND start<=?"
        found = self._one(sql, (ns, segment, min(start, INT64_MAX)))[0]
        low = found if found is not None else start
        while low < end:
            keys = self._all(
                "SELECT start, length FROM stretches WHERE ns=? AND segment=? AND start>=? AND start<? ORDER BY start "
                "LIMIT ?",
                (ns, segment, low, min(end, INT64_MAX), _KEYS_AT_ONCE),
            ).fetchall()
            for group in _in_pieces(keys):
                yield from self._all(
                    "SELECT start, content FROM stretches WHERE ns=? AND segment=? AND start>=? AND start<=? "
                    "ORDER BY start",
                    (ns, segment, group[0], group[-1]),
                ).fetchall()
            if len(keys) < _KEYS_AT_ONCE:
                return
            low = keys[-1][0] + 1

    def bytes_of(self, ns: str, segment: str, start: int, end: int) -> Iterator[bytes]:
        for first, content in self._stretches(ns, segment, start, end):
            piece = content[max(0, start - first) : end - first]
            if piece:
                yield piece

    # -- what arrived, and lines -------------------------------------------------------------------------------------

    def arrivals(self, ns: str, experiment: str, after: int, limit: int) -> list[Arrival]:
        rows = self._all(
            'SELECT n, kind, who, start, "end", segment FROM arrivals WHERE ns=? AND experiment=? AND n>=? '
            "ORDER BY n LIMIT ?",
            (ns, experiment, min(after, INT64_MAX), limit),
        )
        return [Arrival(*row) for row in rows.fetchall()]

    def has_death(self, ns: str, experiment: str, who: str, segment: str, end: int) -> bool:
        sql = 'SELECT 1 FROM arrivals WHERE ns=? AND experiment=? AND kind=2 AND who=? AND segment=? AND "end"=?'
        return self._one(sql, (ns, experiment, who, segment, min(end, INT64_MAX))) is not None

    def claim_arrival(self, ns: str, experiment: str, arrival: Arrival) -> None:
        values = (ns, experiment, arrival.n, arrival.kind, arrival.who, arrival.start, arrival.end, arrival.segment)
        self._all(f"INSERT INTO arrivals VALUES({_marks(8)})", values)

    def blocks(self, ns: str, experiment: str, series: str, first: int, end: int) -> Iterator[Block]:
        keys = self._all(
            "SELECT first FROM blocks WHERE ns=? AND experiment=? AND series=? AND first>=? AND first<? ORDER BY first",
            (ns, experiment, series, self._first_block(ns, experiment, series, first), min(end, INT64_MAX)),
        ).fetchall()
        # One row at a time: a block may have a megabyte of lines, and the caller may need only the first.
        for (key,) in keys:
            yield _block(self._one(f"SELECT {_BLOCK} FROM blocks {_OF_BLOCK}", (ns, experiment, series, key)))

    def _first_block(self, ns: str, experiment: str, series: str, line: int) -> int:
        """Return the number of the first line of the block that holds `line`."""
        nearest = self._one(
            "SELECT max(first) FROM blocks WHERE ns=? AND experiment=? AND series=? AND first<=?",
            (ns, experiment, series, min(line, INT64_MAX)),
        )[0]
        return nearest if nearest is not None else 0

    def last_block(self, ns: str, experiment: str, series: str) -> Block | None:
        row = self._one(
            f"SELECT {_BLOCK} FROM blocks WHERE ns=? AND experiment=? AND series=? ORDER BY first DESC LIMIT 1",
            (ns, experiment, series),
        )
        return _block(row) if row is not None else None

    def summaries(
        self, ns: str, experiment: str, series: str, first: int, end: int, *, parts: bool = False
    ) -> list[tuple[int, int, bytes]]:
        return self._all(
            f"SELECT first, count, {'parts' if parts else 'summary'} FROM blocks WHERE ns=? AND experiment=? "
            "AND series=? AND first>=? AND first<? ORDER BY first",
            (ns, experiment, series, self._first_block(ns, experiment, series, first), min(end, INT64_MAX)),
        ).fetchall()

    def put_blocks(self, ns: str, experiment: str, blocks: Iterable[Block]) -> None:
        self._many(
            f"INSERT INTO blocks VALUES({_marks(9)}) ON CONFLICT(ns, experiment, series, first) DO UPDATE SET "
            "count=excluded.count, packed=excluded.packed, lines=excluded.lines, summary=excluded.summary, "
            "parts=excluded.parts",
            (
                (ns, experiment, block.series, block.first, block.count, block.packed, _lines(block), block.summary,
                 block.parts)
                for block in blocks
            ),
        )  # fmt: skip

    def drop_blocks(self, ns: str, experiment: str) -> None:
        self._all("DELETE FROM blocks WHERE ns=? AND experiment=?", (ns, experiment))

    # -- blobs, tokens, settings -------------------------------------------------------------------------------------

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

    def put_blob(self, ns: str, row: BlobRow) -> None:
        values = (ns, row.experiment, row.name, row.digest, row.size, row.key)
        self._all(f"INSERT OR REPLACE INTO blobs VALUES({_marks(6)})", values)

    def drop_blob(self, ns: str, experiment: str, name: str) -> None:
        self._all("DELETE FROM blobs WHERE ns=? AND experiment=? AND name=?", (ns, experiment, name))

    def token(self, digest: str) -> TokenRow | None:
        row = self._one(f"SELECT {_TOKEN} FROM tokens WHERE digest=?", (digest,))
        return _token(row) if row is not None else None

    def tokens(self) -> list[TokenRow]:
        return list(map(_token, self._all(f"SELECT {_TOKEN} FROM tokens ORDER BY created, id")))

    def put_token(self, row: TokenRow) -> None:
        values = (
            row.id, row.digest, row.user, int(row.read_only), int(row.read_all), row.created_ns, row.expires_ns,
            row.revoked_ns,
        )  # fmt: skip
        self._all(
            f"INSERT INTO tokens VALUES({_marks(8)}) ON CONFLICT(id) DO UPDATE SET expires=excluded.expires, "
            "revoked=excluded.revoked",
            values,
        )

    def setting(self, name: str) -> str | None:
        row = self._one("SELECT value FROM settings WHERE name=?", (name,))
        return row[0] if row is not None else None

    def put_setting(self, name: str, value: str) -> None:
        self._all("INSERT OR REPLACE INTO settings VALUES(?,?)", (name, value))


_EXPERIMENT: Final = (
    "id, project, name, version, fold_version, state, status, created, updated, heard, folder, tags, description, "
    "summary, removed"
)
_JOURNAL: Final = "id, experiment, project, name, removed"
_SEGMENT: Final = "id, journal, file, writer, experiment, length, first, crc, damaged"
_BLOB: Final = "name, digest, size, key, experiment"
_BLOCK: Final = "series, first, count, packed, lines, summary, parts"
_OF_BLOCK: Final = "WHERE ns=? AND experiment=? AND series=? AND first=?"
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
        parts.append(("updated>=?", wanted.since_ns))
    if wanted.text:
        parts.append(("instr(searched, ?) > 0", wanted.text.casefold()))
    return " AND ".join(part for part, _ in parts), tuple(value for _, value in parts)


def _experiment(row: tuple[Any, ...]) -> ExperimentRow:
    """Return an experiment from the columns in `_EXPERIMENT`."""
    tags, summary, removed = json.loads(row[11]), json.loads(row[13]), json.loads(row[14])
    values: Any = (*row[:11], tuple(tags), row[12], summary, tuple(removed))
    return ExperimentRow(*values)


def _journal(row: tuple[Any, ...]) -> JournalRow:
    return JournalRow(row[0], row[1], row[2], row[3], bool(row[4]))


def _segment(row: tuple[Any, ...]) -> SegmentRow:
    """Return a segment from the columns in `_SEGMENT`."""
    damaged: list[Range] = [(low, high) for low, high in json.loads(row[8])]
    values: Any = (*row[:8], tuple(damaged))
    return SegmentRow(*values)


def _lines(block: Block) -> bytes:
    """Return the lines as they are stored: compressed once the block is full, since an open one is rewritten often."""
    return zlib.compress(block.lines, 1) if block.packed else block.lines


def _block(row: tuple[Any, ...]) -> Block:
    lines = zlib.decompress(row[4]) if row[3] else row[4]
    return Block(row[0], row[1], row[2], bool(row[3]), lines, row[5], row[6])


def _in_pieces(keys: list[tuple[int, int]]) -> Iterator[list[int]]:
    """Yield groups of starts of stretches that are read together: about 1 MiB, or one stretch."""
    group: list[int] = []
    size = 0
    for start, length in keys:
        if group and size + length > _PIECE_BYTES:
            yield group
            group, size = [], 0
        group.append(start)
        size += length
    if group:
        yield group


def _token(row: tuple[Any, ...]) -> TokenRow:
    return TokenRow(row[0], row[1], row[2], bool(row[3]), bool(row[4]), *row[5:])
