"""Choice: which of the variants that were made go into the package, for each profile and each of its runtimes, and why.

A pure function of what was measured. A latency speaks only for the kind of device that it was measured on, so that
the packaging host's never drops or ranks a variant for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from packaging.specifiers import SpecifierSet

from edgefleet.errors import GateError
from edgefleet_device_profiles.profile import AllowedRuntime, Budget, Precision, Profile, Runtime

MIB_BYTES = 2**20
FLOATS = (Precision.FP32, Precision.FP16)


class Objective(StrEnum):
    """What the first choice of a runtime is best at."""

    LATENCY = "latency"
    """Fastest where it was measured on that device; else in the profile's own order of precisions."""
    SIZE = "size"
    """Fewest bytes."""
    ENERGY = "energy"
    """Least energy where latency was measured on that device; else in the profile's own order of precisions."""
    ACCURACY = "accuracy"
    """Smallest loss against the source."""


class Fate(StrEnum):
    """What becomes of a variant for one profile."""

    KEPT = "kept"
    """It is offered to such devices."""
    DROPPED = "dropped"
    """Another variant of the same runtime is at least as good in everything, and better in something."""
    OVER_BUDGET = "over budget"
    """It breaks one of the profile's limits."""
    REFUSED = "refused"
    """It could not be made or run, or the gate failed it."""


@dataclass(frozen=True, slots=True)
class Timing:
    """A measured latency, and the profile that the machine was detected to be."""

    profile: str
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of one variant.

    `loss` is how far its metric is below the source's, in the metric's own unit (None: nobody can run it here);
    `memory_bytes` is calculated, not measured, so that the same inputs make the same choice.
    """

    name: str
    runtime: Runtime
    precision: Precision
    profiles: tuple[str, ...]
    size_bytes: int
    refusal: str | None
    """Why it must not ship; None when the gate lets it through."""
    loss: float | None = None
    memory_bytes: int | None = None
    timing: Timing | None = None
    versions: str | None = None
    """Range of runtime versions that may open it; None: nobody knows."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One variant for one profile; `rank` counts the kept ones of a runtime from 1, by the objective."""

    profile: str
    runtime: Runtime
    variant: str
    fate: Fate
    reason: str
    rank: int | None = None


def choose(
    candidates: Sequence[Candidate], profiles: Sequence[Profile], objective: Objective = Objective.LATENCY
) -> tuple[Decision, ...]:
    """A decision for every candidate and every profile that wants it: profiles and runtimes in order, best first."""
    decisions: list[Decision] = []
    for profile in profiles:
        for allowed in profile.runtimes:
            group = [
                candidate
                for candidate in candidates
                if candidate.runtime is allowed.name and profile.id in candidate.profiles
            ]
            decisions += _decide(_Group(profile, allowed, objective), group)
    return tuple(decisions)


def kept(decisions: Sequence[Decision]) -> tuple[str, ...]:
    """Names of the variants that at least one profile keeps."""
    return tuple(dict.fromkeys(found.variant for found in decisions if found.fate is Fate.KEPT))


def require_cover(decisions: Sequence[Decision], profiles: Sequence[Profile]) -> None:
    """Raise GateError when a profile keeps no variant at all; it says which limit each one broke."""
    for profile in profiles:
        own = [found for found in decisions if found.profile == profile.id]
        if not any(found.fate is Fate.KEPT for found in own):
            text = "; ".join(f"{found.variant}: {found.fate}, {found.reason}" for found in own) or "none was made"
            remedy = "give more calibration data, allow a larger drop or budget, or train a smaller model"
            raise GateError(f"choosing variants for {profile.id}", text, remedy)


def explain(profile: Profile, decisions: Sequence[Decision], objective: Objective) -> tuple[str, ...]:
    """The decisions for one profile in lines for people."""
    lines = [f"{profile.id}: {profile.title}; objective {objective}"]
    width = max((len(found.variant) for found in decisions if found.profile == profile.id), default=0)
    for allowed in profile.runtimes:
        own = [found for found in decisions if found.profile == profile.id and found.runtime is allowed.name]
        lines.append(f"  {allowed.name} {allowed.version}: {allowed.reason}")
        for found in own:
            place = f"{found.rank}." if found.rank else "-"
            lines.append(f"    {place:<3} {found.variant:<{width}}  {found.fate}: {found.reason}")
        if not own:
            lines.append("    -   nothing was planned; see the refused recipes")
    return tuple(lines)


