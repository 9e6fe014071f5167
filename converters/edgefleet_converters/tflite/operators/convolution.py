"""Conv: CONV_2D, or DEPTHWISE_CONV_2D when every input channel is its own group.

Does not split general grouped convolutions, and does not do 1-D or 3-D ones.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.file import FUSED, Draft
from edgefleet_converters.tflite.graph import Graph, Node, NotLowerableError
from edgefleet_converters.tflite.operators.padding import Window, apply_padding, read_window, spatial_size


def conv(node: Node, graph: Graph, draft: Draft) -> None:
    """Conv of a value stored NHWC with constant weights OIHW and an optional constant bias.

    Weights become OHWI, or 1HWO (O = input channel x multiplier) for depthwise.
    """
    weight = graph.constant(node.input(1), "weight").astype(np.float32)
    size = spatial_size(graph, node.inputs[0])
    window = read_window(node, weight.shape[2:], size)
    channels, group = graph.shape(node.inputs[0])[3], node.integer("group", 1)
    depthwise = group == channels and group > 1
    if group > 1 and not depthwise:
        raise NotLowerableError(f"group={group} over {channels} channels is neither 1 nor depthwise")
    bias = np.zeros(weight.shape[0], np.float32)
    if node.input(2):
        bias = graph.constant(node.input(2), "bias").astype(np.float32)
    data, padding = apply_padding(node, graph, draft, window)
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    output = node.outputs[0]
    inputs = (
        data,
        draft.constant(f"{output}/weight", np.ascontiguousarray(weight.transpose(order))),
        draft.constant(f"{output}/bias", bias),
    )
    if depthwise:
        options = _depthwise_options(node, window, padding, weight.shape[0] // channels)
        # Version 2 brought dilation.
        version = 2 if window.dilations != (1, 1) else 1
        draft.emit(schema.BuiltinOperator.DEPTHWISE_CONV_2D, inputs, output, options, version)
    else:
        draft.emit(schema.BuiltinOperator.CONV_2D, inputs, output, _options(node, window, padding))


def _options(node: Node, window: Window, padding: int) -> object:
    options = schema.Conv2DOptionsT()
    options.padding = padding
    options.strideH, options.strideW = window.strides
    options.dilationHFactor, options.dilationWFactor = window.dilations
    options.fusedActivationFunction = FUSED[node.activation]
    return options


def _depthwise_options(node: Node, window: Window, padding: int, multiplier: int) -> object:
    options = schema.DepthwiseConv2DOptionsT()
    options.padding = padding
    options.strideH, options.strideW = window.strides
    options.dilationHFactor, options.dilationWFactor = window.dilations
    options.depthMultiplier = multiplier
    options.fusedActivationFunction = FUSED[node.activation]
    return options
