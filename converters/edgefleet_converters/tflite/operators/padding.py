"""Windows that slide over spatial axes: ONNX's explicit pads become SAME, VALID or a PAD operator before it.

Works on channels-last values with any number of spatial axes; what a window computes is not its business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window, one number per spatial axis; `before` and `after` are explicit pads in elements."""

    kernel: Sizes
    strides: Sizes
    dilations: Sizes
    before: Sizes
    after: Sizes

    @property
    def padded(self) -> bool:
        """Whether any side is padded."""
        return any(self.before) or any(self.after)

    @property
    def dilated(self) -> bool:
        """Whether the window's elements lie apart."""
        return any(step != 1 for step in self.dilations)

    @property
    def elements(self) -> int:
        """How many elements the window covers."""
        return math.prod(self.kernel)

    def extent(self, axis: int) -> int:
        """Elements from the window's first to its last."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def same_pads(self, size: Sizes, *, lower: bool = False) -> tuple[Sizes, Sizes]:
        """(before, after) of SAME padding; the odd element goes after, or before with `lower`."""
        total = []
        for axis, length in enumerate(size):
            count = -(-length // self.strides[axis])
            total.append(max((count - 1) * self.strides[axis] + self.extent(axis) - length, 0))
        small, large = tuple(pads // 2 for pads in total), tuple(pads - pads // 2 for pads in total)
        return (large, small) if lower else (small, large)

    def is_same(self, size: Sizes) -> bool:
        """Whether the pads are what TFLite's SAME computes by itself."""
        return (self.before, self.after) == self.same_pads(size)

    def fitted(self, size: Sizes, output: Sizes) -> Window:
        """The window with as much padding after as `output` results need: ceil_mode may need more than is given."""
        needed = (
            max((output[axis] - 1) * self.strides[axis] + self.extent(axis) - length - self.before[axis], 0)
            for axis, length in enumerate(size)
        )
        return replace(self, after=tuple(needed))

    def widened(self) -> Window:
        """The same window over one more spatial axis, the first, which has length 1."""
        return Window((1, *self.kernel), (1, *self.strides), (1, *self.dilations), (0, *self.before), (0, *self.after))


def read_window(node: Node, kernel: Sizes, size: Sizes) -> Window:
    """The window of a Conv or pooling node over an input of `size`; raises NotLowerableError."""
    if len(kernel) != len(size):
        raise NotLowerableError(f"its kernel has {len(kernel)} spatial axes, not {len(size)}")
    ones, zeros = (1,) * len(size), (0,) * len(size)
    automatic = node.text("auto_pad", "NOTSET")
    pads = node.integers("pads", zeros + zeros) if automatic == "NOTSET" else zeros + zeros
    if min(pads) < 0:
        raise NotLowerableError(f"negative pads {pads}")
    window = Window(
        kernel=kernel,
        strides=node.integers("strides", ones),
        dilations=node.integers("dilations", ones),
        before=pads[: len(size)],
        after=pads[len(size) :],
    )
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        before, after = window.same_pads(size, lower=automatic == "SAME_LOWER")
        return replace(window, before=before, after=after)
    return window


def spatial_size(value: Tensor) -> Sizes:
    """Lengths of the spatial axes of a channels-last value."""
    return value.shape[1:-1]


def pad(e: Emitter, value: Tensor, window: Window, fill: float = 0.0) -> Tensor:
    """A channels-last value with the window's explicit pads around its spatial axes."""
    return e.pad(value, [(0, 0), *zip(window.before, window.after, strict=True), (0, 0)], fill)


def apply_padding(e: Emitter, value: Tensor, window: Window) -> tuple[Tensor, int]:
    """(value to read, TFLite padding) for a window whose padding is zeros."""
    if not window.padded:
        return value, schema.Padding.VALID
    if window.is_same(spatial_size(value)):
        return value, schema.Padding.SAME
    return pad(e, value, window), schema.Padding.VALID
