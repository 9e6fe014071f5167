"""The pure rules: planning, metrics and the gate."""

from __future__ import annotations

import numpy as np
import pytest

from edgefleet.errors import GateError, UnsupportedError
from edgefleet.package.manifest import Score
from edgefleet_converters import gate
from edgefleet_converters.plan import PlannedVariant, make_plan
from edgefleet_converters.score.metrics import Assessment, Measured, assess, top1
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import AllowedRuntime, Precision, Profile, Runtime


def profile(identity: str, architecture: str, *runtimes: tuple[Runtime, Precision]) -> Profile:
    known = catalogue.load("generic-x86-64")
    return known.model_copy(
        update={
            "id": identity,
            "cpu": known.cpu.model_copy(update={"architecture": architecture}),
            "runtimes": tuple(
                AllowedRuntime(name=runtime, version=">=1", precisions=(precision,), reason="because")
                for runtime, precision in runtimes
            ),
        }
    )


LITERT = (Runtime.LITERT, Precision.INT8)
ORT = (Runtime.ONNXRUNTIME, Precision.INT8)


def test_a_recipe_that_two_architectures_want_is_planned_once() -> None:
    plan = make_plan([profile("pi", "arm64", LITERT), profile("nuc", "amd64", ORT, LITERT)])
    assert [planned.name for planned in plan] == ["litert-int8", "onnxruntime-int8"]
    assert plan[0].architectures == ("amd64", "arm64")
    assert plan[0].profiles == ("pi", "nuc")
    assert plan[0].reasons == ("pi: choice 1, because", "nuc: choice 2, because")
    assert plan[1].architectures == ("amd64",)


def test_every_profile_of_the_catalogue_can_be_planned() -> None:
    plan = make_plan([catalogue.load(name) for name in catalogue.names()])
    assert {planned.name for planned in plan} >= {"litert-int8", "onnxruntime-int8", "openvino-int8"}


def test_a_precision_without_a_recipe_is_named() -> None:
    with pytest.raises(UnsupportedError, match="no recipe makes litert fp32"):
        make_plan([profile("pi", "arm64", (Runtime.LITERT, Precision.FP32))])


def assessment(
    value: float, reference: float = 0.99, samples: int = 500, *, spread: float = 10.0, repeat: float = 0.0
) -> Assessment:
    score = Score(
        metric="top1",
        value=value,
        reference=reference,
        agreement=value,
        samples=samples,
        runtime_version="1.0",
        max_abs_difference=0.1,
    )
    return Assessment(score, spread, repeat)


@pytest.mark.parametrize(("value", "accepted"), [(0.99, True), (1.0, True), (0.98, True), (0.978, False), (0.1, False)])
def test_the_gate_refuses_more_than_the_allowed_drop(value: float, accepted: bool) -> None:
    verdict = gate.judge(assessment(value), 0.01)
    assert verdict.accepted is accepted
    assert f"{0.99 - value:.4f}" in verdict.reason


def test_the_gate_refuses_what_could_not_be_run_or_repeated_or_is_dead() -> None:
    assert gate.judge("it was killed by SIGSEGV", 0.5) == gate.Verdict(
        accepted=False, reason="could not be scored: it was killed by SIGSEGV"
    )
    assert not gate.judge(assessment(0.99, spread=0.0), 1.0).accepted
    unsteady = gate.judge(assessment(0.99, repeat=1.0), 1.0)
    assert not unsteady.accepted
    assert "same input twice" in unsteady.reason


def test_a_profile_without_a_variant_is_an_error_with_the_numbers() -> None:
    shared = PlannedVariant(*LITERT, ("amd64",), ("pi", "nuc"), ())
    other = PlannedVariant(*ORT, ("amd64",), ("nuc",), ())
    bad, good = gate.judge(assessment(0.5), 0.01), gate.judge(assessment(0.99), 0.01)
    gate.require_cover([(shared, good), (other, bad)])
    with pytest.raises(GateError) as caught:
        gate.require_cover([(shared, bad), (other, good)])
    assert "choosing variants for pi: litert-int8: top-1 0.5000 is 0.4900 below fp32" in str(caught.value)


def test_metrics() -> None:
    labels = np.array([0, 1, 1, 0])
    source = np.array([[2, 0], [0, 2], [0, 2], [0, 2]], np.float32)
    variant = np.array([[2, 0], [0, 2], [2, 0], [0, 1.5]], np.float32)
    found = assess(
        Measured(variant, variant[:2] + np.float32(0.25), "2.3.0"), Measured(source, source[:2], "1.31.1"), labels
    )
    assert found.score.value == 0.5
    assert found.score.reference == 0.75
    assert found.score.agreement == 0.75
    assert found.score.max_abs_difference == 2.0
    assert found.score.runtime_version == "2.3.0"
    assert found.repeat_difference == 0.25
    assert found.tolerance == pytest.approx(10 * 2.0 / 255)


def test_a_nan_row_is_wrong_even_where_argmax_says_otherwise() -> None:
    outputs = np.array([[np.nan, 0], [1, 0]], np.float32)
    assert top1(outputs, np.array([0, 0])) == 0.5
