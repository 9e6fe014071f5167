"""How large a tensor arena LiteRT for Microcontrollers needs for a .tflite file: a plan of its tensors' lifetimes.

Reads one graph without control flow and runs nothing. The tensors are placed as that runtime's GreedyMemoryPlanner does
(largest first, each in the first gap among those that live at the same time), so that part is the runtime's own number.
What kernels take as scratch, and what the runtime keeps beside the tensors, are estimates from above: they are counted
for 64-bit pointers, which a microcontroller does not have, and with the widest form of each kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.wiring import Wiring, wirings

ALIGNMENT = 16
"""Bytes; every tensor and every scratch buffer starts on such a boundary."""

_WEIGHTED = {"CONV_2D": (1, 0), "DEPTHWISE_CONV_2D": (1, 3), "FULLY_CONNECTED": (1, 0), "TRANSPOSE_CONV": (1, 0)}
"""Operators with a multiplier and a shift for each channel → position of their weights, axis of the channels."""

# sizeof on a 64-bit host: TfLiteEvalTensor 24, NodeAndRegistration 64, TfLiteTensor with its quantisation 96. Measured
# with tflite-micro's RecordingMicroAllocator: 80 bytes of kernel data for each operator, 920 for allocator and graph.
_TENSOR_BYTES, _OPERATOR_BYTES, _BORDER_BYTES, _RUNTIME_BYTES = 24, 64 + 192, 112, 2048
_CHANNEL_BYTES = 8
_ESP_PANEL_BYTES, _ESP_CACHED_BYTES = 16 * 1024, 24 * 1024
# While it plans, the runtime holds one record for each tensor and one for each that needs a place.
_PLANNING_BYTES = 96
_SIZES = {
    "INT8": 1,
    "UINT8": 1,
    "BOOL": 1,
    "INT16": 2,
    "UINT16": 2,
    "FLOAT16": 2,
    "INT32": 4,
    "UINT32": 4,
    "FLOAT32": 4,
}
_WIDEST_BYTES = 8
_TYPE_NAMES = {code: name for name, code in vars(schema.TensorType).items() if name.isupper()}


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that are needed from one step to another, both included."""

    size_bytes: int
    first: int
    last: int

    def meets(self, other: Need) -> bool:
        """Whether both are needed at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class Arena:
    """What one file needs, in bytes: tensors and scratch by the plan, and the runtime's own data, estimated."""

    planned_bytes: int
    persistent_bytes: int

    @property
    def size_bytes(self) -> int:
        """The arena to reserve."""
        return _aligned(self.planned_bytes) + _aligned(self.persistent_bytes)


@dataclass(frozen=True, slots=True)
class _Site:
    """One operator with the shapes of its tensors."""

    name: str
    inputs: Sequence[tuple[int, ...]]
    output: tuple[int, ...]


def place(needs: Sequence[Need]) -> tuple[int, ...]:
    """Offset of each need: largest first, each in the lowest gap that is free for as long as it is needed.

    Equal sizes go in reverse order: the planner fills its list from the end (greedy_memory_planner.cc).
    """
    order = sorted(range(len(needs)), key=lambda at: (needs[at].size_bytes, at), reverse=True)
    placed: dict[int, int] = {}
    for at in order:
        beside = sorted((placed[other], needs[other].size_bytes) for other in placed if needs[at].meets(needs[other]))
        offset = 0
        for start, size in beside:
            if start - offset >= needs[at].size_bytes:
                break
            offset = max(offset, start + size)
        placed[at] = offset
    return tuple(placed[at] for at in range(len(needs)))


def planned_size(needs: Sequence[Need]) -> int:
    """Bytes from the first to the last that the plan of these needs touches."""
    ends = (offset + need.size_bytes for offset, need in zip(place(needs), needs, strict=True))
    return max(ends, default=0)


def plan_arena(model: Any, kernels: str) -> Arena:
    """The arena for a ModelT with these kernels, a key of SCRATCH."""
    (wiring,) = wirings(model)
    needs = [*_tensor_needs(wiring), *_scratch_needs(wiring, SCRATCH[kernels])]
    tensors, operators = wiring.table.tensors, wiring.table.operators
    planning = _PLANNING_BYTES * (len(tensors) + len(needs))
    borders = len(wiring.table.inputs) + len(wiring.table.outputs)
    persistent = (
        _RUNTIME_BYTES
        + _TENSOR_BYTES * len(tensors)
        + _OPERATOR_BYTES * len(operators)
        + _BORDER_BYTES * borders
        + sum(_aligned(_tensor_bytes(tensor)) for tensor in tensors if tensor.isVariable)
        + sum(_kept_bytes(wiring.name(operator), _site(wiring, operator)) for operator in operators)
    )
    return Arena(max(planned_size(needs), planning), persistent)


def _tensor_needs(wiring: Wiring) -> list[Need]:
    """Computed tensors in the order of the file; an input from step 0, an output until the last."""
    operators = list(wiring.table.operators)
    first = {int(at): 0 for at in wiring.table.inputs}
    last = dict(first)
    for step, operator in enumerate(operators, start=1):
        first.update((int(at), step) for at in operator.outputs)
        last.update((int(at), step) for at in (*operator.inputs, *operator.outputs) if at >= 0)
    last.update((int(at), len(operators)) for at in wiring.table.outputs)
    return [
        Need(_aligned(_tensor_bytes(wiring.table.tensors[at])), first[at], last[at])
        for at in sorted(first)
        if not _is_constant(wiring, at)
    ]


