"""The daemon's last words about itself, `syncd.json`: replaced whole, for `status` and for whoever wants to end it."""

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
from ml_dash.sync import register

from .schedule import Schedule

log = logging.getLogger("ml_dash.syncd")
_EVERY_S: Final = 5.0


class Snapshot:
    """Writes the state down, now and then and when it matters."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path if path is not None else register.status_path()
        self.address: str | None = None
        self._began = time.time()
        self._written = float("-inf")
        self._last: dict[str, Any] = {}
        self._told = False

    def write(self, schedule: Schedule, *, now: bool = False, ended: bool = False) -> None:
        """Replace the file if something has changed since it was last written, at most every five seconds."""
        if not now and time.monotonic() - self._written < _EVERY_S:
            return
        document = {**described(schedule), "address": self.address}
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
            if not self._told:
                self._told = True
                log.warning("%s cannot be written: %s", self.path, error)


def described(schedule: Schedule) -> dict[str, Any]:
    """How everything stands."""
    tasks = list(schedule.tasks.values())
    return {
        "experiments": len(tasks),
        "settled": sum(task.settled for task in tasks),
        "live": sum(task.look.live for task in tasks),
        "sentBytes": schedule.sent_bytes,
        "lastSentAt": _moment(schedule.last_sent) if schedule.last_sent else None,
        "errors": schedule.errors,
        "remotes": {
            url: {"failures": pause.failures, "why": pause.why} for url, pause in sorted(schedule.remotes.items())
        },
    }


def sentence(schedule: Schedule) -> str:
    """One line for people."""
    tasks = list(schedule.tasks.values())
    waiting = sum(not task.settled for task in tasks)
    experiments = "1 experiment" if len(tasks) == 1 else f"{len(tasks):,} experiments"
    parts = [experiments, f"{waiting:,} being sent" if waiting else "all sent"]
    away = [url for url, pause in schedule.remotes.items() if pause.failures]
    if away:
        parts.append(f"waiting for {', '.join(away[:3])}")
    if schedule.logins.refused:
        parts.append("a login is needed")
    return ", ".join(parts)


def load(path: Path | None = None) -> dict[str, Any] | None:
    """What the daemon last said; None where there is nothing, or nothing that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads((path or register.status_path()).read_bytes())
        if isinstance(found, dict):
            return found
    return None


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
