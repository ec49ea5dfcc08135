"""What a row of the fault matrix is, how its trials are numbered, seeded, run and counted."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
_MOUNTS: Final = "ML_DASH_TEST_MOUNTS"
_NETWORK: Final = "ML_DASH_TEST_NETWORK"
_KEPT_FAILURES: Final = 20
_ENOUGH_BYTES: Final = 2 << 30


class Unavailable(Exception):
    """This environment cannot inject the fault; the message says what is missing."""


class NotHere(Exception):
    """This environment cannot inject what one trial wants; the others can be run. The message says what is missing."""


@dataclass
class RowReport:
    """What a row found: N trials, how many failed and why, and what was seen on the way."""

    row: str
    seed: str
    trials: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    unavailable: str = ""
    # Trials that this environment could not have, by what is missing.
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def bound(self) -> float:
        """With 95 % confidence the failure rate is below this, when no trial failed (rule of three)."""
        return 3 / self.trials if self.trials else 1.0

    def add(self, other: RowReport) -> None:
        """Put the report of another share of the trials to this one."""
        self.trials += other.trials
        self.failed += other.failed
        self.failures = (self.failures + other.failures)[:_KEPT_FAILURES]
        self.counts.update(other.counts)
        self.skipped.update(other.skipped)
        self.seconds = max(self.seconds, other.seconds)
        self.unavailable = self.unavailable or other.unavailable

    def __str__(self) -> str:
        if self.unavailable:
            return f"{self.row:4} NOT RUN: {self.unavailable}"
        seen = ", ".join(f"{count:,} {name}" for name, count in sorted(self.counts.items()))
        verdict = f"{self.failed:,} FAILED" if self.failed else f"none failed (rate < {self.bound:.2g})"
        text = f"{self.row:4} {self.trials:>7,} trials, {verdict}, {self.seconds:.1f} s, seed {self.seed}"
        skipped = [f"NOT RUN, {count:,} trials: {reason}" for reason, count in sorted(self.skipped.items())]
        lines = [text + (f"; {seen}" if seen else ""), *skipped, *self.failures]
        return "\n     ".join(lines)

    def to_json(self) -> str:
        """For the process that started this share."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> RowReport:
        """The inverse of `to_json`."""
        values = json.loads(text)
        return cls(**{**values, "counts": Counter(values["counts"]), "skipped": Counter(values["skipped"])})


class Trial:
    """One numbered trial: its own randomness, its own folder, and what it found wrong."""

    def __init__(self, row: str, index: int, seed: str, workdir: Path, shared: Any, counts: Counter[str]) -> None:
        self.index = index
        self.rng = random.Random(f"{seed}:{row}:{index}")
        self.shared = shared
        self.counts = counts
        self.problems: list[str] = []
        self._folder = workdir / f"{row}-{index}"
        if self._folder.exists():
            remove_tree(self._folder)

    @property
    def folder(self) -> Path:
        """An empty folder that is removed after a trial without problems."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    def check(self, holds: object, problem: str) -> bool:
        """Note a problem unless it holds."""
        if not holds:
            self.problems.append(problem)
        return bool(holds)

    def fail(self, *problems: str) -> None:
        """Note problems."""
        self.problems += problems

    def done(self) -> None:
        """Remove the folder, or leave it as evidence."""
        if not self.problems and self._folder.exists():
            remove_tree(self._folder)


def remove_tree(folder: Path) -> None:
    """Remove a folder, also where a trial took our permissions away."""
    for path, folders, _ in os.walk(folder):
        for name in folders:
            with contextlib.suppress(OSError):
                (Path(path) / name).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def fast_folder() -> str | None:
    """Memory, where there is enough: the trials are about processes, not about this machine's disk."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < _ENOUGH_BYTES:
        return None
    return str(memory)


