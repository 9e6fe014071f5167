"""Tails and intervals: against printed tables, exact sums and seeded chance."""

from __future__ import annotations

import math
import random

import pytest

from edgefleet.confidence import binomial_tail, interval, sections, share_tail, student_quantile, student_tail, trimmed

# Abramowitz and Stegun, table 26.10.
TABLE = [
    (0.025, 1, 12.706), (0.025, 2, 4.303), (0.025, 3, 3.182), (0.005, 7, 3.499), (0.025, 30, 2.042),
    (0.0005, 4, 8.610), (0.0005, 15, 4.073), (0.25, 6, 0.718),
]  # fmt: skip


@pytest.mark.parametrize(("tail", "df", "t"), TABLE)
def test_student_is_what_the_tables_say(tail: float, df: int, t: float) -> None:
    assert student_quantile(tail, df) == pytest.approx(t, rel=1e-3)
    assert student_tail(t, df) == pytest.approx(tail, rel=1e-2)
    assert student_tail(-t, df) == pytest.approx(1 - tail, rel=1e-2)


def exact_tail(hits: int, trials: int, chance: float) -> float:
    terms = (math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(max(0, hits), trials + 1))
    return math.fsum(terms)


@pytest.mark.parametrize("trials", [1, 7, 64, 300])
@pytest.mark.parametrize("chance", [0.01, 0.1, 0.5, 0.97])
def test_the_binomial_tail_is_the_exact_sum(trials: int, chance: float) -> None:
    for hits in range(-1, trials + 2, max(1, trials // 20)):
        assert binomial_tail(hits, trials, chance) == pytest.approx(
            exact_tail(hits, trials, chance), rel=1e-9, abs=1e-15
        )


def test_the_binomial_tail_of_a_million_trials() -> None:
    assert binomial_tail(100_000, 1_000_000, 0.1) == pytest.approx(0.5, abs=0.01)
    assert binomial_tail(101_000, 1_000_000, 0.1) == pytest.approx(4.4e-4, rel=0.05)
    assert binomial_tail(900_000, 1_000_000, 0.1) == 0.0
    assert binomial_tail(10, 1_000_000, 0.1) == pytest.approx(1.0)
    assert [binomial_tail(1, 5, chance) for chance in (0.0, 1.0)] == [0.0, 1.0]


def test_a_share_is_judged_by_the_more_careful_of_two_answers() -> None:
    even, clustered = [20] * 8, [80, 0, 0, 0, 80, 0, 0, 0]
    trials = [100] * 8
    assert share_tail(even, trials, 0.1) < 1e-9
    assert share_tail(clustered, trials, 0.1) > 0.1
    assert share_tail([2, 2], [2, 2], 0.1) == pytest.approx(1e-4)
    assert share_tail([1] * 8, trials, 0.1) == 1.0
    assert share_tail([1], [1], 0.1) == share_tail([], [], 0.1) == share_tail([0, 0], [0, 0], 0.1) == 1.0


def test_an_interval_misses_as_often_as_it_says() -> None:
    random_ = random.Random(3)
    missed = 0
    for _ in range(2000):
        low, high = interval([random_.gauss(5, 1) for _ in range(6)], 0.05)
        missed += not low <= 5 <= high
    assert 150 <= missed <= 250
    assert interval([1.0], 0.05) == (-math.inf, math.inf)


def test_sections_are_neighbours_and_as_many_as_there_can_be() -> None:
    items = list(range(10))
    assert sections(items, 4, bool) == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    assert sections(items, 16, bool) == [[item] for item in items]
    assert len(sections(items, 16, lambda part: len(part) >= 3)) == 3
    assert sections(items, 4, lambda part: len(part) > 10) == sections([], 4, bool) == []


def test_a_trimmed_mean_is_not_moved_by_a_few_and_its_interval_holds_the_truth() -> None:
    assert trimmed([1.0, 2.0, 3.0, 4.0, 1e9], 0.025)[1] == 3.0
    assert trimmed([2.0, 4.0], 0.025)[1] == 3.0
    assert trimmed([5.0], 0.025) == (-math.inf, 5.0, math.inf)
    # Without anything to cut it is the plain interval.
    assert trimmed([1.0, 2.0, 4.0], 0.05)[::2] == pytest.approx(interval([1.0, 2.0, 4.0], 0.05))
    random_ = random.Random(1)
    missed = 0
    for _ in range(1000):
        low, middle, high = trimmed([random_.gauss(0, 1) * random_.choice((1, 1, 1, 10)) for _ in range(20)], 0.025)
        assert low < middle < high
        missed += not low <= 0 <= high
    assert missed <= 65
