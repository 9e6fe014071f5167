"""Power meters, chosen by what the board has: a sensor where there is one, else the profile's model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from edgefleet_agent.power import battery, ina2xx, jetson, rapl, rpi_pmic
from edgefleet_agent.power.meter import Energy, Meter
from edgefleet_agent.power.model import ModelMeter
from edgefleet_agent.power.sensor import Sensor
from edgefleet_agent.power.sensor_meter import SensorMeter
from edgefleet_agent.power.sysfs import AbsentError, UnreadableError
from edgefleet_device_profiles.profile import Profile
from edgefleet_device_profiles.profile import Sensor as SensorName

__all__ = ["FINDERS", "Energy", "Meter", "open_meter"]

FINDERS: Mapping[SensorName, Callable[[Path], Sensor]] = MappingProxyType(
    {
        SensorName.INA2XX: ina2xx.find,
        SensorName.JETSON_INA3221: jetson.find,
        SensorName.RPI_PMIC: rpi_pmic.find,
        SensorName.RAPL: rapl.find,
        SensorName.BATTERY: battery.find,
    }
)
"""Sensor → what finds it below a root, raising AbsentError, or UnreadableError with the reason that it is refused for.

In the order in which those are tried that the profile does not name: what measures the whole board first.
"""


def open_meter(root: Path, profile: Profile, *, simulated: bool, clock: Callable[[], float] = time.monotonic) -> Meter:
    """The best meter for this machine; `root` is where /sys, /proc and /dev lie.

    A simulated board has no sensor of its own, and the host's is not its: it is always estimated.
    """
    if simulated:
        return ModelMeter(root, profile.power, "the board is simulated", clock)
    estimate = ModelMeter(root, profile.power, "", clock)
    return SensorMeter(partial(find_sensor, root, profile.power.sensors), estimate, clock)


def find_sensor(root: Path, expected: Sequence[SensorName]) -> Sensor:
    """The sensor to read: those of a profile first, then whatever else the machine has.

    Raises UnreadableError with every refusal of one that is there; permission is told as such.
    """
    refusals: list[str] = []
    for name in dict.fromkeys((*expected, *FINDERS)):
        try:
            return FINDERS[name](root)
        except AbsentError:
            continue
        except UnreadableError as error:
            refusals.append(f"{name}: {error}")
    such = f" (such a device may have {', '.join(expected)})" if expected else ""
    raise UnreadableError("; ".join(refusals) or f"no power sensor was found{such}")
