"""Reads an ONNX file into a small message and the arrays of its large weights, each from the disk to where it stays.

Does not judge what it finds: a file that it cannot follow is left to protobuf, which says what is wrong with it.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from edgefleet_converters.tflite.graph import Array
from edgefleet_converters.tflite.importer import Source

# Parsed whole, a file is in memory three times: as bytes, as a message, and as the arrays taken from it. Smaller
# initializers are not worth a second look.
_LARGE_BYTES = 1 << 16
_LONGEST_VARINT = 10
# Field numbers of onnx.proto, and the two wire types that matter here.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_TYPES: Mapping[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.FLOAT16: np.dtype("<f2"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.INT8: np.dtype("i1"),
    TensorProto.UINT8: np.dtype("u1"),
    TensorProto.INT16: np.dtype("<i2"),
    TensorProto.UINT16: np.dtype("<u2"),
    TensorProto.INT32: np.dtype("<i4"),
    TensorProto.UINT32: np.dtype("<u4"),
    TensorProto.INT64: np.dtype("<i8"),
    TensorProto.UINT64: np.dtype("<u8"),
}


class _StrangeError(Exception):
    """Not the wire format, or not as far as it is known here."""


def read_parted(path: Path) -> Source:
    """The model, whose large initializers have a name, a type and a shape but no data, and these as arrays.

    Raises OSError, and protobuf's DecodeError for what is no message.
    """
    if path.stat().st_size > _LARGE_BYTES:
        try:
            with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Parting(path, content).source()
        except _StrangeError:
            pass
    return Source(onnx.ModelProto.FromString(path.read_bytes()), {})


def joined(source: Source) -> onnx.ModelProto:
    """The whole model again; `source` is not needed any longer."""
    for tensor in source.model.graph.initializer:
        if tensor.name in source.weights:
            tensor.raw_data = source.weights.pop(tensor.name).tobytes()
    return source.model


class _Parting:
    """One file on its way into two parts."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content = path, content
        self.weights: dict[str, Array] = {}

    def source(self) -> Source:
        """Both parts."""
        light: list[bytes] = []
        for number, start, inner, end in self._fields(0, len(self.content)):
            light += self._graph(inner, end) if number == _GRAPH else [self.content[start:end]]
        content = b"".join(light)
        light.clear()
        return Source(onnx.ModelProto.FromString(content), self.weights)

    def _graph(self, start: int, end: int) -> list[bytes]:
        """The field of a graph in pieces, without the data of its large initializers."""
        light, copied = [], start
        for number, field, inner, after in self._fields(start, end):
            if number == _INITIALIZER and after - inner > _LARGE_BYTES:
                declared = self._tensor(inner, after)
                light += [self.content[copied:field], _head(_INITIALIZER, len(declared)), declared]
                copied = after
        light.append(self.content[copied:end])
        return [_head(_GRAPH, sum(map(len, light))), *light]

    def _tensor(self, start: int, end: int) -> bytes:
        """A TensorProto without its data, which goes to the weights; or as it is, if its data has another form."""
        fields = list(self._fields(start, end))
        raw = [(inner, after) for number, _, inner, after in fields if number == _RAW_DATA]
        declared = b"".join(self.content[field:after] for number, field, _, after in fields if number != _RAW_DATA)
        if len(raw) != 1 or len(declared) > _LARGE_BYTES:
            return self.content[start:end]
        tensor, (inner, after) = TensorProto.FromString(declared), raw[0]
        dtype, shape = _TYPES.get(tensor.data_type), tuple(tensor.dims)
        if dtype is None or tensor.data_location or tensor.name in self.weights:
            return self.content[start:end]
        if math.prod(shape) * dtype.itemsize != after - inner:
            return self.content[start:end]
        # Not from the map: its pages would count as memory of this process besides the array.
        self.weights[tensor.name] = np.fromfile(self.path, dtype, math.prod(shape), offset=inner).reshape(shape)
        return declared

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Of each field in a message: its number, and where it, its content and the next one begin."""
        while start < end:
            key, inner = self._number(start)
            kind, size = key & 7, 0
            if kind == _VARINT:
                _, inner = self._number(inner)
            elif kind == _BYTES:
                size, inner = self._number(inner)
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            else:
                raise _StrangeError
            if inner + size > end:
                raise _StrangeError
            # A number where there should be a message is for protobuf to refuse.
            yield (key >> 3 if kind == _BYTES else 0), start, inner, inner + size
            start = inner + size

    def _number(self, start: int) -> tuple[int, int]:
        """A varint, and where it ends."""
        value = 0
        for position, byte in enumerate(self.content[start : start + _LONGEST_VARINT]):
            value |= (byte & 0x7F) << 7 * position
            if byte < 0x80:
                return value, start + position + 1
        raise _StrangeError


def _head(number: int, size: int) -> bytes:
    """What stands in front of a nested message."""
    return _varint(number << 3 | _BYTES) + _varint(size)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))
