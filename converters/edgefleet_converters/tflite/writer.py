"""Last pass: the gathered tensors and operators become the bytes of a .tflite file (schema version 3).

Does not check that the operators make sense; the runtime's own loader does.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.file import Draft, Operator, Quantization, Tensor
from edgefleet_converters.tflite.graph import Array, NotLowerableError
from edgefleet_converters.tflite.runtime_versions import METADATA_BYTES, METADATA_NAME, newest
from edgefleet_converters.tflite.versions import assign_versions, operator_code

SIGNATURE = "serving_default"
_FILE_IDENTIFIER = b"TFL3"
# The schema asks for it (force_align: 16), but the generated Python code does not do it.
_BUFFER_ALIGNMENT = 16
# Offsets in the format are signed 32-bit numbers.
_LARGEST_FILE = 2**31 - 1
# Enough of an array to tell most different ones apart without reading all of it.
_SAMPLE_BYTES = 64
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


def write(draft: Draft, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> bytes:
    """Bytes of the file; `inputs` and `outputs` map the names of its one signature to tensors.

    Takes the constants out of the draft while it writes them.
    """
    positions = {name: position for position, name in enumerate(draft.tensors)}
    buffers = _Buffers()
    model = schema.ModelT()
    model.version = 3
    model.description = "edgefleet"
    graph = schema.SubGraphT()
    graph.name = "main"
    graph.tensors = [_tensor(tensor, buffers) for tensor in draft.tensors.values()]
    graph.inputs = [positions[name] for name in inputs.values()]
    graph.outputs = [positions[name] for name in outputs.values()]
    graph.operators = [_operator(operator, index, positions) for index, operator in enumerate(draft.operators)]
    model.operatorCodes = [operator_code(operator.code, b"", operator.version) for operator in draft.operators]
    model.subgraphs = [graph]
    model.signatureDefs = [_signature(inputs, outputs, positions)]
    model.buffers = buffers.entries
    draft.tensors.clear()
    return pack(model)


def reversioned(content: bytes) -> bytes:
    """The same file with every operator at the version that it needs, as other tools may leave them at 1."""
    return pack(unpack(content))


def unpack(content: bytes) -> Any:
    """The ModelT of a file, with the data of all its buffers."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        # ai-edge-quantizer puts 256 KiB and more behind the tables; 0 and 1 are no offsets.
        if buffer.data is None and buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def pack(model: Any) -> bytes:
    """Bytes of a ModelT, with operator versions and the metadata on them set; empties `model.buffers`.

    The tables are packed first and the buffers' data is appended to them, array by array: nothing is held twice.
    """
    assign_versions(model)
    _note_runtime(model)
    data = [_Data(_bytes_of(buffer.data)) for buffer in model.buffers]
    for buffer in model.buffers:
        buffer.data = None
    model.buffers = data
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
    model.buffers = []
    return _appended(builder.Output(), [item for item in data if item.array is not None])


@dataclass(slots=True, eq=False)
class _Data:
    """A BufferT whose data comes after all tables; `field_end` says where the offset to it is to be written."""

    array: Array | None
    field_end: int = 0

    def Pack(self, builder: Any) -> int:  # noqa: N802 - called by the generated code, by this name
        """Write the Buffer table, with room for the offset of its data; returns the table's offset."""
        schema.BufferStart(builder)
        if self.array is not None:
            # The first field of the table; a vector's offset has the size and alignment of this number.
            builder.PrependUint32Slot(0, 1, 0)
            self.field_end = builder.Offset()
        return int(schema.BufferEnd(builder))


