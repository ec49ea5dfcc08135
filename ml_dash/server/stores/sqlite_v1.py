"""The first layout of the SQLite file: rows of experiments, stretches and blocks in tables of their own.

A file of that layout is not converted at the start, which could take hours. Its tables are renamed, its experiments get
heads that say that they have to be folded anew, and `refold` brings one after the other into pages, from the raw bytes
and the arrivals; until then such an experiment answers 503. What is folded is not read at all.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from . import OlderSegment

VERSION: Final = 1
_CARRIED: Final = ("experiments", "journals", "segments", "stretches", "arrivals")
_DROPPED: Final = ("blocks", "settings")
_KEPT: Final = ("blobs", "tokens", "listed")


class _Connected(Protocol):
    connection: sqlite3.Connection


_Opened = Callable[[], AbstractContextManager[_Connected]]


@dataclass(frozen=True)
class OlderExperiment:
    """`Older` in the renamed tables of this layout."""

    journals: tuple[tuple[str, str, str, bool], ...]
    segments: tuple[OlderSegment, ...]
    arrivals: tuple[tuple[int, int, str, int, int, str], ...]
    removed_writers: tuple[str, ...]
    _key: tuple[str, str]
    _read: _Opened
    _write: _Opened

    def bytes_of(self, segment: str, start: int) -> Iterator[bytes]:
        """Yield the raw bytes of a segment from an offset on, stretch by stretch."""
        sql = "SELECT content FROM old_stretches WHERE ns=? AND segment=? AND start>=? ORDER BY start LIMIT 1"
        while True:
            with self._read() as view:
                row = view.connection.execute(sql, (self._key[0], segment, start)).fetchone()
            if row is None:
                return
            yield row[0]
            start += len(row[0])

    def drop(self) -> None:
        """Delete what this layout holds of the experiment, and its tables with the last one."""
        ns, experiment = self._key
        with self._write() as tx:
            run = tx.connection.execute
            for segment in self.segments:
                run("DELETE FROM old_stretches WHERE ns=? AND segment=?", (ns, segment.id))
            for table in ("old_segments", "old_arrivals", "old_journals"):
                run(f"DELETE FROM {table} WHERE ns=? AND experiment=?", (ns, experiment))
            run("DELETE FROM old_experiments WHERE ns=? AND id=?", (ns, experiment))
            if run("SELECT 1 FROM old_experiments LIMIT 1").fetchone() is None:
                for name in _CARRIED:
                    run(f"DROP TABLE old_{name}")


def begin(connection: sqlite3.Connection, tables: str, version: int) -> None:
    """Turn a file of this layout into one of the next, whose tables are given, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for name in _DROPPED:
            connection.execute(f"DROP TABLE {name}")
        for name in _CARRIED:
            connection.execute(f"ALTER TABLE {name} RENAME TO old_{name}")
        for statement in tables.split(";"):
            if statement.strip() and not any(f" {name}(" in statement for name in _KEPT):
                connection.execute(statement)
        connection.execute(
            "INSERT INTO heads SELECT ns, id, project, name, version, 0, x'', status, created, updated, heard, folder, "
            "tags, description, summary, x'', 0, version FROM old_experiments"
        )
        connection.execute("INSERT INTO journals SELECT ns, id, experiment, project, name FROM old_journals")
        connection.execute("INSERT INTO segments SELECT ns, id, journal, file, writer, experiment FROM old_segments")
        connection.execute(f"PRAGMA user_version={version}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def older(
    connection: sqlite3.Connection, read: _Opened, write: _Opened, ns: str, experiment: str
) -> OlderExperiment | None:
    """Return what this layout holds of an experiment; None if it holds nothing, or no longer."""
    run, key = connection.execute, (ns, experiment)
    if run("SELECT 1 FROM sqlite_master WHERE name='old_experiments'").fetchone() is None:
        return None
    found = run("SELECT removed FROM old_experiments WHERE ns=? AND id=?", key).fetchone()
    if found is None:
        return None
    journals = run("SELECT id, project, name, removed FROM old_journals WHERE ns=? AND experiment=? ORDER BY id", key)
    segments = run(
        "SELECT id, journal, file, writer, length, first, crc, damaged FROM old_segments WHERE ns=? AND experiment=? "
        "ORDER BY journal, file",
        key,
    )
    arrivals = run(
        'SELECT n, kind, who, start, "end", segment FROM old_arrivals WHERE ns=? AND experiment=? ORDER BY n', key
    )
    return OlderExperiment(
        tuple((row[0], row[1], row[2], bool(row[3])) for row in journals),
        tuple(map(_segment, segments)),
        tuple(arrivals),
        tuple(json.loads(found[0])),
        key,
        read,
        write,
    )


def _segment(row: tuple[Any, ...]) -> OlderSegment:
    values: Any = (*row[:7], tuple((low, high) for low, high in json.loads(row[7])))
    return OlderSegment(*values)
