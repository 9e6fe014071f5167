"""Temperature, clock and throttling of the board, as its firmware and kernel tell them.

What a window does about a throttled time is the window's business; nothing is guessed but by the profile's limit, and
then it is said.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

from edgefleet_agent.power import firmware, sysfs
from edgefleet_agent.power.sysfs import AbsentError, UnreadableError
from edgefleet_device_profiles.profile import Profile

# Thermal zones by the beginnings of their types, lower case: the first that is there is the processor's. Source: the
# device trees of the catalogue's boards; x86 by the kernel's x86_pkg_temp_thermal.
ZONES = ("tj", "cpu", "x86_pkg_temp", "soc", "package", "main", "acpitz")
# hwmon devices of processors where there is no zone, by their names.
PROCESSOR_HWMON = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "scpi_sensors")
# What a processor can be; switched-off sensors say -256 or 0xffff.
COLDEST_C, HOTTEST_C = -55.0, 150.0

# Cooling devices that cool by slowing a processor down; fans are among the others.
SLOWING = ("cpufreq", "thermal-cpufreq", "devfreq", "thermal-devfreq", "Processor")
# Counters of events → whether each is one of the supply's; the Jetson's oc1 is under-voltage, the rest over-current.
COUNTERS = {
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count": False,
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/package_throttle_count": False,
    "sys/class/hwmon/hwmon*/oc1_event_cnt": True,
    "sys/class/hwmon/hwmon*/oc[2-9]_event_cnt": False,
}
SAMPLE_S = 1.0
# Searching folders costs more than reading what is in them; devices come late, and get other numbers.
LOOK_AGAIN_S = 60.0
FLAGS_FILES = ("sys/devices/platform/soc*/*firmware/get_throttled", "sys/devices/platform/*firmware/get_throttled")


class Flags(IntFlag):
    """Bits of the Raspberry Pi's get_throttled (Raspberry Pi documentation, vcgencmd); 16 higher: since boot."""

    UNDERVOLTAGE = 1
    """The supply is below 4.63 V."""
    CAPPED = 2
    """The clock is kept below what was asked for."""
    THROTTLED = 4
    """The clock is lowered."""
    SOFT_LIMIT = 8
    """The soft temperature limit lowers the clock and the voltage."""


SLOWED = Flags.CAPPED | Flags.THROTTLED | Flags.SOFT_LIMIT
NOW_BITS, SINCE_BOOT_SHIFT = 0xF, 16


@dataclass(frozen=True, slots=True)
class ThermalReading:
    """What was so since the reading before; None: this machine does not tell."""

    temperature_c: float | None
    """Of the processor now, the hottest of its sensors."""
    frequency_mhz: float | None
    """The highest clock of a processor now."""
    throttled: bool | None
    """Whether the clock was lowered or capped, however shortly."""
    undervoltage: bool | None
    """Whether the supply was too low."""
    throttled_since_boot: bool | None
    """Whether it was throttled since the machine was started; only a Raspberry Pi remembers, for both."""
    undervoltage_since_boot: bool | None
    reason: str | None
    """Why something that this machine has is not told, or by what it was inferred."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where this machine tells what."""

    zones: tuple[tuple[Path, ...], ...]
    """Temperatures: sensors of one kind together, the kinds in the order in which they are believed."""
    clocks: tuple[Path, ...]
    cooling: tuple[Path, ...]
    alarms: tuple[Path, ...]
    flags: tuple[Path, ...]
    counters: tuple[tuple[Path, bool], ...]

    @classmethod
    def find(cls, root: Path) -> Files:
        """Search below `root`; a kind that is not there is empty."""
        zones = [
            ((sysfs.text_or_none(zone / "type") or "").lower(), zone / "temp")
            for zone in sysfs.find(root, "sys/class/thermal/thermal_zone*")
        ]
        hwmon = [(sysfs.text_or_none(one / "name"), one) for one in sysfs.find(root, "sys/class/hwmon/hwmon*")]
        processors = [path for name, one in hwmon if name in PROCESSOR_HWMON for path in sysfs.find(one, "temp*_input")]
        return cls(
            zones=(
                *(tuple(path for kind, path in zones if kind.startswith(beginning)) for beginning in ZONES),
                tuple(processors),
            ),
            clocks=tuple(sysfs.find(root, "sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq")),
            cooling=tuple(
                device / "cur_state"
                for device in sysfs.find(root, "sys/class/thermal/cooling_device*")
                if (sysfs.text_or_none(device / "type") or "").startswith(SLOWING)
            ),
            alarms=tuple(one / "in0_lcrit_alarm" for name, one in hwmon if name == "rpi_volt"),
            flags=tuple(path for pattern in FLAGS_FILES for path in sysfs.find(root, pattern)),
            counters=tuple(
                (path, supply) for pattern, supply in COUNTERS.items() for path in sysfs.find(root, pattern)
            ),
        )


