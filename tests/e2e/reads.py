"""The preloaded C library that lets reads answer as a network file system may: built, and told what to do."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from tests.crash.shim import ShimUnavailable

SOURCE: Final = Path(__file__).with_name("reads.c")


@cache
def build() -> Path:
    """The compiled library; compiled once for each version of its source. Raises ShimUnavailable."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise ShimUnavailable("no C compiler (gcc or cc) on the PATH")
    folder = Path(tempfile.gettempdir()) / f"ml-dash-shim-{os.getuid()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = folder / f"reads-{digest}.so"
    if not library.exists():
        temporary = folder / f".reads-{digest}.{os.getpid()}.so"
        command = [compiler, "-std=gnu11", "-O2", "-Wall", "-fPIC", "-shared", "-o", str(temporary), str(SOURCE)]
        made = subprocess.run([*command, "-ldl", "-lpthread"], capture_output=True, text=True, check=False)
        if made.returncode:
            raise ShimUnavailable(f"{compiler} could not build {SOURCE.name}: {made.stderr.strip()[-500:]}")
        temporary.replace(library)
    return library


def configure(program: str) -> None:
    """Make this process's reads follow a program from now on."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "reads_configure"):
        raise RuntimeError("this process was started without the library")
    library.reads_configure(program.encode())
