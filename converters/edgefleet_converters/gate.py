"""Gate: which variants may ship. A pure rule over what was measured on the shipped files.

Does not weigh latency: the packaging host's says nothing about the devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgefleet.errors import GateError
from edgefleet_converters.plan import PlannedVariant
from edgefleet_converters.score.metrics import Assessment


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a variant may ship, and the numbers that say why."""

    accepted: bool
    reason: str


def judge(found: Assessment | str, max_drop: float) -> Verdict:
    """Verdict on one variant: its assessment, or one line on why it could not be scored.

    `max_drop` is the largest loss of top-1 accuracy against the fp32 source that may ship, 0.01 = one point.
    """
    if isinstance(found, str):
        return Verdict(accepted=False, reason=f"could not be scored: {found}")
    score = found.score
    drop = score.reference - score.value
    if found.faults:
        return Verdict(accepted=False, reason="; ".join(found.faults))
    # Accuracies are counts over samples: half a sample of slack keeps rounding out of the comparison.
    if drop > max_drop + 0.5 / score.samples:
        text = f"top-1 {score.value:.4f} is {drop:.4f} below fp32, more than the allowed {max_drop:g}"
        return Verdict(accepted=False, reason=text)
    return Verdict(accepted=True, reason=f"top-1 drop {drop:.4f} within {max_drop:g}")


def require_cover(judged: Sequence[tuple[PlannedVariant, Verdict]]) -> None:
    """Raise GateError when a profile is left without any accepted variant."""
    profiles = dict.fromkeys(name for planned, _ in judged for name in planned.profiles)
    for profile in profiles:
        offered = [(planned, verdict) for planned, verdict in judged if profile in planned.profiles]
        if not any(verdict.accepted for _, verdict in offered):
            raise GateError(
                f"choosing variants for {profile}",
                "; ".join(f"{planned.name}: {verdict.reason}" for planned, verdict in offered),
                "give more calibration data, allow a larger drop, or train the model for int8",
            )
