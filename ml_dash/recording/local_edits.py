"""Changes of local experiments that this process does not record, and what is known of their storage and upload.

What the page of `ml-dash ui` may change, and how: labels by an event of a writer of a few milliseconds (`relabel`),
removal as `ml-dash rm` does it. So both are refused where those are.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from ..core.ranges import Range, size_of
from ..core.times import utc_text
from ..errors import InvalidValue, JournalError
from ..reading.located import Located
from ..reading.places import Found, version_of
from ..reading.verified import summary
from ..sync import launch, registrations
from ..sync.acknowledged import acknowledged_bytes, acknowledged_events, waiting_files
from ..sync.cursor import Cursor
from ..sync.registrations import Registration
from ..sync.remove import remove
from .lifecycle import Warnings, checked_given, checked_labels
from .relabel import relabel

LABELS: Final = ("title", "notes", "archived", "description", "tags", "folder")
"""What may be changed."""
_SETTLED_NS: Final = 2_000_000_000


class LocalEdits:
    """Changes of local experiments (see `reading.local.Edits`). Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Journal → (version, bytes): a walk of ten thousand folders takes seconds.
        self._sizes: dict[str, tuple[Any, int]] = {}
        self._registered = _Registered()

    def update(self, located: Located, changes: Mapping[str, Any]) -> None:
        """Record changes; None takes a value away. Raises InvalidInput, StorageError; nothing is recorded then."""
        given = checked(changes)
        if given:
            relabel(located, given)

    def remove(self, located: Located) -> None:
        """Remove journal and folder, and their registrations for upload. Raises StillOpen while a writer lives."""
        known = registrations.of_journal(located.journal, registrations.by_journal(registrations.read_all()))
        remove(located)
        for one in known:
            registrations.unregister(one)

    def uploads(
        self, located: Located, seen: Mapping[str, Sequence[Range]], contents: Set[str]
    ) -> list[dict[str, Any]]:
        """Return what each server to which an experiment is sent has acknowledged of it; see `reading.local.Edits`."""
        mine = registrations.of_journal(located.journal, self._registered.by_journal())
        return [_upload(located.journal, one, seen, contents) for one in mine]

    def storage(self, experiments: Iterable[Found]) -> dict[str, Any]:
        """Return bytes by project, what could be freed at most, the uploader's state, and what is parked.

        `freeableBytes` are those of journals that servers have acknowledged; `ml-dash gc` asks them for proof.
        """
        known = self._registered.by_journal()
        projects: dict[str, dict[str, Any]] = {}
        parked: list[dict[str, Any]] = []
        uploads = 0
        chosen = list(experiments)
        verified = summary(found.key for found in chosen)
        for found in chosen:
            located = found.located
            project = projects.setdefault(
                located.project, {"name": located.project, "experiments": 0, "bytes": 0, "freeableBytes": 0}
            )
            project["experiments"] += 1
            project["bytes"] += self._size(found)
            mine = registrations.of_journal(located.journal, known)
            uploads += len(mine)
            cursors = [registrations.cursor_of(one) for one in mine]
            project["freeableBytes"] += acknowledged_bytes(located.journal, cursors)
            for one, cursor in zip(mine, cursors, strict=True):
                parked += _parked(found, one, cursor)
        listed = [projects[name] for name in sorted(projects)]
        return {
            "projects": listed,
            "totalBytes": sum(project["bytes"] for project in listed),
            "uploader": _uploader(uploads),
            "parked": parked,
            "lastVerify": None if verified is None else {"at": utc_text(verified[0]), "result": verified[1]},
            "quota": None,
        }

    def _size(self, found: Found) -> int:
        """Return the bytes of an experiment's folder and journal; hard links count once."""
        version = version_of(found, running=True)
        with self._lock:
            known = self._sizes.get(found.key)
        if known is not None and known[0] == version:
            return known[1]
        size = _bytes_below({found.located.folder, Path(found.key).parent})
        with self._lock:
            self._sizes[found.key] = version, size
        return size


