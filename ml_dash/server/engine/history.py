"""The history of an experiment on a server: its marks (see `core.marks`), made from the arrivals and kept up to date.

The arrivals are the order in which everything was folded. What was read once is kept in memory, and only what has
arrived since is read. Bodies are decoded only of the few events that make a mark.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Final

from ...core.marks import MarkPage, Marks
from ...core.protocol import UNKNOWN, Refused
from ...journal.bodies import head_body
from ...journal.reader import decode_head
from ...reading.history import page_of_marks
from ..stores import Documents
from .changes import STRETCH
from .contents import Contents, Reader, steady
from .ingest import Ingest
from .refold import ARRIVALS_AT_ONCE, segments_of, stretches_of

_KEPT: Final = 64
_Key = tuple[str, str, int]


@dataclass(slots=True)
class _Known:
    """The marks of one experiment, and the number of the next arrival to be read."""

    marks: Marks = field(default_factory=Marks)
    next: int = 0
    lock: Lock = field(default_factory=Lock)


class Histories:
    """The histories of all experiments of a server. Any thread may call."""

    def __init__(self, documents: Documents, reader: Reader, ingest: Ingest) -> None:
        self._documents = documents
        self._reader = reader
        self._ingest = ingest
        self._guard = Lock()
        self._known: OrderedDict[_Key, _Known] = OrderedDict()

    @steady
    def history(self, ns: str, experiment: str, start: int = 0, limit: int = 1000) -> MarkPage:
        """Return a page of marks, oldest first, from number `start` on; a negative one counts from the end.

        Raises Refused (404).
        """
        with self._documents.view() as view:
            row = view.experiment(ns, experiment)
            if row is None or not row.events:
                raise Refused(404, UNKNOWN, "there is no such experiment")
            contents = self._reader.contents(view, ns, row)
            # After a removal, the events of others count from 0.
            known = self._of((ns, experiment, len(contents.removed_writers())))
            with known.lock:
                self._follow(contents, known)
                return page_of_marks(known.marks, start, limit)

    def _of(self, key: _Key) -> _Known:
        with self._guard:
            known = self._known.setdefault(key, _Known())
            self._known.move_to_end(key)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return known

    def _follow(self, contents: Contents, known: _Known) -> None:
        """Add the marks of what has arrived since. Raises Vanished: the next try goes on behind the last arrival."""
        segments = segments_of(contents)
        while arrivals := contents.arrivals(known.next, ARRIVALS_AT_ONCE):
            for arrival in arrivals:
                if arrival.kind != STRETCH:
                    if not contents.is_removed(arrival.who):
                        known.marks.death(arrival.who)
                elif not contents.is_removed((segment := segments[arrival.who]).writer):
                    first = max(arrival.start, segment.first)
                    fetch = partial(self._ingest.body, contents.ns)
                    body_of = partial(_body, partial(head_body, segment.writer, fetch))
                    for stretch, _ in stretches_of(contents, segment, first, arrival.end, decode_head):
                        known.marks.add(segment.writer, stretch.events, body_of)
                known.next = arrival.n + 1


def _body(read: Any, event: Any) -> Any:
    try:
        return read(event)
    except FileNotFoundError as error:
        raise LookupError(f"the body of event {event[0]}") from error
