"""Reductions over axes, and running sums and products.

Axes are attributes or constant inputs; computed axes are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering

# Up to this rank every reducing kernel has every type.
_PLAIN_RANK = 6
_LARGEST = float(np.finfo(np.float32).max)

Reduce = Callable[[Emitter, Tensor, Sequence[int]], Tensor]
"""Reduces some axes, which stay with length 1."""


def axes_of(node: Node, e: Emitter, value: Tensor) -> tuple[int, ...]:
    """The reduced axes: attribute or constant input; none given means all, or none with noop_with_empty_axes=1."""
    if "axes" in node.attributes:
        axes = node.integers("axes", ())
    else:
        axes = tuple(int(axis) for axis in e.array(1, "axes").ravel()) if e.has(1) else ()
    if not axes and not node.integer("noop_with_empty_axes", 0):
        axes = tuple(range(value.rank))
    return tuple(sorted({axis % max(value.rank, 1) for axis in axes})) if value.rank else ()


def reducing(write: Reduce) -> Lowering:
    """Lowering of an operator that reduces axes: `write` keeps them, `keepdims=0` drops them afterwards."""

    def lowered(node: Node, e: Emitter) -> None:
        value = e.input(0)
        reduced = write(e, value, axes_of(node, e, value))
        e.into(node.outputs[0], e.reshape(reduced, e.output().shape))

    return lowered


def over(step: Callable[[Emitter, Tensor, Sequence[int]], Tensor]) -> Reduce:
    """A reducing kernel on any rank: beyond what kernels do, the reduced axes are joined at the end first."""

    def reduced(e: Emitter, value: Tensor, axes: Sequence[int]) -> Tensor:
        if value.rank <= _PLAIN_RANK or not axes:
            return step(e, value, axes)
        kept = [axis for axis in range(value.rank) if axis not in axes]
        turned = e.transpose(value, [*kept, *axes])
        joined = e.reshape(turned, (-1, math.prod(value.shape[axis] for axis in axes)))
        return e.reshape(step(e, joined, [1]), [1 if axis in axes else size for axis, size in enumerate(value.shape)])

    return reduced


sum_over = over(lambda e, x, axes: e.reduce_sum(x, axes))
mean_over = over(lambda e, x, axes: e.reduce_mean(x, axes))
max_over = over(lambda e, x, axes: e.reduce_max(x, axes))
min_over = over(lambda e, x, axes: e.reduce_min(x, axes))
prod_over = over(lambda e, x, axes: e.reduce_prod(x, axes))


def _require_float(value: Tensor) -> None:
    if not value.dtype.startswith("float"):
        raise NotLowerableError(f"a root or logarithm of {value.dtype}, which would be rounded")


def _l1(e: Emitter, value: Tensor, axes: Sequence[int]) -> Tensor:
    """ReduceL1: sum of magnitudes; any number type."""
    return sum_over(e, value if value.dtype.startswith("u") else e.abs(value), axes)


def _l2(e: Emitter, value: Tensor, axes: Sequence[int]) -> Tensor:
    """ReduceL2: root of the sum of squares; floats."""
    _require_float(value)
    return e.sqrt(sum_over(e, e.square(value), axes))


def _log_sum(e: Emitter, value: Tensor, axes: Sequence[int]) -> Tensor:
    """ReduceLogSum: logarithm of the sum; floats."""
    _require_float(value)
    return e.log(sum_over(e, value, axes))


def _log_sum_exp(e: Emitter, value: Tensor, axes: Sequence[int]) -> Tensor:
    """ReduceLogSumExp: from the largest element down, so that nothing overflows; floats."""
    _require_float(value)
    # An infinite maximum would make inf - inf of the elements that reach it.
    top = e.minimum(e.maximum(max_over(e, value, axes), -_LARGEST), _LARGEST)
    return e.add(e.log(sum_over(e, e.exp(e.sub(value, top)), axes)), top)


OPERATORS: dict[str, Lowering] = {
    "ReduceL1": reducing(_l1),
    "ReduceL2": reducing(_l2),
    "ReduceLogSum": reducing(_log_sum),
    "ReduceLogSumExp": reducing(_log_sum_exp),
    "ReduceMax": reducing(max_over),
    "ReduceMean": reducing(mean_over),
    "ReduceMin": reducing(min_over),
    "ReduceProd": reducing(prod_over),
    "ReduceSum": reducing(sum_over),
    "ReduceSumSquare": reducing(lambda e, x, axes: sum_over(e, e.square(x), axes)),
}
