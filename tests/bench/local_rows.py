"""The measurements of local folders as a source: lists, charts and logs, and what looking costs a recording process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, Final

from ml_dash.reading.local import LocalSource
from ml_dash.reading.source import SeriesRequest, decoded
from tests.journals import JournalFixture

from .asking import answer_ms, log_entry, log_figures
from .rows import Figures, appends, opened, quantile, row

_PATIENCE_S: Final = 0.25


@contextlib.contextmanager
def _source(folder: Path, patience_s: float | None = None) -> Iterator[LocalSource]:
    """The store of `folder`, with a cache beside it."""
    with contextlib.closing(LocalSource([folder / "store"], cache=folder / "cache", patience_s=patience_s)) as source:
        yield source


def _only(source: LocalSource) -> str:
    """The id of the one experiment, once it is known."""
    while "indexing" in decoded(source.experiments()):
        pass
    (one,) = decoded(source.experiments())["experiments"]
    return str(one["id"])


def _record_points(folder: Path, name: str, count: int) -> None:
    with opened(folder, name) as experiment:
        for first in range(0, count, 10_000):
            stop = min(count, first + 10_000)
            experiment.metric("loss").append_batch([{"value": at % 977 * 0.5, "step": at} for at in range(first, stop)])


@row("10,000,000 points: usable at once, ≤ 1 s per million of CPU; again ≤ 500 ms; zoom to 1 % ≤ 200 ms")
def local_first_chart(folder: Path, scale: float) -> Figures:
    count = max(20_000, int(10_000_000 * scale))
    _record_points(folder, "bench", count)
    figures: Figures = {}
    with _source(folder, _PATIENCE_S) as source:
        request = SeriesRequest((_only(source),), "loss")
        begun, cpu = perf_counter(), process_time()
        page = source.compare_series(request)
        figures["first answer ms"] = (perf_counter() - begun) * 1000
        figures["share of the points in it"] = page.series[0].total / count if page.series else 0.0
        while page.indexed is not None:
            page = source.compare_series(request)
        figures["all indexed s"] = perf_counter() - begun
        figures["CPU s per million"] = (process_time() - cpu) / count * 1e6
    with _source(folder, _PATIENCE_S) as source:
        figures["again, first chart ms"] = answer_ms(lambda: source.compare_series(request), rounds=1)
        figures["again ms"] = answer_ms(lambda: source.compare_series(request))
        zoom = SeriesRequest(request.experiments, "loss", low=count * 0.5, high=count * 0.51)
        figures["zoom to 1 % ms"] = answer_ms(lambda: source.compare_series(zoom))
    cached = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    figures["bytes of cache per point"] = cached / count
    return figures


@row("100 runs x 100,000 points, indexed: ≤ 1 s")
def local_overlay(folder: Path, scale: float) -> Figures:
    runs, count = max(2, int(100 * scale)), max(20_000, int(100_000 * min(1.0, scale * 10)))
    for number in range(runs):
        _record_points(folder, f"run-{number}", count)
    with _source(folder) as source:
        ids = tuple(str(one["id"]) for one in decoded(source.experiments(limit=1000))["experiments"])
        request = SeriesRequest(ids, "loss")
        first = answer_ms(lambda: source.compare_series(request), rounds=1)
        return {
            "first ms": first,
            "again ms": answer_ms(lambda: source.compare_series(request)),
            "again CPU ms per run": _cpu_ms(lambda: source.compare_series(request)) / runs,
        }


def _cpu_ms(work: Callable[[], Any]) -> float:
    begun = process_time()
    work()
    return (process_time() - begun) * 1000


@row("1,000,000 entries: last page ≤ 20 ms, by level ≤ 50 ms, by text first hits ≤ 300 ms")
def local_logs(folder: Path, scale: float) -> Figures:
    count = max(20_000, int(1_000_000 * scale))
    with opened(folder) as experiment:
        for number in range(count):
            experiment.log(*log_entry(number))
    with _source(folder) as source:
        one = _only(source)
        return log_figures(source, one, count)


@row("10,000 runs: again started, first page ≤ 300 ms; page ≤ 30 ms; filter ≤ 200 ms; first time usable at once")
def local_list(folder: Path, scale: float) -> Figures:
    count = max(50, int(10_000 * scale))
    for number in range(count):
        desk = JournalFixture(folder / "store", "cv", f"run-{number:05}")
        pen = desk.pen()
        pen.parameters(**{f"p{at}": number * at * 0.1 for at in range(20)})
        for series in range(8):
            pen.points(f"m{series}", value=[number * 0.1, 0.5], step=[0, 1])
        pen.close()
        desk.catch_up()
    figures: Figures = {}
    with _source(folder, _PATIENCE_S) as source:
        begun, cpu = perf_counter(), process_time()
        page = decoded(source.experiments())
        figures["first time, first answer ms"] = (perf_counter() - begun) * 1000
        while "indexing" in page:
            page = decoded(source.experiments())
        figures["first time, all known s"] = perf_counter() - begun
        figures["CPU ms per run"] = (process_time() - cpu) / count * 1000
        assert page["total"] == count
    begun = perf_counter()
    with _source(folder, _PATIENCE_S) as source:
        page = decoded(source.experiments(columns=["params.p3", "metrics.m1.min"]))
        figures["again started, first page ms"] = (perf_counter() - begun) * 1000
        figures["page ms"] = answer_ms(lambda: source.experiments(columns=["params.p3", "metrics.m1.min"]))
        where = "params.p3 > 30 and metrics.m2.max < 700"
        figures["filter, first time ms"] = answer_ms(lambda: source.experiments(where=where), rounds=1)
        figures["filter ms"] = answer_ms(lambda: source.experiments(where=where))
        figures["what is new ms"] = answer_ms(lambda: source.events())
    return figures


_LOOKER: Final = """
import sys, time
from pathlib import Path
from ml_dash.reading.local import LocalSource
from ml_dash.reading.source import SeriesRequest, decoded
source = LocalSource([Path(sys.argv[1])], cache=Path(sys.argv[2]), patience_s=0.25)
while not (found := decoded(source.experiments())["experiments"]):
    time.sleep(0.05)
