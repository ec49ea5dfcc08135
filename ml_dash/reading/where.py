"""The query language: `status = failed and params.lr >= 1e-3 and tag:baseline and updated > -7d and "resnet"`.

The grammar is `where.lark`; docs/query.md explains it. A parsed query is a tree of conditions (`Node`), which prints as
a query that means the same, and a plan made of it: tests of single fields, joined as the tree joins them. An index
runs the plan over columns, `Where.matches` over the facts of one experiment; the tests are the same.

A field that an experiment does not have fulfils no condition, also not `!=`; and nothing that a value may be raises,
but for a regular expression whose search takes seconds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import field as attribute
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..core.events import STATUSES
from ..errors import InvalidQuery
from . import literals
from .facts import ALIASES, FIELDS, METRICS, MISSING, PARAMS, Facts, getter, kind_of, searched

if TYPE_CHECKING:
    from lark import Lark

LONGEST: Final = 8_000
"""The longest query, in characters."""
_DEEPEST: Final = 60
_BARE: Final = r"""[^\s"'()\[\],=!<>~:&|]"""
_BARE_NAME: Final = re.compile(rf"(?!(?:and|or|not|in)\Z){_BARE}+", re.IGNORECASE)
_BARE_VALUE: Final = re.compile(r"""(?!(?:and|or|not|in)\Z)[^\s"'()\[\],=<>!~&|]+""", re.IGNORECASE)
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)

Rows = Sequence[int]
Column = Callable[[str], Sequence[Any]]
SEARCHED: Final = ""
"""The name of the column with the text in which words are searched: see `facts.searched`."""


# -- what was written -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Literal:
    """A value as it was written; what a quoted one says is always a text."""

    text: str
    quoted: bool = False
    at: int = attribute(default=0, compare=False)
    length: int = attribute(default=1, compare=False)

    def __str__(self) -> str:
        return _quote(self.text) if self.quoted else self.text


@dataclass(frozen=True, slots=True)
class Compare:
    """`field operator value`."""

    field: str
    operator: str
    value: Literal
    at: int = attribute(default=0, compare=False)

    def __str__(self) -> str:
        return f"{field_text(self.field)} {self.operator} {self.value}"


@dataclass(frozen=True, slots=True)
class Within:
    """`field in (value, ...)`, or `not in`."""

    field: str
    values: tuple[Literal, ...]
    negated: bool = False

    def __str__(self) -> str:
        return f"{field_text(self.field)} {'not in' if self.negated else 'in'} ({', '.join(map(str, self.values))})"


@dataclass(frozen=True, slots=True)
class Words:
    """A text that is searched in names, descriptions, notes, tags and projects, whatever its case."""

    text: str

    def __str__(self) -> str:
        return _quote(self.text)


@dataclass(frozen=True, slots=True)
class Not:
    """`not condition`."""

    part: Node

    def __str__(self) -> str:
        return f"not {_inside(self.part)}"


@dataclass(frozen=True, slots=True)
class And:
    """Conditions that all have to hold."""

    parts: tuple[Node, ...]

    def __str__(self) -> str:
        return " and ".join(map(_inside, self.parts))


@dataclass(frozen=True, slots=True)
class Or:
    """Conditions of which one has to hold."""

    parts: tuple[Node, ...]

    def __str__(self) -> str:
        return " or ".join(map(_inside, self.parts))


Node = Compare | Within | Words | Not | And | Or


def _inside(part: Node) -> str:
    return f"({part})" if isinstance(part, And | Or) else str(part)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def field_text(name: str) -> str:
    """Return a field as it is written in a query: quoted where its name needs that."""
    if _BARE_NAME.fullmatch(name):
        return name
    prefix = next((prefix for prefix in (PARAMS, METRICS) if name.startswith(prefix)), "")
    return prefix + _quote(name[len(prefix) :])


def value_text(value: str) -> str:
    """Return a text as it is written in a query as a value: quoted, unless it could not be anything but this text."""
    plain = _BARE_VALUE.fullmatch(value) and isinstance(_plain(Literal(value)), str)
    return value if plain else _quote(value)


# -- what it means ----------------------------------------------------------------------------------------------------


