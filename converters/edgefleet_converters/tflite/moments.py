"""Normalisations in a float file (x less its mean, over its standard deviation) whose parts are better not quantised.

Decides by the form that the lowering gives them and changes nothing. In int8 a variance has one scale for all
channels, and so has its inverse root: on layers with unlike channels that costs 5 to 19 dB, for more conversions.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgefleet_converters.tflite.float_graph import FloatGraph, FloatOperator, float_graphs

_SQUARES = ("MUL", "SQUARE", "SQUARED_DIFFERENCE")


def float_moments(content: bytes) -> list[str]:
    """Names of what the operators of all normalisations return: moments, what they make of x, gain and offset."""
    found: dict[str, None] = {}
    for graph in float_graphs(content):
        roots = [operator for operator in graph.operators if operator.name == "RSQRT"]
        found.update((graph.tensor_name(tensor), None) for root in roots for tensor in _parts(graph, root))
    return list(found)


def _term(graph: FloatGraph, operator: FloatOperator) -> int | None:
    """What an operator computes from when its other input is a constant."""
    found = [at for at in operator.inputs if at in graph.variable]
    return found[0] if len(found) == 1 and len(operator.inputs) == 2 else None


def _scaled(graph: FloatGraph, tensor: int) -> FloatOperator | None:
    """The one reader of a tensor, when it is a MUL or an ADD with a constant."""
    found = graph.readers.get(tensor, [])
    fits = len(found) == 1 and found[0].name in ("MUL", "ADD") and _term(graph, found[0]) == tensor
    return found[0] if fits else None


def _parts(graph: FloatGraph, root: FloatOperator) -> Iterator[int]:
    """What the operators around an inverse root return, from the square to the offset; nothing for another root."""
    shifted = graph.written(root.inputs[0], "ADD")
    spread = _term(graph, shifted) if shifted is not None else root.inputs[0]
    mean = graph.written(spread, "MEAN") if spread is not None else None
    square = graph.written(mean.inputs[0], *_SQUARES) if mean is not None else None
    if mean is None or square is None or (square.name == "MUL" and len(set(square.inputs)) > 1):
        return
    yield from (square.result, mean.result, root.inputs[0], root.result)
    for product in graph.readers.get(root.result, []):
        if product.name == "MUL" and len(product.inputs) == 2:
            yield from _applied(graph, root, product)


def _applied(graph: FloatGraph, root: FloatOperator, product: FloatOperator) -> Iterator[int]:
    """A product with the inverse root: the centred x before it, gain and offset after it."""
    yield product.result
    other = next((at for at in product.inputs if at != root.result), root.result)
    centred = graph.written(other, "SUB")
    if centred is not None and len(graph.readers[other]) == 1:
        yield other
        if graph.written(centred.inputs[1], "MEAN") is not None:
            yield centred.inputs[1]
    scaled = _scaled(graph, product.result)
    while scaled is not None:
        yield scaled.result
        scaled = _scaled(graph, scaled.result) if scaled.name == "MUL" else None
