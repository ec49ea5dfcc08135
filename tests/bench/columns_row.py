"""The measurement of points by column, against the same points as JSON lines."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import Any

from ml_dash.core.sampling import PART, extremes
from ml_dash.core.state import Block
from ml_dash.projection.lines import point_lines, read_points
from ml_dash.server.engine.columns import Table, decode, encode, encode_chunk
from ml_dash.server.engine.summaries import decode_summaries, encode_summaries

from .rows import Figures, row

COUNT = 1000


def points(fields: int, seed: int) -> tuple[list[dict[str, Any]], list[int]]:
    """A thousand points of random doubles, the second field a step, and their times: 10 ms apart, with noise."""
    rng = random.Random(seed)
    names = ["value", "step", *(f"layer{number}/grad_norm" for number in range(2, fields))][:fields]
    rows = [
        {name: seed * COUNT + place if name == "step" else rng.random() for name in names} for place in range(COUNT)
    ]
    steps = (10_000_000 + int(rng.gauss(0, 300_000)) for _ in range(COUNT - 1))
    return rows, list(accumulate(steps, initial=1_760_000_000_000_000_000 + seed * 10_000_000_000))


def best_us(work: Callable[[], object], rounds: int) -> float:
    """The least of `rounds` times, in microseconds: what the work takes where nothing else disturbs."""
    times = []
    for _ in range(rounds):
        begun = perf_counter()
        work()
        times.append(perf_counter() - begun)
    return min(times) * 1e6


@row("two fields, with summaries: ≤ 16 bytes per point; 1,000 summaries of a field decoded in ≤ 3 ms")
def columns(folder: Path, scale: float) -> Figures:
    """Of 1,000 points each: µs as JSON lines and by column, and bytes per point."""
    rounds = max(5, int(200 * scale))
    figures: Figures = {}
    for fields in (1, 2, 10):
        rows, times = points(fields, 0)
        lines = point_lines(Block(0, rows, times))
        open_, full = encode(rows, times), encode(rows, times, deflate=True)
        summaries = encode_summaries(parts(rows, 0), deflate=True)
        assert decode(full).lines(0) == lines
        table = Table()
        table.add(rows[: COUNT // 2], times[: COUNT // 2])
        work: dict[str, Callable[[], object]] = {
            "JSON encode µs": lambda rows=rows, times=times: point_lines(Block(0, rows, times)),
            "JSON deflate µs": lambda lines=lines: zlib.compress(lines, 1),
            "JSON decode µs": lambda lines=lines: read_points(lines, 0),
            "encode µs": lambda rows=rows, times=times: encode(rows, times),
            "encode and deflate µs": lambda rows=rows, times=times: encode(rows, times, deflate=True),
            "one more and encode µs": lambda table=table, rows=rows, times=times: one_more(table, rows, times),
            "rows µs": lambda full=full: decode(full).rows(),
            "one column µs": lambda full=full: decode(full).column("value"),
            "lines µs": lambda full=full: decode(full).lines(0),
            "extremes of rows µs": lambda rows=rows: extremes(rows, 0),
            "extremes of columns µs": lambda full=full: decode(full).extremes(0),
        }
        of = f"{fields} field{'s' if fields > 1 else ''}"
        figures |= {f"{of}: {name}": best_us(one, rounds) for name, one in work.items()}
        figures[f"{of}: JSON bytes"] = len(lines) / COUNT
        figures[f"{of}: JSON bytes, deflated"] = len(zlib.compress(lines, 1)) / COUNT
        figures[f"{of}: bytes"] = len(open_) / COUNT
        figures[f"{of}: bytes, deflated"] = len(full) / COUNT
        figures[f"{of}: bytes of summaries"] = len(summaries) / COUNT
    blocks, summary_bytes = [], 0
    for number in range(10):
        rows, times = points(2, number)
        blocks.append(encode(rows, times, deflate=True))
        summary_bytes += len(encode_summaries(parts(rows, number * COUNT), deflate=True))
    chunk, _ = encode_chunk(blocks)
    figures["chunk of 10: bytes per point, with summaries"] = (len(chunk) + summary_bytes) / (10 * COUNT)
    many = [part for number in range(50) for part in parts(points(1, number)[0], number * COUNT)]
    packed = encode_summaries(many, deflate=True)
    figures["1,000 summaries: bytes each"] = len(packed) / len(many)
    figures["1,000 summaries: encode ms"] = best_us(lambda: encode_summaries(many, deflate=True), rounds) / 1000
    figures["1,000 summaries: decode ms"] = best_us(lambda: decode_summaries(packed), rounds) / 1000
    return figures


def one_more(table: Table, rows: list[dict[str, Any]], times: list[int]) -> bytes:
    """Add a point to a table, as a request of one point does, and encode it."""
    place = table.count % COUNT
    table.add(rows[place : place + 1], times[place : place + 1])
    return table.encode()


def parts(rows: list[dict[str, Any]], first: int) -> list[Any]:
    """The summaries of the parts of a block."""
    return [extremes(rows[start : start + PART], first + start) for start in range(0, len(rows), PART)]
