"""Values in queries: numbers, times, durations, sizes, and regular expressions whose time is bounded.

Each function raises ValueError with what would be right.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from math import factorial
from time import perf_counter
from typing import Any, Final, NamedTuple

from ..core.times import parse_time
from ..errors import InvalidValue

SECOND_NS: Final = 1_000_000_000
_DAY_NS: Final = 86_400 * SECOND_NS

_NUMBER: Final = re.compile(r"[+-]?(\d[\d_]*)?(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_MULTIPLES: Final[dict[str, int]] = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BYTES: Final[dict[str, int]] = {"": 1, "b": 1} | {
    f"{letter}{unit}": (1024 if unit.startswith("i") else 1000) ** power
    for power, letter in enumerate("kmgtp", 1)
    for unit in ("", "b", "i", "ib")
}
_SECONDS: Final = {
    "ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800,
}  # fmt: skip
_LONG_UNITS: Final = ("second", "seconds", "minute", "minutes", "hour", "hours", "day", "days", "week", "weeks")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|sec|s|min|m|h|d|w)", re.IGNORECASE | re.ASCII)

TIME_HINT: Final = "write a time like 2026-11-01, 2026-11-01T10:30, -7d (seven days ago), -90min, today or now"
DURATION_HINT: Final = "write a duration like 90s, 15min, 2h, 1h30m or 7d; a number alone is in seconds"
SIZE_HINT: Final = "write a size like 500kB, 10MB or 2GiB; a number alone is in bytes"
NUMBER_HINT: Final = "write a number like 12, 0.5, 1e-3 or 10k"

# A regular expression is refused, or sees only the beginning of a text, so that no text costs more steps than this.
_MOST_STEPS: Final = 10_000_000
# Searches that take longer are counted; all together they may take so long.
_LONG_S: Final = 0.002
_MOST_S: Final = 2.0
_MOST_CHARACTERS: Final = 4_000
_FEWEST_CHARACTERS: Final = 100
_LONGEST_PATTERN: Final = 500
# A repetition with at most so many lengths is a choice between them.
_SMALL: Final = 8


class Moment(NamedTuple):
    """A time in a query: from `start_ns` to before `end_ns`, so that a day or a minute can be meant as a whole."""

    start_ns: int
    end_ns: int


def number(text: str) -> int | float:
    """Return the number that a text is: `12`, `-0.5`, `1e-3`, `1_000`, `nan`, `inf`. Raises ValueError."""
    if text.lower() in ("nan", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"):
        return float(text)
    match = _NUMBER.fullmatch(text)
    if match is None or not (match[1] or (match[2] or "").strip(".")):
        raise ValueError(NUMBER_HINT)
    return float(text) if match[2] or match[3] else int(text)


def count(text: str) -> int | float:
    """Return a number, which may end in k, M, G or T. Raises ValueError."""
    multiple = _MULTIPLES.get(text[-1:])
    return number(text) if multiple is None else multiple * number(text[:-1])


def size_bytes(text: str) -> int | float:
    """Return the bytes of a size: `10MB` is 10,000,000, `10MiB` 10,485,760. Raises ValueError."""
    match = re.fullmatch(r"(.*?\d\.?)\s*([a-z]*)", text, re.IGNORECASE | re.ASCII)
    unit = _BYTES.get(match[2].lower()) if match is not None else None
    if match is None or unit is None:
        raise ValueError(SIZE_HINT)
    try:
        return unit * number(match[1])
    except ValueError:
        raise ValueError(SIZE_HINT) from None


def is_unit(text: str) -> bool:
    """True if a text is a unit that may stand behind a number, without a space between."""
    return text in _MULTIPLES or text.lower() in _BYTES or text.lower() in (*_SECONDS, *_LONG_UNITS)


def duration_s(text: str) -> float:
    """Return the seconds of a duration: `2h`, `1h30m`, `90`. Raises ValueError."""
    try:
        return number(text)
    except ValueError:
        return _seconds(text, DURATION_HINT)


def _seconds(text: str, hint: str) -> float:
    parts = _PART.findall(text)
    if not parts or "".join(amount + unit for amount, unit in parts) != text:
        raise ValueError(hint)
    return sum(float(amount) * _SECONDS[unit.lower()] for amount, unit in parts)


def moment(text: str, now_ns: int) -> Moment:
    """Return the time that a text means: a date as the whole day, a time as far as it goes (UTC without a zone).

    `-7d`, `now`, `now-7d`, `today` and `yesterday` are relative to `now_ns`. Raises ValueError.
    """
    word = text.lower().removeprefix("now")
    today_ns = now_ns // _DAY_NS * _DAY_NS
    if word in ("today", "yesterday"):
        start_ns = today_ns - _DAY_NS * (word == "yesterday")
        return Moment(start_ns, start_ns + _DAY_NS)
    if not word and text:
        return Moment(now_ns, now_ns + 1)
    if word[:1] in ("-", "+"):
        at_ns = now_ns + int(_seconds(word[1:], TIME_HINT) * SECOND_NS) * (1 if word[0] == "+" else -1)
        return Moment(at_ns, at_ns + 1)
    try:
        start_ns = parse_time(text)
    except InvalidValue:
        raise ValueError(TIME_HINT) from None
    return Moment(start_ns, start_ns + _precision_ns(text))


def _precision_ns(text: str) -> int:
    """Return how long the time is that an ISO text names: a day, a minute, a second or a part of it."""
    clock = re.search(r"[T ](\d\d:\d\d)(:\d\d)?(?:[.,](\d{1,9}))?", text.strip(), re.IGNORECASE)
    if clock is None:
        return _DAY_NS
    if not clock[2]:
        return 60 * SECOND_NS
    return int(10 ** (9 - len(clock[3] or "")))


# -- regular expressions ----------------------------------------------------------------------------------------------


def pattern(text: str, slow: Callable[[], Exception] | None = None) -> Callable[[str], bool]:
    """Return a function that says whether a regular expression is found in a text.

    Python's `re` may take exponential time, so expressions that repeat what repeats itself are refused; and of long
    texts only as much is looked at as can be searched at once: 4,000 characters with one repetition, about 390 with
    two. With `slow`, searches that take long may take two seconds in all; then the function raises `slow()`. Raises
    ValueError.
    """
    if len(text) > _LONGEST_PATTERN:
        raise ValueError(f"write a regular expression of at most {_LONGEST_PATTERN} characters")
    try:
        compiled = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"the regular expression cannot be read: {error}") from None
    length = _characters(text)
    spent_s = 0.0

    def found(value: str) -> bool:
        nonlocal spent_s
        begun_s = perf_counter()
        match = compiled.search(value[:length])
        taken_s = perf_counter() - begun_s
        if taken_s > _LONG_S:
            spent_s += taken_s
            if slow is not None and spent_s > _MOST_S:
                raise slow()
        return match is not None

    return found


def _characters(text: str) -> int:
    """Return how many characters of a text can be searched within the bound. Raises ValueError if they are too few."""
    repeats, choices = _cost(_parsed(text))
    length = _MOST_CHARACTERS
    # Each repetition, and the place where the search begins, may be tried at every character, in order.
    allowed = _MOST_STEPS * factorial(repeats + 1) / choices
    if length ** (repeats + 1) > allowed:
        length = int(allowed ** (1 / (repeats + 1)))
    if length < _FEWEST_CHARACTERS:
        raise ValueError("it would take too long: use fewer of * + ? { | in it, or join several conditions by and")
    return length


def _parsed(text: str) -> Any:
    """Return the parts of a regular expression, as Python's own parser sees them."""
    # Its module moved in Python 3.11.
    parser: Any = import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
    return parser.parse(text)


