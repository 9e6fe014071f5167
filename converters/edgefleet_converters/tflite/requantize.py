"""After the quantiser: QUANTIZE operators from int8 to int8 go where what is before them can write the wanted scale.

Changes scales and zero points only, never what an operator computes; a scale that the runtime's specification fixes
(LOGISTIC, TANH, SOFTMAX), or that the model takes in or returns, stays. Source: TFLite's 8-bit quantisation
specification, and the ratios of scales that the XNNPACK delegate takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgefleet_converters.tflite.wiring import Wiring, wirings

Scales = NDArray[np.float64]
"""One scale, or one for each channel."""

KEEPING = frozenset(
    (
        *("AVERAGE_POOL_2D", "BROADCAST_TO", "CONCATENATION", "DEPTH_TO_SPACE", "GATHER", "GATHER_ND", "MAX_POOL_2D"),
        *("MIRROR_PAD", "PACK", "PAD", "REDUCE_MAX", "REDUCE_MIN", "RESHAPE", "RESIZE_BILINEAR"),
        *("RESIZE_NEAREST_NEIGHBOR", "SLICE", "SPACE_TO_DEPTH", "SPLIT", "STRIDED_SLICE", "TRANSPOSE", "UNPACK"),
    )
)
"""Operators whose int8 inputs and outputs share one scale and zero point."""

_WEIGHTED = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}
"""Operators with a bias, in int32 at the product of the other inputs' scales → the bias's position."""

PRODUCT: Mapping[str, tuple[float, float]] = MappingProxyType(
    {**dict.fromkeys(_WEIGHTED, (2.0**-32, 2.0**8)), "MUL": (2.0**-16, 2.0**8)}
)
"""Operators that write any scale → least and largest product of the inputs' scales over it.

XNNPACK leaves a MUL beyond that outside, and refuses to load a file with one of the others.
"""

EACH: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "ADD": (2.0**-10, 2.0**8),
        "MEAN": (2.0**-8, 2.0**7),
        "QUANTIZE": (2.0**-8, 2.0**7),
        "SUB": (2.0**-10, 2.0**8),
        "SUM": (2.0**-8, 2.0**7),
    }
)
"""Operators that write any scale → least and largest ratio of each input's scale to it.

