"""Files of the cache: SQLite databases that may be deleted at any time, and are made anew if they are damaged.

Nothing here is synced. A process that is killed leaves a database as it was before its last transaction; what a power
cut leaves may be damaged, and is then deleted by the next who opens it. Several processes may use one at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

KEPT_S: Final = 60 * 86_400
"""Seconds after which a cache file that nobody has used is removed."""

# Seconds to wait for another process that is writing.
_WAIT_S: Final = 5.0
# A file is marked as used once in so many seconds.
_USED_EVERY_S: Final = 86_400


def cache_file(folder: Path, kind: str, path: Path) -> Path:
    """Return the cache file of one kind for what lies at a path."""
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:24]
    return folder / kind / name[:2] / f"{name}.sqlite"


def sweep(folder: Path, now_s: float) -> None:
    """Remove cache files that nobody has used for `KEPT_S`: what they were made of may be gone."""
    for path in folder.glob("*/*/*"):
        with contextlib.suppress(OSError):
            if now_s - path.stat().st_mtime > KEPT_S:
                path.unlink()


def mark_used(path: Path) -> None:
    """Let the time of a file say that it is used: reading a database does not change it."""
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > _USED_EVERY_S:
            os.utime(path)


@contextmanager
def database(path: Path, schema: str, version: int) -> Iterator[sqlite3.Connection]:
    """Give a connection to a cache database with these tables; begun anew if it is of another version, or damaged.

    The block's changes are committed at its end, and dropped if it raises. Raises OSError or sqlite3.Error where the
    disk refuses.
    """
    connection = _opened(path, schema, version)
    mark_used(path)
    try:
        with connection:
            yield connection
    except sqlite3.DatabaseError as error:
        if not isinstance(error, sqlite3.OperationalError):
            _remove(path)
        raise
    finally:
        connection.close()


def _opened(path: Path, schema: str, version: int) -> sqlite3.Connection:
    try:
        return _connected(path, schema, version)
    except sqlite3.DatabaseError as error:
        # "Locked", "disk full" and the like are of this subclass: another file would fare no better.
        if isinstance(error, sqlite3.OperationalError) and path.exists() and path.stat().st_size:
            raise
    _remove(path)
    return _connected(path, schema, version)


def _connected(path: Path, schema: str, version: int) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=_WAIT_S, check_same_thread=False)
    try:
        connection.execute("PRAGMA synchronous = OFF")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found != version:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    connection.execute(f'DROP TABLE "{name}"')
                for statement in schema.split(";"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version}")
    except BaseException:
        connection.close()
        raise
    return connection


def _remove(path: Path) -> None:
    for name in (path, path.with_name(path.name + "-journal")):
        with contextlib.suppress(FileNotFoundError):
            name.unlink()
