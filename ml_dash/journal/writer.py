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
import logging
import os
import threading
from collections.abc import Callable, Iterator
from os import write as os_write
from pathlib import Path
from time import monotonic, sleep, time_ns
from typing import Any, Final, TypeVar
from zlib import crc32

import msgspec

from ..core import events
from ..core.frames import HEAD, MAX_PAYLOAD, OrderHeader, encode_frame
from ..disk.durable import STORAGE_TROUBLE, Write, data_sync, fail_point, is_gone
from ..errors import InvalidValue, StorageError, WriterGone
from .degraded import FIRST_RETRY_S, Degraded, Tally, Wakes, counted, refusal
from .segment import ROLL_BYTES, SegmentFolder
from .segment_file import Retired, SegmentFile, close_quietly

log = logging.getLogger("ml_dash")

SYNC_BYTES: Final = 4 << 20
KEEP_BYTES: Final = 64 << 20
PATIENCE_S: Final = 1.0
_YIELDS: Final = 16

_T = TypeVar("_T")


class Writer:
    """Appends events to one journal. Any thread may call; other processes have writers of their own.

    `floor_ns` is the newest time seen in the journal: this writer's times start there. With `durability` "interval" the
    syncer syncs what `append` wrote, with "always" `append` itself does, with "os" nobody does. The lock is held, and
    the first segment is there, when the constructor returns; a disk that refuses makes the writer degraded from the
    start, or raises StorageError with `strict`.

    One thread at a time is inside, and only that one touches the segment, the numbers and what waits in memory.
    """

    # Slots, because `append` reads and writes many of these.
    __slots__ = (
        "_acquire",
        "_file",
        "_gone",
        "_inside",
        "_keeping_write",
        "_release",
        "_stuck",
        "_sync_turn",
        "_synced",
        "_syncer",
        "_trouble",
        "_unproven",
        "created_ns",
        "dirty_since",
        "durability",
        "id",
        "identity",
        "journal",
        "make_room",
        "strict",
        "urgent",
        "when_contended",
    )

    def __init__(
        self, journal: Path, identity: OrderHeader, syncer: Wakes, *, durability: str, strict: bool, floor_ns: int
    ) -> None:
        file = SegmentFile(SegmentFolder(journal, identity), max(time_ns(), floor_ns + 1), keep=durability != "os")
        self._file = file
        self._trouble = Degraded(file, syncer, strict=strict)
        self.journal = journal
        self.identity = identity
        self.id = file.id
        self.created_ns = file.created_ns
        self.durability = durability
        self.strict = strict
        # Frees room on a full disk, before an event is given up; was there any to free? Called by whoever is inside.
        self.make_room: Callable[[], bool] = _no_room
        # For the syncer: since when there is something to sync (monotonic seconds), at once or not.
        self.dirty_since = 0.0
        self.urgent = False
        # The write to use once threads get into each other's way; None where it may hang (see `keeping_write`).
        self.when_contended: Write | None = None
        self._syncer = syncer
        self._keeping_write: Write | None = _failing_write() if _fails_at_write() else None
        self._new_lock()
        self._inside = False
        self._stuck = False
        self._gone = False
        # What a failed sync left, while it could not be written again; touched only in the sync's turn.
        self._unproven: list[Retired] = []
        self._synced = 0
        self._sync_turn = threading.Lock()
        try:
            file.folder.open()
            file.hold_lock()
            file.start(0)
        except OSError as error:
            if error.errno not in STORAGE_TROUBLE or strict:
                file.let_go()
                raise refusal(journal, "could not start a journal segment", error) from error
            self._trouble.begin(error)

    # -- the hot path ------------------------------------------------------------------------------------------------

    def append(self, kind: int, body: Any, tally: Tally | None = None, count: int = 1) -> int | None:
        """Write one event; on return it is with the operating system and survives this process.

        Returns its sequence number, or, with a `tally`, the ordinal of the first of its `count` points; None if the
        event could not be numbered yet, or was lost (see `degraded`). Raises InvalidValue for what cannot be encoded,
        WriterGone after `close`, StorageError in strict mode; nothing is recorded then. Any thread.
        """
        file = self._file
        if not self._acquire(False) and not self._wait_for_turn():
            self._trouble.set_aside(kind, body, tally, count)
            return None
        self._inside = True
        try:
            if file.size >= file.limit and self._gate():
                return self._trouble.accept(kind, body, tally, count)
            now = time_ns()
            if now < file.last_ns:
                now = file.last_ns
            else:
                file.last_ns = now
            seq = file.seq
            payload = file.pack((seq, kind, now, body))
            length = len(payload)
            if length > MAX_PAYLOAD:
                payload = file.spill(seq, kind, now, body)
                length = len(payload)
            frame = HEAD.pack(length, crc32(payload, file.crcs[length])) + payload
            length += 8
            file.in_doubt = True
            # Whether the interpreter's lock is let go of meanwhile: see `use_write`.
            write = self._keeping_write
            if (os_write(file.fd, frame) if write is None else write(file.fd, frame, length)) != length:
                return self._finish(frame, payload, tally, count)
            # No call stands between these lines: an interrupt cannot part them.
            file.size += length
            file.seq = seq + 1
            file.in_doubt = False
            file.kept += frame
            if tally is None:
                return seq
            ordinal = tally.total
            tally.total = ordinal + count
            return ordinal
        except (OverflowError, UnicodeEncodeError, TypeError, RecursionError) as error:
            raise InvalidValue(f"cannot record {_cut(body)}: {error}") from error
        except StorageError:
            # Strict mode has refused the event already, and counted that.
            raise
        except OSError as error:
            if error.errno not in STORAGE_TROUBLE:
                raise
            if file.in_doubt:
                return self._finish(frame, payload, tally, count)
            return self._trouble.give_up(payload, error, tally, count)
        except BaseException:
            # KeyboardInterrupt may come between the write and the count of it: the size of the file tells.
            if file.in_doubt:
                file.limit = -1
            raise
        finally:
            self._inside = False
            self._release()

    def _gate(self) -> bool:
        """What must be looked at before a frame is written; True if the event must wait in memory."""
        if self._gone:
            raise WriterGone
        file, trouble = self._file, self._trouble
        if file.in_doubt:
            file.resolve_doubt()
        if trouble.backlog.aside:
            self._stuck = False
            trouble.number_aside()
            if trouble.reason is None and not self._write_waiting():
                return True
        if trouble.reason is None and (file.size >= ROLL_BYTES or file.fd < 0):
            try:
                file.roll()
            except OSError as error:
                trouble.begin(error)
        if trouble.reason is not None:
            if not self.strict:
                return True
            if not self._write_waiting():
                raise StorageError(
                    f"{self.journal} cannot be written ({trouble.reason}); this event was not recorded",
                    hint="earlier events are kept; free space or mend the disk, then call again",
                )
        file.limit = min(ROLL_BYTES, file.size + SYNC_BYTES)
        if self.durability != "os":
            self.urgent = self.dirty_since > 0
            self.dirty_since = self.dirty_since or monotonic()
            self._syncer.wake()
            if len(file.kept) > KEEP_BYTES:
                # fdatasync hangs: what it would have to prove is no longer covered by a second writing.
                file.keep_anew()
        return False

    def append_apart(self, kind: int, body: Any) -> int | None:
        """Write an event whose time parts all that this writer wrote from all that it writes next, to the microsecond.

        Returns and raises as `append` does. Any thread.
        """
        if not self._enter(PATIENCE_S):
            self._trouble.set_aside(kind, body, None, 1)
            return None
        file = self._file
        try:
            if file.size >= file.limit and self._gate():
                return self._trouble.accept(kind, body, None, 1)
            payload = file.pack((file.seq, kind, file.time_apart(), body))
            if len(payload) > MAX_PAYLOAD:
                payload = file.spill(*msgspec.msgpack.decode(payload))
            file.in_doubt = True
            return self._finish(encode_frame(payload, file.crcs), payload, None, 1)
        finally:
            self._leave()

    def append_with_blob(self, kind: int, body: Any, place: Callable[[int], _T]) -> tuple[int, _T]:
        """Write an event after `place(seq)` has put its blob under the name that holds its number.

        `place` runs while nobody else appends; when it raises, nothing is written. Returns (seq, place's result).
        Raises StorageError if the disk refuses: a file is never accepted into memory.
        """
        if not self._enter(30.0):
            raise StorageError(f"a write to {self.journal} hangs; the file was not added", hint="try again later")
        file = self._file
        try:
            if file.size >= file.limit and self._gate():
                raise StorageError(
                    f"{self.journal} cannot be written ({self.degraded}); the file was not added",
                    hint="free space or mend the disk, then call again",
                )
            seq = file.seq
            placed = place(seq)
            fail_point("blob-event")
            now = file.last_ns = max(time_ns(), file.last_ns)
            payload = file.pack((seq, kind, now, body))
            if len(payload) > MAX_PAYLOAD:
                payload = file.spill(seq, kind, now, body)
            file.in_doubt = True
            self._finish(encode_frame(payload, file.crcs), payload, None, 1)
            return seq, placed
        finally:
            self._leave()

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

    def use_write(self, write: Write | None) -> None:
        """From now on write through this function (see `durable.keeping_write`); None for the usual `os.write`."""
        if not _fails_at_write():
            self._keeping_write = write

    # -- when the disk refuses ---------------------------------------------------------------------------------------

    @property
    def degraded(self) -> str | None:
        """What the disk said when it refused; None while all is well."""
        return self._trouble.reason

    @property
    def retry_at(self) -> float:
        """When the syncer is to call `retry` (monotonic seconds); 0 where nothing is to be tried."""
        return self._trouble.retry_at

    @property
    def waiting(self) -> bool:
        """Does anything wait in memory for the disk?"""
        return bool(self._trouble.backlog) or self._trouble.reason is not None

    def _finish(self, frame: bytes, payload: bytes, tally: Tally | None, count: int) -> int | None:
        """The write of `frame` failed or was short: finish that very frame, or give the segment up."""
        file = self._file
        try:
            file.finish(frame)
        except OSError as error:
            if error.errno not in STORAGE_TROUBLE:
                raise
            return self._trouble.give_up(payload, error, tally, count)
        return counted(tally, count, file.seq - 1)

    def _write_waiting(self) -> bool:
        written = self._trouble.write_waiting()
        if written:
            self._stuck = False
        return written

    def recover(self) -> bool:
        """Try to write what waits in memory, into a new segment; True when nothing waits."""
        if not self._enter(PATIENCE_S):
            self._trouble.retry_at = monotonic() + FIRST_RETRY_S
            return False
        try:
            if self._gone:
                return True
            if self._file.in_doubt:
                self._file.resolve_doubt()
            self._trouble.number_aside()
            return self._write_waiting()
        finally:
            self._leave()

    def retry(self) -> None:
        """For the syncer: `retry_at` has come."""
        self._trouble.retry_at = 0.0
        self.recover()

    def count_lost(self) -> None:
        """Something that has no event was lost: a file that could not be stored."""
        self._trouble.backlog.count_lost()

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
            file = self._file
            if file.in_doubt:
                file.resolve_doubt()
            retired, file.retired = file.retired, []
            fd, kept, written = file.fd, file.kept, self._written()
            file.keep_anew()
            self.dirty_since = 0.0
            self.urgent = False
            file.limit = -1
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
        file = self._file
        try:
            data_sync(fd)
            if not file.folders_synced:
                # First the mark, then the sync: a segment that is begun meanwhile takes the mark away again.
                file.folders_synced = True
                file.folder.sync()
            if os.fstat(fd).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "the segment was removed")
        except OSError as failure:
            file.folders_synced = False
            self._write_again(fd, kept, failure)
            return False
        return True

    def _write_again(self, fd: int, kept: bytearray, failure: OSError) -> None:
        """What `fd` does not hold safely goes to a new segment, under the old numbers."""
        if not self._enter(PATIENCE_S):
            # A thread hangs inside the kernel. A later sync of this descriptor would prove nothing: this comes first.
            self._unproven.append(Retired(fd, kept))
            self.dirty_since = self.dirty_since or monotonic()
            return
        try:
            file = self._file
            log.warning(
                "ml-dash: could not sync %s: %s. Its last %d bytes are written again to a new segment.",
                self.journal, failure.strerror or failure, len(kept) + len(file.kept),
            )  # fmt: skip
            file.retire()
            if file.retired and file.retired[-1].fd == fd:
                kept = kept + file.retired.pop().kept
                close_quietly(fd)
            self._trouble.backlog.push_front([bytes(payload) for payload in _payloads(kept)])
            file.folders_synced = False
            if self._write_waiting():
                self.dirty_since = monotonic()
                self._syncer.wake()
        finally:
            self._leave()

    def _written(self) -> int:
        backlog = self._trouble.backlog
        return self._file.seq - len(backlog.payloads) - backlog.holes

    def durable_counts(self) -> dict[str, int]:
        """How many events of this writer are accepted, written, synced and lost."""
        backlog = self._trouble.backlog
        written = self._written()
        return {
            "accepted": self._file.seq + len(backlog.aside) - backlog.refused,
            "written": written,
            "synced": min(self._synced, written),
            "lost": backlog.lost,
        }

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of events wait in memory."""
        return self._trouble.waiting_bytes

    @property
    def seq(self) -> int:
        """The number of the next event."""
        return self._file.seq

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self, body: dict[str, Any]) -> None:
        """Write the closing event, sync, let the lock go. Raises StorageError if events could not be kept."""
        try:
            # Before the closing event, so that it is not refused in strict mode; and behind it.
            if self.waiting:
                self.recover()
            with contextlib.suppress(WriterGone):
                self.append(events.CLOSE, body)
            if self.waiting and not self.recover() and self._trouble.is_full and self.make_room():
                self.recover()
            # A sync that fails has everything written again to a new segment, which needs a sync of its own.
            synced = self.durability == "os" or self.sync() or self.sync()
        finally:
            self._end()
        lost = self._trouble.backlog.lost + len(self._trouble.backlog)
        if lost:
            rest = f"all others are in {self.journal}"
            if is_gone(self.journal):
                rest = "no others are on disk"
            raise StorageError(
                f"{'1 event' if lost == 1 else f'{lost:,} events'} of {self.identity.project}/{self.identity.name} "
                f"{'was' if lost == 1 else 'were'} lost: the disk refused {'it' if lost == 1 else 'them'} "
                f"({self.degraded or 'and the buffer was full'}); {rest}",
                hint="free space or mend the disk before the next run",
            )
        if not synced:
            log.warning("ml-dash: %s is written but could not be synced; a power cut may take its end.", self.journal)

    def _end(self) -> None:
        entered = self._enter(PATIENCE_S)
        turn = self._sync_turn.acquire(timeout=PATIENCE_S)
        self._gone = True
        self._file.limit = -1
        # Descriptors that another thread is using inside a hung kernel call stay open.
        if entered and turn:
            self._file.let_go()
        if turn:
            self._sync_turn.release()
        if entered:
            self._leave()

    def abandon(self) -> None:
        """In a forked child: this writer is the parent's. Close our copies of its descriptors, touch nothing else."""
        self._new_lock()
        self._sync_turn = threading.Lock()
        self._gone = True
        self._inside = False
        self._file.limit = -1
        self._trouble.backlog.clear()
        self._file.abandon()


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


def _no_room() -> bool:
    return False


def open_writer(
    journal: Path, identity: OrderHeader, syncer: Wakes, *, durability: str, strict: bool, floor_ns: int
) -> Writer:
    """A new writer of the journal, its lock held, its first segment there."""
    kind = AlwaysDurable if durability == "always" else Writer
    return kind(journal, identity, syncer, durability=durability, strict=strict, floor_ns=floor_ns)


def _payloads(frames: bytearray) -> Iterator[bytearray]:
    position = 0
    while position < len(frames):
        length, _ = HEAD.unpack_from(frames, position)
        yield frames[position + HEAD.size : position + HEAD.size + length]
        position += HEAD.size + length


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


def _cut(body: Any) -> str:
    try:
        text = repr(body)
    except (RecursionError, ValueError):
        text = type(body).__name__
    return text if len(text) <= 120 else text[:117] + "..."


__all__ = ["AlwaysDurable", "Tally", "Writer", "WriterGone", "open_writer"]