def _scratch_needs(wiring: Wiring, sizes: Mapping[str, Callable[[_Site], int]]) -> list[Need]:
    found = []
    for step, operator in enumerate(wiring.table.operators, start=1):
        size = sizes.get(wiring.name(operator))
        if size is not None:
            found.append(Need(_aligned(size(_site(wiring, operator))), step, step))
    return found


def _site(wiring: Wiring, operator: Any) -> _Site:
    inputs = [_shape(wiring.table.tensors[at]) if at >= 0 else () for at in map(int, operator.inputs)]
    output = _shape(wiring.table.tensors[int(operator.outputs[0])]) if len(operator.outputs) else ()
    return _Site(wiring.name(operator), inputs, output)


def _kept_bytes(name: str, site: _Site) -> int:
    """What a kernel keeps for each channel, or as a table."""
    if name in _WEIGHTED:
        position, axis = _WEIGHTED[name]
        return _CHANNEL_BYTES * site.inputs[position][axis]
    return _TABLE_BYTES.get(name, 0)


_TABLE_BYTES = {"ELU": 256, "LOG_SOFTMAX": 512, "SOFTMAX": 2048, "TANH": 256, "LOGISTIC": 256, "EXP": 256}
"""Operators whose kernels keep a table of results → its size in bytes."""


def _cmsis_convolution(site: _Site) -> int:
    """Two columns of the image in int16, their length rounded up to 4 (arm_convolve_s8_get_buffer_size_dsp)."""
    return 2 * 2 * (-(-math.prod(site.inputs[1][1:]) // 4) * 4)


def _cmsis_depthwise(site: _Site) -> int:
    """One column of the image in int16 (arm_depthwise_conv_s8_opt_get_buffer_size_dsp)."""
    return 2 * math.prod(site.inputs[1])


def _esp_convolution(site: _Site) -> int:
    """A copy of the filter with rows of 16, the padded input, and a sum a channel (esp_nn_get_conv_scratch_size).

    A filter of one point is not copied at stride 1, but a large one goes through panels of 16 KiB.
    """
    _, height, width, channels = site.inputs[0]
    count, rows, columns, _ = site.inputs[1]
    if (rows, columns) == (1, 1) and site.output[1:3] == (height, width):
        return 24 * channels + 8 * count + 64 + (_ESP_PANEL_BYTES if channels * count > _ESP_CACHED_BYTES else 0)
    copied = -(-columns * channels // 16) * 16 * rows * count
    return copied + _esp_padded(site) + 5 * count + 128


def _esp_depthwise(site: _Site) -> int:
    """Filter and padded input in int16 (esp_nn_get_depthwise_conv_scratch_size)."""
    return 2 * (math.prod(site.inputs[1]) + _esp_padded(site)) + 4 * site.output[-1] + 128


def _esp_padded(site: _Site) -> int:
    """Elements of the input with as much around it as the filter can reach."""
    _, height, width, channels = site.inputs[0]
    _, rows, columns, _ = site.inputs[1]
    return (height + rows - 1) * (width + columns - 1) * channels


def _transposed(site: _Site) -> int:
    """Sums of the whole output in int32, and the columns of a convolution."""
    return 4 * math.prod(site.output) + _cmsis_convolution(site)


_ANYWHERE: Mapping[str, Callable[[_Site], int]] = MappingProxyType(
    {
        "BATCH_MATMUL": lambda site: math.prod(site.inputs[0]) + math.prod(site.inputs[1]),
        "MEAN": lambda site: 4 * math.prod(site.output) + 64,
        "REDUCE_MAX": lambda site: 4 * math.prod(site.output) + 64,
        "REDUCE_MIN": lambda site: 4 * math.prod(site.output) + 64,
        "SUM": lambda site: 4 * math.prod(site.output) + 64,
        "TRANSPOSE_CONV": _transposed,
        "UNIDIRECTIONAL_SEQUENCE_LSTM": lambda site: 4 * 4 * math.prod(site.output),
    }
)
SCRATCH: Mapping[str, Mapping[str, Callable[[_Site], int]]] = MappingProxyType(
    {
        "reference": _ANYWHERE,
        "cmsis-nn": MappingProxyType(
            {
                **_ANYWHERE,
                "AVERAGE_POOL_2D": lambda site: 4 * site.output[-1],
                "CONV_2D": _cmsis_convolution,
                "DEPTHWISE_CONV_2D": _cmsis_depthwise,
                "FULLY_CONNECTED": lambda site: 4 * site.output[-1],
            }
        ),
        "esp-nn": MappingProxyType({**_ANYWHERE, "CONV_2D": _esp_convolution, "DEPTHWISE_CONV_2D": _esp_depthwise}),
    }
)
"""Kernel library → operator → bytes that its int8 kernel takes while it runs; what is not named takes none."""


def _is_constant(wiring: Wiring, at: int) -> bool:
    data = wiring.model.buffers[wiring.table.tensors[at].buffer].data
    return data is not None and len(data) > 0


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in (tensor.shape if tensor.shape is not None else ()))


def _tensor_bytes(tensor: Any) -> int:
    return math.prod(_shape(tensor)) * _SIZES.get(_TYPE_NAMES[tensor.type], _WIDEST_BYTES)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT
