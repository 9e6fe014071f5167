"""Whether a desired state is acted on. Pure: the same values give the same verdict.

Once per generation, only its own device's, only before its date: a rolled-back device never reinstalls by itself.
"""

from __future__ import annotations

from enum import StrEnum

from edgefleet.protocol.messages import Action, Desired


class Verdict(StrEnum):
    """What to do with a desired state."""

    ACCEPT = "accept"
    """Act on it."""
    REPORT_AGAIN = "report_again"
    """It was accepted before: only say again what came of it."""
    REFUSE = "refuse"
    """It is not for this device, or too old."""
    IGNORE = "ignore"
    """It asks for nothing new."""


def judge(
    desired: Desired, fleet: str, device: str, enrolment_id: str, accepted: Desired | None, now: float
) -> tuple[Verdict, str]:
    """(verdict, reason); `accepted` is the last one accepted, `now` the wall clock in seconds."""
    own = {"fleet": fleet, "device": device, "enrolment_id": enrolment_id}
    for name, value in own.items():
        if getattr(desired, name) != value:
            return Verdict.REFUSE, f"it is for the {name} {getattr(desired, name)}, this is {value}"
    last = accepted.generation if accepted else 0
    if desired.generation == last:
        return Verdict.REPORT_AGAIN, f"generation {last} was accepted before"
    if desired.generation < last:
        return Verdict.REFUSE, f"its generation {desired.generation} is below {last}"
    if now > desired.valid_until:
        return Verdict.REFUSE, f"it was valid until {desired.valid_until:.0f}, it is {now:.0f}"
    if desired.action is Action.NONE:
        return Verdict.IGNORE, "it asks to keep what runs"
    return Verdict.ACCEPT, "a new generation"
