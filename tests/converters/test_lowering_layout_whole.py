"""Layout assignment over whole graphs: what loses its transposes, what keeps its layout; sizes never matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from conformance.verdicts import Verdict
from conformance_graphs.judge import Graph, judge
from conformance_graphs.networks import NETWORKS
from conformance_graphs.random_graphs import random_graph
from conformance_graphs.real import real_graphs
from conformance_graphs.sequences import SEQUENCES
from conformance_graphs.small import fewest_transposes, small_graph
from converters.onnx_models import assert_same, build, operators, weights
from edgefleet_converters.tflite import lower
from edgefleet_converters.tflite.passes.layout_choice import Table, choose
from edgefleet_converters.tflite.passes.layout_reshape import carried

node = helper.make_node
CUBE = (1, 3, 3, 3)
CONV = node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])
W = weights(3, 3, 3, 3)
AXIS = np.array([1], np.int64)


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    found = judge(Graph("", "", partial(random_graph, seed)))
    assert found.verdict is Verdict.PASSED, found.reason


@pytest.mark.parametrize("seed", range(40))
def test_small_graphs_have_as_few_transposes_as_can_be(seed: int) -> None:
    found = judge(Graph("", "", partial(small_graph, seed), 1, fewest_transposes))
    assert found.verdict is Verdict.PASSED, found.reason


@pytest.mark.parametrize("name", [*NETWORKS, *SEQUENCES])
def test_networks(name: str) -> None:
    graph = next(graph for graph in real_graphs() if graph.name == name)
    found = judge(graph)
    assert found.verdict is Verdict.PASSED, found.reason


def cube(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    return build([CONV, *nodes], CUBE, {"w": W, **constants}, opset=18)


REWRITTEN: dict[str, Callable[[], onnx.ModelProto]] = {
    **{
        f"concat {axis}": partial(cube, node("Concat", ["c", "x", "k"], ["y"], axis=axis), k=weights(*CUBE))
        for axis in (1, 2, -1)
    },
    **{
        f"reduce {axes} {keep}": partial(
            cube, node("ReduceMean", ["c", "a"], ["y"], keepdims=keep), a=np.array(axes, np.int64)
        )
        for axes in ([1], [2, 3], [-3, -1])
        for keep in (1, 0)
    },
    "argmax": partial(cube, node("ArgMax", ["c"], ["y"], axis=1, keepdims=1)),
    "softmax 1": partial(cube, node("Softmax", ["c"], ["y"], axis=1)),
    "slice": partial(cube, node("Slice", ["c", "s", "e", "a"], ["y"]), s=AXIS, e=AXIS * 3, a=AXIS),
    "slice first axes": partial(
        cube, node("Slice", ["c", "s", "e"], ["y"]), s=np.array([0, 1], np.int64), e=np.array([1, 3], np.int64)
    ),
    "pad": partial(cube, node("Pad", ["c", "p"], ["y"]), p=np.array([0, 1, 0, 2, 0, 0, 1, 0], np.int64)),
    "pad some axes": partial(
        cube, node("Pad", ["c", "p", "", "a"], ["y"]), p=np.array([1, 2], np.int64), a=np.array([-3], np.int64)
    ),
    "gather": partial(cube, node("Gather", ["c", "i"], ["y"], axis=1), i=np.array([2, 0], np.int64)),
    "split": partial(
        cube, node("Split", ["c", "s"], ["p", "q"], axis=1), node("Relu", ["q"], ["y"]), s=np.array([1, 2], np.int64)
    ),
    "tile": partial(cube, node("Tile", ["c", "r"], ["y"]), r=np.array([1, 2, 1, 3], np.int64)),
    "cumsum": partial(cube, node("CumSum", ["c", "a"], ["y"]), a=np.array(1, np.int64)),
    "computed operand": partial(
        cube,
        node("ReduceMean", ["c", "a"], ["m"], keepdims=0),
        node("Unsqueeze", ["m", "u"], ["n"]),
        node("Mul", ["c", "n"], ["y"]),
        a=np.array([0, 2, 3], np.int64),
        u=np.array([1, 2], np.int64),
    ),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_axes_are_renumbered_when_all_are_of_one_length(name: str) -> None:
    lowered = assert_same(REWRITTEN[name]())
    assert "TRANSPOSE" not in operators(lowered), operators(lowered)


def test_transposes_of_the_model_cancel_against_ours() -> None:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("Transpose", ["c"], ["u"], perm=[0, 2, 3, 1]),
        node("Add", ["u", "k"], ["y"]),
    ]
    lowered = assert_same(build(nodes, CUBE, {"w": W, "k": weights(3)}))
    assert operators(lowered) == ["CONV_2D", "ADD"] or operators(lowered) == ["CONV_2D"]
    assert lowered.inputs[0].permutation is None
    assert lowered.outputs[0].permutation is None


def masked(shape: Sequence[int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [CONV, node("Add", ["m", "k"], ["y"])],
        "two inputs",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name in ("x", "m")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name in ("c", "y")],
        [onnx.numpy_helper.from_array(array, name) for name, array in {"w": W, "k": weights(1)}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_only_the_border_that_saves_a_transpose_is_permuted() -> None:
    lowered = lower(masked(CUBE))
    assert [item.permutation for item in lowered.inputs] == [(0, 2, 3, 1), None]
    assert [item.permutation for item in lowered.outputs] == [(0, 2, 3, 1), None]
    assert "TRANSPOSE" not in operators(lowered)
    kept = lower(masked(CUBE), keep_layout=True)
    assert operators(kept).count("TRANSPOSE") == 2
    assert all(item.permutation is None for item in (*kept.inputs, *kept.outputs))


def test_a_layout_is_carried_through_reshapes_by_groups_of_axes() -> None:
    assert carried((1, 3, 2, 2), (0, 2, 3, 1), (1, 3, 4)) == (0, 2, 1)
    assert carried((1, 4, 3, 3), (0, 2, 3, 1), (1, 2, 2, 3, 3)) == (0, 3, 4, 1, 2)
    assert carried((1, 3, 3, 3), (0, 2, 3, 1), (1, 27)) is None
    assert carried((1, 5, 1, 1), (0, 2, 3, 1), (1, 5)) == (0, 1)
    assert carried((2, 3, 4), (1, 0, 2), (3, 2, 4)) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_cheapest_choice_is_found(seed: int) -> None:
    random = np.random.default_rng(seed)
    options = [int(count) for count in random.integers(1, 4, 7)]
    pairs = [tuple(int(item) for item in random.permutation(7)[: random.integers(1, 4)]) for _ in range(8)]
    tables = [Table(pair, random.integers(0, 9, [options[item] for item in pair]).astype(float)) for pair in pairs]

    def cost(choice: Sequence[int]) -> float:
        return float(sum(table.costs[tuple(choice[item] for item in table.variables)] for table in tables))

    assert cost(choose(options, tables)) == min(cost(choice) for choice in np.ndindex(*options))
