"""The lifecycle table: which state may follow which, and by what. Pure; states are the wire's own.

What is done in a state is `install`'s business before the switch, and `succession`'s from there on.
"""

from __future__ import annotations

from enum import StrEnum

from edgefleet.protocol.messages import State


class Trigger(StrEnum):
    """What moves a device on."""

    ACCEPTED = "accepted"
    """A desired state with a new generation was accepted: it supersedes what is under way."""
    DONE = "done"
    """The state's work is done."""
    ALREADY_ON_DISK = "already_on_disk"
    """The wanted variant is verified on disk: it runs now, or a restart came before its activation."""
    NEXT_CANDIDATE = "next_candidate"
    """This one works here, or does not; there is another to be pulled and measured."""
    NOTHING_TO_COMPARE = "nothing_to_compare"
    """There is one candidate in one setting, or what others measured on the same hardware: nothing to benchmark."""
    PROVEN_BEFORE = "proven_before"
    """What was activated is the committed variant itself, also pulled again: it has no other to be held against."""
    RESTORED = "restored"
    """What a rollback leads to was pulled again: it had been found damaged."""
    DEADLINE = "deadline"
    """A probation came to its end with no gate failed: committed, with evidence insufficient."""
    DEGRADED = "degraded"
    """A gate of the probation failed, or the variant's files did."""
    STRUCK_OUT = "struck_out"
    """Its runtime crashed, hung or grew too large three times, or the device with it."""
    DAMAGED = "damaged"
    """What was committed does not match its digests, and nothing else runs: it is pulled again, once."""
    FAILED_WITH_PREVIOUS = "failed_with_previous"
    """The work failed, or its deadline came; a committed variant still runs, or was pulled again."""
    FAILED_WITHOUT_PREVIOUS = "failed_without_previous"
    """The work failed, or its deadline came, and there is nothing to fall back to."""


INSTALLING = (
    State.RESOLVING,
    State.SELECTING,
    State.DOWNLOADING,
    State.VERIFYING,
    State.SELF_TEST,
    State.BENCHMARKING,
    State.ACTIVATING,
)
"""The way to the switch: after a restart it is gone again from its beginning, with what is on disk."""

IN_PROGRESS = (*INSTALLING, State.PROBATION, State.ROLLING_BACK)

UNINTERRUPTIBLE = frozenset({State.ACTIVATING, State.ROLLING_BACK})
"""A newer generation waits until these are over."""

RISKY = frozenset({State.SELF_TEST, State.BENCHMARKING, State.ACTIVATING, State.PROBATION})
"""The new variant runs in these: a device that reboots in them again and again may do so because of it."""

DEADLINES_S: dict[State, float] = {
    State.VERIFYING: 900.0,
    State.SELF_TEST: 300.0,
    State.BENCHMARKING: 2400.0,
    State.ACTIVATING: 10.0,
    State.ROLLING_BACK: 10.0,
}
"""Seconds in a state. What waits for the network has the deployment's own limit, and a probation its settings'."""

_OF_A_CANDIDATE = [State.SELECTING, State.DOWNLOADING, State.VERIFYING, State.SELF_TEST]
_SUPERSEDED = [state for state in IN_PROGRESS if state not in UNINTERRUPTIBLE]
_HAS_COMMITTED = [State.COMMITTED, State.ROLLED_BACK, State.FAILED, State.ROLLING_BACK, *INSTALLING]
_AT_REST = [State.IDLE, State.COMMITTED, State.ROLLED_BACK, State.FAILED, State.NO_MODEL]

TRANSITIONS: dict[tuple[State, Trigger], State] = {
    **{(state, Trigger.ACCEPTED): State.RESOLVING for state in (*_AT_REST, *_SUPERSEDED)},
    (State.RESOLVING, Trigger.DONE): State.SELECTING,
    (State.SELECTING, Trigger.DONE): State.DOWNLOADING,
    (State.SELECTING, Trigger.ALREADY_ON_DISK): State.SELF_TEST,
    (State.DOWNLOADING, Trigger.DONE): State.VERIFYING,
    (State.VERIFYING, Trigger.DONE): State.SELF_TEST,
    **{(state, Trigger.NEXT_CANDIDATE): State.SELECTING for state in _OF_A_CANDIDATE},
    (State.SELF_TEST, Trigger.DONE): State.BENCHMARKING,
    (State.SELF_TEST, Trigger.NOTHING_TO_COMPARE): State.ACTIVATING,
    (State.BENCHMARKING, Trigger.DONE): State.ACTIVATING,
    (State.ACTIVATING, Trigger.DONE): State.PROBATION,
    (State.ACTIVATING, Trigger.PROVEN_BEFORE): State.COMMITTED,
    (State.ACTIVATING, Trigger.RESTORED): State.ROLLED_BACK,
    (State.PROBATION, Trigger.DONE): State.COMMITTED,
    (State.PROBATION, Trigger.DEADLINE): State.COMMITTED,
    (State.PROBATION, Trigger.DEGRADED): State.ROLLING_BACK,
    (State.PROBATION, Trigger.STRUCK_OUT): State.ROLLING_BACK,
    (State.ROLLING_BACK, Trigger.DONE): State.ROLLED_BACK,
    **{(state, Trigger.DAMAGED): State.RESOLVING for state in _HAS_COMMITTED},
    (State.ROLLING_BACK, Trigger.FAILED_WITHOUT_PREVIOUS): State.NO_MODEL,
    **{(state, Trigger.FAILED_WITH_PREVIOUS): State.FAILED for state in INSTALLING},
    **{(state, Trigger.FAILED_WITHOUT_PREVIOUS): State.NO_MODEL for state in INSTALLING},
}


class LifecycleError(AssertionError):
    """The agent's own code asked for a transition that the table does not have."""


def after(state: State, trigger: Trigger) -> State:
    """The state that follows; raises LifecycleError when the table has no such row."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise LifecycleError(f"no transition from {state} by {trigger}") from None
