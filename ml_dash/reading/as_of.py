"""A view of an experiment as it was at a moment: an event or a time (see `core.as_of`).

The state of that moment is folded from the segments, beginning at the nearest snapshot of an earlier look. Lines are
those of the folder as it is now, since the lines of a moment are the first ones of today's. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import time_ns
from typing import Final

import msgspec

from ..core.as_of import AsOf, Moment, as_of_of
from ..core.rewinds import Past
from ..core.state import Edits
from ..journal import base as bases
from ..journal.merge import OrderChanged
from ..journal.order import Order
from ..projection.checkpoint import Checkpoint
from ..projection.folder import FolderChanged
from ..projection.replay import PassStopped, Replay
from ..projection.start import begin
from .located import Located
from .read import fresh_view, view
from .snapshots import Snapshot, Snapshots
from .view import View, released

_SNAPSHOT_BYTES: Final = 64 << 20
# A snapshot is made after so many events, and no more often than so many times in an experiment.
_EVENTS_BETWEEN: Final = 250_000
_MOST_SNAPSHOTS: Final = 32

_snapshots: Final = Snapshots(_SNAPSHOT_BYTES)
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Checkpoint).decode


def view_as_of(located: Located, as_of: Moment) -> View:
    """Return a view of an experiment as it was at a moment; of the present if that is None, or not behind it.

    Raises InvalidValue for what is no moment, and ReleasedData for one from which events are not on this machine.
    """
    until = as_of_of(as_of, time_ns())
    if until is None:
        return view(located)
    try:
        return _past(located, view(located), until)
    except (OrderChanged, FolderChanged):
        # The journal or the folder was replaced while it was read.
        _snapshots.forget(_key(located))
        return _past(located, fresh_view(located), until)


def _past(located: Located, present: View, until: AsOf) -> View:
    """Return the view at a moment, with the lines of the present one. Raises OrderChanged, FolderChanged."""
    if until.is_behind(present.state.events, present.state.updated_ns):
        return present
    replay = Replay(located.journal, _start(located, until, present))
    replay.until = until
    key, kept = _key(located), replay.state.events
    apart = max(_EVENTS_BETWEEN, present.state.events // _MOST_SNAPSHOTS)

    def keep() -> None:
        nonlocal kept
        if replay.state.events - kept >= apart and not replay.assumed:
            kept = replay.state.events
            _keep(key, replay)

    replay.between = keep
    try:
        replay.catch_up(_Lines(present), record=False)
    except PassStopped:
        if not replay.assumed:
            _keep(key, replay)
    return present.at(replay.state, lambda: fresh_view(located))


def _start(located: Located, until: AsOf, present: View) -> Checkpoint:
    """Return where to begin: the nearest snapshot, else nothing or the base. Raises ReleasedData behind a moment."""
    first = begin(located.journal)
    if until.is_before(first.state.events, first.state.updated_ns):
        what = f"events before number {first.state.events:,}"
        raise released(present.state, located.journal, located.folder, what)
    nearest = _snapshots.nearest(_key(located), until)
    return first if nearest is None or nearest.events <= first.state.events else _decode(nearest.encoded)


def _keep(key: tuple[str, ...], replay: Replay) -> None:
    state = replay.state
    _snapshots.add(key, Snapshot(state.events, state.updated_ns, _encode(replay.at)))


def _key(located: Located) -> tuple[str, ...]:
    """Return what names a journal together with its base and its `order`: a snapshot is of no use with another one."""
    order = Order(located.journal)
    order.open(write=False)
    try:
        return str(located.journal), bases.identity_of(located.journal), order.identity
    finally:
        order.close()


class _Lines:
    """A sink that keeps nothing; points of the past are read from a view of the present."""

    def __init__(self, present: View) -> None:
        self._present = present

    def apply(self, edits: Edits) -> None:
        """Drop the lines of edits: they are in the present view."""
        edits.clear()

    def history(self, name: str, start: int, end: int) -> Iterator[Past]:
        """Yield points [start, end) of a metric, in parts. Raises Elsewhere and FolderChanged."""
        return self._present.past_points(name, start, end)
