"""The canonical forms: what is folded, fused, named and merged, each compared with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from converters.onnx_models import assert_same, build, operators, weights

node = helper.make_node
Array = NDArray[np.generic]
TOLERANCE = 1e-4


def positive(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32)


NORM = {"s": positive(4), "o": weights(4, seed=1), "m": weights(4, seed=2), "v": positive(4, seed=3)}


def norm(data: str, output: str) -> onnx.NodeProto:
    return node("BatchNormalization", [data, "s", "o", "m", "v"], [output])


FOLDED: dict[str, tuple[list[onnx.NodeProto], tuple[int, ...], dict[str, Array], list[str]]] = {
    "norm after convolution": (
        [node("Conv", ["x", "w"], ["c"]), norm("c", "y")],
        (1, 3, 5, 5),
        {"w": weights(4, 3, 3, 3)},
        ["CONV_2D"],
    ),
    "norm before convolution": (
        [norm("x", "n"), node("Conv", ["n", "w", "b"], ["y"])],
        (1, 4, 5, 5),
        {"w": weights(3, 4, 3, 3), "b": weights(3)},
        ["CONV_2D"],
    ),
    "norm before a padded convolution": (
        [norm("x", "n"), node("Conv", ["n", "w"], ["y"], pads=[1, 1, 1, 1])],
        (1, 4, 5, 5),
        {"w": weights(3, 4, 3, 3)},
        ["MUL", "ADD", "CONV_2D"],
    ),
    "norm before a grouped convolution": (
        [norm("x", "n"), node("Conv", ["n", "w"], ["y"], group=2)],
        (1, 4, 5, 5),
        {"w": weights(6, 2, 3, 3)},
        ["CONV_2D"],
    ),
    "norm after a grouped transposed convolution": (
        [node("ConvTranspose", ["x", "w"], ["c"], group=2), norm("c", "y")],
        (1, 6, 4, 4),
        {"w": weights(6, 2, 2, 2)},
        [],
    ),
    "norm after dense": (
        [node("Gemm", ["x", "w", "b"], ["c"], transB=1, alpha=0.5, beta=2.0), norm("c", "y")],
        (2, 3),
        {"w": weights(4, 3), "b": weights(4)},
        ["FULLY_CONNECTED"],
    ),
    "norm before dense": (
        [norm("x", "n"), node("Gemm", ["n", "w"], ["y"])],
        (2, 4),
        {"w": weights(4, 3)},
        ["FULLY_CONNECTED"],
    ),
    "scale and offset after a matrix product": (
        [node("MatMul", ["x", "w"], ["c"]), node("Mul", ["c", "g"], ["d"]), node("Sub", ["h", "d"], ["y"])],
        (2, 3),
        {"w": weights(3, 4), "g": weights(4, seed=5), "h": weights(1, 4, seed=6)},
        ["FULLY_CONNECTED"],
    ),
    "scale before a batched matrix product": (
        [node("Div", ["x", "g"], ["d"]), node("MatMul", ["d", "w"], ["y"])],
        (2, 3, 4),
        {"w": weights(4, 5), "g": positive(4)},
        ["FULLY_CONNECTED"],
    ),
    "scalars around a convolution": (
        [node("Mul", ["x", "k"], ["a"]), node("Conv", ["a", "w"], ["c"]), node("Add", ["k", "c"], ["y"])],
        (1, 3, 5, 5),
        {"w": weights(4, 3, 3, 3), "k": np.array(0.25, np.float32)},
        ["CONV_2D"],
    ),
    "an operand that differs along the width": (
        [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "k"], ["y"])],
        (1, 3, 6, 6),
        {"w": weights(4, 3, 3, 3), "k": weights(4)},
        ["CONV_2D", "MUL"],
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_scaling_is_folded(name: str) -> None:
    nodes, shape, constants, wanted = FOLDED[name]
    read = {item for one in nodes for item in one.input}
    used = {key: array for key, array in {**NORM, **constants}.items() if key in read}
    found = operators(assert_same(build(nodes, shape, used), TOLERANCE))
    assert found == wanted if wanted else "MUL" not in found


def test_a_result_that_two_nodes_read_is_not_scaled() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Mul", ["c", "k"], ["d"]), node("Add", ["c", "d"], ["y"])]
    constants = {"w": weights(4, 3, 3, 3), "k": positive(4, 1, 1)}
    assert operators(assert_same(build(nodes, (1, 3, 5, 5), constants), TOLERANCE)) == ["CONV_2D", "MUL", "ADD"]


ZERO, SIX, THREE = (np.array(value, np.float32) for value in (0, 6, 3))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Clip", ["c", "zero", "six"], ["y"])],
        [node("Relu", ["c"], ["r"]), node("Min", ["six", "r"], ["y"])],
        [node("Max", ["c", "zero"], ["r"]), node("Clip", ["r", "", "six"], ["y"])],
    ],
)
def test_relu6_however_it_is_written(nodes: list[onnx.NodeProto]) -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), *nodes]
    read = {item for one in nodes for item in one.input}
    constants = {"w": weights(4, 3, 3, 3), "zero": ZERO, "six": SIX}
    model = build(nodes, (1, 3, 5, 5), {key: array for key, array in constants.items() if key in read})
    assert operators(assert_same(model)) == ["CONV_2D"]


SUM = node("Add", ["x", "three"], ["s"])
GATE = node("Clip", ["s", "zero", "six"], ["g"])
SWISHES = {
    "product, then quotient": [SUM, GATE, node("Mul", ["x", "g"], ["p"]), node("Div", ["p", "six"], ["y"])],
    "quotient, then product": [SUM, GATE, node("Div", ["g", "six"], ["q"]), node("Mul", ["q", "x"], ["y"])],
    "by a sixth": [SUM, GATE, node("Mul", ["x", "g"], ["p"]), node("Mul", ["p", "sixth"], ["y"])],
    "hard sigmoid": [node("HardSigmoid", ["x"], ["g"], alpha=1 / 6), node("Mul", ["x", "g"], ["y"])],
}


@pytest.mark.parametrize("name", SWISHES)
def test_hard_swish_however_it_is_written(name: str) -> None:
    read = {item for one in SWISHES[name] for item in one.input}
    constants = {"zero": ZERO, "six": SIX, "three": THREE, "sixth": np.array(1 / 6, np.float32)}
    model = build(SWISHES[name], (2, 5), {key: array for key, array in constants.items() if key in read})
    assert operators(assert_same(model)) == ["HARD_SWISH"]


def test_what_only_looks_like_hard_swish_is_left() -> None:
    nodes = [SUM, GATE, node("Mul", ["s", "g"], ["p"]), node("Div", ["p", "six"], ["y"])]
    found = operators(assert_same(build(nodes, (2, 5), {"zero": ZERO, "six": SIX, "three": THREE})))
    assert "HARD_SWISH" not in found


def test_the_same_computation_is_done_once_and_the_useless_not_at_all() -> None:
    nodes = [
        node("Add", ["x", "k"], ["a"]),
        node("Add", ["x", "l"], ["b"]),
        node("Exp", ["a"], ["unused"]),
        node("Mul", ["a", "b"], ["y"]),
    ]
    lowered = assert_same(build(nodes, (2, 3), {"k": weights(3), "l": weights(3)}))
    assert operators(lowered) == ["ADD", "MUL"]


def test_two_outputs_that_are_the_same_stay_two() -> None:
    nodes = [node("Exp", ["x"], ["y"]), node("Exp", ["x"], ["z"])]
    assert [item.name for item in assert_same(build(nodes, (2, 3), outputs=("y", "z"))).outputs] == ["y", "z"]


def test_reshapes_in_a_row_are_one_and_back_again_none() -> None:
    shapes = {"a": np.array([3, 4]), "b": np.array([2, 6]), "c": np.array([2, 2, 3])}
    nodes = [node("Reshape", ["x", "a"], ["p"]), node("Reshape", ["p", "b"], ["q"])]
    assert operators(assert_same(build([*nodes, node("Exp", ["q"], ["y"])], (12,), shapes))) == ["RESHAPE", "EXP"]
    back = [*nodes, node("Reshape", ["q", "c"], ["r"]), node("Exp", ["r"], ["y"])]
    assert operators(assert_same(build(back, (2, 2, 3), shapes))) == ["EXP"]
