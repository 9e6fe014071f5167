"""What a benchmark measured of one candidate: runs, their quantiles with intervals, joules, memory.

Pure. Who runs next is `benchmark_rules`' business, and what the numbers come to `benchmark_decision`'s.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgefleet.confidence import interval, sections
from edgefleet.protocol.decisions import Standing

QUANTILE = 0.9
MIN_RUNS = 64
"""For a 90th percentile with 99 % confidence (MLPerf Inference rules, early stopping)."""
KEPT_RUNS = 256
"""Of each turn, or up to twice as many: more say nothing more, and would fill a small device's memory."""
SECTIONS = 10
SECTION_RUNS = 10
"""Fewer have their 90th percentile beyond them."""
INTERVAL_TAIL = 0.025
ENERGY_S = 10.0
ENERGY_READINGS = 100


@dataclass(frozen=True, slots=True)
class Candidate:
    """One variant in one setting."""

    digest: str
    name: str
    runtime: str
    precision: str
    size_bytes: int
    threads: int

    def __str__(self) -> str:
        """For people."""
        return f"{self.name} with {self.threads} {'thread' if self.threads == 1 else 'threads'}"


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was drawn while a candidate ran, as a sensor measured it; an estimate is none."""

    joules: float
    duration_s: float
    samples: int


@dataclass(frozen=True, slots=True)
class Ran:
    """One turn's outcome, seconds of some inferences of all `runs`: with the borders, and the runtime's call alone."""

    runs: int
    end_to_end_s: Sequence[float]
    inference_s: Sequence[float]
    drawn: Drawn | None = None
    throttled: bool | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Lap:
    """What is kept of one turn: seconds with the borders, and of the runtime's call alone."""

    end_to_end_s: array[float]
    inference_s: array[float]
    p90_s: float
    """With the borders."""


def quantile(runs: Sequence[float], q: float) -> float:
    """By nearest rank, of one run at least."""
    return sorted(runs)[max(0, math.ceil(round(q * len(runs), 6)) - 1)]


def is_section(laps: Sequence[Lap]) -> bool:
    """Whether laps have enough runs to be a section."""
    return sum(len(lap.end_to_end_s) for lap in laps) >= SECTION_RUNS


def p90_s(laps: Sequence[Lap]) -> float:
    """The 90th percentile of laps, of one at least."""
    if len(laps) == 1:
        return laps[0].p90_s
    return quantile([value for lap in laps for value in lap.end_to_end_s], QUANTILE)


@dataclass(slots=True, eq=False)
class Measured:
    """A candidate, and what was measured of it so far."""

    candidate: Candidate
    turns: list[Lap] = field(default_factory=list)
    runs: int = 0
    drawn: list[Drawn] = field(default_factory=list)
    memory_bytes: int | None = None
    out: tuple[Standing, str] | None = None
    """Why it is measured no more."""
    anew: bool = False
    """What was measured counts until there is something newer."""

    def add(self, ran: Ran) -> None:
        """Take a turn's outcome."""
        if self.anew:
            self.turns, self.runs, self.drawn, self.anew = [], 0, [], False
        end_to_end_s, inference_s = array("d", ran.end_to_end_s), array("d", ran.inference_s)
        self.turns.append(Lap(end_to_end_s, inference_s, quantile(end_to_end_s, QUANTILE)))
        self.runs += ran.runs
        if ran.drawn is not None:
            self.drawn.append(ran.drawn)
        if ran.memory_bytes is not None:
            self.memory_bytes = max(self.memory_bytes or 0, ran.memory_bytes)

    def end_to_end_s(self) -> list[float]:
        """Kept runs of all turns, with their borders."""
        return [value for lap in self.turns for value in lap.end_to_end_s]

    def inference_s(self) -> list[float]:
        """Kept runs of all turns, the runtime's call alone."""
        return [value for lap in self.turns for value in lap.inference_s]

    @property
    def enough(self) -> bool:
        """Whether there are enough runs for a 90th percentile."""
        return self.runs >= MIN_RUNS

    def bounds_s(self) -> tuple[float, float] | None:
        """95 % interval of the 90th percentile, over sections of neighbouring turns; None with too few runs."""
        parts = sections(self.turns, SECTIONS, is_section)
        if not self.enough or len(parts) < 2:
            return None
        p90s = [p90_s(part) for part in parts]
        low, high = interval([math.log(max(p90, 1e-9)) for p90 in p90s], INTERVAL_TAIL)
        middle, reach = quantile(self.end_to_end_s(), QUANTILE), math.exp((high - low) / 2)
        return middle / reach, middle * reach

    def energy_j(self, *, rough: bool = False) -> float | None:
        """Gross joules an inference; None where not every turn was measured, or less than 10 s and 100 readings.

        `rough` asks for no more than a reading.
        """
        readings = sum(drawn.samples for drawn in self.drawn)
        least_s, least = (0.0, 1) if rough else (ENERGY_S, ENERGY_READINGS)
        if len(self.drawn) < len(self.turns) or readings < least:
            return None
        if not self.runs or sum(drawn.duration_s for drawn in self.drawn) < least_s:
            return None
        return math.fsum(drawn.joules for drawn in self.drawn) / self.runs
