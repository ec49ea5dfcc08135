"""The segment that a writer is writing: its descriptor, its size, and the frames that no sync has covered yet.

One thread at a time is inside. Nothing is ever written behind a partial frame: that frame is finished, or its segment
is retired and a new one begun.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import sleep, time_ns
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from ..core import events
from ..core.frames import Header, LengthCrcs, OrderHeader, encode_frame, encode_header, spilled
from ..disk.durable import Write, fail_point, sync_folder
from ..disk.lock import hold
from .backlog import Backlog
from .segment import BLOBS, SEGMENTS, SegmentFolder, SegmentName, lock_name

if TYPE_CHECKING:
    from filelock import BaseFileLock

PATIENCE_S: Final = 1.0
_YIELDS: Final = 16
FIRST_RETRY_S: Final = 0.1

log = logging.getLogger("ml_dash")


class Wakes(Protocol):
    """What a writer asks of the syncer."""

    def wake(self) -> None:
        """Look at the writers: one has something to sync or to write again."""


@dataclass(slots=True)
class Retired:
    """A segment that takes no more frames but is not synced yet."""

    fd: int
    kept: bytearray


class Output:
    """The state of a writer, and what it does with its current segment."""

    # Slots, because `append` reads and writes twenty of these.
    __slots__ = (
        "_acquire",
        "_backlog",
        "_crcs",
        "_fd",
        "_folder",
        "_folders_synced",
        "_gone",
        "_in_doubt",
        "_inside",
        "_keeping_write",
        "_kept",
        "_last_ns",
        "_limit",
        "_lock",
        "_n",
        "_pack",
        "_release",
        "_retired",
        "_retry_s",
        "_seq",
        "_size",
        "_stuck",
        "_sync_turn",
        "_synced",
        "_syncer",
        "_unproven",
        "created_ns",
        "degraded",
        "dirty_since",
        "durability",
        "id",
        "identity",
        "journal",
        "retry_at",
        "strict",
        "urgent",
        "when_contended",
    )

    def __init__(
        self, journal: Path, identity: OrderHeader, syncer: Wakes, *, durability: str, strict: bool, floor_ns: int
    ) -> None:
        self.journal = journal
        self.identity = identity
        self.id = os.urandom(16).hex()
        self.durability = durability
        self.strict = strict
        self.created_ns = max(time_ns(), floor_ns + 1)
        # For the syncer: since when there is something to sync (monotonic seconds), at once or not, when to try again.
        self.dirty_since = 0.0
        self.urgent = False
        self.retry_at = 0.0
        self.degraded: str | None = None
        # The write to use once threads get into each other's way; None where it may hang (see `keeping_write`).
        self.when_contended: Write | None = None
        self._syncer = syncer
        self._pack: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
        self._keeping_write: Write | None = _failing_write() if _fails_at_write() else None
        self._new_lock()
        self._last_ns = self.created_ns
        self._seq = 0
        self._fd = -1
        self._size = 0
        # `append` looks at nothing but this while all is well: at or above it, `_gate` decides what is to be done.
        self._limit = -1
        self._n = 0
        self._inside = False
        self._in_doubt = False
        self._stuck = False
        self._gone = False
        self._crcs = LengthCrcs(0)
        self._keep_anew()
        self._retired: list[Retired] = []
        # What a failed sync left, while it could not be written again; touched only in the sync's turn.
        self._unproven: list[Retired] = []
        self._synced = 0
        self._folders_synced = False
        self._sync_turn = threading.Lock()
        self._backlog = Backlog()
        self._retry_s = FIRST_RETRY_S
        self._folder = SegmentFolder(journal, identity)
        self._lock: BaseFileLock | None = None

    # -- in and out of the critical section --------------------------------------------------------------------------

    def _new_lock(self) -> None:
        lock = threading.Lock()
        self._acquire = lock.acquire
        self._release = lock.release

    def _wait_for_turn(self) -> bool:
        """True once this thread is inside; False if the one inside seems to hang in the kernel."""
        if self.when_contended is not None and self._keeping_write is None:
            # The one inside let go of the interpreter's lock while it wrote, and this thread woke for nothing.
            self._keeping_write = self.when_contended
        if self._stuck:
            return False
        # Whoever is inside needs the interpreter's lock to come out, and has it after a yield or two. Waiting for the
        # lock at once would make a convoy: it is handed to a thread that then waits for the interpreter, and so on.
        for _ in range(_YIELDS):
            sleep(0)
            if self._acquire(False):
                return True
        for _ in range(2):
            acquire = self._acquire
            if acquire(timeout=PATIENCE_S):
                return True
            if self._inside:
                self._stuck = True
                return False
        # Nobody is inside, yet the lock is taken: an interrupt hit exactly the taking of it.
        if acquire == self._acquire:
            self._new_lock()
        return self._acquire(timeout=PATIENCE_S)

    def _enter(self, wait_s: float) -> bool:
        if not self._acquire(timeout=wait_s):
            return False
        self._inside = True
        return True

    def _leave(self) -> None:
        self._inside = False
        self._release()

    def _resolve_doubt(self) -> None:
        """An interrupt came while a frame was being written: nothing of it is there, or all, or a part."""
        self._in_doubt = False
        if self._fd >= 0 and os.fstat(self._fd).st_size != self._size:
            # Its number counts as used. What may be a partial frame ends the segment.
            self._seq += 1
            self._retire()

    # -- segments ----------------------------------------------------------------------------------------------------

    def _hold_lock(self) -> None:
        """From before the first event for as long as this writer lives."""
        if self._lock is None:
            self._lock = hold(self.journal / SEGMENTS / lock_name(self.created_ns, self.id))

    def _lose_lock(self) -> None:
        """The folder is another one now: a lock on a file that was removed with the old one says nothing."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):
                lock.release()

    def _start_segment(self, first_seq: int) -> None:
        fail_point("segment-create")
        n, self._n = self._n, self._n + 1
        fd = self._folder.create(SegmentName(self.created_ns, self.id, n))
        header = encode_header(
            Header(self.identity.journal, os.urandom(16), bytes.fromhex(self.id), n, first_seq, self.created_ns,
                   self.identity.project, self.identity.name)
        )  # fmt: skip
        try:
            done = 0
            while done < len(header):
                done += os.write(fd, header[done:])
        except OSError:
            close_quietly(fd)
            raise
        fail_point("header-written")
        self._fd = fd
        self._size = len(header)
        self._crcs = LengthCrcs(int.from_bytes(header[-4:], "little"))
        self._limit = -1
        self._folders_synced = False

    def _roll(self) -> None:
        fail_point("roll")
        self._retire()
        self._start_segment(self._seq)

    def _retire(self) -> None:
        """Let the current segment go; it stays open until it is synced."""
        if self._fd < 0:
            return
        if self.durability == "os":
            close_quietly(self._fd)
        else:
            self._retired.append(Retired(self._fd, self._kept))
            self._keep_anew()
        self._fd = -1
        self._size = 0
        self._limit = -1

    def _keep_anew(self) -> None:
        """Frames since the last sync are kept, to be written again should the sync fail."""
        self._kept = _Forgetful() if self.durability == "os" else bytearray()

    def _put(self, payload: bytes) -> None:
        """Write one frame whole, or give the segment up and raise OSError."""
        frame = encode_frame(payload, self._crcs)
        done = 0
        try:
            while done < len(frame):
                done += os.write(self._fd, memoryview(frame)[done:])
        except OSError:
            self._retire()
            raise
        self._size += done
        self._kept += frame

    def _spill(self, seq: int, kind: int, now: int, body: Any) -> bytes:
        """A body over 1 MiB: store it as a blob, synced, and name it in its place."""
        content = self._pack(body)
        digest = hashlib.sha256(content).digest()
        path = self.journal / BLOBS / events.blob_name(digest.hex(), self.id, seq)
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
        reference = spilled(digest, len(content))
        return self._pack((seq, kind, now, msgspec.msgpack.Ext(reference.code, reference.data)))

    def _close_descriptors(self) -> None:
        for segment in self._retired:
            close_quietly(segment.fd)
        self._retired = []
        if self._fd >= 0:
            close_quietly(self._fd)
        self._fd = -1
        self._folder.close()

    def use_write(self, write: Write | None) -> None:
        """From now on write through this function (see `durable.keeping_write`); None for the usual `os.write`."""
        if not _fails_at_write():
            self._keeping_write = write


class _Forgetful(bytearray):
    """Keeps nothing: nobody will sync, so nothing will be written again."""

    def __iadd__(self, data: object) -> _Forgetful:
        return self


def _fails_at_write() -> bool:
    return os.environ.get("ML_DASH_FAIL", "").startswith("frame-write")


def _failing_write() -> Write:
    """A write that dies at a fail point, where a crash test asks for that."""

    def write(fd: int, data: bytes, size: int) -> int:
        fail_point("frame-write-before")
        count = os.write(fd, data)
        fail_point("frame-write-after")
        return count

    return write


def close_quietly(fd: int) -> None:
    """Close a descriptor. A late error (NFS) tells of data that a sync has judged, or that nobody asked about."""
    try:
        os.close(fd)
    except OSError as error:
        log.warning("ml-dash: closing a journal segment failed: %s", error)
