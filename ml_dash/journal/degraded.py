"""The degraded state of a writer: the cause, the backlog, the time of the next attempt, the loss.

Training must not end because a disk is full for a minute. So an event that the disk does not take is numbered all the
same and waits in memory, and the call returns. From then on:

    append ── accept ──▶ backlog ◀── set_aside ── calls that cannot get inside
                            │
    syncer ── retry ──▶ write_waiting ──▶ a new segment ──▶ a LOST event, if any were lost ──▶ not degraded

Attempts follow after 0.1 s, 0.2 s, and so on up to every 5 s, in the thread of the syncer. Events are written in the
order in which they wait, each leaves memory only once its frame is whole in a segment, and new ones go behind them, so
that the order of a writer's events on disk is that of its calls. A crash during all this loses what is in memory: that
is what the warning says.

In strict mode an event that the disk refuses does not wait: the call raises. Its number stays unused, because a part of
its frame may be on disk.
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from time import monotonic, time_ns
from typing import Any, Final, Protocol

import msgpack

from ..core import events
from ..core.frames import MAX_PAYLOAD
from ..disk.durable import STORAGE_TROUBLE
from ..errors import StorageError
from .backlog import Backlog
from .segment import ROLL_BYTES
from .segment_file import SegmentFile

# Seconds between attempts: many troubles pass at once, and a disk that stays full is not asked all the time.
FIRST_RETRY_S: Final = 0.1
LAST_RETRY_S: Final = 5.0

_KEEPING: Final = (
    "Training goes on; events are kept in memory (up to 64 MiB) and written as soon as the disk takes them. Should the "
    "process die before that, they are lost: free space or mend the disk."
)
_REFUSING: Final = "Calls raise StorageError until the disk takes writes again: free space or mend it."

log = logging.getLogger("ml_dash")


class Wakes(Protocol):
    """The part of the syncer that a writer calls."""

    def wake(self) -> None:
        """Have the writers served soon: one has something to sync or to write again. Any thread; never waits."""


class Tally:
    """The number of points of one metric that this writer has appended, which is the ordinal of the next one."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


def counted(tally: Tally | None, count: int, seq: int) -> int:
    """Return what `append` returns for event `seq` with `count` points; with a tally, add them to it."""
    if tally is None:
        return seq
    ordinal = tally.total
    tally.total = ordinal + count
    return ordinal


