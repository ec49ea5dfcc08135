"""Pages of log entries: by number, by level, by text, by regular expression, at a time.

A text is looked for in the bytes of a thousand lines at once, and only lines that hold it somewhere are decoded; so a
million entries are searched in a fraction of a second. A search that takes longer answers with what it has found, and
its page says how far it came.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgspec

from ..core.json_values import texts_like_numbers, to_json
from ..core.names import level_of
from ..core.ranges import bounds
from ..core.records import LogEntry, log_page
from ..core.times import parse_time, utc_text
from ..errors import Damaged, InvalidValue
from ..projection.checkpoint import LINES_PER_MARK
from ..projection.lines import read_log
from .literals import pattern
from .log_index import LogIndex, is_usual
from .view import Lines

SEARCH_S: Final = 1.0
"""Seconds after which a search ends that has found nothing."""
ENOUGH_S: Final = 0.15
"""Seconds after which a search answers with what it has found."""
PAGE_BYTES: Final = 32 << 20
"""The most bytes of lines in one page: one line may have a megabyte."""


class _Brief(msgspec.Struct, gc=False):
    level: str
    message: str


_brief: Final = msgspec.json.Decoder(_Brief)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The condition for log entries: one of some levels, a text in the message whatever its case, an expression."""

    levels: tuple[str, ...] = ()
    text: str = ""
    expression: Callable[[str], bool] | None = None

    def __bool__(self) -> bool:
        return bool(self.levels) or not self.by_level_alone

    def matches(self, level: str, message: str) -> bool:
        """True if an entry with this level and message is wanted."""
        return (
            (not self.levels or level in self.levels)
            and (not self.text or self.text in message.casefold())
            and (self.expression is None or self.expression(message))
        )

    @property
    def by_level_alone(self) -> bool:
        """True if the level decides."""
        return not self.text and self.expression is None


def wanted(levels: Iterable[str], q: str | None, regex: str | None) -> Wanted:
    """Return the condition that is asked for. Raises InvalidValue for a wrong expression."""
    try:
        expression = pattern(regex) if regex else None
    except ValueError as error:
        raise InvalidValue(f"regex {regex!r}: {error}", hint='leave it away, or search for a text with "q"') from None
    return Wanted(tuple(level_of(level) or level for level in levels), (q or "").casefold(), expression)


