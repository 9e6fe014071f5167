"""Every operator of the lowering against ONNX Runtime, with the forms that go wrong most easily."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper

from converters.onnx_models import assert_same, build, conv, operators, weights

node = helper.make_node

CONVOLUTIONS: dict[str, tuple[tuple[object, ...], dict[str, object]]] = {
    "valid": ((3, (7, 9), 5, (3, 3)), {}),
    "pointwise": ((6, (5, 5), 4, (1, 1)), {}),
    "pointwise stride 2": ((6, (5, 6), 4, (1, 1)), {"strides": [2, 2]}),
    "same": ((3, (8, 8), 4, (3, 3)), {"pads": [1, 1, 1, 1]}),
    "same stride 2 odd size": ((3, (7, 7), 4, (3, 3)), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    # TFLite's SAME would pad (0, 1) here, ONNX pads (1, 1): the window starts elsewhere.
    "pads 1 stride 2 even size": ((3, (8, 8), 4, (3, 3)), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "asymmetric pads": ((2, (6, 7), 3, (3, 2)), {"pads": [2, 0, 1, 3]}),
    "uneven strides": ((2, (9, 8), 3, (3, 3)), {"strides": [1, 3], "pads": [1, 1, 1, 1]}),
    "dilated": ((2, (10, 11), 3, (3, 3)), {"dilations": [2, 3]}),
    "dilated same": ((2, (9, 9), 3, (3, 3)), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    "auto_pad SAME_UPPER": ((2, (8, 9), 3, (3, 4)), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "auto_pad SAME_LOWER": ((2, (8, 9), 3, (3, 4)), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "auto_pad VALID": ((2, (8, 9), 3, (3, 3)), {"auto_pad": "VALID"}),
    "depthwise": ((4, (8, 8), 4, (3, 3)), {"group": 4, "pads": [1, 1, 1, 1]}),
    "depthwise multiplier 2": ((3, (7, 8), 6, (3, 3)), {"group": 3, "pads": [1, 0, 0, 1]}),
    "depthwise stride 2": ((4, (8, 8), 4, (5, 5)), {"group": 4, "strides": [2, 2], "pads": [2, 2, 2, 2]}),
    "depthwise dilated": ((4, (9, 9), 4, (3, 3)), {"group": 4, "dilations": [2, 2]}),
    "one channel one group": ((1, (6, 6), 3, (3, 3)), {"group": 1}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_conv(case: str) -> None:
    arguments, attributes = CONVOLUTIONS[case]
    build_conv: Callable[..., onnx.ModelProto] = conv
    assert_same(build_conv(*arguments, **attributes))


def test_conv_without_bias() -> None:
    assert_same(build([node("Conv", ["x", "w"], ["y"])], (1, 2, 5, 5), {"w": weights(3, 2, 3, 3)}))


def test_same_padding_needs_no_pad_operator() -> None:
    assert operators(assert_same(conv(3, (8, 8), 4, (3, 3), pads=[1, 1, 1, 1]))) == ["CONV_2D"]
    shifted = conv(3, (8, 8), 4, (3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    assert operators(assert_same(shifted)) == ["PAD", "CONV_2D"]


POOLS: dict[str, tuple[str, dict[str, object]]] = {
    "max": ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "max same": ("MaxPool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "max odd pads": ("MaxPool", {"kernel_shape": [3, 3], "pads": [2, 0, 1, 2], "strides": [2, 1]}),
    "average": ("AveragePool", {"kernel_shape": [2, 3], "strides": [2, 2]}),
    "average same": ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "average odd pads": ("AveragePool", {"kernel_shape": [3, 3], "pads": [2, 0, 1, 2], "strides": [2, 1]}),
    "average including pads": (
        "AveragePool",
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    ),
    "global": ("GlobalAveragePool", {}),
}


@pytest.mark.parametrize("case", POOLS)
def test_pool(case: str) -> None:
    operator, attributes = POOLS[case]
    assert_same(build([node(operator, ["x"], ["y"], **attributes)], (1, 3, 7, 8)))


@pytest.mark.parametrize("case", ["max odd pads", "average odd pads"])
def test_pool_with_fused_activation(case: str) -> None:
    operator, attributes = POOLS[case]
    nodes = [node(operator, ["x"], ["p"], **attributes), node("Relu", ["p"], ["y"])]
    assert_same(build(nodes, (1, 3, 7, 8)))


def test_max_pool_of_relu_pads_with_zeros() -> None:
    """After a Relu zero never beats a real value, and PAD can be quantised where PADV2 cannot."""
    pool = node("MaxPool", ["r"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])
    lowered = assert_same(build([node("Relu", ["x"], ["r"]), pool], (1, 3, 8, 8)))
    assert operators(lowered) == ["RELU", "PAD", "MAX_POOL_2D"]


GEMMS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]] = {
    "plain": ((6, 4), (4,), {}),
    "transB": ((4, 6), (4,), {"transB": 1}),
    "alpha beta": ((4, 6), (1, 4), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "scalar bias": ((6, 4), (1,), {}),
}


@pytest.mark.parametrize("case", GEMMS)
def test_gemm(case: str) -> None:
    weight, bias, attributes = GEMMS[case]
    constants = {"w": weights(*weight), "b": weights(*bias, seed=1)}
    assert_same(build([node("Gemm", ["x", "w", "b"], ["y"], **attributes)], (1, 6), constants))


def test_gemm_without_bias() -> None:
    assert_same(build([node("Gemm", ["x", "w"], ["y"])], (2, 6), {"w": weights(6, 4)}))


def test_softmax() -> None:
    assert_same(build([node("Softmax", ["x"], ["y"])], (1, 9)))


@pytest.mark.parametrize("upper", [6.0, float(np.finfo(np.float32).max)])
def test_clip_and_relu_are_fused(upper: float) -> None:
    bounds = {"low": np.array(0, np.float32), "high": np.array(upper, np.float32)}
    constants = {"w": 4 * weights(3, 2, 3, 3), **bounds}
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Clip", ["c", "low", "high"], ["y"])]
    assert operators(assert_same(build(nodes, (1, 2, 6, 6), constants), 1e-4)) == ["CONV_2D"]


def test_an_activation_is_not_fused_into_a_value_that_is_read_twice() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("Add", ["c", "r"], ["y"]),
    ]
    lowered = assert_same(build(nodes, (1, 2, 6, 6), {"w": weights(3, 2, 3, 3)}))
    assert operators(lowered) == ["CONV_2D", "RELU", "ADD"]


def test_an_activation_is_not_fused_into_a_graph_output() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["y"])]
    assert_same(build(nodes, (1, 2, 6, 6), {"w": weights(3, 2, 3, 3)}, outputs=("c", "y")))


def _norm(channels: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {
        "scale": weights(channels, seed=2),
        "shift": weights(channels, seed=3),
        "mean": weights(channels, seed=4),
        "var": np.abs(weights(channels, seed=5)) + np.float32(0.5),
    }


NORM = ("scale", "shift", "mean", "var")


@pytest.mark.parametrize("bias", [True, False])
def test_batchnorm_folds_into_conv(bias: bool) -> None:
    nodes = [
        node("Conv", ["x", "w", *(["b"] if bias else [])], ["c"]),
        node("BatchNormalization", ["c", *NORM], ["n"], epsilon=1e-3),
        node("Relu", ["n"], ["y"]),
    ]
    constants = {"w": weights(4, 2, 3, 3), "b": weights(4, seed=1), **_norm(4)}
    lowered = assert_same(build(nodes, (1, 2, 6, 6), constants))
    assert operators(lowered) == ["CONV_2D"]


def test_batchnorm_folds_into_depthwise_conv() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"], group=3), node("BatchNormalization", ["c", *NORM], ["y"])]
    assert operators(assert_same(build(nodes, (1, 3, 6, 6), {"w": weights(3, 1, 3, 3), **_norm(3)}))) == [
        "DEPTHWISE_CONV_2D"
    ]


def test_batchnorm_alone_becomes_mul_and_add() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("BatchNormalization", ["c", *NORM], ["n"]),
        node("Add", ["c", "n"], ["y"]),
    ]
    lowered = assert_same(build(nodes, (1, 2, 6, 6), {"w": weights(4, 2, 3, 3), **_norm(4)}))
    assert operators(lowered) == ["CONV_2D", "MUL", "ADD", "ADD"]


def test_constants_are_folded() -> None:
    """A reshape whose target shape the model computes, as exporters write it."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Concat", ["n", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["r"]),
        node("Gemm", ["r", "w"], ["y"]),
    ]
    constants = {"zero": np.array([0]), "rest": np.array([-1]), "w": weights(12, 3)}
    assert operators(assert_same(build(nodes, (1, 3, 4), constants))) == ["RESHAPE", "FULLY_CONNECTED"]


def test_identity_at_the_output_and_dropout_inside() -> None:
    nodes = [node("Dropout", ["x"], ["d"]), node("Relu", ["d"], ["r"]), node("Identity", ["r"], ["y"])]
    assert_same(build(nodes, (1, 5)))
