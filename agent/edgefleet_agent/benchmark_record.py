"""A benchmark's decision as it is kept on the device and sent: candidates, numbers, reason, and how to do it again.

Nothing is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgefleet import __version__, durable
from edgefleet.protocol.decisions import (
    MAX_CANDIDATES,
    CandidateRecord,
    Conditions,
    DecisionRecord,
    Objective,
    Standing,
)
from edgefleet_agent.benchmark_decision import Decision, Result
from edgefleet_agent.benchmark_measures import QUANTILE, quantile
from edgefleet_agent.benchmark_rules import Contest

FILE_NAME = "decision.json"
MAX_BYTES = 8000
"""An event's text is cut beyond this, and would be no record any more."""
REASON_CHARS = 240
COMMAND = "edgefleet agent bench"
ORDER = tuple(Standing)


@dataclass(frozen=True, slots=True)
class About:
    """Whose decision it is, and on what."""

    hardware_class: str
    index_digest: str
    objective: Objective
    live: bool


def record_of(contest: Contest, decision: Decision, about: About) -> DecisionRecord:
    """The record; where it would be too long, candidates at the end of the ranking are left out."""
    results = sorted(decision.results, key=lambda one: ORDER.index(one.standing))[:MAX_CANDIDATES]
    while True:
        record = _record(contest, decision, about, results)
        if len(record.encode()) <= MAX_BYTES or len(results) <= 1:
            return record
        results.pop()


def keep(folder: Path, record: DecisionRecord) -> None:
    """Keep the last decision in the state folder; raises OSError."""
    durable.write_file(folder / FILE_NAME, record.encode())


def _record(contest: Contest, decision: Decision, about: About, results: list[Result]) -> DecisionRecord:
    conditions: Conditions = contest.conditions(live=about.live)
    return DecisionRecord(
        hardware_class=about.hardware_class,
        index_digest=about.index_digest,
        objective=about.objective,
        conditions=conditions,
        throttled_share=contest.throttled_share,
        complete=contest.complete,
        chosen=None if decision.chosen is None else decision.chosen.digest,
        threads=None if decision.chosen is None else decision.chosen.threads,
        reason=decision.reason[:1000],
        command=COMMAND,
        agent_version=__version__,
        candidates=tuple(_candidate(result) for result in results),
    )


def _candidate(result: Result) -> CandidateRecord:
    measured = result.measured
    runs, calls, bounds = measured.end_to_end_s(), measured.inference_s(), measured.bounds_s()
    return CandidateRecord(
        digest=measured.candidate.digest,
        name=measured.candidate.name,
        threads=measured.candidate.threads,
        size_bytes=measured.candidate.size_bytes,
        standing=result.standing,
        reason=result.reason[:REASON_CHARS],
        runs=measured.runs,
        p50_s=_short(quantile(runs, 0.5)) if runs else None,
        p90_s=_short(quantile(runs, QUANTILE)) if measured.enough else None,
        low_s=None if bounds is None else _short(bounds[0]),
        high_s=None if bounds is None else _short(bounds[1]),
        inference_p90_s=_short(quantile(calls, QUANTILE)) if measured.enough else None,
        energy_j=None if (joules := measured.energy_j()) is None else _short(joules),
        memory_bytes=measured.memory_bytes,
    )


def _short(value: float) -> float:
    """Four digits: the rest is chance."""
    return float(f"{value:.4g}")
