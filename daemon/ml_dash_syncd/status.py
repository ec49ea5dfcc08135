"""`ml-dash-syncd status`, worked out from the disk: registrations, cursors, journals and the daemon's report."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ml_dash.journal import blobs
from ml_dash.journal.segment import list_segments
from ml_dash.sync import register
from ml_dash.sync.register import Registration

from . import report


def status(extra: list[Registration] | None = None) -> dict[str, Any]:
    """Return the state of the daemon and of each registered experiment, as a JSON object.

    For an experiment: bytes here, bytes acknowledged, what is set aside and why. `extra` are registrations that are not
    in the state folder: those of stores. Takes no lock, and needs no daemon.
    """
    known = {one.key: one for one in (*register.registrations(), *(extra or []))}
    last = report.load()
    runs = register.daemon_runs()
    return {
        "daemon": {"runs": runs, "pid": last.get("pid") if runs and last else None, "last": last},
        "experiments": [_experiment(one) for one in sorted(known.values(), key=lambda one: (one.journal, one.remote))],
    }


def _experiment(one: Registration) -> dict[str, Any]:
    journal = Path(one.journal)
    cursor = register.cursor_of(one)
    sizes = _sizes(journal)
    contents = blobs.names(journal)
    acknowledged = cursor.segments if cursor is not None else {}
    sent = cursor.blobs if cursor is not None else frozenset()
    return {
        "project": journal.parts[-3] if len(journal.parts) > 2 else "",
        "name": journal.parts[-2] if len(journal.parts) > 1 else "",
        "journal": one.journal,
        # Another journal may be at its path by now.
        "there": journal.is_dir() and bool(register.of_journal(journal, register.by_journal([one]))),
        "remote": one.remote,
        "user": one.user,
        "bytes": sum(sizes.values()),
        "acknowledgedBytes": sum(min(size, acknowledged.get(name, 0)) for name, size in sizes.items()),
        "contents": len(contents),
        "contentsDone": len(sent & contents.keys()),
        "parked": dict(cursor.parked) if cursor is not None else {},
        "trouble": asdict(cursor.trouble)
        if cursor is not None and cursor.trouble is not None
        else None,
    }


def _sizes(journal: Path) -> dict[str, int]:
    sizes = {}
    for _, path in list_segments(journal):
        # A segment may be removed meanwhile, and a disk may not answer: show what can be read.
        with contextlib.suppress(OSError):
            sizes[path.name] = path.stat().st_size
    return sizes
