"""Programs that victims run: each tells the oracle of every call, before and after it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

from ml_dash import Experiment

from . import oracle_reader as disk
from .oracle import Reporter

PROJECT = "crash"
NAME = "victim"


def experiment(folder: Path, name: str = NAME, **settings: Any) -> Experiment:
    """The experiment of a trial."""
    return Experiment(name=name, project=PROJECT, local_path=folder / "store", **settings)


def journal_of(folder: Path, name: str = NAME) -> Path:
    """Where its journal is."""
    return folder / "store" / PROJECT / name / ".journal"


def hurry(**settings: float) -> None:
    """Let this process be as impatient as a test has to be: constants of the library's modules, by name."""
    ours = [module for name, module in sys.modules.items() if name.startswith("ml_dash.")]
    for name, value in settings.items():
        # `frames` is what readers go by: what this process writes may be smaller, what it reads may not.
        homes = [module for module in ours if hasattr(module, name) and module.__name__ != "ml_dash.core.frames"]
        if not homes:
            raise LookupError(f"no module of the library has {name}")
        for module in homes:
            setattr(module, name, value)


class Caller:
    """Makes calls of every kind, each with content of its own, and reports them."""

    def __init__(
        self, target: Experiment, reporter: Reporter, rng: random.Random, *, sources: Path | None = None, big: int = 0
    ) -> None:
        self.target = target
        self.report = reporter
        self.rng = rng
        self.sources = sources
        self.big = big
        self.calls = [self.point, self.point, self.point, self.log, self.batch, self.rows, self.parameters]
        if sources is not None:
            self.calls.append(self.file)

    def any(self) -> None:
        """One call of some kind."""
        self.rng.choice(self.calls)()

    def _tag(self) -> str:
        return f"{self.report.worker}:{self.report.ordinal + 1}"

    def _text(self) -> str:
        size = (
            self.rng.choice((0, 5, 40, 300, 3000))
            if self.rng.random() < 0.9
            else self.rng.randrange(self.big or 60_000)
        )
        return self._tag() + " " + "x" * size

    def point(self) -> None:
        """One point of one of four metrics."""
        name = f"m{self.rng.randrange(4)}"
        step, worker = self.report.ordinal + 1, self.report.worker
        value = self.rng.choice((0.1 * step, float(step), step, -step, 1e300))
        self.report.before(disk.POINT, [name, {"value": value, "step": step, "worker": worker}])
        self.target.metric(name).append(value=value, step=step, worker=worker)
        self.report.after()

    def log(self) -> None:
        """One log entry, with and without metadata."""
        text = self._text()
        level = self.rng.choice(("debug", "info", "warn", "error", "fatal"))
        metadata = {"tag": self._tag()} if self.rng.random() < 0.5 else None
        self.report.before(disk.LOG, [level, text, metadata])
        self.target.log(text, level=level, metadata=metadata)
        self.report.after()

    def batch(self) -> None:
        """Points of the same fields, in one event."""
        count, tag = self.rng.randrange(1, 9), self._tag()
        columns: list[list[Any]] = [[n * 0.5 for n in range(count)], [tag] * count]
        self.report.before(disk.POINTS, ["batch", ["value", "tag"], columns])
        self.target.metric("batch").append_batch([{"value": n * 0.5, "tag": tag} for n in range(count)])
        self.report.after()

    def rows(self) -> None:
        """Points of different fields, in one event."""
        tag = self._tag()
        points: list[dict[str, Any]] = [{"value": 1.0, "tag": tag}, {"other": 2, "tag": tag}]
        self.report.before(disk.ROWS, ["rows", points])
        self.target.metric("rows").append_batch(points)
        self.report.after()

    def parameters(self) -> None:
        """Some parameters, one of them set again and again."""
        values = {"again": self._tag(), f"p{self.rng.randrange(30)}.q": self.rng.random()}
        self.report.before(disk.PARAMS, values)
        self.target.parameters().set(values)
        self.report.after()

    def file(self, size: int | None = None) -> None:
        """A file under one of a few names, so that some replace others."""
        assert self.sources is not None
        source = self.sources / f"f{self.rng.randrange(6)}.bin"
        content = self._tag().encode() + self.rng.randbytes(self.rng.randrange(20_000) if size is None else size)
        source.write_bytes(content)
        checksum = hashlib.sha256(content).hexdigest()
        body = {"prefix": "models", "filename": source.name, "sizeBytes": len(content), "checksum": checksum}
        self.report.before(disk.FILE, body)
        self.target.file(str(source), prefix="/models")
        self.report.after()


