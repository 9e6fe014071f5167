"""Comparisons, logic, choices between values, and conversions of type.

Text is refused: TFLite's kernels do not compare it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.elementwise import operand_pair


def _pair(write: Callable[[Emitter, Tensor, Tensor], Tensor]) -> Lowering:
    def lowered(node: Node, e: Emitter) -> None:
        e.into(node.outputs[0], write(e, *operand_pair(node, e)))

    return lowered


def logical_not(node: Node, e: Emitter) -> None:
    """Not of a bool."""
    e.into(node.outputs[0], e.logical_not(e.input(0)))


def where(node: Node, e: Emitter) -> None:
    """Where: the second operand where the bool first one holds, else the third; all broadcast."""
    e.into(node.outputs[0], e.select(e.input(0), e.input(1), e.input(2)))


def is_nan(node: Node, e: Emitter) -> None:
    """IsNaN: only NaN differs from itself."""
    e.into(node.outputs[0], e.not_equal(e.input(0), e.input(0)))


def is_infinite(node: Node, e: Emitter) -> None:
    """IsInf of float values, of either sign or, by `detect_negative` and `detect_positive`, of one."""
    value, infinity = e.input(0), np.array(np.inf, e.input(0).dtype)
    negative, positive = node.integer("detect_negative", 1), node.integer("detect_positive", 1)
    if negative and positive:
        found = e.equal(e.abs(value), infinity)
    elif positive or negative:
        found = e.equal(value, infinity if positive else -infinity)
    else:
        found = e.constant(np.zeros(value.shape, np.bool_))
    e.into(node.outputs[0], found)


def cast(node: Node, e: Emitter) -> None:
    """Cast and CastLike between numbers and bool; floats truncate, integers wrap around.

    Text, bfloat16, the 8-bit floats, the 4-bit types and uint64 are refused.
    """
    value, dtype = e.input(0), e.output().dtype
    if dtype == "bool" and value.dtype.startswith("float"):
        e.into(node.outputs[0], e.not_equal(value, np.zeros((), value.dtype)))
    else:
        e.into(node.outputs[0], e.cast(value, dtype))


OPERATORS: dict[str, Lowering] = {
    "And": _pair(lambda e, x, y: e.logical_and(x, y)),
    "Cast": cast,
    "CastLike": cast,
    "Equal": _pair(lambda e, x, y: e.equal(x, y)),
    "Greater": _pair(lambda e, x, y: e.greater(x, y)),
    "GreaterOrEqual": _pair(lambda e, x, y: e.greater_equal(x, y)),
    "IsInf": is_infinite,
    "IsNaN": is_nan,
    "Less": _pair(lambda e, x, y: e.less(x, y)),
    "LessOrEqual": _pair(lambda e, x, y: e.less_equal(x, y)),
    "Not": logical_not,
    "Or": _pair(lambda e, x, y: e.logical_or(x, y)),
    "Where": where,
    "Xor": _pair(lambda e, x, y: e.not_equal(x, y)),
}
