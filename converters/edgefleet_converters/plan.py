"""Plan: which variants to make for the profiles that were asked for, why, and what cannot be made.

A pure function; a recipe that several profiles want is planned once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from edgefleet.errors import UnsupportedError
from edgefleet_converters.artefact import Form
from edgefleet_converters.recipes import MICRO_KERNELS, ORT_ACTIVATIONS, RECIPES, Recipe, recipe_of
from edgefleet_converters.step import PLAIN, Micro, Settings
from edgefleet_device_profiles.profile import AllowedRuntime, Precision, Profile, Runtime


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
    def recipe(self) -> Recipe:
        """The steps that make it."""
        return recipe_of(self.runtime, self.precision, micro=self.settings.micro is not None)

    @property
    def name(self) -> str:
        """The variant's name in the package."""
        micro = self.settings.micro
        device = f"-micro-{micro.kernels}-{micro.arena_bytes // 1024}k" if micro else ""
        return f"{self.runtime}-{self.precision}" + ("-s8" if self.settings.activations == "int8" else "") + device


@dataclass(frozen=True, slots=True)
class RefusedPair:
    """A precision of a runtime that a profile wants and that is not made."""

    profile: str
    runtime: Runtime
    precision: Precision
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Variants in the order in which the profiles first ask for them, and what was refused up front."""

    variants: tuple[PlannedVariant, ...]
    refused: tuple[RefusedPair, ...]


Unfit = Callable[[Profile, AllowedRuntime, Precision], str | None]
"""Why a model cannot run on a device in a precision, whatever its file looks like; None where it may."""


def fits_everywhere(_profile: Profile, _allowed: AllowedRuntime, _precision: Precision) -> str | None:
    """No limits."""
    return None


def make_plan(profiles: Sequence[Profile], forms: Collection[Form], unfit: Unfit = fits_everywhere) -> Plan:
    """Distinct variants for a source with these forms; raises UnsupportedError for a profile that gets none."""
    wanted: dict[tuple[Runtime, Precision, Settings], PlannedVariant] = {}
    refused: list[RefusedPair] = []
    for profile in profiles:
        before = len(refused)
        served = False
        for place, allowed in enumerate(profile.runtimes, start=1):
            for precision in allowed.choices:
                reason = _refusal(profile, allowed, precision, forms, unfit)
                if reason is not None:
                    refused.append(RefusedPair(profile.id, allowed.name, precision, reason))
                    continue
                served = True
                _want(wanted, profile, allowed, precision, place)
        if not served:
            found = "; ".join(f"{pair.runtime} {pair.precision}: {pair.reason}" for pair in refused[before:])
            raise UnsupportedError(f"planning for {profile.id}", found, "choose another profile, or another model")
    return Plan(tuple(wanted.values()), tuple(refused))


def _refusal(
    profile: Profile, allowed: AllowedRuntime, precision: Precision, forms: Collection[Form], unfit: Unfit
) -> str | None:
    """Why no variant is made for this pair, or None."""
    recipe = RECIPES.get((allowed.name, precision))
    if recipe is None:
        return "no recipe makes it"
    if not set(recipe.steps) & set(forms):
        return f"it starts from {' or '.join(recipe.steps)}, the model is {' and '.join(forms)}"
    return unfit(profile, allowed, precision)


def _settings(profile: Profile, allowed: AllowedRuntime, precision: Precision) -> Settings:
    """How this device wants the recipe."""
    architecture = profile.cpu.architecture
    if allowed.form == "micro" and profile.budget.arena_kib is not None:
        kernels = MICRO_KERNELS.get(architecture, "reference")
        return Settings(micro=Micro(kernels=kernels, arena_bytes=int(profile.budget.arena_kib * 1024)))
    if (allowed.name, precision) == (Runtime.ONNXRUNTIME, Precision.INT8):
        return Settings(activations=ORT_ACTIVATIONS.get(architecture, "uint8"))
    return PLAIN


def _want(
    wanted: dict[tuple[Runtime, Precision, Settings], PlannedVariant],
    profile: Profile,
    allowed: AllowedRuntime,
    precision: Precision,
    place: int,
) -> None:
    """Add one profile's wish to what is planned."""
    settings = _settings(profile, allowed, precision)
    key = (allowed.name, precision, settings)
    found = wanted.get(key) or PlannedVariant(allowed.name, precision, (), (), (), settings)
    listed = precision in allowed.precisions
    why = allowed.reason if listed else "a float variant to fall back to"
    wanted[key] = replace(
        found,
        architectures=tuple(sorted({*found.architectures, profile.cpu.architecture})),
        profiles=tuple(dict.fromkeys((*found.profiles, profile.id))),
        reasons=(*found.reasons, f"{profile.id}: choice {place}, {why}"),
    )
