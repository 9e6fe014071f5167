"""MatMul, Gemm, Einsum and Det on every form of operand, against ONNX Runtime or ONNX's reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import helper

from converters.node_checks import Array, check, model_of
from converters.onnx_models import operators, weights
from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import lower

node = helper.make_node


def integers(*shape: int, dtype: str = "int32", bound: int = 9, seed: int = 0) -> Array:
    """Seeded whole numbers below a bound, of either sign where the type has one."""
    low = 0 if dtype.startswith("u") else -bound
    return np.random.default_rng(seed).integers(low, bound, size=shape).astype(dtype)


PRODUCTS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3,), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((5, 2, 3), (3, 4)),
    ((2, 3, 5, 2, 3), (3, 4)),
    ((5, 2, 3), (3,)),
    ((3,), (5, 3, 4)),
    ((2, 3), (5, 3, 4)),
    ((1, 2, 3), (5, 3, 4)),
    ((6, 1, 2, 3), (5, 3, 4)),
    ((7, 6, 1, 2, 3), (5, 3, 4)),
    ((2, 1, 2, 2, 2, 2, 3), (1, 2, 1, 1, 1, 3, 4)),
]


@pytest.mark.parametrize("constant", [(), ("a",), ("b",)])
@pytest.mark.parametrize("shapes", PRODUCTS)
def test_matmul(shapes: tuple[tuple[int, ...], tuple[int, ...]], constant: tuple[str, ...]) -> None:
    operands = {"a": weights(*shapes[0]), "b": weights(*shapes[1], seed=1)}
    fed = {name: array for name, array in operands.items() if name not in constant}
    check(node("MatMul", ["a", "b"], ["y"]), fed, {name: operands[name] for name in constant})


@pytest.mark.parametrize("shapes", PRODUCTS)
@pytest.mark.parametrize(("dtype", "bound"), [("int32", 1 << 30), ("int64", 1 << 62), ("uint32", 1 << 31)])
def test_matmul_of_integers_wraps_around(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: str, bound: int
) -> None:
    a, b = (integers(*shape, dtype=dtype, bound=bound, seed=seed) for seed, shape in enumerate(shapes))
    check(node("MatMul", ["a", "b"], ["y"]), {"a": a, "b": b}, reference=True)


def test_matmul_of_half_floats() -> None:
    halves = {"a": weights(4, 8).astype(np.float16), "b": weights(8, 3, seed=1).astype(np.float16)}
    check(node("MatMul", ["a", "b"], ["y"]), halves, reference=True, tolerance=5e-3)


def test_matmul_by_constant_weights_is_fully_connected() -> None:
    product = model_of([node("MatMul", ["a", "b"], ["y"])], {"a": weights(2, 5, 3)}, {"b": weights(3, 4)}, 18)
    assert operators(lower(product)) == ["FULLY_CONNECTED"]
    deep = model_of([node("MatMul", ["a", "b"], ["y"])], {"a": weights(2, 2, 2, 5, 3)}, {"b": weights(3, 4)}, 18)
    assert operators(lower(deep)) == ["RESHAPE", "FULLY_CONNECTED", "RESHAPE"]


def test_an_activation_is_fused_into_constant_weights() -> None:
    nodes = [node("MatMul", ["a", "b"], ["p"]), node("Relu", ["p"], ["y"])]
    check(nodes, {"a": weights(2, 5, 3)}, {"b": weights(3, 4)})
    assert operators(lower(model_of(nodes, {"a": weights(2, 5, 3)}, {"b": weights(3, 4)}, 18))) == ["FULLY_CONNECTED"]


@pytest.mark.parametrize("addend", [None, (), (1,), (4,), (1, 4), (3, 1), (3, 4)])
def test_gemm(addend: tuple[int, ...] | None) -> None:
    for turned_a, turned_b, constant in itertools.product((0, 1), (0, 1), ((), ("b",), ("b", "c"), ("c",))):
        operands = {
            "a": weights(*((5, 3) if turned_a else (3, 5))),
            "b": weights(*((4, 5) if turned_b else (5, 4)), seed=1),
        }
        if addend is not None:
            operands["c"] = weights(*addend, seed=2).reshape(addend)
        written = node("Gemm", list(operands), ["y"], transA=turned_a, transB=turned_b, alpha=0.5, beta=2.0)
        fed = {name: array for name, array in operands.items() if name not in constant}
        check(written, fed, {name: array for name, array in operands.items() if name in constant})


def test_gemm_of_integers() -> None:
    operands = {"a": integers(3, 5), "b": integers(5, 4, seed=1), "c": integers(4, seed=2)}
    check(node("Gemm", ["a", "b", "c"], ["y"], alpha=2.0, beta=-3.0), operands, reference=True)


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_products_of_doubles_are_refused(operator: str) -> None:
    doubles = {name: weights(3, 3).astype(np.float64) for name in ("a", "b")}
    with pytest.raises(UnsupportedError, match="float64"):
        lower(model_of([node(operator, ["a", "b"], ["y"])], doubles, {}, 18))


def test_gemm_of_integers_with_a_fraction_is_refused() -> None:
    model = model_of([node("Gemm", ["a", "b"], ["y"], alpha=0.5)], {"a": integers(2, 2), "b": integers(2, 2)}, {}, 18)
    with pytest.raises(UnsupportedError, match=r"alpha 0\.5"):
        lower(model)


EQUATIONS: list[tuple[str, tuple[tuple[int, ...], ...]]] = [
    ("ij,jk->ik", ((2, 3), (3, 4))),
    ("bhid,bhjd->bhij", ((2, 3, 4, 5), (2, 3, 6, 5))),
    ("blhd,bhds->blhs", ((2, 3, 4, 5), (2, 4, 5, 6))),
    ("...ij,...jk->...ik", ((7, 1, 2, 3), (7, 6, 3, 4))),
    ("...ii->...i", ((3, 5, 5),)),
    ("iij->ij", ((3, 3, 2),)),
    ("ii", ((4, 4),)),
    ("i,i", ((4,), (4,))),
    ("ij->i", ((3, 4),)),
    ("ba", ((3, 4),)),
    ("abc->", ((2, 3, 4),)),
    ("ij,kl->ijkl", ((2, 3), (4, 5))),
    ("ij,ij->ij", ((3, 4), (3, 4))),
    ("ijk,jil->kl", ((2, 3, 4), (3, 2, 5))),
    ("ij,jk,kl->il", ((2, 3), (3, 4), (4, 5))),
    ("i,j,k->ijk", ((2,), (3,), (4,))),
    (" i j , j k ", ((2, 3), (3, 4))),
]


@pytest.mark.parametrize(("equation", "shapes"), EQUATIONS)
def test_einsum(equation: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    floats = {f"x{position}": weights(*shape, seed=position) for position, shape in enumerate(shapes)}
    check(node("Einsum", list(floats), ["y"], equation=equation), floats)
    whole = {f"x{position}": integers(*shape, seed=position) for position, shape in enumerate(shapes)}
    check(node("Einsum", list(whole), ["y"], equation=equation), whole, reference=True)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 3, 3), (2, 3, 4, 4)])
def test_determinant(shape: tuple[int, ...]) -> None:
    check(node("Det", ["x"], ["y"]), {"x": weights(*shape)}, tolerance=1e-4)


def test_a_large_determinant_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="5 x 5"):
        lower(model_of([node("Det", ["x"], ["y"])], {"x": weights(5, 5)}, {}, 18))
