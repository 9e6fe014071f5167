"""Energy from the profile's linear model and the processors' load: an estimate, and marked as one.

P = idle + (max − idle) · utilisation · f/f_max. The error bar is the model's whole range, since nothing is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edgefleet_agent.power import load
from edgefleet_agent.power.meter import Energy
from edgefleet_agent.power.sysfs import UnreadableError
from edgefleet_device_profiles.profile import PowerModel


class ModelMeter:
    """Estimates what was spent."""

    name = "model"

    def __init__(self, root: Path, power: PowerModel, reason: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`reason` says why nothing is measured."""
        self.period_s = 1.0
        self._root = root
        self._power = power
        self._reason = reason
        self._clock = clock
        self._policies = load.find_policies(root)
        self._times = self._read()
        self._share: float | None = None
        self._since = self._counted_to = clock()
        self._next_at = self._since + self.period_s
        self._joules = 0.0
        self._is_blind = self._times is None

    def sample(self, now: float) -> None:
        """See Meter."""
        if now >= self._next_at:
            self._count(now)

    def energy(self) -> Energy:
        """See Meter."""
        now = self._clock()
        self._count(now)
        power, duration_s = self._power, now - self._since
        blind = "; the processors' load cannot be read either" if self._is_blind else ""
        energy = Energy(
            joules=min(self._joules, power.max_w * duration_s),
            low_j=power.idle_w * duration_s,
            high_j=power.max_w * duration_s,
            source="estimated",
            scope=power.scope,
            reason=self._reason + blind,
            duration_s=duration_s,
            samples=0,
        )
        self._since, self._joules, self._is_blind = now, 0.0, self._times is None
        return energy

    def _read(self) -> dict[int, load.Times] | None:
        try:
            return load.read_times(self._root)
        except (UnreadableError, ValueError):
            return None

    def _count(self, now: float) -> None:
        self._next_at = now + self.period_s
        seconds, self._counted_to = max(0.0, now - self._counted_to), max(now, self._counted_to)
        last, self._times = self._times, self._read()
        if last is None or self._times is None:
            self._is_blind, self._share = True, None
        else:
            # Too short a step for the jiffies to tell: what was true before.
            share = load.share(last, self._times, load.clock_ratios(self._policies))
            self._share = self._share if share is None else share
        # Without a load every value in the range is as likely as another.
        share = 0.5 if self._share is None else self._share
        self._joules += (self._power.idle_w + (self._power.max_w - self._power.idle_w) * share) * seconds
