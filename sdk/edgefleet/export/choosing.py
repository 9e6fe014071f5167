"""Which variant of a package goes into an app or a firmware for a profile, and as which kind of files.

Pure: it reads the index that it is given. Boards that run the agent are not exported to: they are deployed to.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from edgefleet.errors import InputError, UnsupportedError
from edgefleet.package.manifest import Index
from edgefleet.selection import Candidate, Verdict, candidates, shortlist
from edgefleet_device_profiles.profile import AllowedRuntime, Precision, Profile, Runtime


class Kit(StrEnum):
    """What is written."""

    ANDROID = "android"
    """An assets folder with a .tflite file, for Kotlin."""
    IOS = "ios"
    """A CoreML package, for Swift."""
    MICRO = "micro"
    """A C array, for LiteRT for Microcontrollers."""


RUNTIMES = {Kit.ANDROID: Runtime.LITERT, Kit.IOS: Runtime.COREML, Kit.MICRO: Runtime.LITERT}
_SYSTEMS = {"Android": Kit.ANDROID, "iOS": Kit.IOS}


def kit_of(profile: Profile) -> Kit:
    """What a profile's devices take; raises UnsupportedError for a board that runs the agent."""
    if any(allowed.form == "micro" for allowed in profile.runtimes):
        return Kit.MICRO
    for system in profile.board.systems:
        if system in _SYSTEMS:
            return _SYSTEMS[system]
    raise UnsupportedError(
        f"exporting for {profile.id}",
        "it is neither a phone nor a microcontroller",
        "run `edgefleet agent` on it and `edgefleet deploy` the package",
    )


def choose(profile: Profile, index: Index) -> Candidate:
    """The best variant for a profile among those that its kit can carry; raises InputError with every refusal.

    A microcontroller for which nothing was made gets the int8 .tflite of another device: the same kind of file, whose
    arena and operators nobody has checked.
    """
    kit = kit_of(profile)
    offered = candidates(index)
    verdicts = shortlist(profile, _versions(profile.runtimes, offered), offered)
    for verdict in verdicts:
        if verdict.rank is not None and verdict.candidate.runtime == RUNTIMES[kit]:
            return verdict.candidate
    if kit is Kit.MICRO and (plain := _smallest_int8(offered)) is not None:
        return plain
    raise InputError(
        f"exporting for {profile.id}",
        _refusals(profile, RUNTIMES[kit], verdicts),
        f"package the model again with --profile {profile.id}",
    )


def _refusals(profile: Profile, runtime: Runtime, verdicts: Sequence[Verdict]) -> str:
    """Why no variant fits: the reasons of those for the runtime, or what there is instead."""
    own = [verdict for verdict in verdicts if verdict.candidate.runtime == runtime]
    # Where a variant is offered to this processor too, what the others are for is no reason.
    own.sort(key=lambda verdict: verdict.candidate.architecture == profile.cpu.architecture)
    reasons = {verdict.candidate.name: verdict.reason for verdict in own}
    if reasons:
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    names = dict.fromkeys(verdict.candidate.name for verdict in verdicts)
    return f"the package has nothing for {runtime}, only {', '.join(names) or 'an empty index'}"


def _versions(allowed: Sequence[AllowedRuntime], offered: Sequence[Candidate]) -> dict[Runtime, str]:
    """No device is asked: of each runtime the version, among those mentioned, that most variants run on.

    The newest of these; only such as the profile allows.
    """
    found: dict[Runtime, str] = {}
    for runtime in allowed:
        ranges = [item.runtime_version for item in offered if item.runtime == runtime.name]
        fit = [
            version
            for text in (runtime.version, *ranges)
            for version in _mentioned(text)
            if version in SpecifierSet(runtime.version)
        ]
        if fit:
            found[runtime.name] = str(max(fit, key=lambda version: (_served(version, ranges), version)))
    return found


def _served(version: Version, ranges: Sequence[str]) -> int:
    """How many of the ranges hold a version."""
    return sum(1 for text in ranges if _mentioned(text) and version in SpecifierSet(text))


def _mentioned(text: str) -> list[Version]:
    """The versions in a range; none where it is not one, which selection then says."""
    try:
        return [Version(part.version.removesuffix(".*")) for part in SpecifierSet(text)]
    except (InvalidSpecifier, InvalidVersion):
        return []


def _smallest_int8(offered: Sequence[Candidate]) -> Candidate | None:
    fit = [item for item in offered if (item.runtime, item.precision) == (Runtime.LITERT, Precision.INT8)]
    return min(fit, key=lambda item: (item.size_bytes, item.digest), default=None)
