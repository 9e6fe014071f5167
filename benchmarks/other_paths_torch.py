"""An ONNX model of common layers as the same torch module, converted by litert-torch to float32.

`python benchmarks/other_paths_torch.py MODEL.onnx OUT.tflite`, in an environment that has litert-torch; nothing of this
project is loaded. The twin exists for the comparison only: it takes one input and the operators in `_FORMS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import litert_torch  # type: ignore[import-not-found] # in its own environment only
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

Tensor = Any
_Attributes = Mapping[str, Any]


def _conv(attributes: _Attributes, x: Tensor, weight: Tensor, bias: Tensor = None) -> Tensor:
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    strides, group = attributes.get("strides", [1, 1]), attributes.get("group", 1)
    if (top, left) == (bottom, right):
        return functional.conv2d(x, weight, bias, strides, (top, left), groups=group)
    return functional.conv2d(functional.pad(x, (left, right, top, bottom)), weight, bias, strides, groups=group)


def _max_pool(attributes: _Attributes, x: Tensor) -> Tensor:
    pads, whole = attributes.get("pads", [0] * 4), bool(attributes.get("ceil_mode", 0))
    return functional.max_pool2d(x, attributes["kernel_shape"], attributes["strides"], pads[:2], ceil_mode=whole)


def _clip(_: _Attributes, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return functional.hardtanh(x, float(low), float(high))


def _gemm(_: _Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.linear(x, weight, bias)


def _slice(_: _Attributes, x: Tensor, start: Tensor, end: Tensor, axis: Tensor) -> Tensor:
    return x.narrow(int(axis), int(start), int(end) - int(start))


def _split(attributes: _Attributes, x: Tensor, sizes: Tensor = None) -> Tensor:
    axis = attributes.get("axis", 0)
    return x.chunk(attributes["num_outputs"], axis) if sizes is None else x.split(sizes.tolist(), axis)


def _norm(_: _Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, bias)


_FORMS: Mapping[str, Callable[..., Tensor]] = {
    "Add": lambda _, x, y: x + y,
    "BatchNormalization": _norm,
    "Clip": _clip,
    "Concat": lambda attributes, *parts: torch.cat(parts, attributes["axis"]),
    "Conv": _conv,
    "ConvTranspose": lambda attributes, x, weight: functional.conv_transpose2d(x, weight, None, attributes["strides"]),
    "Div": lambda _, x, y: x / y,
    "Flatten": lambda _, x: x.flatten(1),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: functional.adaptive_avg_pool2d(x, 1),
    "HardSigmoid": lambda _, x: functional.hardsigmoid(x),
    "HardSwish": lambda _, x: functional.hardswish(x),
    "MaxPool": _max_pool,
    "Mul": lambda _, x, y: x * y,
    "Relu": lambda _, x: functional.relu(x),
    "Reshape": lambda _, x, shape: x.reshape(shape.tolist()),
    "Resize": lambda _, x, __, ___: functional.interpolate(x, scale_factor=2.0, mode="nearest"),
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "Slice": _slice,
    "Softmax": lambda attributes, x: torch.softmax(x, attributes["axis"]),
    "Split": _split,
    "Sub": lambda _, x, y: x - y,
    "Transpose": lambda attributes, x: x.permute(attributes["perm"]),
}


class Twin(torch.nn.Module):  # type: ignore[misc]
    """The graph, node by node; weights are parameters, so that the converter sees them as such."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.graph = model.graph
        self.fixed: dict[str, Tensor] = {}
        for item in model.graph.initializer:
            tensor = torch.from_numpy(numpy_helper.to_array(item).copy())
            if tensor.ndim and tensor.is_floating_point():
                self.register_buffer(_field(item.name), tensor)
            else:
                self.fixed[item.name] = tensor

    def forward(self, x: Tensor) -> Tensor:
        """The first output."""
        values: dict[str, Tensor] = {"": None, self.graph.input[0].name: x, **self.fixed}
        for item in self.graph.initializer:
            if item.name not in values:
                values[item.name] = getattr(self, _field(item.name))
        for node in self.graph.node:
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            made = _FORMS[node.op_type](attributes, *(values[name] for name in node.input))
            values.update(zip(node.output, made if len(node.output) > 1 else [made], strict=True))
        return values[self.graph.output[0].name]


def _field(name: str) -> str:
    return "weight_" + "".join(letter if letter.isalnum() else "_" for letter in name)


def main() -> None:
    """Convert; a rank-4 input becomes channels-last, as the runtime likes it."""
    model = onnx.load(sys.argv[1])
    shape = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    module = litert_torch.to_channel_last_io(Twin(model).eval(), args=[0])
    litert_torch.convert(module, (torch.zeros(shape).permute(0, 2, 3, 1).contiguous(),)).export(sys.argv[2])


if __name__ == "__main__":
    main()
