"""Events: their kinds and bodies, and what a body from disk may hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_dash.core import events as ev
from ml_dash.core.events import Malformed
from ml_dash.core.values import MAX_DEPTH, field_values
from ml_dash.journal.segment import parse_blob

LEAF = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_every_kind_has_a_name_and_a_number_of_its_own() -> None:
    kinds = {value for name, value in vars(ev).items() if name.isupper() and name[0] != "_" and type(value) is int}
    assert kinds - {ev.MAX_DEPTH} == ev.NAMES.keys() == set(range(1, 15))
    assert len(set(ev.NAMES.values())) == len(ev.NAMES)


def opening(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "given": {"tags": ["a"]},
        "project": "cv",
        "name": "run",
        "protected": False,
        "folder_path": "cv/run",
        "remote": None,
        "user_name": None,
        "place": {"pid": 1},
        "parent": None,
        "child": False,
    }
    return ev.opening(**{**arguments, **changes})


def test_an_opening_says_only_what_applies() -> None:
    assert opening() == {"project": "cv", "name": "run", "folderPath": "cv/run", "pid": 1, "tags": ["a"]}


def test_an_opening_of_a_child_names_its_parent() -> None:
    body = opening(child=True, parent="00ff", protected=True, remote="http://localhost:3000", user_name="alice")
    assert (body["child"], body["parent"], body["writeProtected"]) == (True, "00ff", True)
    assert (body["remote"], body["userName"]) == ("http://localhost:3000", "alice")


def test_what_was_not_given_is_absent() -> None:
    assert ev.given(description=None, tags=[], folder="") == {"tags": [], "folder": ""}


def test_a_blob_is_named_after_its_content_and_its_event() -> None:
    assert parse_blob(ev.blob_name("ab" * 32, "cd" * 16, 7)) == ("ab" * 32, "cd" * 16, 7)


@given(VALUE)
def test_what_a_caller_can_record_is_plain(value: Any) -> None:
    assert ev.plain(value)


def test_what_is_nested_as_deep_as_a_caller_may_is_plain() -> None:
    deepest = nested(MAX_DEPTH - 1)
    assert field_values({"a": deepest})
    assert ev.plain({"a": deepest})
    assert not ev.plain(nested(ev.MAX_DEPTH + 1))


class Own(str):
    """A text of a class of its own."""


@pytest.mark.parametrize("value", [(1,), {1}, {1: 2}, {"a": {None: 1}}, [object()], Own("a"), {Own("a"): 1}, 1j])
def test_what_no_caller_can_record_is_not_plain(value: Any) -> None:
    assert not ev.plain(value)


@pytest.mark.parametrize("value", [None, 1, "a", [], {1: 2}, {"a": {1: 2}}])
def test_a_mapping_has_text_keys_and_plain_values(value: Any) -> None:
    with pytest.raises(Malformed):
        ev.mapping(value)
    assert ev.mapping({"a": [1, None]}) == {"a": [1, None]}


@pytest.mark.parametrize("value", [-1, 2**63, True, 1.0, "1", None])
def test_a_natural_number_is_within_bounds(value: Any) -> None:
    with pytest.raises(Malformed):
        ev.natural(value)
    assert [ev.natural(0), ev.natural(2**63 - 1)] == [0, 2**63 - 1]


@pytest.mark.parametrize("value", [None, 1, b"a", Own("a")])
def test_a_text_is_a_text(value: Any) -> None:
    with pytest.raises(Malformed):
        ev.text(value)


def test_changes_are_what_was_given_of_the_asked_keys() -> None:
    body = {"description": None, "tags": ["a"], "metadata": {"b": 1}, "folder": "f", "other": 5}
    assert ev.changes(body, "description", "tags") == {"description": None, "tags": ["a"]}
    assert ev.changes({}, "description", "tags", "folder", "metadata") == {}


@pytest.mark.parametrize(
    "body",
    [{"description": 5}, {"folder": []}, {"tags": "a"}, {"tags": ["a", 1]}, {"tags": [["a"]]}, {"metadata": "x"}],
)
def test_changes_of_the_wrong_type_are_malformed(body: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        ev.changes(body, "description", "tags", "folder", "metadata")
