"""Choice: what dominance may drop, what is kept whatever happens, budgets, ranks, and the words for all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.errors import GateError
from edgefleet_converters.choose import (
    FLOATS,
    MIB_BYTES,
    Candidate,
    Decision,
    Fate,
    Objective,
    Timing,
    choose,
    explain,
    kept,
    require_cover,
)
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Budget, Precision, Profile, Runtime

PI = catalogue.load("raspberry-pi-5").model_copy(update={"budget": Budget()})
NUC = catalogue.load("intel-nuc").model_copy(update={"budget": Budget()})
PROFILES = (PI, NUC)
RUNTIMES = tuple(dict.fromkeys(allowed.name for profile in PROFILES for allowed in profile.runtimes))


def _candidate(name: str, size_bytes: int, loss: float | None, **changes: object) -> Candidate:
    plain = Candidate(name, Runtime.LITERT, Precision.INT8, (PI.id,), size_bytes, None, loss)
    return replace(plain, **changes)  # type: ignore[arg-type] # the test knows the fields


def _budget(profile: Profile, **limits: float) -> Profile:
    return profile.model_copy(update={"budget": Budget(**limits)})


def _fates(decisions: Sequence[Decision]) -> dict[str, Fate]:
    return {found.variant: found.fate for found in decisions}


_LOSSES = st.none() | st.sampled_from((0.0, 0.001, 0.002, 0.01)) | st.floats(-0.01, 0.05)
_TIMINGS = st.none() | st.builds(Timing, st.sampled_from((PI.id, NUC.id)), st.sampled_from((1.0, 2.0, 4.0)))


@st.composite
def _candidates(draw: st.DrawFn) -> list[Candidate]:
    made = draw(
        st.lists(
            st.tuples(
                st.sampled_from(RUNTIMES),
                st.sampled_from(Precision),
                st.sampled_from(((PI.id,), (NUC.id,), (PI.id, NUC.id))),
                st.sampled_from((100, 200, 300)) | st.integers(1, 1000),
                st.none() | st.just("the gate said no"),
                _LOSSES,
                st.none(),
                _TIMINGS,
            ),
            max_size=14,
        )
    )
    return [Candidate(f"variant-{place}", *fields) for place, fields in enumerate(made)]


@given(_candidates(), st.sampled_from(Objective))
def test_no_profile_and_runtime_loses_its_last_variant_or_its_float_one(
    candidates: list[Candidate], objective: Objective
) -> None:
    fates = {(found.profile, found.variant): found.fate for found in choose(candidates, PROFILES, objective)}
    for profile in PROFILES:
        for runtime in (allowed.name for allowed in profile.runtimes):
            passing = [
                found
                for found in candidates
                if found.runtime is runtime and profile.id in found.profiles and found.refusal is None
            ]
            left = [found for found in passing if fates[profile.id, found.name] is Fate.KEPT]
            if not passing:
                continue
            assert min(found.size_bytes for found in left) == min(found.size_bytes for found in passing)
            if any(found.precision in FLOATS for found in passing):
                assert any(found.precision in FLOATS for found in left)


@given(_candidates(), st.sampled_from(Objective))
def test_everything_dropped_is_beaten_by_something_kept(candidates: list[Candidate], objective: Objective) -> None:
    named = {found.name: found for found in candidates}
    decisions = choose(candidates, PROFILES, objective)
    for profile in PROFILES:
        own = [found for found in decisions if found.profile == profile.id]
        for dropped in (found for found in own if found.fate is Fate.DROPPED):
            rivals = [named[found.variant] for found in own if found.runtime is dropped.runtime]
            timed = all(_is_timed(found, profile) for found in rivals if found.refusal is None)
            mine = _figures(named[dropped.variant], timed=timed)
            kept_ones = [
                _figures(named[found.variant], timed=timed)
                for found in own
                if found.runtime is dropped.runtime and found.fate is Fate.KEPT
            ]
            assert any(
                theirs != mine and all(left <= right for left, right in zip(theirs, mine, strict=True))
                for theirs in kept_ones
            ), dropped


def _is_timed(found: Candidate, profile: Profile) -> bool:
    return found.timing is not None and found.timing.profile == profile.id


def _figures(found: Candidate, *, timed: bool) -> tuple[float, ...]:
    # Not a number: what is not scored beats nothing and is beaten by nothing.
    loss = float("nan") if found.loss is None else found.loss
    return (found.size_bytes, loss, found.timing.latency_ms if timed and found.timing else 0.0)


@given(_candidates(), st.sampled_from(Objective))
def test_dropping_what_was_dropped_changes_nothing(candidates: list[Candidate], objective: Objective) -> None:
    untimed = [replace(found, timing=None) for found in candidates]
    decisions = choose(untimed, (PI,), objective)
    gone = {found.variant for found in decisions if found.fate is not Fate.KEPT}
    again = choose([found for found in untimed if found.name not in gone], (PI,), objective)
    assert kept(again) == kept(decisions)


@given(_candidates(), st.sampled_from(Objective), st.data())
def test_the_packaging_hosts_latency_changes_nothing_elsewhere(
    candidates: list[Candidate], objective: Objective, data: st.DataObject
) -> None:
    """Whatever was measured on the NUC, what the Raspberry Pi gets is the same."""
    elsewhere = [
        found if found.timing is None or found.timing.profile != NUC.id else replace(found, timing=None)
        for found in candidates
    ]
    timed = [
        found
        if found.timing
        else replace(found, timing=data.draw(st.none() | st.builds(Timing, st.just(NUC.id), st.floats(0.1, 100.0))))
        for found in elsewhere
    ]
    assert choose(timed, (PI,), objective) == choose(elsewhere, (PI,), objective)


@given(_candidates(), st.sampled_from(Objective))
def test_every_candidate_gets_one_decision_with_a_reason_and_ranks_are_whole(
    candidates: list[Candidate], objective: Objective
) -> None:
    decisions = choose(candidates, PROFILES, objective)
    for profile in PROFILES:
        for allowed in profile.runtimes:
            own = [found for found in decisions if (found.profile, found.runtime) == (profile.id, allowed.name)]
            wanted = [
                found.name for found in candidates if found.runtime is allowed.name and profile.id in found.profiles
            ]
            assert sorted(found.variant for found in own) == sorted(wanted)
            assert all(found.reason for found in own)
            ranks = [found.rank for found in own if found.fate is Fate.KEPT]
            assert ranks == list(range(1, len(ranks) + 1))
            assert all(found.rank is None for found in own if found.fate is not Fate.KEPT)


def test_another_runtimes_variant_never_drops_one() -> None:
    tiny = _candidate("tiny", 1, -0.1, runtime=Runtime.ONNXRUNTIME)
    decisions = choose([tiny, _candidate("big", 1000, 0.009)], (PI,))
    assert _fates(decisions) == {"tiny": Fate.KEPT, "big": Fate.KEPT}


def test_a_larger_and_worse_variant_is_dropped_with_the_name_of_the_better() -> None:
    found = [
        _candidate("small", 100, 0.001),
        _candidate("worse", 120, 0.002, precision=Precision.INT8_WEIGHTS),
        _candidate("float", 400, 0.0, precision=Precision.FP16),
    ]
    decisions = choose(found, (PI,))
    assert _fates(decisions) == {"small": Fate.KEPT, "worse": Fate.DROPPED, "float": Fate.KEPT}
    assert [found.reason for found in decisions if found.variant == "worse"] == ["small is smaller and more accurate"]


def test_the_profiles_first_choice_stays_until_a_latency_from_there_says_otherwise() -> None:
    """LiteRT's dynamic int8 is often a few bytes smaller than int8, and slower."""
    found = [
        _candidate("int8", 105, 0.0),
        _candidate("dynamic", 100, 0.0, precision=Precision.INT8_DYNAMIC),
        _candidate("fp16", 200, 0.0, precision=Precision.FP16),
    ]
    first = choose(found, (PI,))[0]
    assert (first.variant, first.rank, first.fate) == ("int8", 1, Fate.KEPT)
    assert first.reason.startswith("expected to do best there; first in the profile's own order")
    assert _fates(choose(found, (PI,), Objective.SIZE))["int8"] is Fate.DROPPED
    measured = [replace(one, timing=Timing(PI.id, 2.0 if one.name == "int8" else 1.0)) for one in found]
    assert _fates(choose(measured, (PI,)))["int8"] is Fate.DROPPED


