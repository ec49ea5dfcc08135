"""Uploads of blobs: staged piece by piece, verified, then stored as objects.

A file's content goes through four places. Killed after any of these steps, the server goes on from there:

    staging/<ns>-<blob>.part   pieces, appended and synced       the uploader asks for the length, and goes on from it
    verified                   SHA-256 of the whole              all bytes are here: an empty piece is enough
    objects: put               the part becomes the object       no row yet: the content is sent again, and put over it
    documents: put_blob        the row that makes it visible     complete

So a row never names a content that is not whole. It may still name one that was lost (objects restored from an older
backup); that is why each row is compared with the size of its object before it is believed, and the uploader sends
such a content again.

A file's event may be replaced or deleted while its content is under way. So whether the content is wanted is asked
twice: before the bytes are taken, and in the transaction that makes it visible.

Bodies of events belong to no experiment, because they come before the event that names them; files belong to the
experiment.

Memory: a request's body, and one piece while hashing. The lock of a blob is held while its pieces are written and it
is verified; no transaction is open then but the last, short one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import time
from typing import Final
from zlib import crc32

from ...core.limits import MAX_FILE_BYTES
from ...core.names import file_id
from ...core.protocol import DIGEST, GAP, MALFORMED, NO_EVENT, UNKNOWN, BlobState, Refused
from ...core.state import File, State
from ...disk.durable import data_sync, fail_point, sync_folder, write_all
from ...journal.segment import parse_blob
from ..stores import BlobRow, JournalRow, Objects, Read, StoreTrouble
from .ingest import Ingest, decode_state

_LOCKS: Final = 256
_STAGED_S: Final = 30 * 86_400
"""An upload that was not continued for this long begins anew."""
_PIECE_BYTES: Final = 1 << 20


def file_key(ns: str, project: str, experiment: str, identity: str, filename: str) -> str:
    """Return the key of the object that holds a file's content."""
    return f"files/{_one_part(ns)}/{project}/{experiment}/{identity}/{filename}"


def body_key(ns: str, name: str) -> str:
    """Return the key of the object that holds an event's body."""
    return f"bodies/{_one_part(ns)}/{name}"


def _files_of(state: State, names: Iterable[str]) -> dict[str, File]:
    """Return the files to which these blobs belong, by blob name; unknown ones are left out."""
    files = {}
    for name in names:
        parsed = parse_blob(name)
        file = state.files.get(file_id(bytes.fromhex(parsed[1]), parsed[2])) if parsed is not None else None
        if file is not None and file.blob == name:
            files[name] = file
    return files


def _one_part(ns: str) -> str:
    """Return a namespace as one part of a key, whatever the user is called."""
    return ns.replace("%", "%25").replace("/", "%2F") or "%"


def _sweep(staging: Path) -> None:
    """Remove staged files that nobody will continue: uploads by REST that a crash ended, and old parts."""
    for path in staging.iterdir():
        if path.suffix != ".part" or path.stat().st_mtime < time() - _STAGED_S:
            path.unlink()


