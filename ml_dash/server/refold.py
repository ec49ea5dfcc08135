"""Fold an experiment's copies anew: for a database that an older fold has made, or one that is to be proven."""

from __future__ import annotations

from dataclasses import replace

from ..fold import fold, fold_death
from ..frames import Event, LengthCrcs, walk
from ..journal.reader import decode_event
from ..state import FOLD_VERSION, Edits, State
from .blocks import add
from .ingest import STRETCH, Ingest, Live
from .stores import Arrival, SegmentRow, StoreRefused, Write

_ARRIVALS: int = 1000


def refold_all(ingest: Ingest) -> int:
    """Fold anew whatever another version of the fold has made; how many experiments that were.

    Raises StoreRefused if kept bytes do not hold.
    """
    with ingest.documents.read() as tx:
        stale = tx.stale(FOLD_VERSION)
    for ns, experiment in stale:
        refold(ingest, ns, experiment)
    return len(stale)


def refold(ingest: Ingest, ns: str, experiment: str) -> None:
    """The same for one experiment, in one transaction."""
    with ingest.documents.write() as tx:
        row = tx.experiment(ns, experiment)
        if row is None:
            return
        live = Live(row, State(project=row.project, name=row.name))
        tx.drop_blocks(ns, experiment)
        after = 0
        while arrivals := tx.arrivals(ns, experiment, after, _ARRIVALS):
            for arrival in arrivals:
                edits = Edits()
                _fold(ingest, tx, ns, live, arrival, edits)
                # What was released is gone already.
                tx.put_blocks(ns, experiment, add(tx, ns, experiment, edits, live.tails))
            after = arrivals[-1].n + 1
        # store() counts one arrival; nothing has arrived.
        live.row = replace(live.row, version=row.version - 1)
        ingest.store(tx, ns, live, Edits())
    ingest.told(ns, live)


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
        bodies = ingest.bodies(tx, ns, segment, [run], None)
        fold(live.state, segment.writer, bodies(run), edits)


def _runs(tx: Write, ns: str, segment: SegmentRow, start: int, end: int) -> list[list[Event]]:
    """The events of a stretch, around what was damaged."""
    data = b"".join(tx.bytes_of(ns, segment.id, start, end))
    crcs, runs, position = LengthCrcs(segment.crc), [], start
    for low, high in [*(gap for gap in segment.damaged if gap[0] < end and gap[1] > start), (end, end)]:
        low = min(max(low, position), end)
        events: list[Event] = []
        stop = walk(data[: low - start], position - start, crcs, decode_event, events)
        if stop != low - start:
            raise StoreRefused(f"segment {segment.id} does not hold at byte {start + stop}", hint="restore a backup")
        runs.append(events)
        position = max(position, min(high, end))
    return runs
