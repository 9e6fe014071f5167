"""What was committed and is damaged: which variant is pulled again, where that ends, and what is said when it fails.

It pulls nothing and journals nothing.
"""

from __future__ import annotations

from edgefleet.protocol.messages import State
from edgefleet.protocol.signed import Action, Desired
from edgefleet_agent.journal import Entry
from edgefleet_agent.lifecycle import Trigger

RESTORED_BY: dict[State, Trigger] = {
    State.COMMITTED: Trigger.PROVEN_BEFORE,
    State.ROLLED_BACK: Trigger.RESTORED,
    State.FAILED: Trigger.FAILED_WITH_PREVIOUS,
}
"""By what a device is again in the state that the damage was found in: what became of the deployment stands."""


def desired_again(entry: Entry) -> Desired | None:
    """A desired state for what was committed before: its digests were verified when it was accepted.

    None: the journal does not say of which package version that is a variant.
    """
    if entry.desired is None or entry.previous is None or entry.previous.running is None:
        return None
    deployment = entry.desired.deployment.model_copy(update={"target": entry.previous.running})
    return entry.desired.model_copy(update={"deployment": deployment, "action": Action.INSTALL})


def what_is_damaged(entry: Entry) -> str:
    """In words, for a device that has it pulled again."""
    return "the variant before it" if entry.restored_to is State.ROLLED_BACK else "the committed variant"


def why_no_model(entry: Entry, what_happened: str) -> str:
    """Why there is no model; `what_happened` is said of what is damaged."""
    why = f"{what_is_damaged(entry)} is damaged{what_happened}"
    return why if entry.reason is None else f"{entry.reason}; {why}"
