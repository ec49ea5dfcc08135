"""Metrics: points appended one by one and in batches, pages, totals, series, names, and on disk."""

from __future__ import annotations

import copy
import json
import math
import pickle
import struct
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ml_dash import Experiment, InvalidName, InvalidValue, NotFound, UnsupportedType

if TYPE_CHECKING:
    from tests.api.conftest import Make

NAN = math.nan


def _data(experiment: Experiment, name: str = "loss") -> list[dict[str, Any]]:
    return [point["data"] for point in experiment.metric(name).read(limit=10_000)["data"]]


# -- append -----------------------------------------------------------------------------------------------------------


def test_a_point_has_any_fields_and_they_may_vary(opened: Experiment) -> None:
    loss = opened.metric("loss")
    loss.append(value=0.5, epoch=1)
    loss.append(accuracy=0.9)
    loss.append(self=1, name="x", arguments=[2], value=None)
    assert _data(opened) == [
        {"value": 0.5, "epoch": 1}, {"accuracy": 0.9}, {"self": 1, "name": "x", "arguments": [2], "value": None},
    ]  # fmt: skip


def test_append_returns_where_the_point_is(opened: Experiment) -> None:
    for number in range(3):
        result = opened.metric("loss").append(value=number)
        assert dict(result) == {
            "metricId": opened.metric("loss").stats()["metricId"], "index": number, "bufferedDataPoints": number + 1,
            "chunkSize": 10_000,
        }  # fmt: skip
        assert result["metricId"].isdecimal()


def test_buffered_points_are_those_beyond_the_last_full_chunk(opened: Experiment) -> None:
    batch = opened.metric("loss").append_batch([{"value": 0}] * 10_003)
    assert (batch["endIndex"], batch["bufferedDataPoints"], batch["chunkSize"]) == (10_002, 3, 10_000)
    stats = opened.metric("loss").stats()
    assert (stats["totalDataPoints"], stats["bufferedDataPoints"], stats["chunkedDataPoints"]) == (10_003, 3, 10_000)
    assert (stats["totalChunks"], stats["chunkSize"]) == (1, 10_000)


LOOKS: dict[str, Any] = {
    "dict": dict,
    "unpacked": lambda result: {**result},
    "copy": lambda result: result.copy(),
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda result: pickle.loads(pickle.dumps(result)),
    "json": lambda result: json.loads(json.dumps(result)),
    "items": lambda result: dict(result.items()),
    "zipped": lambda result: dict(zip(result.keys(), result.values(), strict=True)),
    "iterated": lambda result: {key: result[key] for key in result},
    "or": lambda result: result | {},
    "ror": lambda result: {} | result,
    "popped": lambda result: {key: result.pop(key) for key in list(reversed(result))},
    "updated": lambda result: dict([*result.items()]),
    "repr": lambda result: json.loads(repr(result).replace("'", '"')),
}


@pytest.mark.parametrize("look", LOOKS)
def test_the_result_is_a_mapping_however_one_looks_at_it(opened: Experiment, look: str) -> None:
    expected = {"metricId": opened.metric("loss").append(value=0)["metricId"], "chunkSize": 10_000}
    result: Any = opened.metric("loss").append(value=1)
    assert LOOKS[look](result) == {**expected, "index": 1, "bufferedDataPoints": 2}
    batch: Any = opened.metric("loss").append_batch([{"value": 1}] * 3)
    assert LOOKS[look](batch) == {**expected, "startIndex": 2, "endIndex": 4, "count": 3, "bufferedDataPoints": 5}


