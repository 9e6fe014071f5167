"""Values of spatial operators with their channels last, whatever layout assignment chose for them.

Layout assignment stores the first input and the first output of a spatial operator alike: both channels-last, or both
in the source's order. It does not do so for every rank and operator; what it left is transposed here.
"""

from __future__ import annotations

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor


def stored_last(e: Emitter) -> bool:
    """Whether the node's first input and first output are stored channels-last."""
    return e.node.outputs[0] in e.graph.layouts


def channels_last(e: Emitter) -> Tensor:
    """The node's first input as [N, spatial..., C]."""
    value = e.input(0)
    return value if stored_last(e) else e.transpose(value, (0, *range(2, value.rank), 1))


def last_shape(e: Emitter) -> tuple[int, ...]:
    """Shape of the node's first output as [N, spatial..., C]."""
    shape = e.output().shape
    return shape if stored_last(e) else (shape[0], *shape[2:], shape[1])


def finish(e: Emitter, made: Tensor) -> None:
    """Make [N, spatial..., C] the node's first output, in the layout that it has."""
    order = (0, made.rank - 1, *range(1, made.rank - 1))
    e.into(e.node.outputs[0], made if stored_last(e) else e.transpose(made, order))


def spatial_axes(e: Emitter, value: Tensor) -> tuple[int, ...]:
    """Positions of the spatial axes in the node's first input as it is stored."""
    return tuple(range(1, value.rank - 1)) if stored_last(e) else tuple(range(2, value.rank))
