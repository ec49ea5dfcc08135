"""What victims run: the server's and the uploader's own programs, with their own arguments."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import resource
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

STEPS: Final = tuple(
    f"{module}:fail_point"
    for module in (
        "stores.mongo",
        "stores.s3_uploads",
        "engine.changes",
        "engine.ingest",
        "engine.uploads",
        "engine.archive",
    )
)
"""Where a server's steps are passed."""
HALTS: Final = "halts"
"""A file beside the server's data: as long as it is there, the server may stop at a step."""
FEW: Final = 8
"""Points of a span, in every process of the trials."""


def hurry(settings: dict[str, Any]) -> None:
    """Set constants of the library, the server and the uploader: "module:NAME" → value, or "NAME" → value for all."""
    for where, value in settings.items():
        module, _, name = where.rpartition(":")
        homes = [m for text, m in sorted(sys.modules.items()) if _ours(text, module) and hasattr(m, name)]
        if not homes:
            raise LookupError(f"nothing has {where}")
        for home in homes:
            setattr(home, name, value)


def _ours(module: str, wanted: str) -> bool:
    return module == wanted if wanted else module.startswith(("ml_dash.", "ml_dash_syncd."))


def server(
    pipe: int,
    folder: Path,
    *,
    args: Sequence[str],
    impatient: dict[str, Any] | None = None,
    limits: dict[str, int] | None = None,
    halt: str = "",
) -> None:
    """`ml-dash server ARGS`; it stops at the step `halt`."""
    _prepare(folder, impatient, limits)
    if halt:
        _stop_at(*halt.split(":"), folder / HALTS)
    from ml_dash.cli import main

    main(["server", *args])


def syncd(
    pipe: int,
    folder: Path,
    *,
    args: Sequence[str],
    impatient: dict[str, Any] | None = None,
    limits: dict[str, int] | None = None,
    reads: str = "",
    watch: str = "",
) -> None:
    """`ml-dash-syncd ARGS`; with `reads` that follow a program, with a `watch` that does not work."""
    _prepare(folder, impatient, limits)
    if watch:
        _break_watching(watch)
    if reads:
        from . import reads as reading

        reading.configure(reads)
    from ml_dash_syncd.__main__ import main

    sys.argv = ["ml-dash-syncd", *args]
    sys.exit(main(list(args)))


def _stop_at(name: str, nth: str, allowed: Path) -> None:
    """Make the n-th passing of a named step stop this process while there is a file `allowed`."""
    from ml_dash.disk.durable import fail_point

    left = [int(nth)]

    def halting(passed: str) -> None:
        if passed == name:
            left[0] -= 1
            if left[0] == 0 and allowed.exists():
                os.kill(os.getpid(), signal.SIGSTOP)
        fail_point(passed)

    hurry({"ml_dash.server." + module: halting for module in STEPS})


def _break_watching(how: str) -> None:
    """At the system calls: no instance ("EMFILE"), no watch ("ENOSPC"), or watches that never tell ("silent")."""
    from watchdog.observers import inotify_c

    calls: Any = inotify_c
    if how == "silent":
        add, elsewhere = calls.inotify_add_watch, os.fsencode(tempfile.mkdtemp(dir=Path.cwd()))
        calls.inotify_add_watch = lambda fd, _path, mask: add(fd, elsewhere, mask)
        return
    number = getattr(errno, how)

    def refuse(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    if how == "EMFILE":
        calls.inotify_init = refuse
    else:
        calls.inotify_add_watch = refuse


def _prepare(folder: Path, impatient: dict[str, Any] | None, limits: dict[str, int] | None) -> None:
    os.chdir(folder)
    hurry(impatient or {})
    for name, value in (limits or {}).items():
        number = getattr(resource, name)
        resource.setrlimit(number, (value, resource.getrlimit(number)[1]))


def rank(
    pipe: int,
    folder: Path,
    *,
    store: str,
    project: str,
    number: int,
    session: int,
    start: int,
    steps: int,
    seed: str,
    dies: bool,
    go: str,
) -> None:
    """One rank of a job that goes on from step `start`: opens, goes back, records at once; after `go` some more."""
    from ml_dash import Experiment
    from tests.crash.oracle import Reporter
    from tests.crash.victims import wait_for_file

    rng, report = random.Random(seed), Reporter(pipe, number)
    experiment = Experiment("run", project, local_path=store, resume_step=start).open()

    def record(step: int) -> None:
        point: dict[str, Any] = {"value": rng.random(), "session": session, "rank": number}
        experiment.metric(f"rank{number}").append(step=step, **point)
        experiment.metric("all").append_batch([{"step": step, **point}, {"epoch": step, **point}])
        if not step % 5:
            experiment.metric("bare").append(**point)

    early = rng.randrange(steps)
    for step in range(start, start + early):
        record(step)
    report.value("open", number)
    wait_for_file(Path(go), report)
    for step in range(start + early, start + steps):
        record(step)
        report.value("going", number)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    experiment.close()
