"""What a writer does when the disk refuses: finish or give up, keep in memory, write later, count what is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from time import monotonic, time_ns
from typing import Any, Final

import msgspec

from ..core import events
from ..core.frames import HEAD, MAX_PAYLOAD
from ..disk.durable import STORAGE_TROUBLE
from ..errors import StorageError
from .backlog import Aside
from .output import FIRST_RETRY_S, PATIENCE_S, Output, Retired, close_quietly, log
from .segment import ROLL_BYTES

LAST_RETRY_S: Final = 5.0


_KEEPING: Final = (
    "Training goes on; events are kept in memory (up to 64 MiB) and written as soon as the disk takes them. Should the "
    "process die before that, they are lost: free space or mend the disk."
)
_REFUSING: Final = "Calls raise StorageError until the disk takes writes again: free space or mend it."


class Tally:
    """How many points of one metric this writer has appended: the ordinal of the next one."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


class Resilient(Output):
    """An output that goes on when its disk does not."""

    __slots__ = ()

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
            what = _REFUSING if self.strict else _KEEPING
            log.warning("ml-dash: cannot write %s: %s. %s", self.journal, text, what)
            self._retry_s = FIRST_RETRY_S
        self.degraded = text
        self.retry_at = monotonic() + self._retry_s
        self._limit = -1
        self._syncer.wake()

    def _accept(self, kind: int, body: Any, tally: Tally | None, count: int) -> int | None:
        """Degraded: number the event and keep it in memory, or count it as lost if memory is full."""
        now = self._time_apart() if kind == events.REWIND else max(time_ns(), self._last_ns)
        self._last_ns = now
        payload = self._pack((self._seq, kind, now, body))
        seq = self._seq
        self._seq += 1
        return self._count(tally, count, seq) if self._backlog.push_if_it_fits(seq, payload) else None

    def _time_apart(self) -> int:
        """A whole microsecond later than all that was written: lines show no less, and `rewinds` goes by them."""
        self._last_ns = (max(time_ns(), self._last_ns) // 1000 + 1) * 1000
        return self._last_ns

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
            if self._folder.ensure():
                self._lose_lock()
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

    def _tell_lost(self) -> None:
        body = self._backlog.untold()
        if body is None:
            return
        if self._fd < 0:
            self._start_segment(self._seq)
        self._put(self._pack((self._seq, events.LOST, max(time_ns(), self._last_ns), body)))
        self._seq += 1
        self._backlog.told()

    def _write_again(self, fd: int, kept: bytearray, failure: OSError) -> None:
        """What `fd` does not hold safely goes to a new segment, under the old numbers."""
        if not self._enter(PATIENCE_S):
            # A thread hangs inside the kernel. A later sync of this descriptor would prove nothing: this comes first.
            self._unproven.append(Retired(fd, kept))
            self.dirty_since = self.dirty_since or monotonic()
            return
        try:
            log.warning(
                "ml-dash: could not sync %s: %s. Its last %d bytes are written again to a new segment.",
                self.journal, failure.strerror or failure, len(kept) + len(self._kept),
            )  # fmt: skip
            self._retire()
            if self._retired and self._retired[-1].fd == fd:
                kept = kept + self._retired.pop().kept
                close_quietly(fd)
            self._backlog.push_front([bytes(payload) for payload in _payloads(kept)])
            self._folders_synced = False
            if self._empty_backlog():
                self.dirty_since = monotonic()
                self._syncer.wake()
        finally:
            self._leave()

    def _storage_error(self, what: str, error: OSError) -> StorageError:
        failure = StorageError(
            f"{what} in {self.journal}: {error.strerror or error}; earlier events are kept, this one was not recorded",
            hint="free space or mend the disk, then call again",
        )
        failure.errno = error.errno
        return failure


def _payloads(frames: bytearray) -> Iterator[bytearray]:
    position = 0
    while position < len(frames):
        length, _ = HEAD.unpack_from(frames, position)
        yield frames[position + HEAD.size : position + HEAD.size + length]
        position += HEAD.size + length
