"""Parameters: merged, nested and flat, every kind of value, and on disk."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_dash import Experiment, InvalidValue, ParametersBuilder, UnsupportedType

if TYPE_CHECKING:
    from tests.api.conftest import Make


# -- set and get ------------------------------------------------------------------------------------------------------


def test_three_ways_to_set_are_merged(opened: Experiment) -> None:
    builder = opened.parameters()
    assert builder.get() == {}
    assert builder.set(lr=0.1, seed=1) is builder
    builder.set({"lr": 0.2, "model": {"layers": [64, 64], "act": {"name": "relu"}}}).set(**{"data.path": "/d"})
    builder.set({"a": 1}, a=2)
    assert opened.parameters().get() == {
        "lr": 0.2, "seed": 1, "model.layers": [64, 64], "model.act.name": "relu", "data.path": "/d", "a": 2,
    }  # fmt: skip


def test_keys_keep_their_first_place(opened: Experiment) -> None:
    opened.parameters().set(b=1, a=1).set(c=1, b=2)
    assert list(opened.parameters().get()) == ["b", "a", "c"]


def test_nested_and_flat_are_two_views_of_one(opened: Experiment) -> None:
    opened.parameters().set({"model": {"layers": 2, "act": {"name": "relu"}}, "lr": 0.1})
    assert opened.parameters().get(flatten=False) == {"model": {"layers": 2, "act": {"name": "relu"}}, "lr": 0.1}
    assert opened.parameters().get(flatten=True) == {"model.layers": 2, "model.act.name": "relu", "lr": 0.1}


def test_a_key_that_is_a_value_and_a_prefix_is_kept_under_the_empty_key(opened: Experiment) -> None:
    opened.parameters().set({"a": 1, "a.b": 2, "a.b.c": 3})
    nested = opened.parameters().get(flatten=False)
    assert nested == {"a": {"": 1, "b": {"": 2, "c": 3}}}
    opened.parameters().set(nested)
    assert opened.parameters().get() == {"a": 1, "a.b": 2, "a.b.c": 3}


def test_nothing_is_recorded_when_there_is_nothing_to_set(opened: Experiment) -> None:
    before = opened.data["counts"]["events"]
    opened.parameters().set().set({}).set(None)
    assert opened.data["counts"]["events"] == before


def test_an_empty_mapping_and_an_empty_list_are_values(opened: Experiment) -> None:
    opened.parameters().set(none={}, empty=[], deep={"x": {}})
    assert opened.parameters().get() == {"none": {}, "empty": [], "deep.x": {}}


def test_names_of_arguments_are_keys_like_any_other(opened: Experiment) -> None:
    opened.parameters().set(self=1, parameters=2, more=3)
    assert opened.parameters().get() == {"self": 1, "parameters": 2, "more": 3}


def test_what_is_returned_is_the_callers_own(opened: Experiment) -> None:
    opened.parameters().set(a=[1])
    opened.parameters().get()["a"].append(2)
    opened.parameters().get()["b"] = 1
    assert opened.parameters().get() == {"a": [1]}


def test_a_change_of_the_given_mapping_comes_too_late(opened: Experiment) -> None:
    layers, mapping = [1], {"a": 1}
    opened.parameters().set({"layers": layers, "m": mapping})
    layers.append(2)
    mapping["a"] = 2
    assert opened.parameters().get() == {"layers": [1], "m.a": 1}


# -- flatten ----------------------------------------------------------------------------------------------------------


def test_the_helpers_are_static() -> None:
    nested = {"a": {"b": 1, "c": {"d": [2]}}, "e": 3}
    assert ParametersBuilder.flatten_dict(nested) == {"a.b": 1, "a.c.d": [2], "e": 3}
    assert ParametersBuilder.flatten_dict(nested, "top", "/") == {"top/a/b": 1, "top/a/c/d": [2], "top/e": 3}
    assert ParametersBuilder.flatten_dict(nested, parent_key="p", sep="_") == {"p_a_b": 1, "p_a_c_d": [2], "p_e": 3}
    assert ParametersBuilder.unflatten_dict({"a/b": 1, "a/c": 2}, sep="/") == {"a": {"b": 1, "c": 2}}
    assert ParametersBuilder.unflatten_dict({}) == {}


flat = st.dictionaries(st.text("ab.", max_size=6), st.integers() | st.lists(st.integers()), max_size=8)


@given(flat)
def test_flatten_undoes_unflatten(flat: dict[str, Any]) -> None:
    assert ParametersBuilder.flatten_dict(ParametersBuilder.unflatten_dict(flat)) == flat


# -- values -----------------------------------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Model:
    layers: int
    name: str | None = None


class Odd:
    def __str__(self) -> str:
        return "o" * 5000


VALUES: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "bool": (True, True),
    "int": (7, 7),
    "smallest": (-(2**63), -(2**63)),
    "largest": (2**64 - 1, 2**64 - 1),
    "float": (0.1, 0.1),
    "minus zero": (-0.0, -0.0),
    "denormal": (5e-324, 5e-324),
    "nan": (math.nan, math.nan),
    "infinity": (math.inf, math.inf),
    "minus infinity": (-math.inf, -math.inf),
    "text": ("Größe 🚀", "Größe 🚀"),
    "text like a number": ("NaN", "NaN"),
    "texts like numbers": (["Infinity", math.inf], ["Infinity", math.inf]),
    "bytes": (b"\x00\xff", "AP8="),
    "bytearray": (bytearray(b"ab"), "YWI="),
    "list": ([1, [2, None]], [1, [2, None]]),
    "tuple": ((1, (2,)), [1, [2]]),
    "time": (datetime(2025, 10, 29, 10, 30, tzinfo=timezone.utc), "2025-10-29T10:30:00.000000Z"),
    "time of a zone": (
        datetime(2025, 10, 29, 12, 30, tzinfo=timezone(timedelta(hours=2))), "2025-10-29T10:30:00.000000Z",
    ),
    "path": (Path("/data/x"), "/data/x"),
    "enum": (Color.RED, "red"),
    "int enum": (Level.HIGH, 3),
    "numpy float32": (np.float32(0.1), 0.10000000149011612),
    "numpy int": (np.int64(-5), -5),
    "numpy bool": (np.bool_(True), True),
    "numpy nan": (np.float64("nan"), math.nan),
    "array": (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
    "largest array": (np.zeros(1024), [0.0] * 1024),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_as_they_were(make: Make, name: str, read_json: Any) -> None:
    given, expected = VALUES[name]
    with make() as experiment:
        experiment.parameters().set(value=given, deep={"value": [given]})
        found = experiment.parameters().get()
        assert repr(found) == repr({"value": expected, "deep.value": [expected]})
        assert type(found["value"]) is type(expected)
    read_json(experiment.path / "parameters.json")
    with make(read_only=True) as reader:
        assert repr(reader.parameters().get()) == repr(found)


def test_dataclasses_and_mappings_become_dotted_keys(opened: Experiment) -> None:
    opened.parameters().set(model=Model(2), config={"model": Model(3, "m")})
    assert opened.parameters().get() == {
        "model.layers": 2, "model.name": None, "config.model.layers": 3, "config.model.name": "m",
    }  # fmt: skip


def test_anything_else_is_kept_as_text_with_one_warning_for_each_key(
    opened: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    for _ in range(2):
        opened.parameters().set(odd=Odd(), broken=Broken(), deep={"a_set": {1}}, big=np.zeros(1025), keys=[{1: 2}])
    found = opened.parameters().get()
    assert (found["odd"], found["broken"], found["deep.a_set"]) == ("o" * 1000, "<Broken: unprintable>", "{1}")
    assert found["big"].startswith("[0. 0.")
    assert found["keys"] == ["{1: 2}"]
    told = sorted(record.getMessage().partition('"')[2].partition('"')[0] for record in caplog.records)
    assert told == ["big", "broken", "deep.a_set", "keys", "odd"]


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def _cycle() -> Any:
    value: dict[str, Any] = {}
    value["itself"] = value
    return value


@pytest.mark.parametrize(
    ("parameters", "error", "text"),
    [
        ({"big": 2**64}, InvalidValue, r'"big" is 18446744073709551616, outside -2\*\*63 to 2\*\*64-1'),
        ({"small": -(2**63) - 1}, InvalidValue, r'"small" is -9223372036854775809, outside'),
        ({"a": {"b": [2**100]}}, InvalidValue, r'"a\.b" is 1267650600228229401496703205376, outside'),
        ({"text": "\ud800"}, InvalidValue, r'"text" holds a lone surrogate U\+D800'),
        ({"\ud800": 1}, InvalidValue, "holds a lone surrogate"),
        ({"deep": _deep(65)}, InvalidValue, '"deep" is nested deeper than 64 levels'),
        ({"cycle": _cycle()}, InvalidValue, "nested deeper than 64 levels, or contains itself"),
        ({(1,): 2}, UnsupportedType, r"the key \(1,\) is tuple, expected str"),
        ([("a", 1)], UnsupportedType, "parameters is list, expected a mapping"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_recorded(
    opened: Experiment, parameters: Any, error: Any, text: str
) -> None:
    with pytest.raises(error, match=text):
        opened.parameters().set(parameters, good=1)
    assert opened.parameters().get() == {}


def test_a_very_large_value_is_kept(make: Make) -> None:
    large = "x" * (20 << 20)
    with make() as experiment:
        experiment.parameters().set(large=large, small=1)
    with make(read_only=True) as reader:
        assert reader.parameters().get() == {"large": large, "small": 1}


# -- on disk ----------------------------------------------------------------------------------------------------------


def test_the_file_is_one_flat_object_in_the_order_of_first_setting(make: Make, read_json: Any) -> None:
    with make() as experiment:
        experiment.parameters().set({"b": {"x": 1}, "a": math.nan})
    with make() as experiment:
        experiment.parameters().set(c=[1], b={"x": 2})
    document = read_json(experiment.path / "parameters.json")
    assert document == {"b.x": 2, "a": "NaN", "c": [1]}
    assert list(document) == ["b.x", "a", "c"]


def test_objects_of_the_real_libraries_are_taken_whole(opened: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    import attrs
    import pydantic
    from omegaconf import OmegaConf

    made = attrs.make_class("Made", {"lr": attrs.field(default=0.1)})

    class Model(pydantic.BaseModel):
        depth: int = 2

    config = OmegaConf.create({"sizes": [1, [2, 3]], "deep": [{"n": "${width}"}], "width": 7, "inner": {"a": "x"}})
    opened.parameters().set({"attrs": made(), "pydantic": Model(), "config": config})
    assert opened.parameters().get() == {
        "attrs.lr": 0.1, "pydantic.depth": 2, "config.sizes": [1, [2, 3]], "config.deep": [{"n": 7}],
        "config.width": 7, "config.inner.a": "x",
    }  # fmt: skip
    assert caplog.records == []
