"""Programs of victims that fork, run beside others, lie about their host, and are woken from the dead."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from .oracle import Reporter
from .victims import Caller, experiment, hurry, wait_for_file


def forks(pipe: int, folder: Path, *, seed: str, children: int, count: int, how: str, nested: bool) -> None:
    """Children forked while another thread of the parent is inside a call; all of them log."""
    rng = random.Random(seed)
    target = experiment(folder).open()
    report = Reporter(pipe)
    caller = Caller(target, report, rng)
    stop, forked = threading.Event(), threading.Event()

    def busy() -> None:
        own = Caller(target, Reporter(pipe, 1), random.Random(seed + "busy"))
        while not stop.is_set():
            own.any()
            if forked.is_set():
                stop.wait(0.005)

    thread = threading.Thread(target=busy)
    thread.start()
    for _ in range(5):
        caller.any()
    running = [_start(pipe, target, seed, 2 + child, count, how, nested) for child in range(children)]
    forked.set()
    for _ in range(20):
        caller.any()
    statuses = [_wait(child) for child in running]
    stop.set()
    thread.join()
    caller.any()
    target.close()
    report.value("closed", 1)
    if any(statuses):
        print("children ended with", statuses)
        sys.exit(3)


def _start(pipe: int, target: object, seed: str, worker: int, count: int, how: str, nested: bool) -> object:
    arguments = (pipe, target, seed, worker, count, nested)
    if how == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=_child, args=arguments)
        process.start()
        return process
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            _child(*arguments)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def _wait(child: object) -> int:
    if isinstance(child, int):
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    child.join(30)  # type: ignore[attr-defined]
    code: int | None = child.exitcode  # type: ignore[attr-defined]
    return 99 if code is None else code


def _child(pipe: int, target: object, seed: str, worker: int, count: int, nested: bool) -> None:
    # Nobody may hang. Many processes on a busy machine are slow, not stuck.
    signal.alarm(30 if worker < 10 else 90)
    caller = Caller(target, Reporter(pipe, worker), random.Random(f"{seed}:{worker}"))  # type: ignore[arg-type]
    for number in range(count):
        caller.any()
        if nested and number == count // 2:
            grandchild = _start(pipe, target, seed, worker + 1000, 5, "raw", False)
            if status := _wait(grandchild):
                raise RuntimeError(f"grandchild ended with {status}")


def beside(
    pipe: int, folder: Path, *, seed: str, worker: int, count: int, host: str = "", crash: bool = False, go: str = ""
) -> None:
    """One of several processes that have the same experiment open."""
    if host:
        socket.gethostname = lambda: host
    hurry(SYNC_AFTER_S=0.01)
    report = Reporter(pipe, worker)
    target = experiment(folder).open()
    report.value("open", os.getpid())
    if go:
        wait_for_file(Path(go), report)
    caller = Caller(target, report, random.Random(seed))
    for _ in range(count):
        caller.any()
    report.value("called", 1)
    if crash:
        os.kill(os.getpid(), signal.SIGKILL)
    target.close()
    report.value("closed", 1)


def newcomer(pipe: int, folder: Path, *, worker: int, go: str, dies: bool) -> None:
    """Takes the next free name, as many others do in the same moment."""
    report = Reporter(pipe, worker)
    report.value("ready", 1)
    wait_for_file(Path(go), report)
    target = experiment(folder, "run", resume="new").open()
    report.value("name", 1 if target.name == "run" else int(target.name.removeprefix("run-")))
    target.metric("who").append(value=worker)
    report.value("recorded", 1)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    target.close()


def clocked(pipe: int, folder: Path, *, seed: str, worker: int, count: int, clock: str) -> None:
    """Half of the calls by the true clock, the other half by a wrong one; then the true one again."""
    from tests.faults import shim

    report = Reporter(pipe, worker)
    target = experiment(folder).open()
    caller = Caller(target, report, random.Random(seed))
    for setting in ("", clock, ""):
        shim.configure(setting)
        for _ in range(count // 3):
            caller.any()
        report.value("cpu-before", int(time.process_time() * 1000))
    target.metric("m0").stats()
    target.close()
    report.value("cpu", int(time.process_time() * 1000))
    report.value("closed", 1)