def test_a_dominated_float_variant_stays_as_the_one_to_fall_back_to() -> None:
    found = [
        _candidate("int8", 100, 0.0),
        _candidate("fp16", 200, 0.0, precision=Precision.FP16),
        _candidate("fp32", 400, 0.0, precision=Precision.FP32),
    ]
    decisions = choose(found, (PI,))
    assert _fates(decisions) == {"int8": Fate.KEPT, "fp16": Fate.KEPT, "fp32": Fate.DROPPED}
    assert "the float variant to fall back to" in {found.reason for found in decisions}


def test_a_faster_variant_is_kept_only_where_its_latency_was_measured() -> None:
    """Larger and less accurate, but twice as fast on the NUC."""
    both = (PI.id, NUC.id)
    found = [
        _candidate("small", 100, 0.001, profiles=both, timing=Timing(NUC.id, 4.0)),
        _candidate("fast", 150, 0.002, profiles=both, timing=Timing(NUC.id, 2.0)),
    ]
    fates = {(one.profile, one.variant): one.fate for one in choose(found, PROFILES)}
    assert fates[NUC.id, "fast"] is Fate.KEPT
    assert fates[PI.id, "fast"] is Fate.DROPPED


def test_latency_counts_only_when_every_variant_of_the_group_has_one() -> None:
    found = [_candidate("small", 100, 0.001), _candidate("fast", 150, 0.002, timing=Timing(PI.id, 2.0))]
    assert _fates(choose(found, (PI,)))["fast"] is Fate.DROPPED