@dataclass(slots=True)
class Search:
    """The log lines of one experiment, and how they are read. `index` may be None, or end before the lines do."""

    lines: Lines
    index: LogIndex | None = None
    began: float = field(default_factory=time.monotonic)

    def page(self, condition: Wanted, start: int, limit: int, at: str | None = None) -> dict[str, Any]:
        """Return a page of entries; see `source.Source.logs`. Raises OSError, Damaged if the lines were changed."""
        total, first = self.lines.total, self.lines.known.first
        if at is not None:
            start = self.number_at(at)
        if not condition:
            low, high = bounds(start, limit, total)
            low = max(low, first)
            found = [line for _, line in self._plain(low, max(low, high))]
            logs = _bounded(map(_entry, found), found)
            page = log_page(logs, low, more=low + len(logs) < total and bool(logs))
            return {**page, "totalEntries": total}
        if start < 0:
            numbers, examined = self._last(condition, min(limit, -start))
            begin, end, more = examined, total, False
        else:
            begin = max(start, first)
            numbers, end = self._first(condition, begin, limit)
            more = end < total
        logs = _bounded((_entry(line) for _, line in numbers), [line for _, line in numbers])
        if len(logs) < len(numbers):
            end, more = numbers[len(logs)][0], True
        page = log_page(logs, begin, more=more)
        answer: dict[str, Any] = {**page, "endIndex": end - 1, "totalEntries": total}
        if condition.by_level_alone and (matching := self._count(condition)) is not None:
            answer["matching"] = matching
        return answer

    # -- by number and time -------------------------------------------------------------------------------------------

    def _plain(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        lines = self.lines.read(start, stop).splitlines() if start < stop else []
        if len(lines) != max(0, stop - start):
            raise Damaged(f"{self.lines.path} has fewer lines than were written to it")
        yield from enumerate(lines, start)

    def number_at(self, text: str) -> int:
        """Return the number of the first entry at or after a time. Entries of several writers may lie out of order."""
        wanted_text = utc_text(parse_time(text))
        low, high = self.lines.known.first, self.lines.total
        while low < high:
            middle = (low + high) // 2
            ((_, line),) = self._plain(middle, middle + 1)
            if read_log(line)["timestamp"] < wanted_text:
                low = middle + 1
            else:
                high = middle
        return low

    # -- by level -----------------------------------------------------------------------------------------------------

    def _indexed(self, condition: Wanted) -> LogIndex | None:
        """Return the index if it can tell which entries have the levels that are wanted."""
        return self.index if condition.levels and all(map(is_usual, condition.levels)) else None

    def _count(self, condition: Wanted) -> int | None:
        """Return how many entries have the wanted levels; None if that takes too long to say."""
        index = self._indexed(condition)
        end = index.end if index is not None else self.lines.known.first
        if self.lines.total - end > 20 * LINES_PER_MARK:
            return None
        counted = index.count(condition.levels) if index is not None else 0
        return counted + sum(1 for _ in self._matching(condition, end, self.lines.total))

    # -- searches -----------------------------------------------------------------------------------------------------

    def _first(self, condition: Wanted, start: int, limit: int) -> tuple[list[tuple[int, bytes]], int]:
        """Return the first entries that match from `start` on, and the number behind the last one examined."""
        found: list[tuple[int, bytes]] = []
        index = self._indexed(condition)
        position = start
        if index is not None and condition.by_level_alone and start < index.end:
            numbers = index.numbers(condition.levels, start, limit)
            found = list(index.lines(self.lines, numbers))
            position = numbers[-1] + 1 if len(numbers) == limit else index.end
        while len(found) < limit and position < self.lines.total and not self._is_late(found):
            stop = min(self.lines.total, position - position % LINES_PER_MARK + LINES_PER_MARK)
            for number, line in self._matching(condition, position, stop):
                found.append((number, line))
                if len(found) == limit:
                    return found, number + 1
            position = stop
        return found, position

    def _is_late(self, found: Sequence[object]) -> bool:
        return time.monotonic() - self.began >= (ENOUGH_S if found else SEARCH_S)

    def _last(self, condition: Wanted, limit: int) -> tuple[list[tuple[int, bytes]], int]:
        """Return the last entries that match, and the number of the first one examined."""
        found: list[tuple[int, bytes]] = []
        index = self._indexed(condition)
        stop, first = self.lines.total, self.lines.known.first
        floor = index.end if index is not None and condition.by_level_alone else first
        while len(found) < limit and stop > floor and not self._is_late(found):
            start = max(floor, (stop - 1) // LINES_PER_MARK * LINES_PER_MARK)
            here = list(self._matching(condition, start, stop))
            found = here[-(limit - len(found)) :] + found
            stop = start
        if stop == floor > first and index is not None and len(found) < limit:
            numbers = index.last_numbers(condition.levels, limit - len(found))
            found = list(index.lines(self.lines, numbers)) + found
            stop = first
        # Enough were found before all was examined: then nothing before the first of these was looked at.
        return found, found[0][0] if len(found) == limit else stop

    def _matching(self, condition: Wanted, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Yield (number, line) of the entries [start, stop) that match."""
        for low in range(start, stop, LINES_PER_MARK):
            high = min(stop, low + LINES_PER_MARK)
            data = self.lines.read(low, high)
            if not condition.text:
                yield from _decoded(condition, data, low, high)
            else:
                yield from _holding(condition, data, low)


def _decoded(condition: Wanted, data: bytes, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Yield the entries that match, each of them decoded in part."""
    entries = _brief.decode_lines(data)
    if len(entries) != stop - start:
        raise Damaged(f"{len(entries):,} log entries where {stop - start:,} were written")
    places = [place for place, entry in enumerate(entries) if condition.matches(entry.level, entry.message)]
    if places:
        lines = data.splitlines()
        yield from ((start + place, lines[place]) for place in places)


def _holding(condition: Wanted, data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield the entries that match; only lines that hold the text somewhere are decoded."""
    # As it is in JSON: a quote or a line end is escaped there.
    needle = json.dumps(condition.text, ensure_ascii=False)[1:-1].encode().lower()
    if data.isascii() and needle.isascii():
        lowered, place, number, counted = data.lower(), 0, start, 0
        while (place := lowered.find(needle, place)) >= 0:
            begin = data.rfind(b"\n", 0, place) + 1
            end = data.find(b"\n", place)
            number, counted = number + data.count(b"\n", counted, begin), begin
            line = data[begin:end]
            if _matches(condition, line):
                yield number, line
            place = end
        return
    # Letters such as "ß" are folded into others, so lines with some are decoded whatever they hold.
    for number, line in enumerate(data.splitlines(), start):
        if (not line.isascii() or needle in line.lower()) and _matches(condition, line):
            yield number, line


def _matches(condition: Wanted, line: bytes) -> bool:
    entry = _brief.decode(line)
    return condition.matches(entry.level, entry.message)


def _entry(line: bytes) -> dict[str, Any]:
    """Return an entry for JSON; `text` names texts in its metadata that only look like numbers."""
    entry = read_log(line)
    metadata = entry["metadata"]
    if metadata is None:
        return cast("dict[str, Any]", entry)
    texts = texts_like_numbers(metadata)
    return {**entry, "metadata": to_json(metadata), **({"text": texts} if texts else {})}


def _bounded(entries: Iterable[dict[str, Any]], lines: Sequence[bytes]) -> list[LogEntry]:
    """Return entries as long as their lines have no more than PAGE_BYTES together; at least one."""
    kept, size = list[dict[str, Any]](), 0
    for entry, line in zip(entries, lines, strict=True):
        size += len(line)
        if kept and size > PAGE_BYTES:
            break
        kept.append(entry)
    return cast("list[LogEntry]", kept)
