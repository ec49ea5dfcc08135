"""The measurements of a server on both pairs of stores: `ml-dash server` and `ml-dash-syncd` processes on loopback.

Seconds on the clock depend on what else the machine does; those of CPU hardly do, so both are there.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any, Final

import psutil

from ml_dash.core.names import experiment_id

from .pairs import PAIR, Stores, cpu_s, pairs
from .remote_rows import Server, _store, _until, daemon, opened, serving
from .rows import Figures, row

_POINTS: Final = 1_000_000


def _once(folder: Path, server: Server) -> None:
    """All that waits below `folder` is sent."""
    subprocess.run([sys.executable, "-m", "ml_dash_syncd", "once", *_store(folder, server)], check=True)


def _record(folder: Path, name: str, count: int) -> None:
    """An experiment of `count` points, appended one by one."""
    with opened(folder, None, name) as experiment:
        for number in range(count):
            experiment.metric("loss").append(value=number * 0.5, step=number)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _chunks(server: Server, name: str) -> int:
    path = f"/experiments/{experiment_id('bench', name)}/metrics/loss/stats"
    return int(server.get(path)["totalChunks"])


@row("1,000,000 points sent by the daemon, folded and queryable: embedded ≤ 3 s, the pair ≤ 2.5 x that")
def server_backlog(folder: Path, scale: float) -> Figures:
    count = int(_POINTS * scale)
    _record(folder, "bench", count)
    figures: Figures = {}
    with pairs(folder) as stores:
        for each in stores:
            with serving(folder / each.kind, each.environment) as server:
                server.get("/experiments")
                before, services, daemons = cpu_s(server.process.pid), each.cpu_s(), _children_s()
                begun = perf_counter()
                _once(folder, server)
                assert server.points("bench") == count
                spent = perf_counter() - begun
                figures |= {
                    f"{each.kind} s": spent,
                    f"{each.kind} points/s": count / spent,
                    f"{each.kind} CPU s, server": cpu_s(server.process.pid) - before,
                    f"{each.kind} CPU s, daemon": _children_s() - daemons,
                    f"{each.kind} server MB": psutil.Process(server.process.pid).memory_info().rss / 2**20,
                }
                for name, used in each.cpu_s().items():
                    figures[f"{each.kind} CPU s, {name}"] = used - services[name]
                _until(lambda server=server: _chunks(server, "bench") == count // 10_000, 1.0)
                figures[f"{each.kind} s until archived"] = perf_counter() - begun
                figures[f"{each.kind} CPU s, server, until archived"] = cpu_s(server.process.pid) - before
                for name, used in each.cpu_s().items():
                    figures[f"{each.kind} CPU s, {name}, until archived"] = used - services[name]
    if len(stores) > 1:
        figures["pair / embedded"] = figures[f"{PAIR} s"] / figures["embedded s"]
    return figures


@contextlib.contextmanager
def _servers(folder: Path, each: Stores, count: int) -> Iterator[list[Server]]:
    """So many servers on the same stores."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(serving(folder / f"{count}-{n}", each.environment)) for n in range(count)]


@row("two experiments sent at once to two servers on one database, against the same to one server; for comparison")
def server_two(folder: Path, scale: float) -> Figures:
    count = int(_POINTS / 2 * scale)
    figures: Figures = {}
    with pairs(folder) as stores:
        for number in (1, 2):
            for side in "ab":
                _record(folder / f"{number}{side}", f"{number}{side}", count)
            with _servers(folder, stores[-1], number) as servers:
                for server in servers:
                    server.get("/experiments")
                used = [cpu_s(server.process.pid) for server in servers]
                services = stores[-1].cpu_s()
                begun = perf_counter()
                sending = [
                    subprocess.Popen(
                        [sys.executable, "-m", "ml_dash_syncd", "once", *_store(folder / f"{number}{side}", server)],
                        env={**os.environ, "XDG_STATE_HOME": str(folder / f"state-{number}{side}")},
                    )
                    for side, server in zip("ab", servers * 2, strict=False)
                ]  # fmt: skip
                assert [process.wait() for process in sending] == [0, 0]
                spent = perf_counter() - begun
                assert all(servers[0].points(f"{number}{side}") == count for side in "ab")
                figures[f"{number} s"] = spent
                figures[f"{number} CPU s, servers"] = sum(
                    cpu_s(server.process.pid) - earlier for server, earlier in zip(servers, used, strict=True)
                )
                for name, now in stores[-1].cpu_s().items():
                    figures[f"{number} CPU s, {name}"] = now - services[name]
    figures["two / one"] = figures["2 s"] / figures["1 s"]
    return figures


