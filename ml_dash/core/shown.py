"""The places of live files under `files/`, computed for all of them or kept as files come and go.

Added files keep their names, but two files may not have room beside each other: `a` and `a/b`, or `A` and `a`, which
some file systems do not tell apart. Then the older file keeps its name and the newer one gets its id appended,
everywhere the same: the answer depends on the listed files alone, not on the machine or on when they came.

That is easy to compute for all files, oldest first, at a cost of all files. `follow` does it for those that changed. It
may as long as the result is the same, which is when no other file would move:

    a file goes that was in nobody's way           its path becomes free
    a file comes that is newer than all others     it makes room for those that are there
    a file comes late and clashes with none        it takes its path
    anything else                                  all paths are computed again

Each path costs as many look-ups as it has folders.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from .names import clash_key, file_path
from .records import live_files
from .state import BEFORE_ALL, File, State


class Shown:
    """The path at which each listed file is shown.

    One that clashes with an older one is shown as `<name>%<id>`: in its own folder or, if a file is in the place of
    that folder, at the top.
    """

    def __init__(self, state: State) -> None:
        # Path → the file that is shown there; and the id of each file → its path.
        self.paths: dict[str, File] = {}
        self._path_of: dict[str, str] = {}
        # Paths that are taken, as a file system without case sees them: by files, by their folders (→ how many files).
        self._taken: set[str] = set()
        self._folders: dict[str, int] = {}
        # Paths for which other files had to make room, and the ids of the files that did.
        self._in_the_way: set[str] = set()
        self._moved: set[str] = set()
        # The places of listed files, and the folders of these (→ how many files).
        self._places: set[str] = set()
        self._above: dict[str, int] = {}
        # The greatest stamp of the files shown: whoever is newer comes last in any computation.
        self._last = BEFORE_ALL
        for file in live_files(state):
            self._add(file)

    def follow(self, state: State, touched: Iterable[str]) -> set[str]:
        """Update the paths after changes of these files (ids); return the paths that may show something else now."""
        files = sorted({identity: state.files[identity] for identity in touched}.values(), key=attrgetter("stamp"))
        changed: set[str] = set()
        # First those that go: they may leave a path to those that come.
        for file in files:
            path = self._path_of.get(file.id)
            if path is not None and not file.live:
                if not self._remove(file, path):
                    return self._anew(state)
                changed.add(path)
        for file in files:
            if file.live and file.id not in self._path_of:
                if file.stamp < self._last and self._clashes(clash_key(file_path(file.prefix, file.filename))):
                    # The older file keeps the place, so all paths must be computed again.
                    return self._anew(state)
                changed.add(self._add(file))
        return changed

    def is_free(self, place: str) -> bool:
        """True if a file at `place` would be neither a folder of a listed file nor inside one."""
        return place not in self._above and self._places.isdisjoint(_parents(place))

    def _anew(self, state: State) -> set[str]:
        """Compute all paths again; return all that were or are shown."""
        before = self.paths.keys()
        self.__init__(state)  # type: ignore[misc]  # begin again
        return {*before, *self.paths}

    def _clashes(self, key: str) -> bool:
        """True if a path is taken, or is a folder of another one, or lies in a file."""
        return key in self._taken or key in self._folders or not self._taken.isdisjoint(_parents(key))

    def _add(self, file: File) -> str:
        """Show a file that is newer than all those with which it clashes; return its path."""
        path = file_path(file.prefix, file.filename)
        key = clash_key(path)
        parents = _parents(key)
        # A file is where this one needs a folder. No folder can be made there, so it goes to the top.
        if in_the_way := self._taken.intersection(parents):
            path, parents = f"{file_path('', file.filename)}%{file.id}", []
        elif key in self._taken or key in self._folders:
            # The id makes it another path. A `%` in a name is escaped, so no other file has this path for its own.
            in_the_way = {key}
            path = f"{path}%{file.id}"
        if in_the_way:
            self._in_the_way |= in_the_way
            self._moved.add(file.id)
        self.paths[path] = file
        self._path_of[file.id] = path
        self._taken.add(clash_key(path))
        self._places.add(file.place)
        _count(self._folders, parents)
        _count(self._above, _parents(file.place))
        self._last = max(self._last, file.stamp)
        return path

    def _remove(self, file: File, path: str) -> bool:
        """Stop showing a file; False, and nothing done, if other files may move to the path that it leaves."""
        key = clash_key(path)
        parents = _parents(key)
        # If it had to make room, what it leaves is not what it was given; if others made room for it, they may move
        # back.
        if file.id in self._moved or not self._in_the_way.isdisjoint((key, *parents)):
            return False
        del self.paths[path], self._path_of[file.id]
        self._taken.remove(key)
        self._places.remove(file.place)
        _discount(self._folders, parents)
        _discount(self._above, _parents(file.place))
        return True


def shown_paths(state: State) -> dict[str, File]:
    """Return the path of each listed file under `files/` (see `Shown`)."""
    return Shown(state).paths


def _count(counts: dict[str, int], keys: list[str]) -> None:
    """Add one file to each of these folders."""
    for key in keys:
        counts[key] = counts.get(key, 0) + 1


def _discount(counts: dict[str, int], keys: list[str]) -> None:
    """Take one file from each of these folders; forget those in which none is left."""
    for key in keys:
        counts[key] -= 1
        if not counts[key]:
            del counts[key]


def _parents(path: str) -> list[str]:
    """Return the folders above a path, the topmost first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]
