"""Random experiments and queries, and what queries mean, written a second time: plainly, from their description."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from ml_dash.reading.facts import METRICS, PARAMS, STATS, Facts, SeriesFacts
from ml_dash.reading.where import And, Compare, Literal, Node, Not, Or, Within, Words

NOW_NS = 1_764_000_000_000_000_000  # 2025-11-24T16:00:00Z
HOUR_NS = 3_600_000_000_000
ABSENT = object()

PARAMETERS_USED = ("lr", "a b", "opt.name", "flag", "layers", "note", "train/x")
_SERIES = ("loss", "val.acc", "train/loss", "loss.min", "m.count")
_TEXTS = ("adam", "sgd", "1", "1.0", "true", "Straße", "null", "a,b", 'quo"te', "", "12", "nan")
NAMES = ("resnet-50", "ResNet 18", "bert", "run 7", "ünïcode", "x=y")


# -- random experiments -----------------------------------------------------------------------------------------------


def some_number(rng: random.Random) -> int | float:
    return rng.choice([0, 1, 1.0, -1, 2, 0.1, 1e-3, 12, 1e9, float("nan"), float("inf"), rng.random(), 2**62])


def some_value(rng: random.Random) -> Any:
    return rng.choice([
        some_number(rng), rng.choice(_TEXTS), rng.random() < 0.5, None, [some_number(rng), rng.choice(_TEXTS)], [], {},
    ])  # fmt: skip


def some_series(rng: random.Random) -> SeriesFacts:
    def maybe() -> Any:
        return some_number(rng) if rng.random() < 0.8 else None

    return SeriesFacts(rng.randrange(1, 5000), maybe(), maybe(), maybe(), maybe(), rng.random(), maybe())


def some_facts(rng: random.Random, number: int = 0) -> Facts:
    created_ns = NOW_NS - rng.randrange(0, 240) * HOUR_NS
    updated_ns = min(NOW_NS, created_ns + rng.randrange(0, 100_000) * 1_000_000_000)
    status = rng.choice(("running", "completed", "failed", "interrupted"))
    renamed = rng.random() < 0.3
    return Facts(
        id=str(number),
        project=rng.choice(("vision", "nlp")),
        name=rng.choice(NAMES),
        status=status,
        title=rng.choice(NAMES) if renamed else None,
        names=[rng.choice(NAMES)] if renamed else [],
        folder=rng.choice((None, "a", "a/b")),
        tags=rng.sample(("baseline", "best", "old", "a b"), rng.randrange(3)),
        description=rng.choice((None, "a ResNet", "nothing")),
        notes=rng.choice((None, "BEST so far")),
        archived=rng.random() < 0.2,
        created_ns=created_ns,
        updated_ns=updated_ns,
        ended_ns=None if status == "running" else updated_ns,
        host=rng.choice((None, "gpu1", "gpu2")),
        commit=rng.choice((None, "3f0a11c29be2701d" + "0" * 24)),
        files=rng.randrange(3),
        size=rng.choice((0, 999_999, 1_000_000, 1 << 20, 5_000_000_000)),
        points=rng.choice((0, 999, 1000, 10_000)),
        params={key: some_value(rng) for key in PARAMETERS_USED if rng.random() < 0.6},
        metrics={name: some_series(rng) for name in _SERIES if rng.random() < 0.6},
    )


# -- random queries ---------------------------------------------------------------------------------------------------

_TIMES = ("-7d", "-36h", "now", "today", "yesterday", "2025-11-20", "2025-11-20T10:00", "2025-11-20T10:00:00Z")
_DURATIONS = ("0", "90min", "2h", "1h30m", "600", "0.5d")
_SIZES = ("0", "1MB", "1MiB", "999999", "5GB", "1kB")
_ORDERS = ("<", "<=", ">", ">=")


def some_query(rng: random.Random, depth: int = 3) -> Node:
    """A query that is right. `and` within `and` is possible: brackets say so."""
    kind = rng.random()
    if depth and kind < 0.5:
        if kind < 0.1:
            return Not(some_query(rng, depth - 1))
        parts = tuple(some_query(rng, depth - 1) for _ in range(rng.randrange(2, 4)))
        return And(parts) if kind < 0.3 else Or(parts)
    if kind > 0.9:
        return Words(rng.choice(("resnet", "BASELINE", "straße", "so far", "vision", 'a "word"', "a\\b", "zzz")))
    field, literal, operators = _condition(rng)
    if rng.random() < 0.2 and "=" in operators:
        values = tuple(literal(rng) for _ in range(rng.randrange(1, 4)))
        return Within(field, values, rng.random() < 0.4)
    return Compare(field, rng.choice(operators), literal(rng))


def _condition(rng: random.Random) -> tuple[str, Callable[[random.Random], Literal], tuple[str, ...]]:
    def one_of(texts: tuple[str, ...], quoted: bool | None = None) -> Callable[[random.Random], Literal]:
        return lambda rng: Literal(rng.choice(texts), rng.random() < 0.5 if quoted is None else quoted)

    equal, both = ("=", "!="), ("=", "!=", *_ORDERS)
    numbers = one_of(
        ("0", "1", "1.0", "-1", "0.1", "1e-3", "12", "nan", "inf", "1k", "-inf", ".5", "4611686018427387904"), False
    )
    return rng.choice([
        ("status", one_of(("running", "failed", "completed")), equal),
        ("tags", one_of(("baseline", "best", "none"), False), equal),
        ("name", one_of(NAMES, True), both),
        ("project", one_of(("vision", "nlp", "x"), False), both),
        ("folder", one_of(("a", "a/b"), False), equal),
        ("description", one_of(("a ResNet", "b"), True), both),
        ("notes", one_of(("BEST so far",), True), equal),
        ("host", one_of(("gpu1", "gpu3"), False), both),
        ("commit", one_of(("3f0a", "3F0A11C2", "ffff"), False), equal),
        ("archived", one_of(("true", "false"), False), equal),
        ("created", one_of(_TIMES, False), both),
        ("updated", one_of(_TIMES, False), both),
        ("ended", one_of(_TIMES, False), both),
        ("duration", one_of(_DURATIONS, False), both),
        ("size", one_of(_SIZES, False), both),
        ("files.count", numbers, both),
        ("points", one_of(("1k", "1000", "10k"), False), both),
        (PARAMS + rng.choice(PARAMETERS_USED), _param_literal, both),
        (PARAMS + rng.choice(PARAMETERS_USED), one_of(("^a", "[0-9]", "e$", "(?i)STRA.E"), True), ("~",)),
        ("name", one_of(("^Res", "[0-9]+$", "t|r"), True), ("~",)),
        (METRICS + rng.choice(_SERIES) + rng.choice(("", *(f".{stat}" for stat in STATS))), numbers, both),
    ])  # fmt: skip


def _param_literal(rng: random.Random) -> Literal:
    if rng.random() < 0.5:
        return Literal(rng.choice(_TEXTS), quoted=True)
    return Literal(rng.choice(("1", "1.0", "0.1", "1e-3", "true", "False", "null", "adam", "nan", "inf", "12")))


# -- what they mean ---------------------------------------------------------------------------------------------------


def meant(node: Node, facts: Facts) -> bool:
    """True if an experiment is meant by a query, told condition by condition."""
    match node:
        case And(parts):
            return all(meant(part, facts) for part in parts)
        case Or(parts):
            return any(meant(part, facts) for part in parts)
        case Not(part):
            return not meant(part, facts)
        case Words(text):
            places = [facts.name, facts.title, *facts.names, facts.project, facts.description, facts.notes, *facts.tags]
            return any(text.casefold() in place.casefold() for place in places if place is not None)
        case Within(field, values, negated):
            value = field_value(facts, field)
            if value is ABSENT:
                return False
            found = any(_compares(field, value, "=", literal) for literal in values)
            return found != negated
        case Compare(field, operator, literal):
            value = field_value(facts, field)
            if value is ABSENT:
                return False
            if operator == "!=":
                return not _compares(field, value, "=", literal)
            return _compares(field, value, operator, literal)
    raise AssertionError(node)


def field_value(facts: Facts, field: str) -> Any:
    if field.startswith("params."):
        return facts.params.get(field[7:], ABSENT)
    if field.startswith("metrics."):
        name = field[8:]
        if name in facts.metrics:
            value = facts.metrics[name].last
        else:
            for stat in ("last", "min", "max", "mean", "first", "count", "step"):
                if name.endswith("." + stat) and name[: -len(stat) - 1] in facts.metrics:
                    value = getattr(facts.metrics[name[: -len(stat) - 1]], stat)
                    break
            else:
                return ABSENT
        return ABSENT if value is None else value
    if field == "duration":
        return ((facts.ended_ns or facts.updated_ns) - facts.created_ns) / 1e9
    if field == "name":
        return [name for name in (facts.title, facts.name, *facts.names) if name is not None]
    attribute = {"created": "created_ns", "updated": "updated_ns", "ended": "ended_ns", "files.count": "files"}
    value = getattr(facts, attribute.get(field, field))
    return ABSENT if value is None else value


def _compares(field: str, value: Any, operator: str, literal: Literal) -> bool:
    if isinstance(value, list):
        return any(_compares(field, item, operator, literal) for item in value)
    if operator == "~":
        import re

        return isinstance(value, str) and re.search(literal.text, value) is not None
    if field in ("created", "updated", "ended"):
        start, end = _interval(literal.text)
        return {
            "=": start <= value < end, "<": value < start, "<=": value < end, ">": value >= end, ">=": value >= start,
        }[operator]  # fmt: skip
    if field == "commit" and operator == "=":
        return str(value).startswith(literal.text.lower())
    wanted = _wanted(field, literal)
    if isinstance(wanted, bool) or wanted is None or isinstance(value, bool) or value is None:
        return operator == "=" and wanted is value
    if isinstance(wanted, str) != isinstance(value, str) or not isinstance(value, str | int | float):
        return False
    if operator == "=" and isinstance(value, float) and math.isnan(value):
        return isinstance(wanted, float) and math.isnan(wanted)
    return {
        "=": value == wanted, "<": value < wanted, "<=": value <= wanted, ">": value > wanted, ">=": value >= wanted,
    }[operator]  # fmt: skip


def _wanted(field: str, literal: Literal) -> Any:
    text = literal.text
    if field.startswith("params.") and not literal.quoted:
        words = {"true": True, "false": False, "null": None}
        if text.lower() in words:
            return words[text.lower()]
        try:
            return int(text)
        except ValueError:
            pass
        try:
            return float(text)
        except ValueError:
            return text
    if field == "archived":
        return text == "true"
    if field == "duration":
        seconds = {"0": 0, "90min": 5400, "2h": 7200, "1h30m": 5400, "600": 600, "0.5d": 43_200}
        return seconds[text]
    if field == "size":
        sizes = {"0": 0, "1MB": 10**6, "1MiB": 2**20, "999999": 999_999, "5GB": 5 * 10**9, "1kB": 1000}
        return sizes[text]
    if field in ("points", "files.count") or field.startswith("metrics."):
        if text.endswith("k"):
            return int(text[:-1]) * 1000
        return int(text) if text.lstrip("-").isdigit() else float(text)
    return text


def _interval(text: str) -> tuple[int, int]:
    day = 24 * HOUR_NS
    midnight = NOW_NS - NOW_NS % day
    november_20 = 1_763_596_800_000_000_000
    ten = november_20 + 10 * HOUR_NS
    starts = {
        "-7d": (NOW_NS - 7 * day, 1), "-36h": (NOW_NS - 36 * HOUR_NS, 1), "now": (NOW_NS, 1), "today": (midnight, day),
        "yesterday": (midnight - day, day), "2025-11-20": (november_20, day),
        "2025-11-20T10:00": (ten, 60 * 10**9), "2025-11-20T10:00:00Z": (ten, 10**9),
    }  # fmt: skip
    start, length = starts[text]
    return start, start + length
