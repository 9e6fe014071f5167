"""Pad and CenterCropPad: elements added or taken away at the ends of axes, by constant amounts.

Every mode but a constant one gathers; a constant border of a high rank goes through a reshape to three axes.
"""

from __future__ import annotations

import math

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.kernels import KERNELS
from edgefleet_converters.tflite.operators.contract import Lowering

Pairs = list[tuple[int, int]]
_MODES = ("constant", "edge", "reflect", "wrap")


def pad(node: Node, e: Emitter) -> None:
    """Pad with constant amounts, of either sign (negative ones cut first); any mode, type and `axes`."""
    value, mode = e.input(0), node.text("mode", "constant")
    if mode not in _MODES:
        raise NotLowerableError(f"mode={mode!r}")
    pairs = _amounts(node, e, value.rank)
    starts = [max(-before, 0) for before, _ in pairs]
    kept = [size - start + min(after, 0) for size, start, (_, after) in zip(value.shape, starts, pairs, strict=True)]
    value = e.slice(value, starts, kept)
    grown = [(max(before, 0), max(after, 0)) for before, after in pairs]
    if mode == "constant":
        fill = node.number("value", 0.0) if node.opset < 11 else _fill(node, e)
        e.into(node.outputs[0], constant_border(e, value, grown, fill))
        return
    for axis, pair in enumerate(grown):
        value = _repeated_border(e, value, axis, pair, mode)
    e.into(node.outputs[0], value)


def _amounts(node: Node, e: Emitter, rank: int) -> Pairs:
    """(before, after) of every axis: an attribute before opset 11, an input from then on."""
    if node.opset < 11:
        flat = node.integers("pads", node.integers("paddings", ()))
    else:
        flat = tuple(int(item) for item in e.array(1, "pads").ravel())
    axes = tuple(int(axis) % rank for axis in e.array(3, "axes").ravel()) if e.has(3) else tuple(range(rank))
    pairs = [(0, 0)] * rank
    for axis, before, after in zip(axes, flat[: len(axes)], flat[len(axes) :], strict=True):
        pairs[axis] = (before, after)
    return pairs


def _fill(node: Node, e: Emitter) -> Tensor | float:
    if not node.input(2):
        return 0
    fill = e.input(2)
    return e.reshape(fill, ()) if fill.data is None else fill.data.reshape(-1)[0].item()


def constant_border(e: Emitter, value: Tensor, pairs: Pairs, fill: Tensor | float) -> Tensor:
    """Axes grown by (before, after) elements, all equal to a number or a computed scalar."""
    if not any(max(pair) for pair in pairs):
        return value
    if isinstance(fill, Tensor):
        inside = e.constant(np.ones(value.shape, np.bool_), role="inside")
        mask = constant_border(e, inside, pairs, 0)
        return e.select(mask, constant_border(e, value, pairs, 0), fill)
    if value.data is not None:
        return e.constant(np.pad(value.data, pairs, constant_values=fill), role="padded")
    if value.rank <= _largest_rank(value.dtype, fill):
        return e.pad(value, pairs, fill)
    for axis, pair in enumerate(pairs):
        shape = value.shape
        flat = e.reshape(value, (math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])))
        grown = e.pad(flat, [(0, 0), pair, (0, 0)], fill)
        value = e.reshape(grown, (*shape[:axis], shape[axis] + sum(pair), *shape[axis + 1 :]))
    return value


def _largest_rank(dtype: str, fill: float) -> int:
    # A type that the kernel lacks travels in a wider one, and all of those have the same ranks.
    ranks = KERNELS["PAD" if fill == 0 else "PADV2"]
    return ranks.get(dtype, ranks["int32"])


def _repeated_border(e: Emitter, value: Tensor, axis: int, pair: tuple[int, int], mode: str) -> Tensor:
    """One axis grown by repeating what it has; reflection stops before it needs more than there is."""
    if not any(pair):
        return value
    size = value.shape[axis]
    if mode == "reflect" and max(pair) < size:
        pairs = [(0, 0)] * value.rank
        pairs[axis] = pair
        return e.mirror_pad(value, pairs)
    places = np.pad(np.arange(size, dtype=np.int32), pair, mode=mode)  # type: ignore[call-overload]
    return e.gather(value, places, axis)


def center_crop_pad(node: Node, e: Emitter) -> None:
    """CenterCropPad to a constant shape: the middle of longer axes, zeros around shorter ones."""
    value = e.input(0)
    target = [int(size) for size in e.array(1, "shape").ravel()]
    axes = [axis % value.rank for axis in node.integers("axes", tuple(range(value.rank)))]
    starts, kept = [0] * value.rank, list(value.shape)
    pairs: Pairs = [(0, 0)] * value.rank
    for axis, size in zip(axes, target, strict=True):
        more = size - value.shape[axis]
        if more < 0:
            starts[axis], kept[axis] = -more // 2, size
        else:
            pairs[axis] = (more // 2, more - more // 2)
    e.into(node.outputs[0], constant_border(e, e.slice(value, starts, kept), pairs, 0))


OPERATORS: dict[str, Lowering] = {"CenterCropPad": center_crop_pad, "Pad": pad}
