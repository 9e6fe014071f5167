"""Bits, integer quotients, remainders and powers over the whole range of every integer type, against numpy's own."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from converters.node_checks import Array, check, in_litert, model_of
from edgefleet_converters.tflite import lower

node = helper.make_node

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def anything(dtype: str, *shape: int, seed: int = 0) -> Array:
    """Seeded values over the whole range of an integer type."""
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max, size=shape, dtype=np.dtype(dtype), endpoint=True)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_bitwise(dtype: str) -> None:
    a, b = anything(dtype, 3, 1, 50), anything(dtype, 4, 50, seed=1)
    for operator in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        check(node(operator, ["a", "b"], ["y"]), {"a": a, "b": b})
        check(node(operator, ["a", "b"], ["y"]), {"a": a}, {"b": np.array(13, dtype)})
    check(node("BitwiseNot", ["a"], ["y"]), {"a": a})


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_shift_by_every_count(dtype: str, direction: str) -> None:
    """Counts at and beyond the width, and negative ones, shift all bits out."""
    info = np.iinfo(dtype)
    counts = np.concatenate([np.arange(info.bits + 4), [info.max, info.min]]).astype(dtype)
    written = node("BitShift", ["a", "b"], ["y"], direction=direction)
    check(written, {"a": anything(dtype, 20, 1), "b": counts}, opset=11, reference=True)
    check(written, {"a": anything(dtype, 20, 1)}, {"b": counts}, opset=11, reference=True)


@pytest.mark.parametrize("remainder", [0, 1])
@pytest.mark.parametrize("dtype", [dtype for dtype in INTEGERS if dtype != "uint64"])
def test_remainder(dtype: str, remainder: int) -> None:
    a, b = anything(dtype, 200), anything(dtype, 200, seed=1)
    # The smallest integer has no quotient by -1.
    b = np.where((b == 0) | (b == np.array(-1).astype(dtype)), np.array(3, dtype), b)
    a[0] = np.iinfo(dtype).min
    check(node("Mod", ["a", "b"], ["y"], fmod=remainder), {"a": a, "b": b}, reference=True)


@pytest.mark.parametrize("shift", [0, 1, 20, 40, 61])
def test_quotient_of_long_integers(shift: int) -> None:
    """Truncated, and exact beyond what a float holds."""
    a, b = anything("int64", 2000), anything("int64", 2000, seed=1) >> shift
    b[b == 0] = 7
    b[b == -1] = -7
    sizes = np.abs(a.astype(object)) // np.abs(b.astype(object))
    expected = (sizes * np.sign(a).astype(object) * np.sign(b).astype(object)).astype(np.int64)
    made = lower(model_of([node("Div", ["a", "b"], ["y"])], {"a": a, "b": b}, {}, 18), keep_layout=True)
    np.testing.assert_array_equal(in_litert(made.content, {"a": a, "b": b})["y"], expected)


def test_quotient_of_unsigned_words() -> None:
    a, b = anything("uint32", 200), anything("uint32", 200, seed=1) >> np.uint32(12)
    check(node("Div", ["a", "b"], ["y"]), {"a": a, "b": b + np.uint32(1)})


def test_whole_powers() -> None:
    random = np.random.default_rng(0)
    base, exponent = random.integers(-6, 7, size=(40, 1)), random.integers(0, 24, size=20)
    check(node("Pow", ["a", "b"], ["y"]), {"a": base, "b": exponent}, reference=True)
    small = base.astype(np.int32)
    check(node("Pow", ["a", "b"], ["y"]), {"a": small}, {"b": np.array([0, 1, 5, 9], np.float32)})
    edge: dict[str, Array] = {"a": np.array([1, -1, -1, 2, -3, 1]), "b": np.array([-3, -3, -2, -1, -2, 70])}
    found = check(node("Pow", ["a", "b"], ["y"]), edge)
    assert found["y"].tolist() == [1, -1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("source", "target"), [("float32", "int32"), ("int64", "uint64"), ("int8", "uint8"), ("uint32", "float32")]
)
def test_bit_cast(source: str, target: str) -> None:
    x = np.arange(-4, 6).astype(source).reshape(2, 5) if source[0] != "u" else np.arange(10, dtype=source)
    to = helper.np_dtype_to_tensor_dtype(np.dtype(target))
    check(node("BitCast", ["x"], ["y"], to=to), {"x": x}, opset=26, reference=True, tolerance=0)
