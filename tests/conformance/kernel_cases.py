"""One case per TFLite operator for the kernel probe: inputs of any dtype and rank, and numpy's result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Any type of element: the arithmetic below is the same for all.
Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One operator on arrays; those at `constant` positions are written into the file."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    options: str = ""
    fields: tuple[tuple[str, object], ...] = ()
    constant: tuple[int, ...] = ()


Make = Callable[[str, tuple[int, ...]], Case | None]
_random = np.random.default_rng(0)


def sample(shape: tuple[int, ...], dtype: str, *, positive: bool = False, small: bool = False) -> Array:
    """Seeded values over most of the type's range; NaN-free."""
    if dtype == "bool":
        return np.asarray(_random.random(shape) > 0.5)
    if dtype.startswith("float"):
        return np.asarray(_random.random(shape) * 3 + 0.2 if positive else _random.normal(size=shape) * 2).astype(dtype)
    info = np.iinfo(dtype)
    bound = 3 if small else 11
    low = 1 if positive or info.min == 0 else -bound
    wide = np.asarray(_random.integers(low, bound, size=shape)).astype(dtype)
    return wide if positive or small else np.where(_random.random(shape) > 0.8, info.max // 2, wide).astype(dtype)


def unary(function: Callable[[Array], object], options: str = "", *, positive: bool = False) -> Make:
    def make(dtype: str, shape: tuple[int, ...]) -> Case:
        x = sample(shape, dtype, positive=positive, small=True)
        return Case((x,), (np.asarray(function(x)).astype(dtype),), options)

    return make


def binary(
    function: Callable[[Array, Array], object], options: str = "", *, positive: bool = False, compares: bool = False
) -> Make:
    """Both operands broadcast, over every second axis each."""

    def make(dtype: str, shape: tuple[int, ...]) -> Case:
        left = tuple(1 if axis % 2 else size for axis, size in enumerate(shape))
        right = tuple(size if axis % 2 else 1 for axis, size in enumerate(shape))
        a = sample(left, dtype, positive=positive, small=not compares)
        b = sample(right, dtype, positive=positive, small=not compares)
        y = np.asarray(function(a, b))
        return Case((a, b), (y if compares else y.astype(dtype),), options)

    return make


def reduction(function: Callable[..., object]) -> Make:
    def make(dtype: str, shape: tuple[int, ...]) -> Case | None:
        axes = tuple(range(0, len(shape), 2))
        x = sample(shape, dtype, positive=True, small=True)
        y = np.asarray(function(x, axis=axes)).astype(dtype)
        return Case((x, ints(*axes)), (y,), "Reducer", (("keepDims", False),), (1,)) if shape else None

    return make


def arg(function: Callable[..., object], options: str) -> Make:
    def make(dtype: str, shape: tuple[int, ...]) -> Case | None:
        x = sample(shape, dtype)
        if not shape:
            return None
        axis = np.array(len(shape) - 1, np.int32)
        return Case(
            (x, axis), (np.asarray(function(x, axis=-1)).astype(np.int64),), options, (("outputType", 4),), (1,)
        )

    return make


def ints(*values: int) -> Array:
    return np.array(values, np.int32)


def moves(build: Callable[[Array], Case], *, least: int = 1) -> Make:
    """An operator that moves elements; `least` is the smallest rank it is defined for."""
    return lambda dtype, shape: build(sample(shape, dtype)) if len(shape) >= least else None


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


def _matmul(dtype: str, shape: tuple[int, ...]) -> Case | None:
    if len(shape) < 2 or dtype == "bool":
        return None
    x, y = sample(shape, dtype, small=True), np.swapaxes(sample(shape, dtype, small=True), -1, -2).copy()
    return Case((x, y), (np.matmul(x, y),), "BatchMatMul", (("adjX", False), ("adjY", False)))


def _bits(x: Array) -> Case:
    """Floats as integers, bool as bytes, everything else as the other sign."""
    kind = {"f": f"i{x.itemsize}", "b": "u1", "i": f"u{x.itemsize}", "u": f"i{x.itemsize}"}[x.dtype.kind]
    return Case((x,), (x.view(kind),), "Bitcast")


def _neighbours(dtype: str, shape: tuple[int, ...]) -> Case | None:
    x = sample(shape, dtype, small=True)
    fields = (("radius", 0), ("bias", 1.5), ("alpha", 0.3), ("beta", 0.75))
    y = (x / (1.5 + 0.3 * x * x) ** 0.75).astype(dtype)
    return Case((x,), (y,), "LocalResponseNormalization", fields) if len(shape) == 4 else None


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


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


def _pointwise(rank: int, options: str, order: tuple[int, ...] | None = None) -> Make:
    """A convolution with a window of one element; `order` is that of a transposed one's weights."""
    steps = (*((f"stride{axis}", 1) for axis in "DHW"[5 - rank :]), ("padding", 1))

    def make(dtype: str, shape: tuple[int, ...]) -> Case | None:
        if len(shape) != rank:
            return None
        x, w = sample(shape, dtype, small=True), sample((shape[-1], 3), dtype, small=True)
        y, window = x @ w, (1,) * (rank - 2)
        if order is None:
            kernel, bias = w.reshape(*window, *w.shape), np.zeros(3, dtype)
            dilations = tuple((f"dilation{axis}Factor", 1) for axis in "DHW")
            return Case((x, kernel, bias), (y,), options, (*steps, *dilations), (1, 2))
        kernel = np.ascontiguousarray(w.reshape(*window, *w.shape).transpose(order))
        return Case((ints(*y.shape), kernel, x), (y,), options, steps, (0, 1))

    return make


def _resized(dtype: str, shape: tuple[int, ...]) -> Case | None:
    if len(shape) != 4:
        return None
    x = sample(shape, dtype)
    return Case((x, ints(6, 4)), (x.repeat(2, 1).repeat(2, 2),), "ResizeNearestNeighbor", (), (1,))


def _interpolated(dtype: str, shape: tuple[int, ...]) -> Case | None:
    if len(shape) != 4:
        return None
    x = sample(shape, dtype)
    y = np.stack([x[:, 0], x[:, :2].mean(1), x[:, 1], x[:, 1:].mean(1), x[:, 2]], 1).astype(dtype)
    return Case((x, ints(5, 2)), (y,), "ResizeBilinear", (("alignCorners", True),), (1,))


_erf = np.vectorize(math.erf, otypes=[np.float64])
_zero, _first = np.array(0, np.int32), (("axis", 0),)
MAKERS: dict[str, Make] = {
    "ABS": unary(np.abs, "Abs"),
    "ADD": binary(np.add, "Add"),
    "ARG_MAX": arg(np.argmax, "ArgMax"),
    "ARG_MIN": arg(np.argmin, "ArgMin"),
    "ATAN2": lambda dtype, shape: Case((a := sample(shape, dtype), b := sample(shape, dtype)), (np.arctan2(a, b),)),
    "BATCH_MATMUL": _matmul,
    "BITCAST": lambda dtype, shape: _bits(sample(shape, dtype)),
    "BITWISE_XOR": binary(np.bitwise_xor, "BitwiseXor"),
    "BROADCAST_TO": moves(
        lambda x: Case((x[:1].copy(), ints(*x.shape)), (np.repeat(x[:1], x.shape[0], 0),), "BroadcastTo", (), (1,))
    ),
    "CEIL": unary(np.ceil),
    "CONCATENATION": moves(
        lambda x: Case((x, x), (np.concatenate([x, x], -1),), "Concatenation", (("axis", x.ndim - 1),))
    ),
    "CONV_3D": _pointwise(5, "Conv3D"),
    "CONV_3D_TRANSPOSE": _pointwise(5, "Conv3D", (0, 1, 2, 4, 3)),
    "COS": unary(np.cos, "Cos"),
    "CUMSUM": moves(
        lambda x: Case((x, _zero), (np.cumsum(x, 0).astype(x.dtype),), "Cumsum", (("exclusive", False),), (1,))
    ),
    "DIV": binary(lambda a, b: np.trunc(a / b) if a.dtype.kind in "iu" else a / b, "Div", positive=True),
    "ELU": unary(lambda x: np.where(x > 0, x, np.exp(x) - 1)),
    "EQUAL": binary(np.equal, "Equal", compares=True),
    "EXP": unary(np.exp, "Exp"),
    "EXPAND_DIMS": moves(lambda x: Case((x, _zero), (x[None],), "ExpandDims", (), (1,)), least=0),
    "FLOOR": unary(np.floor),
    "FLOOR_DIV": binary(np.floor_divide, "FloorDiv", positive=True),
    "FLOOR_MOD": binary(np.mod, "FloorMod", positive=True),
    "GATHER": moves(lambda x: Case((x, ints(1, 0, 1)), (x[[1, 0, 1]],), "Gather", _first)),
    "GATHER_ND": moves(_gather_nd),
    "GELU": unary(lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))), "Gelu"),
    "GREATER": binary(np.greater, "Greater", compares=True),
    "GREATER_EQUAL": binary(np.greater_equal, "GreaterEqual", compares=True),
    "HARD_SWISH": unary(lambda x: x * np.clip(x + 3, 0, 6) / 6, "HardSwish"),
    "L2_NORMALIZATION": moves(lambda x: Case((x,), (x / np.sqrt((x * x).sum(-1, keepdims=True)),), "L2Norm")),
    "LEAKY_RELU": lambda dtype, shape: Case(
        (x := sample(shape, dtype),),
        (np.where(x > 0, x, x * 0.3).astype(dtype),),
        "LeakyRelu",
        (("alpha", 0.3),),
    ),
    "LESS": binary(np.less, "Less", compares=True),
    "LESS_EQUAL": binary(np.less_equal, "LessEqual", compares=True),
    "LOCAL_RESPONSE_NORMALIZATION": _neighbours,
    "LOG": unary(np.log, positive=True),
    "LOGICAL_AND": binary(np.logical_and, "LogicalAnd", compares=True),
    "LOGICAL_NOT": unary(np.logical_not, "LogicalNot"),
    "LOGICAL_OR": binary(np.logical_or, "LogicalOr", compares=True),
    "LOGISTIC": unary(lambda x: 1 / (1 + np.exp(-x))),
    "LOG_SOFTMAX": moves(lambda x: Case((x,), (np.log(_softmax(x)).astype(x.dtype),), "LogSoftmax")),
    "MAXIMUM": binary(np.maximum, "MaximumMinimum"),
    "MEAN": reduction(np.mean),
    "MINIMUM": binary(np.minimum, "MaximumMinimum"),
    "MIRROR_PAD": moves(
        lambda x: Case(
            (x, _pads(x, 1, 0)), (np.pad(x, _pads(x, 1, 0), "symmetric"),), "MirrorPad", (("mode", 1),), (1,)
        )
    ),
    "MUL": binary(np.multiply, "Mul"),
    "NEG": unary(np.negative, "Neg"),
    "NOT_EQUAL": binary(np.not_equal, "NotEqual", compares=True),
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
    "POW": binary(np.power, "Pow", positive=True),
    "PRELU": lambda dtype, shape: Case(
        (x := sample(shape, dtype), a := sample(shape, dtype)),
        (np.where(x > 0, x, x * a),),
    ),
    "REDUCE_ALL": reduction(np.all),
    "REDUCE_ANY": reduction(np.any),
    "REDUCE_MAX": reduction(np.max),
    "REDUCE_MIN": reduction(np.min),
    "REDUCE_PROD": reduction(np.prod),
    "RELU": unary(lambda x: np.maximum(x, np.zeros_like(x))),
    "RELU6": unary(lambda x: np.clip(x, 0, 6)),
    "RELU_N1_TO_1": unary(lambda x: np.clip(x, -1, 1)),
    "RESHAPE": moves(lambda x: Case((x, ints(x.size)), (x.reshape(-1),), "Reshape", (), (1,)), least=0),
    "RESIZE_BILINEAR": _interpolated,
    "RESIZE_NEAREST_NEIGHBOR": _resized,
    "REVERSE_SEQUENCE": moves(
        lambda x: Case(
            (x, np.full(2, x.shape[1], np.int32)), (x[:, ::-1].copy(),), "ReverseSequence", (("seqDim", 1),)
        ),
        least=2,
    ),
    "REVERSE_V2": moves(lambda x: Case((x, ints(0)), (x[::-1].copy(),), "ReverseV2", (), (1,))),
    "RIGHT_SHIFT": binary(np.right_shift, "RightShift", positive=True),
    "ROUND": unary(np.round),
    "RSQRT": unary(lambda x: 1 / np.sqrt(x), positive=True),
    "SCATTER_ND": moves(_scatter_nd),
    "SELECT_V2": _select,
    "SIGN": unary(np.sign, "Sign"),
    "SIN": unary(np.sin),
    "SLICE": moves(
        lambda x: Case((x, ints(1, *[0] * (x.ndim - 1)), ints(1, *x.shape[1:])), (x[1:].copy(),), "Slice", (), (1, 2))
    ),
    "SOFTMAX": moves(lambda x: Case((x,), (_softmax(x).astype(x.dtype),), "Softmax", (("beta", 1.0),))),
    "SPLIT": moves(lambda x: Case((_zero, x), (x[:1].copy(), x[1:].copy()), "Split", (("numSplits", 2),), (0,))),
    "SPLIT_V": moves(
        lambda x: Case((x, ints(1, 1), _zero), (x[:1].copy(), x[1:].copy()), "SplitV", (("numSplits", 2),), (1, 2))
    ),
    "SQRT": unary(np.sqrt, positive=True),
    "SQUARE": unary(np.square, "Square"),
    "SQUARED_DIFFERENCE": binary(lambda a, b: (a - b) ** 2, "SquaredDifference"),
    "STRIDED_SLICE": moves(_strided),
    "SUB": binary(np.subtract, "Sub"),
    "SUM": reduction(np.sum),
    "TANH": unary(np.tanh),
    "TILE": moves(lambda x: Case((x, np.full(x.ndim, 2, np.int32)), (np.tile(x, (2,) * x.ndim),), "Tile", (), (1,))),
    "TOPK_V2": moves(_topk),
    "TRANSPOSE": moves(lambda x: Case((x, ints(*reversed(range(x.ndim)))), (x.T.copy(),), "Transpose", (), (1,))),
    "TRANSPOSE_CONV": _pointwise(4, "TransposeConv", (3, 0, 1, 2)),
    "UNPACK": moves(lambda x: Case((x,), (x[0].copy(), x[1].copy()), "Unpack", (*_first, ("num", 2)))),
}
