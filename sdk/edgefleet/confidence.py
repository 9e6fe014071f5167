"""How far chance reaches: tails of Student's t and of the binomial distribution, and intervals over sections.

Plain Python, because the agent's main process has no numpy. What is compared with what is decided by who asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

_NEGLIGIBLE = 1e-18
_HALVINGS = 60
_TRIMMED_SHARE = 0.2

T = TypeVar("T")


def student_tail(t: float, df: int) -> float:
    """P(T >= t) for `df` >= 1 degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    if t < 0:
        return 1 - student_tail(-t, df)
    theta = math.atan(t / math.sqrt(df))
    cosine = math.cos(theta)
    odd = df % 2
    term = total = 0.0 if df == 1 else cosine**odd
    for k in range(2 + odd, df, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    inside = math.sin(theta) * total
    if odd:
        inside = (theta + inside) * 2 / math.pi
    return max(0.0, (1 - inside) / 2)


@lru_cache(maxsize=256)
def student_quantile(tail: float, df: int) -> float:
    """The t with P(T >= t) = `tail`, for `tail` in (0, 0.5]."""
    low, high = 0.0, 1.0
    while student_tail(high, df) > tail:
        low, high = high, high * 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, df) > tail else (low, middle)
    return high


def binomial_tail(hits: int, trials: int, chance: float) -> float:
    """P(X >= hits) of `trials` that each hit with `chance`."""
    if hits <= 0 or chance >= 1:
        return 1.0
    if hits > trials or chance <= 0:
        return 0.0
    if hits > trials * chance:
        return _sum_from(hits, trials, chance)
    return 1 - _sum_from(trials - hits + 1, trials, 1 - chance)


def _sum_from(hits: int, trials: int, chance: float) -> float:
    """P(X >= hits) where `hits` is above the mean: terms that only become smaller."""
    ways = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
    term = math.exp(ways + hits * math.log(chance) + (trials - hits) * math.log1p(-chance))
    total, odds = term, chance / (1 - chance)
    for k in range(hits, trials):
        term *= (trials - k) / (k + 1) * odds
        total += term
        if term < total * _NEGLIGIBLE:
            break
    return min(1.0, total)


def share_tail(hits: Sequence[int], trials: Sequence[int], allowed: float) -> float:
    """How likely so many hits are, if hits are `allowed` (0..1) of all trials: the larger of two answers.

    One takes every trial for itself (binomial), the other every section (one place of both sequences) for itself
    (Student's t with the ratio estimator's variance, Cochran, Sampling Techniques, 3rd ed., 6.3): trials of the same
    seconds resemble one another. 1.0 where there is nothing to judge by.
    """
    number, total = len(trials), sum(trials)
    if number < 2 or not total:
        return 1.0
    share = sum(hits) / total
    if share <= allowed:
        return 1.0
    spread = sum((hit - share * tried) ** 2 for hit, tried in zip(hits, trials, strict=True))
    error = math.sqrt(number / (number - 1) * spread) / total
    clustered = student_tail((share - allowed) / error, number - 1) if error else 0.0
    return max(clustered, binomial_tail(sum(hits), total, allowed))


def interval(values: Sequence[float], tail: float) -> tuple[float, float]:
    """(low, high) of the mean of sections that are independent, each end missed with chance `tail`.

    Infinite with fewer than two values.
    """
    number = len(values)
    if number < 2:
        return -math.inf, math.inf
    mean = math.fsum(values) / number
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (number - 1))
    reach = student_quantile(tail, number - 1) * deviation / math.sqrt(number)
    return mean - reach, mean + reach


def trimmed(values: Sequence[float], tail: float) -> tuple[float, float, float]:
    """(low, middle, high): the mean of at least one value without the fifth at each end, each end of its interval
    missed with chance `tail`.

    A few values that have nothing to do with the others do not move it (Tukey and McLaughlin, Sankhya A 25, 1963).
    The interval is infinite with fewer than two values.
    """
    number = len(values)
    cut = int(_TRIMMED_SHARE * number)
    ordered = sorted(values)
    kept = ordered[cut : number - cut]
    middle = math.fsum(kept) / len(kept)
    if number < 2:
        return -math.inf, middle, math.inf
    winsorized = [kept[0]] * cut + kept + [kept[-1]] * cut
    mean = math.fsum(winsorized) / number
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in winsorized) / (number - 1))
    reach = student_quantile(tail, len(kept) - 1) * deviation / (len(kept) / number * math.sqrt(number))
    return middle - reach, middle, middle + reach


def sections(items: Sequence[T], most: int, enough: Callable[[Sequence[T]], bool]) -> list[Sequence[T]]:
    """Cut a series into at most `most` runs of neighbours, as many as there can be with `enough` in each; or none.

    Neighbours resemble one another; long runs of them do less so (batch means; Asmussen and Glynn, Stochastic
    Simulation, 2007, III.5 and IV.5).
    """
    for number in range(min(most, len(items)), 0, -1):
        borders = [len(items) * place // number for place in range(number + 1)]
        cut = [items[start:end] for start, end in pairwise(borders)]
        if all(enough(part) for part in cut):
            return cut
    return []
