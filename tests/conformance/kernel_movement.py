"""Kernel cases of operators that move, choose or repeat elements.

None of them computes anything.
"""

from __future__ import annotations

import numpy as np

from conformance.kernel_forms import Array, Case, Make, ints, moves, sample


def _strided(x: Array) -> Case:
    n = x.ndim
    fields = tuple((name, 0) for name in ("beginMask", "endMask", "ellipsisMask", "newAxisMask", "shrinkAxisMask"))
    inputs = (x, np.full(n, -1, np.int32), np.full(n, -99, np.int32), np.full(n, -1, np.int32))
    return Case(inputs, (x[(slice(None, None, -1),) * n].copy(),), "StridedSlice", fields, (1, 2, 3))


def _pads(x: Array, before: int, after: int) -> Array:
    return np.array([(before, after)] * x.ndim, np.int32)


def _gather_nd(x: Array) -> Case:
    return Case((x, np.array([[1], [0]], np.int32)), (x[[1, 0]],), "GatherNd")


def _scatter_nd(x: Array) -> Case:
    y = np.zeros((4, *x.shape[1:]), x.dtype)
    y[[1, 3]] = x
    return Case((np.array([[1], [3]], np.int32), x, ints(4, *x.shape[1:])), (y,), "ScatterNd", (), (2,))


def _bits(x: Array) -> Case:
    """Floats as integers, bool as bytes, everything else as the other sign."""
    kind = {"f": f"i{x.itemsize}", "b": "u1", "i": f"u{x.itemsize}", "u": f"i{x.itemsize}"}[x.dtype.kind]
    return Case((x,), (x.view(kind),), "Bitcast")


def _select(dtype: str, shape: tuple[int, ...]) -> Case:
    c = sample(tuple(1 if axis % 2 else size for axis, size in enumerate(shape)), "bool")
    x = sample(tuple(size if axis % 2 else 1 for axis, size in enumerate(shape)), dtype)
    y = sample((), dtype)
    return Case((c, x, y), (np.where(c, x, y),), "SelectV2")


def _topk(x: Array) -> Case:
    x = np.ascontiguousarray(np.sort(x, -1)[..., ::-1])
    indices = np.argmax(x, -1)[..., None].astype(np.int32)
    return Case((x, np.array(1, np.int32)), (x[..., :1].copy(), indices), "TopKV2", (), (1,))


def _one_hot(dtype: str, shape: tuple[int, ...]) -> Case:
    on, off = np.array(1, dtype), np.array(0, dtype)
    y = np.broadcast_to(np.array([0, 1, 0], dtype), (*shape, 3)).copy()
    inputs = (np.ones(shape, np.int32), np.array(3, np.int32), on, off)
    return Case(inputs, (y,), "OneHot", (("axis", -1),), (1, 2, 3))


def _suppression(dtype: str, shape: tuple[int, ...]) -> Case | None:
    """Three boxes, the second like the first one with its corners exchanged; `shape` says the rank only."""
    if (dtype, len(shape)) != ("float32", 2):
        return None
    boxes = np.array([[0, 0, 1, 1], [1, 1, 0, 0], [0, 2, 1, 3]], np.float32)
    half = np.array(0.5, np.float32)
    inputs = (boxes, np.array([3, 2, 1], np.float32), np.array(3, np.int32), half, half)
    return Case(inputs, (ints(0, 2, 0), np.array(2, np.int32)), "NonMaxSuppressionV4", (), (2, 3, 4))


def _where(dtype: str, shape: tuple[int, ...]) -> Case | None:
    if dtype != "bool" or not shape:
        return None
    x = sample(shape, "bool")
    return Case((x,), (np.argwhere(x),), "Where")


_zero, _first = np.array(0, np.int32), (("axis", 0),)
MOVEMENT: dict[str, Make] = {
    "BITCAST": lambda dtype, shape: _bits(sample(shape, dtype)),
    "BROADCAST_TO": moves(
        lambda x: Case((x[:1].copy(), ints(*x.shape)), (np.repeat(x[:1], x.shape[0], 0),), "BroadcastTo", (), (1,))
    ),
    "CONCATENATION": moves(
        lambda x: Case((x, x), (np.concatenate([x, x], -1),), "Concatenation", (("axis", x.ndim - 1),))
    ),
    "EXPAND_DIMS": moves(lambda x: Case((x, _zero), (x[None],), "ExpandDims", (), (1,)), least=0),
    "GATHER": moves(lambda x: Case((x, ints(1, 0, 1)), (x[[1, 0, 1]],), "Gather", _first)),
    "GATHER_ND": moves(_gather_nd),
    "MIRROR_PAD": moves(
        lambda x: Case(
            (x, _pads(x, 1, 0)), (np.pad(x, _pads(x, 1, 0), "symmetric"),), "MirrorPad", (("mode", 1),), (1,)
        )
    ),
    "NON_MAX_SUPPRESSION_V4": _suppression,
    "ONE_HOT": _one_hot,
    "PACK": moves(lambda x: Case((x, x), (np.stack([x, x]),), "Pack", (*_first, ("valuesCount", 2))), least=0),
    "PAD": moves(lambda x: Case((x, _pads(x, 1, 2)), (np.pad(x, _pads(x, 1, 2)),), "Pad", (), (1,))),
    "PADV2": moves(
        lambda x: Case(
            (x, _pads(x, 1, 2), np.array([1], x.dtype)),
            (np.pad(x, _pads(x, 1, 2), constant_values=np.array(1, x.dtype)),),
            "PadV2",
            (),
            (1, 2),
        )
    ),
    "RESHAPE": moves(lambda x: Case((x, ints(x.size)), (x.reshape(-1),), "Reshape", (), (1,)), least=0),
    "REVERSE_SEQUENCE": moves(
        lambda x: Case(
            (x, np.full(2, x.shape[1], np.int32)), (x[:, ::-1].copy(),), "ReverseSequence", (("seqDim", 1),)
        ),
        least=2,
    ),
    "REVERSE_V2": moves(lambda x: Case((x, ints(0)), (x[::-1].copy(),), "ReverseV2", (), (1,))),
    "SCATTER_ND": moves(_scatter_nd),
    "SELECT_V2": _select,
    "SLICE": moves(
        lambda x: Case((x, ints(1, *[0] * (x.ndim - 1)), ints(1, *x.shape[1:])), (x[1:].copy(),), "Slice", (), (1, 2))
    ),
    "SPLIT": moves(lambda x: Case((_zero, x), (x[:1].copy(), x[1:].copy()), "Split", (("numSplits", 2),), (0,))),
    "SPLIT_V": moves(
        lambda x: Case((x, ints(1, 1), _zero), (x[:1].copy(), x[1:].copy()), "SplitV", (("numSplits", 2),), (1, 2))
    ),
    "STRIDED_SLICE": moves(_strided),
    "TILE": moves(lambda x: Case((x, np.full(x.ndim, 2, np.int32)), (np.tile(x, (2,) * x.ndim),), "Tile", (), (1,))),
    "TOPK_V2": moves(_topk),
    "TRANSPOSE": moves(lambda x: Case((x, ints(*reversed(range(x.ndim)))), (x.T.copy(),), "Transpose", (), (1,))),
    "UNPACK": moves(lambda x: Case((x,), (x[0].copy(), x[1].copy()), "Unpack", (*_first, ("num", 2)))),
    "WHERE": _where,
}
