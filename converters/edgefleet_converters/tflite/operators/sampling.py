"""Reading images between their elements: GridSample, AffineGrid, DeformConv.

Every point's neighbours are gathered at once and summed by their weights; positions are computed at run time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Array, Node, NotLowerableError
from edgefleet_converters.tflite.operators.channels import channels_last, finish
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.indexing import strides_of

_MODES = {"bilinear": "linear", "linear": "linear", "nearest": "nearest", "bicubic": "cubic", "cubic": "cubic"}
_PADDINGS = ("zeros", "border", "reflection")
_CUBIC_A = -0.75


@dataclass(frozen=True, slots=True)
class Sampling:
    """How points between elements are read; `aligned` says that the borders are the outer elements' centres."""

    mode: str = "linear"
    padding: str = "zeros"
    aligned: bool = False


def neighbours(
    e: Emitter,
    rows: Tensor,
    size: Sequence[int],
    points: Sequence[Tensor],
    how: Sampling,
    offset: Tensor | None = None,
) -> Tensor:
    """Weighted neighbours [B, K, P, C] of points in images `rows` [B, elements, C].

    `points` holds, for each spatial axis of `size`, positions [B, P] in elements; `offset` [B, P] is added to the
    index of each point's elements.
    """
    batch, count = points[0].shape
    positions = [_nearby(e, point, length, how) for point, length in zip(points, size, strict=True)]
    index, weight = None, None
    for axis, ((taps, weights), stride) in enumerate(zip(positions, strides_of(size), strict=True)):
        shape = [batch, *(1,) * len(size), count]
        shape[axis + 1] = taps.shape[1]
        steps, part = e.mul(e.reshape(taps, shape), stride), e.reshape(weights, shape)
        index = steps if index is None else e.add(index, steps)
        weight = part if weight is None else e.mul(weight, part)
    if index is None or weight is None:
        raise NotLowerableError("an image without axes")
    many = math.prod(index.shape[1:-1])
    flat = e.reshape(index, (batch, many, count))
    if offset is not None:
        flat = e.add(flat, e.reshape(offset, (batch, 1, count)))
    found = e.gather(rows, e.reshape(flat, (batch, many * count)), 1, batch_dims=1)
    wide = e.reshape(found, (batch, many, count, rows.shape[-1]))
    return e.mul(wide, e.reshape(weight, (batch, many, count, 1)))


def _nearby(e: Emitter, point: Tensor, length: int, how: Sampling) -> tuple[Tensor, Tensor]:
    """(indices, weights) [B, taps, P] of the elements around positions [B, P] along one axis."""
    if how.mode == "nearest":
        point = e.round(point)
    if how.padding == "border" and how.mode != "cubic":
        point = e.minimum(e.maximum(point, 0.0), float(length - 1))
    elif how.padding == "reflection":
        point = _reflected(e, point, length, aligned=how.aligned)
    point = e.reshape(point, (point.shape[0], 1, point.shape[1]))
    taps, weights = _taps(e, point, how.mode)
    if how.padding == "zeros":
        inside = e.logical_and(e.greater_equal(taps, 0.0), e.less_equal(taps, float(length - 1)))
        weights = e.select(inside, weights, 0.0)
    elif how.padding == "reflection":
        taps = _reflected(e, taps, length, aligned=how.aligned)
    return e.minimum(e.maximum(e.cast(taps, "int32"), 0), length - 1), weights