class _Registered:
    """The registrations of this user, read again when their folder has changed. Any thread may call."""

    def __init__(self) -> None:
        # (when the folder was changed, registrations): ten thousand files take most of a second.
        self._known: tuple[int, dict[str, list[Registration]]] | None = None

    def by_journal(self) -> dict[str, list[Registration]]:
        """Return registrations by the real path of their journal."""
        try:
            changed_ns = registrations.registered_folder().stat().st_mtime_ns
        except FileNotFoundError:
            return {}
        known = self._known
        if known is not None and known[0] == changed_ns:
            return known[1]
        found = registrations.by_journal(registrations.read_all())
        # Of a folder that has just changed, a second change may bear the same time.
        if time.time_ns() - changed_ns > _SETTLED_NS:
            self._known = changed_ns, found
        return found


def checked(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes as an event holds them. Raises InvalidValue for other names, InvalidName, UnsupportedType."""
    unknown = sorted(changes.keys() - set(LABELS))
    if unknown:
        raise InvalidValue(f"{unknown[0]!r} cannot be changed", hint=f"change one of {', '.join(LABELS)}")
    given = {key: value for key, value in changes.items() if value is not None}
    labels = checked_labels(given.get("title"), given.get("notes"), given.get("archived"))
    rest = checked_given(given.get("description"), given.get("tags"), given.get("folder"), None, Warnings(silent=True))
    taken = {key: False if key == "archived" else None for key, value in changes.items() if value is None}
    return {**rest, **labels, **taken}


def _bytes_below(places: Iterable[Path]) -> int:
    seen: set[tuple[int, int]] = set()
    size = 0
    for place in places:
        for base, _, names in os.walk(place):
            for name in names:
                with suppress(OSError):
                    status = Path(base, name).lstat()
                    if (status.st_dev, status.st_ino) not in seen:
                        seen.add((status.st_dev, status.st_ino))
                        size += status.st_size
    return size


def _upload(
    journal: Path, one: Registration, seen: Mapping[str, Sequence[Range]], contents: Set[str]
) -> dict[str, Any]:
    cursor = registrations.cursor_of(one)
    try:
        events = acknowledged_events(journal, cursor, seen)
        files = waiting_files(journal, cursor, contents)
        unread = None
    except (OSError, JournalError) as error:
        events, files, unread = 0, len(contents), str(error)
    complete = not files and events == sum(map(size_of, seen.values()))
    return {
        "remote": one.remote,
        "user": one.user,
        "acknowledged": events,
        "waitingFiles": files,
        "complete": complete,
        "reason": None if complete else unread or _hindrance(one, cursor),
    }


def _hindrance(one: Registration, cursor: Cursor | None) -> str | None:
    """Return what keeps an upload from going on, and what to do; None if it goes on."""
    if (reason := one.obstacle()) is not None:
        return reason
    if cursor is not None and cursor.trouble is not None:
        return cursor.trouble.text
    if cursor is not None and cursor.parked:
        name, why = min(cursor.parked.items())
        return f"{name} is not taken: {why}"
    return None if launch.daemon_runs() else "no ml-dash-syncd runs; start it with: ml-dash-syncd run"


def _parked(found: Found, one: Registration, cursor: Cursor | None) -> list[dict[str, Any]]:
    """Return what is set aside of an experiment, and why it makes no headway."""
    if cursor is None:
        return []
    trouble = cursor.trouble
    since = _moment(trouble.since) if trouble is not None and trouble.since is not None else None
    reasons = [f"{name}: {why}" for name, why in sorted(cursor.parked.items())]
    reasons += [f"{one.remote}: {trouble.text}"] if trouble is not None else []
    return [{"experiment": found.id, "reason": reason, "since": since} for reason in reasons]


def _uploader(uploads: int) -> dict[str, str] | None:
    """Return the state of this user's uploader; None where nothing here is to be sent."""
    if not uploads:
        return None
    sent = f"{uploads:,} {'experiment' if uploads == 1 else 'experiments'} here are to be sent"
    if not launch.daemon_runs():
        return {"state": "not running", "text": f"{sent}; start it with: ml-dash-syncd run"}
    report: Any = None
    with suppress(OSError, ValueError):
        report = json.loads(launch.status_path().read_bytes())
    settled = report.get("settled") if isinstance(report, dict) else None
    of = report.get("experiments") if isinstance(report, dict) else None
    known = f"; {settled:,} of {of:,} on this host are sent" if isinstance(settled, int) and isinstance(of, int) else ""
    return {"state": "running", "text": sent + known}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
