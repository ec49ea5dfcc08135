"""Folding stored journals anew: after a change of the fold, or to prove a database.

States and blocks are a projection: raw bytes and arrivals are the truth, and everything else comes from folding the
arrivals in their order. So a new version of the fold needs no migration: it drops the blocks, begins with an empty
state, and folds again.

It happens beside the running server, experiment by experiment; until its turn has come, an experiment answers 503, and
uploaders come again. Memory: one stretch, its events and parts of the state, and _COMMIT_BYTES of new pages.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from ...core.fold import fold, fold_death
from ...core.frames import Event, LengthCrcs, walk
from ...core.ranges import holes
from ...journal.reader import Stretch, decode_event
from ..stores import Older, StoreRefused
from .changes import STRETCH, Change
from .contents import TABLES_VERSION, Arrival, Contents, JournalRow, SegmentRow
from .ingest import Ingest

ARRIVALS_AT_ONCE: Final = 1000
"""Arrivals that are read at once."""
MOVED: Final = "moved"
"""In the summary of a head that was copied: [version, epoch] of the source; empty while it is under way."""
# Pages that wait for a commit.
_COMMIT_BYTES: Final = 32 << 20
log = logging.getLogger("ml_dash.server")


def refold_all(ingest: Ingest) -> int:
    """Fold anew all experiments whose state another version of the fold has made; return how many.

    Raises StoreRefused if stored bytes of one are damaged, after all others are done.
    """
    with ingest.changes.documents.view() as view:
        stale = view.stale(TABLES_VERSION)
    count = 0
    refused: StoreRefused | None = None
    for ns, experiment in stale:
        with ingest.changes.documents.view() as view:
            row = view.experiment(ns, experiment)
        if row is not None and row.summary.get(MOVED) == []:
            log.error("experiment %s of %s is copied in part: run ml-dash server migrate again", experiment, ns)
            continue
        try:
            refold(ingest, ns, experiment)
        except StoreRefused as error:
            log.error("experiment %s of %s cannot be folded anew: %s", experiment, ns, error)
            refused = refused or error
        else:
            log.info("folded experiment %s of %s anew", experiment, ns)
            count += 1
    if refused is not None:
        raise refused
    return count


def refold(ingest: Ingest, ns: str, experiment: str) -> None:
    """Fold one experiment anew. Raises StoreRefused if stored bytes are damaged.

    It is committed whenever much has been made, and is out of date until the last commit; killed in between, it begins
    anew.
    """
    older = ingest.changes.documents.older(ns, experiment)
    with ingest.changes.changing(ns, experiment, anew=True) as change:
        if older is not None:
            _carry_over(ingest, change, older)
        draft = change.draft
        change.forget(change.row.project, change.row.name)
        segments = segments_of(draft)
        after = 0
        while arrivals := draft.arrivals(after, ARRIVALS_AT_ONCE):
            for arrival in arrivals:
                _fold(ingest, change, arrival, segments)
                if draft.new_bytes > _COMMIT_BYTES:
                    change.commit(finished=False)
                    ingest.changes.renew(change)
            after = arrivals[-1].n + 1
        # The objects of released files were deleted when they were first folded.
        change.edits.released = change.released = []
        change.commit()
    if older is not None:
        older.drop()


def _carry_over(ingest: Ingest, change: Change, older: Older) -> None:
    """Bring raw bytes and arrivals of an older layout into pages. After a crash it goes on from what is committed."""
    draft = change.draft
    for segment in older.segments:
        row = draft.segment(segment.journal, segment.file)
        if row is None:
            row = SegmentRow(
                segment.id, segment.journal, segment.file, segment.writer, 0, segment.first, segment.crc,
                segment.damaged,
            )  # fmt: skip
        for content in older.bytes_of(segment.id, row.length):
            draft.put_raw(segment.id, row.length, content)
            row = replace(row, length=row.length + len(content))
            draft.put_segment(row)
            if draft.new_bytes > _COMMIT_BYTES:
                change.commit(finished=False)
                ingest.changes.renew(change)
    for identity, project, name, removed in older.journals:
        draft.put_journal(JournalRow(identity, project, name, removed))
    for writer in older.removed_writers:
        draft.put_removed(writer)
    for n, kind, who, start, end, seg in older.arrivals:
        draft.put_arrival(Arrival(n, kind, who, start, end, seg))
        if kind != STRETCH:
            draft.put_death(who, seg, end)


def _fold(ingest: Ingest, change: Change, arrival: Arrival, segments: dict[str, SegmentRow]) -> None:
    """Fold one arrival. Raises StoreRefused if its segment is missing or damaged."""
    draft = change.draft
    if arrival.kind != STRETCH:
        if not draft.is_removed(arrival.who):
            fold_death(change.state, arrival.who, change.edits)
        return
    segment = segments.get(arrival.who)
    if segment is None:
        raise StoreRefused(f"segment {arrival.who} of {change.row.project}/{change.row.name} is not in the database")
    if draft.is_removed(segment.writer):
        return
    for stretch, frames in stretches_of(draft, segment, max(arrival.start, segment.first), arrival.end):
        for piece in ingest.pieces(change.ns, segment.writer, stretch, partial(bytes, frames)):
            fold(change.state, segment.writer, piece.events, change.edits)
            change.apply()


def segments_of(contents: Contents) -> dict[str, SegmentRow]:
    """Return all segments of an experiment by their ids."""
    return {segment.id: segment for journal in contents.journals() for segment in contents.segments(journal.id)}


def stretches_of(
    contents: Contents, segment: SegmentRow, start: int, end: int, decode: Callable[[bytes], Event] = decode_event
) -> Iterator[tuple[Stretch, bytes]]:
    """Yield the frames of a stretch, around its damaged ranges, and their bytes. Raises StoreRefused for damage."""
    for low, high in holes(segment.damaged, start, end):
        data = b"".join(contents.bytes_of(segment.id, low, high))
        events: list[Event] = []
        stop = low + walk(data, 0, LengthCrcs(segment.crc), decode, events)
        # These bytes were checked when they came, so the database has changed them.
        if stop != high:
            raise StoreRefused(f"segment {segment.id} does not hold at byte {stop}", hint="restore a backup")
        yield Stretch(low, high, events), data
