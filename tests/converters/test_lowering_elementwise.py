"""Elementwise operators where they are most easily wrong: huge values, every integer type, empty results."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from converters.node_checks import Array, check, in_litert, model_of
from converters.onnx_models import weights
from edgefleet_converters.tflite import lower

node = helper.make_node

EXTREMES: dict[str, list[float]] = {
    "Sinh": [0, 1e-3, -3, 20, -88, 89, -89, 100, -np.inf],
    "Cosh": [0, 1e-3, -3, 20, -88, 89, -89, 100, -np.inf],
    "Asinh": [0, 1e-3, -3, 1e4, -1e10, 1e30, -1e30, np.inf],
    "Acosh": [1, 1.0001, 3, 1e4, 1e10, 1e30, np.inf],
    "Atan": [0, 1, -1e30, np.inf, -np.inf],
    "Softplus": [0, 1, -1, 100, -100, 1e30, -1e30],
    "Mish": [0, 1, -1, 50, -50, 1e4],
    "Softsign": [0, 1, -1, 1e30, -1e30],
    "Erf": [0, 1e-3, 0.5, -2, 4, -10, np.inf, -np.inf],
    "Elu": [0, 1, -1, -100, 1e30, -1e30],
    "Selu": [0, 1, -1, -100, 1e30, -1e30],
    "Celu": [0, 1, -1, -100, 1e30, -1e30],
}


@pytest.mark.parametrize("operator", EXTREMES)
def test_far_from_zero(operator: str) -> None:
    check(node(operator, ["x"], ["y"]), {"x": np.array(EXTREMES[operator], np.float32)}, tolerance=2e-5)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "float16", "float32"])
def test_sign_and_magnitude(dtype: str) -> None:
    x = np.arange(0 if dtype.startswith("u") else -3, 4).astype(dtype)
    check(node("Sign", ["x"], ["y"]), {"x": x}, reference=True)
    check(node("Abs", ["x"], ["y"]), {"x": x}, reference=True)


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64", "int8", "uint8"])
@pytest.mark.parametrize("bounds", [(), ("low",), ("", "high"), ("low", "high"), ("high", "low")])
def test_clip(dtype: str, bounds: tuple[str, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 100, size=(5, 7)).astype(dtype)
    known: dict[str, Array] = {"low": np.array(20, dtype), "high": np.array(60, dtype)}
    given = {name: known[name] for name in bounds if name}
    check(node("Clip", ["x", *bounds], ["y"]), {"x": x}, given, opset=13)
    check(node("Clip", ["x", *bounds], ["y"]), {"x": x, **given}, opset=13)


def test_remainder_of_floats_has_the_sign_of_the_dividend() -> None:
    a, b = weights(50) * 9, weights(50, seed=1) * 3
    check(node("Mod", ["a", "b"], ["y"], fmod=1), {"a": a, "b": b})


@pytest.mark.parametrize("slope", [(1,), (4,), (3, 1), (2, 3, 4)])
def test_prelu_slopes_broadcast(slope: tuple[int, ...]) -> None:
    check(node("PRelu", ["x", "s"], ["y"]), {"x": weights(2, 3, 4)}, {"s": weights(*slope, seed=1)})


def test_an_activation_after_a_product_of_computed_matrices() -> None:
    nodes = [node("Gemm", ["a", "b", "c"], ["g"]), node("Relu", ["g"], ["y"])]
    check(nodes, {"a": weights(3, 5), "b": weights(5, 4, seed=1), "c": weights(3, 1, seed=2)})


def test_dropout_that_drops_nothing_is_gone() -> None:
    x = weights(3, 4)
    constants: dict[str, Array] = {"ratio": np.array(0, np.float32), "training": np.array(1, np.bool_)}
    nodes = [node("Dropout", ["x", "ratio", "training"], ["d", "m"]), node("Where", ["m", "d", "x"], ["y"])]
    made = lower(model_of(nodes, {"x": x}, constants, 18), keep_layout=True)
    np.testing.assert_array_equal(in_litert(made.content, {"x": x})["y"], x)


def test_a_result_without_elements() -> None:
    nodes = [node("Slice", ["x", "zero", "zero"], ["y"])]
    check(nodes, {"x": weights(3, 4)}, {"zero": np.array([0])})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_broadcasting_along_an_axis_before_opset_7(axis: int) -> None:
    x = weights(2, 3, 4, 5)
    b = weights(*x.shape[axis : axis + 2], seed=1)
    for after_conv in (False, True):
        nodes = [node("Sub", ["c" if after_conv else "x", "b"], ["y"], broadcast=1, axis=axis)]
        constants: dict[str, Array] = {"b": b}
        expected = x
        if after_conv:
            nodes.insert(0, node("Conv", ["x", "w"], ["c"]))
            constants["w"] = np.eye(3, dtype=np.float32)[:, :, None, None] * np.float32(2)
            expected = 2 * x
        made = lower(model_of(nodes, {"x": x}, constants, 6), keep_layout=True)
        wanted = expected - b.reshape(*b.shape, *[1] * (2 - axis))
        np.testing.assert_allclose(in_litert(made.content, {"x": x})["y"], wanted, rtol=1e-5, atol=1e-5)
