"""The preloaded C library that lets reads answer as a network file system may: built, and told what to do."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Final

from tests.faults.shim import compiled

SOURCE: Final = Path(__file__).with_name("reads.c")


@cache
def build() -> Path:
    """The compiled library. Raises ShimUnavailable."""
    return compiled(SOURCE)


def configure(program: str) -> None:
    """Make this process's reads follow a program from now on."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "reads_configure"):
        raise RuntimeError("this process was started without the library")
    library.reads_configure(program.encode())