@row("a page of 1,000 of 1,000,000 points that are in chunks: ≤ 60 ms")
def server_cold_page(folder: Path, scale: float) -> Figures:
    """Of a server that was just started: nothing is in its memory."""
    count = max(20_000, int(_POINTS * scale) // 10_000 * 10_000)
    with opened(folder, None) as experiment:
        for start in range(0, count, 1000):
            experiment.metric("loss").append_batch([{"value": i * 0.5, "step": i} for i in range(start, start + 1000)])
    figures: Figures = {}
    with pairs(folder) as stores:
        for each in stores:
            with serving(folder / each.kind, each.environment) as server:
                _once(folder, server)
                _until(lambda server=server: _chunks(server, "bench") == count // 10_000, 0.1)
            path = f"/experiments/{experiment_id('bench', 'bench')}/metrics/loss/data"
            with serving(folder / each.kind, each.environment) as server:
                server.get("/experiments")
                before, times = cpu_s(server.process.pid), []
                for number in range(40):
                    begun = perf_counter()
                    page = server.get(path, startIndex=(number * 79_190) % (count - 1000), limit=1000)
                    times.append((perf_counter() - begun) * 1000)
                    assert len(page["data"]) == 1000
                figures |= {
                    f"{each.kind} first ms": times[0],
                    f"{each.kind} ms": median(times),
                    f"{each.kind} most ms": max(times),
                    f"{each.kind} CPU ms, server": (cpu_s(server.process.pid) - before) / 40 * 1000,
                }
    return figures


@row("RSS of a server under the full load, with an experiment of 100,000 metrics: ≤ 250 MB, flat")
def server_memory(folder: Path, scale: float) -> Figures:
    """Three rounds of the same load: a backlog, the metrics, charts, lists and pages, four readers at once."""
    count, metrics, rounds = int(_POINTS / 2 * scale), int(100_000 * scale), 3
    figures: Figures = {}
    with pairs(folder) as stores:
        for each in stores:
            with serving(folder / each.kind, each.environment) as server, _watched(server.process.pid) as most:
                for number in range(rounds):
                    place = folder / each.kind / str(number)
                    _record(place, f"bench{number}", count)
                    with opened(place, None, "wide") as experiment:
                        for metric in range(metrics):
                            experiment.metric(f"layer{metric}/norm").append(value=0.5, step=number)
                    _once(place, server)
                    assert server.points(f"bench{number}") == count
                    _read(server, f"bench{number}")
                    figures[f"{each.kind} MB at most, round {number + 1}"] = most[0]
    return figures


def _read(server: Server, name: str) -> None:
    """Ask what a dashboard asks, four at once."""
    bench, wide = (f"/experiments/{experiment_id('bench', each)}" for each in (name, "wide"))
    asks: list[Callable[[], Any]] = [
        lambda: [server.get(f"{bench}/metrics/loss/series", points=1000) for _ in range(10)],
        lambda: [server.get(f"{bench}/metrics/loss/data", startIndex=i * 10_000, limit=10_000) for i in range(10)],
        lambda: [server.get(f"{wide}/metrics") for _ in range(2)],
        lambda: [server.get("/experiments") for _ in range(20)],
    ]
    threads = [threading.Thread(target=ask) for ask in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def _watched(pid: int) -> Iterator[list[float]]:
    """The most MB that a process has had so far, looked at every 50 ms."""
    most, ended, process = [0.0], threading.Event(), psutil.Process(pid)

    def watch() -> None:
        while not ended.wait(0.05):
            with contextlib.suppress(psutil.Error):
                most[0] = max(most[0], process.memory_info().rss / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


@row("runs of 10 points a second through the daemon, for a minute: what one costs; for comparison")
def server_day(folder: Path, scale: float) -> Figures:
    runs, seconds = 20, max(5.0, 60 * scale)
    figures: Figures = {}
    with pairs(folder) as stores:
        for each in stores:
            place = folder / each.kind
            with (
                serving(place, each.environment) as server,
                daemon(*_store(place, server)),
                contextlib.ExitStack() as stack,
            ):
                opens = [stack.enter_context(opened(place, None, f"run{number}")) for number in range(runs)]
                _steps(opens, 0, 5.0)
                _until(lambda server=server: all(server.points(f"run{number}") for number in range(runs)))
                requests, used, services = _appends(server), cpu_s(server.process.pid), each.cpu_s()
                sent = _steps(opens, 50, seconds)
                _until(lambda server=server, sent=sent: server.points("run0") == 50 + sent // runs)
                figures |= {
                    f"{each.kind} requests per run and s": (_appends(server) - requests) / runs / seconds,
                    f"{each.kind} CPU ms per run and s, server": (
                        (cpu_s(server.process.pid) - used) / runs / seconds * 1000
                    ),
                }
                for name, now in each.cpu_s().items():
                    figures[f"{each.kind} CPU ms per run and s, {name}"] = (
                        (now - services[name]) / runs / seconds * 1000
                    )
    return figures


def _steps(opens: list[Any], first: int, seconds: float) -> int:
    """Ten points a second of each, spread evenly; return how many in all."""
    due, rng = perf_counter(), random.Random(first)
    steps = range(first, first + int(seconds * 10))
    for step in steps:
        for experiment in opens:
            experiment.metric("loss").append(value=rng.random(), step=step)
            due += 0.1 / len(opens)
            sleep(max(0.0, due - perf_counter()))
    return len(steps) * len(opens)


def _appends(server: Server) -> float:
    """How many requests the server has answered that append to a segment."""
    text = server.session.get(f"{server.url}/metrics", timeout=30).text
    lines = [
        line for line in text.splitlines() if line.startswith("ml_dash_requests_total{") and 'method="POST"' in line
    ]
    return sum(float(line.rpartition(" ")[2]) for line in lines if "/segments/" in line)
