"""Documents in MongoDB: answers that do not come, servers that sleep for long, what is refused at the start."""

from __future__ import annotations

import contextlib
import json
import operator
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from ml_dash.server.stores import (
    LEASE_S,
    BlobRow,
    Busy,
    Commit,
    Filter,
    JournalClaim,
    Stale,
    StoreRefused,
    StoreTrouble,
    TokenRow,
    Vanished,
)
from ml_dash.server.stores import mongo as module
from ml_dash.server.stores.mongo import GRACE_S, HEADS_KEPT_S, MongoDocuments
from tests.contracts.document_places import ID, NS, Clock, experiment, first_version, put, second_version
from tests.server.stores.mongo_proxy import HAPPENINGS, REQUEST_LATE, REQUEST_LOST, Fault, MongoProxy
from tests.services import running
from tests.services.fixtures import started
from tests.services.running import Service


@pytest.fixture
def documents(mongo_database: tuple[str, str]) -> Iterator[MongoDocuments]:
    opened = MongoDocuments(*mongo_database)
    yield opened
    opened.close()


@pytest.fixture
def other(documents: MongoDocuments, mongo_database: tuple[str, str]) -> Iterator[MongoDocuments]:
    opened = MongoDocuments(*mongo_database)
    yield opened
    opened.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def database(mongo_database: tuple[str, str]) -> Iterator[Any]:
    """The same database, through the driver."""
    client: MongoClient[dict[str, Any]] = MongoClient(mongo_database[0])
    yield client[mongo_database[1]]
    client.close()


@pytest.fixture
def proxy(mongo_service: Service) -> Iterator[MongoProxy]:
    made = MongoProxy("127.0.0.1", mongo_service.port)
    yield made
    made.close()


