"""The lifecycle table: which state may follow which, and by what. Pure; states are the wire's own.

What is done in a state is `install`'s business.
"""

from __future__ import annotations

from enum import StrEnum

from edgefleet.protocol.messages import State


class Trigger(StrEnum):
    """What moves a device on."""

    ACCEPTED = "accepted"
    """A desired state with a new generation was accepted."""
    DONE = "done"
    """The state's work is done."""
    ALREADY_ON_DISK = "already_on_disk"
    """The wanted variant is verified on disk: it runs now, or a restart came before its activation."""
    FAILED_WITH_PREVIOUS = "failed_with_previous"
    """The work failed; a committed variant still runs."""
    FAILED_WITHOUT_PREVIOUS = "failed_without_previous"
    """The work failed, and there is nothing to fall back to."""


IN_PROGRESS = (
    State.RESOLVING,
    State.SELECTING,
    State.DOWNLOADING,
    State.VERIFYING,
    State.SELF_TEST,
    State.ACTIVATING,
)

TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.IDLE, Trigger.ACCEPTED): State.RESOLVING,
    (State.COMMITTED, Trigger.ACCEPTED): State.RESOLVING,
    (State.FAILED, Trigger.ACCEPTED): State.RESOLVING,
    (State.NO_MODEL, Trigger.ACCEPTED): State.RESOLVING,
    # A newer generation supersedes at once everywhere but in ACTIVATING.
    (State.RESOLVING, Trigger.ACCEPTED): State.RESOLVING,
    (State.SELECTING, Trigger.ACCEPTED): State.RESOLVING,
    (State.DOWNLOADING, Trigger.ACCEPTED): State.RESOLVING,
    (State.VERIFYING, Trigger.ACCEPTED): State.RESOLVING,
    (State.SELF_TEST, Trigger.ACCEPTED): State.RESOLVING,
    (State.RESOLVING, Trigger.DONE): State.SELECTING,
    (State.SELECTING, Trigger.DONE): State.DOWNLOADING,
    (State.SELECTING, Trigger.ALREADY_ON_DISK): State.SELF_TEST,
    (State.DOWNLOADING, Trigger.DONE): State.VERIFYING,
    (State.VERIFYING, Trigger.DONE): State.SELF_TEST,
    (State.SELF_TEST, Trigger.DONE): State.ACTIVATING,
    (State.ACTIVATING, Trigger.DONE): State.COMMITTED,
    **{(state, Trigger.FAILED_WITH_PREVIOUS): State.FAILED for state in IN_PROGRESS},
    **{(state, Trigger.FAILED_WITHOUT_PREVIOUS): State.NO_MODEL for state in IN_PROGRESS},
}


class LifecycleError(AssertionError):
    """The agent's own code asked for a transition that the table does not have."""


def after(state: State, trigger: Trigger) -> State:
    """The state that follows; raises LifecycleError when the table has no such row."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise LifecycleError(f"no transition from {state} by {trigger}") from None