XNNPACK leaves those beyond it outside, but for MEAN and SUM, where it has no limit and this is one of ours.
"""

_READING = frozenset({"DEQUANTIZE", "LOGISTIC", "SOFTMAX", "TANH"})
"""Operators that read any scale and write a fixed one, or none."""

WIDEST = 1.25
"""How much coarser a tensor may become for readers that did not ask for it: its own noise grows by 1.9 dB at most, and
the readers behind the QUANTIZE are spared one of their two roundings. Over 188 random graphs that costs 0.5 dB at
worst; with 1.5 it cost 1.6, and saved no time that could be measured."""


@dataclass(slots=True)
class _Shared:
    """Tensors that have one scale because of the operators between them, those that write them, those that read them.

    Operators by identity: one may read several of the tensors.
    """

    tensors: set[int] = field(default_factory=set)
    writers: dict[int, Any] = field(default_factory=dict)
    readers: dict[int, Any] = field(default_factory=dict)


def fold_requantization(model: Any) -> None:
    """Rewrite a quantised ModelT in place, until no QUANTIZE can go any more."""
    for wiring in wirings(model):
        first = {at: _scale(wiring, at) for at in range(len(wiring.table.tensors)) if wiring.is_int8(at)}
        # What one allows, the next round may use.
        while sum([_fold(wiring, operator, first) for operator in _conversions(wiring)]):
            continue


def _conversions(wiring: Wiring) -> list[Any]:
    """The QUANTIZE operators from int8 to an int8 tensor that the model does not return."""
    return [operator for operator in wiring.table.operators if _converts(wiring, operator)]


def _converts(wiring: Wiring, operator: Any) -> bool:
    if wiring.name(operator) != "QUANTIZE":
        return False
    source, result = int(operator.inputs[0]), int(operator.outputs[0])
    return wiring.is_int8(source) and wiring.is_int8(result) and not wiring.is_result(result)


def _fold(wiring: Wiring, conversion: Any, first: Mapping[int, Scales]) -> bool:
    """Give what is before a QUANTIZE the scale behind it, if that can be; says whether the QUANTIZE has gone."""
    source, result = int(conversion.inputs[0]), int(conversion.outputs[0])
    if _between_reshapes(wiring, source, result):
        return False
    if not _alike(wiring, source, result):
        shared = _shared(wiring, source)
        if shared is None or not _may_move(wiring, shared, result, first):
            return False
        _move(wiring, shared, result)
    _drop(wiring, conversion)
    return True


def _between_reshapes(wiring: Wiring, source: int, result: int) -> bool:
    """Whether two RESHAPE would follow each other, whose memory LiteRT 2.3 gives away too early."""
    writer = wiring.writer.get(source)
    before = writer is not None and wiring.name(writer) == "RESHAPE"
    return before and any(wiring.name(reader) == "RESHAPE" for reader in wiring.readers.get(result, []))


def _drop(wiring: Wiring, conversion: Any) -> None:
    """Let the readers of a QUANTIZE read what it reads."""
    source, result = int(conversion.inputs[0]), int(conversion.outputs[0])
    wiring.readers[source] = [reader for reader in wiring.readers[source] if reader is not conversion]
    for reader in wiring.readers.pop(result, []):
        reader.inputs = [source if int(index) == result else int(index) for index in reader.inputs]
        wiring.readers[source].append(reader)
    wiring.remove([conversion])


def _shared(wiring: Wiring, start: int) -> _Shared | None:
    """All that has the scale of a tensor; None if something in it cannot change it."""
    found, waiting = _Shared(), [start]
    while waiting:
        tensor = waiting.pop()
        if tensor in found.tensors:
            continue
        found.tensors.add(tensor)
        writer = wiring.writer.get(tensor)
        # Without a writer it is a constant or comes in from outside; what the model returns has the scale it declares.
        if writer is None or wiring.is_result(tensor):
            return None
        for operator, side in (
            (writer, found.writers),
            *((one, found.readers) for one in wiring.readers.get(tensor, ())),
        ):
            name = wiring.name(operator)
            if name in KEEPING:
                waiting.extend(_int8_ends(wiring, operator))
            elif name in PRODUCT or name in EACH or (name in _READING and side is found.readers):
                side[id(operator)] = operator
            else:
                return None
    return found


def _int8_ends(wiring: Wiring, operator: Any) -> Iterator[int]:
    ends = (int(index) for index in (*operator.inputs, *operator.outputs) if index >= 0)
    return (index for index in ends if wiring.is_int8(index))


def _may_move(wiring: Wiring, shared: _Shared, wanted: int, first: Mapping[int, Scales]) -> bool:
    """Whether the tensors can have the scale of `wanted`: kernels take it, and no other reader loses much by it."""
    others = [
        reader
        for reader in shared.readers.values()
        if not (_converts(wiring, reader) and _alike(wiring, int(reader.outputs[0]), wanted))
    ]
    if others and not all(_holds(wiring, wanted, tensor, first[tensor]) for tensor in shared.tensors):
        return False
    scale = _scale(wiring, wanted)
    changed = dict.fromkeys(shared.tensors, scale)
    return all(_within(wiring, operator, changed) for operator in (*shared.writers.values(), *others)) and all(
        _bias_is_own(wiring, operator) for operator in others
    )


def _holds(wiring: Wiring, wanted: int, tensor: int, before: Scales) -> bool:
    """Whether the wanted scale spans all that the tensor's own did, to a step, and is not much coarser."""
    scale, zero = float(_scale(wiring, wanted)[0]), int(_parameters(wiring, wanted).zeroPoint[0])
    own, own_zero = float(_scale(wiring, tensor)[0]), int(_parameters(wiring, tensor).zeroPoint[0])
    lowest, highest = (-128 - own_zero) * own, (127 - own_zero) * own
    # Zero points are whole, so that the ends of a range that contains another may lie half a step of each inside it.
    spans = (-129 - zero) * scale <= lowest and highest <= (128 - zero) * scale
    return spans and scale <= WIDEST * float(before[0])