@dataclass(frozen=True, slots=True)
class _Group:
    """One (profile, runtime): where dominance and ranks are judged."""

    profile: Profile
    allowed: AllowedRuntime
    objective: Objective


def _decide(group: _Group, candidates: Sequence[Candidate]) -> list[Decision]:
    """Kept ones first, by rank; the others in their own order."""
    fates: dict[str, tuple[Fate, str]] = {}
    able = []
    for candidate in candidates:
        if candidate.refusal is not None:
            fates[candidate.name] = (Fate.REFUSED, candidate.refusal)
        elif candidate.versions is not None and not _meet(candidate.versions, group.allowed.version):
            found = f"it needs {candidate.runtime} {candidate.versions}, and the profile has {group.allowed.version}"
            fates[candidate.name] = (Fate.REFUSED, found)
        elif broken := _over_budget(candidate, group.profile):
            fates[candidate.name] = (Fate.OVER_BUDGET, broken)
        else:
            able.append(candidate)
    timed = all(_latency_ms(candidate, group.profile) is not None for candidate in able)
    order, why = _order(group, timed=timed)
    # A few bytes must not cost the variant that is expected to be fastest, as long as nobody has measured there.
    expected = min(able, key=order).name if able and group.objective in _MEASURED and not timed else None
    for candidate in able:
        fates[candidate.name] = _fate(candidate, able, group.profile, timed=timed, expected=expected)
    ranked = sorted((found for found in able if fates[found.name][0] is Fate.KEPT), key=order)
    rest = [found for found in candidates if fates[found.name][0] is not Fate.KEPT]
    places: Mapping[str, int] = {found.name: place for place, found in enumerate(ranked, start=1)}
    return [_decision(group, found, *fates[found.name], places.get(found.name), why) for found in (*ranked, *rest)]


def _meet(one: str, other: str) -> bool:
    """Whether a version can be in both ranges: one that either names, one just behind it, or one beyond all."""
    ranges = SpecifierSet(one) & SpecifierSet(other)
    named = [specifier.version.removesuffix(".*") for specifier in ranges]
    tried = [*named, *(f"{version}.0.0.1" for version in named), "99999"]
    return any(ranges.contains(version, prereleases=True) for version in tried)


def _decision(group: _Group, found: Candidate, fate: Fate, reason: str, rank: int | None, why: str) -> Decision:
    first = f"; first {why}" if rank == 1 else ""
    return Decision(group.profile.id, found.runtime, found.name, fate, reason + first, rank)


def _fate(
    candidate: Candidate, able: Sequence[Candidate], profile: Profile, *, timed: bool, expected: str | None
) -> tuple[Fate, str]:
    floats = [found for found in able if found.precision in FLOATS]
    if candidate is min(able, key=_smallness):
        return Fate.KEPT, "the smallest that passes"
    if floats and candidate is min(floats, key=_smallness):
        return Fate.KEPT, "the float variant to fall back to"
    if candidate.name == expected:
        return Fate.KEPT, "expected to do best there"
    # The first in this order that dominates is itself not dominated.
    for other in sorted(able, key=lambda found: _figures(found, profile, timed=timed)):
        if _dominates(other, candidate, profile, timed=timed):
            return Fate.DROPPED, f"{other.name} is {_advantage(other, candidate, profile, timed=timed)}"
    return Fate.KEPT, "nothing beats it in size and accuracy" + (" and latency" if timed else "")


def _smallness(candidate: Candidate) -> tuple[int, float, str]:
    loss = float("inf") if candidate.loss is None else candidate.loss
    return candidate.size_bytes, loss, candidate.name


def _figures(candidate: Candidate, profile: Profile, *, timed: bool) -> tuple[float, ...]:
    """What dominance compares, smaller is better; latency only where every variant of the group has one."""
    latency_ms = _latency_ms(candidate, profile) if timed else None
    return (candidate.size_bytes, candidate.loss or 0.0, *(() if latency_ms is None else (latency_ms,)))


