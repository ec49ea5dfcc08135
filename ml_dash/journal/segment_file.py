"""The current segment of a writer: its next number, its descriptor, and the frames not yet synced.

Nothing is ever written behind a partial frame: that frame is finished, or its segment is retired and a new one begun.

What a crash leaves, step by step, and what readers make of it:

    segment created         an empty file: a segment without a header, passed over
    header written          a segment without events
    frame partly written    a torn tail; the call had not returned
    frame written           an event, counted or not
    segment retired         two segments; numbers go on in the second

A segment ends at 64 MiB, or after any error: what the kernel did with the bytes of a failed call is not known, and a
frame behind a partial one would look like damage. So the file is only ever in one of two states: `fd` is open and
`size` is what it should be, or there is no current segment and the next call begins one. `in_doubt` marks the moments
in between.

Numbers belong to the writer and not to a segment. The same event may stand in two segments, under the same number:
after a failed sync its frame is written again, with another checksum, since that continues from the header's.

This module has no lock of its own; `writer` lets one thread in. Descriptors of retired segments are closed by the
thread that syncs.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable
from time import time_ns
from typing import TYPE_CHECKING, Any

import msgpack

from ..core import events
from ..core.frames import Header, LengthCrcs, encode_frame, encode_header, spilled
from ..disk.durable import STORAGE_TROUBLE, fail_point, sync_folder
from ..disk.lock import HeldLock, hold
from .segment import BLOBS, SEGMENTS, SegmentFolder, SegmentName, lock_name

if TYPE_CHECKING:
    pass

log = logging.getLogger("ml_dash")


class Retired:
    """A segment that gets no more frames but is not synced yet.

    `unsynced` holds its frames since the last sync, to be written again if this one fails.
    """

    __slots__ = ("fd", "forgotten", "unsynced")

    def __init__(self, fd: int, unsynced: bytearray) -> None:
        self.fd = fd
        self.unsynced = unsynced
        # True if memory had no room for all of `unsynced`: it is to be synced, but cannot be written again.
        self.forgotten = False


class SegmentFile:
    """A writer's numbers, its current segment, earlier ones that are not synced yet, and the lock beside them.

    For one thread at a time: the one inside the writer. Frames since the last sync are kept in `unsynced`, to be
    written again if the sync fails; with `keep=False` they are not, because nobody syncs.
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
        "last_ns",
        "limit",
        "pack",
        "retired",
        "seq",
        "size",
        "unsynced",
    )

    def __init__(self, folder: SegmentFolder, created_ns: int, *, keep: bool) -> None:
        # Held open by a descriptor, so that a folder that is renamed during a run is still the one that we write to.
        self.folder = folder
        # Are the names of all segments, and of the folders above them, durable? False after each new segment.
        self.folders_synced = False
        self.id = os.urandom(16).hex()
        self.created_ns = created_ns
        # The time of the last event, and the number of the next.
        self.last_ns = created_ns
        self.seq = 0
        self.pack = packer(load=False)
        self._lock: HeldLock | None = None
        self._keep = keep
        # The number of the next segment.
        self._n = 0
        self.fd = -1
        self.size = 0
        # While `size` is below this, `append` writes and checks nothing else. -1: the next call checks everything.
        self.limit = -1
        # Checksums of the lengths seen so far, continued from the header's: the same few lengths come again and again.
        self.crcs = LengthCrcs(0)
        # A frame is being written and not counted yet: after an interrupt only the file's size says how much is there.
        self.in_doubt = False
        self.drop_unsynced()
        self.retired: list[Retired] = []

    def drop_unsynced(self) -> None:
        """Keep frames from here on only: a sync covers those before, or their retired segment holds them."""
        self.unsynced = bytearray() if self._keep else _Discarding()

    def unsynced_bytes(self) -> int:
        """Return the bytes of frames that are in memory in case a sync fails, in this segment and in retired ones.

        Without those that a sync has taken that is under way.
        """
        return len(self.unsynced) + sum(len(segment.unsynced) for segment in self.retired)

    def forget_unsynced(self) -> None:
        """Give the memory of unsynced frames back. Their segments are still synced, but not written again."""
        for segment in self.retired:
            segment.forgotten = segment.forgotten or bool(segment.unsynced)
            segment.unsynced = bytearray()
        self.drop_unsynced()

    def time_apart(self) -> int:
        """Return a time (ns) at least a microsecond after all events so far, and take it as the last event's.

        Lines show microseconds, and rewinds compare the times in lines.
        """
        # To the microsecond above: rounding down could give the time of an event before. It may be up to 1 µs ahead of
        # the clock, and then later events take this time until the clock has passed it.
        self.last_ns = (max(time_ns(), self.last_ns) // 1000 + 1) * 1000
        return self.last_ns

    # -- folder and lock ---------------------------------------------------------------------------------------------

    def hold_lock(self) -> None:
        """Take the writer's lock, held from before its first event to its end. Raises OSError."""
        # None also where the file system has no locks: each recovery then tries again.
        if self._lock is None:
            self._lock = hold(self.folder.journal / SEGMENTS / lock_name(self.created_ns, self.id))

    def ensure_folder(self) -> None:
        """Make the folder again if it was removed, and hold the lock. Raises OSError.

        Somebody may remove a whole experiment while it is recorded. Its earlier events are gone then; what is recorded
        from now on is kept.
        """
        if self.folder.ensure():
            # The lock file was removed with the old folder, so the lock means nothing: take one in the new folder.
            lock, self._lock = self._lock, None
            if lock is not None:
                with contextlib.suppress(OSError):
                    lock.release()
        self.hold_lock()

    def let_go(self) -> None:
        """Close all descriptors and release the lock, at the writer's end."""
        self._close()
        lock, self._lock = self._lock, None
        if lock is not None:
            # An absent lock file means a clean end. No other process takes this lock, so unlinking it is not a race.
            with contextlib.suppress(OSError):
                lock.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                lock.release()

    def abandon(self) -> None:
        """Close this process's copies of the descriptors. In a forked child: all else is the parent's."""
        self._close()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.drop()

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
        # Counted even if the rest fails: the file may exist, and is never opened again.
        n, self._n = self._n, self._n + 1
        fd = self.folder.create(SegmentName(self.created_ns, self.id, n))
        identity = self.folder.identity
        header = encode_header(
            Header(identity.journal, os.urandom(16), bytes.fromhex(self.id), n, first_seq, self.created_ns,
                   identity.project, identity.name)
        )  # fmt: skip
        try:
            done = 0
            # Nothing was counted yet, so a part of a header does no harm: readers pass over that file.
            while done < len(header):
                done += os.write(fd, header[done:])
        except BaseException:
            close_quietly(fd)
            raise
        fail_point("header-written")
        self.fd = fd
        self.size = len(header)
        self.crcs = LengthCrcs(int.from_bytes(header[-4:], "little"))
        self.limit = -1
        # A file whose name is not on disk is lost in a power cut, however well its content was synced.
        self.folders_synced = False

    def roll(self) -> None:
        """Retire the current segment and begin the next. Raises OSError."""
        fail_point("roll")
        self.retire()
        self.start(self.seq)

    def retire(self) -> None:
        """End the current segment. It stays open until it is synced."""
        if self.fd < 0:
            return
        # With the frames since the last sync, which are written again if the sync of this segment fails.
        if self._keep:
            self.retired.append(Retired(self.fd, self.unsynced))
            self.drop_unsynced()
        else:
            close_quietly(self.fd)
        self.fd = -1
        self.size = 0
        self.limit = -1

    def resolve_doubt(self) -> None:
        """Find out after an interrupt how much of a frame was written; retire the segment unless it is nothing."""
        self.in_doubt = False
        # Only this writer appends to the file, so its size tells what became of the frame. Nothing written: nothing
        # happened.
        if self.fd >= 0 and os.fstat(self.fd).st_size != self.size:
            # The frame may be whole, so its number counts as used. It may be partial, so nothing may follow it.
            self.seq += 1
            self.retire()

    # -- frames ------------------------------------------------------------------------------------------------------

    def put(self, payload: bytes) -> None:
        """Write one frame whole; if that fails, retire the segment and raise OSError."""
        # Made here, not earlier: the checksum depends on the segment in which the frame comes to stand.
        frame = encode_frame(payload, self.crcs)
        done = 0
        try:
            while done < len(frame):
                done += os.write(self.fd, memoryview(frame)[done:])
            self.size += done
            self.unsynced += frame
        except BaseException:
            # Also for an interrupt: a part of the frame may be there, and nothing may stand behind a part.
            self.retire()
            raise

    def finish(self, frame: bytes) -> None:
        """Write the rest of `frame`, of which a write failed or was short, and count it.

        If that fails as well, retire the segment and raise OSError.

        The size of the file says how much is there, because the call that wrote it may have been interrupted before it
        could tell.
        """
        self.in_doubt = False
        try:
            written = os.fstat(self.fd).st_size - self.size
            # A short write is no error: a disk that is just full, or a signal. The next call tells which.
            while 0 <= written < len(frame):
                written += os.write(self.fd, memoryview(frame)[written:])
            # Longer, or shorter than before the write: somebody else writes to our file, or has cut it. EIO is
            # STORAGE_TROUBLE.
            if written != len(frame):
                raise OSError(errno.EIO, f"the segment is {written - len(frame)} bytes longer than it should be")
        except OSError as error:
            if error.errno in STORAGE_TROUBLE:
                self.retire()
            raise
        self.size += written
        self.seq += 1
        self.unsynced += frame

    def spill(self, seq: int, kind: int, now: int, body: Any) -> bytes:
        """Store a body over 1 MiB as a blob, synced; return the payload of an event that names it. Raises OSError.

        The steps keep an event from naming a blob that is not there: content, sync, name, sync of the folder, and only
        then the caller writes the frame. A crash in between leaves a temporary file, or a blob that no event names.
        """
        # Loaded here: few runs have such a body, and each start would pay for it.
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


class _Discarding(bytearray):
    """A buffer that stays empty, for writers that nobody syncs: they never write frames again."""

    def __iadd__(self, data: object) -> _Discarding:
        return self


def close_quietly(fd: int) -> None:
    """Close a descriptor, and only log an error: a late one (NFS) is about data that a sync has judged already."""
    try:
        os.close(fd)
    except OSError as error:
        log.warning("ml-dash: closing a journal segment failed: %s", error)
