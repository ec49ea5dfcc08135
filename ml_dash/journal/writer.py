"""The writer: numbers an event, frames it, and appends it to the journal.

Every process has a writer of its own, in segments of its own. An event is with the operating system when `append`
returns: it survives the death of this process. The syncer makes it survive a power cut.

When the disk refuses, the writer is *degraded*: events are accepted into memory, and the syncer writes them to a new
segment once the disk accepts them. Nothing is ever written behind a partial frame. A descriptor whose fdatasync failed
is not used again, and its unsynced frames are written to a new segment: Linux marks the pages clean after the failure,
so a second fdatasync would succeed and prove nothing.

The way of an event, and what a crash leaves at each point:

    get inside      another thread is inside: wait in turns; if it hangs, set the event aside (memory)
    number, time    nothing
    pack, frame     nothing
    write(2)        a torn frame, which readers pass over; its call had not returned
    return          the event, unless the machine loses power
    fdatasync       the event, whatever happens (within a second, or after 4 MiB)

What holds:

- A number is used once, and is used up as soon as a whole frame with it may be on disk, even if that is not known.
- A writer's times never decrease. They begin after the newest time in the journal (`floor_ns`), so that what is set
  later wins over what was set earlier, also if the clock of this machine is behind.
- Frames are first written in the order of their numbers; those whose sync failed stand once more in a later segment.
  Nothing is written to an old segment again.
- No call waits for another process or a network. It may wait for the kernel, in its own write.

Events that wait in memory are bounded (see `backlog`). What does not fit is counted, and told in a `lost` event and at
`close`.

`segment_file` holds numbers and descriptors, `degraded` what happens when the disk refuses, `backlog` the events in
memory, `syncer` the thread that calls `sync` and `retry`. This module decides who may touch them, and when.
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

import msgpack

from ..core import events
from ..core.frames import HEAD, MAX_PAYLOAD, OrderHeader, encode_frame
from ..disk.durable import STORAGE_TROUBLE, Write, data_sync, fail_point, is_gone
from ..errors import InvalidValue, StorageError, WriterGone
from .degraded import FIRST_RETRY_S, Degraded, Tally, Wakes, counted, refusal
from .segment import ROLL_BYTES, SegmentFolder
from .segment_file import Retired, SegmentFile, close_quietly, packer

log = logging.getLogger("ml_dash")

# Bytes after which `append` looks at everything again (`_gate`), and has a sync made at once if one is still due.
SYNC_BYTES: Final = 4 << 20
UNSYNCED_BYTES: Final = 64 << 20
# What msgpack and msgspec raise for a body that they cannot encode.
_NOT_ENCODABLE: Final = (OverflowError, UnicodeEncodeError, TypeError, RecursionError)
PATIENCE_S: Final = 1.0
"""How long a call waits for the thread inside before it takes it for hanging in the kernel."""
# How often a call gives other threads a turn before it blocks (see `_wait_for_turn`).
_YIELDS: Final = 16

_T = TypeVar("_T")


class Writer:
    """Appends events to one journal. Any thread may call; other processes have writers of their own.

    `floor_ns` is the newest time seen in the journal (ns since the epoch): this writer's times start after it. With
    `durability` "interval" the syncer syncs what `append` wrote, with "always" `append` itself does, with "os" nobody
    does. When the constructor returns, the lock is held and the first segment exists; if the disk refuses, the writer
    is degraded from the start, or StorageError is raised with `strict`.

    Two locks. `_acquire`/`_release` let one thread *inside*: only that one touches the segment, the numbers and the
    backlog. `_sync_turn` lets one thread sync, and protects `_unproven` and `_synced`. A thread in a sync gets
    inside for short moments only, never during fdatasync. `_end` takes the two the other way round, with time limits.
    `dirty_since`, `urgent` and `retry_at` are read by the syncer without a lock: it looks again if it is early.
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
        # `created_ns` is part of each segment's name, and the first event is not earlier: names sort as the events do.
        file = SegmentFile(SegmentFolder(journal, identity), max(time_ns(), floor_ns + 1), keep=durability != "os")
        self._file = file
        self._trouble = Degraded(file, syncer, strict=strict)
        self.journal = journal
        self.identity = identity
        self.id = file.id
        self.created_ns = file.created_ns
        self.durability = durability
        self.strict = strict
        # Called by `close` on a full disk, before events are given up, to free room; True if it freed some.
        self.make_room: Callable[[], bool] = _no_room
        # For the syncer: since when there is something to sync (monotonic seconds; 0: nothing), and whether at once.
        self.dirty_since = 0.0
        self.urgent = False
        # The write to use once threads contend for this writer; None where a write may hang (see `keeping_write`).
        self.when_contended: Write | None = None
        self._syncer = syncer
        # The write that `append` uses; None: `os.write`.
        self._keeping_write: Write | None = _failing_write() if _fails_at_write() else None
        self._new_lock()
        # True while a thread is between `_acquire` and `_release`. Only `_wait_for_turn` reads it without being inside.
        self._inside = False
        # A thread hung inside when last waited for: later calls do not wait a second each, but set their events aside
        # at once.
        self._stuck = False
        self._gone = False
        # Segments whose sync failed and whose frames could not be written again yet.
        self._unproven: list[Retired] = []
        self._synced = 0
        self._sync_turn = threading.Lock()
        try:
            # The lock before the first segment: a segment without a lock would be a dead writer's, and might be
            # recorded as such.
            file.folder.open()
            file.hold_lock()
            file.start(0)
        except OSError as error:
            # Trouble that does not pass, or a caller that wants to know at once.
            if error.errno not in STORAGE_TROUBLE or strict:
                file.let_go()
                raise refusal(journal, "could not start a journal segment", error) from error
            self._trouble.begin(error)

    # -- the hot path ------------------------------------------------------------------------------------------------

    def append(self, kind: int, body: Any, tally: Tally | None = None, count: int = 1) -> int | None:
        """Write one event; on return it is with the operating system, and survives this process.

        Returns its sequence number, or, with a `tally`, the ordinal of the first of its `count` points; None if the
        event could not be numbered yet, or was lost (see `degraded`). Raises InvalidValue for what cannot be encoded,
        WriterGone after `close`, StorageError in strict mode; nothing is recorded then. Any thread.

        This is the hot path, about 3 µs, and so it is one long function: no context manager, no call that is not
        needed, and one comparison (`size >= limit`) for all that happens rarely. Whoever wants a look from `_gate` sets
        `limit` to -1.
        """
        file = self._file
        if not self._acquire(False) and not self._wait_for_turn():
            try:
                self._trouble.set_aside(kind, body, tally, count)
            except _NOT_ENCODABLE as error:
                raise InvalidValue(f"cannot record {_cut(body)}: {error}") from error
            return None
        self._inside = True
        try:
            # False almost always. Numbers, segment and lock are in order then, and there is room.
            if file.size >= file.limit and self._gate():
                return self._trouble.accept(kind, body, tally, count)
            # The clock may be set back, by hand or by NTP. A time may repeat; the number tells the two events apart.
            now = time_ns()
            if now < file.last_ns:
                now = file.last_ns
            else:
                file.last_ns = now
            seq = file.seq
            payload = file.pack((seq, kind, now, body))
            length = len(payload)
            # The body is in a blob, synced, before the frame names it. An OSError here leaves no frame: the whole event
            # waits then.
            if length > MAX_PAYLOAD:
                payload = file.spill(seq, kind, now, body)
                length = len(payload)
            # As `encode_frame`, without the call. One buffer, one write: two writes could be torn apart by a kill.
            frame = HEAD.pack(length, crc32(payload, file.crcs[length])) + payload
            length += 8
            # From here to `in_doubt = False` only the size of the file tells whether the frame is there.
            file.in_doubt = True
            # `os.write` releases the interpreter's lock, the other function does not: see `use_write`.
            write = self._keeping_write
            if (os_write(file.fd, frame) if write is None else write(file.fd, frame, length)) != length:
                return self._finish(frame, payload, tally, count)
            # There is no call between these lines, so no KeyboardInterrupt either.
            file.size += length
            file.seq = seq + 1
            file.in_doubt = False
            file.unsynced += frame
            if tally is None:
                return seq
            ordinal = tally.total
            tally.total = ordinal + count
            return ordinal
        except _NOT_ENCODABLE as error:
            raise InvalidValue(f"cannot record {_cut(body)}: {error}") from error
        except StorageError:
            # Strict mode has refused the event already, and counted that.
            raise
        except OSError as error:
            if error.errno not in STORAGE_TROUBLE:
                raise
            # It was the write that failed, not the storing of a blob: finish the frame, or leave the segment.
            if file.in_doubt:
                return self._finish(frame, payload, tally, count)
            return self._trouble.give_up(payload, error, tally, count)
        except BaseException:
            # KeyboardInterrupt may come between the write and the count of it. The next call looks at the file's size.
            if file.in_doubt:
                file.limit = -1
            raise
        finally:
            self._inside = False
            self._release()

    def _gate(self) -> bool:
        """Do what is due before a frame is written: roll, recover, have it synced.

        True if the event must wait in memory.

        Raises WriterGone after `close`, StorageError in strict mode. Inside.
        """
        if self._gone:
            raise WriterGone
        # Order matters: first what is certain about the file, then events that were called for earlier, then this one.
        file, trouble = self._file, self._trouble
        if file.in_doubt:
            file.resolve_doubt()
        # Calls that could not get in while a thread hung. They came before this event, so they get numbers before it.
        if trouble.backlog.aside:
            self._stuck = False
            trouble.number_aside()
            if trouble.reason is None and not self._write_waiting():
                return True
        # `fd` is below 0 if `resolve_doubt` has retired the segment.
        if trouble.reason is None and (file.size >= ROLL_BYTES or file.fd < 0):
            try:
                file.roll()
            except OSError as error:
                trouble.begin(error)
        if trouble.reason is not None:
            # Not tried again here: a training loop must not pay for a disk that takes seconds to refuse. The syncer
            # does, at `retry_at`. Strict callers want to know now.
            if not self.strict:
                return True
            if not self._write_waiting():
                raise StorageError(
                    f"{self.journal} cannot be written ({trouble.reason}); this event was not recorded",
                    hint="earlier events are kept; free space or mend the disk, then call again",
                )
        # Nothing to check for the next 4 MiB, or up to the roll.
        file.limit = min(ROLL_BYTES, file.size + SYNC_BYTES)
        if self.durability != "os":
            # 4 MiB came and the sync of what was before them is still due: do not wait out the 0.8 s.
            self.urgent = self.dirty_since > 0
            self.dirty_since = self.dirty_since or monotonic()
            self._syncer.wake()
            if file.unsynced_bytes() > UNSYNCED_BYTES:
                # fdatasync hangs, and memory is bounded: if it fails in the end, these frames are not written again.
                file.forget_unsynced()
        return False

    def append_apart(self, kind: int, body: Any) -> int | None:
        """Write an event at a microsecond of its own, after all events of this writer so far and before all later ones.

        Returns and raises as `append` does. Any thread.
        """
        if not self._enter(PATIENCE_S):
            self._trouble.set_aside(kind, body, None, 1)
            return None
        file = self._file
        try:
            if file.size >= file.limit and self._gate():
                return self._trouble.accept(kind, body, None, 1)
            # `time_apart` moves `last_ns`, so that events after this one are not earlier either.
            payload = file.pack((file.seq, kind, file.time_apart(), body))
            if len(payload) > MAX_PAYLOAD:
                payload = file.spill(*msgpack.unpackb(payload))
            # `_finish` writes all of it: nothing is there yet, and it begins where the file ends.
            file.in_doubt = True
            return self._finish(encode_frame(payload, file.crcs), payload, None, 1)
        finally:
            self._leave()

    def append_with_blob(self, kind: int, body: Any, place: Callable[[int], _T]) -> tuple[int, _T]:
        """Write an event that names a blob; `place(seq)` gives the blob its name first. Returns (seq, place's result).

        Blob before event: an event must never point at nothing. `place` runs while nobody else appends; if it raises,
        nothing is written. Raises StorageError if the disk refuses: a file is never accepted into memory.
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
            # Inside, because the blob's name holds the number: nobody else may take it meanwhile. The content was
            # copied and hashed before, outside; this is a rename and the sync of a folder.
            placed = place(seq)
            # A crash here leaves a blob that no event names, and no event that names a missing blob.
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
        """Make a new lock and keep its bound methods: `append` saves two look-ups by it."""
        lock = threading.Lock()
        self._acquire = lock.acquire
        self._release = lock.release

    def _wait_for_turn(self) -> bool:
        """Wait to get inside; False if the thread that is inside seems to hang in the kernel."""
        if self.when_contended is not None and self._keeping_write is None:
            # The thread inside released the interpreter's lock during its write, and this one woke for nothing. Do not
            # release it from now on.
            self._keeping_write = self.when_contended
        if self._stuck:
            return False
        # The thread inside needs the interpreter's lock to come out, and gets it after a yield or two. Blocking on our
        # lock at once would form a convoy: it is handed to a thread that must then wait for the interpreter, and so on.
        for _ in range(_YIELDS):
            sleep(0)
            if self._acquire(False):
                return True
        # Two rounds: the first may end just when one thread leaves and another has not set `_inside` yet.
        for _ in range(2):
            acquire = self._acquire
            if acquire(timeout=PATIENCE_S):
                return True
            if self._inside:
                self._stuck = True
                return False
        # Nobody is inside, yet the lock is taken: an interrupt came between taking it and `_inside = True`.
        # Another thread may have replaced the lock already; a third one would then let two threads inside.
        if acquire == self._acquire:
            self._new_lock()
        return self._acquire(timeout=PATIENCE_S)

    def _enter(self, wait_s: float) -> bool:
        """Get inside within `wait_s` seconds; False if a thread seems to hang there. Every True needs a `_leave`."""
        if not self._acquire(timeout=wait_s):
            return False
        self._inside = True
        return True

    def _leave(self) -> None:
        self._inside = False
        self._release()

    def use_write(self, write: Write | None) -> None:
        """Write through this function from now on (see `durable.keeping_write`); None for `os.write`."""
        if not _fails_at_write():
            self._keeping_write = write

    def load(self) -> None:
        """Load what makes each append faster; the first ones need not wait for that. Any thread."""
        self._file.pack = packer(load=True)

    # -- when the disk refuses ---------------------------------------------------------------------------------------

    @property
    def degraded(self) -> str | None:
        """The disk's error while the writer is degraded; None otherwise."""
        return self._trouble.reason

    @property
    def retry_at(self) -> float:
        """When the syncer should call `retry` (monotonic seconds); 0: not at all."""
        return self._trouble.retry_at

    @property
    def waiting(self) -> bool:
        """True if events wait in memory for the disk, or the writer is degraded."""
        return bool(self._trouble.backlog) or self._trouble.reason is not None

    def _finish(self, frame: bytes, payload: bytes, tally: Tally | None, count: int) -> int | None:
        """Write the rest of `frame`; if the disk refuses, keep the event in memory. Returns as `append` does."""
        file = self._file
        try:
            file.finish(frame)
        except OSError as error:
            if error.errno not in STORAGE_TROUBLE:
                raise
            return self._trouble.give_up(payload, error, tally, count)
        return counted(tally, count, file.seq - 1)

    def _write_waiting(self) -> bool:
        """Write what waits; afterwards calls wait for their turn again, since whoever hung has come out. Inside."""
        written = self._trouble.write_waiting()
        if written:
            self._stuck = False
        return written

    def recover(self) -> bool:
        """Try to write the waiting events to a new segment; True if none is left. Any thread."""
        if not self._enter(PATIENCE_S):
            # A thread hangs inside: look again soon, without a limit to how often.
            self._trouble.retry_at = monotonic() + FIRST_RETRY_S
            return False
        try:
            if self._gone:
                return True
            if self._file.in_doubt:
                self._file.resolve_doubt()
            # Before writing: their numbers are behind those of the events that wait already.
            self._trouble.number_aside()
            return self._write_waiting()
        finally:
            self._leave()

    def retry(self) -> None:
        """Try once more to write the waiting events. For the syncer, at `retry_at`."""
        # First, so that an attempt that fails can set the next time.
        self._trouble.retry_at = 0.0
        self.recover()

    def count_lost(self) -> None:
        """Count a loss that has no event: a file that could not be stored."""
        self._trouble.backlog.count_lost()

    # -- durability --------------------------------------------------------------------------------------------------

    def sync(self) -> bool:
        """fdatasync all that was written before this call; False if that failed. Any thread.

        After a failure the frames are written again to a new segment, which a later call syncs.
        """
        # Another sync hangs, or is slow. 30 s is far beyond a sync that works; `close` and "always" must come back in
        # the end.
        if not self._sync_turn.acquire(timeout=30.0):
            return False
        try:
            return self._sync_in_turn()
        finally:
            self._sync_turn.release()

    def _sync_in_turn(self) -> bool:
        """Sync what is written, with `_sync_turn` held; return as `sync` does.

        What happens where, and afterwards:

          inside     take descriptor, unsynced frames and retired segments; begin a new, empty `unsynced`
          outside    fdatasync (may take seconds; calls go on appending to the same descriptor)
          good       the taken frames are dropped, and counted as synced
          failed     they are written again to a new segment, before all that waits
        """
        if not self._enter(PATIENCE_S):
            return False
        try:
            file = self._file
            if file.in_doubt:
                file.resolve_doubt()
            # Taken away from the file, so that only this thread closes these descriptors.
            retired, file.retired = file.retired, []
            fd, unsynced, written = file.fd, file.unsynced, self._written()
            file.drop_unsynced()
            # Whatever comes from now on makes it dirty again: `limit` sends the next call through `_gate`, which notes
            # the time.
            self.dirty_since = 0.0
            self.urgent = False
            file.limit = -1
        finally:
            self._leave()
        fail_point("sync-before")
        # Their sync has failed before, and syncing the same descriptor again would prove nothing.
        unproven, self._unproven = self._unproven, []
        for segment in unproven:
            self._write_again(segment.fd, segment.unsynced, OSError(errno.EIO, "an earlier sync failed"))
        good = not unproven
        # A retired segment without unsynced frames was synced to its end before, unless they were forgotten.
        for segment in retired:
            due = segment.unsynced or segment.forgotten
            good = (not due or self._sync_one(segment.fd, segment.unsynced)) and good
            # If the sync failed, `_write_again` has put the frames elsewhere, so nothing needs this descriptor.
            close_quietly(segment.fd)
        if fd >= 0 and unsynced:
            good = self._sync_one(fd, unsynced) and good
        fail_point("sync-after")
        # `written` was counted inside, with the frames that were taken. `max`: after a failure it may be less than
        # before.
        if good:
            self._synced = max(self._synced, written)
        return good

    def _sync_one(self, fd: int, unsynced: bytearray) -> bool:
        """Sync one descriptor and, where that is due, the names of new segments; False if that failed. Not inside.

        A file whose name is not durable is lost in a power cut with all that was synced in it, so both belong together.
        """
        file = self._file
        try:
            data_sync(fd)
            if not file.folders_synced:
                # Set the mark first: a segment that begins during the sync clears it, and its name is synced next time.
                file.folders_synced = True
                file.folder.sync()
            # Somebody removed the folder while we wrote: the sync of a file without a name is a success that means
            # nothing.
            if os.fstat(fd).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "the segment was removed")
        except OSError as failure:
            file.folders_synced = False
            self._write_again(fd, unsynced, failure)
            return False
        return True

    def _write_again(self, fd: int, unsynced: bytearray, failure: OSError) -> None:
        """Write the unsynced frames of `fd`, whose sync failed, to a new segment, under their old numbers."""
        if not self._enter(PATIENCE_S):
            # A thread hangs inside. A later sync of this descriptor would prove nothing, so the next sync begins with
            # writing these frames again.
            self._unproven.append(Retired(fd, unsynced))
            self.dirty_since = self.dirty_since or monotonic()
            return
        try:
            file = self._file
            log.warning(
                "ml-dash: could not sync %s: %s. Its last %d bytes are written again to a new segment.",
                self.journal, failure.strerror or failure, len(unsynced) + len(file.unsynced),
            )  # fmt: skip
            # The failed descriptor may be the current one: go on in a new segment. If it is, `retire` has just put it,
            # with the frames since this sync began, at the end of `retired`; these frames are not proven either.
            file.retire()
            if file.retired and file.retired[-1].fd == fd:
                unsynced = unsynced + file.retired.pop().unsynced
                close_quietly(fd)
            # The payloads without their frames: checksums depend on the segment. Readers know an event by writer and
            # number, so that it may stand in two segments and counts once.
            self._trouble.backlog.push_front([bytes(payload) for payload in _payloads(unsynced)])
            file.folders_synced = False
            # If the disk refuses this as well, the writer is degraded now, and the syncer tries again.
            if self._write_waiting():
                self.dirty_since = monotonic()
                self._syncer.wake()
        finally:
            self._leave()

    def _written(self) -> int:
        """The number of events that are in a segment, synced or not."""
        backlog = self._trouble.backlog
        # All numbers that were given out, without those of waiting events and those that no event will have.
        return self._file.seq - len(backlog.payloads) - backlog.holes

    def durable_counts(self) -> dict[str, int]:
        """Return how many events of this writer are accepted, written, synced and lost, under these keys.

        Not inside: the counts are read one after the other while other threads append, so they may be some events
        apart.
        """
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
        """The bytes of events that wait in memory."""
        return self._trouble.waiting_bytes

    @property
    def seq(self) -> int:
        """The number of the next event."""
        return self._file.seq

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self, body: dict[str, Any]) -> None:
        """Write the closing event, sync, release the lock. Raises StorageError if events were lost.

        Later calls raise WriterGone.

        A crash before the closing event leaves a run that the next reader finds dead, and so interrupted. A crash after
        it, and before the lock file is removed, leaves a closed run: readers ask for the event before the lock.
        """
        try:
            # Recover before the closing event, so that strict mode does not refuse it; and again after it.
            if self.waiting:
                self.recover()
            # Another thread has closed it meanwhile.
            with contextlib.suppress(WriterGone):
                self.append(events.CLOSE, body)
            # The last chance for what waits: after this the process may end. Room may come from what can be made again.
            if self.waiting and not self.recover() and self._trouble.is_full and self.make_room():
                self.recover()
            # After a sync that failed, the frames are in a new segment, which needs a sync of its own.
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
        """Release everything, whoever hangs.

        The locks are taken in the other order than `sync` takes them, so each has a time limit.
        """
        entered = self._enter(PATIENCE_S)
        turn = self._sync_turn.acquire(timeout=PATIENCE_S)
        # Even without being inside: `_gate` of the next call sees it, through `limit`.
        self._gone = True
        self._file.limit = -1
        # If a thread hangs in a kernel call, leave its descriptors open: their numbers could be reused under it.
        if entered and turn:
            self._file.let_go()
        if turn:
            self._sync_turn.release()
        if entered:
            self._leave()

    def abandon(self) -> None:
        """Close this process's copies of the descriptors, in a forked child: all else is the parent's."""
        # The fork may have come while a thread of the parent held these locks. That thread does not exist here.
        self._new_lock()
        self._sync_turn = threading.Lock()
        self._gone = True
        self._inside = False
        self._file.limit = -1
        # The parent writes its waiting events itself: written here as well, they would stand under two writers.
        self._trouble.backlog.clear()
        self._file.abandon()


