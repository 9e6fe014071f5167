"""A window's reduction as strided slices along one axis after the other: any type, rank, stride and dilation.

Pads nothing: the values it reads have their pads.
"""

from __future__ import annotations

from collections.abc import Callable

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.operators.padding import Window


def slide(
    e: Emitter, value: Tensor, window: Window, output: tuple[int, ...], combine: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """[N, spatial..., C] with each window's elements combined; `output` is the result's spatial size."""
    for axis, length in enumerate(output):
        parts = _parts(e, value, window, axis, length)
        value = parts[0]
        for part in parts[1:]:
            value = combine(value, part)
    return value


def maximum_with_positions(
    e: Emitter, value: Tensor, positions: Tensor, window: Window, output: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Each window's maximum and the entry of `positions` at its first place, row by row."""
    # The last axis goes first, so that of equal maxima the one in the first row is kept.
    for axis in reversed(range(len(output))):
        values = _parts(e, value, window, axis, output[axis])
        places = _parts(e, positions, window, axis, output[axis])
        value, positions = values[0], places[0]
        for part, place in zip(values[1:], places[1:], strict=True):
            positions = e.select(e.greater(part, value), place, positions)
            value = e.maximum(value, part)
    return value, positions


def _parts(e: Emitter, value: Tensor, window: Window, axis: int, length: int) -> list[Tensor]:
    """One slice per element of the window along a spatial axis."""
    stride, parts = window.strides[axis], []
    for tap in range(window.kernel[axis]):
        start = tap * window.dilations[axis]
        slices = [slice(None)] * value.rank
        slices[axis + 1] = slice(start, start + (length - 1) * stride + 1, stride)
        parts.append(e.strided_slice(value, slices))
    return parts
