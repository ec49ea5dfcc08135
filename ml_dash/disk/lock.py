"""A file lock held for the life of a process, and a probe for the life of its holder."""

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
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EIO, errno.EINVAL)


class Liveness(Enum):
    """The life of a writer, as far as its lock shows it."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


def hold(path: Path) -> BaseFileLock | None:
    """Take the lock that a writer holds as long as it lives; None if this file system has no locks.

    A forked child does not inherit it: filelock closes its copy of the descriptor. Raises OSError for any other error.
    `filelock` is imported here, at the first open(): that takes longer than importing the rest of the library.
    """
    import filelock

    lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        # A process that probes may hold it shared for some microseconds.
        lock.acquire(timeout=2.0, poll_interval=0.001)
    except filelock.Timeout:
        return None
    except NotImplementedError:
        return None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return lock


def probe(path: Path) -> Liveness:
    """Return whether a process holds the lock at `path`. A missing lock file was removed by a clean close."""
    try:
        import fcntl
    except ImportError:
        return _probe_by_taking(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Liveness.GONE
    except OSError:
        return Liveness.UNKNOWN
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return Liveness.ALIVE
    except OSError:
        return Liveness.UNKNOWN
    finally:
        os.close(fd)
    return Liveness.GONE


def _probe_by_taking(path: Path) -> Liveness:
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
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def take(self, wait_s: float = 0.0) -> bool:
        """Take the turn; False if that takes longer than `wait_s` seconds. Raises OSError."""
        deadline = time.monotonic() + wait_s
        pause = 0.0005
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
        return True

    def _try(self) -> bool:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            import fcntl
        except ImportError:
            self._fd = fd
            return _take_on_windows(fd, self)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(fd)
                raise
        self._fd = fd
        return True

    def give_back(self) -> None:
        """Give the turn back."""
        if self._fd >= 0:
            # Closing alone would not do while a child that was just forked still has a copy of the descriptor.
            _unlock(self._fd)
        self.drop()

    def drop(self) -> None:
        """Close the descriptor, in a forked child: unlocking its copy would unlock the parent's turn."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _unlock(fd: int) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _take_on_windows(fd: int, turn: Turn) -> bool:
    try:
        import msvcrt
    except ImportError:
        return True
    locking: Any = msvcrt
    try:
        locking.locking(fd, locking.LK_NBLCK, 1)
    except OSError:
        os.close(fd)
        turn._fd = -1
        return False
    return True
