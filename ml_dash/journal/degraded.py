"""The state of a writer whose disk refuses: why, what is kept in memory, when to try again, what is lost."""

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

FIRST_RETRY_S: Final = 0.1
LAST_RETRY_S: Final = 5.0

_KEEPING: Final = (
    "Training goes on; events are kept in memory (up to 64 MiB) and written as soon as the disk takes them. Should the "
    "process die before that, they are lost: free space or mend the disk."
)
_REFUSING: Final = "Calls raise StorageError until the disk takes writes again: free space or mend it."

log = logging.getLogger("ml_dash")


class Wakes(Protocol):
    """What a writer asks of the syncer."""

    def wake(self) -> None:
        """Look at the writers: one has something to sync or to write again."""


class Tally:
    """How many points of one metric this writer has appended: the ordinal of the next one."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0


def counted(tally: Tally | None, count: int, seq: int) -> int:
    """What `append` returns for the event of this number, which brings `count` points."""
    if tally is None:
        return seq
    ordinal = tally.total
    tally.total = ordinal + count
    return ordinal


class Degraded:
    """Whether the disk refuses (`reason`), the backlog that waits for it, and when the syncer is to try again.

    For one thread at a time, the one that is inside the writer; `set_aside` is for those that cannot get there.
    """

    def __init__(self, file: SegmentFile, syncer: Wakes, *, strict: bool) -> None:
        self._file = file
        self._journal = file.folder.journal
        self._syncer = syncer
        self._strict = strict
        self._retry_s = FIRST_RETRY_S
        self.backlog = Backlog()
        self.reason: str | None = None
        self.retry_at = 0.0

    def begin(self, error: OSError) -> None:
        """The disk refuses, for the first time or again."""
        text = f"{error.strerror or error} ({errno.errorcode.get(error.errno or 0, error.errno)})"
        if self.reason is None:
            what = _REFUSING if self._strict else _KEEPING
            log.warning("ml-dash: cannot write %s: %s. %s", self._journal, text, what)
            self._retry_s = FIRST_RETRY_S
        self.reason = text
        self.retry_at = monotonic() + self._retry_s
        self._file.limit = -1
        self._syncer.wake()

    @property
    def is_full(self) -> bool:
        """Does the disk refuse because it is full?"""
        return self.reason is not None and self.reason.endswith(("(ENOSPC)", "(EDQUOT)"))

    @property
    def waiting_bytes(self) -> int:
        """What is kept in memory."""
        return self.backlog.size

    def give_up(self, payload: bytes, error: OSError, tally: Tally | None, count: int) -> int | None:
        """The disk did not take the event with the next number: keep it in memory, or refuse it in strict mode."""
        seq = self._file.seq
        self._file.seq += 1
        if self._strict:
            self.backlog.refuse(seq)
            raise refusal(self._journal, "could not write an event", error) from error
        self.backlog.push(payload)
        self.begin(error)
        return counted(tally, count, seq)

    def accept(self, kind: int, body: Any, tally: Tally | None, count: int) -> int | None:
        """Number an event and keep it in memory, or count it as lost if memory is full."""
        file = self._file
        now = file.time_apart() if kind == events.REWIND else max(time_ns(), file.last_ns)
        file.last_ns = now
        payload = file.pack((file.seq, kind, now, body))
        seq = file.seq
        file.seq += 1
        return counted(tally, count, seq) if self.backlog.push_if_it_fits(seq, payload) else None

    def set_aside(self, kind: int, body: Any, tally: Tally | None, count: int) -> None:
        """Another thread hangs inside the kernel: keep the event until somebody is inside again. Any thread."""
        copy = self._file.pack(body)
        if not self.backlog.aside:
            log.warning("ml-dash: a write to %s hangs; events are kept in memory until it returns.", self._journal)
        self.backlog.set_aside((kind, msgpack.unpackb(copy), tally, count), len(copy))
        self._file.limit = -1
        self.retry_at = self.retry_at or monotonic() + FIRST_RETRY_S
        self._syncer.wake()

    def number_aside(self) -> None:
        """Accept what was set aside."""
        while self.backlog.aside:
            self.accept(*self.backlog.take_aside())

    def write_waiting(self) -> bool:
        """Write what waits in memory; False, and degraded, if the disk refuses."""
        file = self._file
        try:
            file.ensure_folder()
            while self.backlog.payloads:
                self._write_first()
            self._tell_lost()
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
        if file.fd < 0 or file.size >= ROLL_BYTES:
            file.retire()
            file.start(int(msgpack.unpackb(payload)[0]))
        if len(payload) > MAX_PAYLOAD:
            payload = file.spill(*msgpack.unpackb(payload))
        file.put(payload)
        self.backlog.pop()

    def _tell_lost(self) -> None:
        file = self._file
        body = self.backlog.untold()
        if body is None:
            return
        if file.fd < 0:
            file.start(file.seq)
        file.put(file.pack((file.seq, events.LOST, max(time_ns(), file.last_ns), body)))
        file.seq += 1
        self.backlog.told()


def refusal(journal: Path, what: str, error: OSError) -> StorageError:
    """What strict mode raises at the call."""
    return StorageError.of(
        error,
        f"{what} in {journal}: {error.strerror or error}; earlier events are kept, this one was not recorded",
        hint="free space or mend the disk, then call again",
    )
