"""`syncd.json`, the daemon's latest report on itself: replaced whole, read by `status` and `stop`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from ml_dash.disk.durable import replace_file
from ml_dash.sync import launch

from .schedule import Schedule

log = logging.getLogger("ml_dash.syncd")
_EVERY_S: Final = 5.0
"""Shortest time between two writes that nothing makes urgent."""


class ReportFile:
    """The file `syncd.json`, and what was last written to it."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path if path is not None else launch.status_path()
        self.address: str | None = None
        self._began = time.time()
        self._written = float("-inf")
        self._last: dict[str, Any] = {}
        self._warned = False

    def write(self, schedule: Schedule, *, now: bool = False, ended: bool = False) -> None:
        """Replace the file if something has changed and five seconds have passed, or at once with `now`.

        `ended`: the daemon is about to exit. If the disk refuses, that is logged once and the old file stays.
        """
        if not now and time.monotonic() - self._written < _EVERY_S:
            return
        document = {**summary(schedule), "address": self.address}
        self._written = time.monotonic()
        if document == self._last and not now:
            return
        self._last = document
        whole = {
            "version": 1, "pid": os.getpid(), "startedAt": _moment(self._began), "updatedAt": _moment(time.time()),
            "ended": ended, **document,
        }  # fmt: skip
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self.path, json.dumps(whole, indent=1).encode())
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning("%s cannot be written: %s", self.path, error)


def summary(schedule: Schedule) -> dict[str, Any]:
    """Numbers of experiments, what was sent, and the failures of each server, as a JSON object."""
    tasks = list(schedule.tasks.values())
    return {
        "experiments": len(tasks),
        "settled": sum(task.settled for task in tasks),
        "live": sum(task.watch.live for task in tasks),
        "sentBytes": schedule.sent_bytes,
        "lastSentAt": _moment(schedule.last_sent) if schedule.last_sent else None,
        "errors": schedule.errors,
        "remotes": {
            url: {"failures": backoff.failures, "why": backoff.why} for url, backoff in sorted(schedule.remotes.items())
        },
    }


def status_line(schedule: Schedule) -> str:
    """One line for people: what `systemctl status` shows."""
    tasks = list(schedule.tasks.values())
    waiting = sum(not task.settled for task in tasks)
    experiments = "1 experiment" if len(tasks) == 1 else f"{len(tasks):,} experiments"
    parts = [experiments, f"{waiting:,} being sent" if waiting else "all sent"]
    away = [url for url, backoff in schedule.remotes.items() if backoff.failures]
    if away:
        parts.append(f"waiting for {', '.join(away[:3])}")
    if schedule.logins.refused:
        parts.append("a login is needed")
    return ", ".join(parts)


def load(path: Path | None = None) -> dict[str, Any] | None:
    """Return the daemon's latest report; None if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads((path or launch.status_path()).read_bytes())
        if isinstance(found, dict):
            return found
    return None


def _moment(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
