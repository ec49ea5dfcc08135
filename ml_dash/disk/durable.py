"""The safe file operations: append, sync, replace atomically, sync the folder."""

from __future__ import annotations

import errno
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

Write = Callable[[int, bytes, int], int]
"""write(fd, data, len(data)) → how many bytes were written, or less than 0 for an error not told."""

STORAGE_TROUBLE: Final = frozenset(
    code
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "ESTALE", "EACCES", "EPERM", "ENOENT", "ENOTDIR", "EBADF",
                 "EAGAIN", "EINTR", "ENODEV", "ENXIO", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOLCK", "ELOOP", "ENOMEM")
    if (code := getattr(errno, name, None)) is not None
)  # fmt: skip

# File systems whose writes end in the page cache of this machine. Anything else may hang for minutes inside write(2).
_LOCAL_FILE_SYSTEMS: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "zfs", "f2fs", "overlay"})

_hits: Counter[str] = Counter()


def fail_point(name: str) -> None:
    """Die here by SIGKILL if `ML_DASH_FAIL=name:nth:kill` says so: how the crash tests hit one exact step."""
    spec = os.environ.get("ML_DASH_FAIL")
    if spec is None:
        return
    wanted, nth, action = spec.split(":")
    if wanted != name or action != "kill":
        return
    _hits[name] += 1
    if _hits[name] == int(nth):
        import signal

        os.kill(os.getpid(), signal.SIGKILL)


def data_sync(fd: int) -> None:
    """fdatasync, or the nearest thing: F_FULLFSYNC on macOS (its fsync stops at the drive's cache), else fsync."""
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
    """Make the entries of a folder (path or open descriptor) durable; a file's own fsync does not."""
    if isinstance(path, int):
        os.fsync(path)
        return
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot sync a folder and say so; there is nothing to be had from them.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Write all of `data`, at the descriptor's position or at `offset`; loops on short counts."""
    rest = memoryview(data)
    if offset is not None and not hasattr(os, "pwrite"):
        os.lseek(fd, offset, os.SEEK_SET)
        offset = None
    while rest:
        count = os.write(fd, rest) if offset is None else os.pwrite(fd, rest, offset)
        rest = rest[count:]
        if offset is not None:
            offset += count


def replace_file(path: Path, data: bytes, *, sync: bool = False, scratch: Path | None = None) -> None:
    """Readers see the old content or the new, never a half. With `sync` it also survives a power cut on return.

    The new content is first written to `scratch` (default: beside `path`), which a crash may leave behind.
    """
    temporary = scratch or path.with_name(f".{path.name}.{os.getpid():x}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        try:
            write_all(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if scratch is None or error.errno != errno.EXDEV:
            raise
        # The scratch file is on another file system.
        replace_file(path, data, sync=sync)
        return
    if sync:
        sync_folder(path.parent)


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes at `offset`; fewer only at the end of the file."""
    if not hasattr(os, "pread"):
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def boot_id() -> str:
    """What tells this boot of the machine from others; empty where the system does not say.

    After another boot, nothing that was not synced can be relied on.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def on_local_disk(path: Path) -> bool:
    """Is this folder on a file system known to be local? Unknown counts as not."""
    if not sys.platform.startswith("linux"):
        return False
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.split(" ")
            if fields[2] == wanted:
                kind = fields[fields.index("-") + 1]
                return kind in _LOCAL_FILE_SYSTEMS
    return False


def keeping_write() -> Write:
    """write(2) that keeps the interpreter's lock: 0.2 µs dearer alone, but never waits for another thread.

    `os.write` lets go of that lock, and a busy thread may then take it for a whole switch interval (5 ms). Only for
    local disks: a hung network mount would freeze the interpreter.
    """
    import ctypes
    import platform

    function: Any = ctypes.PyDLL(None).write
    if platform.machine() not in ("x86_64", "aarch64", "arm64"):
        # Elsewhere an untyped int may not fill a size_t's register; the declared types cost 0.3 µs.
        function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
        function.restype = ctypes.c_ssize_t
    write: Write = function
    return write
