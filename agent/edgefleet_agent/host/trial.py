"""The trial of a new environment: what is remembered of it, and when it is kept or gone back from. Pure.

Who switches, watches and asks the service manager is `upgrade`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

TRIAL_S = 300.0
"""Time of running in which the new environment must have been healthy and connected."""
HOLD_S = 20.0
"""So long without a break: an agent that connects and dies is not healthy."""
MAX_BOOTS = 3
"""A device that reboots more often than this in a trial has an environment that makes it."""


class Trial(BaseModel):
    """A trial under way; it survives a power cut."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    before: Literal["A", "B"]
    """Environment to go back to."""
    tried: Literal["A", "B"]
    state_folder: str
    """Where the agent says how it is."""
    version_before: str
    version: str
    boot_id: str
    boots: int = 1
    """Boots that this trial has seen."""
    elapsed_s: float = 0.0
    """Time of running spent on it, over all boots."""


class Outcome(BaseModel):
    """How the last trial ended."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kept: bool
    environment: Literal["A", "B"]
    """Current from then on."""
    version: str
    """That was tried."""
    reason: str


class Step(StrEnum):
    """What is to be done with a trial."""

    WAIT = "wait"
    """Look again in a moment."""
    KEEP = "keep"
    """The new environment has proved itself."""
    GO_BACK = "go_back"
    """The environment before becomes the current one again."""
    ENDED = "ended"
    """It is the current one already: the switch, or its end, was cut off by a power cut."""


@dataclass(frozen=True, slots=True)
class Health:
    """What is seen of the agent at one moment."""

    healthy: bool
    """It runs from the tried environment, is connected, and infers with what is committed."""
    reason: str
    """Why not."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A step and why."""

    step: Step
    reason: str


def judge(trial: Trial, current: str | None, health: Health, healthy_for_s: float) -> Verdict:
    """The next step; `current` is the environment that the link names, `healthy_for_s` how long it has been so."""
    if current == trial.before:
        return Verdict(Step.ENDED, f"environment {trial.before} is the current one")
    if trial.boots > MAX_BOOTS:
        return Verdict(Step.GO_BACK, f"{trial.boots} boots within the trial")
    if health.healthy and healthy_for_s >= HOLD_S:
        return Verdict(Step.KEEP, "healthy and connected")
    if trial.elapsed_s >= TRIAL_S:
        return Verdict(Step.GO_BACK, f"not healthy and connected within {TRIAL_S:.0f} s: {health.reason or 'unsteady'}")
    return Verdict(Step.WAIT, health.reason)


def at_boot(trial: Trial, boot_id: str) -> Trial:
    """The trial as it goes on: another boot counts."""
    return (
        trial if trial.boot_id == boot_id else trial.model_copy(update={"boot_id": boot_id, "boots": trial.boots + 1})
    )
