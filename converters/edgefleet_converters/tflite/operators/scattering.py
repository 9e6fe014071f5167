"""Operators that place elements by index: Scatter, ScatterElements, ScatterND, TensorScatter, MaxUnpool, Col2Im.

A reduction other than adding compares every update with every place, so it is refused where that is too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Array, Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.indexing import element_positions, strides_of, wrapped

# Elements of the table (update, place) that a reduction may need.
_LARGEST_TABLE = 2**22


def scatter_elements(node: Node, e: Emitter) -> None:
    """Scatter and ScatterElements: reduction none (indices are distinct), add, mul, max or min."""
    value, updates = e.input(0), e.input(2)
    axis = node.integer("axis", 0) % value.rank
    positions = e.reshape(element_positions(e, e.input(1), value.shape, axis), (-1, 1))
    rows, placed = e.reshape(value, (-1, 1)), e.reshape(updates, (-1, 1))
    e.into(node.outputs[0], e.reshape(_scattered(node, e, rows, positions, placed), value.shape))


def scatter_nd(node: Node, e: Emitter) -> None:
    """ScatterND: reduction none (indices are distinct), add, mul, max or min."""
    value, indices, updates = e.input(0), e.input(1), e.input(2)
    depth = indices.shape[-1]
    places = value.shape[:depth]
    block = math.prod(value.shape[depth:])
    chosen = wrapped(e, indices, np.array(places, np.int32))
    if chosen.data is not None:
        summed = (chosen.data.astype(np.int64) * strides_of(places)).sum(-1)
        positions = e.constant(summed.reshape(-1, 1), "int32", role="positions")
    else:
        positions = e.reshape(e.reduce_sum(e.mul(chosen, strides_of(places)), (-1,)), (-1, 1))
    rows, placed = e.reshape(value, (-1, block)), e.reshape(updates, (-1, block))
    e.into(node.outputs[0], e.reshape(_scattered(node, e, rows, positions, placed), value.shape))


def _scattered(node: Node, e: Emitter, rows: Tensor, positions: Tensor, updates: Tensor) -> Tensor:
    """`rows` [P, R] with each update row [U, R] combined into the row that `positions` [U, 1] names."""
    reduction = node.text("reduction", "none")
    if reduction == "none":
        ones = e.constant(np.ones(positions.shape, np.int32), role="ones")
        hit = e.greater(e.scatter_nd(positions, ones, (rows.shape[0], 1)), 0)
        return e.select(hit, e.scatter_nd(positions, updates, rows.shape), rows)
    if reduction == "add":
        return e.add(rows, e.scatter_nd(positions, updates, rows.shape))
    reduce, combine, neutral = _reduction(e, reduction, rows.dtype)
    if updates.shape[0] * math.prod(rows.shape) > _LARGEST_TABLE:
        raise NotLowerableError(f"reduction={reduction!r} of {updates.shape[0]} updates into {rows.shape[0]} places")
    hits = e.equal(positions, np.arange(rows.shape[0], dtype=np.int32)[None, :])
    wide = e.reshape(updates, (updates.shape[0], 1, updates.shape[1]))
    table = e.select(e.reshape(hits, (*hits.shape, 1)), wide, neutral)
    return combine(rows, e.reshape(reduce(table, (0,)), rows.shape))


_Reduce = Callable[[Tensor, tuple[int, ...]], Tensor]
_Combine = Callable[[Tensor, Tensor], Tensor]


def _reduction(e: Emitter, reduction: str, dtype: str) -> tuple[_Reduce, _Combine, Array]:
    """(over all updates, with the old value, the value that changes nothing) of mul, max or min."""
    whole = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    if np.dtype(dtype).kind not in "iuf":
        raise NotLowerableError(f"reduction={reduction!r} of {dtype}")
    if reduction == "mul":
        return e.reduce_prod, e.mul, np.array(1, dtype)
    if reduction == "max":
        return e.reduce_max, e.maximum, np.array(whole.min if whole else -np.inf, dtype)
    if reduction == "min":
        return e.reduce_min, e.minimum, np.array(whole.max if whole else np.inf, dtype)
    raise NotLowerableError(f"reduction={reduction!r}")


def tensor_scatter(node: Node, e: Emitter) -> None:
    """TensorScatter: a run of updates from a position by batch on, linear (it fits) or circular."""
    cache, update = e.input(0), e.input(1)
    axis = node.integer("axis", -2) % cache.rank
    length, count = cache.shape[axis], update.shape[axis]
    batch = cache.shape[0]
    starts = e.input(2) if e.has(2) else e.constant(np.zeros(batch, np.int64), role="starts")
    places = np.arange(length, dtype=np.int32)[None, :]
    past = e.floor_mod(e.sub(places, e.reshape(e.cast(starts, "int32"), (batch, 1))), length)
    spread = e.gather(update, e.minimum(past, count - 1), axis, batch_dims=1)
    shape = [1] * cache.rank
    shape[0], shape[axis] = batch, length
    e.into(node.outputs[0], e.select(e.reshape(e.less(past, count), shape), spread, cache))


def max_unpool(node: Node, e: Emitter) -> None:
    """MaxUnpool of windows that do not overlap: values at the flat indices, zeros elsewhere, then `output_shape`."""
    value, kernel = e.input(0), node.integers("kernel_shape", ())
    spatial = len(kernel)
    strides = node.integers("strides", (1,) * spatial)
    pads = node.integers("pads", (0,) * (2 * spatial))
    if any(stride < length for stride, length in zip(strides, kernel, strict=True)):
        raise NotLowerableError("overlapping windows may name one place twice")
    sizes = [
        (value.shape[2 + axis] - 1) * strides[axis] - pads[axis] - pads[spatial + axis] + kernel[axis]
        for axis in range(spatial)
    ]
    inferred = (*value.shape[:2], *sizes)
    total = math.prod(inferred)
    positions = e.reshape(wrapped(e, e.input(1), total), (-1, 1))
    placed = e.reshape(e.scatter_nd(positions, e.reshape(value, (-1,)), (total,)), inferred)
    wanted = e.output().shape
    grown = [(0, after - before) for before, after in zip(inferred, wanted, strict=True)]
    e.into(node.outputs[0], e.pad(placed, grown))


def col2im(node: Node, e: Emitter) -> None:
    """Col2Im in any number of dimensions: each column's elements are added where they came from."""
    value = e.input(0)
    image = [int(size) for size in e.array(1, "image_shape").ravel()]
    block = [int(size) for size in e.array(2, "block_shape").ravel()]
    spatial, kernel = len(image), math.prod(block)
    pads = node.integers("pads", (0,) * 2 * spatial)
    strides, dilations = node.integers("strides", (1,) * spatial), node.integers("dilations", (1,) * spatial)
    padded = [size + pads[axis] + pads[spatial + axis] for axis, size in enumerate(image)]
    counts = [(padded[axis] - dilations[axis] * (block[axis] - 1) - 1) // strides[axis] + 1 for axis in range(spatial)]
    within = np.indices(block).reshape(spatial, kernel, 1) * np.reshape(dilations, (-1, 1, 1))
    across = np.indices(counts).reshape(spatial, 1, -1) * np.reshape(strides, (-1, 1, 1))
    positions = ((within + across) * strides_of(padded).reshape(-1, 1, 1)).sum(0).reshape(-1, 1).astype(np.int32)
    batch, channels = value.shape[0], value.shape[1] // kernel
    columns = e.reshape(value, (batch * channels, positions.size))
    added = e.scatter_nd(positions, e.transpose(columns, (1, 0)), (math.prod(padded), batch * channels))
    whole = e.reshape(e.transpose(added, (1, 0)), (batch, channels, *padded))
    e.into(node.outputs[0], e.slice(whole, (0, 0, *pads[:spatial]), (batch, channels, *image)))


OPERATORS: dict[str, Lowering] = {
    "Col2Im": col2im,
    "MaxUnpool": max_unpool,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
}
