"""Programs of victims whose disk fills up, fails, hangs or goes away: they time every call and expect no error."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import resource
import threading
import time
from pathlib import Path
from typing import Any, Final

from ml_dash import Experiment
from tests.faults import shim

from . import oracle_reader as disk
from .oracle import Reporter
from .victims import NAME, PROJECT, Caller, close_and_report, experiment, hurry, report_state, wait_for_file

IMPATIENT: Final = {"FIRST_RETRY_S": 0.01, "LAST_RETRY_S": 0.05, "SYNC_AFTER_S": 0.02}
_NOBODY: Final = 65534


class TimedCaller(Caller):
    """Keeps the slowest call."""

    slowest_s = 0.0

    def any(self) -> None:
        """One call of some kind, timed."""
        begun = time.perf_counter()
        super().any()
        self.slowest_s = max(self.slowest_s, time.perf_counter() - begun)

    def tell(self) -> None:
        """Report the slowest call so far, in microseconds."""
        self.report.value("slowest-us", int(self.slowest_s * 1e6))


def drop_rights() -> None:
    """Root may do everything: become nobody, for whom permissions count."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)


def wait_until_written(report: Reporter, target: object, timeout_s: float = 20.0) -> bool:
    """Until nothing waits in memory; False if that does not come."""
    deadline = time.monotonic() + timeout_s
    while True:
        state = target.durable_state()  # type: ignore[attr-defined]
        if state["written"] + state["lost"] >= state["accepted"]:
            report.value("all-written", 1)
            return True
        if time.monotonic() > deadline:
            report.value("stuck", state["accepted"] - state["written"])
            return False
        time.sleep(0.002)


def fill_up(pipe: int, folder: Path, *, seed: str, padding: int, pages: int, free: bool, more: int) -> None:
    """On a small file system: fill it with ballast but for some pages, call until it is full and on, then free it."""
    hurry(**IMPATIENT)
    report = Reporter(pipe)
    rng = random.Random(seed)
    target = experiment(folder).open()
    caller = TimedCaller(target, report, rng, big=2000)
    text = "pad " + "p" * padding
    report.before(disk.LOG, ["info", text, None])
    target.log(text)
    report.after()
    ballast = folder / "store" / "ballast"
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(fd, bytes(4096)):
            pass
    os.ftruncate(fd, max(0, os.fstat(fd).st_size - 4096 * pages))
    for _ in range(more):
        caller.any()
        report_state(report, target)
    if free:
        os.ftruncate(fd, 0)
        report.value("freed", 1)
        wait_until_written(report, target)
        for _ in range(10):
            caller.any()
        wait_until_written(report, target)
        report_state(report, target)
    os.close(fd)
    caller.tell()
    close_and_report(report, target)


def limited(pipe: int, folder: Path, *, seed: str, room: int, more: int) -> None:
    """No file may grow beyond what the segment has now, and `room` bytes; later the limit goes."""
    hurry(**IMPATIENT)
    report = Reporter(pipe)
    target = experiment(folder).open()
    caller = TimedCaller(target, report, random.Random(seed), big=2000)
    caller.any()
    (segment,) = (target.path / ".journal" / "segments").glob("*.seg")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (segment.stat().st_size + room, hard))
    for _ in range(more):
        caller.any()
        report_state(report, target)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    wait_until_written(report, target)
    caller.any()
    caller.tell()
    close_and_report(report, target)


def faulty(pipe: int, folder: Path, *, seed: str, count: int, settings: dict[str, Any] | None = None) -> None:
    """Calls while the shim lets some system calls fail."""
    hurry(**IMPATIENT, ROLL_BYTES=6_000)
    report = Reporter(pipe)
    target = experiment(folder, **(settings or {})).open()
    report.value("open", os.getpid())
    caller = TimedCaller(target, report, random.Random(seed), big=2000)
    for _ in range(count):
        caller.any()
        report_state(report, target)
    caller.tell()
    close_and_report(report, target)


def faulty_folder(pipe: int, folder: Path, *, seed: str, count: int, rule: str) -> None:
    """Calls and reads while the folder cannot be written; the journal can."""
    hurry(PROJECT_EVERY_S=0.005)
    report = Reporter(pipe)
    target = experiment(folder).open()
    shim.configure(rule)
    caller = TimedCaller(target, report, random.Random(seed), big=2000)
    for number in range(count):
        caller.any()
        if number % 40 == 10:
            try:
                report.value("read", sum(summary["totalDataPoints"] for summary in target.metric().list_all()))
            except OSError as error:
                report.value("read raised", error.errno or 0)
        time.sleep(0.0002)
    caller.tell()
    report.value("hits", shim.done())
    target.close()
    report.value("closed", 1)


