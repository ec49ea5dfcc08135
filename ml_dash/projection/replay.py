"""The replay of a journal: merged events through the fold into a sink.

One replay follows one journal and keeps the state that comes out of it. It does not decide what comes next:
`journal.merge` does. It does not know what an event means: `core.fold` does. It does not know where lines go: its
sink does. So the projector, readers that keep everything in memory, `verify` and `gc` all use this class.

    merger -> (record, segment, stretch) -> bodies from blobs -> fold(state) -> edits -> sink -> covered

A stretch counts as covered only after its last event was folded and its edits were taken by the sink. If a pass ends
inside a stretch, the stretch is folded again from its start. That is harmless: the state remembers, for each writer,
the ranges of numbers that it has folded, and ignores what it has seen. So position and state may be saved together
after any slice.

Memory: the state, and one read of a segment (`CHUNK_BYTES`, or `_LONG_CHUNK_BYTES` without a pace) with its decoded
events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from ..core.as_of import AsOf, fold_until
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
from ..journal.reader import CHUNK_BYTES, Gap, Segment, Stretch, Tail, read
from ..journal.segment import SEGMENTS
from .checkpoint import Checkpoint

# Bytes read from a segment at once without a pace.
_LONG_CHUNK_BYTES: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of a replay: `step` is called after each `slice_events` events. It may wait, or raise PassStopped."""

    slice_events: int
    step: Callable[[], None]


class PassStopped(Exception):
    """Raised by `Pace.step` or a sink to end a pass early, or at `Replay.until`; what is done so far is consistent."""


class Sink(Protocol):
    """The receiver of edits: the folder, or memory."""

    def apply(self, edits: Edits) -> None:
        """Take the lines and points of edits, and clear them (`Edits.clear`). Raises OSError."""

    def history(self, name: str, start: int, end: int) -> Iterator[Past]:
        """Yield points [start, end) of a metric that were applied before. Raises Elsewhere (see `rewinds.History`)."""


