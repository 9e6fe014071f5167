"""Energy over time: what is measured is measured all the time, an estimate says so, and a sensor may go and come."""

from __future__ import annotations

import os
import random
from dataclasses import fields
from pathlib import Path

import pytest

from agent.sensor_trees import BOARDS, DAMAGES, READ_ERRORS, Board, Faults, Mailbox, clocks, damage, domain, hwmon, stat
from edgefleet_agent.power import FINDERS, load
from edgefleet_agent.power.meter import Energy, Meter
from edgefleet_agent.power.model import ModelMeter
from edgefleet_agent.power.sensor import Gauge
from edgefleet_agent.power.sensor_meter import SensorMeter
from edgefleet_agent.power.sysfs import UnreadableError, read_number, read_text
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import PowerModel, Sensor

MODEL = PowerModel(idle_w=2.0, max_w=12.0, scope="board_input")
POWER = "sys/class/hwmon/hwmon1/power1_input"


class Watts:
    """A sensor that says what it is told to, when it is told to speak."""

    name, scope, period_s = "watts", "board_input", 1.0

    def __init__(self) -> None:
        self.now_w = 5.0
        self.speaks = True
        self.read = 0

    def watts(self) -> float:
        self.read += 1
        if not self.speaks:
            raise UnreadableError("it is silent")
        return self.now_w


class Bench:
    """A SensorMeter on `Watts`, beside a model of 2 to 12 W that works half of the time."""

    def __init__(self, root: Path) -> None:
        self.board = Board(root, "virtual")
        self.sensor = Watts()
        self.found = 0
        estimate = ModelMeter(root, MODEL, "", self.board.clock)

        def find() -> Gauge:
            self.found += 1
            if not self.sensor.speaks:
                raise UnreadableError("it is still silent")
            return Gauge(self.sensor)

        self.meter = SensorMeter(find, estimate, self.board.clock)


@pytest.fixture(name="bench")
def _bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def is_whole(energy: Energy, watts: float, seconds: float) -> bool:
    """Measured, and as much as a constant power comes to."""
    return energy.source == "measured" and energy.joules == pytest.approx(watts * seconds)


# Integration ------------------------------------------------------------------------------------------


def test_windows_follow_one_another_without_a_gap(bench: Bench) -> None:
    total_j = 0.0
    for seconds in (10.0, 0.3, 2.5, 7.7):
        bench.board.run(bench.meter, seconds)
        energy = bench.meter.energy()
        assert is_whole(energy, 5.0, seconds)
        assert energy.duration_s == pytest.approx(seconds)
        total_j += energy.joules
    assert total_j == pytest.approx(5.0 * 20.5)


def test_a_ramp_is_integrated_by_trapezoids(bench: Bench) -> None:
    for second in range(10):
        bench.sensor.now_w = 5.0 + second + 1
        bench.board.run(bench.meter, 1.0)
    # From 5 to 15 W: 10 W in the mean.
    assert bench.meter.energy().joules == pytest.approx(100.0, rel=0.02)


def test_two_windows_at_one_moment_are_of_nothing(bench: Bench) -> None:
    bench.board.run(bench.meter, 3.0)
    bench.meter.energy()
    energy = bench.meter.energy()
    assert (energy.source, energy.joules, energy.duration_s) == ("measured", 0.0, 0.0)


def test_a_loop_that_offers_more_often_reads_no_more_often(bench: Bench) -> None:
    bench.board.run(bench.meter, 60.0, turn_s=0.01)
    assert 59 <= bench.sensor.read <= 61
    bench.meter.period_s = 0.1
    bench.meter.energy()
    read = bench.sensor.read
    bench.board.run(bench.meter, 10.0, turn_s=0.01)
    assert bench.sensor.read - read == pytest.approx(100, abs=15)
    assert bench.meter.energy().samples == pytest.approx(100, abs=15)


def test_a_sample_of_an_earlier_moment_is_passed_over(bench: Bench) -> None:
    bench.board.run(bench.meter, 5.0)
    bench.meter.energy()
    bench.meter.sample(bench.board.now - 3.0)
    bench.board.run(bench.meter, 5.0)
    assert is_whole(bench.meter.energy(), 5.0, 5.0)


