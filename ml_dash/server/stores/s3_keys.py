"""Names of objects in a bucket: any key of the server as one that every S3 service takes, and back.

S3 allows 1,024 bytes of UTF-8; XML, in which lists are answered, has no control characters; services that keep objects
in folders refuse parts like `..`, and parts of more than 255 bytes. So a name is made of the key like this:

    part of a key             in the name
    %  \\  control characters  `%` and two hex digits for each byte, and lone surrogates likewise
    a dot at its beginning    %2E
    more than 180 bytes       goes on in a part below: the first ends in `%+`, the next begins with `%-`
    all other text            as it is, in UTF-8

A name that is too long even so ends early, in `%~` and the SHA-256 of the key. The whole key is the content of another
object then, whose name is that digest.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Final

MOST_BYTES: Final = 1024
_PART_BYTES: Final = 180
_GOES_ON: Final = "%+"
_CONTINUED: Final = "%-"
_CUT: Final = "%~"
_CUT_BYTES: Final = len(_CUT) + 64
_LONG: Final = re.compile(r"%~([0-9a-f]{64})\Z")


def name_of(key: str, room: int) -> str:
    """Return the name of an object, of at most `room` bytes. Raises ValueError for what is not a key."""
    parts = key.split("/")
    if not all(parts):
        raise ValueError(f"{key!r} is not the key of an object")
    name = "/".join(piece for part in parts for piece in _pieces(part))
    if len(name.encode()) <= room:
        return name
    return _cut(name, room - _CUT_BYTES) + _CUT + digest_of(key)


def digest_of(key: str) -> str:
    """Return the SHA-256 of a key in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def long_digest(name: str) -> str | None:
    """Return the digest with which a name was cut off; None for one that is whole."""
    found = _LONG.search(name)
    return found[1] if found else None


def key_of(name: str) -> str:
    """Return the key of a name that is whole."""
    return _unescaped(name.replace(f"{_GOES_ON}/{_CONTINUED}", ""))


def beginning_of(prefix: str, room: int) -> str | None:
    """Return how the names begin of all keys that begin with `prefix`; None if there can be no such key.

    Names of other keys may begin like that too.
    """
    *whole, last = prefix.split("/")
    if not all(whole):
        return None
    # Of a part that may go on, only what does not depend on how.
    first = _pieces(last)[0].removesuffix(_GOES_ON) if last else ""
    return _cut("/".join([*(piece for part in whole for piece in _pieces(part)), first]), room - _CUT_BYTES)


def _pieces(part: str) -> list[str]:
    """Return the parts of a name, one below the other, that stand for a part of a key."""
    pieces, size = [""], 0
    for number, character in enumerate(part):
        text = _escaped(character) if number or character != "." else "%2E"
        size += len(text.encode())
        if size > _PART_BYTES:
            pieces.append("")
            size = len(text.encode())
        pieces[-1] += text
    first, *rest = [piece + _GOES_ON for piece in pieces[:-1]] + pieces[-1:]
    return [first, *(_CONTINUED + piece for piece in rest)]


def _escaped(character: str) -> str:
    # Cc are control characters, Cs lone surrogates; the last two are no characters, and XML refuses them.
    if character in "%\\\ufffe\uffff" or unicodedata.category(character) in ("Cc", "Cs"):
        return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
    return character


def _unescaped(text: str) -> str:
    data = text.encode()
    return re.sub(rb"%([0-9A-F]{2})", lambda found: bytes([int(found[1], 16)]), data).decode("utf-8", "surrogatepass")


def _cut(text: str, size: int) -> str:
    """Return the beginning of a text, of at most `size` bytes, without a part of a character."""
    return text.encode()[:size].decode(errors="ignore")
