"""Normalisations by the moments of a value: layer, RMS, instance, group and batch, and by norms of its vectors.

BatchNormalization with constant parameters is folded by a pass before; here is what that leaves. Moments of float16
values are taken in float32, whatever a node says: they would overflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor, options_of
from edgefleet_converters.tflite.graph import Node, NotLowerableError, inverse
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.precision import WORKING, finish, widened

_EPSILON = 1e-5


def layer_normalization(node: Node, e: Emitter) -> None:
    """LayerNormalization over all axes from `axis` on, with Mean and InvStdDev; float32 or float16, in float32."""
    value = widened(e, 0)
    axes = _from_axis(node, value)
    centred, mean, variance = _centred(e, value, axes)
    deviation = _inverse_root(node, e, variance)
    scaled = _scaled(e, e.mul(centred, deviation), widened(e, 1))
    shifted = e.add(scaled, widened(e, 2)) if e.has(2) else scaled
    finish(e, 0, shifted)
    finish(e, 1, mean)
    finish(e, 2, deviation)


def rms_normalization(node: Node, e: Emitter) -> None:
    """RMSNormalization over all axes from `axis` on; float32 or float16, in float32."""
    value = widened(e, 0)
    axes = _from_axis(node, value)
    deviation = _inverse_root(node, e, e.reduce_mean(e.mul(value, value), axes))
    finish(e, 0, _scaled(e, e.mul(value, deviation), widened(e, 1)))


def instance_normalization(node: Node, e: Emitter) -> None:
    """InstanceNormalization: every channel of every sample by its own moments; float32 or float16."""
    value = widened(e, 0)
    channel = _channel_axis(node, e)
    axes = [axis for axis in range(1, value.rank) if axis != channel]
    if not axes:
        raise NotLowerableError("no spatial axes")
    centred, _, variance = _centred(e, value, axes)
    unit = e.mul(centred, _inverse_root(node, e, variance))
    gain, offset = (_per_channel(e, position, channel, value.rank) for position in (1, 2))
    finish(e, 0, e.add(e.mul(unit, gain), offset))


def group_normalization(node: Node, e: Emitter) -> None:
    """GroupNormalization in either layout; scale and bias per group before opset 21, then per channel.

    float32 or float16; the moments are taken in float32 whatever `stash_type` says.
    """
    source, channel = widened(e, 0), _channel_axis(node, e)
    channels, groups = source.shape[channel], node.integer("num_groups", 0)
    if groups < 1 or channels % groups:
        raise NotLowerableError(f"{channels} channels in {groups} groups")
    split, each = (groups, channels // groups), (groups, 1 if node.opset < 21 else channels // groups)
    if channel == 1:
        grouped, axes, shape = (source.shape[0], *split, math.prod(source.shape[2:])), (2, 3), (1, *each, 1)
    else:
        grouped, axes, shape = (source.shape[0], math.prod(source.shape[1:-1]), *split), (1, 3), (1, 1, *each)
    centred, _, variance = _centred(e, e.reshape(source, grouped), axes)
    unit = e.mul(centred, _inverse_root(node, e, variance))
    gain, offset = (e.reshape(widened(e, position), shape) for position in (1, 2))
    finish(e, 0, e.reshape(e.add(e.mul(unit, gain), offset), source.shape))


def mean_variance_normalization(node: Node, e: Emitter) -> None:
    """MeanVarianceNormalization over `axes` (0, 2, 3 by default): (x - mean) / (deviation + 1e-9)."""
    value = widened(e, 0)
    axes = node.integers("axes", (0, 2, 3))
    centred, _, variance = _centred(e, value, axes)
    finish(e, 0, e.div(centred, e.add(e.sqrt(variance), 1e-9)))


def batch_normalization(node: Node, e: Emitter) -> None:
    """BatchNormalization that is not folded: computed parameters, or `training_mode` with its running moments.

    Training before opset 14, where more outputs mean it, and parameters per element (`spatial` = 0) are refused.
    """
    value = widened(e, 0)
    channel = _channel_axis(node, e)
    training = node.integer("training_mode", 0) == 1
    if any(e.has(position) and e.input(position).rank != 1 for position in range(1, 5)):
        raise NotLowerableError("parameters per element")
    if not training and any(node.outputs[1:]):
        raise NotLowerableError("training as before opset 14")
    gain, offset, mean, variance = (_per_channel(e, position, channel, value.rank) for position in range(1, 5))
    if training:
        running = mean, variance
        axes = [axis for axis in range(value.rank) if axis != channel]
        centred, mean, variance = _centred(e, value, axes)
        _running(node, e, running, (mean, variance))
    else:
        centred = e.sub(value, mean)
    factor = e.mul(_inverse_root(node, e, variance), gain)
    finish(e, 0, e.add(e.mul(centred, factor), offset))


def _running(node: Node, e: Emitter, before: tuple[Tensor, Tensor], batch: tuple[Tensor, Tensor]) -> None:
    """Outputs 1 and 2: the running moments, moved towards those of the batch by 1 - momentum."""
    momentum = node.number("momentum", 0.9)
    for position, old, new in zip((1, 2), before, batch, strict=True):
        if e.wants(position):
            kept = e.add(e.mul(old, momentum), e.mul(new, 1 - momentum))
            finish(e, position, e.reshape(kept, e.output(position).shape))


def lp_normalization(node: Node, e: Emitter) -> None:
    """LpNormalization, p 1 or 2, over one axis; a vector of norm 0 stays 0. float32 or float16.

    TFLite's own L2_NORMALIZATION bounds the norm from below, which tells on short vectors.
    """
    value, axis = widened(e, 0), node.integer("axis", -1)
    if node.integer("p", 2) == 2:
        norm = e.sqrt(e.reduce_sum(e.mul(value, value), [axis]))
    else:
        norm = e.reduce_sum(e.abs(value), [axis])
    finish(e, 0, e.div(value, e.select(e.equal(norm, 0.0), 1.0, norm)))


def local_response_normalization(node: Node, e: Emitter) -> None:
    """LRN over neighbouring channels, whose number `size` must be odd; float32 or float16.

    TFLite's kernel runs over the last axis of four, and multiplies the sum itself where ONNX takes the mean.
    """
    value, size = widened(e, 0), node.integer("size", 0)
    if size % 2 == 0:
        raise NotLowerableError(f"an even number of neighbours, size={size}")
    channel = _channel_axis(node, e)
    order = [*(axis for axis in range(value.rank) if axis != channel), channel]
    turned = e.transpose(value, order)
    options = options_of(
        "LocalResponseNormalization",
        radius=size // 2,
        bias=node.number("bias", 1.0),
        alpha=node.number("alpha", 1e-4) / size,
        beta=node.number("beta", 0.75),
    )
    rows = e.reshape(turned, (1, 1, -1, turned.shape[-1])) if turned.rank != 4 else turned
    found = e.call("LOCAL_RESPONSE_NORMALIZATION", [rows], rows.shape, WORKING, options)
    finish(e, 0, e.transpose(e.reshape(found, turned.shape), inverse(tuple(order))))


def _from_axis(node: Node, value: Tensor) -> list[int]:
    return list(range(node.integer("axis", -1) % max(value.rank, 1), value.rank))


def _centred(e: Emitter, value: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The value less its mean, the mean, and the variance; by operators that the quantiser knows."""
    mean = e.reduce_mean(value, axes)
    return e.sub(value, mean), mean, e.reduce_mean(e.squared_difference(value, mean), axes)


def _inverse_root(node: Node, e: Emitter, variance: Tensor) -> Tensor:
    return e.rsqrt(e.add(variance, node.number("epsilon", _EPSILON)))


def _scaled(e: Emitter, unit: Tensor, scale: Tensor) -> Tensor:
    """Times a scale, which is left out where it is a constant 1."""
    if scale.data is not None and np.all(scale.data == 1) and scale.rank <= unit.rank:
        return unit
    return e.mul(unit, scale)


def _channel_axis(node: Node, e: Emitter) -> int:
    """Where the channels are: last in a value that layout assignment stores channels-last, else 1."""
    return e.input(0).rank - 1 if node.inputs[0] in e.graph.layouts else 1


def _per_channel(e: Emitter, position: int, channel: int, rank: int) -> Tensor:
    """A vector of one number per channel, shaped to broadcast with the value."""
    vector = widened(e, position)
    shape = [1] * rank
    shape[min(channel, rank - 1)] = vector.shape[0]
    return e.reshape(vector, shape)


OPERATORS: dict[str, Lowering] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": local_response_normalization,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}
