"""Conv: CONV_2D, or DEPTHWISE_CONV_2D when every input channel is its own group.

Does not split general grouped convolutions, and does not do 1-D or 3-D ones.
"""

from __future__ import annotations

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import FUSED, options_of
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.padding import Window, apply_padding, read_window, spatial_size


def conv(node: Node, e: Emitter) -> None:
    """Conv of a value stored NHWC with constant weights OIHW and an optional constant bias, float32.

    Weights become OHWI, or 1HWO (O = input channel x multiplier) for depthwise.
    """
    value, weight = e.input(0), e.array(1, "weight").astype(np.float32)
    window = read_window(node, weight.shape[2:], spatial_size(value))
    channels, group = value.shape[3], node.integer("group", 1)
    depthwise = group == channels and group > 1
    if group > 1 and not depthwise:
        raise NotLowerableError(f"group={group} over {channels} channels is neither 1 nor depthwise")
    bias = e.array(2, "bias").astype(np.float32) if e.has(2) else np.zeros(weight.shape[0], np.float32)
    data, padding = apply_padding(e, value, window)
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    inputs = [data, e.constant(weight.transpose(order), role="weight"), e.constant(bias, role="bias")]
    shape = e.output().shape
    if depthwise:
        multiplier = weight.shape[0] // channels
        options = _options("DepthwiseConv2D", node, window, padding, depthMultiplier=multiplier)
        # Version 2 brought dilation.
        version = 2 if window.dilations != (1, 1) else 1
        e.into(node.outputs[0], e.call("DEPTHWISE_CONV_2D", inputs, shape, "float32", options, version=version))
    else:
        options = _options("Conv2D", node, window, padding)
        e.into(node.outputs[0], e.call("CONV_2D", inputs, shape, "float32", options))


def _options(table: str, node: Node, window: Window, padding: int, **more: object) -> object:
    return options_of(
        table,
        padding=padding,
        strideH=window.strides[0],
        strideW=window.strides[1],
        dilationHFactor=window.dilations[0],
        dilationWFactor=window.dilations[1],
        fusedActivationFunction=FUSED[node.activation],
        **more,
    )


OPERATORS: dict[str, Lowering] = {"Conv": conv}
