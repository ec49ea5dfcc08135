"""Documents in MongoDB: every guarantee rests on inserts under an id that somebody may have taken.

No transaction, no update and no shared clock is relied upon, so that it is the same on one node, a replica set and
servers that only speak the protocol (FerretDB). Writes wait for the journals of the majority; reads see what it has.

    meta         the version of this layout
    leases       `_id` ns/experiment/epoch      first wins; `released` once it was given back
    pages        `_id` ns/experiment/page       written once; `parts` counts the pieces of one that is too large
    heads        `_id` ns/experiment/version    first wins; the greatest version is the experiment
    parts        `_id` ns/experiment/owner/n    pieces of pages and of states that are too large for one document
    experiments  `_id` ns/experiment            what lists show: a copy of the newest head, replaced after it
    journals, segments, blobs (by ns), tokens

The parts of an `_id` are percent-encoded. What a user gives is only ever a value, never the name of a field.

A lease is free once a head has its epoch or a greater one, or it was released; the next holder inserts the next epoch.
Who takes over one that stands still then inserts a *fence*: a head of the same content, with the version that the old
holder would commit, and the old holder's epoch. So that commit is refused, whenever it comes.

A taken id refuses only as long as it stays. Old heads and leases are therefore kept for `HEADS_KEPT_S` after they were
superseded, by the clock of the server that deletes them; and a server that finds that its lease began more than half
as long ago looks, after the insert, whether the head that follows is one that continues its own. An answer that did
not come leaves open whether the insert was done; it is tried again, and a `nonce` in the document tells whose it is.

What was superseded is deleted GRACE_S later, so that who reads the head before can finish. Deleting is remembered in
memory only: after a crash, `page_ids` finds pages and `mend` the rest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import timezone
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, unquote

from pymongo import ASCENDING, DESCENDING, DeleteOne, MongoClient, ReplaceOne, UpdateOne
from pymongo.collection import Collection
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DuplicateKeyError,
    InvalidURI,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
)
from pymongo.read_concern import ReadConcern
from pymongo.read_preferences import ReadPreference
from pymongo.write_concern import WriteConcern

from ...core.limits import INT64_MAX
from ...disk.durable import fail_point
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
    Page,
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
)
from .standstill import Standstill

log = logging.getLogger("ml_dash.server")
Result = TypeVar("Result")
Document = dict[str, Any]
Key = tuple[str, str]

HEADS_KEPT_S: Final = 120.0
"""How long an old head or lease stays after it was superseded, in seconds."""
GRACE_S: Final = 30.0
"""How long superseded pages stay, in seconds."""
# Parts that nobody names, which a crash has left, stay longer: a commit writes them before the head that names them.
_ORPHANS_KEPT_S: Final = 3600.0
_VERSION: Final = 1
_OLDEST: Final = (5, 0)
# A document has at most 16 MiB.
_PART_BYTES: Final = 12 << 20
_KEYS_AT_ONCE: Final = 1000
_TRIES_AFTER_S: Final = (0.1, 0.5, 2.0)
_SELECTION_MS: Final = 5_000
_SOCKET_MS: Final = 30_000
_MAJORITY_MS: Final = 20_000
# Newest heads that are remembered, and up to which size with their content.
_REMEMBERED: Final = 2_000
_REMEMBERED_BYTES: Final = 64 << 10
# FerretDB searches for one `_id` in an index, and for anything else, `$in` too, in all documents of a collection.
_ASKED_ONE_BY_ONE: Final = 64
_ASKING_THREADS: Final = 4
_UP, _DOWN = ASCENDING, DESCENDING
_LISTED_VERSIONS: Final = (("ns", _UP), ("id", _UP), ("version", _UP))
# Collection → the fields of its indexes. Those of `_UNIQUE` refuse what is there already.
_INDEXES: Final[dict[str, tuple[tuple[tuple[str, int], ...], ...]]] = {
    "heads": ((("ns", _UP), ("experiment", _UP), ("version", _DOWN)),),
    "leases": ((("ns", _UP), ("experiment", _UP), ("epoch", _DOWN)),),
    "pages": ((("ns", _UP), ("experiment", _UP), ("page", _UP)),),
    "parts": ((("ns", _UP), ("experiment", _UP), ("owner", _UP)),),
    "experiments": (
        _LISTED_VERSIONS,
        (("ns", _UP), ("shown", _UP), ("updated", _UP), ("id", _UP)),
        (("ns", _UP), ("shown", _UP), ("project", _UP), ("updated", _UP), ("id", _UP), ("created", _UP)),
        (("ns", _UP), ("shown", _UP), ("created", _UP), ("id", _UP)),
        (("ns", _UP), ("shown", _UP), ("name", _UP), ("id", _UP)),
        (("ns", _UP), ("shown", _UP), ("points", _UP), ("id", _UP)),
        (("fold_version", _UP), ("ns", _UP), ("id", _UP)),
        (("status", _UP), ("heard", _UP), ("ns", _UP), ("id", _UP)),
    ),
    "blobs": ((("ns", _UP), ("experiment", _UP)), (("ns", _UP), ("digest", _UP), ("size", _UP))),
    "tokens": ((("digest", _UP),),),
}
_UNIQUE: Final = frozenset({"tokens"})
# `Filter.sort` → the field, and in which direction.
_SORTS: Final = {"updated": _DOWN, "created": _DOWN, "name": _UP, "points": _DOWN}


@dataclass(frozen=True, slots=True)
class _Lease(Lease):
    """A lease with what its commit has to know of the head that it continues.

    `fenced` is the version of a fence without content, after which the first commit has not version 1; `previous` the
    nonce of the head; `owner` that of the parts of its state, if it has any; `since` when the lease was asked for.
    """

    fenced: int = 0
    previous: str = ""
    owner: str = ""
    since: float = 0.0

    @property
    def version(self) -> int:
        return self.row.version + 1 if self.row is not None else self.fenced + 1


@dataclass(frozen=True, slots=True)
class _Waste:
    """What a commit has superseded: pages, owners of parts, and the `_id` of the old head, whose content can go."""

    key: Key
    pages: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    head: str = ""


class _Memory(Generic[Result]):
    """What this process knows of the newest experiments, as long as nothing that came after can be deleted again."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._values: OrderedDict[Key, tuple[Result, float]] = OrderedDict()

    def get(self, key: Key) -> Result | None:
        """Return what is known, if it is."""
        with self._guard:
            value, since = self._values.get(key, (None, 0.0))
        return value if value is not None and time.monotonic() - since < HEADS_KEPT_S / 2 else None

    def put(self, key: Key, value: Result, since: float) -> None:
        """Note what was true at a time of the monotonic clock: when it was asked for, not when it was answered."""
        with self._guard:
            self._values[key] = value, since
            self._values.move_to_end(key)
            while len(self._values) > _REMEMBERED:
                self._values.popitem(last=False)


