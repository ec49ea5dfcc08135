"""A file lock held for the life of a process, and a probe for the life of its holder.

Two locks, both of the kernel, so that they end with the process that holds them, however it ends:

    segments/<created>-<writer>.lock    held by a writer from before its first event: free means closed or dead
    turn.lock                           held for one pass by whoever merges, projects, or changes a journal

The writer's lock is not for exclusion: nobody else ever takes it for long. It is a sign of life that needs no clock, no
process numbers (another host or container has its own) and no heartbeat.

Some file systems have no locks. Then a writer's life is UNKNOWN, and every process gets the turn: that may cost work
twice, and numbers of writers that ran side by side may differ after a rebuild. Where locks are accepted and do nothing,
a living writer looks gone, until its next event makes that void. No event depends on a lock.

`flock` belongs to an open file, not to a process. A forked child shares it by its copy of the descriptor: closing that
copy leaves the parent's lock alone, unlocking it would not.

`flock` is called here, not by filelock, where the system has it: that library takes the same lock, and half as long to
load as a start of Python. It serves where a start does not count (the server), and on Windows.
"""

from __future__ import annotations

import errno
import os
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from filelock import BaseFileLock


# Errors of file systems that have no locks, or have lost them.
# EIO: a lock manager that does not answer. EINVAL: a file system that does not know the call.
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EIO, errno.EINVAL)
# Seconds that `hold` waits for probes of others to pass.
_HOLD_WAIT_S: Final = 2.0


class Liveness(Enum):
    """The life of a writer, as far as its lock shows it."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


class HeldLock:
    """A lock that this process holds until `release`, or until it ends.

    The kernel's `flock`, as filelock takes it; by filelock itself where there is no `flock`.
    """

    __slots__ = ("_fd", "_other", "path")

    def __init__(self, path: Path, fd: int, other: BaseFileLock | None = None) -> None:
        self.path = path
        self._fd = fd
        self._other = other

    def release(self) -> None:
        """Let go of the lock. Raises OSError."""
        if self._other is not None:
            self._other.release()
        if self._fd >= 0:
            # Closing alone would not do while a child that was just forked still has a copy of the descriptor.
            try:
                _unlock(self._fd)
            finally:
                self.drop()

    def drop(self) -> None:
        """Close the descriptor, in a forked child: unlocking its copy would unlock the parent's lock."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def hold(path: Path) -> HeldLock | None:
    """Take the lock that a writer holds as long as it lives; None if this file system has no locks.

    A child that is forked must `drop` its copy. Raises OSError for any other error.
    """
    try:
        import fcntl
    except ImportError:
        return _hold_by_filelock(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    deadline = time.monotonic() + _HOLD_WAIT_S
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # A process that probes may hold it shared for some microseconds. If it takes longer, locks do not work
                # as they should: nobody else takes this one, since the writer's id is random. Go on without.
                if time.monotonic() >= deadline:
                    os.close(fd)
                    return None
                time.sleep(0.001)
            else:
                return HeldLock(path, fd)
    except OSError as error:
        os.close(fd)
        if error.errno in _NO_LOCKS:
            return None
        raise


def _hold_by_filelock(path: Path) -> HeldLock | None:
    """Take the lock where there is no `flock` (Windows)."""
    import filelock

    # Not thread-local: the thread that opens is not always the one that closes. No soft lock: that is a file, which a
    # killed process leaves behind for ever.
    lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(timeout=_HOLD_WAIT_S, poll_interval=0.001)
    except (filelock.Timeout, NotImplementedError):
        return None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return HeldLock(path, -1, lock)


def probe(path: Path) -> Liveness:
    """Return whether a process holds the lock at `path`. A missing lock file was removed by a clean close."""
    try:
        import fcntl
    except ImportError:
        return _probe_by_taking(path)
    try:
        # Read-only, so that somebody who may not write here can ask as well.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Liveness.GONE
    except OSError:
        return Liveness.UNKNOWN
    try:
        # Shared: two processes that ask at the same time do not take each other for the writer.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return Liveness.ALIVE
    except OSError:
        return Liveness.UNKNOWN
    finally:
        # Releases the shared lock. The writer's own `hold` waits for such a moment.
        os.close(fd)
    return Liveness.GONE


def _probe_by_taking(path: Path) -> Liveness:
    """The same where there is no `flock`: try to take the lock, and give it back."""
    import filelock

    if not path.exists():
        return Liveness.GONE
    try:
        with filelock.FileLock(path, timeout=0):
            return Liveness.GONE
    except filelock.Timeout:
        return Liveness.ALIVE
    except OSError:
        return Liveness.UNKNOWN


class Turn:
    """The lock on a journal for the process that merges and projects it, for one pass.

    If locks do not work, every process gets the turn. Lines are written by offset, so that costs work but no data.

    An instance is for one thread at a time; the lock keeps out other instances, also those of the same process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: HeldLock | None = None

    def take(self, wait_s: float = 0.0) -> bool:
        """Take the turn; False if that takes longer than `wait_s` seconds. Raises OSError."""
        deadline = time.monotonic() + wait_s
        # Seconds; doubled up to 20 ms. Polled, because a blocking `flock` cannot be given a time limit.
        pause = 0.0005
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        return True

    def _try(self) -> bool:
        """Open the lock file and try once; False if somebody else has the turn. Raises OSError."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            import fcntl
        except ImportError:
            if not _take_on_windows(fd):
                os.close(fd)
                return False
            self._held = HeldLock(self.path, fd)
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError as error:
            # Otherwise go on as if the turn were taken: see the class.
            if error.errno not in _NO_LOCKS:
                os.close(fd)
                raise
        self._held = HeldLock(self.path, fd)
        return True

    def give_back(self) -> None:
        """Give the turn back."""
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def drop(self) -> None:
        """Close the descriptor, in a forked child: the turn is the parent's."""
        held, self._held = self._held, None
        if held is not None:
            held.drop()


def _unlock(fd: int) -> None:
    """Release the lock itself, whoever still has a copy of the descriptor."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _take_on_windows(fd: int) -> bool:
    """Lock the first byte of the file; False if it is locked. Without that call too, the turn is free for all."""
    try:
        import msvcrt
    except ImportError:
        return True
    locking: Any = msvcrt
    try:
        locking.locking(fd, locking.LK_NBLCK, 1)
    except OSError:
        return False
    return True
