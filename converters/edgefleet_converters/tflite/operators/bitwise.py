"""Operators on the bits of integers, and the reading of one type's bits as another's.

TFLite has exclusive or and a right shift of up to 32 bits; the rest is exact arithmetic made of those. 64-bit
integers are taken apart into their 32-bit words.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor, options_of
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering

_WORD = 32


def bitcast(e: Emitter, value: Tensor, dtype: str) -> Tensor:
    """The same bits as another type; a 64-bit type as 32-bit words has a last axis of 2, low word first."""
    if value.dtype == dtype:
        return value
    before, after = np.dtype(value.dtype).itemsize, np.dtype(dtype).itemsize
    if (before, after) == (8, 4):
        shape = (*value.shape, 2)
    elif (before, after) == (4, 8):
        shape = value.shape[:-1]
    else:
        shape = value.shape
    if value.data is not None:
        return e.constant(np.ascontiguousarray(value.data).view(dtype).reshape(shape), role="bits")
    return e.call("BITCAST", [value], shape, dtype, options_of("Bitcast"))


def bit_cast(node: Node, e: Emitter) -> None:
    """BitCast between types of one width; float16 and types that are no numpy type are refused."""
    value, dtype = e.input(0), e.output().dtype
    if np.dtype(value.dtype).itemsize != np.dtype(dtype).itemsize:
        raise NotLowerableError(f"the bits of {value.dtype} as {dtype}")
    e.into(node.outputs[0], bitcast(e, value, dtype))


def _and_words(e: Emitter, a: Tensor, b: Tensor) -> Tensor:
    """And of int32: a + b is 2 (a and b) + (a xor b); everything is halved first so that nothing overflows."""
    half_a, half_b = e.right_shift(a, 1), e.right_shift(b, 1)
    low_a, low_b = e.sub(a, e.add(half_a, half_a)), e.sub(b, e.add(half_b, half_b))
    average = e.add(e.add(half_a, half_b), e.mul(low_a, low_b))
    return e.sub(average, e.right_shift(e.bitwise_xor(a, b), 1))


def _or_words(e: Emitter, a: Tensor, b: Tensor) -> Tensor:
    return e.add(e.bitwise_xor(a, b), _and_words(e, a, b))


def by_words(write: Callable[[Emitter, Tensor, Tensor], Tensor]) -> Lowering:
    """Lowering of a bitwise operator of two operands that broadcast, by what it does to int32; any integer type."""

    def lowered(node: Node, e: Emitter) -> None:
        left, right = e.input(0), e.input(1)
        if np.dtype(left.dtype).itemsize < 4:
            made = e.cast(write(e, e.cast(left, "int32"), e.cast(right, "int32")), left.dtype)
        else:
            made = bitcast(e, write(e, bitcast(e, left, "int32"), bitcast(e, right, "int32")), left.dtype)
        e.into(node.outputs[0], made)

    return lowered


def bitwise_not(node: Node, e: Emitter) -> None:
    """BitwiseNot: exclusive or with all ones; any integer type."""
    value = e.input(0)
    if np.dtype(value.dtype).itemsize == 8:
        ones = np.array(-1, np.int32)
        e.into(node.outputs[0], bitcast(e, e.bitwise_xor(bitcast(e, value, "int32"), ones), value.dtype))
        return
    e.into(node.outputs[0], e.bitwise_xor(value, ~np.zeros((), value.dtype)))


def bit_shift(node: Node, e: Emitter) -> None:
    """BitShift of any integer type: a count that is negative or not below the width shifts all bits out.

    To the left that gives 0; to the right 0, or -1 for a negative number.
    """
    value, bits = e.input(0), np.dtype(e.input(0).dtype).itemsize * 8
    signed = value.dtype.startswith("i")
    # A uint64 count of 2**63 or more reads as negative, which shifts all out just as well.
    count = bitcast(e, e.input(1), "int64") if bits == 64 else e.cast(e.input(1), "int64")
    out = e.logical_or(e.less(count, 0), e.greater_equal(count, bits))
    count = e.cast(e.select(out, bits - signed if node.text("direction", "") == "RIGHT" else bits, count), "int32")
    if node.text("direction", "") == "RIGHT":
        shifted = _right_long(e, value, count, signed=signed) if bits == 64 else _right(e, value, count, bits)
    else:
        shifted = _left(e, value, count, bits)
    e.into(node.outputs[0], shifted)


def _left(e: Emitter, value: Tensor, count: Tensor, bits: int) -> Tensor:
    """A product with a power of two, which wraps around; 0 for a count of `bits`."""
    powers = np.array([1 << shift for shift in range(bits)] + [0], np.uint64).view(np.int64)
    factor = e.gather(e.constant(powers), count)
    if bits == 64:
        return bitcast(e, e.mul(bitcast(e, value, "int64"), factor), value.dtype)
    return e.cast(e.mul(e.cast(value, "int64"), factor), value.dtype)


def _right(e: Emitter, value: Tensor, count: Tensor, bits: int) -> Tensor:
    """The kernel takes no count above 31, so an unsigned word that is shifted out is chosen to be 0."""
    if bits < _WORD:
        return e.cast(e.right_shift(e.cast(value, "int32"), count), value.dtype)
    if value.dtype == "int32":
        return e.right_shift(value, count)
    shifted = e.right_shift(value, e.cast(e.minimum(count, _WORD - 1), value.dtype))
    return e.select(e.equal(count, _WORD), np.zeros((), value.dtype), shifted)


def _right_long(e: Emitter, value: Tensor, count: Tensor, *, signed: bool) -> Tensor:
    """Of high 2**32 + low: high 2**(32 - count) + (low >> count) by less than a word, else high >> (count - 32)."""
    words = bitcast(e, value, "int32")
    low, high = (e.reshape(part, value.shape) for part in e.split(words, -1, (1, 1)))
    upper = e.cast(high if signed else bitcast(e, high, "uint32"), "int64")
    inside = e.cast(e.minimum(count, _WORD - 1), "uint32")
    lower = e.cast(e.right_shift(bitcast(e, low, "uint32"), inside), "int64")
    powers = np.array([1 << (_WORD - shift) for shift in range(_WORD)], np.int64)
    near = e.add(e.mul(upper, e.gather(e.constant(powers), e.minimum(count, _WORD - 1))), lower)
    beyond = e.minimum(e.relu(e.sub(count, _WORD)), _WORD - 1)
    word = high if signed else bitcast(e, high, "uint32")
    far = e.cast(e.right_shift(word, e.cast(beyond, word.dtype)), "int64")
    made = e.select(e.less(count, _WORD), near, far)
    return bitcast(e, made if signed else e.select(e.equal(count, 2 * _WORD), 0, made), value.dtype)


OPERATORS: dict[str, Lowering] = {
    "BitCast": bit_cast,
    "BitShift": bit_shift,
    "BitwiseAnd": by_words(_and_words),
    "BitwiseNot": bitwise_not,
    "BitwiseOr": by_words(_or_words),
    "BitwiseXor": by_words(lambda e, a, b: e.bitwise_xor(a, b)),
}
