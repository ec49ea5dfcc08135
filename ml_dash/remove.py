"""Remove an experiment: its journal and its documented folder together, never while a writer lives."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from .errors import StillOpen
from .journal.segment import SEGMENTS, list_segments
from .lock import Liveness, probe
from .read import Located


@dataclass(frozen=True, slots=True)
class RemoveReport:
    """What was removed, or would be."""

    folder: Path
    journal: Path
    files: int
    bytes: int


def remove(located: Located, *, dry_run: bool = False) -> RemoveReport:
    """Remove journal and folder. Raises StillOpen if a writer lives; nothing is removed then."""
    for name, _ in list_segments(located.journal):
        lock = located.journal / SEGMENTS / name.lock
        if lock.exists() and probe(lock) is Liveness.ALIVE:
            raise StillOpen(
                f"{located.project}/{located.name} is being written by writer {name.writer}; nothing was removed",
                hint="end that run first",
            )
    homes = {located.folder, located.journal.parent}
    found = [Path(base, name) for home in homes for base, _, names in os.walk(home) for name in names]
    size = sum(path.lstat().st_size for path in found)
    report = RemoveReport(located.folder, located.journal, len(found), size)
    if dry_run:
        return report
    # The journal goes first, and at once: what is left of a removal that was cut short is not taken for an experiment.
    doomed = located.journal.with_name(f"{located.journal.name}.removed-{os.urandom(4).hex()}")
    located.journal.rename(doomed)
    shutil.rmtree(doomed)
    for home in homes:
        shutil.rmtree(home, ignore_errors=True)
        for parent in (home.parent,):
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
    return report