class Condition(NamedTuple):
    """A condition on one field; `holds` takes its value, which is not MISSING."""

    field: str
    holds: Callable[[Any], bool]


class Joined(NamedTuple):
    """Plans of which `all` (and), `any` (or) or `no` (not; of one) has to hold."""

    how: str
    parts: tuple[Plan, ...]


Plan = Condition | Joined


class Where:
    """A query, ready to be asked. It never changes, and any thread may use it."""

    __slots__ = ("_plan", "fields", "text", "tree")

    def __init__(self, text: str, tree: Node, plan: Plan) -> None:
        self.text = text
        self.tree = tree
        self._plan = plan
        self.fields: frozenset[str] = frozenset(test.field for test in _tests(plan))

    def __str__(self) -> str:
        return str(self.tree)

    def __repr__(self) -> str:
        return f"<Where {self}>"

    def matches(self, facts: Facts) -> bool:
        """True if an experiment is meant by this query."""
        return _holds(self._plan, facts)

    def select(self, rows: Rows, column: Column) -> Rows:
        """Return those of `rows` that are meant, in their order; `column(field)[row]` is the value of a field."""
        return _select(self._plan, rows, column)

    def simple(self) -> dict[str, str]:
        """Return what must be equal in every match, of `project`, `status`, `tag` and `folder`: for a database.

        They are conditions of the whole query; it may have others. If there are two of one field, the first.
        """
        parts = self.tree.parts if isinstance(self.tree, And) else (self.tree,)
        found: dict[str, str] = {}
        for part in parts:
            if isinstance(part, Compare) and part.operator == "=" and part.field in _SIMPLE:
                value = part.value.text
                found.setdefault(_SIMPLE[part.field], value.lower() if part.field == "status" else value)
        return found


_SIMPLE: Final = {"project": "project", "status": "status", "tags": "tag", "folder": "folder"}


def _tests(plan: Plan) -> list[Condition]:
    return [plan] if isinstance(plan, Condition) else [test for part in plan.parts for test in _tests(part)]


def _holds(plan: Plan, facts: Facts) -> bool:
    if isinstance(plan, Condition):
        value = searched(facts) if plan.field == SEARCHED else getter(plan.field)(facts)
        return value is not MISSING and plan.holds(value)
    if plan.how == "all":
        return all(_holds(part, facts) for part in plan.parts)
    if plan.how == "any":
        return any(_holds(part, facts) for part in plan.parts)
    return not _holds(plan.parts[0], facts)


def _select(plan: Plan, rows: Rows, column: Column) -> Rows:
    if not rows:
        return rows
    if isinstance(plan, Condition):
        values, holds = column(plan.field), plan.holds
        return [row for row in rows if (value := values[row]) is not MISSING and holds(value)]
    if plan.how == "all":
        for part in plan.parts:
            rows = _select(part, rows, column)
        return rows
    if plan.how == "any":
        found = set().union(*(_select(part, rows, column) for part in plan.parts))
        return [row for row in rows if row in found]
    left_out = set(_select(plan.parts[0], rows, column))
    return [row for row in rows if row not in left_out]


# -- from text --------------------------------------------------------------------------------------------------------


def parse(text: str, now_ns: int | None = None) -> Where:
    """Return the query that a text is; relative times are relative to `now_ns` (default: now).

    Raises InvalidQuery, an InvalidValue, which shows where it is wrong and what would be right; also for an empty text.
    """
    if len(text) > LONGEST:
        raise InvalidQuery(f"the query has {len(text):,} characters; at most {LONGEST:,} are read", text, LONGEST)
    tree = _Reader(text).read()
    plan = _Planner(text, time.time_ns() if now_ns is None else now_ns).plan(tree)
    return Where(text, tree, plan)


@lru_cache(maxsize=1)
def parser() -> Lark:
    """Return the parser of the grammar, made when the first query is read: lark takes longer to load than the rest."""
    from lark import Lark

    grammar = Path(__file__).with_name("where.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", lexer="contextual", maybe_placeholders=False)


