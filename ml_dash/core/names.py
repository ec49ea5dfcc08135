"""Rules for names of projects, experiments, metrics and files, and the safe relative path of each.

A name becomes a path part by part. Ordinary names stay as they are. What a file system or this program
gives a meaning of its own is written in percent-escapes of its UTF-8 bytes, so that two names never share a
path and no path leaves its folder:

| in the name                                          | on disk                                       |
|------------------------------------------------------|-----------------------------------------------|
| `%` `<` `>` `:` `"` `|` `?` `*` and backslash        | `%25`, `%3C`, ...                             |
| a leading dot; a trailing dot or space               | `%2Ehidden`, `end%2E`, `end%20`               |
| `data.jsonl`, `metadata.json` as part of a metric    | `%64ata.jsonl`, `%6Detadata.json`             |
| `CON`, `nul.txt` and the other device names          | `%43ON`, `%6Eul.txt`                          |
| an empty part (`a//b`, `/abs`)                       | a lone `%`                                    |
| a part over its limit (metrics 140 bytes, files 200) | its beginning, `%-`, 40 digits of its SHA-256 |
| a path over 400 bytes                                | one part: a beginning, `%+`, 40 such digits   |
| with `fold_case`: upper case, most of non-ASCII      | escaped                                       |

Everywhere else `%` is followed by two hex digits, so no other name can become one of these forms.
"""

from __future__ import annotations

from os import PathLike, fspath
from typing import Final

from ml_dash.errors import InvalidName, UnsupportedType

NAME_BYTES: Final = 200
METRIC_NAME_BYTES: Final = 1000
PREFIX_BYTES: Final = 1000
FILENAME_BYTES: Final = 1000

# Some encrypting file systems allow 143 bytes for a name; 140 fits them. A file keeps its own name as far
# as the usual 255 bytes allow, with room for the `%<id>` that tells clashing files apart.
METRIC_PART_BYTES: Final = 140
FILE_PART_BYTES: Final = 200
# macOS allows 1,024 bytes for a whole path, of which project and experiment may take 400.
PATH_BYTES: Final = 400

_METRIC_FILES: Final = frozenset({"data.jsonl", "metadata.json"})
_DEVICES: Final = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {port + digit for port in ("com", "lpt") for digit in "0123456789¹²³"}
)
_HASHED: Final = ("%-", "%+")
_DIGEST_DIGITS: Final = 40


