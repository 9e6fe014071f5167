"""Which keys a query of Attention may see: its mask, causality, window and padding as one bias on the scores.

What is known before run time becomes one constant; nothing here touches queries, keys or values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError

_MASK, _PAST, _VALID = 3, 4, 6
"""Positions of attn_mask, past_key and nonpad_kv_seqlen among the inputs."""


@dataclass(frozen=True, slots=True)
class Masking:
    """A bias to add to the scores (None: nothing), and the rows in which some key is left (None: all of them)."""

    bias: Tensor | None = None
    alive: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Query and key see each other where `low` <= number of keys up to the last query <= `high`."""

    low: NDArray[np.int64] | None
    high: NDArray[np.int64] | None


def masking(node: Node, e: Emitter, queries: int, keys: int) -> Masking:
    """The bias of all masks together, shaped to broadcast with scores [batch, heads, queries, keys].

    A boolean mask is 0 or -inf. Raises NotLowerableError for a mask of another length than `keys`, which only
    opset 24 and newer fill up.
    """
    flags, number = [], None
    mask = _mask(node, e, keys)
    if mask is not None and mask.dtype == "bool":
        flags.append(mask)
    elif mask is not None:
        number = mask
    flags.extend(_visible(node, e, queries, keys))
    known = [flag.data for flag in flags if flag.data is not None]
    if len(known) == len(flags) and (number is None or number.data is not None):
        allowed = np.ones((1, keys), np.bool_)
        for data in known:
            allowed = allowed & data.astype(np.bool_)
        added = np.zeros((), np.float32) if number is None or number.data is None else number.data.astype(np.float32)
        return _constant(e, np.where(allowed, added, np.float32(-np.inf)))
    return _computed(e, flags, number)


def _constant(e: Emitter, bias: NDArray[np.float32]) -> Masking:
    alive = np.asarray(~np.isneginf(bias).all(-1, keepdims=True))
    return Masking(
        e.constant(bias, role="mask") if bias.any() else None,
        None if alive.all() else e.constant(alive, role="rows"),
    )


def _computed(e: Emitter, flags: list[Tensor], number: Tensor | None) -> Masking:
    if not flags:
        bias = number
    else:
        allowed = flags[0]
        for flag in flags[1:]:
            allowed = e.logical_and(allowed, flag)
        bias = e.select(allowed, 0.0 if number is None else number, -np.inf)
        if number is None:
            return Masking(bias, e.reduce_max(allowed, [-1]))
    return Masking(bias, None if bias is None else e.not_equal(e.reduce_max(bias, [-1]), -np.inf))


def _mask(node: Node, e: Emitter, keys: int) -> Tensor | None:
    """The mask, bool or float32, filled up with "not visible" to the number of keys."""
    if not e.has(_MASK):
        return None
    mask = e.input(_MASK)
    mask = mask if mask.dtype == "bool" else e.cast(mask, "float32")
    missing = keys - mask.shape[-1] if mask.rank else -1
    if missing == 0:
        return mask
    if missing < 0 or node.opset < 24:
        raise NotLowerableError(f"a mask {mask.shape} for {keys} keys")
    pads = [(0, 0)] * (mask.rank - 1) + [(0, missing)]
    fill = 0.0 if mask.dtype == "bool" else -np.inf
    if mask.data is not None:
        return e.constant(np.pad(mask.data, pads, constant_values=np.array(fill, mask.dtype)), role="mask")
    return e.pad(mask, pads, fill)


def _visible(node: Node, e: Emitter, queries: int, keys: int) -> list[Tensor]:
    """Causality, window and padding as bool tensors; constants where the number of valid keys is one."""
    padded = e.has(_VALID)
    bounds = _bounds(node, queries, keys, padded=padded)
    if not padded:
        past = e.input(_PAST).shape[2] if e.has(_PAST) else 0
        found = _within(bounds, np.array(past + queries, np.int64))
        return [] if found is None else [e.constant(found, role="visible")]
    valid = e.reshape(e.cast(e.input(_VALID), "int32"), (-1, 1, 1, 1))
    if valid.data is not None:
        found = _within(bounds, valid.data.astype(np.int64))
        return [] if found is None else [e.constant(found, role="visible")]
    flags = []
    if bounds.low is not None:
        flags.append(e.greater_equal(valid, bounds.low.astype(np.int32)))
    if bounds.high is not None:
        flags.append(e.less_equal(valid, bounds.high.astype(np.int32)))
    return flags


def _within(bounds: _Bounds, valid: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    found = None
    if bounds.low is not None:
        found = valid >= bounds.low
    if bounds.high is not None:
        found = (valid <= bounds.high) & (True if found is None else found)
    return found


def _bounds(node: Node, queries: int, keys: int, *, padded: bool) -> _Bounds:
    """With n keys up to the last query, query i stands at n - queries + i, and key j at j."""
    left, right = node.integer("left_window_size", -1), node.integer("right_window_size", -1)
    key = np.arange(keys, dtype=np.int64)[None, :]
    ahead = key - np.arange(queries, dtype=np.int64)[:, None] + queries
    lows = [ahead] if node.integer("is_causal", 0) else []
    if right >= 0:
        lows.append(ahead - right)
    if padded:
        lows.append(np.broadcast_to(key + 1, ahead.shape))
    return _Bounds(np.maximum.reduce(lows) if lows else None, ahead + left if left >= 0 else None)
