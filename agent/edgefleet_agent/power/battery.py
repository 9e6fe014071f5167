"""The battery's own gauge, which says what the device draws only while nothing charges it.

Units by the kernel's Documentation/ABI/testing/sysfs-class-power: µW, µV and µA; a discharging current is negative in
some drivers and positive in others.
"""

from __future__ import annotations

from pathlib import Path

from edgefleet_agent.power import sysfs
from edgefleet_agent.power.sensor import Gauge
from edgefleet_agent.power.sysfs import AbsentError, UnreadableError
from edgefleet_device_profiles.profile import Sensor as SensorName

SUPPLIES = "sys/class/power_supply/*"
# A battery takes no part while it is full or idle beside one that feeds the device; charging, it hides what is drawn.
RESTING = {"Full", "Not charging"}


class BatterySensor:
    """All batteries that feed the device."""

    name: str = SensorName.BATTERY
    scope = "battery"
    period_s = 1.0

    def __init__(self, folders: list[Path]) -> None:
        """Folders of the batteries."""
        self._folders = folders

    def watts(self) -> float:
        """What they give together; raises UnreadableError while they are charged or none of them discharges."""
        states = {folder: sysfs.read_text(folder / "status") for folder in self._folders}
        giving = [folder for folder, state in states.items() if state == "Discharging"]
        if not giving or not set(states.values()) <= RESTING | {"Discharging"}:
            said = ", ".join(f"{folder.name}: {state or 'no state'}" for folder, state in states.items())
            raise UnreadableError(f"the device does not run on its battery alone ({said})")
        return sum(_watts(folder) for folder in giving)


def _watts(folder: Path) -> float:
    power_uw = sysfs.number_or_none(folder / "power_now")
    if power_uw is not None:
        return abs(power_uw) / 1e6
    # µA × µV = 10⁻¹² W.
    return abs(sysfs.read_number(folder / "current_now")) * sysfs.read_number(folder / "voltage_now") / 1e12


def _feeds_the_device(folder: Path) -> bool:
    """Whether it is a battery, and not one of a mouse or headset, which say `Device`."""
    scope = sysfs.text_or_none(folder / "scope")
    return sysfs.text_or_none(folder / "type") == "Battery" and scope != "Device"


def find(root: Path) -> Gauge:
    """The batteries below `root`, charging or not; raises AbsentError, and UnreadableError where one has no gauge."""
    folders = [folder for folder in sysfs.find(root, SUPPLIES) if _feeds_the_device(folder)]
    if not folders:
        raise AbsentError("there is no battery")
    for folder in folders:
        # What they hold is no matter yet: some drivers have no value while the battery charges.
        if not sysfs.find(folder, "power_now") and not sysfs.find(folder, "current_now"):
            raise UnreadableError(f"{folder} has no gauge: neither power_now nor current_now")
    return Gauge(BatterySensor(folders))