def _within(wiring: Wiring, operator: Any, changed: Mapping[int, Scales]) -> bool:
    """Whether XNNPACK takes an operator with these changed scales."""
    name = wiring.name(operator)
    low, high = EACH.get(name) or PRODUCT.get(name) or (0.0, np.inf)
    result = int(operator.outputs[0])
    if name in _READING or not wiring.is_int8(result):
        return True
    after = changed.get(result, _scale(wiring, result))
    inputs = [changed.get(at, _scale(wiring, at)) for at in map(int, operator.inputs) if at >= 0 and wiring.is_int8(at)]
    combined = [math.prod(inputs[1:], start=inputs[0])] if name in PRODUCT and inputs else inputs
    return all(bool(((low <= scale / after) & (scale / after < high)).all()) for scale in combined)


def _bias(wiring: Wiring, operator: Any) -> int | None:
    position = _WEIGHTED.get(wiring.name(operator), len(operator.inputs))
    found = int(operator.inputs[position]) if position < len(operator.inputs) else -1
    return found if found >= 0 else None


def _bias_is_own(wiring: Wiring, operator: Any) -> bool:
    """Whether nothing but this operator reads its bias, a constant, so that its scale can follow the input's."""
    bias = _bias(wiring, operator)
    if bias is None:
        return True
    held = wiring.model.buffers[wiring.table.tensors[bias].buffer].data is not None
    return held and len(wiring.readers[bias]) == 1 and wiring.table.tensors[bias].type == schema.TensorType.INT32


def _move(wiring: Wiring, shared: _Shared, wanted: int) -> None:
    """Give the tensors the scale of `wanted`, and the biases of their readers the scale that follows from it."""
    for reader in shared.readers.values():
        bias = _bias(wiring, reader)
        changed = [int(index) for index in reader.inputs if int(index) in shared.tensors]
        if bias is not None:
            _rescale(wiring, bias, math.prod(float((_scale(wiring, wanted) / _scale(wiring, at))[0]) for at in changed))
    for tensor in shared.tensors:
        wiring.table.tensors[tensor].quantization = _parameters(wiring, wanted)


def _rescale(wiring: Wiring, bias: int, ratio: float) -> None:
    """An int32 constant at a scale that is `ratio` times its own."""
    tensor = wiring.table.tensors[bias]
    before = np.asarray(wiring.model.buffers[tensor.buffer].data, np.uint8).view(np.int32)
    after = np.round(before / ratio).astype(np.int32)
    sharing = sum(other.buffer == tensor.buffer for table in wiring.model.subgraphs for other in table.tensors)
    if sharing > 1:
        # Equal constants are stored once: the others keep what they have.
        wiring.model.buffers.append(schema.BufferT())
        tensor.buffer = len(wiring.model.buffers) - 1
    wiring.model.buffers[tensor.buffer].data = after.view(np.uint8)
    parameters = schema.QuantizationParametersT()
    parameters.scale = np.asarray(tensor.quantization.scale, np.float32) * np.float32(ratio)
    parameters.zeroPoint = tensor.quantization.zeroPoint
    parameters.quantizedDimension = tensor.quantization.quantizedDimension
    tensor.quantization = parameters


def _parameters(wiring: Wiring, tensor: int) -> Any:
    return wiring.table.tensors[tensor].quantization


def _scale(wiring: Wiring, tensor: int) -> Scales:
    found: Scales = np.asarray(_parameters(wiring, tensor).scale, np.float64)
    return found


def _alike(wiring: Wiring, one: int, other: int) -> bool:
    """Whether two tensors have the same scale and zero point."""
    left, right = _parameters(wiring, one), _parameters(wiring, other)
    return bool(np.array_equal(left.scale, right.scale) and np.array_equal(left.zeroPoint, right.zeroPoint))
