"""The INA3221 monitors on NVIDIA Jetson modules: by the mainline kernel's hwmon, or by iio on the 4.x kernels of L4T.

Rails lie behind one another: only the one that feeds the board is reported, or on the modules that have none the rails
that NVIDIA names as making up the module's power.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgefleet_agent.power import sysfs
from edgefleet_agent.power.sensor import Gauge
from edgefleet_agent.power.sysfs import AbsentError, UnreadableError
from edgefleet_device_profiles.profile import Sensor as SensorName

HWMON = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*"
IIO = "sys/bus/i2c/drivers/ina3221x/*/iio:device*"

# Rails to add up → scope, the first that are all there: Orin Nano and NX, Xavier NX, TX; Nano; Thor; AGX Orin; AGX
# Xavier. Source: NVIDIA Jetson Linux Developer Guide, power monitors of each module.
TOTALS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("VDD_IN",), "board_input"),
    (("POM_5V_IN",), "board_input"),
    (("VIN",), "board_input"),
    (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), "rails"),
    (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), "rails"),
)


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel of one monitor; the numbers of hwmon count from 1, those of iio from 0."""

    folder: Path
    number: int

    def hwmon_watts(self) -> float:
        """From in{N}_input (mV) and curr{N}_input (mA); raises UnreadableError."""
        millivolts = sysfs.read_number(self.folder / f"in{self.number}_input")
        return millivolts * sysfs.read_number(self.folder / f"curr{self.number}_input") / 1e6

    def iio_watts(self) -> float:
        """From in_power{N}_input (mW); raises UnreadableError."""
        return sysfs.read_number(self.folder / f"in_power{self.number}_input") / 1e3


class JetsonSensor:
    """The rails that make up one total."""

    name: str = SensorName.JETSON_INA3221
    period_s = 1.0

    def __init__(self, rails: Mapping[str, Callable[[], float]], scope: str) -> None:
        """`rails` by their labels."""
        self.scope = scope
        self._rails = rails

    def watts(self) -> float:
        """Raises UnreadableError."""
        return sum(rail() for rail in self._rails.values())


def _rails(root: Path) -> dict[str, Callable[[], float]]:
    """Label → what says its watts, of all monitors."""
    rails: dict[str, Callable[[], float]] = {}
    for folder in sysfs.find(root, HWMON):
        for number in (1, 2, 3):
            if label := sysfs.text_or_none(folder / f"in{number}_label"):
                rails[label] = Channel(folder, number).hwmon_watts
    for folder in sysfs.find(root, IIO):
        for number in (0, 1, 2):
            if label := sysfs.text_or_none(folder / f"rail_name_{number}"):
                rails[label] = Channel(folder, number).iio_watts
    return rails


def find(root: Path) -> Gauge:
    """The monitors below `root`; raises AbsentError, and UnreadableError where no total is known or it is silent."""
    rails = _rails(root)
    if not rails:
        raise AbsentError("no INA3221 is bound to its driver")
    for labels, scope in TOTALS:
        if set(labels) <= rails.keys():
            sensor = JetsonSensor({label: rails[label] for label in labels}, scope)
            sensor.watts()
            return Gauge(sensor)
    raise UnreadableError(f"the INA3221 have the rails {', '.join(sorted(rails))}, none of which is known as a total")
