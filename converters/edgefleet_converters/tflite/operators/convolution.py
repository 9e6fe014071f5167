"""Conv: CONV_2D, DEPTHWISE_CONV_2D or CONV_3D; one spatial axis becomes two, one of them of length 1.

Transposed convolutions are in `transposed`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import FUSED, Tensor, options_of
from edgefleet_converters.tflite.graph import Activation, Node, NotLowerableError
from edgefleet_converters.tflite.operators.channels import channels_last, finish, last_shape
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.padding import Window, apply_padding, read_window, spatial_size


@dataclass(frozen=True, slots=True, eq=False)
class _Convolution:
    """[N, spatial..., C] by [O, C / group, kernel...] and a bias of [O]: [N, spatial..., O], which is `shape`."""

    value: Tensor
    weight: Tensor
    bias: Tensor
    window: Window
    shape: tuple[int, ...]
    activation: Activation


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
    asked = _Convolution(value, weight, bias, window, last_shape(e), activation)
    if len(window.kernel) == 1:
        return e.reshape(_flat(e, _widened(e, asked)), asked.shape)
    if len(window.kernel) == 2:
        return _flat(e, asked)
    if len(window.kernel) == 3:
        return _solid(e, asked)
    raise NotLowerableError(f"{len(window.kernel)} spatial axes")


def _widened(e: Emitter, asked: _Convolution) -> _Convolution:
    """One spatial axis as two, the first of length 1."""
    value, weight, shape = asked.value, asked.weight, asked.shape
    return replace(
        asked,
        value=e.reshape(value, (shape[0], 1, *value.shape[1:])),
        weight=e.reshape(weight, (*weight.shape[:2], 1, *weight.shape[2:])),
        window=asked.window.widened(),
        shape=(shape[0], 1, *shape[1:]),
    )


def _flat(e: Emitter, asked: _Convolution) -> Tensor:
    """Two spatial axes. Weights become OHWI, or 1HWO (O = input channel x multiplier) for depthwise."""
    value, weight, window = asked.value, asked.weight, asked.window
    channels, group = value.shape[3], e.node.integer("group", 1)
    depthwise = group == channels and group > 1
    data, padding = apply_padding(e, value, window)
    inputs = [data, e.transpose(weight, (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)), asked.bias]
    options: dict[str, object] = {
        "padding": padding,
        "strideH": window.strides[0],
        "strideW": window.strides[1],
        "dilationHFactor": window.dilations[0],
        "dilationWFactor": window.dilations[1],
        "fusedActivationFunction": FUSED[asked.activation],
    }
    if depthwise:
        options["depthMultiplier"] = weight.shape[0] // channels
        # Version 2 brought dilation.
        version = 2 if window.dilated else 1
        table = options_of("DepthwiseConv2D", **options)
        return e.call("DEPTHWISE_CONV_2D", inputs, asked.shape, value.dtype, table, version=version)
    # Version 6 brought groups.
    version = 6 if group > 1 else 1
    return e.call("CONV_2D", inputs, asked.shape, value.dtype, options_of("Conv2D", **options), version=version)


def _solid(e: Emitter, asked: _Convolution) -> Tensor:
    """Three spatial axes, a CONV_3D per group. Weights become DHWIO."""
    value, window, shape = asked.value, asked.window, asked.shape
    group = e.node.integer("group", 1)
    data, padding = apply_padding(e, value, window)
    names = [f"{kind}{axis}{end}" for kind, end in (("stride", ""), ("dilation", "Factor")) for axis in "DHW"]
    options = dict(zip(names, (*window.strides, *window.dilations), strict=True))
    table = options_of("Conv3D", padding=padding, fusedActivationFunction=FUSED[asked.activation], **options)
    filters = e.transpose(asked.weight, (2, 3, 4, 1, 0))
    parts = [
        e.call("CONV_3D", list(operands), (*shape[:-1], shape[-1] // group), value.dtype, table)
        for operands in zip(
            e.split(data, -1, [value.shape[-1] // group] * group),
            e.split(filters, -1, [shape[-1] // group] * group),
            e.split(asked.bias, 0, [shape[-1] // group] * group),
            strict=True,
        )
    ]
    return e.concat(parts, -1)


OPERATORS: dict[str, Lowering] = {"Conv": conv}
