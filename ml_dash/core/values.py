"""Recorded values: users' objects to plain values, and plain values to strict JSON and back.

A plain value is None, bool, int (-2^63 to 2^64-1), float, str (no lone surrogates), bytes, or a list or a
text-keyed dict of plain values: what msgpack packs and gives back bit for bit. JSON knows neither NaN and
the infinities, which become the texts in `NUMBER_TEXTS`, nor bytes, which become base64 text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import index
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Final

from ml_dash.errors import InvalidValue, UnsupportedType

from .json_values import INFINITY

if TYPE_CHECKING:
    from datetime import datetime

PLAIN: Final[frozenset[type]] = frozenset({float, int, str, bool, type(None)})
"""Exact types that need no conversion. An int may still be out of range, and a text hold a lone surrogate."""

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**64 - 1
MAX_ELEMENTS: Final = 1024
MAX_DEPTH: Final = 64
MAX_TEXT: Final = 1000


ACCEPTED: Final = (
    "use None, bool, int, float, Decimal, Fraction, str, bytes, datetime, Path, Enum, dataclasses, lists, tuples, "
    f"mappings with text keys, or scalars and arrays of up to {MAX_ELEMENTS:,} elements"
)

_UNCHECKED: Final[frozenset[type]] = frozenset({float, bool, type(None)})

Unknown = Callable[[str, object, str], object]
"""Called with key, value and reason for what cannot be recorded; its result is recorded instead."""


def field_values(fields: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of a metric's point as plain values.

    Raises `UnsupportedType` naming the key and type of a value that cannot be recorded, `InvalidValue` for integers
    out of range, lone surrogates, and values that are nested deeper than 64 levels or contain themselves.
    """
    return {_key(key): _plain(value, key, 1, _refuse) for key, value in fields.items()}


def checked_step(argument: str, value: object) -> int | float:
    """Return the step of a rewind: a finite number, not negative. Raises `InvalidValue`."""
    try:
        step = _plain(value, argument, 1, _refuse)
    except (UnsupportedType, InvalidValue):
        step = None
    if type(step) is int and 0 <= step <= INT_MAX:
        return step
    if type(step) is float and 0 <= step < INFINITY:
        return step
    raise InvalidValue(f"{argument} is {value!r:.80}", hint="use the step to go on from: a number that is not negative")


def page_arguments(start_index: Any, limit: Any) -> tuple[int, int]:
    """The two bounds of a page as plain ints; how long a page may be, its reader checks."""
    bounds = []
    for argument, value in (("start_index", start_index), ("limit", limit)):
        try:
            bounds.append(index(value))
        except TypeError:
            found = type(value).__name__
            raise UnsupportedType(f"{argument} is {found}, expected int", hint="like 0, or -100") from None
    return bounds[0], bounds[1]


def lenient_values(mapping: Mapping[str, object], warn: Callable[[str], None]) -> dict[str, object]:
    """Return parameters or metadata as plain values; other objects become `str(value)`, cut at 1,000 characters.

    `warn` gets one text for each key whose value becomes text; the key of a value in a nested mapping is its dotted
    path. Raises `InvalidValue` as `field_values` does, and `UnsupportedType` for a key that is not text.
    """
    warned: set[str] = set()

    def describe(key: str, value: object, reason: str) -> str:
        if key not in warned:
            warned.add(key)
            warn(f'"{key}" {reason}; it is kept as text, str(value)')
        return _described(value)

    return {_key(key): _plain(value, key, 1, describe) for key, value in mapping.items()}


def parameter_values(mapping: Mapping[Any, object], warn: Callable[[str], None]) -> dict[str, object]:
    """Return parameters as plain values, as `lenient_values` does, but accept more objects as mappings and keys.

    Objects that hold named values (see `as_mapping`) count as mappings; keys of int, float, bool, None and Enum become
    text. Raises `InvalidValue` for two keys that become the same text, `UnsupportedType` for any other key.
    """
    return lenient_values(_with_text_keys(mapping, "", 1), warn)


def as_mapping(value: object) -> Mapping[Any, object] | None:
    """Return the named values of an object as a mapping; None for an object without such.

    Mappings (OmegaConf's too), dataclasses, attrs and pydantic objects, `argparse.Namespace` and
    `types.SimpleNamespace`, recognised by their shape, without importing their modules.
    """
    if isinstance(value, Mapping):
        return value
    kind = type(value)
    if hasattr(kind, "__dataclass_fields__"):
        return dict(_dataclass_items(value))
    if hasattr(kind, "__attrs_attrs__"):
        return {field.name: getattr(value, field.name) for field in kind.__attrs_attrs__ if hasattr(value, field.name)}
    if _is_one_of(kind, _NAMESPACES):
        return dict(vars(value))
    fields = getattr(kind, "model_fields", None) or getattr(kind, "__fields__", None)
    if isinstance(fields, Mapping) and (hasattr(kind, "model_dump") or hasattr(kind, "parse_obj")):
        more = getattr(value, "model_extra", None) or {}
        return {**{name: getattr(value, name) for name in fields}, **more}
    return None


