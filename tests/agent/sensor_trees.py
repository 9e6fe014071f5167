"""Boards as their /sys, /proc and firmware describe them while they run: what meters and thermal readings are made of.

No tests. `Board` lays one out below a folder, with a clock of its own; `Mailbox` stands in for the firmware's device.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgefleet_agent.power import open_meter
from edgefleet_agent.power.meter import Meter
from edgefleet_device_profiles import catalogue

Files = Mapping[str, str]

# vcgencmd pmic_read_adc on a Pi 5 with all cores busy.
PMIC = """\
 3V7_WL_SW_A current(0)=0.00000000A
   3V3_SYS_A current(1)=0.06245952A
   1V8_SYS_A current(2)=0.16102850A
  DDR_VDD2_A current(3)=0.00780744A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.32791250A
  VDD_CORE_A current(7)=10.87674000A
   3V3_DAC_A current(17)=0.00036630A
   3V3_ADC_A current(18)=0.00042735A
   0V8_AON_A current(16)=0.00579975A
      HDMI_A current(22)=0.01367520A
 3V7_WL_SW_V volt(8)=3.79999600V
   3V3_SYS_V volt(9)=3.30632200V
   1V8_SYS_V volt(10)=1.79828900V
  DDR_VDD2_V volt(11)=1.10292900V
  DDR_VDDQ_V volt(12)=0.60476130V
   1V1_SYS_V volt(13)=1.10439400V
    0V8_SW_V volt(14)=0.80256330V
  VDD_CORE_V volt(15)=0.89745940V
   3V3_DAC_V volt(20)=3.30494200V
   3V3_ADC_V volt(21)=3.30219400V
   0V8_AON_V volt(19)=0.79736190V
      HDMI_V volt(23)=5.07056000V
     EXT5V_V volt(24)=5.06788000V
      BATT_V volt(25)=3.01110800V
"""
PMIC_W = 10.799894
"""Of PMIC: volts times amperes of its twelve rails."""


def stat(*cores: tuple[int, int]) -> str:
    """/proc/stat of processors that were (busy, idle) for so many jiffies."""
    lines = [f"cpu{core} {busy} 0 0 {idle} 0 0 0 0 0 0" for core, (busy, idle) in enumerate(cores)]
    total = f"cpu  {sum(busy for busy, _ in cores)} 0 0 {sum(idle for _, idle in cores)} 0 0 0 0 0 0"
    return "\n".join((total, *lines, "intr 12345 0 1", "ctxt 99\n"))


def clocks(*policies: tuple[str, int, int]) -> Files:
    """Cpufreq policies: (processors, kHz now, kHz at most)."""
    files: dict[str, str] = {}
    for cpus, now_khz, highest_khz in policies:
        folder = f"sys/devices/system/cpu/cpufreq/policy{cpus.split()[0]}"
        files[f"{folder}/related_cpus"] = f"{cpus}\n"
        files[f"{folder}/scaling_cur_freq"] = f"{now_khz}\n"
        files[f"{folder}/cpuinfo_max_freq"] = f"{highest_khz}\n"
    return files


def _numbered(folder: str, kind: str, *devices: Mapping[str, object]) -> Files:
    return {
        f"{folder}/{kind}{number}/{name}": f"{value}\n"
        for number, device in enumerate(devices)
        for name, value in device.items()
    }


def hwmon(*devices: Mapping[str, object]) -> Files:
    """Hwmon devices, numbered from 0."""
    return _numbered("sys/class/hwmon", "hwmon", *devices)


def zones(*devices: Mapping[str, object]) -> Files:
    """Thermal zones, numbered from 0."""
    return _numbered("sys/class/thermal", "thermal_zone", *devices)


def cooling(*devices: Mapping[str, object]) -> Files:
    """Cooling devices, numbered from 0."""
    return _numbered("sys/class/thermal", "cooling_device", *devices)


def domain(folder: str, name: str, energy_uj: int, highest_uj: int = 262_143_328_850) -> Files:
    """One powercap domain."""
    path = f"sys/class/powercap/{folder}"
    return {
        f"{path}/name": f"{name}\n",
        f"{path}/energy_uj": f"{energy_uj}\n",
        f"{path}/max_energy_range_uj": f"{highest_uj}\n",
    }


def ina3221(address: str, hwmon_name: str, *rails: tuple[str, int, int]) -> Files:
    """A Jetson's monitor: (label, mV, mA) of its channels; the sums that the driver adds have labels as well."""
    folder = f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/{hwmon_name}"
    files = {f"{folder}/name": "ina3221\n", f"{folder}/in7_label": "sum of shunt voltages\n"}
    for number, (label, millivolts, milliamperes) in enumerate(rails, 1):
        files[f"{folder}/in{number}_label"] = f"{label}\n"
        files[f"{folder}/in{number}_input"] = f"{millivolts}\n"
        files[f"{folder}/curr{number}_input"] = f"{milliamperes}\n"
    return files


