"""Run a job, send while it runs and after, and end as it ended: for systems that kill what a job leaves behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Any, Final

from .discover import Discovery
from .schedule import Schedule, Task
from .service import Signals, alone, once
from .settings import Settings

log = logging.getLogger("ml_dash.syncd")

NOT_FOUND: Final = 127
NOT_STARTED: Final = 126
TRIES: Final = 10
_FORWARDED: Final = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGQUIT")


def execute(command: Sequence[str], settings: Settings) -> tuple[int, list[Task]]:
    """(the job's exit code, 128 + n if signal n ended it; what could not be sent). Raises nothing of the job's."""
    with alone() as mine:
        schedule = Schedule(Discovery(settings)) if mine else None
        try:
            job = subprocess.Popen(list(command))
        except FileNotFoundError:
            log.error("%s: command not found", command[0])
            return NOT_FOUND, []
        except OSError as error:
            log.error("%s cannot be started: %s", command[0], error)
            return NOT_STARTED, []
        _forward(job)
        code = _run(job, schedule)
        # From now on signals are for us: the job has ended.
        signals = Signals()
        signals.install()
        return code, once(settings, tries=TRIES, signals=signals)


def _run(job: subprocess.Popen[bytes], schedule: Schedule | None) -> int:
    """Send while the job runs; its exit code."""
    if schedule is None:
        return _code(job.wait())
    ended = threading.Event()

    def wait() -> None:
        job.wait()
        ended.set()
        schedule.wake()

    threading.Thread(target=wait, name="ml-dash-job", daemon=True).start()
    schedule.start()
    try:
        while not ended.is_set():
            schedule.turn()
        schedule.stop(1.0)
    finally:
        schedule.abort()
    return _code(job.returncode)


def _forward(job: subprocess.Popen[bytes]) -> None:
    """Signals that we get are for the job."""

    def forward(number: int, frame: Any) -> None:
        # From a terminal, Ctrl-C reaches the whole group: the job has it already.
        if number in (signal.SIGINT, signal.SIGQUIT) and _from_terminal():
            return
        job.send_signal(number)

    for name in _FORWARDED:
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, forward)


def _from_terminal() -> bool:
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except (OSError, AttributeError):
        return False


def _code(returned: int) -> int:
    return 128 - returned if returned < 0 else returned
