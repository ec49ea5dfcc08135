"""Search in the log of an experiment: by level from an index of one byte for each entry, by text in raw lines.

A block of a thousand entries is deflated, and to decode its lines takes ten times as long as to inflate it. So:

    by level    the first letter of each entry's level is kept in memory: a million entries are a megabyte, made once in
                about a second, and extended by what comes. Finding is a search in bytes; blocks with a hit are read.
    by text     a block is inflated, and searched as bytes. Lines are decoded in blocks that hold the text at all.
    by time     entries are about in the order of their times, so the block is found by halving.

The index of levels is disposable. Where it differs from the lines that it leads to (an experiment was removed and begun
anew), it is made again.
"""

from __future__ import annotations

import re
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from ...core.records import LogEntry
from ...core.sampling import LINES
from ...core.times import parse_time, utc_text
from ...projection.lines import read_log
from ...reading.log_search import Wanted
from .blocks import LOGS, Block, blocks_of
from .contents import Contents

SEARCH_S: Final = 2.0
"""How long one request may search while it has found nothing."""
ENOUGH_S: Final = 0.15
"""After so long what was found is answered, if it is anything."""
# Most bytes of lines in one answer: a line may have a megabyte.
_PAGE_BYTES: Final = 32 << 20
_KEPT_BYTES: Final = 64 << 20
_WINDOW: Final = 10 * LINES
# Each line begins with its time and level, see `projection.lines`.
_LEVEL: Final = re.compile(rb'^\{"timestamp":"[^"]*","level":"(.)', re.MULTILINE)

_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Found:
    """Entries in their order; the first and the last number that was examined; whether more may follow behind it.

    `matching` is how many entries of the levels there are, None where that is not known.
    """

    entries: list[LogEntry]
    first: int
    last: int
    more: bool
    matching: int | None = None