_NAMESPACES: Final = frozenset({("argparse", "Namespace"), ("types", "SimpleNamespace")})


def _with_text_keys(mapping: Mapping[Any, object], path: str, depth: int) -> dict[str, object]:
    """Return the values under text keys, in nested mappings too; lists are left as they are. Raises `InvalidValue`."""
    _check_depth(depth, path)
    values: dict[str, object] = {}
    origin: dict[str, object] = {}
    for key, value in mapping.items():
        name = key if type(key) is str else _key_text(key)
        where = f"{path}.{name}" if path else name
        if name in origin:
            raise InvalidValue(
                f'the keys {origin[name]!r:.80} and {key!r:.80} both become "{where}"', hint="rename one of them"
            )
        origin[name] = key
        if type(value) in PLAIN:
            values[name] = value
            continue
        inner = as_mapping(value)
        values[name] = value if inner is None else _with_text_keys(inner, where, depth + 1)
    return values


def _key_text(key: object) -> str:
    from enum import Enum

    if isinstance(key, Enum):
        key = key.value
    if key is None or isinstance(key, (bool, int, float)):
        return str(key)
    return _key(key)


def _refuse(key: str, _value: object, reason: str) -> object:
    raise UnsupportedType(f'"{key}" {reason}', hint=ACCEPTED)


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise UnsupportedType(f"the key {_described(key)[:80]} is {_type_name(key)}, expected str")
    return _text(key, key)


def _plain(value: object, key: str, depth: int, unknown: Unknown) -> object:
    """Convert one value; `key` is for messages. Exact types first, because nearly all values have one."""
    kind = type(value)
    if kind in _UNCHECKED:
        return value
    if kind is int:
        return _integer(value, key)  # type: ignore[arg-type]
    if kind is str:
        return _text(value, key)  # type: ignore[arg-type]
    if kind is dict:
        return _mapping(value, key, depth, unknown)  # type: ignore[arg-type]
    if kind is list or kind is tuple:
        return _sequence(value, key, depth, unknown)  # type: ignore[arg-type]
    if kind is bytes:
        return value
    return _other(value, key, depth, unknown)


def _integer(value: int, key: str) -> int:
    if not INT_MIN <= value <= INT_MAX:
        problem = str(value) if value.bit_length() < 256 else f"an integer of {value.bit_length():,} bits"
        hint = "record it as a float or as text"
        raise InvalidValue(f'"{key}" is {problem}, outside -2**63 to 2**64-1', hint=hint)
    return value


def _text(value: str, key: str) -> str:
    text = value if type(value) is str else str.__str__(value)
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            code = f"U+{ord(text[error.start]):04X}"
            name = ascii(key)[1:-1]
            problem = f'"{name}" holds a lone surrogate {code} at position {error.start:,}'
            raise InvalidValue(f"{problem}, which is not valid Unicode") from None
    return text


def _mapping(value: Mapping[Any, object], key: str, depth: int, unknown: Unknown) -> object:
    _check_depth(depth, key)
    result: dict[str, object] = {}
    for name, item in value.items():
        if not isinstance(name, str):
            reason = f"has the key {_described(name)[:80]}, which is {_type_name(name)}, expected str"
            return unknown(key, value, reason)
        result[_text(name, key)] = _plain(item, f"{key}.{name}", depth + 1, unknown)
    return result


def _sequence(value: Iterable[object], key: str, depth: int, unknown: Unknown) -> list[object]:
    _check_depth(depth, key)
    items = list(value)
    if _UNCHECKED.issuperset(map(type, items)):
        return items
    return [_plain(item, key, depth + 1, unknown) for item in items]


def _check_depth(depth: int, key: str) -> None:
    if depth > MAX_DEPTH:
        shown = key if len(key) <= 80 else key[:77] + "..."
        raise InvalidValue(f'"{shown}" is nested deeper than {MAX_DEPTH} levels, or contains itself')