def test_a_loop_that_stood_still_has_not_measured(bench: Bench) -> None:
    bench.board.now += 30.0
    energy = bench.meter.energy()
    assert energy.source == "estimated"
    assert energy.reason == "30.0 of 30.0 s were not measured: watts was not read for 30.0 s"
    bench.board.run(bench.meter, 5.0)
    assert is_whole(bench.meter.energy(), 5.0, 5.0)


def test_a_reading_that_fails_for_a_moment_is_bridged(bench: Bench) -> None:
    bench.board.run(bench.meter, 3.0)
    bench.sensor.speaks = False
    bench.board.run(bench.meter, 2.0)
    bench.sensor.speaks = True
    bench.board.run(bench.meter, 5.0)
    assert is_whole(bench.meter.energy(), 5.0, 10.0)


def test_a_sensor_that_goes_makes_the_whole_window_an_estimate(bench: Bench) -> None:
    bench.board.run(bench.meter, 2.0)
    bench.sensor.speaks = False
    bench.board.write({"proc/stat": stat((150, 950), (150, 950), (150, 950), (150, 950))})
    bench.board.run(bench.meter, 8.0)
    energy = bench.meter.energy()
    assert (energy.source, energy.scope, energy.samples) == ("estimated", "board_input", 0)
    # Half of the time busy: 7 W, and none of the 5 W that were measured at first.
    assert energy.joules == pytest.approx(70.0)
    assert energy.low_j == pytest.approx(20.0)
    assert energy.high_j == pytest.approx(120.0)
    assert energy.reason is not None
    assert energy.reason.endswith("s were not measured: it is silent")


def test_what_was_drawn_while_it_was_silent_is_in_no_measured_window(bench: Bench) -> None:
    bench.sensor.speaks = False
    bench.board.run(bench.meter, 10.0)
    assert bench.meter.energy().source == "estimated"
    bench.board.run(bench.meter, 4.0)
    bench.sensor.speaks = True
    bench.board.run(bench.meter, 6.0)
    energy = bench.meter.energy()
    assert energy.source == "estimated"
    assert energy.reason is not None
    assert "it is silent" in energy.reason
    bench.board.run(bench.meter, 10.0)
    assert is_whole(bench.meter.energy(), 5.0, 10.0)


def test_a_sensor_that_stays_away_is_looked_for_again_now_and_then(bench: Bench) -> None:
    bench.sensor.speaks = False
    bench.board.run(bench.meter, 600.0)
    assert 9 <= bench.found <= 11
    bench.sensor.speaks = True
    bench.board.run(bench.meter, 1.5)
    bench.meter.energy()
    bench.board.run(bench.meter, 10.0)
    assert is_whole(bench.meter.energy(), 5.0, 10.0)


