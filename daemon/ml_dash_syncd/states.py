"""The states of a task, and the one table of its transitions.

            change   take   more    sent      refused   failed    held   removed   drop
    SETTLED READY    -      -       -         -         -         -      -         GONE
    WAITING READY    -      -       -         -         -         -      -         GONE
    HELD    READY    -      -       -         -         -         -      -         GONE
    REMOVED READY    -      -       -         -         -         -      -         GONE
    READY   READY    BUSY   -       -         -         -         -      -         GONE
    BUSY    AGAIN    -      READY   SETTLED   SETTLED   WAITING   HELD   REMOVED   GONE
    AGAIN   AGAIN    -      READY   READY     SETTLED   WAITING   HELD   READY     GONE
    GONE    GONE     -      GONE    GONE      GONE      GONE      GONE   GONE      GONE

A failure waits for its time, whatever changes meanwhile; without one, a change is all that a task can wait for.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """How a task stands."""

    SETTLED = "nothing to send, or nothing that can be sent until something changes"
    WAITING = "failed; its own pause is to pass"
    HELD = "its server does not answer; one task tries that for all"
    REMOVED = "its journal was removed"
    READY = "in a queue"
    BUSY = "with a thread"
    AGAIN = "with a thread, and something has changed since"
    GONE = "not registered any more"


class Event(Enum):
    """What happens to a task: the last five are how a step ends."""

    CHANGE = "there may be something to send, or its time has come"
    TAKE = "a thread takes it"
    DROP = "its registration is gone"
    MORE = "its turn was over before all was sent"
    SENT = "all is sent"
    REFUSED = "its login, or its journal, does not allow it"
    FAILED = "it failed by itself"
    HELD = "its server does not answer"
    REMOVED = "its journal is not there"


_BUSY: Final = {
    Event.CHANGE: State.AGAIN,
    Event.DROP: State.GONE,
    Event.MORE: State.READY,
    Event.SENT: State.SETTLED,
    Event.REFUSED: State.SETTLED,
    Event.FAILED: State.WAITING,
    Event.HELD: State.HELD,
    Event.REMOVED: State.REMOVED,
}
_IDLE: Final = {Event.CHANGE: State.READY, Event.DROP: State.GONE}

LEADS: Final[dict[State, dict[Event, State]]] = {
    State.SETTLED: _IDLE,
    State.WAITING: _IDLE,
    State.HELD: _IDLE,
    State.REMOVED: _IDLE,
    State.READY: {Event.CHANGE: State.READY, Event.TAKE: State.BUSY, Event.DROP: State.GONE},
    State.BUSY: _BUSY,
    State.AGAIN: _BUSY | {Event.SENT: State.READY, Event.REMOVED: State.READY},
    State.GONE: {event: State.GONE for event in Event if event is not Event.TAKE},
}


def after(state: State, event: Event) -> State:
    """Where an event leads. Raises LookupError for one that cannot happen there."""
    return LEADS[state][event]
