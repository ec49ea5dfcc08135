"""What every implementation of the documents seam must do, opened once, twice, and by other processes.

Rows come back, leases exclude, commits are whole or nowhere whatever is killed, claims have one winner, lists lose
none.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ml_dash.server.stores import (
    LEASE_S,
    BlobRow,
    Busy,
    Commit,
    Documents,
    ExperimentRow,
    Filter,
    JournalClaim,
    Lease,
    SegmentClaim,
    Stale,
    StoreTrouble,
    TokenRow,
    Vanished,
    place_of,
)

from .document_places import ID, NS, Clock, Place, experiment, first_version, module_of, put, second_version
from .document_process import count_up

JOURNAL = JournalClaim("10" * 16, ID, "cv", "run-001")
SEGMENT = SegmentClaim("5e" * 16, "10" * 16, "1-ab-0.seg", "ab" * 16, ID)
BLOB = BlobRow("name", "digest", 1 << 40, "files/key", ID)
TOKEN = TokenRow("id", "digest", "alice", True, False, 1, 2, 3)


@pytest.fixture(params=["sqlite", "mongo"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty place; all that was opened there is closed. Another technology joins here."""
    kind = request.param
    where = str(tmp_path / "server.sqlite") if kind == "sqlite" else " ".join(request.getfixturevalue("mongo_database"))
    made = Place(kind, where)
    yield made
    made.close()


@pytest.fixture
def documents(place: Place) -> Documents:
    """The place, opened."""
    return place.open()


@pytest.fixture
def other(place: Place, documents: Documents) -> Documents:
    """The same place, opened by another server."""
    return place.open()


