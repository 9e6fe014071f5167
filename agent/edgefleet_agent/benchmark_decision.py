"""What the numbers of a benchmark come to: the best by the objective within the budget, and of equals the smaller.

Pure. Where the energy was not measured, the latency decides, and the decision says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgefleet.protocol.decisions import Objective, Standing
from edgefleet_agent.benchmark_measures import QUANTILE, Candidate, Measured, quantile

TIED = 1.03


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


def by_energy(measured: Sequence[Measured], objective: Objective, *, rough: bool = False) -> bool:
    """Whether the energy decides: it is asked for, and was measured of everyone."""
    return objective is Objective.ENERGY and all(one.energy_j(rough=rough) is not None for one in measured)


def score(one: Measured, objective: Objective, *, energy: bool, rough: bool = False) -> float:
    """The smaller the better: joules an inference, bytes, or seconds at the 90th percentile."""
    if objective is Objective.SIZE:
        return float(one.candidate.size_bytes)
    joules = one.energy_j(rough=rough) if energy else None
    return quantile(one.end_to_end_s(), QUANTILE) if joules is None else joules


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
    """Choose among those that are still in."""
    running = [one for one in measured if one.out is None and one.turns]
    energy = by_energy(running, objective)
    over = {one.candidate: text for one in running if (text := exceeded(one, limits)) is not None}
    within = sorted(
        (one for one in running if one.candidate not in over), key=lambda one: score(one, objective, energy=energy)
    )
    bar = score(within[0], objective, energy=energy) * TIED if within else 0.0
    tied = [one for one in within if score(one, objective, energy=energy) <= bar]
    chosen = min(tied, key=lambda one: _tie_order(one, objective)) if tied else None
    results = tuple(_result(one, chosen, tied, over) for one in measured)
    if chosen is None:
        said = "; ".join(f"{result.measured.candidate}: {result.reason}" for result in results)
        return Decision(None, f"no candidate may run here: {said or 'there is none'}", results)
    return Decision(chosen.candidate, _reason(chosen, tied, len(measured), objective, energy=energy), results)


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
    return Result(one, Standing.TIED if one in tied else Standing.BEHIND, said_of(one))


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


def _reason(chosen: Measured, tied: Sequence[Measured], number: int, objective: Objective, *, energy: bool) -> str:
    by = objective.value
    if objective is Objective.ENERGY and not energy:
        by = "latency, for the energy was not measured"
    text = f"{chosen.candidate}: {said_of(chosen)}; the best of {number} by {by}"
    others = [one for one in tied if one is not chosen]
    if not others:
        return text
    faster = ", ".join(f"{one.candidate} ({one.candidate.size_bytes} bytes, {said_of(one)})" for one in others)
    return f"{text}; within 3 % of it and larger or with more threads: {faster}"
