"""A persistent sorted map in pages: the contents of one experiment, from text keys to bytes.

A B+ tree of which no page is ever changed. To put a value, the pages from its leaf up to the root are made anew; the
new root is named by the next head of the experiment, and the old pages are superseded. So a reader that holds a head
sees all of that version and nothing else, with plain reads by id, and a server that dies in the middle of writing has
added pages that nobody names.

                      root     "" → p7      "metric/m" → p3                     new root    "" → p7   "metric/m" → p9
    put "metric/n":   leaf p3  "metric/m" … "metric/n" …                   →    new leaf    p9
                      leaf p7  "arrival/0" …                                    p7 is in both versions

What was put last waits in a buffer, which the head holds together with the id of the root; only when it is full, about
every tenth small batch, it goes into the leaves. So a small batch writes about the same whether there are a hundred
entries or a million, and the leaves that it would touch each time are written once for several.

A page is msgpack: [0, keys, values] of a leaf, [1, least key of each child, ids of the children] of what is above.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any, Final

import msgspec

from ..stores import Page

PAGE_BYTES: Final = 4096
"""A page with more than this is split, unless it holds a single entry."""

_ENTRY_BYTES: Final = 6  # of an entry beside key and value, about
# A buffer with more than this goes into the leaves. It is searched from end to end, so it has few entries.
_BUFFER_BYTES: Final = 16 << 10
_BUFFER_ENTRIES: Final = 128
# Pages that a scan reads at once.
_AHEAD: Final = 64
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode
_root: Final = msgspec.msgpack.Decoder(tuple[str, dict[str, bytes | None]])

Load = Callable[[Sequence[str]], "dict[str, Node]"]
"""load(ids): the pages of these ids. Raises Vanished."""


class Node:
    """A page in memory. One that has an id is shared between threads, and is never changed.

    `values` are bytes in a leaf; above, ids of pages, or nodes that have no id yet. `keys` are sorted; those above are
    the least keys of the children, the first of them empty.
    """

    __slots__ = ("id", "keys", "leaf", "size", "values")

    def __init__(self, leaf: bool, keys: list[str], values: list[Any], size: int, identity: str = "") -> None:
        self.leaf = leaf
        self.keys = keys
        self.values = values
        self.size = size
        self.id = identity

    def encoded(self) -> bytes:
        """Return the content of the page. All children must have ids."""
        return _encode((0 if self.leaf else 1, self.keys, self.values))

    @classmethod
    def decoded(cls, identity: str, content: bytes) -> Node:
        """Return the node that a page holds."""
        kind, keys, values = _decode(content)
        return cls(kind == 0, keys, values, len(content), identity)


class NodeCache:
    """Nodes that were used lately, at most `limit` bytes of pages. Any thread may call.

    Nothing in it is ever out of date, since no page is changed; a page that was deleted is at worst read in vain.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._lock = Lock()
        self._nodes: OrderedDict[tuple[str, str, str], Node] = OrderedDict()

    def get(self, ns: str, experiment: str, ids: Sequence[str]) -> dict[str, Node]:
        """Return those of the nodes that are here."""
        found = {}
        with self._lock:
            for identity in ids:
                node = self._nodes.get((ns, experiment, identity))
                if node is not None:
                    self._nodes.move_to_end((ns, experiment, identity))
                    found[identity] = node
        return found

    def add(self, ns: str, experiment: str, nodes: Sequence[Node]) -> None:
        """Add nodes that have ids; the ones that were not used for longest leave."""
        with self._lock:
            for node in nodes:
                old = self._nodes.pop((ns, experiment, node.id), None)
                self._size += node.size - (old.size if old is not None else 0)
                self._nodes[ns, experiment, node.id] = node
            while self._size > self._limit and len(self._nodes) > 1:
                _, dropped = self._nodes.popitem(last=False)
                self._size -= dropped.size


