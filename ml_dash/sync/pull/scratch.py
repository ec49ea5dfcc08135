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
_STALE_S: Final = 3600.0


def scratch_in(folder: Path, prefix: str = "") -> Path:
    """A name for a new one, which `sweep` knows."""
    return folder / f"{prefix}{TEMPORARY}{os.urandom(8).hex()}.tmp"


@contextlib.contextmanager
def lived_in(temporary: Path) -> Iterator[None]:
    """Keep a lock in a folder, so that others see that somebody works there; it may be renamed meanwhile."""
    turn = Turn(temporary / TURN)
    if os.name != "nt":
        # Windows does not rename a folder with an open file in it. There only its age says that nobody is left.
        turn.take()
    try:
        yield
    finally:
        turn.give_back()


def sweep(*places: Path) -> None:
    """Remove what pulls have left that were killed."""
    for left in [left for place in places for left in place.glob(f"*{TEMPORARY}*.tmp")]:
        with contextlib.suppress(OSError):
            lock = left / TURN
            newest = max(path.stat().st_mtime for path in (left, *left.rglob("*")))
            if not (lock.exists() and probe(lock) is Liveness.GONE) and time.time() - newest <= _STALE_S:
                continue
            if not left.is_dir():
                left.unlink()
                continue
            # By another name first: where locks say nothing, whoever is at work there must not find a part of it.
            doomed = left.with_name(f"{left.name.removesuffix('.tmp')}-.tmp")
            left.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
