"""What only looks like a form of attention that is rewritten, and what int8 has instead of summed masks.

The forms themselves are in the tests of blocks.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper

from conformance_graphs.building import Building
from converters.attention_graphs import ROWS_LAST, SWAPPED, Sizes, finished, language, masked, number, shared
from converters.onnx_models import assert_same, build, operators, weights
from edgefleet_converters.tflite import lower
from edgefleet_converters.tflite.graph import Graph, Node, Value
from edgefleet_converters.tflite.passes.expansions import sink_expansions
from edgefleet_converters.tflite.passes.value_products import turn_values

WIDTH = 24


def cut_projection(case: str) -> onnx.ModelProto:
    """A projection that is cut up, but for one thing, which the case names."""
    b = Building(1)
    data = b.input(2, 5, 16)
    whole = b.linear(data, WIDTH)
    if case == "few columns":
        return b.model(*b.nodes_of("Split", [whole, b.integers(20, 4)], 2, axis=-1))
    if case == "overlap":
        cuts = [b.node("Slice", whole, b.integers(at), b.integers(at + 16), b.integers(2)) for at in (0, 8)]
        return b.model(*cuts)
    if case == "other axis":
        return b.model(*b.nodes_of("Split", [whole, b.integers(2, 3)], 2, axis=1))
    if case == "across axes":
        # What is cut runs along two axes before the reshape.
        flat = b.node("Reshape", whole, b.integers(2, 120))
        return b.model(*b.nodes_of("Split", [flat, b.integers(40, 80)], 2, axis=1))
    parts = b.nodes_of("Split", [whole, b.integers(8, 16)], 2, axis=-1)
    return b.model(*parts, b.node("Abs", whole) if case == "also read" else whole)


@pytest.mark.parametrize("case", ["few columns", "overlap", "other axis", "across axes", "also read", "an output"])
def test_projections_that_stay_whole(case: str) -> None:
    found = Counter(operators(assert_same(cut_projection(case))))
    assert found["FULLY_CONNECTED"] == 1
    assert found["SLICE"] + found["STRIDED_SLICE"] == 2


def test_weights_of_two_projections_are_not_cut() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Split", ["a", "sizes"], ["c", "d"], axis=-1),
        helper.make_node("MatMul", ["d", "w"], ["e"]),
        helper.make_node("Concat", ["c", "e"], ["y"], axis=-1),
    ]
    model = build(nodes, (3, 8), {"w": weights(8, 16), "sizes": np.array([8, 8])})
    assert Counter(operators(assert_same(model)))["FULLY_CONNECTED"] == 2


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm"])
def test_every_product_is_cut_by_its_own_columns(operator: str) -> None:
    constants = {"b": weights(WIDTH, seed=1), "sizes": np.array([8, 16])}
    if operator == "Gemm":
        node = helper.make_node("Gemm", ["x", "w", "b"], ["a"], alpha=0.5, beta=2.0, transB=1)
        shape: tuple[int, ...] = (3, 8)
        constants["w"] = weights(WIDTH, 8)
    else:
        node = helper.make_node(operator, ["x", "w", "b"], ["a"], strides=[2, 2])
        shape = (1, 4, 6, 6)
        constants["w"] = weights(*((WIDTH, 4) if operator == "Conv" else (4, WIDTH)), 3, 3)
    nodes = [node, helper.make_node("Split", ["a", "sizes"], ["y", "z"], axis=1)]
    found = operators(assert_same(build(nodes, shape, constants, ("y", "z")), 1e-4))
    assert not {"SLICE", "STRIDED_SLICE"} & set(found)


def test_parts_are_cut_again() -> None:
    b = Building(2)
    data = b.input(2, 5, 16)
    first, rest = b.nodes_of("Split", [b.linear(data, WIDTH), b.integers(8, 16)], 2, axis=-1)
    found = operators(assert_same(b.model(first, *b.nodes_of("Split", [rest, b.integers(8, 8)], 2, axis=-1))))
    assert found == ["FULLY_CONNECTED"] * 3


@pytest.mark.parametrize("case", ["other number", "mask and mask", "mask at run time"])
def test_rows_that_may_be_hidden_whole_are_still_set_right(case: str) -> None:
    s = Sizes(batch=1, length=5)
    b = Building(3)
    x = b.input(s.batch, s.length, s.width)
    query = b.node("Transpose", b.node("Reshape", x, b.integers(s.batch, s.length, s.heads, s.size)), perm=ROWS_LAST)
    scores = b.node("MatMul", query, b.node("Transpose", query, perm=SWAPPED))
    lower_half = np.where(np.tril(np.ones((s.length, s.length), np.bool_)), 0, -np.inf).astype(np.float32)
    if case == "mask and mask":
        scores = b.node("Add", b.node("Add", scores, b.constant(lower_half)), b.constant(lower_half[::-1].copy()))
    elif case == "other number":
        scores = b.node("Add", scores, b.constant(lower_half[::-1, ::-1] + lower_half.T))
    else:
        scores = masked(b, x, scores, "expanded", -np.inf, s)
    shares = b.node("Softmax", scores, axis=-1)
    kept = b.node("Where", b.node("IsNaN", shares), number(b, 0.5 if case == "other number" else 0), shares)
    assert "NOT_EQUAL" in operators(assert_same(finished(b, x, kept, query, s)))


@pytest.mark.parametrize("fill", [-1e4, -1e9, -np.inf])
def test_constant_masks_choose_for_int8(fill: float) -> None:
    for model in (language("causal", Sizes(), fill=fill), shared(Sizes(heads=6, groups=2))):
        found = Counter(operators(lower(model, int8=True)))
        assert (found["SELECT_V2"], found["ADD"]) == (1, 1)


@pytest.mark.parametrize("hides", [False, True])
def test_a_bias_of_scores_is_added_for_int8_too(hides: bool) -> None:
    b = Building(4)
    x = b.input(1, 4, 4)
    bias = weights(4, 4) - np.triu(np.full((4, 4), 1e9 * hides, np.float32), 1)
    biased = b.node("Add", b.node("MatMul", x, b.node("Transpose", x, perm=[0, 2, 1])), b.constant(bias))
    model = b.model(b.node("MatMul", b.node("Softmax", biased, axis=-1), x))
    assert "SELECT_V2" not in operators(lower(model, int8=True))


@pytest.mark.parametrize("case", ["one query for all", "heads across entries", "rows repeated"])
def test_repetition_that_is_not_of_heads_stays(case: str) -> None:
    b = Building(6)
    x = b.input(4, 3, 5, 4)
    wide = b.node("Expand", b.node("Unsqueeze", x, b.integers(2)), b.integers(4, 3, 2, 5, 4))
    if case == "one query for all":
        right, left = b.node("Reshape", wide, b.integers(4, 6, 5, 4)), b.normal(4, 1, 7, 5)
    elif case == "heads across entries":
        right, left = b.node("Reshape", wide, b.integers(8, 3, 5, 4)), b.normal(8, 3, 7, 5)
    else:
        right, left = b.node("Reshape", wide, b.integers(4, 3, 10, 4)), b.normal(4, 3, 7, 10)
    found = operators(assert_same(b.model(b.node("MatMul", b.node("Abs", left), right))))
    assert "BROADCAST_TO" in found


def test_an_expansion_that_something_else_reads_stays_for_it() -> None:
    nodes = [
        helper.make_node("Expand", ["x", "wide"], ["e"]),
        helper.make_node("Add", ["e", "c"], ["a"]),
        helper.make_node("Mul", ["a", "d"], ["y"]),
        helper.make_node("Neg", ["a"], ["z"]),
    ]
    constants = {"wide": np.array([3, 4, 5]), "c": weights(5), "d": weights(3, 4, 5)}
    found = operators(assert_same(build(nodes, (1, 5), constants, ("y", "z"))))
    assert found.count("BROADCAST_TO") == 1


def test_without_an_expansion_a_graph_stays_as_it_is() -> None:
    values = {name: Value(name, "float32", (2,)) for name in "xy"}
    graph = Graph((Node("n", "Neg", ("x",), ("y",)),), values, {}, ("x",), ("y",), ("y",))
    assert sink_expansions(graph) is graph
    assert turn_values(graph) is graph


def test_two_products_by_turned_shares_in_a_row() -> None:
    """The transpose between them can be turned for one only."""
    b = Building(5)
    x = b.input(2, 6, 4)
    turned = b.node("Transpose", x, perm=[0, 2, 1])
    pairs = [b.node("MatMul", x, turned), b.node("MatMul", turned, x)]
    shares = [b.node("Transpose", b.node("Softmax", pair, axis=-1), perm=[0, 2, 1]) for pair in pairs]
    value = b.node("Transpose", b.node("MatMul", x, pairs[1]), perm=[0, 2, 1])
    for share in shares:
        value = b.node("Transpose", b.node("MatMul", value, share), perm=[0, 2, 1])
    assert_same(b.model(value))
