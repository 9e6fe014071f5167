"""Published image networks at their published sizes, with seeded weights, and the blocks that they are made of.

Only graphs: no data, and nothing of any converter.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from conformance_graphs.building import Building


def relu(b: Building, data: str) -> str:
    """A Relu."""
    return b.node("Relu", data)


def relu6(b: Building, data: str) -> str:
    """A Clip from 0 to 6."""
    return b.node("Clip", data, b.constant(np.array(0, np.float32)), b.constant(np.array(6, np.float32)))


def normed(b: Building, data: str, filters: int, kernel: int, stride: int = 1, group: int = 1) -> str:
    """A convolution without bias, and a BatchNormalization."""
    return b.norm(b.conv(data, filters, kernel, stride, group, bias=False))


def depthwise(b: Building, data: str, stride: int = 1) -> str:
    """A depthwise convolution of 3 x 3, and a BatchNormalization."""
    channels = b.shape(data)[1]
    return normed(b, data, channels, 3, stride, channels)


def classified(b: Building, data: str, classes: int = 1000) -> onnx.ModelProto:
    """The model, ended by a pool and one dense layer."""
    return b.model(b.dense(b.node("Flatten", b.node("GlobalAveragePool", data), axis=1), classes))


def resnet8() -> onnx.ModelProto:
    """Three residual stages over 32 x 32 images, 10 classes."""
    b = Building(1)
    data = relu(b, normed(b, b.input(1, 3, 32, 32), 16, 3))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        inner = relu(b, normed(b, data, filters, 3, stride))
        short = data if stride == 1 else b.conv(data, filters, 1, stride)
        data = relu(b, b.node("Add", normed(b, inner, filters, 3), short))
    return classified(b, data, 10)


def mobilenet_v2() -> onnx.ModelProto:
    """Width 1 over 224 x 224 images, 1,000 classes."""
    b = Building(4)
    data = relu6(b, normed(b, b.input(1, 3, 224, 224), 32, 3, 2))
    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, filters, count, first_stride in blocks:
        for stride in (first_stride, *[1] * (count - 1)):
            channels = b.shape(data)[1]
            inner = relu6(b, normed(b, data, channels * expand, 1)) if expand > 1 else data
            inner = normed(b, relu6(b, depthwise(b, inner, stride)), filters, 1)
            data = b.node("Add", data, inner) if stride == 1 and channels == filters else inner
    return classified(b, relu6(b, normed(b, data, 1280, 1)))
