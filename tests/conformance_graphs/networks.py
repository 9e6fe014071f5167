"""Convolutional networks as exporters write them, small enough to run in moments.

Topologies and operators are the published ones; widths, depths and image sizes are cut down, weights seeded.
"""

from __future__ import annotations

import numpy as np
import onnx

from conformance_graphs.building import Array, Building


def _relu6(b: Building, data: str) -> str:
    return b.node("Clip", data, b.constant(_float(0.0)), b.constant(_float(6.0)))


def _float(value: float) -> Array:
    return np.array(value, np.float32)


def _classify(b: Building, data: str, classes: int = 10) -> onnx.ModelProto:
    pooled = b.node("Flatten", b.node("GlobalAveragePool", data), axis=1)
    return b.model(b.dense(pooled, classes))


def mobilenet_v1() -> onnx.ModelProto:
    """Depthwise-separable blocks with BatchNormalization and Relu6."""
    b = Building(1)
    data = _relu6(b, b.norm(b.conv(b.input(1, 3, 64, 64), 8, 3, 2, bias=False)))
    for filters, stride in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        channels = b.shape(data)[1]
        data = _relu6(b, b.norm(b.conv(data, channels, 3, stride, group=channels, bias=False)))
        data = _relu6(b, b.norm(b.conv(data, filters, 1, bias=False)))
    return _classify(b, data)


def _inverted(b: Building, data: str, filters: int, stride: int, expand: int, kernel: int = 3) -> str:
    channels = b.shape(data)[1]
    wide = channels * expand
    inner = _relu6(b, b.norm(b.conv(data, wide, 1, bias=False))) if expand > 1 else data
    inner = _relu6(b, b.norm(b.conv(inner, wide, kernel, stride, group=wide, bias=False)))
    inner = b.norm(b.conv(inner, filters, 1, bias=False))
    return b.node("Add", data, inner) if stride == 1 and filters == channels else inner


def mobilenet_v2() -> onnx.ModelProto:
    """Inverted residuals; the classifier after a ReduceMean, as torch exports it."""
    b = Building(2)
    data = _relu6(b, b.norm(b.conv(b.input(1, 3, 64, 64), 8, 3, 2, bias=False)))
    for filters, stride, expand in ((8, 1, 1), (12, 2, 6), (12, 1, 6), (16, 2, 6), (16, 1, 6)):
        data = _inverted(b, data, filters, stride, expand)
    data = _relu6(b, b.norm(b.conv(data, 64, 1, bias=False)))
    return b.model(b.dense(b.node("ReduceMean", data, b.integers(2, 3), keepdims=0), 10))


def _hard_swish(b: Building, data: str) -> str:
    """As written before ONNX had the operator."""
    gate = b.node(
        "Clip", b.node("Add", data, b.constant(_float(3.0))), b.constant(_float(0.0)), b.constant(_float(6.0))
    )
    return b.node("Div", b.node("Mul", data, gate), b.constant(_float(6.0)))