def _other(value: object, key: str, depth: int, unknown: Unknown) -> object:
    """Convert a value whose type is not one of the exact ones: subclasses, types of the standard library, arrays."""
    if isinstance(value, float):
        return float(value)
    kind = type(value)
    # Ask the type: an object that invents attributes on request is not an array.
    if hasattr(kind, "tolist") and hasattr(kind, "dtype") and not isinstance(value, str | bytes):
        return _array(value, key, depth, unknown)
    from datetime import datetime
    from enum import Enum

    if isinstance(value, Enum):
        _check_depth(depth, key)
        return _plain(value.value, key, depth + 1, unknown)
    if isinstance(value, str):
        return _text(value, key)
    if isinstance(value, int):
        return _integer(int(value), key)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, datetime):
        return _moment(value, key, unknown)
    if isinstance(value, Mapping):
        return _mapping(value, key, depth, unknown)
    if isinstance(value, list | tuple) or _is_one_of(kind, _LISTS):
        return _sequence(value, key, depth, unknown)  # type: ignore[arg-type]
    if isinstance(value, PathLike):
        return _plain(fspath(value), key, depth, unknown)
    if hasattr(kind, "__dataclass_fields__") and not isinstance(value, type):
        return _mapping(dict(_dataclass_items(value)), key, depth, unknown)
    if hasattr(kind, "tolist") or hasattr(kind, "item"):
        return _array(value, key, depth, unknown)
    if _is_one_of(kind, _EXACT_NUMBERS):
        return float(value)  # type: ignore[arg-type]
    return unknown(key, value, f"is {_type_name(value)}, which cannot be recorded")


# By name, because most programs load neither module. The C version of `decimal` has this name, too.
_EXACT_NUMBERS: Final = frozenset({("decimal", "Decimal"), ("fractions", "Fraction")})
# OmegaConf's list is not a `list`; iterating it resolves interpolations.
_LISTS: Final = frozenset({("omegaconf.listconfig", "ListConfig")})


def _is_one_of(kind: type, names: frozenset[tuple[str, str]]) -> bool:
    """True if a class, or a base of it, is one of these (module, name). Imports nothing."""
    return any((base.__module__, base.__name__) in names for base in kind.__mro__)


def _moment(value: datetime, key: str, unknown: Unknown) -> object:
    """Convert a datetime to UTC text. One without a zone is local time, as everywhere in the standard library."""
    from datetime import timezone

    if value != value:  # the "not a time" of table libraries
        return None
    try:
        moment = value.astimezone(timezone.utc)
    except (OverflowError, ValueError, OSError):
        return unknown(key, value, "is a datetime without a UTC time")
    return moment.isoformat(timespec="microseconds")[:-6] + "Z"


def _dataclass_items(value: object) -> Iterator[tuple[str, object]]:
    from dataclasses import fields

    for field in fields(value):  # type: ignore[arg-type]
        if hasattr(value, field.name):
            yield field.name, getattr(value, field.name)


def _array(value: object, key: str, depth: int, unknown: Unknown) -> object:
    """Convert a scalar or an array of NumPy, PyTorch, JAX or the like, by the methods that they share."""
    _check_depth(depth, key)
    plain: object = None
    try:
        reason = _too_large(value)
        if not reason:
            plain = _listed(value)
    except Exception as error:  # noqa: BLE001 - the array's own code: traced, without data, on a lost device, ...
        reason = f"could not be read ({_type_name(error)})"
    if not reason and type(plain) is type(value):
        reason = "cannot be recorded"
    if reason:
        return unknown(key, value, f"is {_type_name(value)}, which {reason}")
    return _plain(plain, key, depth + 1, unknown)


def _too_large(array: object) -> str:
    count = _count(array)
    if count is None:
        return "does not tell its size"
    return f"has {count:,} elements, more than {MAX_ELEMENTS:,}" if count > MAX_ELEMENTS else ""


def _count(array: Any) -> int | None:
    """Return how many elements an array has: `size` if that is a number, else `numel()`, else its length."""
    size = getattr(array, "size", None)
    if isinstance(size, int):
        return size
    if hasattr(array, "numel"):
        return int(array.numel())
    if hasattr(array, "__len__"):
        return len(array)
    return 1 if hasattr(type(array), "item") else None


def _listed(array: Any) -> object:
    kind = getattr(getattr(array, "dtype", None), "kind", "")
    if kind == "M":
        return _in_utc(array.astype("datetime64[us]").tolist())
    if kind == "m":
        return array  # a duration has no plain value, and nanoseconds would pass for an int
    plain = array.tolist() if hasattr(type(array), "tolist") else array.item()
    # `item()` of a scalar wider than a double returns the scalar itself.
    return float(plain) if kind == "f" and type(plain) is type(array) else plain


def _in_utc(times: Any) -> object:
    from datetime import timezone

    if isinstance(times, list):
        return [_in_utc(item) for item in times]
    return times.replace(tzinfo=timezone.utc) if hasattr(times, "tzinfo") else times


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _described(value: object) -> str:
    try:
        text = str(value)[:MAX_TEXT]
    except Exception:  # noqa: BLE001 - the value's own code; that it has no text must not stop the program
        return f"<{type(value).__name__}: unprintable>"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")[:MAX_TEXT]
