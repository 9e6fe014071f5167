"""What a device comes to when something happens in one of its states: the table that is tested and printed.

It is written down apart from the agent's own rules, so that one proves the other.
"""

from __future__ import annotations

from enum import StrEnum

from edgefleet.protocol.messages import State
from edgefleet_agent.lifecycle import IN_PROGRESS, INSTALLING


class Happening(StrEnum):
    """What may happen in any state."""

    SUPERSEDE = "a newer generation is accepted"
    DEADLINE = "its deadline comes"
    KILL = "the agent is killed, and starts again"
    DISK_FULL = "the disk is full"
    NO_PREVIOUS = "the variant fails, and none was committed before"
    CORRUPT_PREVIOUS = "the variant fails, and the one committed before is damaged"


_AT_REST = (State.IDLE, State.COMMITTED, State.ROLLED_BACK, State.FAILED, State.NO_MODEL)
_BEFORE_THE_SWITCH = tuple(state for state in INSTALLING if state is not State.ACTIVATING)

COMES_TO: dict[tuple[State, Happening], State] = {
    **{(state, Happening.SUPERSEDE): State.RESOLVING for state in State},
    **{(state, Happening.DEADLINE): state for state in _AT_REST},
    **{(state, Happening.DEADLINE): State.FAILED for state in _BEFORE_THE_SWITCH},
    (State.ACTIVATING, Happening.DEADLINE): State.PROBATION,
    (State.PROBATION, Happening.DEADLINE): State.COMMITTED,
    (State.ROLLING_BACK, Happening.DEADLINE): State.ROLLED_BACK,
    **{(state, Happening.KILL): state for state in (*_AT_REST, State.PROBATION)},
    **{(state, Happening.KILL): State.RESOLVING for state in INSTALLING},
    (State.ROLLING_BACK, Happening.KILL): State.ROLLED_BACK,
    **{(state, Happening.DISK_FULL): state for state in _AT_REST},
    **{(state, Happening.DISK_FULL): State.FAILED for state in INSTALLING},
    (State.PROBATION, Happening.DISK_FULL): State.COMMITTED,
    (State.ROLLING_BACK, Happening.DISK_FULL): State.ROLLED_BACK,
    **{(state, Happening.NO_PREVIOUS): state for state in _AT_REST},
    **{(state, Happening.NO_PREVIOUS): State.NO_MODEL for state in (*INSTALLING, State.PROBATION, State.ROLLING_BACK)},
    **{(state, Happening.CORRUPT_PREVIOUS): state for state in (State.IDLE, State.NO_MODEL)},
    # Pulled again, once.
    **{(state, Happening.CORRUPT_PREVIOUS): State.RESOLVING for state in (*_AT_REST[1:4], *IN_PROGRESS)},
}
