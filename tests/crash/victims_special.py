"""Programs of victims for single rows: large bodies, many files, exits."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import time
from pathlib import Path

from ml_dash import Experiment
from tests.faults import shim

from . import oracle_reader as disk
from .oracle import Reporter
from .victims import Caller, close_and_report, experiment, hurry, sources_of


def large(pipe: int, folder: Path, *, seed: str, size: int, kind: str) -> None:
    """One body or file of `size` bytes, after a small event and before another."""
    report = Reporter(pipe)
    target = experiment(folder).open()
    caller = Caller(target, report, random.Random(seed), sources=sources_of(folder))
    caller.log()
    if kind == "file":
        source = sources_of(folder) / "large.bin"
        with source.open("wb") as file:
            block = random.Random(seed).randbytes(1 << 20)
            for _ in range(size >> 20):
                file.write(block)
        checksum = hashlib.sha256(source.read_bytes()).hexdigest()
        body = {"prefix": "models", "filename": "large.bin", "sizeBytes": source.stat().st_size, "checksum": checksum}
        report.before(disk.FILE, body)
        report.value("go", 1)
        target.file(str(source), prefix="/models")
        report.after()
    elif kind == "parameter":
        text = "y" * size
        report.before(disk.PARAMS, {"large": text})
        report.value("go", 1)
        target.parameters().set(large=text)
        report.after()
    else:
        text = "y" * size
        report.before(disk.LOG, ["info", text, None])
        report.value("go", 1)
        target.log(text)
        report.after()
    caller.log()
    close_and_report(report, target)


def files(pipe: int, folder: Path, *, seed: str, count: int) -> None:
    """Files and points in turn."""
    report = Reporter(pipe)
    target = experiment(folder).open()
    caller = Caller(target, report, random.Random(seed), sources=sources_of(folder))
    for _ in range(count):
        caller.file()
        caller.point()
    close_and_report(report, target)


def recorded(
    pipe: int,
    folder: Path,
    *,
    seed: str,
    durability: str,
    count: int,
    resumes: int,
    files: bool = True,
    settle: int = 0,
) -> None:
    """Calls under the shim's record, with marks that say how many of them were said to be synced.

    The experiment is opened anew `resumes` times in between. With `settle`, so many calls wait until all is synced, and
    so does the end.
    """
    rng = random.Random(seed)
    # Half of the time bodies over 3,000 bytes become blobs.
    hurry(SYNC_AFTER_S=0.002, ROLL_BYTES=4_000, MAX_PAYLOAD=rng.choice((3_000, 1 << 20)))
    report = Reporter(pipe)
    sources = sources_of(folder.parent) if files else None
    done = 0
    for _ in range(resumes + 1):
        target = experiment(folder, durability=durability).open()
        caller = Caller(target, report, rng, sources=sources, big=6_000)
        # What `durable_state` counts of this writer beside the calls: its opening event.
        before, own = done, 1
        if durability == "interval" and rng.random() < 0.9:
            # The thread that syncs starts some time after `open`: these few calls could all come before.
            _wait_until_synced(target)
        settled = set(rng.sample(range(count), min(settle, count)))
        for number in range(count):
            caller.any()
            done += 1
            if number in settled:
                _wait_until_synced(target)
            elif rng.random() < 0.3:
                _wait_for_some_sync(target, rng)
            shim.mark(str(before + max(0, target.durable_state()["synced"] - own)))
        if settle:
            _wait_until_synced(target)
            shim.mark(str(done))
        target.close()
        shim.mark(str(done))
    report.value("closed", 1)


def _wait_until_synced(target: Experiment) -> None:
    deadline = time.monotonic() + 20
    while target.durable_state()["synced"] < target.durable_state()["accepted"]:
        if time.monotonic() > deadline:
            raise TimeoutError("not synced within 20 s")
        time.sleep(0.001)


def _wait_for_some_sync(target: Experiment, rng: random.Random) -> None:
    """Let the syncer come in now and then, so that states between syncs are of every length."""
    goal = rng.randrange(target.durable_state()["accepted"] + 1)
    deadline = time.monotonic() + 0.02
    while target.durable_state()["synced"] < goal and time.monotonic() < deadline:
        time.sleep(0.0005)


def starved(pipe: int, folder: Path, *, seed: str, megabytes: int) -> None:
    """Calls with ever larger content until memory runs out, then, with the limit gone, some more."""
    report = Reporter(pipe)
    target = experiment(folder).open()
    caller = Caller(target, report, random.Random(seed), big=2_000)
    for _ in range(10):
        caller.any()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), hard))
    size = 1 << 18
    while size < 1 << 28:
        try:
            text = f"{size} " + "m" * size
            body = ["info", text, None]
            report.before(disk.LOG, body)
        except MemoryError:
            break
        try:
            target.log(text)
        except MemoryError:
            report.raised()
        else:
            report.after()
        del text, body
        size = size * 3 // 2
    for _ in range(10):
        caller.any()
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    for _ in range(10):
        caller.any()
    close_and_report(report, target)


def projecting(pipe: int, folder: Path, *, seed: str, count: int, worker: int) -> None:
    """Calls with a folder that is brought up to date all the time."""
    hurry(PROJECT_EVERY_S=0.005)
    report = Reporter(pipe, worker)
    target = experiment(folder).open()
    report.value("open", 1)
    caller = Caller(target, report, random.Random(seed))
    for _ in range(count):
        caller.any()
        time.sleep(0.0005)
    target.close()


def delete_and_die(pipe: int, folder: Path, *, ids: list[str]) -> None:
    """Delete files, and end before anything is projected."""
    del pipe
    target = experiment(folder).open()
    for file_id in ids:
        target.file(file_id=file_id).delete()
    os._exit(0)
