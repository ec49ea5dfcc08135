"""The map in pages: what a dict says, at every version, whatever waits in the buffer; no page is written twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash.server.engine import tree as module
from ml_dash.server.engine.tree import Node, Tree, pages_of
from ml_dash.server.stores import Vanished


class Pages:
    """Pages in memory, none of which may be written twice."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"{self.count}"

    def load(self, ids: Sequence[str]) -> dict[str, Node]:
        if any(identity not in self.held for identity in ids):
            raise Vanished
        return {identity: Node.decoded(identity, self.held[identity]) for identity in ids}

    def commit(self, tree: Tree) -> tuple[bytes, list[str]]:
        """Store a version; return what names it, and the pages that it superseded."""
        root, nodes, superseded = tree.flush(self.name)
        for identity, content in pages_of(nodes):
            assert identity not in self.held
            self.held[identity] = content
        return root, superseded


KEYS = st.integers(0, 60).map(lambda number: f"k{number:03}" * (1 + number % 3))
ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.integers(0, 300)),
        st.tuples(st.just("delete"), KEYS, st.just(0)),
        st.tuples(st.just("drop"), KEYS, st.just(0)),
        st.tuples(st.just("commit"), st.just(""), st.just(0)),
        st.tuples(st.just("reopen"), st.just(""), st.just(0)),
    ),
    max_size=120,
)


@pytest.mark.parametrize(
    ("page", "bytes_", "entries"), [(200, 150, 5), (300, 2000, 50), (4096, 16384, 128), (150, 0, 0)]
)
@settings(max_examples=60, deadline=None)
@given(acts=ACTS)
def test_it_is_what_a_dict_is(page: int, bytes_: int, entries: int, acts: list[tuple[str, str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAGE_BYTES", page)
        patch.setattr(module, "_BUFFER_BYTES", bytes_)
        patch.setattr(module, "_BUFFER_ENTRIES", entries)
        pages = Pages()
        tree, plain = Tree(b"", pages.load), dict[str, bytes]()
        versions: list[tuple[bytes, dict[str, bytes]]] = []
        gone: set[str] = set()
        for act, key, size in acts:
            if act == "put":
                plain[key] = bytes([size % 256]) * size
                tree.put(key, plain[key])
            elif act == "delete":
                plain.pop(key, None)
                tree.delete(key)
            elif act == "drop":
                plain = {name: value for name, value in plain.items() if not key <= name < "k040"}
                tree.drop(key, "k040")
            else:
                root, superseded = pages.commit(tree)
                versions.append((root, dict(plain)))
                gone |= set(superseded)
                if act == "reopen":
                    tree = Tree(root, pages.load)
            check(tree, plain)
        # Every version is still what it was, as long as no page is deleted.
        for root, expected in versions:
            check(Tree(root, pages.load), expected)
        # The newest one names exactly the pages that no commit superseded.
        root, superseded = pages.commit(tree)
        assert set(Tree(root, pages.load).pages()) == set(pages.held) - gone - set(superseded)


def check(tree: Tree, plain: dict[str, bytes]) -> None:
    assert list(tree.items("", "z")) == sorted(plain.items())
    for low, high in (("k010", "k030"), ("k025", "k026"), ("", "k005")):
        part = [(key, value) for key, value in sorted(plain.items()) if low <= key < high]
        assert list(tree.items(low, high)) == part
        assert tree.last(low, high) == (part[-1] if part else None)
    for key in ("k000", "k017k017k017", "k060"):
        assert tree.get(key) == plain.get(key)


def test_a_small_change_writes_as_little_in_a_large_map_as_in_a_small_one() -> None:
    written: dict[int, Any] = {}
    for count in (100, 50_000):
        pages = Pages()
        tree = Tree(b"", pages.load)
        for number in range(count):
            tree.put(f"metric/{number:06}", b"x" * 200)
        root, _ = pages.commit(tree)
        tree = Tree(root, pages.load)
        sizes = []
        for turn in range(100):
            before = set(pages.held)
            for key in ("metric/000007", "writer", f"arrival/{turn:06}", f"raw/{turn:06}"):
                tree.put(key, b"y" * 100)
            root, _ = pages.commit(tree)
            sizes.append(len(root) + sum(len(pages.held[page]) for page in set(pages.held) - before))
        written[count] = sum(sizes) / len(sizes)
    assert written[50_000] < written[100] * 1.3
