"""Follow a journal without folding it: for whoever sends it on.

What `journal.merge` says comes next, with what that leaves to its reader: frames are walked and checked, not decoded,
and a writer has closed if its last event says so. A segment also waits for what its writer wrote before: a server wants
the events of a writer in their order, where whoever folds takes them as they come.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import Final

from ..core.events import CLOSE
from ..disk.lock import Turn
from ..errors import Damaged
from . import base as bases
from .merge import Item, Merger, OrderChanged, Position, joined
from .order import Death, Order, Record
from .reader import Run, Segment, last_event, read_runs
from .segment import TURN, list_segments, read_identity

log = logging.getLogger("ml_dash")

_TURN_S: Final = 0.05
PATIENCE_S: Final = 60.0


class Follower:
    """The position of one reader in one journal. For one thread at a time."""

    def __init__(self, journal: Path, *, patience_s: float = PATIENCE_S) -> None:
        """Raises OSError, JournalError if the journal, or its base, cannot be read.

        A segment waits up to `patience_s` for what its writer wrote before and what cannot be read now.
        """
        self.path = journal
        self.id = read_identity(journal).journal.hex()
        # May this process not write to `order`? Then segments come by their stamps.
        self.read_only = False
        # Is there something new that waits, or that another process is about to name?
        self.pending = False
        found = bases.read(journal)
        self._base = found[0] if found is not None else None
        # Covered is what was named: of each segment all before the end of that.
        self._at = Position(base=found[1] if found is not None else "")
        state = self._base.state if self._base is not None else None
        if self._base is not None:
            self._at.stood = {segment: stood.length for segment, stood in self._base.segments.items()}
            self._at.covered = {segment: [(0, length)] for segment, length in self._at.stood.items()}
        self._merger = Merger(journal, self._at, self, strict=False)
        # Writers of which something is named, or that the base knows; and those of them that have neither closed nor
        # been found dead, as far as that was looked at, in the order in which they came.
        self._met: set[str] = set(state.writers) if state is not None else set()
        self._running: dict[str, None] = dict.fromkeys(state.alive) if state is not None else {}
        # Segments that `order` names, and that were not found.
        self._unmet: set[str] = set()
        # Segment file name → since when it waits for what its writer wrote before.
        self._waiting: dict[str, float] = {}
        self._patience_s = patience_s

    @property
    def troubles(self) -> dict[str, Exception]:
        """What cannot be read, and why: segment file names."""
        return self._merger.troubles

    def stood(self, segment: str) -> int:
        """How many bytes of a segment a base stands for: the server has proven to hold them."""
        return self._at.stood.get(segment, 0)

    @property
    def blobs(self) -> frozenset[str]:
        """Contents that a base stands for."""
        return frozenset(self._base.blobs) if self._base is not None else frozenset()

    def segment(self, identity: str) -> Segment | None:
        """The segment with that id; None if it is not here (any more)."""
        return self._merger.segment(identity)

    def first_of_here(self) -> Segment | None:
        """The oldest segment that was written to this journal."""
        opened = (self._merger.open(path) for _, path in list_segments(self.path))
        return next((segment for segment in opened if segment is not None and self.is_of_here(segment)), None)

    def is_of_here(self, segment: Segment) -> bool:
        """Was it written to this journal? `pull` brings those of others, which the server has already."""
        return self._merger.is_of_here(segment)

    # -- what is new --------------------------------------------------------------------------------------------------

    def follow(self) -> Iterator[Record]:
        """What is new since the last call: stretches and deaths, in their order; those that join come as one.

        Taken one by one, so that a long `order` is never in memory whole. Raises OSError, OrderChanged.
        """
        for record, _ in joined((record, 0) for record in self._new()):
            yield record

    def _new(self) -> Iterator[Record]:
        self.pending = False
        if bases.exists(self.path) and bases.identity_of(self.path) != self._at.base:
            # It stands for what was freed since.
            raise OrderChanged(self.path)
        order = Order(self.path)
        order.open(write=False)
        try:
            yield from self._taken(self._merger.recorded(order))
        finally:
            order.close()
        if next(self._merger.new(None, thorough=True), None) is not None:
            yield from self._named()

    def _taken(self, items: Iterable[Item]) -> Iterator[Record]:
        for record, segment, _ in items:
            self._take(record, segment)
            yield record

    def _take(self, record: Record, segment: Segment | None) -> None:
        if isinstance(record, Death):
            self._running.pop(record.writer, None)
            return
        covered = self._at.covered.get(record.segment, [(0, 0)])
        if record.end <= covered[-1][1]:
            return
        self._at.covered[record.segment] = [(0, record.end)]
        if segment is None:
            # It is gone, or came after our listing.
            self._unmet.add(record.segment)
        else:
            self._meet(segment)

    def _named(self) -> Iterator[Record]:
        """Name what is not named, in `order` if that may be written."""
        turn = Turn(self.path / TURN)
        try:
            if not turn.take(_TURN_S):
                # Whoever has it names what is new.
                self.pending = True
                return
        except OSError:
            self.read_only = True
            yield from self._taken(self._merger.new(None, thorough=True))
            return
        try:
            records = self._named_in_turn()
        finally:
            turn.give_back()
        yield from records

    def _named_in_turn(self) -> list[Record]:
        """All at once: what follows is written before anybody else has the turn, however long taking it takes."""
        order = Order(self.path)
        try:
            order.open(write=True)
        except PermissionError:
            self.read_only = True
            return list(self._taken(self._merger.new(None, thorough=True)))
        self.read_only = False
        try:
            # Somebody may have had the turn meanwhile.
            records = list(self._taken(self._merger.recorded(order)))
            return records + list(self._taken(self._merger.new(order, thorough=True)))
        finally:
            order.close()

    # -- what the merger asks -----------------------------------------------------------------------------------------

    def read(self, segment: Segment, start: int, end: int) -> Iterator[Run]:
        """The runs of whole frames, with no events in them: nobody asks for these here."""
        for begin, behind in read_runs(segment, start, end):
            yield Run(begin, behind, [])

    def running(self) -> list[str]:
        """The writers that were met, and that neither closed nor died as far as that was looked at."""
        self._meet_late()
        return list(self._running)

    def is_running(self, writer: str) -> bool | None:
        """Whether a writer has neither closed nor died; None if nothing of it is named."""
        self._meet_late()
        return writer in self._running if writer in self._met else None

    def _meet(self, segment: Segment) -> None:
        """Something of its writer is named. If that had been found dead, it was wrong."""
        self._met.add(segment.writer)
        self._running[segment.writer] = None

    def _meet_late(self) -> None:
        """Of what `order` names, segments may be seen later."""
        for identity in list(self._unmet):
            segment = self._merger.opened(identity)
            if segment is not None:
                self._unmet.discard(identity)
                self._meet(segment)

    def may_have_closed(self, writer: str, newest: list[Segment]) -> bool:
        """Is the last event of one of these segments its closing event, or can that not be told now?"""
        try:
            ends = [last_event(segment, segment.path.stat().st_size) for segment in newest]
        except (OSError, Damaged) as error:
            log.debug("%s: cannot tell how writer %s ended: %s", self.path, writer, error)
            return True
        if any(end is not None and end[1] == CLOSE for end in ends):
            self._running.pop(writer, None)
            return True
        return not newest

    def waits(self, segment: Segment) -> bool:
        """Is something missing that its writer wrote before? It may be on its way still: that is waited for a while."""
        file = segment.path.name
        if self._at.behind(segment) > segment.first or not self._misses(segment):
            self._waiting.pop(file, None)
            return False
        since = self._waiting.setdefault(file, monotonic())
        if monotonic() - since >= self._patience_s:
            return False
        self.pending = True
        return True

    def _misses(self, segment: Segment) -> bool:
        """Does the segment's first number say that something is missing before it, in the segments that are here?"""
        for path in self._merger.before(segment):
            opened = self._merger.open(path)
            if opened is None:
                return True
            try:
                last = last_event(opened, self._at.behind(opened))
            except (OSError, Damaged):
                return True
            expected = opened.header.first_seq if last is None else last[0] + 1
            if expected < segment.header.first_seq:
                return not self._was_freed(segment.name.writer)
            if last is not None:
                return False
        return False

    def _was_freed(self, writer: str) -> bool:
        """Does a base stand for segments of that writer? Then numbers may be missing here for good."""
        return self._base is not None and writer in self._base.state.writers
