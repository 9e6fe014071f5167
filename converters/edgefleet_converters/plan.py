"""Plan: which variants to make for the profiles that were asked for, and why.

A pure function; a recipe that several profiles want is planned once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgefleet.errors import UnsupportedError
from edgefleet_converters.recipes import RECIPES
from edgefleet_converters.step import PLAIN, Settings
from edgefleet_device_profiles.profile import Precision, Profile, Runtime


@dataclass(frozen=True, slots=True)
class PlannedVariant:
    """One variant to make; `reasons` says for each profile, in order, why it wants it."""

    runtime: Runtime
    precision: Precision
    architectures: tuple[str, ...]
    profiles: tuple[str, ...]
    reasons: tuple[str, ...]
    settings: Settings = PLAIN

    @property
    def name(self) -> str:
        """The variant's name in the package."""
        return f"{self.runtime}-{self.precision}"


def make_plan(profiles: Sequence[Profile]) -> tuple[PlannedVariant, ...]:
    """Distinct variants in the order in which the profiles first ask for them; raises UnsupportedError."""
    wanted: dict[tuple[Runtime, Precision], list[tuple[Profile, str]]] = {}
    for profile in profiles:
        for place, allowed in enumerate(profile.runtimes, start=1):
            for precision in allowed.precisions:
                reason = f"{profile.id}: choice {place}, {allowed.reason}"
                wanted.setdefault((allowed.name, precision), []).append((profile, reason))
    unknown = [f"{runtime} {precision}" for runtime, precision in wanted if (runtime, precision) not in RECIPES]
    if unknown:
        raise UnsupportedError(
            f"planning for {', '.join(profile.id for profile in profiles)}",
            f"no recipe makes {', '.join(unknown)}",
            "choose profiles without it",
        )
    return tuple(_planned(*key, asked) for key, asked in wanted.items())


def _planned(runtime: Runtime, precision: Precision, asked: list[tuple[Profile, str]]) -> PlannedVariant:
    return PlannedVariant(
        runtime,
        precision,
        architectures=tuple(sorted({profile.cpu.architecture for profile, _ in asked})),
        profiles=tuple(dict.fromkeys(profile.id for profile, _ in asked)),
        reasons=tuple(reason for _, reason in asked),
    )