class Thermal:
    """Reads below one root, and remembers from reading to reading what passes quickly."""

    def __init__(
        self,
        root: Path,
        profile: Profile,
        *,
        simulated: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The host's temperature and throttling are not a simulated board's: it tells nothing."""
        self._root = root
        self._limit_c = profile.thermal.throttle_c
        self._simulated = simulated
        self._clock = clock
        self._mailbox = firmware.Mailbox(root)
        self._files = Files.find(root)
        self._found_at = clock()
        self._next_at = 0.0
        self._since_boot: int | None = None
        self._counted = self._counters()
        self._begin()
        if not simulated:
            self._look()

    def sample(self, now: float) -> None:
        """Called by the loop with the monotonic time, as often as it likes: sees what would be over by `read`."""
        if now >= self._next_at and not self._simulated:
            self._next_at = now + SAMPLE_S
            self._look()

    def read(self) -> ThermalReading:
        """What was so since the last reading; never raises."""
        if self._simulated:
            return ThermalReading(None, None, None, None, None, None, "the board is simulated")
        if self._clock() - self._found_at >= LOOK_AGAIN_S:
            self._files, self._found_at = Files.find(self._root), self._clock()
        self._look()
        self._count()
        temperature_c, boot = self._temperature_c(), self._since_boot
        throttled, reason = self._throttled(temperature_c)
        reading = ThermalReading(
            temperature_c=temperature_c,
            frequency_mhz=self._frequency_mhz(),
            throttled=throttled,
            undervoltage=self._undervolted,
            throttled_since_boot=None if boot is None else bool(boot & SLOWED),
            undervoltage_since_boot=None if boot is None else bool(boot & Flags.UNDERVOLTAGE),
            reason=reason,
        )
        self._begin()
        return reading

    def _begin(self) -> None:
        self._slowed: bool | None = None
        self._undervolted: bool | None = None
        self._refusal: str | None = None
        self._had_since_boot = self._since_boot

    def _look(self) -> None:
        """Take up what is so at this moment."""
        states = _numbers(self._files.cooling)
        if states:
            self._slowed = bool(self._slowed or max(states) > 0)
        alarms = _numbers(self._files.alarms)
        if alarms:
            self._undervolted = bool(self._undervolted or max(alarms) > 0)
        self._refusal = None
        try:
            self._take(self._flags())
        except AbsentError:
            return
        except UnreadableError as error:
            self._refusal = str(error)

    def _take(self, flags: int) -> None:
        self._since_boot = flags >> SINCE_BOOT_SHIFT & NOW_BITS
        if self._had_since_boot is None:
            self._had_since_boot = self._since_boot
        # What happened between two looks is among the flags since boot, if it had not happened before.
        seen = flags & NOW_BITS | self._since_boot & ~self._had_since_boot
        self._slowed = bool(self._slowed or seen & SLOWED)
        self._undervolted = bool(self._undervolted or seen & Flags.UNDERVOLTAGE)

    def _flags(self) -> int:
        """get_throttled, from its file or through the mailbox; raises UnreadableError, AbsentError where neither is."""
        for path in self._files.flags:
            return _hexadecimal(sysfs.read_text(path), str(path))
        return _hexadecimal(self._mailbox.ask("get_throttled").partition("=")[2], "get_throttled")

    def _counters(self) -> dict[Path, tuple[int, bool]]:
        counts = ((path, sysfs.number_or_none(path), supply) for path, supply in self._files.counters)
        return {path: (count, supply) for path, count, supply in counts if count is not None and count >= 0}

    def _count(self) -> None:
        """Take up the events that the kernel counted since the last reading."""
        before, self._counted = self._counted, self._counters()
        for path, (count, of_the_supply) in self._counted.items():
            rose = path in before and count > before[path][0]
            self._slowed = bool(self._slowed or rose)
            if of_the_supply:
                self._undervolted = bool(self._undervolted or rose)

    def _throttled(self, temperature_c: float | None) -> tuple[bool | None, str | None]:
        """Whether the window was throttled; with the reason that it is not known, or was inferred."""
        if self._refusal and not self._slowed:
            # The firmware slows the processor down without the kernel's knowledge.
            return None, self._refusal
        limit_c = self._limit_c
        if self._slowed is None and temperature_c is not None and limit_c is not None and temperature_c >= limit_c:
            return True, f"throttled is inferred from {temperature_c:.1f} °C and the profile's {limit_c:.0f} °C"
        return self._slowed, self._refusal

    def _temperature_c(self) -> float | None:
        hottest = (_hottest_c(_numbers(paths)) for paths in self._files.zones)
        return next((one for one in hottest if one is not None), None)

    def _frequency_mhz(self) -> float | None:
        """The firmware's own figure on a Raspberry Pi: the kernel does not see what the firmware lowers."""
        try:
            return int(self._mailbox.ask("measure_clock arm").partition("=")[2]) / 1e6
        except (UnreadableError, ValueError):
            return max((khz / 1000 for khz in _numbers(self._files.clocks) if khz > 0), default=None)


def _numbers(paths: tuple[Path, ...]) -> list[int]:
    """Of those that can be read."""
    return [number for path in paths if (number := sysfs.number_or_none(path)) is not None]


def _hottest_c(values: list[int]) -> float | None:
    """Of thousandths of a degree; some old drivers tell whole ones."""
    degrees = (value if abs(value) < HOTTEST_C else value / 1000 for value in values)
    return max((one for one in degrees if COLDEST_C <= one <= HOTTEST_C), default=None)


def _hexadecimal(text: str, whose: str) -> int:
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", text):
        raise UnreadableError(f"{whose} says {text[:20]!r}, not a hexadecimal number")
    return int(text, 16)
