"""What all kinds of uploads check: the name they are given, and the SHA-256 of a content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from . import Objects

_NAME: Final = re.compile(r"[0-9a-fA-F-]{1,200}")


def is_upload_name(name: str) -> bool:
    """True for hex digits and dashes, at most 200: good for a name of a file and of an object."""
    return _NAME.fullmatch(name) is not None


def checked_name(name: str) -> str:
    """Return the name of an upload. Raises ValueError for what is none."""
    if not is_upload_name(name):
        raise ValueError(f"{name[:80]!a} is not the name of an upload")
    return name


def digest_of(pieces: Iterable[bytes]) -> str:
    """Return the SHA-256 of a content in hex."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def is_object(objects: Objects, key: str, size: int, digest: str) -> bool:
    """True if an object is there and has this content; it is read for that. Raises StoreTrouble."""
    if objects.size(key) != size:
        return False
    try:
        return digest_of(objects.open(key)) == digest
    except FileNotFoundError:
        # Deleted since.
        return False
