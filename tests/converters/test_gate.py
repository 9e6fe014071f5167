"""The gate: a pure rule from what was measured to a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.scored import assessment
from edgefleet.errors import InputError
from edgefleet_converters import gate
from edgefleet_converters.gate import Limits, Status
from edgefleet_converters.score.sqnr import OutputNoise, SliceNoise

LIMITS = Limits()


def noisy(name: str, worst_db: float, whole_db: float = 54.0) -> OutputNoise:
    return OutputNoise(name, whole_db, worst_db, (SliceNoise(1, 4, worst_db),))


@pytest.mark.parametrize(
    ("value", "upper", "status"),
    [
        (0.99, 0.005, Status.PASSED),
        (1.0, 0.0, Status.PASSED),
        (0.98, 0.01, Status.PASSED),
        (0.985, 0.0101, Status.UNPROVEN),
        (0.978, 0.02, Status.FAILED),
        (0.1, 0.9, Status.FAILED),
    ],
)
def test_more_than_the_allowed_drop_fails_and_an_open_interval_is_unproven(
    value: float, upper: float, status: Status
) -> None:
    verdict = gate.judge(assessment(value, upper=upper), LIMITS)
    assert verdict.status is status
    assert verdict.accepted is (status is not Status.FAILED)
    assert f"{0.99 - value:.4f}" in verdict.reason
    assert verdict.numbers["drop_upper"] == upper


def test_the_reason_of_an_unproven_variant_says_how_far_it_may_fall_and_on_how_many_samples() -> None:
    verdict = gate.judge(assessment(0.985, upper=0.0213), LIMITS)
    assert verdict.reason == "top1 drop 0.0050 within 0.01, but with 500 samples it may be up to 0.0213 (95 %)"


def test_an_error_that_grows_is_a_loss_in_the_metrics_own_unit() -> None:
    worse = assessment(2.5, 2.0, metric="rmse", higher_is_better=False, upper=0.6)
    assert gate.judge(worse, LIMITS).status is Status.FAILED
    assert "rmse 2.5000 is 0.5000 above fp32" in gate.judge(worse, LIMITS).reason
    assert gate.judge(worse, Limits(max_drop=0.55)).status is Status.UNPROVEN
    better = assessment(1.5, 2.0, metric="rmse", higher_is_better=False, upper=-0.4)
    assert gate.judge(better, Limits(max_drop=0)).status is Status.PASSED


def test_without_labels_classes_must_agree() -> None:
    wide = Limits(max_drop=1)
    assert gate.judge(assessment(0.995, 1.0, metric="agreement", upper=0.009), wide).status is Status.PASSED
    assert gate.judge(assessment(0.995, 1.0, metric="agreement", upper=0.02), wide).status is Status.UNPROVEN
    refused = gate.judge(assessment(0.985, 1.0, metric="agreement", upper=0.03), wide)
    assert refused.status is Status.FAILED
    assert "more than the allowed 0.01" in refused.reason
    assert gate.judge(assessment(0.985, 1.0, metric="agreement", upper=0.03), Limits(min_agreement=0.9)).accepted


def test_without_labels_the_worst_slice_must_keep_its_signal() -> None:
    """54 dB over the whole output, and every score lost."""
    dead = assessment(6.6, 150.0, metric="sqnr", noise=(noisy("head", 6.6),))
    verdict = gate.judge(dead, LIMITS)
    assert verdict.status is Status.FAILED
    assert verdict.reason == (
        "SQNR of 'head', slice 4 of axis 1 is 6.6 dB (54.0 dB over the whole output), less than 20 dB"
    )
    assert gate.judge(dead, Limits(min_sqnr_db=6)).status is Status.PASSED
    exact = assessment(150.0, 150.0, metric="sqnr", noise=(OutputNoise("head"),))
    assert gate.judge(exact, LIMITS).status is Status.PASSED


def test_outputs_that_no_metric_looks_at_are_held_to_their_noise() -> None:
    beside = assessment(0.99, upper=0.0, noise=(noisy("out", 3.0), noisy("boxes", 12.0)))
    verdict = gate.judge(beside, LIMITS)
    assert verdict.status is Status.FAILED
    assert "'boxes'" in verdict.reason
    assert gate.judge(assessment(0.99, upper=0.0, noise=(noisy("out", 3.0),)), LIMITS).status is Status.PASSED
    counted = assessment(0.99, upper=0.0, noise=(OutputNoise("class", equal=0.97),))
    assert "97.00% of 'class' is equal" in gate.judge(counted, LIMITS).reason


def test_no_score_makes_a_fault_good_and_a_crash_is_a_verdict() -> None:
    dead = gate.judge(assessment(1.0, upper=0.0, faults=("it is dead", "it is not repeatable")), Limits(max_drop=1))
    assert (dead.status, dead.reason) == (Status.FAILED, "it is dead; it is not repeatable")
    crashed = gate.judge("it was killed by SIGSEGV", Limits(max_drop=1))
    assert (crashed.status, crashed.reason) == (Status.FAILED, "could not be scored: it was killed by SIGSEGV")


def test_a_file_is_as_good_as_on_the_worst_of_its_runtime_versions() -> None:
    good, open_, bad = (gate.judge(assessment(value, upper=0.0125), LIMITS) for value in (0.99, 0.985, 0.5))
    alone = {"2.3.0": good}
    assert gate.worst(alone) is good
    both = gate.worst({"2.3.0": open_, "0.2.14.0": bad})
    assert both.status is Status.FAILED
    assert both.reason.startswith("on 0.2.14.0: top1 0.5000 is 0.4900 below fp32")
    assert both.numbers == bad.numbers


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.3), st.floats(0, 0.2), st.floats(0, 0.2))
def test_a_wider_limit_never_makes_a_verdict_worse(
    value: float, reference: float, width: float, narrow: float, more: float
) -> None:
    found = assessment(value, reference, upper=reference - value + width)
    order = tuple(Status)
    strict = gate.judge(found, Limits(max_drop=narrow))
    loose = gate.judge(found, Limits(max_drop=narrow + more))
    assert order.index(loose.status) <= order.index(strict.status)


@pytest.mark.parametrize(("value", "status"), [(0.0, Status.UNPROVEN), (0.5, Status.UNPROVEN), (0.6, Status.PASSED)])
def test_a_source_that_only_guesses_has_nothing_to_lose(value: float, status: Status) -> None:
    verdict = gate.judge(replace(assessment(value, value, upper=0.0), guess=0.5), LIMITS)
    assert verdict.status is status
    assert ("no better than guessing" in verdict.reason) is (status is Status.UNPROVEN)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -0.1])
def test_a_limit_is_a_number_that_something_can_be_held_against(number: float) -> None:
    with pytest.raises(InputError, match="reading --max-drop"):
        Limits(max_drop=number)
