"""The server without HTTP: stores, ingest, writes and queries, wired together."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any, Final

from ...core.protocol import UNKNOWN, Appended, BlobState, Refused
from ...core.ranges import Range
from ..settings import ServerSettings
from ..stores import Documents, Objects, StoreRefused, StoreTrouble
from ..stores.wiring import make_data, open_stores
from .archive import Archiver
from .changes import Changed, Changes
from .history import Histories
from .ingest import Ingest
from .journals import Journals
from .past import Past
from .queries import Query
from .quota import Quota
from .refold import refold_all
from .run_index import RunIndexes
from .server_writer import ServerWriter
from .tokens import Tokens, open_tokens
from .uploads import Uploads
from .writes import Writes

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["Server", "open_tokens"]

log = logging.getLogger("ml_dash.server")
_LOCK: Final = "server.lock"
READ_ONLY: Final = "read-only"
"""A file of this name in the data folder makes the server read-only, from the next request on."""


class Server:
    """One server on one data folder. `ns` is a namespace, ids are hex. Any thread may call.

    Calls raise Refused with an answer for the client, InvalidInput and WriteProtected as the library does, and
    StoreTrouble or OSError when the disk refuses; nothing is changed then.
    """

    def __init__(self, data: Path, settings: ServerSettings | None = None) -> None:
        """Open the stores that the settings name; without any, those of the data folder, which is made if need be.

        Raises StoreRefused if they are in use, damaged or newer, StoreTrouble if they cannot be reached.
        """
        settings = self._settings = settings or ServerSettings(data)
        make_data(data)
        # SQLite is for one server; MongoDB is for any number.
        self._lock = lock_data(data) if settings.mongodb_uri is None else None
        try:
            self.stores = open_stores(settings, alone=True)
        except BaseException:
            release_data(self._lock)
            raise
        self.documents, self.objects = self.stores.documents, self.stores.objects
        self._guard = threading.Lock()
        self._listeners: list[Changed] = []
        quota = Quota(self.documents, settings.quota_bytes, settings.quotas)
        self.require_room = quota.check
        changes = self._changes = Changes(self.documents, self.objects, self._changed, quota)
        ingest = self._ingest = Ingest(changes)
        uploads = self._uploads = Uploads(changes, self.stores.uploads)
        self.archiver = Archiver(changes)
        changes.read_only = (data / READ_ONLY).exists
        changes.archiver = self.archiver.notice
        self.staging = data / "incoming"
        self.staging.mkdir(parents=True, exist_ok=True)
        _drop_old(self.staging)
        uploads.sweep()

        journals = Journals(changes)
        self.journal = journals.journal
        self.digests = journals.digests
        self.find_experiment = journals.find_experiment
        self.order = journals.order
        self.segment_bytes = journals.segment_bytes
        self.base = journals.base
        self.remove_experiment = journals.remove_experiment
        self.open_blob = uploads.open

        query = self._query = Query(self.documents, changes.reader, Past(ingest))
        self.at = query.at
        self.history = Histories(self.documents, changes.reader, ingest).history
        self.projects = query.projects
        self.experiments = query.experiments
        self.experiment = query.experiment
        self.get_parameters = query.get_parameters
        self.logs = query.logs
        self.metrics = query.metrics
        self.metric_stats = query.metric_stats
        self.metric_page = query.metric_page
        self.series = query.series
        self.drawn = query.drawn
        self.list_files = query.list_files
        self.file_record = query.file_record

        self.indexes = RunIndexes(self.documents, changes.reader, data / "index", shared=self.stores.shared)
        self._listeners.append(self.indexes.changed)
        self.quota = quota

        writer = ServerWriter(ingest)
        self.end_quiet = writer.end_quiet
        writes = Writes(writer, self.documents, self.objects, quota)
        self.upsert_experiment = writes.upsert_experiment
        self.update_experiment = writes.update_experiment
        self.add_logs = writes.add_logs
        self.set_parameters = writes.set_parameters
        self.append_points = writes.append_points
        self.add_file = writes.add_file
        self.update_file = writes.update_file
        self.delete_file = writes.delete_file

        tokens = Tokens(self.documents)
        self.create_token = tokens.create_token
        self.find_token = tokens.find_token
        self.list_tokens = tokens.list_tokens
        self.revoke_token = tokens.revoke_token

    def close(self) -> None:
        """Close the stores and unlock the data folder. No other call may be running."""
        self.archiver.close()
        self.indexes.close()
        self.stores.close()
        release_data(self._lock)

    def bring_up_to_date(self) -> int:
        """Fold anew what another version of this code has made; return how many experiments. May take long.

        Raises StoreRefused if stored bytes are damaged.
        """
        return refold_all(self._ingest)

    # -- replication -------------------------------------------------------------------------------------------------

    def append_segment(
        self,
        ns: str,
        journal: str,
        file: str,
        offset: int,
        data: bytes,
        damaged: Sequence[Range] = (),
        without: Sequence[str] = (),
    ) -> Appended:
        """Take bytes of a segment from `offset` on; durable and folded on return.

        Raises Refused (see `Ingest.append`).
        """
        return self._ingest.append(ns, journal, file, offset, data, damaged, without)

    def deaths(self, ns: str, journal: str, deaths: list[dict[str, Any]]) -> dict[str, int]:
        """Fold deaths of writers that observers noted; return {"deaths": how many writers of the journal are dead}."""
        return {"deaths": self._ingest.deaths(ns, journal, deaths)}

    def blob_state(self, ns: str, journal: str, name: str) -> BlobState:
        """Return how many bytes of a blob are here."""
        return self._uploads.state(ns, journal, name)

    def append_blob(
        self, ns: str, journal: str, name: str, offset: int, size: int, data: bytes, *, body: bool
    ) -> BlobState:
        """Take bytes of a blob from `offset` on; durable on return, and verified once all `size` bytes are here."""
        self._changes.require_writable()
        return self._uploads.append(ns, journal, name, offset, size, data, body=body)

    def append_blobs(self, ns: str, journal: str, items: Sequence[tuple[str, bytes]]) -> dict[str, list[str]]:
        """Take the whole contents of small files; return {"complete": names that need not be sent any more}."""
        self._changes.require_writable()
        return {"complete": self._uploads.append_many(ns, journal, items)}

    @property
    def conflicts(self) -> int:
        """How often a client sent bytes that differ from stored ones, since the start."""
        return self._ingest.conflicts

    # -- files -------------------------------------------------------------------------------------------------------

    def open_file(
        self, ns: str, experiment: str, file_id: str, start: int, end: int | None
    ) -> tuple[dict[str, Any], Iterator[bytes], int]:
        """Return a file's record, its bytes [start, end) in pieces, and its size in bytes.

        Raises Refused: 409 if the content has not arrived yet, 404 if the file is unknown, deleted or replaced.
        """
        record = self._query.file_record(ns, experiment, file_id)
        if record.get("pending"):
            raise Refused(409, "pending", "the content of this file has not arrived yet")
        if record["deletedAt"] is not None:
            raise Refused(404, UNKNOWN, "this file was deleted or replaced")
        pieces, size = self._uploads.open(ns, experiment, self._query.blob_of(ns, experiment, file_id), start, end)
        return record, pieces, size

    def link_file(self, ns: str, experiment: str, record: dict[str, Any], seconds: int) -> str | None:
        """Return a URL at which anybody may download a file for so many seconds; None if the object store has none.

        Raises Refused (404).
        """
        name = self._query.blob_of(ns, experiment, record["id"])
        return self._uploads.link(ns, experiment, name, record["filename"], seconds)

    def storage(self, ns: str) -> dict[str, Any]:
        """Return what a namespace keeps: bytes of each project, of all together, and its quota."""
        projects = [
            {"name": name, **stored, "freeableBytes": 0} for name, stored in sorted(self._query.stored(ns).items())
        ]
        used, limit = self.quota.used(ns), self.quota.limit(ns)
        return {
            "projects": projects,
            "totalBytes": used,
            "uploader": None,
            "parked": [],
            "lastVerify": None,
            "quota": {"usedBytes": used, "limitBytes": limit} if limit else None,
        }

    # -- changes and health ------------------------------------------------------------------------------------------

    def on_change(self, callback: Changed) -> None:
        """Call `callback(ns, experiment, events)` after each commit, in its thread; after a removal with None."""
        with self._guard:
            self._listeners.append(callback)

    def _changed(self, ns: str, experiment: str, events: int | None) -> None:
        with self._guard:
            listeners = list(self._listeners)
        for listener in listeners:
            try:
                listener(ns, experiment, events)
            except RuntimeError:
                # The event loop that it wakes has ended. The change is committed all the same.
                log.exception("a listener could not be notified of a change")

    def mend(self) -> int:
        """Repair what crashed servers have left in the documents; return how many things it was."""
        return self.documents.mend()

    def events(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Return `news_of` experiments given as (namespace, id), as any server has committed them."""
        with self.documents.view() as view:
            return {key: events for key, (_, events) in view.events(keys).items()}

    def health(self) -> dict[str, str]:
        """Return {"database": ..., "storage": ...}: `connected`, or what is wrong; also under what is used."""
        database, storage = _state_of(self.documents), _state_of(self.objects)
        named = {"mongodb": database} if self._settings.mongodb_uri is not None else {}
        named |= {"s3": storage} if self._settings.s3 is not None else {}
        return {"database": database, "storage": storage, **named}


def _state_of(store: Documents | Objects) -> str:
    try:
        store.check()
    except StoreTrouble as error:
        return f"unavailable: {error}"
    return "connected"


def _drop_old(staging: Path) -> None:
    """Remove files that arrived by REST when a server was killed: none takes a day to arrive."""
    for path in staging.iterdir():
        if path.stat().st_mtime < time() - 86_400:
            path.unlink(missing_ok=True)


def lock_data(data: Path) -> BaseFileLock:
    """Lock a data folder for a server alone. Raises StoreRefused if another one has it."""
    import filelock

    lock = filelock.FileLock(data / _LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise StoreRefused(
            f"another server uses {data}", hint="end it first, or give this one a --data folder of its own"
        ) from None
    return lock


def release_data(lock: BaseFileLock | None) -> None:
    """Unlock a data folder."""
    if lock is not None:
        with contextlib.suppress(OSError):
            lock.release()