class Replay:
    """One reader's fold of one journal: its position and the state folded so far. For one thread at a time.

    It is the `Reader` that its merger asks (see `journal.merge`): since it folds, it knows from the state which
    writers are alive.
    """

    def __init__(self, journal: Path, checkpoint: Checkpoint) -> None:
        self.journal = journal
        self.at = checkpoint
        self.state = checkpoint.state
        self.edits = Edits()
        # True if something was folded that `order` does not record: another process may record another order.
        self.assumed = False
        self._merger = Merger(journal, checkpoint, self, strict=True)
        # The first pass reads every hole in every segment again, since a body or a damaged frame may have come back.
        # Later ones read only what has grown.
        self._thorough = True
        # Segments read since the last `sync`: their frames may be in the page cache alone.
        self._unsynced: set[Path] = set()
        self._chunk = CHUNK_BYTES
        # Where to stop: only what belongs to this moment is folded.
        self.until: AsOf | None = None
        # Called after each stretch, when position and state are those of one moment.
        self.between: Callable[[], None] | None = None

    @property
    def troubles(self) -> dict[str, Exception]:
        """What could not be read, and why: by segment file name, or `<segment> #<number>` for a lost body."""
        return self._merger.troubles

    def catch_up(self, sink: Sink, *, record: bool, pace: Pace | None = None, unordered: Sink | None = None) -> bool:
        """Fold all that is new; return True if there was anything.

        With `record`, for which the caller must have the turn, new stretches are recorded in `order` first. Without it,
        their order is only assumed, and they go to the sink `unordered` if one is given. Raises OSError if the journal
        or the sink cannot be used, OrderChanged if the checkpoint does not fit the journal, and
        PassStopped if `pace` or the sink does.
        """
        before = self.state.events, self.state.status
        # With many metrics, a longer stretch has more points of each, which are folded and written together.
        self._chunk = _LONG_CHUNK_BYTES if pace is None else CHUNK_BYTES
        order = Order(self.journal)
        order.open(write=record)
        try:
            # First what others have recorded: a record is a fact, while a new stretch is numbered after all of them.
            self._fold(self._merger.recorded(order), sink, pace)
            new = self._merger.new(order if record else None, thorough=self._thorough)
            self._fold(new if record else self._assumed(new), sink if unordered is None else unordered, pace)
        finally:
            order.close()
        self._thorough = False
        return (self.state.events, self.state.status) != before

    def follow(self, end: int, sink: Sink) -> None:
        """Fold what `order` records before its byte `end`, and nothing else. Raises OSError, OrderChanged.

        For a reader that must come to the same numbers as somebody who stopped at that byte.
        """
        order = Order(self.journal)
        order.open(write=False)
        try:
            self._fold(self._merger.recorded(order, end), sink, None)
        finally:
            order.close()

    def _assumed(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield items, and note that there was one: numbers given to them are not final."""
        for item in items:
            self.assumed = True
            yield item

    # -- folding ------------------------------------------------------------------------------------------------------

    def _fold(self, items: Iterable[Item], sink: Sink, pace: Pace | None) -> None:
        """Fold items as the merger yields them.

        It moves the position in `order` only when asked for the next item: so the position never passes a stretch that
        is folded in part.
        """
        for record, segment, stretch in items:
            if isinstance(record, Death):
                fold_death(self.state, record.writer, self.edits)
            elif segment is not None:
                stretches = self._merger.unread(segment, record.start, record.end) if stretch is None else [stretch]
                for part in stretches:
                    self._fold_stretch(segment, part, sink, pace)
                    if self.between is not None:
                        self.between()

    def _fold_stretch(self, segment: Segment, stretch: Stretch, sink: Sink, pace: Pace | None) -> None:
        """Fold the events of a stretch slice by slice; then mark its bytes as covered."""
        state, header = self.state, segment.header
        # A journal whose opening event is lost is still known by the names in its header.
        state.project, state.name = state.project or header.project, state.name or header.name
        self._unsynced.add(segment.path)
        size = len(stretch.events) if pace is None else pace.slice_events
        for start in range(0, len(stretch.events), size):
            events = stretch.events[start : start + size]
            ended = False
            if self.until is None:
                fold(state, segment.writer, events, self.edits)
            else:
                ended = fold_until(state, segment.writer, events, self.until, self.edits)
            sink.apply(self.edits)
            # A rewind supersedes points that were folded long ago, of which the state has only statistics. They are
            # read back from the sink, so it must have all points first: `apply` comes before.
            if self.edits.rewound:
                recount(state, self.edits, sink.history)
            if ended:
                raise PassStopped
            if pace is not None:
                pace.step()
        self.at.covered[segment.id] = union(self.at.covered.get(segment.id, []), stretch.start, stretch.end)

    # -- what the merger asks -----------------------------------------------------------------------------------------

    def read(self, segment: Segment, start: int, end: int) -> Iterator[Stretch | Gap | Tail]:
        """Yield stretches with their bodies from blobs. A frame whose body is lost is left out, and stays uncovered."""
        fetch, file = partial(bodies.fetch_body, self.journal), segment.path.name

        # Reported and left out. Its bytes stay uncovered, so a later thorough pass folds it if the blob has come
        # back.
        def lost(event: Event, error: Exception) -> None:
            self.troubles[f"{file} #{event[0]}"] = error

        for item in read(segment, start, end, self._chunk):
            if isinstance(item, Stretch):
                frames = partial(_bytes_of, segment, item)
                yield from bodies.with_bodies(item, segment.writer, frames, fetch, lost, (OSError, Damaged, ValueError))
            else:
                yield item

    def running(self) -> list[str]:
        """Return the writers that have neither closed nor been found dead, by the state."""
        return self.state.alive

    def is_running(self, writer: str) -> bool | None:
        """True if a writer has neither closed nor been found dead; None if no event of it was folded."""
        writer_state = self.state.writers.get(writer)
        return writer_state.alive if writer_state is not None else None

    def may_have_closed(self, writer: str, newest: list[Segment]) -> bool:
        """False: a closing event would have been folded, and the writer would not be running."""
        return False

    def waits(self, segment: Segment) -> bool:
        """False: events of a writer may be folded in any order, because the state notes their numbers."""
        return False

    # -- before blobs are released -----------------------------------------------------------------------------------

    def sync(self) -> None:
        """Sync the segments read so far and `order`, so that their events and order survive a power cut.

        Raises OSError.
        """
        for path in self._unsynced:
            with path.open("rb") as file:
                data_sync(file.fileno())
        # The folder too: a segment whose entry is lost is lost, whatever its content.
        sync_folder(self.journal / SEGMENTS)
        self._unsynced = set()
        order = Order(self.journal)
        order.open(write=True)
        try:
            order.sync()
        finally:
            order.close()


def _bytes_of(segment: Segment, stretch: Stretch) -> bytes:
    with segment.path.open("rb") as file:
        return read_at(file.fileno(), stretch.end - stretch.start, stretch.start)
