"""The table of the schedule: what leads where, drawn once more in the module's own words."""

from __future__ import annotations

import random

import pytest

from ml_dash_syncd import states
from ml_dash_syncd.states import LEADS, Event, State, after

IDLE = (State.SETTLED, State.WAITING, State.HELD, State.REMOVED)
ENDINGS = (Event.MORE, Event.SENT, Event.REFUSED, Event.FAILED, Event.HELD, Event.REMOVED)


def test_the_table_is_the_one_that_is_drawn() -> None:
    drawn = states.__doc__
    assert drawn is not None
    rows = [line.split() for line in drawn.splitlines() if line.startswith("    ")]
    events = [Event[name.upper()] for name in rows[0]]
    table = {
        State[row[0]]: {event: State[leads] for event, leads in zip(events, row[1:], strict=True) if leads != "-"}
        for row in rows[1:]
    }
    assert table == LEADS
    assert set(events) == set(Event)
    assert set(LEADS) == set(State)


@pytest.mark.parametrize("state", State)
def test_a_change_is_never_lost(state: State) -> None:
    """What changes is sent: at once, or when the step that is under way has ended, or its pause is over."""
    changed = after(state, Event.CHANGE)
    assert changed in (State.READY, State.AGAIN, State.GONE)
    if changed is State.AGAIN:
        assert {after(changed, ending) for ending in (Event.SENT, Event.MORE, Event.REMOVED)} == {State.READY}
        # A pause ends with another change: its timer.
        assert {after(changed, ending) for ending in (Event.REFUSED, Event.FAILED, Event.HELD)} <= set(IDLE)


@pytest.mark.parametrize("state", State)
def test_only_what_is_ready_is_taken_and_only_what_was_taken_ends(state: State) -> None:
    assert (Event.TAKE in LEADS[state]) == (state is State.READY)
    for ending in ENDINGS:
        assert (ending in LEADS[state]) == (state in (State.BUSY, State.AGAIN, State.GONE))
    with pytest.raises(LookupError):
        after(State.SETTLED, Event.SENT)


def test_what_is_gone_stays_so_and_anything_can_go() -> None:
    assert set(LEADS[State.GONE].values()) == {State.GONE}
    assert {after(state, Event.DROP) for state in State} == {State.GONE}


def test_every_state_is_reached_from_the_first_and_leads_on() -> None:
    rng = random.Random(1)
    seen, state = set(), State.SETTLED
    for _ in range(5_000):
        seen.add(state)
        events = [event for event in LEADS[state] if event is not Event.DROP]
        state = after(state, rng.choice(events))
    assert seen == set(State) - {State.GONE}
