"""The demo as a user runs it: one command, a whole fleet, nothing left behind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from edgefleet_demo import broker as brokers
from edgefleet_demo import scene
from edgefleet_demo.processes import EDGEFLEET

EXPECTED = {
    "pi-kitchen": ("raspberry-pi-5", "litert"),
    "nuc-office": ("intel-nuc", "openvino"),
    "pc-hall": ("generic-x86-64", "onnxruntime"),
}
POINTS = 0.005
FP32_TOP1 = 539 / 540


def processes_that_mention(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command:
            found.append(command)
    return found


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    folder = tmp_path_factory.mktemp("demo") / "build"
    done = subprocess.run(
        [*EDGEFLEET, "demo", "--folder", str(folder)], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "committed" in done.stdout
    warned = done.stderr.count("warning: mosquitto is not installed; using amqtt")
    assert warned == (0 if brokers.find_mosquitto() else 1)
    assert processes_that_mention(str(folder)) == []
    devices: dict[str, dict[str, object]] = json.loads((folder / "summary.json").read_text())["devices"]
    return devices


def test_every_device_runs_the_variant_of_its_profile(summary: dict[str, dict[str, object]]) -> None:
    assert set(summary) == {device.name for device in scene.DEVICES} == set(EXPECTED)
    for name, (profile, runtime) in EXPECTED.items():
        device = summary[name]
        assert (device["profile"], device["runtime"], device["precision"]) == (profile, runtime, "int8")
        assert device["state"] == "committed"
    assert len({device["package_digest"] for device in summary.values()}) == 1


def test_figures_are_measured_or_say_why_not(summary: dict[str, dict[str, object]]) -> None:
    for device in summary.values():
        accuracy, latency, power = device["accuracy"], device["latency"], device["power"]
        assert isinstance(accuracy, float)
        assert accuracy >= FP32_TOP1 - POINTS
        assert isinstance(latency, dict)
        assert 0 < latency["p50_ms"] <= latency["p90_ms"]
        assert isinstance(power, dict)
        assert power["source"] in ("measured", "estimated")
        assert power["scope"]
        assert (power["mj_per_inference"] is None) == (power["mj_reason"] is not None)
        if power["source"] == "estimated":
            assert power["low_w"] <= power["watts"] <= power["high_w"]
            assert power["reason"]
        if device["simulated"]:
            assert device["simulated_reason"]
            assert power["source"] == "estimated"


def test_a_raspberry_pi_here_is_marked_simulated(summary: dict[str, dict[str, object]]) -> None:
    board = Path("/proc/device-tree/model")
    is_pi = board.exists() and "Raspberry Pi 5" in board.read_text()
    assert summary["pi-kitchen"]["simulated"] is not is_pi