def test_a_slow_bus_is_read_less_often(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second a reading: the loop would do nothing else."""
    said = bench.sensor.watts

    def slow() -> float:
        bench.board.now += 0.1
        return said()

    monkeypatch.setattr(bench.sensor, "watts", slow)
    bench.meter.energy()
    read = bench.sensor.read
    bench.board.run(bench.meter, 100.0)
    assert bench.sensor.read - read <= 21
    assert bench.meter.energy().source == "measured"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_a_measured_window_is_true(seed: int, tmp_path: Path) -> None:
    """At 5 W: each window lasts from the last one to the next, and is 5 W throughout or an estimate in its range."""
    bench, chance = Bench(tmp_path), random.Random(seed)
    begun_s, lasted_s, sources = bench.board.now, 0.0, set()
    for _ in range(60):
        bench.sensor.speaks = chance.random() < 0.7
        bench.board.run(bench.meter, chance.choice((0.0, 0.3, 1.0, 4.0, 9.0)))
        bench.board.now += chance.choice((0.0, 0.0, 0.0, 0.05, 20.0))
        if chance.random() < 0.6:
            energy = bench.meter.energy()
            lasted_s += energy.duration_s
            sources.add(energy.source)
            if energy.source == "measured":
                assert energy.joules == pytest.approx(5.0 * energy.duration_s, rel=2e-3)
            else:
                assert energy.reason
                assert energy.low_j is not None
                assert energy.high_j is not None
                assert energy.low_j <= energy.joules <= energy.high_j
    lasted_s += bench.meter.energy().duration_s
    assert lasted_s == pytest.approx(bench.board.now - begun_s)
    assert sources == {"measured", "estimated"}


def test_a_counter_accounts_for_what_was_not_read_but_not_for_another_window(tmp_path: Path) -> None:
    board = Board(tmp_path, "nuc")
    meter, file = board.meter(), tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    away = file.with_name("away")
    file.rename(away)
    board.run(meter, 25.0)
    away.rename(file)
    board.write(domain("intel-rapl:0", "package-0", 126_000_000))
    board.run(meter, 5.0)
    energy = meter.energy()
    # 125 J while nobody could read it, and 25 J more.
    assert energy.source == "measured"
    assert energy.joules == pytest.approx(150.0)

    file.rename(away)
    board.run(meter, 30.0)
    assert meter.energy().source == "estimated"
    away.rename(file)
    board.write(domain("intel-rapl:0", "package-0", 301_000_000))
    board.run(meter, 30.0)
    assert meter.energy().source == "estimated"
    board.run(meter, 30.0)
    energy = meter.energy()
    assert energy.source == "measured"
    assert energy.joules == pytest.approx(150.0)


# Damage -----------------------------------------------------------------------------------------------


def _files(board: Board) -> list[Path]:
    """What meters read."""
    others = {"thermal", "thermal_throttle"}
    return sorted(path for path in board.root.rglob("*") if path.is_file() and not others & set(path.parts))


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", [name for name in BOARDS if name != "virtual"])
def test_any_file_may_be_damaged_at_any_time(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, in the middle of a window and before the opening: nothing is raised, and no lie told."""
    Mailbox(monkeypatch)
    board = Board(tmp_path, name)
    for path in _files(board):
        meter, content = board.meter(), path.read_bytes()
        damage(path, kind)
        board.run(meter, 6.0, turn_s=1.0)
        for energy in (meter.energy(), board.meter().energy()):
            assert (energy.source == "measured") == (energy.reason is None), path
            assert 0.0 <= energy.joules <= (energy.high_j or 1000.0), path
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        path.write_bytes(content)
    # Mended: at the latest when it is looked for again.
    for _ in range(4):
        board.run(meter, 20.0, turn_s=1.0)
        energy = meter.energy()
    assert energy.source == "measured"


@pytest.mark.parametrize("code", READ_ERRORS)
@pytest.mark.parametrize("name", [name for name in BOARDS if name not in {"virtual", "pi-5"}])
def test_a_file_that_opens_and_cannot_be_read(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As attributes of sysfs do whose device is asleep, gone or does not answer on its bus."""
    board, faults = Board(tmp_path, name), Faults(monkeypatch)
    meter = board.meter()
    measured_by = ("energy_uj", "power1_input", "in1_input", "curr1_input", "in_power0_input", "current_now")
    faults.reads = dict.fromkeys(measured_by, code)
    board.run(meter, 10.0)
    energy = meter.energy()
    assert energy.source == "estimated"
    assert energy.reason
    assert board.meter().energy().source == "estimated"
    faults.reads.clear()
    board.run(meter, 10.0)
    meter.energy()
    board.run(meter, 10.0)
    assert meter.energy().source == "measured"


def test_a_sensor_whose_number_changed_is_found_again(tmp_path: Path) -> None:
    """Its driver was loaded anew, and another device has its number now."""
    board = Board(tmp_path, "pi-4-ina219")
    meter = board.meter()
    hwmon_1 = tmp_path / "sys/class/hwmon/hwmon1"
    hwmon_1.rename(hwmon_1.with_name("hwmon7"))
    board.write(hwmon({"name": "cpu_thermal"}, {"name": "nvme", "temp1_input": 40000}))
    board.run(meter, 80.0)
    assert meter.energy().source == "estimated"
    board.run(meter, 10.0)
    energy = meter.energy()
    assert energy.source == "measured"
    assert energy.joules == pytest.approx(45.6)


def test_an_attribute_is_read_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "attribute"
    path.write_bytes(b"-42\n\0")
    assert read_number(path) == -42
    path.write_text("5 6\n")
    with pytest.raises(UnreadableError, match="holds '5 6', not a number"):
        read_number(path)
    path.unlink()
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(UnreadableError, match="has no value at the moment"):
            read_text(path)
    finally:
        os.close(writer)


# The estimate -----------------------------------------------------------------------------------------


def model(board: Board, reason: str = "no sensor") -> ModelMeter:
    return ModelMeter(board.root, MODEL, reason, board.clock)


def watts(energy: Energy) -> float:
    return energy.joules / energy.duration_s


@pytest.mark.parametrize(("busy", "idle", "expected"), [(0, 100, 2.0), (25, 75, 4.5), (100, 0, 12.0)])
def test_the_estimate_is_linear_in_the_utilisation(busy: int, idle: int, expected: float, tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    board.write({"proc/stat": stat((1000, 5000))})
    meter = model(board, "the board is simulated")
    board.write({"proc/stat": stat((1000 + busy, 5000 + idle))})
    board.now += 4.0
    energy = meter.energy()
    assert watts(energy) == pytest.approx(expected)
    assert (energy.source, energy.low_j, energy.high_j) == ("estimated", 8.0, 48.0)
    assert (energy.scope, energy.reason, energy.samples) == ("board_input", "the board is simulated", 0)


def test_a_lowered_clock_counts_for_the_processors_that_have_it(tmp_path: Path) -> None:
    """Two fast cores at half of their clock and fully busy, two slow ones at theirs and idle."""
    board = Board(tmp_path, "virtual")
    board.write(clocks(("0 1", 600000, 1800000), ("4 5", 1200000, 2400000)))
    lines = "cpu  0 0 0 0\ncpu0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0\ncpu4 0 0 0 0 0 0 0 0\ncpu5 0 0 0 0 0 0 0 0\n"
    board.write({"proc/stat": lines})
    meter = model(board)
    board.write({"proc/stat": lines.replace("cpu4 0", "cpu4 100").replace("cpu5 0", "cpu5 100").replace(
        "cpu0 0 0 0 0", "cpu0 0 0 0 100").replace("cpu1 0 0 0 0", "cpu1 0 0 0 100")})  # fmt: skip
    board.now += 1.0
    # Utilisation 1/2, at half of the clock: a quarter of the range.
    assert watts(meter.energy()) == pytest.approx(2.0 + 10.0 / 4)


def test_what_the_clock_was_while_it_worked_counts(tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    board.write(clocks(("0", 2000, 2000)))
    meter = model(board)
    for second in range(1, 11):
        # Throttled for the second half.
        board.write({"proc/stat": stat((100 + 100 * second, 900)), **clocks(("0", 1000 if second > 5 else 2000, 2000))})
        board.run(meter, 1.0, turn_s=0.5)
    assert watts(meter.energy()) == pytest.approx((12.0 + 7.0) / 2, rel=0.06)


def test_waiting_for_the_disk_is_idle_and_guests_are_not_counted_twice(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu  1 1 1 1\ncpu0 10 20 30 400 50 6 7 8 90 100\n")
    times = load.read_times(tmp_path)
    assert times == {0: load.Times(10 + 20 + 30 + 6 + 7 + 8, 10 + 20 + 30 + 400 + 50 + 6 + 7 + 8)}


@pytest.mark.parametrize(("busy", "idle"), [(1000, 5000), (990, 4990), (1010, 4900), (900, 5200)])
def test_counters_that_stand_still_or_go_back_stay_within_the_range(busy: int, idle: int, tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    board.write({"proc/stat": stat((1000, 5000))})
    meter = model(board)
    board.write({"proc/stat": stat((busy, idle))})
    board.now += 1.0
    energy = meter.energy()
    assert energy.low_j is not None
    assert energy.high_j is not None
    assert energy.low_j <= energy.joules <= energy.high_j


def test_a_processor_that_comes_and_goes_is_passed_over(tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    board.write({"proc/stat": stat((0, 0), (500, 0))})
    meter = model(board)
    board.write({"proc/stat": stat((25, 75))})
    board.now += 1.0
    assert watts(meter.energy()) == pytest.approx(4.5)


@pytest.mark.parametrize(
    "text", [None, "", "cpu", "cpu  1 2\ncpu0 1 2", "cpu0 a b c d e f g h", "cpu  1 2 3 4 5 6 7 8"]
)
def test_an_unreadable_proc_stat_is_the_middle_and_says_so(text: str | None, tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    board.remove("proc/stat")
    if text is not None:
        board.write({"proc/stat": text})
    meter = model(board)
    board.now += 2.0
    energy = meter.energy()
    assert (energy.joules, energy.low_j, energy.high_j) == (14.0, 4.0, 24.0)
    assert energy.reason == "no sensor; the processors' load cannot be read either"
    board.write({"proc/stat": stat((0, 100))})
    board.now += 1.0
    assert meter.energy().reason == "no sensor; the processors' load cannot be read either"
    board.write({"proc/stat": stat((0, 200))})
    board.now += 1.0
    energy = meter.energy()
    assert (energy.joules, energy.reason) == (2.0, "no sensor")


# The choice -------------------------------------------------------------------------------------------


def test_the_table_has_every_sensor_that_a_profile_may_name() -> None:
    assert set(FINDERS) == set(Sensor)


def test_a_simulated_board_has_no_sensor_of_its_own(tmp_path: Path) -> None:
    board = Board(tmp_path, "nuc")
    energy = board.meter(simulated=True).energy()
    assert (energy.source, energy.reason) == ("estimated", "the board is simulated")


def test_the_profile_s_order_decides_and_what_it_does_not_name_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mailbox(monkeypatch)
    board = Board(tmp_path, "pi-5")
    board.write(hwmon({"name": "ina226", "power1_input": 7_000_000}))
    assert board.meter().name == "rpi-pmic"
    board.profile = "generic-aarch64"
    assert board.meter().name == "ina2xx"
    board.remove("sys/class/hwmon/hwmon0")
    assert board.meter().name == "rpi-pmic", "generic profiles name no Raspberry Pi's chip, but it is there"


def test_without_any_sensor_it_says_which_there_could_be(tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    energy = board.meter().energy()
    assert energy.reason == "no power sensor was found (such a device may have rapl)"
    profile = catalogue.load("generic-x86-64").power
    assert energy.scope == profile.scope


def test_a_sensor_whose_driver_came_after_the_agent_is_found(tmp_path: Path) -> None:
    """At boot nothing waits for the drivers."""
    board = Board(tmp_path, "pi-4-ina219")
    chip, later = tmp_path / "sys/class/hwmon/hwmon1", tmp_path / "later"
    chip.rename(later)
    meter = board.meter()
    board.run(meter, 30.0)
    assert meter.name == "model"
    assert meter.energy().reason == "no power sensor was found (such a device may have ina2xx)"
    later.rename(chip)
    board.run(meter, 40.0)
    energy = meter.energy()
    assert (meter.name, energy.source) == ("ina2xx", "estimated")
    assert energy.reason is not None
    assert "of 40.0 s were not measured" in energy.reason
    board.run(meter, 10.0)
    assert is_whole(meter.energy(), 4.56, 10.0)


def test_another_sensor_takes_over_under_its_own_scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mailbox(monkeypatch)
    board = Board(tmp_path, "pi-5")
    meter = board.meter()
    board.remove("dev/vcio_gencmd")
    board.write(hwmon({"name": "ina226", "power1_input": 7_000_000}))
    board.run(meter, 80.0)
    meter.energy()
    board.run(meter, 10.0)
    energy = meter.energy()
    assert (energy.source, energy.scope) == ("measured", "board_input")
    assert energy.joules == pytest.approx(70.0)


def test_each_refusal_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(tmp_path, "pi-4-ina219")
    board.write({"sys/class/hwmon/hwmon1/curr1_input": "-5\n", "dev/vcio": ""})
    Faults(monkeypatch).opens["vcio"] = 13
    meter: Meter = board.meter()
    reason = meter.energy().reason
    assert meter.name == "model"
    assert reason is not None
    first, second = reason.split("; rpi-pmic: ")
    assert first.startswith("ina2xx: ")
    assert second.startswith("permission: ")


def test_energy_has_the_fields_that_a_window_sends() -> None:
    assert {field.name for field in fields(Energy)} == {
        "joules", "low_j", "high_j", "source", "scope", "reason", "duration_s", "samples",
    }  # fmt: skip
