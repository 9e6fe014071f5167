"""Blocks of networks with attention, written out as exporters do it, for any sizes.

Weights are seeded; masks are computed from the input's first feature, positive being visible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from conformance_graphs.building import Building

ROWS_LAST, SWAPPED = [0, 2, 1, 3], [0, 1, 3, 2]
LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Sizes:
    """Of one attention; `groups` heads of keys and values are shared by all heads."""

    batch: int = 2
    length: int = 7
    heads: int = 3
    size: int = 8
    groups: int = 3

    @property
    def width(self) -> int:
        return self.heads * self.size


def number(b: Building, value: float) -> str:
    return b.constant(np.array(value, np.float32))


def heads_of(b: Building, data: str, s: Sizes, heads: int) -> str:
    """[batch, length, heads * size] as [batch, heads, length, size]."""
    return b.node("Transpose", b.node("Reshape", data, b.integers(s.batch, s.length, heads, s.size)), perm=ROWS_LAST)


def finished(b: Building, x: str, shares: str, value: str, s: Sizes) -> onnx.ModelProto:
    """The product with the values, the heads side by side, a projection and the residual."""
    turned = b.node("Transpose", b.node("MatMul", shares, value), perm=ROWS_LAST)
    return b.model(
        b.node("Add", x, b.linear(b.node("Reshape", turned, b.integers(s.batch, s.length, s.width)), s.width))
    )


def vision(cut: str, s: Sizes, scale: str = "query") -> onnx.ModelProto:
    """One projection to [3, batch, heads, length, size], as timm has it, cut by Gather, Split or Slice."""
    b = Building(1)
    x = b.input(s.batch, s.length, s.width)
    wide = b.node("Reshape", b.linear(x, 3 * s.width), b.integers(s.batch, s.length, 3, s.heads, s.size))
    turned = b.node("Transpose", wide, perm=[2, 0, 3, 1, 4])
    if cut == "Gather":
        parts = [b.node("Gather", turned, b.constant(np.array(at, np.int64)), axis=0) for at in range(3)]
    elif cut == "Split":
        three = b.nodes_of("Split", [turned, b.integers(1, 1, 1)], 3, axis=0)
        parts = [b.node("Squeeze", part, b.integers(0)) for part in three]
    else:
        rows = [b.node("Slice", turned, b.integers(at), b.integers(at + 1), b.integers(0)) for at in range(3)]
        parts = [b.node("Squeeze", part, b.integers(0)) for part in rows]
    query, value = parts[0], parts[2]
    key = b.node("Transpose", parts[1], perm=SWAPPED)
    if scale == "query":
        query = b.node("Mul", query, number(b, s.size**-0.5))
    else:
        query, key = (b.node("Mul", part, number(b, s.size**-0.25)) for part in (query, key))
    return finished(b, x, b.node("Softmax", b.node("MatMul", query, key), axis=-1), value, s)


def interleaved(s: Sizes) -> onnx.ModelProto:
    """One projection whose columns are [heads, 3, size], so that each part's columns lie apart."""
    b = Building(2)
    x = b.input(s.batch, s.length, s.width)
    wide = b.node("Reshape", b.linear(x, 3 * s.width), b.integers(s.batch, s.length, s.heads, 3 * s.size))
    parts = b.nodes_of("Split", [wide, b.integers(s.size, s.size, s.size)], 3, axis=-1)
    query, key, value = (b.node("Transpose", part, perm=ROWS_LAST) for part in parts)
    scores = b.node("Div", b.node("MatMul", query, b.node("Transpose", key, perm=SWAPPED)), number(b, s.size**0.5))
    return finished(b, x, b.node("Softmax", scores, axis=-1), value, s)


def language(mask: str, s: Sizes, *, fill: float = -np.inf, guarded: bool = False) -> onnx.ModelProto:
    """One projection split before its heads, and masked: '', 'added', 'filled', 'causal' or 'expanded'."""
    b = Building(3)
    x = b.input(s.batch, s.length, s.width)
    parts = b.nodes_of("Split", [b.linear(x, 3 * s.width), b.integers(*[s.width] * 3)], 3, axis=-1)
    query, key, value = (heads_of(b, part, s, s.heads) for part in parts)
    scores = b.node("Div", b.node("MatMul", query, b.node("Transpose", key, perm=SWAPPED)), number(b, s.size**0.5))
    scores = masked(b, x, scores, mask, fill, s)
    shares = b.node("Softmax", scores, axis=-1)
    return finished(b, x, without_nan(b, shares) if guarded else shares, value, s)


