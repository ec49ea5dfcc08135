"""Objects in a folder: one file each, under a path made of its key.

Durable means: the content is synced, then it gets its name by rename, then every folder with a new entry is synced. A
kill before the rename leaves the source, or a temporary file; one after it leaves the object, perhaps not durable,
but nothing was answered yet. So an object is whole or absent.

Several threads may put and delete at once. `delete` removes folders that have become empty, and may take away one
that `put` has just made; so `put` tries again. There is no lock: objects are immutable, and of two that put the same
key either may win.

A key's parts may hold anything that a user calls a file: slashes are what separates parts, and everything else is
escaped, so that no part is `..`, begins with a dot or is longer than a file name may be. `_key` is the inverse of
`_names`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote, unquote

from ...disk.durable import read_at, sync_folder, write_all
from . import Entry, StoreTrouble

Result = TypeVar("Result")

_PIECE_BYTES: Final = 1 << 20
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_SAFE: Final = " !#$&'()+,;=@[]{}~^`"
# A part of a key that is too long for one file name goes on in the folder below: the mark ends the name of the folder.
# An escape is `%` and two hex digits, so no other name ends like this.
_GOES_ON: Final = "%+"
_CONTINUED: Final = "%-"
# Below the 255 bytes that file systems allow, with room for the marks.
_LONGEST: Final = 200  # characters of a file name
# Attempts while other threads remove empty folders.
_TRIES: Final = 20
# Threads that sync: they wait for the disk, which serves many syncs in about the time of one.
_SYNCED_AT_ONCE: Final = 32
# A file that is being copied; a crash may leave it. No part of a key becomes such a name.
_TEMPORARY: Final = ".tmp-"


class DiskObjects:
    """`Objects` in a folder. Parts of keys are escaped, so that none leads out of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)

    def _path(self, key: str) -> Path:
        """Return the path of an object. Raises ValueError for what is not a key."""
        parts = key.split("/")
        if not all(parts):
            raise ValueError(f"{key!r} is not the key of an object")
        return self.folder.joinpath(*(name for part in parts for name in _names(part)))

    def put(self, key: str, path: Path) -> None:
        """Move the file at `path` here; durable on return. Replaces what is there. Raises StoreTrouble."""
        target = self._path(key)

        def place() -> None:
            try:
                # It may have waited for long; whoever looks for objects that no row names must not take it for old.
                os.utime(path)
                # Content first: a name that survives a power cut must not lead to an empty file.
                _sync(path)
                os.replace(path, target)
            except OSError as error:
                # Staging is on another file system: copied beside the target, synced there, and renamed.
                if error.errno != errno.EXDEV:
                    raise
                _copy_file(path, target)
                path.unlink()

        with _trouble():
            self._placed(target, place, source=path)

    def put_contents(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Store many contents, synced in parallel: many syncs at once take the disk little longer than one."""
        placed = [(self._path(key), content) for key, content in items]
        with _trouble():
            folders = set[Path]()
            for target, content in placed:
                temporary = self.folder / (_TEMPORARY + os.urandom(8).hex())
                try:
                    temporary.write_bytes(content)
                    folders |= self._moved(target, temporary)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
            with ThreadPoolExecutor(_SYNCED_AT_ONCE) as threads:
                # Here the names come before the content, which is allowed because nothing names these objects before
                # this call has returned. The results are read so that an error in a thread is raised.
                for _ in threads.map(_sync, [target for target, _ in placed]):
                    pass
                for _ in threads.map(sync_folder, folders):
                    pass

    def put_bytes(self, key: str, content: bytes) -> None:
        """Store a content that is in memory; durable on return. Replaces what is there. Raises StoreTrouble."""
        target = self._path(key)

        def place() -> None:
            _write_file(target, content)

        with _trouble():
            # Only a folder that was taken away is a reason to try again, so anything that stays serves as the source.
            self._placed(target, place, source=self.folder)

    def _moved(self, target: Path, path: Path) -> set[Path]:
        """Move a file to its place; return the folders that got a new entry, to be synced."""
        entries = {target.parent}
        for attempt in range(_TRIES):
            try:
                entries |= _holders_of_new(target.parent, self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.utime(path)
                shutil.move(path, target)
                break
            except (FileNotFoundError, FileExistsError):
                if attempt == _TRIES - 1 or not path.exists():
                    raise
        return entries

    def copy(self, source: str, target: str) -> None:
        """Store the content of `source` under `target` too, as a hard link where that works: objects never change."""
        original, place = self._path(source), self._path(target)

        def link() -> None:
            temporary = place.with_name(_TEMPORARY + os.urandom(8).hex())
            try:
                os.link(original, temporary)
            except FileNotFoundError:
                raise
            except OSError:
                # This file system has no hard links, or the file has too many.
                _copy_file(original, place)
                return
            # Else it would be as old as the other one.
            os.utime(temporary)
            os.replace(temporary, place)
            # If both names are links to the same file, `replace` does nothing and leaves this one.
            temporary.unlink(missing_ok=True)

        with _trouble():
            self._placed(place, link, source=original)

    def _placed(self, target: Path, place: Callable[[], None], source: Path) -> None:
        """Call `place` once the folder of `target` exists, and make all new folder entries durable."""
        entries = {target.parent}
        for attempt in range(_TRIES):
            try:
                # Noted before they are made, so that folders made by a failed attempt are synced as well.
                entries |= _holders_of_new(target.parent, self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                place()
                break
            except (FileNotFoundError, FileExistsError):
                # Another thread removed a folder meanwhile, because it was empty.
                if attempt == _TRIES - 1 or not source.exists():
                    raise
        for folder in entries:
            sync_folder(folder)

    def open(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Return the bytes [start, end) in pieces. Raises FileNotFoundError at the call."""
        path = self._path(key)
        with _trouble():
            return _Pieces(_unless_missing(path, lambda: os.open(path, _FLAGS)), start, end)

    def size(self, key: str) -> int | None:
        """Return the size in bytes; None if it is not there."""
        path = self._path(key)
        with _trouble():
            try:
                return _unless_missing(path, path.stat).st_size
            except FileNotFoundError:
                return None

    def sizes(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the sizes in bytes of those that are here."""
        sizes = ((key, self.size(key)) for key in keys)
        return {key: size for key, size in sizes if size is not None}

    def delete(self, key: str) -> None:
        """Delete an object, and the folders that are empty then."""
        path = self._path(key)
        with _trouble(), contextlib.suppress(FileNotFoundError):
            _unless_missing(path, path.unlink)
        # Else each deleted experiment would leave its folders behind.
        for folder in path.parents:
            if folder == self.folder:
                return
            try:
                folder.rmdir()
            except OSError:
                # Not empty.
                return

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete objects, those that are there. Raises StoreTrouble."""
        for key in keys:
            self.delete(key)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys that begin with `prefix`, in no order."""
        for key, _ in self._files(prefix):
            yield key

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Yield (key, size, time of the last change in ns) of the objects whose keys begin with `prefix`."""
        for key, path in self._files(prefix):
            with _trouble():
                try:
                    found = path.stat()
                except FileNotFoundError:
                    # Deleted since the folder was read.
                    continue
            yield key, found.st_size, found.st_mtime_ns

    def _files(self, prefix: str) -> Iterator[tuple[str, Path]]:
        """Yield (key, path) of the objects whose keys begin with `prefix`."""
        # Whole parts of the prefix are folders; nothing outside of them can fit.
        whole = prefix.rpartition("/")[0]
        for base, _, names in os.walk(self._path(whole) if whole else self.folder):
            above = Path(base).relative_to(self.folder).parts
            for name in names:
                if not name.startswith("."):
                    key = _key((*above, name))
                    if key.startswith(prefix):
                        yield key, Path(base, name)

    def presigned(self, key: str, filename: str, seconds: int) -> str | None:
        """Return None: only this server reaches the folder."""
        return None

    def check(self) -> None:
        """Raise StoreTrouble if the folder cannot be used now."""
        with _trouble():
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(f"{self.folder} cannot be written")


class _Pieces:
    """An open object, read piece by piece.

    A class and not a generator: the file has to be opened at the call, so that a missing one is reported there, and
    closed also if nobody reads a single piece.
    """

    def __init__(self, fd: int, start: int, end: int | None) -> None:
        self._fd = fd
        self._at = start
        self._end = end

    def __iter__(self) -> _Pieces:
        return self

    def __next__(self) -> bytes:
        size = _PIECE_BYTES if self._end is None else min(_PIECE_BYTES, self._end - self._at)
        if self._fd < 0 or size <= 0:
            self.close()
            raise StopIteration
        with _trouble():
            piece = read_at(self._fd, size, self._at)
        if not piece:
            self.close()
            raise StopIteration
        self._at += len(piece)
        return piece

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _names(part: str) -> list[str]:
    """Return the file names, one below the other, that stand for a part of a key."""
    text = quote(part, safe=_SAFE, errors="surrogatepass")
    if text.startswith("."):
        text = "%2E" + text[1:]
    pieces = [text[start : start + _LONGEST] for start in range(0, len(text), _LONGEST)]
    # A cut may split an escape, or leave a piece that begins with a dot: after the mark neither matters.
    first, *rest = [piece + _GOES_ON for piece in pieces[:-1]] + pieces[-1:]
    return [first, *(_CONTINUED + piece for piece in rest)]


def _key(names: tuple[str, ...]) -> str:
    """Return the key of the object whose file has these names below the top."""
    parts: list[str] = []
    going_on = False
    for name in names:
        text = name[len(_CONTINUED) :] if going_on else name
        text, goes_on = (text[: -len(_GOES_ON)], True) if text.endswith(_GOES_ON) else (text, False)
        if going_on:
            parts[-1] += text
        else:
            parts.append(text)
        going_on = goes_on
    return "/".join(unquote(part, errors="surrogatepass") for part in parts)


def _holders_of_new(folder: Path, top: Path) -> set[Path]:
    """Return the folders that get a new entry when `folder`, below `top`, is made."""
    return {path.parent for path in (folder, *folder.parents) if top in path.parents and not path.exists()}


def _sync(path: Path) -> None:
    """Sync the content of a file. Raises OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file, synced, and put it in place by rename; leave nothing after an error."""
    temporary = target.with_name(_TEMPORARY + os.urandom(8).hex())
    try:
        shutil.copyfile(source, temporary)
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _unless_missing(path: Path, do: Callable[[], Result]) -> Result:
    """Return `do()`. Raises FileNotFoundError also if a parent in the path is not a folder."""
    try:
        return do()
    except NotADirectoryError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None


def _write_file(target: Path, content: bytes) -> None:
    """Write a file, synced, and put it in place by rename; leave nothing after an error."""
    temporary = target.with_name(_TEMPORARY + os.urandom(8).hex())
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        try:
            write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _trouble() -> Iterator[None]:
    """Turn errors of the disk into StoreTrouble. FileNotFoundError stays as it is, for it is an answer."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreTrouble(f"the folder of objects refused: {error}", hint="nothing was acknowledged") from error
