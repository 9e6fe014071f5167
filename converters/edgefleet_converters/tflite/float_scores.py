"""Scores and masks of a float file, from where they are float anyway to a SOFTMAX or a comparison: better float.

Decides by the operators alone and changes nothing. The sum of scores and a mask has the mask's range in int8, 1e4 or
3e38 wide, in which all scores are one number: 7 to 14 dB where attention without a mask keeps 35.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from edgefleet_converters.tflite.delegation import is_quantised
from edgefleet_converters.tflite.float_graph import FloatGraph, FloatOperator, float_graphs
from edgefleet_converters.tflite.islands import LEFT_FLOAT

_CHOOSING = ("SELECT", "SELECT_V2")
# A mask that is told by a threshold is wrong wherever int8 rounds a number across it.
_ENDS = ("LOG_SOFTMAX", "SOFTMAX", "EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL")
# What scores and masks go through on their way.
_COMPUTING = ("ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "NEG", "SUB", "TANH", *_CHOOSING)
_MOVING = (
    *("BROADCAST_TO", "CONCATENATION", "EXPAND_DIMS", "RESHAPE", "SLICE", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE"),
)


def float_scores(content: bytes) -> list[str]:
    """Names of what the operators between float values and such an end return, the end too, and tests for NaN.

    An operator none of whose inputs is float stays int8. So the scores of a BATCH_MATMUL need two conversions fewer,
    and those of an int8 operator as many as before. Int8 has no NaN, so rows hidden whole are replaced in float too.
    """
    found: dict[str, None] = {}
    for graph in float_graphs(content):
        results = (*_scores(graph), *_tests(graph))
        found.update((graph.tensor_name(result), None) for result in results)
    return list(found)


def _scores(graph: FloatGraph) -> list[int]:
    """What has a float input of all that only ends make use of, in the order of the operators."""
    carried: set[int] = set()
    for operator in reversed(graph.operators):
        readers = graph.readers.get(operator.result, [])
        serves = bool(readers) and all(reader.result in carried for reader in readers)
        if operator.name in _ENDS or (operator.name in (*_COMPUTING, *_MOVING) and serves):
            carried.add(operator.result)
    # Result → whether anything was computed on the way to it.
    kept: dict[int, bool] = {}
    for operator in graph.operators:
        computed = operator.name in _COMPUTING or any(kept.get(tensor, False) for tensor in operator.inputs)
        # A SOFTMAX of plain scores may be quicker in int8, and as exact.
        wanted = operator.result in carried and (computed or operator.name != "SOFTMAX")
        if wanted and any(_is_kept(graph, tensor, kept) for tensor in operator.inputs):
            kept[operator.result] = computed
    return list(kept)


def _is_kept(graph: FloatGraph, tensor: int, kept: Collection[int]) -> bool:
    """Whether a tensor that is computed is not int8 in the quantised file."""
    if tensor not in graph.variable:
        return False
    writer = graph.writer.get(tensor)
    if writer is None or not graph.is_float(tensor) or tensor in kept:
        return True
    return writer.name in LEFT_FLOAT or not (is_quantised(writer.name) or writer.name in _CHOOSING)


def _tests(graph: FloatGraph) -> Iterator[int]:
    """What tests for NaN return, and what is chosen by them."""
    for operator in graph.operators:
        if _is_test(operator):
            yield operator.result
            yield from (at.result for at in graph.readers.get(operator.result, []) if at.name in _CHOOSING)


def _is_test(operator: FloatOperator) -> bool:
    return operator.name == "NOT_EQUAL" and operator.inputs[0] == operator.inputs[1]
