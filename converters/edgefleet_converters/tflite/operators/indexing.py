"""Operators that pick elements by index: Gather*, OneHot, TopK, Compress, Trilu, ReverseSequence.

Indices that may be negative at run time are made positive first; results whose shape depends on data are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor, options_of
from edgefleet_converters.tflite.graph import Array, Node, NotLowerableError
from edgefleet_converters.tflite.kernels import working_dtype
from edgefleet_converters.tflite.operators.contract import Lowering


def wrapped(e: Emitter, indices: Tensor, size: int | Array) -> Tensor:
    """Indices as int32, those from the back counted from the front; `size` may differ along the last axis."""
    limit = np.asarray(size, np.int32)
    if indices.data is not None:
        return e.constant(np.mod(indices.data.astype(np.int64), limit), "int32", role="indices")
    return e.floor_mod(e.cast(indices, "int32"), limit)


def strides_of(shape: Sequence[int]) -> NDArray[np.int32]:
    """How many elements one step along each axis skips, row by row; raises where int32 cannot count them."""
    if math.prod(shape) >= 2**31:
        raise NotLowerableError("more elements than 32 bits can count")
    return np.array([math.prod(shape[axis + 1 :]) for axis in range(len(shape))], np.int32)


def element_positions(e: Emitter, indices: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    """Row-by-row position in `shape` of each element that GatherElements' indices name, as int32."""
    strides = strides_of(shape)
    grid = np.indices(indices.shape, np.int32)
    others = [grid[other] * strides[other] for other in range(len(shape)) if other != axis]
    fixed: NDArray[np.int32] = np.zeros(indices.shape, np.int32)
    for other in others:
        fixed = fixed + other
    chosen = wrapped(e, indices, shape[axis])
    if chosen.data is not None:
        return e.constant(chosen.data.astype(np.int32) * strides[axis] + fixed, "int32", role="positions")
    return e.add(e.mul(chosen, strides[axis]), fixed)


def gather(node: Node, e: Emitter) -> None:
    """Gather along an axis, with indices of either sign."""
    value, axis = e.input(0), node.integer("axis", 0)
    e.into(node.outputs[0], e.gather(value, wrapped(e, e.input(1), value.shape[axis]), axis))


def gather_elements(node: Node, e: Emitter) -> None:
    """GatherElements, as one gather from the flattened data."""
    value, axis = e.input(0), node.integer("axis", 0) % e.input(0).rank
    positions = element_positions(e, e.input(1), value.shape, axis)
    e.into(node.outputs[0], e.gather(e.reshape(value, (-1,)), positions))


def gather_nd(node: Node, e: Emitter) -> None:
    """GatherND with batch_dims: the batch coordinates are put before the index vectors."""
    value, indices, batch = e.input(0), e.input(1), node.integer("batch_dims", 0)
    depth = indices.shape[-1]
    chosen = wrapped(e, indices, np.array(value.shape[batch : batch + depth], np.int32))
    if batch:
        leading = np.indices(indices.shape[:-1], np.int32)[:batch]
        chosen = e.concat([e.constant(np.moveaxis(leading, 0, -1), role="batch"), chosen], -1)
    e.into(node.outputs[0], e.gather_nd(value, chosen))


def one_hot(node: Node, e: Emitter) -> None:
    """OneHot with constant depth: indices may count from the back, and ones out of range are off everywhere."""
    indices, depth = e.input(0), int(e.array(1, "depth").reshape(-1)[0])
    axis = node.integer("axis", -1) % (indices.rank + 1)
    whole = indices if indices.dtype in ("int32", "int64") else e.cast(indices, "int64")
    forward = e.select(e.less(whole, 0), e.add(whole, depth), whole)
    shape = [1] * (indices.rank + 1)
    shape[axis] = depth
    steps = np.arange(depth, dtype=whole.dtype).reshape(shape)
    spread = e.reshape(forward, (*indices.shape[:axis], 1, *indices.shape[axis:]))
    off, on = (e.reshape(part, ()) for part in e.split(e.reshape(e.input(2), (2,)), 0, (1, 1)))
    e.into(node.outputs[0], e.select(e.equal(spread, steps), on, off))


