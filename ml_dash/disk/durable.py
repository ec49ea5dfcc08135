"""The safe file operations: append, sync, replace atomically, sync the folder.

What the operating system promises, and what it does not:

- `write` gives bytes to the kernel: they survive this process, not a power cut. It may take only a part.
- `fsync` of a file says nothing of its name, which is an entry of a folder: that has to be synced as well.
- After a failed sync the kernel drops the error, and the pages count as clean: the next sync succeeds and means
  nothing. So nothing here tries a sync again.
- `rename` replaces a file as a whole, for every reader. After a power cut the new name may stand for a file without
  content, unless the content was synced before.

Functions on paths and descriptors: no state but counters for tests, no locks, any thread. They raise OSError as it is;
whether an error may pass (STORAGE_TROUBLE) is for callers to decide.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from zlib import crc32

Write = Callable[[int, bytes, int], int]
"""write(fd, data, len(data)) → how many bytes were written; negative for an error, which it does not name."""

BLOCK_BYTES: Final = 1 << 20
"""What is read at once of a file, or of an answer, that may be long."""

# Errors of a disk, mount or folder that may pass: full, removed, read-only, unmounted, denied, out of descriptors.
# Others, such as EINVAL, are mistakes of a program.
STORAGE_TROUBLE: Final = frozenset(
    code
    # By name: not every system has each of them.
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "ESTALE", "EACCES", "EPERM", "ENOENT", "ENOTDIR", "EBADF",
                 "EAGAIN", "EINTR", "ENODEV", "ENXIO", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOLCK", "ELOOP", "ENOMEM",
                 "ENOTCONN", "EREMOTEIO")
    if (code := getattr(errno, name, None)) is not None
)  # fmt: skip

# File systems whose writes end in this machine's page cache. On others write(2) may hang for minutes.
_LOCAL_FILE_SYSTEMS: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "zfs", "f2fs", "overlay"})

_hits: Counter[str] = Counter()


def is_gone(path: Path) -> bool:
    """True if nothing is there; False where that cannot be told."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        # Not `exists()`: that says False also for some errors which only mean that nobody can tell.
        return True
    except OSError:
        return False
    return False


def fail_point(name: str) -> None:
    """Kill this process here if `ML_DASH_FAIL=name:nth:kill` says so: crash tests hit one exact step with it."""
    spec = os.environ.get("ML_DASH_FAIL")
    if spec is None:
        return
    wanted, nth, action = spec.split(":")
    if wanted != name or action != "kill":
        return
    _hits[name] += 1
    if _hits[name] == int(nth):
        import signal

        # SIGKILL: no `finally`, no exit function, no flush runs, as with the OOM killer.
        os.kill(os.getpid(), signal.SIGKILL)


def data_sync(fd: int) -> None:
    """fdatasync a descriptor, or F_FULLFSYNC on macOS (whose fsync stops at the drive's cache), else fsync.

    Raises OSError.
    """
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def free_bytes(folder: Path) -> tuple[int, int]:
    """(bytes that this user may still write on a folder's file system, its size).

    Raises OSError, also on a system that has no call for it.
    """
    if not hasattr(os, "statvfs"):
        raise OSError(errno.ENOTSUP, "this system has no statvfs", str(folder))
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def sync_folder(path: Path | str | int) -> None:
    """Make the entries of a folder (path or descriptor) durable, which fsync of a file does not. Raises OSError."""
    if isinstance(path, int):
        os.fsync(path)
        return
    # Windows cannot open a folder for this.
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot sync a folder and say so; there is nothing else to try.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Write all of `data`, at the descriptor's position or at `offset`, however short single writes are.

    Raises OSError.
    """
    # A view: cutting off what was written copies nothing.
    rest = memoryview(data)
    if offset is not None and not hasattr(os, "pwrite"):
        os.lseek(fd, offset, os.SEEK_SET)
        offset = None
    while rest:
        count = os.write(fd, rest) if offset is None else os.pwrite(fd, rest, offset)
        rest = rest[count:]
        if offset is not None:
            offset += count


def replace_file(
    path: Path, data: bytes, *, sync: bool = False, private: bool = False, scratch: Path | None = None
) -> None:
    """Replace a file: readers see the old content or the new, never a part. With `sync`, durable on return.

    With `private` nobody else may read it (mode 0600), not even for a moment. The new content is first written to
    `scratch` (default: beside `path`), which a crash may leave behind.

    A crash before the rename leaves the old file and perhaps a temporary one; after it, the new file. Without `sync` a
    power cut may leave an empty one, so that is for what can be made again.
    """
    # Threads of one process may replace the same file.
    temporary = scratch or path.with_name(f".{path.name[:200]}.{os.urandom(6).hex()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if private else os.O_TRUNC) | getattr(os, "O_CLOEXEC", 0)
    # The mode is given at creation: a later chmod would leave a moment in which others may read.
    fd = os.open(temporary, flags, 0o600 if private else 0o666)
    try:
        try:
            write_all(fd, data)
            # Content before name.
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException as error:
        # Also an interrupt: no temporary file is to stay.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if scratch is None or not isinstance(error, OSError) or error.errno != errno.EXDEV:
            raise
        # The scratch file is on another file system than the target.
        replace_file(path, data, sync=sync, private=private)
        return
    if sync:
        sync_folder(path.parent)


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Read up to `size` bytes at `offset`; fewer only at the end of the file. Raises OSError."""
    if not hasattr(os, "pread"):
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)
    data = os.pread(fd, size, offset)
    # `pread` may return less than asked for, after a signal or on a network file system; only nothing means the end.
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def blocks(path: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The bytes [start, end) of a file, block by block; fewer only where the file ends before."""
    with path.open("rb") as file:
        file.seek(start)
        rest = sys.maxsize if end is None else end - start
        while rest > 0 and (block := file.read(min(BLOCK_BYTES, rest))):
            yield block
            rest -= len(block)


def crc_of(path: Path, start: int, end: int, crc: int = 0) -> int | None:
    """The CRC-32 of the bytes [start, end) of a file, going on from `crc`; None if they are not all there."""
    for block in blocks(path, start, end):
        crc, start = crc32(block, crc), start + len(block)
    return crc if start >= end else None


def boot_id() -> str:
    """Return an id of this boot of the machine; empty if the system has none.

    After another boot, nothing that was not synced can be relied on.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def on_local_disk(path: Path) -> bool:
    """True if a folder is on a file system that is known to be local."""
    if not sys.platform.startswith("linux"):
        return False
    # By the device number, not by the longest mount path: bind mounts and links make paths ambiguous.
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.split(" ")
            if fields[2] == wanted:
                # A line has optional fields up to a single "-"; the type follows it.
                kind = fields[fields.index("-") + 1]
                return kind in _LOCAL_FILE_SYSTEMS
    return False


def keeping_write() -> Write:
    """Return a write(2) that keeps the interpreter's lock: 0.2 µs slower alone, but it never waits for another thread.

    `os.write` releases that lock, and a busy thread may then hold it for a whole switch interval (5 ms). Only for local
    disks: a network mount that hangs would freeze the interpreter.
    """
    import ctypes
    import platform

    # PyDLL keeps the interpreter's lock during a call; CDLL releases it, as `os.write` does.
    function: Any = ctypes.PyDLL(None).write
    if platform.machine() not in ("x86_64", "aarch64", "arm64"):
        # Elsewhere an untyped int may not fill a size_t's register; the declared types cost 0.3 µs.
        function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
        function.restype = ctypes.c_ssize_t
    write: Write = function
    return write
