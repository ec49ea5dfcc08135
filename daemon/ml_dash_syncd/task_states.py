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

After a failure the task waits for its timer, whatever changed meanwhile. Without a timer, only a change can start it
again; so a change during a step that ends well must lead to READY, or it would be lost.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class TaskState(Enum):
    """State of a task; each value says when the task is in it."""

    SETTLED = "nothing to send, or nothing that can be sent until something changes"
    WAITING = "failed by itself; waits for its own backoff to end"
    HELD = "its server does not answer; one task probes the server for all of them"
    REMOVED = "its journal was removed"
    READY = "in a queue"
    BUSY = "a worker thread has it"
    AGAIN = "a worker thread has it, and something has changed since the thread took it"
    GONE = "its registration is gone"


class TaskEvent(Enum):
    """What can happen to a task. MORE and those after it are the ways in which a step ends."""

    CHANGE = "there may be something to send, or its timer has run out"
    TAKE = "a worker thread takes it"
    DROP = "its registration is gone"
    MORE = "its time slice was over before everything was sent"
    SENT = "everything that can be sent now has been sent"
    REFUSED = "the server refused its login, or its journal cannot be read as it is"
    FAILED = "the step failed for a reason that concerns this task only"
    HELD = "its server does not answer"
    REMOVED = "its journal does not exist any more"


_BUSY: Final = {
    TaskEvent.CHANGE: TaskState.AGAIN,
    TaskEvent.DROP: TaskState.GONE,
    TaskEvent.MORE: TaskState.READY,
    TaskEvent.SENT: TaskState.SETTLED,
    TaskEvent.REFUSED: TaskState.SETTLED,
    TaskEvent.FAILED: TaskState.WAITING,
    TaskEvent.HELD: TaskState.HELD,
    TaskEvent.REMOVED: TaskState.REMOVED,
}
_IDLE: Final = {TaskEvent.CHANGE: TaskState.READY, TaskEvent.DROP: TaskState.GONE}

TRANSITIONS: Final[dict[TaskState, dict[TaskEvent, TaskState]]] = {
    TaskState.SETTLED: _IDLE,
    TaskState.WAITING: _IDLE,
    TaskState.HELD: _IDLE,
    TaskState.REMOVED: _IDLE,
    TaskState.READY: _IDLE | {TaskEvent.TAKE: TaskState.BUSY},
    TaskState.BUSY: _BUSY,
    TaskState.AGAIN: _BUSY | {TaskEvent.SENT: TaskState.READY, TaskEvent.REMOVED: TaskState.READY},
    TaskState.GONE: {event: TaskState.GONE for event in TaskEvent if event is not TaskEvent.TAKE},
}


def next_state(state: TaskState, event: TaskEvent) -> TaskState:
    """Return the state that `event` leads to. Raises LookupError for an event that cannot happen in `state`."""
    return TRANSITIONS[state][event]
