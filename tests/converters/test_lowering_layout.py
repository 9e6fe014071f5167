"""Layout assignment: what stays NHWC, what is moved, and that the numbers are right either way."""

from __future__ import annotations

import numpy as np
from onnx import helper

from converters.onnx_models import assert_same, build, operators, weights

node = helper.make_node
CONV = node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])
W = weights(4, 2, 3, 3)


def test_flatten_of_a_map_reorders_the_gemm_weights() -> None:
    nodes = [CONV, node("Flatten", ["c"], ["f"]), node("Gemm", ["f", "g"], ["y"], transB=1)]
    lowered = assert_same(build(nodes, (1, 2, 5, 6), {"w": W, "g": weights(3, 120)}))
    assert operators(lowered) == ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]


def test_reshape_of_a_map_reorders_weights_that_are_not_transposed() -> None:
    nodes = [CONV, node("Reshape", ["c", "s"], ["f"]), node("Gemm", ["f", "g"], ["y"])]
    constants = {"w": W, "s": np.array([1, -1]), "g": weights(120, 3)}
    assert operators(assert_same(build(nodes, (1, 2, 5, 6), constants))) == [
        "CONV_2D",
        "RESHAPE",
        "FULLY_CONNECTED",
    ]


def test_two_gemms_with_the_same_weights_are_reordered_once() -> None:
    nodes = [
        CONV,
        node("Flatten", ["c"], ["f"]),
        node("Gemm", ["f", "g"], ["one"]),
        node("Gemm", ["f", "g", "b"], ["two"]),
        node("Add", ["one", "two"], ["y"]),
    ]
    constants = {"w": W, "g": weights(120, 3), "b": weights(3)}
    assert "TRANSPOSE" not in operators(assert_same(build(nodes, (1, 2, 5, 6), constants), 1e-4))


def test_a_flatten_that_is_also_an_output_is_transposed() -> None:
    nodes = [CONV, node("Flatten", ["c"], ["f"]), node("Gemm", ["f", "g"], ["y"])]
    model = build(nodes, (1, 2, 5, 6), {"w": W, "g": weights(120, 3)}, outputs=("f", "y"))
    assert operators(assert_same(model)).count("TRANSPOSE") == 1


def test_weights_that_another_node_reads_are_not_reordered() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("Flatten", ["c"], ["f"]),
        node("Gemm", ["f", "g"], ["one"]),
        node("Flatten", ["x"], ["flat"]),
        node("Gemm", ["flat", "g"], ["two"]),
        node("Add", ["one", "two"], ["y"]),
    ]
    lowered = assert_same(build(nodes, (1, 2, 6, 10), {"w": weights(2, 2, 3, 3), "g": weights(120, 3)}), 1e-4)
    assert "TRANSPOSE" in operators(lowered)


def test_flatten_of_a_1x1_map_is_free() -> None:
    nodes = [CONV, node("GlobalAveragePool", ["c"], ["p"]), node("Flatten", ["p"], ["f"])]
    nodes += [node("Gemm", ["f", "g"], ["y"])]
    lowered = assert_same(build(nodes, (1, 2, 5, 5), {"w": W, "g": weights(4, 3)}))
    assert operators(lowered) == ["CONV_2D", "MEAN", "RESHAPE", "FULLY_CONNECTED"]


def test_a_map_may_leave_and_enter_channels_last() -> None:
    lowered = assert_same(
        build([node("Relu", ["x"], ["r"]), node("MaxPool", ["r"], ["y"], kernel_shape=[2, 2])], (1, 3, 5, 6))
    )
    assert lowered.inputs[0].permutation == (0, 2, 3, 1)
    assert lowered.outputs[0].permutation == (0, 2, 3, 1)
    assert lowered.outputs[0].shape == (1, 3, 4, 5)


def test_a_model_without_spatial_operators_keeps_its_layout() -> None:
    lowered = assert_same(build([node("Relu", ["x"], ["y"])], (1, 3, 5, 6)))
    assert lowered.inputs[0].permutation is None
    assert lowered.outputs[0].permutation is None


def test_residual_add_with_activation() -> None:
    nodes = [
        CONV,
        node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v"], ["d"], pads=[1, 1, 1, 1]),
        node("Add", ["d", "r"], ["a"]),
        node("Relu", ["a"], ["y"]),
    ]
    lowered = assert_same(build(nodes, (1, 2, 7, 7), {"w": W, "v": weights(4, 4, 3, 3, seed=1)}), 1e-4)
    assert operators(lowered) == ["CONV_2D", "CONV_2D", "ADD"]


def test_a_constant_operand_follows_its_map() -> None:
    for shape in ((4, 1, 1), (1, 4, 1, 1), (5, 6), (4, 5, 6), ()):
        nodes = [CONV, node("Add", ["c", "k"], ["s"]), node("Mul", ["k", "s"], ["y"])]
        lowered = assert_same(build(nodes, (1, 2, 5, 6), {"w": W, "k": weights(*shape)}))
        assert "TRANSPOSE" not in operators(lowered), shape


def test_operands_of_two_layouts_meet() -> None:
    """A map that was transposed by the model itself is added to one that is channels-last."""
    nodes = [CONV, node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]), node("Add", ["c", "t"], ["y"])]
    assert_same(build(nodes, (1, 2, 6, 6), {"w": weights(2, 2, 3, 3)}))


def test_a_vector_computed_elsewhere_is_added_to_a_map() -> None:
    """Its rank differs, so the map goes back to the source's layout."""
    nodes = [
        CONV,
        node("Flatten", ["x"], ["f"]),
        node("Gemm", ["f", "g"], ["v"]),
        node("Add", ["c", "v"], ["y"]),
    ]
    assert_same(build(nodes, (1, 2, 5, 6), {"w": W, "g": weights(60, 6)}))


def test_reshape_to_a_map_and_conv_after_it() -> None:
    nodes = [node("Reshape", ["x", "s"], ["r"]), node("Conv", ["r", "w"], ["y"])]
    lowered = assert_same(build(nodes, (1, 72), {"s": np.array([1, 2, 6, 6]), "w": W}))
    assert operators(lowered) == ["RESHAPE", "TRANSPOSE", "CONV_2D"]
