"""A meter that reads a sensor, and says so when it could not, or when there is none.

A window counts as measured only if readings account for all of it; else the model's estimate stands in for the whole
window: the two are never mixed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from edgefleet_agent.power.meter import Energy
from edgefleet_agent.power.model import ModelMeter
from edgefleet_agent.power.sensor import Sensor
from edgefleet_agent.power.sysfs import UnreadableError

# How long an old reading may stand for those that fail, in periods (two in a row) and at least.
PATIENCE_PERIODS = 3.5
PATIENCE_LEAST_S = 2.0
# A sensor on a slow bus is read less often, so that the loop waits for it at most this share of its time.
MOST_WAITING = 0.02
# At boot the agent may be earlier than a driver; and one that is loaded anew has another number.
LOOK_AGAIN_S = 60.0
# Of a window's time; the rest is rounding.
ALL = 0.999


class SensorMeter:
    """One sensor, integrated."""

    def __init__(
        self,
        find: Callable[[], Sensor],
        estimate: ModelMeter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`find` raises UnreadableError; it is asked again while nothing is heard.

        `estimate`, of no reason of its own, stands in.
        """
        self._find = find
        self._estimate = estimate
        self._clock = clock
        self.period_s = estimate.period_s
        self._sensor: Sensor | None = None
        self._refusal = ""
        self._since = self._heard_at = self._next_at = clock()
        self._interval_s = 0.0
        self._joules, self._covered_s, self._samples = 0.0, 0.0, 0
        self._lost: str | None = None
        self._look(self._since)
        self._step(self._since)

    @property
    def name(self) -> str:
        """See Meter."""
        return self._estimate.name if self._sensor is None else self._sensor.name

    def sample(self, now: float) -> None:
        """See Meter."""
        if now >= self._next_at:
            self._step(now)

    def energy(self) -> Energy:
        """See Meter."""
        now = self._clock()
        is_read, sensor = self._step(now), self._sensor
        if sensor is not None and not is_read:
            # What it counts until it speaks again belongs to two windows.
            sensor.forget()
        estimate, duration_s = self._estimate.energy(), now - self._since
        if sensor is not None and is_read and self._covered_s >= ALL * duration_s:
            energy = Energy(
                joules=self._joules,
                low_j=None,
                high_j=None,
                source="measured",
                scope=sensor.scope,
                reason=None,
                duration_s=duration_s,
                samples=self._samples,
            )
        else:
            energy = replace(estimate, reason=f"{self._why(duration_s)}{estimate.reason}")
        self._since, self._joules, self._covered_s, self._samples, self._lost = now, 0.0, 0.0, 0, None
        return energy

    def _why(self, duration_s: float) -> str:
        """Why the window is not measured."""
        if self._sensor is None:
            return self._refusal
        why = self._lost or f"{self.name} was silent at its beginning"
        return f"{duration_s - self._covered_s:.1f} of {duration_s:.1f} s were not measured: {why}"

    def _step(self, now: float) -> bool:
        """Take one reading; whether the time until now is accounted for."""
        sensor = self._sensor
        self._next_at = now + self.period_s
        if sensor is None:
            self._estimate.sample(now)
            self._look_again(now)
            return False
        patience_s = max(PATIENCE_LEAST_S, PATIENCE_PERIODS * max(sensor.period_s, self.period_s, self._interval_s))
        before_s = self._clock()
        try:
            step = sensor.step(now, patience_s)
        except UnreadableError as error:
            self._lost = str(error)
            self._look_again(now)
            return False
        finally:
            self._interval_s = (self._clock() - before_s) / MOST_WAITING
            self._next_at = now + max(self.period_s, self._interval_s)
        self._heard_at = now
        self._joules += step.joules
        self._covered_s += step.seconds
        self._samples += step.samples
        self._lost = step.lost or self._lost
        return True

    def _look_again(self, now: float) -> None:
        if now - max(self._heard_at, self._looked_at) >= LOOK_AGAIN_S:
            self._look(now)

    def _look(self, now: float) -> None:
        self._looked_at = now
        try:
            self._sensor = self._find()
        except UnreadableError as error:
            self._refusal = str(error)
        else:
            self.period_s = self._sensor.period_s
            self._next_at = now
