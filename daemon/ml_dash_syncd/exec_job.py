"""`ml-dash-syncd exec`: runs a job, sends while it runs and afterwards, and exits with the job's code."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Final

from ml_dash.errors import MLDashError
from ml_dash.sync.register import EXEC

from .discover import Discovery
from .schedule import Schedule, Task
from .service import Signals, daemon_lock, once
from .settings import Settings

log = logging.getLogger("ml_dash.syncd")

NOT_FOUND: Final = 127
NOT_STARTED: Final = 126
"""Exit codes of a command that does not exist or cannot be started, as in a shell."""

TRIES: Final = 10
"""After the job, a server is given up after this many failures in a row."""

_FORWARDED: Final = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGQUIT")


def run_job(command: Sequence[str], settings: Settings) -> tuple[int, list[Task]]:
    """Run a command, and send meanwhile and afterwards; return its exit code and the tasks with something unsent.

    The exit code is 128 + n if signal n ended the job. Whatever goes wrong with the sending is logged: it does not keep
    the job from running or from being waited for, and does not change its exit code.
    """
    with _try_daemon_lock() as mine:
        signals = _Forwarding()
        signals.install()
        try:
            # EXEC tells the job's programs not to report at their end what is unsent: this process sends it.
            signals.job = job = subprocess.Popen(list(command), env={**os.environ, EXEC: "1"})
        except FileNotFoundError:
            log.error("%s: command not found", command[0])
            return NOT_FOUND, []
        except OSError as error:
            log.error("%s cannot be started: %s", command[0], error)
            return NOT_STARTED, []
        signals.pass_on()
        code = _run(job, settings, mine)
        # The job has ended: from now on signals are meant for this process.
        ours = Signals()
        ours.install()
        try:
            return code, once(settings, tries=TRIES, signals=ours, abort_code=code)
        except (MLDashError, OSError) as error:
            log.error("some data may not have been sent: %s", error)
            return code, []


@contextlib.contextmanager
def _try_daemon_lock() -> Iterator[bool]:
    """Hold the daemon's lock while the block runs; yield False if another daemon has it, or the disk refuses it."""
    with contextlib.ExitStack() as stack:
        try:
            mine = stack.enter_context(daemon_lock())
        except OSError as error:
            log.warning("nothing is sent while the job runs: %s", error)
            mine = False
        yield mine


def _run(job: subprocess.Popen[bytes], settings: Settings, mine: bool) -> int:
    """Wait for the job, and send meanwhile if this process holds the daemon's lock; return the job's exit code."""
    if mine:
        try:
            _send_while_running(job, settings)
        except Exception:
            log.exception("sending failed; trying again when the job has ended")
    return _code(job.wait())


def _send_while_running(job: subprocess.Popen[bytes], settings: Settings) -> None:
    """Send until the job ends."""
    schedule = Schedule(Discovery(settings))
    ended = threading.Event()

    def wait() -> None:
        job.wait()
        ended.set()
        schedule.wake()

    threading.Thread(target=wait, name="ml-dash-job", daemon=True).start()
    try:
        schedule.start()
        while not ended.is_set():
            schedule.turn()
        schedule.stop(1.0)
    finally:
        schedule.abort()


class _Forwarding:
    """Passes signals on to the job; those that come before it has started are kept for it."""

    def __init__(self) -> None:
        self.job: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def install(self) -> None:
        """Start forwarding. Signals that are ignored, as under nohup, stay so: the job inherits that."""
        for name in _FORWARDED:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._forward)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        # From a terminal, Ctrl-C reaches the whole group: the job has it already.
        if number in (signal.SIGINT, getattr(signal, "SIGQUIT", None)) and _from_terminal():
            return
        if self.job is None:
            self._early.append(number)
        else:
            self.job.send_signal(number)

    def pass_on(self) -> None:
        """Send the job, which has been started, the signals that came before."""
        early, self._early = self._early, []
        for number in early:
            if self.job is not None:
                self.job.send_signal(number)


def _from_terminal() -> bool:
    """True if this process is in the foreground of a terminal."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except (OSError, AttributeError):
        return False


def _code(returned: int) -> int:
    """The exit code as a shell gives it, for the return code of `Popen`."""
    return 128 - returned if returned < 0 else returned