def _escaped(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8"))


_ESCAPES: Final = {ord(character): _escaped(character) for character in '%<>:"|?*\\'}

# Scripts that have no case and whose characters never compose with each other, in any Unicode version: a
# file system that compares names without case, or normalises them, cannot confuse two of these. A fixed
# list, so that a path does not depend on the Unicode tables of the Python that computes it.
_CASELESS: Final = (
    (0x3041, 0x3096),  # Hiragana
    (0x30A1, 0x30FA),  # Katakana
    (0x4E00, 0x9FFF),  # Han
    (0xAC00, 0xD7A3),  # Hangul syllables
    (0x1F300, 0x1F64F),  # pictographs, emoji
)


def check_name(argument: str, text: object) -> str:
    """Check the name of a project or an experiment; return it as exact `str`.

    Raises `InvalidName` that names the argument, the value and what is accepted, and `UnsupportedType` for
    other types than text.
    """
    name = _text(argument, text)
    hint = f'use one folder name: no "/", "\\", control characters or leading ".", at most {NAME_BYTES} bytes'
    if not name:
        raise InvalidName(f"{argument} is empty", hint=hint)
    if name.startswith("."):
        raise InvalidName(f'{argument} {shown(name)} starts with "."', hint=hint)
    for separator in "/\\":
        if separator in name:
            raise InvalidName(f'{argument} {shown(name)} contains "{separator}"', hint=hint)
    _check_text(argument, name, NAME_BYTES, hint)
    return name


def check_metric_name(text: object) -> str:
    """Check the name of a metric; return it as exact `str`: 1 to 1,000 bytes of UTF-8, no control characters.

    Raises `InvalidName`, `UnsupportedType`.
    """
    name = _text("metric name", text)
    hint = f"use 1 to {METRIC_NAME_BYTES:,} bytes of text without control characters"
    if not name:
        raise InvalidName("metric name is empty", hint=hint)
    _check_text("metric name", name, METRIC_NAME_BYTES, hint)
    return name


def check_prefix(prefix: object) -> str:
    """Return a file's prefix in canonical form: parts joined by `/`, no outer slashes; `""` is the root.

    Empty parts and `.` are dropped. Raises `InvalidName` for `..`, control characters, lone surrogates and
    more than 1,000 bytes.
    """
    text = _text("prefix", fspath(prefix) if isinstance(prefix, PathLike) else prefix)
    hint = f'use folder names with "/" between, such as "/models": no "..", at most {PREFIX_BYTES:,} bytes'
    _check_text("prefix", text, PREFIX_BYTES, hint)
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidName(f'prefix {shown(text)} contains ".."', hint=hint)
    return "/".join(parts)


def check_filename(text: object) -> str:
    """Check the name of a file without its folder; return it as exact `str`.

    Raises `InvalidName`, `UnsupportedType`.
    """
    name = _text("file name", text)
    hint = "use one file name, without a folder and without control characters"
    if name in ("", ".", ".."):
        raise InvalidName(f"file name {shown(name)} names no file", hint=hint)
    if "/" in name:
        raise InvalidName(f'file name {shown(name)} contains "/"', hint=hint)
    _check_text("file name", name, FILENAME_BYTES, hint)
    return name


def metric_path(name: str, fold_case: bool = False) -> str:
    """Return the path of a metric's folder under `metrics/`, in POSIX form; two names never have the same.

    With `fold_case` two names also differ for a file system that compares names without case or in another
    Unicode normal form. The result is never empty or absolute, has no part `.` or `..`, no part over 140
    bytes, and is at most 400 bytes long; as a folder, it never stands where another metric keeps a file.
    """
    parts = [_part(part, METRIC_PART_BYTES, _METRIC_FILES, fold_case) for part in name.split("/")]
    return _path(name, parts, METRIC_PART_BYTES)


def file_path(prefix: str, filename: str) -> str:
    """Return the path of a file under `files/`, in POSIX form; two files never have the same.

    Expects what `check_prefix` and `check_filename` returned. No part is over 200 bytes or starts with a
    dot: a leading dot is left to our own files there.
    """
    name = f"{prefix}/{filename}" if prefix else filename
    return _path(name, [_part(part, FILE_PART_BYTES) for part in name.split("/")], FILE_PART_BYTES)


def clash_key(path: str) -> str:
    """Return a text that is equal for two paths that a file system takes for one, by case or by normalising."""
    if path.isascii():
        return path.lower()
    from unicodedata import normalize  # a megabyte of tables, rarely needed

    return normalize("NFKD", normalize("NFKD", path).casefold()).casefold()


def experiment_id(project: str, name: str) -> str:
    """Return the id of an experiment: decimal text, the same wherever and whenever it is opened."""
    return _number(f"{project}\0{name}".encode())


def metric_id(experiment: str, name: str) -> str:
    """Return the id of a metric: decimal text, from the experiment's id and the metric's name."""
    return _number(f"{experiment}\0{name}".encode())


def file_id(writer: bytes, seq: int) -> str:
    """Return the id of a file: decimal text, from the identity of the event that added it."""
    return _number(writer + seq.to_bytes(8, "big"))


def shown(text: str) -> str:
    """Return a text for an error message: in double quotes, special characters escaped, cut at 80 characters."""
    cut = text if len(text) <= 80 else text[:77] + "..."
    if cut.isprintable():
        return f'"{cut}"'
    return '"' + cut.encode("unicode_escape", "backslashreplace").decode("ascii") + '"'


def _text(argument: str, value: object) -> str:
    if type(value) is str:
        return value
    if isinstance(value, str):
        return str.__str__(value)  # not str(value): an Enum that is a str would give its member's name
    raise UnsupportedType(f"{argument} is {type(value).__name__}, expected str")


def _check_text(argument: str, text: str, limit: int, hint: str) -> None:
    if not text.isprintable():
        for character in text:
            if character < " " or "\x7f" <= character <= "\x9f":
                problem = f"the control character U+{ord(character):04X}"
                raise InvalidName(f"{argument} {shown(text)} contains {problem}", hint=hint)
            if "\ud800" <= character <= "\udfff":
                problem = f"the lone surrogate U+{ord(character):04X}"
                raise InvalidName(f"{argument} {shown(text)} contains {problem}", hint=hint)
    # Count characters before encoding: a text may be huge.
    if len(text) > limit or len(text.encode("utf-8")) > limit:
        raise InvalidName(f"{argument} {shown(text)} is longer than {limit:,} bytes of UTF-8", hint=hint)


def _part(raw: str, limit: int, reserved: frozenset[str] = frozenset(), fold_case: bool = False) -> str:
    """Return one part of a path; see the table at the top."""
    if not raw:
        return "%"
    part = "".join(map(_folded, raw)) if fold_case else raw.translate(_ESCAPES)
    # A part that begins with an escape is not one of these names any more.
    if part[0] == "." or (part[0] != "%" and (raw.lower() in reserved or _is_device(raw))):
        part = _escaped(part[0]) + part[1:]
    if part[-1] in ". ":
        part = part[:-1] + _escaped(part[-1])
    if len(part.encode("utf-8")) > limit:
        return _hashed("%-", part, raw, limit)
    return part


def _folded(character: str) -> str:
    code = ord(character)
    if code < 0x80:
        return _escaped(character) if "A" <= character <= "Z" else _ESCAPES.get(code, character)
    return character if any(low <= code <= high for low, high in _CASELESS) else _escaped(character)


def _is_device(raw: str) -> bool:
    return raw.partition(".")[0].rstrip(" ").lower() in _DEVICES


def _path(name: str, parts: list[str], part_limit: int) -> str:
    path = "/".join(parts)
    if len(path.encode("utf-8")) > PATH_BYTES:
        return _hashed("%+", parts[0], name, part_limit)
    return path


def _hashed(mark: str, beginning: str, raw: str, limit: int) -> str:
    room = limit - len(mark) - _DIGEST_DIGITS
    head = beginning.encode("utf-8")[:room].decode("utf-8", "ignore")
    # The cut must not leave half of an escape, or make a second mark.
    escape = head.rfind("%")
    if escape != -1 and (escape >= len(head) - 2 or head[escape : escape + 2] in _HASHED):
        head = head[:escape]
    return head + mark + _sha256(raw.encode("utf-8")).hex()[:_DIGEST_DIGITS]


def _number(content: bytes) -> str:
    return str(int.from_bytes(_sha256(content)[:8], "big"))


def _sha256(content: bytes) -> bytes:
    from hashlib import sha256  # loads OpenSSL, which `import ml_dash` need not wait for

    return sha256(content).digest()


LEVELS: Final[dict[str, str]] = {
    **{level: level for level in ("debug", "info", "warn", "error", "fatal")},
    "warning": "warn",
    "critical": "fatal",
}
"""Levels as people write them, in lower case → as they are recorded."""


def level_of(text: str) -> str | None:
    """Return the recorded form of a level, given in any case; None if it is not a level."""
    return LEVELS.get(text.strip().lower())
