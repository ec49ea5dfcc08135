"""The experiments below some paths, found again cheaply: those of stores that appear later as well.

A folder's time changes when something in it appears or goes, so only folders whose time has changed are listed again.
What was found to be an experiment stays one until its journal is gone. Folders that are none are asked each time: an
experiment's folder is made before its journal.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..core.names import experiment_id
from ..disk.lock import Liveness, probe
from ..disk.settings import DEFAULT_LOCAL_PATH
from ..journal.segment import EXPERIMENT, SEGMENTS
from .located import Located, at

SCAN_EVERY_S: Final = 1.0
# A folder may change again within the same tick of a file system's clock; some have ticks of two seconds.
_TICK_NS: Final = 2_500_000_000
# Locks and segments of a running experiment that are looked at for every list: it may have been resumed thousands of
# times.
_LOCKS: Final = 64
_SIZES: Final = 256


@dataclass(frozen=True, slots=True)
class Found:
    """An experiment, under the id by which it is asked for, and the path of its journal as `key`."""

    id: str
    key: str
    located: Located


class Places:
    """The experiments below some paths. Any thread may call."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [Path(path).expanduser().absolute() for path in paths]
        self._lock = threading.Lock()
        self._scanned = float("-inf")
        # Folder → (its time when it was listed, the folders in it).
        self._listed: dict[str, tuple[int, list[str]]] = {}
        self._known: dict[str, Located] = {}
        self._identities: dict[str, tuple[int, int]] = {}
        self._by_id: dict[str, Found] = {}

    def all(self, *, now: bool = False) -> dict[str, Found]:
        """Return the experiments by id; looked for at most once in `SCAN_EVERY_S`, or with `now`."""
        with self._lock:
            if now or time.monotonic() - self._scanned >= SCAN_EVERY_S:
                self._by_id = self._scan()
                self._scanned = time.monotonic()
            return self._by_id

    def get(self, id: str) -> Found | None:
        """Return an experiment; looked for if it is not known, or known and gone."""
        found = self.all().get(id)
        if found is None or not os.path.isdir(f"{found.key}/{SEGMENTS}"):  # noqa: PTH112 - asked at each call
            found = self.all(now=True).get(id)
        return found

    def _scan(self) -> dict[str, Found]:
        found: dict[str, Found] = {}
        seen: set[tuple[int, int]] = set()
        for path in self.paths:
            mine = []
            for place in self._places(path):
                for located in self._below(str(place)):
                    identity = self._identity(located)
                    if identity is not None and identity not in seen:
                        seen.add(identity)
                        mine.append(located)
            mine.sort(key=lambda located: (located.project, located.name, str(located.journal)))
            for located in mine:
                key = str(located.journal)
                id = experiment_id(located.project, located.name)
                # Another store has one of that name, so this one is told from it by where it is.
                id = experiment_id(key, "") if id in found else id
                found[id] = Found(id, key, located)
        return found

    def _places(self, path: Path) -> Iterator[Path]:
        """Yield a path, the store in it, and the stores in folders in it."""
        yield path
        yield path / DEFAULT_LOCAL_PATH
        for child in self._folders(str(path)):
            store = Path(child, DEFAULT_LOCAL_PATH)
            if store.is_dir():
                yield store

    def _below(self, place: str) -> Iterator[Located]:
        own = self._at(place)
        if own is not None:
            yield own
            return
        for child in self._folders(place):
            located = self._at(child)
            if located is not None:
                yield located
                continue
            for grandchild in self._folders(child):
                located = self._at(grandchild)
                if located is not None:
                    yield located

    def _at(self, path: str) -> Located | None:
        known = self._known.get(path)
        if known is None:
            known = at(Path(path))
            if known is not None:
                self._known[path] = known
        return known

    def _folders(self, path: str) -> list[str]:
        """Return the folders in a folder, by name; those that begin with a dot are left out."""
        try:
            changed = os.stat(path).st_mtime_ns  # noqa: PTH116 - asked of every folder at each scan
            listed = self._listed.get(path)
            if listed is not None and listed[0] == changed:
                return listed[1]
            with os.scandir(path) as entries:
                found = sorted(entry.path for entry in entries if entry.name[0] != "." and entry.is_dir())
        except OSError:
            return []
        if time.time_ns() - changed > _TICK_NS:
            self._listed[path] = changed, found
        return found

    def _identity(self, located: Located) -> tuple[int, int] | None:
        """Return what tells a journal from others, under whatever path; None if it is gone."""
        key = str(located.journal)
        try:
            status = os.stat(f"{key}/{SEGMENTS}")  # noqa: PTH116 - as above
        except OSError:
            self._known = {path: other for path, other in self._known.items() if other.journal != located.journal}
            return None
        return status.st_dev, status.st_ino


def version_of(found: Found, *, running: bool) -> list[Any]:
    """Return what differs once the facts of an experiment may have changed.

    Of one that was `running`, also sizes of segments, and who holds a lock: a process that was killed changes no file.
    """
    journal, folder = found.key, found.located.folder
    version: list[Any] = [*_times(f"{folder}/{EXPERIMENT}"), *_times(f"{journal}/{SEGMENTS}")[:1]]
    if running:
        version.append(_segments(f"{journal}/{SEGMENTS}"))
    return version


def _times(path: str) -> list[int]:
    try:
        status = os.stat(path)  # noqa: PTH116 - asked of every experiment at each listing
    except OSError:
        return [0, 0]
    return [status.st_mtime_ns, status.st_size if stat.S_ISREG(status.st_mode) else 0]


def _segments(folder: str) -> list[Any]:
    """Return the sizes of segments, and which of the newest locks are held."""
    try:
        with os.scandir(folder) as entries:
            # The name of a lock begins with the time when it was made, as that of a segment does.
            names = sorted(entry.name for entry in entries)
        locks = [name for name in names if name.endswith(".lock")][-_LOCKS:]
        sizes = [os.stat(f"{folder}/{name}").st_size for name in names[-_SIZES:] if not name.endswith(".lock")]  # noqa: PTH116 - as above
    except OSError:
        return []
    return [len(names), *sizes, *(probe(Path(folder, name)) is Liveness.ALIVE for name in locks)]
