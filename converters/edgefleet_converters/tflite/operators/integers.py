"""Products of quantised numbers: MatMulInteger, ConvInteger, QLinearMatMul, QLinearConv.

Computed in float32, which is exact below 2^24: where sums may be larger, the weights are split into high and low
parts whose products are small, and the parts are put together as int32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.channels import channels_last, finish
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.convolution import convolved
from edgefleet_converters.tflite.operators.quantization import quantized

_EXACT = 2**24
_LARGEST_DIFFERENCE = 255
_HALF = 16

Product = Callable[[Tensor], Tensor]


def matmul_integer(node: Node, e: Emitter) -> None:
    """MatMulInteger of 8-bit operands: zero points are scalars, by row for the left and by column for the right."""
    left, right = _difference(e, 0, 2, rows=True), _difference(e, 1, 3)
    e.into(node.outputs[0], _matmul(e, left, right))


def conv_integer(node: Node, e: Emitter) -> None:
    """ConvInteger of 8-bit operands; the zero point of the weights may differ by output channel."""
    value = e.sub(e.cast(channels_last(e), "float32"), _zero(e, 2))
    finish(e, _convolved(node, e, value, _weight(e, 1, 3)))


def qlinear_matmul(node: Node, e: Emitter) -> None:
    """QLinearMatMul of 8-bit operands with one scale each."""
    product = _matmul(e, _difference(e, 0, 2, rows=True), _difference(e, 3, 5))
    scale = e.div(e.mul(_scalar(e, 1), _scalar(e, 4)), _scalar(e, 6))
    e.into(node.outputs[0], _requantized(e, product, scale, e.input(7)))


def qlinear_conv(node: Node, e: Emitter) -> None:
    """QLinearConv of 8-bit operands; scale and zero point of the weights may differ by output channel."""
    value = e.sub(e.cast(channels_last(e), "float32"), _zero(e, 2))
    product = _convolved(node, e, value, _weight(e, 3, 5))
    if e.has(8):
        product = e.add(product, e.input(8))
    weights = e.input(4)
    by_channel = e.reshape(weights, (-1,)) if weights.rank and weights.shape != (1,) else e.reshape(weights, ())
    scale = e.div(e.mul(by_channel, _scalar(e, 1)), _scalar(e, 6))
    finish(e, _requantized(e, product, scale, e.input(7)))


def _matmul(e: Emitter, left: Tensor, right: Tensor) -> Tensor:
    if min(left.rank, right.rank) < 2:
        raise NotLowerableError("operands of rank 1")
    return _exact(e, right, right.shape[-2], -2, lambda part: e.batch_matmul(left, part))


def _convolved(node: Node, e: Emitter, value: Tensor, weight: Tensor) -> Tensor:
    terms = int(np.prod(weight.shape[1:]))
    return _exact(e, weight, terms, None, lambda part: convolved(node, e, value, part, None))


def _exact(e: Emitter, weight: Tensor, terms: int, axis: int | None, product: Product) -> Tensor:
    """The int32 product with whole weights, of which `terms` are summed, over `axis` or all but the first."""
    if weight.data is not None:
        sums = np.abs(weight.data.astype(np.float64))
        largest = sums.sum(axis if axis is not None else tuple(range(1, weight.rank))).max()
    else:
        largest = float(terms * _LARGEST_DIFFERENCE)
    if largest * _LARGEST_DIFFERENCE < _EXACT:
        return e.cast(product(weight), "int32")
    if terms * _HALF * _LARGEST_DIFFERENCE >= _EXACT:
        raise NotLowerableError(f"sums of {terms} products")
    high, low = _halves(e, weight)
    return e.add(e.mul(e.cast(product(high), "int32"), _HALF), e.cast(product(low), "int32"))


def _halves(e: Emitter, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(high, low) with weight = 16 x high + low, both whole and small."""
    if weight.data is not None:
        whole = weight.data.astype(np.float32)
        above = np.floor(whole / _HALF)
        return e.constant(above, role="high"), e.constant(whole - above * _HALF, role="low")
    high = e.floor(e.mul(weight, 1.0 / _HALF))
    return high, e.sub(weight, e.mul(high, float(_HALF)))


def _difference(e: Emitter, position: int, zero_position: int, *, rows: bool = False) -> Tensor:
    """An operand of a matrix product less its zero point, as float32."""
    value = e.input(position)
    if not e.has(zero_position):
        return e.cast(value, "float32")
    zero = e.input(zero_position)
    if zero.rank == 0 or zero.shape == (1,):
        zero = e.reshape(zero, ())
    elif zero.rank == 1:
        zero = e.reshape(zero, (-1, 1) if rows else (1, -1))
    return _less(e, value, zero)


def _weight(e: Emitter, position: int, zero_position: int) -> Tensor:
    weight = e.input(position)
    if not e.has(zero_position):
        return e.cast(weight, "float32")
    zero = e.input(zero_position)
    if zero.rank and zero.shape != (1,):
        return _less(e, weight, e.reshape(zero, (-1, *(1,) * (weight.rank - 1))))
    return _less(e, weight, e.reshape(zero, ()))


def _less(e: Emitter, value: Tensor, zero: Tensor) -> Tensor:
    if value.data is not None and zero.data is not None:
        return e.constant(value.data.astype(np.float32) - zero.data.astype(np.float32), role="weight")
    return e.sub(e.cast(value, "float32"), e.cast(zero, "float32"))


def _zero(e: Emitter, position: int) -> Tensor | float:
    return e.cast(e.reshape(e.input(position), ()), "float32") if e.has(position) else 0.0


def _scalar(e: Emitter, position: int) -> Tensor:
    given = e.input(position)
    if given.dtype != "float32" or int(np.prod(given.shape)) != 1:
        raise NotLowerableError(f"a scale of type {given.dtype} and shape {given.shape}")
    return e.reshape(given, ())


def _requantized(e: Emitter, product: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """An int32 product times a scale, as stored numbers of the zero point's type."""
    if int(np.prod(zero.shape)) != 1:
        raise NotLowerableError(f"a zero point of shape {zero.shape}")
    return quantized(e, e.mul(e.cast(product, "float32"), scale), e.reshape(zero, ()), zero.dtype)


OPERATORS: dict[str, Lowering] = {
    "ConvInteger": conv_integer,
    "MatMulInteger": matmul_integer,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
}
