"""Puts a report together from what a run found.

Pure: takes values, and reads nothing but the versions of what is installed (`environment`).
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence

from edgefleet_converters.choose import Decision, Fate, Objective
from edgefleet_converters.report.model import (
    DataFacts,
    DecisionFacts,
    LimitFacts,
    PackageFacts,
    ProfileFacts,
    RefusedFacts,
    Report,
    SensitivityFacts,
    SourceFacts,
    VariantFacts,
)
from edgefleet_device_profiles.profile import Precision, Profile, Runtime

Refused = tuple[str, Runtime, Precision, str]
"""Profile, runtime, precision, and why the recipe was not tried."""


def build_report(
    *,
    package: PackageFacts,
    source: SourceFacts,
    data: Sequence[DataFacts],
    limits: LimitFacts,
    objective: Objective,
    profiles: Sequence[Profile],
    variants: Sequence[VariantFacts],
    decisions: Sequence[Decision],
    refused: Sequence[Refused] = (),
    sensitivity: SensitivityFacts | None = None,
    notes: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Report:
    """Number the variants, say which ship, and sort decisions and refusals by profile."""
    shipped = {found.variant for found in decisions if found.fate is Fate.KEPT}
    return Report(
        package=package,
        source=source,
        data=tuple(data),
        objective=objective,
        limits=limits,
        profiles=tuple(_profile(profile, decisions, refused) for profile in profiles),
        variants=tuple(
            variant.model_copy(update={"number": number, "shipped": variant.name in shipped})
            for number, variant in enumerate(variants, start=1)
        ),
        sensitivity=sensitivity,
        notes=tuple(notes),
        environment=dict(environment or {}),
    )


def finite(value: float | None) -> float | None:
    """The number, or None where there is none that JSON could hold."""
    return value if value is not None and math.isfinite(value) else None


def environment(tools: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Versions for the report: Python, the machine's kind, and every tool of the extras that were used."""
    found = {name: version for versions in tools for name, version in versions.items()}
    host = {"Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    return {**host, **dict(sorted(found.items()))}


def _profile(profile: Profile, decisions: Sequence[Decision], refused: Sequence[Refused]) -> ProfileFacts:
    return ProfileFacts(
        id=profile.id,
        title=profile.title,
        architecture=profile.cpu.architecture,
        decisions=tuple(
            DecisionFacts(
                runtime=found.runtime, variant=found.variant, fate=found.fate, reason=found.reason, rank=found.rank
            )
            for found in decisions
            if found.profile == profile.id
        ),
        refused=tuple(
            RefusedFacts(runtime=runtime, precision=precision, reason=reason)
            for wanted, runtime, precision, reason in refused
            if wanted == profile.id
        ),
    )
