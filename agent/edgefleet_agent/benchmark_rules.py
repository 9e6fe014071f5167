"""The rules of a benchmark on the device: who runs next and for how long, and who need not be measured on.

Pure: it starts nothing and knows no clock; `benchmark` runs what it asks for. Candidates take turns forwards and
backwards (ABBA), so that heat and load that come and go meet all alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from edgefleet.protocol.decisions import Conditions, Objective, Standing
from edgefleet_agent.benchmark_decision import (
    Decision,
    Limits,
    by_energy,
    decide,
    exceeded,
    milliseconds,
    score,
)
from edgefleet_agent.benchmark_measures import MIN_RUNS, QUANTILE, Candidate, Measured, Ran, quantile

MOST_FINALISTS = 3
HOPELESS = (2.0, 1.3)
"""Whose fastest run is this far above the best one's p90 is out, after one pass, and after two: after one it may have
been load that came and went."""
# Finalists are within this of the best, by the objective; a screening says little of joules.
NEAR = {Objective.LATENCY: 1.15, Objective.ENERGY: 2.0, Objective.SIZE: 1.15}
STEADY_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Round:
    """How long each candidate is measured in all, and in how many turns."""

    seconds: float
    turns: int

    @property
    def runs(self) -> int:
        """Least number of inferences in a turn."""
        return math.ceil(MIN_RUNS / self.turns)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of the screening, in which everyone is measured, and of the finals."""

    screening: Round = Round(2.0, 4)
    final: Round = Round(30.0, 20)
    energy_final: Round = Round(60.0, 6)
    """A sensor that is read ten times a second says little of shorter turns."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What is to be run next: at least so many inferences, and at least so long."""

    place: int
    runs: int
    seconds: float


class Contest:
    """One benchmark: `turn` says what to run, `take` what came of it, `decision` ends it."""

    def __init__(
        self, candidates: Iterable[Candidate], objective: Objective, limits: Limits, lengths: Lengths | None = None
    ) -> None:
        """Among `candidates`, numbered by their place."""
        self.measured = [Measured(candidate) for candidate in candidates]
        self.in_finals = False
        self._objective = objective
        self._limits = limits
        self._lengths = lengths or Lengths()
        self._queue: list[int] = []
        self._passes = 0
        self._throttled: list[bool] = []

    def turn(self) -> Turn | None:
        """What to run next; None when all is measured."""
        while not self._queue:
            if not self._next_pass():
                return None
        length = self._length
        return Turn(self._queue[0], length.runs, length.seconds / length.turns)

    def take(self, ran: Ran) -> None:
        """What came of the last turn."""
        self.measured[self._queue.pop(0)].add(ran)
        if ran.throttled is not None:
            self._throttled.append(ran.throttled)

    def fail(self, place: int, reason: str) -> None:
        """A candidate that cannot be measured is out."""
        self.measured[place].out = (Standing.FAILED, reason)
        self._queue = [other for other in self._queue if other != place]

    def decision(self) -> Decision:
        """The choice by what was measured so far."""
        return decide(self.measured, self._objective, self._limits)

    @property
    def complete(self) -> bool:
        """Whether everything was measured for as long as the rules ask."""
        return self.in_finals and self._passes == self._length.turns and not self._queue

    @property
    def throttled_share(self) -> float:
        """Of the turns of which it is known."""
        return sum(self._throttled) / len(self._throttled) if self._throttled else 0.0

    def conditions(self, *, live: bool) -> Conditions:
        """How the numbers are to be read; `live`: the committed variant went on inferring."""
        if self.throttled_share > STEADY_SHARE:
            return Conditions.THROTTLED_STEADY
        return Conditions.LIVE if live else Conditions.IDLE

    @property
    def _length(self) -> Round:
        if not self.in_finals:
            return self._lengths.screening
        return self._lengths.energy_final if self._objective is Objective.ENERGY else self._lengths.final

    def _next_pass(self) -> bool:
        """Queue one more pass, forwards or backwards; False when there is none."""
        if self._passes == self._length.turns:
            if self.in_finals:
                return False
            self._begin_finals()
        if not self.in_finals:
            self._drop_hopeless()
        places = [place for place, one in enumerate(self.measured) if one.out is None]
        self._queue = places if self._passes % 2 == 0 else places[::-1]
        self._passes += 1
        return bool(places)

    def _drop_hopeless(self) -> None:
        """Whoever is beyond doubt slower than the best need not be measured to the end."""
        running = [one for one in self.measured if one.out is None and one.turns]
        if self._objective is not Objective.LATENCY or not running:
            return
        best = min(running, key=lambda one: quantile(one.end_to_end_s(), QUANTILE))
        bar_s = quantile(best.end_to_end_s(), QUANTILE)
        factor = HOPELESS[min(self._passes, len(HOPELESS)) - 1]
        for one in running:
            fastest_s = min(one.end_to_end_s())
            if fastest_s > bar_s * factor:
                text = f"fastest of {one.runs} runs {milliseconds(fastest_s)}, {best.candidate} has a p90 of"
                one.out = (Standing.HOPELESS, f"{text} {milliseconds(bar_s)}")

    def _begin_finals(self) -> None:
        """Whoever is near the best is measured for longer; those over the budget only where nobody is within it."""
        self.in_finals, self._passes = True, 0
        running = [one for one in self.measured if one.out is None and one.turns]
        energy = by_energy(running, self._objective, rough=True)

        def scored(one: Measured) -> float:
            return score(one, self._objective, energy=energy, rough=True)

        within = [one for one in running if exceeded(one, self._limits) is None] or running
        ranked = sorted(within, key=scored)
        finalists = [one for one in ranked if self._is_near(one, ranked[0], scored(one), scored(ranked[0]))]
        for one in running:
            if one in finalists[:MOST_FINALISTS]:
                one.restart()
            else:
                over = exceeded(one, self._limits)
                one.out = (Standing.BEHIND, "") if over is None else (Standing.OVER_BUDGET, over)

    def _is_near(self, one: Measured, best: Measured, own: float, bar: float) -> bool:
        """Within reach of the best, or perhaps so by chance."""
        if own <= bar * NEAR[self._objective]:
            return True
        bounds, best_bounds = one.bounds_s(), best.bounds_s()
        by_latency = self._objective is Objective.LATENCY
        return by_latency and bounds is not None and best_bounds is not None and bounds[0] <= best_bounds[1]