class _Reader:
    """Turns one text into a tree of conditions."""

    def __init__(self, text: str) -> None:
        self._text = text

    def read(self) -> Node:
        """Return the tree. Raises InvalidQuery."""
        from lark.exceptions import UnexpectedInput

        if not self._text.strip():
            raise InvalidQuery(
                "the query is empty", self._text, 0, hint='write a condition like status = failed, or "a word"'
            )
        try:
            found = parser().parse(self._text)
        except UnexpectedInput as error:
            raise _misread(self._text, error) from None
        return self._node(found, 0)

    def _node(self, found: Any, depth: int) -> Node:
        if depth > _DEEPEST:
            raise InvalidQuery(f"conditions are nested more than {_DEEPEST} deep", self._text, 0)
        parts = found.children
        if found.data == "compare":
            field = self._field(parts[0])
            return Compare(field, str(parts[1]), self._literal(parts[2]), parts[1].start_pos)
        if found.data == "within":
            negated = str(parts[1])[:1] in "nN"
            return Within(self._field(parts[0]), tuple(map(self._literal, parts[2:])), negated)
        if found.data == "tagged":
            return Compare("tags", "=", self._literal(parts[1]), parts[0].start_pos)
        if found.data == "word":
            return self._words(parts[0])
        nodes = tuple(self._node(part, depth + 1) for part in parts)
        if found.data == "both":
            for before, part in zip(nodes, parts[1:], strict=False):
                self._refuse_lone_unit(before, part)
        if found.data == "no":
            return Not(nodes[0])
        return And(nodes) if found.data == "both" else Or(nodes)

    def _refuse_lone_unit(self, before: Node, part: Any) -> None:
        """Raise InvalidQuery for `duration > 2 h`, which would mean a search for the word `h`."""
        if part.data != "word" or part.children[0].type != "WORD" or not isinstance(before, Compare):
            return
        token, value = part.children[0], before.value
        takes_unit = kind_of(before.field) in ("duration", "size", "number") and value.text[-1:].isdigit()
        if takes_unit and literals.is_unit(str(token)):
            hint = f"write {value.text}{token} without a space, or put the word in quotes to search for it"
            raise InvalidQuery("a unit stands alone", self._text, token.start_pos, len(token), hint=hint)

    def _field(self, token: Any) -> str:
        return _checked_field(unquoted(str(token)), self._text, token.start_pos, len(token))

    def _literal(self, found: Any) -> Literal:
        token = found.children[0]
        quoted = token.type == "STRING"
        text = _unescaped(str(token)[1:-1]) if quoted else str(token)
        return Literal(text, quoted, token.start_pos, len(token))

    def _words(self, token: Any) -> Words:
        if token.type == "STRING":
            return Words(_unescaped(str(token)[1:-1]))
        name = unquoted(str(token))
        if kind_of(ALIASES.get(name, name)) is not None:
            example = {"boolean": "true", "time": "-7d", "number": "0", "size": "10MB", "duration": "1h"}
            value = example.get(str(kind_of(ALIASES.get(name, name))), "...")
            sign = "=" if value in ("true", "...") else ">"
            raise InvalidQuery(
                f"{name!r} is a field, and nothing is said of it", self._text, token.start_pos, len(token),
                hint=f"write {field_text(name)} {sign} {value}, or {_quote(name)} in quotes to search for the word",
            )  # fmt: skip
        return Words(name)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def unquoted(text: str) -> str:
    """Return the name for which a field stands that may be quoted in parts."""
    return _QUOTED.sub(lambda match: _unescaped(match[1]), text)


def _checked_field(name: str, text: str, at: int, length: int) -> str:
    """Return the proper name of a field. Raises InvalidQuery with names that are near."""
    name = ALIASES.get(name, name)
    if kind_of(name) is not None:
        return name
    from difflib import get_close_matches

    near = get_close_matches(name, (*FIELDS, *ALIASES), n=2) if "." not in name else []
    first, _, rest = name.partition(".")
    if rest and first != "files":
        prefix = METRICS if first in ("metric", "series", "m") else PARAMS
        near = [f"{prefix}{rest}"] if first in _ALMOST else [f"{PARAMS}{name}", f"{METRICS}{name}"]
    elif name in (PARAMS, METRICS, "params", "metrics", "param", "metric"):
        near = ["params.lr", "metrics.loss.min"]
    elif not near:
        near = [f"{PARAMS}{name}", f"{METRICS}{name}"]
    meant = " or ".join(field_text(one)[:80] for one in near)
    hint = f"did you mean {meant}? the others are {', '.join(FIELDS)}, params.NAME and metrics.NAME"
    raise InvalidQuery(f"there is no field {name[:60]!r}", text, at, length, hint=hint)


