"""Padding of windowed operators: ONNX's explicit pads become SAME, VALID or a PAD operator before it.

Works on NHWC values with two spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window over (height, width); `before` and `after` are explicit pads in elements."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def padded(self) -> bool:
        """Whether any side is padded."""
        return any(self.before) or any(self.after)

    def output(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the result for an unpadded input of `size`."""
        height, width = (
            (size[axis] + self.before[axis] + self.after[axis] - self._extent(axis)) // self.strides[axis] + 1
            for axis in (0, 1)
        )
        return height, width

    def _extent(self, axis: int) -> int:
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def same_pads(self, size: tuple[int, int], *, lower: bool = False) -> tuple[tuple[int, int], tuple[int, int]]:
        """(before, after) of SAME padding; the odd element goes after, or before with `lower`."""
        total = []
        for axis in (0, 1):
            count = -(-size[axis] // self.strides[axis])
            total.append(max((count - 1) * self.strides[axis] + self._extent(axis) - size[axis], 0))
        small, large = (total[0] // 2, total[1] // 2), (total[0] - total[0] // 2, total[1] - total[1] // 2)
        return (large, small) if lower else (small, large)

    def is_same(self, size: tuple[int, int]) -> bool:
        """Whether the pads are what TFLite's SAME computes by itself."""
        return (self.before, self.after) == self.same_pads(size)


def read_window(node: Node, kernel: tuple[int, ...], size: tuple[int, int]) -> Window:
    """The window of a Conv or pooling node over an input of `size`; raises NotLowerableError."""
    if len(kernel) != len(size):
        raise NotLowerableError(f"its kernel has {len(kernel)} spatial axes, not 2")
    pads = node.integers("pads", (0, 0, 0, 0))
    window = Window(
        kernel=_pair(kernel),
        strides=_pair(node.integers("strides", (1, 1))),
        dilations=_pair(node.integers("dilations", (1, 1))),
        before=_pair(pads[:2]),
        after=_pair(pads[2:]),
    )
    if min(pads) < 0:
        raise NotLowerableError(f"negative pads {pads}")
    automatic = node.text("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        before, after = window.same_pads(size, lower=automatic == "SAME_LOWER")
        return Window(window.kernel, window.strides, window.dilations, before, after)
    return window


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    first, second = numbers
    return first, second


def spatial_size(value: Tensor) -> tuple[int, int]:
    """(height, width) of a value that is stored NHWC."""
    if value.rank != 4:
        raise NotLowerableError(f"{value.name!r} has rank {value.rank}, not 4")
    return value.shape[1], value.shape[2]


def pad(e: Emitter, value: Tensor, window: Window, fill: float = 0.0) -> Tensor:
    """An NHWC value with the window's explicit pads around its height and width."""
    return e.pad(value, [(0, 0), *zip(window.before, window.after, strict=True), (0, 0)], fill)


def apply_padding(e: Emitter, value: Tensor, window: Window) -> tuple[Tensor, int]:
    """(value to read, TFLite padding) for a window whose padding is zeros."""
    if not window.padded:
        return value, schema.Padding.VALID
    if window.is_same(spatial_size(value)):
        return value, schema.Padding.SAME
    return pad(e, value, window), schema.Padding.VALID
