"""Activations that are one TFLite operator: PRelu with constant slopes and both forms of Gelu, in float and int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnx import helper

from conformance.delegation_probe import outside
from converters.onnx_models import assert_same, build, operators, weights
from edgefleet_converters.steps.quantize_tflite import quantize
from edgefleet_converters.tflite import lower

node = helper.make_node
PRELU = node("PRelu", ["x", "s"], ["y"])
CONV = node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])
LAST = node("Conv", ["d", "w"], ["y"], pads=[1, 1, 1, 1])
W = weights(4, 4, 3, 3)


@pytest.mark.parametrize(
    ("shape", "slope"),
    [
        ((7,), (1,)),
        ((2, 6), (6,)),
        ((2, 6, 3), (6, 1)),
        ((2, 3, 4, 5), (4, 1)),
        ((1, 4, 4, 4), ()),
        ((1, 4, 4, 4), (4, 1, 1)),
        ((1, 4, 4, 4), (1, 4, 4, 4)),
        ((2, 6, 3, 2, 2), (6, 1, 1, 1)),
    ],
    ids=str,
)
def test_prelu_with_constant_slopes_is_one_operator(shape: tuple[int, ...], slope: tuple[int, ...]) -> None:
    assert operators(assert_same(build([PRELU], shape, {"s": weights(*slope)}, opset=16))) == ["PRELU"]


def test_slopes_follow_the_layout_of_their_data() -> None:
    between = node("PRelu", ["c", "s"], ["d"])
    lowered = assert_same(build([CONV, between, LAST], (1, 4, 4, 4), {"w": W, "s": weights(4, 1, 1)}))
    assert operators(lowered) == ["CONV_2D", "PRELU", "CONV_2D"]


def test_computed_slopes_are_a_choice() -> None:
    nodes = [node("ReduceMax", ["x"], ["s"], keepdims=0), node("PRelu", ["x", "s"], ["y"])]
    assert operators(assert_same(build(nodes, (2, 3))))[-1] == "SELECT_V2"


@pytest.mark.parametrize("channels_before", [False, True])
def test_a_vector_of_slopes_is_per_channel_before_opset_7(channels_before: bool) -> None:
    data, x = "c" if channels_before else "x", weights(1, 4, 4, 4, seed=7)
    before = [CONV] if channels_before else []
    old = build([*before, node("PRelu", [data, "s"], ["y"])], x.shape, {"w": W, "s": weights(4)}, opset=6)
    new = build([*before, node("PRelu", [data, "s"], ["y"])], x.shape, {"w": W, "s": weights(4, 1, 1)}, opset=16)
    found, wanted = (run(model, x) for model in (old, new))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    content = lower(model, keep_layout=True).content
    interpreter = Interpreter(model_content=content, num_threads=1)
    found: np.ndarray = interpreter.get_signature_runner()(x=x)["y"]
    return found


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_one_operator_over_its_whole_range(approximate: str) -> None:
    spread = node("Mul", ["x", "k"], ["m"])
    nodes = [spread, node("Gelu", ["m"], ["y"], approximate=approximate)]
    lowered = assert_same(build(nodes, (1, 8000), {"k": np.array(4, np.float32)}, opset=20), 3e-6)
    assert operators(lowered) == ["MUL", "GELU"]


@pytest.mark.parametrize("between", ["prelu", "gelu"])
def test_all_stays_on_xnnpack_in_float_and_in_int8(between: str) -> None:
    made = {
        "prelu": node("PRelu", ["c", "s"], ["d"]),
        "gelu": node("Gelu", ["c"], ["d"], approximate="tanh"),
    }[between]
    model = build([CONV, made, LAST], (1, 4, 8, 8), {"w": W, "s": weights(4, 1, 1)}, opset=20)
    assert outside(lower(model).content) == []
    samples: list[dict[str, NDArray[Any]]] = [{"x": weights(1, 8, 8, 4, seed=seed)} for seed in range(4)]
    assert outside(quantize(lower(model, int8=True).content, samples)) == []