def _cost(parts: Any) -> tuple[int, int]:
    """Return (repetitions without a small bound, ways to choose otherwise) of a parsed regular expression."""
    repeats, choices = 0, 1
    for operation, argument in parts:
        name = str(operation)
        inner = _inner(name, argument)
        costs = [_cost(part) for part in inner]
        repeats += sum(cost[0] for cost in costs)
        for _, ways in costs:
            choices *= ways
        if name == "BRANCH":
            choices *= len(inner)
        if name.endswith("REPEAT"):
            low, high, _ = argument
            if high > 1 and any(cost != (0, 1) for cost in costs):
                raise ValueError("it repeats what repeats or branches itself, like (a+)+ or (a|b)*; use [ab]*")
            if high - low > _SMALL:
                repeats += 1
            else:
                choices *= high - low + 1
        choices = min(choices, _MOST_STEPS)
    return repeats, choices


def _inner(name: str, argument: Any) -> list[Any]:
    """Return the parsed parts inside an operation."""
    if name == "BRANCH":
        return list(argument[1])
    if name.endswith("REPEAT"):
        return [argument[2]]
    if name == "SUBPATTERN":
        return [argument[3]]
    if name in ("ASSERT", "ASSERT_NOT"):
        return [argument[1]]
    if name == "ATOMIC_GROUP":
        return [argument]
    if name == "GROUPREF_EXISTS":
        return [part for part in argument[1:] if part is not None]
    return []
