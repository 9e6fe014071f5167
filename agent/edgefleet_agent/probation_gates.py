"""The gates of probation: a variant's windows against the committed one's, or against limits, one question each.

Pure. When which gate is asked, and what its answer leads to, is `probation`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from edgefleet.confidence import interval, sections, share_tail, student_quantile
from edgefleet.sketch import Sketch

FIRST_LOOK_WINDOWS = 4
MOST_LOOKS = 12
"""At 4, 8, 16 ... 2048 windows, at those that are asked for, and at the deadline."""
MOST_TESTS = 8
"""Of one look: the gates, and the prior."""
SECTIONS = 16
SECTION_INFERENCES = 7
"""In each section of the committed variant's history, so that each has a quantile of its own."""
HISTORY_TAIL = 0.05
"""Chance that the committed variant's true quantile lies above what it is taken for; the tolerance comes on top."""
ENERGY_SECTION_S = 10.0
ENERGY_RATE_DIFFERENCE = 0.1
"""Gross energy holds the idle watts: at another rate it is another quantity."""


class Judged(StrEnum):
    """What one gate says."""

    PASSED = "passed"
    """Nothing speaks against the variant."""
    FAILED = "failed"
    """The variant is worse, by more than chance explains."""
    NOT_JUDGED = "not_judged"
    """There is nothing to compare, or too little."""


@dataclass(frozen=True, slots=True)
class Observed:
    """One telemetry window, as far as a verdict needs it."""

    duration_s: float
    count: int
    errors: int
    latency_s: Sketch
    """Of the inference alone."""
    joules: float = 0.0
    energy_source: Literal["measured", "estimated"] = "estimated"
    energy_scope: str = ""
    throttled: bool | None = None
    memory_bytes: int | None = None
    agreed: int = 0
    compared: int = 0
    """Inputs that the committed variant was given too, and of them those with the same answer."""

    @property
    def attempts(self) -> int:
        """Inferences, those that failed included."""
        return self.count + self.errors


@dataclass(frozen=True, slots=True)
class Expected:
    """What the server's prior says of the variant: seconds at `Rules.quantile`."""

    latency_s: float


@dataclass(frozen=True, slots=True)
class Rules:
    """What is asked of a variant on probation; tolerances are what may be worse than before."""

    windows: int = 12
    inferences: int = 200
    deadline_s: float = 900.0
    quantile: float = 0.9
    """Of the objective's latency."""
    latency_tolerance: float = 0.1
    energy_tolerance: float = 0.1
    errors_tolerance: float = 0.01
    """Of the share of inferences that fail."""
    throttled_tolerance: float = 0.25
    """Of the share of windows that are throttled."""
    least_agreement: float = 0.8
    prior_tolerance: float = 0.25
    first_errors: float = 0.05
    """Share of inferences that may fail on a first install."""
    budget_latency_s: float | None = None
    budget_memory_bytes: int | None = None
    budget_energy_j: float | None = None
    false_alarm: float = 0.01
    """Chance that a variant as good as the one before fails."""

    @property
    def tail(self) -> float:
        """Chance of a false alarm of one test."""
        return self.false_alarm / (MOST_LOOKS * MOST_TESTS)


@dataclass(frozen=True, slots=True)
class Gate:
    """What one gate found, in numbers."""

    name: str
    judged: Judged
    text: str


def count_errors(windows: Iterable[Observed]) -> tuple[int, int]:
    """(inferences that failed, all of them)."""
    errors = attempts = 0
    for window in windows:
        errors, attempts = errors + window.errors, attempts + window.attempts
    return errors, attempts


def _merged(windows: Iterable[Observed]) -> Sketch:
    sketch = Sketch()
    for window in windows:
        sketch.merge(window.latency_s)
    return sketch


def _cut(windows: Sequence[Observed], least: int) -> list[Sequence[Observed]]:
    """Sections of neighbouring windows with at least `least` inferences each."""
    return sections(windows, SECTIONS, lambda part: sum(window.count for window in part) >= least)


def _share(
    windows: Sequence[Observed], hits: Callable[[Observed], int], trials: Callable[[Observed], int], allowed: float
) -> tuple[float, float]:
    """(share of hits, how likely that is if `allowed` is the truth), over sections of the windows."""
    parts = sections(windows, SECTIONS, lambda part: sum(map(trials, part)) > 0)
    hit, tried = [sum(map(hits, part)) for part in parts], [sum(map(trials, part)) for part in parts]
    return sum(hit) / max(1, sum(tried)), share_tail(hit, tried, allowed)