def test_what_nobody_could_score_is_never_dropped_and_drops_nothing() -> None:
    found = [_candidate("scored", 100, 0.001), _candidate("unscored", 200, None), _candidate("other", 300, 0.0005)]
    assert set(_fates(choose(found, (PI,))).values()) == {Fate.KEPT}


OBJECTIVES = (
    (Objective.SIZE, ["int4", "int8", "fp32"]),
    (Objective.ACCURACY, ["fp32", "int8", "int4"]),
    (Objective.LATENCY, ["int8", "fp32", "int4"]),
    (Objective.ENERGY, ["int8", "fp32", "int4"]),
)


@pytest.mark.parametrize(("objective", "order"), OBJECTIVES)
def test_the_objective_ranks_what_is_kept(objective: Objective, order: list[str]) -> None:
    found = [
        _candidate("fp32", 400, 0.0, precision=Precision.FP32, timing=Timing(PI.id, 3.0)),
        _candidate("int8", 100, 0.002, timing=Timing(PI.id, 1.0)),
        _candidate("int4", 60, 0.005, precision=Precision.INT4_WEIGHTS, timing=Timing(PI.id, 9.0)),
    ]
    decisions = choose(found, (PI,), objective)
    assert [one.variant for one in decisions] == order


@pytest.mark.parametrize("objective", [Objective.LATENCY, Objective.ENERGY])
def test_without_a_latency_from_there_the_profiles_own_order_ranks(objective: Objective) -> None:
    listed = next(allowed.choices for allowed in PI.runtimes if allowed.name is Runtime.LITERT)
    found = [
        _candidate(str(precision), 100 - place, 0.001 - place / 10_000, precision=precision)
        for place, precision in enumerate(listed)
    ]
    decisions = choose(found, (PI,), objective)
    names = [one.variant for one in decisions if one.rank]
    assert names == [str(precision) for precision in listed if str(precision) in names]
    assert "no latency was measured there" in decisions[0].reason


