"""The Raspberry Pi 5's power management chip: volts and amperes of its rails, as the firmware tells them.

What draws from the 5 V line itself is not among them: USB, HATs, NVMe, the fan. `EXT5V` and `BATT` have a voltage only.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgefleet_agent.power import firmware
from edgefleet_agent.power.firmware import Firmware
from edgefleet_agent.power.sensor import Gauge
from edgefleet_agent.power.sysfs import UnreadableError
from edgefleet_device_profiles.profile import Sensor as SensorName

COMMAND = "pmic_read_adc"
# "  VDD_CORE_A current(7)=0.75012000A" and "  VDD_CORE_V volt(15)=0.87510000V": pairs by name, not by number.
LINE = re.compile(r"^\s*(\w+)_([AV])\s+\w+\(\d+\)=(-?\d+(?:\.\d+)?)[AV]\s*$", re.MULTILINE)


def rails_w(text: str) -> dict[str, float]:
    """Rail → watts, of every rail whose current and voltage are both told."""
    told = {(rail, unit): float(value) for rail, unit, value in LINE.findall(text)}
    return {
        rail: value * told[rail, "V"] for (rail, unit), value in told.items() if unit == "A" and (rail, "V") in told
    }


class PmicSensor:
    """All rails together."""

    name: str = SensorName.RPI_PMIC
    scope = "rails"

    def __init__(self, source: Firmware, text: str) -> None:
        """`text` is the first answer; its rails must all be told each time, or the sum would be another thing."""
        self.period_s = source.period_s
        self._firmware = source
        self._rails = rails_w(text).keys()
        self._first: str | None = text
        if not self._rails:
            raise UnreadableError(f"{COMMAND} tells no rail with both its current and its voltage")

    def watts(self) -> float:
        """Raises UnreadableError."""
        # A program that was started just now must not be started again.
        text, self._first = self._first, None
        told = rails_w(self._firmware.ask(COMMAND) if text is None else text)
        if told.keys() != self._rails:
            changed = ", ".join(sorted(self._rails ^ told.keys()))
            raise UnreadableError(f"{COMMAND} tells other rails than at first ({changed})")
        return sum(told.values())


def find(root: Path) -> Gauge:
    """The chip behind the firmware; raises UnreadableError, AbsentError where there is no firmware to ask."""
    source, text = firmware.reach(root, COMMAND)
    return Gauge(PmicSensor(source, text))
