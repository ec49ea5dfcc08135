"""Fold an experiment's copies anew: for a database that an older fold has made, or one that is to be proven."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ...core.fold import fold, fold_death
from ...core.frames import Event, LengthCrcs, walk
from ...core.ranges import holes
from ...core.state import Edits, State
from ...journal.reader import Run, decode_event
from ..stores import Arrival, Read, SegmentRow, StoreRefused, Write
from .blocks import TABLES_VERSION
from .ingest import STRETCH, Ingest, Live

_ARRIVALS: Final = 1000


def refold_all(ingest: Ingest) -> int:
    """Fold anew whatever another version of the fold has made; how many experiments that were.

    Raises StoreRefused if kept bytes do not hold.
    """
    with ingest.documents.read() as tx:
        stale = tx.stale(TABLES_VERSION)
    for ns, experiment in stale:
        refold(ingest, ns, experiment)
    return len(stale)


def refold(ingest: Ingest, ns: str, experiment: str) -> None:
    """Fold the copies of one experiment anew, in one transaction."""
    with ingest.writing() as tx:
        row = tx.experiment(ns, experiment)
        if row is None:
            return
        live = ingest.live(tx, ns, experiment)
        live.row, live.state, live.tails = row, State(project=row.project, name=row.name), {}
        tx.drop_blocks(ns, experiment)
        # What was released is gone already.
        edits, after = Edits(), 0
        while arrivals := tx.arrivals(ns, experiment, after, _ARRIVALS):
            for arrival in arrivals:
                _fold(ingest, tx, ns, live, arrival, edits)
            after = arrivals[-1].n + 1
        edits.released = []
        ingest.store(tx, ns, live, edits)


def _fold(ingest: Ingest, tx: Write, ns: str, live: Live, arrival: Arrival, edits: Edits) -> None:
    hidden = live.row.removed_writers
    if arrival.kind != STRETCH:
        if arrival.who not in hidden:
            fold_death(live.state, arrival.who, edits)
        return
    segment = tx.segment(ns, arrival.who)
    if segment is None:
        raise StoreRefused(f"segment {arrival.who} of {live.row.project}/{live.row.name} is not in the database")
    if segment.writer in hidden:
        return
    for run in _runs(tx, ns, segment, max(arrival.start, segment.first), arrival.end):
        for piece in ingest.pieces(tx, ns, segment, run):
            fold(live.state, segment.writer, piece.events, edits)
            ingest.apply(tx, ns, live, edits)


def _runs(tx: Read, ns: str, segment: SegmentRow, start: int, end: int) -> Iterator[Run]:
    """The events of a stretch, around what is damaged."""
    for low, high in holes(segment.damaged, start, end):
        data = b"".join(tx.bytes_of(ns, segment.id, low, high))
        events: list[Event] = []
        stop = low + walk(data, 0, LengthCrcs(segment.crc), decode_event, events)
        if stop != high:
            raise StoreRefused(f"segment {segment.id} does not hold at byte {stop}", hint="restore a backup")
        yield Run(low, high, events)
