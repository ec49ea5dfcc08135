"""File contents by digest: put, open, check, list.

A blob is copied once (as a reflink where the file system can), hashed as it is stored, synced, and only then given its
name. The user's own file is never hard-linked: a later edit of it would change what was recorded.

The steps of an added file, and what a crash after each leaves:

    copy to .<writer>-<random>.tmp     a temporary file, removed by `sweep` once its writer is gone
    fsync of the copy                  the same
    rename to its name                 a blob that no event names: it takes room, and is never shown
    fsync of blobs/                    the same, and the name survives a power cut
    frame of the event                 the file is added

The number of the event is in the name, so that each event has a file of its own: releasing one never takes the content
of another one, also if both are equal.

Memory is bounded by a block or two, whatever the size of the file. `store` may run in many threads at once; `publish`
runs inside the writer, and so does no more than a rename and the sync of a folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..core.events import blob_name
from ..core.limits import MAX_FILE_BYTES
from ..disk.durable import blocks, fail_point, sync_folder
from ..errors import InvalidValue
from .segment import BLOBS, parse_blob

# Bytes copied by one call, and the size up to which a second thread is not worth its start.
_BLOCK_BYTES: Final = 4 << 20
_HASH_BLOCK_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class Stored:
    """Content on disk under a temporary name: synced, but not part of the journal yet. `digest` is SHA-256 in hex."""

    temporary: Path
    digest: str
    size_bytes: int


def store(source: Path, journal: Path, writer: str = "") -> Stored:
    """Copy `source` into the journal's blobs, hashed and synced, under a temporary name of this writer.

    Raises InvalidValue if it is not a regular file or over 5 GB; OSError if the disk refuses. Nothing is left then.
    """
    fail_point("blob-temp")
    # O_NONBLOCK: opening a pipe would otherwise wait for somebody who writes to it. Regular files take no notice.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    reading = _open_source(source, flags)
    temporary = journal / BLOBS / f".{writer}-{os.urandom(8).hex()}.tmp"
    try:
        # Of the open file: the path may name another one by now.
        status = os.fstat(reading)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidValue(f"file {str(source)!r} is not a regular file; add regular files only")
        if status.st_size > MAX_FILE_BYTES:
            raise InvalidValue(f"file {str(source)!r} has {status.st_size:,} bytes; at most 5 GB can be added")
        digest, size = _copy_to(reading, temporary)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(reading)
    fail_point("blob-synced")
    return Stored(temporary, digest, size)


def _open_source(source: Path, flags: int) -> int:
    """Open the user's file.

    Raises InvalidValue: one that cannot be read is a wrong argument, not a trouble of our disk.
    """
    try:
        return os.open(source, flags)
    except FileNotFoundError:
        raise InvalidValue(f"file {str(source)!r} does not exist; nothing was recorded") from None
    except OSError as error:
        raise InvalidValue(f"file {str(source)!r} cannot be read: {error.strerror}; nothing was recorded") from error


def _copy_to(reading: int, temporary: Path) -> tuple[str, int]:
    """Copy an open file to a new one, hashed and synced; return (SHA-256 in hex, size in bytes).

    Raises OSError, InvalidValue.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    writing = os.open(temporary, flags, 0o644)
    try:
        result = _Copy(reading, writing).run()
        if hasattr(os, "fchmod"):
            # Read-only: the same content is hard-linked into `files/`, where users might edit it.
            os.fchmod(writing, 0o444)
        return result
    finally:
        os.close(writing)