def _appended(tables: bytearray, data: list[_Data]) -> bytes:
    """The file: the tables, then each array on a 16-byte boundary behind its length; takes `data` apart."""
    end, starts = len(tables), []
    for item in data:
        starts.append(-(-(end + 4) // _BUFFER_ALIGNMENT) * _BUFFER_ALIGNMENT)
        end = starts[-1] + item.array.nbytes if item.array is not None else end
    if end > _LARGEST_FILE:
        raise NotLowerableError(f"a file of {end} bytes: the format ends at 2 GiB")
    # A BytesIO hands out its bytes without a copy, where bytes(bytearray) would hold the file twice.
    file = io.BytesIO(bytes(end))
    with file.getbuffer() as view:
        for item, start in zip(data, starts, strict=True):
            field_start = len(tables) - item.field_end
            tables[field_start : field_start + 4] = (start - 4 - field_start).to_bytes(4, "little")
            _copy(item, view, start)
        view[: len(tables)] = tables
    return file.getvalue()


def _copy(item: _Data, view: memoryview, start: int) -> None:
    """Write one array and its length in front of it, and let go of it."""
    array, item.array = item.array, None
    if array is None:
        return
    view[start - 4 : start] = array.nbytes.to_bytes(4, "little")
    if array.nbytes:
        target = np.frombuffer(view, array.dtype, array.size, start).reshape(array.shape)
        np.copyto(target, array)


def _bytes_of(data: Any) -> Array | None:
    """The data of a BufferT, whatever form a tool has left it in."""
    if data is None or isinstance(data, np.ndarray):
        return data
    found: Array = np.frombuffer(bytes(data), np.uint8)
    return found


def _note_runtime(model: Any) -> None:
    """Set the metadata entry in which TFLite's tools look for the oldest runtime that can run a file."""
    pairs = [(code.builtinCode, code.version) for code in model.operatorCodes]
    text = np.frombuffer(newest(pairs).encode().ljust(METADATA_BYTES, b"\0"), np.uint8)
    found = [entry for entry in model.metadata or () if _name(entry) == METADATA_NAME]
    if found:
        model.buffers[found[0].buffer].data = text
        return
    entry = schema.MetadataT()
    entry.name = METADATA_NAME
    entry.buffer = len(model.buffers)
    model.buffers = [*model.buffers, schema.BufferT(text)]
    model.metadata = [*(model.metadata or ()), entry]


def _name(entry: Any) -> str:
    return entry.name.decode() if isinstance(entry.name, bytes) else str(entry.name)


@dataclass(slots=True)
class _Buffers:
    """The buffers of a file, each content once; entry 0 is the empty one that computed tensors refer to."""

    entries: list[Any] = field(default_factory=lambda: [schema.BufferT()])
    _known: dict[tuple[object, ...], list[int]] = field(default_factory=dict)

    def position(self, array: Array) -> int:
        """Where an array's content is, or where it has now been added."""
        head = array[(slice(0, 1),) * (array.ndim - 1)].ravel()[:_SAMPLE_BYTES].tobytes() if array.ndim else b""
        alike = self._known.setdefault((array.dtype, array.shape, head), [])
        for position in alike:
            if _same(self.entries[position].data, array):
                return position
        alike.append(len(self.entries))
        self.entries.append(schema.BufferT(array))
        return alike[-1]


def _same(one: Array, other: Array) -> bool:
    """Whether two arrays of one type and shape hold the same bits: NaN included, and -0.0 is not 0.0."""
    return one is other or one.ravel().view(np.uint8).data == other.ravel().view(np.uint8).data


def _tensor(tensor: Tensor, buffers: _Buffers) -> object:
    if tensor.dtype not in _TYPES:
        raise NotLowerableError(f"the type {tensor.dtype} of {tensor.name!r} has no TFLite form here")
    packed = schema.TensorT()
    packed.name = tensor.name
    packed.shape = list(tensor.shape)
    packed.type = _TYPES[tensor.dtype]
    packed.buffer = 0 if tensor.data is None else buffers.position(tensor.data)
    packed.hasRank = True
    if tensor.bounded:
        packed.shapeSignature = [-1, *tensor.shape[1:]]
    if tensor.quantization is not None:
        packed.quantization = _quantization(tensor.quantization)
    return packed


def _quantization(found: Quantization) -> object:
    packed = schema.QuantizationParametersT()
    packed.scale = list(found.scales)
    packed.zeroPoint = list(found.zero_points)
    packed.quantizedDimension = found.axis
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
