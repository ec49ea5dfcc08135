"""The measurements of what a server answers to readers: its engine, without HTTP, on SQLite and a folder."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from ml_dash.core.envelope import as_binary
from ml_dash.reading.source import SeriesRequest, decoded
from ml_dash.server.engine.services import Server
from ml_dash.server.engine.source import ServerSource

from .asking import answer_ms, log_entry, log_figures
from .rows import Figures, row

_NS = "alice"


@contextlib.contextmanager
def _source(folder: Path) -> Iterator[tuple[Server, ServerSource]]:
    """A server's engine that was just started, and its source."""
    with contextlib.closing(Server(folder / "data")) as core:
        yield core, ServerSource(core, _NS)


def _points(core: Server, name: str, count: int, at_once: int = 50_000) -> str:
    """An experiment with so many points; its id."""
    identity = str(core.upsert_experiment(_NS, "bench", {"name": name})["experiment"]["id"])
    numbers = random.Random(name)
    for start in range(0, count, at_once):
        rows = [
            {"value": numbers.random() + 1000 / (step + 1000), "step": step}
            for step in range(start, min(count, start + at_once))
        ]
        core.append_points(_NS, identity, "loss", rows)
    return identity


@row("100 runs x 100,000 points: ≤ 700 ms of the server; again with a tenth of the buckets")
def server_overlay(folder: Path, scale: float) -> Figures:
    runs, count = max(2, int(100 * scale)), max(20_000, int(100_000 * min(1.0, scale * 10)))
    with _source(folder) as (core, _):
        ids = tuple(_points(core, f"run-{number}", count) for number in range(runs))
        core.archiver.wait()
    with _source(folder) as (_, source):
        figures: Figures = {}

        def drawn(**how: Any) -> bytes:
            return as_binary(source.compare_series(SeriesRequest(ids, "loss", **how)))

        figures["first ms"] = answer_ms(drawn, rounds=1)
        figures["again ms"] = answer_ms(drawn)
        begun = process_time()
        drawn()
        figures["CPU ms"] = (process_time() - begun) * 1000
        figures["100 buckets ms"] = answer_ms(lambda: drawn(points=100))
        figures["zoom to 1 % ms"] = answer_ms(lambda: drawn(low=count * 0.5, high=count * 0.51))
        figures["over relative time ms"] = answer_ms(lambda: drawn(x="relative"), rounds=1)
    return figures


@row("one metric of 10,000,000 points: drawn ≤ 100 ms, zoom to 1 % ≤ 100 ms")
def server_chart(folder: Path, scale: float) -> Figures:
    count = max(100_000, int(10_000_000 * scale))
    with _source(folder) as (core, _):
        ids = (_points(core, "run", count),)
        core.archiver.wait()
    with _source(folder) as (_, source):
        first = answer_ms(lambda: source.compare_series(SeriesRequest(ids, "loss")), rounds=1)
        return {
            "first ms": first,
            "again ms": answer_ms(lambda: source.compare_series(SeriesRequest(ids, "loss"))),
            "2,000 buckets ms": answer_ms(lambda: source.compare_series(SeriesRequest(ids, "loss", points=2000))),
            "zoom to 1 % ms": answer_ms(
                lambda: source.compare_series(SeriesRequest(ids, "loss", low=count * 0.5, high=count * 0.51))
            ),
            "zoom to 500 points ms": answer_ms(
                lambda: source.compare_series(SeriesRequest(ids, "loss", low=count * 0.5, high=count * 0.5 + 499))
            ),
            "over wall time ms": answer_ms(lambda: source.compare_series(SeriesRequest(ids, "loss", x="wall"))),
        }


@row("1,000,000 entries: last page ≤ 20 ms, by level ≤ 50 ms, by text first hits ≤ 300 ms")
def server_logs(folder: Path, scale: float) -> Figures:
    count = max(20_000, int(1_000_000 * scale))
    with _source(folder) as (core, _):
        one = str(core.upsert_experiment(_NS, "bench", {"name": "logs"})["experiment"]["id"])
        for start in range(0, count, 10_000):
            entries = map(log_entry, range(start, start + 10_000))
            core.add_logs(_NS, one, [{"message": message, "level": level} for message, level in entries])
        core.archiver.wait()
    with _source(folder) as (_, source):
        figures = log_figures(source, one, count)
        figures["from a time ms"] = answer_ms(lambda: source.logs(one, at="2020-01-01", limit=100))
    return figures


@row("10,000 runs: a page ≤ 30 ms, a filter ≤ 50 ms; first rows ≤ 300 ms after a start, and the first time ever")
def server_runs(folder: Path, scale: float) -> Figures:
    count = max(50, int(10_000 * scale))
    with _source(folder) as (core, _):
        for number in range(count):
            body = {"name": f"run-{number:05}", "tags": [f"t{number % 3}"]}
            identity = str(core.upsert_experiment(_NS, f"p{number % 7}", body)["experiment"]["id"])
            core.set_parameters(_NS, identity, {f"p{at}": number * at * 0.1 for at in range(20)})
            for series in range(4):
                core.append_points(_NS, identity, f"m{series}", [{"value": number * 0.1, "step": 0}, {"value": 0.5}])
    figures: Figures = {}
    columns = ["params.p3", "metrics.m0.max"]
    with _source(folder) as (_, source):
        begun = perf_counter()
        page = decoded(source.experiments(columns=columns))
        figures["first time ever, first rows ms"] = (perf_counter() - begun) * 1000
        while "indexing" in page:
            page = decoded(source.experiments(columns=columns))
        figures["first time ever, all s"] = perf_counter() - begun
    with _source(folder) as (core, source):
        figures["after a start, first rows ms"] = answer_ms(lambda: source.experiments(columns=columns), rounds=1)
        figures["first filter ms"] = answer_ms(lambda: source.experiments(where="params.p7 > 30"), rounds=1)
        figures["page ms"] = answer_ms(lambda: source.experiments(columns=columns))
        figures["filter ms"] = answer_ms(lambda: source.experiments(where="params.p7 > 30", columns=columns))
        figures["text filter ms"] = answer_ms(lambda: source.experiments(where='"run-0001"', columns=columns))
        figures["sort ms"] = answer_ms(lambda: source.experiments(sort="metrics.m0.max:desc", columns=columns))
        figures["far page ms"] = answer_ms(lambda: source.experiments(start=count - 100, columns=columns))
        figures["groups ms"] = answer_ms(lambda: source.groups("tags", columns=columns))
        figures["fields ms"] = answer_ms(lambda: source.fields("params."))
        one = str(decoded(source.experiments(limit=1))["experiments"][0]["id"])

        def changed() -> None:
            core.append_points(_NS, one, "m0", [{"value": 1.0}])
            source.experiments(columns=columns)

        figures["a write and the page after it ms"] = answer_ms(changed)
    return figures
