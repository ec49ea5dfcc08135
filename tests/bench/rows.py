"""The measurements. Each is one function, run in a process of its own, that returns figures by name."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter, perf_counter_ns, process_time, sleep, time_ns
from typing import Any

from ml_dash import Experiment

from . import references

Figures = dict[str, float]
Measurement = Callable[[Path, float], Mapping[str, float | str]]
"""A row: the folder it may write in and the share of the full sizes -> figures; a text says why there is none."""
ROWS: dict[str, tuple[str, Measurement]] = {}


def row(target: str) -> Callable[[Measurement], Measurement]:
    """Register a measurement and the figure to reach."""

    def register(function: Measurement) -> Measurement:
        assert function.__name__ not in ROWS, f"two rows are called {function.__name__}"
        ROWS[function.__name__] = (target, function)
        return function

    return register


def quantile(times: list[int], share: float) -> float:
    """A quantile of nanoseconds, in microseconds."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000


def appends(experiment: Any, count: int, name: str = "loss") -> list[int]:
    """The nanoseconds of each of `count` appends."""
    times, clock = [], perf_counter_ns
    for number in range(count):
        value = number * 0.5
        begun = clock()
        experiment.metric(name).append(value=value, step=number)
        times.append(clock() - begun)
    return times


def opened(folder: Path, name: str = "bench", **more: Any) -> Any:
    """An open experiment below `folder`."""
    return Experiment(name, "bench", local_path=folder / "store", **more).open()


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def interleaved(first: Callable[[], list[int]], second: Callable[[], list[int]], rounds: int = 7) -> Figures:
    """Medians of p50 and p99 of two loops that take turns, and their ratios."""
    ours, bare = [], []
    for _ in range(rounds):
        bare.append(second())
        ours.append(first())
    figures = {
        f"{who} {name} µs": median(quantile(times, share) for times in runs)
        for who, runs in (("ours", ours), ("L", bare))
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }
    for name in ("p50", "p99"):
        figures[f"{name} / L"] = figures[f"ours {name} µs"] / figures[f"L {name} µs"]
    return figures


@row("p50 ≤ 1.5 x L, p99 ≤ 2.5 x L")
def append(folder: Path, scale: float) -> Figures:
    count = int(20_000 * scale)
    with opened(folder) as experiment:
        figures = interleaved(lambda: appends(experiment, count), lambda: references.bare_points(folder, count))
    segments = list((folder / "store").glob("bench/bench/.journal/segments/*.seg"))
    figures["bytes per point"] = sum(path.stat().st_size for path in segments) / (7 * count)
    return figures


@row("p50 ≤ 2.5 x L")
def log(folder: Path, scale: float) -> Figures:
    count = int(20_000 * scale)
    clock = perf_counter_ns

    def ours() -> list[int]:
        times = []
        for number in range(count):
            metadata = {"epoch": number, "phase": "train", "seconds": 0.5}
            begun = clock()
            experiment.log("epoch finished", level="info", metadata=metadata)
            times.append(clock() - begun)
        return times

    with opened(folder) as experiment:
        return interleaved(ours, lambda: references.bare_entries(folder, count))


@row("≤ 2.5 x the time to pack them")
def append_batch(folder: Path, scale: float) -> Figures:
    batches = [[{"value": i * 0.5, "step": i} for i in range(1000)] for _ in range(int(100 * scale))]
    ours, packs = [], []
    with opened(folder) as experiment:
        for _ in range(7):
            packs.append(references.pack_batches(batches))
            begun = perf_counter()
            for batch in batches:
                experiment.metric("loss").append_batch(batch)
            ours.append(perf_counter() - begun)
    points = 1000 * len(batches)
    return {
        "ours µs per point": median(ours) / points * 1e6,
        "packing µs per point": median(packs) / points * 1e6,
        "ratio": median(ours) / median(packs),
    }


@row("p99 ≤ 50 µs")
def beside_busy_thread(folder: Path, scale: float) -> Figures:
    stop = threading.Event()

    def spin() -> None:
        number = 0
        while not stop.is_set():
            number = (number * 31 + 7) % 1_000_003

    with opened(folder) as experiment:
        thread = threading.Thread(target=spin)
        thread.start()
        # The writer notices a busy neighbour within a tick of the projecting thread.
        deadline = perf_counter() + 1.2
        while perf_counter() < deadline:
            experiment.metric("loss").append(value=1.0, step=0)
        times = appends(experiment, int(100_000 * scale))
        stop.set()
        thread.join()
    return {"p50 µs": quantile(times, 0.5), "p99 µs": quantile(times, 0.99), "p99.9 µs": quantile(times, 0.999)}