@pytest.fixture
def through(
    proxy: MongoProxy, mongo_database: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[MongoDocuments]:
    """The documents, opened through the proxy."""
    monkeypatch.setattr(module, "_TRIES_AFTER_S", (0.01, 0.02))
    opened = MongoDocuments(f"mongodb://127.0.0.1:{proxy.port}/", mongo_database[1])
    yield opened
    opened.close()


def _head(documents: MongoDocuments) -> Any:
    with documents.view() as view:
        return view.experiment(NS, ID)


# -- answers that do not come -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("happening", HAPPENINGS)
@pytest.mark.parametrize("collection", ["leases", "pages", "heads"])
def test_an_insert_whose_answer_does_not_come_is_done_once(
    through: MongoDocuments, documents: MongoDocuments, proxy: MongoProxy, collection: str, happening: str
) -> None:
    first_version(documents)
    proxy.faults.append(Fault("insert", collection, happening))
    row = second_version(through)
    assert not proxy.faults
    assert (row.version, row.epoch) == (2, 2)
    assert _head(documents) == _head(through) == row
    assert sorted(documents.page_ids(NS, ID)) == ["a1", "a2-2", "b1"]
    documents.release(documents.lease(NS, ID))


@pytest.mark.parametrize("happening", HAPPENINGS)
def test_single_rows_are_stored_though_an_answer_does_not_come(
    through: MongoDocuments, documents: MongoDocuments, proxy: MongoProxy, happening: str
) -> None:
    claim, blob = JournalClaim("1", ID, "cv", "run"), BlobRow("name", "digest", 1, "key", ID)
    token = TokenRow("id", "digest", "alice", False, False, 1, 2, 0)
    faults = [("insert", "journals"), ("update", "blobs"), ("insert", "tokens"), ("update", "tokens")]
    proxy.faults.extend(Fault(command, collection, happening) for command, collection in faults)
    assert through.claim_journal(NS, claim) == claim
    through.put_blobs(NS, [blob])
    through.put_token(token)
    through.put_token(replace(token, revoked_ns=9))
    assert not proxy.faults
    with documents.view() as view:
        assert view.journal(NS, "1") == claim
        assert view.blobs(NS, ID) == [blob]
        assert view.tokens() == [replace(token, revoked_ns=9)]


def test_a_list_that_could_not_be_replaced_is_mended(
    through: MongoDocuments, documents: MongoDocuments, proxy: MongoProxy
) -> None:
    put(through, experiment(name="before"))
    proxy.faults.append(Fault("update", "experiments", REQUEST_LOST))
    put(through, experiment(name="after"))
    with documents.view() as view:
        assert view.events([(NS, ID)]) == {(NS, ID): (1, 1)}
        assert documents.mend() == 1
        assert view.events([(NS, ID)]) == {(NS, ID): (2, 1)}
    assert documents.mend() == 0


@pytest.mark.parametrize("happening", HAPPENINGS)
def test_a_head_of_which_no_answer_ever_comes_is_trouble_and_then_visible_or_not(
    through: MongoDocuments, documents: MongoDocuments, proxy: MongoProxy, clock: Clock, happening: str
) -> None:
    first = first_version(documents)
    proxy.faults.extend([Fault("insert", "heads", happening)] * 3)
    with pytest.raises(StoreTrouble):
        second_version(through)
    row = _head(documents)
    assert row.version == (1 if happening == REQUEST_LOST else 2)
    if happening == REQUEST_LOST:
        assert row == first
        with pytest.raises(Busy):
            documents.lease(NS, ID)
        clock.forward(LEASE_S + 1)
    clock.forward(GRACE_S + 1)
    through.mend()
    # In both cases all pages of the head are there, and the next one goes on.
    with documents.view() as view:
        assert len(view.pages(NS, ID, json.loads(row.root))) == 2
    following = second_version(documents)
    assert _head(through) == following


def test_a_head_that_arrives_after_a_takeover_is_refused(
    through: MongoDocuments, documents: MongoDocuments, proxy: MongoProxy, clock: Clock
) -> None:
    """A request may be in the network for long, whatever the client believes."""
    first_version(documents)
    proxy.faults.extend([Fault("insert", "heads", REQUEST_LATE)] * 3)
    with pytest.raises(StoreTrouble):
        second_version(through)
    with pytest.raises(Busy):
        documents.lease(NS, ID)
    clock.forward(LEASE_S + 1)
    lease = documents.lease(NS, ID)
    assert proxy.deliver() == 3
    assert _head(documents) == _head(through) == lease.row
    row = replace(experiment(name="new"), version=lease.version, epoch=lease.epoch)
    documents.commit(lease, Commit(row))
    assert _head(documents) == _head(through) == row


def test_in_a_network_that_loses_and_delays_no_change_is_lost_or_done_twice(
    mongo_service: Service,
    mongo_database: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    rng: random.Random,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr(module, "_TRIES_AFTER_S", (0.005, 0.01))
    monkeypatch.setattr(module, "LEASE_S", 0.02)
    proxies = [MongoProxy("127.0.0.1", mongo_service.port) for _ in range(3)]
    servers = [MongoDocuments(f"mongodb://127.0.0.1:{proxy.port}/", mongo_database[1]) for proxy in proxies]
    for made in (*proxies, *servers):
        request.addfinalizer(made.close)

    def bad(message: bytes) -> str:
        asked = any(b"\x02" + command + b"\0" in message for command in (b"insert", b"update", b"find"))
        return rng.choice([*HAPPENINGS, REQUEST_LATE]) if asked and rng.random() < 0.08 else ""

    def change(server: MongoDocuments, proxy: MongoProxy, rng: random.Random) -> tuple[list[int], int]:
        """Try to add one; return what was acknowledged, and how often nobody could tell."""
        done, unclear, tries = [], 0, 0
        while tries < 12:
            with contextlib.suppress(OSError):
                proxy.deliver()
            try:
                lease = server.lease(NS, ID)
            except (Busy, StoreTrouble):
                threading.Event().wait(0.003)
                continue
            tries += 1
            number = int(lease.row.state) + 1 if lease.row is not None else 1
            row = experiment(version=lease.version, epoch=lease.epoch, state=b"%d" % number)
            if rng.random() < 0.2:
                threading.Event().wait(0.05)
            try:
                server.commit(lease, Commit(row, [(f"{lease.version}-{lease.epoch}", b"%d" % number)]))
                done.append(number)
            except Stale:
                pass
            except StoreTrouble:
                unclear += 1
        return done, unclear

    for proxy in proxies:
        proxy.plan = bad
    with ThreadPoolExecutor(3) as threads:
        said = list(threads.map(change, servers, proxies, [random.Random(rng.random()) for _ in servers]))
    for proxy in proxies:
        proxy.plan = lambda _: ""
        proxy.deliver()
    acknowledged = sorted(number for numbers, _ in said for number in numbers)
    assert len(acknowledged) == len(set(acknowledged)) >= 3
    last = int(_head(servers[0]).state)
    assert last >= acknowledged[-1]
    assert last - len(acknowledged) <= sum(unclear for _, unclear in said)
    # The versions follow each other, and each adds one, or nothing if it is a fence.
    heads = list(servers[0].heads.find().sort("version", 1))
    assert [head["version"] for head in heads] == list(range(1, len(heads) + 1))
    numbers = [int(head["state"]) for head in heads if "id" in head]
    assert set(map(operator.sub, numbers[1:], numbers)) <= {0, 1}
    for server in servers:
        server.mend()
        assert _head(server) == _head(servers[0])
        with server.view() as view:
            assert [row.state for row in view.experiments(NS, Filter(), 9, None)] == [b""]
            assert view.events([(NS, ID)])[NS, ID][0] == heads[-1]["version"]


def test_a_service_that_is_killed_and_comes_back_has_all_that_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SELECTION_MS", 300)
    monkeypatch.setattr(module, "_TRIES_AFTER_S", (0.01, 0.02))
    service = started(running.mongo, tmp_path)
    documents = MongoDocuments(running.mongodb_uri(service), "test")
    row = first_version(documents)
    lease = documents.lease(NS, ID)
    service.kill()
    with pytest.raises(StoreTrouble):
        documents.commit(lease, Commit(replace(row, version=2, epoch=lease.epoch)))
    with pytest.raises(StoreTrouble):
        documents.check()
    documents.release(lease)  # never raises
    service.start()
    assert _head(documents) == row
    documents.commit(lease, Commit(replace(row, version=2, epoch=lease.epoch)))
    assert _head(documents).version == 2
    documents.close()
    service.end()


def test_a_service_that_does_not_answer_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SELECTION_MS", "_SOCKET_MS"):
        monkeypatch.setattr(module, name, 300)
    monkeypatch.setattr(module, "_TRIES_AFTER_S", (0.01,))
    service = started(running.mongo, tmp_path)
    documents = MongoDocuments(running.mongodb_uri(service), "test")
    service.pause()
    with pytest.raises(StoreTrouble):
        documents.lease(NS, ID)
    service.resume()
    documents.check()
    documents.close()
    service.end()


# -- servers that sleep for long --------------------------------------------------------------------------------------


def test_a_holder_that_sleeps_until_its_version_is_free_again_is_refused(
    documents: MongoDocuments, other: MongoDocuments, clock: Clock
) -> None:
    first_version(documents)
    old = documents.lease(NS, ID)
    with pytest.raises(Busy):
        other.lease(NS, ID)
    clock.forward(LEASE_S + 1)
    for _ in range(3):
        newest = second_version(other)
    other.mend()
    clock.forward(HEADS_KEPT_S + 1)
    assert other.mend() > 3
    row = experiment(version=old.version, epoch=old.epoch, name="late")
    with pytest.raises(Stale):
        documents.commit(old, Commit(row, [("late", b"late")]))
    for found in (documents, other):
        assert _head(found) == newest
        with found.view() as view:
            assert [row.name for row in view.experiments(NS, Filter(), 9, None)] == ["renamed"]
    clock.forward(GRACE_S + 1)
    documents.mend()
    assert "late" not in set(other.page_ids(NS, ID))


def test_a_holder_that_sleeps_and_is_not_missed_may_commit(
    documents: MongoDocuments, other: MongoDocuments, clock: Clock
) -> None:
    first_version(documents)
    lease = documents.lease(NS, ID)
    clock.forward(HEADS_KEPT_S * 2)
    row = experiment(version=lease.version, epoch=lease.epoch, name="late")
    documents.commit(lease, Commit(row))
    assert _head(other) == row


def test_what_is_remembered_is_not_trusted_after_a_long_sleep(
    documents: MongoDocuments, other: MongoDocuments, clock: Clock
) -> None:
    first_version(documents)
    for _ in range(3):
        newest = second_version(other)
    for _ in range(20):
        other.release(other.lease(NS, ID))
    other.mend()
    clock.forward(HEADS_KEPT_S + 1)
    assert other.mend() > 20
    assert other.mend() == 0
    # Neither the version nor the epoch that follows what it remembers is taken any more.
    assert _head(documents) == newest
    lease = documents.lease(NS, ID)
    assert lease.row == newest
    assert lease.epoch == newest.epoch + 21
    with pytest.raises(Busy):
        other.lease(NS, ID)


def test_little_is_left_of_what_was_superseded(
    documents: MongoDocuments, other: MongoDocuments, clock: Clock, database: Any
) -> None:
    for number in range(6):
        put(documents, experiment(state=b"%d" % number * 100_000), {f"p{number}": b"page"}, (f"p{number - 1}",))
    other.mend()
    assert database.heads.count_documents({}) == 6
    clock.forward(GRACE_S + 1)
    documents.mend()
    # The version stays taken; the content is gone.
    assert sorted("emptied" in head for head in database.heads.find()) == [False] + [True] * 5
    assert sum("state" in head for head in database.heads.find()) == 1
    clock.forward(HEADS_KEPT_S)
    other.mend()
    assert database.heads.count_documents({}) == database.leases.count_documents({}) == 1
    assert database.pages.count_documents({}) == database.experiments.count_documents({}) == 1
    assert _head(other) == _head(documents)
    assert _head(other).version == 6


def test_parts_that_a_crash_left_are_deleted(
    documents: MongoDocuments, clock: Clock, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PART_BYTES", 1000)
    row = put(documents, experiment(state=b"s" * 2500), {"large": b"l" * 3500})
    assert database.parts.count_documents({}) == 3 + 4
    for owner in ("state:7:7:ab", "page:gone"):
        database.parts.insert_one(
            {"_id": f"{NS}/{ID}/{owner}/0", "ns": NS, "experiment": ID, "owner": owner, "content": b"x"}
        )
    assert documents.mend() == 0
    clock.forward(HEADS_KEPT_S + 1)
    assert documents.mend() == 0
    clock.forward(3600)
    assert documents.mend() == 2
    assert _head(documents) == row
    with documents.view() as view:
        assert view.pages(NS, ID, ["large"]) == {"large": b"l" * 3500}
    put(documents, experiment(), {}, ("large",))
    clock.forward(GRACE_S + 1)
    documents.mend()
    assert database.parts.count_documents({}) == 0


def test_who_has_read_a_head_has_time_to_read_its_pages(
    documents: MongoDocuments, other: MongoDocuments, clock: Clock
) -> None:
    first_version(documents)
    with other.view() as view:
        second_version(documents)
        clock.forward(GRACE_S - 1)
        second_version(documents)
        assert view.pages(NS, ID, ["a1"]) == {"a1": b"old a"}
        clock.forward(2)
        second_version(documents)
        with pytest.raises(Vanished):
            view.pages(NS, ID, ["a1"])
        assert len(view.pages(NS, ID, ["a3-3", "a2-2"])) == 2


def test_a_slow_server_does_not_list_what_is_older(documents: MongoDocuments, other: MongoDocuments) -> None:
    put(documents, experiment(name="old"))
    old = documents.heads.find_one({"version": 1})
    assert old is not None
    row = put(other, experiment(name="new"))
    documents._list(old)
    with other.view() as view:
        assert view.experiments(NS, Filter(), 9, None) == [replace(row, state=b"", root=b"")]


def test_a_list_that_a_slow_server_overwrote_is_mended(documents: MongoDocuments, other: MongoDocuments) -> None:
    put(documents, experiment(name="old"))
    (old,) = documents.experiments.find()
    row = put(other, experiment(name="new"))
    documents.experiments.replace_one({"_id": old["_id"]}, old)
    assert documents.mend() == 1
    with other.view() as view:
        assert view.experiments(NS, Filter(), 9, None) == [replace(row, state=b"", root=b"")]


# -- what is refused at the start -------------------------------------------------------------------------------------

PASSWORD = "s3cr3t-hunter2"


@pytest.mark.parametrize(
    "uri",
    [
        f"mongodb://user:{PASSWORD}@127.0.0.1:1/",
        f"mongodb://user:{PASSWORD}/@127.0.0.1:1/",
        f"mongodb://user:{PASSWORD}@127.0.0.1:port/",
        f"mongodb://user:{PASSWORD}@127.0.0.1:1/?authMechanism={PASSWORD}",
        f"mongodb://user:{PASSWORD}@127.0.0.1:1/?w={PASSWORD}&tls=maybe",
        f"postgres://user:{PASSWORD}@127.0.0.1/",
        f"mongodb+srv://user:{PASSWORD}@localhost/",
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # the driver about options
def test_an_address_that_cannot_be_used_is_refused_without_its_password(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SELECTION_MS", 100)
    with pytest.raises((StoreRefused, StoreTrouble)) as caught:
        MongoDocuments(uri, "test")
    error: BaseException | None = caught.value
    texts = [str(error), repr(error), str(getattr(error, "hint", ""))]
    while error is not None and not error.__suppress_context__:
        error = error.__cause__ or error.__context__
        texts.append(repr(error))
    assert PASSWORD not in "".join(texts)


def test_facts_and_repr_name_the_place_without_a_password(
    mongo_service: Service, documents: MongoDocuments, mongo_database: tuple[str, str]
) -> None:
    facts = documents.facts()
    assert facts["kind"] == "FerretDB"
    assert facts["place"] == f"{mongo_service.address}/{mongo_database[1]}"
    assert "mongodb://" not in repr(documents) + repr(facts)


@pytest.mark.parametrize("version", [0, 2])
def test_another_version_is_refused_and_not_touched(
    database: Any, mongo_database: tuple[str, str], version: int
) -> None:
    database.meta.insert_one({"_id": "layout", "version": version})
    with pytest.raises(StoreRefused, match=f"version {version}"):
        MongoDocuments(*mongo_database)
    assert database.list_collection_names() == ["meta"]


def test_an_index_that_cannot_be_made_is_named(database: Any, mongo_database: tuple[str, str]) -> None:
    MongoDocuments(*mongo_database).close()
    database.tokens.drop_index("digest_1")
    database.tokens.insert_many([{"_id": "1", "digest": "same"}, {"_id": "2", "digest": "same"}])
    with pytest.raises(StoreRefused, match=r"\(digest\) of tokens"):
        MongoDocuments(*mongo_database)
    database.tokens.delete_one({"_id": "2"})
    MongoDocuments(*mongo_database).close()
    assert database.tokens.index_information()["digest_1"]["unique"]


def test_several_servers_begin_at_once(mongo_database: tuple[str, str]) -> None:
    opened: list[MongoDocuments] = []
    threads = [threading.Thread(target=lambda: opened.append(MongoDocuments(*mongo_database))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    for documents in opened:
        documents.close()
