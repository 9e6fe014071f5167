"""The schema: what it takes comes back unchanged, and what contradicts itself is refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgefleet_device_profiles.profile import (
    Accelerator,
    AllowedRuntime,
    BoardFit,
    BoardMatch,
    Budget,
    Cpu,
    Defaults,
    IsaFeature,
    Memory,
    Peak,
    PowerModel,
    Precision,
    Profile,
    Runtime,
    Sensor,
    Storage,
    Thermal,
)

POSITIVE = st.floats(2**-20, 1e9)
TEXT = st.text(min_size=1, max_size=20)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
ARCHITECTURES = get_args(Cpu.model_fields["architecture"].annotation)


def some(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


def of(kind: Any) -> st.SearchStrategy[Any]:
    return st.lists(st.sampled_from(list(kind)), unique=True, max_size=4).map(tuple)


@st.composite
def memories(draw: st.DrawFn) -> Memory:
    total = draw(POSITIVE)
    return Memory(total_mib=total, usable_mib=draw(st.floats(2**-20, total)))


@st.composite
def powers(draw: st.DrawFn) -> PowerModel:
    idle = draw(st.floats(0.001, 100))
    return PowerModel(
        idle_w=idle,
        max_w=idle + draw(st.floats(0.001, 100)),
        scope=draw(st.sampled_from(["board_input", "package"])),
        sensors=draw(of(Sensor)),
        board_fit=draw(some(st.builds(BoardFit, slope=st.floats(1, 3), offset_w=st.floats(0, 5)))),
    )


@st.composite
def runtimes(draw: st.DrawFn) -> AllowedRuntime:
    micro = draw(st.booleans())
    precisions = of(Precision).filter(bool)
    return AllowedRuntime(
        name=Runtime.LITERT if micro else draw(st.sampled_from(list(Runtime))),
        version=draw(st.sampled_from([">=2.1", ">=0.2.14,<1", "", "==1.*"])),
        precisions=(Precision.INT8,) if micro else draw(precisions),
        reason=draw(TEXT),
        form="micro" if micro else "file",
        python=draw(some(st.just("<3.12"))),
    )


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    allowed = draw(st.lists(runtimes(), min_size=1, max_size=3, unique_by=lambda each: each.name).map(tuple))
    cores = draw(st.integers(1, 128))
    supported = st.builds(
        Accelerator,
        name=TEXT,
        kind=st.sampled_from(["gpu", "npu", "tpu", "dsp"]),
        supported=st.just(value=True),
        runtime=st.sampled_from([each.name for each in allowed]),
        note=TEXT,
    )
    unused = st.builds(
        Accelerator, name=TEXT, kind=st.just("dsp"), supported=st.just(value=False), runtime=st.none(), note=TEXT
    )
    return Profile(
        id=draw(st.from_regex(r"\A[a-z0-9][a-z0-9-]{0,62}\Z")),
        title=draw(TEXT),
        sources=draw(TEXTS.filter(bool)),
        cpu=Cpu(
            architecture=draw(st.sampled_from(ARCHITECTURES)),
            cores=cores,
            clock_mhz=draw(st.integers(1, 10_000)),
            isa=draw(of(IsaFeature)),
        ),
        memory=draw(memories()),
        accelerators=tuple(draw(st.lists(supported | unused, max_size=2))),
        runtimes=allowed,
        peak=draw(
            some(
                st.builds(
                    Peak,
                    fp32_gops=POSITIVE,
                    fp16_gops=some(POSITIVE),
                    int8_gops=some(POSITIVE),
                    bandwidth_gb_s=POSITIVE,
                )
            )
        ),
        power=draw(powers()),
        thermal=draw(st.builds(Thermal, throttle_c=some(st.floats(1, 149)), note=TEXT)),
        storage=draw(st.builds(Storage, total_mib=some(POSITIVE), free_floor_mib=st.floats(0, 1e6))),
        defaults=Defaults(threads=draw(st.integers(1, cores))),
        budget=draw(st.builds(Budget, latency_ms=some(POSITIVE), size_mib=some(POSITIVE), arena_kib=POSITIVE)),
        board=draw(st.builds(BoardMatch, device_tree_models=TEXTS, dmi_products=TEXTS, cpu_models=TEXTS)),
    )


@settings(max_examples=60)
@given(profiles())
def test_a_profile_comes_back_unchanged(profile: Profile) -> None:
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
    assert Profile.model_validate(profile.model_dump(mode="json")) == profile


@settings(max_examples=60)
@given(profiles(), st.data())
def test_a_field_that_is_not_known_is_refused(profile: Profile, data: st.DataObject) -> None:
    table = profile.model_dump(mode="json")
    places = [table, *(part for part in table.values() if isinstance(part, dict)), *table["runtimes"]]
    data.draw(st.sampled_from(places))["colour"] = 1
    with pytest.raises(ValidationError, match="colour"):
        Profile.model_validate(table)


TABLE: dict[str, Any] = {
    "id": "board",
    "title": "A board",
    "sources": ["made up"],
    "cpu": {"architecture": "arm64", "cores": 4, "clock_mhz": 1000},
    "memory": {"total_mib": 0.5},
    "runtimes": [{"name": "litert", "version": ">=2", "precisions": ["int8"], "reason": "because"}],
    "power": {"idle_w": 1.0, "max_w": 2.0, "scope": "package"},
}
MICRO = TABLE["runtimes"][0] | {"form": "micro"}
GPU = {"name": "GPU", "kind": "gpu", "supported": True, "runtime": "litert", "note": "used"}


def test_what_need_not_be_said() -> None:
    profile = Profile.model_validate(TABLE)
    assert (profile.memory.usable_mib, profile.memory.usable_bytes) == (0.25, 2**18)
    assert (profile.peak, profile.defaults.threads, profile.budget.arena_kib) == (None, 1, None)
    assert (profile.runtimes[0].form, profile.runtimes[0].python) == ("file", None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": {"total_mib": 1, "usable_mib": 2}}, "at most total_mib"),
        ({"memory": {"total_mib": 1, "usable_mib": 0}}, "must be above 0"),
        ({"memory": {"total_mib": 1, "usable_mib": float("nan")}}, "must be above 0"),
        ({"memory": {"total_mib": float("inf")}}, "total_mib"),
        ({"memory": {"usable_mib": 1}}, "total_mib"),
        ({"accelerators": [GPU | {"runtime": None}]}, "GPU is supported, but names no runtime"),
        ({"accelerators": [GPU | {"runtime": "tensorrt"}]}, "GPU needs tensorrt, which is not among the runtimes"),
        ({"accelerators": [GPU | {"note": ""}]}, "note"),
        ({"accelerators": [GPU | {"kind": "abacus"}]}, "kind"),
        ({"runtimes": [MICRO]}, "budget.arena_kib"),
        ({"runtimes": [MICRO | {"precisions": ["fp32"]}]}, "micro is for litert with int8 alone"),
        ({"runtimes": [MICRO | {"name": "openvino"}]}, "micro is for litert with int8 alone"),
        ({"runtimes": [TABLE["runtimes"][0] | {"python": "old"}]}, "version range"),
        ({"runtimes": []}, "runtimes"),
        ({"defaults": {"threads": 5}}, "more than the 4 cores"),
        ({"peak": {"fp32_gops": 0, "bandwidth_gb_s": 1}}, "fp32_gops"),
        ({"thermal": {"throttle_c": 400}}, "throttle_c"),
        ({"storage": {"free_floor_mib": -1}}, "free_floor_mib"),
        ({"budget": {"latency_ms": 0}}, "latency_ms"),
        ({"id": "Board"}, "id"),
        ({"sources": []}, "sources"),
    ],
)
def test_a_contradiction_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Profile.model_validate(TABLE | changes)
    assert said in str(caught.value)


def test_a_microcontroller_with_an_arena_is_fine() -> None:
    profile = Profile.model_validate(TABLE | {"runtimes": [MICRO], "budget": {"arena_kib": 256}})
    assert profile.runtimes[0].form == "micro"
