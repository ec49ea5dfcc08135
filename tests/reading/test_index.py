"""The index: the same answers as asking every experiment, whatever was put, forgotten or kept in its file before."""

from __future__ import annotations

import math
import random
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_dash.reading.facts import MISSING, Facts, SeriesFacts, shown_value, value_of
from ml_dash.reading.index import Index, Page
from ml_dash.reading.where import Sort, parse, parse_sort

from .queries import NOW_NS, meant, some_facts, some_query


def run(key: str, **given: Any) -> Facts:
    return Facts(**{"id": key, "project": "p", "name": key, "status": "completed", **given})


def filled(**runs: dict[str, Any]) -> Index:
    index = Index()
    for key, facts in runs.items():
        index.put(key, 1, run(key, **facts))
    return index


def keys(page: Page) -> list[str]:
    return [row.key for row in page.rows]


# -- the same as asking each ------------------------------------------------------------------------------------------

_SORTS = ("updated", "created:asc", "name", "params.lr", "params.lr:desc", "metrics.loss.max:desc", "size", "status")
_COLUMNS = ("params.lr", "params.note", "metrics.loss", "metrics.val.acc.step", "name", "created", "duration", "tags")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_a_page_is_what_asking_every_experiment_gives(seed: int) -> None:
    """Also while experiments change and go between the questions, so that columns have to follow."""
    rng = random.Random(seed)
    index, plain = Index(), dict[str, Facts]()
    for _ in range(4):
        for number in rng.sample(range(30), 12):
            plain[str(number)] = some_facts(rng, number)
            index.put(str(number), [number, rng.random()], plain[str(number)])
        for key in rng.sample(sorted(plain), 3):
            del plain[key]
            index.forget([key])
        for _ in range(4):
            _compare(rng, index, plain)
        anew = Index()
        anew.put_all((key, 1, facts) for key, facts in plain.items())
        assert _fields(index) == _fields(anew)
    assert len(index) == len(plain)


def _fields(index: Index) -> dict[str, tuple[str, int, list[str]]]:
    """All fields; which of texts of the same number come first, or at all, is left open."""
    found = index.fields(limit=1000)
    return {one.name: (one.kind, one.runs, sorted(one.values) if len(one.values) < 20 else []) for one in found}


def _compare(rng: random.Random, index: Index, plain: dict[str, Facts]) -> None:
    tree = some_query(rng)
    where, sort = parse(str(tree), NOW_NS), parse_sort(rng.choice(_SORTS))
    columns, start, limit = rng.sample(_COLUMNS, rng.randrange(4)), rng.randrange(4), rng.randrange(1, 40)
    page = index.page(where, sort, columns, start, limit)
    found = [
        key for key, facts in plain.items() if meant(tree, facts) and ("archived" in where.fields or not facts.archived)
    ]
    assert page.total == len(found)
    ordered = _ordered(found, plain, sort)
    assert keys(page) == ordered[start : start + limit], str(where)
    for row in page.rows:
        values = {name: value_of(plain[row.key], name) for name in columns}
        expected = {name: shown_value(name, value) for name, value in values.items() if value is not MISSING}
        assert repr(row.values) == repr(expected)
        assert row.facts.name == plain[row.key].name


def _ordered(found: list[str], plain: dict[str, Facts], sort: Sort) -> list[str]:
    """By the field; equal ones by their last event, the latest first, then by name; those without the field last."""

    def value(key: str) -> Any:
        found = value_of(plain[key], sort.field)
        return MISSING if isinstance(found, float) and math.isnan(found) else found

    def rank(key: str) -> tuple[int, Any]:
        one = value(key)
        one = one[0] if isinstance(one, list) and one and isinstance(one[0], str) else one
        return (0, one) if isinstance(one, int | float) else (1, one) if isinstance(one, str) else (2, str(one))

    ordered = sorted(found, key=lambda key: (plain[key].project, plain[key].name, key))
    ordered = sorted(ordered, key=lambda key: -plain[key].updated_ns)
    having = sorted((key for key in ordered if value(key) is not MISSING), key=rank, reverse=sort.descending)
    return having + [key for key in ordered if value(key) is MISSING]


