"""Resize and Upsample: TFLite's own resizes where they compute exactly that, else one axis after the other.

Sizes and scales are constants. An axis is a gather in nearest mode, and a product with a constant matrix otherwise.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor, options_of
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.kernels import KERNELS
from edgefleet_converters.tflite.operators.channels import channels_last, finish, stored_last
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.interpolation import (
    KNOWN_COORDINATES,
    KNOWN_ROUNDING,
    Axis,
    Method,
    indices,
    matrix,
    outside,
)

# (aligned corners, half-pixel centres) of TFLite's resizes, with the name of what they compute.
_NATIVE = ((False, True, "half_pixel"), (True, False, "align_corners"), (False, False, "asymmetric"))
_OPERATORS = {"linear": "RESIZE_BILINEAR", "nearest": "RESIZE_NEAREST_NEIGHBOR"}
Resized = dict[int, Axis]
"""The axes that change, by their position in the source's layout."""


def resize(node: Node, e: Emitter) -> None:
    """Resize since opset 10: every mode, coordinate mode, rounding, antialias, roi, axes and aspect ratio policy."""
    roi, scales, sizes = (1, 2, 3) if node.opset >= 11 else (-1, 1, -1)
    method = Method(
        mode=node.text("mode", "nearest"),
        coordinates=node.text("coordinate_transformation_mode", "half_pixel" if node.opset >= 11 else "asymmetric"),
        nearest=node.text("nearest_mode", "round_prefer_floor" if node.opset >= 11 else "floor"),
        cubic_a=node.number("cubic_coeff_a", -0.75),
        exclude_outside=node.integer("exclude_outside", 0) == 1,
        antialias=node.integer("antialias", 0) == 1,
    )
    axes = _axes(node, e, roi, scales, sizes)
    if node.opset == 10 and method.mode == "nearest" and any(axis.scale < 1 for axis in axes.values()):
        raise NotLowerableError("opset 10 does not define how the nearest element is found where an axis gets shorter")
    _resized(node, e, axes, method)


def upsample(node: Node, e: Emitter) -> None:
    """Upsample by constant scales, nearest (rounded down) or linear."""
    scales = node.numbers("scales", ()) if node.opset < 9 else e.array(1, "scales").astype(np.float64).ravel().tolist()
    sizes = _source_shapes(e)
    if len(scales) != len(sizes[0]):
        raise NotLowerableError(f"{len(scales)} scales for {len(sizes[0])} axes")
    axes = {
        position: Axis(before, after, float(scale))
        for position, (scale, before, after) in enumerate(zip(scales, *sizes, strict=True))
        if scale != 1
    }
    _resized(node, e, axes, Method(node.text("mode", "nearest"), "asymmetric", nearest="floor"))


def _source_shapes(e: Emitter) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of input and output in the source's layout."""
    before, after = e.input(0).shape, e.output().shape
    if not stored_last(e):
        return before, after
    return (before[0], before[-1], *before[1:-1]), (after[0], after[-1], *after[1:-1])


