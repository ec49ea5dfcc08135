"""What a recorded value may be, and its way into JSON and back."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import math
import random
import struct
import subprocess
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ml_dash.core import json_values, values
from ml_dash.core.json_values import flatten, from_json, texts_like_numbers, to_json, unflatten
from ml_dash.core.times import parse_time, utc_text
from ml_dash.core.values import field_values, lenient_values
from ml_dash.errors import InvalidValue, UnsupportedType

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from([*json_values.NUMBER_TEXTS])
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | st.binary(max_size=8)
keys = texts | st.sampled_from(["a", "a.b", "a~1b", "a~b", "0", "", "text"])
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4))
plain_fields = st.dictionaries(keys, plain, max_size=5)


def plain_value(value: object) -> object:
    return field_values({"key": value})["key"]


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def same(one: Any, other: Any) -> bool:
    """Equal in type and value, floats bit by bit; one NaN is as good as another."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return bits(one) == bits(other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class Color(enum.Enum):
    RED = "red"
    POINT = (1, 2.5)


class Level(enum.IntEnum):
    HIGH = 3


class Split(str, enum.Enum):
    TRAIN = "train"


class Bits(enum.Flag):
    A = 1
    B = 2


class Pair(NamedTuple):
    x: int
    y: float


@dataclasses.dataclass
class Model:
    layers: int
    rates: tuple[float, ...]
    dtype: str = "float16"
    shared: ClassVar[int] = 7
    secret: dataclasses.InitVar[int] = 0


class Celsius(float):
    def __float__(self) -> float:
        return 20.5


EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (-(2**63), -(2**63)),
        (2**64 - 1, 2**64 - 1),
        (5e-324, 5e-324),
        (-0.0, -0.0),
        (math.inf, math.inf),
        ("", ""),
        ("日本\u202e😀\0", "日本\u202e😀\0"),
        (b"\xff\0", b"\xff\0"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        ((1, "a", None), [1, "a", None]),
        ([], []),
        ({}, {}),
        (Pair(1, 2.0), [1, 2.0]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (MappingProxyType({"a": (1,)}), {"a": [1]}),
        (Path("runs/a b"), "runs/a b"),
        (Color.RED, "red"),
        (Color.POINT, [1, 2.5]),
        (Level.HIGH, 3),
        (Split.TRAIN, "train"),
        (Bits.A | Bits.B, 3),
        (Model(2, (0.5,)), {"layers": 2, "rates": [0.5], "dtype": "float16"}),
        (datetime(2025, 10, 29, 10, 30, tzinfo=timezone.utc), "2025-10-29T10:30:00.000000Z"),
        (datetime(2025, 10, 29, 10, 30, 0, 7, timezone(timedelta(hours=2))), "2025-10-29T08:30:00.000007Z"),
        (datetime(1, 2, 3, tzinfo=timezone.utc), "0001-02-03T00:00:00.000000Z"),
        (np.float64(0.1), 0.1),
        (np.float32(0.1), 0.10000000149011612),
        (np.float16(0.1), 0.0999755859375),
        (np.longdouble(1.5), 1.5),
        (np.bool_(True), True),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), b"a"),
        (np.array(3), 3),
        (np.array([1.5]), [1.5]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([True, False]), [True, False]),
        (np.array(["x", "yy"]), ["x", "yy"]),
        (np.array([1.5], dtype=np.longdouble), [1.5]),
        (np.array([None, {"a": 1}], dtype=object), [None, {"a": 1}]),
        (np.zeros(1024), [0.0] * 1024),
        (np.datetime64("2025-10-29T10:30:00.123456789"), "2025-10-29T10:30:00.123456Z"),
        (np.array(["2025-10-29", "NaT"], dtype="datetime64[ns]"), ["2025-10-29T00:00:00.000000Z", None]),
    ],
)
def test_an_accepted_value_becomes_plain(value: object, expected: object) -> None:
    warnings: list[str] = []
    assert same(plain_value(value), expected)
    assert same(lenient_values({"key": value}, warnings.append), {"key": expected})
    assert warnings == []