class LogIndexes:
    """The levels of the logs of experiments that were asked for lately. Any thread may call."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._size = 0
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def levels(self, contents: Contents, total: int) -> bytes:
        """Return the first letter of the level of each of the first `total` entries."""
        key = contents.ns, contents.row.id
        with self._guard:
            known = self._kept.get(key, b"")
        if len(known) < total:
            parts = [known]
            for block in blocks_of(contents, LOGS, len(known), total):
                parts.append(_letters(block.lines(len(known), total)))
            known = b"".join(parts)
            self._keep(key, known)
        # It may be of a later version than this one.
        return known[:total]

    def forget(self, contents: Contents) -> None:
        """Drop what is kept of an experiment: it is wrong."""
        with self._guard:
            self._size -= len(self._kept.pop((contents.ns, contents.row.id), b""))

    def _keep(self, key: tuple[str, str], letters: bytes) -> None:
        with self._guard:
            self._size += len(letters) - len(self._kept.pop(key, b""))
            self._kept[key] = letters
            while self._size > _KEPT_BYTES and len(self._kept) > 1:
                self._size -= len(self._kept.popitem(last=False)[1])


def _letters(lines: bytes) -> bytes:
    return b"".join(_LEVEL.findall(lines))


def search(contents: Contents, indexes: LogIndexes, total: int, start: int, limit: int, wanted: Wanted) -> Found:
    """Return the first entries that are wanted from number `start` on; with a negative one, the last ones of all."""
    for _ in range(2):
        levels = indexes.levels(contents, total) if wanted.levels else None
        found = _searched(contents, levels, total, start, limit, wanted)
        if found is not None:
            return found
        # What the index says is not so.
        indexes.forget(contents)
    raise AssertionError("an index that was just made differs from the lines that it was made of")


def _searched(
    contents: Contents, levels: bytes | None, total: int, start: int, limit: int, wanted: Wanted
) -> Found | None:
    """Return what is found; None if the index of levels is wrong."""
    backwards = start < 0
    marks = None if levels is None else _marks(levels, wanted.levels)
    matching = marks.count(1) if marks is not None and wanted.by_level_alone else None
    low, high = (0, total) if backwards else (min(start, total), total)
    # A page of the last ones has at most as many as it is asked to go back.
    limit = min(limit, -start) if backwards else limit
    if marks is not None and matching is not None:
        numbers = _numbers(marks, low, high, limit, backwards=backwards)
        entries = _entries(contents, numbers, backwards=backwards)
        numbers = numbers[-len(entries) :] if backwards else numbers[: len(entries)]
        if not all(wanted.matches(entry["level"], entry["message"]) for entry in entries):
            return None
        if backwards:
            return Found(entries, numbers[0] if numbers else 0, total - 1, False, matching)
        behind = numbers[-1] + 1 if numbers else low
        more = marks.find(1, behind) >= 0
        return Found(entries, low, behind - 1 if more else total - 1, more, matching)
    return _scan(contents, marks, low, high, limit, wanted, backwards=backwards)


def _scan(
    contents: Contents, marks: bytes | None, low: int, high: int, limit: int, wanted: Wanted, *, backwards: bool
) -> Found:
    """Return entries that are wanted among those at numbers [low, high), read block by block."""
    entries: list[LogEntry] = []
    size, began = 0, time.monotonic()
    reached = high if backwards else low
    for first, stop, lines in _stretches(contents, low, high, marks, backwards=backwards):
        candidates = map(read_log, _candidates(lines, wanted))
        hits = [entry for entry in candidates if wanted.matches(entry["level"], entry["message"])]
        entries += reversed(hits) if backwards else hits
        size += len(lines) if hits else 0
        reached = first if backwards else stop
        spent = time.monotonic() - began
        if len(entries) >= limit or size > _PAGE_BYTES or spent > SEARCH_S or (entries and spent > ENOUGH_S):
            break
    else:
        reached = low if backwards else high
    over = len(entries) > limit
    entries = entries[:limit]
    if backwards:
        entries.reverse()
        return Found(entries, entries[0]["sequenceNumber"] if entries else reached, high - 1, False)
    last = entries[-1]["sequenceNumber"] if over or (len(entries) == limit and entries) else reached - 1
    return Found(entries, low, last, last + 1 < high)


def _stretches(
    contents: Contents, low: int, high: int, marks: bytes | None, *, backwards: bool
) -> Iterator[tuple[int, int, bytes]]:
    """Yield (first number, number behind the last, lines) of [low, high), leaving out blocks without a mark."""
    begins: Sequence[int] = range(low - low % _WINDOW, high, _WINDOW)
    for begin in reversed(begins) if backwards else begins:
        first, stop = max(low, begin), min(high, begin + _WINDOW)
        if marks is not None and marks.find(1, first, stop) < 0:
            continue
        blocks: Any = blocks_of(contents, LOGS, first, stop)
        for block in reversed(list(blocks)) if backwards else blocks:
            begun, ends = max(first, block.first), min(stop, block.first + block.count)
            if marks is None or marks.find(1, begun, ends) >= 0:
                yield begun, ends, block.lines(first, stop)


def _candidates(lines: bytes, wanted: Wanted) -> list[bytes]:
    """Return the lines that may be of wanted entries, found without decoding one."""
    if not wanted.text:
        return lines.splitlines()
    needle = _encode(wanted.text)[1:-1]
    if lines.isascii() and needle.isascii():
        # Escapes have lower case, and so has the needle's.
        lowered, needle = lines.lower(), needle.lower()
        if needle not in lowered:
            return []
        pairs = zip(lines.splitlines(), lowered.splitlines(), strict=True)
        return [line for line, low in pairs if needle in low]
    if needle.decode().casefold() not in lines.decode().casefold():
        return []
    return lines.splitlines()


def _marks(known: bytes, levels: Sequence[str]) -> bytes:
    """Return a byte for each entry, of which the first letters of the levels are known: 1 for one of `levels`."""
    table = bytearray(256)
    for level in levels:
        table[level.encode()[0]] = 1
    return known.translate(bytes(table))


def _numbers(marks: bytes, low: int, high: int, limit: int, *, backwards: bool) -> list[int]:
    """Return the numbers of the first marks in [low, high), or of the last ones, in order."""
    found: list[int] = []
    while len(found) < limit:
        at = marks.rfind(1, low, high) if backwards else marks.find(1, low, high)
        if at < 0:
            break
        found.append(at)
        low, high = (low, at) if backwards else (at + 1, high)
    return found[::-1] if backwards else found


def _entries(contents: Contents, numbers: list[int], *, backwards: bool) -> list[LogEntry]:
    """Return the entries of these numbers, in order: the first ones, or the last, if they are too long together."""
    found: list[bytes] = []
    size = 0
    for block in _named_blocks(contents, numbers[::-1] if backwards else numbers):
        low, high = bisect_left(numbers, block.first), bisect_left(numbers, block.first + block.count)
        # What lies behind the last line that is wanted need not be split.
        lines = block.lines(block.first, block.first + block.count).split(b"\n", numbers[high - 1] - block.first + 1)
        for number in reversed(numbers[low:high]) if backwards else numbers[low:high]:
            line = lines[number - block.first]
            if found and size + len(line) > _PAGE_BYTES:
                break
            size += len(line)
            found.append(line)
        else:
            continue
        break
    return [read_log(line) for line in (reversed(found) if backwards else found)]


def _named_blocks(contents: Contents, numbers: Sequence[int]) -> Iterator[Block]:
    """Yield the blocks that hold these numbers, which grow or fall, each once."""
    block = None
    for number in numbers:
        if block is None or not block.first <= number < block.first + block.count:
            block = next(blocks_of(contents, LOGS, number, number + 1))
            yield block


def number_at(contents: Contents, total: int, text: str) -> int:
    """Return the number of the first entry at or after a time; `total` if there is none. Raises InvalidValue."""
    wanted = utc_text(parse_time(text)).encode()
    low, high = 0, total
    while low < high:
        middle = (low + high) // 2
        block = next(blocks_of(contents, LOGS, middle, middle + 1))
        times = [_time(line) for line in block.lines(block.first, block.first + block.count).splitlines()]
        if times[0] >= wanted:
            high = min(high, block.first)
        elif times[-1] < wanted:
            low = block.first + block.count
        else:
            return block.first + next(place for place, time in enumerate(times) if time >= wanted)
    return low


def _time(line: bytes) -> bytes:
    return line[len(b'{"timestamp":"') :].partition(b'"')[0]
