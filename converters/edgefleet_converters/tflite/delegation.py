"""Which operators the quantiser makes int8, and which XNNPACK, the runtime's fast path, takes in float32 and int8.

Says nothing about shapes and options: a row is what a usual operator of the kind gets.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ai_edge_litert import schema_py_generated as schema

QUANTISED = "quantised"
# Operator → `quantised`, if ai-edge-quantizer's static int8 covers it, and the types that XNNPACK takes it in. By
# `python -m conformance.delegation_probe` with ai-edge-litert 2.3 and ai-edge-quantizer 0.10.
ROWS: Mapping[str, str] = MappingProxyType(
    {
        "ABS": "float32",
        "ADD": "quantised float32 int8",
        "AVERAGE_POOL_2D": "quantised float32",
        "BATCH_MATMUL": "quantised float32",
        "BATCH_TO_SPACE_ND": "",
        "BROADCAST_TO": "quantised",
        "CEIL": "float32",
        "CONCATENATION": "quantised float32 int8",
        "CONV_2D": "quantised float32 int8",
        "COS": "float32",
        "CUMSUM": "",
        "DEPTHWISE_CONV_2D": "quantised float32 int8",
        "DEPTH_TO_SPACE": "float32 int8",
        "DEQUANTIZE": "float32",
        "DIV": "quantised float32",
        "ELU": "float32 int8",
        "EXP": "float32",
        "EXPAND_DIMS": "",
        "FLOOR": "float32",
        "FULLY_CONNECTED": "quantised float32 int8",
        "GATHER": "quantised",
        "GATHER_ND": "quantised",
        "GELU": "quantised float32",
        "HARD_SWISH": "quantised float32",
        "L2_NORMALIZATION": "",
        "LEAKY_RELU": "float32 int8",
        "LOCAL_RESPONSE_NORMALIZATION": "",
        "LOG": "float32",
        "LOGISTIC": "quantised float32 int8",
        "LOG_SOFTMAX": "",
        "MAXIMUM": "quantised float32",
        "MAX_POOL_2D": "quantised float32 int8",
        "MEAN": "quantised float32 int8",
        "MINIMUM": "float32",
        "MIRROR_PAD": "quantised",
        "MUL": "quantised float32 int8",
        "NEG": "float32",
        "PACK": "quantised",
        "PAD": "quantised float32 int8",
        "PADV2": "quantised",
        "POW": "",
        "PRELU": "float32",
        "QUANTIZE": "int8",
        "REDUCE_MAX": "float32 int8",
        "REDUCE_MIN": "quantised float32 int8",
        "RELU": "quantised float32",
        "RELU6": "float32",
        "RELU_N1_TO_1": "float32",
        "RESHAPE": "quantised float32 int8",
        "RESIZE_BILINEAR": "quantised float32 int8",
        "RESIZE_NEAREST_NEIGHBOR": "quantised",
        "REVERSE_V2": "",
        "ROUND": "float32",
        "RSQRT": "quantised float32",
        "SIGN": "",
        "SIN": "float32",
        "SLICE": "quantised float32 int8",
        "SOFTMAX": "quantised float32",
        "SPACE_TO_BATCH_ND": "",
        "SPACE_TO_DEPTH": "quantised float32 int8",
        "SPLIT": "quantised float32 int8",
        "SPLIT_V": "",
        "SQRT": "quantised float32",
        "SQUARE": "float32",
        "SQUARED_DIFFERENCE": "quantised float32",
        "SQUEEZE": "",
        "STRIDED_SLICE": "quantised",
        "SUB": "quantised float32 int8",
        "SUM": "quantised float32 int8",
        "TANH": "quantised float32 int8",
        "TILE": "",
        "TRANSPOSE": "quantised float32 int8",
        "TRANSPOSE_CONV": "quantised float32 int8",
        "UNPACK": "quantised",
    }
)
_TYPE_NAMES = {code: name.lower() for name, code in vars(schema.TensorType).items() if name.isupper()}
_BUILTIN_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}


def is_quantised(operator: str) -> bool:
    """Whether the quantiser makes the operator int8; it leaves the others float, between conversions."""
    return QUANTISED in ROWS.get(operator, "").split()


def is_delegated(operator: str, dtype: str) -> bool:
    """Whether XNNPACK takes the operator in `float32` or `int8`; false for every other type."""
    return dtype != QUANTISED and dtype in ROWS.get(operator, "").split()


def outside_xnnpack(content: bytes) -> list[str]:
    """Names of the operators of a .tflite file that XNNPACK leaves to the runtime's slower kernels, in order."""
    model = schema.Model.GetRootAs(content)
    found = []
    for position in range(model.SubgraphsLength()):
        graph = model.Subgraphs(position)
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            name = operator_name(model.OperatorCodes(operator.OpcodeIndex()))
            dtype = _TYPE_NAMES[graph.Tensors(operator.Outputs(0)).Type()]
            if not is_delegated(name, dtype):
                found.append(name)
    return found


def operator_name(code: Any) -> str:
    """BuiltinOperator name of an OperatorCode, or a custom operator's own name."""
    builtin = _BUILTIN_NAMES[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
    return str(code.CustomCode().decode()) if builtin == "CUSTOM" else builtin
