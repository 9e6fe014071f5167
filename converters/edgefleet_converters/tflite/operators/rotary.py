"""RotaryEmbedding: pairs of numbers turned by an angle that depends on their position.

Does not compute the angles: the model brings tables of cosines and sines.
"""

from __future__ import annotations

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.precision import WORKING, finish, widened


def rotary_embedding(node: Node, e: Emitter) -> None:
    """RotaryEmbedding of [batch, heads, length, size] or [batch, length, heads x size]; float32 or float16.

    y = x * cos + partner(x) * sin, with cosines and signed sines for whole vectors; negative positions count from
    the end, as in Gather. The tables may be computed.
    """
    source = widened(e, 0)
    value = _split_heads(node, e, source)
    size = node.integer("rotary_embedding_dim", 0) or value.shape[-1]
    pairs, interleaved = size // 2, bool(node.integer("interleaved", 0))
    turned, rest = e.split(value, -1, (size, value.shape[-1] - size)) if size < value.shape[-1] else (value, None)
    cosines, sines = (_by_position(e, table) for table in _tables(e, pairs, interleaved=interleaved))
    axis = 2 if source.rank == 3 else 1
    cosines, sines = (_at_heads(e, table, axis) for table in (cosines, sines))
    found = e.add(e.mul(turned, cosines), e.mul(_partners(e, turned, interleaved=interleaved), sines))
    whole = found if rest is None else e.concat([found, rest], -1)
    finish(e, 0, e.reshape(whole, source.shape))


def _split_heads(node: Node, e: Emitter, value: Tensor) -> Tensor:
    if value.rank == 4:
        return value
    heads = node.integer("num_heads", 0)
    if value.rank != 3 or heads < 1 or value.shape[2] % heads:
        raise NotLowerableError(f"{heads} heads in a value {value.shape}")
    return e.reshape(value, (*value.shape[:2], heads, value.shape[2] // heads))


def _tables(e: Emitter, pairs: int, *, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Cosines and sines as wide as the turned part, sines negative where a pair's first number is."""
    cosine, sine = (widened(e, position) for position in (1, 2))
    if cosine.shape[-1] != pairs or sine.shape != cosine.shape:
        raise NotLowerableError(f"tables {cosine.shape} and {sine.shape} for {pairs} pairs")
    minus = e.constant(np.negative(sine.data.astype(WORKING))) if sine.data is not None else e.neg(sine)
    return _joined(e, cosine, cosine, interleaved=interleaved), _joined(e, minus, sine, interleaved=interleaved)


def _joined(e: Emitter, first: Tensor, second: Tensor, *, interleaved: bool) -> Tensor:
    """One after the other, or alternating, along the last axis."""
    shape = (*first.shape[:-1], 2 * first.shape[-1])
    if first.data is not None and second.data is not None:
        pair = np.stack([first.data, second.data], -1 if interleaved else -2)
        return e.constant(pair.reshape(shape), role="table")
    if not interleaved:
        return e.concat([first, second], -1)
    wide = [e.reshape(item, (*item.shape, 1)) for item in (first, second)]
    return e.reshape(e.concat(wide, -1), shape)


def _by_position(e: Emitter, table: Tensor) -> Tensor:
    """[batch, length, size]: the rows for each position; without positions the table is that already."""
    if not e.has(3):
        return table
    positions = e.input(3)
    if table.rank != 2:
        raise NotLowerableError(f"a table {table.shape} for positions {positions.shape}")
    if table.data is not None and positions.data is not None:
        return e.constant(table.data[positions.data.astype(np.int64)], role="table")
    return e.gather(table, e.floor_mod(e.cast(positions, "int32"), table.shape[0]))


def _at_heads(e: Emitter, table: Tensor, axis: int) -> Tensor:
    """With an axis of length 1 where the heads are; a table without a batch serves all."""
    shape = table.shape if table.rank == 3 else (1, *table.shape)
    return e.reshape(table, (*shape[:axis], 1, *shape[axis:]))


def _partners(e: Emitter, value: Tensor, *, interleaved: bool) -> Tensor:
    """Every number's partner in its place: the other half, or the neighbour."""
    size = value.shape[-1]
    if interleaved:
        return e.gather(value, np.arange(size, dtype=np.int32) ^ 1, axis=-1)
    first, second = e.split(value, -1, (size // 2, size // 2))
    return e.concat([second, first], -1)