def _dominates(one: Candidate, other: Candidate, profile: Profile, *, timed: bool) -> bool:
    # What nobody has scored is neither better nor worse than anything.
    if one.loss is None or other.loss is None:
        return False
    mine, theirs = _figures(one, profile, timed=timed), _figures(other, profile, timed=timed)
    return mine != theirs and all(left <= right for left, right in zip(mine, theirs, strict=True))


def _advantage(one: Candidate, other: Candidate, profile: Profile, *, timed: bool) -> str:
    """In what one variant beats another, and that it loses nothing."""
    mine, theirs = _figures(one, profile, timed=timed), _figures(other, profile, timed=timed)
    words = [
        word
        for word, left, right in zip(("smaller", "more accurate", "faster"), mine, theirs, strict=False)
        if left < right
    ]
    return " and ".join(words) + ("" if len(words) == len(mine) else ", and no worse in anything")


def _latency_ms(candidate: Candidate, profile: Profile) -> float | None:
    timing = candidate.timing
    return timing.latency_ms if timing and timing.profile == profile.id else None


def _energy_mj(candidate: Candidate, profile: Profile) -> float | None:
    """An estimate from above: the whole time at the profile's full load."""
    latency_ms = _latency_ms(candidate, profile)
    return None if latency_ms is None else latency_ms * profile.power.max_w


def _over_budget(candidate: Candidate, profile: Profile) -> str:
    """The limits that a variant breaks, each with the numbers; empty when it keeps them all."""
    found = []
    for name, unit, limit, value in LIMITS:
        allowed, needed = limit(profile.budget), value(candidate, profile)
        if allowed is not None and needed is not None and needed > allowed:
            found.append(f"{name} {needed:.4g} {unit} is over the limit of {allowed:.4g} {unit}")
    return "; ".join(found)


LIMITS: tuple[tuple[str, str, Callable[[Budget], float | None], Callable[[Candidate, Profile], float | None]], ...] = (
    ("size", "MiB", lambda budget: budget.size_mib, lambda found, _profile: found.size_bytes / MIB_BYTES),
    (
        "memory",
        "MiB",
        lambda budget: budget.memory_mib,
        lambda found, _profile: None if found.memory_bytes is None else found.memory_bytes / MIB_BYTES,
    ),
    ("latency", "ms", lambda budget: budget.latency_ms, _latency_ms),
    ("estimated energy", "mJ", lambda budget: budget.energy_mj, _energy_mj),
)
"""Limit of a budget: its name and unit, where it stands, and what is held against it (None: nobody knows)."""

_Order = Callable[[Candidate], tuple[float, ...]]
_MEASURED = frozenset({Objective.LATENCY, Objective.ENERGY})

_REASONS: Mapping[Objective, str] = MappingProxyType(
    {
        Objective.LATENCY: "by latency, measured there",
        Objective.ENERGY: "by energy, estimated from the latency measured there",
        Objective.SIZE: "by size",
        Objective.ACCURACY: "by accuracy",
    }
)


def _order(group: _Group, *, timed: bool) -> tuple[_Order, str]:
    """How the kept variants are ranked, and in what words."""
    profile, objective = group.profile, group.objective

    def listed(found: Candidate) -> tuple[float, ...]:
        places = group.allowed.choices
        return (places.index(found.precision) if found.precision in places else len(places), *tie(found))

    def tie(found: Candidate) -> tuple[float, float]:
        return float("inf") if found.loss is None else found.loss, found.size_bytes

    if objective in _MEASURED and not timed:
        return listed, "in the profile's own order: no latency was measured there"
    orders: Mapping[Objective, _Order] = {
        # One device, one power model: least energy and least time are the same order.
        Objective.LATENCY: lambda found: (_latency_ms(found, profile) or 0.0, *tie(found)),
        Objective.ENERGY: lambda found: (_energy_mj(found, profile) or 0.0, *tie(found)),
        Objective.SIZE: lambda found: (found.size_bytes, *tie(found)),
        Objective.ACCURACY: tie,
    }
    return orders[objective], _REASONS[objective]
