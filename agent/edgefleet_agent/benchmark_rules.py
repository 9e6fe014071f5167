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
    TIED,
    Decision,
    Limits,
    decide,
    decisive,
    exceeded,
    milliseconds,
    ranked,
    ratio,
    said_beside,
)
from edgefleet_agent.benchmark_measures import MIN_RUNS, QUANTILE, Candidate, Measured, Ran, quantile
from edgefleet_agent.benchmark_ratio import Ratio

MOST_FINALISTS = 3
HOPELESS = (3.0, 2.0)
"""Whose fastest run is this far above the best one's p90 is out, after one pass, and after two: it may be load that
comes and goes."""
# Finalists are within this of the best; a screening says little of joules. By latency whoever may be equal is one.
NEAR = {Objective.ENERGY: 2.0, Objective.SIZE: 1.15}
SETTLED = 1.05
"""Finals end early where the chosen one is beyond doubt at most so many times as slow as any other."""
STEADY_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Round:
    """How long each candidate is measured, in how many turns, and how many times that where it does not tell enough."""

    seconds: float
    turns: int
    times: int = 1

    @property
    def runs(self) -> int:
        """Least number of inferences in a turn."""
        return math.ceil(MIN_RUNS / self.turns)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of the screening, in which everyone is measured, and of the finals."""

    screening: Round = Round(2.0, 4, 3)
    final: Round = Round(30.0, 40, 3)
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
        self.complete = False
        """Everything was measured for as long as the rules ask."""
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
        if self._passes and self._passes % self._length.turns == 0 and not self._goes_on():
            if self.in_finals:
                self.complete = True
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
        running = self._running
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

    def _goes_on(self) -> bool:
        """Whether more of the same may tell what this did not; whoever is behind beyond doubt is out."""
        if self._objective is Objective.LATENCY:
            _, ranking = self._ranking()
            for one, behind in ranking:
                if behind.low > TIED:
                    one.out = (Standing.BEHIND, said_beside(one, ranking[0][0]))
        if self._passes >= self._length.turns * self._length.times:
            return False
        if self.in_finals:
            return not self._is_settled()
        return self._objective is Objective.LATENCY and len(self._running) > MOST_FINALISTS

    def _is_settled(self) -> bool:
        """Whether nobody can be much better than the one that would be chosen now."""
        by, ranking = self._ranking()
        candidate = self.decision().chosen
        return all(
            ratio(chosen, other, by).high <= SETTLED
            for chosen, _ in ranking
            for other, _ in ranking
            if chosen.candidate == candidate and other is not chosen
        )

    def _begin_finals(self) -> None:
        """Whoever may be the best is measured for longer; those over the budget only where nobody is within it."""
        by, ranking = self._ranking()
        near = [one for one, behind in ranking if by is Objective.LATENCY or behind.middle <= NEAR[by]]
        for one in self._running:
            if one not in near[:MOST_FINALISTS]:
                over = exceeded(one, self._limits)
                behind = Standing.BEHIND, said_beside(one, ranking[0][0])
                one.out = behind if over is None else (Standing.OVER_BUDGET, over)
            else:
                # In the finals all is steady, and all are alike.
                one.anew = True
        self.in_finals, self._passes = True, 0

    @property
    def _running(self) -> list[Measured]:
        return [one for one in self.measured if one.out is None and one.turns]

    def _ranking(self) -> tuple[Objective, list[tuple[Measured, Ratio]]]:
        """What decides, and by it whoever is within the budget, or all where nobody is: the best first."""
        running = self._running
        within = [one for one in running if exceeded(one, self._limits) is None] or running
        by = decisive(running, self._objective, rough=not self.in_finals)
        return by, ranked(within, by)
