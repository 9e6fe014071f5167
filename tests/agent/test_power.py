"""Power on recorded /sys and /proc trees: what is measured is measured, and an estimate says so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgefleet.protocol.messages import EstimatedPower, MeasuredPower
from edgefleet_agent.power import open_meter
from edgefleet_agent.power.model import ModelMeter, read_cpu_times
from edgefleet_agent.power.rapl import RaplMeter, UnavailableError
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import PowerModel

MODEL = PowerModel(idle_w=2.0, max_w=12.0, scope="board_input")
WRAP = 262_143_328_850


class Machine:
    """A recorded tree, and a clock."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def domain(self, folder: str, name: str, energy_uj: int, wrap_uj: int = WRAP) -> None:
        path = self.root / "sys/class/powercap" / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "name").write_text(f"{name}\n")
        (path / "energy_uj").write_text(f"{energy_uj}\n")
        (path / "max_energy_range_uj").write_text(f"{wrap_uj}\n")

    def stat(self, line: str) -> None:
        (self.root / "proc").mkdir(exist_ok=True)
        (self.root / "proc/stat").write_text(f"{line}\ncpu0 1 2 3 4\nintr 12345 0 1\n")

    def cpu(self, busy: int, idle: int) -> None:
        self.stat(f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0")


@pytest.fixture(name="machine")
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def measured(meter: RaplMeter) -> float:
    window = meter.window()
    assert isinstance(window, MeasuredPower)
    assert (window.source, window.scope) == ("measured", "package")
    return window.watts


# Measured ---------------------------------------------------------------------------------------------


def test_mean_power_over_each_window(machine: Machine) -> None:
    machine.domain("intel-rapl:0", "package-0", 1_000_000)
    meter = RaplMeter(machine.root, MODEL)
    machine.now += 2.0
    machine.domain("intel-rapl:0", "package-0", 11_000_000)
    assert measured(meter) == pytest.approx(5.0)
    machine.now += 0.5
    machine.domain("intel-rapl:0", "package-0", 12_000_000)
    assert measured(meter) == pytest.approx(2.0)


def test_a_counter_that_wraps_is_unwrapped(machine: Machine) -> None:
    machine.domain("intel-rapl:0", "package-0", WRAP - 4_000_000)
    meter = RaplMeter(machine.root, MODEL)
    machine.now += 1.0
    machine.domain("intel-rapl:0", "package-0", 6_000_000)
    assert measured(meter) == pytest.approx(10.0, abs=1e-3)


def test_packages_are_added_each_with_its_own_range_and_nested_domains_are_not(machine: Machine) -> None:
    def set_all(zero: int, one: int, nested: int) -> None:
        machine.domain("intel-rapl:0", "package-0", zero)
        machine.domain("intel-rapl:1", "package-1", one, wrap_uj=10_000_000)
        machine.domain("intel-rapl:0:0", "core", nested)
        machine.domain("intel-rapl:0:1", "dram", nested)
        machine.domain("intel-rapl-mmio:0", "package-0", nested)

    set_all(0, 9_000_000, 0)
    (machine.root / "sys/class/powercap/intel-rapl").mkdir()
    meter = RaplMeter(machine.root, MODEL)
    machine.now += 1.0
    set_all(3_000_000, 1_000_000, 900_000_000)
    assert measured(meter) == pytest.approx(5.0, abs=1e-3)


def test_the_platform_domain_is_not_added_to_the_package_that_lies_in_it(machine: Machine) -> None:
    """Client processors (NUCs, laptops) have `psys` beside `package-0`: the whole board, the package included."""
    for package, platform in ((0, 0), (5_000_000, 9_000_000)):
        machine.domain("intel-rapl:0", "package-0", package)
        machine.domain("intel-rapl:1", "psys", platform)
        if not package:
            meter = RaplMeter(machine.root, MODEL)
            machine.now += 1.0
    assert measured(meter) == pytest.approx(5.0)


def test_two_windows_at_one_moment_divide_by_nothing(machine: Machine) -> None:
    machine.domain("intel-rapl:0", "package-0", 0)
    meter = RaplMeter(machine.root, MODEL)
    machine.now += 1.0
    machine.domain("intel-rapl:0", "package-0", 7_000_000)
    assert measured(meter) == pytest.approx(7.0)
    assert measured(meter) == pytest.approx(7.0)


@pytest.mark.parametrize("damage", ["gone", "text"])
def test_a_counter_that_vanishes_is_an_estimate_with_the_reason(machine: Machine, damage: str) -> None:
    machine.domain("intel-rapl:0", "package-0", 0)
    machine.cpu(0, 0)
    meter = RaplMeter(machine.root, MODEL)
    path = machine.root / "sys/class/powercap/intel-rapl:0/energy_uj"
    if damage == "gone":
        path.unlink()
    else:
        path.write_text("unsupported\n")
    machine.now += 1.0
    machine.cpu(10, 90)
    window = meter.window()
    assert isinstance(window, EstimatedPower)
    assert window.reason == "the powercap counter has vanished"
    assert window.watts == pytest.approx(3.0)
    # It comes back: the mean is over the whole time since it was last read.
    machine.now += 1.0
    machine.domain("intel-rapl:0", "package-0", 8_000_000)
    assert measured(meter) == pytest.approx(4.0)


def test_without_a_sensor_it_says_so(machine: Machine) -> None:
    with pytest.raises(UnavailableError, match="no power sensor"):
        RaplMeter(machine.root, MODEL)
    machine.domain("intel-rapl:0:0", "core", 0)
    with pytest.raises(UnavailableError, match="no power sensor"):
        RaplMeter(machine.root, MODEL)


def test_without_permission_it_says_what_would_help(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.domain("intel-rapl:0", "package-0", 0)
    real = Path.read_text

    def read_text(self: Path, encoding: str | None = None) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, encoding)

    monkeypatch.setattr(Path, "read_text", read_text)
    with pytest.raises(UnavailableError, match=r"^permission: .*intel-rapl:0/energy_uj is readable by root only"):
        RaplMeter(machine.root, MODEL)


def test_a_counter_that_is_no_number_is_unavailable(machine: Machine) -> None:
    machine.domain("intel-rapl:0", "package-0", 0)
    (machine.root / "sys/class/powercap/intel-rapl:0/max_energy_range_uj").write_text("")
    with pytest.raises(UnavailableError, match="cannot be read"):
        RaplMeter(machine.root, MODEL)


# Estimated --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("busy", "idle", "watts"), [(0, 100, 2.0), (25, 75, 4.5), (100, 0, 12.0)])
def test_the_estimate_is_linear_in_the_utilisation(machine: Machine, busy: int, idle: int, watts: float) -> None:
    machine.cpu(1000, 5000)
    meter = ModelMeter(machine.root, MODEL, "the board is simulated")
    machine.cpu(1000 + busy, 5000 + idle)
    window = meter.window()
    assert window.watts == pytest.approx(watts)
    assert (window.source, window.low_w, window.high_w) == ("estimated", 2.0, 12.0)
    assert (window.scope, window.reason) == ("board_input", "the board is simulated")


def test_each_window_counts_from_the_last(machine: Machine) -> None:
    machine.cpu(0, 0)
    meter = ModelMeter(machine.root, MODEL, "x")
    machine.cpu(100, 0)
    assert meter.window().watts == pytest.approx(12.0)
    machine.cpu(100, 100)
    assert meter.window().watts == pytest.approx(2.0)


def test_waiting_for_the_disk_is_idle_and_guests_are_not_counted_twice(machine: Machine) -> None:
    machine.stat("cpu  10 20 30 400 50 6 7 8 90 100")
    assert read_cpu_times(machine.root) == (10 + 20 + 30 + 6 + 7 + 8, 10 + 20 + 30 + 400 + 50 + 6 + 7 + 8)


@pytest.mark.parametrize(("busy", "idle"), [(1000, 5000), (990, 4990), (1010, 4900), (900, 5200)])
def test_counters_that_stand_still_or_go_back_stay_within_the_range(machine: Machine, busy: int, idle: int) -> None:
    machine.cpu(1000, 5000)
    meter = ModelMeter(machine.root, MODEL, "x")
    machine.cpu(busy, idle)
    assert 2.0 <= meter.window().watts <= 12.0


@pytest.mark.parametrize("line", [None, "", "cpu", "cpu  1 2", "cpu  a b c d e f g h"])
def test_an_unreadable_proc_stat_is_the_middle_and_says_so(machine: Machine, line: str | None) -> None:
    if line is not None:
        machine.stat(line)
    meter = ModelMeter(machine.root, MODEL, "no sensor")
    window = meter.window()
    assert (window.watts, window.low_w, window.high_w) == (7.0, 2.0, 12.0)
    assert window.reason == "no sensor; the processor's utilisation cannot be read either"
    machine.cpu(0, 100)
    assert "cannot be read" in meter.window().reason
    machine.cpu(0, 200)
    assert meter.window().reason == "no sensor"


# The choice -------------------------------------------------------------------------------------------


def test_a_sensor_is_preferred_and_a_simulated_board_has_none(machine: Machine) -> None:
    machine.domain("intel-rapl:0", "package-0", 0)
    profile = catalogue.load("intel-nuc")
    assert isinstance(open_meter(machine.root, profile, simulated=False), RaplMeter)
    simulated = open_meter(machine.root, profile, simulated=True).window()
    assert isinstance(simulated, EstimatedPower)
    assert simulated.reason.startswith("the board is simulated")


def test_without_a_sensor_the_profiles_model_is_used_with_the_reason(machine: Machine) -> None:
    profile = catalogue.load("raspberry-pi-5")
    window = open_meter(machine.root, profile, simulated=False).window()
    assert isinstance(window, EstimatedPower)
    assert window.reason.startswith("this machine has no power sensor")
    assert (window.low_w, window.high_w) == (profile.power.idle_w, profile.power.max_w)
