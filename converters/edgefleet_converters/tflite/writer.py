"""Last pass: the gathered tensors and operators become the bytes of a .tflite file (schema version 3).

Does not check that the operators make sense; the runtime's own loader does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.file import Draft, Operator, Quantization, Tensor
from edgefleet_converters.tflite.graph import NotLowerableError

SIGNATURE = "serving_default"
_FILE_IDENTIFIER = b"TFL3"
# The schema asks for it (force_align: 16), but the generated Python code does not do it.
_BUFFER_ALIGNMENT = 16
# Builtin codes from here on no longer fit the file format's first, one-byte field for them.
_FIRST_LONG_CODE = 127
_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16,
    "uint16": schema.TensorType.UINT16,
    "uint32": schema.TensorType.UINT32,
    "uint64": schema.TensorType.UINT64,
    "float16": schema.TensorType.FLOAT16,
    "float64": schema.TensorType.FLOAT64,
    "complex64": schema.TensorType.COMPLEX64,
}


class _AlignedBuffer:
    """A BufferT whose data starts on a 16-byte boundary of the file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def Pack(self, builder: Any) -> int:  # noqa: N802 - called by the generated code, by this name
        """Write the data vector and its Buffer table; returns the table's offset."""
        builder.StartVector(1, len(self.data), _BUFFER_ALIGNMENT)
        start = builder.Head() - len(self.data)
        builder.head = start
        builder.Bytes[start : start + len(self.data)] = self.data
        vector = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return int(schema.BufferEnd(builder))


def write(draft: Draft, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> bytes:
    """Bytes of the file; `inputs` and `outputs` map the names of its one signature to tensors."""
    positions = {name: position for position, name in enumerate(draft.tensors)}
    model = schema.ModelT()
    model.version = 3
    model.description = "edgefleet"
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.name = "main"
    graph.tensors = [_tensor(tensor, model.buffers) for tensor in draft.tensors.values()]
    graph.inputs = [positions[name] for name in inputs.values()]
    graph.outputs = [positions[name] for name in outputs.values()]
    codes = sorted({(operator.code, operator.version) for operator in draft.operators})
    model.operatorCodes = [_code(code, version) for code, version in codes]
    graph.operators = [
        _operator(operator, codes.index((operator.code, operator.version)), positions) for operator in draft.operators
    ]
    model.subgraphs = [graph]
    model.signatureDefs = [_signature(inputs, outputs, positions)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
    return bytes(builder.Output())


def _tensor(tensor: Tensor, buffers: list[object]) -> object:
    if tensor.dtype not in _TYPES:
        raise NotLowerableError(f"the type {tensor.dtype} of {tensor.name!r} has no TFLite form here")
    packed = schema.TensorT()
    packed.name = tensor.name
    packed.shape = list(tensor.shape)
    packed.type = _TYPES[tensor.dtype]
    packed.buffer = 0
    packed.hasRank = True
    if tensor.quantization is not None:
        packed.quantization = _quantization(tensor.quantization)
    if tensor.data is not None:
        packed.buffer = len(buffers)
        buffers.append(_AlignedBuffer(np.ascontiguousarray(tensor.data).tobytes()))
    return packed


def _quantization(found: Quantization) -> object:
    packed = schema.QuantizationParametersT()
    packed.scale = list(found.scales)
    packed.zeroPoint = list(found.zero_points)
    packed.quantizedDimension = found.axis
    return packed


def _code(code: int, version: int) -> object:
    packed = schema.OperatorCodeT()
    packed.builtinCode = code
    packed.deprecatedBuiltinCode = min(code, _FIRST_LONG_CODE)
    packed.version = version
    return packed


def _operator(operator: Operator, code: int, positions: dict[str, int]) -> object:
    packed = schema.OperatorT()
    packed.opcodeIndex = code
    # -1 is the format's mark for an optional input that is absent.
    packed.inputs = [positions[name] if name else -1 for name in operator.inputs]
    packed.outputs = [positions[name] for name in operator.outputs]
    if operator.options is not None:
        kind = type(operator.options).__name__.removesuffix("T")
        packed.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        packed.builtinOptions = operator.options
    return packed


def _signature(inputs: Mapping[str, str], outputs: Mapping[str, str], positions: dict[str, int]) -> object:
    signature = schema.SignatureDefT()
    signature.signatureKey = SIGNATURE
    signature.subgraphIndex = 0
    signature.inputs = [_mapping(name, positions[tensor]) for name, tensor in inputs.items()]
    signature.outputs = [_mapping(name, positions[tensor]) for name, tensor in outputs.items()]
    return signature


def _mapping(name: str, position: int) -> object:
    mapping = schema.TensorMapT()
    mapping.name = name
    mapping.tensorIndex = position
    return mapping
