"""Whether a desired state or a command is acted on. Pure: the same values give the same verdict.

Once per generation, only its own device's, only before its date, never back to an older decision. Whether the
signatures hold is not judged here; nothing is begun before they were verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edgefleet.protocol.signed import Action, Command, Deployment, Desired, PackageVersion


class Verdict(StrEnum):
    """What to do with a desired state."""

    ACCEPT = "accept"
    """Act on it."""
    REPORT_AGAIN = "report_again"
    """It was accepted before, or is older than what was: only say again what came of that."""
    REFUSE = "refuse"
    """It is this device's, and must not be acted on; the server is told why."""
    FOREIGN = "foreign"
    """It is for another fleet, device or enrolment: nobody who waits for an answer."""
    IGNORE = "ignore"
    """It asks for nothing new."""


@dataclass(frozen=True, slots=True)
class Own:
    """Who this device is."""

    fleet: str
    device: str
    enrolment_id: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What the device has accepted, and what it runs."""

    generation: int = 0
    """Of the last accepted desired state of this enrolment; 0: none."""
    deployment: Deployment | None = None
    """The last accepted one of this fleet."""
    running: PackageVersion | None = None
    """What the committed variant belongs to."""


def judge(desired: Desired, own: Own, memory: Memory, now: float) -> tuple[Verdict, str]:
    """(verdict, reason); `now` is the wall clock in seconds."""
    if (foreign := _foreign(desired, own)) is not None:
        return Verdict.FOREIGN, foreign
    last = memory.generation
    if desired.generation == last:
        return Verdict.REPORT_AGAIN, f"generation {last} was accepted before"
    if desired.generation < last:
        return Verdict.REPORT_AGAIN, f"its generation {desired.generation} is below {last}"
    if (late := _late(desired, now)) is not None:
        return Verdict.REFUSE, late
    if desired.action is Action.NONE:
        return Verdict.IGNORE, "it asks to keep what runs"
    refusal = _not_meant(desired, own) or _older(desired.deployment, memory.deployment)
    refusal = refusal or _downgrade(desired, memory.running)
    return (Verdict.ACCEPT, "a new generation") if refusal is None else (Verdict.REFUSE, refusal)


def judge_command(command: Command, own: Own, ran: frozenset[str], now: float) -> tuple[Verdict, str]:
    """(verdict, reason); `ran` are the ids of the commands that were run before."""
    if (foreign := _foreign(command, own)) is not None:
        return Verdict.FOREIGN, foreign
    if command.command_id in ran:
        return Verdict.IGNORE, "it was run before"
    if now > command.expires:
        return Verdict.REFUSE, f"it expired {now - command.expires:.0f} s ago by this device's clock"
    return Verdict.ACCEPT, "a new command"


def _foreign(message: Desired | Command, own: Own) -> str | None:
    for name in ("fleet", "device", "enrolment_id"):
        if (value := getattr(message, name)) != (mine := getattr(own, name)):
            return f"it is for the {name} {value}, this is {mine}"
    return None


def _late(desired: Desired, now: float) -> str | None:
    if now > desired.valid_until:
        return f"it was valid until {desired.valid_until:.0f}, it is {now:.0f}"
    if now > desired.deployment.expires:
        return f"its deployment expired at {desired.deployment.expires:.0f}, it is {now:.0f}"
    return None


def _not_meant(desired: Desired, own: Own) -> str | None:
    deployment = desired.deployment
    if deployment.fleet != own.fleet:
        return f"its deployment is for the fleet {deployment.fleet}, this is {own.fleet}"
    if not deployment.selects(own.device):
        return f"its deployment is for {deployment.selector}, this is {own.device}"
    if desired.wanted is None:
        return "it asks for the fallback of a deployment that has none"
    return None


def _older(deployment: Deployment, last: Deployment | None) -> str | None:
    """An operator's decisions are taken in their order; one number belongs to one decision."""
    if last is None or last.fleet != deployment.fleet:
        return None
    if deployment.serial < last.serial:
        return f"its deployment's serial {deployment.serial} is below {last.serial}, the last accepted"
    if deployment.serial == last.serial and deployment.deployment_id != last.deployment_id:
        return f"its deployment {deployment.deployment_id} has the serial {last.serial} of {last.deployment_id}"
    return None


def _downgrade(desired: Desired, running: PackageVersion | None) -> str | None:
    """Releases count per package. An operator allows a lower one, or names it as the fallback."""
    wanted = desired.wanted
    if wanted is None or running is None or wanted.package != running.package:
        return None
    if wanted.release >= running.release or desired.deployment.downgrade or desired.action is Action.FALLBACK:
        return None
    return f"release {wanted.release} of {wanted.package} is below {running.release}, which runs, without --downgrade"
