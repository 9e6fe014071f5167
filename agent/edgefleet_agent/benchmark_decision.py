"""What the numbers of a benchmark come to: the best by the objective within the budget, and of equals the smaller.

Pure. Where the energy was not measured, the latency decides, and the decision says so. Latencies are compared pass by
pass (`benchmark_ratio`): the percentile of all runs is what a candidate's numbers say, not what ranks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgefleet.protocol.decisions import Objective, Standing
from edgefleet_agent.benchmark_measures import QUANTILE, Candidate, Measured, quantile
from edgefleet_agent.benchmark_ratio import Ratio, slower

TIED = 1.03
LEFT_BEHIND = (Standing.BEHIND, Standing.HOPELESS)
"""They work, and were measured for a while; of too few runs nobody knows whether they keep the budget."""
_LEAST_J = 1e-9


@dataclass(frozen=True, slots=True)
class Limits:
    """The device's budget; None: no limit."""

    latency_s: float | None = None
    memory_bytes: int | None = None
    size_bytes: int | None = None
    energy_j: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How one candidate came out; its numbers are in `measured`."""

    measured: Measured
    standing: Standing
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The choice; None where nothing may run."""

    chosen: Candidate | None
    reason: str
    results: tuple[Result, ...]


def milliseconds(seconds: float) -> str:
    """For people, four digits of it."""
    return f"{seconds * 1e3:.4g} ms"


def decisive(measured: Sequence[Measured], objective: Objective, *, rough: bool = False) -> Objective:
    """What decides: the objective, or the latency where the energy was not measured of everyone."""
    if objective is Objective.ENERGY and any(one.energy_j(rough=rough) is None for one in measured):
        return Objective.LATENCY
    return objective


def ratio(one: Measured, other: Measured, by: Objective) -> Ratio:
    """One over the other, the smaller the better: joules an inference, bytes, or the 90th percentile pass by pass."""
    if by is Objective.SIZE:
        exact = max(1, one.candidate.size_bytes) / max(1, other.candidate.size_bytes)
        return Ratio(exact, exact, exact)
    if by is Objective.ENERGY:
        own_j, other_j = (max(_LEAST_J, each.energy_j(rough=True) or 0.0) for each in (one, other))
        return Ratio(own_j / other_j)
    return slower(one, other)


def ranked(running: Sequence[Measured], by: Objective) -> list[tuple[Measured, Ratio]]:
    """Best first, each with its ratio to the best: the one whose worst ratio to any of them is the least."""
    if not running:
        return []
    best = min(running, key=lambda one: max(ratio(one, other, by).middle for other in running))
    others = [(one, ratio(one, best, by)) for one in running if one is not best]
    return [(best, Ratio(1.0, 1.0, 1.0)), *sorted(others, key=lambda pair: pair[1].middle)]


def exceeded(one: Measured, limits: Limits) -> str | None:
    """Which limit a candidate exceeds, or None. Too few runs have no percentile that could."""
    p90_s = quantile(one.end_to_end_s(), QUANTILE) if one.enough else None
    found = (
        ("p90", p90_s, limits.latency_s, 1e3, "ms"),
        ("memory", one.memory_bytes, limits.memory_bytes, 2**-20, "MiB"),
        ("size", one.candidate.size_bytes, limits.size_bytes, 2**-20, "MiB"),
        ("energy", one.energy_j(), limits.energy_j, 1e3, "mJ"),
    )
    for name, value, limit, scale, unit in found:
        if value is not None and limit is not None and value > limit:
            return f"{name} {value * scale:.4g} {unit}, {limit * scale:.4g} are allowed"
    return None


def decide(measured: Sequence[Measured], objective: Objective, limits: Limits) -> Decision:
    """Choose among those that are still in; where none of these may run, among those that were left behind."""
    running = [one for one in measured if one.out is None and one.turns]
    behind = [one for one in measured if one.out is not None and one.out[0] in LEFT_BEHIND and one.enough]
    over = {one.candidate: text for one in running + behind if (text := exceeded(one, limits)) is not None}
    within = [one for one in running if one.candidate not in over]
    within = within or [one for one in behind if one.candidate not in over]
    by = decisive(within, objective)
    tied = [one for one, ratio_to_best in ranked(within, by) if ratio_to_best.middle <= TIED]
    chosen = min(tied, key=lambda one: _tie_order(one, objective)) if tied else None
    results = tuple(_result(one, chosen, tied, over) for one in measured)
    if chosen is None:
        said = "; ".join(f"{result.measured.candidate}: {result.reason}" for result in results)
        return Decision(None, f"no candidate may run here: {said or 'there is none'}", results)
    return Decision(chosen.candidate, _reason(chosen, tied, len(measured), objective, by), results)


def _tie_order(one: Measured, objective: Objective) -> tuple[float, ...]:
    """The smaller file, then fewer threads; where the size is what counts, the faster."""
    candidate, latency_s = one.candidate, quantile(one.end_to_end_s(), QUANTILE)
    if objective is Objective.SIZE:
        return candidate.size_bytes, latency_s, candidate.threads
    return candidate.size_bytes, candidate.threads, latency_s


def _result(one: Measured, chosen: Measured | None, tied: Sequence[Measured], over: dict[Candidate, str]) -> Result:
    if one is chosen:
        return Result(one, Standing.CHOSEN, said_of(one))
    if one.out is not None:
        standing, reason = one.out
        return Result(one, standing, reason or said_of(one))
    if one.candidate in over:
        return Result(one, Standing.OVER_BUDGET, over[one.candidate])
    return Result(one, Standing.TIED if one in tied else Standing.BEHIND, said_beside(one, chosen))


def said_of(one: Measured) -> str:
    """A candidate's numbers in words."""
    if not one.turns:
        return "not measured"
    runs = one.end_to_end_s()
    if not one.enough:
        return f"p50 {milliseconds(quantile(runs, 0.5))}; {one.runs} runs are too few for a p90"
    bounds = one.bounds_s()
    around = "" if bounds is None else f" ({milliseconds(bounds[0])} to {milliseconds(bounds[1])})"
    joules = one.energy_j()
    energy = "" if joules is None else f", {joules * 1e3:.4g} mJ"
    return f"p90 {milliseconds(quantile(runs, QUANTILE))}{around}{energy} of {one.runs} runs"


def said_beside(one: Measured, best: Measured | None) -> str:
    """Its numbers, and how they compare to another's with which it took turns."""
    if best is None or not one.turns:
        return said_of(one)
    found = slower(one, best)
    around = f" ({found.low:.3g} to {found.high:.3g})" if found.low > 0 else ""
    return f"{said_of(one)}; pass by pass {found.middle:.3g} times{around} that of {best.candidate}"


def _reason(chosen: Measured, tied: Sequence[Measured], number: int, objective: Objective, by: Objective) -> str:
    what = by.value if by is objective else f"{by}, for the {objective} was not measured"
    text = f"{chosen.candidate}: {said_of(chosen)}; the best of {number} by {what}"
    others = [one for one in tied if one is not chosen]
    if not others:
        return text
    told = [f"{one.candidate} ({one.candidate.size_bytes} bytes, {said_beside(one, chosen)})" for one in others]
    return f"{text}; within 3 % of it and larger or with more threads: {', '.join(told)}"
