"""Pooling over the two spatial axes of NHWC values: MaxPool, AveragePool, GlobalAveragePool.

Does not return MaxPool's indices, and does not do dilated or ceil-mode windows.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgefleet_converters.tflite.file import FUSED, Draft
from edgefleet_converters.tflite.graph import Activation, Graph, Node, NotLowerableError
from edgefleet_converters.tflite.operators.padding import Window, pad, read_window, spatial_size


def max_pool(node: Node, graph: Graph, draft: Draft) -> None:
    """MaxPool of an NHWC value; padding never wins, also where all the inputs of a window are negative."""
    if any(node.outputs[1:]):
        raise NotLowerableError("its second output (indices) has no TFLite form")
    window = _window(node, graph)
    data, padding = node.inputs[0], schema.Padding.VALID
    if window.padded and window.is_same(spatial_size(graph, node.inputs[0])):
        # TFLite's SAME leaves padding out of the maximum, as ONNX does.
        padding = schema.Padding.SAME
    elif window.padded:
        lowest = 0.0 if _is_never_negative(graph, node.inputs[0]) else float(np.finfo(np.float32).min)
        data = pad(node, graph, draft, window, lowest)
    _emit(node, draft, schema.BuiltinOperator.MAX_POOL_2D, data, window, padding)


def average_pool(node: Node, graph: Graph, draft: Draft) -> None:
    """AveragePool of an NHWC value, with `count_include_pad` 0 or 1."""
    window = _window(node, graph)
    size = spatial_size(graph, node.inputs[0])
    including = node.integer("count_include_pad", 0) == 1
    if not window.padded:
        _emit(node, draft, schema.BuiltinOperator.AVERAGE_POOL_2D, node.inputs[0], window, schema.Padding.VALID)
    elif not including and window.is_same(size):
        # TFLite's SAME divides by the elements that are really there.
        _emit(node, draft, schema.BuiltinOperator.AVERAGE_POOL_2D, node.inputs[0], window, schema.Padding.SAME)
    elif including:
        data = pad(node, graph, draft, window)
        _emit(node, draft, schema.BuiltinOperator.AVERAGE_POOL_2D, data, window, schema.Padding.VALID)
    else:
        _average_then_correct(node, graph, draft, window)


def global_average_pool(node: Node, graph: Graph, draft: Draft) -> None:
    """GlobalAveragePool of an NHWC value: MEAN over height and width, both kept with length 1."""
    spatial_size(graph, node.inputs[0])
    options = schema.ReducerOptionsT()
    options.keepDims = True
    axes = draft.constant(f"{node.outputs[0]}/axes", np.array([1, 2], np.int32))
    draft.emit(schema.BuiltinOperator.MEAN, (node.inputs[0], axes), node.outputs[0], options)


def _average_then_correct(node: Node, graph: Graph, draft: Draft, window: Window) -> None:
    """Average over zero padding, then multiply by window size / elements that are really there."""
    output = node.outputs[0]
    present = _elements_present(window, spatial_size(graph, node.inputs[0]))
    factor = (window.kernel[0] * window.kernel[1] / present)[None, :, :, None].astype(np.float32)
    data = pad(node, graph, draft, window)
    raw = draft.temporary(f"{output}/unscaled", graph.shape(output))
    options = schema.MulOptionsT()
    options.fusedActivationFunction = FUSED[node.activation]
    _emit(node, draft, schema.BuiltinOperator.AVERAGE_POOL_2D, data, window, schema.Padding.VALID, raw)
    inputs = (raw, draft.constant(f"{output}/factor", factor))
    draft.emit(schema.BuiltinOperator.MUL, inputs, output, options)


def _elements_present(window: Window, size: tuple[int, int]) -> NDArray[np.float64]:
    """How many elements of the unpadded input each window covers, [output height, output width]."""
    counts = []
    for axis, length in enumerate(window.output(size)):
        starts = np.arange(length) * window.strides[axis] - window.before[axis]
        stops = starts + window.kernel[axis]
        counts.append(np.minimum(stops, size[axis]) - np.maximum(starts, 0))
    return np.outer(counts[0], counts[1]).astype(np.float64)


def _window(node: Node, graph: Graph) -> Window:
    if node.integer("ceil_mode", 0):
        raise NotLowerableError("ceil_mode=1")
    size = spatial_size(graph, node.inputs[0])
    window = read_window(node, node.integers("kernel_shape", ()), size)
    if window.dilations != (1, 1):
        raise NotLowerableError(f"a dilated pooling window {window.dilations}")
    return window


def _is_never_negative(graph: Graph, name: str) -> bool:
    producer = next((node for node in graph.nodes if name in node.outputs), None)
    return producer is not None and producer.activation is not Activation.NONE


def _emit(node: Node, draft: Draft, code: int, data: str, window: Window, padding: int, unscaled: str = "") -> None:
    options = schema.Pool2DOptionsT()
    options.padding = padding
    options.strideH, options.strideW = window.strides
    options.filterHeight, options.filterWidth = window.kernel
    fused = Activation.NONE if unscaled else node.activation
    options.fusedActivationFunction = FUSED[fused]
    draft.emit(code, (data,), unscaled or node.outputs[0], options)
