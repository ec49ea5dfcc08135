"""What every implementation of the documents seam must do: whole transactions, ids taken once, steady looks, pages."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_dash.server.stores import (
    Arrival,
    BlobRow,
    Block,
    Claimed,
    Documents,
    ExperimentRow,
    Filter,
    JournalRow,
    SegmentRow,
    StoreRefused,
    StoreTrouble,
    TokenRow,
    place_of,
)
from ml_dash.server.stores.sqlite import SqliteDocuments

MADE: list[Callable[[Path], Documents]] = [lambda path: SqliteDocuments(path / "server.sqlite")]
"""Each opens the documents that lie in a folder, or begins them. Another technology joins by a line here."""

NS = "alice"


@pytest.fixture(params=MADE, ids=["sqlite"])
def made(request: pytest.FixtureRequest) -> Callable[[Path], Documents]:
    chosen: Callable[[Path], Documents] = request.param
    return chosen


@pytest.fixture
def documents(made: Callable[[Path], Documents], tmp_path: Path) -> Iterator[Documents]:
    opened = made(tmp_path)
    yield opened
    opened.close()


def experiment(number: int, **fields: Any) -> ExperimentRow:
    """A row in which every column says something."""
    row = ExperimentRow(
        id=str(1000 + number), project="cv", name=f"run-{number:03}", version=number, fold_version=1,
        state=b"state %d" % number, status="running", created_ns=1000 + number, updated_ns=2000 + number,
        heard_ns=3000 + number, folder="sweeps", tags=("a", "b"), description=f"number {number}",
        summary={"counts": {"points": number, "events": 1}}, removed_writers=("w1",),
    )  # fmt: skip
    return replace(row, **fields)


SEGMENT = SegmentRow("5e", "10", "1-ab-0.seg", "ab", "1001", 184, 100, 4_000_000_000, ((10, 20), (30, 40)))


# -- one row of each kind ---------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_put(documents: Documents) -> None:
    row = experiment(1)
    journal = JournalRow("10", "1001", "cv", "run-001", True)
    blob = BlobRow("name", "digest", 1 << 40, "files/key", "1001")
    token = TokenRow("id", "digest", "alice", True, False, 1, 2, 3)
    with documents.write() as tx:
        tx.put_experiment(NS, row)
        tx.put_journal(NS, journal)
        tx.put_segment(NS, SEGMENT)
        tx.put_blob(NS, blob)
        tx.put_token(token)
        tx.put_setting("key", "välue")
        # A transaction sees what it did itself.
        assert tx.experiment(NS, row.id) == row
    with documents.read() as tx:
        assert tx.experiment(NS, row.id) == row
        assert tx.journal(NS, "10") == journal
        assert tx.journals(NS, "1001") == [journal]
        assert tx.segment(NS, "5e") == SEGMENT
        assert tx.segment_by_file(NS, "10", "1-ab-0.seg") == SEGMENT
        assert tx.segments(NS, "10") == [SEGMENT]
        assert tx.blob(NS, "1001", "name") == blob
        assert tx.blobs(NS, "1001") == [blob]
        assert tx.same_content(NS, "digest", 1 << 40) == [blob]
        assert tx.token("digest") == token
        assert tx.tokens() == [token]
        assert tx.setting("key") == "välue"


def test_nothing_is_there_before(documents: Documents) -> None:
    with documents.read() as tx:
        assert tx.experiment(NS, "1") is tx.journal(NS, "1") is tx.segment(NS, "1") is None
        assert tx.segment_by_file(NS, "1", "x") is tx.blob(NS, "1", "x") is None
        assert tx.token("x") is tx.setting("x") is tx.last_block(NS, "1", "logs") is None
        assert tx.journals(NS, "1") == tx.segments(NS, "1") == tx.blobs(NS, "1") == tx.same_content(NS, "x", 0) == []
        assert tx.experiments(NS, Filter(), 10, None) == tx.projects(NS) == tx.stale(1) == tx.tokens() == []
        assert tx.arrivals(NS, "1", 0, 10) == tx.summaries(NS, "1", "logs", 0, 10) == []
        assert list(tx.bytes_of(NS, "1", 0, 10)) == list(tx.blocks(NS, "1", "logs", 0, 10)) == []
        assert tx.count(NS, Filter()) == 0
        assert not tx.has_death(NS, "1", "w", "s", 0)


def test_a_namespace_sees_nothing_of_another(documents: Documents) -> None:
    with documents.write() as tx:
        tx.put_experiment("bob", experiment(1))
        tx.put_journal("bob", JournalRow("10", "1001", "cv", "run"))
        tx.put_segment("bob", SEGMENT)
        tx.claim_stretch("bob", "5e", 0, b"bytes")
        tx.claim_arrival("bob", "1001", Arrival(0, 2, "w", 0, 5, "5e"))
        tx.put_blocks("bob", "1001", [Block("logs", 0, 1, False, b"x\n", b"")])
        tx.put_blob("bob", BlobRow("name", "digest", 1, "key", "1001"))
    with documents.read() as tx:
        assert tx.experiment(NS, "1001") is tx.journal(NS, "10") is tx.segment(NS, "5e") is None
        assert tx.segment_by_file(NS, "10", SEGMENT.file) is tx.blob(NS, "1001", "name") is None
        assert tx.same_content(NS, "digest", 1) == tx.arrivals(NS, "1001", 0, 9) == tx.projects(NS) == []
        assert tx.experiments(NS, Filter(), 9, None) == [] == list(tx.bytes_of(NS, "5e", 0, 9))
        assert list(tx.blocks(NS, "1001", "logs", 0, 9)) == []
        assert not tx.has_death(NS, "1001", "w", "5e", 5)
    with documents.write() as tx:
        tx.claim_stretch(NS, "5e", 0, b"mine")
        tx.drop_blocks(NS, "1001")
        tx.drop_blob(NS, "1001", "name")
    with documents.read() as tx:
        assert b"".join(tx.bytes_of("bob", "5e", 0, 9)) == b"bytes"
        assert len(list(tx.blocks("bob", "1001", "logs", 0, 9))) == 1
        assert tx.blob("bob", "1001", "name") is not None


# -- transactions -----------------------------------------------------------------------------------------------------


def _everything(tx: Any) -> None:
    tx.put_experiment(NS, experiment(1))
    tx.put_journal(NS, JournalRow("10", "1001", "cv", "run"))
    tx.put_segment(NS, SEGMENT)
    tx.claim_stretch(NS, "5e", 0, b"bytes")
    tx.claim_arrival(NS, "1001", Arrival(0, 1, "5e", 0, 5))
    tx.put_blocks(NS, "1001", [Block("logs", 0, 1, False, b"x\n", b"")])
    tx.put_blob(NS, BlobRow("name", "digest", 1, "key", "1001"))
    tx.put_token(TokenRow("id", "digest", "alice", False, False, 1, 0, 0))
    tx.put_setting("key", "value")


class _Stop(Exception):
    pass


def _write(documents: Documents, *acts: Callable[[Any], object]) -> None:
    """One transaction that does all that."""
    with documents.write() as tx:
        for act in acts:
            act(tx)


def _stop(_: Any, error: type[BaseException] = _Stop) -> None:
    raise error


@pytest.mark.parametrize("error", [_Stop, KeyboardInterrupt])
def test_a_transaction_that_raises_leaves_nothing(documents: Documents, error: type[BaseException]) -> None:
    with pytest.raises(error):
        _write(documents, _everything, lambda tx: _stop(tx, error))
    test_nothing_is_there_before(documents)
    with documents.write() as tx:
        _everything(tx)
    with documents.read() as tx:
        assert tx.setting("key") == "value"


def test_an_id_is_taken_once_and_the_loser_leaves_nothing(documents: Documents) -> None:
    with documents.write() as tx:
        tx.claim_stretch(NS, "5e", 100, b"first")
        tx.claim_arrival(NS, "1001", Arrival(7, 1, "5e", 100, 105))
    claims: list[Callable[[Any], None]] = [
        lambda tx: tx.claim_stretch(NS, "5e", 100, b"second"),
        lambda tx: tx.claim_arrival(NS, "1001", Arrival(7, 2, "w", 0, 1)),
    ]
    for claim in claims:
        with pytest.raises(Claimed):
            _write(documents, lambda tx: tx.put_setting("before", "x"), claim)
    with documents.read() as tx:
        assert b"".join(tx.bytes_of(NS, "5e", 100, 200)) == b"first"
        assert tx.arrivals(NS, "1001", 0, 10) == [Arrival(7, 1, "5e", 100, 105)]
        assert tx.setting("before") is None


def test_a_look_is_steady_while_others_write(documents: Documents) -> None:
    with documents.write() as tx:
        tx.put_setting("n", "1")
        tx.put_experiment(NS, experiment(1))
    with documents.read() as look:
        assert look.setting("n") == "1"
        with documents.write() as tx:
            tx.put_setting("n", "2")
            tx.put_experiment(NS, experiment(2))
            # Not committed: not seen by anybody.
            with documents.read() as other:
                assert other.setting("n") == "1"
        assert look.setting("n") == "1"
        assert look.count(NS, Filter()) == 1
    with documents.read() as look:
        assert look.setting("n") == "2"
        assert look.count(NS, Filter()) == 2


def test_a_committed_transaction_is_there_after_closing(made: Any, tmp_path: Path) -> None:
    first = made(tmp_path)
    with first.write() as tx:
        _everything(tx)
    first.close()
    second = made(tmp_path)
    with second.read() as tx:
        assert tx.setting("key") == "value"
        assert tx.segment(NS, "5e") == SEGMENT
        assert b"".join(tx.bytes_of(NS, "5e", 0, 9)) == b"bytes"
    second.close()


def test_many_threads_write_one_after_the_other(documents: Documents) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                with documents.write() as tx:
                    value = int(tx.setting("sum") or 0)
                    tx.put_setting("sum", str(value + 1))
                    tx.claim_arrival(NS, "1", Arrival(value, 1, f"{number}-{turn}", 0, 1))
                with documents.read() as tx:
                    assert int(tx.setting("sum") or 0) > value
        except BaseException as error:  # noqa: BLE001  # told by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with documents.read() as tx:
        assert tx.setting("sum") == "80"
        assert [arrival.n for arrival in tx.arrivals(NS, "1", 0, 1000)] == list(range(80))


def test_it_says_that_it_works_and_after_closing_that_it_does_not(documents: Documents) -> None:
    documents.check()
    documents.close()
    with pytest.raises(StoreTrouble):
        documents.check()
    with pytest.raises(StoreTrouble), documents.write():
        pass


# -- bytes of segments ------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(documents: Documents) -> bytes:
    """A segment of 3,000 bytes in stretches of all kinds of lengths."""
    content = bytes(range(250)) * 12
    cuts = [0, 1, 2, 500, 501, 1500, 2999, 3000]
    with documents.write() as tx:
        for start, end in reversed(list(zip(cuts, cuts[1:], strict=False))):
            tx.claim_stretch(NS, "5e", start, content[start:end])
        tx.claim_stretch(NS, "5d", 0, b"the one before")
        tx.claim_stretch(NS, "5f", 0, b"the one behind")
    return content


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 3010), length=st.integers(0, 3010))
def test_any_part_of_a_segment_is_that_part(documents: Documents, whole: bytes, start: int, length: int) -> None:
    with documents.read() as tx:
        assert b"".join(tx.bytes_of(NS, "5e", start, start + length)) == whole[start : start + length]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 2999), length=st.integers(1, 2500))
def test_bytes_are_replaced_across_stretches(documents: Documents, whole: bytes, start: int, length: int) -> None:
    end = min(3000, start + length)
    found: list[bytes] = []
    with pytest.raises(_Stop):
        _write(
            documents,
            lambda tx: tx.replace_bytes(NS, "5e", start, b"\xff" * (end - start)),
            lambda tx: found.extend(tx.bytes_of(NS, "5e", 0, 3000)),
            _stop,
        )
    assert b"".join(found) == whole[:start] + b"\xff" * (end - start) + whole[end:]


def test_a_segment_of_many_stretches_is_read_in_bounded_pieces(documents: Documents) -> None:
    with documents.write() as tx:
        for number in range(2500):
            tx.claim_stretch(NS, "5e", number * 3, b"%03d" % (number % 1000))
        for number in range(3):
            tx.claim_stretch(NS, "5f", number << 20, bytes([number]) * (1 << 20))
    with documents.read() as tx:
        found = b"".join(tx.bytes_of(NS, "5e", 0, 7500))
        assert found == b"".join(b"%03d" % (number % 1000) for number in range(2500))
        pieces = list(tx.bytes_of(NS, "5f", 0, 3 << 20))
        assert sum(map(len, pieces)) == 3 << 20
        assert max(map(len, pieces)) <= 8 << 20


def test_putting_a_segment_again_changes_its_length_and_its_damage(documents: Documents) -> None:
    later = replace(SEGMENT, length=999, damaged=())
    with documents.write() as tx:
        tx.put_segment(NS, SEGMENT)
        tx.put_segment(NS, later)
    with documents.read() as tx:
        assert tx.segment(NS, "5e") == later
        assert tx.segments(NS, "10") == [later]


def test_two_segments_cannot_have_one_file(documents: Documents) -> None:
    with documents.write() as tx:
        tx.put_segment(NS, SEGMENT)
    with pytest.raises(Claimed), documents.write() as tx:
        tx.put_segment(NS, replace(SEGMENT, id="5f"))


# -- arrivals ---------------------------------------------------------------------------------------------------------


def test_arrivals_come_in_their_order_and_in_pages(documents: Documents) -> None:
    every = [Arrival(n, 1, f"{n:02}", n * 10, n * 10 + 10) for n in (0, 1, 3, 4, 9)]
    with documents.write() as tx:
        for arrival in reversed(every):
            tx.claim_arrival(NS, "1001", arrival)
        tx.claim_arrival(NS, "1002", Arrival(2, 1, "other", 0, 1))
    with documents.read() as tx:
        assert tx.arrivals(NS, "1001", 0, 100) == every
        assert tx.arrivals(NS, "1001", 2, 2) == every[2:4]
        assert tx.arrivals(NS, "1001", 10, 2) == tx.arrivals(NS, "1001", 1 << 70, 2) == []


def test_a_death_is_known_by_writer_segment_and_end(documents: Documents) -> None:
    with documents.write() as tx:
        tx.claim_arrival(NS, "1001", Arrival(0, 2, "w", 0, 184, "5e"))
        tx.claim_arrival(NS, "1001", Arrival(1, 1, "w", 0, 200, "5e"))
    with documents.read() as tx:
        assert tx.has_death(NS, "1001", "w", "5e", 184)
        for other in (("1002", "w", "5e", 184), ("1001", "v", "5e", 184), ("1001", "w", "5f", 184)):
            assert not tx.has_death(NS, *other)
        assert not tx.has_death(NS, "1001", "w", "5e", 200)
        assert not tx.has_death(NS, "1001", "w", "5e", 1 << 70)


# -- blocks -----------------------------------------------------------------------------------------------------------


def _blocks(series: str, *sizes: int) -> list[Block]:
    """Blocks of these sizes; the last is open."""
    found, first = [], 0
    for number, size in enumerate(sizes):
        lines = b"".join(b"line %d\n" % line for line in range(first, first + size))
        found.append(Block(series, first, size, number < len(sizes) - 1, lines, b"s%d" % first, b"p%d" % first))
        first += size
    return found


def test_blocks_are_found_by_their_lines_whatever_their_size(documents: Documents) -> None:
    stored = _blocks("points/loss", 1000, 3, 1000, 500)
    with documents.write() as tx:
        tx.put_blocks(NS, "1001", stored)
        tx.put_blocks(NS, "1001", _blocks("points/los", 5))
        tx.put_blocks(NS, "1001", _blocks("points/loss/a", 5))
        tx.put_blocks(NS, "1002", _blocks("points/loss", 5))
    firsts = [(0, 0, 0), (0, 1, 1), (999, 1000, 1), (999, 1001, 2), (1000, 1003, 1), (1002, 1004, 2), (0, 9999, 4),
              (2003, 1 << 70, 1), (2502, 2503, 1), (1, 2004, 4)]  # fmt: skip
    with documents.read() as tx:
        for first, end, count in firsts:
            found = list(tx.blocks(NS, "1001", "points/loss", first, end))
            expected = [block for block in stored if block.first < end and block.first + block.count > first]
            assert found == expected[: len(found)] == expected
            assert len(found) == count
            summaries = tx.summaries(NS, "1001", "points/loss", first, end)
            assert summaries == [(block.first, block.count, block.summary) for block in expected]
            parts = tx.summaries(NS, "1001", "points/loss", first, end, parts=True)
            assert parts == [(block.first, block.count, block.parts) for block in expected]
        assert tx.last_block(NS, "1001", "points/loss") == stored[-1]


def test_a_block_that_grows_is_replaced_and_dropping_takes_all_of_an_experiment(documents: Documents) -> None:
    with documents.write() as tx:
        tx.put_blocks(NS, "1001", _blocks("logs", 10))
        tx.put_blocks(NS, "1002", _blocks("logs", 10))
    with documents.write() as tx:
        tx.put_blocks(NS, "1001", _blocks("logs", 20))
    with documents.read() as tx:
        assert tx.last_block(NS, "1001", "logs") == _blocks("logs", 20)[0]
    with documents.write() as tx:
        tx.drop_blocks(NS, "1001")
    with documents.read() as tx:
        assert tx.last_block(NS, "1001", "logs") is None
        assert tx.last_block(NS, "1002", "logs") is not None


# -- lists of experiments ---------------------------------------------------------------------------------------------

_KEYS: dict[str, Callable[[ExperimentRow], Any]] = {
    "updated": lambda row: (-row.updated_ns, -int(row.id)),
    "created": lambda row: (-row.created_ns, -int(row.id)),
    "name": lambda row: (row.name, row.id),
    "points": lambda row: (-row.summary["counts"]["points"], -int(row.id)),
}


def _rows(count: int) -> list[ExperimentRow]:
    """Rows with many equal values, so that only the id tells some apart."""
    return [
        experiment(
            number, project=f"p{number % 3}", name=f"n{number % 7}", status=["running", "failed"][number % 2],
            updated_ns=100 + number % 5, created_ns=100 + number % 4,
            summary={"counts": {"points": number % 6, "events": 1}},
            folder=["", "sweeps"][number % 2], tags=(f"t{number % 3}", "all"), description=f"Über {number % 4}",
        )
        for number in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("sort", _KEYS)
@pytest.mark.parametrize("limit", [1, 7, 100])
def test_pages_put_together_are_the_whole_list(documents: Documents, sort: str, limit: int) -> None:
    rows = _rows(40)
    with documents.write() as tx:
        for row in rows:
            tx.put_experiment(NS, row)
    found: list[ExperimentRow] = []
    with documents.read() as tx:
        while page := tx.experiments(NS, Filter(sort=sort), limit, place_of(found[-1], sort) if found else None):
            assert len(page) <= limit
            found += page
    assert found == [replace(row, state=b"") for row in sorted(rows, key=_KEYS[sort])]


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (Filter(), lambda row: True),
        (Filter(project="p1"), lambda row: row.project == "p1"),
        (Filter(status="failed"), lambda row: row.status == "failed"),
        (Filter(tag="t2"), lambda row: "t2" in row.tags),
        (Filter(tag="all"), lambda row: True),
        (Filter(tag="t"), lambda row: False),
        (Filter(folder="sweeps"), lambda row: row.folder == "sweeps"),
        (Filter(folder=""), lambda row: row.folder == ""),
        (Filter(since_ns=103), lambda row: row.updated_ns >= 103),
        (Filter(text="ÜBER 3"), lambda row: row.description == "Über 3"),
        (Filter(text="p1/N2"), lambda row: (row.project, row.name) == ("p1", "n2")),
        (Filter(text="%"), lambda row: False),
        (Filter(text="' OR 1=1 --"), lambda row: False),
        (Filter(project="p1", status="failed", tag="t1", text="über"), lambda row: int(row.id) % 6 == 1001 % 6),
    ],
)
def test_filters(documents: Documents, wanted: Filter, matches: Callable[[ExperimentRow], bool]) -> None:
    rows = _rows(40)
    with documents.write() as tx:
        for row in rows:
            tx.put_experiment(NS, row)
    with documents.read() as tx:
        found = tx.experiments(NS, wanted, 100, None)
        assert [row.id for row in found] == [row.id for row in sorted(rows, key=_KEYS["updated"]) if matches(row)]
        assert tx.count(NS, wanted) == len(found)


def test_an_experiment_without_events_is_there_and_not_listed(documents: Documents) -> None:
    with documents.write() as tx:
        tx.put_experiment(NS, experiment(1))
        tx.put_experiment(NS, experiment(2))
    with documents.write() as tx:
        tx.put_experiment(NS, experiment(1, summary={}))
    with documents.read() as tx:
        assert tx.experiment(NS, "1001") == experiment(1, summary={})
        assert [row.id for row in tx.experiments(NS, Filter(), 9, None)] == ["1002"]
        assert tx.count(NS, Filter()) == 1


def test_projects_are_counted(documents: Documents) -> None:
    with documents.write() as tx:
        for number, project in enumerate("babc"):
            tx.put_experiment(NS, experiment(number, project=project))
    with documents.read() as tx:
        assert tx.projects(NS) == [
            {"project": "a", "experiments": 1, "created_ns": 1001, "updated_ns": 2001},
            {"project": "b", "experiments": 2, "created_ns": 1000, "updated_ns": 2002},
            {"project": "c", "experiments": 1, "created_ns": 1003, "updated_ns": 2003},
        ]


def test_those_of_another_fold_are_found(documents: Documents) -> None:
    with documents.write() as tx:
        tx.put_experiment(NS, experiment(1, fold_version=1))
        tx.put_experiment("bob", experiment(2, fold_version=2, summary={}))
    with documents.read() as tx:
        assert tx.stale(1) == [("bob", "1002")]


@pytest.mark.parametrize("far", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_times_beyond_all_years_are_stored(documents: Documents, far: int) -> None:
    """A clock that is wrong by centuries is no reason to refuse an experiment for ever."""
    row = experiment(1, created_ns=far, updated_ns=far, summary={"counts": {"points": far, "events": 1}})
    with documents.write() as tx:
        tx.put_experiment(NS, row)
    with documents.read() as tx:
        for sort in _KEYS:
            (found,) = tx.experiments(NS, Filter(sort=sort), 9, None)
            assert found.updated_ns == min(far, (1 << 63) - 1)


# -- blobs and tokens -------------------------------------------------------------------------------------------------


def test_contents_are_found_by_digest_and_size(documents: Documents) -> None:
    rows = [BlobRow(f"d-w-{n}", "d", 5, f"key{n}", str(n)) for n in range(2)]
    with documents.write() as tx:
        for row in (*rows, BlobRow("d-w-9", "d", 6, "key9", "9")):
            tx.put_blob(NS, row)
    with documents.read() as tx:
        assert sorted(tx.same_content(NS, "d", 5), key=lambda row: row.name) == rows
    with documents.write() as tx:
        tx.drop_blob(NS, "0", "d-w-0")
        tx.drop_blob(NS, "0", "d-w-1")
    with documents.read() as tx:
        assert tx.same_content(NS, "d", 5) == rows[1:]


def test_a_token_is_found_by_what_its_text_hashes_to(documents: Documents) -> None:
    token = TokenRow("1", "digest", "alice", False, False, 1, 0, 0)
    with documents.write() as tx:
        tx.put_token(token)
        tx.put_token(replace(token, revoked_ns=9))
    with documents.read() as tx:
        assert tx.tokens() == [replace(token, revoked_ns=9)]
        assert tx.token("dig") is None
    with pytest.raises(Claimed), documents.write() as tx:
        tx.put_token(replace(token, id="2"))


# -- SQLite: what only it can show ------------------------------------------------------------------------------------


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[SqliteDocuments]:
    opened = SqliteDocuments(tmp_path / "server.sqlite")
    yield opened
    opened.close()


def test_commits_are_synced_and_readers_do_not_wait(sqlite: SqliteDocuments) -> None:
    with sqlite.read() as look, sqlite.write() as tx:
        for found in (look, tx):
            ask: Any = found._all
            assert ask("PRAGMA journal_mode").fetchone()[0] == "wal"
            assert ask("PRAGMA synchronous").fetchone()[0] == 2
            assert ask("PRAGMA mmap_size").fetchone()[0] == 0


def test_connections_do_not_grow_with_threads(sqlite: SqliteDocuments) -> None:
    """Those who serve HTTP start a new thread for a burst of requests, again and again."""

    def look() -> None:
        with sqlite.read() as tx:
            tx.setting("x")

    look()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def _database(path: Path) -> Path:
    documents = SqliteDocuments(path / "server.sqlite")
    with documents.write() as tx:
        _everything(tx)
        for number in range(300):
            tx.put_experiment(NS, experiment(number))
    documents.close()
    return path / "server.sqlite"


@pytest.mark.parametrize("offset", [0, 20, 100, 4096, 5 * 4096 + 10])
def test_a_damaged_file_is_refused_at_the_start(tmp_path: Path, offset: int) -> None:
    path = _database(tmp_path)
    data = bytearray(path.read_bytes())
    data[offset : offset + 3000] = b"\xa5" * 3000
    path.write_bytes(data)
    with pytest.raises(StoreRefused):
        SqliteDocuments(path)
    assert path.read_bytes() == data


def test_something_else_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "server.sqlite"
    path.write_bytes(b"my diary\n" * 500)
    with pytest.raises(StoreRefused, match="damaged"):
        SqliteDocuments(path)
    assert path.read_bytes() == b"my diary\n" * 500


def test_a_newer_version_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = _database(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match="version 99"):
        SqliteDocuments(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["stretches_id", "blocks_id", "segments_file", "tokens_digest"])
def test_a_missing_unique_index_is_refused(tmp_path: Path, name: str) -> None:
    path = _database(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute(f"DROP INDEX {name}")
    connection.close()
    with pytest.raises(StoreRefused, match=name):
        SqliteDocuments(path)


def test_a_file_that_was_taken_away_is_not_begun_anew(sqlite: SqliteDocuments, tmp_path: Path) -> None:
    for path in tmp_path.glob("server.sqlite*"):
        path.rename(path.with_name("away-" + path.name))
    with sqlite.write() as tx:  # the connection that is open goes on with the file that it has
        tx.put_setting("x", "y")
    with pytest.raises(StoreTrouble), sqlite.read():
        pass
    assert not (tmp_path / "server.sqlite").exists()


def test_a_database_that_another_program_locks_is_trouble_for_now(
    sqlite: SqliteDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(sqlite.path, isolation_level=None)
    monkeypatch.setattr("ml_dash.server.stores.sqlite._BUSY_S", 0.05)
    sqlite._writer = None  # the next one is made with the shorter wait
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreTrouble, match="locked"), sqlite.write() as tx:
        tx.put_setting("x", "y")
    with sqlite.read() as tx:
        assert tx.setting("x") is None
    other.execute("ROLLBACK")
    other.close()
    with sqlite.write() as tx:
        tx.put_setting("x", "y")


def test_a_full_database_is_trouble_and_it_goes_on_once_there_is_room(sqlite: SqliteDocuments) -> None:
    with sqlite.write() as tx:
        tx.put_setting("before", "x")
        ask: Any = tx._all  # type: ignore[attr-defined]
        pages = ask("PRAGMA page_count").fetchone()[0]
    ask(f"PRAGMA max_page_count={pages + 10}")
    much: list[Callable[[Any], object]] = [
        lambda tx: tx.put_setting("during", "x"), lambda tx: tx.claim_stretch(NS, "5e", 0, bytes(1 << 20))
    ]  # fmt: skip
    with pytest.raises(StoreTrouble, match="full"):
        _write(sqlite, *much)
    with sqlite.read() as tx:
        assert tx.setting("before") == "x"
        assert tx.setting("during") is None
        assert list(tx.bytes_of(NS, "5e", 0, 1 << 20)) == []
    # The connection was given up with the trouble; the limit was its own.
    _write(sqlite, *much)
