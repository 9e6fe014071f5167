"""Every power sensor on a recorded board: its units, its scope, what it leaves out, and what it refuses."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from agent.sensor_trees import BOARDS, PMIC, PMIC_W, Board, Faults, Mailbox, domain, hwmon, ina3221
from edgefleet_agent.power import FINDERS, battery, firmware, ina2xx, jetson, rapl, rpi_pmic
from edgefleet_agent.power.meter import Energy, Meter
from edgefleet_agent.power.sysfs import AbsentError, UnreadableError
from edgefleet_device_profiles.profile import Sensor

DOCS = Path(__file__).parents[2] / "docs"
BATTERY = "sys/class/power_supply/BAT0"
TEN_S = 10.0


def measured(board: Board, seconds: float = TEN_S) -> Energy:
    """Of a board that draws the same all the time."""
    meter = board.meter()
    board.run(meter, seconds)
    energy = meter.energy()
    assert energy.source == "measured", energy.reason
    assert (energy.low_j, energy.high_j, energy.reason) == (None, None, None)
    assert energy.duration_s == pytest.approx(seconds)
    return energy


def estimated(meter: Meter) -> str:
    """Why what was drawn since the last time is not measured."""
    energy = meter.energy()
    assert energy.source == "estimated"
    assert energy.reason is not None
    return energy.reason


# What they say ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sensor", "scope", "watts"),
    [
        ("pi-5", "rpi-pmic", "rails", PMIC_W),
        # µW as the chip has it, not mV × mA, which are rounded.
        ("pi-4-ina219", "ina2xx", "board_input", 4.56),
        ("pi-3-ina-without-power", "ina2xx", "board_input", 5.1 * 0.6),
        # The total alone: the other rails lie behind it.
        ("orin-nano", "jetson-ina3221", "board_input", 4.984 * 1.856),
        ("nano", "jetson-ina3221", "board_input", 4.512),
        ("phone", "battery", "battery", 3.85 * 0.41),
    ],
)
def test_watts_become_joules(
    name: str, sensor: str, scope: str, watts: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mailbox(monkeypatch)
    board = Board(tmp_path, name)
    assert board.meter().name == sensor
    energy = measured(board)
    assert energy.scope == scope
    assert energy.joules == pytest.approx(watts * TEN_S)
    assert energy.samples == pytest.approx(TEN_S, abs=2)


def test_packages_are_added_each_with_its_own_range_and_nothing_nested_is(tmp_path: Path) -> None:
    board = Board(tmp_path, "two-sockets")
    meter = board.meter()
    board.now += 2.0
    board.write(domain("intel-rapl:0", "package-0-die-0", 3_000_000))
    board.write(domain("intel-rapl:1", "package-1-die-0", 1_000_000, 10_000_000))
    board.write(domain("intel-rapl:0:0", "dram", 900_000_000))
    energy = meter.energy()
    assert (energy.source, energy.scope) == ("measured", "package")
    # 3 J, and 2 J with a wrap at 10 J between.
    assert energy.joules == pytest.approx(5.0, abs=1e-5)
    assert energy.samples == 2000


def test_the_platform_is_not_added_to_the_package_that_lies_in_it(tmp_path: Path) -> None:
    board = Board(tmp_path, "nuc")
    meter = board.meter()
    board.now += 1.0
    for folder, name in (("intel-rapl:0", "package-0"), ("intel-rapl-mmio:0", "package-0")):
        board.write(domain(folder, name, 6_000_000))
    board.write(domain("intel-rapl:1", "psys", 50_000_000))
    board.write(domain("intel-rapl:0:0", "core", 5_000_000))
    energy = meter.energy()
    assert energy.scope == "package"
    assert energy.joules == pytest.approx(5.0)


def test_where_there_is_no_package_the_platform_is_told_as_such(tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    board.write(domain("intel-rapl:0", "psys", 5_000_000))
    meter = board.meter()
    board.now += 2.0
    board.write(domain("intel-rapl:0", "psys", 25_000_000))
    energy = meter.energy()
    assert (energy.source, energy.scope) == ("measured", "psys")
    assert energy.joules == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("before", "after"), [(262_143_328_850, 0), (262_139_328_851, 6_000_000 - 4_000_000 + 4_000_000)]
)
def test_a_counter_that_wraps_is_unwrapped(before: int, after: int, tmp_path: Path) -> None:
    board = Board(tmp_path, "nuc")
    board.write(domain("intel-rapl:0", "package-0", before))
    meter = board.meter()
    board.now += 1.0
    board.write(domain("intel-rapl:0", "package-0", after))
    assert meter.energy().joules == pytest.approx((after - before + 262_143_328_851) / 1e6, abs=1e-9)


def test_a_counter_that_was_set_back_is_no_wrap(tmp_path: Path) -> None:
    """After a sleep it begins anew: unwrapped, that would be a quarter of a megajoule within ten seconds."""
    board = Board(tmp_path, "nuc")
    board.write(domain("intel-rapl:0", "package-0", 9_000_000_000))
    meter = board.meter()
    board.now += 10.0
    board.write(domain("intel-rapl:0", "package-0", 1_000_000))
    assert "was set back" in estimated(meter)
    board.now += 10.0
    board.write(domain("intel-rapl:0", "package-0", 31_000_000))
    energy = meter.energy()
    assert energy.source == "measured"
    assert energy.joules == pytest.approx(30.0)


def test_a_counter_that_stands_still_is_no_measurement(tmp_path: Path) -> None:
    board = Board(tmp_path, "nuc")
    board.draws_w = 0.0
    meter = board.meter()
    board.run(meter, 30.0)
    assert estimated(meter).endswith("intel-rapl:0/energy_uj stands still")


def test_rails_that_have_no_total_are_added_as_rails(tmp_path: Path) -> None:
    """AGX Orin: two monitors, four rails, of which VDDQ_VDD2_1V8AO lies behind VIN_SYS_5V0."""
    board = Board(tmp_path, "virtual")
    board.write(
        ina3221(
            "1-0040", "hwmon3", ("VDD_GPU_SOC", 20000, 250), ("VDD_CPU_CV", 20000, 150), ("VIN_SYS_5V0", 5000, 1000)
        )
    )
    board.write(ina3221("1-0041", "hwmon4", ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 400), ("NC", 0, 0)))
    energy = measured(board)
    assert energy.scope == "rails"
    assert energy.joules == pytest.approx((5.0 + 3.0 + 5.0) * TEN_S)


@pytest.mark.parametrize("current_ua", [-410_000, 410_000])
def test_a_discharging_current_has_either_sign(current_ua: int, tmp_path: Path) -> None:
    board = Board(tmp_path, "phone")
    board.write({f"{BATTERY}/current_now": f"{current_ua}\n"})
    assert measured(board).joules == pytest.approx(3.85 * 0.41 * TEN_S)


@pytest.mark.parametrize("power_uw", [7_200_000, -7_200_000])
def test_a_battery_that_tells_its_power_is_believed(power_uw: int, tmp_path: Path) -> None:
    board = Board(tmp_path, "phone")
    board.write({f"{BATTERY}/power_now": f"{power_uw}\n"})
    assert measured(board).joules == pytest.approx(72.0)


def test_two_batteries_are_added_and_one_that_rests_is_not(tmp_path: Path) -> None:
    board = Board(tmp_path, "phone")
    second = {"type": "Battery", "status": "Discharging", "power_now": "2000000"}
    board.write({f"sys/class/power_supply/BAT1/{name}": text for name, text in second.items()})
    assert measured(board).joules == pytest.approx((3.85 * 0.41 + 2.0) * TEN_S)
    board.write({"sys/class/power_supply/BAT1/status": "Not charging"})
    assert measured(board).joules == pytest.approx(3.85 * 0.41 * TEN_S)


# What they refuse -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "other"),
    [("Charging", None), ("Full", None), ("Unknown", None), ("", None), ("Discharging", "Charging")],
)
def test_a_battery_that_is_charged_measures_nothing(status: str, other: str | None, tmp_path: Path) -> None:
    board = Board(tmp_path, "phone")
    board.write({f"{BATTERY}/status": f"{status}\n", f"{BATTERY}/current_now": "1500000\n"})
    if other:
        second = {"type": "Battery", "status": other, "power_now": "2000000"}
        board.write({f"sys/class/power_supply/BAT1/{name}": text for name, text in second.items()})
    meter = board.meter()
    assert meter.name in {"battery", "model"}
    board.run(meter, TEN_S)
    assert "does not run on its battery alone" in estimated(meter)


def test_pulling_the_plug_begins_to_measure(tmp_path: Path) -> None:
    board = Board(tmp_path, "phone")
    board.write({f"{BATTERY}/status": "Charging\n"})
    meter = board.meter()
    board.run(meter, TEN_S)
    assert meter.energy().source == "estimated"
    board.write({f"{BATTERY}/status": "Discharging\n"})
    board.run(meter, TEN_S)
    assert meter.energy().source == "estimated", "it charged for a moment of this window"
    board.run(meter, TEN_S)
    energy = meter.energy()
    assert energy.source == "measured"
    assert energy.joules == pytest.approx(3.85 * 0.41 * TEN_S)


def test_a_mouse_is_no_battery_of_the_device_and_a_bare_one_no_gauge(tmp_path: Path) -> None:
    board = Board(tmp_path, "phone")
    board.remove(f"{BATTERY}/current_now")
    with pytest.raises(UnreadableError, match="has no gauge"):
        battery.find(board.root)
    board.remove(BATTERY)
    with pytest.raises(AbsentError, match="no battery"):
        battery.find(board.root)


def test_an_ina_whose_current_flows_the_other_way_measures_nothing(tmp_path: Path) -> None:
    """The power register has no sign: it would count what charges a battery as what the board draws."""
    board = Board(tmp_path, "pi-4-ina219")
    board.write({"sys/class/hwmon/hwmon1/curr1_input": "-893\n"})
    with pytest.raises(UnreadableError, match="negative"):
        ina2xx.find(board.root)
    reason = estimated(board.meter())
    assert reason.startswith("ina2xx: ")
    assert "negative (-893 mA)" in reason


def test_an_ina_that_says_nothing_is_drawn_is_not_believed(tmp_path: Path) -> None:
    board = Board(tmp_path, "pi-4-ina219")
    meter = board.meter()
    board.write({"sys/class/hwmon/hwmon1/power1_input": "0\n"})
    board.run(meter, TEN_S)
    assert "0.000 W, which no running board draws" in estimated(meter)


def test_of_several_ina_none_is_guessed(tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    board.write(hwmon({"name": "ina219", "power1_input": 1}, {"name": "ina226", "power1_input": 2}))
    with pytest.raises(UnreadableError, match=r"several INA2xx .*hwmon0, hwmon1"):
        ina2xx.find(board.root)
    board.write({"sys/class/hwmon/hwmon0/name": "ina3221\n", "sys/class/hwmon/hwmon1/name": "tmp102\n"})
    with pytest.raises(AbsentError):
        ina2xx.find(board.root)


def test_rails_without_a_known_total_are_refused_by_name(tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    board.write(ina3221("1-0040", "hwmon3", ("VDD_CPU_CV", 20000, 150), ("FAN", 5000, 10)))
    with pytest.raises(UnreadableError, match="the rails FAN, VDD_CPU_CV, none of which"):
        jetson.find(board.root)


def test_rapl_counters_that_are_none_are_refused(tmp_path: Path) -> None:
    board = Board(tmp_path, "virtual")
    board.write(domain("intel-rapl:0:0", "core", 0))
    with pytest.raises(AbsentError, match="names no package"):
        rapl.find(board.root)
    board.write(domain("intel-rapl:0", "package-0", 0, highest_uj=0))
    with pytest.raises(UnreadableError, match="max_energy_range_uj says 0"):
        rapl.find(board.root)


def test_without_permission_it_says_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(tmp_path, "nuc")
    Faults(monkeypatch).opens["energy_uj"] = errno.EACCES
    reason = estimated(board.meter())
    assert reason.startswith("rapl: permission: ")
    assert "intel-rapl:0/energy_uj" in reason
    assert "unless a udev rule allows it" in reason


# The Raspberry Pi's firmware --------------------------------------------------------------------------


def test_rails_go_by_their_names_and_need_both_figures() -> None:
    text = "\n".join(reversed(PMIC.splitlines()))
    assert rpi_pmic.rails_w(text) == rpi_pmic.rails_w(PMIC)
    assert len(rpi_pmic.rails_w(PMIC)) == 12
    assert not {"EXT5V", "BATT"} & rpi_pmic.rails_w(PMIC).keys()
    assert rpi_pmic.rails_w("ORPHAN_A current(9)=1.00000000A\nOTHER_V volt(3)=nanV\n") == {}


def test_the_mailbox_is_asked_once_a_second_and_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox = Mailbox(monkeypatch)
    board = Board(tmp_path, "pi-5")
    log = _program(board, PMIC)
    meter = board.meter()
    mailbox.asked.clear()
    board.run(meter, 100.0)
    assert 85 <= len(mailbox.asked) <= 101
    assert not log.exists()


def test_of_two_mailboxes_the_one_for_text_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox, board = Mailbox(monkeypatch), Board(tmp_path, "pi-5")
    faults = Faults(monkeypatch)
    board.write({"dev/vcio": ""})
    faults.opens["vcio"] = errno.EACCES
    assert firmware.Mailbox(board.root).ask("get_throttled") == "throttled=0x0"
    faults.opens = {"vcio_gencmd": errno.ENOENT}
    assert firmware.Mailbox(board.root).ask("get_throttled") == "throttled=0x0"
    assert mailbox.asked == ["get_throttled"] * 2


def test_a_mailbox_that_may_not_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(tmp_path, "pi-5")
    Faults(monkeypatch).opens.update(vcio_gencmd=errno.EACCES, vcio=errno.ENOENT)
    reason = estimated(board.meter())
    assert reason.startswith("rpi-pmic: permission: ")
    assert "vcio_gencmd opens to its group only, which should be video" in reason


def test_an_older_board_s_firmware_has_no_such_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox = Mailbox(monkeypatch)
    del mailbox.answers["pmic_read_adc"]
    board = Board(tmp_path, "pi-5")
    with pytest.raises(AbsentError, match="knows no pmic_read_adc"):
        rpi_pmic.find(board.root)
    board.remove("dev/vcio_gencmd")
    with pytest.raises(AbsentError, match="is not there"):
        rpi_pmic.find(board.root)


@pytest.mark.parametrize("answer", ["", "VDD_CORE_A current(7)=1.0A\n", "\xff\xfe garbage"])
def test_an_answer_without_a_rail_is_no_sensor(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mailbox(monkeypatch, pmic_read_adc=answer)
    board = Board(tmp_path, "pi-5")
    with pytest.raises(UnreadableError):
        rpi_pmic.find(board.root)


def test_a_rail_that_is_missing_later_is_no_smaller_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox, board = Mailbox(monkeypatch), Board(tmp_path, "pi-5")
    meter = board.meter()
    mailbox.answers["pmic_read_adc"] = PMIC.replace("   1V1_SYS_A", "   1V1_BUS_A")
    board.run(meter, TEN_S)
    assert "other rails than at first (1V1_SYS)" in estimated(meter)


@pytest.mark.parametrize("fault", ["code", "error"])
def test_a_mailbox_that_refuses_is_an_estimate(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mailbox, board = Mailbox(monkeypatch), Board(tmp_path, "pi-5")
    meter = board.meter()
    if fault == "code":
        mailbox.code = 0x80000001
    else:
        mailbox.error = errno.ETIMEDOUT
    board.run(meter, TEN_S)
    assert "vcio_gencmd" in estimated(meter)


def _program(board: Board, output: str, tail: str = "") -> Path:
    """A `vcgencmd` that logs each start."""
    log = board.root / "log"
    board.write(
        {"answer": output, "usr/bin/vcgencmd": f'#!/bin/sh\necho "$@" >> {log}\n{tail}\ncat {board.root}/answer\n'}
    )
    (board.root / "usr/bin/vcgencmd").chmod(0o755)
    return log


def test_the_program_is_started_only_where_no_mailbox_opens_and_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(tmp_path, "pi-5")
    Faults(monkeypatch).opens.update(vcio_gencmd=errno.EACCES, vcio=errno.EACCES)
    monkeypatch.setattr("time.monotonic", board.clock)
    log = _program(board, PMIC)
    meter = board.meter()
    for _ in range(6):
        board.run(meter, 17.0)
        energy = meter.energy()
        assert (energy.source, energy.scope) == ("measured", "rails"), energy.reason
        assert energy.joules == pytest.approx(PMIC_W * 17.0)
    starts = log.read_text().splitlines()
    assert set(starts) == {"pmic_read_adc"}
    # In 102 s, and the first.
    assert 6 <= len(starts) <= 11


@pytest.mark.parametrize("tail", ["exit 3", "echo; exit 0", "kill -9 $$"])
def test_a_program_that_fails_is_told_beside_the_mailbox(
    tail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(tmp_path, "pi-5")
    Faults(monkeypatch).opens.update(vcio_gencmd=errno.EACCES, vcio=errno.EACCES)
    _program(board, PMIC, tail)
    with pytest.raises(UnreadableError, match=r"^permission: .*; "):
        rpi_pmic.find(board.root)


def test_a_program_that_hangs_holds_nothing_up_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(tmp_path, "pi-5")
    Faults(monkeypatch).opens.update(vcio_gencmd=errno.EACCES, vcio=errno.EACCES)
    monkeypatch.setattr(firmware, "TIMEOUT_S", 0.05)
    _program(board, PMIC, "exec tail -f /dev/null")
    with pytest.raises(UnreadableError, match="did not end in"):
        rpi_pmic.find(board.root)


def test_every_board_is_of_a_profile_that_knows_its_sensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Mailbox(monkeypatch)
    found = {name: Board(tmp_path / name, name).meter().name for name in BOARDS}
    assert found == {
        "pi-5": "rpi-pmic",
        "pi-4-ina219": "ina2xx",
        "pi-3-ina-without-power": "ina2xx",
        "orin-nano": "jetson-ina3221",
        "nano": "jetson-ina3221",
        "nuc": "rapl",
        "two-sockets": "rapl",
        "phone": "battery",
        "virtual": "model",
    }


def test_the_document_names_every_sensor_with_the_scopes_that_it_has() -> None:
    rows = (DOCS / "power.md").read_text(encoding="utf-8").splitlines()
    assert {name for name in Sensor if any(row.startswith(f"| `{name}` |") for row in rows)} == set(FINDERS)
    scopes = {"board_input", "rails", "package", "psys", "battery"}
    assert scopes == {scope for scope in scopes if any(f"| `{scope}` |" in row for row in rows)}
    assert scopes == {"board_input", "rails", *rapl.SCOPES, battery.BatterySensor.scope}
