"""Uploads of blobs: staged piece by piece, verified, then stored as objects.

A file's content goes through four places. Killed after any of these steps, the server goes on from there, this one or
another:

    parts: append      pieces, durable                        the uploader asks for the length, and goes on from it
    parts: finish      all bytes are here: SHA-256 of them    an empty piece is enough to go on
    objects            the parts become the object            no row yet: `finish` again finds the object
    documents          the row that makes it visible          complete

So a row never names a content that is not whole. It may still name one that was lost (objects restored from an older
backup); that is why each row is compared with the size of its object before it is believed, and the uploader sends
such a content again.

A file's event may be replaced or deleted while its content is under way. So whether the content is wanted is asked
twice: before the bytes are taken, and after the row was stored. Whoever releases a file looks for its row after that is
committed; so one of the two sees the other, and the row goes.

Bodies of events belong to no experiment, because they come before the event that names them; files belong to the
experiment.

Memory: a request's body, and one piece while hashing. No lease is held.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import time
from typing import Final

from ...core.limits import MAX_FILE_BYTES
from ...core.names import file_id
from ...core.protocol import DIGEST, GAP, MALFORMED, NO_EVENT, UNKNOWN, BlobState, Refused
from ...core.state import File, State
from ...disk.durable import fail_point
from ...journal.segment import parse_blob
from ..stores import BlobRow, Gap, JournalClaim, View
from ..stores import Uploads as Parts
from .changes import Changes
from .contents import Contents, one_part, steady

STAGED_S: Final = 30 * 86_400
"""An upload that was not continued for this long begins anew."""


def file_key(ns: str, project: str, experiment: str, identity: str, filename: str) -> str:
    """Return the key of the object that holds a file's content."""
    return f"files/{one_part(ns)}/{project}/{experiment}/{identity}/{filename}"


def body_key(ns: str, name: str) -> str:
    """Return the key of the object that holds an event's body."""
    return f"bodies/{one_part(ns)}/{name}"