# -- lists ------------------------------------------------------------------------------------------------------------


def test_without_anything_the_latest_written_come_first() -> None:
    index = filled(a={"updated_ns": 1}, b={"updated_ns": 3}, c={"updated_ns": 2})
    assert keys(index.page()) == ["b", "c", "a"]


def test_archived_ones_are_listed_only_where_asked_for() -> None:
    index = filled(a={}, b={"archived": True})
    assert keys(index.page()) == ["a"]
    assert keys(index.page(parse("p"))) == ["a"]
    assert keys(index.page(parse("archived = true"))) == ["b"]
    assert index.page(parse("archived = true or archived = false")).total == 2
    assert index.page(archived=True).total == 2


def test_a_page_can_be_bounded_to_some_experiments() -> None:
    index = filled(a={}, b={}, c={})
    assert sorted(keys(index.page(keys=["c", "x", "a", "c"]))) == ["a", "c"]


def test_values_of_columns_are_plain_json() -> None:
    index = filled(a={"params": {"x": float("nan"), "y": [1, b"\0"]}, "created_ns": NOW_NS})
    (row,) = index.page(columns=["params.x", "params.y", "created", "name", "params.z"]).rows
    assert row.values == {
        "params.x": "NaN",
        "params.y": [1, "AA=="],
        "created": "2025-11-24T16:00:00.000000Z",
        "name": "a",
    }


def test_many_columns_are_more_than_are_kept() -> None:
    many = {f"x{n}": n for n in range(200)}
    index = filled(a={"params": many}, b={"params": {"x1": 5}})
    for n in range(200):
        assert index.page(parse(f"params.x{n} = {n}")).total == 1
    index.put("b", 2, run("b", params={"x7": 7, "x199": 199}))
    assert index.page(parse("params.x199 = 199")).total == 2
    assert index.page(parse("params.x7 = 7")).total == 2


# -- groups and fields ------------------------------------------------------------------------------------------------


def acc(value: float) -> dict[str, SeriesFacts]:
    return {"acc": SeriesFacts(1, value, value, value, value, value, 1)}


def test_groups_have_the_mean_and_the_spread_of_columns() -> None:
    index = filled(
        a={"params": {"lr": 1, "seed": 1}, "metrics": acc(1.0)},
        b={"params": {"lr": 1.0, "seed": 2}, "metrics": acc(3.0)},
        c={"params": {"lr": "1"}, "metrics": acc(float("nan"))},
        d={},
    )
    one, text, without = index.groups("params.lr", columns=["metrics.acc", "params.seed"])
    assert (one.value, one.runs) == (1, 2)
    spread = one.values["metrics.acc"]
    assert (spread.mean, spread.min, spread.max, spread.count) == (2.0, 1.0, 3.0, 2)
    assert spread.sd == pytest.approx(math.sqrt(2))
    assert (text.value, text.runs, text.values) == ("1", 1, {})
    assert (without.value, without.runs) == (None, 1)


def test_an_experiment_is_in_the_group_of_each_of_its_tags() -> None:
    index = filled(a={"tags": ["x", "y"]}, b={"tags": ["x"]}, c={})
    assert [(group.value, group.runs) for group in index.groups("tags")] == [("x", 2), ("y", 1), (None, 1)]
    assert [group.value for group in index.groups("tags", parse("tag:y"))] == ["x", "y"]


def test_fields_say_what_experiments_have() -> None:
    index = filled(a={"params": {"lr": 1, "opt": "adam"}, "metrics": acc(1.0)}, b={"params": {"lr": "x", "opt": "sgd"}})
    index.put("c", 1, run("c", params={"opt": "adam", "flag": True}))
    named = {field.name: field for field in index.fields()}
    assert named["params.opt"][1:] == ("text", 3, ["adam", "sgd"])
    assert named["params.lr"][1:] == ("mixed", 2, ["x"])
    assert named["params.flag"][1:] == ("boolean", 1, [])
    assert named["metrics.acc"][1:] == ("number", 1, [])
    assert named["status"][1:] == ("text", 3, ["completed"])
    assert named["created"].kind == "time"
    assert [field.name for field in index.fields("params.", 1)] == ["params.opt"]
    assert [field.name for field in index.fields("ac")] == ["metrics.acc"]


