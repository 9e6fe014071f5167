"""Normalisations in a float file (x less its mean, over its standard deviation) whose parts are better not quantised.

Decides by the form that the lowering gives them and changes nothing. In int8 a variance has one scale for all
channels, and so has its inverse root: on layers with unlike channels that costs 5 to 19 dB, for more conversions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.delegation import operator_name

_SQUARES = ("MUL", "SQUARE", "SQUARED_DIFFERENCE")


@dataclass(frozen=True, slots=True)
class _Operator:
    """Name, tensors that it reads and the first that it writes."""

    name: str
    inputs: tuple[int, ...]
    result: int


@dataclass(slots=True)
class _Wires:
    """The operators of a subgraph by what they write and by what they read."""

    writer: dict[int, _Operator] = field(default_factory=dict)
    readers: dict[int, list[_Operator]] = field(default_factory=dict)
    variable: set[int] = field(default_factory=set)

    def written(self, tensor: int, *names: str) -> _Operator | None:
        """The operator that writes a tensor, if it is one of these."""
        found = self.writer.get(tensor)
        return found if found is not None and found.name in names else None

    def term(self, operator: _Operator) -> int | None:
        """What an operator computes from when its other input is a constant."""
        found = [at for at in operator.inputs if at in self.variable]
        return found[0] if len(found) == 1 and len(operator.inputs) == 2 else None

    def scaled(self, tensor: int) -> _Operator | None:
        """The one reader of a tensor, when it is a MUL or an ADD with a constant."""
        found = self.readers.get(tensor, [])
        fits = len(found) == 1 and found[0].name in ("MUL", "ADD") and self.term(found[0]) == tensor
        return found[0] if fits else None


def float_moments(content: bytes) -> list[str]:
    """Names of what the operators of all normalisations return: moments, what they make of x, gain and offset."""
    model = schema.Model.GetRootAs(content)
    found: dict[str, None] = {}
    for at in range(model.SubgraphsLength()):
        graph = model.Subgraphs(at)
        wires = _wires(model, graph)
        roots = [operator for operator in wires.writer.values() if operator.name == "RSQRT"]
        tensors = [tensor for root in roots for tensor in _parts(wires, root)]
        found.update(dict.fromkeys(graph.Tensors(tensor).Name().decode() for tensor in tensors))
    return list(found)


def _wires(model: Any, graph: Any) -> _Wires:
    wires = _Wires(variable={graph.Inputs(at) for at in range(graph.InputsLength())})
    for index in range(graph.OperatorsLength()):
        stored = graph.Operators(index)
        inputs = tuple(stored.Inputs(at) for at in range(stored.InputsLength()))
        operator = _Operator(operator_name(model.OperatorCodes(stored.OpcodeIndex())), inputs, stored.Outputs(0))
        wires.variable.update(stored.Outputs(at) for at in range(stored.OutputsLength()))
        wires.writer[operator.result] = operator
        for tensor in dict.fromkeys(inputs):
            wires.readers.setdefault(tensor, []).append(operator)
    return wires


def _parts(wires: _Wires, root: _Operator) -> Iterator[int]:
    """What the operators around an inverse root return, from the square to the offset; nothing for another root."""
    shifted = wires.written(root.inputs[0], "ADD")
    spread = wires.term(shifted) if shifted is not None else root.inputs[0]
    mean = wires.written(spread, "MEAN") if spread is not None else None
    square = wires.written(mean.inputs[0], *_SQUARES) if mean is not None else None
    if mean is None or square is None or (square.name == "MUL" and len(set(square.inputs)) > 1):
        return
    yield from (square.result, mean.result, root.inputs[0], root.result)
    for product in wires.readers.get(root.result, []):
        if product.name == "MUL" and len(product.inputs) == 2:
            yield from _applied(wires, root, product)


def _applied(wires: _Wires, root: _Operator, product: _Operator) -> Iterator[int]:
    """A product with the inverse root: the centred x before it, gain and offset after it."""
    yield product.result
    other = next((at for at in product.inputs if at != root.result), root.result)
    centred = wires.written(other, "SUB")
    if centred is not None and len(wires.readers[other]) == 1:
        yield other
        if wires.written(centred.inputs[1], "MEAN") is not None:
            yield centred.inputs[1]
    scaled = wires.scaled(product.result)
    while scaled is not None:
        yield scaled.result
        scaled = wires.scaled(scaled.result) if scaled.name == "MUL" else None
