"""What a disk may hold after a power cut: built from the record of every write, sync and change of a folder.

The model is POSIX and nothing more: a file's content is safe once the file was synced, a name once its folder was;
what was not synced may be there, be missing, be torn or be zeros, in any combination. A failed sync makes nothing safe,
and what it did not write is clean for the kernel: a later sync that succeeds does not write it either (FAULTS C4).
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.faults import shim
from tests.faults.shim import Operation

DAMAGES: Final = (
    "unsynced gone",
    "nothing gone",
    "zeros",
    "torn at 512",
    "torn at 4096",
    "pages at random",
    "sectors at random",
    "cut anywhere",
)
PREFIX_KEPT: Final = frozenset((0, 1, 3, 4, 7))
"""Damages after which a file's content is a beginning of what was written."""


@dataclass
class File:
    """A file: its safe content, and writes since."""

    safe: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    doomed: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        """Everything pending is safe."""
        for offset, data in self.pending:
            _apply(self.safe, offset, data)
        self.pending = []

    def fail_sync(self) -> None:
        """What was pending never becomes safe; it stays in memory until the power goes."""
        self.doomed += self.pending
        self.pending = []


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


@dataclass
class Folder:
    """A folder: its safe entries, and changes since as (name, what is there now or None)."""

    safe: dict[str, File | Folder] = field(default_factory=dict)
    now: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[list[tuple[str, File | Folder | None]]] = field(default_factory=list)

    def change(self, *entries: tuple[str, File | Folder | None]) -> None:
        """Entries appear or go, all at once."""
        self.pending.append(list(entries))
        _enter(self.now, entries)

    def sync(self) -> None:
        """Everything pending is safe."""
        for entries in self.pending:
            _enter(self.safe, entries)
        self.pending = []


def _enter(content: dict[str, File | Folder], entries: Iterable[tuple[str, File | Folder | None]]) -> None:
    for name, what in entries:
        if what is None:
            content.pop(name, None)
        else:
            content[name] = what


class Disk:
    """The model, fed with operations."""

    def __init__(self, root: Path, *folders: str) -> None:
        """`folders` were there, and safe, before."""
        self.root = root
        self.top = Folder()
        for name in folders:
            self.top.change((name, Folder()))
        self.top.sync()
        self.marks: list[str] = []
        self._open: dict[int, File] = {}

    def feed(self, operation: Operation) -> None:
        """Take one operation."""
        kind = operation.kind
        if kind == shim.MARK:
            self.marks.append(operation.data.decode())
        elif kind in (shim.WRITE, shim.TRUNCATE):
            file = self._open.setdefault(operation.inode, File())
            file.pending.append((operation.offset, operation.data if kind == shim.WRITE else None))
        elif kind in (shim.SYNC, shim.SYNC_FAILED):
            self._sync(operation)
        elif kind == shim.CREATE:
            self._open[operation.inode] = made = File()
            self._parent(operation.path).change((_name(operation.path), made))
        elif kind == shim.MKDIR:
            self._parent(operation.path).change((_name(operation.path), Folder()))
        elif kind in (shim.UNLINK, shim.RMDIR):
            self._parent(operation.path).change((_name(operation.path), None))
        elif kind == shim.LINK:
            self._parent(operation.path2).change((_name(operation.path2), self._find(operation.path)))
        elif kind == shim.RENAME:
            self._rename(operation.path, operation.path2)

    def _rename(self, old: str, new: str) -> None:
        moved, source, target = self._find(old), self._parent(old), self._parent(new)
        if source is target:
            source.change((_name(new), moved), (_name(old), None))
        else:
            target.change((_name(new), moved))
            source.change((_name(old), None))

    def _sync(self, operation: Operation) -> None:
        found = self._open.get(operation.inode)
        folder = self._folder_at(operation.path)
        if folder is not None:
            if operation.kind == shim.SYNC:
                folder.sync()
        elif found is not None:
            if operation.kind == shim.SYNC:
                found.sync()
            else:
                found.fail_sync()

    def _parts(self, path: str) -> tuple[str, ...]:
        return Path(path).relative_to(self.root).parts

    def _folder_at(self, path: str) -> Folder | None:
        here: File | Folder = self.top
        for part in self._parts(path):
            if not isinstance(here, Folder) or part not in here.now:
                return None
            here = here.now[part]
        return here if isinstance(here, Folder) else None

    def _parent(self, path: str) -> Folder:
        found = self._folder_at(str(Path(path).parent))
        assert found is not None, f"{path} was never made"
        return found

    def _find(self, path: str) -> File | Folder:
        return self._parent(path).now[_name(path)]

    def cut(self, target: Path, damage: int, rng: random.Random) -> None:
        """Put what may be left into `target`."""
        # Changes of folders are kept as far as the same coin says for all, so that journaling file systems are met too.
        names = {0: 0.0, 1: 1.0}.get(damage, rng.choice((0.0, 1.0, rng.random())))
        _put(self.top, target, damage, names, rng)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _put(folder: Folder, target: Path, damage: int, names: float, rng: random.Random) -> None:
    target.mkdir(parents=True, exist_ok=True)
    content = dict(folder.safe)
    kept = len(folder.pending) if names == 1 else 0 if names == 0 else rng.randrange(len(folder.pending) + 1)
    for entries in folder.pending[:kept]:
        _enter(content, entries)
    for name, what in content.items():
        if isinstance(what, Folder):
            _put(what, target / name, damage, names, rng)
        else:
            (target / name).write_bytes(_content(what, damage, rng))


def _content(file: File, damage: int, rng: random.Random) -> bytes:
    content = bytearray(file.safe)
    # What a failed sync left in memory may have been written by it all the same.
    doomed = file.doomed if damage == 1 or (damage != 0 and rng.random() < 0.3) else []
    for offset, data in doomed:
        _apply(content, offset, data)
    safe = bytes(content)
    if damage == 0:
        return safe
    for offset, data in file.pending:
        _apply(content, offset, data)
    whole = bytes(content)
    if damage == 1:
        return whole
    if damage == 2:
        return safe + bytes(max(0, len(whole) - len(safe)))
    if damage in (3, 4, 7):
        unit = {3: 512, 4: 4096, 7: 1}[damage]
        cut = rng.randrange(len(safe), len(whole) + 1) if len(whole) > len(safe) else len(whole)
        return whole[: max(len(safe), cut - cut % unit)] if len(whole) >= len(safe) else whole
    unit = 4096 if damage == 5 else 512
    mixed = bytearray()
    for start in range(0, max(len(safe), len(whole)), unit):
        old = safe[start : start + unit]
        new = whole[start : start + unit]
        mixed += new if rng.random() < 0.5 else old + bytes(max(0, len(new) - len(old)))
    return bytes(mixed)