def _slower(windows: Sequence[Observed], limit_s: float, rules: Rules) -> tuple[float, float]:
    """(share slower than `limit_s`, how likely that is if `limit_s` is the quantile)."""
    return _share(windows, lambda w: w.latency_s.above(limit_s), lambda w: w.count, 1 - rules.quantile)


def _latency(before: Sequence[Observed], during: Sequence[Observed], rules: Rules) -> Gate:
    """More inferences than the quantile leaves are slower than the committed variant's, and the tolerance."""
    parts = _cut(before, SECTION_INFERENCES)
    name = f"p{rules.quantile * 100:g}"
    if len(parts) < FIRST_LOOK_WINDOWS or not sum(window.count for window in during):
        return Gate("latency", Judged.NOT_JUDGED, f"latency: too little history for a {name} to compare with")
    was_s, is_s = _merged(before).quantile(rules.quantile), _merged(during).quantile(rules.quantile)
    # By so much the history's own quantile may be too low by chance.
    logs = [math.log(max(_merged(part).quantile(rules.quantile), 1e-9)) for part in parts]
    low, high = interval(logs, HISTORY_TAIL)
    limit_s = was_s * math.exp((high - low) / 2) * (1 + rules.latency_tolerance)
    share, chance = _slower(during, limit_s, rules)
    text = f"latency: {name} {is_s * 1e3:.4g} ms after {was_s * 1e3:.4g} ms, {share:.1%} above {limit_s * 1e3:.4g} ms"
    return Gate("latency", Judged.FAILED if chance < rules.tail else Judged.PASSED, text)


def _errors_gate(before: Sequence[Observed], during: Sequence[Observed], rules: Rules) -> Gate:
    errors, attempts = count_errors(before)
    # One pseudo-error: that none was seen so far does not mean that none can be.
    allowed = (errors + 1) / (attempts + 1) + rules.errors_tolerance if before else rules.first_errors
    share, chance = _share(during, lambda w: w.errors, lambda w: w.attempts, allowed)
    text = f"errors: {share:.2%} of {count_errors(during)[1]} inferences, {allowed:.2%} are allowed"
    return Gate("errors", Judged.FAILED if chance < rules.tail else Judged.PASSED, text)


def _energy(before: Sequence[Observed], during: Sequence[Observed], rules: Rules) -> Gate:
    """Joules an inference, measured by the same meter at the same rate, section against section (Welch)."""
    if (obstacle := _not_comparable(before, during)) is not None:
        return Gate("energy", Judged.NOT_JUDGED, f"energy: {obstacle}")
    old, new = ([math.log(_joules(part)) for part in _energy_sections(windows)] for windows in (before, during))
    if min(len(old), len(new)) < FIRST_LOOK_WINDOWS:
        return Gate("energy", Judged.NOT_JUDGED, "energy: too few windows")
    worse = math.fsum(new) / len(new) - math.fsum(old) / len(old)
    error = math.sqrt(sum(_squared_error(logs) for logs in (old, new)))
    least = worse - student_quantile(rules.tail, min(len(old), len(new)) - 1) * error
    text = f"energy: {_joules(during) * 1e3:.4g} mJ an inference after {_joules(before) * 1e3:.4g} mJ"
    failed = least > math.log(1 + rules.energy_tolerance)
    return Gate("energy", Judged.FAILED if failed else Judged.PASSED, text)


def _not_comparable(before: Sequence[Observed], during: Sequence[Observed]) -> str | None:
    meters = {(window.energy_source, window.energy_scope) for window in (*before, *during)}
    if any(source == "estimated" for source, _ in meters):
        return "estimated, not measured"
    if len(meters) > 1:
        return "not measured by the same meter"
    rates = [sum(w.count for w in windows) / sum(w.duration_s for w in windows) for windows in (before, during)]
    if abs(rates[1] - rates[0]) > ENERGY_RATE_DIFFERENCE * rates[0]:
        return f"{rates[1]:.3g} inferences a second after {rates[0]:.3g}"
    return None


def _energy_sections(windows: Sequence[Observed]) -> list[Sequence[Observed]]:
    def enough(part: Sequence[Observed]) -> bool:
        measured = sum(w.count for w in part) and sum(w.joules for w in part) > 0
        return bool(measured) and sum(w.duration_s for w in part) >= ENERGY_SECTION_S

    return sections(windows, SECTIONS, enough)


