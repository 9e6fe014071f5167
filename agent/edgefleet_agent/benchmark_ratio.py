"""How many times as slow as another a candidate is: pass by pass, so that what the machine does meets both alike.

Pure. Who is chosen by it is `benchmark_decision`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgefleet.confidence import sections, trimmed
from edgefleet_agent.benchmark_measures import INTERVAL_TAIL, Lap, Measured, is_section, p90_s

_LEAST_S = 1e-9


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of two 90th percentiles, with its 95 % interval: (0, infinite) where the passes are too few for one."""

    middle: float
    low: float = 0.0
    high: float = math.inf


def slower(one: Measured, other: Measured) -> Ratio:
    """`one` over `other`, both with a turn at least: the trimmed mean, of logarithms, over passes that both ran in.

    The percentile of all runs says how bad the machine's worst tenth of the time was, and whom it met; the ratio
    within a pass says which candidate is slower. Passes with few runs are taken together with their neighbours.
    """
    passes = list(zip(one.turns, other.turns, strict=False))
    parts = sections(passes, len(passes), _enough)
    if not parts:
        return Ratio(_p90_s(one.turns) / _p90_s(other.turns))
    logs = [math.log(_p90_s([own for own, _ in part]) / _p90_s([theirs for _, theirs in part])) for part in parts]
    low, middle, high = trimmed(logs, INTERVAL_TAIL)
    return Ratio(math.exp(middle), math.exp(low), math.exp(min(high, 700.0)))


def _enough(passes: Sequence[tuple[Lap, Lap]]) -> bool:
    return is_section([own for own, _ in passes]) and is_section([theirs for _, theirs in passes])


def _p90_s(laps: Sequence[Lap]) -> float:
    """A clock may say that nothing took any time."""
    return max(p90_s(laps), _LEAST_S)
