"""Recorded machines against the whole catalogue: what is detected, which profile comes first, and why no other."""

from __future__ import annotations

import platform
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_profiles.recorded_machines import write
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.detect import ACCELERATORS, MachineFacts, detect, mismatch
from edgefleet_device_profiles.fit import Evidence, Fit, fits
from edgefleet_device_profiles.profile import IsaFeature

PROFILES = [catalogue.read(path) for path in sorted(catalogue.DATA_FOLDER.glob("*.toml"))]


@pytest.fixture(name="facts")
def _facts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MachineFacts:
    uname = write(tmp_path, request.param)
    monkeypatch.setattr(platform, "machine", lambda: uname)
    return detect(tmp_path)


def on(machine: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("facts", [machine], indirect=True, ids=[machine])


@pytest.mark.parametrize(
    ("facts", "evidence", "expected"),
    [
        ("pi-5", Evidence.BOARD, ["raspberry-pi-5", "generic-aarch64"]),
        ("pi-5-hailo", Evidence.BOARD, ["raspberry-pi-5-ai-hat", "raspberry-pi-5", "generic-aarch64"]),
        ("pi-500", Evidence.GENERIC, ["generic-aarch64"]),
        ("pi-4", Evidence.BOARD, ["raspberry-pi-4b", "generic-aarch64"]),
        ("pi-4-32", Evidence.BOARD, ["raspberry-pi-os-32"]),
        ("jetson-orin-nano", Evidence.BOARD, ["jetson-orin-nano", "generic-aarch64"]),
        ("vim3l", Evidence.GENERIC, ["generic-aarch64"]),
        (
            "phone",
            Evidence.CLASS,
            ["android-phone-flagship", "android-phone-mid", "android-phone", "android-phone-low", "generic-aarch64"],
        ),
        ("old-phone", Evidence.CLASS, ["android-phone", "android-phone-low", "generic-aarch64"]),
        ("n100", Evidence.CLASS, ["intel-nuc", "generic-x86-64-v3", "generic-x86-64"]),
        ("n100-nuc", Evidence.BOARD, ["intel-nuc", "generic-x86-64-v3", "generic-x86-64"]),
        ("core-ultra", Evidence.CLASS, ["intel-core-ultra", "generic-x86-64-v3", "generic-x86-64"]),
        ("server", Evidence.GENERIC, ["generic-x86-64-v4", "generic-x86-64-v3", "generic-x86-64"]),
        ("haswell", Evidence.GENERIC, ["generic-x86-64-v3", "generic-x86-64"]),
        ("half-avx", Evidence.GENERIC, ["generic-x86-64"]),
        # A machine that tells no instruction sets gets the profile that claims the fewest.
        ("silent", Evidence.GENERIC, ["generic-x86-64", "generic-x86-64-v3", "generic-x86-64-v4"]),
    ],
    indirect=["facts"],
)
def test_the_nearest_profile_comes_first(facts: MachineFacts, evidence: Evidence, expected: list[str]) -> None:
    found = fits(PROFILES, facts)
    assert [fit.profile for fit in found if fit.evidence is not None] == expected
    assert found[0].evidence is evidence
    assert {fit.profile for fit in found} == {profile.id for profile in PROFILES}


def said(found: list[Fit], profile: str) -> str:
    return next(fit.reason for fit in found if fit.profile == profile)


@on("pi-5-hailo")
def test_reasons_on_a_raspberry_pi_with_a_hat(facts: MachineFacts) -> None:
    found = fits(PROFILES, facts)
    assert found[0].reason == (
        "the board says Raspberry Pi 5 Model B Rev 1.0; the processor has neon, fp16, dotprod; hailo is there"
    )
    assert said(found, "generic-aarch64") == "any arm64 machine; the processor has neon"
    assert said(found, "raspberry-pi-4b") == (
        "the board says Raspberry Pi 5 Model B Rev 1.0, the profile's says Raspberry Pi 4 Model B"
    )
    assert said(found, "intel-nuc") == "the processor is arm64, the profile's is amd64"
    assert said(found, "android-phone") == "the system is Debian GNU/Linux 12 (bookworm), the profile's is Android"


@on("pi-5")
def test_a_raspberry_pi_without_the_hat(facts: MachineFacts) -> None:
    assert said(fits(PROFILES, facts), "raspberry-pi-5-ai-hat") == "no hailo accelerator is there, the profile has one"
    assert (facts.isa, facts.max_clock_mhz, facts.accelerators) == (("neon", "fp16", "dotprod"), 2400, ("dri",))


@on("pi-4")
def test_less_memory_than_the_profiles_board_is_said(facts: MachineFacts) -> None:
    assert fits(PROFILES, facts)[0].reason.endswith("but it has 1848 MiB of memory, the profile's has 4096")


@on("haswell")
def test_what_a_processor_lacks_is_said(facts: MachineFacts) -> None:
    found = fits(PROFILES, facts)
    assert said(found, "generic-x86-64-v4") == "the processor lacks avx512"
    assert said(found, "intel-core-ultra") == "the processor is Some Core, the profile's is Intel(R) Core(TM) Ultra"


@on("server")
def test_every_x86_feature_is_known_by_its_flags(facts: MachineFacts) -> None:
    assert facts.isa == ("sse4.2", "avx2", "avx512", "avx512-vnni", "amx")


def test_a_feature_that_one_core_lacks_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor: 0\nFeatures: asimd asimddp\n\nprocessor: 1\nFeatures: asimd\n")
    assert detect(tmp_path).isa == ("neon",)


def test_the_fastest_cores_clock_counts_and_an_odd_one_does_not(tmp_path: Path) -> None:
    for core, text in enumerate(["1800000\n", "2400000\n", "", "fast\n"]):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "cpuinfo_max_freq").write_text(text)
    assert detect(tmp_path).max_clock_mhz == 2400


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("dev/dri/renderD128", "dri"),
        ("dev/accel/accel0", "accel"),
        ("dev/hailo0", "hailo"),
        ("dev/apex_0", "edge-tpu"),
        ("dev/nvidia0", "nvidia"),
        ("dev/nvgpu", "nvidia"),
        ("dev/nvidiactl", None),
        ("dev/dri/card0", None),
    ],
)
def test_accelerators_are_told_by_their_device_files(tmp_path: Path, file: str, name: str | None) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.touch()
    assert detect(tmp_path).accelerators == (() if name is None else (name,))


