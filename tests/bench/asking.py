"""What a source is asked in the rows of this package, and how long its answers take."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

from ml_dash.reading.source import Source

from .rows import Figures


def answer_ms(work: Callable[[], Any], rounds: int = 5) -> float:
    """The median of some rounds, in milliseconds."""
    times = []
    for _ in range(rounds):
        begun = perf_counter()
        work()
        times.append((perf_counter() - begun) * 1000)
    return median(times)


def log_entry(number: int) -> tuple[str, str]:
    """Message and level of an entry: one in a thousand an error, one in fifty a warning."""
    level = "error" if number % 1000 == 7 else "warn" if number % 50 == 3 else "info"
    return f"step {number}: loss {number * 0.37 % 10:.4f}, batch took {number % 91} ms", level


def log_figures(source: Source, one: str, count: int) -> Figures:
    """How long a source takes to find among the first `count` entries of that kind in an experiment."""
    first = answer_ms(lambda: source.logs(one, levels=["error"], limit=100), rounds=1)
    return {
        "by level, first time ms": first,
        "last page ms": answer_ms(lambda: source.logs(one, start=-100, limit=100)),
        "a page in the middle ms": answer_ms(lambda: source.logs(one, start=count // 2, limit=100)),
        "by level ms": answer_ms(lambda: source.logs(one, levels=["error"], limit=100)),
        "last of a level ms": answer_ms(lambda: source.logs(one, start=-100, levels=["warn", "error"], limit=100)),
        "text, last lines ms": answer_ms(lambda: source.logs(one, start=-100, q=f"STEP {count - 9}", limit=100)),
        "frequent text ms": answer_ms(lambda: source.logs(one, q="took 17", limit=100)),
        "rare text ms": answer_ms(lambda: source.logs(one, q=f"step {count - 9}:", limit=1), rounds=3),
        "expression ms": answer_ms(lambda: source.logs(one, regex=r"took 1[0-5] ms$", limit=100)),
    }