class Uploads:
    """Uploads of blobs. Any thread may call; pieces of one blob are taken one at a time."""

    def __init__(self, changes: Changes, parts: Parts) -> None:
        self._changes = changes
        self._documents = changes.documents
        self._objects = changes.objects
        self._parts = parts

    def sweep(self) -> int:
        """Forget uploads that nobody has continued for STAGED_S; return how many."""
        return self._parts.sweep(time() - STAGED_S)

    # -- what is here ------------------------------------------------------------------------------------------------

    @steady
    def state(self, ns: str, journal: str, name: str) -> BlobState:
        """Return how many bytes of a blob are here.

        One whose content the namespace has already is linked, and complete.

        One that nobody needs any more (its file was deleted, its writer removed) is called complete too, so that
        nobody sends it.
        """
        with self._documents.view() as view:
            look = self._look(view, ns, journal)
            stored = self._row(view, ns, look, name)
            file = look.file(name)
            # The first 64 characters of a blob's name are its SHA-256. Only within the namespace: whether others have
            # a content is not for this user to know.
            same = view.same_content(ns, name[:64], file.size_bytes) if file is not None and stored is None else []
            removed = look.is_removed(name)
        if stored is not None:
            return BlobState(length=stored.size, size=stored.size, complete=True)
        if removed:
            return BlobState(length=0, size=None, complete=True)
        if file is not None and not file.live:
            return BlobState(length=file.size_bytes, size=file.size_bytes, complete=True)
        # Where it does not fit, its bytes are asked for, and refused with the reason.
        fits = bool(same) and file is not None and self._changes.quota.has_room(ns, file.size_bytes)
        if file is not None and fits and self._linked(same, look.key(ns, file)):
            self._note(ns, journal, BlobRow(name, name[:64], file.size_bytes, look.key(ns, file), look.experiment))
            return BlobState(length=file.size_bytes, size=file.size_bytes, complete=True)
        size = file.size_bytes if file is not None else None
        return BlobState(length=self._parts.length(_part(ns, name)), size=size, complete=False)

    def _linked(self, same: list[BlobRow], key: str) -> bool:
        """Copy one of these equal contents to `key`; False if none is left (any may be lost with an older backup)."""
        for row in same:
            if self._objects.size(row.key) == row.size:
                with contextlib.suppress(FileNotFoundError):
                    self._objects.copy(row.key, key)
                    return True
        return False

    def _look(self, view: View, ns: str, journal: str) -> _Look:
        """Return what a journal's experiment says of blobs."""
        claim = view.journal(ns, journal)
        row = view.experiment(ns, claim.experiment) if claim is not None else None
        if claim is None or row is None:
            return _Look(claim, None, State())
        contents = self._changes.reader.contents(view, ns, row)
        return _Look(claim, contents, contents.state())

    def _row(self, view: View, ns: str, look: _Look, name: str) -> BlobRow | None:
        """Return the row of a complete blob; None also where its object was lost (an older backup)."""
        row = view.blob(ns, "", name)
        if row is None and look.experiment:
            row = view.blob(ns, look.experiment, name)
        return row if row is not None and self._objects.size(row.key) == row.size else None

    # -- bringing it -------------------------------------------------------------------------------------------------

    def append(self, ns: str, journal: str, name: str, offset: int, size: int, data: bytes, *, body: bool) -> BlobState:
        """Take bytes [offset, offset + len(data)) of a blob of `size` bytes; durable on return.

        Once all bytes are here, their SHA-256 is checked and the blob becomes an object. A file whose event is not here
        is refused (NO_EVENT); the `body` of an event comes before its event. Raises Refused, StoreTrouble.
        """
        if parse_blob(name) is None or offset + len(data) > size or size > MAX_FILE_BYTES:
            raise Refused(422, MALFORMED, "that is not a part of a blob")
        row = self._wanted(ns, journal, name, size, body=body)
        if not isinstance(row, BlobRow):
            return row
        # All of it, and not this piece only: what cannot be kept in the end is not begun.
        self._changes.quota.check(ns, size)
        part = _part(ns, name)
        try:
            length = self._parts.append(part, offset, data)
            if length < size:
                return BlobState(length=length, size=size, complete=False)
            fail_point("blob-staged")
            is_right = self._parts.finish(part, size, name[:64], row.key)
        except Gap as error:
            raise Refused(409, GAP, f"{error.length} bytes are here, not {offset}", length=error.length) from None
        if not is_right:
            raise Refused(422, DIGEST, "the content is not what its name says; it was dropped, begin again at 0")
        fail_point("blob-stored")
        self._note(ns, journal, row)
        return BlobState(length=size, size=size, complete=True)

    @steady
    def _wanted(self, ns: str, journal: str, name: str, size: int, *, body: bool) -> BlobRow | BlobState:
        """Return the row that a blob will have; or an answer, where no bytes of it are needed. Raises Refused."""
        with self._documents.view() as view:
            look = self._look(view, ns, journal)
            stored = self._row(view, ns, look, name)
            removed = look.is_removed(name)
            file = None if body else look.file(name)
        if stored is not None:
            return BlobState(length=stored.size, size=stored.size, complete=True)
        complete = BlobState(length=size, size=size, complete=True)
        if removed:
            return complete
        if body:
            return BlobRow(name, name[:64], size, body_key(ns, name), "")
        if file is None:
            raise Refused(409, NO_EVENT, "the event that names this file is not here yet")
        if not file.live:
            self._parts.drop(_part(ns, name))
            return complete
        if file.size_bytes != size:
            raise Refused(422, MALFORMED, f"the event says {file.size_bytes} bytes, not {size}")
        return BlobRow(name, name[:64], size, look.key(ns, file), look.experiment)

    @steady
    def append_many(self, ns: str, journal: str, items: Sequence[tuple[str, bytes]]) -> list[str]:
        """Take whole contents of files; return the names that need not be sent any more. Durable on return.

        Left out of the answer: a blob whose event is not here, or whose bytes do not match its name. Raises Refused.

        For many small files: one synced put and one commit of rows for all, where each alone would cost several syncs.
        """
        rows: dict[str, BlobRow] = {}
        contents: list[tuple[str, bytes]] = []
        done: list[str] = []
        with self._documents.view() as view:
            look = self._look(view, ns, journal)
            if look.contents is None:
                raise Refused(404, UNKNOWN, "this journal is not here")
            for name, data in items:
                file = look.file(name)
                if (
                    self._row(view, ns, look, name) is not None
                    or look.is_removed(name)
                    or (file is not None and not file.live)
                ):
                    done.append(name)
                    continue
                if file is None or name in rows or len(data) != file.size_bytes:
                    continue
                if hashlib.sha256(data).hexdigest() == name[:64]:
                    rows[name] = BlobRow(name, name[:64], file.size_bytes, look.key(ns, file), look.experiment)
                    contents.append((rows[name].key, data))
        self._changes.quota.check(ns, sum(row.size for row in rows.values()))
        self._objects.put_contents(contents)
        fail_point("blob-stored")
        self._documents.put_blobs(ns, list(rows.values()))
        self._changes.quota.took(ns, sum(row.size for row in rows.values()))
        self._check_wanted(ns, journal, list(rows.values()))
        return [*done, *rows]

    def _note(self, ns: str, journal: str, row: BlobRow) -> None:
        """Record that a content is complete. An event's body is always wanted, the content of a file may not be."""
        self._documents.put_blobs(ns, [row])
        self._changes.quota.took(ns, row.size)
        fail_point("blob-noted")
        if row.experiment:
            self._check_wanted(ns, journal, [row])

    @steady
    def _check_wanted(self, ns: str, journal: str, rows: list[BlobRow]) -> None:
        """Drop contents again whose files were released while they came."""
        with self._documents.view() as view:
            look = self._look(view, ns, journal)
            files = {row.name: look.file(row.name) for row in rows}
        dropped = [name for name, file in files.items() if file is None or not file.live]
        if dropped:
            self._changes.drop_blobs(ns, rows[0].experiment, dropped)

    # -- reading it --------------------------------------------------------------------------------------------------

    def open(self, ns: str, experiment: str, name: str, start: int, end: int | None) -> tuple[Iterator[bytes], int]:
        """Return the bytes [start, end) of a complete blob in pieces, and its size. Raises Refused (404)."""
        row = self._complete(ns, experiment, name)
        try:
            return self._objects.open(row.key, start, end), row.size
        except FileNotFoundError:
            raise Refused(404, UNKNOWN, "this content was lost here; the uploader sends it again") from None

    def link(self, ns: str, experiment: str, name: str, filename: str, seconds: int) -> str | None:
        """Return a URL of a complete blob for so many seconds; None if the store has none. Raises Refused (404)."""
        return self._objects.presigned(self._complete(ns, experiment, name).key, filename, seconds)

    def _complete(self, ns: str, experiment: str, name: str) -> BlobRow:
        """Return the row of a complete blob. Raises Refused (404)."""
        with self._documents.view() as view:
            row = view.blob(ns, experiment, name)
            if row is None and view.experiment(ns, experiment) is not None:
                row = view.blob(ns, "", name)
        if row is None:
            raise Refused(404, UNKNOWN, "this content is not here")
        return row