def sources_of(folder: Path) -> Path:
    """A folder for the user's own files."""
    made = folder / f"sources-{os.getpid()}"
    made.mkdir(exist_ok=True)
    return made


def mixed(
    pipe: int,
    folder: Path,
    *,
    seed: str,
    count: int = 1 << 60,
    worker: int = 0,
    files: bool = True,
    big: int = 0,
    durability: str = "interval",
    states: bool = False,
    close: bool = True,
    settings: dict[str, Any] | None = None,
    impatient: dict[str, float] | None = None,
    pace: str = "",
) -> None:
    """Open the experiment and make calls of every kind, for ever or `count` of them, then close it.

    With `states` the counts of `durable_state` are reported after each call. With `pace` (a folder) the calls after the
    first 20 wait for a file there, so that the harness can do something in between.
    """
    hurry(**(impatient or {}))
    report = Reporter(pipe, worker)
    target = experiment(folder, durability=durability, **(settings or {})).open()
    report.value("open", os.getpid())
    caller = Caller(target, report, random.Random(seed), sources=sources_of(folder) if files else None, big=big)
    for number in range(count):
        caller.any()
        if states:
            report_state(report, target)
        if pace and number == 20:
            wait_for_file(Path(pace), report)
    report.value("closing", 1)
    if close:
        close_and_report(report, target)


def close_and_report(report: Reporter, target: Experiment) -> None:
    """Close, and report how many events it says were lost."""
    from ml_dash.errors import StorageError

    try:
        target.close()
    except StorageError as error:
        report.value("storage-error", error.errno or 0)
        print("close:", error)  # the harness reads it
    report.value("closed", 1)


def report_state(report: Reporter, target: Experiment) -> None:
    """Report what the library says of itself."""
    state: dict[str, int] = dict(target.durable_state())  # type: ignore[arg-type]
    for name in ("accepted", "written", "synced", "lost"):
        report.value(name, state[name])


def wait_for_file(path: Path, report: Reporter, timeout_s: float = 60.0) -> None:
    """Tell the harness that we are here, and go on when it has made that file."""
    from time import monotonic, sleep

    report.value("waiting", 1)
    deadline = monotonic() + timeout_s
    while not path.exists():
        if monotonic() > deadline:
            raise TimeoutError(path)
        sleep(0.001)


def threads(pipe: int, folder: Path, *, seed: str, workers: int, count: int) -> None:
    """Many threads, one handle; each is a worker of the oracle's."""
    target = experiment(folder).open()
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            caller = Caller(target, Reporter(pipe, worker), random.Random(f"{seed}:{worker}"))
            for _ in range(count):
                caller.any()
        except Exception as error:  # noqa: BLE001 - told to the harness below
            failures.append(error)

    running = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failures:
        raise failures[0]
    target.close()


def project(pipe: int, folder: Path, *, rounds: int = 1, slices: int = 0) -> None:
    """Bring the documented folder up to date, as a reader or `ml-dash` does; with `slices` a few events at a time."""
    from ml_dash.projection.projector import Projector
    from ml_dash.projection.replay import Pace, PassStopped

    report = Reporter(pipe)
    report.value("open", os.getpid())
    place = located(folder)
    projector = Projector(place.journal, place.folder)
    passed = [0]

    def stop() -> None:
        passed[0] += 1
        if passed[0] % 3 == 0:
            raise PassStopped

    for _ in range(rounds if slices else 0):
        with contextlib.suppress(PassStopped):
            projector.advance(wait_s=30.0, pace=Pace(slices, stop))
    projector.advance(wait_s=30.0)
    report.value("projected", 1)


def located(folder: Path, name: str = NAME) -> Any:
    """The experiment of a trial, as readers find it."""
    from ml_dash.reading.located import at

    found = at(journal_of(folder, name))
    assert found is not None, f"no experiment in {journal_of(folder, name)}"
    assert found.folder == journal_of(folder, name).parent, f"its documented folder is taken to be {found.folder}"
    return found
