"""Give an event its number, frame it, write it: the one that appends to a journal.

Every process has a writer of its own, in segments of its own. An event is with the operating system when `append`
returns: it survives the death of this process. The syncer makes it survive a power cut.

When the disk refuses, the writer is *degraded*: events are accepted into memory, and the syncer writes them to a new
segment once the disk takes them. Nothing is ever written behind a partial frame, and a descriptor whose fdatasync
failed is given up, with all that it did not hold safely written again elsewhere: a retry that succeeds proves nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import write as os_write
from pathlib import Path
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from zlib import crc32

import msgspec

from .. import events
from ..durable import STORAGE_TROUBLE, Write, data_sync, fail_point, sync_folder
from ..errors import InvalidValue, StorageError
from ..frames import HEAD, MAX_PAYLOAD, Header, LengthCrcs, OrderHeader, encode_frame, encode_header, spilled
from ..lock import hold
from .backlog import Aside, Backlog
from .segment import BLOBS, ROLL_BYTES, SEGMENTS, SegmentFolder, SegmentName, lock_name

if TYPE_CHECKING:
    from filelock import BaseFileLock

SYNC_BYTES: Final = 4 << 20
KEEP_BYTES: Final = 64 << 20
PATIENCE_S: Final = 1.0
FIRST_RETRY_S: Final = 0.1
LAST_RETRY_S: Final = 5.0

log = logging.getLogger("ml_dash")
_T = TypeVar("_T")


class WriterGone(Exception):  # noqa: N818 - control flow between the writer and its handles, never seen by users
    """This writer is closed, or belongs to the process that this one was forked from."""


class Tally:
    """How many points of one metric this writer has appended: the ordinal of the next one."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


class Wakes(Protocol):
    """What the writer asks of the syncer."""

    def wake(self) -> None:
        """Look at the writers: one has something to sync or to write again."""


@dataclass(slots=True)
class _Retired:
    """A segment that takes no more frames but is not synced yet."""

    fd: int
    kept: bytearray


