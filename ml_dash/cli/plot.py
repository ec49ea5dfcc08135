"""A line plot in text: each character cell shows 2 x 4 dots of a Braille pattern."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence

Point = tuple[float, float]

# The bit of each dot of a Braille character, by row and column (Unicode, block U+2800).
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_UPPER = 0x01 | 0x08 | 0x02 | 0x10
_LOWER = 0x04 | 0x20 | 0x40 | 0x80


def plot(points: Sequence[Point], width: int, height: int, *, plain: bool = False) -> list[str]:
    """Draw points joined by lines; return `height` lines of text and two for the x axis, at most `width` columns wide.

    Points that are not finite leave a gap. Returns an empty list if there are no others. `plain`: only ASCII
    characters.
    """
    finite = [point for point in points if all(map(math.isfinite, point))]
    if not finite:
        return []
    left, right = _range([x for x, _ in finite])
    low, high = _range([y for _, y in finite])
    labels = _labels([high * (1 - row / (height - 1)) + low * (row / (height - 1)) for row in range(height)])
    margin = max(map(len, labels))
    columns = max(width - margin - 2, 10)
    cells = [[0] * columns for _ in range(height)]
    for x, y in _dots(points, (left, right, columns * 2 - 1), (low, high, height * 4 - 1)):
        cells[height - 1 - y // 4][x // 2] |= _BITS[3 - y % 4][x % 2]
    lines = []
    for row, (label, line) in enumerate(zip(labels, cells, strict=True)):
        shown = label if row in (0, height // 2, height - 1) else ""
        edge = "|" if plain else "┤" if shown else "│"
        lines.append(f"{shown:>{margin}} {edge}{_text(line, plain)}".rstrip())
    start, end = _labels([left, right])
    lines.append(" " * (margin + 1) + ("+" + "-" * columns if plain else "└" + "─" * columns))
    lines.append(" " * (margin + 2) + start + f"{end:>{max(columns - len(start), len(end) + 1)}}")
    return lines


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        half = abs(low) / 2 or 0.5
        return max(low - half, -sys.float_info.max), min(high + half, sys.float_info.max)
    return low, high


def _dots(
    points: Sequence[Point], across: tuple[float, float, int], up: tuple[float, float, int]
) -> Iterator[tuple[int, int]]:
    """Yield the (x, y) of every dot on the lines between consecutive finite points."""
    before: tuple[int, int] | None = None
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            before = None
            continue
        here = _place(x, *across), _place(y, *up)
        yield from _line(before or here, here)
        before = here


def _place(value: float, low: float, high: float, last: int) -> int:
    # Scaled down first: the difference of two floats near 1e308 could overflow to infinity.
    scale = max(abs(low), abs(high))
    share = (value / scale - low / scale) / (high / scale - low / scale)
    return round(min(max(share, 0.0), 1.0) * last)


def _line(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    for step in range(steps + 1):
        yield (
            start[0] + round((end[0] - start[0]) * step / steps),
            start[1] + round((end[1] - start[1]) * step / steps),
        )


def _text(cells: list[int], plain: bool) -> str:
    if plain:
        # ASCII can show only the upper and the lower half of a cell.
        return "".join(" '.:"[bool(bits & _UPPER) + 2 * bool(bits & _LOWER)] for bits in cells)
    return "".join(chr(0x2800 + bits) if bits else " " for bits in cells)


def _labels(values: list[float]) -> list[str]:
    """Format values with as many digits as it takes to tell the first from the last, at least 4 and at most 17."""
    digits = 4
    while digits < 17 and f"{values[0]:.{digits}g}" == f"{values[-1]:.{digits}g}":
        digits += 1
    return [f"{value:.{digits}g}" for value in values]
