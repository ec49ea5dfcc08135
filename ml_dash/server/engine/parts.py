"""The folded state of an experiment in parts: each metric, file, writer and parameter by itself, loaded when touched.

The fold works on a `State` whose mappings read from the experiment's tree. A batch of events decodes the parts that it
touches, and writes those whose encoding has changed; so its cost depends on what it changes, and not on how much the
experiment has. What is not in a mapping (counts, status, registers of the experiment) is one more part, which the head
holds.

Nobody marks parts as changed: the fold changes them in place, and after a batch every part that was touched is encoded
and compared with what is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

from ...core.state import File, Metric, Register, StampTuple, State, WriterState
from .tree import Tree

_T = TypeVar("_T")
_encode: Final = msgspec.msgpack.Encoder().encode
# Decoded parts of one kind that are kept from batch to batch.
_KEPT: Final = 2_000
# Behind every part of a kind: separators are NUL, and no name has a character below it.
_BEHIND: Final = "\x01"


class Parts(MutableMapping[str, _T], Generic[_T]):
    """The parts of one kind, by name; iterated in the order of their names.

    `count` parts are stored or were added since. Parts that are read are taken for changed until `flush`.
    """

    __slots__ = ("_decode", "_here", "_kind", "_touched", "_tree", "count", "only_read")

    def __init__(self, tree: Tree, kind: str, decode: msgspec.msgpack.Decoder[Any], count: int) -> None:
        self.only_read = False
        self._tree = tree
        self._kind = kind
        self._decode = decode.decode
        self.count = count
        self._here: dict[str, _T] = {}
        # Names since the last flush, in order; a set that remembers it.
        self._touched: dict[str, None] = {}

    @property
    def touched(self) -> int:
        """The number of parts that were read or changed since the last flush."""
        return len(self._touched)

    @property
    def kept(self) -> int:
        """The number of parts in memory."""
        return len(self._here)

    def _key(self, name: str) -> str:
        return f"{self._kind}\x00{name}"

    def _find(self, name: str) -> _T | None:
        found = self._here.get(name)
        if found is None and name not in self._touched:
            stored = self._tree.get(self._key(name))
            if stored is None:
                return None
            found = self._here[name] = self._decoded(stored)
        if found is not None:
            self._touched[name] = None
        return found

    def _decoded(self, stored: bytes) -> _T:
        return cast("_T", self._decode(stored))

    def _encoded(self, name: str, value: _T) -> bytes:
        return _encode(value)

    def __getitem__(self, name: str) -> _T:
        found = self._find(name)
        if found is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def __setitem__(self, name: str, value: _T) -> None:
        if self._find(name) is None:
            self.count += 1
        self._here[name] = value
        self._touched[name] = None

    def __delitem__(self, name: str) -> None:
        if self._find(name) is None:
            raise KeyError(name)
        del self._here[name]
        self._touched[name] = None
        self.count -= 1

    def __iter__(self) -> Iterator[str]:
        added = sorted(name for name in self._touched if name in self._here)
        start = self._kind + "\x00"
        place = 0
        for key, _ in self._tree.items(start, self._kind + _BEHIND):
            name = key[len(start) :]
            while place < len(added) and added[place] < name:
                yield added[place]
                place += 1
            if place < len(added) and added[place] == name:
                place += 1
            if name in self._touched and name not in self._here:
                # Deleted, and not flushed yet.
                continue
            yield name
        yield from added[place:]

    def __len__(self) -> int:
        return self.count

    def values(self) -> Any:
        """Return the parts; one at a time for those who only read, so that memory stays bounded."""
        return (part for _, part in self.stored()) if self.only_read else super().values()

    def items(self) -> Any:
        """Return (name, part) of all; one at a time for those who only read."""
        return self.stored() if self.only_read else super().items()

    def stored(self) -> Iterator[tuple[str, _T]]:
        """Yield (name, part) as they are stored, without keeping them."""
        start = self._kind + "\x00"
        for key, content in self._tree.items(start, self._kind + _BEHIND):
            yield key[len(start) :], self._decoded(content)

    def flush(self) -> None:
        """Put what has changed into the tree."""
        for name in self._touched:
            value, key = self._here.get(name), self._key(name)
            if value is None:
                self._tree.delete(key)
            else:
                content = self._encoded(name, value)
                if content != self._tree.get(key):
                    self._tree.put(key, content)
        if len(self._here) > _KEPT:
            kept = list(self._touched)[-_KEPT:]
            self._here = {name: self._here[name] for name in kept if name in self._here}
        self._touched = {}


class _Ordered(msgspec.Struct, array_like=True):
    """A part that has a place among the others: parameters are shown in the order in which they were first set."""

    place: int
    register: Register


class Parameters(Parts[Register]):
    """The parameters, iterated in the order in which they were first set."""

    __slots__ = ("_next", "_places")

    def __init__(self, tree: Tree, count: int, first_free: int) -> None:
        super().__init__(tree, "parameter", msgspec.msgpack.Decoder(_Ordered), count)
        self._next = first_free
        self._places: dict[str, int] = {}

    @property
    def first_free(self) -> int:
        """The place of the next new parameter."""
        return self._next

    def _find(self, name: str) -> Register | None:
        found = self._here.get(name)
        if found is None and name not in self._touched:
            stored = self._tree.get(self._key(name))
            if stored is None:
                return None
            ordered = self._decode(stored)
            found = self._here[name] = ordered.register
            self._places[name] = ordered.place
        if found is not None:
            self._touched[name] = None
        return found

    def __setitem__(self, name: str, value: Register) -> None:
        super().__setitem__(name, value)
        if name not in self._places:
            self._places[name] = self._next
            self._next += 1

    def _decoded(self, stored: bytes) -> Register:
        return cast("Register", self._decode(stored).register)

    def _encoded(self, name: str, value: Register) -> bytes:
        return _encode(_Ordered(self._places[name], value))

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self._in_order()])

    def stored(self) -> Iterator[tuple[str, Register]]:
        """Yield (name, register) in order."""
        start = "parameter\x00"
        items = self._tree.items(start, "parameter" + _BEHIND)
        found = [(key[len(start) :], self._decode(content)) for key, content in items]
        for name, ordered in sorted(found, key=lambda item: item[1].place):
            yield name, ordered.register

    def _in_order(self) -> list[tuple[str, int]]:
        places = {name: self._places[name] for name in self._touched if name in self._here}
        for key, content in self._tree.items("parameter\x00", "parameter" + _BEHIND):
            places.setdefault(key[len("parameter\x00") :], self._decode(content).place)
        return sorted(places.items(), key=lambda item: item[1])

    def flush(self) -> None:
        """Put what has changed into the tree."""
        super().flush()
        self._places = {name: place for name, place in self._places.items() if name in self._here}


_Early = list[tuple[int, StampTuple, dict[str, Any]]]
_metrics: Final = msgspec.msgpack.Decoder(Metric)
_files: Final = msgspec.msgpack.Decoder(File)
_writers: Final = msgspec.msgpack.Decoder(WriterState)
_places: Final = msgspec.msgpack.Decoder(list[str])
_early: Final = msgspec.msgpack.Decoder(_Early)
_KINDS: Final = ("metric", "file", "writer", "place", "early", "parameter")


class _Core(msgspec.Struct, array_like=True):
    """What the head holds of a state: all but the parts, and how many parts of each kind there are."""

    state: State
    counts: dict[str, int]
    first_free: int = 0


_core: Final = msgspec.msgpack.Decoder(_Core)


def open_state(tree: Tree, stored: bytes, *, only_read: bool) -> State:
    """Return the state whose core is `stored` and whose parts are in the tree; an empty one if nothing is stored."""
    core = _core.decode(stored) if stored else _Core(State(), {})
    state, counts = core.state, core.counts
    # Mappings that the fold cannot tell from dicts, except that they take less memory.
    lazy: Any = state
    lazy.metrics = Parts[Metric](tree, "metric", _metrics, counts.get("metric", 0))
    lazy.files = Parts[File](tree, "file", _files, counts.get("file", 0))
    lazy.writers = Parts[WriterState](tree, "writer", _writers, counts.get("writer", 0))
    lazy.places = Parts[list[str]](tree, "place", _places, counts.get("place", 0))
    lazy.early = Parts[_Early](tree, "early", _early, counts.get("early", 0))
    lazy.parameters = Parameters(tree, counts.get("parameter", 0), core.first_free)
    for part in _parts(state).values():
        part.only_read = only_read
    return state


def close_state(state: State) -> bytes:
    """Put the parts that have changed into the tree, and return the core to store in the head."""
    parts = _parts(state)
    for part in parts.values():
        part.flush()
    bare = replace(state, metrics={}, files={}, writers={}, places={}, early={}, parameters={})
    counts = {kind: len(part) for kind, part in parts.items()}
    return _encode(_Core(bare, counts, cast("Parameters", parts["parameter"]).first_free))


def touched_parts(state: State) -> int:
    """Return how many parts were touched since the state was opened or closed."""
    return sum(part.touched for part in _parts(state).values())


def kept_parts(state: State) -> int:
    """Return how many parts are in memory."""
    return sum(part.kept for part in _parts(state).values())


def drop_parts(tree: Tree) -> None:
    """Delete all parts of the state in a tree."""
    for kind in _KINDS:
        tree.drop(kind + "\x00", kind + _BEHIND)


def whole_state(state: State) -> State:
    """Return a state with all parts in memory, as it is encoded elsewhere."""
    plain: dict[str, Any] = {
        field: dict(part.stored()) for field, part in zip(_FIELDS, _parts(state).values(), strict=True)
    }
    return replace(state, **plain)


_FIELDS: Final = ("metrics", "files", "writers", "places", "early", "parameters")


def _parts(state: State) -> dict[str, Parts[Any]]:
    return {kind: cast("Parts[Any]", getattr(state, field)) for kind, field in zip(_KINDS, _FIELDS, strict=True)}