class MongoDocuments:
    """`Documents` in a database of the MongoDB at `uri`.

    Raises StoreRefused if it is too old, of another version of the layout, or lacks an index that cannot be made, and
    StoreTrouble if it cannot be reached. Neither says what is in `uri` beyond hosts and ports: it holds a password.

    `_guard` protects `_waste` and `_old`, and is never held while the database is asked.
    """

    def __init__(self, uri: str, database: str) -> None:
        self._guard = threading.Lock()
        self._closing = threading.Event()
        # Version of the newest head, and that head if it is small.
        self._heads_known: _Memory[tuple[int, Document | None]] = _Memory()
        # Epoch of a lease that is not held any more, nor any before it.
        self._free_known: _Memory[int] = _Memory()
        self._standstill = Standstill()
        self._waste: list[tuple[float, _Waste]] = []
        # Ids of superseded documents, and since when this process knows them to be.
        self._old: dict[tuple[str, str], float] = {}
        try:
            self._client: MongoClient[Document] = MongoClient(
                uri,
                appname="ml-dash",
                retryWrites=False,
                serverSelectionTimeoutMS=_SELECTION_MS,
                connectTimeoutMS=_SELECTION_MS,
                socketTimeoutMS=_SOCKET_MS,
            )
        # The message may repeat a part of the address, and so of the password.
        except (InvalidURI, ConfigurationError, ValueError, TypeError) as error:
            raise StoreRefused(
                f"the address of the MongoDB cannot be used ({type(error).__name__})",
                hint="give it as mongodb://USER:PASSWORD@HOST:PORT/, with %-escapes in the password",
            ) from None
        self._asking = ThreadPoolExecutor(_ASKING_THREADS, "ml-dash-mongo")
        try:
            self._begin(database)
        except BaseException:
            self.close()
            raise

    def _begin(self, database: str) -> None:
        """Find the collections, and make what is missing. Raises StoreRefused, StoreTrouble."""
        with self._asked():
            built = self._client.admin.command("buildInfo")
        self._ferret = "ferretdbVersion" in built
        self.version = str(built["version"])
        self.place = f"{','.join(sorted(f'{host}:{port}' for host, port in self._client.nodes))}/{database}"
        if tuple(built["versionArray"][:2]) < _OLDEST:
            raise StoreRefused(
                f"the MongoDB at {self.place} has version {self.version}", hint="use MongoDB 5.0 or a newer one"
            )
        self._database = self._client.get_database(
            database,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern("majority", wtimeout=_MAJORITY_MS, j=True),
        )
        named = self._database.get_collection
        self.heads, self.leases, self.pages, self.parts = map(named, ("heads", "leases", "pages", "parts"))
        self.experiments, self.blobs, self.tokens = map(named, ("experiments", "blobs", "tokens"))
        self.journals, self.segments = map(named, ("journals", "segments"))
        with self._asked():
            version = self._put_once(named("meta"), {"_id": "layout", "version": _VERSION})["version"]
            if version != _VERSION:
                raise StoreRefused(
                    f"the database {self.place} has version {version}, this server reads version {_VERSION}",
                    hint="use the ml-dash that wrote it, or a newer one (nothing was changed)",
                )
            for name, indexes in _INDEXES.items():
                self._make_indexes(named(name), indexes)

    def _make_indexes(self, collection: Collection[Document], wanted: Iterable[tuple[tuple[str, int], ...]]) -> None:
        """Make the indexes that are missing. Raises StoreRefused, naming one that cannot be made."""
        unique = collection.name in _UNIQUE
        there = {
            (
                tuple((name, order if isinstance(order, str) else int(order)) for name, order in index["key"]),
                bool(index.get("unique")),
            )
            for index in collection.index_information().values()
        }
        for keys in wanted:
            if (keys, unique) in there:
                continue
            try:
                collection.create_index(list(keys), unique=unique)
            except ConnectionFailure:
                raise
            except PyMongoError as error:
                names = ", ".join(name for name, _ in keys)
                raise StoreRefused(
                    f"{self.place} lacks the index ({names}) of {collection.name}, which cannot be made: {error}",
                    hint="give the user of this server the role readWrite on this database, or make the index yourself",
                ) from error

    def close(self) -> None:
        """Delete what was superseded, and close the connections."""
        if not self._closing.is_set() and hasattr(self, "parts"):
            self._delete_waste(everything=True)
        self._closing.set()
        self._asking.shutdown()
        self._client.close()

    def check(self) -> None:
        """Raise StoreTrouble if it cannot be used now."""
        with self._asked():
            self.tokens.find_one({"_id": ""})

    def facts(self) -> Mapping[str, str]:
        """Return kind, version, place and time of the database."""
        with self._asked():
            clock = self._database.command("hello").get("localTime")
        facts = {"kind": "FerretDB" if self._ferret else "MongoDB", "version": self.version, "place": self.place}
        return {**facts, "clock": clock.replace(tzinfo=timezone.utc).isoformat()} if clock else facts

    # -- asking ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """Turn errors of the driver into StoreTrouble."""
        if self._closing.is_set():
            raise StoreTrouble("the server is stopping")
        try:
            yield
        except PyMongoError as error:
            if self._closing.is_set():
                raise StoreTrouble("the server is stopping") from error
            hint = "nothing was acknowledged; see whether MongoDB runs and has a primary"
            raise StoreTrouble(f"MongoDB refused: {error}", hint=hint) from error

    @contextlib.contextmanager
    def view(self) -> Iterator[_View]:
        """Open a look at what is newest. Raises StoreTrouble."""
        with self._asked():
            yield _View(self)

    def by_ids(
        self, collection: Collection[Document], ids: Sequence[str], fields: Sequence[str] | None = None
    ) -> list[Document]:
        """Return the documents with these ids that are there, in no order."""
        if self._ferret and 1 < len(ids) <= _ASKED_ONE_BY_ONE:
            ask = self._asking.map(lambda one: collection.find_one({"_id": one}, fields), ids)
            return [document for document in ask if document is not None]
        found: list[Document] = []
        for start in range(0, len(ids), _KEYS_AT_ONCE):
            part = list(ids[start : start + _KEYS_AT_ONCE])
            found += collection.find({"_id": part[0] if len(part) == 1 else {"$in": part}}, fields)
        return found

    def _again(self, act: Callable[[], Result | None]) -> Result:
        """Return what `act` returns, asking again after an answer that did not come or that says nothing (None)."""
        for wait_s in (*_TRIES_AFTER_S, None):
            try:
                result = act()
                if result is not None:
                    return result
            except ServerSelectionTimeoutError:
                raise
            # The second one means: done here, but not by the majority, yet.
            except (AutoReconnect, WriteConcernError):
                if wait_s is None:
                    raise
            if wait_s is not None and self._closing.wait(wait_s):
                break
        raise StoreTrouble("MongoDB refused: an insert is neither done nor taken", hint="it is worth trying again")

    def _put_once(self, collection: Collection[Document], document: Document) -> Document:
        """Insert a document unless its `_id` is taken; return the one that is stored, by then durable."""
        document["nonce"] = secrets.token_hex(8)

        def insert() -> Document | None:
            try:
                collection.insert_one(document)
            except DuplicateKeyError:
                # Ours, if an answer did not come. None, if the majority does not have it yet.
                return collection.find_one({"_id": document["_id"]})
            return document

        return self._again(insert)

    def _put_pages(self, key: Key, pages: Sequence[Page]) -> None:
        """Insert pages and their parts."""
        documents = []
        for name, content in pages:
            page: Document = {"_id": _id(*key, name), "ns": key[0], "experiment": key[1], "page": name}
            if len(content) > _PART_BYTES:
                page["parts"] = self._put_parts(key, f"page:{name}", content)
            else:
                page["content"] = content
            documents.append(page)
        for batch in _batches(documents):
            self._put_new(self.pages, batch)

    def _put_parts(self, key: Key, owner: str, content: bytes) -> int:
        """Insert a content in parts, and return how many they are."""
        starts = range(0, len(content), _PART_BYTES)
        for number, start in enumerate(starts):
            part = content[start : start + _PART_BYTES]
            document = {"_id": _id(*key, owner, number), "ns": key[0], "experiment": key[1], "owner": owner}
            self._put_new(self.parts, [{**document, "content": part}])
        return len(starts)

    def _put_new(self, collection: Collection[Document], documents: list[Document]) -> None:
        """Insert documents under ids that nobody else uses."""

        def insert() -> bool | None:
            try:
                collection.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                if any(problem["code"] != 11000 for problem in error.details["writeErrors"]):
                    raise
                if error.details["writeConcernErrors"]:
                    raise WriteConcernError(str(error.details["writeConcernErrors"][0].get("errmsg"))) from error
                # They are our own, from the time before. The majority has them: reading shows nothing else.
                stored = {found["_id"]: found for found in self.by_ids(collection, [d["_id"] for d in documents])}
                if any(stored.get(document["_id"], document) != document for document in documents):
                    raise StoreTrouble("MongoDB holds another content under the id of a new page") from error
                return len(stored) == len(documents) or None
            return True

        self._again(insert)

    def content_of(self, key: Key, owner: str, count: int) -> bytes:
        """Return what was put in parts. Raises Vanished."""
        found = {part["_id"]: part["content"] for part in self.by_ids(self.parts, _part_ids(key, owner, count))}
        if len(found) < count:
            raise Vanished(f"{count - len(found)} parts of {owner} of experiment {key[1]}")
        return b"".join(found[name] for name in _part_ids(key, owner, count))

    # -- heads -------------------------------------------------------------------------------------------------------

    def row(self, key: Key) -> tuple[Document | None, ExperimentRow | None]:
        """Return the newest head, as a document and as a row; the row is None if it has no content."""
        while True:
            head = self._newest(key)
            if head is None or "id" not in head:
                return head, None
            try:
                if "state_owner" not in head:
                    return head, _row(head)
                return head, _row({**head, "state": self.content_of(key, head["state_owner"], head["state_parts"])})
            except Vanished:
                # A newer head has taken its place. If there is none, the state is lost.
                again = self._newest(key)
                if again is not None and again["_id"] == head["_id"]:
                    raise StoreTrouble(
                        f"a part of the state of experiment {key[1]} is missing", hint="restore a backup of MongoDB"
                    ) from None

    def _newest(self, key: Key) -> Document | None:
        """Return the head with the greatest version, as it is stored: its state may be in parts."""
        begun = time.monotonic()
        known = self._heads_known.get(key)
        if known is None:
            return self._searched(key)
        version, head = known
        while (following := self.heads.find_one({"_id": _id(*key, version + 1)})) is not None:
            head, version = following, version + 1
        if head is None and version:
            head = self.heads.find_one({"_id": _id(*key, version)})
        # Another has followed just now, so that this one was emptied.
        if version and (head is None or "emptied" in head):
            return self._searched(key)
        self._remember(key, head, begun)
        return head

    def _searched(self, key: Key) -> Document | None:
        """Return the head with the greatest version, whatever is remembered."""
        begun = time.monotonic()
        found = list(self.heads.find({"ns": key[0], "experiment": key[1]}).sort("version", _DOWN).limit(1))
        head = found[0] if found else None
        self._remember(key, head, begun)
        return head

    def _remember(self, key: Key, head: Document | None, since: float) -> None:
        small = head is None or len(head.get("state", b"")) <= _REMEMBERED_BYTES
        self._heads_known.put(key, (head["version"] if head else 0, head if small else None), since)

    # -- leases ------------------------------------------------------------------------------------------------------

    def lease(self, ns: str, experiment: str) -> Lease:
        """Return the right to commit the next version. Raises Busy, StoreTrouble."""
        key, begun = (ns, experiment), time.monotonic()
        with self._asked():
            epoch, held = self._take(key)
            head, row = self._fence(key, held) if held else self.row(key)
            self._standstill.forget(key)
        fail_point("commit-lease")
        if head is None:
            return _Lease(ns, experiment, epoch, None, since=begun)
        fenced = head["version"] if row is None else 0
        return _Lease(ns, experiment, epoch, row, fenced, head["nonce"], head.get("state_owner", ""), begun)

    def _take(self, key: Key) -> tuple[int, int]:
        """Insert the next lease. Return its epoch, and that of the one that it takes over, or 0. Raises Busy."""
        begun = time.monotonic()
        known = self._free_known.get(key)
        epoch = known if known is not None else self._before_last(key)
        while True:
            mine = self._lease_document(key, epoch + 1)
            taken = self._put_once(self.leases, mine)
            if taken["nonce"] == mine["nonce"]:
                self._free_known.put(key, epoch, begun)
                return epoch + 1, 0
            epoch += 1
            # One that was given back, or taken over: then the next one tells more.
            if "released" in taken or self.leases.find_one({"_id": _id(*key, epoch + 1)}) is not None:
                continue
            head = self._newest(key)
            if head is not None and head["epoch"] >= epoch:
                epoch = head["epoch"]
                continue
            holds = (head["version"] if head is not None else 0, epoch)
            if (still_s := self._standstill.seconds(key, holds, time.monotonic())) < LEASE_S:
                raise Busy(key[1], still_s)
            mine = self._lease_document(key, epoch + 1)
            if self._put_once(self.leases, mine)["nonce"] != mine["nonce"]:
                raise Busy(key[1])
            return epoch + 1, epoch

    def _before_last(self, key: Key) -> int:
        """Return the epoch before the newest lease that may be held, or that of the newest head."""
        last = list(self.leases.find({"ns": key[0], "experiment": key[1]}).sort("epoch", _DOWN).limit(1))
        head = self._searched(key)
        return max(last[0]["epoch"] - 1 if last else 0, head["epoch"] if head is not None else 0)

    def _lease_document(self, key: Key, epoch: int) -> Document:
        return {"_id": _id(*key, epoch), "ns": key[0], "experiment": key[1], "epoch": epoch}

    def _fence(self, key: Key, held: int) -> tuple[Document | None, ExperimentRow | None]:
        """Take the version that the holder of the lease `held` would commit; return the newest head then."""
        while True:
            begun = time.monotonic()
            head, row = self.row(key)
            if head is not None and head["epoch"] > held:
                raise Busy(key[1])
            # It has committed after all.
            if head is not None and head["epoch"] == held:
                return head, row
            fence = dict(head or {"ns": key[0], "experiment": key[1], "version": 0, "nonce": ""})
            # Not the epoch of the new holder: a head of that one would free its lease.
            fence.update(version=fence["version"] + 1, previous=fence["nonce"], epoch=held)
            fence["_id"] = _id(*key, fence["version"])
            if self._put_once(self.heads, fence)["nonce"] == fence["nonce"]:
                self._remember(key, fence, begun)
                if row is not None:
                    self._list(fence)
                return fence, row and replace(row, version=fence["version"], epoch=held)

    def release(self, lease: Lease) -> None:
        """Give a lease back, with nothing committed."""
        key, begun = (lease.ns, lease.experiment), time.monotonic()
        try:
            with self._asked():
                self.leases.update_one({"_id": _id(*key, lease.epoch)}, {"$set": {"released": True}})
        except StoreTrouble as error:
            log.info("a lease could not be given back, and runs out: %s", error)
        else:
            self._free_known.put(key, lease.epoch, begun)

    # -- commits -----------------------------------------------------------------------------------------------------

    def commit(self, lease: Lease, commit: Commit) -> None:
        """Store a version of an experiment: pages, head, list. Raises Stale, StoreTrouble."""
        assert isinstance(lease, _Lease)
        assert commit.row.version == lease.version
        assert commit.row.epoch == lease.epoch
        key, begun = (lease.ns, lease.experiment), time.monotonic()
        owner = f"state:{lease.version}:{lease.epoch}:{secrets.token_hex(4)}" if _is_large(commit.row.state) else ""
        try:
            with self._asked():
                self._put_pages(key, commit.pages)
                head = self._head_document(key, commit.row, owner, lease.previous)
                fail_point("commit-pages")
                # What no head names is deleted after a while, and this would name it.
                if time.monotonic() - begun > HEADS_KEPT_S / 2:
                    raise StoreTrouble("MongoDB refused: writing took too long", hint="nothing was acknowledged")
                self._put_head(key, head, lease.since)
        except (Stale, ValueError):
            # Not after trouble: then the head may be there.
            self._discard(_Waste(key, tuple(name for name, _ in commit.pages), (owner,) if owner else ()))
            raise
        fail_point("commit-head")
        self._remember(key, head, begun)
        self._free_known.put(key, lease.epoch, begun)
        self._list(head)
        fail_point("commit-listed")
        large = lease.row is not None and len(lease.row.state) > _EMPTIED_BYTES
        old = _id(*key, lease.version - 1) if large else ""
        self._discard(_Waste(key, tuple(commit.superseded), (lease.owner,) if lease.owner else (), old))
        self._delete_waste()

    def _head_document(self, key: Key, row: ExperimentRow, owner: str, previous: str) -> Document:
        """Return a head to insert; a state that is too large for it is stored in parts, for `owner`."""
        head = {
            "_id": _id(*key, row.version), "ns": key[0], "experiment": key[1], "previous": previous,
            "version": row.version, "epoch": row.epoch, "id": row.id, "project": row.project, "name": row.name,
            "fold_version": row.fold_version, "status": row.status, "created": min(row.created_ns, INT64_MAX),
            "updated": min(row.updated_ns, INT64_MAX), "heard": min(row.heard_ns, INT64_MAX), "folder": row.folder,
            "tags": list(row.tags), "description": row.description, "summary": json.dumps(row.summary),
            "root": row.root, "arrivals": row.arrivals,
        }  # fmt: skip
        if owner:
            head.update(state_owner=owner, state_parts=self._put_parts(key, owner, row.state))
        else:
            head["state"] = row.state
        return head

    def _put_head(self, key: Key, head: Document, since: float) -> None:
        """Insert a head that was prepared since then, from where on readers see it. Raises Stale."""
        stale = Stale(f"experiment {key[1]} was changed by another process")
        if self._put_once(self.heads, head)["nonce"] != head["nonce"]:
            raise stale
        if time.monotonic() - since <= HEADS_KEPT_S / 2:
            return
        # So late, the id may have been free because what had it was deleted. Then something newer is there, that does
        # not continue this one.
        newest = self._searched(key)
        if newest is not None and newest["nonce"] == head["nonce"]:
            return
        following = self.heads.find_one({"_id": _id(*key, head["version"] + 1)})
        if following is None or following["previous"] != head["nonce"]:
            self.heads.delete_one({"_id": head["_id"]})
            raise stale

    def _list(self, head: Document) -> None:
        """Replace what lists show of an experiment, unless that is newer. What does not succeed is left to `mend`."""
        row = _row({**head, "state": b""})
        shown = {name: value for name, value in head.items() if name not in _NOT_LISTED}
        shown.update(
            _id=_id(head["ns"], head["experiment"]), shown=row.events > 0, points=min(points_of(row), INT64_MAX),
            searched=searched_text(row),
        )  # fmt: skip
        older = {"_id": shown["_id"], "version": {"$lt": row.version}}
        try:
            with self._asked():
                # With a newer one nothing matches, and what is inserted instead has its id. So it has if the first one
                # was inserted at the same moment: that one matches the second time.
                for _ in range(2):
                    with contextlib.suppress(DuplicateKeyError):
                        self.experiments.replace_one(older, shown, upsert=True)
                        break
        except StoreTrouble as error:
            log.warning("experiment %s is stored, but lists show it as it was until they are mended: %s", row.id, error)

    # -- what was superseded -----------------------------------------------------------------------------------------

    def _discard(self, waste: _Waste) -> None:
        """Note what nobody names any more, to be deleted when those who read the head before have finished."""
        with self._guard:
            self._waste.append((time.monotonic(), waste))

    def _delete_waste(self, *, everything: bool = False) -> None:
        """Delete what was noted long enough ago. What MongoDB refuses now is tried again."""
        now = time.monotonic()
        with self._guard:
            due = [(since, waste) for since, waste in self._waste if everything or now - since >= GRACE_S]
            self._waste = [each for each in self._waste if each not in due]
        if not due:
            return
        try:
            with self._asked():
                for key in {waste.key for _, waste in due}:
                    mine = [waste for _, waste in due if waste.key == key]
                    pages = [name for waste in mine for name in waste.pages]
                    self._delete_pages(key, pages, [name for waste in mine for name in waste.owners])
                emptied = [UpdateOne({"_id": waste.head}, _EMPTYING) for _, waste in due if waste.head]
                if emptied:
                    self.heads.bulk_write(emptied, ordered=False)
        except StoreTrouble as error:
            log.info("what was superseded could not be deleted, and is tried again: %s", error)
            with self._guard:
                self._waste += due

    def _delete_pages(self, key: Key, pages: Sequence[str], owners: Sequence[str] = ()) -> None:
        """Delete pages, and the parts of pages and of `owners`."""
        for start in range(0, len(pages), _KEYS_AT_ONCE):
            some = pages[start : start + _KEYS_AT_ONCE]
            self.pages.bulk_write([DeleteOne({"_id": _id(*key, name)}) for name in some], ordered=False)
        owned = [*owners, *(f"page:{name}" for name in pages)]
        for start in range(0, len(owned), _KEYS_AT_ONCE):
            wanted = {"$in": owned[start : start + _KEYS_AT_ONCE]}
            self.parts.delete_many({"ns": key[0], "experiment": key[1], "owner": wanted})

    def older(self, ns: str, experiment: str) -> Older | None:
        """Return None: this is the first layout."""
        return None

    def mend(self) -> int:
        """Repair lists, and delete heads, leases and parts that were superseded long ago."""
        self._delete_waste()
        with self._asked():
            # Of all these, only the indexes are read.
            newest, old_heads = _newest_of(self._ids(self.heads))
            _, old_leases = _newest_of(self._ids(self.leases))
            orphans = [part for part in self._ids(self.parts) if self._is_orphan(part)]
            rows = self.experiments.find({}, {"_id": 0, "ns": 1, "id": 1, "version": 1}).sort(list(_LISTED_VERSIONS))
            listed = {(row["ns"], row["id"]): row["version"] for row in rows}
            mended = sum(self._mend_list(key) for key, version in newest.items() if listed.get(key, 0) < version)
            old = {(self.heads.name, head): HEADS_KEPT_S for head in old_heads}
            old.update({(self.leases.name, lease): HEADS_KEPT_S for lease in old_leases})
            old.update({(self.parts.name, part): _ORPHANS_KEPT_S for part in orphans})
            return mended + self._delete_old(old)

    def _ids(self, collection: Collection[Document]) -> Iterator[str]:
        for found in collection.find({}, {"_id": 1}).sort("_id", _UP):
            yield found["_id"]

    def _mend_list(self, key: Key) -> int:
        """List an experiment as its newest head is; return how many that were, 0 for one without content."""
        head, row = self.row(key)
        if head is None or row is None:
            return 0
        self._list(head)
        return 1

    def _is_orphan(self, part: str) -> bool:
        """Tell whether neither the newest head nor a page owns a part."""
        ns, experiment, owner, _ = map(unquote, part.split("/"))
        kind, _, page = owner.partition(":")
        if kind == "page":
            return self.pages.find_one({"_id": _id(ns, experiment, page)}, ["_id"]) is None
        head = self._newest((ns, experiment))
        return head is None or head.get("state_owner") != owner

    def _delete_old(self, old: Mapping[tuple[str, str], float]) -> int:
        """Delete documents, given as (collection, `_id`), that this process has known to be old for so many seconds."""
        now = time.monotonic()
        with self._guard:
            self._old = {each: self._old.get(each, now) for each in old}
            due = [each for each, since in self._old.items() if now - since >= old[each]]
        for start in range(0, len(due), _KEYS_AT_ONCE):
            for name in {name for name, _ in due}:
                some = [DeleteOne({"_id": one}) for held, one in due[start : start + _KEYS_AT_ONCE] if held == name]
                if some:
                    self._database.get_collection(name).bulk_write(some, ordered=False)
        return len(due)

    def page_ids(self, ns: str, experiment: str) -> Iterator[str]:
        """Yield the ids of all pages of an experiment, sorted."""
        wanted: Document = {"ns": ns, "experiment": experiment}
        while True:
            with self._asked():
                found = list(self.pages.find(wanted, {"_id": 0, "page": 1}).sort("page", _UP).limit(_KEYS_AT_ONCE))
            yield from (page["page"] for page in found)
            if len(found) < _KEYS_AT_ONCE:
                return
            wanted["page"] = {"$gt": found[-1]["page"]}

    def drop_pages(self, ns: str, experiment: str, ids: Sequence[str]) -> None:
        """Delete pages that no head names."""
        with self._asked():
            self._delete_pages((ns, experiment), ids)

    # -- single rows -------------------------------------------------------------------------------------------------

    def claim_journal(self, ns: str, claim: JournalClaim) -> JournalClaim:
        """Store the claim unless there is one; return the one that is stored."""
        with self._asked():
            return _journal(self._put_once(self.journals, {"_id": _id(ns, claim.id), "ns": ns, **asdict(claim)}))

    def claim_segment(self, ns: str, claim: SegmentClaim) -> SegmentClaim:
        """Store the claim unless there is one; return the one that is stored."""
        with self._asked():
            return _segment(self._put_once(self.segments, {"_id": _id(ns, claim.id), "ns": ns, **asdict(claim)}))

    def put_blobs(self, ns: str, rows: Sequence[BlobRow]) -> None:
        """Store complete blobs."""
        acts = [
            ReplaceOne({"_id": _id(ns, row.experiment, row.name)}, {"ns": ns, **asdict(row)}, upsert=True)
            for row in rows
        ]

        def write() -> bool | None:
            try:
                self.blobs.bulk_write(acts, ordered=False)
            except BulkWriteError as error:
                # Another server has inserted one at the same time: now it is there, and is replaced.
                if all(problem["code"] == 11000 for problem in error.details["writeErrors"]):
                    return None
                raise
            return True

        if acts:
            with self._asked():
                self._again(write)

    def drop_blobs(self, ns: str, experiment: str, names: Iterable[str]) -> None:
        """Delete rows of blobs."""
        acts = [DeleteOne({"_id": _id(ns, experiment, name)}) for name in names]
        if acts:
            with self._asked():
                self.blobs.bulk_write(acts, ordered=False)

    def put_token(self, row: TokenRow) -> None:
        """Store a token; of one that is there, only its end changes."""
        ends = {"expires": min(row.expires_ns, INT64_MAX), "revoked": min(row.revoked_ns, INT64_MAX)}
        document = {
            "_id": row.id, "digest": row.digest, "user": row.user, "read_only": row.read_only,
            "read_all": row.read_all, "created": min(row.created_ns, INT64_MAX), **ends,
        }  # fmt: skip
        with self._asked():
            other = self.tokens.find_one({"digest": row.digest})
            if other is not None and other["_id"] != row.id:
                raise StoreTrouble(f"token {other['_id']} has this digest already", hint="make another token")
            if self._put_once(self.tokens, document)["nonce"] != document["nonce"]:
                self._again(lambda: self.tokens.update_one({"_id": row.id}, {"$set": ends}))


