"""Folding stored journals anew: after a change of the fold, or to prove a database.

The tables are a projection: raw bytes and arrivals are the truth, and everything else comes from folding the arrivals
in their order. So a new version of the fold needs no migration: it drops the blocks, begins with an empty state, and
folds again.

One transaction for each experiment: a server that is killed within it has the old tables, and begins with that
experiment again at the next start. Memory: one stretch, its events and the state; all blocks that were written wait
in the database's log.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ...core.fold import fold, fold_death
from ...core.frames import Event, LengthCrcs, walk
from ...core.ranges import holes
from ...core.state import Edits, State
from ...journal.reader import Stretch, decode_event
from ..stores import Arrival, Read, SegmentRow, StoreRefused, Write
from .blocks import TABLES_VERSION
from .ingest import STRETCH, CachedExperiment, Ingest

_ARRIVALS: Final = 1000


def refold_all(ingest: Ingest) -> int:
    """Fold anew all experiments whose state another version of the fold has made; return how many.

    Raises StoreRefused if stored bytes are damaged.
    """
    with ingest.documents.read() as tx:
        stale = tx.stale(TABLES_VERSION)
    for ns, experiment in stale:
        refold(ingest, ns, experiment)
    return len(stale)


def refold(ingest: Ingest, ns: str, experiment: str) -> None:
    """Fold one experiment anew, in one transaction. Raises StoreRefused if stored bytes are damaged."""
    with ingest.writing() as tx:
        row = tx.experiment(ns, experiment)
        if row is None:
            return
        cached = ingest.cached(tx, ns, experiment)
        cached.row, cached.state, cached.open_blocks = row, State(project=row.project, name=row.name), {}
        tx.drop_blocks(ns, experiment)
        # The objects of released files were deleted when they were first folded.
        edits, after = Edits(), 0
        while arrivals := tx.arrivals(ns, experiment, after, _ARRIVALS):
            for arrival in arrivals:
                _fold(ingest, tx, ns, cached, arrival, edits)
            after = arrivals[-1].n + 1
        edits.released = []
        ingest.store(tx, ns, cached, edits)


def _fold(ingest: Ingest, tx: Write, ns: str, cached: CachedExperiment, arrival: Arrival, edits: Edits) -> None:
    """Fold one arrival. Raises StoreRefused if its segment is missing or damaged."""
    hidden = cached.row.removed_writers
    if arrival.kind != STRETCH:
        if arrival.who not in hidden:
            fold_death(cached.state, arrival.who, edits)
        return
    segment = tx.segment(ns, arrival.who)
    if segment is None:
        raise StoreRefused(f"segment {arrival.who} of {cached.row.project}/{cached.row.name} is not in the database")
    if segment.writer in hidden:
        return
    for stretch in _stretches(tx, ns, segment, max(arrival.start, segment.first), arrival.end):
        for piece in ingest.pieces(tx, ns, segment, stretch):
            fold(cached.state, segment.writer, piece.events, edits)
            ingest.apply(tx, ns, cached, edits)


def _stretches(tx: Read, ns: str, segment: SegmentRow, start: int, end: int) -> Iterator[Stretch]:
    """Yield the frames of a stretch, around its damaged ranges."""
    for low, high in holes(segment.damaged, start, end):
        data = b"".join(tx.bytes_of(ns, segment.id, low, high))
        events: list[Event] = []
        stop = low + walk(data, 0, LengthCrcs(segment.crc), decode_event, events)
        # These bytes were checked when they came, so the database has changed them.
        if stop != high:
            raise StoreRefused(f"segment {segment.id} does not hold at byte {stop}", hint="restore a backup")
        yield Stretch(low, high, events)
