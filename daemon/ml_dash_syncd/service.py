"""The daemon's main loop: its lock, its signals, its reports to the service manager; and the single pass of `once`.

    run:   settings -> signals -> lock -> schedule.turn, again and again, with a report every REPORT_S -> drain -> end
    once:  settings -> schedule.turn until every task is done or given up -> end

The main thread does this, and nothing in it waits for a server: sending is the workers' part. Signal handlers only
set flags and ring the bell of the schedule.

One daemon for a user and host, by a lock that its process holds as long as it lives: a daemon that is killed frees
it. When asked to end it sends for DRAIN_S more, and whatever remains then is sent by the next one.
"""

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
from ml_dash.sync import launch, registrations

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
    pass

log = logging.getLogger("ml_dash.syncd")

DRAIN_S: Final = 9.0
"""After SIGTERM, sending goes on for at most this long. The command promises ten seconds; the units allow twenty."""

ONCE_TRIES: Final = 4
"""`once` gives a journal or a server up after this many failures in a row."""

LOCK_S: Final = 1.0
"""While another daemon runs, one that systemd started tries to take the lock this often."""

REPORT_S: Final = 1.0
"""Time between two reports; with thousands of experiments, making one takes a while."""

LOG_CHECK_S: Final = 60.0
"""Time between two checks of the length of the log."""

STUCK_S: Final = 300.0
"""A step that takes longer than this is stuck: no request may take that long."""

_LOG_BYTES: Final = 10 << 20
"""A log longer than this is rotated."""


class Signals:
    """What signals have asked for. `wake` and `on_abort` are called from the signal handlers, in the main thread.

    Handlers run between any two steps of the main thread, also while it holds a lock. So they take none: `wake` is a
    `Bell`.
    """

    def __init__(self) -> None:
        self.end = False
        self.abort = False
        self.reload = False
        self.wake: Callable[[], None] = lambda: None
        self.on_abort: Callable[[], None] = lambda: None

    def install(self) -> None:
        """Handle TERM and INT (end; a second one aborts) and HUP (reload). Only in the main thread."""
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, self._reload)

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Ask for the end; at once if that was asked before."""
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
    """Hold the lock of this user on this host while the block runs; yield False if another daemon has it.

    Where the file system has no locks, yield True: two daemons then send the same bytes twice, which harms nothing.
    """
    path = launch.lock_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = lock.hold(path)
    try:
        yield held is not None or lock.probe(path) is not lock.Liveness.ALIVE
    finally:
        if held is not None:
            held.release()


def run(
    read_settings: Callable[[], Settings], *, idle_exit_s: float | None = None, signals: Signals | None = None
) -> int:
    """Send what is there and what comes, until a signal asks to end; return the exit code.

    With `idle_exit_s`, end after this many seconds with nothing to send and no living writer. If another daemon runs,
    end at once; under systemd, wait for it to end and take over. Raises InvalidValue for wrong settings.
    """
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
            log.warning("ml-dash-syncd is already running (%s)", other)
            return 0
        # This process is the service manager's own: it takes over when the other one ends.
        # Waiting is what it is there for now: without this, systemd would take the start for failed.
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
    """Send until a signal or idleness ends it; return the exit code.

    Has the lock. Raises InvalidValue for the address.
    """
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
        # The first report comes with the first turn.
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
            # A hanging request keeps its worker for ever, and only a new process gets rid of it: without a ping,
            # systemd makes one.
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
                log.info("nothing to send for %.0f s: ending", idle_exit_s)
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
    """Read the settings again; keep the old ones if the new ones are wrong. Either way all pauses end."""
    try:
        settings = read_settings()
    except InvalidValue as error:
        log.error("the settings were not changed: %s", error)
        settings = schedule.settings
    schedule.reload(Discovery(settings))
    log.info("settings and logins were read again; all pauses have ended")


def _is_idle(schedule: Schedule) -> bool:
    """True if nothing is to be sent, and no writer lives that may bring more."""
    return all(task.settled and not task.watch.live for task in list(schedule.tasks.values())) and schedule.is_idle()


def _is_stuck(schedule: Schedule) -> bool:
    """True if a worker has been in the same step for longer than STUCK_S. Then systemd's watchdog may restart us."""
    now = time.monotonic()
    return any(task.busy and now - task.began > STUCK_S for task in list(schedule.tasks.values()))


def once(
    settings: Settings, keys: Iterable[str] = (), *, tries: int | None = None, signals: Signals | None = None,
    abort_code: int = 143,
) -> list[Task]:  # fmt: skip
    """Send what is there until all of it is acknowledged or cannot be for now; return the tasks with something unsent.

    `keys` are of registrations: those and no others (default: all). Gives up after `tries` failures in a row (default:
    ONCE_TRIES). A second signal to end ends the process at once, with exit code `abort_code`. Raises InvalidValue for
    an unknown key.
    """
    tries = ONCE_TRIES if tries is None else tries
    if signals is None:
        signals = Signals()
        signals.install()
    keys = set(keys)
    discovery = Discovery(settings, keys)
    unknown = keys - set(discovery.find())
    if unknown:
        hint = f"the registrations are in {registrations.registered_folder()}"
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
    """True if waiting any longer makes no difference to a task."""
    server_backoff = schedule.remotes.get(task.registration.remote)
    # Given up; `unsent_reason` says why.
    if task.backoff.failures >= tries or (server_backoff is not None and server_backoff.failures >= tries):
        return True
    result = task.result
    if result is None:
        return task.settled
    # Everything that was there has been sent once. A living writer could go on for ever.
    drained = result.remaining is Remaining.NOTHING or result.only_blobs_wait or result.full
    return drained or (result.remaining is Remaining.LATER and result.again_s is None)


def unsent_reason(task: Task) -> str | None:
    """Why a part of a journal is not on its server; None if everything is, or the journal is gone."""
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
    """Begin the log of a background daemon anew when it has become long; keep the old one as `<name>.1`."""
    path = launch.log_path()
    try:
        mine, there = os.fstat(2), path.stat()
        # Only a log that this process writes to itself, as standard error: with a service manager there is none.
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino) or there.st_size < _LOG_BYTES:
            return
        os.replace(path, path.with_name(f"{path.name}.1"))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # Both streams go on in the new file, also those of threads that are writing: a descriptor changes its file in
        # one step.
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)
    except OSError:
        # There is no log file, or no room for a new one: go on with what there is.
        return


def _abort(code: int = 143) -> None:
    """End at once, on a second signal. What was not acknowledged is sent again the next time, so nothing is lost."""
    log.warning("ending at once; what was not acknowledged is sent again the next time")
    _exit(code)


def _exit_past_hanging_threads(code: int) -> None:
    """End the process here if a worker still hangs in a request: the interpreter's own exit could wait for it."""
    hanging = [thread for thread in threading.enumerate() if thread.name.startswith("ml-dash-send")]
    if code or hanging:
        _exit(code)


def _exit(code: int) -> None:
    """Flush, and end the process without the interpreter's own exit."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
