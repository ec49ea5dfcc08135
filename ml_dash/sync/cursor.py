"""The cursor of a registration: a small file with all that a server has acknowledged. Losing it costs no data.

The uploader writes it, this user's programs read it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from ..disk.durable import fail_point, replace_file

_VERSION: Final = 1
_LARGEST_FILE_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the uploader makes no headway: `kind` for programs (`login`, `unreachable`, ...), `text` for people.

    `since`: seconds since 1970; None where that is not known.
    """

    kind: str
    text: str
    since: float | None = None


@dataclass
class Cursor:
    """Acknowledged by a server: bytes by segment file name, blobs by name, deaths as `writer:segment:end`.

    `parked` gives, by file name, why a segment or blob was set aside.
    """

    journal: str
    segments: dict[str, int] = field(default_factory=dict)
    blobs: set[str] = field(default_factory=set)
    deaths: set[str] = field(default_factory=set)
    parked: dict[str, str] = field(default_factory=dict)
    trouble: Trouble | None = None

    def set_trouble(self, kind: str | None, text: str = "") -> bool:
        """Set the present trouble, or clear it with None; True if that changed anything."""
        known = self.trouble
        if kind is None:
            self.trouble = None
        elif known is None or (known.kind, known.text) != (kind, text):
            since = known.since if known is not None and known.kind == kind else time.time()
            self.trouble = Trouble(kind, text, since)
        return self.trouble != known


def load(path: Path, journal: str | None = None) -> Cursor | None:
    """Return the cursor at `path`; None if it is absent, unreadable, or belongs to another journal.

    `journal` is the journal's id in hex; with None, a cursor of any journal is returned.
    """
    content = _content(path)
    if content is None or (journal is not None and content["journal"] != journal):
        return None
    segments, parked = content.get("segments"), content.get("parked")
    blobs: Any = content.get("blobs")
    deaths: Any = content.get("deaths")
    if not isinstance(segments, Mapping) or not all(map(_is_size, segments.values())):
        return None
    if not isinstance(parked, Mapping) or not _are_texts(blobs) or not _are_texts(deaths):
        return None
    return Cursor(
        content["journal"], dict(segments), set(blobs), set(deaths),
        {name: str(why) for name, why in parked.items()}, _trouble(content.get("trouble")),
    )  # fmt: skip


def journal_of(path: Path) -> str | None:
    """Return the id of the journal that a cursor belongs to; None where that is not known.

    It is not known where the id is damaged, or the cursor was copied from elsewhere: the mark differs then. Cursors of
    version 0.1 have no mark, and are believed.
    """
    content = _content(path)
    if content is None:
        return None
    journal: str = content["journal"]
    return journal if content.get("owner", mark := _owner_mark(path, journal)) == mark else None


def save(path: Path, cursor: Cursor) -> None:
    """Replace the cursor at `path`. Durable on return. Raises OSError; the old one stays then."""
    document = {
        "version": _VERSION,
        "journal": cursor.journal,
        "owner": _owner_mark(path, cursor.journal),
        "segments": cursor.segments,
        "blobs": sorted(cursor.blobs),
        "deaths": sorted(cursor.deaths),
        "parked": cursor.parked,
        "trouble": asdict(cursor.trouble) if cursor.trouble is not None else None,
    }
    fail_point("cursor-before")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(path, json.dumps(document).encode(), sync=True, private=True)
    fail_point("cursor-renamed")


def _content(path: Path) -> dict[str, Any] | None:
    """Return the content of a cursor of this version that names its journal, else None."""
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            return None
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        return None
    return content if isinstance(content.get("journal"), str) else None


def _owner_mark(path: Path, journal: str) -> int:
    """Return the checksum that a cursor holds beside its id: it differs for a damaged id and for a copied cursor."""
    return crc32(f"{path.stem}:{journal}".encode())


def _trouble(value: Any) -> Trouble | None:
    if not isinstance(value, dict):
        return None
    since = value.get("since")
    known = float(since) if isinstance(since, (int, float)) else None
    return Trouble(str(value.get("kind", "")), str(value.get("text", "")), known)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
