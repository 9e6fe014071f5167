"""Operators that move, rename, cut or join axes and compute nothing.

The result's shape is static, so a shape that the model computes is not read at run time.
"""

from __future__ import annotations

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import options_of
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.channels import channels_last, finish, stored_last
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


def depth_to_space(node: Node, e: Emitter) -> None:
    """DepthToSpace, DCR (blocks before channels) or CRD: channels become blocks of height and width."""
    block, mode = node.integer("blocksize", 1), node.text("mode", "DCR")
    value = e.input(0)
    if mode == "DCR" and stored_last(e) and value.dtype == "float32":
        options = options_of("DepthToSpace", blockSize=block)
        e.into(node.outputs[0], e.call("DEPTH_TO_SPACE", [value], e.output().shape, value.dtype, options))
        return
    value = channels_last(e)
    batch, height, width, channels = value.shape
    parts = (block, block, channels // block**2) if mode == "DCR" else (channels // block**2, block, block)
    order = (0, 1, 3, 2, 4, 5) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
    moved = e.transpose(e.reshape(value, (batch, height, width, *parts)), order)
    finish(e, e.reshape(moved, (batch, height * block, width * block, channels // block**2)))


def space_to_depth(node: Node, e: Emitter) -> None:
    """SpaceToDepth, DCR (blocks before channels) or CRD: blocks of height and width become channels."""
    block, value = node.integer("blocksize", 1), channels_last(e)
    batch, height, width, channels = value.shape
    parts = e.reshape(value, (batch, height // block, block, width // block, block, channels))
    moved = e.transpose(parts, (0, 1, 3, 2, 4, 5) if node.text("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4))
    finish(e, e.reshape(moved, (batch, height // block, width // block, block**2 * channels)))


OPERATORS: dict[str, Lowering] = {
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": reshape,
    "Identity": reshape,
    "Reshape": reshape,
    "Slice": cut,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": reshape,
}
