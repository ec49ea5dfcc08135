"""Messages to the user: a line on stderr, and the error for a disk that refuses."""

from __future__ import annotations

import contextlib
import errno
import sys
from pathlib import Path

from ..errors import StorageError


def print_line(text: str) -> None:
    """Print a line to stderr, if there is one that can be written to."""
    stream = sys.stderr
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.write(text + "\n")
            stream.flush()


def cannot(act: str, place: Path, error: OSError) -> StorageError:
    """Return the StorageError for a place that the disk refuses to `act` on: "read", "use" or the like."""
    why = error.strerror or str(error)
    if error.errno == errno.EEXIST:
        # Folders above are created with it, so "file exists" means a dangling link among them.
        links = [path for path in (place, *place.parents) if path.is_symlink() and not path.exists()]
        why = "".join(f"{link} is a link to {link.readlink()}, which is not there" for link in links[:1]) or why
    return StorageError.of(
        error,
        f"cannot {act} {place}: {why}",
        hint="mend the disk or its permissions, or record elsewhere: local_path=, or ML_DASH_LOCAL_PATH",
    )
