"""Freeing data that a server has proven to hold: segments of ended writers, and contents of files.

Nothing is removed before a base that stands for it is on disk and synced. Killed anywhere, what is left is a journal
that can be read: with the old base and all segments, or with the new one and as many of them as were not removed yet.
The next call goes on there.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

from ..core.protocol import Digest
from ..core.state import Edits, State
from ..disk.durable import crc_of, fail_point, sync_folder
from ..disk.lock import Liveness, probe
from ..errors import Damaged, StillOpen
from ..journal import base as bases
from ..journal import blobs
from ..journal.base import Base, FreedSegment, KeptLines
from ..journal.order import MergeRecord, Order
from ..journal.reader import Segment, Tail, is_empty, is_partial, open_segment, read
from ..journal.segment import BLOBS, CHECKPOINT, ORDER, SEGMENTS, list_segments, parse_blob, read_identity
from ..projection.checkpoint import LineFile
from ..projection.folder import LOGS, Folder
from ..projection.projector import TURN_WAIT_S, Projector
from ..projection.replay import Replay
from ..projection.start import begin
from ..reading.located import Located

_LOCK: Final = re.compile(r"\d{20}-([0-9a-f]{32})\.lock")


class Holder(Protocol):
    """A server that is asked what it holds. Every method may raise RemoteError."""

    @property
    def name(self) -> str:
        """The URL of the server."""

    def removed(self, journal: str) -> set[str]:
        """Return the writers of a journal whose events it hides: they could not be downloaded again."""

    def digests(self, journal: str, wanted: dict[str, int]) -> Mapping[str, Digest]:
        """Return the SHA-256 of the first `wanted[id]` bytes of each segment; unknown segments are left out."""

    def complete_blobs(self, journal: str, wanted: dict[str, int]) -> set[str]:
        """Return those of the blobs (name → size in bytes) that it holds, whole and verified."""

    def let_go(self, journal: str, wanted: dict[str, int]) -> set[str]:
        """Return those of the blobs that it lacks and does not want: their files were replaced or deleted elsewhere."""


@dataclass(frozen=True, slots=True)
class GcReport:
    """Result of a collection or a dry run: segments and contents that were freed, and the bytes of both.

    `kept` gives, by segment file, why a segment stays.
    """

    segments: int
    blobs: int
    bytes: int
    kept: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A segment that may be freed: its first `length` bytes hold all its events, the rest of `size` is a torn end."""

    segment: Segment
    length: int
    size: int

    @property
    def id(self) -> str:
        return self.segment.id

    @property
    def path(self) -> Path:
        return self.segment.path

    @property
    def journal(self) -> str:
        return self.segment.header.journal.hex()


def collect(
    located: Located,
    holders: list[Holder],
    *,
    ended_before_ns: int | None = None,
    keep_projection: bool = False,
    dry_run: bool = False,
) -> GcReport:
    """Free what every one of `holders` has proven to hold; with a time, only of writers that ended before it.

    Of the documented folder, lines and files go (or stay, with `keep_projection`); parameters, statistics and records
    stay. Raises StillOpen if another process has the turn for 30 s, RemoteError if a server does not answer (nothing
    is removed then), JournalError if there is a base that cannot be used.
    """
    assert holders
    projector = Projector(located.journal, located.folder)
    with projector.having_turn(TURN_WAIT_S) as taken:
        if not taken:
            raise StillOpen(f"the folder of {located.project}/{located.name} is being written; nothing was freed")
        work = _Collection(located, projector, holders, ended_before_ns, keep_projection)
        return work.run(dry_run=dry_run)


class _InFolder:
    """A sink that drops lines, since the folder has them already."""

    def __init__(self, folder: Folder) -> None:
        self.history = folder.history

    def apply(self, edits: Edits) -> None:
        edits.clear()


