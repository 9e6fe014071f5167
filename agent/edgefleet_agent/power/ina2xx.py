"""An INA219, INA226 or one of their kin on the supply line, added by the owner, through the kernel's hwmon.

The Jetson's own three-channel INA3221 is another file's. Units by the kernel's Documentation/hwmon/sysfs-interface:
power in µW, voltage in mV, current in mA; in1 is the bus, in0 the shunt.
"""

from __future__ import annotations

from pathlib import Path

from edgefleet_agent.power import sysfs
from edgefleet_agent.power.sensor import Gauge
from edgefleet_agent.power.sysfs import AbsentError, UnreadableError
from edgefleet_device_profiles.profile import Sensor as SensorName

# ina219, ina220, ina226, ina228, ina230 … ina260: one channel each.
CHIPS = "ina2"


class Ina2xxSensor:
    """One chip; its shunt is taken to carry all that the board draws."""

    name: str = SensorName.INA2XX
    scope = "board_input"
    period_s = 1.0

    def __init__(self, folder: Path) -> None:
        """`folder` is its hwmon folder."""
        self._folder = folder

    def watts(self) -> float:
        """Power on the bus; raises UnreadableError, also when the current flows the other way."""
        current_ma = sysfs.number_or_none(self._folder / "curr1_input")
        if current_ma is not None and current_ma < 0:
            raise UnreadableError(
                f"{self._folder}/curr1_input is negative ({current_ma} mA): the shunt is the other way round, "
                "or carries a battery's charge"
            )
        power_uw = sysfs.number_or_none(self._folder / "power1_input")
        if power_uw is not None:
            return power_uw / 1e6
        # mV × mA = µW.
        return sysfs.read_number(self._folder / "in1_input") * sysfs.read_number(self._folder / "curr1_input") / 1e6


def find(root: Path) -> Gauge:
    """The one chip below `root`; raises AbsentError, and UnreadableError where there are several or it is silent."""
    folders = [
        folder
        for folder in sysfs.find(root, "sys/class/hwmon/hwmon*")
        if (sysfs.text_or_none(folder / "name") or "").startswith(CHIPS)
    ]
    if not folders:
        raise AbsentError("no INA2xx is among the hwmon devices")
    if len(folders) > 1:
        named = ", ".join(folder.name for folder in folders)
        raise UnreadableError(f"several INA2xx are there ({named}), and which is on the supply line is not known")
    sensor = Ina2xxSensor(folders[0])
    sensor.watts()
    return Gauge(sensor)