def test_a_time_without_a_zone_is_local_time() -> None:
    moment = datetime(2025, 7, 1, 12, 0)  # noqa: DTZ001 - what this test is about
    assert plain_value(moment) == plain_value(moment.astimezone())


def test_a_subclass_of_float_gives_a_float() -> None:
    assert type(plain_value(Celsius(20.5))) is float


class Unlisted:
    """As a tensor on a device that is gone."""

    dtype = "float32"

    def numel(self) -> int:
        return 3

    def tolist(self) -> list[float]:
        raise RuntimeError("device is gone")


class Tensor:
    """The methods that PyTorch's tensors have: `size` is one of them, `numel` counts."""

    dtype = "torch.float32"

    def __init__(self, content: Any, count: int) -> None:
        self.content, self.count = content, count

    def size(self) -> tuple[int]:
        return (self.count,)

    def numel(self) -> int:
        return self.count

    def tolist(self) -> Any:
        if self.count > 1024:
            raise AssertionError("a large tensor must not be copied to learn that it is large")
        return self.content

    def item(self) -> Any:
        return self.content


class OnlyItem:
    def item(self) -> float:
        return 0.25


def test_scalars_and_arrays_of_other_libraries_are_read_by_their_methods() -> None:
    assert plain_value(Tensor(0.5, 1)) == 0.5
    assert plain_value(Tensor([0.5, math.inf], 2)) == [0.5, math.inf]
    assert plain_value(OnlyItem()) == 0.25


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("no text")


class Surrogate:
    def __str__(self) -> str:
        return "\ud800" * 600


UNSUPPORTED: list[tuple[Any, str]] = [
    ({1, 2}, "set"),
    (frozenset(), "frozenset"),
    (1 + 2j, "complex"),
    (date(2025, 1, 1), "datetime.date"),
    (timedelta(1), "datetime.timedelta"),
    (range(3), "range"),
    (object(), "object"),
    (len, "builtin_function_or_method"),
    (Model, "type"),
    (np.float32, "type"),
    (mock.Mock(), "unittest.mock.Mock"),
    (Unprintable(), "Unprintable"),
    (Surrogate(), "Surrogate"),
    (Unlisted(), "Unlisted"),
    (Tensor([0.0] * 1025, 1025), "1,025 elements"),
    (np.zeros(1025), "1,025 elements"),
    (np.complex64(1), "complex"),
    (np.timedelta64(5, "ns"), "numpy.timedelta64"),
    (np.array([1j]), "complex"),
    ({1: "a"}, "int"),
    ({None: "a"}, "NoneType"),
    ([1, {"x": {2}}], "set"),
]


@pytest.mark.parametrize(("value", "found"), UNSUPPORTED)
def test_in_a_metric_anything_else_is_a_type_error_that_names_key_and_type(value: Any, found: str) -> None:
    with pytest.raises(UnsupportedType) as caught:
        field_values({"good": 1.0, "bad": value})
    assert '"bad' in str(caught.value)
    assert found in str(caught.value)


@pytest.mark.parametrize(("value", "found"), UNSUPPORTED)
def test_in_parameters_anything_else_is_kept_as_text_with_one_warning(value: Any, found: str) -> None:
    warnings: list[str] = []
    kept = lenient_values({"good": 1.0, "bad": value}, warnings.append)
    assert kept["good"] == 1.0
    assert len(warnings) == 1
    assert '"bad' in warnings[0]
    assert found in warnings[0]
    json.dumps(kept, allow_nan=False).encode()


def test_text_kept_for_a_value_is_cut_and_valid_whatever_the_value_does() -> None:
    warnings: list[str] = []
    kept = lenient_values(
        {"set": {1}, "long": range(3), "broken": Unprintable(), "odd": Surrogate(), "array": np.zeros(5000)},
        warnings.append,
    )
    assert kept["set"] == "{1}"
    assert kept["long"] == "range(0, 3)"
    assert kept["broken"] == "<Unprintable: unprintable>"
    assert kept["odd"] == ("\\ud800" * 600)[:1000]
    assert str(kept["array"]).startswith("[0. 0. 0.")
    assert len(warnings) == 5