@dataclass(frozen=True)
class _Look:
    """What the experiment of a journal says of blobs, at one version; no `contents`: nothing of it is here yet."""

    claim: JournalClaim | None
    contents: Contents | None
    folded: State

    @property
    def experiment(self) -> str:
        """The id of the experiment; empty for a journal that is not here."""
        return self.claim.experiment if self.claim is not None else ""

    def file(self, name: str) -> File | None:
        """Return the file to which a blob belongs; None if its event is not here."""
        parsed = parse_blob(name)
        if parsed is None:
            return None
        file = self.folded.files.get(file_id(bytes.fromhex(parsed[1]), parsed[2]))
        return file if file is not None and file.blob == name else None

    def is_removed(self, name: str) -> bool:
        """True if the writer of a blob is hidden since a removal: nobody will ask for its content."""
        parsed = parse_blob(name)
        return parsed is not None and self.contents is not None and self.contents.is_removed(parsed[1])

    def key(self, ns: str, file: File) -> str:
        """Return the key of the object that holds a file's content."""
        return file_key(ns, self.folded.project, self.experiment, file.id, file.filename)


def _part(ns: str, name: str) -> str:
    """Return the name under which the pieces of a blob are staged. The namespace may hold any character: its hash."""
    return f"{hashlib.sha256(ns.encode()).hexdigest()[:16]}-{name}"
