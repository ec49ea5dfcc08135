"""The files of the dashboard as they are sent: content, gzip, ETag, type; each read and compressed once.

The page names them below `/assets/@VERSION/`, where the version is a digest of all of them: a browser keeps them and
asks for none a second time. What they import is named from where they are, so it comes from there too.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parents[2] / "dashboard"

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
"""Suffix -> type. Files with another suffix are not sent."""

# A part that begins with a dot is neither `..` nor a hidden file.
_PATH: Final = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# A block ends at its first `*/`, and counts only where nothing but the end of the line comes behind it.
_BLOCK: Final = re.compile(rb"^[ \t]*/\*(?:(?!\*/).)*\*/[ \t]*$", re.MULTILINE | re.DOTALL)
_LINE: Final = re.compile(rb"^[ \t]*//[^\n]*$", re.MULTILINE)
_TYPE: Final = re.compile(rb"/\*\* @[^\n]*?\*/ ?")
_INDENTATION: Final = re.compile(rb"^[ \t]+", re.MULTILINE)
_REMARKS: Final = {".js": (_BLOCK, _LINE, _TYPE, _INDENTATION), ".css": (_BLOCK, _INDENTATION)}
_LONGEST_PATH: Final = 200  # characters
_PAGE: Final = "index.html"
_VERSIONED: Final = re.compile(r"@([0-9a-f]{32})/(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that is ready to be sent. `packed` is its gzip form, None where that is no smaller."""

    content: bytes
    packed: bytes | None
    digest: str
    kind: str


class Assets:
    """The files of one folder, by their paths below it.

    A file is read again once its time or size on disk is another. Any thread may ask; two that ask first both read.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._read: dict[str, tuple[tuple[int, int], Asset]] = {}
        self._version: str | None = None
        self._page: tuple[tuple[str, Asset], Asset] | None = None

    def page(self) -> Asset | None:
        """Return the page, which names all other files by their version; None if there is none."""
        written = self.find(_PAGE)
        if written is None:
            return None
        version = self._version = self._digest()
        if self._page is None or self._page[0] != (version, written):
            content = written.content.replace(b'"/assets/', f'"/assets/@{version}/'.encode())
            self._page = (version, written), _asset(content, written.kind)
        return self._page[1]

    def is_current(self, version: str) -> bool:
        """True if this is the version that the page named last."""
        if self._version is None:
            self._version = self._digest()
        return version == self._version

    def _digest(self) -> str:
        """Return a digest of all files that are sent."""
        found = {}
        for file in self._folder.rglob("*"):
            path = file.relative_to(self._folder).as_posix()
            asset = self.find(path) if file.suffix in _TYPES else None
            if asset is not None:
                found[path] = asset.digest
        return sha256(repr(sorted(found.items())).encode()).hexdigest()[:32]

    def find(self, path: str) -> Asset | None:
        """Return the file at a path below the folder; None if there is none, or none that is sent."""
        kind = _TYPES.get(Path(path).suffix)
        if kind is None or len(path) > _LONGEST_PATH or not _PATH.fullmatch(path):
            return None
        file = self._folder / path
        try:
            stat = file.stat()
            state = (stat.st_mtime_ns, stat.st_size)
            known = self._read.get(path)
            if known is not None and known[0] == state:
                return known[1]
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        if not path.startswith("vendor/") and file.suffix in _REMARKS:
            content = _without_remarks(content, file.suffix)
        asset = _asset(content, kind)
        self._read[path] = (state, asset)
        return asset


def version_in(path: str) -> tuple[str | None, str]:
    """Return (the version that a path begins with, the path behind it); without one, (None, the path)."""
    match = _VERSIONED.fullmatch(path)
    return (None, path) if match is None else (match[1], match[2])


def _without_remarks(content: bytes, suffix: str) -> bytes:
    """Return a script or style sheet without indentation and comments: on lines of their own, and types within lines.

    They are a third of what would go over the wire, and for readers of the source. Lines keep their numbers. A text in
    a template may go on in the next line, where spaces are one space; a text whose spaces count must not.
    """
    for pattern in _REMARKS[suffix]:
        content = pattern.sub(lambda match: b"\n" * match[0].count(b"\n"), content)
    return content


def _asset(content: bytes, kind: str) -> Asset:
    """Return the content with its compressed form, which is the same bytes each time."""
    packed = gzip.compress(content, 9, mtime=0)
    return Asset(content, packed if len(packed) < len(content) else None, sha256(content).hexdigest()[:32], kind)