class AlwaysDurable(Writer):
    """`durability="always"`: each event is synced before `append` returns."""

    __slots__ = ()

    def append(self, kind: int, body: Any, tally: Tally | None = None, count: int = 1) -> int | None:
        """Write one event as `Writer.append` does, synced on return."""
        result = super().append(kind, body, tally, count)
        self._sync_or_raise()
        return result

    def append_apart(self, kind: int, body: Any) -> int | None:
        """Write one event as `Writer.append_apart` does, synced on return."""
        result = super().append_apart(kind, body)
        self._sync_or_raise()
        return result

    def append_with_blob(self, kind: int, body: Any, place: Callable[[int], _T]) -> tuple[int, _T]:
        """Write an event as `Writer.append_with_blob` does, synced on return."""
        result = super().append_with_blob(kind, body, place)
        self._sync_or_raise()
        return result

    def _sync_or_raise(self) -> None:
        # After a sync that failed, the frames are in a new segment: sync that one.
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
    """Return a new writer of a journal (see `Writer`): its lock is held, its first segment exists."""
    kind = AlwaysDurable if durability == "always" else Writer
    return kind(journal, identity, syncer, durability=durability, strict=strict, floor_ns=floor_ns)


def _payloads(frames: bytearray) -> Iterator[bytearray]:
    """Yield the payloads of whole frames, one after the other. Lengths are trusted: these bytes come from memory."""
    position = 0
    while position < len(frames):
        length, _ = HEAD.unpack_from(frames, position)
        yield frames[position + HEAD.size : position + HEAD.size + length]
        position += HEAD.size + length


def _fails_at_write() -> bool:
    """True if a crash test wants to be killed at a write: then only the one with fail points is used."""
    return os.environ.get("ML_DASH_FAIL", "").startswith("frame-write")


def _failing_write() -> Write:
    """Return a write with fail points, at which crash tests kill the process."""

    def write(fd: int, data: bytes, size: int) -> int:
        fail_point("frame-write-before")
        count = os.write(fd, data)
        fail_point("frame-write-after")
        return count

    return write


def _cut(body: Any) -> str:
    """Return a text for an error message: the beginning of what could not be recorded."""
    try:
        text = repr(body)
    except (RecursionError, ValueError):
        text = type(body).__name__
    return text if len(text) <= 120 else text[:117] + "..."


__all__ = ["AlwaysDurable", "Tally", "Writer", "WriterGone", "open_writer"]