_ALMOST: Final = ("param", "parameter", "parameters", "config", "p", "metric", "series", "m")


# -- wrong texts ------------------------------------------------------------------------------------------------------

# What stands at the place where reading failed (or one character before it) → what would be right.
_SLIPS: Final = (
    ("==", "write = for equal"),
    ("=~", "write ~ for a regular expression"),
    ("=>", "write >= for greater or equal"),
    ("=<", "write <= for less or equal"),
    ("<>", "write != for not equal"),
    ("!~", "write not before the condition: not name ~ ..."),
    ("&&", "write and"),
    ("||", "write or"),
    ("&", "write and"),
    ("|", "write or"),
    ("!", "write not before a condition, or != between field and value"),
    ("[", "write a list in round brackets: status in (failed, interrupted)"),
)


def _misread(text: str, error: Any) -> InvalidQuery:
    """Return the error for a text that the grammar does not allow."""
    at, length, expected = _place(text, error)
    if at >= len(text):
        what = "the query ends too early"
        shown_at, length = len(text), 1
    else:
        word = re.match(rf"{_BARE}+|.", text[at:], re.DOTALL)
        length = max(length, len(word[0])) if word else 1
        what, shown_at = f"{text[at : at + length]!r} does not belong here", at
    slip = next(
        (hint for sign, hint in _SLIPS if text.startswith(sign, at) or text.startswith(sign, max(0, at - 1))), ""
    )
    if text[at : at + 1] in ('"', "'"):
        slip = 'close the quote, or write \\" for a quote within quotes'
    elif text[at : at + 1] == ")" and "$END" in expected:
        slip = "there is no ( for this )"
    elif text[at : at + 1] == ":":
        before = re.search(rf"({_BARE}*)\Z", text[:at])
        name = before[1] if before else ""
        slip = f"write {name} = ..., only tag: has a colon; or put the word in quotes" if name else "write tag:NAME"
    return InvalidQuery(what, text, shown_at, length, hint=slip or _next(expected))


def _place(text: str, error: Any) -> tuple[int, int, set[str]]:
    """Return (where reading failed, length of what stands there, the terminals that could stand there)."""
    from lark.exceptions import UnexpectedCharacters, UnexpectedToken

    if isinstance(error, UnexpectedCharacters):
        return int(error.pos_in_stream or 0), 1, set(error.allowed or ())
    if isinstance(error, UnexpectedToken):
        ended = error.token.type == "$END"
        at = len(text) if ended else error.token.start_pos
        return int(at or 0), 0 if ended else len(error.token), set(error.accepts or error.expected)
    return len(text), 0, set()


def _next(expected: set[str]) -> str:
    """Return what could stand at a place, in words."""
    if "OP" in expected and "WORD" not in expected:
        return "after a field comes = != < <= > >= ~ or in"
    if expected == {"LPAR"}:
        return "after in comes a list: (failed, interrupted)"
    if "VALUE" in expected:
        return 'a value is missing: a number, a word, or "a text in quotes"'
    if "COMMA" in expected:
        return "a list goes on with a comma, and ends with )"
    if "RPAR" in expected:
        return "close the bracket with ), or join conditions by and, or"
    if "WORD" in expected and "_AND" not in expected:
        return 'a condition is missing: status = failed, tag:baseline, or "a word"'
    return "join conditions by and, or; put a text in quotes"


# -- from conditions to tests -----------------------------------------------------------------------------------------

Holds = Callable[[Any], bool]

