"""The places of live files under `files/`, computed for all of them or kept as files come and go."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from .names import clash_key, file_path
from .records import live_files
from .state import BEFORE_ALL, File, State


class Shown:
    """Where each live file is shown. One that clashes with an older one is shown as `<name>%<id>`: in its own folder,
    or, where a file stands in the place of that, at the top.
    """

    def __init__(self, state: State) -> None:
        self.paths: dict[str, File] = {}
        self._path_of: dict[str, str] = {}
        # What is taken, as a file system without case sees it: by files, and by their folders (with how many files).
        self._taken: set[str] = set()
        self._folders: dict[str, int] = {}
        # What files that are not shown where they belong had to make room for.
        self._in_the_way: set[str] = set()
        self._moved: set[str] = set()
        # The places of live files, and the folders of these (with how many files).
        self._places: set[str] = set()
        self._above: dict[str, int] = {}
        self._last = BEFORE_ALL
        for file in live_files(state):
            self._add(file)

    def follow(self, state: State, touched: Iterable[str]) -> set[str]:
        """Note what became of the files with these ids; the paths at which something else may be shown now."""
        files = sorted({identity: state.files[identity] for identity in touched}.values(), key=attrgetter("stamp"))
        changed: set[str] = set()
        for file in files:
            path = self._path_of.get(file.id)
            if path is not None and not file.live:
                if not self._remove(file, path):
                    return self._anew(state)
                changed.add(path)
        for file in files:
            if file.live and file.id not in self._path_of:
                if file.stamp < self._last and self._clashes(clash_key(file_path(file.prefix, file.filename))):
                    # Who is older keeps the place.
                    return self._anew(state)
                changed.add(self._add(file))
        return changed

    def is_free(self, place: str) -> bool:
        """Would a file there be no folder of a live one, and in none that is a file?"""
        return place not in self._above and self._places.isdisjoint(_parents(place))

    def _anew(self, state: State) -> set[str]:
        before = self.paths.keys()
        self.__init__(state)  # type: ignore[misc]  # begin again
        return {*before, *self.paths}

    def _clashes(self, key: str) -> bool:
        return key in self._taken or key in self._folders or not self._taken.isdisjoint(_parents(key))

    def _add(self, file: File) -> str:
        """Show a file that came after all those that it clashes with."""
        path = file_path(file.prefix, file.filename)
        key = clash_key(path)
        parents = _parents(key)
        if in_the_way := self._taken.intersection(parents):
            path, parents = f"{file_path('', file.filename)}%{file.id}", []
        elif key in self._taken or key in self._folders:
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
        """Show a file no more; False if others may take the place that it leaves."""
        key = clash_key(path)
        parents = _parents(key)
        if file.id in self._moved or not self._in_the_way.isdisjoint((key, *parents)):
            return False
        del self.paths[path], self._path_of[file.id]
        self._taken.remove(key)
        self._places.remove(file.place)
        _discount(self._folders, parents)
        _discount(self._above, _parents(file.place))
        return True


def shown_paths(state: State) -> dict[str, File]:
    """Where each live file is shown under `files/`, see `Shown`."""
    return Shown(state).paths


def _count(counts: dict[str, int], keys: list[str]) -> None:
    for key in keys:
        counts[key] = counts.get(key, 0) + 1


def _discount(counts: dict[str, int], keys: list[str]) -> None:
    for key in keys:
        counts[key] -= 1
        if not counts[key]:
            del counts[key]


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]