def masked(b: Building, x: str, scores: str, mask: str, fill: float, s: Sizes) -> str:
    """Scores of which a mask hides some."""
    if not mask:
        return scores
    if mask == "causal":
        visible = b.constant(np.tril(np.ones((1, 1, s.length, s.length), np.bool_)))
        return b.node("Where", visible, scores, number(b, fill))
    first = b.node("Slice", x, b.integers(0), b.integers(1), b.integers(2))
    seen = b.node("Reshape", b.node("Greater", first, number(b, 0)), b.integers(s.batch, 1, 1, s.length))
    if mask == "added":
        hidden = b.node("Sub", number(b, 1), b.node("Cast", seen, to=TensorProto.FLOAT))
        return b.node("Add", scores, b.node("Mul", hidden, number(b, LOWEST)))
    if mask == "filled":
        wide = b.node("Expand", b.node("Not", seen), b.integers(s.batch, s.heads, s.length, s.length))
        return b.node("Where", wide, number(b, fill), scores)
    wide = b.node("Expand", seen, b.integers(s.batch, 1, s.length, s.length))
    return b.node("Add", scores, b.node("Where", wide, number(b, 0), number(b, fill)))


def without_nan(b: Building, shares: str) -> str:
    return b.node("Where", b.node("IsNaN", shares), number(b, 0), shares)


def exported(mask: str, s: Sizes) -> onnx.ModelProto:
    """As torch.export leaves it: keys turned flat, the root of the scale on either side, NaN set to 0."""
    b = Building(4)
    x = b.input(s.batch, s.length, s.width)
    query, key, value = (heads_of(b, b.linear(x, s.width), s, s.heads) for _ in range(3))
    flat = b.node("Transpose", b.node("Reshape", key, b.integers(-1, s.length, s.size)), perm=[0, 2, 1])
    key = b.node("Reshape", flat, b.integers(s.batch, s.heads, s.size, s.length))
    query, key = (b.node("Mul", part, number(b, s.size**-0.25)) for part in (query, key))
    scores = masked(b, x, b.node("MatMul", query, key), mask, -np.inf, s)
    return finished(b, x, without_nan(b, b.node("Softmax", scores, axis=-1)), value, s)


def shared(s: Sizes, how: str = "Expand") -> onnx.ModelProto:
    """Keys and values of `groups` heads, repeated for all heads, under a causal mask that is added."""
    b = Building(5)
    x = b.input(s.batch, s.length, s.width)
    query = heads_of(b, b.linear(x, s.width), s, s.heads)
    key, value = (repeated(b, heads_of(b, b.linear(x, s.groups * s.size), s, s.groups), s, how) for _ in range(2))
    scores = b.node("MatMul", query, b.node("Transpose", key, perm=SWAPPED))
    scores = b.node("Mul", scores, number(b, s.size**-0.5))
    hidden = b.constant(np.triu(np.full((s.length, s.length), -1e9, np.float32), 1))
    return finished(b, x, b.node("Softmax", b.node("Add", scores, hidden), axis=-1), value, s)


def repeated(b: Building, data: str, s: Sizes, how: str) -> str:
    if s.groups == 1:
        return b.node("Expand", data, b.integers(s.batch, s.heads, s.length, s.size))
    times, apart = s.heads // s.groups, b.node("Unsqueeze", data, b.integers(2))
    if how == "Tile":
        wide = b.node("Tile", apart, b.integers(1, 1, times, 1, 1))
    else:
        wide = b.node("Expand", apart, b.integers(s.batch, s.groups, times, s.length, s.size))
    return b.node("Reshape", wide, b.integers(s.batch, s.heads, s.length, s.size))


def pixels(side: int, heads: int, keys: int, channels: int, batch: int = 1) -> onnx.ModelProto:
    """PSA of a YOLO detector: a convolution split per head, values times turned shares, a depthwise one beside it."""
    b = Building(6)
    x, size, count = b.input(batch, channels, side, side), channels // heads, side * side
    start = b.node("Relu", b.conv(x, channels, 1))
    wide = b.node(
        "Reshape", b.conv(start, heads * (2 * keys + size), 1), b.integers(batch, heads, 2 * keys + size, count)
    )
    query, key, value = b.nodes_of("Split", [wide, b.integers(keys, keys, size)], 3, axis=2)
    scores = b.node("MatMul", b.node("Transpose", query, perm=SWAPPED), key)
    shares = b.node("Softmax", b.node("Mul", scores, number(b, keys**-0.5)), axis=-1)
    mixed = b.node("MatMul", value, b.node("Transpose", shares, perm=SWAPPED))
    image = b.integers(batch, channels, side, side)
    beside = b.conv(b.node("Reshape", value, image), channels, 3, group=channels)
    mixed = b.conv(b.node("Add", b.node("Reshape", mixed, image), beside), channels, 1)
    return b.model(b.node("Relu", b.node("Add", start, mixed)))
