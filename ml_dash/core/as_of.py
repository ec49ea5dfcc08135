"""Looking back: the fold of the first part of an experiment's order, up to an event or a time.

Whoever looked at an experiment at some moment saw what had been merged until then: the first N events of its order,
never others. So a moment in the past is a number of events, and the state at it is the fold of that many:

    event N     the first N events, as `counts.events` counts them, and the deaths that were noted before the next one
    time T      the events before the first one in the order that is later than T

So data that a machine brought late is not there before it came, although its times are earlier; and where writers ran
beside each other, what one wrote up to T may lie behind something later of another, by as long as merging takes.

Numbers of log lines and points are positions in the order. So those at a moment are the first ones of those today, and
a reader of lines needs nothing but the state of that moment.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from ..errors import InvalidValue
from .fold import fold
from .frames import Event
from .state import Edits, State
from .times import parse_time

if TYPE_CHECKING:
    from datetime import datetime

_UNITS_NS: Final = {"s": 10**9, "m": 60 * 10**9, "min": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9,
                    "w": 604_800 * 10**9}  # fmt: skip
_HINT: Final = "give a number of events, a time (2025-10-29T10:30:00), or how long ago: -90min, -2h, -7d"


@dataclass(frozen=True, slots=True)
class AsOf:
    """A moment: a number of events, or else a time in ns since the epoch.

    A time stands for the whole of its microsecond: so one that was shown, which is cut to that, names its event.
    """

    events: int | None = None
    time_ns: int | None = None

    def is_behind(self, events: int, newest_ns: int) -> bool:
        """True if the moment is at or after that many events, of which the newest has this time."""
        if self.events is not None:
            return self.events >= events
        return self.time_ns is not None and self.time_ns >= newest_ns

    def is_before(self, events: int, newest_ns: int) -> bool:
        """True if the moment is before the end of that many events, of which the newest has this time."""
        if self.events is not None:
            return self.events < events
        return self.time_ns is not None and self.time_ns < newest_ns


Moment: TypeAlias = "int | str | datetime | AsOf | None"
"""What names a moment, None the present; see `as_of_of`."""


def as_of_of(moment: Moment, now_ns: int) -> AsOf | None:
    """Return the moment that a reader asked for: a number of events, a time, a text of either, or `-2h`; None for now.

    Times without a zone are UTC. Raises InvalidValue.
    """
    if moment is None or isinstance(moment, AsOf):
        return moment
    if isinstance(moment, str):
        return _of_text(moment.strip(), now_ns)
    if isinstance(moment, int) and not isinstance(moment, bool):
        if moment < 0:
            raise InvalidValue(f"as of event {moment}: events are counted from 0", hint=_HINT)
        return AsOf(events=moment)
    from datetime import datetime, timezone

    if isinstance(moment, datetime):
        zoned = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
        since = zoned - datetime(1970, 1, 1, tzinfo=timezone.utc)
        return _at((since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000)
    raise InvalidValue(f"as_of is {moment!r:.80}", hint=_HINT)


def _of_text(text: str, now_ns: int) -> AsOf:
    if text.isascii() and text.isdecimal() and len(text) < 19:
        return AsOf(events=int(text))
    number = text[1:].rstrip("abcdefghijklmnopqrstuvwxyz ")
    if text[:1] == "-" and number.isascii() and number.isdecimal() and len(number) < 10:
        unit = _UNITS_NS.get(text[1 + len(number) :].strip())
        if unit is not None:
            return _at(now_ns - int(number) * unit)
    try:
        return _at(parse_time(text))
    except InvalidValue as error:
        raise InvalidValue(f"as of {text[:80]!a}: that is no moment", hint=_HINT) from error


def _at(time_ns: int) -> AsOf:
    return AsOf(time_ns=time_ns // 1000 * 1000 + 999)


def fold_until(state: State, writer_id: str, events: Sequence[Event], until: AsOf, edits: Edits) -> bool:
    """Fold of a stretch of one writer's events what belongs to a moment; True if the moment ends within it."""
    writer = state.writers.get(writer_id)
    if writer is not None and events and not writer.is_new(events[0][0]):
        # One that is folded again from its start, see `projection.replay`.
        events = [event for event in events if writer.is_new(event[0])]
    if until.events is None:
        # Times of a writer never decrease.
        stop = bisect_right(events, until.time_ns or 0, key=lambda event: event[2])
        fold(state, writer_id, events[:stop], edits)
        return _has_new(state, writer_id, events[stop:])
    while events and state.events < until.events:
        # Each round takes as many as are missing; some of them may be known already.
        missing = until.events - state.events
        fold(state, writer_id, events[:missing], edits)
        events = events[missing:]
    return _has_new(state, writer_id, events)


def _has_new(state: State, writer_id: str, events: Sequence[Event]) -> bool:
    writer = state.writers.get(writer_id)
    return bool(events) and (writer is None or any(writer.is_new(event[0]) for event in events))
