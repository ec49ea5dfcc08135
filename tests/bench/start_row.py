"""What a start takes, where the package was installed from its wheel and compiled: from the start of Python on."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Final

from ..installed import build_wheel, install, run
from .rows import Figures, row

POINTS_BEFORE: Final = 5_000

FIRST: Final = """
from ml_dash import Experiment
experiment = Experiment("run", "bench", local_path="store").open()
experiment.metric("loss").append(value=0.5, epoch=1)
"""
PROGRAMS: Final = {
    "reference": "import logging, pathlib, dataclasses, typing",
    "import": "import ml_dash",
    "first point": FIRST,
    "resumed": FIRST,
}
RECORD: Final = f"""
from ml_dash import Experiment
with Experiment("run", "bench", local_path="store") as experiment:
    for epoch in range({POINTS_BEFORE}):
        experiment.metric("loss").append(value=epoch * 0.5, epoch=epoch)
"""
# The end is told by the process itself, before anything of its own end; what it loads for that comes behind the clock.
TELL: Final = """
import time
now = time.clock_gettime(time.CLOCK_BOOTTIME)
import os
with open("times", "a") as times:
    times.write(f"{now}\\n")
os._exit(0)
"""


@row("import ≤ 1.2 x, first point ≤ 1.7 x the reference")
def start(folder: Path, scale: float) -> Figures:
    """Medians of processes that take turns; the reference loads four modules of the standard library."""
    python = install(build_wheel(folder), folder / "venv")
    run([str(python), "-m", "compileall", "-q", str(folder / "venv" / "lib")], folder)
    before = folder / "before"
    before.mkdir()
    run([str(python), "-c", RECORD], before)
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for round_ in range(max(15, int(31 * scale)) + 1):
        for name, program in PROGRAMS.items():
            place = folder / "place"
            if name == "resumed":
                shutil.copytree(before, place)
            else:
                place.mkdir()
            spent = _spent(python, program, place)
            shutil.rmtree(place)
            # The first one warms the cache of files.
            if round_:
                times[name].append(spent)
    reference, *others = (median(times[name]) for name in PROGRAMS)
    figures = {"reference ms": reference * 1000}
    for name, spent in zip(list(PROGRAMS)[1:], others, strict=True):
        figures |= {f"{name} ms": spent * 1000, f"{name} / reference": spent / reference}
    return figures


def _spent(python: Path, program: str, place: Path) -> float:
    """Seconds from the start of a process to the end of its program."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"ML_DASH_QUIET": "1"}
    begun = time.clock_gettime(time.CLOCK_BOOTTIME)
    subprocess.run([str(python), "-c", program + TELL], check=True, cwd=place, env=environment)
    return float((place / "times").read_text()) - begun