_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_EQUALITY: Final = ("=", "!=")
# Kind of a field → the operators that make no sense for it, and why.
_NOT_FOR: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "status": (tuple(_ORDERS), "a status is equal to one of " + ", ".join(STATUSES) + ", or not"),
    "tags": (tuple(_ORDERS), "an experiment has a tag or not: tag:NAME"),
    "boolean": ((*_ORDERS, "~"), "write = true or = false"),
    "time": (("~",), literals.TIME_HINT),
    "duration": (("~",), literals.DURATION_HINT),
    "size": (("~",), literals.SIZE_HINT),
    "number": (("~",), literals.NUMBER_HINT),
}
_NUMBERS: Final = (int, float)


class _Planner:
    """Turns the tree of one query into tests."""

    def __init__(self, text: str, now_ns: int) -> None:
        self._text = text
        self._now_ns = now_ns

    def plan(self, node: Node) -> Plan:
        """Return the plan of a node. Raises InvalidQuery where a value does not fit its field."""
        if isinstance(node, Words):
            word = node.text.casefold()
            return Condition(SEARCHED, lambda text: word in text)
        if isinstance(node, Compare):
            return Condition(node.field, self._compare(node))
        if isinstance(node, Within):
            equal = [self._equal(node.field, value) for value in node.values]
            one = _any_item(lambda value: any(test(value) for test in equal))
            return Condition(node.field, (lambda value: not one(value)) if node.negated else one)
        if isinstance(node, Not):
            return Joined("no", (self.plan(node.part),))
        return Joined("all" if isinstance(node, And) else "any", tuple(map(self.plan, node.parts)))

    def _compare(self, node: Compare) -> Holds:
        kind = kind_of(node.field)
        refused, why = _NOT_FOR.get(str(kind), ((), ""))
        if node.operator in refused:
            what = f"{node.operator} does not go with {node.field}"
            raise InvalidQuery(what, self._text, node.at, len(node.operator), hint=why)
        if node.operator == "~":
            hint = "use fewer of * + ? { | in it"
            slow = partial(
                InvalidQuery, "searching takes too long", self._text, node.value.at, node.value.length, hint=hint
            )
            found = self._read(lambda text: literals.pattern(text, slow), node.value)
            return _any_item(lambda value: type(value) is str and found(value))
        if node.operator in _EQUALITY:
            equal = _any_item(self._equal(node.field, node.value))
            return equal if node.operator == "=" else lambda value: not equal(value)
        if kind == "time":
            return _time_order(node.operator, self._moment(node.value))
        return _any_item(_ordered(node.operator, self._value(node.field, node.value)))

    def _equal(self, field: str, literal: Literal) -> Holds:
        """Return the test whether one value, not a list, is equal to a literal."""
        kind = kind_of(field)
        if kind == "time":
            moment = self._moment(literal)
            return lambda value: moment.start_ns <= value < moment.end_ns
        wanted = self._value(field, literal)
        if field == "commit" and re.fullmatch(r"[0-9a-f]{4,63}", wanted):
            return lambda value: bool(value.startswith(wanted))
        return _equals(wanted)

    def _moment(self, literal: Literal) -> literals.Moment:
        found: literals.Moment = self._read(lambda text: literals.moment(text, self._now_ns), literal)
        return found

    def _value(self, field: str, literal: Literal) -> Any:
        """Return what a literal means beside a field. Raises InvalidQuery."""
        kind = kind_of(field)
        if kind == "any":
            return _plain(literal)
        read = _READ.get(str(kind))
        if read is None:
            return literal.text.lower() if field == "commit" else literal.text
        if literal.quoted and kind not in ("status", "boolean"):
            what = f"{str(literal)[:60]} is a text, and {field_text(field)[:60]} is none"
            hint = "write a number without quotes"
            raise InvalidQuery(what, self._text, literal.at, literal.length, hint=hint)
        return self._read(read, literal)

    def _read(self, read: Callable[[str], Any], literal: Literal) -> Any:
        try:
            return read(literal.text)
        except (ValueError, OverflowError) as error:
            what = f"{literal.text[:60]!r} cannot be understood here"
            raise InvalidQuery(what, self._text, literal.at, literal.length, hint=str(error)) from None


def _status(text: str) -> str:
    from difflib import get_close_matches

    if text.lower() in STATUSES:
        return text.lower()
    near = get_close_matches(text.lower(), STATUSES, n=1)
    raise ValueError((f"did you mean {near[0]}? " if near else "") + f"a status is one of {', '.join(STATUSES)}")