LIMITS = (
    ({"size_mib": 1.0}, "size 2 MiB is over the limit of 1 MiB"),
    ({"memory_mib": 4.0}, "memory 8 MiB is over the limit of 4 MiB"),
    ({"latency_ms": 5.0}, "latency 10 ms is over the limit of 5 ms"),
    ({"energy_mj": 1.0}, "estimated energy"),
)


@pytest.mark.parametrize(("limits", "words"), LIMITS)
def test_a_broken_limit_is_named_with_its_numbers(limits: dict[str, float], words: str) -> None:
    profile = _budget(PI, **limits)
    big = _candidate("big", 2 * MIB_BYTES, 0.0, memory_bytes=8 * MIB_BYTES, timing=Timing(PI.id, 10.0))
    (decision,) = choose([big], (profile,))
    assert decision.fate is Fate.OVER_BUDGET
    assert words in decision.reason
    with pytest.raises(GateError, match=words):
        require_cover([decision], (profile,))


def test_a_latency_from_elsewhere_breaks_no_limit() -> None:
    profile = _budget(PI, latency_ms=5.0, energy_mj=1.0)
    slow = _candidate("slow", 100, 0.0, timing=Timing(NUC.id, 10.0))
    assert _fates(choose([slow], (profile,))) == {"slow": Fate.KEPT}


def test_what_breaks_a_limit_does_not_drop_what_keeps_it() -> None:
    profile = _budget(PI, memory_mib=4.0)
    found = [_candidate("hungry", 100, 0.0, memory_bytes=8 * MIB_BYTES), _candidate("modest", 200, 0.001)]
    assert _fates(choose(found, (profile,))) == {"hungry": Fate.OVER_BUDGET, "modest": Fate.KEPT}


def test_a_profile_that_keeps_nothing_is_an_error_that_says_why() -> None:
    refused = _candidate("int8", 100, 0.5, refusal="top-1 is 0.5 below fp32")
    decisions = choose([refused], (PI,))
    with pytest.raises(GateError, match=r"raspberry-pi-5: int8: refused, top-1 is 0.5 below fp32"):
        require_cover(decisions, (PI,))
    require_cover(choose([refused, _candidate("fp16", 200, 0.0)], (PI,)), (PI,))


def test_explain_says_every_runtime_and_every_variant_with_its_reason() -> None:
    found = [
        _candidate("litert-int8", 100, 0.001),
        _candidate("litert-int8-dynamic", 90, 0.3, refusal="top-1 is 0.3 below fp32"),
    ]
    lines = explain(PI, choose(found, (PI,)), Objective.LATENCY)
    assert lines[0] == f"raspberry-pi-5: {PI.title}; objective latency"
    assert "    1.  litert-int8          kept: the smallest that passes; first in the profile's own order: " in (
        "\n".join(lines)
    )
    assert "    -   litert-int8-dynamic  refused: top-1 is 0.3 below fp32" in lines
    assert sum("nothing was planned" in line for line in lines) == len(PI.runtimes) - 1


@pytest.mark.parametrize(
    ("device", "file", "usable"),
    [
        (">=0.2.14,<1", ">=0.1.14", True),
        (">=0.2.14,<1", ">=0.2.17", True),
        ("==0.2.14", ">=0.2.17", False),
        (">=1.20,<1.25", ">=1.31", False),
        (">1.31,<2", ">=1.31", True),
        ("==1.*", ">=1.31", True),
        (">=99", ">=1.31", True),
    ],
)
def test_a_file_that_no_version_on_the_device_can_open_is_refused(device: str, file: str, usable: bool) -> None:
    allowed = tuple(one.model_copy(update={"version": device}) for one in PI.runtimes if one.name is Runtime.LITERT)
    profile = PI.model_copy(update={"runtimes": allowed})
    (found,) = choose([_candidate("int8", 100, 0.0, versions=file)], (profile,))
    assert (found.fate is Fate.KEPT) is usable
    if not usable:
        assert found.reason == f"it needs litert {file}, and the profile has {device}"
