"""Networks on sequences: a ViT-tiny, a small BERT encoder, a GRU keyword model, as exporters write them.

Attention and layer normalisation are written out in their parts, as at opset 16 and before.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from conformance_graphs.building import Building


def _scalar(b: Building, value: float) -> str:
    return b.constant(np.array(value, np.float32))


def _layer_norm(b: Building, data: str) -> str:
    width = b.shape(data)[-1]
    mean = b.node("ReduceMean", data, b.integers(-1), keepdims=1)
    centred = b.node("Sub", data, mean)
    variance = b.node("ReduceMean", b.node("Pow", centred, _scalar(b, 2.0)), b.integers(-1), keepdims=1)
    unit = b.node("Div", centred, b.node("Sqrt", b.node("Add", variance, _scalar(b, 1e-5))))
    gain = b.constant(b.random.uniform(0.8, 1.2, width).astype(np.float32))
    return b.node("Add", b.node("Mul", unit, gain), b.normal(width, scale=0.1))


def _gelu(b: Building, data: str) -> str:
    gate = b.node("Add", b.node("Erf", b.node("Div", data, _scalar(b, 2.0**0.5))), _scalar(b, 1.0))
    return b.node("Mul", b.node("Mul", data, gate), _scalar(b, 0.5))


def _attention(b: Building, data: str, heads: int, mask: str = "") -> str:
    batch, length, width = b.shape(data)
    size = width // heads

    def part(perm: list[int]) -> str:
        split = b.node("Reshape", b.linear(data, width), b.integers(batch, length, heads, size))
        return b.node("Transpose", split, perm=perm)

    query, key, value = part([0, 2, 1, 3]), part([0, 2, 3, 1]), part([0, 2, 1, 3])
    scores = b.node("Div", b.node("MatMul", query, key), _scalar(b, size**0.5))
    scores = b.node("Add", scores, mask) if mask else scores
    mixed = b.node("Transpose", b.node("MatMul", b.node("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
    return b.linear(b.node("Reshape", mixed, b.integers(batch, length, width)), width)


def vit() -> onnx.ModelProto:
    """Patches by a convolution, flattened and transposed; a class token; blocks with the norm first."""
    b = Building(21)
    width = 32
    weight = b.normal(width, 3, 8, 8, scale=0.1)
    patches = b.node("Conv", b.input(1, 3, 32, 32), weight, b.normal(width), strides=[8, 8], kernel_shape=[8, 8])
    tokens = b.node("Transpose", b.node("Reshape", patches, b.integers(1, width, -1)), perm=[0, 2, 1])
    data = b.node("Add", b.node("Concat", b.normal(1, 1, width), tokens, axis=1), b.normal(1, 17, width, scale=0.1))
    for _ in range(2):
        data = b.node("Add", data, _attention(b, _layer_norm(b, data), 4))
        data = b.node("Add", data, b.linear(_gelu(b, b.linear(_layer_norm(b, data), 64)), width))
    first = b.node("Gather", _layer_norm(b, data), b.constant(np.array(0, np.int64)), axis=1)
    return b.model(b.dense(first, 10))


def bert() -> onnx.ModelProto:
    """Word and position embeddings, an additive attention mask from an integer one, blocks with the norm last."""
    b = Building(22)
    length, width = 12, 32
    words = b.input(1, length, kind=TensorProto.INT64)
    mask = b.input(1, length, kind=TensorProto.INT64)
    shown = b.node("Cast", b.node("Unsqueeze", mask, b.integers(1, 2)), to=TensorProto.FLOAT)
    hidden = b.node("Mul", b.node("Sub", _scalar(b, 1.0), b.node("Min", shown, _scalar(b, 1.0))), _scalar(b, -1e4))
    data = b.node("Gather", b.normal(50, width), words)
    data = _layer_norm(b, b.node("Add", data, b.normal(1, length, width, scale=0.1)))
    for _ in range(2):
        data = _layer_norm(b, b.node("Add", data, _attention(b, data, 4, hidden)))
        data = _layer_norm(b, b.node("Add", data, b.linear(_gelu(b, b.linear(data, 64)), width)))
    return b.model(data)


def keywords() -> onnx.ModelProto:
    """Spectrogram frames through a convolution, a GRU in both directions, and a classifier on its last states."""
    b = Building(23)
    spectrum = b.input(1, 1, 20, 16)
    features = b.node("Relu", b.norm(b.conv(spectrum, 4, 3, 1, bias=False)))
    frames = b.node("Transpose", features, perm=[2, 0, 1, 3])
    frames = b.node("Reshape", frames, b.integers(20, 1, 64))
    hidden = 12
    weights = (b.normal(2, 3 * hidden, size, scale=size**-0.5) for size in (64, hidden))
    _, last = b.nodes_of(
        "GRU",
        [frames, *weights, b.normal(2, 6 * hidden, scale=0.1)],
        2,
        hidden_size=hidden,
        direction="bidirectional",
        linear_before_reset=1,
    )
    flat = b.node("Reshape", b.node("Transpose", last, perm=[1, 0, 2]), b.integers(1, 2 * hidden))
    return b.model(b.dense(flat, 8))


SEQUENCES = {"ViT-tiny": vit, "BERT encoder": bert, "GRU keywords": keywords}
