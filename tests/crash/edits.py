"""Random edits of bytes that remember where every byte came from, so that the frames that are still whole are known."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from . import oracle_reader as disk

Piece = tuple[int, bytes]
"""(where in the original these bytes were, or -1 for new ones; the bytes)"""


@dataclass(frozen=True)
class Edited:
    """Bytes, and the pieces of the original that they were put together from."""

    data: bytes
    pieces: list[Piece]


def _split(pieces: list[Piece], at: int) -> int:
    """Make a piece begin at byte `at`; its index."""
    position = 0
    for index, (origin, data) in enumerate(pieces):
        if position == at:
            return index
        if at < position + len(data):
            cut = at - position
            pieces[index : index + 1] = [(origin, data[:cut]), (origin + cut if origin >= 0 else -1, data[cut:])]
            return index + 1
        position += len(data)
    return len(pieces)


def edit_at_random(data: bytes, rng: random.Random, keep: int) -> Edited:
    """1 to 16 deletions, insertions, swaps, repetitions or overwritings, all behind the first `keep` bytes."""
    pieces: list[Piece] = [(0, data)]
    for _ in range(rng.randrange(1, 17)):
        total = sum(len(part) for _, part in pieces)
        if total <= keep + 16:
            break
        length = min(rng.choice((1, 2, 8, 64, 512, 4096)), total - keep - 1)
        length = rng.randrange(1, length + 1)
        start = rng.randrange(keep, total - length)
        kind = rng.choice(("delete", "insert", "swap", "repeat", "overwrite"))
        first = _split(pieces, start)
        if kind == "insert":
            pieces.insert(first, (-1, rng.randbytes(length)))
            continue
        last = _split(pieces, start + length)
        taken = pieces[first:last]
        if kind == "delete":
            del pieces[first:last]
        elif kind == "repeat":
            pieces[last:last] = taken
        elif kind == "overwrite":
            pieces[first:last] = [(-1, rng.randbytes(length))]
        else:
            del pieces[first:last]
            rest = sum(len(part) for _, part in pieces)
            there = _split(pieces, rng.randrange(keep, rest + 1))
            pieces[there:there] = taken
    return Edited(b"".join(part for _, part in pieces), pieces)


def whole_frames(edited: Edited, frames: Iterable[disk.Frame]) -> set[int]:
    """Numbers of frames all of whose bytes still follow each other."""
    merged: list[tuple[int, int]] = []
    joined = False
    for origin, data in edited.pieces:
        if origin < 0:
            joined = False
            continue
        if joined and merged[-1][1] == origin:
            merged[-1] = (merged[-1][0], origin + len(data))
        else:
            merged.append((origin, origin + len(data)))
        joined = True
    return {f.seq for f in frames if any(start <= f.start and f.end <= end for start, end in merged)}
