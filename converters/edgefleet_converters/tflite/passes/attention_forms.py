"""Attention written out in parts: its scalar goes into a projection's weights, its keys are split with rows last.

Mask and softmax stay as they are, and so does a softmax over anything but what was multiplied last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgefleet_converters.tflite.graph import (
    RIGHT_TRANSPOSED,
    Activation,
    Array,
    Graph,
    Node,
    NotLowerableError,
    Value,
    keeps_order,
)
from edgefleet_converters.tflite.passes.affine import affine_of
from edgefleet_converters.tflite.passes.attention_guards import guarded
from edgefleet_converters.tflite.passes.weights import RESULT_AXES, weights_of

_MOVING = ("Reshape", "Transpose")
# From here on Softmax works along one axis, before along all from its axis on.
_ONE_AXIS = 13
# Up to here BATCH_MATMUL takes all axes as they are.
_LARGEST_RANK = 4

_Scalar = tuple[Node, str, float]


def fold_attention_scale(graph: Graph) -> Graph:
    """Scalars on the operands and the scores of each attention become one factor of the weights before an operand.

    Where no weights can take it, one Mul on the smaller operand, if that is less work than before. Comes before
    scaling is folded, which brings the factor into the weights.
    """
    view = _View.of(graph)
    for node in graph.nodes:
        current = view.producers.get(node.outputs[0]) if node.operator == "MatMul" else None
        if current is not None and current.activation is Activation.NONE:
            changed = _scaled_before(view, current)
            view = view if changed is None else _View.of(changed)
    return view.graph


@dataclass(frozen=True, slots=True)
class _View:
    graph: Graph
    producers: Mapping[str, Node]
    readers: Mapping[str, list[Node]]

    @classmethod
    def of(cls, graph: Graph) -> _View:
        """The graph, to be read in both directions."""
        return cls(graph, {name: node for node in graph.nodes for name in node.outputs if name}, graph.consumers())

    def reader(self, name: str) -> Node | None:
        """The only node that reads a value."""
        return self.graph.sole_consumer(name, self.readers)

    def scalar(self, node: Node) -> tuple[str, float] | None:
        """(value, factor) of a node that multiplies a float32 value by one finite number and keeps its shape."""
        if node.operator not in ("Mul", "Div") or node.activation is not Activation.NONE:
            return None
        for value, other in (node.inputs, node.inputs[::-1]):
            number = self.graph.constants.get(other)
            if number is None or number.size != 1 or value in self.graph.constants:
                continue
            if node.operator == "Div" and (other != node.inputs[1] or not number.item()):
                continue
            factor = float(number.item()) if node.operator == "Mul" else 1 / float(number.item())
            same = self.graph.shape(value) == self.graph.shape(node.outputs[0])
            plain = same and self.graph.dtype(value) == "float32" and math.isfinite(factor)
            return (value, factor) if plain and factor else None
        return None


@dataclass(frozen=True, slots=True)
class _Operand:
    """One operand of the product: its scalar nodes, and the value whose maker can take a factor, if there is one."""

    name: str
    scalars: tuple[_Scalar, ...]
    projection: str


def _scaled_before(view: _View, product: Node) -> Graph | None:
    """The graph with the scalars of one attention in one place; None where that is no attention, or no gain."""
    try:
        after = _after(view, product)
        if after is None:
            return None
        operands = [_operand(view, name) for name in product.inputs]
        scalars = [*after, *(found for operand in operands for found in operand.scalars)]
        place = _place(view, operands, scalars) if scalars else ""
    except NotLowerableError:
        return None
    total = math.prod(factor for _, _, factor in scalars)
    usable = np.finfo(np.float32).tiny <= abs(total) <= np.finfo(np.float32).max
    return _moved(view, scalars, place, total) if place and usable else None


def _after(view: _View, product: Node) -> list[_Scalar] | None:
    """The scalar node after the product, if there is one; None unless this is what an attention weighs values by."""
    scores, found = product.outputs[0], []
    node = view.reader(scores)
    if node is not None and node.operator == "Reshape" and _is_mask(view.graph, node, scores):
        scores = node.outputs[0]
        node = view.reader(scores)
    scalar = view.scalar(node) if node is not None else None
    if node is not None and scalar is not None:
        found.append((node, *scalar))
        scores = node.outputs[0]
        node = view.reader(scores)
    while node is not None and _is_mask(view.graph, node, scores):
        scores = node.outputs[0]
        node = view.reader(scores)
    if node is None or node.operator != "Softmax":
        return None
    last = len(view.graph.shape(scores)) - 1
    if node.integer("axis", -1 if node.opset >= _ONE_AXIS else 1) % (last + 1) != last:
        return None
    return found if any(_weighs(view, reader, node.outputs[0]) for reader in _past_guard(view, node)) else None


def _is_mask(graph: Graph, node: Node, scores: str) -> bool:
    """Whether a node hides scores, or shapes them anew with whole rows; a scale before it is one after it as well."""
    before, after = graph.shape(scores), graph.shape(node.outputs[0])
    if node.operator == "Reshape":
        return before[-1:] == after[-1:]
    return before == after and (node.operator == "Add" or (node.operator == "Where" and scores != node.inputs[0]))


def _past_guard(view: _View, softmax: Node) -> list[Node]:
    """Who reads the shares, through what sets rows without any to 0."""
    readers = view.readers.get(softmax.outputs[0], [])
    guards = [reader for reader in readers if guarded(view.graph, reader, view.producers)]
    return [*readers, *(reader for guard in guards for reader in view.readers.get(guard.outputs[0], []))]


def _weighs(view: _View, node: Node, shares: str) -> bool:
    """Whether a node multiplies values by shares: by rows, or turned by columns."""
    if node.operator == "Transpose":
        turned, rank = node.outputs[0], len(view.graph.shape(shares))
        swap = (*range(rank - 2), rank - 1, rank - 2)
        readers = view.readers.get(turned, [])
        return node.integers("perm", tuple(reversed(range(rank)))) == swap and any(
            reader.operator == "MatMul" and reader.inputs[1] == turned for reader in readers
        )
    return node.operator == "MatMul" or (node.operator == "Reshape" and _is_read_by_product(view, node))


def _is_read_by_product(view: _View, node: Node) -> bool:
    return any(reader.operator == "MatMul" for reader in view.readers.get(node.outputs[0], []))


def _operand(view: _View, name: str) -> _Operand:
    """Back from the product through what only moves or scales, as long as nothing else reads it."""
    scalars: list[_Scalar] = []
    at = name
    while view.reader(at) is not None and (node := view.producers.get(at)) is not None:
        scalar = view.scalar(node)
        if scalar is not None:
            scalars.append((node, *scalar))
        elif node.operator not in _MOVING:
            return _Operand(name, tuple(scalars), at if _takes_factor(view, node) else "")
        at = node.inputs[0] if scalar is None else scalar[0]
    return _Operand(name, tuple(scalars), "")


def _takes_factor(view: _View, node: Node) -> bool:
    """Whether scaling can be folded into the node: a product with constant weights, or that and a constant sum."""
    graph, source = view.graph, node
    if node.operator == "Add":
        made = [view.producers[name] for name in node.inputs if name in view.producers]
        if len(made) != 1 or made[0].operator not in RESULT_AXES or view.reader(made[0].outputs[0]) is not node:
            return False
        source = made[0]
    weights = weights_of(graph, source, graph.constants) if source.operator in RESULT_AXES else None
    if weights is None or source.activation is not Activation.NONE or graph.dtype(node.outputs[0]) != "float32":
        return False
    if source is node:
        return True
    added = affine_of(graph, node, RESULT_AXES[source.operator], graph.constants)
    return added is not None and added.is_finite and weights.scaled_after(added.gain, added.offset) is not None


def _place(view: _View, operands: list[_Operand], scalars: list[_Scalar]) -> str:
    """The value to scale instead; empty where nothing is gained."""
    projection = next((operand.projection for operand in operands if operand.projection), "")
    if projection:
        return projection
    without = {node.outputs[0]: value for node, value, _ in scalars}
    sources = [_source(operand.name, without) for operand in operands]
    alone = [name for name in sources if name in view.producers and view.reader(name) is not None]
    sizes = {name: math.prod(view.graph.shape(name)) for name in alone}
    work = sum(math.prod(view.graph.shape(value)) for _, value, _ in scalars)
    place = min(alone, key=sizes.__getitem__, default="")
    return place if place and sizes[place] < work else ""


def _moved(view: _View, scalars: list[_Scalar], place: str, factor: float) -> Graph:
    """Without the scalar nodes, and with one right after what makes the value at `place`."""
    graph, renamed = view.graph, {node.outputs[0]: value for node, value, _ in scalars}
    plain, number = f"{place}/unscaled", f"{place}/factor"
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.outputs and node.outputs[0] in renamed:
            continue
        inputs = tuple(_source(name, renamed) for name in node.inputs)
        outputs = tuple(plain if name == place else name for name in node.outputs)
        nodes.append(replace(node, inputs=inputs, outputs=outputs))
        if place in node.outputs:
            nodes.append(Node(f"{node.name}/scale", "Mul", (plain, number), (place,), opset=14))
    values: dict[str, Value] = {**graph.values, plain: replace(graph.values[place], name=plain)}
    constants: dict[str, Array] = {number: np.array(factor, np.float32)}
    return replace(graph, values=values).with_nodes(nodes, constants)


def _source(name: str, renamed: Mapping[str, str]) -> str:
    while name in renamed:
        name = renamed[name]
    return name


def keep_rows_last(graph: Graph) -> Graph:
    """Each transpose that a product alone reads at its right, with its last two axes swapped if that keeps rows whole.

    BATCH_MATMUL reads its right operand either way. Runs after layout assignment.
    """
    producers = {name: node for node in graph.nodes for name in node.outputs if name}
    consumers = graph.consumers()
    values, turned, changed = dict(graph.values), {}, {}
    for node in graph.nodes:
        turn = producers.get(node.input(1)) if node.operator == "MatMul" else None
        if (
            turn is None
            or graph.sole_consumer(node.input(1), consumers) is not node
            or not _is_better(graph, node, turn)
        ):
            continue
        name = f"{turn.outputs[0]}/rows"
        perm = turn.integers("perm", ())
        shape = graph.shape(turn.outputs[0])
        values[name] = replace(values[turn.outputs[0]], name=name, shape=(*shape[:-2], shape[-1], shape[-2]))
        order = {"perm": (*perm[:-2], perm[-1], perm[-2])}
        turned[turn.name, turn.outputs] = replace(turn, outputs=(name,), attributes=order)
        marked = {**node.attributes, RIGHT_TRANSPOSED: 1}
        changed[node.outputs] = replace(node, inputs=(node.inputs[0], name), attributes=marked)
    nodes = [turned.get((node.name, node.outputs)) or changed.get(node.outputs) or node for node in graph.nodes]
    return replace(graph, values=values).with_nodes(nodes)


def _is_better(graph: Graph, product: Node, turn: Node) -> bool:
    """Whether the last axis moves to the last but one, where a swap would leave it in place."""
    if turn.operator != "Transpose" or product.integer(RIGHT_TRANSPOSED, 0) or product.outputs[0] == "":
        return False
    ranks = [len(graph.shape(name)) for name in product.inputs]
    perm = turn.integers("perm", ())
    fits = 2 < min(ranks) <= max(ranks) <= _LARGEST_RANK and graph.dtype(product.outputs[0]) == "float32"
    if not fits or len(perm) != ranks[1] or perm[-2] != ranks[1] - 1:
        return False
    return not keeps_order(graph.shape(turn.inputs[0]), perm)
