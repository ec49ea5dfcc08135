"""The experiments below some paths, found again cheaply: those of stores that appear later as well.

A folder's time changes when something in it appears or goes, so only folders whose time has changed are listed again.
What was found to be an experiment stays one as long as its journal is the same folder. Folders that are none are asked
each time: an experiment's folder is made before its journal.

What is known is kept in a file of the cache, so that the next process need not open ten thousand journals to read their
names. Paths are texts here: to make objects of them takes longer than all else.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from ..core.names import experiment_id
from ..disk.durable import replace_file
from ..disk.lock import Liveness, probe
from ..disk.settings import DEFAULT_LOCAL_PATH
from ..journal.segment import EXPERIMENT, SEGMENTS
from .cached import cache_file, mark_used
from .located import Located, at

log = logging.getLogger("ml_dash")

SCAN_EVERY_S: Final = 1.0
# A folder may change again within the same tick of a file system's clock; some have ticks of two seconds.
_TICK_NS: Final = 2_500_000_000
# Locks and segments of a running experiment that are looked at for every list: it may have been resumed thousands of
# times.
_LOCKS: Final = 64
_SIZES: Final = 256


class Known(NamedTuple):
    """An experiment as it was found: its id by its names, where it is, and which folder its segments are in."""

    id: str
    project: str
    name: str
    folder: str
    journal: str
    device: int
    inode: int


class Found(NamedTuple):
    """An experiment, under the id by which it is asked for, and the path of its journal as `key`."""

    id: str
    key: str
    project: str
    name: str
    folder: str

    @property
    def located(self) -> Located:
        """Where it is."""
        return Located(self.project, self.name, Path(self.folder), Path(self.key))


_read_known: Final = msgspec.msgpack.Decoder(dict[str, Known])
_encode: Final = msgspec.msgpack.Encoder().encode


class Places:
    """The experiments below some paths. Any thread may call. `file` is where what is known is kept.

    Stores in a path, and in the folders in it, are found too, unless `exact`: then what `read.find` finds at each path.
    """

    def __init__(self, paths: Sequence[Path], file: Path | None = None, *, exact: bool = False) -> None:
        self.paths = [Path(path).expanduser().absolute() for path in paths]
        self._exact = exact
        self._file = file
        self._lock = threading.Lock()
        self._scanned = float("-inf")
        # Folder → (its time when it was listed, the folders in it).
        self._listed: dict[str, tuple[int, list[str]]] = {}
        self._known = _kept(file)
        self._saved = set(self._known)
        self._by_id: dict[str, Found] = {}

    def all(self, *, now: bool = False) -> dict[str, Found]:
        """Return the experiments by id; looked for at most once in `SCAN_EVERY_S`, or with `now`."""
        with self._lock:
            if now or time.monotonic() - self._scanned >= SCAN_EVERY_S:
                self._by_id = self._scan()
                self._scanned = time.monotonic()
            return self._by_id

    def kept(self) -> dict[str, Found]:
        """Return the experiments by id as an earlier process knew them; some may be gone, others new."""
        with self._lock:
            return _by_id(self._known.values())

    def get(self, id: str) -> Found | None:
        """Return an experiment; looked for if it is not known, or known and gone."""
        found = self.all().get(id)
        if found is None or not os.path.isdir(f"{found.key}/{SEGMENTS}"):  # noqa: PTH112 - asked at each call
            found = self.all(now=True).get(id)
        return found

    def save(self) -> None:
        """Keep what is known for the next process, if it has changed. A disk that refuses costs that process time."""
        with self._lock:
            known = self._known
            if self._file is None or known.keys() == self._saved:
                return
            self._saved = set(known)
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._file, _encode(known))
        except OSError as error:
            log.info("ml-dash: %s cannot be written: %s", self._file, error)

    def _scan(self) -> dict[str, Found]:
        present: dict[str, Known] = {}
        for path in self.paths:
            below = (one for place in self._places(path) for one in self._below(place))
            present.update(sorted(below, key=lambda one: (one[1].project, one[1].name, one[1].journal)))
        self._known = present
        return _by_id(present.values())

    def _places(self, path: Path) -> Iterator[str]:
        """Yield a path, the store in it, and the stores in folders in it."""
        yield str(path)
        if self._exact:
            return
        yield f"{path}/{DEFAULT_LOCAL_PATH}"
        for child in self._folders(str(path)):
            store = f"{child}/{DEFAULT_LOCAL_PATH}"
            if os.path.isdir(store):  # noqa: PTH112 - see the module
                yield store

    def _below(self, place: str) -> Iterator[tuple[str, Known]]:
        own = self._at(place)
        if own is not None:
            yield place, own
            return
        for child in self._folders(place):
            known = self._at(child)
            if known is not None:
                yield child, known
                continue
            for grandchild in self._folders(child):
                known = self._at(grandchild)
                if known is not None:
                    yield grandchild, known

    def _at(self, path: str) -> Known | None:
        """Return the experiment whose folder this is; None if it is none."""
        known = self._known.get(path)
        if known is not None and _identity(known.journal) == (known.device, known.inode):
            return known
        located = at(Path(path))
        identity = _identity(str(located.journal)) if located is not None else None
        if located is None or identity is None:
            return None
        id = experiment_id(located.project, located.name)
        return Known(id, located.project, located.name, str(located.folder), str(located.journal), *identity)

    def _folders(self, path: str) -> list[str]:
        """Return the folders in a folder, by name; those that begin with a dot are left out."""
        try:
            changed = os.stat(path).st_mtime_ns  # noqa: PTH116 - see the module
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


def places_of(paths: Sequence[Path], cache: Path, *, exact: bool = False) -> Places:
    """Return the places below some paths, with what an earlier process knew of the same ones."""
    absolute = [Path(path).expanduser().absolute() for path in paths]
    kind = "exact" if exact else "places"
    file = cache_file(cache, kind, Path("\n".join(map(str, absolute)))).with_suffix(".msgpack")
    return Places(absolute, file, exact=exact)


def _kept(file: Path | None) -> dict[str, Known]:
    """Return what an earlier process knew; nothing if that cannot be read."""
    if file is not None:
        mark_used(file)
        with suppress(OSError, msgspec.MsgspecError):
            return _read_known.decode(file.read_bytes())
    return {}


def _by_id(present: Iterable[Known]) -> dict[str, Found]:
    """Return experiments by id, in their order; one that is there under two paths once."""
    found: dict[str, Found] = {}
    seen: set[tuple[int, int]] = set()
    for known in present:
        if (known.device, known.inode) not in seen:
            seen.add((known.device, known.inode))
            # Where another store has one of that name, this one is told from it by where it is.
            id = experiment_id(known.journal, "") if known.id in found else known.id
            found[id] = Found(id, known.journal, known.project, known.name, known.folder)
    return found


def _identity(journal: str) -> tuple[int, int] | None:
    """Return what tells a journal from others, under whatever path; None if it is gone."""
    try:
        status = os.stat(f"{journal}/{SEGMENTS}")  # noqa: PTH116 - see the module
    except OSError:
        return None
    return status.st_dev, status.st_ino


def version_of(found: Found, *, running: bool) -> list[Any]:
    """Return what differs once the facts of an experiment may have changed.

    Of one that was `running`, also sizes of segments, and who holds a lock: a process that was killed changes no file.
    """
    journal, folder = found.key, found.folder
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
