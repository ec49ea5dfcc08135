"""Folding stored journals anew: after a change of the fold, or to prove a database.

States and blocks are a projection: raw bytes and arrivals are the truth, and everything else comes from folding the
arrivals in their order. So a new version of the fold needs no migration: it drops the blocks, begins with an empty
state, and folds again.

One commit for each experiment: a server that is killed within it has the old contents, and begins with that experiment
again later. It happens beside the running server, experiment by experiment; until its turn has come, an experiment
answers 503, and uploaders come again. Memory: one stretch, its events and the state; blocks that were made wait for the
commit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Final

from ...core.fold import fold, fold_death
from ...core.frames import Event, LengthCrcs, walk
from ...core.ranges import holes
from ...journal.reader import Stretch, decode_event
from ..stores import StoreRefused
from .contents import TABLES_VERSION, Arrival, SegmentRow
from .ingest import STRETCH, Change, Ingest

_ARRIVALS: Final = 1000
MOVED: Final = "moved"
"""In the summary of a head that was copied: [version, epoch] of the source; empty while it is under way."""
log = logging.getLogger("ml_dash.server")


def refold_all(ingest: Ingest) -> int:
    """Fold anew all experiments whose state another version of the fold has made; return how many.

    Raises StoreRefused if stored bytes of one are damaged, after all others are done.
    """
    with ingest.documents.view() as view:
        stale = view.stale(TABLES_VERSION)
    count = 0
    refused: StoreRefused | None = None
    for ns, experiment in stale:
        with ingest.documents.view() as view:
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
    """Fold one experiment anew, in one commit. Raises StoreRefused if stored bytes are damaged."""
    with ingest.changing(ns, experiment, anew=True) as change:
        draft = change.draft
        change.forget(change.row.project, change.row.name)
        segments = {segment.id: segment for journal in draft.journals() for segment in draft.segments(journal.id)}
        after = 0
        while arrivals := draft.arrivals(after, _ARRIVALS):
            for arrival in arrivals:
                _fold(ingest, change, arrival, segments)
            after = arrivals[-1].n + 1
        # The objects of released files were deleted when they were first folded.
        change.edits.released = []
        change.commit()


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
    for stretch, frames in _stretches(change, segment, max(arrival.start, segment.first), arrival.end):
        for piece in ingest.pieces(change.ns, segment.writer, stretch, partial(bytes, frames)):
            fold(change.state, segment.writer, piece.events, change.edits)
            change.apply()


def _stretches(change: Change, segment: SegmentRow, start: int, end: int) -> Iterator[tuple[Stretch, bytes]]:
    """Yield the frames of a stretch, around its damaged ranges, and their bytes."""
    for low, high in holes(segment.damaged, start, end):
        data = b"".join(change.draft.bytes_of(segment.id, low, high))
        events: list[Event] = []
        stop = low + walk(data, 0, LengthCrcs(segment.crc), decode_event, events)
        # These bytes were checked when they came, so the database has changed them.
        if stop != high:
            raise StoreRefused(f"segment {segment.id} does not hold at byte {stop}", hint="restore a backup")
        yield Stretch(low, high, events), data
