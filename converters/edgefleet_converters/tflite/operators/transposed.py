"""ConvTranspose: TRANSPOSE_CONV or CONV_3D_TRANSPOSE of everything, then cut or padded to the output asked for.

Weights that are computed at run time are not done with dilations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor, options_of
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.channels import channels_last, finish, last_shape
from edgefleet_converters.tflite.operators.contract import Lowering

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where the output lies in the whole transposed convolution: `output` elements from `start` on, by axis."""

    size: Sizes
    strides: Sizes
    whole: Sizes
    output: Sizes
    start: Sizes

    @property
    def is_same(self) -> bool:
        """Whether TFLite's SAME, which centres the output, computes it at once."""
        axes = zip(self.size, self.whole, self.output, self.start, self.strides, strict=True)
        return all(
            -(-output // stride) == size and whole - output in (2 * start, 2 * start + 1)
            for size, whole, output, start, stride in axes
        )


def conv_transpose(node: Node, e: Emitter) -> None:
    """ConvTranspose over 1 to 3 spatial axes, float32: any group, pads, auto_pad, output_padding and output_shape."""
    value, weight, shape = channels_last(e), _stuffed(node, e), last_shape(e)
    bias = e.cast(e.input(2), "float32") if e.has(2) else None
    if value.rank > 5:
        raise NotLowerableError(f"{value.rank - 2} spatial axes")
    frame = _frame(node, weight.shape[2:], value.shape[1:-1], shape[1:-1])
    if value.rank == 3:
        value = e.reshape(value, (value.shape[0], 1, *value.shape[1:]))
        weight = e.reshape(weight, (*weight.shape[:2], 1, *weight.shape[2:]))
        frame = _Frame((1, *frame.size), (1, *frame.strides), (1, *frame.whole), (1, *frame.output), (0, *frame.start))
    made = _grouped(node, e, value, weight, frame)
    if bias is not None:
        made = e.add(made, bias)
    finish(e, e.reshape(made, shape))


def _stuffed(node: Node, e: Emitter) -> Tensor:
    """The weights [C, O / group, kernel...] with zeros between their elements where they are dilated."""
    weight = e.cast(e.input(1), "float32")
    dilations = node.integers("dilations", (1,) * (weight.rank - 2))
    if all(step == 1 for step in dilations):
        return weight
    sizes = [(length - 1) * step + 1 for length, step in zip(weight.shape[2:], dilations, strict=True)]
    wide = np.zeros((*weight.shape[:2], *sizes), np.float32)
    apart = tuple(slice(None, None, step) for step in (1, 1, *dilations))
    wide[apart] = e.array(1, "dilated weight")
    return e.constant(wide, role="weight")


def _frame(node: Node, kernel: Sizes, size: Sizes, output: Sizes) -> _Frame:
    spatial = len(size)
    strides = node.integers("strides", (1,) * spatial)
    extra = node.integers("output_padding", (0,) * spatial)
    whole = tuple((n - 1) * stride + k for n, stride, k in zip(size, strides, kernel, strict=True))
    automatic = node.text("auto_pad", "NOTSET")
    if automatic == "NOTSET" and "output_shape" not in node.attributes:
        return _Frame(size, strides, whole, output, node.integers("pads", (0,) * 2 * spatial)[:spatial])
    if automatic == "VALID":
        return _Frame(size, strides, whole, output, (0,) * spatial)
    cut = [max(full + more - wanted, 0) for full, more, wanted in zip(whole, extra, output, strict=True)]
    # The odd element is cut from the end with SAME_UPPER, from the start otherwise.
    upper = automatic == "SAME_UPPER"
    return _Frame(size, strides, whole, output, tuple(total // 2 if upper else total - total // 2 for total in cut))


def _grouped(node: Node, e: Emitter, value: Tensor, weight: Tensor, frame: _Frame) -> Tensor:
    group = node.integer("group", 1)
    values = e.split(value, -1, [value.shape[-1] // group] * group)
    weights = e.split(weight, 0, [value.shape[-1] // group] * group)
    return e.concat([_placed(e, *pair, frame) for pair in zip(values, weights, strict=True)], -1)


def _placed(e: Emitter, value: Tensor, weight: Tensor, frame: _Frame) -> Tensor:
    """One group's output, cut out of the whole and padded with zeros where it goes beyond."""
    batch, channels = value.shape[0], weight.shape[1]
    if frame.is_same:
        return _whole(e, value, weight, (batch, *frame.output, channels), frame.strides, schema.Padding.SAME)
    made = _whole(e, value, weight, (batch, *frame.whole, channels), frame.strides, schema.Padding.VALID)
    ends = [min(start + n, full) for start, n, full in zip(frame.start, frame.output, frame.whole, strict=True)]
    kept = [end - start for start, end in zip(frame.start, ends, strict=True)]
    if math.prod(max(length, 0) for length in kept) == 0:
        raise NotLowerableError("an output that lies beyond the convolution")
    made = e.slice(made, (0, *frame.start, 0), (batch, *kept, channels))
    beyond = [(0, n - length) for n, length in zip(frame.output, kept, strict=True)]
    return e.pad(made, [(0, 0), *beyond, (0, 0)])


def _whole(e: Emitter, value: Tensor, weight: Tensor, shape: Sizes, strides: Sizes, padding: int) -> Tensor:
    """The TFLite operator: weights become OHWI, or DHWOI for three spatial axes."""
    sizes = e.integers(shape, "shape")
    if len(strides) == 2:
        options = options_of("TransposeConv", padding=padding, strideH=strides[0], strideW=strides[1])
        inputs = [sizes, e.transpose(weight, (1, 2, 3, 0)), value]
        return e.call("TRANSPOSE_CONV", inputs, shape, value.dtype, options, kernel=value.dtype)
    steps = dict(zip(("strideD", "strideH", "strideW"), strides, strict=True))
    inputs = [sizes, e.transpose(weight, (2, 3, 4, 1, 0)), value]
    options = options_of("Conv3D", padding=padding, **steps)
    return e.call("CONV_3D_TRANSPOSE", inputs, shape, value.dtype, options, kernel=value.dtype)


OPERATORS: dict[str, Lowering] = {"ConvTranspose": conv_transpose}