def _joules(windows: Sequence[Observed]) -> float:
    return sum(window.joules for window in windows) / max(1, sum(window.count for window in windows))


def _squared_error(logs: Sequence[float]) -> float:
    mean = math.fsum(logs) / len(logs)
    return math.fsum((value - mean) ** 2 for value in logs) / (len(logs) * (len(logs) - 1))


def _throttled(before: Sequence[Observed], during: Sequence[Observed], rules: Rules) -> Gate:
    known, new = ([w for w in windows if w.throttled is not None] for windows in (before, during))
    if len(known) < FIRST_LOOK_WINDOWS or len(new) < FIRST_LOOK_WINDOWS:
        return Gate("throttling", Judged.NOT_JUDGED, "throttling: not known")
    was = sum(bool(w.throttled) for w in known) / len(known)
    share, chance = _share(new, lambda w: int(bool(w.throttled)), lambda _: 1, was + rules.throttled_tolerance)
    text = f"throttling: {share:.0%} of {len(new)} windows after {was:.0%}"
    return Gate("throttling", Judged.FAILED if chance < rules.tail else Judged.PASSED, text)


def _agreement(_before: Sequence[Observed], during: Sequence[Observed], rules: Rules) -> Gate:
    compared = sum(window.compared for window in during)
    if not compared:
        return Gate("agreement", Judged.NOT_JUDGED, "agreement: not compared")
    allowed = 1 - rules.least_agreement
    share, chance = _share(during, lambda w: w.compared - w.agreed, lambda w: w.compared, allowed)
    text = f"agreement: {1 - share:.1%} of {compared} inputs, {rules.least_agreement:.0%} is the least"
    return Gate("agreement", Judged.FAILED if chance < rules.tail else Judged.PASSED, text)


def _budget(_before: Sequence[Observed], during: Sequence[Observed], rules: Rules) -> Gate:
    """The device's own limits: what was exceeded all the time, or by more inferences than the quantile leaves."""
    exceeded = [text for text in (_over_latency(during, rules), _over_memory(during, rules)) if text]
    exceeded += [text for text in (_over_energy(during, rules),) if text]
    if exceeded:
        return Gate("budget", Judged.FAILED, f"budget: {', '.join(exceeded)}")
    limits = (rules.budget_latency_s, rules.budget_memory_bytes, rules.budget_energy_j)
    if all(limit is None for limit in limits):
        return Gate("budget", Judged.NOT_JUDGED, "budget: none")
    return Gate("budget", Judged.PASSED, "budget: kept")


def _over_latency(during: Sequence[Observed], rules: Rules) -> str | None:
    limit_s = rules.budget_latency_s
    if limit_s is None or not sum(window.count for window in during):
        return None
    share, chance = _slower(during, limit_s, rules)
    return f"{share:.1%} above {limit_s * 1e3:.4g} ms" if chance < rules.tail else None


def _over_memory(during: Sequence[Observed], rules: Rules) -> str | None:
    limit, known = rules.budget_memory_bytes, [w.memory_bytes for w in during if w.memory_bytes is not None]
    if limit is None or len(known) < FIRST_LOOK_WINDOWS or min(known) <= limit:
        return None
    return f"{min(known) / 2**20:.1f} MiB of memory at least, {limit / 2**20:.1f} are allowed"


def _over_energy(during: Sequence[Observed], rules: Rules) -> str | None:
    limit = rules.budget_energy_j
    parts = [] if limit is None or _not_comparable(during, during) else _energy_sections(during)
    if limit is None or len(parts) < FIRST_LOOK_WINDOWS or min(map(_joules, parts)) <= limit:
        return None
    return f"{min(map(_joules, parts)) * 1e3:.4g} mJ an inference at least, {limit * 1e3:.4g} are allowed"


def contradiction(prior: Expected, during: Sequence[Observed], rules: Rules) -> str | None:
    """What speaks against the prior, or None."""
    limit_s = prior.latency_s * (1 + rules.prior_tolerance)
    share, chance = _slower(during, limit_s, rules)
    if chance >= rules.tail:
        return None
    return f"the prior promised {prior.latency_s * 1e3:.4g} ms; {share:.1%} were above {limit_s * 1e3:.4g} ms"


GATES = (_latency, _errors_gate, _energy, _throttled, _agreement, _budget)
FIRST_GATES = (_errors_gate, _budget)
