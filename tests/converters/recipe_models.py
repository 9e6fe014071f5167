"""Models for the tests of recipes: many inputs and outputs, integer inputs, ranks 3 and 5, residuals, dense layers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from conformance_graphs.building import Building


def transformer() -> onnx.ModelProto:
    """Token numbers and a mask (int64) in; the states [1, 12, 64] and a pooled vector [1, 8] out."""
    b = Building(31)
    length, width = 12, 64
    words, mask = (b.input(1, length, kind=TensorProto.INT64) for _ in range(2))
    shown = b.node("Cast", b.node("Unsqueeze", mask, b.integers(1, 2)), to=TensorProto.FLOAT)
    hidden = b.node("Mul", b.node("Sub", shown, _scalar(b, 1.0)), _scalar(b, 1e4))
    data = b.node("Add", b.node("Gather", b.normal(20, width), words), b.normal(1, length, width, scale=0.1))
    for _ in range(2):
        data = _normed(b, b.node("Add", data, _attention(b, data, hidden)))
        data = _normed(b, b.node("Add", data, b.linear(b.node("Relu", b.linear(data, 128)), width)))
    pooled = b.dense(b.node("ReduceMean", data, b.integers(1), keepdims=0), 8)
    return b.model(data, pooled)


def _scalar(b: Building, value: float) -> str:
    return b.constant(np.array(value, np.float32))


def _attention(b: Building, data: str, hidden: str, heads: int = 4) -> str:
    _, length, width = b.shape(data)
    split = b.integers(1, length, heads, width // heads)
    query, key, value = (b.node("Reshape", b.linear(data, width), split) for _ in range(3))
    query, value = (b.node("Transpose", part, perm=[0, 2, 1, 3]) for part in (query, value))
    scores = b.node("MatMul", query, b.node("Transpose", key, perm=[0, 2, 3, 1]))
    weights = b.node("Softmax", b.node("Add", b.node("Mul", scores, _scalar(b, 0.25)), hidden), axis=-1)
    joined = b.node("Transpose", b.node("MatMul", weights, value), perm=[0, 2, 1, 3])
    return b.linear(b.node("Reshape", joined, b.integers(1, length, width)), width)


def _normed(b: Building, data: str) -> str:
    width = b.shape(data)[-1]
    return b.node("LayerNormalization", data, b.normal(width), b.normal(width, scale=0.1), axis=-1)


def convolutions() -> onnx.ModelProto:
    """An image and a vector in; class scores [1, 6] and a map [1, 8, 8, 8] out. Residual, BatchNormalization, Relu."""
    b = Building(32)
    image, vector = b.input(1, 3, 16, 16), b.input(1, 16)
    data = b.node("Relu", b.norm(b.conv(image, 8, 3, 2, bias=False)))
    inner = b.node("Relu", b.norm(b.conv(data, 16, 1, bias=False)))
    data = b.node("Relu", b.node("Add", data, b.norm(b.conv(inner, 8, 3, bias=False))))
    pooled = b.node("Flatten", b.node("GlobalAveragePool", data), axis=1)
    return b.model(b.dense(b.node("Concat", pooled, vector, axis=1), 6), data)


def volumes() -> onnx.ModelProto:
    """Rank 5 and rank 3 in one graph: a 3-D convolution over [1, 2, 4, 8, 8] and a 1-D one over [1, 4, 20]."""
    b = Building(33)
    volume, sequence = b.input(1, 2, 4, 8, 8), b.input(1, 4, 20)
    solid = b.node("Conv", volume, b.normal(6, 2, 3, 3, 3, scale=0.2), kernel_shape=[3, 3, 3], pads=[1] * 6)
    line = b.node("Conv", sequence, b.normal(6, 4, 3, scale=0.3), kernel_shape=[3], pads=[1, 1])
    return b.model(b.node("Relu", solid), b.node("Relu", line))


def autoencoder() -> onnx.ModelProto:
    """Dense layers with BatchNormalization through a bottleneck of 8, as in the MLPerf Tiny benchmark."""
    b = Building(34)
    data = b.input(1, 640)
    for width in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        data = b.node("Relu", b.norm(b.dense(data, width)))
    return b.model(b.dense(data, 640))


def difference() -> onnx.ModelProto:
    """Two inputs of one shape that must not be mixed up, and two outputs of one shape: x - 2 y and x + y."""
    b = Building(35)
    first, second = b.input(1, 6, 6, 4), b.input(1, 6, 6, 4)
    twice = b.node("Mul", second, _scalar(b, 2.0))
    return b.model(b.node("Sub", first, twice), b.node("Add", first, second))
