"""What a sensor is: something that says watts now, or that counts joules; and how either becomes energy over time.

Where the sensors are and what they say is each one's own business; what stands in for a silent one is the meter's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edgefleet_agent.power.sysfs import UnreadableError

# Above what any device of the edge draws, processor packages included.
MOST_W = 1000.0


@dataclass(frozen=True, slots=True)
class Step:
    """What was spent since the step before: `seconds` is the time that the readings account for."""

    joules: float
    seconds: float
    samples: int
    lost: str | None = None
    """Why it does not account for all the time since the step before."""


class Sensor(Protocol):
    """Energy, one step after the other."""

    name: str
    scope: str
    period_s: float

    def step(self, now: float, patience_s: float) -> Step:
        """Energy since the last step; of no length at first; raises UnreadableError.

        A reading that is at most `patience_s` old may stand for one that fails.
        """
        ...

    def forget(self) -> None:
        """Begin anew: the next step is a first one."""
        ...


class PowerSensor(Protocol):
    """Watts at this moment."""

    name: str
    scope: str
    period_s: float

    def watts(self) -> float:
        """Raises UnreadableError."""
        ...


class Gauge:
    """Integrates what a PowerSensor says, by trapezoids between readings."""

    def __init__(self, sensor: PowerSensor) -> None:
        """Reads nothing before the first step."""
        self.name, self.scope, self.period_s = sensor.name, sensor.scope, sensor.period_s
        self._sensor = sensor
        self._watts = 0.0
        self._read_at: float | None = None
        self._counted_to = 0.0

    def step(self, now: float, patience_s: float) -> Step:
        """See Sensor."""
        try:
            watts = self._read()
        except UnreadableError:
            if self._read_at is None or now - self._read_at > patience_s:
                raise
            return self._count(now, self._watts, 0)
        last, self._read_at = self._read_at, now
        if last is None:
            self._watts, self._counted_to = watts, now
            return Step(0.0, 0.0, 1)
        if now - last > patience_s:
            self._watts, self._counted_to = watts, now
            return Step(0.0, 0.0, 1, f"{self.name} was not read for {now - last:.1f} s")
        return self._count(now, watts, 1)

    def _read(self) -> float:
        watts = self._sensor.watts()
        if not 0 < watts < MOST_W:
            raise UnreadableError(f"{self.name} says {watts:.3f} W, which no running board draws")
        return watts

    def _count(self, now: float, watts: float, samples: int) -> Step:
        seconds = now - self._counted_to
        step = Step((self._watts + watts) / 2 * seconds, seconds, samples)
        self._watts, self._counted_to = watts, now
        return step

    def forget(self) -> None:
        """See Sensor."""
        self._read_at = None
