"""The measurements of remote mode: real `ml-dash server` and `ml-dash-syncd` processes on loopback."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, sleep
from typing import Any

import psutil
import requests

from ml_dash import Experiment
from ml_dash.core.names import experiment_id
from ml_dash.sync.login import development_token

from .rows import Figures, appends, quantile, row

_USER = "alice"
_DRAIN_S = 600.0


class Server:
    """A server process on a free port."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "ml_dash", "server", "--dev", "--port", "0", "--data", str(folder / "data")]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"http://[\w.]+:\d+", line):
                self.url = found[0]
                break
        else:
            raise RuntimeError("the server did not start")
        threading.Thread(target=self.process.stdout.read, daemon=True).start()
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {development_token(_USER)}"

    def get(self, path: str, **query: Any) -> Any:
        """The JSON of a GET."""
        answer = self.session.get(self.url + path, params=query, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def points(self, name: str) -> int:
        """How many points of `loss` can be read."""
        identity = experiment_id("bench", name)
        answer = self.session.get(f"{self.url}/experiments/{identity}/metrics/loss/stats", timeout=60)
        return int(answer.json()["totalDataPoints"]) if answer.status_code == 200 else 0

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@contextlib.contextmanager
def serving(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server, with folders of its own for configuration and state."""
    os.environ.update(
        XDG_CONFIG_HOME=str(folder / "config"), XDG_STATE_HOME=str(folder / "state"), ML_DASH_AUTOSYNC="0"
    )
    server = Server(folder, environment)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def daemon(*arguments: str, state: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A running daemon."""
    environment = {**os.environ, **({"XDG_STATE_HOME": str(state)} if state is not None else {})}
    command = [sys.executable, "-m", "ml_dash_syncd", "run", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def opened(folder: Path, server: Server | None, name: str = "bench", **more: Any) -> Experiment:
    """An open experiment below `folder`."""
    remote: dict[str, Any] = {"remote": server.url, "user_name": _USER} if server is not None else {}
    return Experiment(name, "bench", local_path=folder / "store", **remote, **more).open()


def _until(condition: Any, pause_s: float = 0.02) -> float:
    begun = perf_counter()
    while not condition():
        if perf_counter() - begun > _DRAIN_S:
            raise TimeoutError
        sleep(pause_s)
    return perf_counter() - begun


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _store(folder: Path, server: Server) -> list[str]:
    return ["--store", str(folder / "store"), "--remote", server.url, "--user", _USER]


@row("1,000,000 points, folded and queryable: ≤ 8 s")
def sync_backlog(folder: Path, scale: float) -> Figures:
    count = int(1_000_000 * scale)
    with opened(folder, None) as experiment:
        for number in range(count):
            experiment.metric("loss").append(value=number * 0.5, step=number)
    with serving(folder) as server:
        begun = perf_counter()
        subprocess.run([sys.executable, "-m", "ml_dash_syncd", "once", *_store(folder, server)], check=True)
        assert server.points("bench") == count
        spent = perf_counter() - begun
        memory = psutil.Process(server.process.pid).memory_info().rss / 2**20
        return {"s": spent, "points/s": count / spent, "server MB": memory}


@row("≥ 50 MB/s without the fold")
def sync_raw(folder: Path, scale: float) -> Figures:
    size = int((512 << 20) * scale)
    source = folder / "model.bin"
    with source.open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    with opened(folder, None) as experiment:
        experiment.file(str(source), prefix="/models")
    source.unlink()
    with serving(folder) as server:
        begun = perf_counter()
        subprocess.run([sys.executable, "-m", "ml_dash_syncd", "once", *_store(folder, server)], check=True)
        return {"MB/s": (size >> 20) / (perf_counter() - begun)}


@row("append → visible by GET: p50 ≤ 0.5 s, p99 ≤ 2 s")
def sync_latency(folder: Path, scale: float) -> Figures:
    times = []
    with serving(folder) as server, daemon(*_store(folder, server)), opened(folder, server) as experiment:
        experiment.metric("loss").append(value=0.0, step=0)
        _until(lambda: server.points("bench") == 1)
        for number in range(1, 1 + int(60 * scale)):
            # At rest in between, for a time that does not beat with the daemon's own.
            sleep(0.5 + number % 7 * 0.13)
            begun = perf_counter()
            experiment.metric("loss").append(value=0.5, step=number)
            _until(lambda wanted=number + 1: server.points("bench") == wanted, 0.005)
            times.append(int((perf_counter() - begun) * 1e9))
    return {"p50 s": quantile(times, 0.5) / 1e6, "p99 s": quantile(times, 0.99) / 1e6, "appends": len(times)}


@row("≤ 100 MB with 5,000,000 points and 2 GB of files waiting")
def daemon_memory(folder: Path, scale: float) -> Figures:
    count, size = int(5_000_000 * scale), int((2 << 30) * scale)
    with opened(folder, None) as experiment:
        for number in range(count):
            experiment.metric("loss").append(value=number * 0.5, step=number)
        source = folder / "model.bin"
        with source.open("wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        experiment.file(str(source), prefix="/models")
        source.unlink()
    most = 0.0
    with serving(folder) as server:
        command = [sys.executable, "-m", "ml_dash_syncd", "once", *_store(folder, server)]
        process = subprocess.Popen(command)
        watched = psutil.Process(process.pid)
        begun = perf_counter()
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                most = max(most, watched.memory_info().rss / 2**20)
            sleep(0.05)
        assert process.returncode == 0
        assert server.points("bench") == count
    return {"MB": most, "points": count, "files MB": size >> 20, "s": perf_counter() - begun}


@row("5,000 experiments at rest: ≤ 1 % of a core, new data found in ≤ 2 s")
def daemon_rest(folder: Path, scale: float) -> Figures:
    count = int(5000 * scale)
    for number in range(count):
        with opened(folder, None, f"e{number:05d}", durability="os") as experiment:
            experiment.metric("loss").append(value=0.5, step=0)
    with serving(folder) as server, daemon(*_store(folder, server)) as process:
        drained = _until(lambda: server.points(f"e{count - 1:05d}") == 1 and _all_there(server, count), 0.5)
        sleep(3)
        before, begun = _cpu_s(process.pid), monotonic()
        sleep(60)
        share = (_cpu_s(process.pid) - before) / (monotonic() - begun)
        memory = psutil.Process(process.pid).memory_info().rss / 2**20
        found = []
        for number in range(0, count, max(1, count // 8)):
            with opened(folder, server, f"e{number:05d}") as experiment:
                begun_s = perf_counter()
                experiment.metric("loss").append(value=0.5, step=1)
                _until(lambda name=f"e{number:05d}": server.points(name) == 2, 0.01)
                found.append(perf_counter() - begun_s)
    return {
        "% of a core": share * 100, "found s, median": median(found), "found s, most": max(found),
        "MB": memory, "first drained s": drained, "experiments": count,
    }  # fmt: skip


def _all_there(server: Server, count: int) -> bool:
    answer = server.get("/experiments", limit=1, project="bench")
    return int(answer["total"]) == count


def _train(folder: Path, server: Server | None, seconds: float) -> list[int]:
    """2,000 points a second; the nanoseconds of each append."""
    from time import perf_counter_ns

    times = []
    with opened(folder, server, "remote" if server else "local") as experiment:
        due = perf_counter()
        end = due + seconds
        number = 0
        while due < end:
            for _ in range(20):
                begun = perf_counter_ns()
                experiment.metric("loss").append(value=number * 0.5, step=number)
                times.append(perf_counter_ns() - begun)
                number += 1
            due += 0.01
            sleep(max(0.0, due - perf_counter()))
    return times


@row("beside training at 2,000 points/s: ≤ 5 % of a core; append no slower than in local mode")
def daemon_beside_training(folder: Path, scale: float) -> Figures:
    seconds = 30 * scale
    with serving(folder) as server:
        local = _train(folder, None, seconds)
        with daemon(*_store(folder, server)) as process:
            sleep(1)
            before, begun = _cpu_s(process.pid), monotonic()
            remote = _train(folder, server, seconds)
            share = (_cpu_s(process.pid) - before) / (monotonic() - begun)
            _until(lambda: server.points("remote") == len(remote))
        with opened(folder, None, "tight-local") as experiment:
            tight = appends(experiment, 50_000)
        with opened(folder, server, "tight-remote") as experiment:
            tight_remote = appends(experiment, 50_000)
    return {
        "% of a core": share * 100,
        "local p50 µs": quantile(local, 0.5), "remote p50 µs": quantile(remote, 0.5),
        "local p99 µs": quantile(local, 0.99), "remote p99 µs": quantile(remote, 0.99),
        "tight loop, remote / local": quantile(tight_remote, 0.5) / quantile(tight, 0.5),
    }  # fmt: skip


@row("a page of 1,000 of 1,000,000 points ≤ 20 ms; 1,000,000 down-sampled to 1,000 ≤ 50 ms warm")
def server_reads(folder: Path, scale: float) -> Figures:
    count = int(1_000_000 * scale)
    with opened(folder, None) as experiment:
        for start in range(0, count, 1000):
            experiment.metric("loss").append_batch([{"value": i * 0.5, "step": i} for i in range(start, start + 1000)])
    with serving(folder) as server:
        subprocess.run([sys.executable, "-m", "ml_dash_syncd", "once", *_store(folder, server)], check=True)
        path = f"/experiments/{experiment_id('bench', 'bench')}/metrics/loss"

        def ms(path: str, **query: Any) -> float:
            begun = perf_counter()
            server.get(path, **query)
            return (perf_counter() - begun) * 1000

        pages = [ms(f"{path}/data", startIndex=(i * 7919) % (count - 1000), limit=1000) for i in range(40)]
        whole = [ms(f"{path}/series", points=1000) for _ in range(10)][1:]
        part = [ms(f"{path}/series", points=1000, start=count // 3, end=count // 3 * 2) for _ in range(10)][1:]
    return {"page ms": median(pages), "1,000,000 to 1,000 ms": median(whole), "a third to 1,000 ms": median(part)}


@row("10,000 experiments by page of 100: ≤ 30 ms")
def server_list(folder: Path, scale: float) -> Figures:
    count = int(10_000 * scale)
    with serving(folder) as server:
        for number in range(count):
            answer = server.session.post(
                f"{server.url}/projects/bench/experiments", json={"name": f"e{number:05d}"}, timeout=60
            )
            answer.raise_for_status()
        times, after = [], None
        for _ in range(min(100, count // 100)):
            begun = perf_counter()
            page = server.get("/experiments", project="bench", limit=100, **({"after": after} if after else {}))
            times.append((perf_counter() - begun) * 1000)
            after = page.get("next")
    return {"ms": median(times), "most ms": max(times), "experiments": count}


@row("64 daemons at once: no error, no lost event, memory flat")
def daemons_64(folder: Path, scale: float) -> Figures:
    machines, count, waves = int(64 * scale) or 1, 5_000, 3
    spent, codes, grown = 0.0, 0, []
    with serving(folder) as server:
        server.get("/experiments")
        watched = psutil.Process(server.process.pid)
        resident = watched.memory_info().rss
        for wave in range(waves):
            _record_on(machines, folder, range(wave * count, (wave + 1) * count))
            begun = perf_counter()
            codes += sum(map(bool, _send_from(machines, folder, server)))
            spent += perf_counter() - begun
            before, resident = resident, watched.memory_info().rss
            grown.append((resident - before) / 2**20)
        there = sum(server.points(f"m{number}") for number in range(machines))
    waves_grown = {f"server grew MB in wave {number}": mb for number, mb in enumerate(grown, 1)}
    return {"s": spent / waves, "failed": codes, "lost": machines * count * waves - there, **waves_grown}


def _record_on(machines: int, folder: Path, steps: range) -> None:
    for number in range(machines):
        with Experiment(f"m{number}", "bench", local_path=folder / f"store{number}", durability="os") as experiment:
            for step in steps:
                experiment.metric("loss").append(value=0.5, step=step)


def _send_from(machines: int, folder: Path, server: Server) -> list[int]:
    """Exit codes of daemons that all send at once."""
    running = []
    for number in range(machines):
        environment = {**os.environ, "XDG_STATE_HOME": str(folder / f"state{number}")}
        command = [sys.executable, "-m", "ml_dash_syncd", "once", "--store", str(folder / f"store{number}")]
        command += ["--remote", server.url, "--user", _USER]
        running.append(subprocess.Popen(command, env=environment))
    return [process.wait(_DRAIN_S) for process in running]


@row("≤ 3 ms each; twice as many: growth ≤ 1.2")
def small_files(folder: Path, scale: float) -> Figures:
    """Files of 1 KB, recorded before the uploader begins, until the server has them all."""
    count = int(1_000 * scale)
    sources = folder / "sources"
    sources.mkdir()
    for number in range(2 * count):
        (sources / f"{number}.bin").write_bytes(os.urandom(1024))

    def ms_each(server: Server, first: int) -> float:
        with opened(folder, None, "files") as experiment:
            for number in range(first, first + count):
                experiment.file(str(sources / f"{number}.bin"), prefix="/many")
        begun = perf_counter()
        subprocess.run([sys.executable, "-m", "ml_dash_syncd", "once", *_store(folder, server)], check=True)
        spent = perf_counter() - begun
        listed = server.get(f"/experiments/{experiment_id('bench', 'files')}/files")["files"]
        assert not any(file.get("pending") for file in listed)
        assert len(listed) == first + count
        return spent / count * 1000

    with serving(folder) as server:
        few, many = ms_each(server, 0), ms_each(server, count)
    return {"ms each, first half": few, "ms each, second half": many, "growth": many / few}
