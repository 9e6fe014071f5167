"""Pooling: MaxPool, AveragePool, LpPool and their global forms over 1 to 3 spatial axes.

Whole float windows of up to two axes are TFLite's own pools; all others slide along one axis after the other.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import FUSED, Tensor, options_of
from edgefleet_converters.tflite.graph import Activation, Graph, Node, NotLowerableError
from edgefleet_converters.tflite.operators.channels import channels_last, finish, last_shape, spatial_axes
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.padding import Window, pad, read_window, spatial_size
from edgefleet_converters.tflite.operators.sliding import maximum_with_positions, slide

_NEVER_NEGATIVE = ("Abs", "Relu", "Sigmoid")


def max_pool(node: Node, e: Emitter) -> None:
    """MaxPool with pads, auto_pad, ceil_mode, dilations and indices; padding never wins, nor does it with negatives."""
    if e.wants(1):
        _max_pool_with_positions(node, e)
        return
    value = channels_last(e)
    window = _window(node, e, value)
    if not _is_native(value, window):
        value = pad(e, value, window, _lowest(value.dtype))
        finish(e, activated(e, slide(e, value, window, spatial_size_of(e), e.maximum), node.activation))
        return
    padding = schema.Padding.VALID
    if window.padded and window.is_same(spatial_size(value)):
        # TFLite's SAME leaves padding out of the maximum, as ONNX does.
        padding = schema.Padding.SAME
    elif window.padded:
        lowest = 0.0 if _is_never_negative(e.graph, node.inputs[0]) else _lowest(value.dtype)
        value = pad(e, value, window, lowest)
    finish(e, _pool(e, "MAX_POOL_2D", value, window, padding, node.activation))


def _max_pool_with_positions(node: Node, e: Emitter) -> None:
    """Both outputs; an index counts in the whole input [N, C, spatial...], or by columns with storage_order 1."""
    value = channels_last(e)
    window, shape = _window(node, e, value), e.output(1).shape
    batch, *sizes, channels = value.shape
    grid = np.arange(value.shape[0] * channels * int(np.prod(sizes)), dtype=np.int64)
    if node.integer("storage_order", 0) == 1:
        ordered = grid.reshape(batch, channels, *reversed(sizes))
        indices = np.moveaxis(ordered.transpose(0, 1, *reversed(range(2, value.rank))), 1, -1)
    else:
        indices = np.moveaxis(grid.reshape(batch, channels, *sizes), 1, -1)
    edges = [(0, 0), *zip(window.before, window.after, strict=True), (0, 0)]
    positions = e.constant(np.pad(indices, edges), role="indices")
    value = pad(e, value, window, _lowest(value.dtype))
    found, where = maximum_with_positions(e, value, positions, window, spatial_size_of(e))
    finish(e, found)
    e.into(node.outputs[1], e.reshape(e.transpose(where, (0, where.rank - 1, *range(1, where.rank - 1))), shape))


def average_pool(node: Node, e: Emitter) -> None:
    """AveragePool with pads, auto_pad, ceil_mode, dilations and `count_include_pad` 0 or 1, float32."""
    value = channels_last(e)
    given = read_window(node, node.integers("kernel_shape", ()), spatial_size(value))
    window, including = _window(node, e, value), node.integer("count_include_pad", 0) == 1
    native = _is_native(value, window)
    if native and not including and window == given and window.padded and window.is_same(spatial_size(value)):
        # TFLite's SAME divides by the elements that are really there.
        finish(e, _pool(e, "AVERAGE_POOL_2D", value, window, schema.Padding.SAME, node.activation))
        return
    counts = _counts(given if including else None, window, spatial_size(value), spatial_size_of(e))
    data = pad(e, value, window)
    if native and (counts == window.elements).all():
        finish(e, _pool(e, "AVERAGE_POOL_2D", data, window, schema.Padding.VALID, node.activation))
    elif native:
        raw = _pool(e, "AVERAGE_POOL_2D", data, window, schema.Padding.VALID, Activation.NONE)
        finish(e, e.mul(raw, (window.elements / counts).astype(np.float32), node.activation))
    else:
        total = slide(e, data, window, spatial_size_of(e), e.add)
        finish(e, e.mul(total, (1 / counts).astype(np.float32), node.activation))


def lp_pool(node: Node, e: Emitter) -> None:
    """LpPool: the p-norm of each window, padding counted as zeros; with ceil_mode and dilations."""
    value, p = channels_last(e), node.number("p", 2)
    window = _window(node, e, value)
    data = pad(e, _powered(e, value, p), window)
    if _is_native(value, window):
        mean = _pool(e, "AVERAGE_POOL_2D", data, window, schema.Padding.VALID, Activation.NONE)
        total = e.mul(mean, float(window.elements))
    else:
        total = slide(e, data, window, spatial_size_of(e), e.add)
    finish(e, _rooted(e, total, p))


def global_average_pool(node: Node, e: Emitter) -> None:
    """GlobalAveragePool: the mean over all spatial axes, which are kept with length 1."""
    e.into(node.outputs[0], e.reduce_mean(e.input(0), spatial_axes(e, e.input(0))))


def global_max_pool(node: Node, e: Emitter) -> None:
    """GlobalMaxPool: the maximum over all spatial axes, which are kept with length 1."""
    e.into(node.outputs[0], e.reduce_max(e.input(0), spatial_axes(e, e.input(0))))


def global_lp_pool(node: Node, e: Emitter) -> None:
    """GlobalLpPool: the p-norm over all spatial axes, which are kept with length 1."""
    p = node.number("p", 2)
    total = e.reduce_sum(_powered(e, e.input(0), p), spatial_axes(e, e.input(0)))
    e.into(node.outputs[0], _rooted(e, total, p))


def activated(e: Emitter, value: Tensor, activation: Activation) -> Tensor:
    """What a fused activation does, as an operator of its own."""
    if activation is Activation.RELU6:
        return e.relu6(value)
    return e.relu(value) if activation is Activation.RELU else value


def spatial_size_of(e: Emitter) -> tuple[int, ...]:
    """Lengths of the spatial axes of the node's first output."""
    return last_shape(e)[1:-1]


