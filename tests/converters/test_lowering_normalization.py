"""The normalisations against ONNX Runtime or numpy, at the values that go wrong most easily."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from converters.one_node import OneNode, assert_equal, in_litert, in_onnxruntime, in_reference
from converters.onnx_models import assert_same, build, operators, weights
from edgefleet.errors import UnsupportedError


@pytest.mark.parametrize("axis", [-1, 1, -3])
@pytest.mark.parametrize("constant", [(), (1, 2)])
def test_layer_normalization_far_from_zero(axis: int, constant: tuple[int, ...]) -> None:
    shape = (2, 3, 4)[axis:]
    inputs = (weights(2, 3, 4) + 100, weights(*shape, seed=1), weights(*shape, seed=2))
    case = OneNode("LayerNormalization", inputs, ("y", "mean", "deviation"), 17, constant, {"axis": axis})
    assert_equal(case, in_onnxruntime(case), tolerance=2e-4)


def test_layer_normalization_in_half_precision_does_not_overflow() -> None:
    inputs = tuple(array.astype(np.float16) for array in (weights(4, 64) * 300, weights(64, seed=1)))
    case = OneNode("LayerNormalization", inputs, opset=17, constant=(1,))
    x, scale = (array.astype(np.float64) for array in inputs)
    unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    assert_equal(case, {"y": (unit * scale).astype(np.float16)}, tolerance=2e-3)


def test_layer_normalization_costs_nine_operators() -> None:
    case = OneNode("LayerNormalization", (weights(4, 8), weights(8), weights(8)), opset=17, constant=(1, 2))
    names = operators(in_litert(case)[0])
    assert names == ["MEAN", "SUB", "SQUARED_DIFFERENCE", "MEAN", "ADD", "RSQRT", "MUL", "MUL", "ADD"]
    plain = replace(case, inputs=(weights(4, 8), np.ones(8, np.float32)), constant=(1,))
    assert operators(in_litert(plain)[0]) == names[:7]


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization_of_both_meanings(opset: int) -> None:
    each = 3 if opset == 18 else 6
    inputs = (weights(2, 6, 4, 5), weights(each, seed=1), weights(each, seed=2))
    case = OneNode("GroupNormalization", inputs, opset=opset, constant=(1, 2), attributes={"num_groups": 3})
    x, scale, bias = (np.asarray(array, np.float64) for array in inputs)
    groups = x.reshape(2, 3, -1)
    unit = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    repeats = 2 if opset == 18 else 1
    gain, offset = (np.repeat(array, repeats)[:, None, None] for array in (scale, bias))
    assert_equal(case, {"y": (unit.reshape(x.shape) * gain + offset).astype(np.float32)})


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 4, 5), (1, 2, 3, 4, 5)])
def test_instance_normalization_of_every_rank(shape: tuple[int, ...]) -> None:
    inputs = (weights(*shape), weights(shape[1], seed=1), weights(shape[1], seed=2))
    case = OneNode("InstanceNormalization", inputs, constant=(1, 2))
    assert_equal(case, in_onnxruntime(case))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_norms_of_short_and_empty_vectors(p: int, axis: int) -> None:
    x = weights(3, 4, 2)
    x[:, 0], x[0], x[:, :, 1] = x[:, 0] * 1e-12, 0, 0
    norm = (
        np.abs(x).sum(axis, keepdims=True) if p == 1 else np.sqrt((x.astype(np.float64) ** 2).sum(axis, keepdims=True))
    )
    expected = np.where(norm == 0, 0, x / np.where(norm == 0, 1, norm)).astype(np.float32)
    assert_equal(OneNode("LpNormalization", (x,), attributes={"p": p, "axis": axis}), {"y": expected})


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", [(2, 7, 4, 5), (1, 7, 6)])
def test_local_response_normalization(shape: tuple[int, ...], size: int) -> None:
    x = weights(*shape) * 3
    case = OneNode("LRN", (x,), attributes={"size": size, "alpha": 0.5, "beta": 0.6, "bias": 1.5})
    total = np.stack([(x[:, max(0, c - size // 2) : c + size // 2 + 1] ** 2).sum(1) for c in range(7)], 1)
    assert_equal(case, {"y": (x / (1.5 + 0.5 / size * total) ** 0.6).astype(np.float32)})


def test_an_even_number_of_neighbours_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="size=4"):
        in_litert(OneNode("LRN", (weights(1, 5, 3, 3),), attributes={"size": 4}))


@pytest.mark.parametrize("training", [0, 1])
def test_batch_normalization_with_computed_parameters(training: int) -> None:
    parameters = [weights(3, seed=seed) for seed in (1, 2, 3)]
    inputs = (weights(2, 3, 4, 5), *parameters, np.abs(weights(3, seed=4)))
    outputs = ("y", "mean", "variance") if training else ("y",)
    case = OneNode("BatchNormalization", inputs, outputs, 15, attributes={"training_mode": training, "momentum": 0.7})
    assert_equal(case, in_reference(case))


def test_normalization_between_convolutions() -> None:
    nodes = [
        OneNode("Conv", (weights(1), weights(1)), ("c",)).model().graph.node[0],
        OneNode("LRN", (weights(1),), attributes={"size": 3, "alpha": 0.5}).model().graph.node[0],
    ]
    nodes[0].input[:], nodes[1].input[:] = ["x", "w"], ["c"]
    assert_same(build(nodes, (1, 3, 8, 8), {"w": weights(4, 3, 3, 3)}))
