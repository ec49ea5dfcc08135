"""A run that was resumed two thousand times: opened, listed, and its timeline; half of its writers were killed."""

from __future__ import annotations

from pathlib import Path
from time import process_time
from typing import Any

from ml_dash.projection.projector import catch_up
from ml_dash.reading.as_of import view_as_of
from ml_dash.reading.history import history
from ml_dash.reading.read import locate, record, view
from tests.journals import JournalFixture

from .rows import Figures, row

_RESUMED = 2000
_PLACE = {
    "host": "node17.cluster.example.org", "pid": 4121, "python": "3.12.3", "platform": "linux", "mlDash": "0.1.0",
    "script": "/home/alice/project/train.py", "gitCommit": "0123456789abcdef0123456789abcdef01234567",
    "gitBranch": "main", "rank": 0, "worldSize": 8, "slurmJobId": "123456",
}  # fmt: skip


@row("each ≤ 300 ms of CPU; experiment.json ≤ 100 KB")
def resumed_often(folder: Path, scale: float) -> Figures:
    desk = JournalFixture(folder / "store", project="bench", name="bench")
    for number in range(int(_RESUMED * scale)):
        pen = desk.pen(**_PLACE, slurmRestartCount=str(number))
        pen.point(value=number, step=number)
        if number % 2:
            pen.die()
        else:
            pen.close("interrupted", signal=15)
    desk.catch_up()
    located = locate("bench/bench", folder / "store")
    figures: Figures = {"experiment.json KB": (located.folder / "experiment.json").stat().st_size / 1000}

    def measure(what: str, work: Any) -> Any:
        begun = process_time()
        found = work()
        figures[f"{what} ms of CPU"] = (process_time() - begun) * 1000
        return found

    measure("listed", lambda: record(located))
    events = measure("looked at", lambda: view(located)).state.events
    measure("timeline", lambda: history(located, -100, 100))
    measure("timeline again", lambda: history(located, -100, 100))
    measure("half-way back", lambda: view_as_of(located, events // 2))
    measure("a little on", lambda: view_as_of(located, events // 2 + 10))
    # Loaded before: a program that records has these modules.
    from ml_dash import Experiment

    with Experiment("other", "bench", local_path=folder / "store") as experiment:
        experiment.log("loads what is loaded at a start")
    again = Experiment("bench", "bench", local_path=folder / "store")
    measure("opened", again.open)
    again.close()
    return figures


@row("≥ 200,000 events folded in a second; going on ≤ 300 ms")
def looking_back(folder: Path, scale: float) -> Figures:
    from .rows import opened

    count = int(1_000_000 * scale)
    with opened(folder) as experiment:
        for start in range(0, count, 1000):
            for step in range(start, start + 1000):
                experiment.metric("loss").append(value=step * 0.5, step=step)
    located = locate("bench/bench", folder / "store")
    catch_up(located)
    figures: Figures = {}
    late = count * 3 // 4
    for what, event in (("first", late), ("the same", late), ("a little on", late + 5000)):
        begun = process_time()
        assert view_as_of(located, event).state.events == event
        taken = process_time() - begun
        figures[f"{what} ms of CPU"] = taken * 1000
        if what == "first":
            figures["events per second"] = event / taken
    begun = process_time()
    history(located)
    figures["marks, events per second"] = count / (process_time() - begun)
    return figures
