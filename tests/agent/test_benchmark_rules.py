"""A benchmark's rules: turns forwards and backwards, who is out early, who is chosen, and how far from the best."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from edgefleet.protocol.decisions import Conditions, Objective, Standing
from edgefleet_agent.benchmark_decision import Decision, Limits, Result
from edgefleet_agent.benchmark_measures import MIN_RUNS, Candidate, Drawn, Ran, quantile
from edgefleet_agent.benchmark_rules import Contest, Turn

NO_LIMITS = Limits()
PLAIN = Objective.LATENCY, NO_LIMITS


@dataclass(frozen=True)
class Simulated:
    """A candidate that takes `p90_s` in nine of ten inferences at most, and what else is measured of it."""

    p90_s: float
    size_bytes: int = 1000
    threads: int = 1
    noise: float = 0.05
    watts: float | None = None
    memory_bytes: int | None = None

    def candidate(self, place: int) -> Candidate:
        return Candidate(f"sha256:{place:064x}", f"variant-{place}", "litert", "int8", self.size_bytes, self.threads)

    def run(self, turn: Turn, random_: random.Random, load: float) -> Ran:
        middle_s = self.p90_s / (1 + 1.2816 * self.noise) * load
        runs = [
            middle_s * (1 + random_.gauss(0, self.noise)) for _ in range(max(turn.runs, int(turn.seconds / middle_s)))
        ]
        spent_s = sum(runs)
        drawn = None if self.watts is None else Drawn(self.watts * spent_s, spent_s, int(spent_s * 10))
        return Ran(len(runs), runs, [run * 0.9 for run in runs], drawn, throttled=False, memory_bytes=self.memory_bytes)


def held(
    entrants: list[Simulated],
    objective: Objective = Objective.LATENCY,
    limits: Limits = NO_LIMITS,
    seed: int = 1,
    load: Callable[[int], float] = lambda _: 1.0,
) -> tuple[Contest, list[Turn]]:
    """A whole contest, and its turns."""
    random_ = random.Random(seed)
    contest = Contest([one.candidate(place) for place, one in enumerate(entrants)], objective, limits)
    turns: list[Turn] = []
    while (turn := contest.turn()) is not None:
        contest.take(entrants[turn.place].run(turn, random_, load(len(turns))))
        turns.append(turn)
    return contest, turns


def results(decision: Decision) -> list[Standing]:
    return [result.standing for result in decision.results]


def chosen(decision: Decision) -> Result:
    (found,) = (result for result in decision.results if result.standing is Standing.CHOSEN)
    assert found.measured.candidate == decision.chosen
    return found


def test_turns_go_forwards_and_backwards_and_last_as_long_as_the_rules_ask() -> None:
    contest, turns = held([Simulated(0.050), Simulated(0.051), Simulated(0.052)])
    assert [turn.place for turn in turns[:12]] == [0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0]
    for place in range(3):
        own = [turn for turn in turns if turn.place == place]
        assert sum(turn.seconds for turn in own[:4]) == 2.0
        assert sum(turn.runs for turn in own[:4]) >= MIN_RUNS
        assert sum(turn.seconds for turn in own[4:]) == pytest.approx(30.0)
        assert sum(turn.runs for turn in own[4:]) >= MIN_RUNS
    assert contest.complete


def test_the_fastest_is_chosen_and_the_others_say_by_how_much_they_are_behind() -> None:
    contest, turns = held([Simulated(0.030), Simulated(0.010), Simulated(0.0115), Simulated(0.017)])
    decision = contest.decision()
    assert results(decision) == [Standing.HOPELESS, Standing.CHOSEN, Standing.BEHIND, Standing.BEHIND]
    assert [sum(turn.place == place for turn in turns) for place in (0, 2, 3)] == [2, 4, 4]
    assert "fastest of" in decision.results[0].reason
    assert "pass by pass 1.15 times (1.12 to 1.18) that of variant-1" in decision.results[2].reason
    assert decision.reason.startswith("variant-1 with 1 thread: p90 10 ms (9.96 ms to 10.04 ms) of 3160 runs")
    bounds = chosen(decision).measured.bounds_s()
    assert bounds is not None
    assert 0.0095 < bounds[0] < bounds[1] < 0.0105


def test_within_three_percent_the_smaller_wins_then_fewer_threads() -> None:
    contest, _ = held([Simulated(0.0100, 3000), Simulated(0.0102, 1000, threads=4), Simulated(0.0102, 1000, threads=2)])
    decision = contest.decision()
    assert results(decision) == [Standing.TIED, Standing.TIED, Standing.CHOSEN]
    assert "within 3 % of it and larger or with more threads: variant-0" in decision.reason


def test_a_slow_model_gets_its_runs_and_a_hopeless_one_few() -> None:
    contest, turns = held([Simulated(1.0), Simulated(3.0)])
    assert contest.measured[0].runs >= MIN_RUNS
    assert contest.measured[1].runs == 32
    assert "16 runs are too few" not in contest.decision().reason
    assert sum(turn.runs for turn in turns) < 4 * MIN_RUNS


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        (Limits(latency_s=0.009), "p90 9."),
        (Limits(size_bytes=2 * 2**20), "size 3 MiB, 2 are allowed"),
        (Limits(memory_bytes=50 * 2**20), "memory 60 MiB, 50 are allowed"),
    ],
)
def test_what_exceeds_the_budget_is_not_chosen_even_if_all_do(limits: Limits, found: str) -> None:
    over = Simulated(0.0095, 3 * 2**20, memory_bytes=60 * 2**20)
    within = Simulated(0.0085, 2**20, threads=1, memory_bytes=40 * 2**20)
    decision = held([over, within], limits=limits)[0].decision()
    assert results(decision) == [Standing.OVER_BUDGET, Standing.CHOSEN]
    assert decision.results[0].reason.startswith(found)
    alone = held([over], limits=limits)[0].decision()
    assert alone.chosen is None
    assert found in alone.reason


def test_energy_decides_when_it_was_measured_of_everyone() -> None:
    fast, frugal = Simulated(0.010, watts=6.0, threads=4), Simulated(0.016, watts=3.0)
    contest, turns = held([fast, frugal], Objective.ENERGY)
    decision = contest.decision()
    assert results(decision) == [Standing.BEHIND, Standing.CHOSEN]
    assert "mJ" in decision.reason
    assert max(turn.seconds for turn in turns) == 10.0
    unmeasured = held([fast, replace(frugal, watts=None)], Objective.ENERGY)[0].decision()
    assert unmeasured.chosen == fast.candidate(0)
    assert "by latency, for the energy was not measured" in unmeasured.reason


def test_size_decides_among_what_keeps_the_budget() -> None:
    entrants = [Simulated(0.01, 3000), Simulated(0.02, 1000), Simulated(0.015, 1000, threads=2)]
    assert results(held(entrants, Objective.SIZE)[0].decision()) == [Standing.BEHIND, Standing.TIED, Standing.CHOSEN]
    slow_is_out = held(entrants, Objective.SIZE, Limits(latency_s=0.012))[0].decision()
    assert results(slow_is_out) == [Standing.CHOSEN, Standing.OVER_BUDGET, Standing.OVER_BUDGET]


def test_who_fails_is_out_and_the_others_go_on() -> None:
    contest = Contest([Simulated(0.01).candidate(place) for place in range(2)], Objective.LATENCY, NO_LIMITS)
    contest.fail(1, "it was ended by signal 11")
    random_ = random.Random(1)
    while (turn := contest.turn()) is not None:
        assert turn.place == 0
        contest.take(Simulated(0.01).run(turn, random_, 1.0))
    decision = contest.decision()
    assert results(decision) == [Standing.CHOSEN, Standing.FAILED]
    contest = Contest([Simulated(0.01).candidate(0)], Objective.LATENCY, NO_LIMITS)
    contest.fail(0, "it was ended by signal 11")
    assert contest.turn() is None
    assert contest.decision().chosen is None
    assert "it was ended by signal 11" in contest.decision().reason


def test_one_that_was_cut_short_still_decides_and_says_so() -> None:
    contest = Contest(
        [Simulated(p90_s).candidate(n) for n, p90_s in enumerate((2.0, 1.7))], Objective.LATENCY, NO_LIMITS
    )
    random_ = random.Random(1)
    for p90_s in (2.0, 1.7):
        turn = contest.turn()
        assert turn is not None
        contest.take(Simulated(p90_s).run(turn, random_, 1.0))
    decision = contest.decision()
    assert not contest.complete
    assert results(decision) == [Standing.BEHIND, Standing.CHOSEN]
    assert "16 runs are too few for a p90" in decision.reason
    assert chosen(decision).measured.bounds_s() is None


def test_conditions_say_what_else_went_on() -> None:
    contest, _ = held([Simulated(0.05)])
    assert [contest.conditions(live=live) for live in (False, True)] == [Conditions.IDLE, Conditions.LIVE]
    contest = Contest([Simulated(0.05).candidate(0)], Objective.LATENCY, NO_LIMITS)
    for throttled in (True, True, False):
        assert contest.turn() is not None
        contest.take(replace(Simulated(0.05).run(Turn(0, 16, 0.5), random.Random(1), 1.0), throttled=throttled))
    assert contest.conditions(live=True) is Conditions.THROTTLED_STEADY
    assert contest.throttled_share == pytest.approx(2 / 3)


def test_the_quantile_is_the_nearest_rank() -> None:
    assert quantile([float(n) for n in range(70, 0, -1)], 0.9) == 63.0
    assert quantile([5.0], 0.9) == 5.0


def test_who_was_left_behind_is_better_than_nobody() -> None:
    contest = Contest([Simulated(p90_s).candidate(n) for n, p90_s in enumerate((0.01, 0.012, 0.1))], *PLAIN)
    random_ = random.Random(1)
    while (turn := contest.turn()) is not None:
        if contest.in_finals:
            contest.fail(turn.place, "it was ended by signal 11")
        else:
            contest.take(Simulated((0.01, 0.012, 0.1)[turn.place]).run(turn, random_, 1.0))
    assert results(contest.decision()) == [Standing.FAILED, Standing.CHOSEN, Standing.HOPELESS]
    assert not contest.complete


def test_who_was_left_behind_is_taken_where_the_others_exceed_the_budget() -> None:
    """What they draw is known in the finals only."""
    fast, frugal = Simulated(0.010, watts=6.0), Simulated(0.012, watts=3.0)
    contest, turns = held([fast, frugal], limits=Limits(energy_j=0.04))
    assert {turn.place for turn in turns[8:]} == {0}
    decision = contest.decision()
    assert results(decision) == [Standing.OVER_BUDGET, Standing.CHOSEN]
    assert decision.results[0].reason.startswith("energy 5")


def test_who_is_slower_than_what_is_too_slow_is_not_taken_for_want_of_runs() -> None:
    decision = held([Simulated(1.0), Simulated(5.0)], limits=Limits(latency_s=0.5))[0].decision()
    assert results(decision) == [Standing.OVER_BUDGET, Standing.HOPELESS]
    assert decision.chosen is None


def test_what_the_screening_found_counts_until_the_finals_found_something() -> None:
    contest = Contest([Simulated(p90_s).candidate(n) for n, p90_s in enumerate((0.02, 0.01))], *PLAIN)
    random_ = random.Random(1)
    while (turn := contest.turn()) is not None and not contest.in_finals:
        contest.take(Simulated((0.02, 0.01)[turn.place]).run(turn, random_, 1.0))
    assert results(contest.decision()) == [Standing.BEHIND, Standing.CHOSEN]


def test_finals_go_on_while_it_is_open_who_is_slower_and_not_for_ever() -> None:
    alike = [Simulated(0.1, noise=0.02), Simulated(0.1, noise=0.02)]
    steady = held(alike)[1]
    assert {sum(turn.place == place for turn in steady) for place in (0, 1)} == {4 + 40}
    random_ = random.Random(7)
    shaken = held(alike, load=lambda _: random_.choice((1.0, 1.0, 3.0)))[1]
    assert {sum(turn.place == place for turn in shaken) for place in (0, 1)} == {4 + 120}