def _window(node: Node, e: Emitter, value: Tensor) -> Window:
    """The node's window, padded for as many results as ONNX infers; one without any element of the input is refused."""
    size, output = spatial_size(value), spatial_size_of(e)
    window = read_window(node, node.integers("kernel_shape", ()), size).fitted(size, output)
    if node.text("auto_pad", "NOTSET").startswith("SAME"):
        ends = [(-(-n // window.strides[axis]) - 1) * window.strides[axis] for axis, n in enumerate(size)]
        if any(end + window.extent(axis) < size[axis] for axis, end in enumerate(ends)):
            raise NotLowerableError("auto_pad SAME with windows that leave out the last elements")
    if not _counts(None, window, size, output).all():
        raise NotLowerableError("a window that covers nothing but padding")
    return window


def _is_native(value: Tensor, window: Window) -> bool:
    return value.dtype == "float32" and not window.dilated and len(window.kernel) <= 2


def _lowest(dtype: str) -> float:
    return float(np.finfo(np.float32).min) if dtype.startswith("float") else int(np.iinfo(dtype).min)


def _powered(e: Emitter, value: Tensor, p: float) -> Tensor:
    if p == 2:
        return e.square(value)
    return e.abs(value) if p == 1 else e.pow(e.abs(value), float(p))


def _rooted(e: Emitter, value: Tensor, p: float) -> Tensor:
    if p == 2:
        return e.sqrt(value)
    return value if p == 1 else e.pow(value, 1.0 / p)


def _counts(
    given: Window | None, window: Window, size: tuple[int, ...], output: tuple[int, ...]
) -> NDArray[np.float64]:
    """Elements that each window's mean divides by, [output..., 1]: real ones, and with `given` its pads too."""
    total = np.ones(1)
    for axis, length in enumerate(output):
        first, last = (-given.before[axis], size[axis] + given.after[axis]) if given else (0, size[axis])
        starts = np.arange(length) * window.strides[axis] - window.before[axis]
        taps = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        present = ((taps >= first) & (taps < last)).sum(1)
        total = np.multiply.outer(total, present)
    return total.reshape(*output, 1)


def _is_never_negative(graph: Graph, name: str) -> bool:
    producer = next((node for node in graph.nodes if name in node.outputs), None)
    if producer is None:
        return False
    return producer.activation is not Activation.NONE or producer.operator in _NEVER_NEGATIVE


def _pool(e: Emitter, operator: str, value: Tensor, window: Window, padding: int, activation: Activation) -> Tensor:
    """A pool of one or two spatial axes; one becomes two, the first of length 1."""
    shape = last_shape(e)
    if len(window.kernel) == 1:
        value = e.reshape(value, (value.shape[0], 1, *value.shape[1:]))
        window, wide = window.widened(), (shape[0], 1, *shape[1:])
    else:
        wide = shape
    options = options_of(
        "Pool2D",
        padding=padding,
        strideH=window.strides[0],
        strideW=window.strides[1],
        filterHeight=window.kernel[0],
        filterWidth=window.kernel[1],
        fusedActivationFunction=FUSED[activation],
    )
    return e.reshape(e.call(operator, [value], wide, value.dtype, options), shape)


OPERATORS: dict[str, Lowering] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}
