"""Operators that move, rename, cut or join axes and compute nothing.

The result's shape is static, so a shape that the model computes is not read at run time.
"""

from __future__ import annotations

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering


def reshape(node: Node, e: Emitter) -> None:
    """Flatten, Reshape, Squeeze, Unsqueeze, Identity: the same elements in the same order, in the output's shape."""
    e.into(node.outputs[0], e.reshape(e.input(0), e.output().shape))


def transpose(node: Node, e: Emitter) -> None:
    """Transpose; without `perm` the axes are reversed."""
    value = e.input(0)
    e.into(node.outputs[0], e.transpose(value, node.integers("perm", tuple(reversed(range(value.rank))))))


def concat(node: Node, e: Emitter) -> None:
    """Concat along an axis (before opset 4 the default one is 1)."""
    e.into(node.outputs[0], e.concat(e.inputs(), node.integer("axis", 1)))


def split(node: Node, e: Emitter) -> None:
    """Split along an axis into parts of the sizes that shape inference found."""
    axis = node.integer("axis", 0)
    sizes = [e.output(position).shape[axis] for position in range(len(node.outputs))]
    for name, part in zip(node.outputs, e.split(e.input(0), axis, sizes), strict=True):
        e.into(name, part)


def cut(node: Node, e: Emitter) -> None:
    """Slice with constant bounds: attributes before opset 10, inputs from then on; steps of either sign."""
    value = e.input(0)
    if node.opset < 10:
        starts, ends = node.integers("starts", ()), node.integers("ends", ())
        axes, steps = node.integers("axes", tuple(range(len(starts)))), (1,) * len(starts)
    else:
        starts, ends = _whole(node, e, 1, "starts"), _whole(node, e, 2, "ends")
        axes = _whole(node, e, 3, "axes") if e.has(3) else tuple(range(len(starts)))
        steps = _whole(node, e, 4, "steps") if e.has(4) else (1,) * len(starts)
    slices = [slice(None)] * value.rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # ONNX clamps an end of -1 - size and below to "before the first", which numpy writes as None.
        stop = None if step < 0 and end < -value.shape[axis] else end
        slices[axis] = slice(start, stop, step)
    e.into(node.outputs[0], e.strided_slice(value, slices))


def _whole(node: Node, e: Emitter, position: int, role: str) -> tuple[int, ...]:
    if not node.input(position):
        raise NotLowerableError(f"its {role} are absent")
    return tuple(int(item) for item in e.array(position, role).ravel())


def expand(node: Node, e: Emitter) -> None:
    """Expand to the shape that inference found."""
    e.into(node.outputs[0], e.broadcast_to(e.input(0), e.output().shape))


def tile(node: Node, e: Emitter) -> None:
    """Tile with constant repeats."""
    e.into(node.outputs[0], e.tile(e.input(0), _whole(node, e, 1, "repeats")))


OPERATORS: dict[str, Lowering] = {
    "Concat": concat,
    "Expand": expand,
    "Flatten": reshape,
    "Identity": reshape,
    "Reshape": reshape,
    "Slice": cut,
    "Split": split,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": reshape,
}
