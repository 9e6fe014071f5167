"""Telemetry windows: what a worker reports of one, together with what only the main process can see.

It keeps nothing but what was read last, and sends nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgefleet.protocol.measurements import EstimatedEnergy, MeasuredEnergy, Memory
from edgefleet.protocol.messages import Window
from edgefleet_agent import footprint
from edgefleet_agent.clock import StampClock
from edgefleet_agent.power.meter import Energy, Meter
from edgefleet_agent.thermal import Thermal

TIMES = ("started_s", "duration_s", "cpu_s")
REPORTED = ("duration_s", "count", "errors", "latency", "accuracy", "statistics")


class Windows:
    """Makes windows of reports, one after the other."""

    def __init__(self, meter: Meter, thermal: Thermal, clock: StampClock, proc: Path = footprint.PROC) -> None:
        """`meter` and `thermal` are read by the windows alone: they tell of the time since they were asked last."""
        self._meter = meter
        self._thermal = thermal
        self._clock = clock
        self._proc = proc
        self._cpu_s = time.process_time()

    def begin(self) -> None:
        """A worker was started: what was spent before is nobody's."""
        self._meter.energy()
        self._thermal.read()
        self._cpu_s = time.process_time()

    def tick(self, now: float) -> None:
        """Read what has to be read within a window, as often as it has to be."""
        self._meter.sample(now)
        self._thermal.sample(now)

    def close(self, report: Mapping[str, Any], digest: str, pid: int) -> Window:
        """The window that `report` of the worker `pid` ends; raises ValueError for a report that is none."""
        try:
            started_s, duration_s, worker_cpu_s = (float(report[name]) for name in TIMES)
            reported = {name: report[name] for name in REPORTED}
        except (KeyError, TypeError) as error:
            raise ValueError(f"a worker's report lacks something: {error}") from error
        return Window.model_validate(
            {
                **reported,
                "started": self._clock.stamp(started_s),
                "digest": digest,
                "energy": as_part(self._meter.energy()),
                "thermal": asdict(self._thermal.read()),
                "cpu_share": (worker_cpu_s + self._own_cpu_s()) / duration_s if duration_s > 0 else 0.0,
                "memory": Memory(
                    agent_bytes=footprint.pss_bytes(os.getpid(), self._proc),
                    worker_bytes=footprint.pss_bytes(pid, self._proc),
                ),
            }
        )

    def _own_cpu_s(self) -> float:
        """Processor time of this process since the last window."""
        before, self._cpu_s = self._cpu_s, time.process_time()
        return self._cpu_s - before


def as_part(energy: Energy) -> MeasuredEnergy | EstimatedEnergy:
    """Energy as the wire has it."""
    if energy.low_j is None or energy.high_j is None:
        return MeasuredEnergy(
            joules=energy.joules, duration_s=energy.duration_s, samples=energy.samples, scope=energy.scope
        )
    return EstimatedEnergy(
        joules=energy.joules, low_j=energy.low_j, high_j=energy.high_j, duration_s=energy.duration_s,
        scope=energy.scope, reason=energy.reason or "",
    )  # fmt: skip
