"""A follower of a journal that does not fold: for sending.

`journal.merge` says what comes next; this adds what that leaves to its reader. Frames are checked but not decoded, and
a writer has closed if its last event says so. A segment also waits for earlier ones of its writer that are missing: a
server wants the events of one writer in their order, while a fold takes them in any order.

A server gets bytes, not events, and it gets them in the order in which they are named, so that its numbers are the same
as here. `follow` yields records; whoever sends reads the bytes of each from its segment.

    named by `order`      yielded as it stands there
    not named yet         with the turn: recorded, then yielded
                          the turn is taken: `pending`; who has it names it soon
                          may not write here: assumed, yielded, nothing recorded

What was yielded is covered here, in memory only. A daemon that starts again begins at the base, or at nothing: how far
a journal was sent is in its cursor, and known to the server.

Damage between stretches is not yielded. It is sent, marked as such, by the daemon, which reads it a second time first.
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
from .reader import Segment, Stretch, last_event, read_stretches
from .segment import TURN, list_segments, read_identity

log = logging.getLogger("ml_dash")

# Seconds to wait for the turn. A projector holds it for a pass; there will be another opportunity soon.
_TURN_S: Final = 0.05
# Seconds that later segments of a writer wait for a missing one: on a network file system names may come in any order.
PATIENCE_S: Final = 60.0


class Follower:
    """A reader that sends one journal, and its position in it. For one thread at a time."""

    def __init__(self, journal: Path, *, patience_s: float = PATIENCE_S) -> None:
        """Begin at the base, or at nothing. Raises OSError, JournalError if the journal or its base cannot be read.

        A segment waits up to `patience_s` seconds for earlier segments of its writer that are missing or unreadable.
        """
        self.path = journal
        self.id = read_identity(journal).journal.hex()
        # True if this process may not write to `order`: then it assumes the merge that it would record.
        self.read_only = False
        # True if there is something new that waits, or that another process is about to name.
        self.pending = False
        stored = bases.read(journal)
        self._base = stored[0] if stored is not None else None
        # Covered here means named: of each segment all bytes up to the last one that a record names.
        self._at = Position(base=stored[1] if stored is not None else "")
        state = self._base.state if self._base is not None else None
        if self._base is not None:
            self._at.stood = {segment: freed.length for segment, freed in self._base.segments.items()}
            # What the base stands for was proven to be on the server, so it is never sent again.
            self._at.covered = {segment: [(0, length)] for segment, length in self._at.stood.items()}
        # Not strict: a segment that has become shorter here, after a power cut, is no reason to send it again. The
        # server has more.
        self._merger = Merger(journal, self._at, self, strict=False)
        # Writers of which something is named, or that the base knows; and those of them that have neither closed nor
        # been found dead so far, in the order in which they came.
        self._met: set[str] = set(state.writers) if state is not None else set()
        self._running: dict[str, None] = dict.fromkeys(state.alive) if state is not None else {}
        # Ids of segments that `order` names and that are not here.
        self._unmet: set[str] = set()
        # Segment file name → since when it waits for earlier segments of its writer (monotonic seconds).
        self._waiting: dict[str, float] = {}
        self._patience_s = patience_s

    @property
    def troubles(self) -> dict[str, Exception]:
        """The segments that cannot be read, and why, by file name."""
        return self._merger.troubles

    def freed(self, segment: str) -> int:
        """Return how many bytes of a segment the base stands for: the server has proven to hold them."""
        return self._at.stood.get(segment, 0)

    @property
    def blobs(self) -> frozenset[str]:
        """The names of blobs for which the base stands."""
        return frozenset(self._base.blobs) if self._base is not None else frozenset()

    def segment(self, identity: str) -> Segment | None:
        """Return the segment with that id; None if it is not here."""
        return self._merger.segment(identity)

    def first_of_here(self) -> Segment | None:
        """Return the oldest segment that was written to this journal; None if there is none."""
        opened = (self._merger.open(path) for _, path in list_segments(self.path))
        return next((segment for segment in opened if segment is not None and self.is_of_here(segment)), None)

    def is_of_here(self, segment: Segment) -> bool:
        """True if a segment was written to this journal.

        `pull` brings segments of others, which the server has already.
        """
        return self._merger.is_of_here(segment)

    # -- what is new --------------------------------------------------------------------------------------------------

    def follow(self) -> Iterator[Record]:
        """Yield the records that are new since the last call, in their order; adjacent stretches are joined.

        One at a time, so that a long `order` is never whole in memory. Raises OSError, OrderChanged.
        """
        for record, _ in joined((record, 0) for record in self._new()):
            yield record

    def _new(self) -> Iterator[Record]:
        self.pending = False
        # The cheap question first: most journals have no base.
        if bases.exists(self.path) and bases.identity_of(self.path) != self._at.base:
            # A new base: segments were freed since.
            raise OrderChanged(self.path)
        order = Order(self.path)
        order.open(write=False)
        try:
            yield from self._taken(self._merger.recorded(order))
        finally:
            order.close()
        # Looks, and records nothing: taking the turn costs a lock, and mostly there is nothing new.
        if next(self._merger.new(None, thorough=True), None) is not None:
            yield from self._named()

    def _taken(self, items: Iterable[Item]) -> Iterator[Record]:
        """Yield the records of these items, each noted as taken first."""
        for record, segment, _ in items:
            self._take(record, segment)
            yield record

    def _take(self, record: Record, segment: Segment | None) -> None:
        """Note a record as taken: how far its segment is named, and that its writer was met."""
        if isinstance(record, Death):
            self._running.pop(record.writer, None)
            return
        covered = self._at.covered.get(record.segment, [(0, 0)])
        if record.end <= covered[-1][1]:
            return
        # From 0: holes before are damage, which is sent with what is behind it. The merger is not to find them again.
        self._at.covered[record.segment] = [(0, record.end)]
        if segment is None:
            # It is gone, or came after the segments were listed.
            self._unmet.add(record.segment)
        else:
            self._meet(segment)

    def _named(self) -> Iterator[Record]:
        """Yield what `order` does not name; record it there if this process may write."""
        turn = Turn(self.path / TURN)
        try:
            if not turn.take(_TURN_S):
                # The process that has the turn names what is new.
                self.pending = True
                return
        except OSError:
            # A journal of which this process may only read: no lock file can be made.
            self.read_only = True
            yield from self._taken(self._merger.new(None, thorough=True))
            return
        try:
            records = self._named_in_turn()
        finally:
            # Before yielding: sending may take minutes, and projectors wait for the turn.
            turn.give_back()
        yield from records

    def _named_in_turn(self) -> list[Record]:
        """Return what is new, all recorded. As a list, so that the turn is not held while the caller sends."""
        order = Order(self.path)
        try:
            order.open(write=True)
        except PermissionError:
            self.read_only = True
            return list(self._taken(self._merger.new(None, thorough=True)))
        self.read_only = False
        try:
            # Another process may have had the turn meanwhile, and recorded something.
            records = list(self._taken(self._merger.recorded(order)))
            return records + list(self._taken(self._merger.new(order, thorough=True)))
        finally:
            order.close()

    # -- what the merger asks -----------------------------------------------------------------------------------------

    def read(self, segment: Segment, start: int, end: int) -> Iterator[Stretch]:
        """Yield the stretches of whole frames, without their events, which are not needed for sending."""
        # 0.4 µs for a frame, because it is not decoded.
        for begin, behind in read_stretches(segment, start, end):
            yield Stretch(begin, behind, [])

    def running(self) -> list[str]:
        """Return the writers of which something is named, and that have neither closed nor died as far as known."""
        self._meet_late()
        return list(self._running)

    def is_running(self, writer: str) -> bool | None:
        """True if a writer is among those `running`; None if nothing of it is named."""
        self._meet_late()
        return writer in self._running if writer in self._met else None

    def _meet(self, segment: Segment) -> None:
        """Note that something of a writer is named. If it had been found dead, that was wrong."""
        self._met.add(segment.writer)
        self._running[segment.writer] = None

    def _meet_late(self) -> None:
        """Note the writers of segments that came after `order` had named them."""
        for identity in list(self._unmet):
            segment = self._merger.opened(identity)
            if segment is not None:
                self._unmet.discard(identity)
                self._meet(segment)

    def may_have_closed(self, writer: str, newest: list[Segment]) -> bool:
        """True if the last event of one of these segments is a closing event, or if that cannot be read now."""
        try:
            ends = [last_event(segment, segment.path.stat().st_size) for segment in newest]
        except (OSError, Damaged) as error:
            log.debug("%s: cannot tell how writer %s ended: %s", self.path, writer, error)
            return True
        # It has closed, and is not dead: not running either, from now on.
        if any(end is not None and end[1] == CLOSE for end in ends):
            self._running.pop(writer, None)
            return True
        # Nothing of it can be read here, so nothing says that it did not close.
        return not newest

    def waits(self, segment: Segment) -> bool:
        """True if earlier events of its writer are missing, for at most `patience_s`: they may be on their way."""
        file = segment.path.name
        # Something of it was named already: waiting would keep no order any more.
        if self._at.behind(segment) > segment.first or not self._misses(segment):
            self._waiting.pop(file, None)
            return False
        since = self._waiting.setdefault(file, monotonic())
        if monotonic() - since >= self._patience_s:
            return False
        # The caller comes again soon, and not only when a file changes.
        self.pending = True
        return True

    def _misses(self, segment: Segment) -> bool:
        """True if, by the segment's first event number, events before it are missing in the segments that are here."""
        for path in self._merger.before(segment):
            opened = self._merger.open(path)
            if opened is None:
                return True
            try:
                last = last_event(opened, self._at.behind(opened))
            except (OSError, Damaged):
                return True
            # From one segment to the next before it, until one holds an event that was named.
            expected = opened.header.first_seq if last is None else last[0] + 1
            if expected < segment.header.first_seq:
                return not self._was_freed(segment.name.writer)
            if last is not None:
                return False
        return False

    def _was_freed(self, writer: str) -> bool:
        """True if the base stands for segments of a writer: then numbers may be missing here for good."""
        return self._base is not None and writer in self._base.state.writers
