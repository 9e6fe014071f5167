"""How far the chosen candidate is from the best on a machine with drift and with bursts of others' load."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgefleet.protocol.decisions import Objective
from edgefleet_agent.benchmark_decision import Limits
from edgefleet_agent.benchmark_measures import QUANTILE, Candidate, Measured, Ran, quantile
from edgefleet_agent.benchmark_ratio import slower
from edgefleet_agent.benchmark_rules import Contest

SEEDS = range(40)
LIMIT = 1.10
BURST_S, BURST_SHARE, DRIFT = 4.0, 0.3, 0.15


@dataclass
class Machine:
    """A clock, and by how much everything is slower at a time: bursts of others, and a slow drift."""

    random_: random.Random
    now: float = 0.0
    bursts: list[tuple[float, float, float]] = field(default_factory=list)
    """(from, until, how many times as slow); the next or present one comes first."""

    def load(self) -> float:
        """How many times as slow everything is now."""
        drift = 1 + DRIFT * math.sin(self.now / 30)
        while not self.bursts or self.bursts[0][1] < self.now:
            pause_s = self.random_.expovariate(BURST_SHARE / (BURST_S * (1 - BURST_SHARE)))
            begins = (self.bursts.pop()[1] if self.bursts else 0.0) + pause_s
            length_s = self.random_.expovariate(1 / BURST_S)
            self.bursts = [(begins, begins + length_s, self.random_.uniform(1.5, 3.5))]
        begins, _, factor = self.bursts[0]
        return drift * (factor if begins <= self.now else 1.0)

    def run(self, candidate_s: float, runs: int, seconds: float) -> Ran:
        """At least so many inferences, and at least so long, of a candidate that takes `candidate_s` by itself."""
        took: list[float] = []
        until = self.now + seconds
        while len(took) < runs or self.now < until:
            took.append(candidate_s * self.load() * math.exp(self.random_.gauss(0, 0.05)))
            self.now += took[-1]
        return Ran(len(took), took, took)


def candidates_s(random_: random.Random) -> list[float]:
    """Four that are near the best, and four that are not."""
    return [random_.uniform(low, high) for low, high in ((0.04, 0.06), (0.06, 0.15)) for _ in range(4)]


def candidate(place: int) -> Candidate:
    return Candidate(f"sha256:{place:064x}", f"variant-{place}", "litert", "int8", 1000 + place, 1)


def by_the_rules(took_s: Sequence[float], machine: Machine) -> int:
    """Place of the one that a contest chooses."""
    contest = Contest(map(candidate, range(len(took_s))), Objective.LATENCY, Limits())
    while (turn := contest.turn()) is not None:
        contest.take(machine.run(took_s[turn.place], turn.runs, turn.seconds))
    chosen = contest.decision().chosen
    assert chosen is not None
    return contest.measured.index(next(one for one in contest.measured if one.candidate == chosen))


def by_all_runs(took_s: Sequence[float], machine: Machine) -> int:
    """Place of the one with the least 90th percentile of all its runs: 2 s each, then 30 s for the best three."""
    places = list(range(len(took_s)))
    for passes, seconds in ((4, 0.5), (20, 1.5)):
        found: dict[int, list[float]] = {place: [] for place in places}
        for number in range(passes):
            for place in places if number % 2 == 0 else places[::-1]:
                found[place] += machine.run(took_s[place], 4, seconds).end_to_end_s
        places = sorted(places, key=lambda place: quantile(found[place], QUANTILE))[:3]
    return places[0]


def test_the_chosen_one_is_within_a_tenth_of_the_best_while_load_comes_and_goes() -> None:
    regrets: dict[str, list[float]] = {"by the rules": [], "by all runs": []}
    for seed in SEEDS:
        took_s = candidates_s(random.Random(seed))
        for name, choose in (("by the rules", by_the_rules), ("by all runs", by_all_runs)):
            chosen = choose(took_s, Machine(random.Random(1000 + seed)))
            regrets[name].append(took_s[chosen] / min(took_s))
    assert max(regrets["by the rules"]) <= LIMIT
    # What meets one candidate and not the other decides where all runs are thrown together.
    assert sum(regret > LIMIT for regret in regrets["by all runs"]) >= len(SEEDS) // 10


def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says() -> None:
    held, widths = 0, []
    for seed in SEEDS:
        machine = Machine(random.Random(seed))
        pair = [Measured(candidate(place)) for place in range(2)]
        for number in range(40):
            for place in (0, 1) if number % 2 == 0 else (1, 0):
                pair[place].add(machine.run((0.055, 0.05)[place], 2, 0.75))
        found = slower(*pair)
        widths.append(found.high / found.low)
        held += found.low <= 1.1 <= found.high
    assert held >= 0.9 * len(SEEDS)
    assert sorted(widths)[len(widths) // 2] < 1.2
