"""After the quantiser: operators that it left float between int8 ones become int8 where XNNPACK takes them so.

Looks only for DEQUANTIZE, one operator, QUANTIZE; everything else stays as the quantiser made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.delegation import ROWS, is_delegated, is_quantised

LEFT_FLOAT: tuple[str, ...] = tuple(
    name for name in ROWS if is_quantised(name) and is_delegated(name, "float32") and not is_delegated(name, "int8")
)
"""Operators that are better not quantised: XNNPACK takes them in float32 only."""

# Their kernels compute in int8 with any two scales; the others' need one scale on both sides.
_RESCALING = ("ELU", "LEAKY_RELU")
_KEEPING = ("DEPTH_TO_SPACE", "REDUCE_MAX")
# What XNNPACK's fixed-point slopes can hold.
_SLOPES = (2.0**-8, 2.0**7)
_BUILTIN_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}


@dataclass(slots=True, eq=False)
class _Graph:
    """A SubGraphT with who writes and who reads each tensor."""

    table: Any
    names: Sequence[str]
    writer: dict[int, Any]
    readers: dict[int, list[Any]]

    def name(self, operator: Any) -> str:
        """BuiltinOperator name."""
        return str(self.names[operator.opcodeIndex])

    def is_int8(self, tensor: int) -> bool:
        """Whether a tensor is stored as int8."""
        return bool(self.table.tensors[tensor].type == schema.TensorType.INT8)


def close_islands(model: Any) -> None:
    """Rewrite a quantised ModelT in place; what it computes stays the same but for one rounding less or more."""
    names = [_BUILTIN_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    for table in model.subgraphs:
        graph = _Graph(table, names, {}, {})
        for operator in table.operators:
            graph.writer.update((int(index), operator) for index in operator.outputs)
            for index in operator.inputs:
                graph.readers.setdefault(int(index), []).append(operator)
        gone = [dropped for operator in table.operators for dropped in _close(graph, operator)]
        table.operators = [operator for operator in table.operators if operator not in gone]


def _close(graph: _Graph, operator: Any) -> list[Any]:
    """Make one operator int8 if it is such an island; returns the conversions that nobody needs any more."""
    if graph.name(operator) not in (*_RESCALING, *_KEEPING):
        return []
    source, result = int(operator.inputs[0]), int(operator.outputs[0])
    before, after = graph.writer.get(source), graph.readers.get(result, [])
    if before is None or graph.name(before) != "DEQUANTIZE" or not graph.is_int8(int(before.inputs[0])):
        return []
    if len(after) != 1 or graph.name(after[0]) != "QUANTIZE" or result in list(graph.table.outputs):
        return []
    if graph.name(operator) == "LEAKY_RELU" and not _within(graph, operator, int(before.inputs[0]), after[0]):
        return []
    operator.inputs = [int(before.inputs[0]), *operator.inputs[1:]]
    graph.readers[source].remove(operator)
    unread = not graph.readers[source] and source not in list(graph.table.outputs)
    gone = [before] if unread else []
    if graph.name(operator) in _RESCALING:
        operator.outputs = after[0].outputs
        return [*gone, after[0]]
    # The QUANTIZE stays, from the operator's own scale to the wanted one.
    tensors = graph.table.tensors
    tensors[result].type = schema.TensorType.INT8
    tensors[result].quantization = tensors[int(before.inputs[0])].quantization
    return gone


def _within(graph: _Graph, operator: Any, source: int, conversion: Any) -> bool:
    """Whether XNNPACK can express a LEAKY_RELU's two slopes between these scales; it refuses others."""
    tensors = graph.table.tensors
    slope = float(tensors[source].quantization.scale[0] / tensors[int(conversion.outputs[0])].quantization.scale[0])
    low, high = _SLOPES
    return low <= slope <= high and low <= abs(slope * operator.builtinOptions.alpha) < high