def _excited(b: Building, data: str) -> str:
    channels = b.shape(data)[1]
    squeezed = b.node("Relu", b.conv(b.node("GlobalAveragePool", data), max(channels // 4, 4), 1))
    return b.node("Mul", data, b.node("HardSigmoid", b.conv(squeezed, channels, 1), alpha=1 / 6, beta=0.5))


def mobilenet_v3() -> onnx.ModelProto:
    """HardSwish in both of its exported forms, squeeze-and-excite gates, and a 1x1 head before the classifier."""
    b = Building(3)
    data = _hard_swish(b, b.norm(b.conv(b.input(1, 3, 64, 64), 8, 3, 2, bias=False)))
    for filters, stride, expand, excite in ((8, 1, 1, True), (12, 2, 4, False), (12, 1, 4, True), (16, 2, 6, True)):
        channels = b.shape(data)[1]
        wide = channels * expand
        inner = _hard_swish(b, b.norm(b.conv(data, wide, 1, bias=False)))
        inner = b.node("HardSwish", b.norm(b.conv(inner, wide, 5, stride, group=wide, bias=False)))
        inner = b.norm(b.conv(_excited(b, inner) if excite else inner, filters, 1, bias=False))
        data = b.node("Add", data, inner) if stride == 1 and filters == channels else inner
    head = _hard_swish(b, b.conv(b.node("GlobalAveragePool", b.node("HardSwish", b.conv(data, 48, 1))), 64, 1))
    return b.model(b.dense(b.node("Flatten", head, axis=1), 10))


def efficientnet_lite() -> onnx.ModelProto:
    """Inverted residuals with kernels of 3 and 5, no gates, Relu6 throughout."""
    b = Building(4)
    data = _relu6(b, b.norm(b.conv(b.input(1, 3, 64, 64), 8, 3, 2, bias=False)))
    for filters, stride, expand, kernel in ((8, 1, 1, 3), (12, 2, 6, 3), (12, 1, 6, 3), (16, 2, 6, 5), (16, 1, 6, 5)):
        data = _inverted(b, data, filters, stride, expand, kernel)
    return _classify(b, _relu6(b, b.norm(b.conv(data, 64, 1, bias=False))))


def resnet() -> onnx.ModelProto:
    """Bottleneck blocks with a padded max pool in front."""
    b = Building(5)
    data = b.node("Relu", b.norm(b.conv(b.input(1, 3, 64, 64), 16, 7, 2, bias=False)))
    data = b.node("MaxPool", data, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for filters, stride in ((32, 1), (32, 1), (64, 2), (64, 1)):
        short = data
        if filters != b.shape(data)[1] or stride > 1:
            short = b.norm(b.conv(data, filters, 1, stride, bias=False))
        inner = b.node("Relu", b.norm(b.conv(data, filters // 4, 1, bias=False)))
        inner = b.node("Relu", b.norm(b.conv(inner, filters // 4, 3, stride, bias=False)))
        data = b.node("Relu", b.node("Add", b.norm(b.conv(inner, filters, 1, bias=False)), short))
    return _classify(b, data)


def nhwc_network() -> onnx.ModelProto:
    """As tf2onnx writes a network that was NHWC: transposes around every convolution, biases added on the last axis."""
    b = Building(6)
    data = b.input(1, 32, 32, 3)
    for filters, stride in ((8, 2), (8, 1), (16, 2), (16, 1)):
        before = data
        inner = b.node("Transpose", data, perm=[0, 3, 1, 2])
        inner = b.conv(inner, filters, 3, stride, bias=False)
        inner = b.node("Transpose", inner, perm=[0, 2, 3, 1])
        inner = b.node("Relu", b.node("Add", inner, b.normal(filters)))
        data = b.node("Add", before, inner) if b.shape(before) == b.shape(inner) else inner
    pooled = b.node("ReduceMean", data, b.integers(1, 2), keepdims=0)
    return b.model(b.linear(pooled, 10))


def fully_convolutional() -> onnx.ModelProto:
    """An encoder and decoder with transposed convolutions, skips by Concat, and class scores by Softmax on axis 1."""
    b = Building(7)
    first = b.node("Relu", b.norm(b.conv(b.input(1, 3, 32, 32), 8, 3, bias=False)))
    second = b.node("Relu", b.conv(first, 16, 3, 2))
    weight = b.normal(16, 8, 2, 2, scale=0.2)
    up = b.node("ConvTranspose", second, weight, kernel_shape=[2, 2], strides=[2, 2])
    joined = b.node("Relu", b.conv(b.node("Concat", up, first, axis=1), 8, 3))
    return b.model(b.node("Softmax", b.conv(joined, 4, 1), axis=1))


def detector() -> onnx.ModelProto:
    """A YOLO-style detector: C2f, SPPF, two scales, DFL, boxes and scores concatenated."""
    b = Building(8)
    data = _silu(b, b.conv(b.input(1, 3, 64, 64), 8, 3, 2))
    data = _c2f(b, _silu(b, b.conv(data, 16, 3, 2)), 16)
    fine = _c2f(b, _silu(b, b.conv(data, 32, 3, 2)), 32)
    coarse = _sppf(b, _c2f(b, _silu(b, b.conv(fine, 48, 3, 2)), 48))
    scales = b.constant(_vector(1, 1, 2, 2))
    nearest = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    up = b.node("Concat", b.node("Resize", coarse, "", scales, **nearest), fine, axis=1)
    top = _c2f(b, up, 32)
    bottom = _c2f(b, b.node("Concat", _silu(b, b.conv(top, 32, 3, 2)), coarse, axis=1), 48)
    return b.model(_detect(b, [top, bottom], classes=6, bins=8))


def _vector(*values: float) -> Array:
    return np.array(values, np.float32)


def _silu(b: Building, data: str) -> str:
    return b.node("Mul", data, b.node("Sigmoid", data))


def _c2f(b: Building, data: str, filters: int) -> str:
    parts = b.nodes_of("Split", [_silu(b, b.conv(data, filters, 1))], 2, axis=1, num_outputs=2)
    inner = _silu(b, b.conv(_silu(b, b.conv(parts[1], filters // 2, 3)), filters // 2, 3))
    parts.append(b.node("Add", parts[1], inner))
    return _silu(b, b.conv(b.node("Concat", *parts, axis=1), filters, 1))


def _sppf(b: Building, data: str) -> str:
    parts = [_silu(b, b.conv(data, b.shape(data)[1] // 2, 1))]
    for _ in range(3):
        parts.append(b.node("MaxPool", parts[-1], kernel_shape=[5, 5], strides=[1, 1], pads=[2, 2, 2, 2]))
    return _silu(b, b.conv(b.node("Concat", *parts, axis=1), b.shape(data)[1], 1))


def _detect(b: Building, maps: list[str], classes: int, bins: int) -> str:
    """Boxes as distances from anchors, each the mean of a distribution over `bins`; scores by Sigmoid."""
    heads: list[str] = []
    anchors: list[tuple[float, float]] = []
    strides: list[float] = []
    for data in maps:
        boxes = b.conv(_silu(b, b.conv(data, 16, 3, gain=4.0)), 4 * bins, 1, gain=4.0)
        scores = b.conv(_silu(b, b.conv(data, 16, 3)), classes, 1)
        head = b.node("Concat", boxes, scores, axis=1)
        height, width = b.shape(head)[2:]
        heads.append(b.node("Reshape", head, b.integers(1, 4 * bins + classes, -1)))
        anchors.extend((x + 0.5, y + 0.5) for y in range(height) for x in range(width))
        strides.extend([64 / height] * (height * width))
    joined = b.node("Concat", *heads, axis=2)
    count = b.shape(joined)[2]
    split = b.nodes_of("Split", [joined, b.integers(4 * bins, classes)], 2, axis=1)
    spread = b.node("Transpose", b.node("Reshape", split[0], b.integers(1, 4, bins, count)), perm=[0, 2, 1, 3])
    weight = b.constant(_vector(*range(bins)).reshape(1, bins, 1, 1))
    mean = b.node("Reshape", b.node("Conv", b.node("Softmax", spread, axis=1), weight), b.integers(1, 4, count))
    near = b.node("Slice", mean, b.integers(0), b.integers(2), b.integers(1))
    far = b.node("Slice", mean, b.integers(2), b.integers(4), b.integers(1))
    anchor = b.constant(_vector(*[axis for pair in zip(*anchors, strict=True) for axis in pair]).reshape(1, 2, count))
    low, high = b.node("Sub", anchor, near), b.node("Add", anchor, far)
    middle = b.node("Div", b.node("Add", low, high), b.constant(_float(2.0)))
    boxes = b.node("Concat", middle, b.node("Sub", high, low), axis=1)
    boxes = b.node("Mul", boxes, b.constant(_vector(*strides).reshape(1, 1, count)))
    return b.node("Concat", boxes, b.node("Sigmoid", split[1]), axis=1)


NETWORKS = {
    "MobileNetV1": mobilenet_v1,
    "MobileNetV2": mobilenet_v2,
    "MobileNetV3": mobilenet_v3,
    "EfficientNet-Lite": efficientnet_lite,
    "ResNet": resnet,
    "NHWC as tf2onnx writes": nhwc_network,
    "encoder-decoder": fully_convolutional,
    "YOLO-style detector": detector,
}
