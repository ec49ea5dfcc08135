"""Temporary folders of pulls: each shows whether its process still lives."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...disk.lock import Liveness, Turn, probe
from ...journal.segment import TURN

TEMPORARY: Final = ".pull-"
# Without a lock to go by, a temporary folder is abandoned when nothing in it has changed for so long.
_STALE_S: Final = 3600.0


def scratch_in(folder: Path, prefix: str = "") -> Path:
    """Return a path in `folder` for a new temporary folder or file, of a form that `sweep` recognises."""
    return folder / f"{prefix}{TEMPORARY}{os.urandom(8).hex()}.tmp"


@contextlib.contextmanager
def locked_while_used(temporary: Path) -> Iterator[None]:
    """Hold a lock in a temporary folder, so that `sweep` leaves it alone. The folder may be renamed meanwhile."""
    turn = Turn(temporary / TURN)
    if os.name != "nt":
        # Windows does not rename a folder with an open file in it: there `sweep` goes by the age of the folder alone.
        turn.take()
    try:
        yield
    finally:
        turn.give_back()


def sweep(*places: Path) -> None:
    """Remove the temporary folders and files of pulls that were killed."""
    for left in [left for place in places for left in place.glob(f"*{TEMPORARY}*.tmp")]:
        with contextlib.suppress(OSError):
            lock = left / TURN
            newest = max(path.stat().st_mtime for path in (left, *left.rglob("*")))
            if not (lock.exists() and probe(lock) is Liveness.GONE) and time.time() - newest <= _STALE_S:
                continue
            if not left.is_dir():
                left.unlink()
                continue
            # Renamed before it is removed: where locks do not work, a pull that still uses it must not find half of it.
            doomed = left.with_name(f"{left.name.removesuffix('.tmp')}-.tmp")
            left.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
