"""States of the past: an experiment folded from its arrivals up to an event or a time (see `core.as_of`).

The arrivals are the order in which the present state was folded. So what readers saw at a moment is the fold of the
first of them; lines and their summaries are those that are stored, for the lines of a moment come first in them.
Snapshots of earlier looks are kept in memory, and a look begins at the nearest one.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import msgspec

from ...core.as_of import AsOf, fold_until
from ...core.fold import fold_death
from ...core.rewinds import recount
from ...core.state import Edits, State
from ...reading.snapshots import Snapshot, Snapshots
from .blocks import history
from .changes import STRETCH
from .contents import Contents
from .ingest import Ingest
from .refold import ARRIVALS_AT_ONCE, segments_of, stretches_of

# Bytes of snapshots, all experiments together.
_SNAPSHOT_BYTES: Final = 64 << 20
# A snapshot is made after so many events, and no more often than so many times in an experiment.
_EVENTS_BETWEEN: Final = 250_000
_MOST_SNAPSHOTS: Final = 32


class _Kept(msgspec.Struct, array_like=True):
    """What a snapshot holds: the state, and the arrival in which it ends, which is begun again from its start."""

    arrival: int
    state: State


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Kept).decode


class Past:
    """The past of all experiments of a server. Any thread may call."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._snapshots = Snapshots(_SNAPSHOT_BYTES)

    def state(self, contents: Contents, until: AsOf) -> State:
        """Return the state at a moment; the present one if the moment is not behind it.

        Raises Vanished where a newer version has taken the place of the one that is read: the next try goes on from
        what was folded.
        """
        row = contents.row
        if until.is_behind(row.events, row.updated_ns):
            return contents.state()
        # After a removal, the events of others count from 0.
        key = (contents.ns, row.id, len(contents.removed_writers()))
        nearest = self._snapshots.nearest(key, until)
        kept = _Kept(0, State()) if nearest is None else _decode(nearest.encoded)
        self._fold(contents, key, kept, until)
        state = kept.state
        state.project, state.name = row.project, row.name
        # As the parts of the present one are.
        state.metrics = dict(sorted(state.metrics.items()))
        return state

    def _fold(self, contents: Contents, key: tuple[str, str, int], kept: _Kept, until: AsOf) -> None:
        """Fold on to a moment, and keep snapshots on the way and at the end."""
        state, edits, past = kept.state, Edits(), history(contents)
        segments = segments_of(contents)
        apart = max(_EVENTS_BETWEEN, contents.row.events // _MOST_SNAPSHOTS)
        known = state.events
        ended = False
        while not ended and (arrivals := contents.arrivals(kept.arrival, ARRIVALS_AT_ONCE)):
            for arrival in arrivals:
                if state.events - known >= apart:
                    known = state.events
                    self._keep(key, kept)
                kept.arrival = arrival.n
                if arrival.kind != STRETCH:
                    if not contents.is_removed(arrival.who):
                        fold_death(state, arrival.who, edits)
                    continue
                segment = segments[arrival.who]
                if contents.is_removed(segment.writer):
                    continue
                for stretch, frames in stretches_of(contents, segment, max(arrival.start, segment.first), arrival.end):
                    for piece in self._ingest.pieces(contents.ns, segment.writer, stretch, partial(bytes, frames)):
                        ended = ended or fold_until(state, segment.writer, piece.events, until, edits)
                        edits.clear()
                        if edits.rewound:
                            recount(state, edits, past)
                if ended:
                    break
            else:
                kept.arrival = arrivals[-1].n + 1
        self._keep(key, kept)

    def _keep(self, key: tuple[str, str, int], kept: _Kept) -> None:
        self._snapshots.add(key, Snapshot(kept.state.events, kept.state.updated_ns, _encode(kept)))
