"""Proof that a server holds a journal: digests of segments compared, files asked for by their blobs.

The server says the SHA-256 of the first bytes of each segment it has, and the same bytes are read and hashed here. So
nothing that either side has noted down (cursors, checkpoints) is part of the proof. Read in blocks, in flat memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..core.protocol import UNKNOWN, Digest, JournalState
from ..core.state import File
from ..disk.durable import blocks
from ..errors import Damaged, JournalError, ServerRefused
from ..journal import base as bases
from ..journal.reader import Gap, Stretch, Tail, is_partial, open_segment, read
from ..journal.segment import list_segments, read_identity
from ..reading.located import Located
from ..reading.read import view
from . import remote
from .registrations import Registration, cursor_of

if TYPE_CHECKING:
    from .remote import Link

Progress = Callable[[int, int], None]
"""(bytes compared, bytes in all)"""

# Segments in one request.
_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class Part:
    """A segment whose first `size` bytes are compared.

    If only a base stands for it, `path` is None and `sha256` is the digest that the base recorded.
    """

    id: str
    journal: str
    file: str
    size: int
    path: Path | None = None
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Proof:
    """Result of a proof by digests: counts of an experiment here, and (`..._there`) on the server.

    `conflicts` names segments whose bytes differ there; `reasons` explains to people why something is missing.
    """

    project: str
    name: str
    remote: str
    user: str | None
    events: int
    events_there: int
    files: int
    files_there: int
    segments: int
    segments_equal: int
    bytes: int
    bytes_there: int
    removed: bool = False
    conflicts: tuple[str, ...] = ()
    missing_files: tuple[str, ...] = ()
    reasons: tuple[str, ...] = field(default=())

    @property
    def complete(self) -> bool:
        """True if all of it is on the server."""
        return (
            self.events_there == self.events
            and self.files_there == self.files
            and self.segments_equal == self.segments
            and not self.conflicts
            and not self.removed
        )


def prove(located: Located, registration: Registration, link: Link, progress: Progress | None = None) -> Proof:
    """Compare an experiment here with its copy on the server. Changes nothing on either side.

    A run may go on meanwhile: what it adds may be counted as missing, never as present. Raises RemoteError, and
    JournalError for a base that cannot be read.
    """
    return _Comparison(located, registration, link, progress or (lambda done, total: None)).run()


class _Comparison:
    """One comparison of a journal with a server."""

    def __init__(self, located: Located, registration: Registration, link: Link, progress: Progress) -> None:
        self.located = located
        self.registration = registration
        self.link = link
        self.progress = progress
        self.reasons: list[str] = []
        self.conflicts: list[str] = []
        self.equal = 0
        self.missing_events = 0
        self.bytes_there = 0
        self.compared = 0
        self.total = 0

    def run(self) -> Proof:
        # The state is read first: what is appended later can then only be counted as missing.
        state = view(self.located).state
        self.home = read_identity(self.located.journal).journal.hex()
        base = bases.load(self.located.journal)
        parts = self._parts(base)
        self.total = sum(part.size for part in parts)
        known = {journal: self._journal(journal) for journal in {self.home, *(part.journal for part in parts)}}
        if known[self.home] is None and any(part.journal == self.home for part in parts):
            self.reasons.append("unknown to the server: nothing was sent yet, or as another user")
        for journal in known:
            self._compare([part for part in parts if part.journal == journal], known[journal])
        removed = any(found is not None and found["tombstone"] for found in known.values())
        if removed:
            self.reasons.append("it was removed on the server, which hides what these writers send")
        files = [file for file in state.files.values() if file.live]
        missing = [f"{file.place} ({file.id})" for file in files if not self._has(file, parts, known)]
        self._ask_the_uploader()
        there_events = max(0, state.events - self.missing_events)
        counted = max((found["events"] for found in known.values() if found is not None), default=0)
        if counted < there_events:
            # The bytes are the same, but the server counts otherwise: no more is proven.
            self.reasons.append(f"the server counts {counted:,} events")
            there_events = counted
        return Proof(
            project=self.located.project,
            name=self.located.name,
            remote=self.registration.remote,
            user=self.registration.user,
            events=state.events,
            events_there=there_events,
            files=len(files),
            files_there=len(files) - len(missing),
            segments=len(parts),
            segments_equal=self.equal,
            bytes=self.total,
            bytes_there=self.bytes_there,
            removed=removed,
            conflicts=tuple(self.conflicts),
            missing_files=tuple(missing),
            reasons=tuple(self.reasons),
        )

    def _journal(self, journal: str) -> JournalState | None:
        try:
            return remote.journal(self.link, journal)
        except ServerRefused as refused:
            if refused.code == UNKNOWN:
                return None
            raise

    # -- segments ----------------------------------------------------------------------------------------------------

    def _parts(self, base: bases.Base | None) -> list[Part]:
        """Return every segment of the journal, and those that a base stands for."""
        parts: dict[str, Part] = {}
        for _, path in list_segments(self.located.journal):
            try:
                segment = open_segment(path)
                if segment is None:
                    continue
                size = path.stat().st_size
            except FileNotFoundError:
                continue
            except (OSError, Damaged) as error:
                self.reasons.append(f"segment {path.name} cannot be read: {error}")
                self.missing_events += 1
                continue
            parts[segment.id] = Part(segment.id, segment.header.journal.hex(), path.name, size, path)
        for stood in base.segments.values() if base is not None else ():
            if stood.id not in parts:
                parts[stood.id] = Part(stood.id, stood.journal, stood.file, stood.length, None, stood.sha256)
        return list(parts.values())

    def _compare(self, parts: list[Part], known: JournalState | None) -> None:
        for start in range(0, len(parts), _AT_ONCE):
            some = parts[start : start + _AT_ONCE]
            digests = self._digests(some) if known is not None else {}
            for part in some:
                there = digests.get(part.id)
                if there is None:
                    self._not_there(part, 0)
                elif part.path is None:
                    self._compare_remembered(part, there)
                else:
                    self._compare_bytes(part, part.path, there)

    def _digests(self, parts: list[Part]) -> dict[str, Digest]:
        return remote.digests(self.link, parts[0].journal, {part.id: part.size for part in parts})

    def _compare_remembered(self, part: Part, there: Digest) -> None:
        self._advance(part.size)
        if there["of"] == part.size and there["sha256"] == part.sha256:
            self.equal += 1
            self.bytes_there += part.size
            return
        self.conflicts.append(part.file)
        self.reasons.append(
            f"segment {part.file} was freed here, and the server has not what it held "
            f"({there['of']:,} of {part.size:,} bytes{'' if there['of'] < part.size else ', but others'})"
        )

    def _compare_bytes(self, part: Part, path: Path, there: Digest) -> None:
        of = there["of"]
        try:
            same = _digest(path, of, self._advance) == there["sha256"]
        except (FileNotFoundError, EOFError):
            self.reasons.append(f"segment {part.file} went while it was read; look again")
            self.missing_events += 1
            return
        if same:
            self.bytes_there += of
            self._not_there(part, of)
            return
        start = self._first_difference(part, path, of)
        self.conflicts.append(part.file)
        self.reasons.append(
            f"segment {part.file}: the server holds other bytes from {start:,} on; what arrived first is kept there"
        )
        self.bytes_there += start
        self.missing_events += self._not_whole_before(part, path, start)

    def _first_difference(self, part: Part, path: Path, of: int) -> int:
        """Return the offset of the first byte that differs, by a binary search over digests of prefixes."""
        same, different = 0, of
        while different - same > 1:
            middle = (same + different) // 2
            answer = remote.digests(self.link, part.journal, {part.id: middle}).get(part.id)
            if answer is not None and answer["of"] == middle and answer["sha256"] == _digest(path, middle):
                same = middle
            else:
                different = middle
        return same

    def _not_there(self, part: Part, start: int) -> None:
        """Count bytes from `start` on as missing on the server; as equal if they hold nothing but a torn end."""
        if part.path is None:
            self._advance(part.size)
            self.conflicts.append(part.file)
            self.reasons.append(f"segment {part.file} was freed here, and the server does not have it")
            return
        self._advance(part.size - start)
        if start >= part.size:
            self.equal += 1
            return
        events, torn = self._events(part, part.path, start)
        self.missing_events += events
        if torn and not events:
            self.equal += 1
            self.bytes_there += part.size - start

    def _events(self, part: Part, path: Path, start: int) -> tuple[int, bool]:
        """Return (events from a byte on, whether all else there, if anything, is a torn end)."""
        events, whole = 0, True
        try:
            segment = open_segment(path)
            if segment is None:
                return 0, True
            for item in read(segment, max(start, segment.first), part.size):
                if isinstance(item, Stretch):
                    events += len(item.events)
                elif isinstance(item, Gap):
                    self.reasons.append(f"segment {part.file}: bytes {item.start:,} to {item.end:,} are damaged here")
                    whole = False
                elif isinstance(item, Tail) and not is_partial(segment, item):
                    self.reasons.append(
                        f"segment {part.file}: its last {item.end - item.start} bytes hold no frame, and were not sent"
                    )
        except FileNotFoundError:
            return events, False
        except (OSError, JournalError) as error:
            self.reasons.append(f"segment {part.file} cannot be read: {error}")
            return max(events, 1), False
        return events, whole

    def _not_whole_before(self, part: Part, path: Path, different: int) -> int:
        """Return how many events are not proven if a byte differs: that of its frame, and all behind it."""
        try:
            segment = open_segment(path)
            if segment is None:
                return 1
            counts = [
                sum(len(item.events) for item in read(segment, segment.first, end) if isinstance(item, Stretch))
                for end in (part.size, max(segment.first, different))
            ]
        except (OSError, JournalError) as error:
            self.reasons.append(f"segment {part.file} cannot be read: {error}")
            return 1
        return max(1, counts[0] - counts[1])

    def _advance(self, count: int) -> None:
        self.compared += count
        self.progress(min(self.compared, self.total), self.total)

    # -- files -------------------------------------------------------------------------------------------------------

    def _has(self, file: File, parts: list[Part], known: dict[str, JournalState | None]) -> bool:
        """True if the server holds a content, or does not want it since another machine has replaced it."""
        journal = next((part.journal for part in parts if f"-{file.writer}-" in part.file), self.home)
        there = known.get(journal)
        if remote.holds(self.link, there, file.blob, file.size_bytes):
            return True
        return remote.has_let_go(self.link, there, journal, file.blob)

    # -- what the uploader says --------------------------------------------------------------------------------------

    def _ask_the_uploader(self) -> None:
        cursor = cursor_of(self.registration)
        if cursor is None:
            return
        self.reasons += [f"parked: {name}: {reason}" for name, reason in sorted(cursor.parked.items())]
        if cursor.trouble is not None:
            self.reasons.append(cursor.trouble.text or cursor.trouble.kind)


def _digest(path: Path, size: int, count: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of the first `size` bytes of a file; `count` gets the size of each block. Raises EOFError."""
    digest, rest = hashlib.sha256(), size
    for block in blocks(path, 0, size):
        digest.update(block)
        rest -= len(block)
        if count is not None:
            count(len(block))
    if rest:
        raise EOFError
    return digest.hexdigest()