class _Copy:
    """One copy: this thread copies and syncs, another one hashes what has been stored.

    Hashing the copy and not the source makes the digest true even if the source changes meanwhile. `_stored` and
    `_done` are shared, under `_progress`; `_digest` and `_error` belong to the hashing thread until it is joined.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._stored = 0
        self._done = False
        self._progress = threading.Condition()
        self._digest = hashlib.sha256()
        self._error: OSError | None = None

    def run(self) -> tuple[str, int]:
        """Copy, hash and sync; return (SHA-256 in hex, size in bytes). Raises OSError, InvalidValue."""
        # Copying and hashing side by side pays for large files. A small one is hashed from the block in hand.
        if os.fstat(self._reading).st_size <= _BLOCK_BYTES or not hasattr(os, "preadv"):
            self._copy_and_hash()
            os.fsync(self._writing)
            return self._digest.hexdigest(), self._stored
        hasher = threading.Thread(target=self._hash, name="ml-dash-hash", daemon=True)
        hasher.start()
        try:
            try:
                self._copy()
            finally:
                # Also after an error: the hashing thread waits for this, and is joined below.
                self._report(self._stored, done=True)
            os.fsync(self._writing)
        finally:
            hasher.join()
        if self._error is not None:
            raise self._error
        return self._digest.hexdigest(), self._stored

    def _copy_and_hash(self) -> None:
        """Copy and hash in this thread, block by block; what is hashed is what was written."""
        while block := os.read(self._reading, _BLOCK_BYTES):
            self._check_size(self._stored + len(block))
            self._digest.update(block)
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(self._writing, rest) :]
            self._stored += len(block)

    def _check_size(self, size: int) -> None:
        if size > MAX_FILE_BYTES:
            raise InvalidValue(f"the file grew beyond {MAX_FILE_BYTES:,} bytes while it was being copied")

    def _copy(self) -> None:
        in_kernel = hasattr(os, "copy_file_range")
        while True:
            # In each round: a file may grow while it is copied, without end.
            self._check_size(self._stored)
            if in_kernel:
                try:
                    # Copies in the kernel, or shares the blocks where the file system can (reflink): then nothing is
                    # copied at all.
                    count = os.copy_file_range(self._reading, self._writing, _BLOCK_BYTES)
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                        raise
                    # Nothing was copied by this call: go on at the same position, by hand.
                    in_kernel = False
                    continue
            else:
                block = os.read(self._reading, _BLOCK_BYTES)
                count = len(block)
                rest = memoryview(block)
                while rest:
                    rest = rest[os.write(self._writing, rest) :]
            if count == 0:
                return
            self._report(self._stored + count, done=False)

    def _report(self, stored: int, *, done: bool) -> None:
        """Tell the hashing thread how much is stored."""
        with self._progress:
            self._stored, self._done = stored, done
            self._progress.notify()

    def _hash(self) -> None:
        """Hash what is stored, as it comes, until the copy is done. An error is kept for the copying thread."""
        # Blocks small enough to stay in the processor's cache between reading and hashing.
        view = memoryview(bytearray(_HASH_BLOCK_BYTES))
        hashed = 0
        try:
            while True:
                with self._progress:
                    while not self._done and self._stored == hashed:
                        self._progress.wait()
                    # Read under the lock, used outside: it only grows.
                    stored = self._stored
                if stored == hashed:
                    return
                while hashed < stored:
                    count = os.preadv(self._writing, [view[: min(_HASH_BLOCK_BYTES, stored - hashed)]], hashed)
                    if not count:
                        raise OSError(errno.EIO, "the copy is shorter than what was written to it")
                    self._digest.update(view[:count])
                    hashed += count
        except OSError as error:
            self._error = error


def publish(stored: Stored, journal: Path, writer: str, seq: int) -> Path:
    """Give stored content the name of the blob of event (writer, seq), and return its path; durable on return."""
    path = journal / BLOBS / blob_name(stored.digest, writer, seq)
    stored.temporary.rename(path)
    fail_point("blob-renamed")
    sync_folder(path.parent)
    return path


def discard(stored: Stored) -> None:
    """Remove stored content that no event will name."""
    with contextlib.suppress(OSError):
        stored.temporary.unlink(missing_ok=True)


def names(journal: Path) -> dict[str, int]:
    """Return the blobs of a journal: name → size in bytes."""
    try:
        with os.scandir(journal / BLOBS) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if parse_blob(entry.name) is not None}
    except FileNotFoundError:
        return {}


def digest_of(path: Path, size: int | None = None) -> str:
    """Return the SHA-256 of a file, or of its first `size` bytes, in lower-case hex. Memory does not grow with it."""
    digest = hashlib.sha256()
    for block in blocks(path, 0, size):
        digest.update(block)
    return digest.hexdigest()


def sweep(journal: Path, lives: Callable[[str], bool]) -> None:
    """Remove incomplete copies of writers that are dead; `lives(writer)` says which are not."""
    for path in (journal / BLOBS).glob(".*.tmp"):
        writer = path.name[1:].partition("-")[0]
        # Other temporary files are not ours to judge.
        if len(writer) == 32 and not lives(writer):
            path.unlink(missing_ok=True)


def release(journal: Path, name: str) -> None:
    """Remove the blob of a file that was replaced or deleted, if it is there.

    The caller has synced the event that replaces or deletes the file: else a power cut could leave the file without
    content.
    """
    with contextlib.suppress(FileNotFoundError):
        (journal / BLOBS / name).unlink()
