"""What a quantised file takes in and returns, from float32 to int8 or uint8, with the scales that are there already.

Says nothing about how images become such numbers, and leaves what is not float32 alone. ai-edge-quantizer 0.10 can do
it too, but not where a result is read by operators, or an input by several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.wiring import Wiring, wirings

Stored = Literal["int8", "uint8"]
Range = tuple[float, float]
_TYPES = {"int8": schema.TensorType.INT8, "uint8": schema.TensorType.UINT8}
_LOWEST = {"int8": -128, "uint8": 0}
# Any scale holds a zero, and the runtime derives nonsense from a scale of next to nothing.
_LEAST_RANGE = 1e-6


def store_borders(model: Any, stored: Stored, ranges: Mapping[str, Range]) -> None:
    """Rewrite a quantised ModelT in place; `ranges` (tensor name → smallest, largest) are for what is float inside."""
    wiring = next(wirings(model))
    border = _Border(wiring, stored, ranges)
    for tensor in dict.fromkeys(map(int, wiring.table.inputs)):
        if wiring.table.tensors[tensor].type == schema.TensorType.FLOAT32:
            border.take_in(tensor)
    floats = [at for at in map(int, wiring.table.outputs) if _is_float(wiring, at)]
    returned = {tensor: border.give_out(tensor) for tensor in dict.fromkeys(floats)}
    wiring.table.outputs = [returned.get(int(at), int(at)) for at in wiring.table.outputs]
    for signature in model.signatureDefs or ():
        for entry in signature.outputs:
            entry.tensorIndex = returned.get(entry.tensorIndex, entry.tensorIndex)


def _is_float(wiring: Wiring, tensor: int) -> bool:
    return bool(wiring.table.tensors[tensor].type == schema.TensorType.FLOAT32)


@dataclass(frozen=True, slots=True)
class _Border:
    """The main graph and what its borders are to become."""

    wiring: Wiring
    stored: Stored
    ranges: Mapping[str, Range]

    def take_in(self, tensor: int) -> None:
        """Let an input be stored; QUANTIZE operators to its own scale go, and those that want floats get them."""
        wiring = self.wiring
        readers = list({id(reader): reader for reader in wiring.readers.get(tensor, ())}.values())
        conversions = [reader for reader in readers if wiring.name(reader) == "QUANTIZE"]
        floats = [reader for reader in readers if wiring.name(reader) != "QUANTIZE"]
        if floats:
            self._put_floats(tensor, floats)
        own = wiring.table.tensors[int(conversions[0].outputs[0])].quantization if conversions else None
        self._store(tensor, own if own is not None else self._of_range(tensor))
        wiring.readers[tensor] = [reader for reader in wiring.readers.get(tensor, ()) if reader in conversions]
        for conversion in conversions if self.stored == "int8" else ():
            self._drop_if_alike(tensor, conversion)

    def give_out(self, tensor: int) -> int:
        """The stored form of a float result: what it is made from, or a new tensor."""
        wiring = self.wiring
        writer = wiring.writer.get(tensor)
        if writer is None or wiring.name(writer) != "DEQUANTIZE":
            return self._converted(tensor, self._of_range(tensor))
        source = int(writer.inputs[0])
        if not wiring.readers.get(tensor):
            wiring.remove([writer])
        kept = wiring.table.tensors[source]
        if kept.type == _TYPES[self.stored]:
            return source
        return self._converted(source, kept.quantization)

    def _put_floats(self, tensor: int, readers: list[Any]) -> None:
        made = self._another(tensor, b"_float", schema.TensorType.FLOAT32)
        for reader in readers:
            reader.inputs = [made if int(at) == tensor else int(at) for at in reader.inputs]
        self.wiring.readers[made] = list(readers)
        self.wiring.table.operators.insert(0, self._conversion("DEQUANTIZE", tensor, made))

    def _drop_if_alike(self, tensor: int, conversion: Any) -> None:
        wiring, result = self.wiring, int(conversion.outputs[0])
        mine, other = (wiring.table.tensors[at].quantization for at in (tensor, result))
        alike = np.array_equal(mine.scale, other.scale) and np.array_equal(mine.zeroPoint, other.zeroPoint)
        if not alike or wiring.is_result(result):
            return
        for reader in wiring.readers.get(result, ()):
            reader.inputs = [tensor if int(at) == result else int(at) for at in reader.inputs]
        wiring.readers[tensor] = [*wiring.readers[tensor], *wiring.readers.pop(result, [])]
        wiring.remove([conversion])

    def _converted(self, tensor: int, quantization: Any) -> int:
        made = self._another(tensor, b"_stored", _TYPES[self.stored])
        self._store(made, quantization)
        self.wiring.table.operators.append(self._conversion("QUANTIZE", tensor, made))
        return made

    def _store(self, tensor: int, quantization: Any) -> None:
        """Give a tensor the stored type, with int8 parameters moved to where that type begins."""
        found = schema.QuantizationParametersT()
        found.scale = np.asarray(quantization.scale, np.float32)
        found.zeroPoint = np.asarray(quantization.zeroPoint, np.int64) + (_LOWEST[self.stored] + 128)
        stored = self.wiring.table.tensors[tensor]
        stored.type, stored.quantization = _TYPES[self.stored], found

    def _of_range(self, tensor: int) -> Any:
        low, high = self.ranges[self.wiring.table.tensors[tensor].name.decode()]
        low, high = min(low, 0.0), max(high, 0.0)
        found = schema.QuantizationParametersT()
        scale = max(high - low, _LEAST_RANGE) / 255
        found.scale = np.array([scale], np.float32)
        found.zeroPoint = np.array([round(-128 - low / scale)], np.int64)
        return found

    def _another(self, tensor: int, suffix: bytes, kind: int) -> int:
        """A new tensor of the same shape; its index."""
        tensors = self.wiring.table.tensors
        found, like = schema.TensorT(), tensors[tensor]
        found.name, found.type, found.shape = like.name + suffix, kind, like.shape
        found.shapeSignature, found.hasRank = like.shapeSignature, like.hasRank
        tensors.append(found)
        return len(tensors) - 1

    def _conversion(self, name: str, source: int, result: int) -> Any:
        operator = schema.OperatorT()
        operator.opcodeIndex = self.wiring.code(name)
        operator.inputs, operator.outputs = [source], [result]
        return operator