class Uploads:
    """Uploads of blobs. Any thread may call; pieces of one blob are taken one at a time."""

    def __init__(self, ingest: Ingest, objects: Objects, staging: Path) -> None:
        self._ingest = ingest
        self._objects = objects
        self.staging = staging
        staging.mkdir(parents=True, exist_ok=True)
        # Parts that were acknowledged must be found after a power cut, so the folder's own entry must be on disk.
        sync_folder(staging.parent)
        _sweep(staging)
        # A blob that is being verified holds up others that share its lock; with this many locks that is rare.
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    # -- what is here ------------------------------------------------------------------------------------------------

    def state(self, ns: str, journal: str, name: str) -> BlobState:
        """Return how many bytes of a blob are here.

        One whose content the namespace has already is linked, and complete.

        One that nobody needs any more (its file was deleted, its writer removed) is called complete too, so that
        nobody sends it.
        """
        with self._ingest.documents.read() as tx:
            stored = self._row(tx, ns, journal, name)
            if stored is not None:
                return BlobState(length=stored.size, size=stored.size, complete=True)
            if self._is_removed(tx, ns, journal, name):
                return BlobState(length=0, size=None, complete=True)
            file = self._file(tx, ns, journal, name)
            # The first 64 characters of a blob's name are its SHA-256. Only within the namespace: whether others have
            # a content is not for this user to know.
            same = tx.same_content(ns, name[:64], file[0].size_bytes) if file is not None else []
        if file is not None and not file[0].live:
            return BlobState(length=file[0].size_bytes, size=file[0].size_bytes, complete=True)
        if file is not None and self._linked(same, file[1]):
            size = file[0].size_bytes
            self._note(ns, file[2], name, size, file[1])
            return BlobState(length=size, size=size, complete=True)
        part = self._part(ns, name)
        length = part.stat().st_size if part.exists() else 0
        return BlobState(length=length, size=file[0].size_bytes if file is not None else None, complete=False)

    def _linked(self, same: list[BlobRow], key: str) -> bool:
        """Copy one of these equal contents to `key`; False if none is left (any may be lost with an older backup)."""
        for row in same:
            if self._objects.size(row.key) == row.size:
                with contextlib.suppress(FileNotFoundError):
                    self._objects.copy(row.key, key)
                    return True
        return False

    def _row(self, tx: Read, ns: str, journal: str, name: str) -> BlobRow | None:
        """Return the row of a complete blob; None also where its object was lost (an older backup)."""
        row = tx.blob(ns, "", name)
        journal_row = tx.journal(ns, journal)
        if row is None and journal_row is not None:
            row = tx.blob(ns, journal_row.experiment, name)
        return row if row is not None and self._objects.size(row.key) == row.size else None

    def _is_removed(self, tx: Read, ns: str, journal: str, name: str) -> bool:
        """True if the writer of a blob is hidden since a removal: nobody will ask for its content."""
        parsed, journal_row = parse_blob(name), tx.journal(ns, journal)
        row = tx.experiment(ns, journal_row.experiment) if journal_row is not None else None
        return row is not None and parsed is not None and parsed[1] in row.removed_writers

    def _file(self, tx: Read, ns: str, journal: str, name: str) -> tuple[File, str, JournalRow] | None:
        """Return (file, key of its object, row of its journal) of a blob; None if the file's event is not here."""
        parsed, journal_row = parse_blob(name), tx.journal(ns, journal)
        if parsed is None or journal_row is None:
            return None
        row = tx.experiment(ns, journal_row.experiment)
        if row is None:
            return None
        state = decode_state(row)
        file = state.files.get(file_id(bytes.fromhex(parsed[1]), parsed[2]))
        if file is None or file.blob != name:
            return None
        return file, file_key(ns, state.project, journal_row.experiment, file.id, file.filename), journal_row

    # -- bringing it -------------------------------------------------------------------------------------------------

    def append(self, ns: str, journal: str, name: str, offset: int, size: int, data: bytes, *, body: bool) -> BlobState:
        """Take bytes [offset, offset + len(data)) of a blob of `size` bytes; durable on return.

        Once all bytes are here, their SHA-256 is checked and the blob becomes an object. A file whose event is not here
        is refused (NO_EVENT); the `body` of an event comes before its event. Raises Refused, StoreTrouble.
        """
        if parse_blob(name) is None or offset + len(data) > size or size > MAX_FILE_BYTES:
            raise Refused(422, MALFORMED, "that is not a part of a blob")
        with self._ingest.documents.read() as tx:
            stored = self._row(tx, ns, journal, name)
            file = None if body else self._file(tx, ns, journal, name)
            removed = self._is_removed(tx, ns, journal, name)
        if stored is not None:
            return BlobState(length=stored.size, size=stored.size, complete=True)
        if removed:
            return BlobState(length=size, size=size, complete=True)
        if not body:
            if file is None:
                raise Refused(409, NO_EVENT, "the event that names this file is not here yet")
            if not file[0].live:
                self._part(ns, name).unlink(missing_ok=True)
                return BlobState(length=size, size=size, complete=True)
            if file[0].size_bytes != size:
                raise Refused(422, MALFORMED, f"the event says {file[0].size_bytes} bytes, not {size}")
        part = self._part(ns, name)
        # Two uploaders may send the same blob at the same time; without the lock, one could hash while the other
        # writes.
        with self._lock_of(part):
            length = self._write(part, offset, data)
            if length < size:
                return BlobState(length=length, size=size, complete=False)
            # Reads all of it again, from the file and not from memory: so it is what is stored that is checked.
            self._verify(part, name, size)
            fail_point("blob-staged")
            key = body_key(ns, name) if file is None else file[1]
            self._objects.put(key, part)
            fail_point("blob-stored")
            self._note(ns, None if file is None else file[2], name, size, key)
        return BlobState(length=size, size=size, complete=True)

    def append_many(self, ns: str, journal: str, items: Sequence[tuple[str, bytes]]) -> list[str]:
        """Take whole contents of files; return the names that need not be sent any more. Durable on return.

        Left out of the answer: a blob whose event is not here, or whose bytes do not match its name. Raises Refused.

        For many small files: one synced put and one transaction for all, where each alone would cost several syncs.
        """
        with self._ingest.documents.read() as tx:
            journal_row, state = self._of_journal(tx, ns, journal)
            here = {name for name, _ in items if self._row(tx, ns, journal, name) is not None}
            here |= {name for name, _ in items if self._is_removed(tx, ns, journal, name)}
        files = _files_of(state, [name for name, _ in items])
        done = [name for name, _ in items if name in here or (name in files and not files[name].live)]
        placed: dict[str, str] = {}
        staged: list[tuple[str, Path]] = []
        for name, data in items:
            if name in done or name not in files or name in placed:
                continue
            file = files[name]
            if len(data) != file.size_bytes or hashlib.sha256(data).hexdigest() != name[:64]:
                continue
            placed[name] = file_key(ns, state.project, journal_row.experiment, file.id, file.filename)
            staged.append((placed[name], self._staged(ns, name, data)))
        self._objects.put_many(staged)
        fail_point("blob-stored")
        dropped = []
        with self._ingest.documents.write() as tx:
            # Once more, as of now: events may have come since the first look.
            _, state = self._of_journal(tx, ns, journal)
            files = _files_of(state, list(placed))
            for name, key in placed.items():
                if name in files and files[name].live:
                    tx.put_blob(ns, BlobRow(name, name[:64], files[name].size_bytes, key, journal_row.experiment))
                else:
                    # The file was deleted or replaced while its content was being stored.
                    dropped.append(key)
        # After the commit, when no row can name them.
        for key in dropped:
            self._objects.delete(key)
        return [*done, *placed]

    def _of_journal(self, tx: Read, ns: str, journal: str) -> tuple[JournalRow, State]:
        """Return the row of a journal and the state of its experiment. Raises Refused (404)."""
        journal_row = tx.journal(ns, journal)
        row = tx.experiment(ns, journal_row.experiment) if journal_row is not None else None
        if journal_row is None or row is None:
            raise Refused(404, UNKNOWN, "this journal is not here")
        return journal_row, decode_state(row)

    def _staged(self, ns: str, name: str, data: bytes) -> Path:
        """Write a whole content to a file of its own, and return it. Not synced: the store syncs what it is given."""
        part = self._part(ns, f"{name}.{os.urandom(8).hex()}")
        try:
            part.write_bytes(data)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StoreTrouble(f"the upload could not be stored: {error}", hint="nothing was acknowledged") from error
        return part

    def _write(self, part: Path, offset: int, data: bytes) -> int:
        """Append what is new of a piece, synced; return the length then. Raises Refused (GAP), StoreTrouble.

        Bytes before the length are not compared: the digest of the whole decides.
        """
        try:
            fd = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
            try:
                length = os.fstat(fd).st_size
                if offset > length:
                    raise Refused(409, GAP, f"{length} bytes are here, not {offset}", length=length)
                fresh = data[length - offset :]
                if fresh:
                    write_all(fd, fresh, length)
                    data_sync(fd)
                    # The first bytes made the file: its entry must be on disk as well.
                    if not length:
                        sync_folder(self.staging)
                return max(length, offset + len(data))
            finally:
                os.close(fd)
        except OSError as error:
            raise StoreTrouble(f"the upload could not be stored: {error}", hint="nothing was acknowledged") from error

    def _verify(self, part: Path, name: str, size: int) -> None:
        """Check length and SHA-256 of a staged content; drop it if they are wrong. Raises Refused (DIGEST)."""
        digest = hashlib.sha256()
        with part.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
        if part.stat().st_size != size or digest.hexdigest() != name[:64]:
            part.unlink()
            raise Refused(422, DIGEST, "the content is not what its name says; it was dropped, begin again at 0")

    def _note(self, ns: str, journal: JournalRow | None, name: str, size: int, key: str) -> None:
        """Record that a content is complete, or delete it if its file was released meanwhile.

        `journal` is None for the body of an event, which is always wanted.
        """
        with self._ingest.documents.write() as tx:
            file = self._file(tx, ns, journal.id, name) if journal is not None else None
            wanted = journal is None or (file is not None and file[0].live)
            if wanted:
                experiment = journal.experiment if journal is not None else ""
                tx.put_blob(ns, BlobRow(name, name[:64], size, key, experiment))
        if not wanted:
            self._objects.delete(key)

    def _part(self, ns: str, name: str) -> Path:
        """Return where the pieces of a blob are staged. The namespace is hashed, because it may hold any character."""
        return self.staging / f"{hashlib.sha256(ns.encode()).hexdigest()[:16]}-{name}.part"

    def _lock_of(self, part: Path) -> threading.Lock:
        """Return the lock for a staged file; always the same one."""
        return self._locks[crc32(part.name.encode()) % _LOCKS]

    # -- reading it --------------------------------------------------------------------------------------------------

    def open(self, ns: str, experiment: str, name: str, start: int, end: int | None) -> tuple[Iterator[bytes], int]:
        """Return the bytes [start, end) of a complete blob in pieces, and its size. Raises Refused (404)."""
        with self._ingest.documents.read() as tx:
            row = tx.blob(ns, experiment, name)
            if row is None and tx.experiment(ns, experiment) is not None:
                row = tx.blob(ns, "", name)
        if row is None:
            raise Refused(404, UNKNOWN, "this content is not here")
        try:
            return self._objects.open(row.key, start, end), row.size
        except FileNotFoundError:
            raise Refused(404, UNKNOWN, "this content was lost here; the uploader sends it again") from None
