"""The table of the schedule: what leads where, drawn once more in the module's own words."""

from __future__ import annotations

import random

import pytest

from ml_dash_syncd import task_states
from ml_dash_syncd.task_states import TRANSITIONS, TaskEvent, TaskState, next_state

IDLE = (TaskState.SETTLED, TaskState.WAITING, TaskState.HELD, TaskState.REMOVED)
ENDINGS = (TaskEvent.MORE, TaskEvent.SENT, TaskEvent.REFUSED, TaskEvent.FAILED, TaskEvent.HELD, TaskEvent.REMOVED)


def test_the_table_is_the_one_that_is_drawn() -> None:
    drawn = task_states.__doc__
    assert drawn is not None
    rows = [line.split() for line in drawn.splitlines() if line.startswith("    ")]
    events = [TaskEvent[name.upper()] for name in rows[0]]
    table = {
        TaskState[state]: {event: TaskState[to] for event, to in zip(events, targets, strict=True) if to != "-"}
        for state, *targets in rows[1:]
    }
    assert table == TRANSITIONS
    assert set(events) == set(TaskEvent)
    assert set(TRANSITIONS) == set(TaskState)


@pytest.mark.parametrize("state", TaskState)
def test_a_change_is_never_lost(state: TaskState) -> None:
    """What changes is sent: at once, or when the step that is under way has ended, or its pause is over."""
    changed = next_state(state, TaskEvent.CHANGE)
    assert changed in (TaskState.READY, TaskState.AGAIN, TaskState.GONE)
    if changed is TaskState.AGAIN:
        good = (TaskEvent.SENT, TaskEvent.MORE, TaskEvent.REMOVED)
        assert {next_state(changed, ending) for ending in good} == {TaskState.READY}
        # A pause ends with another change: its timer.
        bad = (TaskEvent.REFUSED, TaskEvent.FAILED, TaskEvent.HELD)
        assert {next_state(changed, ending) for ending in bad} <= set(IDLE)


@pytest.mark.parametrize("state", TaskState)
def test_only_what_is_ready_is_taken_and_only_what_was_taken_ends(state: TaskState) -> None:
    assert (TaskEvent.TAKE in TRANSITIONS[state]) == (state is TaskState.READY)
    for ending in ENDINGS:
        assert (ending in TRANSITIONS[state]) == (state in (TaskState.BUSY, TaskState.AGAIN, TaskState.GONE))
    with pytest.raises(LookupError):
        next_state(TaskState.SETTLED, TaskEvent.SENT)


def test_what_is_gone_stays_so_and_anything_can_go() -> None:
    assert set(TRANSITIONS[TaskState.GONE].values()) == {TaskState.GONE}
    assert {next_state(state, TaskEvent.DROP) for state in TaskState} == {TaskState.GONE}


def test_every_state_is_reached_from_the_first_and_leads_on() -> None:
    rng = random.Random(1)
    seen, state = set(), TaskState.SETTLED
    for _ in range(5_000):
        seen.add(state)
        events = [event for event in TRANSITIONS[state] if event is not TaskEvent.DROP]
        state = next_state(state, rng.choice(events))
    assert seen == set(TaskState) - {TaskState.GONE}