def top_k(node: Node, e: Emitter) -> None:
    """TopK with k constant (an attribute before opset 10): largest or smallest along any axis, always sorted."""
    value = e.input(0)
    k = node.integer("k", 0) if node.opset < 10 else int(e.array(1, "k").reshape(-1)[0])
    axis = node.integer("axis", -1) % value.rank
    order = [other for other in range(value.rank) if other != axis] + [axis]
    last, smallest = e.transpose(value, order), node.integer("largest", 1) == 0
    found, positions = e.top_k(_opposite(e, last) if smallest else last, k)
    back = tuple(int(position) for position in np.argsort(order))
    if e.wants(0):
        e.into(node.outputs[0], e.transpose(_opposite(e, found) if smallest else found, back))
    if e.wants(1):
        e.into(node.outputs[1], e.cast(e.transpose(positions, back), "int64"))


def _opposite(e: Emitter, value: Tensor) -> Tensor:
    """Values in the opposite order; twice gives them back. An integer's negative may not exist."""
    if value.dtype.startswith("float"):
        return e.neg(value)
    top = -1 if value.dtype.startswith("int") else int(np.iinfo(value.dtype).max)
    return e.sub(np.array(top, value.dtype), value)


def trilu(node: Node, e: Emitter) -> None:
    """Trilu: the triangle above (`upper`) or below the k-th diagonal, zeros elsewhere; k may be computed."""
    value = e.input(0)
    rows, columns = value.shape[-2:]
    offsets = np.arange(columns)[None, :] - np.arange(rows)[:, None]
    upper = node.integer("upper", 1) == 1
    k = e.reshape(e.input(1), ()) if e.has(1) else e.constant(np.array(0, np.int64), role="k")
    if k.data is not None:
        edge = int(k.data.item())
        kept = e.constant(offsets >= edge if upper else offsets <= edge, role="triangle")
    else:
        compare = e.greater_equal if upper else e.less_equal
        kept = compare(offsets.astype(np.int64), k)
    e.into(node.outputs[0], e.select(kept, value, np.zeros((), value.dtype)))


def eye_like(node: Node, e: Emitter) -> None:
    """EyeLike: ones on the k-th diagonal, in the shape of a value that is not read."""
    rows, columns = e.output().shape
    e.into(node.outputs[0], e.constant(np.eye(rows, columns, node.integer("k", 0)), e.output().dtype, role="eye"))


def compress(node: Node, e: Emitter) -> None:
    """Compress by a constant condition: a computed one would decide the result's shape."""
    value, condition = e.input(0), e.array(1, "condition").ravel()
    if "axis" not in node.attributes:
        value = e.reshape(value, (-1,))
    chosen = np.flatnonzero(condition).astype(np.int32)
    e.into(node.outputs[0], e.gather(value, chosen, node.integer("axis", 0)))


def reverse_sequence(node: Node, e: Emitter) -> None:
    """ReverseSequence: the first elements of each row the other way round, their number by row in an input."""
    value, time, batch = e.input(0), node.integer("time_axis", 0), node.integer("batch_axis", 1)
    working = working_dtype("REVERSE_SEQUENCE", value.dtype)
    options = options_of("ReverseSequence", seqDim=time % value.rank, batchDim=batch % value.rank)
    inputs = [e.cast(value, working), e.cast(e.input(1), "int32")]
    made = e.call("REVERSE_SEQUENCE", inputs, value.shape, working, options)
    e.into(node.outputs[0], e.cast(made, value.dtype))


OPERATORS: dict[str, Lowering] = {
    "Compress": compress,
    "EyeLike": eye_like,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "ReverseSequence": reverse_sequence,
    "TopK": top_k,
    "Trilu": trilu,
}