def test_the_result_answers_single_questions(opened: Experiment) -> None:
    append = opened.metric("loss").append
    assert "index" in append(value=1)
    assert append(value=1).get("index") == 1
    assert len(append(value=1)) == 4
    assert append(value=1) != append(value=1)
    assert append(value=1).get("other", 5) == 5
    with pytest.raises(KeyError):
        append(value=1)["other"]  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda e: e.metric("loss").append(), InvalidValue, r"no fields; name them, like append\(value=0.5, step=1\)"),
        (lambda e: e.metric("loss").append(0.25), UnsupportedType, r"named fields only; use append\(value=0.25\)"),
        (lambda e: e.metric("loss").append("x"), UnsupportedType, r"use append\(value=0.5\)"),
        (lambda e: e.metric("loss").append({"value": 1}), UnsupportedType, r"not a mapping; use append\(\*\*\{...\}\)"),
        (lambda e: e.metric("loss", {"value": 1}), UnsupportedType, r"use experiment.metric\('loss'\).append\(...\)"),
        (lambda e: e.metric("loss", 5), UnsupportedType, r"use experiment.metric\('loss'\).append\(value=5\)"),
            (lambda e: e.metric("loss", b"5"), UnsupportedType, "description is bytes, expected text"),
        (lambda e: e.metric("loss", tags=5), UnsupportedType, "expected a list of text"),
        (lambda e: e.metric("loss", metadata=5), UnsupportedType, "metadata is int, expected a mapping"),
        (lambda e: e.metric("loss").append(a_set={1}), UnsupportedType, '"a_set" is set, which cannot be recorded'),
        (lambda e: e.metric("loss").append(deep={"x": [object()]}), UnsupportedType, '"deep.x" is object, which'),
        (lambda e: e.metric("loss").append(big=2**64), InvalidValue, r'"big" is 18446744073709551616, outside'),
        (lambda e: e.metric("loss").append(big=2**64, x=[1]), InvalidValue, r'"big" is 18446744073709551616, outside'),
        (lambda e: e.metric("loss").append(text="\ud800"), InvalidValue, '"text" holds a lone surrogate'),
        (lambda e: e.metric("loss").append(**{"\ud800": 1}), InvalidValue, "holds a lone surrogate"),
        (lambda e: e.metric("loss").append(array=np.zeros(1025)), UnsupportedType, "numpy.ndarray, which has 1,025"),
        (lambda e: e.metric("loss").append(keys={1: 2}), UnsupportedType, '"keys" has the key 1, which is int'),
        (lambda e: e.metric("loss", "d").append(big=2**64), InvalidValue, '"big" is'),
    ],
)  # fmt: skip
def test_slips_are_refused_by_name_and_nothing_is_recorded(
    opened: Experiment, call: Any, error: Any, text: str
) -> None:
    with pytest.raises(error, match=text):
        call(opened)
    assert opened.metric("loss").read()["data"] == []
    assert opened.metric().list_all() == []


# -- append_batch -----------------------------------------------------------------------------------------------------


def test_a_batch_is_one_event_and_tells_its_bounds(opened: Experiment) -> None:
    opened.metric("loss").append(value=-1)
    before = opened.data["counts"]["events"]
    batch = opened.metric("loss").append_batch([{"value": number, "step": 2 * number} for number in range(1000)])
    assert (batch["startIndex"], batch["endIndex"], batch["count"]) == (1, 1000, 1000)
    assert opened.data["counts"]["events"] == before + 1
    assert _data(opened)[1:] == [{"value": number, "step": 2 * number} for number in range(1000)]


def test_points_of_a_batch_may_vary(opened: Experiment) -> None:
    rows: list[dict[str, Any]] = [{"a": 1}, {"b": [1, {"c": NAN}]}, {"a": "x", "b": None}, {"a": np.float32(0.5)}]
    assert opened.metric("loss").append_batch(rows)["count"] == 4
    assert repr(_data(opened)) == repr([{"a": 1}, {"b": [1, {"c": NAN}]}, {"a": "x", "b": None}, {"a": 0.5}])


