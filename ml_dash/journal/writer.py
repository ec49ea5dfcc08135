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
import os
import threading
from collections.abc import Callable
from os import write as os_write
from pathlib import Path
from time import monotonic, time_ns
from typing import Any, Final, TypeVar
from zlib import crc32

import msgspec

from ..core import events
from ..core.frames import HEAD, MAX_PAYLOAD, OrderHeader, encode_frame
from ..disk.durable import STORAGE_TROUBLE, data_sync, fail_point
from ..errors import InvalidValue, StorageError, WriterGone
from .output import PATIENCE_S, Wakes, close_quietly, log
from .resilient import Resilient, Tally
from .segment import ROLL_BYTES

SYNC_BYTES: Final = 4 << 20
KEEP_BYTES: Final = 64 << 20

_T = TypeVar("_T")


class Writer(Resilient):
    """Appends events to one journal. Any thread may call; other processes have writers of their own.

    `floor_ns` is the newest time seen in the journal: this writer's times start there. With `durability` "interval" the
    syncer syncs what `append` wrote, with "always" `append` itself does, with "os" nobody does. The lock is held, and
    the first segment is there, when the constructor returns; a disk that refuses makes the writer degraded from the
    start, or raises StorageError with `strict`.
    """

    __slots__ = ()

    def __init__(
        self, journal: Path, identity: OrderHeader, syncer: Wakes, *, durability: str, strict: bool, floor_ns: int
    ) -> None:
        super().__init__(journal, identity, syncer, durability=durability, strict=strict, floor_ns=floor_ns)
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
            if not self.strict:
                return True
            if not self._empty_backlog():
                raise StorageError(
                    f"{self.journal} cannot be written ({self.degraded}); this event was not recorded",
                    hint="earlier events are kept; free space or mend the disk, then call again",
                )
        self._limit = min(ROLL_BYTES, self._size + SYNC_BYTES)
        if self.durability != "os":
            self.urgent = self.dirty_since > 0
            self.dirty_since = self.dirty_since or monotonic()
            self._syncer.wake()
            if len(self._kept) > KEEP_BYTES:
                # fdatasync hangs: what it would have to prove is no longer covered by a second writing.
                self._keep_anew()
        return False

    def append_apart(self, kind: int, body: Any) -> int | None:
        """Write an event whose time parts all that this writer wrote from all that it writes next, to the microsecond.

        Returns and raises as `append` does. Any thread.
        """
        if not self._enter(PATIENCE_S):
            self._set_aside(kind, body, None, 1)
            return None
        try:
            if self._size >= self._limit and self._gate():
                return self._accept(kind, body, None, 1)
            payload = self._pack((self._seq, kind, self._time_apart(), body))
            if len(payload) > MAX_PAYLOAD:
                payload = self._spill(*msgspec.msgpack.decode(payload))
            self._in_doubt = True
            return self._finish(encode_frame(payload, self._crcs), payload, None, 1)
        finally:
            self._leave()

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
        """fdatasync all that was written before this call; False if that failed (it is then written again)."""
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
        unproven, self._unproven = self._unproven, []
        for lost in unproven:
            self._write_again(lost.fd, lost.kept, OSError(errno.EIO, "an earlier sync failed"))
        good = not unproven
        # A segment of which nothing is kept was synced to its end before.
        for segment in retired:
            good = (not segment.kept or self._sync_one(segment.fd, segment.kept)) and good
            close_quietly(segment.fd)
        if fd >= 0 and kept:
            good = self._sync_one(fd, kept) and good
        fail_point("sync-after")
        if good:
            self._synced = max(self._synced, written)
        return good

    def _sync_one(self, fd: int, kept: bytearray) -> bool:
        try:
            data_sync(fd)
            if not self._folders_synced:
                # First the mark, then the sync: a segment that is begun meanwhile takes the mark away again.
                self._folders_synced = True
                self._folder.sync()
            if os.fstat(fd).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "the segment was removed")
        except OSError as failure:
            self._folders_synced = False
            self._write_again(fd, kept, failure)
            return False
        return True

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

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self, body: dict[str, Any]) -> None:
        """Write the closing event, sync, let the lock go. Raises StorageError if events could not be kept."""
        try:
            # Before the closing event, so that it is not refused in strict mode; and behind it.
            if self.waiting:
                self.recover()
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

    def append_apart(self, kind: int, body: Any) -> int | None:
        """As Writer.append_apart, and synced."""
        result = super().append_apart(kind, body)
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
            f"{self.journal} could not be synced ({self.degraded}); the event is written, a power cut may take it",
            hint="mend the disk",
        )


def open_writer(
    journal: Path, identity: OrderHeader, syncer: Wakes, *, durability: str, strict: bool, floor_ns: int
) -> Writer:
    """A new writer of the journal, its lock held, its first segment there."""
    kind = AlwaysDurable if durability == "always" else Writer
    return kind(journal, identity, syncer, durability=durability, strict=strict, floor_ns=floor_ns)


def _cut(body: Any) -> str:
    try:
        text = repr(body)
    except (RecursionError, ValueError):
        text = type(body).__name__
    return text if len(text) <= 120 else text[:117] + "..."


__all__ = ["AlwaysDurable", "Tally", "Writer", "WriterGone", "open_writer"]