def test_nested_values_warn_once_for_each_dotted_key_and_keep_the_rest() -> None:
    warnings: list[str] = []
    given = {"cfg": {"fn": len, "lr": 0.1, "sets": [{1}, {2}]}, "x": (1, {2})}
    kept = lenient_values(given, warnings.append)
    assert kept == {"cfg": {"fn": str(len), "lr": 0.1, "sets": ["{1}", "{2}"]}, "x": [1, "{2}"]}
    assert [warning.split('"')[1] for warning in warnings] == ["cfg.fn", "cfg.sets", "x"]


def loop() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


def circle() -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    mapping["self"] = mapping
    return mapping


def tower(levels: int) -> list[Any]:
    items: list[Any] = []
    for _ in range(levels - 1):
        items = [items]
    return items


lenient: Callable[[dict[str, Any]], object] = lambda fields: lenient_values(fields, print)  # noqa: E731


@pytest.mark.parametrize("check", [field_values, lenient])
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (2**64, "18446744073709551616"),
        (-(2**63) - 1, "-9223372036854775809"),
        pytest.param(10**6000, "19,932 bits", id="huge"),
        (np.array([2**64], dtype=object), "outside"),
        ([1, 2, 2**64], "outside"),
        ("a\ud800", "lone surrogate U+D800 at position 1"),
        ({"\udfff": 1}, "lone surrogate"),
        (Path("a\udc80"), "lone surrogate"),
        (loop(), "nested deeper than 64"),
        (circle(), "nested deeper than 64"),
        (tower(65), "nested deeper than 64"),
    ],
)
def test_what_no_file_can_hold_is_a_value_error_everywhere(check: Any, value: Any, found: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        check({"bad": value})
    assert found in str(caught.value)
    assert '"bad' in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("check", [field_values, lenient])
def test_keys_are_text_without_lone_surrogates(check: Any) -> None:
    with pytest.raises(UnsupportedType, match="the key 1 is int"):
        check({1: 2})
    with pytest.raises(InvalidValue, match="lone surrogate"):
        check({"\ud800": 2})
    assert [type(key) for key in check({Split.TRAIN: 1})] == [str]


def test_sixty_four_levels_are_allowed() -> None:
    assert plain_value(tower(64)) == tower(64)


def test_the_given_containers_are_never_the_recorded_ones() -> None:
    inner = [1.0, 2.0]
    kept: Any = field_values({"a": inner, "b": {"c": inner}})
    inner.append(3.0)
    assert kept == {"a": [1.0, 2.0], "b": {"c": [1.0, 2.0]}}


@given(plain_fields)
def test_plain_values_pass_unchanged(fields: dict[str, Any]) -> None:
    warnings: list[str] = []
    assert same(field_values(fields), fields)
    assert same(lenient_values(fields, warnings.append), fields)
    assert warnings == []


# JSON


def without_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_bytes(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_bytes(item) for item in value]
    return to_json(value) if isinstance(value, bytes) else value


def through_json(fields: dict[str, Any]) -> dict[str, Any]:
    line = json.dumps(to_json(fields), allow_nan=False)
    return from_json(json.loads(line), json.loads(json.dumps(texts_like_numbers(fields))))


@given(plain_fields)
@example({"a": {"b": "NaN"}, "a.b": math.nan})
@example({"a": {"b": math.nan}, "a.b": "NaN"})
@example({"a~1b": "NaN", "a.b": math.nan})
@example({"a": ["NaN", math.nan, ["-Infinity", -math.inf]], "a.0": math.nan})
@example({"": {"": "NaN"}, ".": math.nan})
def test_every_value_comes_back_from_strict_json_bit_by_bit(fields: dict[str, Any]) -> None:
    assert same(through_json(fields), without_bytes(fields))


def test_a_hundred_thousand_floats_come_back_from_strict_json_bit_by_bit() -> None:
    rng = random.Random(24)
    corners = [0, 1, 1 << 63, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, 0x10 << 48, (0x10 << 48) - 1]
    patterns = corners + [rng.getrandbits(64) for _ in range(100_000)]
    floats = list(struct.unpack(f"<{len(patterns)}d", struct.pack(f"<{len(patterns)}Q", *patterns)))
    assert same(through_json({"x": floats})["x"], floats)


def test_what_json_cannot_say_is_written_like_this() -> None:
    given = {
        "a": math.nan,
        "b": [math.inf, -math.inf],
        "c": b"\xfb\xff",
        "d": "NaN",
        "e": {"f": "Infinity"},
        "g.h": "NaN",
    }
    assert to_json(given) == {
        "a": "NaN",
        "b": ["Infinity", "-Infinity"],
        "c": "+/8=",
        "d": "NaN",
        "e": {"f": "Infinity"},
        "g.h": "NaN",
    }
    assert texts_like_numbers(given) == ["d", "e.f", "g~1h"]
    assert texts_like_numbers({"x": "nan", "y": "inf", "z": 1.0}) == []


# Flat and nested


def flat_keys(sep: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(["a", "b", "c", "", "é"]), min_size=1, max_size=4).map(sep.join)


leaves: st.SearchStrategy[Any] = st.none() | st.integers() | texts | st.lists(st.integers(), max_size=2) | st.just({})


@given(
    st.sampled_from([".", "/", "__"]).flatmap(
        lambda sep: st.tuples(st.just(sep), st.dictionaries(flat_keys(sep), leaves))
    )
)
def test_flatten_gives_back_what_unflatten_was_given(case: tuple[str, dict[str, Any]]) -> None:
    sep, flat = case
    assert flatten(unflatten(flat, sep), sep=sep) == flat


@given(
    st.recursive(
        leaves,
        lambda inner: st.dictionaries(st.text("abé ", min_size=1, max_size=2), inner, min_size=1, max_size=3),
    ).filter(lambda value: isinstance(value, dict))
)
def test_unflatten_gives_back_what_flatten_was_given(nested: dict[str, Any]) -> None:
    assert unflatten(flatten(nested)) == nested


@pytest.mark.parametrize(
    ("flat", "nested"),
    [
        ({}, {}),
        ({"a": 1}, {"a": 1}),
        ({"a.b": 1, "a.c": 2}, {"a": {"b": 1, "c": 2}}),
        ({"a": 1, "a.b": 2}, {"a": {"": 1, "b": 2}}),
        ({"a.b": 2, "a": 1}, {"a": {"b": 2, "": 1}}),
        ({"a": 1, "a.b": 2, "a.b.c": 3}, {"a": {"": 1, "b": {"": 2, "c": 3}}}),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1}]}),
        ({"a": {}}, {"a": {}}),
        ({"": 1, ".a": 2, "a.": 3, "a..b": 4}, {"": 1, ".a": 2, "a.": 3, "a..b": 4}),
        ({"a": 1, "a.": 2}, {"a": 1, "a.": 2}),
    ],
)
def test_flat_and_nested_forms(flat: dict[str, Any], nested: dict[str, Any]) -> None:
    assert unflatten(flat) == nested
    assert flatten(nested) == flat


