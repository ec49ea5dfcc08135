"""Programs of victims for single rows: large bodies, many files, exits."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from . import oracle_reader as disk
from .oracle import Reporter
from .victims import Caller, close_and_report, experiment, sources_of


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
