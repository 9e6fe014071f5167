"""Figures over several telemetry windows: percentiles, rate, energy per inference; null, with the reason, when too few.

Pure: the same windows give the same figures. It chooses no windows but the newest, and compares no two spans.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from edgefleet.protocol.measurements import Accuracy, Energy, EstimatedEnergy, Thermal
from edgefleet.sketch import Sketch

SPAN_S = 300.0
MIN_RUNS = {0.5: 7, 0.9: 64, 0.95: 130, 0.99: 662}
"""Fewest runs for which a quantile is given. p90 and above: MLPerf's early stopping at 99 % confidence.

p50: with 7 runs the chance that none lies above the true median is below 1 %.
"""
# MLPerf Tiny and MLPerf Power: see `energy_per_inference`.
MIN_ENERGY_S = 10.0
MIN_ENERGY_SAMPLES = 100
SLOW_SENSOR_HZ = 10.0
MIN_SLOW_SENSOR_S = 60.0


class Durations(Protocol):
    """What was timed in a window: a message's, or a store's, which reads it only when it is asked."""

    def sketch(self) -> Sketch:
        """A sketch of one's own, to be merged into."""


class Latency(Protocol):
    """The three that every inference has."""

    @property
    def preprocess(self) -> Durations: ...  # noqa: D102 - as in `protocol.measurements`
    @property
    def inference(self) -> Durations: ...  # noqa: D102
    @property
    def end_to_end(self) -> Durations: ...  # noqa: D102


class Measured(Protocol):
    """What a span takes of a telemetry window."""

    @property
    def duration_s(self) -> float: ...  # noqa: D102 - as in `protocol.messages`
    @property
    def count(self) -> int: ...  # noqa: D102
    @property
    def errors(self) -> int: ...  # noqa: D102
    @property
    def accuracy(self) -> Accuracy | None: ...  # noqa: D102
    @property
    def latency(self) -> Latency: ...  # noqa: D102
    @property
    def energy(self) -> Energy: ...  # noqa: D102
    @property
    def thermal(self) -> Thermal: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, or None and why there is none."""

    value: float | None
    reason: str | None = None


@dataclass(slots=True)
class EnergyTotal:
    """Energy of one source and scope, summed over the windows that have it, and what ran in them."""

    source: str
    scope: str
    joules: float = 0.0
    low_j: float = 0.0
    high_j: float = 0.0
    duration_s: float = 0.0
    samples: int = 0
    inferences: int = 0
    windows: int = 0
    throttled_windows: int = 0
    reason: str | None = None
    """Of an estimate: why it was not measured, as the newest window says."""

    @property
    def watts(self) -> float | None:
        """Mean power; None over no time."""
        return self.joules / self.duration_s if self.duration_s > 0 else None

    def add(self, window: Measured) -> None:
        """Take in a window of this source and scope."""
        energy = window.energy
        if isinstance(energy, EstimatedEnergy):
            self.low_j, self.high_j = self.low_j + energy.low_j, self.high_j + energy.high_j
            self.reason = self.reason or energy.reason
        else:
            self.samples += energy.samples
        self.joules += energy.joules
        self.duration_s += energy.duration_s
        self.inferences += window.count
        self.windows += 1
        self.throttled_windows += bool(window.thermal.throttled)


@dataclass(slots=True)
class Span:
    """Several windows of one variant on one device, merged."""

    windows: int = 0
    duration_s: float = 0.0
    count: int = 0
    errors: int = 0
    correct: int = 0
    labelled: int = 0
    latencies: list[Latency] = field(default_factory=list, compare=False)
    energies: dict[tuple[str, str], EnergyTotal] = field(default_factory=dict)
    """(source, scope) → total: what is measured and what is estimated is never added up."""
    thermal: Thermal | None = None
    """Of the window that was taken in first, which is the newest."""

    def add(self, window: Measured) -> None:
        """Take in one more window."""
        self.windows += 1
        self.duration_s += window.duration_s
        self.count += window.count
        self.errors += window.errors
        if window.accuracy is not None:
            self.correct += window.accuracy.correct
            self.labelled += window.accuracy.labelled
        self.latencies.append(window.latency)
        self._total_of(window.energy).add(window)
        self.thermal = self.thermal or window.thermal

    def _total_of(self, energy: Energy) -> EnergyTotal:
        key = (energy.source, energy.scope)
        return self.energies.setdefault(key, EnergyTotal(*key))

    # Merged when asked for, and kept by who asks: most look at one of the three.

    @property
    def preprocess(self) -> Sketch:
        """From the inputs as they came to the tensors that the file takes; in seconds, as the other two."""
        return _merged(latency.preprocess for latency in self.latencies)

    @property
    def inference(self) -> Sketch:
        """The runtime's calls alone."""
        return _merged(latency.inference for latency in self.latencies)

    @property
    def end_to_end(self) -> Sketch:
        """From the inputs as they came to the outputs in the source model's layout."""
        return _merged(latency.end_to_end for latency in self.latencies)

    @property
    def achieved_per_s(self) -> float | None:
        """Inferences a second, beside what one of them takes; None over no time."""
        return self.count / self.duration_s if self.duration_s > 0 else None

    @property
    def energy(self) -> EnergyTotal | None:
        """The total that is told: the measured one with the most windows, else the estimated one with the most."""
        totals = self.energies.values()
        return max(totals, key=lambda total: (total.source == "measured", total.windows), default=None)