class _View:
    """`View`, of which each answer is what was newest when it was asked for.

    The methods have their contracts in `View`. Numbers above 2^63 - 1 are cut to that, because MongoDB has no greater
    integers: as the bound of a search it means the same, as a time it still comes last.
    """

    def __init__(self, documents: MongoDocuments) -> None:
        self._documents = documents

    # -- experiments -------------------------------------------------------------------------------------------------

    def experiment(self, ns: str, experiment: str) -> ExperimentRow | None:
        return self._documents.row((ns, experiment))[1]

    def pages(self, ns: str, experiment: str, ids: Sequence[str]) -> dict[str, bytes]:
        wanted = list(dict.fromkeys(ids))
        stored = self._documents.by_ids(self._documents.pages, [_id(ns, experiment, name) for name in wanted])
        if len(stored) < len(wanted):
            raise Vanished(f"{len(wanted) - len(stored)} pages of experiment {experiment}")
        found: dict[str, bytes] = {}
        for page in stored:
            name = page["page"]
            if "parts" in page:
                found[name] = self._documents.content_of((ns, experiment), f"page:{name}", page["parts"])
            else:
                found[name] = page["content"]
        return found

    def experiments(self, ns: str, wanted: Filter, limit: int, after: Place | None) -> list[ExperimentRow]:
        where = _where(ns, wanted)
        name, order = wanted.sort, _SORTS[wanted.sort]
        if after is not None:
            value = min(after[0], INT64_MAX) if isinstance(after[0], int) else after[0]
            behind = "$lt" if order == _DOWN else "$gt"
            # The first condition follows from the second; with it, the index begins in the right place.
            where.setdefault(name, {})[f"{behind}e"] = value
            where["$or"] = [{name: {behind: value}}, {name: value, "id": {behind: after[1]}}]
        found = self._documents.experiments.find(where).sort([(name, order), ("id", order)]).limit(limit)
        return [_row({**shown, "state": b"", "root": b""}) for shown in found]

    def count(self, ns: str, wanted: Filter) -> int:
        return self._documents.experiments.count_documents(_where(ns, wanted))

    def projects(self, ns: str) -> list[dict[str, Any]]:
        # Their number is small, and these fields are all in one index.
        fields = {"_id": 0, "project": 1, "created": 1, "updated": 1}
        found: dict[str, dict[str, Any]] = {}
        for row in self._documents.experiments.find({"ns": ns, "shown": True}, fields):
            project = found.setdefault(row["project"], {"project": row["project"], "experiments": 0})
            project["experiments"] += 1
            project["created_ns"] = min(row["created"], project.get("created_ns", INT64_MAX))
            project["updated_ns"] = max(row["updated"], project.get("updated_ns", 0))
        return [found[name] for name in sorted(found)]

    def stale(self, fold_version: int) -> list[tuple[str, str]]:
        return self._keys({"fold_version": {"$ne": fold_version}})

    def quiet(self, before_ns: int) -> list[tuple[str, str]]:
        return self._keys({"status": "running", "heard": {"$lt": min(before_ns, INT64_MAX)}})

    def all_experiments(self, after: tuple[str, str] | None, limit: int) -> list[tuple[str, str]]:
        where: Document = {}
        if after is not None:
            where = {
                "ns": {"$gte": after[0]},
                "$or": [{"ns": {"$gt": after[0]}}, {"ns": after[0], "id": {"$gt": after[1]}}],
            }
        return self._keys(where, limit)

    def _keys(self, where: Document, limit: int = 0) -> list[tuple[str, str]]:
        fields = {"_id": 0, "ns": 1, "id": 1}
        found = self._documents.experiments.find(where, fields).sort([("ns", _UP), ("id", _UP)]).limit(limit)
        return [(row["ns"], row["id"]) for row in found]

    def events(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, int]]:
        ids = [_id(*key) for key in dict.fromkeys(keys)]
        found = self._documents.by_ids(self._documents.experiments, ids, ["ns", "id", "version", "summary"])
        return {
            (row["ns"], row["id"]): (row["version"], news_of(json.loads(row["summary"])))
            for row in found
        }

    def versions(self, ns: str, ids: Sequence[str] | None = None) -> dict[str, Version]:
        fields = {"_id": 0, "id": 1, "version": 1, "heard": 1, "summary": 1}
        if ids is None:
            rows: Iterable[Document] = self._documents.experiments.find({"ns": ns, "shown": True}, fields)
        else:
            keys = [_id(ns, identity) for identity in dict.fromkeys(ids)]
            rows = self._documents.by_ids(self._documents.experiments, keys, ["id", "version", "heard", "summary"])
        found = {
            row["id"]: Version(row["version"], row["heard"], json.loads(row["summary"]))
            for row in rows
        }
        return {identity: version for identity, version in found.items() if version.events}

    def usage(self, ns: str) -> int:
        # Summed here: what speaks MongoDB's protocol need not know how to add.
        rows = self._documents.experiments.find({"ns": ns}, {"_id": 0, "summary": 1})
        raw = sum(json.loads(row["summary"]).get("bytes", 0) for row in rows)
        return int(raw + sum(row["size"] for row in self._documents.blobs.find({"ns": ns}, {"_id": 0, "size": 1})))

    # -- claims, blobs, tokens ---------------------------------------------------------------------------------------

    def journal(self, ns: str, journal: str) -> JournalClaim | None:
        found = self._documents.journals.find_one({"_id": _id(ns, journal)})
        return _journal(found) if found is not None else None

    def segment(self, ns: str, segment: str) -> SegmentClaim | None:
        found = self._documents.segments.find_one({"_id": _id(ns, segment)})
        return _segment(found) if found is not None else None

    def blob(self, ns: str, experiment: str, name: str) -> BlobRow | None:
        found = self._documents.blobs.find_one({"_id": _id(ns, experiment, name)})
        return _blob(found) if found is not None else None

    def blobs(self, ns: str, experiment: str) -> list[BlobRow]:
        return [_blob(found) for found in self._documents.blobs.find({"ns": ns, "experiment": experiment})]

    def same_content(self, ns: str, digest: str, size: int) -> list[BlobRow]:
        # Any of them will do; more than one, because an object may be missing.
        found = self._documents.blobs.find({"ns": ns, "digest": digest, "size": size}).limit(8)
        return [_blob(row) for row in found]

    def token(self, digest: str) -> TokenRow | None:
        found = self._documents.tokens.find_one({"digest": digest})
        return _token(found) if found is not None else None

    def tokens(self) -> list[TokenRow]:
        return [_token(found) for found in self._documents.tokens.find().sort([("created", _UP), ("_id", _UP)])]