def test_flatten_takes_a_parent_key_and_a_separator() -> None:
    assert flatten({"a": {"b": 1}}, "model") == {"model.a.b": 1}
    assert flatten({"": 1, "b": 2}, "model") == {"model": 1, "model.b": 2}
    assert flatten({"a": {"b": 1}}, sep="/") == {"a/b": 1}
    assert unflatten({"a/b.c": 1}, sep="/") == {"a": {"b.c": 1}}


# Times


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1_761_733_800_000_000_000, "2025-10-29T10:30:00.000000Z"),
        (1_761_733_800_123_456_789, "2025-10-29T10:30:00.123456Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (951_782_400 * 10**9, "2000-02-29T00:00:00.000000Z"),
        (2**63 - 1, "2262-04-11T23:47:16.854775Z"),
    ],
)
def test_times_are_written_like_this(time_ns: int, text: str) -> None:
    assert utc_text(time_ns) == text
    assert utc_text(time_ns) == text  # from the remembered second


@given(st.integers(-(2**63), 2**64 - 1))
def test_a_time_agrees_with_datetime_and_comes_back_cut_to_microseconds(time_ns: int) -> None:
    text = utc_text(time_ns)
    assert text == (EPOCH + timedelta(microseconds=time_ns // 1000)).isoformat(timespec="microseconds")[:-6] + "Z"
    assert parse_time(text) == time_ns // 1000 * 1000


@pytest.mark.parametrize(
    "text",
    [
        "2025-10-29T10:30:00.000000Z",
        "2025-10-29T10:30:00Z",
        "2025-10-29t10:30:00z",
        "2025-10-29 10:30",
        "2025-10-29T10:30:00.000000000",
        "2025-10-29T12:30:00+02:00",
        "2025-10-29T05:00:00,0-0530",
    ],
)
def test_other_ways_to_write_a_time_are_read(text: str) -> None:
    assert parse_time(text) == 1_761_733_800 * 10**9


def test_a_date_is_its_midnight_and_nine_decimals_are_kept() -> None:
    assert parse_time("1970-01-02") == 86_400 * 10**9
    assert parse_time("1970-01-01T00:00:00.123456789Z") == 123_456_789


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2025",
        "2025-13-01",
        "2025-02-30",
        "2025-10-29T25:00",
        "2025-10-29T10:30.5",
        "1761733800",
        "٢٠٢٥-10-29",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="is not a time"):
        parse_time(text)


def test_importing_values_loads_nothing_heavy() -> None:
    heavy = ("dataclasses", "datetime", "json", "numpy", "decimal", "urllib.request", "ml_dash.core.events")
    program = f"import sys; sys.path.insert(0, {str(Path(values.__file__).parents[2])!r}); import ml_dash.errors; "
    program += "before = set(sys.modules); import ml_dash.core.values; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert not set(heavy).intersection(done.stdout.split())


# -- more that counts as a mapping, a key or a number ----------------------------------------------------------------


class Key(enum.Enum):
    LEFT = "left"
    TWO = 2


class Attrs:
    """What attrs makes, as far as it can be told without importing it."""

    class Field:
        name = "lr"

    __attrs_attrs__ = (Field,)
    lr = 0.1


class Pydantic:
    """What pydantic makes, second version."""

    model_fields: ClassVar[dict[str, object]] = {"lr": None}
    model_extra: ClassVar[dict[str, object]] = {"more": 2}

    def __init__(self) -> None:
        self.lr = 0.1

    def model_dump(self) -> dict[str, object]:
        raise AssertionError("it would turn inner values into text")


def parameters(value: Any) -> dict[str, object]:
    found = values.as_mapping(value)
    assert found is not None
    told: list[str] = []
    plain = values.parameter_values(found, told.append)
    assert told == []
    return json_values.flatten(plain)


@dataclasses.dataclass
class Inner:
    depth: int


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (argparse.Namespace(lr=0.1, model=argparse.Namespace(depth=2)), {"lr": 0.1, "model.depth": 2}),
        (types.SimpleNamespace(model=Inner(3)), {"model.depth": 3}),
        (Attrs(), {"lr": 0.1}),
        (Pydantic(), {"lr": 0.1, "more": 2}),
        (MappingProxyType({"a": MappingProxyType({"b": 1})}), {"a.b": 1}),
        ({"a": {1: "x", 2.5: "y", False: "z"}}, {"a.1": "x", "a.2.5": "y", "a.False": "z"}),
        ({None: 1, Key.LEFT: 2, Key.TWO: 3, 7: 4}, {"None": 1, "left": 2, "2": 3, "7": 4}),
    ],
)
def test_what_holds_named_values_is_taken_for_a_mapping(given: Any, expected: dict[str, object]) -> None:
    assert parameters(given) == expected


@pytest.mark.parametrize("given", [{1: "a", "1": "b"}, {"x": {None: 1, "None": 2}}, {Key.LEFT: 1, "left": 2}])
def test_two_keys_that_become_one_are_refused_by_name(given: Any) -> None:
    with pytest.raises(InvalidValue, match="both become"):
        parameters(given)


def test_a_namespace_that_contains_itself_is_refused() -> None:
    loop = types.SimpleNamespace()
    loop.inner = loop
    with pytest.raises(InvalidValue, match="contains itself"):
        parameters(loop)


@pytest.mark.parametrize("given", [Decimal("0.5"), Fraction(1, 2)])
def test_exact_numbers_become_floats(given: object) -> None:
    assert values.field_values({"value": given}) == {"value": 0.5}