Body = Callable[[Trial], None]
Setup = Callable[[Path], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def nothing(_: Path) -> Iterator[None]:
    """The setup of rows that need none."""
    yield None


@dataclass(frozen=True)
class Row:
    """One line of the fault matrix."""

    id: str
    title: str
    full: int
    sample: int
    trial: Body
    setup: Setup = nothing
    # Wants a process with mounts of its own: "" no, "root" if we are root, "any" also as root of a user name space.
    # Where that cannot be had the row runs without: `has_mounts` tells the trials.
    mounts: str = ""
    # Wants a network of its own, in which it may make and cut links: `has_network` tells the trials.
    network: bool = False
    # What the full count stands for where a trial holds many: "20 kills each".
    unit: str = ""
    # The suite whose command runs it; its table fills this in.
    package: str = ""

    @property
    def about(self) -> str:
        """What a list says of it."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def run(
        self, count: int, seed: str, workdir: Path, *, share: tuple[int, int] = (0, 1), only: int | None = None
    ) -> RowReport:
        """Run `count` of the `full` trials, in this process. `share` (j, n): every n-th of them, from the j-th on."""
        if (self.mounts or self.network) and _MOUNTS not in os.environ:
            return run_apart(self, count, seed, workdir, share=share, only=only)
        report = RowReport(self.id, seed)
        begun = time.monotonic()
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            with self.setup(workdir) as shared:
                for index in [only] if only is not None else self.indices(count, seed)[share[0] :: share[1]]:
                    self._one(index, seed, workdir, shared, report)
        except Unavailable as reason:
            report.unavailable = str(reason)
        report.seconds = time.monotonic() - begun
        return report

    def indices(self, count: int, seed: str) -> Sequence[int]:
        """Which trials are run: all, or a seeded choice."""
        if count >= self.full:
            return range(count)
        return sorted(random.Random(f"{seed}:{self.id}").sample(range(self.full), count))

    def _one(self, index: int, seed: str, workdir: Path, shared: Any, report: RowReport) -> None:
        trial = Trial(self.id, index, seed, workdir, shared, report.counts)
        try:
            self.trial(trial)
        except Unavailable:
            raise
        except NotHere as reason:
            report.skipped[str(reason)] += 1
            trial.done()
            return
        except Exception as error:  # noqa: BLE001 - whatever a trial raises is what it found
            where = traceback.extract_tb(error.__traceback__)[-1]
            trial.fail(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})")
        trial.done()
        report.trials += 1
        if trial.problems:
            report.failed += 1
            if len(report.failures) < _KEPT_FAILURES:
                what = "; ".join(problem[:600] for problem in trial.problems[:5])
                again = f"python -m {self.package} --row {self.id} --seed {seed} --only {index}"
                report.failures.append(f"trial {index}: {what}\n        again: {again}")


# -- rows in processes of their own ----------------------------------------------------------------------------------


def has_mounts() -> bool:
    """Has this process mounts of its own?"""
    return os.environ.get(_MOUNTS) == "1"


def has_network() -> bool:
    """Has this process a network of its own?"""
    return os.environ.get(_NETWORK) == "1"


@cache
def own_mounts(kind: str) -> tuple[str, ...]:
    """The command that gives a process its own mounts; empty where there is none."""
    unshare = shutil.which("unshare")
    choices = {"": (), "root": (["-m"],), "any": (["-m"], ["-Urm"])}[kind]
    for options in choices if unshare is not None else ():
        if options == ["-m"] and os.geteuid() != 0:
            continue
        probe = [str(unshare), *options, "mount", "-t", "tmpfs", "-o", "size=64k", "none", tempfile.gettempdir()]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return str(unshare), *options
    return ()


@cache
def own_network() -> tuple[str, ...]:
    """The command that gives a process a network of its own; empty where there is none."""
    unshare, ip = shutil.which("unshare"), shutil.which("ip")
    for options in (["-n"], ["-Urn"]) if unshare and ip else ():
        if options == ["-n"] and os.geteuid() != 0:
            continue
        probe = [str(unshare), *options, str(ip), "link", "add", "probe0", "type", "veth", "peer", "name", "probe1"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return str(unshare), *options
    return ()


def run_apart(
    row: Row, count: int, seed: str, workdir: Path, *, share: tuple[int, int] = (0, 1), only: int | None = None
) -> RowReport:
    """`row.run` in another process, with mounts and a network of its own if the row wants them and they can be had."""
    return finish_apart(row, seed, start_apart(row, count, seed, workdir, share=share, only=only))


def start_apart(
    row: Row, count: int, seed: str, workdir: Path, *, share: tuple[int, int] = (0, 1), only: int | None = None
) -> subprocess.Popen[str]:
    """Start a share of a row's trials."""
    mounts = own_mounts(row.mounts)
    network = own_network() if row.network else ()
    environment = {**os.environ, _MOUNTS: str(int(bool(mounts))), _NETWORK: str(int(bool(network)))}
    command = [*mounts, *network, sys.executable, "-m", row.package, "--row", row.id]
    command += ["--count", str(count), "--seed", seed, "--workdir", str(workdir)]
    command += ["--share", f"{share[0]}/{share[1]}", "--json"]
    if only is not None:
        command += ["--only", str(only)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def finish_apart(row: Row, seed: str, process: subprocess.Popen[str]) -> RowReport:
    """The report of a started share."""
    output, _ = process.communicate()
    last = output.strip().rpartition("\n")[2]
    if process.returncode not in (0, 1) or not last.startswith("{"):
        failure = f"the process that ran the trials ended with {process.returncode}: {output[-500:]}"
        return RowReport(row.id, seed, trials=1, failed=1, failures=[failure])
    return RowReport.from_json(last)