def faulty_strict(pipe: int, folder: Path, *, seed: str, count: int) -> None:
    """The same with strict=True: a call that cannot be kept raises StorageError, and is not recorded."""
    from ml_dash.errors import StorageError

    hurry(**IMPATIENT, ROLL_BYTES=6_000)
    report = Reporter(pipe)
    try:
        target = experiment(folder, strict=True).open()
    except StorageError:
        report.value("refused-open", 1)
        return
    caller = Caller(target, report, random.Random(seed), big=2000)
    for _ in range(count):
        try:
            caller.any()
        except StorageError:
            report.raised()
            report.value("raised", 1)
    close_and_report(report, target)


def paced(pipe: int, folder: Path, *, seed: str, unprivileged: bool, wait_written: bool) -> None:
    """Some calls; then, when the harness has broken something, more; then, when it has mended it, more."""
    if unprivileged:
        drop_rights()
    hurry(**IMPATIENT, ROLL_BYTES=4_000)
    report = Reporter(pipe)
    target = experiment(folder).open()
    caller = TimedCaller(target, report, random.Random(seed), big=1000)
    for step in ("break", "mend"):
        for _ in range(30):
            caller.any()
        wait_for_file(folder / step, report)
    for _ in range(30):
        caller.any()
    if wait_written:
        wait_until_written(report, target)
    report_state(report, target)
    caller.tell()
    close_and_report(report, target)


def record(_: int, folder: Path, *, where: str) -> None:
    """A short run, by the user without rights."""
    drop_rights()
    with Experiment(NAME, PROJECT, local_path=where) as target:
        target.metric("loss").append(value=1.0, step=0)


def open_in_vain(_: int, folder: Path, *, where: str, how: str, settings: dict[str, Any]) -> None:
    """Open where that can never work, and print what was raised; an `open()` that returns is one line more."""
    drop_rights()
    places = {}
    if how == "argument":
        places["local_path"] = where
    elif how == "prefix":
        places["local_prefix"] = where
    else:
        os.environ["ML_DASH_LOCAL_PATH"] = where
    target = Experiment(NAME, PROJECT, **places, **settings)
    try:
        target.open()
    except Exception as error:  # noqa: BLE001 - the harness judges which it is
        print(f"raised {type(error).__name__}: {error}")
        return
    print(f"opened {target.path}")
    target.log("one")
    target.close()


def hanging(pipe: int, folder: Path, *, seed: str, op: str, nth: int, patience: float) -> None:
    """One call hangs in the kernel until the harness lets it go; other threads call on, and are timed."""
    import ml_dash.recording.run

    assert hasattr(ml_dash.recording.run, "_is_local"), "the choice of write function has moved"
    ml_dash.recording.run._is_local = lambda journal: False
    hurry(SYNC_AFTER_S=0.01, FIRST_RETRY_S=0.02, PATIENCE_S=patience)
    shim.configure(shim.program(folder / "store", shim.rule(op, match="/segments/", nth=nth, hang=folder / "release")))
    first, second = Reporter(pipe, 1), Reporter(pipe, 2)
    target = experiment(folder).open()
    stop = threading.Event()

    def call_on() -> None:
        caller = Caller(target, first, random.Random(seed))
        while not stop.is_set() and first.ordinal < 5_000:
            caller.point()
            time.sleep(0.0005)

    thread = threading.Thread(target=call_on)
    thread.start()
    deadline = time.monotonic() + 30
    while not shim.hung():
        if time.monotonic() > deadline:
            raise TimeoutError("nothing hangs")
        time.sleep(0.001)
    caller = TimedCaller(target, second, random.Random(seed + "second"))
    caller.any()
    second.value("first-us", int(caller.slowest_s * 1e6))
    caller.slowest_s = 0.0
    for _ in range(100):
        caller.any()
    caller.tell()
    report_state(second, target)
    second.value("hanging", 1)
    wait_for_file(folder / "release", second)
    wait_until_written(second, target)
    stop.set()
    thread.join(30)
    caller.any()
    close_and_report(second, target)


def mount(kind: str, target: Path, flags: int, data: str) -> None:
    """mount(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", str(target).encode(), kind.encode(), flags, data.encode()):
        raise OSError(ctypes.get_errno(), f"mount {kind} at {target}: {os.strerror(ctypes.get_errno())}")


def unmount(target: Path, *, lazy: bool = False) -> None:
    """umount2(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(str(target).encode(), 2 if lazy else 0):
        number = ctypes.get_errno()
        if number != errno.EINVAL:
            raise OSError(number, f"umount {target}: {os.strerror(number)}")