class Degraded:
    """The degraded state of one writer.

    `reason` says why the disk refuses (None: it does not), `backlog` holds the events that wait for it, and `retry_at`
    is the time of the next attempt (monotonic seconds, 0: none). Only the thread inside the writer may touch these, but
    for `set_aside`, which is for threads that cannot get in, and readers of `reason` and `retry_at`.
    """

    def __init__(self, file: SegmentFile, syncer: Wakes, *, strict: bool) -> None:
        self._file = file
        self._journal = file.folder.journal
        self._syncer = syncer
        self._strict = strict
        # The pause before the next attempt; doubled by each one that fails.
        self._retry_s = FIRST_RETRY_S
        self.backlog = Backlog()
        self.reason: str | None = None
        self.retry_at = 0.0

    def begin(self, error: OSError) -> None:
        """Enter the degraded state after an error of the disk, or stay in it; schedule the next attempt."""
        text = f"{error.strerror or error} ({errno.errorcode.get(error.errno or 0, error.errno)})"
        # One warning for one trouble, however many calls and attempts meet it.
        if self.reason is None:
            what = _REFUSING if self._strict else _KEEPING
            log.warning("ml-dash: cannot write %s: %s. %s", self._journal, text, what)
            self._retry_s = FIRST_RETRY_S
        self.reason = text
        self.retry_at = monotonic() + self._retry_s
        # So that the next call goes through `_gate`, which looks at `reason`.
        self._file.limit = -1
        self._syncer.wake()

    @property
    def is_full(self) -> bool:
        """True if the disk refuses because it is full, or a quota is."""
        return self.reason is not None and self.reason.endswith(("(ENOSPC)", "(EDQUOT)"))

    @property
    def waiting_bytes(self) -> int:
        """The bytes of events that wait in memory."""
        return self.backlog.size

    def give_up(self, payload: bytes, error: OSError, tally: Tally | None, count: int) -> int | None:
        """Keep the event that the disk did not take in memory; in strict mode raise StorageError instead."""
        # Used up, whatever follows: a part of the frame, or all of it, may be in the segment. Readers count the event
        # once.
        seq = self._file.seq
        self._file.seq += 1
        if self._strict:
            self.backlog.refuse(seq)
            raise refusal(self._journal, "could not write an event", error) from error
        # Beyond the limit too: the event has its number and its call must return. It is one event each time the trouble
        # begins.
        self.backlog.push(payload)
        self.begin(error)
        return counted(tally, count, seq)

    def accept(self, kind: int, body: Any, tally: Tally | None, count: int) -> int | None:
        """Number an event and keep it in memory; return as `append` does, or None if memory is full and it is lost."""
        file = self._file
        # The time of the call, not that of the writing; rewinds need a microsecond of their own.
        now = file.time_apart() if kind == events.REWIND else max(time_ns(), file.last_ns)
        file.last_ns = now
        payload = file.pack((file.seq, kind, now, body))
        seq = file.seq
        file.seq += 1
        # A lost event keeps its number: the LOST event names it, so that nobody waits for it.
        return counted(tally, count, seq) if self.backlog.push_if_it_fits(seq, payload) else None

    def set_aside(self, kind: int, body: Any, tally: Tally | None, count: int) -> None:
        """Keep an event, not numbered, because the thread inside the writer hangs in the kernel. Any thread.

        The body is copied, since the caller may change it before it is written.
        """
        # Not numbered: numbers belong to the thread inside. Its time will be that of the numbering.
        copy = self._file.pack(body)
        if not self.backlog.aside:
            log.warning("ml-dash: a write to %s hangs; events are kept in memory until it returns.", self._journal)
        self.backlog.set_aside((kind, msgpack.unpackb(copy), tally, count), len(copy))
        # An attribute is set in one step, so this is safe although a thread is inside.
        self._file.limit = -1
        self.retry_at = self.retry_at or monotonic() + FIRST_RETRY_S
        self._syncer.wake()

    def number_aside(self) -> None:
        """Number the events that were set aside."""
        while self.backlog.aside:
            self.accept(*self.backlog.take_aside())

    def write_waiting(self) -> bool:
        """Write all waiting events and leave the degraded state; False, and still degraded, if the disk refuses."""
        file = self._file
        try:
            # The trouble may have been that the folder was removed.
            file.ensure_folder()
            # Each step leaves things in order: an error in any of them comes back here with the rest still waiting.
            while self.backlog.payloads:
                self._write_first()
            self._report_lost()
            # So that a disk that takes nothing more is noticed now, and not by the next call of a training loop.
            if file.fd < 0:
                file.start(file.seq)
        except OSError as error:
            if error.errno not in STORAGE_TROUBLE:
                raise
            self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)
            self.begin(error)
            return False
        if self.reason is not None:
            log.warning("ml-dash: %s can be written again; what was kept in memory is on disk.", self._journal)
        self.reason = None
        self.retry_at = 0.0
        file.limit = -1
        return True

    def _write_first(self) -> None:
        """Move the first waiting payload to disk. Raises OSError with it still waiting."""
        file = self._file
        payload = self.backlog.payloads[0]
        # After an error there is no current segment. The next one states the number of the first event in it: that
        # which waits longest.
        if file.fd < 0 or file.size >= ROLL_BYTES:
            file.retire()
            file.start(int(msgpack.unpackb(payload)[0]))
        # It waited whole: no blob is stored while the disk refuses.
        if len(payload) > MAX_PAYLOAD:
            payload = file.spill(*msgpack.unpackb(payload))
        file.put(payload)
        # After the frame is whole. A crash before this has written it, and memory is gone anyway.
        self.backlog.pop()

    def _report_lost(self) -> None:
        """Write a `LOST` event for losses not reported yet. Raises OSError."""
        file = self._file
        body = self.backlog.unreported()
        # The usual case: all that waited was written.
        if body is None:
            return
        if file.fd < 0:
            file.start(file.seq)
        payload = file.pack((file.seq, events.LOST, max(time_ns(), file.last_ns), body))
        # Before `put`: after an interrupt the frame may be whole, and no other event may have its number.
        file.seq += 1
        try:
            file.put(payload)
        except OSError:
            # No whole frame was written: the number is free, and the loss not reported.
            file.seq -= 1
            raise
        self.backlog.mark_reported()


def refusal(journal: Path, what: str, error: OSError) -> StorageError:
    """Return the StorageError that strict mode raises at the call."""
    return StorageError.of(
        error,
        f"{what} in {journal}: {error.strerror or error}; earlier events are kept, this one was not recorded",
        hint="free space or mend the disk, then call again",
    )
