"""The daemon's main loop: its lock, its signals, its reports to the service manager; and the single pass of `once`."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Final

from ml_dash.disk import lock
from ml_dash.errors import InvalidValue
from ml_dash.sync import register

from . import report
from .discover import Discovery
from .health import Health
from .notify import Notifier
from .schedule import Schedule, Task
from .settings import Settings
from .ship import Remaining
from .task_states import TaskState
from .waking import Bell

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger("ml_dash.syncd")

DRAIN_S: Final = 9.0
"""How long SIGTERM lets it send what is there."""

ONCE_TRIES: Final = 4
LOCK_S: Final = 1.0
REPORT_S: Final = 1.0
"""How often it tells how it stands; with thousands of experiments that is no small thing to say."""

LOG_CHECK_S: Final = 60.0
"""How often it looks whether its log has become long."""

STUCK_S: Final = 300.0
_LOG_BYTES: Final = 10 << 20


class Signals:
    """What was asked for by signals."""

    def __init__(self) -> None:
        self.end = False
        self.abort = False
        self.reload = False
        self.wake: Callable[[], None] = lambda: None
        self.on_abort: Callable[[], None] = lambda: None

    def install(self) -> None:
        """Obey TERM, INT and HUP. In the main thread."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, self._reload)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.abort = self.end
        self.end = True
        self.wake()
        if self.abort:
            self.on_abort()

    def _reload(self, number: int, frame: FrameType | None) -> None:
        self.reload = True
        self.wake()


@contextlib.contextmanager
def daemon_lock() -> Iterator[bool]:
    """The lock of this user on this host while the block runs; False if another daemon has it."""
    path = register.lock_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    held: BaseFileLock | None = lock.hold(path)
    try:
        yield held is not None or lock.probe(path) is not lock.Liveness.ALIVE
    finally:
        if held is not None:
            held.release()


def run(
    read_settings: Callable[[], Settings], *, idle_exit_s: float | None = None, signals: Signals | None = None
) -> int:
    """Send what is there and what comes, until asked to end; the exit code. Raises InvalidValue for wrong settings."""
    settings = read_settings()
    signals = signals or Signals()
    signals.install()
    rotate_log()
    notifier = Notifier()
    while True:
        with daemon_lock() as mine:
            if mine:
                return _serve(settings, read_settings, idle_exit_s, signals, notifier)
        other = (report.load() or {}).get("pid", "another process")
        if not notifier.has_manager:
            log.warning("ml-dash-syncd runs already (%s)", other)
            return 0
        # The manager's own one takes over when the other ends.
        notifier.ready()
        notifier.status(f"process {other} has the lock; waiting for it to end")
        notifier.ping_watchdog()
        waiting = Bell()
        signals.wake = waiting.ring
        waiting.wait(min(LOCK_S, notifier.interval_s))
        if signals.end:
            return 0


def _serve(
    settings: Settings,
    read_settings: Callable[[], Settings],
    idle_exit_s: float | None,
    signals: Signals,
    notifier: Notifier,
) -> int:
    schedule = Schedule(Discovery(settings))
    signals.wake, signals.on_abort = schedule.wake, _abort
    health, report_file = Health(schedule), report.ReportFile()
    try:
        if settings.listen is not None:
            try:
                report_file.address = health.listen(settings.listen)
                log.info("listening on %s", report_file.address)
            except OSError as error:
                raise InvalidValue(f"listen is {settings.listen}: {error}", hint="choose another port") from error
        schedule.start()
        health.ready = True
        report_file.write(schedule, now=True)
        notifier.ready()
        idle_since, reported, log_checked = time.monotonic(), float("-inf"), time.monotonic()
        report_s = min(REPORT_S, notifier.interval_s)
        while not signals.end:
            schedule.turn()
            health.last_turn = time.monotonic()
            if signals.reload:
                signals.reload = False
                _reload(schedule, read_settings)
            if time.monotonic() < reported + report_s and not signals.end:
                continue
            reported = time.monotonic()
            if not _is_stuck(schedule):
                notifier.ping_watchdog()
            notifier.status(report.status_line(schedule))
            report_file.write(schedule)
            if reported > log_checked + LOG_CHECK_S:
                log_checked = reported
                rotate_log()
            if not _is_idle(schedule):
                idle_since = time.monotonic()
            elif idle_exit_s is not None and time.monotonic() - idle_since >= idle_exit_s:
                log.info("nothing to send for %.0f s: ends", idle_exit_s)
                break
        notifier.stopping()
        schedule.stop(DRAIN_S if signals.end else 1.0)
        report_file.write(schedule, now=True, ended=True)
    finally:
        schedule.abort()
        health.close()
    _exit_past_hanging_threads(0)
    return 0


