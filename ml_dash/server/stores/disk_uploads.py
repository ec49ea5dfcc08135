"""Uploads into a folder, in pieces that any server on it may take.

Killed after any of these steps, the next one goes on from there:

    NAME.part          pieces, appended and synced        the uploader asks for the length, and goes on from it
    verified           SHA-256 of the whole               all bytes are here: `finish` verifies once more
    objects: put       the part becomes the object        `finish` finds it there, and compares its content

A part file has a lock, which processes and threads share: without it, one could hash while another writes.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from zlib import crc32

from ...disk.durable import blocks, data_sync, fail_point, sync_folder, write_all
from . import Gap, Objects, StoreTrouble
from .checks import checked_name, digest_of, is_object

_LOCKS: Final = 256


class DiskUploads:
    """`Uploads` in a folder, which may be on another file system than the objects."""

    def __init__(self, folder: Path, objects: Objects) -> None:
        self.folder = folder
        self._objects = objects
        (folder / "locks").mkdir(parents=True, exist_ok=True)
        # Parts that were acknowledged must be found after a power cut, so the folder's own entry must be on disk.
        sync_folder(folder.parent)
        # An upload that is being verified holds up others that share its lock; with this many locks that is rare.
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def length(self, name: str) -> int:
        """Return how many bytes are here; 0 for a name that is not known. Raises StoreTrouble."""
        part = self._part(name)
        with _trouble():
            try:
                return part.stat().st_size
            except FileNotFoundError:
                return 0

    def append(self, name: str, offset: int, data: bytes) -> int:
        """Take bytes [offset, offset + len(data)), synced; return the length then. Raises Gap, StoreTrouble."""
        part = self._part(name)
        with _trouble(), self._locked(name):
            # Whoever only asks whether it may go on must not leave an empty file.
            if offset and not part.exists():
                raise Gap(0)
            fd = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
            try:
                length = os.fstat(fd).st_size
                if offset > length:
                    raise Gap(length)
                fresh = memoryview(data)[length - offset :]
                if fresh:
                    write_all(fd, fresh, length)
                    fail_point("upload-written")
                    data_sync(fd)
                    # The first bytes made the file: its entry must be on disk as well.
                    if not length:
                        sync_folder(self.folder)
                    fail_point("upload-synced")
                return length + len(fresh)
            finally:
                os.close(fd)

    def finish(self, name: str, size: int, digest: str, key: str) -> bool:
        """Make the upload the object `key`: True; a wrong one is dropped: False. Raises Gap, StoreTrouble."""
        part = self._part(name)
        with _trouble(), self._locked(name):
            length = part.stat().st_size if part.exists() else 0
            if length < size or not part.exists():
                # Perhaps all was done before, and only the answer was lost.
                if is_object(self._objects, key, size, digest):
                    part.unlink(missing_ok=True)
                    return True
                if length < size:
                    raise Gap(length)
                part.touch()
            # From the file and not from memory: so it is what is stored that is checked.
            if length > size or digest_of(blocks(part)) != digest:
                part.unlink()
                return False
            fail_point("upload-verified")
            self._objects.put(key, part)
            fail_point("upload-placed")
            return True

    def drop(self, name: str) -> None:
        """Forget an upload, if it is there. Raises StoreTrouble."""
        with _trouble(), self._locked(name):
            self._part(name).unlink(missing_ok=True)

    def sweep(self, before_s: float) -> int:
        """Drop the uploads that were not continued since; return how many. Raises StoreTrouble."""
        count = 0
        with _trouble():
            for part in self.folder.glob("*.part"):
                # Within the lock, so that one which is continued just now stays.
                with self._locked(part.stem), contextlib.suppress(FileNotFoundError):
                    if part.stat().st_mtime < before_s:
                        part.unlink()
                        count += 1
        return count

    def _part(self, name: str) -> Path:
        """Return where the bytes of an upload are. Raises ValueError for what is not a name."""
        return self.folder / f"{checked_name(name)}.part"

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold the lock of an upload; always the same one, whichever process asks."""
        import filelock

        number = crc32(name.encode()) % _LOCKS
        # Threads first: they wake each other, where waiting for another process means looking again and again.
        with self._locks[number], filelock.FileLock(self.folder / "locks" / f"{number:02x}"):
            yield


@contextlib.contextmanager
def _trouble() -> Iterator[None]:
    """Turn errors of the disk into StoreTrouble."""
    try:
        yield
    except StoreTrouble:
        raise
    except OSError as error:
        raise StoreTrouble(f"the upload could not be stored: {error}", hint="nothing was acknowledged") from error
