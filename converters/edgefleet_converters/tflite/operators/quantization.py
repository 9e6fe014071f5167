"""Conversions between real and stored numbers, computed with plain operators: QuantizeLinear, DequantizeLinear.

Stored numbers are integers like any others here; a graph whose arithmetic is quantised is another pass's work.
"""

from __future__ import annotations

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering

STORED = ("int8", "uint8", "int16", "uint16")


def quantize_linear(node: Node, e: Emitter) -> None:
    """QuantizeLinear of float32 to 8 or 16 bits: one scale, one by axis, or one by block; rounds half to even."""
    value, stored = e.input(0), e.output().dtype
    if value.dtype != "float32" or stored not in STORED:
        raise NotLowerableError(f"{value.dtype} to {stored}")
    # 0 is the scale's own type, 1 float32.
    if node.integer("precision", 0) not in (0, 1):
        raise NotLowerableError(f"precision={node.integer('precision', 0)}")
    scale = parameters(node, e, e.input(1))
    zero = parameters(node, e, e.input(2)) if e.has(2) else None
    e.into(node.outputs[0], quantized(e, e.div(value, scale), zero, stored))


def quantized(e: Emitter, scaled: Tensor, zero: Tensor | None, stored: str) -> Tensor:
    """Real numbers divided by their scale, as stored numbers: rounded half to even, moved, clamped."""
    bounds = np.iinfo(stored)
    rounded = e.round(scaled)
    moved = rounded if zero is None else e.add(rounded, e.cast(zero, "float32"))
    return e.cast(e.minimum(e.maximum(moved, float(bounds.min)), float(bounds.max)), stored)


def dequantize_linear(node: Node, e: Emitter) -> None:
    """DequantizeLinear of 8, 16 or 32 bits to float32: one scale, one by axis, or one by block."""
    value, scale = e.input(0), parameters(node, e, e.input(1))
    if value.dtype not in (*STORED, "int32") or scale.dtype != "float32" or e.output().dtype != "float32":
        raise NotLowerableError(f"{value.dtype} to {e.output().dtype} by {scale.dtype}")
    # All of 16 bits and their differences are exact in float32; 32 bits are subtracted as they are.
    working = "int32" if value.dtype == "int32" else "float32"
    real = e.cast(value, working)
    if e.has(2):
        real = e.sub(real, e.cast(parameters(node, e, e.input(2)), working))
    e.into(node.outputs[0], e.mul(e.cast(real, "float32"), scale))


def parameters(node: Node, e: Emitter, given: Tensor) -> Tensor:
    """Scales or zero points so that they broadcast with the node's input."""
    shape = e.input(0).shape
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)
    if given.rank == 0 or given.shape == (1,):
        return e.reshape(given, ())
    axis %= len(shape)
    if given.rank == 1 and not block:
        return e.reshape(given, (1,) * axis + (shape[axis],) + (1,) * (len(shape) - axis - 1))
    if not block:
        raise NotLowerableError(f"scales of shape {given.shape}")
    places = np.arange(shape[axis], dtype=np.int32) // block
    if given.data is not None:
        return e.constant(np.take(given.data, places, axis), role="parameters")
    return e.gather(given, places, axis)


OPERATORS: dict[str, Lowering] = {"DequantizeLinear": dequantize_linear, "QuantizeLinear": quantize_linear}
