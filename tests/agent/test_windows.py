"""Telemetry windows: the worker's report, and beside it what the main process sees of its own and the worker's."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

import pytest

from edgefleet.protocol.measurements import Clock, EstimatedEnergy, MeasuredEnergy
from edgefleet.protocol.messages import Window
from edgefleet_agent import clock, footprint
from edgefleet_agent.clock import StampClock
from edgefleet_agent.power.meter import Energy
from edgefleet_agent.tally import Tally
from edgefleet_agent.thermal import ThermalReading
from edgefleet_agent.windows import Windows

DIGEST = "sha256:" + "2" * 64
WORKER = 4321


class FakeMeter:
    """Tells the energies that it was given, one after the other."""

    name = "fake"
    period_s = 1.0

    def __init__(self, *energies: Energy) -> None:
        self.energies = list(energies)
        self.sampled: list[float] = []

    def sample(self, now: float) -> None:
        self.sampled.append(now)

    def energy(self) -> Energy:
        return self.energies.pop(0)


class FakeThermal:
    """Hotter by one degree at every reading."""

    def __init__(self) -> None:
        self.reads = 0
        self.sampled: list[float] = []

    def sample(self, now: float) -> None:
        self.sampled.append(now)

    def read(self) -> ThermalReading:
        self.reads += 1
        return ThermalReading(
            temperature_c=50.0 + self.reads,
            frequency_mhz=1800.0,
            throttled=False,
            undervoltage=None,
            throttled_since_boot=None,
            undervoltage_since_boot=None,
            reason="no supply alarm",
        )


def measured(joules: float) -> Energy:
    return Energy(joules, None, None, "measured", "board_input", None, 10.0, 1000)


class Machine:
    """A /proc with two processes in it, and windows that read it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, proc: Path, *energies: Energy) -> None:
        self.proc = proc
        self.meter, self.thermal = FakeMeter(*energies), FakeThermal()
        stamps = StampClock("b1", lambda: 0.0, lambda: True)
        self.cpu_s = 100.0
        monkeypatch.setattr(time, "process_time", lambda: self.cpu_s)
        self.run(os.getpid())
        self.windows = Windows(self.meter, self.thermal, stamps, proc)  # type: ignore[arg-type]
        self.windows.begin()

    def run(self, pid: int, pss_kib: int = 1000) -> None:
        """Let there be a process."""
        (self.proc / str(pid)).mkdir(parents=True, exist_ok=True)
        (self.proc / str(pid) / "smaps_rollup").write_text(
            f"00400000-7fff ---p 00000000 00:00 0 [rollup]\nRss: 9 kB\nPss: {pss_kib} kB\nPss_Dirty: 3 kB\n"
        )

    def close(self, report: dict[str, Any]) -> Window:
        return self.windows.close(report, DIGEST, WORKER)


@pytest.fixture(name="report")
def _report() -> dict[str, Any]:
    tally = Tally()
    for _ in range(5):
        tally.add(0.002, 0.003, 0.0001)
    return tally.report() | {"kind": "window", "duration_s": 10.0, "cpu_s": 2.0}


def test_a_window_is_the_report_and_what_was_spent_since_the_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: dict[str, Any]
) -> None:
    machine = Machine(monkeypatch, tmp_path, measured(999.0), measured(35.0), measured(36.0))
    machine.run(os.getpid(), 30_000)
    machine.run(WORKER, 40_000)
    machine.cpu_s += 0.5
    first = machine.close(report)
    assert (first.digest, first.count, first.errors, first.duration_s) == (DIGEST, 5, 0, 10.0)
    assert first.latency.inference.sketch().quantile(0.5) == pytest.approx(0.002, rel=0.011)
    # What was drawn before the worker was there belongs to no window.
    assert first.energy == MeasuredEnergy(joules=35.0, duration_s=10.0, samples=1000, scope="board_input")
    assert (first.thermal.temperature_c, first.thermal.throttled) == (52.0, False)
    assert first.thermal.reason == "no supply alarm"
    assert (first.memory.agent_bytes, first.memory.worker_bytes) == (30_720_000, 40_960_000)
    assert first.cpu_share == pytest.approx(0.25)
    machine.cpu_s += 0.25
    second = machine.close(report | {"cpu_s": 0.25})
    assert second.cpu_share == pytest.approx(0.05)
    assert second.energy.joules == 36.0


def test_an_estimate_stays_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: dict[str, Any]) -> None:
    estimate = Energy(20.0, 10.0, 40.0, "estimated", "package", "permission", 10.5, 0)
    found = Machine(monkeypatch, tmp_path, measured(1.0), estimate).close(report).energy
    assert found == EstimatedEnergy(
        joules=20.0, low_j=10.0, high_j=40.0, duration_s=10.5, scope="package", reason="permission"
    )


