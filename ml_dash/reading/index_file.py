"""The SQLite file in which an index of facts keeps its rows for the next process.

It is only a copy: one that is damaged, of another version or held by another process is done without.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgspec

from ..core.state import FOLD_VERSION
from .facts import FACTS_VERSION, Facts

log = logging.getLogger("ml_dash")

_WAIT_S: Final = 1.0
_read_facts: Final = msgspec.msgpack.Decoder(Facts)
_TABLE: Final = """CREATE TABLE IF NOT EXISTS
  facts(key TEXT PRIMARY KEY, version BLOB, head BLOB, params BLOB, metrics BLOB, crc INTEGER)"""


class IndexFile:
    """The rows of an index in an SQLite file, for the next process."""

    _VERSION: Final = f"1 {FACTS_VERSION} {FOLD_VERSION}"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._link: sqlite3.Connection | None = None
        try:
            self._link = self._open()
        except (sqlite3.Error, OSError) as error:
            self._broken(error)

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        link = sqlite3.connect(self._path, timeout=_WAIT_S, check_same_thread=False, isolation_level=None)
        try:
            link.execute("PRAGMA journal_mode=WAL")
            # What a power cut takes is made again from the experiments.
            link.execute("PRAGMA synchronous=OFF")
            link.execute("BEGIN IMMEDIATE")
            link.execute("CREATE TABLE IF NOT EXISTS about(version TEXT)")
            if link.execute("SELECT version FROM about").fetchall() != [(self._VERSION,)]:
                link.execute("DELETE FROM about")
                link.execute("DROP TABLE IF EXISTS facts")
                link.execute("INSERT INTO about VALUES(?)", (self._VERSION,))
            link.execute(_TABLE)
            link.execute("COMMIT")
        except BaseException:
            link.close()
            raise
        return link

    def _broken(self, error: Exception) -> None:
        """Go on without the file. One that is damaged is removed, so that the next process makes a new one."""
        self.close()
        log.info("ml-dash: the index %s is not used: %s", self._path, error)
        if not isinstance(error, sqlite3.OperationalError | OSError):
            for end in ("", "-wal", "-shm"):
                with contextlib.suppress(OSError):
                    self._path.with_name(self._path.name + end).unlink()

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def rows(self) -> Iterable[tuple[str, bytes, Facts, bytes, bytes]]:
        """Return all rows that can be read."""
        if self._link is None:
            return []
        try:
            rows = self._link.execute("SELECT key, version, head, params, metrics, crc FROM facts").fetchall()
            return [_checked(row) for row in rows]
        except (sqlite3.Error, msgspec.MsgspecError, ValueError, TypeError) as error:
            self._broken(error)
            return []

    def write(self, rows: Sequence[tuple[str, bytes, bytes, bytes, bytes]]) -> None:
        """Replace rows: (key, version, facts without parameters and metrics, these two)."""
        self._change("INSERT OR REPLACE INTO facts VALUES(?, ?, ?, ?, ?, ?)", [(*row, _crc(*row[1:])) for row in rows])

    def remove(self, keys: Sequence[str]) -> None:
        """Remove rows."""
        self._change("DELETE FROM facts WHERE key=?", [(key,) for key in keys])

    def _change(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if self._link is None:
            return
        try:
            self._link.execute("BEGIN IMMEDIATE")
            self._link.executemany(statement, rows)
            self._link.execute("COMMIT")
        except sqlite3.Error as error:
            self._broken(error)


def _crc(*parts: bytes) -> int:
    return crc32(b"".join(parts))


def _checked(row: tuple[Any, ...]) -> tuple[str, bytes, Facts, bytes, bytes]:
    """Return a row with its facts decoded. Raises ValueError for one that was changed: SQLite has no checksums."""
    key, version, head, params, metrics, crc = row
    if _crc(version, head, params, metrics) != crc:
        raise ValueError(f"the row of {key!r} is damaged")
    return key, version, _read_facts.decode(head), params, metrics
