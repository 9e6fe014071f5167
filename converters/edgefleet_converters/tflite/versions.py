"""Operator versions: which kernel version each operator of a TFLite file needs.

Knows nothing of ONNX and changes no operator; a runtime without the version refuses the file instead of misreading it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ai_edge_litert import schema_py_generated as schema

# An operator needs the largest version that any of its properties needs. These follow TensorFlow Lite's own rules
# (tensorflow/lite/tools/versioning/op_version.cc); where those stop at the first property found, ours may ask for more.
# They know no float data with int4 weights, which older runtimes take and get wrong: there, the first newer version.
_INT8_2 = {"int8": 2}
_INT8_2_INT16_3 = {"int8": 2, "int16": 3}
_ONE_BYTE_2 = {"int8": 2, "uint8": 2}
_DECIDING_INPUT: Mapping[str, int] = MappingProxyType(
    {"SPLIT": 1, "FILL": 1, "TRANSPOSE_CONV": 1, "SPARSE_TO_DENSE": 2}
)
"""Whose type `_BY_TYPE` looks at, where it is not the first input's."""
_BY_TYPE: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "ABS": {**_ONE_BYTE_2, "int32": 5},
        "ADD": {"int8": 2, "int16": 3, "int64": 4},
        "ARG_MAX": {"int8": 2, "bool": 3},
        "ARG_MIN": {"int8": 2, "bool": 3},
        "AVERAGE_POOL_2D": _INT8_2_INT16_3,
        "BATCH_MATMUL": _INT8_2_INT16_3,
        "BATCH_TO_SPACE_ND": {"int8": 2, "int16": 4},
        "BROADCAST_TO": {"int8": 3, "int16": 3},
        "CONCATENATION": {"int8": 2, "int16": 3, "uint32": 4},
        "DEPTH_TO_SPACE": _INT8_2,
        "DEQUANTIZE": {"int8": 2, "int16": 3, "float16": 3, "int4": 6},
        "EQUAL": {"int8": 2, "string": 3, "int16": 4},
        "EXP": {"int8": 2, "int16": 2},
        "FILL": {"bool": 2, "string": 2, "int8": 3, "int16": 3, "float16": 4},
        "FLOOR_DIV": {"float32": 2, "int8": 3, "int16": 3},
        "FLOOR_MOD": {"int8": 2, "int16": 2},
        "GATHER": {"int8": 2, "bool": 3, "int16": 4, "int4": 7},
        "GATHER_ND": {"string": 2, "int16": 3, "bool": 5},
        "GELU": _ONE_BYTE_2,
        "GREATER": _INT8_2,
        "GREATER_EQUAL": _INT8_2_INT16_3,
        "L2_NORMALIZATION": _INT8_2,
        "LEAKY_RELU": {"int16": 2},
        "LESS": _INT8_2_INT16_3,
        "LESS_EQUAL": _INT8_2,
        "LOG": {"int8": 2, "int16": 2},
        "LOGISTIC": _INT8_2_INT16_3,
        "LOG_SOFTMAX": _INT8_2,
        "MAXIMUM": {"int8": 2, "int16": 4},
        "MAX_POOL_2D": _INT8_2_INT16_3,
        "MEAN": _INT8_2_INT16_3,
        "MINIMUM": {"int8": 2, "int16": 4},
        "MIRROR_PAD": _INT8_2_INT16_3,
        "MUL": {"int8": 2, "int16": 4, "int64": 5, "complex64": 6, "uint32": 7},
        "NOT_EQUAL": {"int8": 2, "string": 3},
        "PACK": {"int8": 2, "int16": 3, "uint32": 4},
        "PAD": {"int8": 2, "int16": 3, "bool": 5},
        "PADV2": {"int8": 2, "int16": 3, "bool": 5},
        "RANGE": {"int64": 2},
        "REDUCE_MAX": _INT8_2_INT16_3,
        "REDUCE_MIN": _INT8_2_INT16_3,
        "REDUCE_PROD": {"int8": 2, "int16": 2},
        "RELU": {**_ONE_BYTE_2, "int16": 3},
        "RELU6": _INT8_2_INT16_3,
        "RESIZE_BILINEAR": {"int8": 2, "int16": 4},
        "RESIZE_NEAREST_NEIGHBOR": {"int8": 2, "int16": 4},
        "REVERSE_V2": {"bool": 2, "int8": 3},
        "RSQRT": _INT8_2_INT16_3,
        "SELECT": {"int8": 2, "uint32": 4},
        "SELECT_V2": {"uint32": 2},
        "SIGN": {"int32": 2},
        "SLICE": {"int8": 2, "string": 3, "int16": 4, "uint32": 6},
        "SOFTMAX": _INT8_2_INT16_3,
        "SPACE_TO_BATCH_ND": {"int8": 2, "int16": 4},
        "SPACE_TO_DEPTH": _INT8_2,
        "SPARSE_TO_DENSE": {"int64": 2, "int8": 3, "uint8": 3},
        "SPLIT": {"int8": 2, "int32": 3, "int16": 4},
        "SPLIT_V": _INT8_2,
        "SQUARED_DIFFERENCE": _INT8_2,
        "SQUEEZE": {"string": 2},
        "STRIDED_SLICE": {"int8": 2, "bool": 3, "string": 5, "uint32": 7},
        "SUB": {"int8": 2, "int64": 4, "int16": 5},
        "SUM": _INT8_2,
        "TANH": _INT8_2_INT16_3,
        "TILE": {"string": 2, "int8": 3},
        "TOPK_V2": _INT8_2_INT16_3,
        "TRANSPOSE": {"int8": 2, "bool": 3, "int16": 5, "int4": 7},
        "TRANSPOSE_CONV": _INT8_2,
        "UNPACK": {**_ONE_BYTE_2, "bool": 3, "int16": 4},
    }
)
_CAST = {"uint32": 2, "int8": 3, "uint16": 4, "float16": 5, "float64": 5, "int4": 6, "bfloat16": 7}
_TYPE_NAMES = {code: name.lower() for name, code in vars(schema.TensorType).items() if name.isupper()}
_BUILTIN_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
# Builtin codes from here on no longer fit the file format's first, one-byte field for them.
_FIRST_LONG_CODE = 127


