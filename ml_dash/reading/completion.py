"""Completion of a query that is being typed: what may stand at the cursor, by the grammar of `where.lark`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..core.events import STATUSES
from .facts import ALIASES, FIELDS, METRICS, STATS, kind_of
from .where import field_text, parser, unquoted, value_text


class Suggestion(NamedTuple):
    """A text that may replace `query[start:end]`."""

    text: str
    start: int
    end: int


def complete(
    text: str, cursor: int, fields: Iterable[str], values: Callable[[str], Iterable[str]], most: int = 50
) -> list[Suggestion]:
    """Return what may stand at the cursor, for the word that is begun there: fields, operators, values, `and`.

    `fields` are names of fields, `values(field)` the texts that experiments have there.
    """
    from lark.exceptions import UnexpectedInput

    word = re.search(r"""(?:[^\s"'()\[\],=!<>~&|]|"(?:[^"\\]|\\.)*")*\Z|"(?:[^"\\]|\\.)*\Z""", text[:cursor])
    start = word.start() if word is not None else cursor
    begun = text[start:cursor]
    if begun.lower().startswith(("tag:", "tags:")):
        start += begun.index(":") + 1
        begun = text[start:cursor]
    reading = parser().parse_interactive(text[:start])
    try:
        tokens = list(reading.exhaust_lexer())
        accepted: set[str] = reading.accepts()  # type: ignore[no-untyped-call]
    except UnexpectedInput:
        return []
    offered = _offered(tokens, accepted, fields, values)
    plain = begun.lstrip("\"'").lower()
    fitting = [name for name in offered if plain in name.lower()]
    fitting.sort(key=lambda name: not name.lower().lstrip('"').startswith(plain))
    return [Suggestion(name, start, cursor) for name in dict.fromkeys(fitting)][:most]


def _offered(
    tokens: Sequence[Any], accepted: set[str], fields: Iterable[str], values: Callable[[str], Iterable[str]]
) -> list[str]:
    """Return the texts that may follow tokens."""
    if "VALUE" in accepted:
        field = next((unquoted(str(token)) for token in reversed(tokens) if token.type == "WORD"), "")
        tagged = tokens[-1].type == "TAG" if tokens else False
        return _values(ALIASES.get("tag" if tagged else field, field), values)
    offered: list[str] = []
    if "OP" in accepted:
        offered += ["=", "!=", "<", "<=", ">", ">=", "~", "in ("]
    if "_AND" in accepted:
        offered += ["and", "or"]
    elif "WORD" in accepted:
        offered += [field_text(name) for name in dict.fromkeys((*FIELDS, *fields))] + ["tag:", "not"]
    return offered


_EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "status": STATUSES,
    "boolean": ("true", "false"),
    "time": ("-1h", "-24h", "-7d", "-30d", "today", "yesterday"),
    "duration": ("1min", "1h", "24h"),
    "size": ("1MB", "100MB", "1GB"),
}


def _values(field: str, values: Callable[[str], Iterable[str]]) -> list[str]:
    examples = _EXAMPLES.get(str(kind_of(field)))
    return list(examples) if examples is not None else [value_text(value) for value in values(field)]


def with_statistics(series: Iterable[str]) -> list[str]:
    """Return the fields of series: each alone, and with each statistic."""
    return [f"{METRICS}{name}{end}" for name in series for end in ("", *(f".{stat}" for stat in STATS))]
