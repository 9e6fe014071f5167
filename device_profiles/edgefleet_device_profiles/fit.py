"""Which profiles fit a machine: a pure ranking of the catalogue against detected facts, with a reason for each.

It reads nothing: `detect` finds the facts, `catalogue` the profiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from edgefleet_device_profiles.detect import MachineFacts, accepted_board, mismatch
from edgefleet_device_profiles.profile import Profile


class Evidence(IntEnum):
    """What speaks for a profile, the strongest first."""

    BOARD = 0
    """The machine names the board."""
    CLASS = 1
    """The processor or the system is of the profile's class."""
    GENERIC = 2
    """Only the architecture and the instruction sets agree."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What is to be said of one profile; `evidence` is None where it does not fit."""

    profile: str
    evidence: Evidence | None
    reason: str


def fits(profiles: Iterable[Profile], facts: MachineFacts) -> list[Fit]:
    """Profiles that fit, the nearest first, then those that do not, by name.

    A named board beats a class, a class beats a generic profile. Among equals: more accelerators found, more
    instruction sets in common, fewer claimed (where the machine tells none), then the name.
    """
    near: list[tuple[tuple[int | str, ...], Fit]] = []
    far: list[Fit] = []
    for profile in profiles:
        refusal = mismatch(profile, facts)
        if refusal is not None:
            far.append(Fit(profile.id, None, refusal))
            continue
        evidence = _evidence(profile, facts)
        shared = len(set(profile.cpu.isa) & set(facts.isa))
        key = (evidence, -len(profile.board.accelerators), -shared, len(profile.cpu.isa), profile.id)
        near.append((key, Fit(profile.id, evidence, _reason(profile, facts, evidence))))
    return [fit for _, fit in sorted(near, key=lambda pair: pair[0])] + sorted(far, key=lambda fit: fit.profile)


def _evidence(profile: Profile, facts: MachineFacts) -> Evidence:
    if accepted_board(profile.board, facts):
        return Evidence.BOARD
    return Evidence.CLASS if profile.board.cpu_models or profile.board.systems else Evidence.GENERIC


def _reason(profile: Profile, facts: MachineFacts, evidence: Evidence) -> str:
    """Evidence, what was found of the profile's own conditions, and how the memory differs."""
    parts = {
        Evidence.BOARD: [f"the board says {facts.board}"],
        Evidence.CLASS: [f"the processor is {facts.cpu_model}, the system {facts.os}"],
        Evidence.GENERIC: [f"any {facts.architecture} machine"],
    }[evidence]
    shared = [feature for feature in profile.cpu.isa if feature in facts.isa]
    if shared:
        parts.append(f"the processor has {', '.join(shared)}")
    if profile.board.accelerators:
        parts.append(f"{', '.join(profile.board.accelerators)} is there")
    # A tenth is what kernel and firmware keep for themselves.
    if facts.memory_mib < 0.9 * profile.memory.total_mib:
        parts.append(f"but it has {facts.memory_mib} MiB of memory, the profile's has {profile.memory.total_mib:g}")
    return "; ".join(parts)