def test_any_iterable_of_mappings_is_a_batch(opened: Experiment) -> None:
    opened.metric("loss").append_batch({"value": number} for number in range(3))
    opened.metric("loss").append_batch(({"value": 3}, {"value": 4}))
    assert [point["value"] for point in _data(opened)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", [0, 3000], ids=["numbers", "texts"])
def test_a_batch_of_any_size_is_whole(make: Make, text: int) -> None:
    """Over a frame's size it becomes several events, with one result."""
    count = 250_000 if not text else 2000
    more = {"text": "x" * text} if text else {}
    rows = [{"value": float(number), **more} for number in range(count)]
    with make() as experiment:
        experiment.metric("loss").append(value=-1.0)
        batch = experiment.metric("loss").append_batch(rows)
        assert (batch["startIndex"], batch["endIndex"], batch["count"]) == (1, count, count)
        last = experiment.metric("loss").read(start_index=-1)["data"][0]
        assert (last["index"], last["data"]) == (count, rows[-1])


@pytest.mark.parametrize(
    ("points", "error", "text"),
    [
        ([], InvalidValue, "was given no points; give at least one"),
        ((), InvalidValue, "was given no points"),
        ({"value": 1}, UnsupportedType, "points are dict, expected a list of mappings"),
        ("points", UnsupportedType, "points are str, expected a list of mappings"),
        (5, UnsupportedType, "points are int, expected a list of mappings"),
        ([{"value": 1}, 2], UnsupportedType, "a point is int, expected a mapping"),
        ([{"value": 1}, {}], InvalidValue, "a point has no fields"),
        ([{}], InvalidValue, "a point has no fields"),
        ([{"value": 1}, {"value": {1}}], UnsupportedType, '"value" is set'),
        ([{"value": 1}, {"value": 2**64}], InvalidValue, '"value" is 18446744073709551616'),
        ([{"value": 1}, {"value": "\ud800"}], InvalidValue, '"value" holds a lone surrogate'),
        ([{"value": 1}, {1: 2}], UnsupportedType, "the key 1 is int, expected str"),
        ([{"value": 1.0}] * 200_000 + [{"value": 2**64}], InvalidValue, '"value" is 18446744073709551616'),
        ([{"value": 1.0}] * 200_000 + [{"value": "\ud800"}], InvalidValue, '"value" holds a lone surrogate'),
    ],
    ids=range(14),
)
def test_a_batch_with_one_bad_point_is_refused_whole(opened: Experiment, points: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        opened.metric("loss", description="d").append_batch(points)
    assert opened.metric().list_all() == []


# -- read -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ten(opened: Experiment) -> Experiment:
    opened.metric("loss").append_batch([{"value": number} for number in range(10)])
    return opened


@pytest.mark.parametrize(
    ("bounds", "indices", "start", "more"),
    [
        ({}, range(10), 0, False),
        ({"limit": 3}, range(3), 0, True),
        ({"start_index": 4, "limit": 3}, range(4, 7), 4, True),
        ({"start_index": 7, "limit": 3}, range(7, 10), 7, False),
        ({"start_index": -2}, range(8, 10), 8, False),
        ({"start_index": -3, "limit": 1}, range(7, 8), 7, True),
        ({"start_index": -100, "limit": 2}, range(2), 0, True),
        ({"start_index": 10}, range(0), 10, False),
        ({"start_index": 1000, "limit": 5}, range(0), 1000, False),
        ({"start_index": np.int64(9), "limit": np.int64(1)}, range(9, 10), 9, False),
        ({"limit": 10_000}, range(10), 0, False),
    ],
)
def test_a_page_has_what_was_asked_for(ten: Experiment, bounds: Any, indices: range, start: int, more: bool) -> None:
    page = ten.metric("loss").read(**bounds)
    assert [(point["index"], point["data"]) for point in page["data"]] == [(i, {"value": i}) for i in indices]
    assert {key: value for key, value in page.items() if key != "data"} == {
        "startIndex": start, "endIndex": start + len(indices) - 1, "total": len(indices), "hasMore": more,
    }  # fmt: skip


@pytest.mark.parametrize("start", [0, 5])
def test_an_unknown_metric_gives_an_empty_page(opened: Experiment, start: int) -> None:
    assert opened.metric("none").read(start_index=start) == {
        "data": [], "startIndex": start, "endIndex": start - 1, "total": 0, "hasMore": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "error", "text"),
    [
        ({"limit": 10_001}, InvalidValue, "limit is 10001; use 1 to 10,000"),
        ({"limit": -1}, InvalidValue, "limit is -1"),
        ({"limit": "5"}, UnsupportedType, "limit is str, expected int"),
        ({"start_index": 0.5}, UnsupportedType, "start_index is float, expected int"),
        ({"start_index": None}, UnsupportedType, "start_index is NoneType, expected int"),
    ],
)
def test_a_page_that_cannot_be_is_refused(ten: Experiment, bounds: dict[str, Any], error: Any, text: str) -> None:
    for name in ("loss", "none"):
        with pytest.raises(error, match=text):
            ten.metric(name).read(**bounds)


def test_a_read_sees_every_append_made_before_it(opened: Experiment) -> None:
    for number in range(200):
        opened.metric("loss").append(value=number)
        page = opened.metric("loss").read(start_index=-1)
        assert (page["startIndex"], page["data"][0]["data"]) == (number, {"value": number})


def test_indices_go_on_across_reopenings(make: Make) -> None:
    for turn in range(3):
        with make() as experiment:
            assert experiment.metric("loss").append(value=turn)["index"] == 2 * turn
            assert experiment.metric("loss").append_batch([{"value": turn}])["startIndex"] == 2 * turn + 1
            points = experiment.metric("loss").read()["data"]
            assert [point["index"] for point in points] == list(range(2 * turn + 2))


def test_a_folder_that_was_edited_does_not_change_what_is_read(make: Make) -> None:
    with make() as experiment:
        experiment.metric("loss").append_batch([{"value": number} for number in range(5)])
    path = experiment.path / "metrics" / "loss" / "data.jsonl"
    for damage in (lambda: path.write_bytes(path.read_bytes()[:-20]), path.unlink):
        damage()
        with make(read_only=True) as reader:
            assert [point["value"] for point in _data(reader)] == [0, 1, 2, 3, 4]


# -- stats, list_all --------------------------------------------------------------------------------------------------


def test_stats_tell_all_of_a_metric(opened: Experiment) -> None:
    begun = datetime.now(timezone.utc).isoformat()[:19]
    opened.metric("loss", "d", ["a"], {"unit": "nats"}).append(value=1)
    opened.metric("loss").append(value=2)
    stats = opened.metric("loss").stats()
    assert list(stats)[:14] == [
        "metricId", "name", "description", "tags", "metadata", "totalDataPoints", "bufferedDataPoints",
        "chunkedDataPoints", "totalChunks", "chunkSize", "firstDataAt", "lastDataAt", "createdAt", "updatedAt",
    ]  # fmt: skip
    assert (stats["name"], stats["description"], stats["tags"]) == ("loss", "d", ["a"])
    assert stats["metadata"] == {"unit": "nats"}
    assert (stats["totalDataPoints"], stats["bufferedDataPoints"], stats["totalChunks"]) == (2, 2, 0)
    points = opened.metric("loss").read()["data"]
    assert (stats["firstDataAt"], stats["lastDataAt"]) == (points[0]["createdAt"], points[1]["createdAt"])
    assert begun <= stats["createdAt"] <= points[0]["createdAt"]
    assert stats["updatedAt"] >= points[1]["createdAt"]


def test_stats_of_an_unknown_metric_are_not_found(opened: Experiment) -> None:
    with pytest.raises(FileNotFoundError, match="metric 'none' has no points in cv/first") as caught:
        opened.metric("none").stats()
    assert isinstance(caught.value, NotFound)


def test_extras_of_the_first_append_are_kept_and_later_ones_replace_what_they_give(make: Make) -> None:
    with make() as experiment:
        experiment.metric("loss").append(value=0)
        experiment.metric("loss", description="old", tags=["a"], metadata={"k": 1}).append(value=1)
        experiment.metric("loss", description="never used")
    with make() as experiment:
        experiment.metric("loss", description="new", metadata={"n": 2}).append_batch([{"value": 2}])
        stats = experiment.metric("loss").stats()
        assert (stats["description"], stats["tags"], stats["metadata"]) == ("new", ["a"], {"n": 2})


def test_all_metrics_are_listed_with_and_without_a_name(opened: Experiment) -> None:
    assert opened.metric().list_all() == opened.metric("any").list_all() == []
    opened.metric("b", description="d", tags=["t"]).append(value=1)
    opened.metric("a/b").append_batch([{"value": 1}] * 2)
    listed = opened.metric().list_all()
    assert listed == opened.metric("any").list_all()
    assert all(
        list(one) == ["metricId", "name", "description", "tags", "totalDataPoints", "createdAt"] for one in listed
    )
    assert {one["name"]: (one["description"], one["tags"], one["totalDataPoints"]) for one in listed} == {
        "b": ("d", ["t"], 1), "a/b": (None, None, 2),
    }  # fmt: skip


def test_every_numeric_field_is_a_series_with_statistics(make: Make, read_json: Any) -> None:
    with make() as experiment:
        loss = experiment.metric("loss")
        loss.append(value=3.0, accuracy=1, step=0, epoch=0, timestamp=1.5, note="text", flag=True)
        loss.append(value=-1.0, accuracy=2)
        loss.append_batch([{"value": 4.0}, {"value": 2}])
        series: Any = loss.stats()["series"]
        assert series == {
            "loss": {"count": 4, "first": 3.0, "last": 2, "min": -1.0, "max": 4.0, "mean": 2.0},
            "loss.accuracy": {"count": 2, "first": 1, "last": 2, "min": 1, "max": 2, "mean": 1.5},
        }
    assert read_json(experiment.path / "metrics" / "loss" / "metadata.json")["series"] == series


def test_statistics_are_those_of_all_points_across_reopenings(make: Make, rng: Any) -> None:
    values = [rng.uniform(-1e9, 1e9) for _ in range(3000)]
    for part in range(3):
        with make() as experiment:
            mine = values[1000 * part : 1000 * part + 1000]
            for value in mine[:500]:
                experiment.metric("loss").append(value=value)
            experiment.metric("loss").append_batch([{"value": value} for value in mine[500:]])
    with make(read_only=True) as reader:
        series: Any = reader.metric("loss").stats()["series"]["loss"]
    assert (series["count"], series["first"], series["last"]) == (3000, values[0], values[-1])
    assert (series["min"], series["max"]) == (min(values), max(values))
    assert series["mean"] == pytest.approx(math.fsum(values) / 3000)


# -- values -----------------------------------------------------------------------------------------------------------


def test_floats_come_back_bit_for_bit(make: Make, rng: Any) -> None:
    odd = [0.0, -0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1, 1 / 3, math.inf, -math.inf]
    values = odd + [struct.unpack("<d", rng.randbytes(8))[0] for _ in range(2000)]
    with make() as experiment:
        for value in values:
            experiment.metric("single").append(value=value)
        experiment.metric("batch").append_batch([{"value": value} for value in values])
    with make(read_only=True) as reader:
        for name in ("single", "batch"):
            found = [point["value"] for point in _data(reader, name)]
            assert [_bits(value) for value in found] == [_bits(value) for value in values]


def _bits(value: float) -> bytes:
    return b"NaN" if value != value else struct.pack("<d", value)


@pytest.mark.parametrize("value", [-(2**63), -1, 0, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_integers_come_back_as_the_same_integers(make: Make, value: int) -> None:
    with make() as experiment:
        experiment.metric("loss").append(value=value)
        experiment.metric("loss").append_batch([{"value": value}, {"value": value}])
        assert _data(experiment) == [{"value": value}] * 3
        assert all(type(point["value"]) is int for point in _data(experiment))
    with make(read_only=True) as reader:
        series: Any = reader.metric("loss").stats()["series"]["loss"]
        assert (series["first"], series["min"], series["max"]) == (value, value, value)


def test_nan_and_infinities_are_told_from_texts_that_look_like_them(make: Make, read_lines: Any) -> None:
    point = {"value": NAN, "inf": math.inf, "low": -math.inf, "text": "NaN"}
    point |= {"list": [NAN, "Infinity"], "deep": {"x": "-Infinity"}}
    with make() as experiment:
        experiment.metric("loss").append(**point)
        experiment.metric("loss").append_batch([point, {"other": 1}])
        assert repr(_data(experiment)) == repr([point, point, {"other": 1}])
    first = read_lines(experiment.path / "metrics" / "loss" / "data.jsonl")[0]
    assert first["data"] == {
        "value": "NaN", "inf": "Infinity", "low": "-Infinity", "text": "NaN", "list": ["NaN", "Infinity"],
        "deep": {"x": "-Infinity"},
    }  # fmt: skip
    assert first["text"] == ["text", "list.1", "deep.x"]
    with make(read_only=True) as reader:
        assert repr(_data(reader)) == repr([point, point, {"other": 1}])


def test_nan_counts_but_is_neither_minimum_nor_maximum_nor_part_of_the_mean(opened: Experiment) -> None:
    for value in (NAN, 1.0, 3.0, NAN):
        opened.metric("loss").append(value=value)
    series: Any = opened.metric("loss").stats()["series"]["loss"]
    assert (series["count"], series["min"], series["max"], series["mean"]) == (4, 1.0, 3.0, 2.0)
    assert math.isnan(series["first"])
    assert math.isnan(series["last"])


@pytest.mark.parametrize("value", [0, -5, 10**18, NAN, "x", None, [1], 1.5])
def test_steps_are_stored_as_given(opened: Experiment, value: Any) -> None:
    for step in (5, value, value, 3):
        opened.metric("loss").append(value=1.0, step=step)
    assert repr([point["step"] for point in _data(opened)]) == repr([5, value, value, 3])


# -- names ------------------------------------------------------------------------------------------------------------

NAMES = [
    "loss", "train/loss", "train/loss/deep", "train", "val acc", "Größe", "🚀", "..", ".", "/abs", "a//b", "a/", "/",
    "../../escape", "data.jsonl", "metadata.json", "a/data.jsonl", ".hidden", "a/.hidden", "trailing.", "trailing ",
    "%41", "A", "a", "CON", "nul.txt", 'q"<>:|?*\\', "x" * 1000, "y" * 300, "/".join("z" * 100 for _ in range(9)),
    "e\u0301", "\u00e9",
]  # fmt: skip


def test_any_name_is_its_own_metric_and_comes_back_exactly(make: Make, runs: Any, read_json: Any) -> None:
    with make() as experiment:
        for number, name in enumerate(NAMES):
            experiment.metric(name).append(value=number)
    with make(read_only=True) as reader:
        assert sorted(metric["name"] for metric in reader.metric().list_all()) == sorted(NAMES)
        for number, name in enumerate(NAMES):
            assert _data(reader, name) == [{"value": number}], name
            assert reader.metric(name).stats()["name"] == name
    documents = [read_json(path) for path in (experiment.path / "metrics").rglob("metadata.json")]
    assert sorted(document["name"] for document in documents) == sorted(NAMES)
    outside = [path for path in runs.parent.rglob("data.jsonl") if experiment.path / "metrics" not in path.parents]
    assert outside == []


def test_ordinary_names_are_folders(make: Make) -> None:
    with make() as experiment:
        for name in ("loss", "train/loss", "val acc"):
            experiment.metric(name).append(value=1)
    metrics = experiment.path / "metrics"
    assert sorted(str(path.parent.relative_to(metrics)) for path in metrics.rglob("data.jsonl")) == [
        "loss", "train/loss", "val acc",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("", InvalidName, "metric name is empty; use 1 to 1,000 bytes"),
        ("x" * 1001, InvalidName, "is longer than 1,000 bytes of UTF-8"),
        ("é" * 501, InvalidName, "is longer than 1,000 bytes of UTF-8"),
        ("a\nb", InvalidName, r"contains the control character U\+000A"),
        ("\x00", InvalidName, r"contains the control character U\+0000"),
        ("\udcff", InvalidName, r"contains the lone surrogate U\+DCFF"),
        (5, UnsupportedType, "metric name is int, expected str"),
        (["loss"], UnsupportedType, "metric name is list, expected str"),
    ],
)
def test_bad_names_are_refused_with_the_reason(opened: Experiment, name: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        opened.metric(name)


# -- on disk ----------------------------------------------------------------------------------------------------------


def test_lines_and_metadata_are_as_documented(make: Make, read_json: Any) -> None:
    with make() as experiment:
        experiment.metric("loss", "d", ["a"], {"k": NAN}).append(value=0.5, epoch=1)
        experiment.metric("loss").append(value=0.25, epoch=2)
        points = experiment.metric("loss").read()["data"]
    folder = experiment.path / "metrics" / "loss"
    assert (folder / "data.jsonl").read_text(encoding="utf-8") == "".join(
        json.dumps(point, separators=(",", ":")) + "\n" for point in points
    )
    document = read_json(folder / "metadata.json")
    assert {
        key: document[key]
        for key in ("name", "description", "tags", "metadata", "totalDataPoints", "nextIndex", "createdAt", "updatedAt")
    } == {
        "name": "loss", "description": "d", "tags": ["a"], "metadata": {"k": "NaN"}, "totalDataPoints": 2,
        "nextIndex": 2, "createdAt": document["createdAt"], "updatedAt": points[1]["createdAt"],
    }  # fmt: skip
    assert document["metricId"].isdecimal()


def test_a_series_is_taken_where_a_metric_is_read(make: Make) -> None:
    with make() as experiment:
        experiment.metric("val").append(acc=0.5, step=1)
        experiment.metric("val").append(acc=0.7, step=2)
        # As tables print it.
        series = experiment.metric("val.acc")
        assert series.read() == experiment.metric("val").read()
        assert series.last() == experiment.metric("val").last()
        assert series.stats() == experiment.metric("val").stats()
        with pytest.raises(NotFound, match=r"no points in .*; did you mean 'val.acc'"):
            experiment.metric("val.ac").stats()
        assert experiment.metric("val.ac").read()["total"] == 0
        # A metric of that very name comes first.
        series.append(value=7.0)
        assert [point["data"] for point in series.read()["data"]] == [{"value": 7.0}]
    with make(read_only=True) as reader:
        assert reader.metric("val.acc").read()["total"] == 1