def test_fields_follow_what_changes() -> None:
    index = filled(a={"params": {"x": 1}}, b={"params": {"x": 1}})
    index.fields()
    index.put("a", 2, run("a", params={"x": "now a text"}))
    index.put("c", 1, run("c", params={"y": 1}))
    index.forget(["b"])
    named = {field.name: (field.kind, field.runs) for field in index.fields("params.")}
    assert named == {"params.x": ("text", 1), "params.y": ("number", 1)}


# -- what is out of date ----------------------------------------------------------------------------------------------


def test_stale_are_the_new_and_the_changed_and_what_is_gone_is_forgotten() -> None:
    index = filled(a={}, b={}, c={})
    assert sorted(index.stale({"a": 1, "b": 2, "d": 1})) == ["b", "d"]
    assert sorted(keys(index.page())) == ["a", "b"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "index.sqlite"


def test_the_next_process_begins_with_the_file(path: Path) -> None:
    rng = random.Random(1)
    known = {str(number): some_facts(rng, number) for number in range(20)}
    first = Index(path)
    first.put_all((key, (1, key), facts) for key, facts in known.items())
    first.forget(["3"])
    first.close()
    again = Index(path)
    assert again.stale({key: (1, key) for key in known if key != "4"}) == ["3"]
    assert len(again) == 18
    for key in ("0", "19"):
        assert repr(again.get(key)) == repr(known[key])


@pytest.mark.parametrize("damage", ["zeros", "text", "empty", "row", "version"])
def test_a_file_that_cannot_be_used_is_made_again(path: Path, damage: str) -> None:
    index = Index(path)
    index.put("a", 1, run("a"))
    index.close()
    if damage in ("row", "version"):
        statement = "UPDATE facts SET params=x'C1'" if damage == "row" else "UPDATE about SET version='0'"
        link = sqlite3.connect(path)
        link.execute(statement)
        link.commit()
        link.close()
    else:
        size = path.stat().st_size
        path.write_bytes({"zeros": bytes(size), "text": b"no database " * 500, "empty": b""}[damage])
    hurt = Index(path)
    assert hurt.stale({"a": 1}) == ["a"]
    hurt.put("a", 1, run("a"))
    assert keys(hurt.page()) == ["a"]
    hurt.close()
    third = Index(path)
    third.put("a", 1, run("a"))
    third.close()
    assert Index(path).stale({"a": 1}) == []


def test_a_file_in_a_folder_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    index = Index(tmp_path / "file" / "index.sqlite")
    index.put("a", 1, run("a"))
    assert keys(index.page()) == ["a"]


def test_two_processes_may_have_one_file(path: Path) -> None:
    one, other = Index(path), Index(path)
    one.put("a", 1, run("a"))
    other.put("b", 1, run("b"))
    one.close()
    other.close()
    assert sorted(keys(Index(path).page())) == ["a", "b"]


def test_threads_may_put_and_ask_at_the_same_time() -> None:
    index = Index()
    where = parse("params.x >= 0 and p")
    failed: list[BaseException] = []

    def work(base: int) -> None:
        try:
            for number in range(200):
                index.put(f"{base}-{number % 20}", number, run(f"{base}-{number % 20}", params={"x": number}))
                page = index.page(where, parse_sort("params.x"), ["params.x"])
                assert [row.values["params.x"] for row in page.rows] == sorted(r.values["params.x"] for r in page.rows)
        except BaseException as error:  # noqa: BLE001 - told by the test, not by a thread
            failed.append(error)

    threads = [threading.Thread(target=work, args=(base,)) for base in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert index.page().total == 80
