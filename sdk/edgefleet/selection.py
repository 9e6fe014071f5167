"""Selection: a profile, what the machine has, and a package's variants → a ranked shortlist with reasons.

Pure: the same values give the same answer. It reads the index only, so no variant is fetched to be refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from edgefleet.package import manifest
from edgefleet.package.manifest import Descriptor, Index
from edgefleet_device_profiles.profile import AllowedRuntime, Precision, Profile, Runtime


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant as the package's index describes it."""

    digest: str
    name: str
    runtime: str
    runtime_version: str
    precision: str
    architecture: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be pulled to be measured."""

    candidates: int = 3
    max_bytes: int | None = None
    """Of all of them; None: no limit. The first choice may exceed it."""
    metered: bool = False
    """Bytes cost money: one variant is enough."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What selection says of one candidate; `rank` is 0 for the first choice and None when refused."""

    candidate: Candidate
    rank: int | None
    reason: str


def candidates(index: Index) -> list[Candidate]:
    """The variants that a package's index offers, one per platform; entries of other tools are skipped."""
    return [candidate for entry in index.manifests if (candidate := _candidate(entry)) is not None]


def _candidate(entry: Descriptor) -> Candidate | None:
    notes = entry.annotations or {}
    size = notes.get(manifest.BYTES_ANNOTATION, "0")
    if manifest.VARIANT_ANNOTATION not in notes or entry.platform is None or not _is_count(size):
        return None
    return Candidate(
        digest=entry.digest,
        name=notes[manifest.VARIANT_ANNOTATION],
        runtime=notes.get(manifest.RUNTIME_ANNOTATION, ""),
        runtime_version=notes.get(manifest.RUNTIME_VERSION_ANNOTATION, ""),
        precision=notes.get(manifest.PRECISION_ANNOTATION, ""),
        architecture=entry.platform.architecture,
        size_bytes=int(size),
    )


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) <= manifest.MAX_COUNT_DIGITS


def _refusal(
    candidate: Candidate, profile: Profile, installed: Mapping[Runtime, str], allowed: AllowedRuntime | None
) -> str | None:
    """Why a candidate cannot run, or None."""
    if candidate.architecture != profile.cpu.architecture:
        return f"it is for {candidate.architecture}, the device is {profile.cpu.architecture}"
    if allowed is None:
        return f"the profile {profile.id} does not list the runtime {candidate.runtime}"
    if candidate.precision not in allowed.choices:
        return f"the profile {profile.id} does not list {candidate.precision} for {candidate.runtime}"
    version = installed.get(allowed.name)
    if version is None:
        return f"the runtime {candidate.runtime} is not installed"
    return _version_refusal(candidate.runtime, version, (candidate.runtime_version, allowed.version))


def _version_refusal(runtime: str, version: str, wanted: Iterable[str]) -> str | None:
    try:
        installed = Version(version)
        unmet = [text for text in wanted if installed not in SpecifierSet(text, prereleases=True)]
    except (InvalidVersion, InvalidSpecifier) as error:
        return f"{runtime} {version}: {error}"
    return f"{runtime} {version} is installed, {unmet[0]} is needed" if unmet else None


def shortlist(profile: Profile, installed: Mapping[Runtime, str], offered: Iterable[Candidate]) -> list[Verdict]:
    """Rank what the device may run: the profile's order of runtimes, then of precisions, then the smaller.

    `installed` maps each runtime on the device to its version. Refused candidates follow, each with its reason.
    """
    order = {allowed.name.value: (place, allowed) for place, allowed in enumerate(profile.runtimes)}
    fit: list[tuple[tuple[int, int, int, str], Verdict]] = []
    refused: list[Verdict] = []
    for candidate in offered:
        place, allowed = order.get(candidate.runtime, (0, None))
        refusal = _refusal(candidate, profile, installed, allowed)
        if refusal is not None or allowed is None:
            refused.append(Verdict(candidate, None, refusal or "refused"))
            continue
        choice = allowed.choices.index(Precision(candidate.precision))
        key = (place, choice, candidate.size_bytes, candidate.digest)
        fit.append((key, Verdict(candidate, 0, f"{candidate.runtime} {candidate.precision}: {allowed.reason}")))
    ranked = [verdict for _, verdict in sorted(fit, key=lambda pair: pair[0])]
    # One manifest may be listed once per platform: what one of its entries allows is not refused by another's.
    allowed_digests = {verdict.candidate.digest for verdict in ranked}
    refused = [verdict for verdict in refused if verdict.candidate.digest not in allowed_digests]
    return [Verdict(v.candidate, rank, v.reason) for rank, v in enumerate(ranked)] + refused


def to_measure(
    verdicts: Sequence[Verdict], bounds: Bounds, preferred: str | None = None
) -> tuple[list[Candidate], str]:
    """(what to pull and measure, why no more): of a shortlist the best of each runtime, then the next of each.

    `preferred` is the digest that a prior names: that one alone, where it is on the shortlist. The first choice is
    always among them; none where the shortlist has none.
    """
    fit = [verdict.candidate for verdict in verdicts if verdict.rank is not None]
    if (known := [candidate for candidate in fit if candidate.digest == preferred]) or bounds.metered:
        return known or fit[:1], "the same hardware chose it before" if known else "the link is metered"
    seen: dict[str, int] = {}
    places = []
    for place, candidate in enumerate(fit):
        seen[candidate.runtime] = seen.get(candidate.runtime, 0) + 1
        places.append((seen[candidate.runtime], place))
    chosen: list[Candidate] = []
    total_bytes = 0
    for _, place in sorted(places):
        candidate = fit[place]
        is_small = bounds.max_bytes is None or total_bytes + candidate.size_bytes <= bounds.max_bytes
        if len(chosen) < bounds.candidates and (is_small or not chosen):
            chosen.append(candidate)
            total_bytes += candidate.size_bytes
    return chosen, f"{len(chosen)} of {len(fit)} that fit, {total_bytes} bytes"
