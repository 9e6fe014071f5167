"""Kernel cases of operators that compute element by element or reduce axes.

The functions are numpy's, on one element type at a time.
"""

from __future__ import annotations

import math

import numpy as np

from conformance.kernel_forms import Array, Case, Make, arg, binary, moves, reduction, sample, unary


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


_erf = np.vectorize(math.erf, otypes=[np.float64])
_zero = np.array(0, np.int32)
ARITHMETIC: dict[str, Make] = {
    "ABS": unary(np.abs, "Abs"),
    "ADD": binary(np.add, "Add"),
    "ARG_MAX": arg(np.argmax, "ArgMax"),
    "ARG_MIN": arg(np.argmin, "ArgMin"),
    "ATAN2": lambda dtype, shape: Case((a := sample(shape, dtype), b := sample(shape, dtype)), (np.arctan2(a, b),)),
    "BITWISE_XOR": binary(np.bitwise_xor, "BitwiseXor"),
    "CEIL": unary(np.ceil),
    "COS": unary(np.cos, "Cos"),
    "CUMSUM": moves(
        lambda x: Case((x, _zero), (np.cumsum(x, 0).astype(x.dtype),), "Cumsum", (("exclusive", False),), (1,))
    ),
    "DIV": binary(lambda a, b: np.trunc(a / b) if a.dtype.kind in "iu" else a / b, "Div", positive=True),
    "ELU": unary(lambda x: np.where(x > 0, x, np.exp(x) - 1)),
    "EQUAL": binary(np.equal, "Equal", compares=True),
    "EXP": unary(np.exp, "Exp"),
    "FLOOR": unary(np.floor),
    "FLOOR_DIV": binary(np.floor_divide, "FloorDiv", positive=True),
    "FLOOR_MOD": binary(np.mod, "FloorMod", positive=True),
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
    "LOG": unary(np.log, positive=True),
    "LOGICAL_AND": binary(np.logical_and, "LogicalAnd", compares=True),
    "LOGICAL_NOT": unary(np.logical_not, "LogicalNot"),
    "LOGICAL_OR": binary(np.logical_or, "LogicalOr", compares=True),
    "LOGISTIC": unary(lambda x: 1 / (1 + np.exp(-x))),
    "LOG_SOFTMAX": moves(lambda x: Case((x,), (np.log(_softmax(x)).astype(x.dtype),), "LogSoftmax")),
    "MAXIMUM": binary(np.maximum, "MaximumMinimum"),
    "MEAN": reduction(np.mean),
    "MINIMUM": binary(np.minimum, "MaximumMinimum"),
    "MUL": binary(np.multiply, "Mul"),
    "NEG": unary(np.negative, "Neg"),
    "NOT_EQUAL": binary(np.not_equal, "NotEqual", compares=True),
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
    "RIGHT_SHIFT": binary(np.right_shift, "RightShift", positive=True),
    "ROUND": unary(np.round),
    "RSQRT": unary(lambda x: 1 / np.sqrt(x), positive=True),
    "SIGN": unary(np.sign, "Sign"),
    "SIN": unary(np.sin),
    "SOFTMAX": moves(lambda x: Case((x,), (_softmax(x).astype(x.dtype),), "Softmax", (("beta", 1.0),))),
    "SQRT": unary(np.sqrt, positive=True),
    "SQUARE": unary(np.square, "Square"),
    "SQUARED_DIFFERENCE": binary(lambda a, b: (a - b) ** 2, "SquaredDifference"),
    "SUB": binary(np.subtract, "Sub"),
    "SUM": reduction(np.sum),
    "TANH": unary(np.tanh),
}
