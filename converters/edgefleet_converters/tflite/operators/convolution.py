"""Conv: CONV_2D, DEPTHWISE_CONV_2D or CONV_3D; one spatial axis becomes two, one of them of length 1.

Transposed convolutions are in `transposed`.
"""

from __future__ import annotations

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import FUSED, Tensor, options_of
from edgefleet_converters.tflite.graph import Activation, Node, NotLowerableError
from edgefleet_converters.tflite.operators.channels import channels_last, finish, last_shape
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.padding import Window, apply_padding, read_window, spatial_size


def conv(node: Node, e: Emitter) -> None:
    """Conv over 1 to 3 spatial axes, float32: any group, weights and bias constant or computed."""
    weight = e.cast(e.input(1), "float32")
    bias = e.cast(e.input(2), "float32") if e.has(2) else None
    finish(e, convolved(node, e, channels_last(e), weight, bias, node.activation))


def convolved(
    node: Node,
    e: Emitter,
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: Activation = Activation.NONE,
) -> Tensor:
    """[N, spatial..., C] by weights [O, C / group, kernel...] as the node's attributes say: [N, spatial..., O]."""
    window = read_window(node, weight.shape[2:], spatial_size(value))
    if bias is None:
        bias = e.constant(np.zeros(weight.shape[0], np.float32), role="bias")
    shape = last_shape(e)
    if len(window.kernel) == 1:
        wide = e.reshape(value, (shape[0], 1, *value.shape[1:]))
        kernel = e.reshape(weight, (*weight.shape[:2], 1, *weight.shape[2:]))
        made = _flat(e, wide, kernel, bias, window.widened(), (shape[0], 1, *shape[1:]), activation)
        return e.reshape(made, shape)
    if len(window.kernel) == 2:
        return _flat(e, value, weight, bias, window, shape, activation)
    if len(window.kernel) == 3:
        return _solid(e, value, weight, bias, window, shape, activation)
    raise NotLowerableError(f"{len(window.kernel)} spatial axes")


def _flat(
    e: Emitter,
    value: Tensor,
    weight: Tensor,
    bias: Tensor,
    window: Window,
    shape: tuple[int, ...],
    activation: Activation,
) -> Tensor:
    """Two spatial axes. Weights become OHWI, or 1HWO (O = input channel x multiplier) for depthwise."""
    channels, group = value.shape[3], e.node.integer("group", 1)
    depthwise = group == channels and group > 1
    data, padding = apply_padding(e, value, window)
    inputs = [data, e.transpose(weight, (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)), bias]
    options: dict[str, object] = {
        "padding": padding,
        "strideH": window.strides[0],
        "strideW": window.strides[1],
        "dilationHFactor": window.dilations[0],
        "dilationWFactor": window.dilations[1],
        "fusedActivationFunction": FUSED[activation],
    }
    if depthwise:
        options["depthMultiplier"] = weight.shape[0] // channels
        # Version 2 brought dilation.
        version = 2 if window.dilated else 1
        table = options_of("DepthwiseConv2D", **options)
        return e.call("DEPTHWISE_CONV_2D", inputs, shape, value.dtype, table, version=version)
    # Version 6 brought groups.
    version = 6 if group > 1 else 1
    return e.call("CONV_2D", inputs, shape, value.dtype, options_of("Conv2D", **options), version=version)


def _solid(
    e: Emitter,
    value: Tensor,
    weight: Tensor,
    bias: Tensor,
    window: Window,
    shape: tuple[int, ...],
    activation: Activation,
) -> Tensor:
    """Three spatial axes, a CONV_3D per group. Weights become DHWIO."""
    group = e.node.integer("group", 1)
    data, padding = apply_padding(e, value, window)
    names = [f"{kind}{axis}{end}" for kind, end in (("stride", ""), ("dilation", "Factor")) for axis in "DHW"]
    options = dict(zip(names, (*window.strides, *window.dilations), strict=True))
    table = options_of("Conv3D", padding=padding, fusedActivationFunction=FUSED[activation], **options)
    filters = e.transpose(weight, (2, 3, 4, 1, 0))
    parts = [
        e.call("CONV_3D", list(operands), (*shape[:-1], shape[-1] // group), value.dtype, table)
        for operands in zip(
            e.split(data, -1, [value.shape[-1] // group] * group),
            e.split(filters, -1, [shape[-1] // group] * group),
            e.split(bias, 0, [shape[-1] // group] * group),
            strict=True,
        )
    ]
    return e.concat(parts, -1)


OPERATORS: dict[str, Lowering] = {"Conv": conv}
