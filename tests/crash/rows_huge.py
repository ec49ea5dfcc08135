"""Row W26: content that is huge, endless, cyclic or raises when looked at: kept exactly, or a clear error."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any, Final

from ml_dash.errors import InvalidInput, UnsupportedType
from tests.faults.harness import Row, Trial

from . import oracle_reader as disk
from .victims import experiment, journal_of

LONG: Final = bool(os.environ.get("ML_DASH_TEST_LONG"))


class Raises:
    """An object that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__

    def item(self) -> Any:
        """As arrays have it, but broken."""
        raise RuntimeError("no item")


class Endless:
    """A mapping that has no end."""

    def __iter__(self) -> Any:
        return itertools.count()


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def _cycle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _many(count: int) -> dict[str, float]:
    return {f"k{n}": n * 0.5 for n in range(count)}


# name, the call, must it be taken (True), refused (False), or either (None)?
CASES: Final[tuple[tuple[str, Callable[[Any, int], Any], bool | None], ...]] = (
    ("a message of 10 MB", lambda t, s: t.log("m" * (s * 10_000_000)), True),
    ("a parameter of many MB", lambda t, s: t.parameters().set(large="p" * (10_000_000 * (10 if LONG else 1))), True),
    ("many fields", lambda t, s: t.metric("wide").append(**_many(200_000 if LONG else 20_000)), True),
    (
        "many metrics",
        lambda t, s: [t.metric(f"many/{n}").append(value=n) for n in range(20_000 if LONG else 500)],
        True,
    ),
    ("many parameters", lambda t, s: t.parameters().set(_many(100_000 if LONG else 10_000)), True),
    ("a large batch", lambda t, s: t.metric("batch").append_batch([{"value": n} for n in range(300_000)]), True),
    ("deep nesting", lambda t, s: t.metric("deep").append(value=_deep(60)), True),
    ("too deep nesting", lambda t, s: t.metric("deep").append(value=_deep(100_000)), False),
    ("too deep parameters", lambda t, s: t.parameters().set(deep=_deep(5_000)), None),
    ("a cycle", lambda t, s: t.metric("cycle").append(value=_cycle()), False),
    ("a cycle in parameters", lambda t, s: t.parameters().set(cycle=_cycle()), None),
    ("a repr that raises", lambda t, s: t.metric("raises").append(value=Raises()), False),
    ("a repr that raises, in parameters", lambda t, s: t.parameters().set(raises=Raises()), True),
    ("a repr that raises, in metadata", lambda t, s: t.log("x", metadata={"raises": Raises()}), True),
    ("an endless value", lambda t, s: t.metric("endless").append(value=itertools.count()), False),
    ("an endless object", lambda t, s: t.parameters().set(endless=Endless()), True),
    ("a name of 10 KB", lambda t, s: t.metric("n" * 10_000).append(value=1), False),
    ("a field name of 1 MB", lambda t, s: t.metric("field").append(**{"f" * 1_000_000: 1}), None),
    ("bytes of 5 MB", lambda t, s: t.metric("bytes").append(value=b"b" * 5_000_000), True),
)


def huge_or_strange(trial: Trial) -> None:
    """W26. Taken and kept exactly, or refused with nothing recorded; the next call works, and so does the folder."""
    name, call, must = CASES[trial.index % len(CASES)]
    target = experiment(trial.folder).open()
    before = target.durable_state()["accepted"]
    refused = ""
    try:
        call(target, 1)
    except (InvalidInput, UnsupportedType) as error:
        refused = f"{type(error).__name__}: {error}"
        trial.check(len(refused) < 2_000, f"{name}: an error message of {len(refused):,} characters")
        trial.check(target.durable_state()["accepted"] == before, f"{name}: refused, but recorded")
    trial.counts[f"{name}: {'refused' if refused else 'taken'}"] += 1
    trial.check(must is None or must != bool(refused), f"{name}: {'refused: ' + refused if refused else 'taken'}")
    target.log("after")
    target.metric("after").append(value=1)
    target.close()
    journal = disk.read_journal(journal_of(trial.folder))
    trial.fail(*journal.problems)
    trial.check(not journal.damaged_bytes, f"{name}: damage")
    largest = max((f.end - f.start for segment in journal.segments for f in segment.frames), default=0)
    trial.check(largest <= disk.LARGEST + 8, f"{name}: a frame of {largest:,} bytes")
    if name == "a message of 10 MB":
        texts = [body[1] for _, _, kind, _, body in journal.in_order() if kind == disk.LOG]
        trial.check(texts == ["m" * 10_000_000, "after"], "the message is another one")
    with experiment(trial.folder, read_only=True) as reader:
        trial.check(reader.metric("after").read()["data"][0]["data"] == {"value": 1}, f"{name}: the next call was lost")
        if name == "a large batch":
            values = [
                p["data"]["value"] for p in reader.metric("batch").read(start_index=-10_000, limit=10_000)["data"]
            ]
            trial.check(values == list(range(290_000, 300_000)), "the batch is another one")


ROWS = (Row("W26", "huge and strange content", 11 * len(CASES), len(CASES), huge_or_strange),)
