"""Changing the title, notes, tags and the like of an experiment that this process does not record.

A writer of a few milliseconds appends one event. It counts as a child: children never decide the status, so a failed
experiment stays failed, and one that runs elsewhere goes on.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ..core import events
from ..core.version import __version__
from ..journal.reader import newest_time_ns
from ..journal.segment import read_identity
from ..journal.syncer import syncer
from ..journal.writer import open_writer
from ..projection.projector import Projector
from ..reading.located import Located
from .environment import describe
from .messages import cannot


def relabel(located: Located, given: dict[str, Any]) -> None:
    """Record new values of an experiment's registers (see `events.UPDATE`): durable on return, and in the folder.

    `given` was checked before (`checked_given`, `checked_labels`). Raises StorageError if the disk refuses,
    JournalError if the journal is damaged.
    """
    body = events.opening(
        given={},
        project=located.project,
        name=located.name,
        protected=False,
        folder_path=Path(os.path.relpath(located.folder, located.journal.parents[2])).as_posix(),
        remote=None,
        user_name=None,
        place={**describe(__version__), "relabels": True},
        parent=None,
        child=True,
    )
    try:
        identity, floor = read_identity(located.journal), newest_time_ns(located.journal, {})
        writer = open_writer(located.journal, identity, syncer, durability="always", strict=True, floor_ns=floor)
        try:
            writer.append(events.OPEN, body)
            writer.append(events.UPDATE, given)
        finally:
            writer.close({"status": "completed"})
    except OSError as error:
        raise cannot("use", located.journal, error) from error
    # The event is there; whoever reads next brings the folder up to date where this is not possible now.
    with contextlib.suppress(OSError):
        Projector(located.journal, located.folder).advance()
