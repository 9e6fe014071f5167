"""The weights of a product with constant weights, whatever operator it is: scaled per channel of its result or data.

Knows Conv, ConvTranspose, Gemm and MatMul; everything else has no such weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.tflite.graph import Array, Graph, Node, NotLowerableError

Floats = NDArray[np.float64]

RESULT_AXES: Mapping[str, int] = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}
"""The products with weights, and the axis of their result that each row of the weights makes one index of."""

_CONNECTED_RANK = 4
"""Up to here a MatMul with a bias is a Gemm, whose rule keeps all axes of its data."""


@dataclass(frozen=True, slots=True)
class Weights:
    """`rows` is [result channels, data channels of the row's group, anything], in float64, with a bias per row."""

    operator: str
    rows: Floats
    bias: Floats | None
    shape: tuple[int, ...]
    group: int
    takes_bias: bool
    padded: bool

    def scaled_after(self, gain: Floats, offset: Floats) -> Weights | None:
        """The weights of gain * result + offset; None when a bias would be needed and cannot be had."""
        count = self.rows.shape[0]
        if gain.size not in (1, count) or offset.size not in (1, count):
            return None
        bias = self._with(gain * (0.0 if self.bias is None else self.bias) + offset)
        if bias is None and np.any(offset):
            return None
        return replace(self, rows=self.rows * gain.reshape(-1, 1, 1), bias=bias)

    def scaled_before(self, gain: Floats, offset: Floats) -> Weights | None:
        """The product of gain * data + offset; None where padding would be scaled too, or a bias cannot be had."""
        per_row = self.rows.shape[1]
        if gain.size not in (1, per_row * self.group) or offset.size not in (1, per_row * self.group):
            return None
        if self.padded and np.any(offset):
            return None
        gains, offsets = (self._by_row(vector, per_row * self.group) for vector in (gain, offset))
        added = (self.rows * offsets[:, :, None]).sum(axis=(1, 2))
        bias = self._with(added + (0.0 if self.bias is None else self.bias))
        if bias is None and np.any(added):
            return None
        return replace(self, rows=self.rows * gains[:, :, None], bias=bias)

    def _by_row(self, vector: Floats, channels: int) -> Floats:
        """For each row, the entries of the data channels that its group reads."""
        groups = np.broadcast_to(vector, (channels,)).reshape(self.group, -1)
        return np.repeat(groups, self.rows.shape[0] // self.group, axis=0)

    def _with(self, bias: Floats) -> Floats | None:
        return np.broadcast_to(bias, (self.rows.shape[0],)) if self.takes_bias else None

    def stored(self, node: Node, weight: str, bias: str) -> tuple[Node, dict[str, Array]]:
        """The node reading constants of these names, and the constants, in float32."""
        constants: dict[str, Array] = {weight: _unrolled(self, node).astype(np.float32)}
        names = [node.inputs[0], weight]
        if self.bias is not None:
            constants[bias] = self.bias.astype(np.float32)
            names.append(bias)
        if node.operator in ("Gemm", "MatMul") and self.takes_bias:
            gemm = replace(node, operator="Gemm", inputs=tuple(names), attributes={"transB": 0}, opset=13)
            return gemm, constants
        return replace(node, inputs=tuple(names)), constants


def weights_of(graph: Graph, node: Node, constants: Mapping[str, Array]) -> Weights | None:
    """The weights of a float32 product, or None if they or its bias are not constants."""
    weight, bias = constants.get(node.input(1)), constants.get(node.input(2))
    if weight is None or weight.dtype != np.float32 or (node.input(2) and bias is None):
        return None
    try:
        shapes = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    except NotLowerableError:
        return None
    if node.operator in ("Conv", "ConvTranspose") and weight.ndim > 2:
        return _of_convolution(node, weight, bias)
    if node.operator == "Gemm":
        return _of_gemm(node, weight, bias)
    if node.operator == "MatMul" and weight.ndim == 2 and len(shapes[0]) > 1:
        takes_bias = len(shapes[0]) <= _CONNECTED_RANK
        return Weights("MatMul", weight.T[:, :, None].astype(np.float64), None, weight.shape, 1, takes_bias, False)
    return None


def _of_convolution(node: Node, weight: Array, bias: Array | None) -> Weights:
    group, rank = node.integer("group", 1), weight.ndim - 2
    padded = any(node.integers("pads", (0,) * (2 * rank))) or node.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    flat = weight.astype(np.float64).reshape(*weight.shape[:2], -1)
    if node.operator == "ConvTranspose":
        # [data channels, result channels / group, kernel...]; what lies between the strides is not padding of the data.
        parts = flat.reshape(group, -1, *flat.shape[1:]).transpose(0, 2, 1, 3)
        flat, padded = parts.reshape(-1, *parts.shape[2:]), True
    added = None if bias is None else bias.astype(np.float64)
    return Weights(node.operator, flat, added, weight.shape, group, True, padded)


def _of_gemm(node: Node, weight: Array, bias: Array | None) -> Weights | None:
    """Scale factors alpha and beta become part of the weights and the bias."""
    if node.integer("transA", 0):
        return None
    rows = (weight if node.integer("transB", 0) else weight.T).astype(np.float64) * node.number("alpha", 1.0)
    added = None
    if bias is not None:
        if bias.size not in (1, rows.shape[0]) or (bias.ndim and bias.shape[-1] != bias.size):
            return None
        added = np.broadcast_to(bias.astype(np.float64).ravel() * node.number("beta", 1.0), (rows.shape[0],))
    return Weights("Gemm", rows[:, :, None], added, rows.shape, 1, True, False)


def _unrolled(weights: Weights, node: Node) -> Floats:
    """The rows in the form that the operator keeps its weights in."""
    if node.operator == "Conv":
        return weights.rows.reshape(weights.shape)
    if node.operator == "ConvTranspose":
        parts = weights.rows.reshape(weights.group, -1, *weights.rows.shape[1:])
        return parts.transpose(0, 2, 1, 3).reshape(weights.shape)
    return weights.rows[:, :, 0].T