def test_what_cannot_be_read_is_null(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: dict[str, Any]) -> None:
    """The worker has ended, and its last report is taken afterwards."""
    window = Machine(monkeypatch, tmp_path, measured(1.0), measured(1.0)).close(report)
    assert window.memory.worker_bytes is None
    assert window.memory.agent_bytes == 1_024_000


def test_meter_and_heat_are_read_within_a_window_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(monkeypatch, tmp_path, measured(1.0))
    for now in (1.0, 1.1):
        machine.windows.tick(now)
    assert machine.meter.sampled == machine.thermal.sampled == [1.0, 1.1]


@pytest.mark.parametrize(
    "changes",
    [
        {"started_s": None},
        {"started_s": float("nan")},
        {"duration_s": float("nan")},
        {"duration_s": -1.0},
        {"duration_s": "long"},
        {"cpu_s": -100.0},
        {"count": 4},
        {"count": -1},
        {"latency": {}},
        {"latency": None},
        {"statistics": {"inputs": [{"name": "x"}]}},
        {"accuracy": {"correct": 1.5, "labelled": 2}},
    ],
)
def test_a_report_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report: dict[str, Any], changes: dict[str, Any]
) -> None:
    machine = Machine(monkeypatch, tmp_path, *[measured(1.0)] * 3)
    with pytest.raises(ValueError, match=r"."):
        machine.close(report | changes)
    for name in changes:
        with pytest.raises(ValueError, match=name):
            machine.close({key: value for key, value in report.items() if key != name})
    with pytest.raises(ValueError, match="lacks"):
        machine.close({"kind": "window"})


# The clock --------------------------------------------------------------------------------------------


class Clocks:
    """Both clocks, set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_s, self.monotonic_s = 1_800_000_000.0, 100.0
        monkeypatch.setattr(time, "time", lambda: self.wall_s)
        monkeypatch.setattr(time, "monotonic", lambda: self.monotonic_s)


@pytest.mark.parametrize(
    ("floor_s", "synced", "wall_s", "found"),
    [
        (0.0, True, 1_799_999_990.0, Clock.SYNCED),
        (0.0, False, 1_799_999_990.0, Clock.UNSYNCED),
        (1_799_999_990.0, False, 1_799_999_990.0, Clock.UNSYNCED),
        (1_799_999_991.0, False, 1_799_999_991.0, Clock.FLOOR),
        # A time server that says what cannot be is no better than none.
        (1_900_000_000.0, True, 1_900_000_000.0, Clock.FLOOR),
    ],
)
def test_a_stamp_is_of_its_moment_and_says_how_far_it_can_be_believed(
    monkeypatch: pytest.MonkeyPatch, floor_s: float, synced: bool, wall_s: float, found: Clock
) -> None:
    Clocks(monkeypatch)
    stamp = StampClock("b1", lambda: floor_s, lambda: synced).stamp(90.0)
    assert (stamp.boot_id, stamp.monotonic_s, stamp.wall_s, stamp.clock) == ("b1", 90.0, wall_s, found)


def test_a_clock_that_jumps_moves_no_moment_against_another(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch)
    stamps = StampClock("b1", lambda: 0.0, lambda: False)
    clocks.wall_s += 1e6
    assert stamps.stamp(95.0).wall_s - stamps.stamp(90.0).wall_s == 5.0


@pytest.mark.parametrize(("answer", "synced"), [(0, True), (1, True), (5, False), (-1, False)])
def test_the_kernel_says_whether_the_clock_follows_a_server(
    monkeypatch: pytest.MonkeyPatch, answer: int, synced: bool
) -> None:
    class Libc:
        def adjtimex(self, timex: object) -> int:
            assert bytes(timex) == bytes(len(bytes(timex)))  # type: ignore[call-overload]
            return answer

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc())
    assert clock.follows_a_time_server() is synced


def test_this_kernel_is_asked_without_harm() -> None:
    assert clock.follows_a_time_server() in (True, False)


# Processes --------------------------------------------------------------------------------------------


def test_of_this_process_and_machine_the_memory_is_known() -> None:
    found = footprint.pss_bytes(os.getpid())
    assert found is not None
    assert 1e6 < found < 1e10
    free = footprint.available_bytes()
    assert free is not None
    assert free > 1e6


@pytest.mark.parametrize("content", ["", "Rss: 1 kB\n", "Pss: many kB\nMemAvailable: much\n", "Pss:\nMemAvailable:\n"])
def test_of_what_cannot_be_read_nothing_is_said(tmp_path: Path, content: str) -> None:
    assert (footprint.pss_bytes(1, tmp_path), footprint.available_bytes(tmp_path)) == (None, None)
    (tmp_path / "1").mkdir()
    for name in ("1/smaps_rollup", "meminfo"):
        (tmp_path / name).write_text(content)
    assert (footprint.pss_bytes(1, tmp_path), footprint.available_bytes(tmp_path)) == (None, None)
