"""Pooling over the two spatial axes of NHWC values: MaxPool, AveragePool, GlobalAveragePool.

Does not return MaxPool's indices, and does not do dilated or ceil-mode windows.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import FUSED, Tensor, options_of
from edgefleet_converters.tflite.graph import Activation, Graph, Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.padding import Window, pad, read_window, spatial_size

_NEVER_NEGATIVE = ("Abs", "Relu", "Sigmoid")


def max_pool(node: Node, e: Emitter) -> None:
    """MaxPool of an NHWC float32 value; padding never wins, also where a window's inputs are all negative."""
    if any(node.outputs[1:]):
        raise NotLowerableError("its second output (indices) has no TFLite form")
    window, value, padding = _window(node, e), e.input(0), schema.Padding.VALID
    if window.padded and window.is_same(spatial_size(value)):
        # TFLite's SAME leaves padding out of the maximum, as ONNX does.
        padding = schema.Padding.SAME
    elif window.padded:
        lowest = 0.0 if _is_never_negative(e.graph, node.inputs[0]) else float(np.finfo(np.float32).min)
        value = pad(e, value, window, lowest)
    e.into(node.outputs[0], _pool(e, "MAX_POOL_2D", value, window, padding, node.activation))


def average_pool(node: Node, e: Emitter) -> None:
    """AveragePool of an NHWC float32 value, with `count_include_pad` 0 or 1."""
    window, value, operator = _window(node, e), e.input(0), "AVERAGE_POOL_2D"
    including = node.integer("count_include_pad", 0) == 1
    if not window.padded:
        pooled = _pool(e, operator, value, window, schema.Padding.VALID, node.activation)
    elif not including and window.is_same(spatial_size(value)):
        # TFLite's SAME divides by the elements that are really there.
        pooled = _pool(e, operator, value, window, schema.Padding.SAME, node.activation)
    elif including:
        pooled = _pool(e, operator, pad(e, value, window), window, schema.Padding.VALID, node.activation)
    else:
        present = _elements_present(window, spatial_size(value))
        factor = (window.kernel[0] * window.kernel[1] / present)[None, :, :, None].astype(np.float32)
        raw = _pool(e, operator, pad(e, value, window), window, schema.Padding.VALID, Activation.NONE)
        pooled = e.mul(raw, factor, node.activation)
    e.into(node.outputs[0], pooled)


def global_average_pool(node: Node, e: Emitter) -> None:
    """GlobalAveragePool of an NHWC value: MEAN over height and width, both kept with length 1."""
    spatial_size(e.input(0))
    e.into(node.outputs[0], e.reduce_mean(e.input(0), (1, 2)))


def _elements_present(window: Window, size: tuple[int, int]) -> NDArray[np.float64]:
    """How many elements of the unpadded input each window covers, [output height, output width]."""
    counts = []
    for axis, length in enumerate(window.output(size)):
        starts = np.arange(length) * window.strides[axis] - window.before[axis]
        stops = starts + window.kernel[axis]
        counts.append(np.minimum(stops, size[axis]) - np.maximum(starts, 0))
    return np.outer(counts[0], counts[1]).astype(np.float64)


def _window(node: Node, e: Emitter) -> Window:
    if node.integer("ceil_mode", 0):
        raise NotLowerableError("ceil_mode=1")
    window = read_window(node, node.integers("kernel_shape", ()), spatial_size(e.input(0)))
    if window.dilations != (1, 1):
        raise NotLowerableError(f"a dilated pooling window {window.dilations}")
    return window


def _is_never_negative(graph: Graph, name: str) -> bool:
    producer = next((node for node in graph.nodes if name in node.outputs), None)
    if producer is None:
        return False
    return producer.activation is not Activation.NONE or producer.operator in _NEVER_NEGATIVE


def _pool(e: Emitter, operator: str, value: Tensor, window: Window, padding: int, activation: Activation) -> Tensor:
    options = options_of(
        "Pool2D",
        padding=padding,
        strideH=window.strides[0],
        strideW=window.strides[1],
        filterHeight=window.kernel[0],
        filterWidth=window.kernel[1],
        fusedActivationFunction=FUSED[activation],
    )
    return e.call(operator, [value], e.output().shape, value.dtype, options)


OPERATORS: dict[str, Lowering] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "MaxPool": max_pool,
}
