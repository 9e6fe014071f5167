"""Emitter methods that move elements and compute nothing; constants are moved at once and cost no operator.

A type that the kernel lacks travels in a wider one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgefleet_converters.tflite.emitter.core import Core, Operand
from edgefleet_converters.tflite.file import Tensor, options_of
from edgefleet_converters.tflite.graph import NotLowerableError, keeps_order, permuted
from edgefleet_converters.tflite.kernels import working_dtype

Slice = slice
"""Python's own, which the method of that name hides inside the class."""


class Movement(Core):
    """Transposes, slices, concatenations, padding, gathering and repetition."""

    def transpose(self, value: Tensor, permutation: Sequence[int]) -> Tensor:
        """Axes in a new order: result axis i is axis permutation[i]. A RESHAPE when no element moves."""
        order = tuple(int(axis) % max(value.rank, 1) for axis in permutation)
        shape = permuted(value.shape, order)
        if order == tuple(range(value.rank)):
            return value
        if value.data is not None:
            return self.constant(value.data.transpose(order), role="transposed")
        if keeps_order(value.shape, order):
            return self.reshape(value, shape)
        axes = self.integers(order, "permutation")
        return self.call("TRANSPOSE", [value, axes], shape, value.dtype, options_of("Transpose"))

    def concat(self, values: Sequence[Tensor], axis: int) -> Tensor:
        """Values one after another along an axis; those without elements are left out."""
        there = [value for value in values if math.prod(value.shape)]
        if len(there) == 1:
            return there[0]
        along, dtype = axis % there[0].rank, there[0].dtype
        sizes = list(there[0].shape)
        sizes[along] = sum(value.shape[along] for value in there)
        working = working_dtype("CONCATENATION", dtype)
        inputs = [self.cast(value, working) for value in there]
        options = options_of("Concatenation", axis=along)
        return self.cast(self.call("CONCATENATION", inputs, sizes, working, options), dtype)

    def slice(self, value: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """A block: `sizes` elements from `starts` on, on every axis; nothing when that is all of them."""
        if tuple(sizes) == value.shape:
            return value
        if math.prod(sizes) == 0:
            return self.constant(np.zeros(sizes, np.dtype(value.dtype)), role="none")
        if value.data is not None:
            block = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
            return self.constant(value.data[block], role="slice")
        inputs = [value, self.integers(starts, "starts"), self.integers(sizes, "sizes")]
        return self.call("SLICE", inputs, sizes, value.dtype, options_of("Slice"))

    def strided_slice(self, value: Tensor, slices: Sequence[Slice]) -> Tensor:
        """Numpy's value[slices], one slice per axis, steps of either sign."""
        ranges = [range(size)[part] for size, part in zip(value.shape, slices, strict=True)]
        shape = [len(taken) for taken in ranges]
        if all(taken.step == 1 for taken in ranges):
            return self.slice(value, [taken.start for taken in ranges], shape)
        if value.data is not None:
            return self.constant(value.data[tuple(slices)], role="slice")
        # An end of -1 would count from the back; one before the first element has to be further left.
        ends = [taken.stop if taken.stop >= 0 else -size - 1 for taken, size in zip(ranges, value.shape, strict=True)]
        inputs = [
            value,
            self.integers([taken.start for taken in ranges], "begins"),
            self.integers(ends, "ends"),
            self.integers([taken.step for taken in ranges], "steps"),
        ]
        masks = dict.fromkeys(("beginMask", "endMask", "ellipsisMask", "newAxisMask", "shrinkAxisMask"), 0)
        return self.call("STRIDED_SLICE", inputs, shape, value.dtype, options_of("StridedSlice", **masks))

    def split(self, value: Tensor, axis: int, sizes: Sequence[int]) -> list[Tensor]:
        """Consecutive parts along an axis, as slices: every type has those."""
        along, start, parts = axis % value.rank, 0, []
        for size in sizes:
            starts, block = [0] * value.rank, list(value.shape)
            starts[along], block[along] = start, size
            parts.append(self.slice(value, starts, block))
            start += size
        return parts

    def pad(self, value: Tensor, pads: Sequence[tuple[int, int]], fill: float = 0) -> Tensor:
        """(before, after) on every axis, filled with a number; negative pads are refused."""
        if not any(before or after for before, after in pads):
            return value
        if min(min(pair) for pair in pads) < 0:
            raise NotLowerableError(f"negative pads {list(pads)}")
        operator = "PAD" if fill == 0 else "PADV2"
        working = working_dtype(operator, value.dtype)
        shape = [size + before + after for size, (before, after) in zip(value.shape, pads, strict=True)]
        edges = self.constant(np.array(pads, np.int32), role="pads")
        inputs = [self.cast(value, working), edges]
        if fill != 0:
            inputs.append(self.constant(np.array([fill], working), role="fill"))
        options = options_of("Pad" if fill == 0 else "PadV2")
        return self.cast(self.call(operator, inputs, shape, working, options), value.dtype)

    def mirror_pad(self, value: Tensor, pads: Sequence[tuple[int, int]], *, symmetric: bool = False) -> Tensor:
        """(before, after) filled by reflection, without the edge element or (`symmetric`) with it."""
        least = 0 if symmetric else 1
        if any(max(pair) > size - least or min(pair) < 0 for pair, size in zip(pads, value.shape, strict=True)):
            raise NotLowerableError(f"pads {list(pads)} reflect more than there is")
        shape = [size + before + after for size, (before, after) in zip(value.shape, pads, strict=True)]
        inputs = [value, self.constant(np.array(pads, np.int32), role="pads")]
        options = options_of("MirrorPad", mode=int(symmetric))
        return self.call("MIRROR_PAD", inputs, shape, value.dtype, options)

    def gather(self, value: Tensor, indices: Operand, axis: int = 0, batch_dims: int = 0) -> Tensor:
        """Numpy's take; the indices must be valid and not negative. The first `batch_dims` axes run in step."""
        chosen, along = self.operand(indices, "int32"), axis % value.rank
        working = working_dtype("GATHER", value.dtype)
        shape = (*value.shape[:along], *chosen.shape[batch_dims:], *value.shape[along + 1 :])
        options = options_of("Gather", axis=along, batchDims=batch_dims)
        made = self.call("GATHER", [self.cast(value, working), chosen], shape, working, options)
        return self.cast(made, value.dtype)

    def gather_nd(self, value: Tensor, indices: Operand) -> Tensor:
        """One block per index vector: indices [..., k] over the first k axes, valid and not negative."""
        chosen = self.operand(indices, "int32")
        working = working_dtype("GATHER_ND", value.dtype)
        shape = (*chosen.shape[:-1], *value.shape[chosen.shape[-1] :])
        inputs = [self.cast(value, working), chosen]
        return self.cast(self.call("GATHER_ND", inputs, shape, working, options_of("GatherNd")), value.dtype)

    def scatter_nd(self, indices: Operand, updates: Tensor, shape: Sequence[int]) -> Tensor:
        """Zeros of `shape` with each update added at its int32 index vector."""
        chosen = self.cast(self.operand(indices, "int32"), "int32")
        working = working_dtype("SCATTER_ND", updates.dtype)
        inputs = [chosen, self.cast(updates, working), self.integers(shape, "shape")]
        made = self.call("SCATTER_ND", inputs, shape, working, options_of("ScatterNd"), kernel=working)
        return self.cast(made, updates.dtype)

    def tile(self, value: Tensor, repeats: Sequence[int]) -> Tensor:
        """The whole, repeated along each axis."""
        shape = [size * count for size, count in zip(value.shape, repeats, strict=True)]
        if tuple(shape) == value.shape:
            return value
        return self.call("TILE", [value, self.integers(repeats, "repeats")], shape, value.dtype, options_of("Tile"))

    def broadcast_to(self, value: Tensor, shape: Sequence[int]) -> Tensor:
        """Numpy's broadcast_to."""
        if tuple(shape) == value.shape:
            return value
        if value.data is not None:
            return self.constant(np.broadcast_to(value.data, tuple(shape)), role="broadcast")
        inputs = [value, self.integers(shape, "shape")]
        return self.call("BROADCAST_TO", inputs, shape, value.dtype, options_of("BroadcastTo"))

    def reverse(self, value: Tensor, axis: int) -> Tensor:
        """The other way round along an axis."""
        working = working_dtype("REVERSE_V2", value.dtype)
        inputs = [self.cast(value, working), self.integers([axis % value.rank], "axes")]
        made = self.call("REVERSE_V2", inputs, value.shape, working, options_of("ReverseV2"))
        return self.cast(made, value.dtype)

    def one_hot(self, indices: Tensor, depth: int, on: Operand, off: Operand, dtype: str) -> Tensor:
        """A last axis of length `depth`: `on` at each index, `off` elsewhere."""
        inputs = [
            self.cast(indices, "int32"),
            self.constant(np.array(depth, np.int32), role="depth"),
            self.operand(on, dtype),
            self.operand(off, dtype),
        ]
        shape = (*indices.shape, depth)
        return self.call("ONE_HOT", inputs, shape, dtype, options_of("OneHot", axis=-1), kernel=dtype)
