"""Latency: the pure pacing under a fake clock, and the real stage on two small models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from converters.onnx_models import build, weights
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.score import pace
from edgefleet_converters.score.host import Host, fingerprint
from edgefleet_converters.score.latency import Latency, measure_latencies
from edgefleet_converters.score.latency_child import LatencyJob
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Runtime


@dataclass
class Machine:
    """A fake machine: each variant takes its own time, and everything slows down while it runs."""

    takes_s: dict[str, float]
    drift: float = 0.0
    noise: float = 0.0
    clock_s: float = 0.0
    turns: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(0)

    def measure(self, key: str, runs: int) -> list[float]:
        self.turns.append((key, runs))
        times = []
        for _ in range(runs):
            spread = 1 + self.noise * self._generator.standard_exponential()
            taken = self.takes_s[key] * (1 + self.drift * self.clock_s) * spread
            self.clock_s += taken
            times.append(taken)
        return times


def test_a_steady_variant_stops_as_soon_as_a_90th_percentile_may_be_said() -> None:
    machine = Machine({"a": 0.001})
    times = pace.take_turns({"a": 0.001}, machine.measure)
    assert 64 <= len(times["a"]) <= 128
    found = pace.summarize(times["a"])
    assert (found.p50_ms, found.p90_ms) == pytest.approx((1.0, 1.0))
    assert (found.p90_reason, found.runs) == ("", len(times["a"]))


def test_an_unsteady_one_goes_on_and_a_slow_one_stops_after_two_seconds_without_a_p90() -> None:
    machine = Machine({"noisy": 0.001, "slow": 0.3}, noise=0.6)
    times = pace.take_turns({"noisy": 0.001, "slow": 0.3}, machine.measure)
    assert len(times["noisy"]) > 200
    assert 2 <= sum(times["slow"]) < 3.5
    slow = pace.summarize(times["slow"])
    assert slow.p90_ms is None
    assert slow.p90_reason == f"{len(times['slow'])} runs in 2 s, and a 90th percentile takes 64"


def test_the_directions_alternate_and_whoever_has_enough_leaves() -> None:
    machine = Machine({"a": 0.04, "b": 0.04, "c": 0.5})
    pace.take_turns({"a": 0.04, "b": 0.04, "c": 0.5}, machine.measure)
    order = "".join(key for key, _ in machine.turns)
    assert order.startswith("abccbaabccba")
    assert order.count("c") == 4
    assert order.endswith("ba" if order.count("a") % 2 == 0 else "ab")


def test_a_machine_that_slows_down_slows_no_variant_more_than_another() -> None:
    """One after the other the second would look 20 % slower than the first; interleaved they are equal."""
    machine = Machine({"a": 0.02, "b": 0.02}, drift=0.1)
    times = pace.take_turns({"a": 0.02, "b": 0.02}, machine.measure)
    medians = [float(np.median(times[key])) for key in "ab"]
    assert medians[0] == pytest.approx(medians[1], rel=0.005)
    assert max(times["a"]) > 1.2 * min(times["a"])


def test_a_variant_that_dies_leaves_without_times_and_the_others_go_on() -> None:
    machine = Machine({"a": 0.001, "b": 0.001}, noise=0.2)

    def measure(key: str, runs: int) -> list[float]:
        dead = key == "b" and any(turn == "b" for turn, _ in machine.turns)
        return [] if dead else machine.measure(key, runs)

    times = pace.take_turns({"a": 0.001, "b": 0.001}, measure)
    assert times["b"] == []
    assert len(times["a"]) >= 64


@given(st.floats(1e-6, 3), st.floats(0, 1))
def test_pacing_always_ends_and_never_takes_much_longer_than_it_says(takes_s: float, noise: float) -> None:
    machine = Machine({"a": takes_s}, noise=noise)
    times = pace.take_turns({"a": takes_s}, machine.measure)["a"]
    assert times
    assert pace.has_enough(times)
    assert sum(times[: -machine.turns[-1][1]]) < pace.LONGEST_S


def test_the_median_is_sure_when_its_interval_is_narrow() -> None:
    assert pace.has_enough([1e-3] * 64)
    assert not pace.has_enough([1e-3] * 63)
    assert not pace.has_enough([1e-3, 2e-3] * 50)
    assert pace.has_enough([1.0, 1.1])


def host(root: Path) -> Host:
    return fingerprint((), root)


def board(root: Path, governor: str = "ondemand") -> Path:
    """A Raspberry Pi 5 as far as its files go, with the processor's own flags."""
    for path, text in {
        "proc/cpuinfo": "processor : 0\nFeatures : fp asimd asimdhp asimddp\n\nModel : Raspberry Pi 5 Model B\n",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": f"{governor}\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_the_fingerprint_changes_with_what_decides_speed_and_with_nothing_else(tmp_path: Path) -> None:
    first, again = host(board(tmp_path / "a")), host(board(tmp_path / "b"))
    other = host(board(tmp_path / "c", "performance"))
    assert first == again
    assert first.digest != other.digest
    assert (first.governor, other.governor) == ("ondemand", "performance")
    assert (first.board, first.cores, first.profile) == ("Raspberry Pi 5 Model B Rev 1.0", 1, None)


def test_only_a_profile_of_this_very_hardware_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    profiles = [catalogue.load(name) for name in catalogue.names()]
    assert fingerprint(profiles, board(tmp_path)).profile == "raspberry-pi-5"
    (tmp_path / "proc/device-tree/model").write_text("Some board\0")
    assert fingerprint(profiles, tmp_path).profile is None


def latency_job(folder: Path, width: int) -> LatencyJob:
    folder.mkdir()
    nodes = [helper.make_node("MatMul", [f"h{place}" if place else "x", "w"], [f"h{place + 1}"]) for place in range(6)]
    model = build(nodes, (width, width), {"w": weights(width, width) / np.float32(width)}, outputs=("h6",))
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "samples.npz", x=weights(3, width, width))
    artefact = Artefact(
        files=(folder / "model.onnx",),
        inputs=(TensorSpec(name="x", dtype="float32", shape=(width, width)),),
        outputs=(TensorSpec(name="h6", dtype="float32", shape=(width, width)),),
    )
    return LatencyJob(runtime=Runtime.ONNXRUNTIME, artefact=artefact, samples=folder / "samples.npz")


@pytest.mark.parametrize("memory_bytes", [2**40, 1])
def test_real_files_are_timed_each_in_its_own_process(tmp_path: Path, memory_bytes: int) -> None:
    """Together, and one at a time where no two fit into memory."""
    jobs = {"small": latency_job(tmp_path / "small", 4), "large": latency_job(tmp_path / "large", 192)}
    refused = latency_job(tmp_path / "refused", 4)
    refused.artefact.files[0].write_bytes(b"no model")
    machine = host(Path("/"))
    found = measure_latencies({**jobs, "refused": refused}, machine, memory_bytes)
    assert list(found) == ["small", "large", "refused"]
    small, large, failed = found.values()
    assert isinstance(small, Latency)
    assert isinstance(large, Latency)
    # Ten thousand times the work cannot be as fast on any machine.
    assert small.p50_ms < large.p50_ms
    assert small.p90_ms is not None
    assert small.p50_ms <= small.p90_ms
    assert (small.runs >= 64, small.threads, small.measured_on) == (True, 1, machine)
    assert isinstance(failed, str)
    assert "it exited with 1" in failed
    assert "INVALID_PROTOBUF" in failed or "InvalidProtobuf" in failed
