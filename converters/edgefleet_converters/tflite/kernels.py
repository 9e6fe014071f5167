"""What LiteRT's kernels compute rightly without quantisation: operator → element type → largest rank.

Measured with LiteRT 2.3, its default delegate on, by files of one operator; a pair that is not here aborts, is refused
or is wrong there, or was not measured, so nothing may be written that is not here. The small integer types are listed
only where the kernel moves, orders or masks: elsewhere it takes them for quantised numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edgefleet_converters.tflite.graph import NotLowerableError


def _to(rank: int, dtypes: str) -> dict[str, int]:
    return dict.fromkeys(dtypes.split(), rank)


_NUMBERS = "float32 int32 int64"
_COMMON = "float32 int32 int64 int8 uint8 int16"
_EVERY = "float32 int32 int64 bool int8 uint8 int16 uint16 uint32 uint64 float64"
_FLOAT = _to(8, "float32")

KERNELS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "ABS": _to(8, "float32 int32"),
        "ADD": _to(8, _NUMBERS),
        "ARG_MAX": _to(8, "float32 int32 bool int8 uint8"),
        "ARG_MIN": _to(8, "float32 int32 bool int8 uint8"),
        "ATAN2": _FLOAT,  # does not broadcast
        "AVERAGE_POOL_2D": _to(4, "float32"),
        "BATCH_MATMUL": _to(6, "float32"),
        "BITCAST": _to(8, _EVERY),
        "BITWISE_XOR": _to(8, "int32 int8 uint8 int16 uint16 uint32"),
        "BROADCAST_TO": _to(8, _EVERY),
        "CAST": _to(8, _EVERY.replace(" uint64", "") + " float16"),
        "CEIL": _FLOAT,
        "CONCATENATION": {**_to(8, "int32 int64 bool int8 uint8 int16 uint32"), "float32": 6},
        "CONV_2D": _to(4, "float32"),
        "CONV_3D": _to(5, "float32"),
        "CONV_3D_TRANSPOSE": _to(5, "float32"),
        "COS": _FLOAT,
        "CUMSUM": _to(8, _NUMBERS),
        "DEPTHWISE_CONV_2D": _to(4, "float32"),
        "DEPTH_TO_SPACE": _to(4, "float32 int32 int64 int8 uint8"),
        "DIV": _to(8, "float32 int32"),  # truncates; an integer divided by 0 is an error at run time
        "ELU": _FLOAT,
        "EQUAL": _to(8, f"{_NUMBERS} bool"),
        "EXP": _FLOAT,
        "FLOOR": _FLOAT,
        "FLOOR_DIV": _to(8, "float32 int32 int8 int16"),
        "FLOOR_MOD": _to(8, f"{_NUMBERS} int8 int16"),
        "FULLY_CONNECTED": _to(4, "float32"),
        "GATHER": _to(8, f"{_COMMON} bool"),
        "GATHER_ND": _to(8, f"{_COMMON} bool"),
        "GELU": _FLOAT,
        "GREATER": _to(8, _NUMBERS),
        "GREATER_EQUAL": _to(8, _NUMBERS),
        "HARD_SWISH": _FLOAT,
        "L2_NORMALIZATION": _FLOAT,
        "LEAKY_RELU": _FLOAT,
        "LESS": _to(8, _NUMBERS),
        "LESS_EQUAL": _to(8, _NUMBERS),
        "LOCAL_RESPONSE_NORMALIZATION": _to(4, "float32"),
        "LOG": _FLOAT,
        "LOGICAL_AND": _to(8, "bool"),
        "LOGICAL_NOT": _to(8, "bool"),
        "LOGICAL_OR": _to(8, "bool"),
        "LOGISTIC": _FLOAT,
        "LOG_SOFTMAX": _FLOAT,
        "MAXIMUM": _to(8, _COMMON),
        "MAX_POOL_2D": _to(4, "float32"),
        "MEAN": {**_to(8, "int32 int64"), "float32": 6},
        "MINIMUM": _to(8, _COMMON),
        "MIRROR_PAD": _to(8, _EVERY),
        "MUL": _to(8, f"{_NUMBERS} uint32"),
        "NEG": _to(8, _NUMBERS),
        "NON_MAX_SUPPRESSION_V4": {"float32": 2},
        "NOT_EQUAL": _to(8, f"{_NUMBERS} bool"),
        "ONE_HOT": _to(8, "float32 int32 int64 bool int8 uint8"),
        "PACK": _to(8, f"{_COMMON} uint32"),
        "PAD": {**_to(5, f"{_COMMON} bool"), "float32": 6},
        "PADV2": _to(5, f"{_COMMON} bool"),
        "POW": _to(8, "float32 int32"),
        "PRELU": _FLOAT,
        "REDUCE_ALL": _to(8, "bool"),
        "REDUCE_ANY": _to(8, "bool"),
        "REDUCE_MAX": {**_to(8, _COMMON), "float32": 6},
        "REDUCE_MIN": {**_to(8, _COMMON), "float32": 6},
        "REDUCE_PROD": _to(8, _NUMBERS),
        "RELU": _FLOAT,
        "RELU6": _FLOAT,
        "RELU_N1_TO_1": _FLOAT,
        "RESHAPE": _to(8, f"{_EVERY} float16"),
        "RESIZE_BILINEAR": _to(4, "float32"),
        "RESIZE_NEAREST_NEIGHBOR": _to(4, "float32 int32 bool int8 uint8 int16 uint16 uint32"),
        "REVERSE_SEQUENCE": _to(8, "float32 int32 int64 uint8 int16"),
        "REVERSE_V2": _to(8, f"{_COMMON} bool"),
        "RIGHT_SHIFT": _to(8, "int32 int8 uint8 int16 uint16 uint32"),
        "ROUND": _FLOAT,
        "RSQRT": _FLOAT,
        "SCATTER_ND": _to(8, "float32 int32 int64 bool int8 uint8"),
        "SELECT_V2": _to(8, _EVERY),
        "SIGN": _to(8, "float32 int32"),
        "SIN": _FLOAT,
        "SLICE": _to(8, _EVERY),
        "SOFTMAX": _to(6, "float32"),
        "SPLIT": {**_to(8, _COMMON), "float32": 6},
        "SPLIT_V": _to(8, _COMMON),
        "SQRT": _FLOAT,
        "SQUARE": _FLOAT,
        "SQUARED_DIFFERENCE": _to(8, "float32 int32"),
        "STRIDED_SLICE": _to(8, _EVERY),
        "SUB": _to(8, _NUMBERS),
        "SUM": {**_to(8, "int32 int64"), "float32": 6},
        "TANH": _FLOAT,
        "TILE": _to(8, _EVERY),
        "TOPK_V2": _to(8, _COMMON),
        "TRANSPOSE": _to(8, _EVERY),
        "TRANSPOSE_CONV": _to(4, "float32"),
        "UNPACK": _to(8, "float32 int32 bool int8 uint8 int16"),
        "WHERE": _to(8, "bool"),
    }
)

# Types that hold every value of the first one; int64 and the 64-bit rest have none that kernels know.
_WIDER: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "bool": ("int32", "uint8", "float32"),
        "float16": ("float32",),
        "int16": ("int32", "float32"),
        "int32": ("int64",),
        "int8": ("int32", "float32"),
        "uint16": ("int32", "float32"),
        "uint32": ("int64",),
        "uint8": ("int32", "float32"),
    }
)


def require_kernel(operator: str, dtype: str, rank: int) -> None:
    """Raise NotLowerableError unless the operator's kernel computes this type at this rank."""
    ranks = KERNELS.get(operator)
    if ranks is None or dtype not in ranks:
        raise NotLowerableError(f"TFLite's {operator} has no {dtype} kernel")
    if rank > ranks[dtype]:
        raise NotLowerableError(f"TFLite's {operator} does {dtype} up to rank {ranks[dtype]}, not {rank}")


def working_dtype(operator: str, dtype: str) -> str:
    """The type to compute in: `dtype` itself, or one that holds all its values; raises NotLowerableError."""
    ranks = KERNELS.get(operator, {})
    for candidate in (dtype, *_WIDER.get(dtype, ())):
        if candidate in ranks:
            return candidate
    raise NotLowerableError(f"TFLite's {operator} has no {dtype} kernel, nor one for a wider type")
