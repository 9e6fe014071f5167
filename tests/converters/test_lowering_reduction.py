"""Reductions, positions of extremes, running sums and products, and the softmax family, in every form of the axes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import helper

from converters.node_checks import Array, check, model_of
from converters.onnx_models import weights
from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import lower

node = helper.make_node

EXACT = ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1")
FLOATS = (*EXACT, "ReduceMean", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
SHAPES: list[tuple[tuple[int, ...], list[int] | None]] = [
    ((4,), None),
    ((2, 3, 4), None),
    ((2, 3, 4), []),
    ((2, 3, 4), [1]),
    ((2, 3, 4), [-1, 0]),
    ((2, 1, 3, 2, 2), [1, 3]),
    # More groups of axes than the kernels have ranks.
    ((2, 2, 3, 2, 2, 2, 2), [1, 3, 5]),
    ((2, 3, 1, 2, 2, 3, 2, 2), [0, 2, 4, 6]),
]


def _check_reduction(operator: str, x: Array, axes: list[int] | None) -> None:
    """As an input from opset 18 (13 for ReduceSum) on and as an attribute before, with and without kept axes."""
    for keep in (0, 1):
        given = {} if axes is None else {"axes": np.array(axes, np.int64)}
        for noop in (0, 1) if not axes else (0,):
            written = node(operator, ["x", *given], ["y"], keepdims=keep, noop_with_empty_axes=noop)
            check(written, {"x": x}, given, reference=True, tolerance=1e-4)
        if axes:
            check(node(operator, ["x"], ["y"], keepdims=keep, axes=axes), {"x": x}, opset=11, tolerance=1e-4)


@pytest.mark.parametrize("operator", FLOATS)
def test_reduction(operator: str) -> None:
    for shape, axes in SHAPES:
        x = weights(*shape)
        _check_reduction(operator, np.abs(x) + np.float32(0.1) if operator == "ReduceLogSum" else x, axes)


@pytest.mark.parametrize("operator", EXACT)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_reduction_of_integers(operator: str, dtype: str) -> None:
    random = np.random.default_rng(0)
    bound = 1 << 40 if dtype == "int64" else 1 << 20
    for shape, axes in SHAPES[:6]:
        x = random.integers(-bound, bound, size=shape).astype(dtype)
        written = node(operator, ["x", "axes"] if axes else ["x"], ["y"])
        check(written, {"x": x}, {"axes": np.array(axes, np.int64)} if axes else {}, reference=True)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8"])
def test_extremes_of_small_types(dtype: str) -> None:
    x = np.random.default_rng(1).integers(0, 100, size=(3, 4, 5)).astype(dtype)
    for operator in ("ReduceMax", "ReduceMin"):
        check(node(operator, ["x", "axes"], ["y"]), {"x": x}, {"axes": np.array([1])}, opset=20, reference=True)


def test_roots_and_logarithms_of_integers_are_refused() -> None:
    for operator in ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp"):
        with pytest.raises(UnsupportedError):
            lower(model_of([node(operator, ["x"], ["y"])], {"x": np.arange(4, dtype=np.int32)}, {}, 18))


def test_log_sum_exp_neither_overflows_nor_makes_nan() -> None:
    x = np.array([[1e30, 1, 2], [-np.inf, -np.inf, -np.inf], [100, 100, 100], [np.inf, 0, 1]], np.float32)
    found = check(node("ReduceLogSumExp", ["x"], ["y"], axes=[1], keepdims=0), {"x": x}, opset=13)
    np.testing.assert_allclose(found["y"], [1e30, -np.inf, 100 + np.log(3), np.inf], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64", "uint8", "int16", "uint32"])
@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
def test_position_of_an_extreme(operator: str, dtype: str) -> None:
    # Few values, so that there are equals to choose between.
    x = np.random.default_rng(2).integers(0, 3, size=(4, 5, 6)).astype(dtype)
    for axis, keep, last in itertools.product((0, -1), (0, 1), (0, 1)):
        written = node(operator, ["x"], ["y"], axis=axis, keepdims=keep, select_last_index=last)
        check(written, {"x": x}, reference=True)


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64"])
def test_running_sum_and_product(dtype: str) -> None:
    x = np.random.default_rng(3).integers(-3, 4, size=(3, 7, 2)).astype(dtype)
    for exclusive, reverse, axis in itertools.product((0, 1), (0, 1), (1, -1)):
        flags = {"exclusive": exclusive, "reverse": reverse}
        where = {"axis": np.array(axis)}
        check(node("CumSum", ["x", "axis"], ["y"], **flags), {"x": x}, where)
        check(node("CumProd", ["x", "axis"], ["y"], **flags), {"x": x}, where, opset=26, reference=True)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("shape", [(6,), (3, 4, 5), (2, 3, 4, 5), (1, 2, 3, 2, 2, 2, 2)])
def test_softmax_family(operator: str, shape: tuple[int, ...]) -> None:
    """Before opset 13 they run over everything from the axis on."""
    x = weights(*shape) * 5
    if operator != "LogSoftmax":  # whose reference takes the logarithm of what has become 0
        check(node(operator, ["x"], ["y"]), {"x": x.astype(np.float16)}, reference=True, tolerance=5e-3)
    for opset in (11, 13):
        for axis in range(-len(shape), len(shape)):
            check(node(operator, ["x"], ["y"], axis=axis), {"x": x}, opset=opset)
        if len(shape) > 1:
            check(node(operator, ["x"], ["y"]), {"x": x}, opset=opset)


def test_softmax_of_what_was_widened_for_it() -> None:
    """As attention in a higher softmax precision writes it; float64 of its own is refused."""
    double, single = helper.np_dtype_to_tensor_dtype(np.dtype("f8")), helper.np_dtype_to_tensor_dtype(np.dtype("f4"))
    nodes = [
        node("Cast", ["x"], ["wide"], to=double),
        node("Softmax", ["wide"], ["soft"], axis=1),
        node("Cast", ["soft"], ["y"], to=single),
    ]
    check(nodes, {"x": weights(2, 3, 4)})
    with pytest.raises(UnsupportedError, match="float64"):
        lower(model_of([node("Softmax", ["x"], ["y"])], {"x": weights(2, 3).astype(np.float64)}, {}, 18))


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_softmax_family_after_a_convolution(operator: str, opset: int, axis: int) -> None:
    """Where the data lie channels-last, the axes are still those of the source."""
    nodes = [node("Conv", ["x", "w"], ["c"]), node(operator, ["c"], ["s"], axis=axis), node("Conv", ["s", "v"], ["y"])]
    constants = {"w": weights(4, 3, 3, 3), "v": weights(5, 4, 1, 1)}
    x: dict[str, Array] = {"x": weights(1, 3, 6, 7)}
    check(nodes, x, constants, opset=opset, tolerance=1e-4)
