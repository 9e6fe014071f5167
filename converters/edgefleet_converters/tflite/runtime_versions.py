"""The first TensorFlow Lite runtime, and the first LiteRT, that have every operator version of a file.

Does not look at tensors: the versions must be right already (`versions.assign_versions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ai_edge_litert import schema_py_generated as schema
from packaging.version import Version

METADATA_NAME = "min_runtime_version"
METADATA_BYTES = 16
"""The metadata entry that TFLite's own tools read, and the fixed length of its buffer."""

# The releases, in TensorFlow's numbering, in which version 1, 2, 3 … of each operator came; "-" where there is none.
# From tensorflow/lite/tools/versioning/runtime_version.cc.
_RELEASES: Mapping[str, str] = MappingProxyType(
    {
        "ABS": "1.13 2.4 2.5 2.6 2.12",
        "ADD": "1.5 1.14 2.4 2.6 2.13",
        "ADD_N": "1.14",
        "ARG_MAX": "1.9 1.14 2.9",
        "ARG_MIN": "1.9 1.14 2.9",
        "ATAN2": "2.10",
        "AVERAGE_POOL_2D": "1.5 1.14 2.3",
        "BATCH_MATMUL": "2.3 2.3 2.4 2.5",
        "BATCH_TO_SPACE_ND": "1.6 1.14 2.3 2.12",
        "BIDIRECTIONAL_SEQUENCE_LSTM": "1.14 1.14 1.14",
        "BIDIRECTIONAL_SEQUENCE_RNN": "1.14 1.14 2.3",
        "BITCAST": "2.13",
        "BITWISE_XOR": "2.13",
        "BROADCAST_ARGS": "2.6",
        "BROADCAST_TO": "- 2.5 2.5",
        "CAST": "1.5 2.7 2.8 2.9 2.12 2.15 2.17",
        "CEIL": "1.14",
        "CONCATENATION": "1.5 1.14 2.3 2.14",
        "CONV_2D": "1.5 1.14 1.14 2.3 2.4 2.9 2.11 2.15",
        "CONV_3D": "2.5",
        "CONV_3D_TRANSPOSE": "2.6",
        "COS": "1.14",
        "CUMSUM": "2.4",
        "DENSIFY": "2.2",
        "DEPTHWISE_CONV_2D": "1.5 1.12 1.14 2.2 2.3 2.3 2.11",
        "DEPTH_TO_SPACE": "2.1 2.5",
        "DEQUANTIZE": "1.13.1 1.14 1.15 2.2 2.7 2.18",
        "DILATE": "2.15",
        "DIV": "1.6 2.3",
        "DYNAMIC_UPDATE_SLICE": "2.9 2.17 2.19 2.20",
        "ELU": "1.14",
        "EMBEDDING_LOOKUP": "1.13 1.14 1.14 2.18",
        "EQUAL": "1.14 1.14 2.3 2.13",
        "EXP": "1.7 2.12",
        "EXPAND_DIMS": "1.10",
        "FILL": "1.13 2.3 2.5 2.12",
        "FLOOR": "1.9",
        "FLOOR_DIV": "1.14 1.14 2.13",
        "FLOOR_MOD": "1.13 2.13",
        "FULLY_CONNECTED": "1.5 1.10 1.14 1.14 2.0 2.1 2.3 2.3 2.3 2.11 2.15 2.17 2.18",
        "GATHER": "1.6 1.14 1.15 2.4 2.5 2.13 2.15",
        "GATHER_ND": "1.14 2.3 2.5 2.13 2.16",
        "GELU": "2.9 2.9",
        "GREATER": "1.14 1.14",
        "GREATER_EQUAL": "1.14 1.14 2.13",
        "HARD_SWISH": "1.15",
        "IF": "1.15",
        "L2_NORMALIZATION": "1.5 1.14",
        "L2_POOL_2D": "1.5",
        "LEAKY_RELU": "1.13.1 2.3",
        "LESS": "1.14 1.14 2.13",
        "LESS_EQUAL": "1.14 1.14",
        "LOCAL_RESPONSE_NORMALIZATION": "1.5",
        "LOG": "1.14 2.15",
        "LOGICAL_AND": "1.11",
        "LOGICAL_NOT": "1.11",
        "LOGICAL_OR": "1.11",
        "LOGISTIC": "1.14 1.14 2.3",
        "LOG_SOFTMAX": "1.14 1.14",
        "LSTM": "1.7 1.10 1.14 2.3",
        "MATRIX_DIAG": "1.14",
        "MATRIX_SET_DIAG": "1.14",
        "MAXIMUM": "1.14 1.14 2.3 2.3",
        "MAX_POOL_2D": "1.5 1.14 2.3",
        "MEAN": "1.6 1.14 2.4",
        "MINIMUM": "1.14 1.14 2.3 2.3",
        "MIRROR_PAD": "1.13.1 2.3 2.12",
        "MUL": "1.5 1.14 1.15 2.3 2.6 2.11 2.13",
        "NEG": "1.9",
        "NON_MAX_SUPPRESSION_V4": "2.1",
        "NON_MAX_SUPPRESSION_V5": "2.1",
        "NOT_EQUAL": "1.14 1.14 2.3",
        "ONE_HOT": "1.11",
        "PACK": "1.11 1.14 2.3 2.13",
        "PAD": "1.5 1.14 2.4 2.6",
        "PADV2": "1.9 1.14 2.4 2.6",
        "POW": "1.10",
        "PRELU": "1.8",
        "QUANTIZE": "1.14 1.15 2.7",
        "RANGE": "1.13 2.14",
        "RANK": "1.14",
        "REDUCE_ALL": "2.6",
        "REDUCE_ANY": "1.11",
        "REDUCE_MAX": "1.11 1.14 2.5",
        "REDUCE_MIN": "1.11 1.14 2.5",
        "REDUCE_PROD": "1.11 2.6",
        "RELU": "1.5 2.1 2.5",
        "RELU6": "1.5 1.14 2.5",
        "RELU_0_TO_1": "2.10",
        "RELU_N1_TO_1": "1.5",
        "RESHAPE": "1.5",
        "RESIZE_BILINEAR": "1.7 1.14 2.2 2.5",
        "RESIZE_NEAREST_NEIGHBOR": "1.13.1 1.14 2.3 2.4",
        "REVERSE_SEQUENCE": "1.14",
        "REVERSE_V2": "1.14 2.2 2.5",
        "RFFT2D": "2.5",
        "RIGHT_SHIFT": "2.13",
        "ROUND": "1.14",
        "RSQRT": "1.10 2.5 2.15",
        "SCATTER_ND": "2.1",
        "SEGMENT_SUM": "2.2",
        "SELECT": "1.14 1.14 2.12 2.12",
        "SELECT_V2": "2.2 2.12",
        "SHAPE": "1.10",
        "SIGN": "2.11 2.12",
        "SIN": "1.9",
        "SLICE": "1.14 1.14 1.14 2.4 2.5 2.14",
        "SOFTMAX": "1.5 1.14 2.3",
        "SPACE_TO_BATCH_ND": "1.6 1.14 2.3 2.12",
        "SPACE_TO_DEPTH": "1.5 1.14",
        "SPARSE_TO_DENSE": "1.9 1.14 1.15",
        "SPLIT": "1.5 1.14 1.14 2.3",
        "SPLIT_V": "1.13.1 2.3",
        "SQRT": "1.10",
        "SQUARE": "1.12",
        "SQUARED_DIFFERENCE": "1.13.1 2.5",
        "SQUEEZE": "1.6 2.5",
        "STRIDED_SLICE": "1.6 1.14 2.1 2.2 2.5 2.6 2.14 2.14",
        "SUB": "1.6 1.14 2.3 2.4 2.4",
        "SUM": "1.10 1.15",
        "TANH": "1.14 1.14 2.3",
        "TILE": "1.10.1 2.2 2.8",
        "TOPK_V2": "1.7 1.14 2.13",
        "TRANSPOSE": "1.6 1.14 1.15 2.3 2.4 2.12 2.14.4",
        "TRANSPOSE_CONV": "1.9 2.2 2.3 2.13 2.15",
        "UNIDIRECTIONAL_SEQUENCE_LSTM": "1.13.1 1.14 2.3 2.12",
        "UNIDIRECTIONAL_SEQUENCE_RNN": "1.14 1.14 2.3",
        "UNIQUE": "1.14",
        "UNPACK": "1.11 1.14 2.2 2.3",
        "WHERE": "1.14 2.8",
        "WHILE": "1.15",
        "ZEROS_LIKE": "1.12",
    }
)
# What LiteRT 1.0 did not have yet, with the release that first has it. Found by loading every version of every operator
# above into the ai-edge-litert wheels 1.0.0 to 2.3.0, and into tflite-runtime 2.14.0, which agrees with the table. Of
# TRANSPOSE 7 the table says 2.14.4: no such TensorFlow was released.
_LITERT_RELEASES: Mapping[tuple[str, int], str] = MappingProxyType(
    {
        ("CAST", 7): "1.1",
        ("DYNAMIC_UPDATE_SLICE", 3): "1.1",
        ("DYNAMIC_UPDATE_SLICE", 4): "1.3",
        ("TRANSPOSE", 7): "1.2",
    }
)
_OLDEST = "1.5"
# What the table does not name came after it was written.
_AFTER_TABLE = "2.21"
_BUILTIN_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}


