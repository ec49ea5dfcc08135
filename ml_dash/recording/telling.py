"""What a user is told: a line on stderr, and what is raised where the disk refuses."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from ..errors import StorageError


def say(text: str) -> None:
    """A line on stderr, if there is one."""
    stream = sys.stderr
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.write(text + "\n")
            stream.flush()


def cannot(act: str, place: Path, error: OSError) -> StorageError:
    """What is raised where the disk refuses to read or write a place."""
    return StorageError.of(
        error,
        f"cannot {act} {place}: {error.strerror or error}",
        hint="mend the disk or its permissions, or record elsewhere: local_path=, or ML_DASH_LOCAL_PATH",
    )
