"""What a user is told: a line on stderr, and what is raised where the disk refuses."""

from __future__ import annotations

import contextlib
import errno
import sys
from pathlib import Path

from ..errors import StorageError


def print_line(text: str) -> None:
    """A line on stderr, if there is one."""
    stream = sys.stderr
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.write(text + "\n")
            stream.flush()


def cannot(act: str, place: Path, error: OSError) -> StorageError:
    """What is raised where the disk refuses to read or write a place."""
    why = error.strerror or str(error)
    if error.errno == errno.EEXIST:
        # Made with the folders above it: the system's "file exists" means a link that leads to no folder.
        links = [path for path in (place, *place.parents) if path.is_symlink() and not path.exists()]
        why = "".join(f"{link} is a link to {link.readlink()}, which is not there" for link in links[:1]) or why
    return StorageError.of(
        error,
        f"cannot {act} {place}: {why}",
        hint="mend the disk or its permissions, or record elsewhere: local_path=, or ML_DASH_LOCAL_PATH",
    )