class _Collection:
    """One collection in one journal. The caller holds the turn throughout."""

    def __init__(
        self,
        located: Located,
        projector: Projector,
        holders: list[Holder],
        ended_before_ns: int | None,
        keep_projection: bool,
    ) -> None:
        self.located = located
        self.journal = located.journal
        self.projector = projector
        self.holders = holders
        self.ended_before_ns = ended_before_ns
        self.keep = keep_projection
        self.base = bases.load(self.journal)
        self.at = projector.advance_in_turn()
        self.local_id = read_identity(self.journal).journal
        self.present = blobs.names(self.journal)
        self.live = {file.blob for file in self.at.state.files.values() if file.live}
        # Writer → the journal that its segments here name.
        self.journals: dict[str, str] = {}
        # Segment file → why it stays.
        self.kept: dict[str, str] = {}
        # Copies of segments of which the base stands for more.
        self.shorter: list[_Candidate] = []
        # Contents here that all servers hold; and those that one of them has let go, since their files were replaced
        # or deleted on another machine: they stay here, and keep nothing from being freed.
        self.held: set[str] = set()
        self.let_go: set[str] = set()

    def run(self, *, dry_run: bool) -> GcReport:
        """Decide what may go, write the base that stands for it, then remove it: in this order a kill loses nothing."""
        leftovers, candidates = self._look()
        leftovers += self._proven(self.shorter)
        self._ask_for_blobs({candidate.segment.writer for candidate in candidates})
        candidates = self._without_missing_blobs(candidates)
        position, going = self._prefix(candidates)
        proven = self._proven(going)
        if len(proven) < len(going):
            known = {candidate.id for candidate in proven}
            position, going = self._prefix([candidate for candidate in candidates if candidate.id in known])
        state = self._state_at(position, going)
        freed = self._blobs_to_free(state)
        gone = [*leftovers, *going]
        size = sum(candidate.size for candidate in gone) + sum(self.present[name] for name in freed)
        report = GcReport(len(gone), len(freed), size, dict(sorted(self.kept.items())))
        changed = bool(going) or (self.base is not None and bool(self.base.kept) and not self.keep)
        if dry_run or not (gone or freed or changed) or state is None:
            return report
        if changed:
            self._write_base(position, going, state)
        fail_point("gc-base")
        # What it says of the folder and of segments does not hold any more.
        (self.journal / CHECKPOINT).unlink(missing_ok=True)
        self._remove([candidate.path for candidate in gone], freed)
        self.projector.begin_at_base()
        return report

    # -- what may go -------------------------------------------------------------------------------------------------

    def _look(self) -> tuple[list[_Candidate], list[_Candidate]]:
        """Return (segments that a base stands for already, segments that may go if a server proves to hold them)."""
        leftovers, candidates = [], []
        for name, path in list_segments(self.journal):
            reason, candidate = self._look_at(path)
            if candidate is None:
                self.kept[path.name] = reason
                continue
            self.journals[name.writer] = candidate.journal
            stood = self.base.segments.get(candidate.id) if self.base is not None else None
            if stood is None or stood.length < candidate.length:
                candidates.append(candidate)
            elif candidate.size < stood.length:
                self.shorter.append(replace(candidate, length=candidate.size))
            elif blobs.digest_of(path, stood.length) == stood.sha256:
                leftovers.append(candidate)
            else:
                self.kept[path.name] = "it is not what the base stands for; see ml-dash verify"
        return leftovers, candidates

    def _look_at(self, path: Path) -> tuple[str, _Candidate | None]:
        """Return (why a segment stays, None), or ("", the bytes to be proven)."""
        trouble = next((key for key in self.projector.troubles if key.partition(" #")[0] == path.name), None)
        if trouble is not None:
            return "not all of it could be read; see ml-dash verify", None
        segment = open_segment(path)
        covered = self.at.covered.get(segment.id) if segment is not None else None
        if segment is None or not covered:
            return "it holds no event", None
        writer = self.at.state.writers[segment.writer]
        lock = self.journal / SEGMENTS / segment.name.lock
        if writer.alive or probe(lock) is not Liveness.GONE:
            here = segment.header.journal == self.local_id
            return "its writer may go on" if here else "its writer may go on elsewhere", None
        if self.ended_before_ns is not None and max(writer.ended_ns, writer.last_ns) >= self.ended_before_ns:
            return "its writer ended too recently", None
        size, length = path.stat().st_size, covered[-1][1]
        if length < size and not self._is_torn(segment, length):
            return "not all of it could be read; see ml-dash verify", None
        return "", _Candidate(segment, length, size)

    @staticmethod
    def _is_torn(segment: Segment, start: int) -> bool:
        """True if behind the last frame there is only one that a crash cut off."""
        rest = list(read(segment, start))
        tail = rest[0] if len(rest) == 1 else None
        if not isinstance(tail, Tail):
            return False
        return is_partial(segment, tail) or is_empty(segment, tail)

    def _prefix(self, candidates: list[_Candidate]) -> tuple[int, list[_Candidate]]:
        """Return (end, candidates) of the longest prefix of `order` that names only candidates, each of them whole.

        `end` is a byte offset in `order`. Only a prefix can be replaced by a base: numbers of entries and points are
        positions in this sequence.
        """
        allowed = {candidate.id: candidate for candidate in candidates}
        based = self.base.segments if self.base is not None else {}
        start = begin(self.journal).order_position
        order = Order(self.journal)
        order.open(write=False)
        try:
            if order.identity != self.at.order_identity:
                return start, []
            records = list(_named(order, start, {identity: stood.length for identity, stood in based.items()}))
        finally:
            order.close()
        last = {segment: position for segment, position in records if segment}
        end, found, begun = start, [], set()
        clean: tuple[int, list[str]] = (start, [])
        for segment, position in records:
            if segment:
                if segment not in allowed:
                    break
                begun.add(segment)
                if last[segment] == position:
                    begun.discard(segment)
                    found.append(segment)
            end = position
            if not begun and found:
                clean = end, list(found)
        going = set(clean[1])
        for candidate in candidates:
            if candidate.id not in going:
                self.kept.setdefault(candidate.path.name, "it was merged with segments that stay")
        return clean[0], [allowed[identity] for identity in clean[1]]

    # -- proof -------------------------------------------------------------------------------------------------------

    def _proven(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """Return the candidates of which every server has the same digest for the same length."""
        good = candidates
        for holder in self.holders:
            found: dict[str, Digest] = {}
            removed: set[str] = set()
            for journal in sorted({candidate.journal for candidate in good}):
                removed |= holder.removed(journal)
                wanted = {candidate.id: candidate.length for candidate in good if candidate.journal == journal}
                found.update(holder.digests(journal, wanted))
            proven = []
            for candidate in good:
                answer = found.get(candidate.id)
                if candidate.segment.writer in removed:
                    self.kept[candidate.path.name] = f"it was removed on {holder.name}, which shows it to nobody"
                elif answer is None or answer["of"] != candidate.length:
                    there = 0 if answer is None else answer["length"]
                    self.kept[candidate.path.name] = f"{holder.name} has {there:,} of its {candidate.length:,} bytes"
                elif answer["sha256"] != blobs.digest_of(candidate.path, candidate.length):
                    self.kept[candidate.path.name] = f"{holder.name} holds other bytes; see ml-dash verify"
                else:
                    proven.append(candidate)
            good = proven
        return good

    def _ask_for_blobs(self, writers: set[str]) -> None:
        """Set `held` and `let_go` for the contents of these writers and of those that a base stands for."""
        if self.base is not None:
            writers = writers | self.base.state.writers.keys()
        by_journal: dict[str, dict[str, int]] = {}
        for name, size in self.present.items():
            parsed = parse_blob(name)
            if parsed is not None and parsed[1] in writers:
                journal = self.journals.get(parsed[1]) or self._journal_in_base(parsed[1])
                by_journal.setdefault(journal, {})[name] = size
        for journal, wanted in by_journal.items():
            sets = [holder.complete_blobs(journal, wanted) for holder in self.holders]
            held = wanted.keys() & set.intersection(*sets)
            self.held |= held
            lacking = {name: size for name, size in wanted.items() if name in self.live - held}
            for holder in self.holders if lacking else ():
                self.let_go |= holder.let_go(journal, lacking)

    def _journal_in_base(self, writer: str) -> str:
        segments = self.base.segments.values() if self.base is not None else ()
        return next((stood.journal for stood in segments if stood.writer == writer), self.local_id.hex())

    def _without_missing_blobs(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """Return the candidates of writers whose contents, if not replaced or deleted, all servers hold."""
        of_files = {file.blob for file in self.at.state.files.values()}
        missing = {
            parsed[1]: name
            for name in self.present
            if name not in self.held | self.let_go and (name in self.live or name not in of_files)
            if (parsed := parse_blob(name)) is not None
        }
        for candidate in candidates:
            if candidate.segment.writer in missing:
                blob = missing[candidate.segment.writer]
                self.kept[candidate.path.name] = f"not every server has the content {blob} of its writer"
        return [candidate for candidate in candidates if candidate.segment.writer not in missing]

    # -- the base ----------------------------------------------------------------------------------------------------

    def _state_at(self, position: int, going: list[_Candidate]) -> State | None:
        """Return the folded state at a position of `order`, for the base; None if nothing goes and there is no base."""
        if not going:
            return self.base.state if self.base is not None else None
        if position == self.at.order_position:
            return self.at.state
        replay = Replay(self.journal, begin(self.journal))
        replay.follow(position, _InFolder(self.projector.folder))
        if any(replay.at.covered.get(candidate.id) != self.at.covered[candidate.id] for candidate in going):
            # A record before that place is damaged, and what it named was merged again behind it.
            raise Damaged(
                f"{self.journal / ORDER} does not say clearly what comes before byte {position}; nothing was freed",
                hint="run: ml-dash verify",
            )
        return replay.state

    def _blobs_to_free(self, state: State | None) -> list[str]:
        """Return the contents that all servers hold, of events that the base stands for."""
        if state is None:
            return []
        freed = []
        for name in sorted(self.held):
            parsed = parse_blob(name)
            writer = state.writers.get(parsed[1]) if parsed is not None else None
            if parsed is None or writer is None or writer.is_new(parsed[2]):
                continue
            if not (self.keep and name in self.live):
                freed.append(name)
        return freed

    def _write_base(self, position: int, going: list[_Candidate], state: State) -> None:
        """Write the base that stands for `going`. Durable on return, and so is the folder that it relies on."""
        self.projector.sync()
        old = self.base
        remote = ", ".join(holder.name for holder in self.holders)
        segments = dict(old.segments) if old is not None else {}
        for candidate in going:
            digest = blobs.digest_of(candidate.path, candidate.length)
            segments[candidate.id] = FreedSegment(
                candidate.id, candidate.path.name, candidate.segment.writer, candidate.journal, candidate.length,
                digest, remote,
            )  # fmt: skip
        live = {file.blob: file.size_bytes for file in state.files.values() if file.live}
        known = self.held | (old.blobs.keys() if old is not None else set())
        store = self.journal.parents[2]
        base = Base(
            project=state.project,
            name=state.name,
            state=state,
            segments=segments,
            blobs={name: size for name, size in live.items() if name in known},
            order_identity=self.at.order_identity,
            order_position=position,
            folder_path=Path(os.path.relpath(self.located.folder, store)).as_posix(),
            kept=dict(self._kept_lines(state)) if self.keep else {},
        )
        bases.save(self.journal, read_identity(self.journal), base)

    def _kept_lines(self, state: State) -> Iterator[tuple[str, KeptLines]]:
        """Yield (metric, or "" for the logs; its lines before the base) for each file of lines."""
        folder = Folder(self.located.folder, self.journal, self.at.layout)
        yield "", _kept(folder.path / LOGS, folder.layout.logs, state.logs)
        for name, metric in state.metrics.items():
            if metric.count:
                yield name, _kept(folder.points_file(name), folder.layout.metrics[name], metric.count)

    # -- removing ----------------------------------------------------------------------------------------------------

    def _remove(self, segments: list[Path], freed: list[str]) -> None:
        for path in [*segments, *(self.journal / BLOBS / name for name in freed)]:
            path.unlink(missing_ok=True)
            fail_point("gc-removed")
        self._remove_locks()
        sync_folder(self.journal / SEGMENTS)
        sync_folder(self.journal / BLOBS)

    def _remove_locks(self) -> None:
        """Remove lock files of writers that ended and have no segment here any more."""
        left = {name.writer for name, _ in list_segments(self.journal)}
        for entry in list((self.journal / SEGMENTS).iterdir()):
            match = _LOCK.fullmatch(entry.name)
            # Only of writers that are known to have ended: one that begins has a lock before its first segment.
            known = self.at.state.writers.get(match[1]) if match is not None else None
            if known is None or known.alive or known.id in left or probe(entry) is not Liveness.GONE:
                continue
            with contextlib.suppress(FileNotFoundError):
                entry.unlink()


def _named(order: Order, start: int, based: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Yield (segment id, offset behind the record) for each record of `order`.

    The id is empty for a death, and where a base stands for all that the record names (`based`: bytes by segment id).
    """
    for record, position in order.read(start):
        is_new = isinstance(record, MergeRecord) and record.end > based.get(record.segment, 0)
        yield record.segment if is_new and isinstance(record, MergeRecord) else "", position


def _kept(path: Path, lines: LineFile, end: int) -> KeptLines:
    """Return size and CRC-32 of the lines of a file before number `end`. Raises OSError if the file is too short."""
    size = lines.size
    if end < lines.lines:
        mark, number = lines.mark_before(end)
        size = lines.marks[mark] if mark < len(lines.marks) else lines.size
        with path.open("rb") as file:
            file.seek(size)
            for _ in range(end - number):
                size += len(file.readline())
    crc = crc_of(path, 0, size) if size else 0
    if crc is None:
        raise OSError(f"{path} changes while it is being read")
    first = min(lines.first, end)
    return KeptLines(first, end, size, crc, [mark for mark in lines.marks if mark < size])