_BUSY = {"proc/stat": stat((100, 900), (100, 900), (100, 900), (100, 900))}
_PI_SYS = {**_BUSY, **clocks(("0 1 2 3", 1500000, 2400000)), **zones({"type": "cpu-thermal", "temp": 61250})}
_JETSON_IIO = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
_BATTERY = "sys/class/power_supply/BAT0"

BOARDS: dict[str, tuple[str, Files]] = {
    "pi-5": (
        "raspberry-pi-5",
        {
            **_PI_SYS,
            **hwmon({"name": "rpi_volt", "in0_lcrit_alarm": 0}, {"name": "pwmfan", "fan1_input": 2100}),
            **cooling({"type": "pwm-fan", "cur_state": 3, "max_state": 4}),
            "dev/vcio_gencmd": "",
        },
    ),
    "pi-4-ina219": (
        "raspberry-pi-4b",
        {
            **_PI_SYS,
            **hwmon(
                {"name": "cpu_thermal", "temp1_input": 55000},
                {
                    "name": "ina219", "in0_input": 9, "in1_input": 5120, "curr1_input": 893, "power1_input": 4_560_000,
                    "shunt_resistor": 10000,
                },
            ),
        },
    ),
    "pi-3-ina-without-power": (
        "raspberry-pi-3b-plus",
        {**_PI_SYS, **hwmon({"name": "ina260", "in1_input": 5100, "curr1_input": 600})},
    ),
    "orin-nano": (
        "jetson-orin-nano",
        {
            **_BUSY,
            **ina3221(
                "1-0040", "hwmon4", ("VDD_IN", 4984, 1856), ("VDD_CPU_GPU_CV", 4984, 600), ("VDD_SOC", 4984, 300)
            ),
            **zones(
                {"type": "cpu-thermal", "temp": 63625},
                {"type": "gpu-thermal", "temp": -256000},
                {"type": "tj-thermal", "temp": 64531},
            ),
            **hwmon({"name": "soctherm_oc", "oc1_event_cnt": 1, "oc2_event_cnt": 0, "oc3_event_cnt": 27390}),
            **cooling({"type": "pwm-fan", "cur_state": 2}, {"type": "cpufreq-cpu0", "cur_state": 0}),
        },
    ),
    "nano": (
        "jetson-nano",
        {
            **_BUSY,
            f"{_JETSON_IIO}/rail_name_0": "POM_5V_IN\n",
            f"{_JETSON_IIO}/rail_name_1": "POM_5V_GPU\n",
            f"{_JETSON_IIO}/rail_name_2": "POM_5V_CPU\n",
            f"{_JETSON_IIO}/in_power0_input": "4512\n",
            f"{_JETSON_IIO}/in_power1_input": "1200\n",
            f"{_JETSON_IIO}/in_power2_input": "900\n",
        },
    ),
    "nuc": (
        "intel-nuc",
        {
            **_BUSY,
            **clocks(("0", 3400000, 3400000), ("1", 3400000, 3400000), ("2", 800000, 3400000), ("3", 800000, 3400000)),
            **domain("intel-rapl:0", "package-0", 1_000_000),
            **domain("intel-rapl:0:0", "core", 400_000),
            **domain("intel-rapl:0:1", "uncore", 100_000),
            **domain("intel-rapl:1", "psys", 5_000_000),
            **domain("intel-rapl-mmio:0", "package-0", 1_000_000),
            "sys/class/powercap/intel-rapl/enabled": "1\n",
            **zones({"type": "acpitz", "temp": 27800}, {"type": "x86_pkg_temp", "temp": 71000}),
            **cooling({"type": "Processor", "cur_state": 0}, {"type": "intel_powerclamp", "cur_state": -1}),
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
            "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "320794\n",
            "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "0\n",
            "sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count": "320794\n",
        },
    ),
    "two-sockets": (
        "generic-x86-64-v4",
        {
            **_BUSY,
            **domain("intel-rapl:0", "package-0-die-0", 0),
            **domain("intel-rapl:1", "package-1-die-0", 9_000_000, 10_000_000),
            **domain("intel-rapl:0:0", "dram", 7),
            **hwmon(
                {"name": "coretemp", "temp1_input": 55000, "temp2_input": 57000},
                {"name": "nvme", "temp1_input": 80000},
            ),
        },
    ),
    "phone": (
        "android-phone",
        {
            **_BUSY,
            f"{_BATTERY}/type": "Battery\n",
            f"{_BATTERY}/status": "Discharging\n",
            f"{_BATTERY}/voltage_now": "3850000\n",
            f"{_BATTERY}/current_now": "-410000\n",
            "sys/class/power_supply/usb/type": "USB\n",
            "sys/class/power_supply/mouse/type": "Battery\n",
            "sys/class/power_supply/mouse/scope": "Device\n",
            "sys/class/power_supply/mouse/status": "Discharging\n",
        },
    ),
    "virtual": ("generic-x86-64", _BUSY),
}  # fmt: skip
"""Name → (profile, files)."""


