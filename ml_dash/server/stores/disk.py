"""Objects in a folder: one file each, under a path made of its key."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from ...durable import sync_folder
from . import StoreTrouble

_PIECE: Final = 1 << 20
_SAFE: Final = " !#$&'()+,;=@[]{}~^`"
_LONGEST: Final = 200


class DiskObjects:
    """The objects seam on a folder. Parts of keys are escaped, so that none leads out of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not key or not all(parts):
            raise ValueError(f"{key!r} is no key of an object")
        return self.folder.joinpath(*map(_part, parts))

    def put(self, key: str, path: Path) -> None:
        """Take the file at `path`, which must be synced; durable on return."""
        target = self._path(key)
        with _trouble():
            made = _make(target.parent, self.folder)
            os.replace(path, target)
            for folder in (target.parent, *made):
                sync_folder(folder)

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes [start, end) in pieces. Raises FileNotFoundError at the call."""
        file = self._path(key).open("rb")
        file.seek(start)
        return _pieces(file, None if end is None else end - start)

    def size(self, key: str) -> int | None:
        """Its size in bytes; None if it is not there."""
        try:
            return self._path(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def copy(self, source: str, target: str) -> None:
        """The same content under another key, as a hard link: objects never change."""
        place = self._path(target)
        with _trouble():
            made = _make(place.parent, self.folder)
            with contextlib.suppress(FileExistsError):
                os.link(self._path(source), place)
            for folder in (place.parent, *made):
                sync_folder(folder)

    def delete(self, key: str) -> None:
        """Remove it, and the folders that are empty then."""
        path = self._path(key)
        with _trouble():
            path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == self.folder:
                return
            try:
                folder.rmdir()
            except OSError:
                # Not empty.
                return

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that begin with `prefix`, in no order."""
        for base, _, names in os.walk(self.folder):
            above = Path(base).relative_to(self.folder).parts
            for name in names:
                key = "/".join(unquote(part) for part in (*above, name))
                if key.startswith(prefix):
                    yield key

    def check(self) -> None:
        """Raises StoreTrouble if the folder cannot be used now."""
        with _trouble():
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(f"{self.folder} cannot be written")


def _part(raw: str) -> str:
    part = quote(raw, safe=_SAFE)
    if part.startswith("."):
        part = "%2E" + part[1:]
    if len(part) > _LONGEST:
        # A key's last part is a file name of up to 255 bytes; escaped it may be longer than a file system takes.
        import hashlib

        part = part[: _LONGEST - 66].rsplit("%", 1)[0] + "%-" + hashlib.sha256(raw.encode()).hexdigest()
    return part


def _make(folder: Path, top: Path) -> list[Path]:
    """Make a folder below `top`; the folders whose entries are new."""
    new = [parent for parent in (folder, *folder.parents) if top in parent.parents and not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return [path.parent for path in new]


def _pieces(file: object, left: int | None) -> Iterator[bytes]:
    from typing import BinaryIO, cast

    reading = cast("BinaryIO", file)
    with reading:
        while left is None or left > 0:
            piece = reading.read(_PIECE if left is None else min(_PIECE, left))
            if not piece:
                return
            if left is not None:
                left -= len(piece)
            yield piece


@contextlib.contextmanager
def _trouble() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreTrouble(f"the folder of objects refused: {error}", hint="nothing was acknowledged") from error
