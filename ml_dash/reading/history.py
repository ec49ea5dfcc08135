"""The history of an experiment on this machine: its marks (see `core.marks`), made from the journal, kept up to date.

A history follows the order of a journal as a fold does, but decodes no points: four times as fast, and nothing is
written. What was read once is kept, and only what is new is read. Where the order of the newest events is not recorded
yet, their marks are made anew each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from itertools import chain
from threading import Lock
from typing import Any, Final

from ..core.marks import MarkPage, Marks
from ..core.ranges import bounds, union
from ..core.times import utc_text
from ..errors import Damaged
from ..journal import bodies
from ..journal.merge import Item, Merger, OrderChanged, Position
from ..journal.order import Death, Order
from ..journal.reader import Gap, Segment, Stretch, Tail, decode_head, read
from ..projection.start import begin
from .located import Located

_READ_BYTES: Final = 2 << 20
_KEPT: Final = 32

_histories: Final[OrderedDict[str, History]] = OrderedDict()
_guard: Final = Lock()


def history(located: Located, start: int = 0, limit: int = 1000) -> MarkPage:
    """Return a page of the marks of an experiment, oldest first, from number `start` on (negative: from the end).

    {"marks", "total", "startIndex", "events", "firstAt", "lastAt"}; `since`, where a base stands for the first events,
    is how many those are: their marks are on the server. Raises OSError, JournalError.
    """
    key = str(located.journal)
    with _guard:
        found = _histories.setdefault(key, History(located))
        _histories.move_to_end(key)
        while len(_histories) > _KEPT:
            _histories.popitem(last=False)
    return found.page(start, limit)


def page_of_marks(marks: Marks, start: int, limit: int) -> MarkPage:
    """Return a page of marks, with what they are of."""
    low, high = bounds(start, limit, len(marks.marks))
    page: MarkPage = {
        "marks": marks.marks[low:high],
        "total": len(marks.marks),
        "startIndex": low,
        "events": marks.events,
        "firstAt": utc_text(marks.first_ns) if marks.first_ns else None,
        "lastAt": utc_text(marks.newest_ns) if marks.newest_ns else None,
    }
    if marks.since:
        page["since"] = marks.since
    return page


class History:
    """The marks of one journal, as far as it was read. Any thread may call."""

    def __init__(self, located: Located) -> None:
        self._located = located
        self._lock = Lock()
        self._follower: _Follower | None = None

    def page(self, start: int, limit: int) -> MarkPage:
        """Return a page of the marks of all that is in the journal now."""
        with self._lock:
            try:
                return page_of_marks(self._follow(), start, limit)
            except OrderChanged:
                # `order` or a segment was replaced: what was read is of no use.
                self._follower = None
                return page_of_marks(self._follow(), start, limit)

    def _follow(self) -> Marks:
        first = self._follower is None
        if self._follower is None:
            at = begin(self._located.journal)
            position = Position(at.base, at.stood, at.order_identity, at.order_position, at.covered, at.settled)
            self._follower = _Follower(self._located, position, Marks(at.state))
        follower = self._follower
        order = Order(self._located.journal)
        order.open(write=False)
        try:
            follower.take(follower.merger.recorded(order))
            ahead = follower.merger.new(None, thorough=first)
            item = next(ahead, None)
            if item is not None:
                # Whoever merges these for good may do it in another order, so they do not go into what is kept.
                self._follower = _Follower(self._located, deepcopy(follower.at), deepcopy(follower.marks))
                follower.take(chain((item,), ahead))
            return follower.marks
        finally:
            order.close()


class _Follower:
    """A reader of a journal that only makes marks: the `Reader` that its merger asks (see `journal.merge`)."""

    def __init__(self, located: Located, at: Position, marks: Marks) -> None:
        self.at = at
        self.marks = marks
        self.merger = Merger(located.journal, at, self, strict=True)
        self._fetch = partial(bodies.fetch_body, located.journal)

    def take(self, items: Iterable[Item]) -> None:
        """Add what comes next to the marks."""
        for record, segment, stretch in items:
            if isinstance(record, Death):
                self.marks.death(record.writer)
            elif segment is not None:
                unread = self.merger.unread(segment, record.start, record.end) if stretch is None else [stretch]
                for part in unread:
                    self.marks.add(segment.writer, part.events, partial(self._body, segment.writer))
                    self.at.covered[segment.id] = union(self.at.covered.get(segment.id, []), part.start, part.end)

    def _body(self, writer: str, event: Any) -> Any:
        try:
            return bodies.head_body(writer, self._fetch, event)
        except (OSError, Damaged) as error:
            raise LookupError(f"the body of event {event[0]}") from error

    # -- what the merger asks ------------------------------------------------------------------------------------------

    def read(self, segment: Segment, start: int, end: int) -> Iterator[Stretch | Gap | Tail]:
        """Yield what bytes [start, end) of a segment hold, without the bodies of events. Raises OSError."""
        return read(segment, start, end, _READ_BYTES, decode_head)

    def waits(self, segment: Segment) -> bool:
        """False: marks are made from events in any order."""
        return False

    def running(self) -> Sequence[str]:
        """Return the writers that have neither closed nor been found dead."""
        return self.marks.alive

    def is_running(self, writer: str) -> bool | None:
        """True if a writer is among those running; None if nothing of it was added."""
        return writer in self.marks.alive if self.marks.knows(writer) else None

    def may_have_closed(self, writer: str, newest: list[Segment]) -> bool:
        """False: a closing event would have been added, and the writer would not be running."""
        return False
