"""Float operators in int8 files: which stay float before the quantiser, and which become int8 after it after all.

Before, by what XNNPACK takes and by measured costs; after, only DEQUANTIZE, one operator, QUANTIZE. Everything else
stays as the quantiser made it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.delegation import ROWS, is_delegated, is_quantised, operator_name
from edgefleet_converters.tflite.wiring import Wiring, wirings

LEFT_FLOAT: tuple[str, ...] = tuple(
    name for name in ROWS if is_quantised(name) and is_delegated(name, "float32") and not is_delegated(name, "int8")
)
"""Operators that are better not quantised: XNNPACK takes them in float32 only."""

# Their kernels compute in int8 with any two scales; the others' need one scale on both sides.
_RESCALING = ("ELU", "LEAKY_RELU")
_KEEPING = ("DEPTH_TO_SPACE", "REDUCE_MAX")
# What XNNPACK's fixed-point slopes can hold.
_SLOPES = (2.0**-8, 2.0**7)

# Nanoseconds: of a row and of an element of a float SOFTMAX with its two conversions (rows below 16; longer ones are
# quicker in float), and of an element of the int8 kernel.
_SHORT_ROW, _FLOAT_ROW_NS, _FLOAT_NS, _INT8_NS = 16, 32.0, 0.4, 2.3
# An int8 multiply-add in networks of 2 to 10 million of them.
_MAC_NS = 0.01
# Leaving XNNPACK must save a twentieth of the model, and 1 us: what a few rows at the end of a classifier never save.
_SHARE, _LEAST_NS = 0.05, 1000.0

_Shape = Sequence[int]
# Multiply-adds by the shapes of the inputs and of the output; weights begin with their output channels.
_MACS: Mapping[str, Callable[[Sequence[_Shape], _Shape], int]] = MappingProxyType(
    {
        "BATCH_MATMUL": lambda inputs, output: math.prod(output) * math.prod(inputs[0]) // math.prod(output[:-1]),
        "CONV_2D": lambda inputs, output: math.prod(output) * math.prod(inputs[1][1:]),
        "DEPTHWISE_CONV_2D": lambda inputs, output: math.prod(output) * math.prod(inputs[1][1:3]),
        "FULLY_CONNECTED": lambda inputs, output: math.prod(output) * math.prod(inputs[1][1:]),
        "TRANSPOSE_CONV": lambda inputs, _output: math.prod(inputs[2]) * math.prod(inputs[1][:3]),
    }
)


def softmax_pays_in_int8(rows: int, depth: int, macs: int) -> bool:
    """Whether a SOFTMAX over `rows` of `depth` elements, in a model of `macs` multiply-adds, is quicker in int8.

    XNNPACK has no int8 SOFTMAX, and its float one takes 32 ns for a row of fewer than 16 elements, whatever they are,
    where the runtime's own int8 kernel takes 2.3 ns an element: 34 and 9 ns for rows of 4, 36 and 17 for 8, 39 and 33
    for 14, but 14 and 31 for 16. So dense heads with few classes or bins gain, and classifiers and attention do not.
    Medians of one thread of an x86-64 server with AVX-512, LiteRT 2.3.
    """
    if depth >= _SHORT_ROW:
        return False
    saved_ns = rows * (_FLOAT_ROW_NS + depth * (_FLOAT_NS - _INT8_NS))
    return saved_ns >= max(_LEAST_NS, _SHARE * _MAC_NS * macs)


def softmaxes_for_int8(content: bytes) -> list[str]:
    """Names of what those SOFTMAX operators of a float file return that are quicker in int8."""
    model = schema.Model.GetRootAs(content)
    operators = [item for at in range(model.SubgraphsLength()) for item in _shaped(model, model.Subgraphs(at))]
    macs = sum(_MACS[name](inputs, output) for name, inputs, output, _ in operators if name in _MACS)
    return [
        result
        for name, _, output, result in operators
        if name == "SOFTMAX" and softmax_pays_in_int8(math.prod(output[:-1]), output[-1], macs)
    ]


def _shaped(model: Any, graph: Any) -> Iterator[tuple[str, list[_Shape], _Shape, str]]:
    """Name, shapes of the inputs, shape and name of the first output of each operator."""

    def shape(tensor: int) -> _Shape:
        return (
            [] if tensor < 0 else [graph.Tensors(tensor).Shape(at) for at in range(graph.Tensors(tensor).ShapeLength())]
        )

    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        inputs = [shape(operator.Inputs(at)) for at in range(operator.InputsLength())]
        result = operator.Outputs(0)
        name = operator_name(model.OperatorCodes(operator.OpcodeIndex()))
        yield name, inputs, shape(result), graph.Tensors(result).Name().decode()


def close_islands(model: Any) -> None:
    """Rewrite a quantised ModelT in place; what it computes stays the same but for one rounding less or more."""
    for graph in wirings(model):
        graph.remove([dropped for operator in graph.table.operators for dropped in _close(graph, operator)])


def _close(graph: Wiring, operator: Any) -> list[Any]:
    """Make one operator int8 if it is such an island; returns the conversions that nobody needs any more."""
    if graph.name(operator) not in (*_RESCALING, *_KEEPING):
        return []
    source, result = int(operator.inputs[0]), int(operator.outputs[0])
    before, after = graph.writer.get(source), graph.readers.get(result, [])
    if before is None or graph.name(before) != "DEQUANTIZE" or not graph.is_int8(int(before.inputs[0])):
        return []
    if len(after) != 1 or not _makes_int8(graph, after[0]) or graph.is_result(result):
        return []
    if graph.name(operator) == "LEAKY_RELU" and not _within(graph, operator, int(before.inputs[0]), after[0]):
        return []
    operator.inputs = [int(before.inputs[0]), *operator.inputs[1:]]
    graph.readers[source].remove(operator)
    unread = not graph.readers[source] and not graph.is_result(source)
    gone = [before] if unread else []
    if graph.name(operator) in _RESCALING:
        operator.outputs = after[0].outputs
        return [*gone, after[0]]
    # The QUANTIZE stays, from the operator's own scale to the wanted one.
    tensors = graph.table.tensors
    tensors[result].type = schema.TensorType.INT8
    tensors[result].quantization = tensors[int(before.inputs[0])].quantization
    return gone


def _makes_int8(graph: Wiring, conversion: Any) -> bool:
    """Whether an operator is a QUANTIZE to int8; that of a result may be to uint8."""
    return graph.name(conversion) == "QUANTIZE" and graph.is_int8(int(conversion.outputs[0]))


def _within(graph: Wiring, operator: Any, source: int, conversion: Any) -> bool:
    """Whether XNNPACK can express a LEAKY_RELU's two slopes between these scales; it refuses others."""
    tensors = graph.table.tensors
    slope = float(tensors[source].quantization.scale[0] / tensors[int(conversion.outputs[0])].quantization.scale[0])
    low, high = _SLOPES
    return low <= slope <= high and low <= abs(slope * operator.builtinOptions.alpha) < high
