"""The lifecycle table: complete, closed and without dead ends."""

from __future__ import annotations

import pytest

from edgefleet.protocol.messages import TERMINAL_STATES, State
from edgefleet_agent.lifecycle import IN_PROGRESS, TRANSITIONS, LifecycleError, Trigger, after


def reachable(start: State) -> set[State]:
    found, todo = {start}, [start]
    while todo:
        state = todo.pop()
        new = {to for (came_from, _), to in TRANSITIONS.items() if came_from is state} - found
        found |= new
        todo += new
    return found


def test_every_state_is_idle_in_progress_or_terminal() -> None:
    assert {State.IDLE, *IN_PROGRESS, *TERMINAL_STATES} == set(State)
    assert not TERMINAL_STATES.intersection(IN_PROGRESS)


def test_every_state_can_be_reached_from_idle() -> None:
    assert reachable(State.IDLE) == set(State)


@pytest.mark.parametrize("state", State)
def test_every_state_can_still_commit(state: State) -> None:
    assert State.COMMITTED in reachable(state)


@pytest.mark.parametrize("state", IN_PROGRESS)
def test_every_state_in_progress_can_fail_and_go_on(state: State) -> None:
    assert after(state, Trigger.FAILED_WITH_PREVIOUS) is State.FAILED
    assert after(state, Trigger.FAILED_WITHOUT_PREVIOUS) is State.NO_MODEL
    assert after(state, Trigger.DONE) in {*IN_PROGRESS, State.COMMITTED}


@pytest.mark.parametrize("state", [State.IDLE, *sorted(TERMINAL_STATES)])
def test_at_rest_nothing_happens_but_a_new_generation(state: State) -> None:
    assert after(state, Trigger.ACCEPTED) is State.RESOLVING
    for trigger in set(Trigger) - {Trigger.ACCEPTED}:
        with pytest.raises(LifecycleError, match=rf"{state} by {trigger}"):
            after(state, trigger)


@pytest.mark.parametrize("state", IN_PROGRESS)
def test_a_newer_generation_supersedes_everywhere_but_in_activating(state: State) -> None:
    if state is State.ACTIVATING:
        with pytest.raises(LifecycleError):
            after(state, Trigger.ACCEPTED)
    else:
        assert after(state, Trigger.ACCEPTED) is State.RESOLVING


def test_the_main_way_in_order() -> None:
    state, way = after(State.IDLE, Trigger.ACCEPTED), []
    while state not in TERMINAL_STATES:
        way.append(state)
        state = after(state, Trigger.DONE)
    assert tuple(way) == IN_PROGRESS
    assert state is State.COMMITTED


def test_nothing_is_activated_that_was_not_self_tested() -> None:
    assert {came_from for (came_from, _), to in TRANSITIONS.items() if to is State.ACTIVATING} == {State.SELF_TEST}
    commits = {(came_from, trigger) for (came_from, trigger), to in TRANSITIONS.items() if to is State.COMMITTED}
    assert commits == {(State.ACTIVATING, Trigger.DONE)}


def test_what_is_on_disk_already_is_tested_again_and_not_pulled_again() -> None:
    """Also the variant that runs now: a deployment of it proves it anew."""
    assert after(State.SELECTING, Trigger.ALREADY_ON_DISK) is State.SELF_TEST
    assert [state for state, trigger in TRANSITIONS if trigger is Trigger.ALREADY_ON_DISK] == [State.SELECTING]