def _taps(e: Emitter, point: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """(positions, weights) of the elements that a mode reads around each point."""
    if mode == "nearest":
        return point, e.constant(np.ones(point.shape, np.float32), role="weights")
    reach = np.arange(2, dtype=np.float32) if mode == "linear" else np.arange(-1, 3, dtype=np.float32)
    taps = e.add(e.floor(point), reach[None, :, None])
    distance = e.abs(e.sub(taps, point))
    if mode == "linear":
        return taps, e.relu(e.sub(1.0, distance))
    a = _CUBIC_A
    near, far = (a + 2, -(a + 3), 0.0, 1.0), (a, -5 * a, 8 * a, -4 * a)
    by_power = np.array([far, near, near, far], np.float32).T[:, None, :, None]
    weights = e.constant(by_power[0], role="cubic")
    for coefficients in by_power[1:]:
        weights = e.add(e.mul(weights, distance), coefficients)
    return taps, weights


def _reflected(e: Emitter, point: Tensor, length: int, *, aligned: bool) -> Tensor:
    """Positions folded back at the borders until they are between them."""
    low, span = (0.0, length - 1.0) if aligned else (-0.5, float(length))
    if span == 0:
        return e.mul(point, 0.0)
    folded = e.floor_mod(e.sub(point, low), 2 * span)
    return e.sub(low + span, e.abs(e.sub(folded, span)))


def grid_sample(node: Node, e: Emitter) -> None:
    """GridSample in 1 to 3 dimensions, float32: nearest, linear or cubic; zeros, border or reflection."""
    mode, padding = _MODES.get(node.text("mode", "linear"), ""), node.text("padding_mode", "zeros")
    if not mode or padding not in _PADDINGS:
        raise NotLowerableError(f"mode={node.text('mode', 'linear')!r}, padding_mode={padding!r}")
    value, grid = channels_last(e), e.input(1)
    batch, *size, channels = value.shape
    aligned = node.integer("align_corners", 0) == 1
    count = math.prod(grid.shape[1:-1])
    # The grid names the last spatial axis first.
    parts = reversed(e.split(e.reshape(grid, (batch, count, len(size))), -1, [1] * len(size)))
    points = [
        _denormalized(e, e.reshape(part, (batch, count)), length, aligned=aligned)
        for part, length in zip(parts, size, strict=True)
    ]
    rows = e.reshape(value, (batch, math.prod(size), channels))
    read = e.reduce_sum(neighbours(e, rows, size, points, Sampling(mode, padding, aligned)), (1,), keepdims=False)
    finish(e, e.reshape(read, (batch, *grid.shape[1:-1], channels)))


def _denormalized(e: Emitter, grid: Tensor, length: int, *, aligned: bool) -> Tensor:
    """Positions in elements of coordinates from -1 to 1."""
    if aligned:
        return e.mul(e.add(grid, 1.0), (length - 1) / 2)
    return e.mul(e.sub(e.mul(e.add(grid, 1.0), float(length)), 1.0), 0.5)


def affine_grid(node: Node, e: Emitter) -> None:
    """AffineGrid of a constant size in 2 or 3 dimensions: a product with the grid that changes nothing."""
    theta = e.input(0)
    size = [int(length) for length in e.array(1, "size").ravel()][2:]
    aligned = node.integer("align_corners", 0) == 1
    if aligned and 1 in size:
        raise NotLowerableError("align_corners=1 of an axis of length 1, which has no definition")
    lines = [np.linspace(-1, 1, length) if aligned else (2 * np.arange(length) + 1) / length - 1 for length in size]
    # Coordinates are in the opposite order of the axes, and the last one is always 1.
    grid = np.stack([*reversed(np.meshgrid(*lines, indexing="ij")), np.ones(size)], -1)
    base = e.constant(grid.reshape(1, -1, len(size) + 1), "float32", role="grid")
    made = e.batch_matmul(base, e.transpose(theta, (0, 2, 1)))
    e.into(node.outputs[0], e.reshape(made, (theta.shape[0], *size, len(size))))


def deform_conv(node: Node, e: Emitter) -> None:
    """DeformConv in 2 dimensions, float32, with groups, offset groups, mask and bias: samples, then a product."""
    value, weight, offset = e.input(0), e.input(1), e.input(2)
    if value.rank != 4:
        raise NotLowerableError(f"{value.rank - 2} spatial axes")
    (batch, channels, *size), (outputs, _, *kernel) = value.shape, weight.shape
    parts, output = node.integer("offset_group", 1), offset.shape[2:]
    taps, places = math.prod(kernel), math.prod(output)
    shifts = e.reshape(offset, (batch * parts, taps, 2, places))
    points = [
        e.add(e.reshape(shift, (batch * parts, taps * places)), _resting(node, kernel, output, axis))
        for axis, shift in enumerate(e.split(shifts, 2, (1, 1)))
    ]
    images = e.reshape(value, (batch * parts, channels // parts, math.prod(size)))
    read = e.reduce_sum(neighbours(e, e.transpose(images, (0, 2, 1)), size, points, Sampling()), (1,), keepdims=False)
    if e.has(4):
        read = e.mul(read, e.reshape(e.input(4), (batch * parts, taps * places, 1)))
    columns = e.transpose(e.reshape(read, (batch, parts, taps, places, channels // parts)), (0, 3, 1, 4, 2))
    group = node.integer("group", 1)
    terms = channels * taps // group
    left = e.transpose(e.reshape(columns, (batch, places, group, terms)), (0, 2, 1, 3))
    right = e.transpose(e.reshape(weight, (1, group, outputs // group, terms)), (0, 1, 3, 2))
    made = e.transpose(e.batch_matmul(left, right), (0, 1, 3, 2))
    made = e.reshape(made, (batch, outputs, *output))
    e.into(node.outputs[0], e.add(made, e.reshape(e.input(3), (1, -1, 1, 1))) if e.has(3) else made)


def _resting(node: Node, kernel: Sequence[int], output: Sequence[int], axis: int) -> Array:
    """Where the window's elements are without offsets along one axis, [1, kernel elements x output elements]."""
    stride, step = node.integers("strides", (1, 1))[axis], node.integers("dilations", (1, 1))[axis]
    first = node.integers("pads", (0, 0, 0, 0))[axis]
    within, across = np.indices(tuple(kernel))[axis].ravel(), np.indices(tuple(output))[axis].ravel()
    resting = across[None, :] * stride - first + within[:, None] * step
    return np.asarray(resting.reshape(1, -1), np.float32)


OPERATORS: dict[str, Lowering] = {
    "AffineGrid": affine_grid,
    "DeformConv": deform_conv,
    "GridSample": grid_sample,
}