(one,) = found
request, known = SeriesRequest((one["id"],), "loss"), None
print("looking", flush=True)
while True:
    now = source.events([one["id"]])
    if now != known:
        known = now
        source.compare_series(request)
        source.experiments()
        source.logs(one["id"], start=-100, limit=100)
    time.sleep(0.2)
"""


# Computes as much as the other, of the same kind, and looks at nothing: what a neighbour costs that only shares the
# machine. At this rate of appends the other never rests either.
_NEIGHBOUR: Final = """
import msgspec
points = [[number, 5, number, ["loss", {"value": number / 7, "step": number}]] for number in range(100_000)]
packed = msgspec.msgpack.encode(points)
print("computing", flush=True)
while True:
    msgspec.msgpack.decode(packed)
"""


@row("appends take ≤ 1.03 x as long beside a UI as beside a process that only computes")
def ui_beside_recording(folder: Path, scale: float) -> Figures:
    count, rounds = int(400_000 * scale), 5
    looker = (_LOOKER, str(folder / "store"), str(folder / "cache"))
    found: dict[str, list[tuple[float, float]]] = {"alone": [], "watched": [], "beside another": []}
    with opened(folder) as experiment:
        experiment.log("begun")
        appends(experiment, 1000)
        for _ in range(rounds):
            found["alone"].append(_cpu_per_append(experiment, count))
            for name, program in (("watched", looker), ("beside another", (_NEIGHBOUR,))):
                with _beside(*program):
                    found[name].append(_cpu_per_append(experiment, count))
    cpu = {name: median(cpu for cpu, _ in times) for name, times in found.items()}
    p50 = {name: median(p50 for _, p50 in times) for name, times in found.items()}
    return {
        **{f"{name} CPU µs": value for name, value in cpu.items()},
        **{f"{name} p50 µs": value for name, value in p50.items()},
        "CPU, watched to beside another": cpu["watched"] / cpu["beside another"],
        "p50, watched to beside another": p50["watched"] / p50["beside another"],
        "p50, watched to alone": p50["watched"] / p50["alone"],
    }


@contextlib.contextmanager
def _beside(*program: str) -> Iterator[None]:
    """Runs a program in another process from its first line on until the end of the block."""
    process = subprocess.Popen([sys.executable, "-c", *program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _cpu_per_append(experiment: Any, count: int) -> tuple[float, float]:
    """Microseconds of CPU of this process for each append, and the median of the time that one takes."""
    begun = process_time()
    times = appends(experiment, count)
    return (process_time() - begun) / count * 1e6, quantile(times, 0.5)
