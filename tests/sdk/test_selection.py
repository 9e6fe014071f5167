"""Selection: the shortlist's order and the reason for every refusal."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from edgefleet.package.layout import Package
from edgefleet.package.manifest import Descriptor, Index, Platform
from edgefleet.selection import Bounds, Candidate, Verdict, candidates, shortlist, to_measure
from edgefleet_device_profiles.profile import AllowedRuntime, Precision, Profile, Runtime
from sdk.packages_made import two_variants, write

LITERT, ORT, OPENVINO = Runtime.LITERT, Runtime.ONNXRUNTIME, Runtime.OPENVINO
INSTALLED = {LITERT: "2.3.0", ORT: "1.22.1"}


def allowed(name: Runtime, version: str, *precisions: Precision) -> AllowedRuntime:
    return AllowedRuntime(name=name, version=version, precisions=precisions, reason=f"{name} is here")


PROFILE = Profile.model_validate(
    {
        "id": "board",
        "title": "A board",
        "sources": ["made up"],
        "cpu": {"architecture": "arm64", "cores": 4, "clock_mhz": 1000},
        "memory": {"total_mib": 1024},
        "runtimes": [
            allowed(LITERT, ">=2.1", Precision.INT8, Precision.FP32),
            allowed(ORT, ">=1.20,<2", Precision.INT8),
        ],
        "power": {"idle_w": 1.0, "max_w": 2.0, "scope": "package"},
    }
)
GOOD = Candidate("sha256:" + "0" * 64, "litert-int8", "litert", ">=2.3", "int8", "arm64", 1000)
LITERT_FP32 = replace(GOOD, digest="sha256:" + "1" * 64, name="litert-fp32", precision="fp32", size_bytes=10)
ORT_INT8 = Candidate("sha256:" + "2" * 64, "onnxruntime-int8", "onnxruntime", ">=1.22", "int8", "arm64", 1)


def only(offered: Candidate, installed: Mapping[Runtime, str] = INSTALLED) -> tuple[int | None, str]:
    (verdict,) = shortlist(PROFILE, installed, [offered])
    assert verdict.candidate == offered
    return verdict.rank, verdict.reason


def test_the_profiles_order_counts_before_size_and_before_the_order_of_the_offer() -> None:
    for offered in itertools.permutations([GOOD, LITERT_FP32, ORT_INT8]):
        verdicts = shortlist(PROFILE, INSTALLED, offered)
        assert [v.candidate.name for v in verdicts] == ["litert-int8", "litert-fp32", "onnxruntime-int8"]
        assert [v.rank for v in verdicts] == [0, 1, 2]
        assert verdicts[0].reason == "litert int8: litert is here"


def test_of_two_alike_the_smaller_wins_then_the_digest() -> None:
    small, twin = replace(GOOD, digest="sha256:" + "9" * 64, size_bytes=999), replace(GOOD, digest="sha256:" + "f" * 64)
    for offered in itertools.permutations([GOOD, small, twin]):
        assert [v.candidate for v in shortlist(PROFILE, INSTALLED, offered)] == [small, GOOD, twin]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "amd64"}, "it is for amd64, the device is arm64"),
        ({"runtime": "coreml"}, "does not list the runtime coreml"),
        ({"runtime": "openvino"}, "does not list the runtime openvino"),
        ({"runtime": ""}, "does not list the runtime"),
        ({"precision": "int4-weights"}, "does not list int4-weights for litert"),
        ({"precision": ""}, "for litert"),
        ({"runtime": "onnxruntime", "precision": "fp16"}, "does not list fp16 for onnxruntime"),
        ({"runtime_version": ">=2.4"}, "litert 2.3.0 is installed, >=2.4 is needed"),
        ({"runtime_version": "newest"}, "newest"),
    ],
)
def test_every_refusal_says_why(changes: dict[str, Any], reason: str) -> None:
    rank, said = only(replace(GOOD, **changes))
    assert rank is None
    assert reason in said


@pytest.mark.parametrize(
    ("installed", "reason"),
    [
        ({}, "the runtime litert is not installed"),
        ({ORT: "1.22.1"}, "the runtime litert is not installed"),
        ({LITERT: "2.0.9"}, "litert 2.0.9 is installed, >=2.3 is needed"),
        ({LITERT: "unknown"}, "litert unknown"),
        ({LITERT: ""}, "litert"),
    ],
)
def test_what_is_installed_decides(installed: dict[Runtime, str], reason: str) -> None:
    rank, said = only(GOOD, installed)
    assert rank is None
    assert reason in said


def test_the_profiles_own_range_counts_too() -> None:
    rank, said = only(replace(ORT_INT8, runtime_version=""), {ORT: "2.0"})
    assert rank is None
    assert "<2" in said


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [(">=0.2.3", ["0.2.14.0", "1.0.1", "2.3.0"]), (">=0.2.17", ["1.0.1", "2.3.0"]), (">=1.1", ["2.3.0"])],
)
def test_a_tflite_runtime_stands_below_every_litert(wanted: str, fits: list[str]) -> None:
    profile = PROFILE.model_copy(update={"runtimes": (allowed(LITERT, ">=0.2.5", Precision.INT8),)})
    offered = [replace(GOOD, runtime_version=wanted)]
    versions = ["0.2.4.0", "0.2.14.0", "1.0.1", "2.3.0"]
    assert [v for v in versions if shortlist(profile, {LITERT: v}, offered)[0].rank == 0] == fits


def test_a_prerelease_of_a_runtime_counts() -> None:
    assert only(GOOD, {LITERT: "2.4.0.dev20250101"})[0] == 0


def test_the_refused_follow_the_ranked_and_none_is_lost() -> None:
    foreign = replace(GOOD, digest="sha256:" + "3" * 64, architecture="amd64")
    verdicts = shortlist(PROFILE, INSTALLED, [foreign, ORT_INT8, GOOD])
    assert [(v.candidate, v.rank) for v in verdicts] == [(GOOD, 0), (ORT_INT8, 1), (foreign, None)]
    assert shortlist(PROFILE, INSTALLED, []) == []


def test_a_manifest_listed_for_two_platforms_is_not_refused_by_the_other_entry() -> None:
    foreign = replace(GOOD, architecture="riscv64")
    for offered in ([foreign, GOOD], [GOOD, foreign]):
        assert [(v.candidate, v.rank) for v in shortlist(PROFILE, INSTALLED, offered)] == [(GOOD, 0)]


def test_candidates_of_a_package(tmp_path: Any) -> None:
    write(tmp_path / "package", two_variants(tmp_path / "inputs"))
    package = Package(tmp_path / "package")
    found = candidates(package.index)
    assert [(c.name, c.architecture, c.runtime, c.precision) for c in found] == [
        ("small", "amd64", "onnxruntime", "int8"),
        ("wide", "amd64", "litert", "int8"),
        ("wide", "arm64", "litert", "int8"),
    ]
    assert found[0].size_bytes == sum(layer.size for layer in package.manifest(found[0].digest).layers)
    assert found[0].runtime_version == ">=1.0"


def test_entries_of_other_tools_are_skipped() -> None:
    entry = Descriptor(media_type="x", digest=GOOD.digest, size=1, platform=Platform(architecture="arm64"))
    noted = entry.model_copy(update={"platform": None, "annotations": {"dev.edgefleet.variant": "v"}})
    sizes = ["many", "-1", "1.5", "", "9" * 5000]
    sized = [
        entry.model_copy(update={"annotations": {"dev.edgefleet.variant": "v", "dev.edgefleet.bytes": size}})
        for size in sizes
    ]
    assert candidates(Index(manifests=(entry, noted, *sized))) == []


def sized(digest: str, runtime: str, size_bytes: int = 10) -> Candidate:
    return replace(GOOD, digest=digest, runtime=runtime, size_bytes=size_bytes)


def listed(*offered: Candidate) -> list[Verdict]:
    refused = replace(GOOD, digest="refused")
    return [Verdict(one, rank, "") for rank, one in enumerate(offered)] + [Verdict(refused, None, "no")]


@pytest.mark.parametrize(
    ("bounds", "preferred", "chosen", "why"),
    [
        (Bounds(), None, ["l1", "o1", "v1"], "3 of 5 that fit, 30 bytes"),
        (Bounds(candidates=5), None, ["l1", "o1", "v1", "l2", "o2"], "5 of 5"),
        (Bounds(candidates=1), None, ["l1"], "1 of 5"),
        (Bounds(max_bytes=20), None, ["l1", "o1"], "20 bytes"),
        (Bounds(max_bytes=5), None, ["l1"], "10 bytes"),
        (Bounds(metered=True), None, ["l1"], "the link is metered"),
        (Bounds(), "o2", ["o2"], "the same hardware chose it before"),
        (Bounds(metered=True), "o2", ["o2"], "the same hardware chose it before"),
        (Bounds(), "refused", ["l1", "o1", "v1"], "3 of 5"),
    ],
)
def test_what_is_pulled_to_be_measured(bounds: Bounds, preferred: str | None, chosen: list[str], why: str) -> None:
    """The best of each runtime first: the runtime decides more than the precision."""
    offered = [sized(name, name[0]) for name in ("l1", "l2", "o1", "o2", "v1")]
    found, reason = to_measure(listed(*offered), bounds, preferred)
    assert [candidate.digest for candidate in found] == chosen
    assert why in reason


def test_a_smaller_one_is_taken_where_a_larger_is_too_much() -> None:
    offered = (sized("l1", "l", 10), sized("o1", "o", 100), sized("v1", "v", 10))
    assert [one.digest for one in to_measure(listed(*offered), Bounds(max_bytes=25))[0]] == ["l1", "v1"]
    assert to_measure([Verdict(GOOD, None, "no")], Bounds())[0] == []