_EMPTIED_BYTES: Final = 4 << 10
_EMPTYING: Final = {"$set": {"emptied": True}, "$unset": {"state": "", "root": "", "summary": ""}}
_NOT_LISTED: Final = frozenset({"state", "root", "experiment", "nonce", "previous", "state_owner", "state_parts"})


def _id(*parts: str | int) -> str:
    """Return the `_id` for parts of any text."""
    return "/".join(quote(str(part), safe=":") for part in parts)


def _newest_of(ids: Iterable[str]) -> tuple[dict[Key, int], list[str]]:
    """Return the greatest number of each experiment, for an `_id` that ends in it, and the ids of all others."""
    newest: dict[Key, tuple[int, str]] = {}
    old = []
    for found in ids:
        ns, experiment, number = map(unquote, found.split("/"))
        known = newest.setdefault((ns, experiment), (int(number), found))
        if known[0] < int(number):
            newest[ns, experiment] = int(number), found
            old.append(known[1])
        elif known[1] != found:
            old.append(found)
    return {key: number for key, (number, _) in newest.items()}, old


def _part_ids(key: Key, owner: str, count: int) -> list[str]:
    return [_id(*key, owner, number) for number in range(count)]


def _is_large(content: bytes) -> bool:
    return len(content) > _PART_BYTES