def _truth(text: str) -> bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise ValueError("write = true or = false")


_READ: Final[dict[str, Callable[[str], Any]]] = {
    "status": _status,
    "boolean": _truth,
    "duration": literals.duration_s,
    "size": literals.size_bytes,
    "number": literals.count,
}
_CONSTANTS: Final[dict[str, Any]] = {"true": True, "false": False, "null": None, "none": None}


def _plain(literal: Literal) -> Any:
    """Return what a literal means beside a parameter: what is not quoted is a number, true, false or null if it can."""
    if literal.quoted:
        return literal.text
    if literal.text.lower() in _CONSTANTS:
        return _CONSTANTS[literal.text.lower()]
    try:
        return literals.number(literal.text)
    except ValueError:
        return literal.text


def _any_item(test: Holds) -> Holds:
    """Return the test that holds for a list if it holds for one of its items."""
    return lambda value: any(map(test, value)) if type(value) is list else test(value)


def _equals(wanted: Any) -> Holds:
    """Return the test of equality: 1 equals 1.0, but neither true nor "1"; NaN equals NaN."""
    if type(wanted) in _NUMBERS:
        if wanted != wanted:
            return lambda value: type(value) is float and value != value
        return lambda value: value == wanted and type(value) in _NUMBERS
    kind = type(wanted)
    return lambda value: type(value) is kind and value == wanted


def _ordered(operator: str, wanted: Any) -> Holds:
    """Return the test of an order: numbers with numbers, texts with texts by their characters, else false."""
    order = _ORDERS[operator]
    if type(wanted) in _NUMBERS:
        return lambda value: type(value) in _NUMBERS and order(value, wanted)
    if type(wanted) is str:
        return lambda value: type(value) is str and order(value, wanted)
    return lambda value: False


def _time_order(operator: str, moment: literals.Moment) -> Holds:
    """Return the test of a time: a day is before another if all of it is; `<=` and `>=` have the day itself too."""
    start_ns, end_ns = moment
    tests: dict[str, Holds] = {
        "<": lambda value: value < start_ns,
        "<=": lambda value: value < end_ns,
        ">": lambda value: value >= end_ns,
        ">=": lambda value: value >= start_ns,
    }
    return tests[operator]


# -- order and columns ------------------------------------------------------------------------------------------------

# Without a direction, these begin with the latest and the greatest, as lists always did.
_LATEST_FIRST: Final = ("updated", "created", "ended", "points")


@dataclass(frozen=True, slots=True)
class Sort:
    """The order of a list: by a field; experiments without it come last in both directions."""

    field: str
    descending: bool

    def __str__(self) -> str:
        return f"{field_text(self.field)}:{'desc' if self.descending else 'asc'}"


def parse_sort(text: str) -> Sort:
    """Return the order that `FIELD`, `FIELD:asc` or `FIELD:desc` means. Raises InvalidQuery.

    Without a direction, `updated`, `created`, `ended` and `points` begin with the latest and greatest.
    """
    name, colon, direction = text.rpartition(":")
    if not colon or '"' in direction:
        name, direction = text, ""
    elif direction.strip().lower() not in ("asc", "desc"):
        at = len(name) + 1
        hint = "write asc, the least first, or desc, the greatest first"
        raise InvalidQuery(f"{direction!r} is no direction", text, at, max(1, len(direction)), hint=hint)
    field = _checked_field(unquoted(name.strip()), text, 0, len(name))
    chosen = direction.strip().lower()
    return Sort(field, chosen == "desc" if chosen else field in _LATEST_FIRST)


def parse_columns(text: str) -> tuple[str, ...]:
    """Return the fields that a list like `params.lr,metrics.loss.min` names, each once. Raises InvalidQuery.

    A name with a comma or quotes is written in quotes: `params."a,b"`.
    """
    fields: list[str] = []
    for match in re.finditer(r'(?:"(?:[^"\\]|\\.)*"|[^,"])+', text):
        written = match[0].strip()
        if written:
            fields.append(_checked_field(unquoted(written), text, match.start(), len(match[0])))
    return tuple(dict.fromkeys(fields))
