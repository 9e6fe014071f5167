"""Probation: what passes, fails or has to wait; and how often a variant fails that is as good as the old one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from edgefleet.sketch import Sketch
from edgefleet_agent.probation import History, Outcome, Verdict, judge
from edgefleet_agent.probation_gates import Expected, Gate, Judged, Observed, Rules

RULES = Rules(windows=8)
WINDOW_S = 10.0


def sketch_of(*values_s: float) -> Sketch:
    sketch = Sketch()
    for value in values_s:
        sketch.add(value)
    return sketch


def window(latency_s: float = 0.01, count: int = 50, **changes: object) -> Observed:
    """One whose inferences take from 90 % to 110 % of `latency_s`."""
    latency = sketch_of(*(latency_s * (0.9 + 0.2 * n / max(1, count - 1)) for n in range(count)))
    made = Observed(duration_s=WINDOW_S, count=count, errors=0, latency_s=latency, throttled=False)
    return replace(made, **changes)  # type: ignore[arg-type]


BEFORE = (window(),) * 32


def judged(during: list[Observed], before: tuple[Observed, ...] = BEFORE, **changes: object) -> Verdict:
    rules = replace(RULES, **changes)  # type: ignore[arg-type]
    return judge(History(before, tuple(during)), 0.0, WINDOW_S * len(during), rules)


def gate(verdict: Verdict, name: str) -> Gate:
    (found,) = (one for one in verdict.gates if one.name == name)
    return found


def test_as_fast_as_before_passes_with_evidence() -> None:
    verdict = judged([window()] * 8)
    assert (verdict.outcome, verdict.evidence) == (Outcome.PASS, "sufficient")
    assert "p90" in verdict.reason
    assert "0.00% of 400 inferences" in verdict.reason


@pytest.mark.parametrize(
    ("during", "found"),
    [
        ([window()] * 3, "3 windows with inferences, 4 are the fewest"),
        ([window()] * 7, "it has 4 windows of 8"),
        ([window(count=20)] * 15, "160 inferences of 200"),
        ([window(count=0)] * 50, "0 windows with inferences"),
    ],
)
def test_too_little_waits(during: list[Observed], found: str) -> None:
    verdict = judged(during)
    assert verdict.outcome is Outcome.WAIT
    assert found in verdict.reason


def test_at_the_deadline_what_has_not_failed_is_kept_and_says_so() -> None:
    for during in ([window(count=3)] * 5, [window()] * 2, [], [window(count=0)] * 9):
        verdict = judge(History(BEFORE, tuple(during)), 100.0, 100.0 + RULES.deadline_s, RULES)
        assert (verdict.outcome, verdict.evidence) == (Outcome.PASS, "insufficient")


def test_at_the_deadline_what_has_failed_still_fails() -> None:
    during = (window(0.02),) * 3
    assert judge(History(BEFORE, during), 0.0, 60.0, RULES).outcome is Outcome.WAIT
    assert judge(History(BEFORE, during), 0.0, RULES.deadline_s, RULES).outcome is Outcome.FAIL


def test_slower_fails_at_the_first_look() -> None:
    verdict = judged([window(0.013)] * 4)
    assert verdict.outcome is Outcome.FAIL
    assert gate(verdict, "latency").judged is Judged.FAILED
    assert verdict.reason.startswith("latency: p90 13.98 ms after 10.78 ms")


def test_within_the_tolerance_is_no_failure() -> None:
    assert judged([window(0.0105)] * 64).outcome is Outcome.PASS


def test_what_comes_between_two_looks_waits_for_the_next() -> None:
    """Seven windows are judged as four: as many tests as the false alarm rate was divided by."""
    broken = window(compared=50, agreed=0)
    assert judged([window(0.02)] * 3).outcome is Outcome.WAIT
    assert judged([window(compared=50, agreed=50)] * 4 + [broken] * 3).outcome is Outcome.WAIT
    assert judged([window(compared=50, agreed=50)] * 4 + [broken] * 12).outcome is Outcome.FAIL


def test_errors_fail_only_above_what_was_there_before() -> None:
    failing = window(count=45, errors=5)
    assert judged([failing] * 4).outcome is Outcome.FAIL
    assert judged([failing] * 8, before=(failing,) * 30).outcome is Outcome.PASS


def test_what_fails_more_often_than_not_is_not_watched_any_longer() -> None:
    verdict = judged([window(count=5, errors=20)])
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason == "errors: 20 of 25 inferences failed"
    broken_before = (window(count=5, errors=20),) * 30
    assert judged([window(count=5, errors=20)], before=broken_before).outcome is Outcome.WAIT


def test_a_first_install_is_judged_by_errors_and_budget_alone() -> None:
    slow_and_hot = window(5.0, throttled=True)
    verdict = judged([slow_and_hot] * 8, before=())
    assert (verdict.outcome, verdict.evidence) == (Outcome.PASS, "sufficient")
    assert [found.name for found in verdict.gates] == ["errors", "budget"]
    assert judged([window(count=40, errors=10)] * 4, before=()).outcome is Outcome.FAIL
    assert judged([slow_and_hot] * 4, before=(), budget_latency_s=1.0).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("limits", "changes", "found"),
    [
        ({"budget_latency_s": 0.005}, {}, "above 5 ms"),
        ({"budget_memory_bytes": 2**20}, {"memory_bytes": 2**21}, "2.0 MiB of memory"),
        (
            {"budget_energy_j": 0.01},
            {"joules": 1.0, "energy_source": "measured", "energy_scope": "package"},
            "20 mJ an inference",
        ),
    ],
)
def test_the_budget_fails_what_exceeds_it(limits: dict[str, float], changes: dict[str, object], found: str) -> None:
    over = [window(**changes)] * 4  # type: ignore[arg-type]
    verdict = judged(over, BEFORE, **limits)
    assert verdict.outcome is Outcome.FAIL
    assert found in verdict.reason
    roomy = {name: limit * 100 for name, limit in limits.items()}
    assert gate(judged(over * 2, BEFORE, **roomy), "budget").judged is Judged.PASSED


def measured(joules: float, **changes: object) -> Observed:
    return window(joules=joules, energy_source="measured", energy_scope="board_input", **changes)  # type: ignore[arg-type]


def test_energy_is_compared_when_the_same_meter_measured_it_at_the_same_rate() -> None:
    before = tuple(measured(30.0 + n % 3) for n in range(30))
    hungry = [measured(45.0 + n % 3) for n in range(8)]
    assert gate(judged(hungry, before), "energy").judged is Judged.FAILED
    assert gate(judged(list(before[:8]), before), "energy").judged is Judged.PASSED
    others = {
        "estimated": [replace(one, energy_source="estimated") for one in hungry],
        "the same meter": [replace(one, energy_scope="package") for one in hungry],
        "inferences a second": [measured(45.0, count=90)] * 8,
    }
    for found, during in others.items():
        text = gate(judged(during, before), "energy")
        assert text.judged is Judged.NOT_JUDGED
        assert found in text.text


def test_throttling_that_stays_fails() -> None:
    hot = window(throttled=True)
    assert judged([hot] * 8).outcome is Outcome.FAIL
    assert judged([hot] * 8, before=(hot,) * 30).outcome is Outcome.PASS
    unknown = window(throttled=None)
    assert gate(judged([unknown] * 8), "throttling").judged is Judged.NOT_JUDGED


def test_disagreement_fails() -> None:
    assert judged([window(compared=50, agreed=20)] * 4).outcome is Outcome.FAIL
    verdict = judged([window(compared=50, agreed=45)] * 8)
    assert verdict.outcome is Outcome.PASS
    assert "agreement: 90.0% of 400 inputs" in verdict.reason


def test_a_prior_that_does_not_hold_is_said_and_fails_nothing() -> None:
    during = (window(),) * 8
    verdict = judge(History((), during, Expected(0.005)), 0.0, 80.0, RULES)
    assert verdict.outcome is Outcome.PASS
    assert verdict.contradicts_prior is not None
    assert "promised 5 ms" in verdict.contradicts_prior
    assert judge(History((), during, Expected(0.0105)), 0.0, 80.0, RULES).contradicts_prior is None


def test_little_history_is_said_and_waited_for_in_vain_by_nobody() -> None:
    verdict = judged([window(0.05)] * 8, before=(window(),) * 2)
    assert (verdict.outcome, verdict.evidence) == (Outcome.PASS, "insufficient")
    assert "the committed variant has 2 windows of 8" in verdict.reason


# Chance ----------------------------------------------------------------------------------------------


def lived(random_: random.Random, windows: int, level_s: float, count: int) -> list[Observed]:
    """Windows as devices have them: each inference varies, each window has its own level (which the next resembles),
    and in one of twenty something else runs on the machine.
    """
    made, drift = [], 0.0
    for _ in range(windows):
        drift = 0.7 * drift + random_.gauss(0, 0.03)
        burst = 1.6 if random_.random() < 0.05 else 1.0
        level = level_s * burst * (1 + drift)
        made.append(
            Observed(
                duration_s=WINDOW_S, count=count, errors=int(random_.random() < 0.02), throttled=random_.random() < 0.1,
                latency_s=sketch_of(*(level * random_.lognormvariate(0, 0.1) for _ in range(count))),
                joules=count * level * random_.gauss(5, 0.25), energy_source="measured", energy_scope="rails",
            )
        )  # fmt: skip
    return made


def outcome_of(random_: random.Random, slower: float, count: int) -> Outcome:
    """Windows come one by one, and a verdict is asked for after each, as the agent does it."""
    before = tuple(lived(random_, 64, 0.01, count))
    during = lived(random_, 32, 0.01 * slower, count)
    for number in (4, 8, 12, 16, 32):
        verdict = judge(History(before, tuple(during[:number])), 0.0, number * WINDOW_S, Rules())
        if verdict.outcome is not Outcome.WAIT:
            return verdict.outcome
    return verdict.outcome


@pytest.mark.parametrize("count", [8, 64])
def test_the_same_model_fails_no_more_often_than_stated(count: int) -> None:
    """At 1 % the chance of more than 3 in 60 is 0.3 %; seeded, so that it says the same each time."""
    random_ = random.Random(20261121 + count)
    failed = sum(outcome_of(random_, 1.0, count) is Outcome.FAIL for _ in range(60))
    assert failed <= 3


def test_a_variant_that_is_half_as_slow_again_is_found() -> None:
    random_ = random.Random(7)
    failed = sum(outcome_of(random_, 1.5, 64) is Outcome.FAIL for _ in range(50))
    assert failed >= 45
