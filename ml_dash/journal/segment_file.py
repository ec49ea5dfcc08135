"""Where a writer writes: the next number, the current segment, and the frames that no sync has covered yet.

Nothing is ever written behind a partial frame: that frame is finished, or its segment is retired and a new one begun.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any

import msgpack

from ..core import events
from ..core.frames import Header, LengthCrcs, encode_frame, encode_header, spilled
from ..disk.durable import STORAGE_TROUBLE, fail_point, sync_folder
from ..disk.lock import hold
from .segment import BLOBS, SEGMENTS, SegmentFolder, SegmentName, lock_name

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger("ml_dash")


class Retired:
    """A segment that takes no more frames but is not synced yet."""

    __slots__ = ("fd", "kept")

    def __init__(self, fd: int, kept: bytearray) -> None:
        self.fd = fd
        self.kept = kept


class SegmentFile:
    """A writer's numbers and its current segment, those before it that are not synced yet, and the lock beside them.

    For one thread at a time: the one that is inside the writer. Frames since the last sync are kept, to be written
    again should the sync fail; with `keep=False` they are not, because nobody syncs.
    """

    # Slots, because `Writer.append` reads and writes most of these.
    __slots__ = (
        "_keep",
        "_lock",
        "_n",
        "crcs",
        "created_ns",
        "fd",
        "folder",
        "folders_synced",
        "id",
        "in_doubt",
        "kept",
        "last_ns",
        "limit",
        "pack",
        "retired",
        "seq",
        "size",
    )

    def __init__(self, folder: SegmentFolder, created_ns: int, *, keep: bool) -> None:
        self.folder = folder
        self.folders_synced = False
        self.id = os.urandom(16).hex()
        self.created_ns = created_ns
        # The time of the last event, and the number of the next.
        self.last_ns = created_ns
        self.seq = 0
        self.pack = packer(load=False)
        self._lock: BaseFileLock | None = None
        self._keep = keep
        self._n = 0
        self.fd = -1
        self.size = 0
        # `append` looks at nothing but this while all is well: at or above it, the writer decides what is to be done.
        self.limit = -1
        self.crcs = LengthCrcs(0)
        # A frame is being written: until its size is counted, an interrupt leaves open how much of it is there.
        self.in_doubt = False
        self.keep_anew()
        self.retired: list[Retired] = []

    def keep_anew(self) -> None:
        """Keep frames from here on: those before are covered by a sync, or go with their segment."""
        self.kept = bytearray() if self._keep else _Forgetful()

    def time_apart(self) -> int:
        """A whole microsecond later than all that was written: lines show no less, and `rewinds` goes by them."""
        self.last_ns = (max(time_ns(), self.last_ns) // 1000 + 1) * 1000
        return self.last_ns

    # -- folder and lock ---------------------------------------------------------------------------------------------

    def hold_lock(self) -> None:
        """From before the first event for as long as the writer lives."""
        if self._lock is None:
            self._lock = hold(self.folder.journal / SEGMENTS / lock_name(self.created_ns, self.id))

    def ensure_folder(self) -> None:
        """The folder is there, made again if it was removed, and the lock is held."""
        if self.folder.ensure():
            # It is another one now: a lock on a file that was removed with the old one says nothing.
            lock, self._lock = self._lock, None
            if lock is not None:
                with contextlib.suppress(OSError):
                    lock.release()
        self.hold_lock()

    def let_go(self) -> None:
        """At the end: close all descriptors, give the lock back."""
        self._close()
        lock, self._lock = self._lock, None
        if lock is not None:
            # An absent lock file means a clean end. Only this writer ever takes this lock, so unlinking is no race.
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                lock.release()

    def abandon(self) -> None:
        """In a forked child: all of it is the parent's. Close our copies of the descriptors."""
        self._close()
        # filelock has closed the child's copy of the lock; releasing it would release the parent's.
        self._lock = None

    def _close(self) -> None:
        for segment in self.retired:
            close_quietly(segment.fd)
        self.retired = []
        if self.fd >= 0:
            close_quietly(self.fd)
        self.fd = -1
        self.folder.close()

    # -- segments ----------------------------------------------------------------------------------------------------

    def start(self, first_seq: int) -> None:
        """Begin the next segment. Raises OSError, and there is no current one then."""
        fail_point("segment-create")
        n, self._n = self._n, self._n + 1
        fd = self.folder.create(SegmentName(self.created_ns, self.id, n))
        identity = self.folder.identity
        header = encode_header(
            Header(identity.journal, os.urandom(16), bytes.fromhex(self.id), n, first_seq, self.created_ns,
                   identity.project, identity.name)
        )  # fmt: skip
        try:
            done = 0
            while done < len(header):
                done += os.write(fd, header[done:])
        except OSError:
            close_quietly(fd)
            raise
        fail_point("header-written")
        self.fd = fd
        self.size = len(header)
        self.crcs = LengthCrcs(int.from_bytes(header[-4:], "little"))
        self.limit = -1
        self.folders_synced = False

    def roll(self) -> None:
        """Retire the current segment, begin the next."""
        fail_point("roll")
        self.retire()
        self.start(self.seq)

    def retire(self) -> None:
        """Let the current segment go; it stays open until it is synced."""
        if self.fd < 0:
            return
        if self._keep:
            self.retired.append(Retired(self.fd, self.kept))
            self.keep_anew()
        else:
            close_quietly(self.fd)
        self.fd = -1
        self.size = 0
        self.limit = -1

    def resolve_doubt(self) -> None:
        """An interrupt came while a frame was being written: nothing of it is there, or all, or a part."""
        self.in_doubt = False
        if self.fd >= 0 and os.fstat(self.fd).st_size != self.size:
            # Its number counts as used. What may be a partial frame ends the segment.
            self.seq += 1
            self.retire()

    # -- frames ------------------------------------------------------------------------------------------------------

    def put(self, payload: bytes) -> None:
        """Write one frame whole, or give the segment up and raise OSError."""
        frame = encode_frame(payload, self.crcs)
        done = 0
        try:
            while done < len(frame):
                done += os.write(self.fd, memoryview(frame)[done:])
        except OSError:
            self.retire()
            raise
        self.size += done
        self.kept += frame

    def finish(self, frame: bytes) -> None:
        """The write of `frame` failed or was short: finish and count it, or give the segment up and raise OSError."""
        self.in_doubt = False
        try:
            written = os.fstat(self.fd).st_size - self.size
            while 0 <= written < len(frame):
                written += os.write(self.fd, memoryview(frame)[written:])
            if written != len(frame):
                raise OSError(errno.EIO, f"the segment is {written - len(frame)} bytes longer than it should be")
        except OSError as error:
            if error.errno in STORAGE_TROUBLE:
                self.retire()
            raise
        self.size += written
        self.seq += 1
        self.kept += frame

    def spill(self, seq: int, kind: int, now: int, body: Any) -> bytes:
        """The payload of an event with a body over 1 MiB: that is stored as a blob, synced, and named in its place."""
        from hashlib import sha256

        content = self.pack(body)
        digest = sha256(content).digest()
        path = self.folder.journal / BLOBS / events.blob_name(digest.hex(), self.id, seq)
        temporary = path.with_name(f".{self.id}-{seq}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
        payload: bytes = msgpack.packb((seq, kind, now, spilled(digest, len(content))))
        return payload


def packer(*, load: bool) -> Callable[[Any], bytes]:
    """What makes an event's bytes: msgspec, the faster one, which takes a while to load; without `load`, until that is
    done, msgpack, which makes the same bytes."""
    if load or "msgspec" in sys.modules:
        import msgspec

        return msgspec.msgpack.Encoder().encode
    pack: Callable[[Any], bytes] = msgpack.Packer().pack
    return pack


class _Forgetful(bytearray):
    """Keeps nothing: nobody will sync, so nothing will be written again."""

    def __iadd__(self, data: object) -> _Forgetful:
        return self


def close_quietly(fd: int) -> None:
    """Close a descriptor. A late error (NFS) tells of data that a sync has judged, or that nobody asked about."""
    try:
        os.close(fd)
    except OSError as error:
        log.warning("ml-dash: closing a journal segment failed: %s", error)