def test_profiles_ask_only_for_accelerators_that_can_be_seen() -> None:
    assert {name for profile in PROFILES for name in profile.board.accelerators} <= set(ACCELERATORS)


def test_facts_of_an_agent_that_knows_no_instruction_sets_are_read() -> None:
    old = {"architecture": "amd64", "cpu_model": "x", "cores": 1, "memory_mib": 1, "os": "x", "python": "3.11"}
    facts = MachineFacts.model_validate(old | {"runtimes": {}})
    assert (facts.isa, facts.max_clock_mhz, facts.accelerators) == ((), None, ())
    newer = MachineFacts.model_validate(old | {"runtimes": {}, "isa": ["avx10"], "accelerators": ["abacus"]})
    assert newer.isa == ("avx10",)


@settings(max_examples=50)
@given(
    st.builds(
        MachineFacts,
        architecture=st.sampled_from(["amd64", "arm64", "arm", "riscv64"]),
        cpu_model=st.sampled_from(["unknown", "Intel(R) N100", "AMD Ryzen Embedded V2718"]),
        cores=st.just(4),
        memory_mib=st.integers(0, 65536),
        board=st.none() | st.sampled_from(["NUC1", "Raspberry Pi 5", "Khadas VIM3", ""]),
        serial=st.none(),
        os=st.sampled_from(["unknown", "Android", "Debian"]),
        python=st.just("3.11"),
        runtimes=st.just({}),
        isa=st.lists(st.sampled_from(list(IsaFeature)), unique=True).map(tuple),
        max_clock_mhz=st.none(),
        accelerators=st.lists(st.sampled_from(list(ACCELERATORS)), unique=True).map(tuple),
    ),
    st.randoms(),
)
def test_the_order_of_the_catalogue_does_not_matter(facts: MachineFacts, random: Random) -> None:
    found = fits(PROFILES, facts)
    shuffled = list(PROFILES)
    random.shuffle(shuffled)
    assert fits(shuffled, facts) == found
    ranks = [Evidence.GENERIC + 1 if fit.evidence is None else fit.evidence for fit in found]
    assert ranks == sorted(ranks)
    for fit, profile in ((fit, next(p for p in PROFILES if p.id == fit.profile)) for fit in found):
        assert (fit.evidence is None) == (mismatch(profile, facts) is not None)
        assert fit.reason
