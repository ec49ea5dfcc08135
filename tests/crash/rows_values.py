"""Rows W23 to W26: steps in any order, every value, every name, and content that is far too large or too strange."""

from __future__ import annotations

import base64
import json
import math
import os
import random
import struct
from pathlib import Path
from typing import Any, Final

from ml_dash.errors import InvalidInput, UnsupportedType
from tests.faults.harness import Row, Trial

from . import oracle_reader as disk
from .compare import points_of, tree
from .victims import NAME, PROJECT, experiment, journal_of

_SPECIAL_TEXTS: Final = (
    "NaN",
    "Infinity",
    "-Infinity",
    "nan",
    "inf",
    "null",
    "",
    "\u2028",
    "\ud7ff",
    "日本語",
    "🙂",
    '"',
    "\\",
    "\x7f",
)


def _strict(path: Path) -> list[Any]:
    """The lines of a JSONL file (or the one object of a JSON file), by a parser that knows no NaN."""

    def refuse(text: str) -> Any:
        raise ValueError(f"{path.name} holds {text}, which is no JSON")

    content = path.read_bytes()
    parts = [line for line in content.split(b"\n") if line] if path.suffix == ".jsonl" else [content]
    return [json.loads(part, parse_constant=refuse) for part in parts]


def _same(one: Any, other: Any) -> bool:
    """Equal in type and in every bit (any NaN is a NaN)."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _float(rng: random.Random) -> float:
    if rng.random() < 0.3:
        return rng.choice(
            (0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308)
        )
    (value,) = struct.unpack("<d", rng.randbytes(8))
    return float(value)


def _int(rng: random.Random) -> int:
    edge = rng.choice((0, 1, 2**7, 2**8, 2**15, 2**16, 2**31, 2**32, 2**53, 2**63 - 1, 2**64 - 1, -(2**31), -(2**63)))
    return min(2**64 - 1, max(-(2**63), edge + rng.randrange(-2, 3)))


def value_of(rng: random.Random, depth: int = 0) -> Any:
    """Any value that a field may have; what is read back is `read_back` of it."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return _int(rng)
    if kind in (2, 3):
        return _float(rng)
    if kind == 4:
        return rng.choice(_SPECIAL_TEXTS) + rng.choice(("", "x", str(rng.random())))[: rng.randrange(8)]
    if kind == 5:
        return rng.randbytes(rng.randrange(20))
    if kind == 6:
        return [value_of(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(("a", "b", "NaN", "k k", "é")): value_of(rng, depth + 1) for _ in range(rng.randrange(4))}
    return tuple(value_of(rng, depth + 1) for _ in range(rng.randrange(3)))


def read_back(value: Any) -> Any:
    """What the API says is read where that was given."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (list, tuple)):
        return [read_back(part) for part in value]
    if isinstance(value, dict):
        return {key: read_back(part) for key, part in value.items()}
    return value


def steps_as_given(trial: Trial) -> None:
    """W23. Steps repeat, go back, are huge or no numbers: stored as given, in the order of the calls."""
    rng = trial.rng
    steps = [rng.choice((0, 1, 1, 5, 4, 10**18, -7, math.nan, 2.5, "seven", None, True)) for _ in range(20)]
    with experiment(trial.folder) as target:
        for number, step in enumerate(steps):
            target.metric("loss").append(value=float(number), step=step)
        points = target.metric("loss").read(limit=100)["data"]
        target.metric("loss").stats()
    trial.counts["steps"] += len(steps)
    got = [point["data"] for point in points]
    want = [{"value": float(number), "step": step} for number, step in enumerate(steps)]
    trial.check(_same(got, want), f"given {want}, read {got}")
    lines = _strict(trial.folder / "store" / PROJECT / NAME / "metrics" / "loss" / "data.jsonl")
    trial.check([line["index"] for line in lines] == list(range(len(steps))), "a line was dropped")


def values_bit_by_bit(trial: Trial) -> None:
    """W24. Every value comes back with the same type and bits, in memory, after reopening, and as strict JSON."""
    rng = trial.rng
    rows = [{f"f{n}": value_of(rng) for n in range(10)} for _ in range(10)]
    with experiment(trial.folder) as target:
        for row in rows[:5]:
            target.metric("v").append(**row)
        target.metric("v").append_batch(rows[5:])
        target.parameters().set({f"p{n}": row["f0"] for n, row in enumerate(rows) if not isinstance(row["f0"], dict)})
        target.log("values", metadata=rows[0])
        _refuse_the_impossible(trial, target)
        live = [point["data"] for point in target.metric("v").read(limit=100)["data"]]
    want = [read_back(row) for row in rows]
    trial.counts["values"] += 100
    trial.check(_same(live, want), _difference("read by the writer", want, live))
    with experiment(trial.folder, read_only=True) as reader:
        later = [point["data"] for point in reader.metric("v").read(limit=100)["data"]]
        trial.check(_same(later, want), _difference("read later", want, later))
        entry = reader.log().read()["logs"][0]
        trial.check(_same(entry["metadata"], want[0]), _difference("metadata", want[0], entry["metadata"]))
        parameters = reader.parameters().get()
        given = {f"p{n}": read_back(row["f0"]) for n, row in enumerate(rows) if not isinstance(row["f0"], dict)}
        trial.check(_same(parameters, given), _difference("parameters", given, parameters))
    for path in (trial.folder / "store" / PROJECT / NAME).rglob("*.json*"):
        if ".journal" not in path.parts:
            _strict(path)
    stored = [
        point
        for *_, kind, _, body in disk.read_journal(journal_of(trial.folder)).in_order()
        if kind in (disk.POINT, disk.ROWS, disk.POINTS) and body[0] == "v"
        for point in points_of(kind, body)
    ]
    trial.check(len(stored) == len(rows), f"{len(stored)} points in the journal")


def _difference(where: str, want: Any, got: Any) -> str:
    pairs = zip(want, got, strict=False) if isinstance(want, list) else [(want, got)]
    first = next(((a, b) for a, b in pairs if not _same(a, b)), (len(want), len(got)))
    return f"{where}: given {first[0]!r:.300}, got {first[1]!r:.300}"


def _refuse_the_impossible(trial: Trial, target: Any) -> None:
    import numpy as np

    before = target.durable_state()["accepted"]
    for bad in (
        2**64,
        -(2**63) - 1,
        {1, 2},
        object(),
        1j,
        "\ud800",
        {"k": "\udfff"},
        {1: 2},
        np.zeros(2000),
    ):
        try:
            target.metric("bad").append(value=bad)
        except (InvalidInput, UnsupportedType):
            continue
        trial.fail(f"a metric took {bad!r:.60}")
    trial.check(target.durable_state()["accepted"] == before, "a refused value was recorded")
    for scalar, plain in (
        (np.float64(0.1), 0.1),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int64(-3), -3),
        (np.bool_(True), True),
        (np.array([1.5, 2.5]), [1.5, 2.5]),
    ):
        target.metric("numpy").append(value=scalar)
        got = target.metric("numpy").read(start_index=-1)["data"][0]["data"]["value"]
        trial.check(_same(got, plain), f"{scalar!r} became {got!r}")


_ALPHABET: Final = (
    "a",
    "A",
    "é",
    "e\u0301",
    "/",
    "//",
    ".",
    "..",
    "\\",
    " ",
    "%",
    "%2F",
    ":",
    "*",
    "?",
    "<",
    "|",
    '"',
    "CON",
    "nul",
    "data.jsonl",
    "metadata.json",
    "\u202e",
    "🙂",
    "日",
    "-",
    "_",
    "%%",
    "~",
    "x" * 143,
    "y" * 255,
    "\u00df",
    "\u017f",
    "K",
)
_NAMES: Final = (
    "..",
    ".",
    "/",
    "//",
    "a//b",
    "/abs",
    "a/",
    "a/../b",
    "../../../../etc/passwd",
    "CON",
    "con.txt",
    "aux.",
    "trailing ",
    "trailing.",
    "a",
    "A",
    "loss",
    "Loss",
    "loss/data.jsonl",
    "data.jsonl",
    "metadata.json",
    ".hidden",
    "a/.hidden",
    "%",
    "%2e%2e",
    "é",
    "e\u0301",
    "\ud7ff",
    "x" * 255,
    "x" * 256,
    "x" * 1000,
    "é" * 500,
    "a/" * 499 + "a",
    "\u202egpj.exe",
    "🙂" * 250,
    "a\u200bb",
    "~",
    "~root",
    "-rf",
)
_BAD_NAMES: Final = ("", "\0", "a\0b", "a\nb", "\x1b[31m", "\ud800", "a\udfffb", "x" * 1001, "é" * 501, "\x7f", "\x85")


def name_of(rng: random.Random) -> str:
    """A name that is legal for a metric."""
    if rng.random() < 0.3:
        return rng.choice(_NAMES)
    while True:
        name = "".join(rng.choice(_ALPHABET) for _ in range(rng.randrange(1, 7)))
        if len(name.encode()) <= 1000:
            return name


def names_apart(trial: Trial) -> None:
    """W25. Each name has a file of its own, inside the folder, and comes back exactly; what is no name is refused."""
    rng = trial.rng
    names = sorted({name_of(rng) for _ in range(60)})
    outside = tree(trial.folder)
    with experiment(trial.folder) as target:
        for number, name in enumerate(names):
            target.metric(name).append(value=number)
        for bad in _BAD_NAMES:
            try:
                target.metric(bad).append(value=1)
            except (InvalidInput, UnsupportedType):
                continue
            trial.fail(f"a metric may be called {bad[:20]!r}")
        listed = sorted(summary["name"] for summary in target.metric().list_all())
        trial.check(listed == names, f"listed: {sorted(set(listed) ^ set(names))[:3]}")
        for number, name in enumerate(names):
            got = target.metric(name).read()["data"]
            trial.check([p["data"] for p in got] == [{"value": number}], f"metric {name[:40]!r} gives {got}")
    trial.counts["names"] += len(names)
    home = trial.folder / "store" / PROJECT / NAME
    found = {json.loads(path.read_bytes())["name"]: path.parent for path in (home / "metrics").rglob("metadata.json")}
    trial.check(sorted(found) == names, f"metadata names: {sorted(set(found) ^ set(names))[:3]}")
    trial.check(len({os.path.realpath(path) for path in found.values()}) == len(names), "two names share a folder")
    for name, path in found.items():
        lines = _strict(path / "data.jsonl")
        trial.check([line["data"]["value"] for line in lines] == [names.index(name)], f"{name[:40]!r} has other lines")
        trial.check(all(len(part.encode()) <= 255 for part in path.parts), "a part is too long")
    stray = [path for path in tree(trial.folder) if path not in outside and not path.startswith("store")]
    trial.check(not stray, f"made outside: {stray[:3]}")
    _experiment_names(trial, rng)


def _experiment_names(trial: Trial, rng: random.Random) -> None:
    from ml_dash import Experiment

    for _ in range(5):
        name, project = name_of(rng), name_of(rng)
        legal = all(
            part and len(part.encode()) <= 200 and part[0] != "." and not set(part) & {"/", "\\"}
            for part in (name, project)
        )
        try:
            with Experiment(name=name, project=project, local_path=trial.folder / "named") as target:
                path = target.path
        except InvalidInput:
            trial.check(not legal, f"{project[:30]!r}/{name[:30]!r} was refused")
            continue
        trial.check(legal, f"{project[:30]!r}/{name[:30]!r} was accepted")
        trial.check(path == trial.folder / "named" / project / name and path.is_dir(), f"it is at {path}")
        record = json.loads((path / "experiment.json").read_bytes())
        trial.check((record["project"], record["name"]) == (project, name), "it is recorded under another name")


ROWS = (
    Row("W23", "steps as given (20 in a trial)", 500, 12, steps_as_given),
    Row("W24", "values bit by bit (100 in a trial)", 1_000, 25, values_bit_by_bit),
    Row("W25", "names apart (60 in a trial)", 400, 8, names_apart),
)
