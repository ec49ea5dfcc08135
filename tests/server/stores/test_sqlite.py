"""Documents in one SQLite file: what is damaged is refused and not touched, trouble of the disk passes."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_dash.server.stores import Commit, JournalClaim, StoreRefused, StoreTrouble
from ml_dash.server.stores.sqlite import SqliteDocuments
from tests.contracts.document_places import ID, NS, experiment, put

CLAIM = JournalClaim("10" * 16, ID, "cv", "run")


@pytest.fixture
def documents(tmp_path: Path) -> Iterator[SqliteDocuments]:
    opened = SqliteDocuments(tmp_path / "server.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database of 300 experiments that nobody has open."""
    with closing(SqliteDocuments(tmp_path / "server.sqlite")) as documents:
        for number in range(300):
            put(documents, experiment(number), {"page": b"x" * 100})
        documents.claim_journal(NS, CLAIM)
    return tmp_path / "server.sqlite"


def _ask(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def test_commits_are_synced_and_readers_do_not_wait(documents: SqliteDocuments) -> None:
    with documents.view() as view, documents._writing() as tx:
        for found in (view, tx):
            assert found._all("PRAGMA journal_mode").fetchone()[0] == "wal"
            assert found._all("PRAGMA synchronous").fetchone()[0] == 2
            assert found._all("PRAGMA mmap_size").fetchone()[0] == 0


def test_a_view_is_steady_while_others_write(documents: SqliteDocuments) -> None:
    first = put(documents, experiment(name="first"), {"p1": b"one"})
    with documents.view() as view:
        assert view.experiment(NS, ID) == first
        second = put(documents, experiment(name="second"), {"p2": b"two"}, ("p1",))
        assert view.experiment(NS, ID) == first
        assert view.pages(NS, ID, ["p1"]) == {"p1": b"one"}
    with documents.view() as view:
        assert view.experiment(NS, ID) == second


def test_replaced_pages_are_gone_with_the_commit(documents: SqliteDocuments) -> None:
    put(documents, experiment(), {"p1": b"one"})
    put(documents, experiment(), {"p2": b"two"}, ("p1",))
    assert list(documents.page_ids(NS, ID)) == ["p2"]


def test_connections_do_not_grow_with_threads(documents: SqliteDocuments) -> None:
    """Those who serve HTTP start a new thread for a burst of requests, again and again."""

    def look() -> None:
        with documents.view() as view:
            view.tokens()

    look()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert len(os.listdir("/proc/self/fd")) <= before + 2


@pytest.mark.parametrize("offset", [0, 20, 100, 4096, 5 * 4096 + 10])
def test_a_damaged_file_is_refused_at_the_start(database: Path, offset: int) -> None:
    data = bytearray(database.read_bytes())
    data[offset : offset + 3000] = b"\xa5" * 3000
    database.write_bytes(data)
    with pytest.raises(StoreRefused):
        SqliteDocuments(database)
    assert database.read_bytes() == data


def test_something_else_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "server.sqlite"
    path.write_bytes(b"my diary\n" * 500)
    with pytest.raises(StoreRefused, match="damaged"):
        SqliteDocuments(path)
    assert path.read_bytes() == b"my diary\n" * 500


@pytest.mark.parametrize("version", [99])
def test_another_version_is_refused_and_not_touched(database: Path, version: int) -> None:
    _ask(database, f"PRAGMA user_version={version}")
    before = database.read_bytes()
    with pytest.raises(StoreRefused, match=f"version {version}"):
        SqliteDocuments(database)
    assert database.read_bytes() == before


@pytest.mark.parametrize("name", ["pages_id", "tokens_digest", "listed_updated"])
def test_a_missing_index_is_refused(database: Path, name: str) -> None:
    _ask(database, f"DROP INDEX {name}")
    with pytest.raises(StoreRefused, match=name):
        SqliteDocuments(database)


def test_a_file_that_was_taken_away_is_not_begun_anew(documents: SqliteDocuments, tmp_path: Path) -> None:
    for path in tmp_path.glob("server.sqlite*"):
        path.rename(path.with_name("away-" + path.name))
    documents.claim_journal(NS, CLAIM)  # the connection that is open goes on with the file that it has
    with pytest.raises(StoreTrouble), documents.view():
        pass
    assert not (tmp_path / "server.sqlite").exists()


def test_a_database_that_another_program_locks_is_trouble_for_now(
    documents: SqliteDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = documents.lease(NS, ID)
    commit = Commit(experiment(epoch=lease.epoch), [("p", b"p")])
    monkeypatch.setattr("ml_dash.server.stores.sqlite._BUSY_S", 0.05)
    # The next ones are made with the shorter wait.
    documents.close()
    documents = SqliteDocuments(documents.path)
    with closing(documents), closing(sqlite3.connect(documents.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        calls = [
            lambda: documents.commit(lease, commit),
            lambda: documents.claim_journal(NS, CLAIM),
            lambda: documents.lease(NS, "2"),
        ]
        for call in calls:
            with pytest.raises(StoreTrouble, match="locked"):
                call()
        documents.release(lease)  # never raises
        with documents.view() as view:
            assert view.experiment(NS, ID) is view.journal(NS, CLAIM.id) is None
        other.execute("ROLLBACK")
        documents.commit(lease, commit)
        with documents.view() as view:
            assert view.experiment(NS, ID) == commit.row


def test_a_full_database_is_trouble_and_it_goes_on_once_there_is_room(documents: SqliteDocuments) -> None:
    row = put(documents, experiment(), {"before": b"x"})
    with documents._writing() as tx:
        pages = tx._all("PRAGMA page_count").fetchone()[0]
        tx._all(f"PRAGMA max_page_count={pages + 10}")
    lease = documents.lease(NS, ID)
    commit = Commit(replace(row, version=2, epoch=lease.epoch), [("during", bytes(1 << 20))], ["before"])
    with pytest.raises(StoreTrouble, match="full"):
        documents.commit(lease, commit)
    with documents.view() as view:
        assert view.experiment(NS, ID) == row
    assert list(documents.page_ids(NS, ID)) == ["before"]
    # The connection was given up with the trouble; the limit was its own.
    documents.commit(lease, commit)
    assert list(documents.page_ids(NS, ID)) == ["during"]