def _merged(durations: Iterable[Durations]) -> Sketch:
    sketch = Sketch()
    for each in durations:
        sketch.merge(each.sketch())
    return sketch


def merge(newest_first: Iterable[Measured], span_s: float = SPAN_S) -> Span:
    """The newest windows, as many as last `span_s` together."""
    span = Span()
    for window in newest_first:
        span.add(window)
        if span.duration_s >= span_s:
            break
    return span


def percentile(sketch: Sketch, q: float) -> Figure:
    """Quantile `q` (a key of MIN_RUNS) of durations in seconds."""
    if sketch.count < MIN_RUNS[q]:
        return Figure(None, f"{sketch.count} runs: p{q * 100:.0f} needs {MIN_RUNS[q]}")
    return Figure(sketch.quantile(q))


def energy_per_inference(total: EnergyTotal | None) -> Figure:
    """Gross joules per inference: everything that was drawn, the idle board's share included.

    As MLPerf Power counts, without subtracting idle power. Null after less than 10 s or (measured) fewer than 100
    readings, after less than 60 s of a sensor with 10 readings a second or fewer, and when a window was throttled.
    """
    if total is None or not total.inferences:
        return Figure(None, "no inference")
    if total.throttled_windows:
        return Figure(None, f"throttled in {total.throttled_windows} of {total.windows} windows")
    if total.duration_s < MIN_ENERGY_S:
        return Figure(None, f"{total.duration_s:.1f} s: energy needs {MIN_ENERGY_S:.0f} s")
    if total.source == "measured":
        if total.samples < MIN_ENERGY_SAMPLES:
            return Figure(None, f"{total.samples} readings of the sensor: energy needs {MIN_ENERGY_SAMPLES}")
        if total.duration_s < MIN_SLOW_SENSOR_S and total.samples <= SLOW_SENSOR_HZ * total.duration_s:
            return Figure(None, f"{total.duration_s:.1f} s: this sensor needs {MIN_SLOW_SENSOR_S:.0f} s")
    return Figure(total.joules / total.inferences)


def net_of_idle(total: EnergyTotal | None, idle_w: float) -> Figure:
    """Joules per inference beyond what the idle board draws (`idle_w`, of the same scope); never below nought."""
    gross = energy_per_inference(total)
    if gross.value is None or total is None:
        return gross
    return Figure(max(0.0, total.joules - idle_w * total.duration_s) / total.inferences)