class Tree:
    """The map of one version, and what is changed in it since. For one thread at a time.

    A tree of which a change raised Vanished or StoreTrouble is not used any more.
    """

    def __init__(self, root: bytes, load: Load) -> None:
        """Open the version that a head names by these bytes; an empty map if there are none."""
        self._load = load
        identity, buffer = _root.decode(root) if root else ("", {})
        self._root: str | Node = identity or Node(True, [], [], 0)
        # What was put since the leaves were written; None: deleted.
        self._buffer: dict[str, bytes | None] = buffer
        self._size = sum(map(_waiting, buffer.items()))
        # Ids of pages of the version that was opened, that this one does not name any more.
        self._superseded: list[str] = []

    # -- reading -----------------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        """Return the value of a key."""
        return self._buffer[key] if key in self._buffer else self._stored(key)

    def _stored(self, key: str) -> bytes | None:
        node = self._node(self._root)
        while not node.leaf:
            node = self._node(node.values[_child(node, key)])
        place = bisect_left(node.keys, key)
        if place < len(node.keys) and node.keys[place] == key:
            value: bytes = node.values[place]
            return value
        return None

    def items(self, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        """Yield (key, value) with start <= key < end, in order. The map must not be changed meanwhile."""
        waiting = sorted(key for key in self._buffer if start <= key < end)
        place = 0
        for key, value in self._items(self._root, start, end):
            while place < len(waiting) and waiting[place] < key:
                yield from self._buffered(waiting[place])
                place += 1
            if place < len(waiting) and waiting[place] == key:
                yield from self._buffered(key)
                place += 1
            else:
                yield key, value
        for key in waiting[place:]:
            yield from self._buffered(key)

    def _buffered(self, key: str) -> Iterator[tuple[str, bytes]]:
        value = self._buffer[key]
        if value is not None:
            yield key, value

    def _items(self, ref: str | Node, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        node = self._node(ref)
        if node.leaf:
            low, high = bisect_left(node.keys, start), bisect_left(node.keys, end)
            yield from zip(node.keys[low:high], node.values[low:high], strict=True)
            return
        low, high = _child(node, start), bisect_left(node.keys, end, 1)
        for first in range(low, high, _AHEAD):
            children = node.values[first : min(high, first + _AHEAD)]
            ids = [child for child in children if isinstance(child, str)]
            loaded = self._load(ids) if ids else {}
            for child in children:
                yield from self._items(loaded[child] if isinstance(child, str) else child, start, end)

    def pages(self) -> Iterator[str]:
        """Yield the ids of all pages of a map that was not changed since it was opened."""
        level = [self._root] if isinstance(self._root, str) else []
        while level:
            yield from level
            # All of a level are of one kind.
            below: list[str] = []
            for first in range(0, len(level), _AHEAD):
                nodes = self._load(level[first : first + _AHEAD])
                below += [child for node in nodes.values() if not node.leaf for child in node.values]
            level = below

    def last(self, start: str, end: str) -> tuple[str, bytes] | None:
        """Return the greatest key with start <= key < end, and its value."""
        newest: tuple[str, bytes] | None = None
        for key, value in self._buffer.items():
            if value is not None and start <= key < end and (newest is None or key > newest[0]):
                newest = key, value
        # Nothing smaller than that is looked for.
        start = newest[0] if newest is not None else start
        while True:
            found = self._last(self._root, start, end)
            if found is None or found[0] not in self._buffer:
                break
            # It was deleted, or put again since.
            end = found[0]
        return found if found is not None and (newest is None or found[0] > newest[0]) else newest

    def _last(self, ref: str | Node, start: str, end: str) -> tuple[str, bytes] | None:
        node = self._node(ref)
        if node.leaf:
            place = bisect_left(node.keys, end) - 1
            return (node.keys[place], node.values[place]) if place >= 0 and node.keys[place] >= start else None
        for place in range(bisect_left(node.keys, end, 1) - 1, _child(node, start) - 1, -1):
            found = self._last(node.values[place], start, end)
            # A child may hold nothing of the range, as only its neighbours do.
            if found is not None:
                return found
        return None

    def _node(self, ref: str | Node) -> Node:
        return self._load([ref])[ref] if isinstance(ref, str) else ref

    # -- changing ----------------------------------------------------------------------------------------------------

    def put(self, key: str, value: bytes) -> None:
        """Store a value, in place of the one that the key had."""
        self._wait(key, value)

    def delete(self, key: str) -> None:
        """Delete a key, if it is there."""
        if self._stored(key) is not None:
            self._wait(key, None)
        elif key in self._buffer:
            self._size -= _waiting((key, self._buffer.pop(key)))

    def _wait(self, key: str, value: bytes | None) -> None:
        """Put into the buffer, and what is in that into the leaves if there is too much."""
        if key in self._buffer:
            self._size -= _waiting((key, self._buffer[key]))
        self._buffer[key] = value
        self._size += _waiting((key, value))
        if self._size > _BUFFER_BYTES or len(self._buffer) > _BUFFER_ENTRIES:
            buffer, self._buffer, self._size = self._buffer, {}, 0
            for key in sorted(buffer):
                waiting = buffer[key]
                if waiting is None:
                    self._remove(key)
                else:
                    self._store(key, waiting)

    def _store(self, key: str, value: bytes) -> None:
        """Put a value into its leaf."""
        root = self._own(self._root)
        self._root = root
        right = self._put(root, key, value)
        if right is not None:
            keys = ["", right[0]]
            self._root = Node(False, keys, [root, right[1]], len(right[0]) + 2 * _ENTRY_BYTES)

    def _put(self, node: Node, key: str, value: bytes) -> tuple[str, Node] | None:
        """Put into a node of our own; return (least key, node) of what was split off to its right."""
        if node.leaf:
            place = bisect_left(node.keys, key)
            if place < len(node.keys) and node.keys[place] == key:
                node.size += len(value) - len(node.values[place])
                node.values[place] = value
            else:
                node.keys.insert(place, key)
                node.values.insert(place, value)
                node.size += len(key) + len(value) + _ENTRY_BYTES
        else:
            place = _child(node, key)
            child = self._own(node.values[place])
            node.values[place] = child
            right = self._put(child, key, value)
            if right is None:
                return None
            place += 1
            node.keys.insert(place, right[0])
            node.values.insert(place, right[1])
            node.size += len(right[0]) + 2 * _ENTRY_BYTES
        return _split(node, place) if node.size > PAGE_BYTES and len(node.keys) > 1 else None

    def _remove(self, key: str) -> None:
        """Delete a key that is in a leaf."""
        if self._stored(key) is None:
            return
        self._root = self._own(self._root)
        self._delete(self._root, key)
        # A root with one child says nothing that the child does not.
        while not self._root.leaf and len(self._root.keys) == 1:
            self._root = self._own(self._root.values[0])
        if not self._root.leaf and not self._root.keys:
            self._root = Node(True, [], [], 0)

    def _delete(self, node: Node, key: str) -> None:
        if node.leaf:
            place = bisect_left(node.keys, key)
            node.size -= len(key) + len(node.values[place]) + _ENTRY_BYTES
            del node.keys[place], node.values[place]
            return
        place = _child(node, key)
        child = self._own(node.values[place])
        node.values[place] = child
        self._delete(child, key)
        if not child.keys:
            node.size -= len(node.keys[place]) + 2 * _ENTRY_BYTES
            del node.keys[place], node.values[place]
            if node.keys:
                # The first child takes all keys before the second one.
                node.keys[0] = ""

    def drop(self, start: str, end: str) -> None:
        """Delete all keys with start <= key < end."""
        for key in [key for key, _ in self.items(start, end)]:
            self.delete(key)

    def supersede(self, page: str) -> None:
        """Note that a page which a value named is not needed any more once this version is the newest."""
        self._superseded.append(page)

    def _own(self, ref: str | Node) -> Node:
        """Return a node that may be changed: the node itself if it is new, else a copy of the stored one."""
        node = self._node(ref)
        if not node.id:
            return node
        self._superseded.append(node.id)
        return Node(node.leaf, list(node.keys), list(node.values), node.size)

    def flush(self, name: Callable[[], str]) -> tuple[bytes, list[Node], list[str]]:
        """Give ids, from `name()`, to all new pages.

        Return what the head names the version by, these nodes, and the ids of superseded pages. From here on the tree
        is that of the new version.
        """
        nodes: list[Node] = []
        if isinstance(self._root, str):
            root = self._root
        else:
            # A map of which all waits in the buffer has no page.
            root = self._named(self._root, name, nodes) if self._root.keys else ""
        superseded, self._superseded = self._superseded, []
        self._root = root or self._root
        return _encode((root, self._buffer)), nodes, superseded

    def _named(self, node: Node, name: Callable[[], str], nodes: list[Node]) -> str:
        if node.id:
            return node.id
        if not node.leaf:
            node.values = [
                child if isinstance(child, str) else self._named(child, name, nodes) for child in node.values
            ]
        node.id = name()
        nodes.append(node)
        return node.id


def _waiting(entry: tuple[str, bytes | None]) -> int:
    """Return about how many bytes an entry of a buffer takes."""
    return len(entry[0]) + len(entry[1] or b"") + _ENTRY_BYTES


def pages_of(nodes: Sequence[Node]) -> list[Page]:
    """Return the pages to store of nodes that have ids."""
    return [(node.id, node.encoded()) for node in nodes]


def _child(node: Node, key: str) -> int:
    """Return the place of the child that holds a key."""
    return max(0, bisect_right(node.keys, key) - 1)


def _split(node: Node, place: int) -> tuple[str, Node]:
    """Move the upper part of a node to a new one, and return (its least key, it); `place` is where an entry was added.

    Where entries come in order, at the end, only the last one moves: so pages become full, not half full.
    """
    if place >= len(node.keys) - 1:
        cut = len(node.keys) - 1
    else:
        cut, size = 0, 0
        while size < node.size // 2 and cut < len(node.keys) - 1:
            size += _size(node, cut)
            cut += 1
        cut = max(1, cut)
    keys, values = node.keys[cut:], node.values[cut:]
    moved = sum(_size(node, index) for index in range(cut, len(node.keys)))
    del node.keys[cut:], node.values[cut:]
    node.size -= moved
    least = keys[0]
    return least, Node(node.leaf, keys if node.leaf else ["", *keys[1:]], values, moved)


def _size(node: Node, place: int) -> int:
    """Return about how many bytes an entry of a node takes."""
    value = len(node.values[place]) if node.leaf else _ENTRY_BYTES
    return len(node.keys[place]) + value + _ENTRY_BYTES
