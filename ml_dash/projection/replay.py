"""Fold a journal: what comes next in it, from `journal.merge`, into the state, and what that changes to a sink."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from ..core.fold import fold, fold_death
from ..core.frames import Event
from ..core.ranges import union
from ..core.rewinds import Past, recount
from ..core.state import Edits
from ..disk.durable import data_sync, read_at, sync_folder
from ..errors import Damaged
from ..journal import bodies
from ..journal.merge import Item, Merger
from ..journal.order import Death, Order
from ..journal.reader import CHUNK_BYTES, Gap, Run, Segment, Tail, read
from ..journal.segment import SEGMENTS
from .checkpoint import Checkpoint

_LONG_CHUNK: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class Pace:
    """How a replay shares the machine: after so many events it calls `step`, which may wait, or raise Enough."""

    slice_events: int
    step: Callable[[], None]


class Enough(Exception):
    """The time given to a pass is over; what is done so far is consistent."""


class Sink(Protocol):
    """Where edits go."""

    def apply(self, edits: Edits) -> None:
        """Write the lines of some edits, and clear them."""

    def history(self, name: str, start: int, end: int) -> Iterator[Past]:
        """Points [start, end) of a metric that were applied; see `rewinds.History`."""


class Replay:
    """The position of one reader in one journal, in memory, with the state folded so far."""

    def __init__(self, journal: Path, checkpoint: Checkpoint) -> None:
        self.journal = journal
        self.at = checkpoint
        self.state = checkpoint.state
        self.edits = Edits()
        # Was anything folded that `order` does not record?
        self.assumed = False
        self._merger = Merger(journal, checkpoint, self, strict=True)
        self._thorough = True
        self._unsynced: set[Path] = set()
        self._chunk = CHUNK_BYTES

    @property
    def troubles(self) -> dict[str, Exception]:
        """What could not be read, and why: segment file names, or `<segment> #<number>` for a lost body."""
        return self._merger.troubles

    def catch_up(self, sink: Sink, *, record: bool, pace: Pace | None = None, unordered: Sink | None = None) -> bool:
        """Fold all that is new; was there anything?

        With `record`, for which the caller has the turn, what is new is recorded in `order` first; without it is only
        assumed. It goes to the sink `unordered`, if one is given. Raises OSError if the journal or the sink cannot be
        used, OrderChanged if the checkpoint is of no use, and Enough if `pace` does.
        """
        before = self.state.events, self.state.status
        # Where many metrics take turns, more events at once are more points of each: folded and written together.
        self._chunk = _LONG_CHUNK if pace is None else CHUNK_BYTES
        order = Order(self.journal)
        order.open(write=record)
        try:
            self._fold(self._merger.recorded(order), sink, pace)
            new = self._merger.new(order if record else None, thorough=self._thorough)
            self._fold(new if record else self._assumed(new), sink if unordered is None else unordered, pace)
        finally:
            order.close()
        self._thorough = False
        return (self.state.events, self.state.status) != before

    def follow(self, end: int, sink: Sink) -> None:
        """Fold what `order` records before its byte `end`, and nothing else. Raises as `catch_up` does."""
        order = Order(self.journal)
        order.open(write=False)
        try:
            self._fold(self._merger.recorded(order, end), sink, None)
        finally:
            order.close()

    def _assumed(self, items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            self.assumed = True
            yield item

    # -- folding ------------------------------------------------------------------------------------------------------

    def _fold(self, items: Iterable[Item], sink: Sink, pace: Pace | None) -> None:
        """The merger moves the position in `order` only once it is asked on: behind what is folded whole."""
        for record, segment, run in items:
            if isinstance(record, Death):
                fold_death(self.state, record.writer, self.edits)
            elif segment is not None:
                runs = self._merger.unread(segment, record.start, record.end) if run is None else [run]
                for found in runs:
                    self._fold_run(segment, found, sink, pace)

    def _fold_run(self, segment: Segment, run: Run, sink: Sink, pace: Pace | None) -> None:
        state, header = self.state, segment.header
        state.project, state.name = state.project or header.project, state.name or header.name
        self._unsynced.add(segment.path)
        size = len(run.events) if pace is None else pace.slice_events
        for start in range(0, len(run.events), size):
            fold(state, segment.writer, run.events[start : start + size], self.edits)
            sink.apply(self.edits)
            if self.edits.rewound:
                recount(state, self.edits, sink.history)
            if pace is not None:
                pace.step()
        self.at.covered[segment.id] = union(self.at.covered.get(segment.id, []), run.start, run.end)

    # -- what the merger asks -----------------------------------------------------------------------------------------

    def read(self, segment: Segment, start: int, end: int) -> Iterator[Run | Gap | Tail]:
        """Runs with bodies that were kept as blobs. A frame whose body is lost is left out: it stays unread."""
        fetch, file = partial(bodies.fetch_body, self.journal), segment.path.name

        def lost(event: Event, error: Exception) -> None:
            self.troubles[f"{file} #{event[0]}"] = error

        for item in read(segment, start, end, self._chunk):
            if isinstance(item, Run):
                frames = partial(_bytes_of, segment, item)
                yield from bodies.with_bodies(item, segment.writer, frames, fetch, lost, (OSError, Damaged, ValueError))
            else:
                yield item

    def running(self) -> list[str]:
        """The writers that were met, and have neither closed nor been found dead."""
        return self.state.alive

    def is_running(self, writer: str) -> bool | None:
        """Whether a writer has neither closed nor died; None if no event of it was folded."""
        known = self.state.writers.get(writer)
        return known.alive if known is not None else None

    def may_have_closed(self, writer: str, newest: list[Segment]) -> bool:
        """A closing event would have been folded."""
        return False

    def waits(self, segment: Segment) -> bool:
        """Events of a writer may be folded in any order: their numbers say which they are."""
        return False

    # -- before blobs are released -----------------------------------------------------------------------------------

    def sync(self) -> None:
        """All events read so far, and their order, survive a power cut."""
        for path in self._unsynced:
            with path.open("rb") as file:
                data_sync(file.fileno())
        sync_folder(self.journal / SEGMENTS)
        self._unsynced = set()
        order = Order(self.journal)
        order.open(write=True)
        try:
            order.sync()
        finally:
            order.close()


def _bytes_of(segment: Segment, run: Run) -> bytes:
    with segment.path.open("rb") as file:
        return read_at(file.fileno(), run.end - run.start, run.start)
