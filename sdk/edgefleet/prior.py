"""Priors: which devices count as the same hardware, and what their decisions come to for the next one. Pure.

A prior spares a device the benchmark, and the bytes of every variant but one; its probation checks it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from edgefleet.protocol.decisions import CLASS_PATTERN, Conditions, DecisionRecord, Objective, Prior
from edgefleet_device_profiles.detect import MachineFacts

FRESH_S = 30 * 86_400.0
"""Kernels, firmware and cooling change: an older decision is measured again."""


@dataclass(frozen=True, slots=True)
class Decided:
    """A device's decision as the store has it: received at `at`, seconds since 1970."""

    device: str
    record: DecisionRecord
    at: float


def hardware_class(profile_id: str, facts: MachineFacts) -> str:
    """A name for everything that decides how fast a variant is: `h` and 16 hex digits.

    Memory and system do not count; the runtimes' versions do.
    """
    deciding = {
        "profile": profile_id,
        "architecture": facts.architecture,
        "cpu_model": facts.cpu_model,
        "cores": facts.cores,
        "board": facts.board,
        "isa": sorted(facts.isa),
        "max_clock_mhz": facts.max_clock_mhz,
        "accelerators": sorted(facts.accelerators),
        "runtimes": {str(name): version for name, version in sorted(facts.runtimes.items())},
    }
    text = json.dumps(deciding, sort_keys=True, separators=(",", ":"))
    return f"h{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def usable(record: DecisionRecord) -> bool:
    """Whether others may take a decision over: made to the end, and not while the board was throttled."""
    steady = record.conditions is not Conditions.THROTTLED_STEADY and not record.throttled_share
    winner = record.winner
    return record.complete and steady and winner is not None and winner.inference_p90_s is not None


def prior_of(decisions: Iterable[Decided], now: float, *, against: int = 0) -> Prior | None:
    """What the devices of one class found for one index and objective: the choice of most, then the newest.

    One vote a device, its last; so no device outvotes another. None where nothing fresh is there, or where it did not
    hold on as many devices (`against`).
    """
    last: dict[str, Decided] = {}
    for decided in sorted(decisions, key=lambda one: one.at):
        last[decided.device] = decided
    votes: dict[tuple[str, int], list[Decided]] = {}
    for decided in last.values():
        record = decided.record
        if now - decided.at < FRESH_S and usable(record) and record.chosen and record.threads:
            votes.setdefault((record.chosen, record.threads), []).append(decided)
    if not votes:
        return None
    (digest, threads), chosen = max(votes.items(), key=lambda vote: (len(vote[1]), max(one.at for one in vote[1])))
    newest = max(chosen, key=lambda one: one.at)
    winner = newest.record.winner
    if len(chosen) <= against or winner is None or winner.inference_p90_s is None:
        return None
    return Prior(
        hardware_class=newest.record.hardware_class,
        index_digest=newest.record.index_digest,
        objective=newest.record.objective,
        digest=digest,
        threads=threads,
        inference_p90_s=winner.inference_p90_s,
        devices=len(chosen),
        at=newest.at,
    )


def prior_name(hardware: str, objective: Objective) -> str:
    """What a device asks for, beside the index's digest."""
    return f"{hardware}-{objective}.json"


def contradiction(prior: Prior, what: str) -> str:
    """The text of the event that says that a prior did not hold; `what` is in words."""
    return f"{prior.index_digest} {prior.hardware_class} {prior.objective} {what}"


def contradicted_key(text: str) -> tuple[str, str, Objective]:
    """(index digest, hardware class, objective) of such an event; raises ValueError for any other text."""
    index_digest, hardware, objective = text.split(" ", 3)[:3]
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", index_digest) or not re.fullmatch(CLASS_PATTERN, hardware):
        raise ValueError("no prior is named")
    return index_digest, hardware, Objective(objective)