@dataclass(frozen=True, slots=True)
class _Site:
    """One operator with its tensors; an absent optional input is None."""

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    options: Any

    def type(self, position: int) -> str:
        """Type of an input by name; empty when it is absent."""
        tensor = self.inputs[position] if position < len(self.inputs) else None
        return "" if tensor is None else _TYPE_NAMES[tensor.type]

    def rank(self, count: int | None = None) -> int:
        """Largest rank among the first `count` inputs, or among all."""
        return max((len(tensor.shape) for tensor in self.inputs[:count] if tensor is not None), default=0)

    def option(self, name: str) -> Any:
        """A field of the options table; None when there is no table."""
        return getattr(self.options, name, None)

    def broadcasts(self) -> bool:
        """Whether the first two inputs differ in shape."""
        return len(self.inputs) > 1 and list(self.inputs[0].shape) != list(self.inputs[1].shape)

    def hybrid(self, weights: int = 1) -> bool:
        """Whether float data meets int8 weights."""
        return self.type(0) == "float32" and self.type(weights) == "int8"

    def per_channel(self, position: int) -> bool:
        """Whether an input is quantised with more than one scale."""
        return len(scales(self.inputs[position])) > 1


def scales(tensor: Any) -> Sequence[float]:
    """Scales of a quantised tensor; empty for any other."""
    found = tensor.quantization.scale if tensor.quantization is not None else None
    return () if found is None else found