def _axes(node: Node, e: Emitter, roi: int, scales: int, sizes: int) -> Resized:
    shape, output = _source_shapes(e)
    named = [axis % len(shape) for axis in node.integers("axes", tuple(range(len(shape))))]
    crops = node.text("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    bounds = e.array(roi, "roi").astype(np.float64).ravel().tolist() if crops else []
    if sizes > 0 and e.has(sizes):
        wanted = [float(size) for size in e.array(sizes, "sizes").ravel()]
        factors = [size / shape[axis] for size, axis in zip(wanted, named, strict=True)]
        policy = node.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factors = [min(factors) if policy == "not_larger" else max(factors)] * len(named)
    else:
        factors = e.array(scales, "scales").astype(np.float64).ravel().tolist()
    found = {}
    for at, (position, factor) in enumerate(zip(named, factors, strict=True)):
        span = (bounds[at], bounds[len(named) + at]) if crops else (0.0, 1.0)
        if factor != 1 or output[position] != shape[position] or span != (0.0, 1.0):
            found[position] = Axis(shape[position], output[position], factor, span)
    return found


def _resized(node: Node, e: Emitter, axes: Resized, method: Method) -> None:
    _require_known(method)
    value = e.input(0)
    native = _native(value, axes, method)
    flat = method.mode == "nearest" and not stored_last(e)
    if native is not None and not flat:
        aligned, centred = native
        finish(e, _native_resize(e, channels_last(e), axes, method, aligned=aligned, centred=centred))
        return
    rank, last = value.rank, stored_last(e)
    missing = np.zeros((1,) * rank, np.bool_)
    for position, axis in axes.items():
        at = position if not last else (0, rank - 1, *range(1, rank - 1))[position]
        value = _along(e, value, at, axis, method)
        shape = [1] * rank
        shape[at] = axis.output
        missing = missing | outside(axis, method).reshape(shape)
    if missing.any():
        value = e.select(missing, node.number("extrapolation_value", 0.0), value)
    e.into(node.outputs[0], value)


def _require_known(method: Method) -> None:
    if method.mode not in ("nearest", "linear", "cubic"):
        raise NotLowerableError(f"mode={method.mode!r}")
    if method.coordinates not in KNOWN_COORDINATES:
        raise NotLowerableError(f"coordinate_transformation_mode={method.coordinates!r}")
    if method.nearest not in KNOWN_ROUNDING:
        raise NotLowerableError(f"nearest_mode={method.nearest!r}")


def _along(e: Emitter, value: Tensor, at: int, axis: Axis, method: Method) -> Tensor:
    """One axis of the value as it is stored, resized."""
    if method.mode == "nearest":
        return e.gather(value, indices(axis, method), at)
    if value.dtype != "float32":
        raise NotLowerableError(f"{method.mode} interpolation of {value.dtype}")
    before, after = value.shape[:at], value.shape[at + 1 :]
    weights = matrix(axis, method).astype(np.float32)
    if math.prod(after) == 1:
        rows = e.reshape(value, (1, math.prod(before), axis.size))
        product = e.batch_matmul(rows, e.constant(weights.T[None], role="weights"))
    else:
        blocks = e.reshape(value, (math.prod(before), axis.size, math.prod(after)))
        product = e.batch_matmul(e.constant(weights[None], role="weights"), blocks)
    return e.reshape(product, (*before, axis.output, *after))


def _native(value: Tensor, axes: Resized, method: Method) -> tuple[bool, bool] | None:
    """The options of a TFLite resize over height and width that computes the same, if there is one."""
    operator = _OPERATORS.get(method.mode, "")
    if value.rank != 4 or value.dtype not in KERNELS.get(operator, ()) or not axes or set(axes) - {2, 3}:
        return None
    for aligned, centred, name in _NATIVE:
        if all(_agrees(axis, method, aligned=aligned, centred=centred, name=name) for axis in axes.values()):
            return aligned, centred
    return None


def _agrees(axis: Axis, method: Method, *, aligned: bool, centred: bool, name: str) -> bool:
    if outside(axis, method).any():
        return False
    if method.mode == "nearest":
        mine = _nearest_in_tflite(axis, aligned=aligned, centred=centred)
        return bool(np.array_equal(mine, indices(axis, method)))
    plain = Axis(axis.size, axis.output, axis.output / axis.size)
    return bool(np.allclose(matrix(plain, Method("linear", name)), matrix(axis, method), rtol=0, atol=1e-6))


def _nearest_in_tflite(axis: Axis, *, aligned: bool, centred: bool) -> NDArray[np.int32]:
    """The index that TFLite's kernel takes, in its own float32 arithmetic."""
    one, offset = np.float32(1), np.float32(0.5 if centred else 0.0)
    corners = aligned and axis.output > 1
    step = np.float32(axis.size - 1) / np.float32(axis.output - 1) if corners else axis.size * one / axis.output
    x = (np.arange(axis.output, dtype=np.float32) + offset) * np.float32(step)
    rounded = np.floor(x + np.float32(0.5)) if aligned else np.floor(x)
    return np.asarray(np.clip(rounded, 0, axis.size - 1), np.int32)


def _native_resize(e: Emitter, value: Tensor, axes: Resized, method: Method, *, aligned: bool, centred: bool) -> Tensor:
    nearest = method.mode == "nearest"
    height, width = (axes[at].output if at in axes else value.shape[at - 1] for at in (2, 3))
    options = options_of(
        "ResizeNearestNeighbor" if nearest else "ResizeBilinear", alignCorners=aligned, halfPixelCenters=centred
    )
    operator = _OPERATORS[method.mode]
    shape = (value.shape[0], height, width, value.shape[3])
    version = 3 if centred else 1
    inputs = [value, e.integers((height, width), "size")]
    return e.call(operator, inputs, shape, value.dtype, options, version=version)


OPERATORS: dict[str, Lowering] = {"Resize": resize, "Upsample": upsample}
