"""The lifecycle table: complete, closed and without dead ends."""

from __future__ import annotations

import pytest

from edgefleet.protocol.messages import TERMINAL_STATES, State
from edgefleet_agent.lifecycle import (
    DEADLINES_S,
    IN_PROGRESS,
    INSTALLING,
    RISKY,
    TRANSITIONS,
    UNINTERRUPTIBLE,
    LifecycleError,
    Trigger,
    after,
)


def reachable(start: State) -> set[State]:
    found, todo = {start}, [start]
    while todo:
        state = todo.pop()
        new = {to for (came_from, _), to in TRANSITIONS.items() if came_from is state} - found
        found |= new
        todo += new
    return found


def leads_to(state: State) -> set[tuple[State, Trigger]]:
    return {(came_from, trigger) for (came_from, trigger), to in TRANSITIONS.items() if to is state}


def test_every_state_is_idle_in_progress_or_terminal() -> None:
    assert {State.IDLE, *IN_PROGRESS, *TERMINAL_STATES} == set(State)
    assert not TERMINAL_STATES.intersection(IN_PROGRESS)


def test_every_state_can_be_reached_from_idle_and_every_trigger_is_used() -> None:
    assert reachable(State.IDLE) == set(State)
    assert {trigger for _, trigger in TRANSITIONS} == set(Trigger)


@pytest.mark.parametrize("state", State)
def test_every_state_can_still_commit_and_every_state_in_progress_ends(state: State) -> None:
    assert State.COMMITTED in reachable(state)
    assert reachable(state) >= TERMINAL_STATES


@pytest.mark.parametrize("state", INSTALLING)
def test_before_the_switch_everything_can_fail_and_go_on(state: State) -> None:
    assert after(state, Trigger.FAILED_WITH_PREVIOUS) is State.FAILED
    assert after(state, Trigger.FAILED_WITHOUT_PREVIOUS) is State.NO_MODEL
    assert after(state, Trigger.DONE) in IN_PROGRESS


@pytest.mark.parametrize("state", [State.IDLE, *sorted(TERMINAL_STATES)])
def test_at_rest_nothing_happens_but_a_new_generation_and_damage_to_what_runs(state: State) -> None:
    runs = state in (State.COMMITTED, State.ROLLED_BACK, State.FAILED)
    happens = {Trigger.ACCEPTED, Trigger.DAMAGED} if runs else {Trigger.ACCEPTED}
    assert {after(state, trigger) for trigger in happens} == {State.RESOLVING}
    for trigger in set(Trigger) - happens:
        with pytest.raises(LifecycleError, match=rf"{state} by {trigger}"):
            after(state, trigger)


@pytest.mark.parametrize("state", IN_PROGRESS)
def test_a_newer_generation_supersedes_everywhere_but_in_a_switch(state: State) -> None:
    if state in UNINTERRUPTIBLE:
        with pytest.raises(LifecycleError):
            after(state, Trigger.ACCEPTED)
    else:
        assert after(state, Trigger.ACCEPTED) is State.RESOLVING


@pytest.mark.parametrize("state", sorted(UNINTERRUPTIBLE))
def test_what_cannot_be_interrupted_takes_ten_seconds_at_most(state: State) -> None:
    assert DEADLINES_S[state] <= 10


def test_the_main_way_in_order() -> None:
    state, way = after(State.IDLE, Trigger.ACCEPTED), []
    while state not in TERMINAL_STATES:
        way.append(state)
        state = after(state, Trigger.DONE)
    assert way == [*INSTALLING, State.PROBATION]
    assert state is State.COMMITTED


def test_nothing_is_activated_that_was_not_self_tested() -> None:
    assert {came_from for came_from, _ in leads_to(State.ACTIVATING)} == {State.SELF_TEST, State.BENCHMARKING}
    assert {came_from for came_from, _ in leads_to(State.BENCHMARKING)} == {State.SELF_TEST}


def test_nothing_new_is_committed_that_was_not_on_probation() -> None:
    assert leads_to(State.COMMITTED) == {
        (State.PROBATION, Trigger.DONE),
        (State.PROBATION, Trigger.DEADLINE),
        (State.ACTIVATING, Trigger.PROVEN_BEFORE),
    }


def test_a_device_goes_back_from_a_probation_only_and_ends_there_or_without_a_model() -> None:
    assert {came_from for came_from, _ in leads_to(State.ROLLING_BACK)} == {State.PROBATION}
    # What is damaged is pulled again; that ends in ROLLED_BACK too, and never in a probation of its own.
    back = {to for (came_from, _), to in TRANSITIONS.items() if came_from is State.ROLLING_BACK}
    assert back == {State.ROLLED_BACK, State.NO_MODEL, State.RESOLVING}
    assert after(State.ACTIVATING, Trigger.RESTORED) is State.ROLLED_BACK


def test_the_states_that_a_new_variant_may_crash_the_device_in_are_those_it_runs_in() -> None:
    assert set(INSTALLING[INSTALLING.index(State.SELF_TEST) :]) | {State.PROBATION} == RISKY


def test_what_is_on_disk_already_is_tested_again_and_not_pulled_again() -> None:
    """Also the variant that runs now: a deployment of it proves it anew."""
    assert after(State.SELECTING, Trigger.ALREADY_ON_DISK) is State.SELF_TEST
    assert [state for state, trigger in TRANSITIONS if trigger is Trigger.ALREADY_ON_DISK] == [State.SELECTING]