def _convolution(site: _Site) -> int:
    pair = (site.type(0), site.type(1))
    grouped = list(site.inputs[0].shape)[-1] != list(site.inputs[1].shape)[-1]
    return max(
        8 if pair == ("int16", "int8") and site.option("quantizedBiasType") else 1,
        6 if grouped else 1,
        {("int16", "int16"): 4, ("int8", "int8"): 3, ("int8", "int4"): 7, ("float32", "int4"): 8}.get(pair, 1),
        (5 if site.per_channel(1) else 2) if site.hybrid() else 1,
    )


def _depthwise(site: _Site) -> int:
    dilated = (site.option("dilationWFactor"), site.option("dilationHFactor")) != (1, 1)
    pair = (site.type(0), site.type(1))
    typed = {("int16", "int16"): 5, ("int8", "int8"): 3, ("int8", "int4"): 7, ("float32", "int4"): 7}.get(pair, 1)
    return max(2 if dilated else 1, typed, (6 if site.per_channel(1) else 4) if site.hybrid() else 1)


def _fully_connected(site: _Site) -> int:
    pair = (site.type(0), site.type(1))
    asymmetric = 9 if site.option("asymmetricQuantizeInputs") else 3
    return max(
        2 if site.option("weightsFormat") else 1,
        (12 if site.per_channel(1) else asymmetric) if site.hybrid() else 1,
        {("int8", "int8"): 4, ("int16", "int16"): 7, ("int8", "int4"): 10, ("float32", "int4"): 12}.get(pair, 1),
        13 if pair == ("int16", "int4") else 1,
        11 if pair == ("int16", "int8") and site.option("quantizedBiasType") else 1,
        8 if site.inputs[1].sparsity is not None else 1,
        6 if len(site.inputs) == 2 else 1,
        5 if site.option("keepNumDims") else 1,
    )


def _multiplication(site: _Site) -> int:
    if site.type(0) == "int16" and not len(scales(site.inputs[0])):
        return 7
    found = [scales(tensor) for tensor in (*site.inputs, *site.outputs)]
    if any(len(item) != 1 for item in found) or len(found) != 3:
        return 1
    left, right, out = (float(item[0]) for item in found)
    return 3 if out and left * right / out >= 1 else 1


def _strided_slice(site: _Site) -> int:
    masked = 6 if site.option("ellipsisMask") or site.option("newAxisMask") else 1
    return max(8 if site.option("offset") else 1, masked, 4 if site.rank(1) > 4 else 1)


def _transpose(site: _Site) -> int:
    return {5: 4}.get(site.rank(1), 6 if site.rank(1) > 5 else 1)


def _transpose_convolution(site: _Site) -> int:
    biased = 5 if (site.type(2), site.type(1)) == ("int16", "int8") and site.option("quantizedBiasType") else 1
    return max(biased, 4 if site.option("fusedActivationFunction") else 1, 3 if site.type(3) else 1)


def _sequence_lstm(site: _Site) -> int:
    hybrid = (3 if site.option("asymmetricQuantizeInputs") else 2) if site.hybrid(2) else 1
    return max(hybrid, 4 if site.option("diagonalRecurrentTensors") else 1)


def _cast(site: _Site) -> int:
    return max(_CAST.get(site.type(0), 1), _CAST.get(_TYPE_NAMES[site.outputs[0].type], 1))


def _quantize(site: _Site) -> int:
    output = site.outputs[0]
    channels = 3 if len(scales(output)) > 1 or site.per_channel(0) else 1
    typed = {"int16": 2, "int4": 4}.get(_TYPE_NAMES[output.type], 1)
    return max(channels, typed, 4 if site.type(0) == "int4" else 1)


def _wide_broadcast(version: int) -> Callable[[_Site], int]:
    return lambda site: version if site.broadcasts() and site.rank() > 4 else 1


def _optional(version: int, *fields: str) -> Callable[[_Site], int]:
    return lambda site: version if any(site.option(name) for name in fields) else 1


