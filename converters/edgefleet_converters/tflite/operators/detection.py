"""Boxes: RoiAlign.

Region pooling with bins that depend on data, and suppression whose number of results does, are refused.
"""

from __future__ import annotations

import math

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.channels import channels_last, finish
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.sampling import Sampling, neighbours


def roi_align(node: Node, e: Emitter) -> None:
    """RoiAlign, avg or max, float32, with a fixed `sampling_ratio` (0 would depend on each region's size)."""
    ratio, mode = node.integer("sampling_ratio", 0), node.text("mode", "avg")
    if ratio <= 0 or mode not in ("avg", "max"):
        raise NotLowerableError(f"sampling_ratio={ratio}, mode={mode!r}")
    value, rois = channels_last(e), e.input(1)
    batch, *size, channels = value.shape
    regions, pooled = rois.shape[0], (node.integer("output_height", 1), node.integer("output_width", 1))
    lines = [_sample_lines(node, e, rois, axis, pooled[axis] * ratio) for axis in (0, 1)]
    across = [e.reshape(lines[0], (regions, -1, 1)), e.reshape(lines[1], (regions, 1, -1))]
    count = regions * math.prod(pooled) * ratio * ratio
    whole = np.zeros((regions, pooled[0] * ratio, pooled[1] * ratio), np.float32)
    points = [e.reshape(e.add(line, whole), (1, count)) for line in across]
    images = e.reshape(e.mul(e.cast(e.input(2), "int32"), math.prod(size)), (regions, 1, 1))
    offset = e.reshape(e.add(images, whole.astype(np.int32)), (1, count))
    rows = e.reshape(value, (1, batch * math.prod(size), channels))
    parts = neighbours(e, rows, size, points, Sampling(padding="border"), offset)
    reduced = e.reduce_sum(parts, (1,)) if mode == "avg" else e.reduce_max(parts, (1,))
    samples = e.mul(reduced, e.reshape(_present(e, points, size), (1, 1, count, 1)))
    # Rank 6 is as far as float reductions go: the axes of rows and of columns are reduced one after the other.
    reduce = e.reduce_mean if mode == "avg" else e.reduce_max
    columns = e.reshape(samples, (regions * pooled[0], ratio, pooled[1], ratio, channels))
    pooled_regions = reduce(columns, (1, 3))
    finish(e, e.reshape(pooled_regions, (regions, *pooled, channels)))


def _sample_lines(node: Node, e: Emitter, rois: Tensor, axis: int, samples: int) -> Tensor:
    """Positions [regions, samples] along height (axis 0) or width (1), in elements."""
    half = node.text("coordinate_transformation_mode", "half_pixel" if node.opset >= 16 else "output_half_pixel")
    scale, shift = node.number("spatial_scale", 1.0), 0.5 if half == "half_pixel" else 0.0
    scaled = e.sub(e.mul(rois, scale), shift)
    start, end = (e.slice(scaled, (0, column), (rois.shape[0], 1)) for column in (1 - axis, 3 - axis))
    length = e.sub(end, start)
    if half != "half_pixel":
        length = e.maximum(length, 1.0)
    within = ((np.arange(samples) + 0.5) / samples).astype(np.float32)[None, :]
    return e.add(start, e.mul(length, within))


def _present(e: Emitter, points: list[Tensor], size: list[int]) -> Tensor:
    """1 for points no further than one element outside the image, 0 for the rest."""
    inside = None
    for point, length in zip(points, size, strict=True):
        both = e.logical_and(e.greater_equal(point, -1.0), e.less_equal(point, float(length)))
        inside = both if inside is None else e.logical_and(inside, both)
    if inside is None:
        raise NotLowerableError("an image without axes")
    return e.cast(inside, "float32")


OPERATORS: dict[str, Lowering] = {"RoiAlign": roi_align}