def min_runtime_version(content: bytes) -> str:
    """The oldest release, as `major.minor.patch` in TensorFlow's numbering, that has all the file's operator versions.

    Not that of the ai-edge-litert wheels, whose numbers began anew: `litert_range` has those.
    """
    return newest(_operators(content))


def newest(operators: list[tuple[int, int]]) -> str:
    """The release that first had all these (builtin, version) pairs; custom operators have none."""
    releases = [_release(_BUILTIN_NAMES[code], version) or _AFTER_TABLE for code, version in operators]
    parts = max((_parts(release) for release in releases), default=_parts(_OLDEST))
    return ".".join(str(part) for part in parts)


def litert_range(content: bytes, proven: str) -> str:
    """The runtimes that have all the file's operator versions, as a PEP 440 specifier of the runtime `litert`.

    A TensorFlow release 2.17 stands as 0.2.17 there, below LiteRT 1.0, as `detect` reports tflite-runtime. `proven` is
    the LiteRT that ran the file, as `major.minor`: all that is known of an operator that no table names.
    """
    needed = [_litert(_BUILTIN_NAMES[code], version) or proven for code, version in _operators(content)]
    return f">={max(needed, key=Version, default=f'0.{_OLDEST}')}"


def _operators(content: bytes) -> list[tuple[int, int]]:
    model = schema.Model.GetRootAs(content)
    codes = [model.OperatorCodes(position) for position in range(model.OperatorCodesLength())]
    return [(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), code.Version()) for code in codes]


def _litert(builtin: str, version: int) -> str | None:
    release = _release(builtin, version)
    return _LITERT_RELEASES.get((builtin, version)) or (release and f"0.{release}")


def _release(builtin: str, version: int) -> str | None:
    """The table's entry, or None where it has none."""
    if builtin == "CUSTOM":
        return _OLDEST
    found = _RELEASES.get(builtin, "").split()
    return found[version - 1] if version <= len(found) and found[version - 1] != "-" else None


def _parts(release: str) -> tuple[int, int, int]:
    major, minor, patch = (*(int(part) for part in release.split(".")), 0)[:3]
    return major, minor, patch
