"""The preloaded C library that makes system calls fail: how it is built, told what to do, and what it recorded."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from .harness import Unavailable

SOURCE: Final = Path(__file__).with_name("shim.c")
_RECORD: Final = struct.Struct("<IBQqIII")

WRITE, SYNC, SYNC_FAILED, CREATE, RENAME, LINK, UNLINK, MKDIR, RMDIR, TRUNCATE, MARK, SYMLINK = range(1, 13)


class ShimUnavailable(Unavailable):
    """This machine cannot preload the library; the message says why."""


@dataclass(frozen=True)
class Operation:
    """One recorded change under the shim's root."""

    kind: int
    inode: int
    offset: int
    path: str
    path2: str
    data: bytes


def compiled(source: Path) -> Path:
    """The library compiled from a source; once for each version of it. Raises ShimUnavailable."""
    if not sys.platform.startswith("linux"):
        raise ShimUnavailable("what is preloaded goes into glibc: Linux only")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise ShimUnavailable("no C compiler (gcc or cc) on the PATH")
    name = f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()) / f"ml-dash-shim-{os.getuid()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    library = folder / f"{name}.so"
    if not library.exists():
        temporary = folder / f".{name}.{os.getpid()}.so"
        command = [compiler, "-std=gnu11", "-O2", "-Wall", "-fPIC", "-shared", "-o", str(temporary), str(source)]
        made = subprocess.run([*command, "-ldl", "-lpthread"], capture_output=True, text=True, check=False)
        if made.returncode:
            raise ShimUnavailable(f"{compiler} could not build {source.name}: {made.stderr.strip()[-500:]}")
        temporary.replace(library)
    return library


@cache
def build() -> Path:
    """The compiled shim. Raises ShimUnavailable."""
    return compiled(SOURCE)


def rule(op: str, *, match: str = "", nth: int = 1, count: int = 1, **what: int | str | Path) -> str:
    """One rule of a program: from the `nth` call of `op` on, `count` times (0: for ever).

    What happens is one of errno=, short=, hang=, always=.
    """
    fields = [f"op:{op}", f"nth={nth}", f"count={count}"]
    if match:
        fields.append(f"match={match}")
    fields += [f"{key}={value}" for key, value in what.items()]
    return "rule=" + ",".join(fields)


def program(root: Path | None, *parts: str, log: Path | None = None) -> str:
    """A program for `configure`."""
    head = [] if root is None else [f"root={root}"]
    if log is not None:
        head.append(f"log={log}")
    return ";".join([*head, *parts])


def _loaded() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    if not hasattr(library, "shim_configure"):
        raise RuntimeError("this process was started without the shim")
    return library


def configure(text: str) -> None:
    """Make this process follow a program from now on; an empty one means no faults."""
    _loaded().shim_configure(text.encode())


def mark(text: str) -> None:
    """Put a mark into the record."""
    _loaded().shim_mark(text.encode())


def hung() -> int:
    """How many calls of this process have been held up so far."""
    return int(_loaded().shim_hung())


def done(index: int = 0) -> int:
    """How often the rule number `index` has struck."""
    return int(_loaded().shim_done(index))


def read_log(path: Path) -> Iterator[Operation]:
    """The recorded operations, in the order in which they took effect."""
    data = path.read_bytes()
    position = 0
    while position < len(data):
        size, kind, inode, offset, *lengths = _RECORD.unpack_from(data, position)
        start = position + _RECORD.size
        ends = [start + sum(lengths[: i + 1]) for i in range(3)]
        first, second, content = data[start : ends[0]], data[ends[0] : ends[1]], data[ends[1] : ends[2]]
        yield Operation(kind, inode, offset, os.fsdecode(first), os.fsdecode(second), content)
        position += 4 + size
        assert position == ends[2], "the shim's record is out of step"
