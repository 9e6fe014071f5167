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
    """Div: float, and integers, which truncate; a constant divisor 0 is refused for integers, and uint64."""
    left, right = operand_pair(node, e)
    if left.dtype in ("int64", "uint32"):
        made = e.cast(_long_quotient(e, e.cast(left, "int64"), e.cast(right, "int64")), left.dtype)
    else:
        made = e.div(left, right, node.activation)
    e.into(node.outputs[0], made)


def _long_quotient(e: Emitter, left: Tensor, right: Tensor) -> Tensor:
    """The truncated quotient of int64, which TFLite cannot divide.

    Without its remainder the dividend is a multiple of the divisor, so that a quotient in floats can be mended until
    nothing is left: each of the four turns leaves 2**-22 of what was there.
    """
    multiple, divisor = e.sub(left, _truncated_rest(e, left, right)), e.cast(right, "float32")
    found = _rounded(e, multiple, divisor)
    for _ in range(3):
        missing = e.sub(multiple, e.mul(found, right))
        found = e.add(found, _rounded(e, missing, divisor))
    return found


def _rounded(e: Emitter, dividend: Tensor, divisor: Tensor) -> Tensor:
    return e.cast(e.round(e.div(e.cast(dividend, "float32"), divisor)), "int64")


def _truncated_rest(e: Emitter, left: Tensor, right: Tensor) -> Tensor:
    """The remainder with the dividend's sign; not by magnitudes, as the smallest integer has none."""
    zero = np.zeros((), left.dtype)
    rest = e.floor_mod(left, right)
    differ = e.not_equal(e.less(left, zero), e.less(right, zero))
    return e.select(e.logical_and(differ, e.not_equal(rest, zero)), e.sub(rest, right), rest)


def modulo(node: Node, e: Emitter) -> None:
    """Mod: with fmod=0 the divisor's sign (integers), with fmod=1 the dividend's (any type)."""
    left, right = e.input(0), e.input(1)
    if not node.integer("fmod", 0) or left.dtype.startswith("u"):
        rest = e.floor_mod(left, right)
    elif left.dtype.startswith("float"):
        size = e.floor_mod(e.abs(left), e.abs(right))
        rest = e.select(e.less(left, np.zeros((), left.dtype)), e.neg(size), size)
    else:
        rest = _truncated_rest(e, left, right)
    e.into(node.outputs[0], rest)


def sign(e: Emitter, value: Tensor) -> Tensor:
    """-1, 0 or 1, of any number type."""
    if value.dtype not in ("int64", "uint32"):
        return e.sign(value)
    zero = np.zeros((), value.dtype)
    return e.sub(e.cast(e.greater(value, zero), value.dtype), e.cast(e.less(value, zero), value.dtype))


def power(node: Node, e: Emitter) -> None:
    """Pow: floats by any exponent; integers by whole constants and by integers.

    An integer base with a computed float exponent is refused: its result would not be exact.
    """
    base, exponent = e.input(0), e.input(1)
    count = _small_power(exponent)
    if count is not None and (not base.dtype.startswith("float") or count <= 3):
        value = base
        for _ in range(count - 1):
            value = e.mul(value, base)
        e.into(node.outputs[0], e.broadcast_to(value, e.output().shape))
    elif base.dtype.startswith("float"):
        e.into(node.outputs[0], e.pow(base, e.cast(exponent, base.dtype)))
    else:
        whole = exponent.dtype.startswith(("int", "uint"))
        if exponent.data is not None and not whole:
            whole = bool(np.all(exponent.data == np.trunc(exponent.data)))
        if not whole:
            raise NotLowerableError(f"{base.dtype} to the power of {exponent.dtype}")
        e.into(node.outputs[0], _whole_power(e, base, e.cast(exponent, "int64")))


def _small_power(exponent: Tensor) -> int | None:
    """The exponent where it is one small positive whole number."""
    if exponent.data is None or exponent.data.size != 1:
        return None
    value = float(exponent.data.item())
    return int(value) if value in range(1, _LARGEST_UNROLLED_POWER + 1) else None


def _whole_power(e: Emitter, base: Tensor, exponent: Tensor) -> Tensor:
    """By squaring, exactly; of a negative exponent only 1 and -1 leave more than 0.

    Beyond 63 every other base overflows, so that only whether the exponent is odd counts.
    """
    one, zero = np.ones((), base.dtype), np.zeros((), base.dtype)
    negative = e.less(exponent, 0)
    beyond = e.logical_or(negative, e.greater(exponent, 63))
    left = e.cast(e.select(beyond, e.floor_mod(exponent, 2), exponent), "int32")
    made, squared = e.broadcast_to(e.constant(one), np.broadcast_shapes(base.shape, exponent.shape)), base
    for bit in range(6):
        odd = e.equal(e.floor_mod(e.right_shift(left, bit), 2), 1)
        made = e.select(odd, e.mul(made, squared), made)
        squared = e.mul(squared, squared) if bit < 5 else squared
    unit = e.logical_or(e.equal(base, one), e.equal(base, e.constant(-one)))
    return e.select(e.logical_and(negative, e.logical_not(unit)), zero, made)


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


OPERATORS: dict[str, Lowering] = {
    "Abs": unary(lambda e, x: x if x.dtype.startswith("u") else e.abs(x)),
    "Add": add,
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
    "Sign": unary(sign),
    "Sqrt": unary(lambda e, x: e.sqrt(x)),
    "Sub": subtract,
    "Sum": chained(lambda e, x, y: e.add(x, y)),
}