class Writer:
    """Appends events to one journal. Any thread may call; other processes have writers of their own.

    `floor_ns` is the newest time seen in the journal: this writer's times start there. With `durability` "interval" the
    syncer syncs what `append` wrote, with "always" `append` itself does, with "os" nobody does. The lock is held, and
    the first segment is there, when the constructor returns; a disk that refuses makes the writer degraded from the
    start, or raises StorageError with `strict`.
    """

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
        self._retired: list[_Retired] = []
        self._synced = 0
        self._folders_synced = False
        self._sync_turn = threading.Lock()
        self._backlog = Backlog()
        self._retry_s = FIRST_RETRY_S
        self._folder = SegmentFolder(journal, identity)
        self._lock: BaseFileLock | None = None
        try:
            self._folder.open()
            self._hold_lock()
            self._start_segment(self._seq)
        except OSError as error:
            if error.errno not in STORAGE_TROUBLE or strict:
                self._let_go()
                raise self._storage_error("could not start a journal segment", error) from error
            self._degrade(error)

    # -- the hot path ------------------------------------------------------------------------------------------------

    def append(self, kind: int, body: Any, tally: Tally | None = None, count: int = 1) -> int | None:
        """Write one event; on return it is with the operating system and survives this process.

        Returns its sequence number, or, with a `tally`, the ordinal of the first of its `count` points; None if the
        event could not be numbered yet, or was lost (see `degraded`). Raises InvalidValue for what cannot be encoded,
        WriterGone after `close`, StorageError in strict mode; nothing is recorded then. Any thread.
        """
        if not self._acquire(False) and not self._wait_for_turn():
            self._set_aside(kind, body, tally, count)
            return None
        self._inside = True
        try:
            if self._size >= self._limit and self._gate():
                return self._accept(kind, body, tally, count)
            now = time_ns()
            if now < self._last_ns:
                now = self._last_ns
            else:
                self._last_ns = now
            seq = self._seq
            payload = self._pack((seq, kind, now, body))
            length = len(payload)
            if length > MAX_PAYLOAD:
                payload = self._spill(seq, kind, now, body)
                length = len(payload)
            frame = HEAD.pack(length, crc32(payload, self._crcs[length])) + payload
            length += 8
            self._in_doubt = True
            # Whether the interpreter's lock is let go of meanwhile: see `use_write`.
            write = self._keeping_write
            if (os_write(self._fd, frame) if write is None else write(self._fd, frame, length)) != length:
                return self._finish(frame, payload, tally, count)
            # No call stands between these lines: an interrupt cannot part them.
            self._size += length
            self._seq = seq + 1
            self._in_doubt = False
            self._kept += frame
            if tally is None:
                return seq
            ordinal = tally.total
            tally.total = ordinal + count
            return ordinal
        except (OverflowError, UnicodeEncodeError, TypeError, RecursionError) as error:
            raise InvalidValue(f"cannot record {_cut(body)}: {error}") from error
        except OSError as error:
            if error.errno not in STORAGE_TROUBLE:
                raise
            if self._in_doubt:
                return self._finish(frame, payload, tally, count)
            return self._give_up(payload, error, tally, count)
        except BaseException:
            # KeyboardInterrupt may come between the write and the count of it: the size of the file tells.
            if self._in_doubt:
                self._limit = -1
            raise
        finally:
            self._inside = False
            self._release()

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

    def _gate(self) -> bool:
        """What must be looked at before a frame is written; True if the event must wait in memory."""
        if self._gone:
            raise WriterGone
        if self._in_doubt:
            self._resolve_doubt()
        if self._backlog.aside:
            self._stuck = False
            self._number_aside()
            if self.degraded is None and not self._empty_backlog():
                return True
        if self.degraded is None and (self._size >= ROLL_BYTES or self._fd < 0):
            try:
                self._roll()
            except OSError as error:
                self._degrade(error)
        if self.degraded is not None:
            if self.strict:
                raise StorageError(
                    f"{self.journal} cannot be written ({self.degraded}); this event was not recorded",
                    hint="earlier events are kept; free space or mend the disk, then call again",
                )
            return True
        self._limit = min(ROLL_BYTES, self._size + SYNC_BYTES)
        if self.durability != "os":
            self.urgent = self.dirty_since > 0
            self.dirty_since = self.dirty_since or monotonic()
            self._syncer.wake()
            if len(self._kept) > KEEP_BYTES:
                # fdatasync hangs: what it would have to prove is no longer covered by a second writing.
                self._keep_anew()
        return False

    def _resolve_doubt(self) -> None:
        """An interrupt came while a frame was being written: nothing of it is there, or all, or a part."""
        self._in_doubt = False
        if self._fd >= 0 and os.fstat(self._fd).st_size != self._size:
            # Its number counts as used. What may be a partial frame ends the segment.
            self._seq += 1
            self._retire()

    # -- trouble -----------------------------------------------------------------------------------------------------

    def _finish(self, frame: bytes, payload: bytes, tally: Tally | None, count: int) -> int | None:
        """The write of `frame` failed or was short: finish that very frame, or give the segment up."""
        self._in_doubt = False
        try:
            written = os.fstat(self._fd).st_size - self._size
            while 0 <= written < len(frame):
                written += os.write(self._fd, memoryview(frame)[written:])
            if written != len(frame):
                raise OSError(errno.EIO, f"the segment is {written - len(frame)} bytes longer than it should be")
        except OSError as error:
            if error.errno not in STORAGE_TROUBLE:
                raise
            self._retire()
            return self._give_up(payload, error, tally, count)
        self._size += written
        self._seq += 1
        self._kept += frame
        return self._count(tally, count, self._seq - 1)

    def _give_up(self, payload: bytes, error: OSError, tally: Tally | None, count: int) -> int | None:
        """The disk did not take the event with the next number: keep it in memory, or refuse it in strict mode."""
        seq = self._seq
        self._seq += 1
        if self.strict:
            self._backlog.refuse(seq)
            raise self._storage_error("could not write an event", error) from error
        self._backlog.push(payload)
        self._degrade(error)
        return self._count(tally, count, seq)

    @staticmethod
    def _count(tally: Tally | None, count: int, seq: int) -> int:
        if tally is None:
            return seq
        ordinal = tally.total
        tally.total = ordinal + count
        return ordinal

    def _degrade(self, error: OSError) -> None:
        text = f"{error.strerror or error} ({errno.errorcode.get(error.errno or 0, error.errno)})"
        if self.degraded is None:
            log.warning(
                "ml-dash: cannot write %s: %s. Training goes on; events are kept in memory (up to 64 MiB) and written "
                "as soon as the disk takes them. Should the process die before that, they are lost: free space or mend "
                "the disk.", self.journal, text,
            )  # fmt: skip
            self._retry_s = FIRST_RETRY_S
        self.degraded = text
        self.retry_at = monotonic() + self._retry_s
        self._limit = -1
        self._syncer.wake()

    def _accept(self, kind: int, body: Any, tally: Tally | None, count: int) -> int | None:
        """Degraded: number the event and keep it in memory, or count it as lost if memory is full."""
        self._last_ns = now = max(time_ns(), self._last_ns)
        payload = self._pack((self._seq, kind, now, body))
        seq = self._seq
        self._seq += 1
        return self._count(tally, count, seq) if self._backlog.push_if_it_fits(seq, payload) else None

    def _set_aside(self, kind: int, body: Any, tally: Tally | None, count: int) -> None:
        """Another thread hangs inside the kernel: keep the event until somebody is inside again."""
        copy = self._pack(body)
        if not self._backlog.aside:
            log.warning("ml-dash: a write to %s hangs; events are kept in memory until it returns.", self.journal)
        self._backlog.set_aside(Aside(kind, msgspec.msgpack.decode(copy), tally, count), len(copy))
        self._limit = -1
        self.retry_at = self.retry_at or monotonic() + FIRST_RETRY_S
        self._syncer.wake()

    def _number_aside(self) -> None:
        while self._backlog.aside:
            self._accept(*self._backlog.take_aside())

    def _empty_backlog(self) -> bool:
        """Write what waits in memory; False, and degraded, if the disk refuses."""
        try:
            self._folder.ensure()
            self._hold_lock()
            while self._backlog.payloads:
                self._write_first_waiting()
            self._tell_lost()
            if self._fd < 0:
                self._start_segment(self._seq)
        except OSError as error:
            if error.errno not in STORAGE_TROUBLE:
                raise
            self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)
            self._degrade(error)
            return False
        if self.degraded is not None:
            log.warning("ml-dash: %s can be written again; what was kept in memory is on disk.", self.journal)
        self.degraded = None
        self._stuck = False
        self.retry_at = 0.0
        self._limit = -1
        return True

    def recover(self) -> bool:
        """Try to write what waits in memory, into a new segment; True when nothing waits. For the syncer."""
        if not self._enter(PATIENCE_S):
            self.retry_at = monotonic() + FIRST_RETRY_S
            return False
        try:
            if self._gone:
                return True
            if self._in_doubt:
                self._resolve_doubt()
            self._number_aside()
            return self._empty_backlog()
        finally:
            self._leave()

    def _write_first_waiting(self) -> None:
        """Move the first waiting payload to disk. Raises OSError with it still waiting."""
        payload = self._backlog.payloads[0]
        if self._fd < 0 or self._size >= ROLL_BYTES:
            self._retire()
            self._start_segment(int(msgspec.msgpack.decode(payload)[0]))
        if len(payload) > MAX_PAYLOAD:
            payload = self._spill(*msgspec.msgpack.decode(payload))
        self._put(payload)
        self._backlog.pop()

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

    def _tell_lost(self) -> None:
        body = self._backlog.untold()
        if body is None:
            return
        if self._fd < 0:
            self._start_segment(self._seq)
        self._put(self._pack((self._seq, events.LOST, max(time_ns(), self._last_ns), body)))
        self._seq += 1
        self._backlog.told()

    def _storage_error(self, what: str, error: OSError) -> StorageError:
        failure = StorageError(
            f"{what} in {self.journal}: {error.strerror or error}; earlier events are kept, this one was not recorded",
            hint="free space or mend the disk, then call again",
        )
        failure.errno = error.errno
        return failure

    # -- segments ----------------------------------------------------------------------------------------------------

    def _hold_lock(self) -> None:
        """From before the first event for as long as this writer lives."""
        if self._lock is None:
            self._lock = hold(self.journal / SEGMENTS / lock_name(self.created_ns, self.id))

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
            _close_quietly(fd)
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
            _close_quietly(self._fd)
        else:
            self._retired.append(_Retired(self._fd, self._kept))
            self._keep_anew()
        self._fd = -1
        self._size = 0
        self._limit = -1

    def _keep_anew(self) -> None:
        """Frames since the last sync are kept, to be written again should the sync fail."""
        self._kept = _Forgetful() if self.durability == "os" else bytearray()

    def _spill(self, seq: int, kind: int, now: int, body: Any) -> bytes:
        """A body over 1 MiB: store it as a blob, synced, and name it in its place."""
        content = self._pack(body)
        digest = hashlib.sha256(content).digest()
        path = self.journal / BLOBS / events.blob_name(digest.hex(), self.id, seq)
        temporary = path.with_name(f".{path.name}.tmp")
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

    def append_with_blob(self, kind: int, body: Any, place: Callable[[int], _T]) -> tuple[int, _T]:
        """Write an event after `place(seq)` has put its blob under the name that holds its number.

        `place` runs while nobody else appends; when it raises, nothing is written. Returns (seq, place's result).
        Raises StorageError if the disk refuses: a file is never accepted into memory.
        """
        if not self._enter(30.0):
            raise StorageError(f"a write to {self.journal} hangs; the file was not added", hint="try again later")
        try:
            if self._size >= self._limit and self._gate():
                raise StorageError(
                    f"{self.journal} cannot be written ({self.degraded}); the file was not added",
                    hint="free space or mend the disk, then call again",
                )
            seq = self._seq
            placed = place(seq)
            fail_point("blob-event")
            now = self._last_ns = max(time_ns(), self._last_ns)
            payload = self._pack((seq, kind, now, body))
            if len(payload) > MAX_PAYLOAD:
                payload = self._spill(seq, kind, now, body)
            self._in_doubt = True
            self._finish(encode_frame(payload, self._crcs), payload, None, 1)
            return seq, placed
        finally:
            self._leave()

    # -- durability --------------------------------------------------------------------------------------------------

    def sync(self) -> bool:
        """fdatasync all that was written before this call; False if that failed (it is then written again elsewhere)."""
        if not self._sync_turn.acquire(timeout=30.0):
            return False
        try:
            return self._sync_in_turn()
        finally:
            self._sync_turn.release()

    def _sync_in_turn(self) -> bool:
        if not self._enter(PATIENCE_S):
            return False
        try:
            if self._in_doubt:
                self._resolve_doubt()
            retired, self._retired = self._retired, []
            fd, kept, written = self._fd, self._kept, self._written()
            self._keep_anew()
            self.dirty_since = 0.0
            self.urgent = False
            self._limit = -1
        finally:
            self._leave()
        fail_point("sync-before")
        good = True
        for segment in retired:
            good = self._sync_one(segment.fd, segment.kept) and good
            _close_quietly(segment.fd)
        if fd >= 0:
            good = self._sync_one(fd, kept) and good
        fail_point("sync-after")
        if good:
            self._synced = max(self._synced, written)
        return good

    def _sync_one(self, fd: int, kept: bytearray) -> bool:
        try:
            data_sync(fd)
            if not self._folders_synced:
                self._folder.sync()
                self._folders_synced = True
            if os.fstat(fd).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "the segment was removed")
        except OSError as failure:
            self._write_again(fd, kept, failure)
            return False
        return True

    def _write_again(self, fd: int, kept: bytearray, failure: OSError) -> None:
        """What `fd` does not hold safely goes to a new segment, under the old numbers."""
        if not self._enter(PATIENCE_S):
            raise failure
        try:
            log.warning(
                "ml-dash: could not sync %s: %s. Its last %d bytes are written again to a new segment.",
                self.journal, failure.strerror or failure, len(kept) + len(self._kept),
            )  # fmt: skip
            self._retire()
            if self._retired and self._retired[-1].fd == fd:
                kept = kept + self._retired.pop().kept
                _close_quietly(fd)
            self._backlog.push_front([bytes(payload) for payload in _payloads(kept)])
            self._folders_synced = False
            if self._empty_backlog():
                self.dirty_since = monotonic()
                self._syncer.wake()
        finally:
            self._leave()

    def _written(self) -> int:
        return self._seq - len(self._backlog.payloads) - self._backlog.holes

    def durable_counts(self) -> dict[str, int]:
        """How many events of this writer are accepted, written, synced and lost."""
        backlog = self._backlog
        written = self._written()
        return {
            "accepted": self._seq + len(backlog.aside) - backlog.refused,
            "written": written,
            "synced": min(self._synced, written),
            "lost": backlog.lost,
        }

    def count_lost(self) -> None:
        """Something that has no event was lost: a file that could not be stored."""
        self._backlog.count_lost()

    @property
    def seq(self) -> int:
        """The number of the next event."""
        return self._seq

    @property
    def waiting(self) -> bool:
        """Does anything wait in memory for the disk?"""
        return bool(self._backlog) or self.degraded is not None

    def use_write(self, write: Write | None) -> None:
        """From now on write through this function (see `durable.keeping_write`); None for the usual `os.write`."""
        if not _fails_at_write():
            self._keeping_write = write

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self, body: dict[str, Any]) -> None:
        """Write the closing event, sync, let the lock go. Raises StorageError if events could not be kept."""
        try:
            with contextlib.suppress(WriterGone):
                self.append(events.CLOSE, body)
            if self.waiting:
                self.recover()
            # A sync that fails has everything written again to a new segment, which needs a sync of its own.
            synced = self.durability == "os" or self.sync() or self.sync()
        finally:
            self._end()
        lost = self._backlog.lost + len(self._backlog)
        if lost:
            raise StorageError(
                f"{lost:,} events of {self.identity.project}/{self.identity.name} were lost: the disk refused them "
                f"({self.degraded or 'and the buffer was full'}); all others are in {self.journal}",
                hint="free space or mend the disk before the next run",
            )
        if not synced:
            log.warning("ml-dash: %s is written but could not be synced; a power cut may take its end.", self.journal)

    def _end(self) -> None:
        entered = self._enter(PATIENCE_S)
        turn = self._sync_turn.acquire(timeout=PATIENCE_S)
        self._gone = True
        self._limit = -1
        # Descriptors that another thread is using inside a hung kernel call stay open.
        if entered and turn:
            self._let_go()
        if turn:
            self._sync_turn.release()
        if entered:
            self._leave()

    def _let_go(self) -> None:
        self._close_descriptors()
        lock, self._lock = self._lock, None
        if lock is not None:
            # An absent lock file means a clean end. Only this writer ever takes this lock, so unlinking is no race.
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                lock.release()

    def _close_descriptors(self) -> None:
        for segment in self._retired:
            _close_quietly(segment.fd)
        self._retired = []
        if self._fd >= 0:
            _close_quietly(self._fd)
        self._fd = -1
        self._folder.close()

    def abandon(self) -> None:
        """In a forked child: this writer is the parent's. Close our copies of its descriptors, touch nothing else."""
        self._new_lock()
        self._sync_turn = threading.Lock()
        self._gone = True
        self._inside = False
        self._limit = -1
        self._backlog.clear()
        self._close_descriptors()
        # filelock has closed the child's copy of the lock; releasing it would release the parent's.
        self._lock = None