@row("p99 ≤ 50 µs")
def while_catching_up(folder: Path, scale: float) -> Figures:
    batch = [{"value": i * 0.5, "step": i} for i in range(1000)]
    with opened(folder) as experiment:
        for _ in range(int(500 * scale)):
            experiment.metric("backlog").append_batch(batch)
        times: list[int] = []
        while len(times) < 200_000 * scale:
            times += appends(experiment, 5_000)
    return {"p50 µs": quantile(times, 0.5), "p99 µs": quantile(times, 0.99), "p99.9 µs": quantile(times, 0.999)}


@row("≥ 70 % of the single-writer rate per core")
def no_collapse(folder: Path, scale: float) -> Figures:
    count = int(60_000 * scale)

    def rate(work: Callable[[Any], None], name: str) -> float:
        with opened(folder, name) as experiment:
            begun = perf_counter()
            work(experiment)
            return count / (perf_counter() - begun)

    def one(experiment: Any) -> None:
        for number in range(count):
            experiment.metric("loss").append(value=0.5, step=number)

    def many(experiment: Any) -> None:
        names = [f"metric{i}" for i in range(64)]
        for number in range(count):
            experiment.metric(names[number % 64]).append(value=0.5, step=number)

    def threads(experiment: Any) -> None:
        def work() -> None:
            for number in range(count // 8):
                experiment.metric("loss").append(value=0.5, step=number)

        workers = [threading.Thread(target=work) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def processes(experiment: Any) -> None:
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                one(experiment)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)

    single = median(rate(one, f"one{i}") for i in range(5))
    cores = min(4, os.cpu_count() or 1)
    four = median(rate(processes, f"processes{i}") for i in range(5)) * 4 / cores
    return {
        "single appends/s": single,
        "64 metrics": median(rate(many, f"many{i}") for i in range(5)) / single,
        "8 threads": median(rate(threads, f"threads{i}") for i in range(5)) / single,
        "4 processes, per core": four / single,
    }


@row("≥ 250,000 single points/s, ≥ 800,000 batched")
def projection(folder: Path, scale: float) -> Figures:
    from ml_dash.projection.projector import rebuild
    from ml_dash.reading.read import locate

    single = fill(folder, "single", int(300_000 * scale), batched=False)
    batched = fill(folder, "batched", int(1_000_000 * scale), batched=True)
    figures = {}
    for name, count in (("single", single), ("batched", batched)):
        located = locate(f"bench/{name}", folder / "store")
        figures[f"{name} points/s"] = count / median(rebuild(located).seconds for _ in range(3))
    return figures


def fill(folder: Path, name: str, count: int, *, batched: bool) -> int:
    """An experiment of `count` points."""
    with opened(folder, name) as experiment:
        if batched:
            for start in range(0, count, 1000):
                batch = [{"value": i * 0.5, "step": i} for i in range(start, start + 1000)]
                experiment.metric("loss").append_batch(batch)
        else:
            for number in range(count):
                experiment.metric("loss").append(value=number * 0.5, step=number)
    return count


@row("≤ 3 % of one core")
def projection_while_training(folder: Path, scale: float) -> Figures:
    """2,000 points/s, with and without the projecting thread, by CPU time."""
    seconds = max(2.0, 10.0 * scale)
    used = {}
    for name in ("with", "without"):
        with opened(folder, name) as experiment:
            if name == "without":
                from ml_dash.recording.background import background_projector

                background_projector.remove(experiment._handle.session.recording())
            begun, cpu, number = perf_counter(), process_time(), 0
            while (now := perf_counter()) < begun + seconds:
                for _ in range(20):
                    experiment.metric("loss").append(value=0.5, step=number)
                    number += 1
                sleep(max(0.0, begun + number / 2000 - now))
            used[name] = (process_time() - cpu) / seconds
    return {"% of a core": 100 * (used["with"] - used["without"]), "training alone %": 100 * used["without"]}


@row("≤ 10 ms; of ten times as many ≤ 2 x")
def reopen(folder: Path, scale: float) -> Figures:
    figures = {}
    for label, count in (("1,000,000", 1_000_000), ("10,000,000", 10_000_000)):
        name = f"reopen{count}"
        fill(folder, name, int(count * scale), batched=True)
        finish(folder, name)
        times = []
        for _ in range(9):
            begun = perf_counter()
            experiment = opened(folder, name)
            experiment.metric("loss").append(value=1.0, step=1)
            times.append(perf_counter() - begun)
            experiment.close()
        figures[f"{label} points, ms"] = median(times) * 1000
    figures["ratio"] = figures["10,000,000 points, ms"] / figures["1,000,000 points, ms"]
    return figures


def finish(folder: Path, name: str) -> None:
    """Bring the folder of an experiment up to date."""
    from ml_dash.projection.projector import catch_up
    from ml_dash.reading.read import locate

    catch_up(locate(f"bench/{name}", folder / "store"))


@row("≤ 2 ms")
def read_last_100(folder: Path, scale: float) -> Figures:
    count = fill(folder, "pages", int(1_000_000 * scale), batched=True)
    finish(folder, "pages")
    with opened(folder, "pages") as experiment:
        experiment.metric("loss").read(limit=1)
        times = []
        for _ in range(50):
            begun = perf_counter()
            page = experiment.metric("loss").read(start_index=count - 100, limit=100)
            times.append(perf_counter() - begun)
            assert page["total"] == 100
    return {"ms": median(times) * 1000}


@row("verify ≤ 5 s, rebuild ≤ 8 s")
def verify_and_rebuild(folder: Path, scale: float) -> Figures:
    from ml_dash.projection.projector import rebuild
    from ml_dash.reading.read import locate
    from ml_dash.reading.verify import verify

    fill(folder, "million", int(1_000_000 * scale), batched=False)
    located = locate("bench/million", folder / "store")
    rebuilt = rebuild(located).seconds
    begun = perf_counter()
    assert verify(located).ok
    return {"verify s": perf_counter() - begun, "rebuild s": rebuilt}


@row("≤ 1.25 x hash and copy in two threads and an fsync; flat memory")
def add_file(folder: Path, scale: float) -> Figures:
    source = folder / "checkpoint.bin"
    size = int(256 * scale) << 20
    with source.open("wb") as file:
        block = os.urandom(1 << 20)
        for _ in range(max(1, size >> 20)):
            file.write(block)
        os.fsync(file.fileno())
    ours, bare = [], []
    with opened(folder) as experiment:
        before = resident_mb()
        for number in range(9):
            # Both begin with nothing left to be flushed.
            os.sync()
            bare.append(references.copy_and_hash(source, folder / "copy.bin"))
            (folder / "copy.bin").unlink()
            os.sync()
            begun = perf_counter()
            experiment.file(source, prefix=f"/{number}")
            ours.append(perf_counter() - begun)
        grown = resident_mb() - before
    return {
        "ours s": median(ours),
        "reference s": median(bare),
        "ratio": median(a / b for a, b in zip(ours, bare, strict=True)),
        "memory MB": grown,
    }


def run_python(code: str, folder: Path) -> float:
    """Seconds of a new Python that runs `code`, as an installed package is run."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"ML_DASH_QUIET": "1"}
    begun = perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env=environment)
    return perf_counter() - begun


@row("≤ 2 ms each; twice as many: growth ≤ 1.2")
def many_files(folder: Path, scale: float) -> Figures:
    count = int(5_000 * scale)
    sources = folder / "sources"
    sources.mkdir()
    for number in range(2 * count):
        (sources / f"{number}.bin").write_bytes(os.urandom(1024))
    spent = []
    with opened(folder) as experiment:
        for first in (0, count):
            begun = perf_counter()
            for number in range(first, first + count):
                experiment.file(sources / f"{number}.bin", prefix="/many").save()
            spent.append((perf_counter() - begun) / count * 1000)
    return {"ms each, first half": spent[0], "ms each, second half": spent[1], "growth": spent[1] / spent[0]}


@row("≥ 0.3 of the rate of one metric at 5,000; `show` ≤ 1 s; twice as many: growth ≤ 1.2")
def many_metrics(folder: Path, scale: float) -> Figures:
    """20 points of each of so many metrics, in turn, until the first read has seen them all."""
    sizes = int(2_500 * scale), int(5_000 * scale)

    def seconds_each(name: str, metrics: int, points: int) -> float:
        with opened(folder, name) as experiment:
            begun = perf_counter()
            for step in range(points):
                for number in range(metrics):
                    experiment.metric(f"layer{number // 10}/m{number}").append(value=step * 0.5, step=step)
            experiment.metric("layer0/m0").stats()
            return (perf_counter() - begun) / (metrics * points)

    single = median(seconds_each(f"single{i}", 1, 20 * sizes[1]) for i in range(3))
    few, many = (median(seconds_each(f"of{size}-{i}", size, 20) for i in range(3)) for size in sizes)
    command = ["-m", "ml_dash", "show", f"bench/of{sizes[1]}-0", "--path", str(folder / "store")]
    begun = perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return {
        "points/s": 1 / many, "of the rate of one metric": single / many, "growth": many / few,
        "show s": perf_counter() - begun,
    }  # fmt: skip


@row("≤ 1 s per million points hit; nothing hit: nothing read")
def rewinds(folder: Path, scale: float) -> Figures:
    """What it takes to fold a rewind that hits the later half, stretches of 500, or nothing."""
    from ml_dash.core import events as ev
    from ml_dash.core.fold import fold
    from ml_dash.core.rewinds import recount
    from ml_dash.core.state import Edits, State
    from ml_dash.projection.checkpoint import Layout
    from ml_dash.projection.folder import Folder

    count, writer = int(1_000_000 * scale), "aa" * 16

    def folded(name: str, step_of: Callable[[int], int], step: int) -> float:
        (folder / name / "journal").mkdir(parents=True)
        sink = Folder(folder / name / "folder", folder / name / "journal", Layout())
        sink.prepare()
        state, edits = State(), Edits()
        for number, start in enumerate(range(0, count, 1000)):
            steps = [step_of(i) for i in range(start, start + 1000)]
            fold(state, writer, [(number, ev.POINTS, 1000, ["m", ["value", "step"], [steps, steps]])], edits)
            sink.apply(edits)
        begun = perf_counter()
        fold(state, writer, [(count, ev.REWIND, 2000, {"step": step})], edits)
        sink.apply(edits)
        recount(state, edits, sink.history)
        return perf_counter() - begun

    return {
        "half s": folded("half", lambda i: i, count // 2),
        "half, in stretches s": folded("stretches", lambda i: i // 500 % 2, 1),
        "none s": folded("none", lambda i: i, count),
        "million points": count / 1e6,
    }


@row("≤ 40 ms over bare Python")
def import_time(folder: Path, scale: float) -> Figures:
    rounds = max(3, int(21 * scale))
    programs = ("pass", "import ml_dash", "import filelock")
    times: dict[str, list[float]] = {program: [] for program in programs}
    for round_ in range(rounds + 1):
        for program in programs:
            spent = run_python(program, folder)
            # The first one writes what the others load.
            if round_:
                times[program].append(spent)
    bare, ours, peer = (median(times[program]) * 1000 for program in programs)
    alone = peer - bare
    return {"bare ms": bare, "over bare ms": ours - bare, "filelock ms": alone, "of filelock": (ours - bare) / alone}


@row("≤ 15 ms; nothing left after 1,000")
def open_append_close(folder: Path, scale: float) -> Figures:
    def once(number: int) -> float:
        begun = perf_counter()
        with opened(folder, f"e{number}") as experiment:
            experiment.metric("loss").append(value=0.5, step=0)
        return perf_counter() - begun

    for number in range(20):
        once(number)
    gc.collect()
    before = resident_mb(), len(os.listdir("/proc/self/fd")), threading.active_count()
    times = [once(number) for number in range(20, 20 + int(1000 * scale))]
    gc.collect()
    after = resident_mb(), len(os.listdir("/proc/self/fd")), threading.active_count()
    return {
        "ms": median(times) * 1000,
        "descriptors left": after[1] - before[1],
        "threads left": after[2] - before[2],
        "memory grown MB": after[0] - before[0],
    }


@row("≤ 1 s")
def ls_5000(folder: Path, scale: float) -> Figures:
    os.environ["ML_DASH_QUIET"] = "1"
    count = int(5000 * scale)
    for number in range(count):
        with opened(folder, f"e{number:05d}", durability="os") as experiment:
            experiment.metric("loss").append(value=0.5, step=0)
    arguments = ["ml-dash", "ls", "--json", "--limit", "100000", "--path", "store"]
    code = f"import sys; sys.argv = {arguments}; from ml_dash.cli import main; main()"
    times = []
    for _ in range(5):
        begun = perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        times.append(perf_counter() - begun)
    return {"s": median(times), "experiments": count}


@row("grows ≤ 20 MB")
def memory(folder: Path, scale: float) -> Figures:
    with opened(folder) as experiment:
        for number in range(50_000):
            experiment.metric("loss").append(value=number * 0.5, step=number)
        before, most = resident_mb(), 0.0
        for number in range(int(5_000_000 * scale)):
            experiment.metric("loss").append(value=number * 0.5, step=number)
            if number % 100_000 == 0:
                most = max(most, resident_mb())
        grown = max(most, resident_mb()) - before
    return {"MB": grown, "points": int(5_000_000 * scale)}


__all__ = ["ROWS", "Figures", "time_ns"]