def _reload(schedule: Schedule, read_settings: Callable[[], Settings]) -> None:
    try:
        settings = read_settings()
    except InvalidValue as error:
        log.error("the settings stay as they were: %s", error)
        settings = schedule.settings
    schedule.reload(Discovery(settings))
    log.info("settings and logins were read again; all pauses have ended")


def _is_idle(schedule: Schedule) -> bool:
    return all(task.settled and not task.watch.live for task in list(schedule.tasks.values())) and schedule.is_idle()


def _is_stuck(schedule: Schedule) -> bool:
    """Does a thread work on the same step for longer than any request may take?"""
    now = time.monotonic()
    return any(task.busy and now - task.began > STUCK_S for task in list(schedule.tasks.values()))


def once(
    settings: Settings, keys: Iterable[str] = (), *, tries: int | None = None, signals: Signals | None = None,
    abort_code: int = 143,
) -> list[Task]:  # fmt: skip
    """Send what is there until all of it is acknowledged, or cannot be for now; what stays.

    A second signal to end ends the process at once, with `abort_code`.
    """
    tries = ONCE_TRIES if tries is None else tries
    if signals is None:
        signals = Signals()
        signals.install()
    keys = set(keys)
    discovery = Discovery(settings, keys)
    unknown = keys - set(discovery.find())
    if unknown:
        hint = f"the registrations are in {register.registered_folder()}"
        raise InvalidValue(f"nothing is registered as {', '.join(sorted(unknown))}", hint=hint)
    schedule = Schedule(discovery)
    signals.wake, signals.on_abort = schedule.wake, partial(_abort, abort_code)
    try:
        schedule.start()
        while not signals.end:
            schedule.turn()
            if all(_is_done(schedule, task, tries) for task in list(schedule.tasks.values())):
                break
        schedule.stop(DRAIN_S if signals.end else 1.0)
    finally:
        schedule.abort()
    return [task for task in schedule.tasks.values() if unsent_reason(task)]


def _is_done(schedule: Schedule, task: Task, tries: int) -> bool:
    """Will waiting make no difference?"""
    server_backoff = schedule.remotes.get(task.registration.remote)
    if task.backoff.failures >= tries or (server_backoff is not None and server_backoff.failures >= tries):
        return True
    result = task.result
    if result is None:
        return task.settled
    # Once all was sent that was there: a writer that lives may go on for ever.
    drained = result.remaining is Remaining.NOTHING or result.only_blobs_wait
    return drained or (result.remaining is Remaining.LATER and result.again_s is None)


def unsent_reason(task: Task) -> str | None:
    """Why something of a journal is not on its server; None if all is."""
    result, cursor = task.result, task.shipment.cursor
    if task.state is TaskState.REMOVED:
        return None
    if task.trouble:
        return task.trouble
    if cursor is not None and cursor.parked:
        name, why = next(iter(cursor.parked.items()))
        return f"{name}: {why}"
    if result is None or (result.remaining is not Remaining.NOTHING and not result.only_blobs_wait):
        return "not all of it was sent"
    return None


def rotate_log() -> None:
    """Begin the log of a daemon in the background anew when it has become long; the one before is kept."""
    path = register.log_path()
    try:
        mine, there = os.fstat(2), path.stat()
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino) or there.st_size < _LOG_BYTES:
            return
        os.replace(path, path.with_name(f"{path.name}.1"))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)
    except OSError:
        # There is none, or no room for one.
        return


def _abort(code: int = 143) -> None:
    """A second TERM: at once, whatever is under way. Only the server's answers count, so nothing is lost."""
    log.warning("ends at once; what is under way is sent again the next time")
    _exit(code)


def _exit_past_hanging_threads(code: int) -> None:
    """End without waiting for threads that hang in a request."""
    hanging = [thread for thread in threading.enumerate() if thread.name.startswith("ml-dash-send")]
    if code or hanging:
        _exit(code)


def _exit(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
