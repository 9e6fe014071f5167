"""Probation: whether a variant that was just activated is kept, judged against the committed one's own windows.

Pure: the same windows give the same verdict. It measures nothing, and what follows from a verdict is the lifecycle's.

One deployment of a variant that is as good as the one before fails with a chance of at most `Rules.false_alarm`: each
test of each gate gets an equal share of it (Bonferroni). The gates are asked at 4, 8, 16 ... windows, at
`Rules.windows` and at the deadline, so that there are few tests however long a probation lasts; and what an answer
rests on must hold both for single inferences and for sections of the time (`confidence.share_tail`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from edgefleet_agent.probation_gates import (
    FIRST_GATES,
    FIRST_LOOK_WINDOWS,
    GATES,
    Expected,
    Gate,
    Judged,
    Observed,
    Rules,
    contradiction,
    count_errors,
)

BROKEN_ATTEMPTS = 20
BROKEN_SHARE = 0.5


class Outcome(StrEnum):
    """What a probation comes to."""

    PASS = "pass"  # noqa: S105 - a verdict
    """The variant is committed."""
    FAIL = "fail"
    """The variant before it comes back."""
    WAIT = "wait"
    """More windows are needed."""


@dataclass(frozen=True, slots=True)
class History:
    """Windows of the committed variant, and of the one on probation, both in order."""

    before: tuple[Observed, ...]
    """Empty: a first install, judged by errors and budget alone."""
    during: tuple[Observed, ...]
    prior: Expected | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What probation comes to, and why."""

    outcome: Outcome
    reason: str
    evidence: Literal["sufficient", "insufficient"]
    gates: tuple[Gate, ...] = ()
    contradicts_prior: str | None = None
    """Said of the prior that chose the variant; it fails no install, but the server should forget it."""


def judge(history: History, since: float, now: float, rules: Rules) -> Verdict:
    """Judge the windows that came between `since` and `now`, seconds on one clock."""
    at_deadline = now - since >= rules.deadline_s
    busy = [window for window in history.during if window.attempts]
    seen = busy if at_deadline else busy[: _last_look(len(busy), rules)]
    if (broken := _broken(history.before, busy)) is not None:
        return Verdict(Outcome.FAIL, broken, "sufficient", (Gate("errors", Judged.FAILED, broken),))
    if not seen:
        return _undecided(len(busy), at_deadline=at_deadline)
    before = [window for window in history.before if window.attempts]
    found = tuple(gate(before, seen, rules) for gate in (GATES if history.before else FIRST_GATES))
    contradicts = None if history.prior is None else contradiction(history.prior, seen, rules)
    if failed := [gate for gate in found if gate.judged is Judged.FAILED]:
        return Verdict(Outcome.FAIL, "; ".join(g.text for g in failed), "sufficient", found, contradicts)
    lacking = _lacking("it", seen, rules)
    if lacking and not at_deadline:
        return Verdict(Outcome.WAIT, lacking, "insufficient", found, contradicts)
    if not lacking and history.before:
        lacking = _lacking("the committed variant", before, rules)
    reason = "; ".join(gate.text for gate in found)
    evidence: Literal["sufficient", "insufficient"] = "insufficient" if lacking else "sufficient"
    return Verdict(Outcome.PASS, f"{lacking}; {reason}" if lacking else reason, evidence, found, contradicts)


def _last_look(windows: int, rules: Rules) -> int:
    """The largest of 4, 8, 16 ... windows and of those that are asked for that there are; 0 before the first."""
    doubled = 0 if windows < FIRST_LOOK_WINDOWS else 1 << (windows.bit_length() - 1)
    return max(doubled, rules.windows if windows >= rules.windows else 0)


def _undecided(windows: int, *, at_deadline: bool) -> Verdict:
    reason = f"{windows} windows with inferences, {FIRST_LOOK_WINDOWS} are the fewest"
    return Verdict(Outcome.PASS if at_deadline else Outcome.WAIT, reason, "insufficient")


def _lacking(who: str, windows: Sequence[Observed], rules: Rules) -> str | None:
    """What is missing to a full judgement, or None."""
    count = sum(window.count for window in windows)
    if len(windows) >= rules.windows and count >= rules.inferences:
        return None
    return f"{who} has {len(windows)} windows of {rules.windows} and {count} inferences of {rules.inferences}"


def _broken(before: Sequence[Observed], during: Sequence[Observed]) -> str | None:
    """A variant that fails more often than not is not watched any longer; unless the one before was no better."""
    errors, attempts = count_errors(during)
    errors_before, attempts_before = count_errors(before)
    if attempts < BROKEN_ATTEMPTS or errors < attempts * BROKEN_SHARE:
        return None
    if errors_before * 2 > attempts_before * BROKEN_SHARE:
        return None
    return f"errors: {errors} of {attempts} inferences failed"
