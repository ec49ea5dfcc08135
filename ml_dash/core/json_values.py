"""Plain values to strict JSON and back, and nested mappings to flat ones and back."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    pass

INFINITY: Final = float("inf")


NUMBER_TEXTS: Final = {"NaN": float("nan"), "Infinity": INFINITY, "-Infinity": -INFINITY}


def to_json(value: Any) -> Any:
    """Convert a plain value for strict JSON: NaN and infinities become texts, bytes base64 text."""
    kind = type(value)
    if kind is float:
        return value if -INFINITY < value < INFINITY else _number_text(value)
    if kind is dict:
        return {name: to_json(item) for name, item in value.items()}
    if kind is list:
        return [to_json(item) for item in value]
    if kind is bytes:
        return b2a_base64(value, newline=False).decode("ascii")
    return value


def _number_text(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def texts_like_numbers(data: Mapping[str, Any]) -> list[str]:
    """Return the keys whose *text* a reader of JSON would take for NaN or an infinity, for the extra field `text`.

    A text inside a mapping or a list is named by its path: keys and positions joined by `.`, where `.` in a
    key is written `~1` and `~` is written `~0`. So a key without these two stands for itself.
    """
    names: list[str] = []
    for name, value in data.items():
        kind = type(value)
        if kind is str:
            if value in NUMBER_TEXTS:
                names.append(_step(name))
        elif kind is dict or kind is list:
            _find_texts(value, _step(name), names)
    return names


def _find_texts(container: Any, path: str, names: list[str]) -> None:
    for name, value in _members(container):
        if type(value) is str:
            if value in NUMBER_TEXTS:
                names.append(f"{path}.{_step(name)}")
        elif type(value) in (dict, list):
            _find_texts(value, f"{path}.{_step(name)}", names)


def from_json(data: Mapping[str, Any], text_keys: Iterable[str] = ()) -> dict[str, Any]:
    """Return the values that `to_json` was given: "NaN" and the like as floats, except those that `text_keys` names.

    Base64 text stays text: JSON does not distinguish it from other text.
    """
    texts = frozenset(text_keys)
    return {name: _read(value, _step(name), texts) for name, value in data.items()}


def _read(value: Any, path: str, texts: frozenset[str]) -> Any:
    kind = type(value)
    if kind is str:
        return NUMBER_TEXTS[value] if value in NUMBER_TEXTS and path not in texts else value
    if kind is dict:
        return {name: _read(item, f"{path}.{_step(name)}", texts) for name, item in value.items()}
    if kind is list:
        return [_read(item, f"{path}.{position}", texts) for position, item in enumerate(value)]
    return value


def _members(container: Any) -> Iterable[tuple[str, Any]]:
    if type(container) is dict:
        return container.items()
    return ((str(position), item) for position, item in enumerate(container))


def _step(name: str) -> str:
    return name.replace("~", "~0").replace(".", "~1")


def flatten(d: Mapping[str, Any], parent_key: str = "", sep: str = ".") -> dict[str, Any]:
    """Return one flat mapping: nested mappings become joined keys; lists and empty mappings stay whole.

    The key `""` of an inner mapping stands for that mapping's own key: see `unflatten`. If two paths become the
    same key, the last wins.
    """
    flat: dict[str, Any] = {}
    _flatten(d, parent_key or None, sep, flat)
    return flat


def _flatten(d: Mapping[str, Any], parent: str | None, sep: str, flat: dict[str, Any]) -> None:
    for name, value in d.items():
        key = str(name) if parent is None else f"{parent}{sep}{name}" if name != "" else parent
        if isinstance(value, Mapping) and value:
            _flatten(value, key, sep, flat)
        else:
            flat[key] = value


def unflatten(d: Mapping[str, Any], sep: str = ".") -> dict[str, Any]:
    """Return the nested mappings for which a flat one stands; `flatten` gives the flat one back.

    A key that is both a value and a prefix (`a` and `a.b`) is kept under the key `""` of the inner mapping.
    A key with an empty part (`a..b`, `.a`, `a.`) is not split: it would not come back.
    """
    parts_of = {key: _split(key, sep) for key in d}
    inner = {sep.join(parts[:end]) for parts in parts_of.values() for end in range(1, len(parts))}
    nested: dict[str, Any] = {}
    for key, value in d.items():
        *path, last = [*parts_of[key], ""] if key in inner else parts_of[key]
        mapping = nested
        for part in path:
            mapping = mapping.setdefault(part, {})
        mapping[last] = value
    return nested


def _split(key: str, sep: str) -> list[str]:
    parts = key.split(sep)
    return parts if all(parts) else [key]
