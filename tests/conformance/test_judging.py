"""The conformance run itself: what it calls wrong, and that a worker's death or silence is one case's crash."""

from __future__ import annotations

import os
import time
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import helper

from conformance.cases import Case
from conformance.judge import judge
from conformance.verdicts import Outcome, Verdict, outcome_of
from conformance.workers import judge_all
from edgefleet_converters.tflite import lower


def case(expected: object, operator: str = "Relu", name: str = "case") -> Case:
    x = np.array([-1.0, 2.0, np.nan], np.float32)
    described = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", described[:1], described[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return Case(name, operator, model, (((x,), (np.asarray(expected),)),))


FLOATS = np.array([0.0, 2.0, np.nan], np.float32)


@pytest.mark.parametrize(
    ("expected", "verdict"),
    [
        (np.array([-1.0, 2.0, np.nan], np.float32), Verdict.PASSED),
        (np.array([-1.0, 2.01, np.nan], np.float32), Verdict.WRONG),
        (np.array([-1.0, 2.0, 0.0], np.float32), Verdict.WRONG),
        (np.array([-1.0, 2.0, np.nan], np.float64), Verdict.WRONG),
        (np.array([[-1.0, 2.0, np.nan]], np.float32), Verdict.WRONG),
    ],
)
def test_verdicts(expected: object, verdict: Verdict) -> None:
    assert judge(case(expected, "Identity")).verdict is verdict


def test_a_refusal_has_its_reason() -> None:
    outcome = judge(case(FLOATS, "RandomNormalLike"))
    assert outcome.verdict is Verdict.REFUSED
    assert "RandomNormalLike" in outcome.reason


def test_a_lowering_or_a_runtime_that_fails_has_crashed() -> None:
    def fails(*_: object) -> Outcome:
        raise RuntimeError("no such kernel")

    model = case(FLOATS).model
    assert outcome_of(partial(lower, model), fails).reason == "runtime: RuntimeError: no such kernel"
    model.graph.node[0].input[0] = "missing"
    found = outcome_of(partial(lower, model), fails)
    assert (found.verdict, found.reason.partition(":")[0]) == (Verdict.CRASHED, "lowering")


def test_a_worker_that_dies_or_hangs_is_replaced() -> None:
    def fine() -> Outcome:
        return Outcome(Verdict.PASSED, measured={"distance": 0.5})

    def dies() -> Outcome:
        os._exit(9)

    def hangs() -> Outcome:
        time.sleep(60)
        return fine()

    outcomes = judge_all([fine, dies, hangs, fine, fine], 2, 0.3)
    verdicts = [outcome.verdict for outcome in outcomes]
    assert verdicts == [Verdict.PASSED, Verdict.CRASHED, Verdict.CRASHED, Verdict.PASSED, Verdict.PASSED]
    assert outcomes[4].measured == {"distance": 0.5}
    assert "died" in outcomes[1].reason
    assert "no result after 0.3 s" in outcomes[2].reason
