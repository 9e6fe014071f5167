"""Operators that exporters write out in parts become one node again: LayerNormalization, RMSNormalization, Gelu.

Does not look for anything whose parts are as good as the whole in TFLite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgefleet_converters.tflite.graph import Activation, Array, Graph, Node, NotLowerableError
from edgefleet_converters.tflite.passes.liveness import needed

# Exporters round the constants of a formula; no two formulas of this file are as close.
_TOLERANCE = 1e-4


def recognise(graph: Graph) -> Graph:
    """The same graph with every known formula in one node; parts that others read stay for them.

    Comes after duplicates are dropped (a difference may be written twice), and before activations are fused and
    layouts assigned, both of which change the parts.
    """
    view = _View(graph, {name: node for node in graph.nodes for name in node.outputs if name}, graph.consumers())
    nodes, constants = [], dict(graph.constants)
    for node in graph.nodes:
        found = next((made for match in _FORMULAS if (made := match(view, node)) is not None), None)
        if found is None:
            nodes.append(node)
        else:
            constants.update(found.constants)
            nodes.append(replace(found.node, name=node.name, outputs=node.outputs))
    return graph.with_nodes(needed(nodes, graph.outputs), constants)


@dataclass(frozen=True, slots=True)
class _Found:
    """The node that stands for a formula, and the constants that it brings."""

    node: Node
    constants: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _View:
    """A graph, read from results to operands."""

    graph: Graph
    producers: Mapping[str, Node]
    readers: Mapping[str, list[Node]]

    def made_by(self, name: str, *operators: str) -> Node | None:
        """The node that makes a value, if it is one of these and does nothing to its result."""
        node = self.producers.get(name)
        return node if node is not None and node.operator in operators and node.activation is Activation.NONE else None

    def number(self, name: str) -> float | None:
        """A constant that is one number."""
        array = self.graph.constants.get(name)
        return float(array.item()) if array is not None and array.size == 1 and array.dtype.kind in "fi" else None

    def plus(self, name: str) -> Iterator[tuple[str, float]]:
        """(value, number) for a sum of both."""
        node = self.made_by(name, "Add")
        for value, other in _either_way(node):
            number = self.number(other)
            if number is not None:
                yield value, number

    def factors(self, name: str) -> tuple[float, list[str]]:
        """A value as a number times other values, through products that nobody else reads."""
        node = self.made_by(name, "Mul", "Div")
        if node is None or (node.operator == "Div" and not self.number(node.inputs[1])):
            return 1.0, [name]
        if node.operator == "Div":
            factor, values = self._inner(node.inputs[0])
            return factor / (self.number(node.inputs[1]) or 1.0), values
        (first, left), (second, right) = (self._inner(item) for item in node.inputs)
        return first * second, [*left, *right]

    def _inner(self, name: str) -> tuple[float, list[str]]:
        number = self.number(name)
        if number is not None:
            return number, []
        alone = len(self.readers.get(name, ())) == 1 and name not in self.graph.outputs
        return self.factors(name) if alone else (1.0, [name])


def _either_way(node: Node | None) -> Iterator[tuple[str, str]]:
    if node is not None and len(node.inputs) == 2:
        yield node.inputs[0], node.inputs[1]
        yield node.inputs[1], node.inputs[0]


def _close(found: float, wanted: float) -> bool:
    return math.isclose(found, wanted, rel_tol=_TOLERANCE)


def _gelu(view: _View, node: Node) -> _Found | None:
    """x/2 (1 + erf(x / sqrt 2)), and its approximation by tanh."""
    for value, other in _gated(view, node, 0.5):
        for inner, one in view.plus(other):
            if not _close(one, 1.0):
                continue
            if (erf := view.made_by(inner, "Erf")) and _is_multiple(view, erf.inputs[0], math.sqrt(0.5), [value]):
                return _Found(Node("", "Gelu", (value,), (), {}, opset=20))
            tanh = view.made_by(inner, "Tanh")
            if tanh is not None and _is_cubic(view, tanh.inputs[0], value):
                return _Found(Node("", "Gelu", (value,), (), {"approximate": b"tanh"}, opset=20))
    return None


def _gated(view: _View, node: Node, factor: float) -> Iterator[tuple[str, str]]:
    """(value, gate), both ways, where the node makes factor x value x gate."""
    if node.operator not in ("Mul", "Div") or node.activation is not Activation.NONE:
        return
    found, values = view.factors(node.outputs[0])
    if len(values) == 2 and _close(found, factor):
        yield values[0], values[1]
        yield values[1], values[0]


def _is_multiple(view: _View, name: str, factor: float, wanted: Sequence[str]) -> bool:
    found, values = view.factors(name)
    return _close(found, factor) and values == list(wanted)


def _is_cubic(view: _View, name: str, value: str) -> bool:
    """sqrt(2 / pi) (x + 0.044715 x^3), or with x before the bracket."""
    factor, values = view.factors(name)
    if not _close(factor, math.sqrt(2 / math.pi)):
        return False
    if len(values) == 1:
        return any(
            left == value and _is_power(view, right, value, 3)
            for left, right in _either_way(view.made_by(values[0], "Add"))
        )
    bracket = [other for other in values if other != value]
    return len(values) == 2 and any(
        _close(one, 1.0) and _is_power(view, inner, value, 2) for inner, one in view.plus(bracket[0] if bracket else "")
    )


def _is_power(view: _View, name: str, value: str, exponent: int) -> bool:
    """0.044715 times a power of the value."""
    factor, values = view.factors(name)
    if not _close(factor, 0.044715):
        return False
    if values == [value] * exponent:
        return True
    power = view.made_by(values[0], "Pow") if len(values) == 1 else None
    return power is not None and power.inputs[0] == value and view.number(power.inputs[1]) == exponent


@dataclass(frozen=True, slots=True)
class _Unit:
    """A value divided by the root of its mean square over the axes from `axis` on, centred before or not."""

    value: str
    axis: int
    epsilon: float
    centred: bool


def _normalization(view: _View, node: Node) -> _Found | None:
    """A unit; the gain and offset after it stay outside, as weights may take them up."""
    if node.activation is not Activation.NONE:
        return None
    unit = _unit(view, node)
    if unit is None:
        return None
    scale = f"{node.outputs[0]}/scale"
    ones = np.ones(view.graph.shape(unit.value)[unit.axis :], view.graph.dtype(unit.value))
    operator, opset = ("LayerNormalization", 17) if unit.centred else ("RMSNormalization", 23)
    attributes = {"axis": unit.axis, "epsilon": unit.epsilon}
    return _Found(Node("", operator, (unit.value, scale), (), attributes, opset=opset), {scale: ones})


def _unit(view: _View, node: Node) -> _Unit | None:
    for value, inner in _over_root(view, node):
        for mean, epsilon in view.plus(inner):
            found = _mean_axis(view, mean)
            square = found and view.made_by(found[0], "Mul", "Pow")
            if not found or not square or not _is_square(view, square, value):
                continue
            source, axis = _centred_source(view, value), found[1]
            if source is not None and (source, axis) == _mean_axis(view, view.producers[value].inputs[1]):
                return _Unit(source, axis, epsilon, centred=True)
            return _Unit(value, axis, epsilon, centred=False)
    return None


def _over_root(view: _View, node: Node) -> Iterator[tuple[str, str]]:
    """(value, radicand) where the node divides the value by a root, in any of the ways to write that."""
    if node.operator == "Div" and (inner := _root(view, node.inputs[1])):
        yield node.inputs[0], inner
    for value, other in _either_way(node if node.operator == "Mul" else None):
        reciprocal = view.made_by(other, "Reciprocal", "Div")
        if reciprocal is not None and (reciprocal.operator == "Reciprocal" or view.number(reciprocal.inputs[0]) == 1):
            if inner := _root(view, reciprocal.inputs[-1]):
                yield value, inner
        elif (power := view.made_by(other, "Pow")) and view.number(power.inputs[1]) == -0.5:
            yield value, power.inputs[0]


def _root(view: _View, name: str) -> str:
    root = view.made_by(name, "Sqrt")
    if root is not None:
        return root.inputs[0]
    power = view.made_by(name, "Pow")
    return power.inputs[0] if power is not None and view.number(power.inputs[1]) == 0.5 else ""


def _is_square(view: _View, node: Node, value: str) -> bool:
    if node.operator == "Pow" and view.number(node.inputs[1]) != 2:
        return False
    operands = node.inputs[:1] if node.operator == "Pow" else node.inputs
    return all(operand == value for operand in operands)


def _centred_source(view: _View, name: str) -> str | None:
    difference = view.made_by(name, "Sub")
    return difference.inputs[0] if difference is not None else None


def _mean_axis(view: _View, name: str) -> tuple[str, int] | None:
    """(value, first axis) of a mean over all its last axes, which stay with length 1."""
    node = view.made_by(name, "ReduceMean")
    if node is None or not node.integer("keepdims", 1):
        return None
    try:
        rank = len(view.graph.shape(node.inputs[0]))
    except NotLowerableError:
        return None
    given = view.graph.constants.get(node.input(1))
    axes = given.ravel().tolist() if given is not None else node.integers("axes", ())
    reduced = sorted(int(axis) % max(rank, 1) for axis in axes)
    return (node.inputs[0], reduced[0]) if reduced and reduced == list(range(reduced[0], rank)) else None


_FORMULAS: tuple[Callable[[_View, Node], _Found | None], ...] = (_gelu, _normalization)
