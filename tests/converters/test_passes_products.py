"""Matrix products: what becomes part of their weights, of their bias, and of the way that they read an operand."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import pytest
from onnx import helper

from conformance_graphs.real import real_graphs
from converters.onnx_models import assert_same, build, operators, weights
from edgefleet_converters.tflite import lower

node = helper.make_node
BIASED = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["y"])]


@pytest.mark.parametrize("shape", [(3, 6), (2, 3, 6), (2, 3, 2, 6)], ids=str)
def test_a_bias_becomes_part_of_the_product(shape: tuple[int, ...]) -> None:
    constants = {"w": weights(6, 5), "b": weights(5)}
    assert operators(assert_same(build(BIASED, shape, constants))) == ["FULLY_CONNECTED"]


def test_a_bias_that_no_kernel_takes_is_added() -> None:
    rank_5 = build(BIASED, (2, 3, 2, 2, 6), {"w": weights(6, 5), "b": weights(5)})
    by_row = build(BIASED, (3, 2, 6), {"w": weights(6, 5), "b": weights(2, 5)})
    assert operators(assert_same(rank_5)) == ["RESHAPE", "FULLY_CONNECTED", "RESHAPE", "ADD"]
    assert operators(assert_same(by_row)) == ["FULLY_CONNECTED", "ADD"]


def test_a_chain_of_maps_becomes_part_of_the_product_after_it() -> None:
    nodes = [
        node("Mul", ["x", "s"], ["a"]),
        node("Add", ["a", "b"], ["c"]),
        node("Sub", ["b", "c"], ["d"]),
        node("MatMul", ["d", "w"], ["y"]),
    ]
    model = build(nodes, (2, 3, 6), {"s": weights(6), "b": weights(6, seed=1), "w": weights(6, 4)})
    assert operators(assert_same(model)) == ["FULLY_CONNECTED"]


def attended(*more: onnx.NodeProto) -> onnx.ModelProto:
    """A LayerNormalization that three products read, and anything else."""
    nodes = [node("LayerNormalization", ["x", "s", "b"], ["n"])]
    for name in "qkv":
        nodes += [node("MatMul", ["n", f"w{name}"], [f"m{name}"]), node("Add", [f"m{name}", f"b{name}"], [name])]
    nodes += [node("Mul", ["q", "k"], ["qk"]), node("Sub", ["qk", "v"], ["z"]), *more]
    constants = {"s": weights(6), "b": weights(6, seed=1)}
    for seed, name in enumerate("qkv"):
        constants |= {f"w{name}": weights(6, 6, seed=seed), f"b{name}": weights(6, seed=seed)}
    return build(nodes, (2, 3, 6), constants, ["y"] if more else ["z"])


def test_a_map_that_several_products_read_becomes_part_of_all() -> None:
    unit = ["MEAN", "SUB", "SQUARED_DIFFERENCE", "MEAN", "ADD", "RSQRT", "MUL"]
    assert operators(assert_same(attended())) == [*unit, *["FULLY_CONNECTED"] * 3, "MUL", "SUB"]


def test_a_map_that_something_else_reads_too_stays() -> None:
    found = operators(assert_same(attended(node("Add", ["z", "n"], ["y"]))))
    assert (found.count("MUL"), found.count("ADD")) == (3, 3)


def test_a_map_before_a_padded_convolution_stays_for_all() -> None:
    nodes = [
        node("Add", ["x", "b"], ["a"]),
        node("Conv", ["a", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("Conv", ["a", "v"], ["d"]),
        node("Add", ["c", "d"], ["y"]),
    ]
    constants = {"b": weights(4, 1, 1), "w": weights(4, 4, 3, 3), "v": weights(4, 4, 1, 1)}
    assert operators(assert_same(build(nodes, (1, 4, 5, 5), constants))) == ["ADD", "CONV_2D", "CONV_2D", "ADD"]


KEYS = [node("MatMul", ["x", "wk"], ["k"]), node("MatMul", ["x", "wq"], ["q"])]


def scores(shape: Sequence[int], permutation: Sequence[int], *more: onnx.NodeProto) -> onnx.ModelProto:
    nodes = [*KEYS, node("Transpose", ["k"], ["t"], perm=permutation), node("MatMul", ["q", "t"], ["s"]), *more]
    constants = {"wk": weights(6, 5), "wq": weights(6, 5, seed=2)}
    return build(nodes, shape, constants, ["y"] if more else ["s"])


@pytest.mark.parametrize(
    ("shape", "permutation"), [((4, 6), [1, 0]), ((2, 4, 6), [0, 2, 1]), ((2, 3, 4, 6), [0, 1, 3, 2])], ids=str
)
def test_a_right_operand_is_read_transposed(shape: tuple[int, ...], permutation: list[int]) -> None:
    found = operators(assert_same(scores(shape, permutation)))
    assert found == ["FULLY_CONNECTED", "FULLY_CONNECTED", "BATCH_MATMUL"]


def test_an_activation_stays_with_a_product_that_reads_transposed() -> None:
    found = operators(assert_same(scores((2, 4, 6), [0, 2, 1], node("Relu", ["s"], ["y"]))))
    assert found == ["FULLY_CONNECTED", "FULLY_CONNECTED", "BATCH_MATMUL", "RELU"]


def test_a_transpose_that_is_more_or_is_read_elsewhere_stays() -> None:
    other = [node("ReduceMax", ["t"], ["r"], keepdims=0), node("Add", ["s", "r"], ["y"])]
    assert operators(assert_same(scores((2, 4, 6), [0, 2, 1], *other))).count("TRANSPOSE") <= 1
    heads = build(
        [node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]), node("MatMul", ["q", "t"], ["y"])],
        (2, 3, 4, 6),
        {"q": weights(4, 7, 6)},
    )
    assert "BATCH_MATMUL" in operators(assert_same(heads))
    left = build([node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), node("MatMul", ["t", "x"], ["y"])], (2, 4, 6))
    assert operators(assert_same(left)) == ["TRANSPOSE", "BATCH_MATMUL"]
    wide = scores((2, 2, 3, 4, 6), [0, 1, 2, 4, 3])
    assert operators(assert_same(wide)).count("TRANSPOSE") == 1


@pytest.mark.parametrize(("name", "most"), [("ViT-tiny", 85), ("BERT encoder", 98)])
def test_transformers_have_no_more_operators_than_this(name: str, most: int) -> None:
    model = next(graph for graph in real_graphs() if graph.name == name).make()
    assert len(operators(lower(model))) <= most
