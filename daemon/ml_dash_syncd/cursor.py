"""The cursor: a small file with the bytes that a server has acknowledged. Losing it costs no data."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ml_dash.disk.durable import fail_point, sync_folder, write_all
from ml_dash.sync.register import owner_mark

_VERSION: Final = 1
_LARGEST: Final = 256 << 20


@dataclass
class Cursor:
    """Bytes by segment file name, blobs by name, deaths by `writer:segment:end`; `parked` says why something stays."""

    journal: str
    segments: dict[str, int] = field(default_factory=dict)
    blobs: set[str] = field(default_factory=set)
    deaths: set[str] = field(default_factory=set)
    parked: dict[str, str] = field(default_factory=dict)
    trouble: dict[str, Any] | None = None

    def tell(self, kind: str | None, text: str = "") -> bool:
        """Note the trouble that there is (None: none any more); has that changed?"""
        if kind is None:
            changed = self.trouble is not None
            self.trouble = None
            return changed
        if self.trouble is not None and self.trouble["kind"] == kind and self.trouble["text"] == text:
            return False
        since = self.trouble["since"] if self.trouble is not None and self.trouble["kind"] == kind else time.time()
        self.trouble = {"kind": kind, "text": text, "since": since}
        return True


def load(path: Path, journal: str) -> Cursor | None:
    """The cursor at `path`; None where there is none, none that can be read, or one of another journal."""
    try:
        if path.stat().st_size > _LARGEST:
            return None
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("version") != _VERSION or found.get("journal") != journal:
        return None
    segments, parked = found.get("segments"), found.get("parked")
    blobs: Any = found.get("blobs")
    deaths: Any = found.get("deaths")
    if not isinstance(segments, Mapping) or not all(map(_is_size, segments.values())):
        return None
    if not isinstance(parked, Mapping) or not _are_texts(blobs) or not _are_texts(deaths):
        return None
    return Cursor(journal, dict(segments), set(blobs), set(deaths), {name: str(why) for name, why in parked.items()})


def save(path: Path, cursor: Cursor) -> None:
    """Put a cursor in the place of the one before; it survives a power cut. Raises OSError; the old one stays then."""
    document = {
        "version": _VERSION,
        "journal": cursor.journal,
        "owner": owner_mark(path.stem, cursor.journal),
        "segments": cursor.segments,
        "blobs": sorted(cursor.blobs),
        "deaths": sorted(cursor.deaths),
        "parked": cursor.parked,
        "trouble": cursor.trouble,
    }
    fail_point("cursor-before")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.urandom(6).hex()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        try:
            write_all(fd, json.dumps(document).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fail_point("cursor-renamed")
    sync_folder(path.parent)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
