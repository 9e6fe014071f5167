"""What goes along one axis: positions of extremes, running sums and running products.

The axis is an attribute or a constant input; a computed axis is refused.
"""

from __future__ import annotations

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node
from edgefleet_converters.tflite.kernels import working_dtype
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.reduction import max_over, min_over


def arg_max(node: Node, e: Emitter) -> None:
    """ArgMax: int64 positions; with select_last_index=1 the last of equals. Any number type."""
    _position(node, e, largest=True)


def arg_min(node: Node, e: Emitter) -> None:
    """ArgMin: as ArgMax, of the smallest element."""
    _position(node, e, largest=False)


def _position(node: Node, e: Emitter, *, largest: bool) -> None:
    value = e.input(0)
    axis, last = node.integer("axis", 0) % value.rank, bool(node.integer("select_last_index", 0))
    if value.dtype in ("int64", "uint32", "int16", "uint16"):
        found = _by_comparison(e, value, axis, largest=largest, last=last)
    else:
        turned = e.reverse(value, axis) if last else value
        found = e.arg_max(turned, axis) if largest else e.arg_min(turned, axis)
        if last:
            found = e.sub(np.array(value.shape[axis] - 1, np.int64), found)
    e.into(node.outputs[0], e.reshape(found, e.output().shape))


def _by_comparison(e: Emitter, value: Tensor, axis: int, *, largest: bool, last: bool) -> Tensor:
    """The smallest (or largest) of the positions that hold the extreme: for types that ARG_MAX does not know."""
    extreme = max_over(e, value, [axis]) if largest else min_over(e, value, [axis])
    size = value.shape[axis]
    shape = [size if position == axis else 1 for position in range(value.rank)]
    positions = np.arange(size, dtype=np.int64).reshape(shape)
    chosen = e.select(e.equal(value, extreme), positions, np.array(-1 if last else size, np.int64))
    return max_over(e, chosen, [axis]) if last else min_over(e, chosen, [axis])


def _axis(e: Emitter) -> int:
    return int(e.array(1, "axis").item())


def cumulative_sum(node: Node, e: Emitter) -> None:
    """CumSum, also `exclusive` and `reverse`; integers wrap around."""
    flags = {name: bool(node.integer(name, 0)) for name in ("exclusive", "reverse")}
    e.into(node.outputs[0], e.cumsum(e.input(0), _axis(e), **flags))


def cumulative_product(node: Node, e: Emitter) -> None:
    """CumProd, also `exclusive` and `reverse`: TFLite has none, so products over 1, 2, 4 … elements are joined."""
    source, reverse = e.input(0), node.integer("reverse", 0)
    value = e.cast(source, working_dtype("MUL", source.dtype))
    axis = _axis(e) % value.rank
    if reverse:
        value = e.reverse(value, axis)
    if node.integer("exclusive", 0):
        value = _delayed(e, value, axis, 1)
    step = 1
    while step < value.shape[axis]:
        value = e.mul(value, _delayed(e, value, axis, step))
        step *= 2
    if reverse:
        value = e.reverse(value, axis)
    e.into(node.outputs[0], e.cast(value, source.dtype))


def _delayed(e: Emitter, value: Tensor, axis: int, step: int) -> Tensor:
    """Shifted along the axis by `step`, with ones in front."""
    kept = list(value.shape)
    kept[axis] = min(step, kept[axis])
    ones = e.constant(np.ones(kept, value.dtype), role="ones")
    kept[axis] = value.shape[axis] - kept[axis]
    return e.concat([ones, e.slice(value, [0] * value.rank, kept)], axis) if kept[axis] else ones


OPERATORS: dict[str, Lowering] = {
    "ArgMax": arg_max,
    "ArgMin": arg_min,
    "CumProd": cumulative_product,
    "CumSum": cumulative_sum,
}
