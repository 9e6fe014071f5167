"""Elementwise arithmetic: operands broadcast as in numpy, and the layout pass has brought them to one layout.

The broadcasting rule of opsets before 7 is refused where it would differ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering

# Above this, a power by repeated multiplication is not shorter than anything else.
_LARGEST_UNROLLED_POWER = 8


def unary(write: Callable[[Emitter, Tensor], Tensor]) -> Lowering:
    """Lowering of an operator with one operand, of its shape and type."""

    def lowered(node: Node, e: Emitter) -> None:
        e.into(node.outputs[0], write(e, e.input(0)))

    return lowered


def operand_pair(node: Node, e: Emitter) -> tuple[Tensor, Tensor]:
    """Both operands; raises NotLowerableError where opset 6 and older broadcast along an axis of their own."""
    left, right = e.input(0), e.input(1)
    if node.opset < 7 and node.integer("broadcast", 0) and "axis" in node.attributes and left.shape != right.shape:
        raise NotLowerableError("broadcasting along an axis, as before opset 7")
    return left, right


def add(node: Node, e: Emitter) -> None:
    """Add: any number type; integers wrap around."""
    e.into(node.outputs[0], e.add(*operand_pair(node, e), node.activation))


def subtract(node: Node, e: Emitter) -> None:
    """Sub: any number type; integers wrap around."""
    e.into(node.outputs[0], e.sub(*operand_pair(node, e), node.activation))


def multiply(node: Node, e: Emitter) -> None:
    """Mul: any number type; integers wrap around."""
    e.into(node.outputs[0], e.mul(*operand_pair(node, e), node.activation))


def divide(node: Node, e: Emitter) -> None:
    """Div: float, and integers of up to 32 bits, which truncate; a constant divisor 0 is refused for integers."""
    e.into(node.outputs[0], e.div(*operand_pair(node, e), node.activation))


def modulo(node: Node, e: Emitter) -> None:
    """Mod: with fmod=0 the divisor's sign (integers), with fmod=1 the dividend's (any type)."""
    left, right = e.input(0), e.input(1)
    if not node.integer("fmod", 0):
        e.into(node.outputs[0], e.floor_mod(left, right))
        return
    if left.dtype.startswith("u"):
        e.into(node.outputs[0], e.floor_mod(left, right))
        return
    size = e.floor_mod(e.abs(left), e.abs(right))
    zero = np.zeros((), left.dtype)
    e.into(node.outputs[0], e.select(e.less(left, zero), e.neg(size), size))


def power(node: Node, e: Emitter) -> None:
    """Pow: float32 by any exponent; integers by a small constant one, or int32 by int32.

    An integer base with a computed float exponent is refused: its result would not be exact.
    """
    base, exponent = e.input(0), e.input(1)
    count = _small_power(exponent)
    if count is not None and (base.dtype != "float32" or count <= 3):
        value = base
        for _ in range(count - 1):
            value = e.mul(value, base)
        e.into(node.outputs[0], e.broadcast_to(value, e.output().shape))
        return
    if base.dtype != "float32" and exponent.dtype.startswith("float"):
        raise NotLowerableError(f"{base.dtype} to the power of {exponent.dtype}")
    e.into(node.outputs[0], e.pow(base, e.cast(exponent, base.dtype)))


def _small_power(exponent: Tensor) -> int | None:
    """The exponent where it is one small positive whole number."""
    if exponent.data is None or exponent.data.size != 1:
        return None
    value = float(exponent.data.item())
    return int(value) if value in range(1, _LARGEST_UNROLLED_POWER + 1) else None


def chained(write: Callable[[Emitter, Tensor, Tensor], Tensor]) -> Lowering:
    """Lowering of an operator that joins any number of operands from left to right: Sum, Min, Max."""

    def lowered(node: Node, e: Emitter) -> None:
        value, *others = e.inputs()
        for other in others:
            value = write(e, value, other)
        e.into(node.outputs[0], value)

    return lowered


def mean(node: Node, e: Emitter) -> None:
    """Mean of any number of float operands."""
    value, *others = e.inputs()
    for other in others:
        value = e.add(value, other)
    e.into(node.outputs[0], e.mul(value, 1 / len(node.inputs)))


def bit_shift(node: Node, e: Emitter) -> None:
    """BitShift of unsigned integers of up to 32 bits: a signed one might shift by a negative count.

    To the left it is a product with a power of two, and a shift by the width or more gives 0.
    """
    value, count = e.input(0), e.input(1)
    if value.dtype not in ("uint8", "uint16", "uint32"):
        raise NotLowerableError(f"a shift of {value.dtype}")
    if node.text("direction", "") == "RIGHT":
        e.into(node.outputs[0], e.right_shift(value, count))
        return
    bits = np.dtype(value.dtype).itemsize * 8
    powers = np.array([1 << shift if shift < bits else 0 for shift in range(bits + 1)], np.int64)
    index = e.cast(e.minimum(e.cast(count, "int64"), bits), "int32")
    factor = e.gather(e.constant(powers), index)
    e.into(node.outputs[0], e.cast(e.mul(e.cast(value, "int64"), factor), value.dtype))


def bitwise_not(node: Node, e: Emitter) -> None:
    """BitwiseNot: exclusive or with all ones; no 64-bit types."""
    value = e.input(0)
    ones = np.array(-1 if value.dtype.startswith("i") else np.iinfo(value.dtype).max, value.dtype)
    e.into(node.outputs[0], e.bitwise_xor(value, ones))


def bitwise_xor(node: Node, e: Emitter) -> None:
    """BitwiseXor; no 64-bit types."""
    e.into(node.outputs[0], e.bitwise_xor(e.input(0), e.input(1)))


OPERATORS: dict[str, Lowering] = {
    "Abs": unary(lambda e, x: x if x.dtype.startswith("u") else e.abs(x)),
    "Add": add,
    "BitShift": bit_shift,
    "BitwiseNot": bitwise_not,
    "BitwiseXor": bitwise_xor,
    "Ceil": unary(lambda e, x: e.ceil(x)),
    "Div": divide,
    "Exp": unary(lambda e, x: e.exp(x)),
    "Floor": unary(lambda e, x: e.floor(x)),
    "Log": unary(lambda e, x: e.log(x)),
    "Max": chained(lambda e, x, y: e.maximum(x, y)),
    "Mean": mean,
    "Min": chained(lambda e, x, y: e.minimum(x, y)),
    "Mod": modulo,
    "Mul": multiply,
    "Neg": unary(lambda e, x: e.neg(x)),
    "Pow": power,
    "Reciprocal": unary(lambda e, x: e.div(1.0, x)),
    "Round": unary(lambda e, x: e.round(x)),
    "Sign": unary(lambda e, x: e.sign(x)),
    "Sqrt": unary(lambda e, x: e.sqrt(x)),
    "Sub": subtract,
    "Sum": chained(lambda e, x, y: e.add(x, y)),
}
