"""Temperature, clock, throttling and supply on recorded boards: what is told is told, and nothing else is."""

from __future__ import annotations

import errno
from dataclasses import fields
from pathlib import Path

import pytest

from agent.sensor_trees import (
    BOARDS,
    DAMAGES,
    READ_ERRORS,
    Board,
    Faults,
    Mailbox,
    clocks,
    cooling,
    damage,
    hwmon,
    zones,
)
from edgefleet.protocol.measurements import Thermal as ThermalPart
from edgefleet_agent.thermal import Thermal, ThermalReading
from edgefleet_device_profiles import catalogue

FLAGS = "sys/devices/platform/soc/soc:firmware/get_throttled"
PACKAGE = "sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count"


def thermal(board: Board, *, simulated: bool = False) -> Thermal:
    return Thermal(board.root, catalogue.load(board.profile), simulated=simulated)


def pi(tmp_path: Path, flags: int = 0) -> tuple[Board, Thermal]:
    """A Raspberry Pi whose kernel has the firmware's flags in a file."""
    board = Board(tmp_path, "pi-4-ina219")
    board.write({FLAGS: f"{flags:x}\n"})
    return board, thermal(board)


# Temperature and clock --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "celsius"),
    [
        ("pi-5", 61.25),
        # The junction, the hottest of all; the GPU's sensor is switched off.
        ("orin-nano", 64.531),
        # The package, not what is around it.
        ("nuc", 71.0),
        # No zone at all: the hottest of the cores, not of the disk.
        ("two-sockets", 57.0),
        ("virtual", None),
    ],
)
def test_the_processor_s_temperature(name: str, celsius: float | None, tmp_path: Path) -> None:
    assert thermal(Board(tmp_path, name)).read().temperature_c == celsius