class AlwaysDurable(Writer):
    """`durability="always"`: each event is synced before `append` returns."""

    __slots__ = ()

    def append(self, kind: int, body: Any, tally: Tally | None = None, count: int = 1) -> int | None:
        """As Writer.append, and synced."""
        result = super().append(kind, body, tally, count)
        self._sync_or_tell()
        return result

    def append_with_blob(self, kind: int, body: Any, place: Callable[[int], _T]) -> tuple[int, _T]:
        """As Writer.append_with_blob, and synced."""
        result = super().append_with_blob(kind, body, place)
        self._sync_or_tell()
        return result

    def _sync_or_tell(self) -> None:
        # A sync that failed has written everything again to a new segment: that one is to be synced.
        if self.degraded or self.sync() or (not self.degraded and self.sync()) or not self.strict:
            return
        raise StorageError(
            f"{self.journal} could not be synced ({self.degraded}); the event is written, but may not survive a power cut",
            hint="mend the disk",
        )


def open_writer(
    journal: Path, identity: OrderHeader, syncer: Wakes, *, durability: str, strict: bool, floor_ns: int
) -> Writer:
    """A new writer of the journal, its lock held, its first segment there."""
    kind = AlwaysDurable if durability == "always" else Writer
    return kind(journal, identity, syncer, durability=durability, strict=strict, floor_ns=floor_ns)


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


def _payloads(frames: bytearray) -> Iterator[bytearray]:
    position = 0
    while position < len(frames):
        length, _ = HEAD.unpack_from(frames, position)
        yield frames[position + HEAD.size : position + HEAD.size + length]
        position += HEAD.size + length


def _close_quietly(fd: int) -> None:
    # A late error of close (NFS) tells of data that a sync has already judged, or that nobody asked to sync.
    try:
        os.close(fd)
    except OSError as error:
        log.warning("ml-dash: closing a journal segment failed: %s", error)


def _cut(body: Any) -> str:
    try:
        text = repr(body)
    except (RecursionError, ValueError):
        text = type(body).__name__
    return text if len(text) <= 120 else text[:117] + "..."