class Board:
    """A board below a folder, and its clock."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.profile, files = BOARDS[name]
        self.now = 1000.0
        self.draws_w = 5.0
        """What each powercap counter counts while the board runs."""
        self.write(files)
        self._counters = sorted(root.glob("sys/class/powercap/*/energy_uj"))

    def clock(self) -> float:
        return self.now

    def write(self, files: Files) -> None:
        for path, text in files.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text)

    def remove(self, path: str) -> None:
        """A file, or a folder with all that is in it."""
        whole = self.root / path
        shutil.rmtree(whole) if whole.is_dir() else whole.unlink()

    def meter(self, *, simulated: bool = False) -> Meter:
        return open_meter(self.root, catalogue.load(self.profile), simulated=simulated, clock=self.clock)

    def run(self, meter: Meter, seconds: float, turn_s: float = 0.1) -> None:
        """Turn the loop, which offers a sample each time."""
        begun, turns = self.now, round(seconds / turn_s)
        for turn in range(1, turns + 1):
            self.now += turn_s
            # A disk is slower than a counter: when a meter of counters reads, and at the end.
            if turn == turns or self.now - begun >= 10.0:
                self._count(self.now - begun)
                begun = self.now
            meter.sample(self.now)

    def _count(self, seconds: float) -> None:
        for path in self._counters:
            text = path.read_text(errors="replace").strip() if path.is_file() else ""
            if text.isdecimal() and len(text) < 16:
                highest_uj = 10_000_000 if path.parent.name == "intel-rapl:1" else 262_143_328_850
                path.write_text(f"{(int(text) + round(seconds * self.draws_w * 1e6)) % (highest_uj + 1)}\n")


class Mailbox:
    """The firmware behind /dev/vcio*: takes what the kernel's driver takes, and answers as the firmware does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: str) -> None:
        self.answers = {"pmic_read_adc": PMIC, "get_throttled": "throttled=0x0", **answers}
        self.asked: list[str] = []
        self.error: int | None = None
        self.code = 0x80000000
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)

    def ioctl(self, descriptor: int, request: int, message: bytearray, mutate: bool) -> int:
        assert Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith("vcio")
        # As <sys/ioctl.h> makes it: _IOWR(100, 0, char *).
        assert request == (3 << 30) | (struct.calcsize("P") << 16) | (100 << 8)
        assert mutate
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        size, code, tag, value_bytes, length, result = struct.unpack_from("=6I", message)
        assert (size, code, tag, value_bytes, length, result) == (len(message), 0, 0x00030080, 1024, 0, 0)
        assert message[-4:] == bytes(4)
        command = bytes(message[24:-4]).rstrip(b"\0").decode()
        self.asked.append(command)
        answer = self.answers.get(command, 'error=1 error_msg="Command not registered"').encode() + b"\0"
        struct.pack_into("=6I", message, 0, size, self.code, tag, value_bytes, 0x80000000 | len(answer), 0)
        message[24 : 24 + len(answer)] = answer
        return 0


class Faults:
    """Paths whose files open, and then fail to be read, as sysfs attributes do; or do not even open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: dict[str, int] = {}
        self.opens: dict[str, int] = {}
        self._read, self._open = os.read, os.open
        monkeypatch.setattr(os, "read", self.read)
        monkeypatch.setattr(os, "open", self.open)

    def read(self, descriptor: int, size: int) -> bytes:
        code = self.reads.get(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        if code is not None:
            raise OSError(code, os.strerror(code))
        return self._read(descriptor, size)

    def open(self, path: str | Path, flags: int, mode: int = 0o777) -> int:
        code = self.opens.get(Path(path).name)
        if code is not None:
            raise OSError(code, os.strerror(code), str(path))
        return self._open(path, flags, mode)


READ_ERRORS = (errno.EAGAIN, errno.ENODATA, errno.ENODEV, errno.EIO)

DAMAGES = ("gone", "folder", "pipe", "loop", "empty", "binary", "long", "negative")


def damage(path: Path, kind: str) -> None:
    """Put something in the file's place that its reader does not expect, or nothing."""
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            # A reader that waited would wait for ever.
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "empty":
            path.write_text("")
        case "binary":
            path.write_bytes(b"\0\xff\xfe")
        case "long":
            path.write_text("9" * 100_000)
        case "negative":
            path.write_text("-1\n")