@pytest.mark.parametrize(
    ("value", "celsius"), [("54321", 54.321), ("54", 54.0), ("-256000", None), ("-5000", -5.0), ("127500000", None)]
)
def test_thousandths_of_a_degree_and_what_cannot_be(value: str, celsius: float | None, tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    board.write(zones({"type": "cpu-thermal", "temp": value}))
    assert thermal(board).read().temperature_c == celsius


def test_of_several_clusters_the_hottest_counts(tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    board.write(zones(
        {"type": "battery", "temp": 90000}, {"type": "cpu-0-0", "temp": 51000}, {"type": "CPU-1-0", "temp": 58000},
    ))  # fmt: skip
    assert thermal(board).read().temperature_c == 58.0


def test_the_highest_clock_is_told(tmp_path: Path) -> None:
    board = Board(tmp_path, "nuc")
    assert thermal(board).read().frequency_mhz == 3400.0
    board.write(clocks(("0", 800000, 3400000), ("1", 900000, 3400000)))
    assert thermal(board).read().frequency_mhz == 900.0
    assert thermal(Board(tmp_path / "virtual", "virtual")).read().frequency_mhz is None


def test_a_raspberry_pi_s_clock_is_the_firmware_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel believes in what it asked for."""
    mailbox, board = Mailbox(monkeypatch), Board(tmp_path, "pi-5")
    reader = thermal(board)
    assert reader.read().frequency_mhz == 1500.0
    mailbox.answers["measure_clock arm"] = "frequency(0)=1000265600"
    assert reader.read().frequency_mhz == 1000.2656


# Throttling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "throttled", "undervoltage", "throttled_ever", "undervoltage_ever"),
    [
        (0x0, False, False, False, False),
        (0x1, False, True, False, False),
        (0x2, True, False, False, False),
        (0x4, True, False, False, False),
        (0x8, True, False, False, False),
        (0x50005, True, True, True, True),
        (0x50000, False, False, True, True),
        (0x10000, False, False, False, True),
        (0x20000, False, False, True, False),
        (0x80000, False, False, True, False),
        (0xE0008, True, False, True, False),
    ],
)
@pytest.mark.parametrize("way", ["file", "mailbox"])
def test_the_firmware_s_flags(
    flags: int, throttled: bool, undervoltage: bool, throttled_ever: bool, undervoltage_ever: bool, way: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if way == "file":
        _, reader = pi(tmp_path, flags)
    else:
        Mailbox(monkeypatch, get_throttled=f"throttled={flags:#x}")
        reader = thermal(Board(tmp_path, "pi-5"))
    reading = reader.read()
    assert (reading.throttled, reading.undervoltage) == (throttled, undervoltage)
    assert (reading.throttled_since_boot, reading.undervoltage_since_boot) == (throttled_ever, undervoltage_ever)
    assert reading.reason is None


def test_what_passes_between_two_samples_is_seen_by_the_flags_since_boot(tmp_path: Path) -> None:
    board, reader = pi(tmp_path)
    assert reader.read().throttled is False
    board.write({FLAGS: "50000\n"})
    reading = reader.read()
    assert (reading.throttled, reading.undervoltage) == (True, True)
    # It happened before this window.
    reading = reader.read()
    assert (reading.throttled, reading.undervoltage) == (False, False)


def test_what_passes_between_two_readings_is_seen_by_a_sample(tmp_path: Path) -> None:
    board, reader = pi(tmp_path, 0x50000)
    board.write({FLAGS: "50005\n"})
    reader.sample(1000.0)
    board.write({FLAGS: "50000\n"})
    reader.sample(1000.5)
    reading = reader.read()
    assert (reading.throttled, reading.undervoltage) == (True, True)
    assert reader.read().throttled is False


def test_it_is_sampled_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox, board = Mailbox(monkeypatch), Board(tmp_path, "pi-5")
    reader = thermal(board)
    mailbox.asked.clear()
    for tick in range(1000):
        reader.sample(1000.0 + tick / 100)
    assert mailbox.asked == ["get_throttled"] * 10


def test_a_counter_that_rises_is_throttling_and_one_that_stands_is_none(tmp_path: Path) -> None:
    board = Board(tmp_path, "nuc")
    reader = thermal(board)
    assert reader.read().throttled is False
    board.write({PACKAGE: "320795\n"})
    assert reader.read().throttled is True
    reading = reader.read()
    assert (reading.throttled, reading.undervoltage, reading.throttled_since_boot) == (False, None, None)
    board.write({PACKAGE: "0\n"})
    assert reader.read().throttled is False, "a processor that was taken offline counts anew"


def test_what_happened_between_the_opening_and_the_first_reading_counts(tmp_path: Path) -> None:
    board = Board(tmp_path, "nuc")
    reader = thermal(board)
    board.write({PACKAGE: "320795\n"})
    assert reader.read().throttled is True


@pytest.mark.parametrize(("event", "undervoltage"), [("oc1", True), ("oc2", False), ("oc3", False)])
def test_a_jetson_counts_what_its_supply_does_to_it(event: str, undervoltage: bool, tmp_path: Path) -> None:
    board = Board(tmp_path, "orin-nano")
    reader = thermal(board)
    reading = reader.read()
    assert (reading.throttled, reading.undervoltage) == (False, False)
    board.write({f"sys/class/hwmon/hwmon0/{event}_event_cnt": "40000\n"})
    reading = reader.read()
    assert (reading.throttled, reading.undervoltage) == (True, undervoltage)


@pytest.mark.parametrize(
    ("kind", "state", "throttled"),
    [
        ("cpufreq-cpu0", 2, True),
        ("thermal-cpufreq-0", 1, True),
        ("devfreq-17000000.gpu", 3, True),
        ("Processor", 1, True),
        ("Processor", 0, False),
        ("pwm-fan", 4, None),
        ("intel_powerclamp", -1, None),
        ("TCC Offset", 10, None),
    ],
)
def test_the_kernel_s_own_cooling(kind: str, state: int, throttled: bool | None, tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    board.write(cooling({"type": kind, "cur_state": state, "max_state": 10}))
    assert thermal(board).read().throttled is throttled


def test_cooling_that_is_over_by_the_reading_was_seen(tmp_path: Path) -> None:
    board = Board(tmp_path, "orin-nano")
    reader = thermal(board)
    state = "sys/class/thermal/cooling_device1/cur_state"
    board.write({state: "4\n"})
    reader.sample(1000.0)
    board.write({state: "0\n"})
    assert reader.read().throttled is True
    assert reader.read().throttled is False


def test_the_alarm_that_anyone_may_read(tmp_path: Path) -> None:
    board = Board(tmp_path, "pi-5")
    board.remove("dev/vcio_gencmd")
    reader = thermal(board)
    assert reader.read().undervoltage is False
    board.write({"sys/class/hwmon/hwmon0/in0_lcrit_alarm": "1\n"})
    assert reader.read().undervoltage is True


# What is not told -------------------------------------------------------------------------------------


def test_a_firmware_that_may_not_be_asked_leaves_throttling_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's cooling is at rest; the firmware may lower the clock without its knowledge."""
    board = Board(tmp_path, "pi-5")
    board.write(cooling({"type": "thermal-cpufreq-0", "cur_state": 0}))
    Faults(monkeypatch).opens.update(vcio_gencmd=errno.EACCES, vcio=errno.EACCES)
    reading = thermal(board).read()
    assert (reading.throttled, reading.undervoltage, reading.throttled_since_boot) == (None, False, None)
    assert reading.reason is not None
    assert reading.reason.startswith("permission: ")
    board.write(cooling({"type": "thermal-cpufreq-0", "cur_state": 1}))
    assert thermal(board).read().throttled is True


@pytest.mark.parametrize("text", ["", "throttled", "throttled=", "0x", "-1", "12345678901", "zz"])
def test_flags_that_are_none_are_not_guessed(text: str, tmp_path: Path) -> None:
    board, reader = pi(tmp_path)
    board.write({FLAGS: text})
    reading = reader.read()
    assert reading.throttled is None
    assert reading.reason is not None
    assert "not a hexadecimal number" in reading.reason


def test_without_an_indicator_the_profile_s_limit_decides_and_says_so(tmp_path: Path) -> None:
    board = Board(tmp_path, "pi-4-ina219")
    assert thermal(board).read().throttled is None
    board.write(zones({"type": "cpu-thermal", "temp": 80500}))
    reading = thermal(board).read()
    assert reading.throttled is True
    assert reading.reason == "throttled is inferred from 80.5 °C and the profile's 80 °C"


def test_a_limit_infers_nothing_where_the_board_tells(tmp_path: Path) -> None:
    board, reader = pi(tmp_path)
    board.write(zones({"type": "cpu-thermal", "temp": 84000}))
    reading = reader.read()
    assert (reading.throttled, reading.reason) == (False, None)


def test_a_simulated_board_has_no_heat_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox, board = Mailbox(monkeypatch), Board(tmp_path, "pi-5")
    reader = thermal(board, simulated=True)
    reader.sample(1000.0)
    reading = reader.read()
    assert reading == ThermalReading(None, None, None, None, None, None, "the board is simulated")
    assert mailbox.asked == []


def test_a_machine_that_tells_nothing_is_no_trouble(tmp_path: Path) -> None:
    assert thermal(Board(tmp_path, "virtual")).read() == ThermalReading(None, None, None, None, None, None, None)


# Damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", ["pi-5", "orin-nano", "nuc", "two-sockets"])
def test_any_file_may_be_damaged_at_any_time(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mailbox(monkeypatch)
    board = Board(tmp_path, name)
    board.write({FLAGS: "0\n"} if name == "pi-5" else {})
    reader = thermal(board)
    whole = reader.read()
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file() and "powercap" not in path.parts):
        content = path.read_bytes()
        damage(path, kind)
        reader.sample(1000.0)
        for reading in (reader.read(), thermal(board).read()):
            assert reading.temperature_c is None or -55 <= reading.temperature_c <= 150, path
            assert reading.throttled in {None, False}, path
            assert reading.undervoltage in {None, False}, path
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        path.write_bytes(content)
        assert reader.read() == whole, path


@pytest.mark.parametrize("code", READ_ERRORS)
@pytest.mark.parametrize("name", BOARDS)
def test_files_that_open_and_cannot_be_read(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, faults = Board(tmp_path, name), Faults(monkeypatch)
    reader = thermal(board)
    reader.read()
    faults.reads = {path.name: code for path in tmp_path.rglob("*") if path.is_file()}
    reader.sample(1000.0)
    reading = reader.read()
    assert (reading.temperature_c, reading.frequency_mhz, reading.undervoltage) == (None, None, None)


def test_devices_that_come_late_or_change_their_number_are_found(tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    reader = Thermal(board.root, catalogue.load(board.profile), clock=board.clock)
    board.write({**hwmon({"name": "k10temp", "temp1_input": 45000}), **cooling({"type": "Processor", "cur_state": 1})})
    assert reader.read().temperature_c is None
    board.now += 60.0
    reading = reader.read()
    assert (reading.temperature_c, reading.throttled) == (45.0, True)
    hwmon_0 = tmp_path / "sys/class/hwmon/hwmon0"
    hwmon_0.rename(hwmon_0.with_name("hwmon4"))
    assert reader.read().temperature_c is None
    board.now += 60.0
    assert reader.read().temperature_c == 45.0


def test_a_reading_has_the_fields_that_a_window_sends() -> None:
    assert {field.name for field in fields(ThermalReading)} == set(ThermalPart.model_fields)
