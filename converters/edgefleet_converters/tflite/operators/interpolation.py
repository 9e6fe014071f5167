"""How Resize takes each output element along one axis from the input's: a matrix of weights, or one index.

Only numbers: knows neither nodes nor TFLite. The formulas are those of ONNX's definition of Resize.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis to resize: `scale` need not be `output / size`; `roi` is (start, end) where the mode reads one."""

    size: int
    output: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Method:
    """Resize's attributes; `nearest` is its nearest_mode."""

    mode: str
    coordinates: str
    nearest: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False


def sources(axis: Axis, coordinates: str) -> Floats:
    """Where in the input each output element lies; raises KeyError for an unknown mode."""
    x, length = np.arange(axis.output, dtype=np.float64), float(_settled(np.array(axis.size * axis.scale)))
    return _settled(_COORDINATES[coordinates](x, axis, length))


def _settled(x: Floats) -> Floats:
    """Positions that miss a whole or half number only by float32's rounding of scales are that number."""
    near = np.round(x * 2) / 2
    return np.where(np.abs(x - near) <= 2 * np.spacing(np.abs(x).astype(np.float32) + 1), near, x)


def _align_corners(x: Floats, axis: Axis, length: float) -> Floats:
    return x * 0 if length == 1 else x * (axis.size - 1) / (length - 1)


def _half_pixel(x: Floats, axis: Axis, _length: float) -> Floats:
    return (x + 0.5) / axis.scale - 0.5


def _pytorch_half_pixel(x: Floats, axis: Axis, length: float) -> Floats:
    return x * 0 - 0.5 if length == 1 else _half_pixel(x, axis, length)


def _half_pixel_symmetric(x: Floats, axis: Axis, length: float) -> Floats:
    return axis.size / 2 * (1 - axis.output / length) + _half_pixel(x, axis, length)


def _crop(x: Floats, axis: Axis, length: float) -> Floats:
    start, end = axis.roi
    wide = (end - start) * (axis.size - 1)
    return start * (axis.size - 1) + (x * 0 + wide / 2 if length == 1 else x * wide / (length - 1))


_COORDINATES: dict[str, Callable[[Floats, Axis, float], Floats]] = {
    "align_corners": _align_corners,
    "asymmetric": lambda x, axis, _: x / axis.scale,
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "tf_crop_and_resize": _crop,
    # Opset 11 only.
    "tf_half_pixel_for_nn": lambda x, axis, _: (x + 0.5) / axis.scale,
}
_ROUNDING: dict[str, Callable[[Floats], Floats]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
}
KNOWN_COORDINATES, KNOWN_ROUNDING = frozenset(_COORDINATES), frozenset(_ROUNDING)


def indices(axis: Axis, method: Method) -> NDArray[np.int32]:
    """The one input element that each output element is, in nearest mode."""
    rounded = _ROUNDING[method.nearest](sources(axis, method.coordinates))
    return np.clip(rounded, 0, axis.size - 1).astype(np.int32)


def matrix(axis: Axis, method: Method) -> Floats:
    """Weights [output, size] of linear and cubic modes; elements beyond the edge are the edge's, or left out."""
    found = np.zeros((axis.output, axis.size))
    shrink = min(axis.scale, 1.0) if method.antialias else 1.0
    reach = (2 if method.mode == "cubic" else 1) / shrink
    kernel = _cubic(method.cubic_a) if method.mode == "cubic" else _triangle
    for row, x in enumerate(sources(axis, method.coordinates)):
        taps = np.arange(math.floor(x - reach), math.ceil(x + reach) + 1)
        weights = kernel(np.abs(taps - x) * shrink)
        if method.exclude_outside:
            weights = np.where((taps >= 0) & (taps < axis.size), weights, 0.0)
        if method.exclude_outside or method.antialias:
            weights = weights / weights.sum()
        np.add.at(found[row], np.clip(taps, 0, axis.size - 1), weights)
    return found


def outside(axis: Axis, method: Method) -> NDArray[np.bool_]:
    """Which output elements lie outside the input, so that they are the extrapolation value."""
    if method.coordinates != "tf_crop_and_resize":
        return np.zeros(axis.output, np.bool_)
    x = sources(axis, method.coordinates)
    return (x < 0) | (x > axis.size - 1)


def _triangle(distance: Floats) -> Floats:
    return np.maximum(1 - distance, 0)


def _cubic(a: float) -> Callable[[Floats], Floats]:
    def weights(d: Floats) -> Floats:
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    return weights