def _batches(pages: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield pages in batches that one message can hold."""
    batch: list[Document] = []
    size = 0
    for page in pages:
        length = len(page.get("content", b"")) + 1000
        if batch and (size + length > _PART_BYTES or len(batch) >= _KEYS_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(page)
        size += length
    if batch:
        yield batch


def _where(ns: str, wanted: Filter) -> Document:
    """Return the condition of a filter. Names of fields come from here and never from a request."""
    where: Document = {"ns": ns, "shown": True}
    for name in ("project", "status", "folder"):
        value = getattr(wanted, name)
        if value is not None:
            where[name] = value
    if wanted.tag is not None:
        where["tags"] = wanted.tag
    if wanted.since_ns:
        where["updated"] = {"$gte": min(wanted.since_ns, INT64_MAX)}
    if wanted.text:
        where["searched"] = {"$regex": re.escape(wanted.text.casefold()).replace("\0", "\\x00")}
    return where


def _row(head: Document) -> ExperimentRow:
    """Return an experiment from a head, or from what lists show."""
    return ExperimentRow(
        id=head["id"], project=head["project"], name=head["name"], version=head["version"],
        fold_version=head["fold_version"], state=head["state"], status=head["status"], created_ns=head["created"],
        updated_ns=head["updated"], heard_ns=head["heard"], folder=head["folder"], tags=tuple(head["tags"]),
        description=head["description"], summary=json.loads(head["summary"]), root=head["root"], epoch=head["epoch"],
        arrivals=head["arrivals"],
    )  # fmt: skip


def _journal(found: Document) -> JournalClaim:
    return JournalClaim(found["id"], found["experiment"], found["project"], found["name"])


def _segment(found: Document) -> SegmentClaim:
    return SegmentClaim(found["id"], found["journal"], found["file"], found["writer"], found["experiment"])


def _blob(found: Document) -> BlobRow:
    return BlobRow(found["name"], found["digest"], found["size"], found["key"], found["experiment"])


def _token(found: Document) -> TokenRow:
    return TokenRow(
        found["_id"], found["digest"], found["user"], found["read_only"], found["read_all"], found["created"],
        found["expires"], found["revoked"],
    )  # fmt: skip
