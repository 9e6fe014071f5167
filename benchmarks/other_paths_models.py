"""The models that the comparison of converters is about, at their published sizes, with seeded weights.

Only graphs: no data, and nothing of any converter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from published_networks import classified, depthwise, mobilenet_v2, normed, relu, relu6, resnet8

_REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_REPOSITORY / "tests"))

from conformance_graphs.building import Building  # noqa: E402 - found by the line above
from conformance_graphs.networks import NETWORKS, detector  # noqa: E402

_DIGITS = _REPOSITORY / "fleet_demo" / "edgefleet_demo" / "data" / "digits.onnx"


def ds_cnn() -> onnx.ModelProto:
    """Keyword spotting over 49 x 10 features: four depthwise-separable blocks of 64 channels."""
    b = Building(2)
    weight = b.normal(64, 1, 10, 4, scale=40**-0.5)
    first = b.node("Conv", b.input(1, 1, 49, 10), weight, kernel_shape=[10, 4], pads=[4, 1, 5, 1], strides=[2, 2])
    data = relu(b, b.norm(first))
    for _ in range(4):
        data = relu(b, normed(b, relu(b, depthwise(b, data)), 64, 1))
    return classified(b, data, 12)


def mobilenet_v1() -> onnx.ModelProto:
    """Width 0.25 over 96 x 96 images, two classes."""
    b = Building(3)
    data = relu6(b, normed(b, b.input(1, 3, 96, 96), 8, 3, 2))
    strides = {16: (1,), 32: (2, 1), 64: (2, 1), 128: (2, 1, 1, 1, 1, 1), 256: (2, 1)}
    for filters, blocks in strides.items():
        for stride in blocks:
            data = relu6(b, normed(b, relu6(b, depthwise(b, data, stride)), filters, 1))
    return classified(b, data, 2)


def squeezenet() -> onnx.ModelProto:
    """Fire modules over 224 x 224 images, 1,000 classes by a convolution and a pool."""
    b = Building(5)
    data = relu(b, b.conv(b.input(1, 3, 224, 224), 64, 3, 2))
    for squeezed in (0, 16, 16, 0, 32, 32, 0, 48, 48, 64, 64):
        if not squeezed:
            data = b.node("MaxPool", data, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
            continue
        inner = relu(b, b.conv(data, squeezed, 1))
        sides = [relu(b, b.conv(inner, squeezed * 4, kernel)) for kernel in (1, 3)]
        data = b.node("Concat", *sides, axis=1)
    pooled = b.node("GlobalAveragePool", relu(b, b.conv(data, 1000, 1)))
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
