"""The models that the comparison of converters is about, at their published sizes, with seeded weights.

Only graphs: no data, and nothing of any converter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx

_REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_REPOSITORY / "tests"))

from conformance_graphs.building import Building  # noqa: E402 - found by the line above
from conformance_graphs.networks import NETWORKS, detector  # noqa: E402

_DIGITS = _REPOSITORY / "fleet_demo" / "edgefleet_demo" / "data" / "digits.onnx"


def _relu(b: Building, data: str) -> str:
    return b.node("Relu", data)


def _relu6(b: Building, data: str) -> str:
    return b.node("Clip", data, b.constant(np.array(0, np.float32)), b.constant(np.array(6, np.float32)))


def _normed(b: Building, data: str, filters: int, kernel: int, stride: int = 1, group: int = 1) -> str:
    return b.norm(b.conv(data, filters, kernel, stride, group, bias=False))


def _depthwise(b: Building, data: str, stride: int = 1) -> str:
    channels = b.shape(data)[1]
    return _normed(b, data, channels, 3, stride, channels)


def _classified(b: Building, data: str, classes: int) -> onnx.ModelProto:
    return b.model(b.dense(b.node("Flatten", b.node("GlobalAveragePool", data), axis=1), classes))


def resnet8() -> onnx.ModelProto:
    """Three residual stages over 32 x 32 images."""
    b = Building(1)
    data = _relu(b, _normed(b, b.input(1, 3, 32, 32), 16, 3))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        inner = _relu(b, _normed(b, data, filters, 3, stride))
        short = data if stride == 1 else b.conv(data, filters, 1, stride)
        data = _relu(b, b.node("Add", _normed(b, inner, filters, 3), short))
    return _classified(b, data, 10)


def ds_cnn() -> onnx.ModelProto:
    """Keyword spotting over 49 x 10 features: four depthwise-separable blocks of 64 channels."""
    b = Building(2)
    weight = b.normal(64, 1, 10, 4, scale=40**-0.5)
    first = b.node("Conv", b.input(1, 1, 49, 10), weight, kernel_shape=[10, 4], pads=[4, 1, 5, 1], strides=[2, 2])
    data = _relu(b, b.norm(first))
    for _ in range(4):
        data = _relu(b, _normed(b, _relu(b, _depthwise(b, data)), 64, 1))
    return _classified(b, data, 12)


def mobilenet_v1() -> onnx.ModelProto:
    """Width 0.25 over 96 x 96 images, two classes."""
    b = Building(3)
    data = _relu6(b, _normed(b, b.input(1, 3, 96, 96), 8, 3, 2))
    strides = {16: (1,), 32: (2, 1), 64: (2, 1), 128: (2, 1, 1, 1, 1, 1), 256: (2, 1)}
    for filters, blocks in strides.items():
        for stride in blocks:
            data = _relu6(b, _normed(b, _relu6(b, _depthwise(b, data, stride)), filters, 1))
    return _classified(b, data, 2)


def mobilenet_v2() -> onnx.ModelProto:
    """Width 1 over 224 x 224 images, 1,000 classes."""
    b = Building(4)
    data = _relu6(b, _normed(b, b.input(1, 3, 224, 224), 32, 3, 2))
    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, filters, count, first_stride in blocks:
        for stride in (first_stride, *[1] * (count - 1)):
            channels = b.shape(data)[1]
            inner = _relu6(b, _normed(b, data, channels * expand, 1)) if expand > 1 else data
            inner = _normed(b, _relu6(b, _depthwise(b, inner, stride)), filters, 1)
            data = b.node("Add", data, inner) if stride == 1 and channels == filters else inner
    return _classified(b, _relu6(b, _normed(b, data, 1280, 1)), 1000)


def squeezenet() -> onnx.ModelProto:
    """Fire modules over 224 x 224 images, 1,000 classes by a convolution and a pool."""
    b = Building(5)
    data = _relu(b, b.conv(b.input(1, 3, 224, 224), 64, 3, 2))
    for squeezed in (0, 16, 16, 0, 32, 32, 0, 48, 48, 64, 64):
        if not squeezed:
            data = b.node("MaxPool", data, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
            continue
        inner = _relu(b, b.conv(data, squeezed, 1))
        sides = [_relu(b, b.conv(inner, squeezed * 4, kernel)) for kernel in (1, 3)]
        data = b.node("Concat", *sides, axis=1)
    pooled = b.node("GlobalAveragePool", _relu(b, b.conv(data, 1000, 1)))
    return b.model(b.node("Flatten", pooled, axis=1))


def digits() -> onnx.ModelProto:
    """The demo's own trained model."""
    return onnx.load(_DIGITS)


MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "digits": digits,
    "resnet8": resnet8,
    "ds_cnn": ds_cnn,
    "mobilenet_v1_025_96": mobilenet_v1,
    "mobilenet_v2_224": mobilenet_v2,
    "squeezenet_224": squeezenet,
    "yolo_style_64": detector,
    "mobilenet_v3_style_64": NETWORKS["MobileNetV3"],
    "encoder_decoder_32": NETWORKS["encoder-decoder"],
}
