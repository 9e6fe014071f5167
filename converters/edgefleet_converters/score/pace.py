"""How latencies are taken: whose turn it is, for how many runs, when there are enough, and what they come to.

Pure: whoever calls it owns the processes and the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Key = TypeVar("Key")

FEWEST_RUNS = 64
"""MLPerf's early stopping asks for so many before it speaks of a 90th percentile (inference rules, appendix)."""
LONGEST_S = 2.0
"""Measuring time of one variant, after which it stops whatever it has."""
CLOSE_ENOUGH = 0.03
"""Both ends of the median's 95 % interval are within this share of it."""
_TURN_S = 0.05
# Even the fastest come round four times: a single turn would not be interleaved with anything.
_TURN_RUNS = FEWEST_RUNS // 4
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Summary:
    """Percentiles of one variant's times."""

    p50_ms: float
    p90_ms: float | None
    p90_reason: str
    runs: int


Measure = Callable[[Key, int], Sequence[float]]
"""Runs one variant so many times and gives the seconds of each; none when it died."""


def take_turns(warm_s: Mapping[Key, float], measure: Measure[Key]) -> dict[Key, list[float]]:
    """Seconds of all runs of each variant, from interleaved turns; `warm_s` is what one run took in the warm-up.

    Rounds alternate in direction (A B B A), so that a clock that drifts slows no variant more than another. A variant
    leaves when it has enough; one that died leaves with no times at all.
    """
    times: dict[Key, list[float]] = {key: [] for key in warm_s}
    running = list(warm_s)
    while running:
        for key in tuple(running):
            turn = measure(key, _turn_runs(times[key] or [warm_s[key]]))
            times[key] = [*times[key], *turn] if turn else []
            if not turn or has_enough(times[key]):
                running.remove(key)
        running.reverse()
    return times


def _turn_runs(times_s: Sequence[float]) -> int:
    """As many as fit into one turn."""
    return int(np.clip(_TURN_S / max(float(np.median(times_s)), 1e-9), 1, _TURN_RUNS))


def has_enough(times_s: Sequence[float]) -> bool:
    """Whether more runs would tell little: at least 64 and a sure median, or two seconds in all."""
    return sum(times_s) >= LONGEST_S or (len(times_s) >= FEWEST_RUNS and _median_is_sure(times_s))


def _median_is_sure(times_s: Sequence[float]) -> bool:
    """From order statistics (David and Nagaraja, Order Statistics, 7.1): no assumption about how times spread."""
    ordered = np.sort(times_s)
    half = _Z * np.sqrt(len(ordered)) / 2
    low = ordered[max(0, int(np.floor(len(ordered) / 2 - half)))]
    high = ordered[min(len(ordered) - 1, int(np.ceil(len(ordered) / 2 + half)))]
    median = np.median(ordered)
    return bool(median - low <= CLOSE_ENOUGH * median and high - median <= CLOSE_ENOUGH * median)


def summarize(times_s: Sequence[float]) -> Summary:
    """Median and 90th percentile; the latter only from 64 runs on."""
    ms = np.asarray(times_s) * 1000
    if len(ms) < FEWEST_RUNS:
        reason = f"{len(ms)} runs in {LONGEST_S:g} s, and a 90th percentile takes {FEWEST_RUNS}"
        return Summary(float(np.median(ms)), None, reason, len(ms))
    return Summary(float(np.median(ms)), float(np.quantile(ms, 0.9)), "", len(ms))
