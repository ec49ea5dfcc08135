"""The index of an experiment's log lines: one byte for the level of each entry, and the offset of every 20th line.

A million entries take a megabyte and a half, in the database of the series index (`reading.stretches`); in chunks of
`CHUNK` entries. Only whole thousands of lines are indexed. Where the lines of one level are is then found by a search
for a byte, and each is read with 19 others.
"""

from __future__ import annotations

import re
import sqlite3
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ..core.names import LEVELS
from ..errors import Damaged
from ..projection.checkpoint import LINES_PER_MARK
from .stretches import forget, indexed, note
from .view import Lines

CHUNK: Final = 10 * LINES_PER_MARK
"""Entries of a chunk, which is also what is indexed in one transaction."""
APART: Final = 20
"""Lines between two offsets that are kept."""

# The name under which the logs are listed beside metrics: no metric's name is empty.
_LOGS: Final = ""
_CODES: Final = {level.encode(): code for code, level in enumerate(dict.fromkeys(LEVELS.values()), 1)}
# Where the level is in a line, as `projection.lines` writes them. It also finds where lines begin.
_LEVEL: Final = re.compile(rb'^\{"timestamp":"[^"]*","level":"([^"\\]*)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LogIndex:
    """The index of entries [first, end): a code for the level of each, and offsets of lines `first` + n * APART."""

    first: int
    levels: bytes
    offsets: array[int]

    @property
    def end(self) -> int:
        """The number behind the last entry that is indexed."""
        return self.first + len(self.levels)

    def count(self, levels: Iterable[str]) -> int:
        """Return how many entries have one of these levels."""
        return self._marked(levels).count(1)

    def numbers(self, levels: Iterable[str], start: int, limit: int) -> list[int]:
        """Return the numbers of the first `limit` entries of these levels from `start` on."""
        marked, found, place = self._marked(levels), list[int](), start - self.first
        while len(found) < limit and (place := marked.find(1, max(0, place))) >= 0:
            found.append(self.first + place)
            place += 1
        return found

    def last_numbers(self, levels: Iterable[str], limit: int) -> list[int]:
        """Return the numbers of the last `limit` entries of these levels."""
        marked, found, place = self._marked(levels), list[int](), len(self.levels)
        while len(found) < limit and (place := marked.rfind(1, 0, place)) >= 0:
            found.append(self.first + place)
        return found[::-1]

    def _marked(self, levels: Iterable[str]) -> bytes:
        """Return 1 for each entry of these levels, and 0 for others."""
        table = bytearray(256)
        for level in levels:
            table[code_of(level)] = 1
        return self.levels.translate(bytes(table))

    def lines(self, of: Lines, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Yield (number, line) of indexed entries, in the order of their numbers. Raises OSError, Damaged."""
        with of.path.open("rb") as file:
            piece, here = -1, list[bytes]()
            for number in numbers:
                place = number - self.first
                if place // APART != piece:
                    piece = place // APART
                    begin = self.offsets[piece]
                    file.seek(begin)
                    # The last piece has no offset behind it: its lines end where the file's next mark is.
                    is_last = piece + 1 == len(self.offsets)
                    end = _end_of(of, self.end) if is_last else self.offsets[piece + 1]
                    here = file.read(end - begin).splitlines()
                if place % APART >= len(here):
                    raise Damaged(f"{of.path} has fewer lines than were written to it")
                yield number, here[place % APART]


def code_of(level: str) -> int:
    """Return the code of a level; 0 for others than the usual ones."""
    return _CODES.get(level.encode(), 0)


def is_usual(level: str) -> bool:
    """True if a level has a code of its own."""
    return code_of(level) > 0


def extend_logs(database: sqlite3.Connection, lines: Lines) -> int:
    """Index up to `CHUNK` more log lines; return how many are still to be indexed. Raises OSError, Damaged."""
    known = lines.known
    have = indexed(database, _LOGS, lines)
    if have is None:
        forget(database, _LOGS)
        database.execute("DELETE FROM logs")
    position = known.first if have is None else have.lines
    end = known.lines - known.lines % LINES_PER_MARK
    stop = min(end, position - position % CHUNK + CHUNK)
    if position >= stop:
        return 0
    data = lines.read(position, stop)
    offset = known.marks[known.mark_before(position)[0]]
    found = list(_LEVEL.finditer(data))
    if len(found) != stop - position:
        raise Damaged(f"{lines.path}: {len(found):,} log entries where {stop - position:,} were written")
    levels = bytes(_CODES.get(match[1], 0) for match in found)
    # Of the lines whose number, counted from the first one in the file, is a multiple.
    begin = -(position - known.first) % APART
    offsets = array("q", [offset + match.start() for match in found[begin::APART]])
    number = position // CHUNK
    before = database.execute("SELECT levels, offsets FROM logs WHERE number = ?", (number,)).fetchone() or (b"", b"")
    row = (number, before[0] + levels, before[1] + offsets.tobytes())
    database.execute("REPLACE INTO logs VALUES (?, ?, ?)", row)
    note(database, _LOGS, lines, stop, has_step=False, has_epoch=False)
    return end - stop


def load_logs(database: sqlite3.Connection, lines: Lines, known: LogIndex | None = None) -> LogIndex | None:
    """Return what is indexed of the log lines, `known` with what came since; None if that is nothing."""
    have = indexed(database, _LOGS, lines)
    if have is None:
        return None
    if known is not None and known.first == have.first and known.end == have.lines:
        return known
    levels, offsets = bytearray(), array("q")
    for some_levels, some_offsets in database.execute("SELECT levels, offsets FROM logs ORDER BY number"):
        levels += some_levels
        offsets.frombytes(some_offsets)
    if len(levels) != have.lines - have.first:
        return None
    return LogIndex(have.first, bytes(levels), offsets)


def _end_of(lines: Lines, number: int) -> int:
    """Return the offset behind the line before `number`, which is a multiple of a thousand or the last one."""
    known = lines.known
    return known.marks[known.mark_before(number)[0]] if number < known.lines else known.size