_BY_FORM: Mapping[str, Callable[[_Site], int]] = MappingProxyType(
    {
        "ABS": lambda site: (3 if len(scales(site.inputs[0])) else 4) if site.type(0) == "int16" else 1,
        "ADD": lambda site: 5 if site.type(0) == "int16" and not len(scales(site.inputs[0])) else 1,
        "BATCH_MATMUL": lambda site: 4 if site.hybrid() and site.option("asymmetricQuantizeInputs") else 1,
        "BATCH_TO_SPACE_ND": lambda site: 3 if site.rank(1) != 4 else 1,
        "BROADCAST_TO": lambda _site: 2,
        "CAST": _cast,
        "CONV_2D": _convolution,
        "DEPTHWISE_CONV_2D": _depthwise,
        "DEQUANTIZE": lambda site: 5 if site.type(0) == "int8" and site.per_channel(0) else 1,
        "DIV": _wide_broadcast(2),
        "FULLY_CONNECTED": _fully_connected,
        "GATHER": lambda site: max(6 if site.type(1) == "int16" else 1, 5 if site.option("batchDims") else 1),
        "GATHER_ND": lambda site: 4 if site.type(1) == "int16" else 1,
        "MAXIMUM": _wide_broadcast(3),
        "MINIMUM": _wide_broadcast(3),
        "MUL": _multiplication,
        "PAD": lambda site: 4 if site.rank(1) > 4 else 1,
        "PADV2": lambda site: 4 if site.rank(1) > 4 else 1,
        "QUANTIZE": _quantize,
        "RESIZE_BILINEAR": _optional(3, "halfPixelCenters"),
        "RESIZE_NEAREST_NEIGHBOR": _optional(3, "halfPixelCenters", "alignCorners"),
        "SELECT": lambda site: 3 if site.rank() == 5 else 1,
        "SLICE": lambda site: 5 if site.rank(1) > 4 else 1,
        "SPACE_TO_BATCH_ND": lambda site: 3 if site.rank(1) != 4 else 1,
        "STRIDED_SLICE": _strided_slice,
        "SUB": _wide_broadcast(3),
        "TRANSPOSE": _transpose,
        "TRANSPOSE_CONV": _transpose_convolution,
        "UNIDIRECTIONAL_SEQUENCE_LSTM": _sequence_lstm,
        "WHERE": lambda site: 1 if site.type(0) == "bool" else 2,
    }
)


def assign_versions(model: Any) -> None:
    """Give every operator of a ModelT its version; operators of one builtin may get different OperatorCodes.

    A version that is higher than what the rules ask for stays.
    """
    codes: dict[tuple[int, bytes, int], int] = {}
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            old = model.operatorCodes[operator.opcodeIndex]
            # Files give the code in one of two fields; the other one is 0.
            builtin = max(old.builtinCode, old.deprecatedBuiltinCode)
            version = max(old.version, _version(_BUILTIN_NAMES.get(builtin, ""), _site(graph, operator)))
            key = (builtin, bytes(old.customCode or b""), version)
            operator.opcodeIndex = codes.setdefault(key, len(codes))
    model.operatorCodes = [operator_code(*key) for key in codes]


def _version(builtin: str, site: _Site) -> int:
    typed = _BY_TYPE.get(builtin, {}).get(site.type(_DECIDING_INPUT.get(builtin, 0)), 1)
    form = _BY_FORM.get(builtin)
    return typed if form is None else max(typed, form(site))


def _site(graph: Any, operator: Any) -> _Site:
    inputs = () if operator.inputs is None else operator.inputs
    given = [graph.tensors[index] if index >= 0 else None for index in inputs]
    return _Site(given, [graph.tensors[index] for index in operator.outputs], operator.builtinOptions)


def operator_code(builtin: int, custom: bytes, version: int) -> Any:
    """An OperatorCodeT."""
    code = schema.OperatorCodeT()
    code.builtinCode = builtin
    code.deprecatedBuiltinCode = min(builtin, _FIRST_LONG_CODE)
    code.customCode = custom or None
    code.version = version
    return code
