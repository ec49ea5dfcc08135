"""The server without HTTP: stores, ingest, writes and reads, wired together behind one object."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...core.protocol import UNKNOWN, Appended, BlobState, Refused
from ...core.ranges import Range
from ...disk.durable import sync_folder
from ..stores import Documents, Objects, StoreRefused, StoreTrouble
from ..stores.disk import DiskObjects
from ..stores.sqlite import SqliteDocuments
from .ingest import Changed, Ingest
from .journals import Copies
from .queries import Query
from .refold import refold_all
from .server_writer import Scribe
from .tokens import DATABASE, Tokens, make_data, open_tokens
from .uploads import Contents
from .writes import Writes

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["Server", "open_tokens"]

log = logging.getLogger("ml_dash.server")
_LOCK: Final = "server.lock"


class Server:
    """One server on one data folder. `ns` is a namespace, ids are hex. Any thread may call.

    Calls raise Refused for what the client is to be told, InvalidInput and WriteProtected as the library does, and
    StoreTrouble or OSError when the disk refuses; nothing is changed then.
    """

    def __init__(self, data: Path, *, documents: Documents | None = None, objects: Objects | None = None) -> None:
        """Open the folder, making it if need be. Raises StoreRefused if it is in use, damaged or of a newer version."""
        make_data(data)
        sync_folder(data.parent)
        self._lock = _lock(data)
        try:
            self.documents = documents if documents is not None else SqliteDocuments(data / DATABASE)
            self.objects = objects if objects is not None else DiskObjects(data / "objects")
            self._guard = threading.Lock()
            self._listeners: list[Changed] = []
            ingest = self._ingest = Ingest(self.documents, self.objects, self._changed)
            contents = self._contents = Contents(ingest, self.objects, data / "staging")
            self.staging = contents.staging
            refolded = refold_all(ingest)
        except BaseException:
            if hasattr(self, "documents"):
                self.documents.close()
            _release(self._lock)
            raise
        if refolded:
            log.info("folded %d experiments anew", refolded)

        copies = Copies(ingest, self.documents, self.objects)
        self.journal = copies.journal
        self.digests = copies.digests
        self.find_experiment = copies.find_experiment
        self.order = copies.order
        self.segment_bytes = copies.segment_bytes
        self.base = copies.base
        self.remove_experiment = copies.remove_experiment
        self.open_blob = contents.open

        query = self._query = Query(self.documents)
        self.projects = query.projects
        self.experiments = query.experiments
        self.experiment = query.experiment
        self.get_parameters = query.get_parameters
        self.logs = query.logs
        self.metrics = query.metrics
        self.metric_stats = query.metric_stats
        self.metric_page = query.metric_page
        self.series = query.series
        self.list_files = query.list_files
        self.file_record = query.file_record

        scribe = Scribe(ingest)
        self.end_quiet = scribe.end_quiet
        writes = Writes(scribe, self.objects)
        self.upsert_experiment = writes.upsert_experiment
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
        """Let go of the data folder. Nothing may be under way."""
        self.documents.close()
        _release(self._lock)

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
        """Bytes of a segment from `offset`: durable and folded on return."""
        return self._ingest.append(ns, journal, file, offset, data, damaged, without)

    def deaths(self, ns: str, journal: str, deaths: list[dict[str, Any]]) -> dict[str, int]:
        """What observers noted of writers that died."""
        return {"deaths": self._ingest.deaths(ns, journal, deaths)}

    def blob_state(self, ns: str, journal: str, name: str) -> BlobState:
        """How much of a blob is here."""
        return self._contents.state(ns, journal, name)

    def append_blob(
        self, ns: str, journal: str, name: str, offset: int, size: int, data: bytes, *, body: bool
    ) -> BlobState:
        """Bytes of a blob from `offset`; durable on return, and verified once all are here."""
        return self._contents.append(ns, journal, name, offset, size, data, body=body)

    def append_blobs(self, ns: str, journal: str, items: Sequence[tuple[str, bytes]]) -> dict[str, list[str]]:
        """Whole contents of small files, together: those that need not be sent any more."""
        return {"complete": self._contents.append_many(ns, journal, items)}

    @property
    def conflicts(self) -> int:
        """How often other bytes came for what is here, since the start."""
        return self._ingest.conflicts

    # -- files -------------------------------------------------------------------------------------------------------

    def open_file(
        self, ns: str, experiment: str, file_id: str, start: int, end: int | None
    ) -> tuple[dict[str, Any], Iterator[bytes], int]:
        """A file's record, its bytes [start, end) in pieces, and its size in bytes."""
        record = self._query.file_record(ns, experiment, file_id)
        if record.get("pending"):
            raise Refused(409, "pending", "the content of this file has not arrived yet")
        if record["deletedAt"] is not None:
            raise Refused(404, UNKNOWN, "this file was deleted or replaced")
        pieces, size = self._contents.open(ns, experiment, self._query.blob_of(ns, experiment, file_id), start, end)
        return record, pieces, size

    # -- changes and health ------------------------------------------------------------------------------------------

    def on_change(self, callback: Changed) -> None:
        """Call `callback(ns, experiment, events)` after each commit, in its thread; None for one that was removed."""
        with self._guard:
            self._listeners.append(callback)

    def _changed(self, ns: str, experiment: str, events: int | None) -> None:
        with self._guard:
            listeners = list(self._listeners)
        for listener in listeners:
            try:
                listener(ns, experiment, events)
            except RuntimeError:
                # The loop it wakes has ended. What was committed is.
                log.exception("a listener could not be told of a change")

    def health(self) -> dict[str, str]:
        """`connected`, or what is wrong, of the database and the storage."""
        return {"database": _state_of(self.documents), "storage": _state_of(self.objects)}


def _state_of(store: Documents | Objects) -> str:
    try:
        store.check()
    except StoreTrouble as error:
        return f"unavailable: {error}"
    return "connected"


def _lock(data: Path) -> BaseFileLock:
    import filelock

    lock = filelock.FileLock(data / _LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise StoreRefused(
            f"another server uses {data}", hint="end it first, or give this one a --data folder of its own"
        ) from None
    return lock


def _release(lock: BaseFileLock) -> None:
    with contextlib.suppress(OSError):
        lock.release()
