"""Gate: which variants may ship. A pure rule over what was measured on the shipped files.

Does not weigh latency: the packaging host's says nothing about the devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from edgefleet.errors import InputError
from edgefleet_converters.score.metrics import Assessment
from edgefleet_converters.score.task import AGREEMENT, SQNR

# Differences of ratios of counts carry rounding in their last bits.
_ROUNDING = 1e-9


class Status(StrEnum):
    """What the gate says, the best first."""

    PASSED = "passed"
    """The loss is allowed, and so is the upper end of its 95 % interval."""
    UNPROVEN = "unproven"
    """The loss is allowed, the upper end of its 95 % interval is not: it ships, marked."""
    FAILED = "failed"
    """The loss is not allowed, or there is a fault; it does not ship."""


_ORDER = tuple(Status)


@dataclass(frozen=True, slots=True)
class Limits:
    """What may ship: the largest loss, in the metric's own unit, and what stands for it without labels."""

    max_drop: float = 0.01
    """Largest loss of the metric against the fp32 source, absolute; 0.01 of an accuracy is one point."""
    min_sqnr_db: float = 20.0
    """Of the worst slice of every output that no metric looks at."""
    min_agreement: float = 0.99
    """Share of samples on which the source and the variant must name the same class, where there are no labels."""

    def __post_init__(self) -> None:
        """Raise InputError for numbers that nothing can be held against: no comparison with NaN fails."""
        for option, value, least in (("--max-drop", self.max_drop, 0.0), ("--min-sqnr", self.min_sqnr_db, -math.inf)):
            if not math.isfinite(value) or value < least:
                raise InputError(f"reading {option}", f"{value:g} is no limit", "give a finite number")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a variant may ship, why, and the numbers that say so."""

    status: Status
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    """`drop`, `drop_upper` (where there is an interval) and `limit` of the metric; `sqnr_db` where it decides."""

    @property
    def accepted(self) -> bool:
        """Whether it may ship."""
        return self.status is not Status.FAILED


def judge(found: Assessment | str, limits: Limits) -> Verdict:
    """Verdict on one variant: its assessment, or one line on why it could not be scored."""
    if isinstance(found, str):
        return Verdict(Status.FAILED, f"could not be scored: {found}")
    if found.faults:
        return Verdict(Status.FAILED, "; ".join(found.faults))
    verdict = _judge_sqnr(found, limits) if found.score.metric == SQNR else _judge_metric(found, limits)
    noisy = _noise_reason(found, limits)
    if noisy and verdict.accepted:
        return Verdict(Status.FAILED, noisy, verdict.numbers)
    return verdict


def worst(judged: Mapping[str, Verdict]) -> Verdict:
    """The worst of one file's verdicts on several versions of its runtime, which it names; the first among equals."""
    version = max(judged, key=lambda key: _ORDER.index(judged[key].status))
    verdict = judged[version]
    if len(judged) == 1:
        return verdict
    return Verdict(verdict.status, f"on {version}: {verdict.reason}", verdict.numbers)


def _judge_metric(found: Assessment, limits: Limits) -> Verdict:
    """By the loss and the upper end of its interval."""
    score = found.score
    limit = 1 - limits.min_agreement if score.metric == AGREEMENT else limits.max_drop
    drop = score.reference - score.value if score.higher_is_better else score.value - score.reference
    numbers = {"drop": drop, "limit": limit}
    if score.drop_upper is not None:
        numbers["drop_upper"] = score.drop_upper
    side = "below" if score.higher_is_better else "above"
    if drop > limit + _ROUNDING:
        text = f"{score.metric} {score.value:.4f} is {drop:.4f} {side} fp32, more than the allowed {limit:.4g}"
        return Verdict(Status.FAILED, text, numbers)
    text = f"{score.metric} drop {drop:.4f} within {limit:.4g}"
    if score.drop_upper is not None and score.drop_upper > limit + _ROUNDING:
        text += f", but with {score.samples} samples it may be up to {score.drop_upper:.4f} (95 %)"
        return Verdict(Status.UNPROVEN, text, numbers)
    if found.guess is not None and score.reference <= found.guess + _ROUNDING:
        text += f", but fp32 itself is at {score.reference:.4f}, no better than guessing: it has nothing to lose"
        return Verdict(Status.UNPROVEN, text, numbers)
    return Verdict(Status.PASSED, text, numbers)


def _judge_sqnr(found: Assessment, limits: Limits) -> Verdict:
    """By the worst slice; `_noise_reason` names it where that is too little."""
    value = found.score.value
    text = f"SQNR {value:.1f} dB, at least {limits.min_sqnr_db:g} dB wanted"
    return Verdict(Status.PASSED, text, {"sqnr_db": value, "limit": limits.min_sqnr_db})


def _noise_reason(found: Assessment, limits: Limits) -> str:
    """What is too far from the source in the outputs that no metric looks at; empty where nothing is."""
    over_all = found.metric_output is None and found.score.metric != SQNR
    for item in () if over_all else found.noise:
        if item.name == found.metric_output:
            continue
        if item.worst_db is not None and item.worst_db < limits.min_sqnr_db:
            whole = f" ({item.whole_db:.1f} dB over the whole output)" if item.whole_db is not None else ""
            return f"SQNR of {item.text} is {item.worst_db:.1f} dB{whole}, less than {limits.min_sqnr_db:g} dB"
        if item.equal is not None and item.equal < limits.min_agreement - _ROUNDING:
            return f"{item.equal:.2%} of {item.name!r} is equal to the source, less than {limits.min_agreement:.0%}"
    return ""