@pytest.fixture
def clock(place: Place, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which the documents see leases run out."""
    made = Clock()
    monkeypatch.setattr(module_of(place.kind), "time", made)
    return made


def head(documents: Documents, experiment: str = ID, ns: str = NS) -> ExperimentRow | None:
    with documents.view() as view:
        return view.experiment(ns, experiment)


def pages(documents: Documents, *ids: str, ns: str = NS) -> list[bytes]:
    with documents.view() as view:
        found = view.pages(ns, ID, ids)
    return [found[name] for name in ids]


def listed(documents: Documents, wanted: Filter | None = None, limit: int = 1000) -> list[ExperimentRow]:
    with documents.view() as view:
        return view.experiments(NS, wanted or Filter(), limit, None)


def bare(row: ExperimentRow) -> ExperimentRow:
    """Return a row as lists have it."""
    return replace(row, state=b"", root=b"")


def named(documents: Documents) -> list[str]:
    """Return the pages that the root of the experiment names, sorted."""
    row = head(documents)
    assert row is not None
    return sorted(json.loads(row.root))


def whole(documents: Documents) -> tuple[str, list[bytes]]:
    """Return the name of the experiment, and the pages that its root names."""
    row = head(documents)
    assert row is not None
    return row.name, pages(documents, *json.loads(row.root))


# -- one row of each kind ---------------------------------------------------------------------------------------------


def _store_all(documents: Documents, ns: str) -> ExperimentRow:
    row = put(documents, experiment(), {"p1": b"one", "p2": b""}, ns=ns)
    assert documents.claim_journal(ns, JOURNAL) == JOURNAL
    assert documents.claim_segment(ns, SEGMENT) == SEGMENT
    documents.put_blobs(ns, [BLOB, replace(BLOB, experiment="", name="body")])
    return row


def test_rows_come_back_as_they_were_put_also_elsewhere_and_later(
    documents: Documents, other: Documents, place: Place
) -> None:
    row = _store_all(documents, NS)
    documents.put_token(TOKEN)
    for found in (documents, other, place.open()):
        with found.view() as view:
            assert view.experiment(NS, ID) == row
            assert view.pages(NS, ID, ["p2", "p1", "p1"]) == {"p1": b"one", "p2": b""}
            assert view.pages(NS, ID, []) == {}
            assert view.journal(NS, JOURNAL.id) == JOURNAL
            assert view.segment(NS, SEGMENT.id) == SEGMENT
            assert view.blob(NS, ID, "name") == BLOB
            assert view.blobs(NS, ID) == [BLOB]
            assert BLOB in view.same_content(NS, "digest", 1 << 40)
            assert view.blob(NS, "", "body") == replace(BLOB, experiment="", name="body")
            assert view.token("digest") == TOKEN
            assert view.tokens() == [TOKEN]
            assert view.experiments(NS, Filter(), 9, None) == [bare(row)]
        assert sorted(found.page_ids(NS, ID)) == ["p1", "p2"]
        found.close()


def _assert_empty(documents: Documents, ns: str) -> None:
    with documents.view() as view:
        assert view.experiment(ns, ID) is view.journal(ns, JOURNAL.id) is view.segment(ns, SEGMENT.id) is None
        assert view.blob(ns, ID, "name") is view.blob(ns, "", "body") is None
        assert view.blobs(ns, ID) == view.same_content(ns, "digest", 1 << 40) == []
        assert view.experiments(ns, Filter(), 10, None) == view.projects(ns) == []
        assert view.count(ns, Filter()) == 0
        assert view.events([(ns, ID)]) == view.versions(ns) == {}
        with pytest.raises(Vanished):
            view.pages(ns, ID, ["p1"])
    assert list(documents.page_ids(ns, ID)) == []


def test_nothing_is_there_before(documents: Documents) -> None:
    _assert_empty(documents, NS)
    with documents.view() as view:
        assert view.token("digest") is None
        assert view.tokens() == view.stale(1) == view.quiet(1 << 62) == view.all_experiments(None, 9) == []
    assert documents.mend() == 0


def test_a_namespace_sees_and_changes_nothing_of_another(documents: Documents) -> None:
    row = _store_all(documents, "bob")
    for ns in (NS, "bo", "bob/", "bob%2F", ""):
        _assert_empty(documents, ns)
    documents.drop_pages(NS, ID, ["p1"])
    documents.drop_blobs(NS, ID, ["name"])
    mine = put(documents, experiment(name="mine"), {"p1": b"mine"})
    assert documents.claim_journal(NS, replace(JOURNAL, experiment="9")).experiment == "9"
    assert head(documents, ns="bob") == row
    assert pages(documents, "p1", "p2", ns="bob") == [b"one", b""]
    assert head(documents) == mine
    with documents.view() as view:
        assert view.blob("bob", ID, "name") == BLOB
        assert view.journal("bob", JOURNAL.id) == JOURNAL
        assert [row.name for row in view.experiments("bob", Filter(), 9, None)] == ["run-001"]


def test_experiments_have_pages_of_their_own(documents: Documents) -> None:
    put(documents, experiment(1), {"p": b"first"})
    put(documents, experiment(2), {"p": b"second"})
    documents.drop_pages(NS, "1002", ["p"])
    assert pages(documents, "p") == [b"first"]
    with documents.view() as view, pytest.raises(Vanished):
        view.pages(NS, "1002", ["p"])


def test_it_says_that_it_works_and_after_closing_that_it_does_not(documents: Documents, place: Place) -> None:
    documents.check()
    assert set(documents.facts()) >= {"kind", "version", "place"}
    lease = documents.lease(NS, ID)
    documents.close()
    documents.close()
    calls: list[Callable[[], object]] = [
        documents.check,
        lambda: documents.lease(NS, "2"),
        lambda: documents.commit(lease, Commit(experiment(version=lease.version, epoch=lease.epoch))),
        lambda: documents.claim_journal(NS, JOURNAL),
        lambda: documents.put_token(TOKEN),
        lambda: list(documents.page_ids(NS, ID)),
    ]
    for call in calls:
        with pytest.raises(StoreTrouble):
            call()
    documents.release(lease)
    assert head(place.open()) is None


# -- leases -----------------------------------------------------------------------------------------------------------


def _commit(documents: Documents, lease: Lease, **fields: Any) -> None:
    row = replace(lease.row or experiment(), version=lease.version, epoch=lease.epoch, **fields)
    page = f"{lease.version}-{lease.epoch}-{row.name}"
    documents.commit(lease, Commit(row, [(page, b"page")]))


@pytest.mark.parametrize("begun", [False, True])
def test_a_lease_keeps_the_other_out_until_it_is_given_back_or_used(
    documents: Documents, other: Documents, clock: Clock, begun: bool
) -> None:
    row = put(documents, experiment()) if begun else None
    lease = documents.lease(NS, ID)
    assert lease.row == row
    with pytest.raises(Busy):
        other.lease(NS, ID)
    put(other, experiment(2))  # another experiment is not held up
    documents.release(lease)
    lease = other.lease(NS, ID)
    assert lease.row == row
    with pytest.raises(Busy):
        documents.lease(NS, ID)
    _commit(other, lease, name="other")
    lease = documents.lease(NS, ID)
    assert lease.row is not None
    assert lease.row == head(other) == head(documents)
    assert lease.row.name == "other"


def test_versions_grow_by_commits_and_epochs_by_leases(documents: Documents, other: Documents) -> None:
    seen, version = [], 0
    for turn in range(12):
        server = (documents, other)[turn % 2]
        lease = server.lease(NS, ID)
        assert lease.version == version + 1
        seen.append(lease.epoch)
        if turn % 3:
            server.release(lease)
        else:
            _commit(server, lease)
            version = lease.version
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("begun", [False, True])
def test_a_lease_that_stands_still_is_taken_over(
    documents: Documents, other: Documents, clock: Clock, begun: bool
) -> None:
    row = put(documents, experiment(), {"p": b"kept"}) if begun else None
    old = documents.lease(NS, ID)
    for _ in range(3):
        with pytest.raises(Busy):
            other.lease(NS, ID)
        clock.forward(LEASE_S / 3 - 0.1)
    clock.forward(0.4)
    new = other.lease(NS, ID)
    assert new.epoch > old.epoch
    # The same content: a store may give it a new version, so that the old one is taken.
    assert (new.row and replace(new.row, version=0, epoch=0)) == (row and replace(row, version=0, epoch=0))
    # Before the new holder has committed anything, and after.
    with pytest.raises(Stale):
        _commit(documents, old, name="old")
    assert head(documents) == head(other) == new.row
    _commit(other, new, name="new")
    with pytest.raises(Stale):
        _commit(documents, old, name="old")
    for found in (documents, other):
        row = head(found)
        assert row is not None
        assert (row.name, row.version, row.epoch) == ("new", new.version, new.epoch)
        assert [row.name for row in listed(found)] == ["new"]
        if begun:
            assert pages(found, "p") == [b"kept"]
    # Nobody holds it now.
    documents.release(documents.lease(NS, ID))


def test_a_waiter_begins_again_when_it_sees_a_change(documents: Documents, other: Documents, clock: Clock) -> None:
    first = documents.lease(NS, ID)
    with pytest.raises(Busy):
        other.lease(NS, ID)
    clock.forward(LEASE_S - 1)
    _commit(documents, first)
    second = documents.lease(NS, ID)
    with pytest.raises(Busy):
        other.lease(NS, ID)
    clock.forward(LEASE_S - 1)
    documents.release(second)
    documents.lease(NS, ID)
    with pytest.raises(Busy) as busy:
        other.lease(NS, ID)
    # Another turn: nobody stands still.
    assert busy.value.still_s == 0
    clock.forward(LEASE_S - 1)
    with pytest.raises(Busy) as busy:
        other.lease(NS, ID)
    assert LEASE_S - 1 <= busy.value.still_s < LEASE_S
    clock.forward(2)
    assert other.lease(NS, ID).epoch > second.epoch


def test_who_waits_goes_by_the_own_clock_only(documents: Documents, place: Place, clock: Clock) -> None:
    documents.lease(NS, ID)
    clock.forward(1e6)
    # However old the lease: this one sees it for the first time.
    with pytest.raises(Busy):
        place.open().lease(NS, ID)


def test_giving_back_an_old_lease_does_not_end_the_one_of_the_new_holder(
    documents: Documents, other: Documents, clock: Clock
) -> None:
    old = documents.lease(NS, ID)
    with pytest.raises(Busy):
        other.lease(NS, ID)
    clock.forward(LEASE_S + 1)
    new = other.lease(NS, ID)
    documents.release(old)
    with pytest.raises(Busy):
        documents.lease(NS, ID)
    _commit(other, new)


def test_a_holder_that_died_without_a_commit_delays_and_no_more(place: Place, clock: Clock) -> None:
    dying = place.start("hold")
    with dying:
        assert dying.stdout is not None
        assert dying.stdout.readline() == "leased\n"
        documents = place.open()
        with pytest.raises(Busy):
            documents.lease(NS, ID)
        clock.forward(LEASE_S + 1)
        put(documents, experiment(name="second"))
        # It was only slow: what it commits now is refused.
        assert dying.communicate("go on\n", timeout=60)[0] == "stale\n"
    row = head(documents)
    assert row is not None
    assert row.name == "second"


def test_of_many_who_ask_at_once_one_gets_the_lease(place: Place) -> None:
    servers = [place.open() for _ in range(6)]
    for number in range(5):
        start = threading.Barrier(len(servers))

        def ask(server: Documents, start: threading.Barrier = start, number: int = number) -> Lease | None:
            start.wait()
            try:
                return server.lease(NS, str(number))
            except Busy:
                return None

        with ThreadPoolExecutor(len(servers)) as threads:
            got = [lease for lease in threads.map(ask, servers) if lease is not None]
        assert len(got) == 1


def test_two_servers_change_one_experiment_in_turns_and_no_change_is_lost(
    documents: Documents, other: Documents
) -> None:
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(count_up, server, 12) for server in (documents, other)]:
            done.result()
    row = head(documents)
    assert row is not None
    assert (row.state, row.version) == (b"24", 24)
    assert pages(other, row.root.decode()) == [b"24"]


def test_holders_that_are_too_slow_again_and_again_lose_no_change(
    place: Place, monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    monkeypatch.setattr(module_of(place.kind), "LEASE_S", 0.01)
    servers = [place.open() for _ in range(3)]

    def change(server: Documents, rng: random.Random) -> list[int]:
        """Try to add one, now and then slowly; return what was acknowledged."""
        done, tries = [], 0
        while tries < 25:
            try:
                lease = server.lease(NS, ID)
            except Busy:
                threading.Event().wait(0.003)
                continue
            tries += 1
            number = int(lease.row.state) + 1 if lease.row is not None else 1
            if rng.random() < 0.3:
                threading.Event().wait(0.05)
            if rng.random() < 0.1:
                server.release(lease)
                continue
            page = f"{lease.version}-{lease.epoch}"
            old = (lease.row.root.decode(),) if lease.row is not None else ()
            row = experiment(version=lease.version, epoch=lease.epoch, state=b"%d" % number, root=page.encode())
            with contextlib.suppress(Stale):
                server.commit(lease, Commit(row, [(page, b"%d" % number)], old))
                done.append(number)
        return done

    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(change, servers, [random.Random(rng.random()) for _ in servers]))
    acknowledged = sorted(number for numbers in done for number in numbers)
    assert acknowledged == list(range(1, len(acknowledged) + 1))
    for server in servers:
        row = head(server)
        assert row is not None
        assert int(row.state) == len(acknowledged)
        assert pages(server, row.root.decode()) == [row.state]
        assert listed(server) == [bare(row)]


def test_two_processes_change_one_experiment_in_turns_and_no_change_is_lost(place: Place) -> None:
    documents = place.open()
    with place.start("count", "12") as first, place.start("count", "12") as second:
        for process in (first, second):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        count_up(documents, 12)
        assert first.wait(60) == second.wait(60) == 0
    row = head(documents)
    assert row is not None
    assert (row.state, row.version) == (b"36", 36)


# -- commits ----------------------------------------------------------------------------------------------------------

STEPS = ["commit-lease", "commit-pages", "commit-head", "commit-listed"]
"""Where a server can die: the steps of `second_version`."""


@pytest.mark.parametrize("step", STEPS)
def test_a_server_killed_at_any_step_has_changed_all_or_nothing(place: Place, clock: Clock, step: str) -> None:
    documents = place.open()
    first_version(documents)
    before, after = ("run-001", [b"old a", b"old b"]), ("renamed", [b"new a", b"old b"])
    place.run("change", fail=step)
    for found in (documents, place.open()):
        assert whole(found) in ((before, after) if step == "commit-head" else (before if step in STEPS[:2] else after,))
    # Who comes next waits, repairs, and goes on: as if it had never been, or had been whole.
    seen, next_one = whole(documents), place.open()
    next_one.mend()
    assert whole(documents) == seen
    assert [row.name for row in listed(documents)] == [seen[0]]
    if seen == before:
        with pytest.raises(Busy):
            next_one.lease(NS, ID)
        clock.forward(LEASE_S + 1)
    row = second_version(next_one)
    for found in (documents, next_one):
        assert head(found) == row
        assert whole(found) == after
        assert listed(found) == [bare(row)]
        with found.view() as view:
            assert view.count(NS, Filter()) == 1
            assert view.events([(NS, ID)]) == {(NS, ID): (row.version, 2)}
            for versions in (view.versions(NS), view.versions(NS, [ID, "none"])):
                assert versions == {ID: (row.version, row.heard_ns, row.summary)}
                assert versions[ID].events == 2
    clock.forward(1000)
    for server in (documents, next_one):
        server.mend()
        clock.forward(1000)
        server.mend()
    # What no head names is found, so that it can be swept.
    left = set(next_one.page_ids(NS, ID)) - set(named(documents))
    next_one.drop_pages(NS, ID, sorted(left))
    assert sorted(documents.page_ids(NS, ID)) == named(documents)
    assert documents.mend() == next_one.mend() == 0
    assert whole(place.open()) == after


def test_servers_killed_at_any_moment_lose_nothing_that_was_acknowledged(
    place: Place, clock: Clock, rng: random.Random
) -> None:
    documents = place.open()
    count_up(documents, 1)
    counted = 1
    for _ in range(6):
        with place.start("count", "1000") as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "ready\n"
            process.stdin.write("go\n")
            process.stdin.flush()
            for _ in range(rng.randrange(1, 6)):
                counted = int(process.stdout.readline())
            threading.Event().wait(rng.random() * 0.03)  # somewhere within the next commit
            process.kill()
            counted = max([counted, *map(int, re.findall(r"(\d+)\n", process.stdout.read()))])
        row = head(documents)
        assert row is not None
        # The last one may have been stored, and its answer lost.
        assert int(row.state) in (counted, counted + 1)
        assert pages(documents, row.root.decode()) == [row.state]
        counted = int(row.state)
        with contextlib.suppress(Busy):
            documents.release(documents.lease(NS, ID))
        clock.forward(LEASE_S + 1)
        documents.mend()
        documents.release(documents.lease(NS, ID))
        assert [row.version for row in listed(documents)] == [v.version for v in [head(documents)] if v is not None]
    count_up(documents, 1)
    row = head(documents)
    assert row is not None
    assert int(row.state) == counted + 1


def test_the_first_commit_killed_leaves_nothing_to_see(place: Place, clock: Clock) -> None:
    documents = place.open()
    for step in ("commit-lease", "commit-pages"):
        place.run("change", fail=step)
        _assert_nothing_seen(documents)
        with pytest.raises(Busy):
            documents.lease(NS, ID)
        clock.forward(LEASE_S + 1)
        documents.release(documents.lease(NS, ID))
    second_version(documents)
    assert whole(documents) == ("renamed", [b"new a"])


def _assert_nothing_seen(documents: Documents) -> None:
    assert head(documents) is None
    assert listed(documents) == []
    with documents.view() as view:
        assert view.all_experiments(None, 9) == view.projects(NS) == view.stale(99) == []


def test_pages_that_were_replaced_are_gone_in_a_while_and_whoever_asks_begins_again(
    documents: Documents, other: Documents, clock: Clock
) -> None:
    first_version(documents)
    second_version(documents)
    clock.forward(LEASE_S * 10)
    documents.mend()
    assert sorted(other.page_ids(NS, ID)) == named(other)
    with other.view() as view, pytest.raises(Vanished):
        view.pages(NS, ID, ["b1", "a1"])
    assert whole(other) == ("renamed", [b"new a", b"old b"])


def test_closing_deletes_what_was_replaced(documents: Documents, place: Place) -> None:
    first_version(documents)
    second_version(documents)
    documents.close()
    assert whole(place.open()) == ("renamed", [b"new a", b"old b"])
    assert sorted(place.open().page_ids(NS, ID)) == named(place.open())


def test_readers_see_whole_versions_while_another_server_writes(documents: Documents, other: Documents) -> None:
    count_up(documents, 1)
    done = threading.Event()

    def read() -> int:
        last = reads = 0
        while not done.is_set() or not reads:
            with other.view() as view:
                row = view.experiment(NS, ID)
                assert row is not None
                try:
                    (content,) = view.pages(NS, ID, [row.root.decode()]).values()
                except Vanished:
                    continue
                assert content == row.state
                assert int(content) >= last
                last, reads = int(content), reads + 1
        return reads

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        try:
            count_up(documents, 25)
        finally:
            done.set()
        assert reading.result() >= 1


def test_large_states_and_pages(documents: Documents, other: Documents, clock: Clock) -> None:
    """MongoDB's documents end at 16 MiB."""
    state, page = bytes(range(256)) * 68_000, bytes(range(255)) * 68_000
    row = put(documents, experiment(state=state, root=b"r" * 2000), {"large": page, "small": b"s"})
    assert head(other) == row
    assert pages(other, "large", "small") == [page, b"s"]
    assert sorted(other.page_ids(NS, ID)) == ["large", "small"]
    # A lease that is taken over has it, too.
    documents.lease(NS, ID)
    with pytest.raises(Busy):
        other.lease(NS, ID)
    clock.forward(LEASE_S + 1)
    lease = other.lease(NS, ID)
    assert lease.row is not None
    assert lease.row.state == state
    clock.forward(1000)
    other.mend()
    clock.forward(1000)
    other.mend()
    assert head(documents) == head(other) == lease.row
    small = replace(lease.row, version=lease.version, epoch=lease.epoch, state=b"small")
    other.commit(lease, Commit(small, (), ["large"]))
    clock.forward(1000)
    other.mend()
    assert head(documents) == small
    assert list(other.page_ids(NS, ID)) == ["small"]
    documents.drop_pages(NS, ID, ["small"])
    assert list(other.page_ids(NS, ID)) == []


TEXTS = [
    *("", "a.b", "$set", "\0", "a\0b", "/", "x/y", "%2F", "'; DROP", '"', "\\", "a\nb"),
    *("ü\u0308", "\u202e", "😀", "x" * 5000),
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_of_all_kinds_are_kept(documents: Documents, other: Documents, text: str) -> None:
    row = put(
        documents,
        experiment(project=text, name=text, folder=text, tags=(text, "b"), description=text, status=text,
                   summary={"counts": {"events": 1}, text: {text: [text, None, 1.5, True]}}),
    )  # fmt: skip
    claimed = documents.claim_journal(NS, replace(JOURNAL, project=text, name=text))
    blob = replace(BLOB, name=text, key=text)
    documents.put_blobs(NS, [blob])
    token = replace(TOKEN, user=text)
    documents.put_token(token)
    with other.view() as view:
        assert view.experiment(NS, ID) == row
        assert view.journal(NS, JOURNAL.id) == claimed
        assert view.blob(NS, ID, text) == blob
        assert view.blobs(NS, ID) == [blob]
        assert view.tokens() == [token]
        # SQLite's JSON functions end a text at a NUL: there, a tag that has one is kept but not found.
        tag = Filter(tag="b" if "\0" in text else text)
        for wanted in (Filter(project=text), Filter(folder=text), Filter(status=text), tag):
            assert view.experiments(NS, wanted, 9, None) == [bare(row)]
        assert view.experiments(NS, Filter(text=text), 9, None) == [bare(row)]
        assert view.projects(NS)[0]["project"] == text


def test_half_a_surrogate_is_refused_and_nothing_is_stored(documents: Documents) -> None:
    first = first_version(documents)
    lease = documents.lease(NS, ID)
    row = replace(first, version=lease.version, epoch=lease.epoch, description="\udc80")
    with pytest.raises(ValueError, match="surrogate"):
        documents.commit(lease, Commit(row, [("p", b"p")]))
    documents.release(lease)
    assert head(documents) == first
    assert listed(documents) == [bare(first)]
    second_version(documents)


@pytest.mark.parametrize("far", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_numbers_beyond_all_years_are_stored(documents: Documents, other: Documents, far: int) -> None:
    """A clock that is wrong by centuries is no reason to refuse an experiment for ever."""
    most = (1 << 63) - 1
    row = put(documents, experiment(created_ns=far, updated_ns=far, summary={"counts": {"points": far, "events": far}}))
    put(documents, experiment(2))
    with other.view() as view:
        found = view.experiment(NS, ID)
        assert found is not None
        assert (found.updated_ns, found.created_ns) == (most, most)
        assert found.summary == row.summary
        assert view.events([(NS, ID)]) == {(NS, ID): (1, far)}
        assert view.versions(NS)[ID].events == far
        for sort in ("updated", "created", "points"):
            (found,) = view.experiments(NS, Filter(sort=sort), 1, None)
            assert found.updated_ns == most
            (found,) = view.experiments(NS, Filter(sort=sort), 9, place_of(replace(found, updated_ns=far), sort))
            assert found.id == "1002"
            assert view.experiments(NS, Filter(sort=sort), 9, place_of(found, sort)) == []
        assert view.count(NS, Filter(since_ns=far)) == 1
        assert view.projects(NS)[0]["updated_ns"] == most


# -- claims -----------------------------------------------------------------------------------------------------------


def test_the_first_claim_stays(documents: Documents, other: Documents) -> None:
    for server in (documents, other):
        assert server.claim_journal(NS, replace(JOURNAL, experiment=f"{server is other}")).experiment == "False"
        assert server.claim_segment(NS, replace(SEGMENT, file=f"{server is other}")).file == "False"
    with other.view() as view:
        claim = view.segment(NS, SEGMENT.id)
        assert claim is not None
        assert claim.file == "False"


def test_of_many_who_claim_at_once_one_wins_and_all_know_it(documents: Documents, other: Documents) -> None:
    for number in range(10):
        start = threading.Barrier(8)

        def claim(mine: int, start: threading.Barrier = start, number: int = number) -> str:
            start.wait()
            server = (documents, other)[mine % 2]
            return server.claim_segment(NS, replace(SEGMENT, id=f"{number:032x}", file=str(mine))).file

        with ThreadPoolExecutor(8) as threads:
            answers = set(threads.map(claim, range(8)))
        with documents.view() as view:
            stored = view.segment(NS, f"{number:032x}")
        assert stored is not None
        assert answers == {stored.file}


def test_of_two_processes_that_claim_at_once_one_wins_and_both_know_it(place: Place) -> None:
    documents = place.open()
    with place.start("claim", "1") as first, place.start("claim", "2") as second:
        for process in (first, second):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=60)[0].split() for process in (first, second)]
    with documents.view() as view:
        claims = [view.journal(NS, f"{number:032x}") for number in range(100)]
    assert said[0] == said[1] == [claim.experiment for claim in claims if claim is not None]


# -- lists of experiments ---------------------------------------------------------------------------------------------

_KEYS: dict[str, Callable[[ExperimentRow], Any]] = {
    "updated": lambda row: (-row.updated_ns, -int(row.id)),
    "created": lambda row: (-row.created_ns, -int(row.id)),
    "name": lambda row: (row.name, row.id),
    "points": lambda row: (-row.summary["counts"]["points"], -int(row.id)),
}


def _put_many(documents: Documents, count: int) -> list[ExperimentRow]:
    """Store rows with many equal values, so that only the id tells some apart."""
    return [
        put(documents, experiment(
            number, project=f"p{number % 3}", name=f"n{number % 7}", status=["running", "failed"][number % 2],
            updated_ns=100 + number % 5, created_ns=100 + number % 4,
            summary={"counts": {"points": number % 6, "events": 1}},
            folder=["", "sweeps"][number % 2], tags=(f"t{number % 3}", "all"), description=f"Über {number % 4}",
        ))
        for number in range(count)
    ]  # fmt: skip


def _paged(documents: Documents, sort: str, limit: int, between: Callable[[], object]) -> list[ExperimentRow]:
    found: list[ExperimentRow] = []
    while True:
        with documents.view() as view:
            page = view.experiments(NS, Filter(sort=sort), limit, place_of(found[-1], sort) if found else None)
        if not page:
            return found
        assert len(page) <= limit
        found += page
        between()


@pytest.mark.parametrize("sort", _KEYS)
def test_pages_put_together_are_the_whole_list(documents: Documents, other: Documents, sort: str) -> None:
    rows = _put_many(documents, 40)
    for limit in (1, 7, 100):
        found = _paged(other, sort, limit, lambda: None)
        assert found == [bare(row) for row in sorted(rows, key=_KEYS[sort])]


def test_no_experiment_is_listed_twice_or_left_out_while_they_change(documents: Documents, other: Documents) -> None:
    rows = _put_many(documents, 20)
    turn = iter(range(10_000))

    def change() -> None:
        row = rows[next(turn) * 7 % 20]
        put(documents, replace(row, updated_ns=9_000 + next(turn), description="changed"))

    for sort in ("created", "name"):
        for limit in (3, 7):
            found = _paged(other, sort, limit, change)
            assert [row.id for row in found] == [row.id for row in sorted(rows, key=_KEYS[sort])]
    assert len({row.id for row in listed(other)}) == 20


def test_no_experiment_is_listed_twice_or_left_out_while_another_thread_commits(
    documents: Documents, other: Documents
) -> None:
    rows = _put_many(documents, 12)
    done = threading.Event()

    def change() -> None:
        for number in range(60):
            put(documents, replace(rows[number % 12], updated_ns=9_000 + number))
        done.set()

    with ThreadPoolExecutor(1) as threads:
        changing = threads.submit(change)
        while not done.is_set() and not changing.done():
            assert len(listed(other)) == 12
            assert sorted(row.id for row in listed(other)) == [row.id for row in rows]
        changing.result()


@pytest.mark.parametrize("tried", ["one", "another"])
def test_filters(documents: Documents, other: Documents, tried: str) -> None:
    rows = _put_many(documents, 40)
    every: list[tuple[Filter, Callable[[ExperimentRow], bool]]] = [
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
        (Filter(text="."), lambda row: False),
        (Filter(text=".*"), lambda row: False),
        (Filter(text="' OR 1=1 --"), lambda row: False),
        (Filter(project="p1", status="failed", tag="t1", text="über"), lambda row: int(row.id) % 6 == 1001 % 6),
    ]
    server = documents if tried == "one" else other
    with server.view() as view:
        for wanted, matches in every:
            found = view.experiments(NS, wanted, 100, None)
            assert [row.id for row in found] == [row.id for row in sorted(rows, key=_KEYS["updated"]) if matches(row)]
            assert view.count(NS, wanted) == len(found)


def test_an_experiment_without_events_is_there_and_not_listed(documents: Documents, other: Documents) -> None:
    put(documents, experiment(1))
    put(documents, experiment(2))
    row = put(other, experiment(1, summary={}))
    assert head(documents) == row
    assert [row.id for row in listed(documents)] == ["1002"]
    with documents.view() as view:
        assert view.count(NS, Filter()) == 1
        assert view.projects(NS)[0]["experiments"] == 1
        assert view.all_experiments(None, 9) == [(NS, "1001"), (NS, "1002")]
        assert view.events([(NS, "1001")]) == {(NS, "1001"): (row.version, 0)}
    # It may begin again.
    put(documents, experiment(1))
    assert len(listed(other)) == 2


def test_projects_are_counted(documents: Documents) -> None:
    for number, project in enumerate("babc"):
        put(documents, experiment(number, project=project))
    put(documents, experiment(9, project="d"), ns="bob")
    with documents.view() as view:
        assert view.projects(NS) == [
            {"project": "a", "experiments": 1, "created_ns": 1001, "updated_ns": 2001},
            {"project": "b", "experiments": 2, "created_ns": 1000, "updated_ns": 2002},
            {"project": "c", "experiments": 1, "created_ns": 1003, "updated_ns": 2003},
        ]


def test_those_of_another_fold_and_those_that_are_quiet_are_found(documents: Documents, other: Documents) -> None:
    put(documents, experiment(1, fold_version=1, heard_ns=10))
    put(documents, experiment(2, fold_version=2, heard_ns=20, summary={}), ns="bob")
    put(documents, experiment(3, fold_version=1, heard_ns=5, status="failed"))
    with other.view() as view:
        assert view.stale(1) == [("bob", "1002")]
        assert sorted(view.stale(2)) == [(NS, "1001"), (NS, "1003")]
        assert view.quiet(10) == []
        assert view.quiet(11) == [(NS, "1001")]
        assert sorted(view.quiet(99)) == [(NS, "1001"), ("bob", "1002")]


def test_all_experiments_come_in_pages(documents: Documents, other: Documents) -> None:
    for number in range(3):
        for ns in ("b", "a", "a/b"):
            put(documents, experiment(number), ns=ns)
    found: list[tuple[str, str]] = []
    with other.view() as view:
        while page := view.all_experiments(found[-1] if found else None, 2):
            found += page
    assert found == sorted((ns, str(1000 + number)) for ns in ("b", "a", "a/b") for number in range(3))


def test_changes_are_seen_in_versions_and_numbers_of_events(documents: Documents, other: Documents) -> None:
    put(documents, experiment(1))
    put(documents, experiment(2), ns="bob")
    keys = [(NS, "1001"), ("bob", "1002"), ("bob", "1001")]
    with other.view() as view:
        assert view.events(keys) == {(NS, "1001"): (1, 1), ("bob", "1002"): (1, 1)}
        assert view.events([]) == {}
    put(documents, experiment(1, summary={"counts": {"events": 7}}))
    with other.view() as view:
        assert view.events(keys) == {(NS, "1001"): (2, 7), ("bob", "1002"): (1, 1)}
        assert len(view.events([*keys, *((NS, str(number)) for number in range(1200))])) == 2


# -- pages, blobs and tokens ------------------------------------------------------------------------------------------


def test_pages_are_found_and_deleted_by_their_ids(documents: Documents, other: Documents) -> None:
    many = {f"{number:04}": b"%d" % number for number in range(1500)}
    put(documents, experiment(), many)
    assert sorted(other.page_ids(NS, ID)) == sorted(many)
    with other.view() as view:
        assert view.pages(NS, ID, list(many)) == many
    other.drop_pages(NS, ID, [*sorted(many)[1:], "unknown"])
    assert list(documents.page_ids(NS, ID)) == ["0000"]


def test_contents_are_found_by_digest_and_size(documents: Documents, other: Documents) -> None:
    rows = [BlobRow(f"d-w-{n}", "d", 5, f"key{n}", str(n)) for n in range(2)]
    documents.put_blobs(NS, [*rows, BlobRow("d-w-9", "d", 6, "key9", "9")])
    with other.view() as view:
        assert sorted(view.same_content(NS, "d", 5), key=lambda row: row.name) == rows
    documents.drop_blobs(NS, "0", ["d-w-0", "d-w-1"])
    with other.view() as view:
        assert view.same_content(NS, "d", 5) == rows[1:]
    other.put_blobs(NS, [replace(rows[1], key="elsewhere")])
    with documents.view() as view:
        assert view.blobs(NS, "1") == [replace(rows[1], key="elsewhere")]


def test_a_namespace_keeps_the_bytes_of_its_experiments_and_blobs(documents: Documents, other: Documents) -> None:
    with documents.view() as view:
        assert view.usage(NS) == 0
    put(documents, experiment(1, summary={"counts": {"events": 1}, "bytes": 1 << 50}))
    # One that was removed, and one that an earlier version has stored.
    put(documents, experiment(2, summary={"counts": {}, "bytes": 20}))
    put(documents, experiment(3))
    put(documents, experiment(4, summary={"counts": {"events": 1}, "bytes": 999}), ns="bob")
    rows = [BlobRow("file", "d", 300, "key", "1"), BlobRow("body", "d", 4000, "key2", "")]
    documents.put_blobs(NS, rows)
    documents.put_blobs("bob", [BlobRow("file", "d", 1, "key", "1")])
    for found, kept in ((NS, (1 << 50) + 20 + 300 + 4000), ("bob", 1000), ("nobody", 0)):
        with other.view() as view:
            assert view.usage(found) == kept
    documents.drop_blobs(NS, "", ["body"])
    with other.view() as view:
        assert view.usage(NS) == (1 << 50) + 20 + 300


def test_a_token_is_found_by_its_digest_and_only_its_end_changes(documents: Documents, other: Documents) -> None:
    documents.put_token(TOKEN)
    other.put_token(
        replace(TOKEN, user="mallory", read_only=False, read_all=True, created_ns=0, digest="x", revoked_ns=9)
    )
    other.put_token(replace(TOKEN, id="earlier", digest="digest 2", created_ns=0, revoked_ns=(1 << 63) - 1))
    with documents.view() as view:
        changed = replace(TOKEN, revoked_ns=9)
        assert [token.id for token in view.tokens()] == ["earlier", "id"]
        assert view.token("digest") == changed == view.tokens()[1]
        assert view.token("x") is view.token("dig") is None
    documents.put_token(replace(TOKEN, expires_ns=7, revoked_ns=0))
    with other.view() as view:
        assert view.token("digest") == replace(TOKEN, expires_ns=7, revoked_ns=0)


def test_two_tokens_cannot_have_one_digest(documents: Documents, other: Documents) -> None:
    documents.put_token(TOKEN)
    with pytest.raises(StoreTrouble):
        other.put_token(replace(TOKEN, id="2"))
    with documents.view() as view:
        assert view.tokens() == [TOKEN]


def test_many_processes_and_threads_store_experiments_at_once(place: Place) -> None:
    documents = place.open()

    def work(number: int) -> None:
        if number < 2:
            place.run("put", str(number * 10), str(number * 10 + 10))
        else:
            for experiments in range(number * 10, number * 10 + 10):
                put(documents, experiment(experiments))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert [row.id for row in listed(documents, Filter(sort="created"))] == [str(1039 - n) for n in range(40)]
