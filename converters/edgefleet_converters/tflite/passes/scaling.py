"""Affine maps with constants become part of the convolution or matrix product before or after them.

A BatchNormalization that has none beside it becomes a Mul and an Add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgefleet_converters.tflite.graph import Activation, Array, Graph, Node, NotLowerableError, Value
from edgefleet_converters.tflite.passes.affine import Affine, affine_of, batch_factors
from edgefleet_converters.tflite.passes.weights import RESULT_AXES, Weights, weights_of

_AFFINE = ("Add", "BatchNormalization", "Div", "Mul", "Sub")


def fold_scaling(graph: Graph) -> Graph:
    """Fold what can be folded into what comes before; then what is left into what comes after, if that takes all."""
    return _split_normalizations(_into_consumers(_into_producers(graph)))


@dataclass(slots=True)
class _Draft:
    """The graph while it is being written; nodes go by their first output."""

    graph: Graph
    constants: dict[str, Array]
    values: dict[str, Value]
    nodes: dict[str, Node] = field(default_factory=dict)

    def finished(self) -> Graph:
        """The graph as it is now."""
        return replace(self.graph, values=self.values).with_nodes(self.nodes.values(), self.constants)

    def store(self, node: Node, weights: Weights, output: str) -> Node:
        """The product node with other weights; the constants are named after its output."""
        names = [f"{output}/weight", f"{output}/bias"]
        for at, name in enumerate(names):
            while name in self.constants:
                name += "'"  # noqa: PLW2901 - until the name is free
            names[at] = name
        changed, constants = weights.stored(node, names[0], names[1])
        self.constants.update(constants)
        return changed


def _key(node: Node) -> str:
    return next((name for name in node.outputs if name), node.name)


def _into_producers(graph: Graph) -> Graph:
    draft = _Draft(graph, dict(graph.constants), dict(graph.values))
    consumers = graph.consumers()
    for node in graph.nodes:
        folded = None
        if node.operator in _AFFINE:
            for name in node.inputs[:2]:
                source = draft.nodes.get(name)
                if source is not None and graph.sole_consumer(name, consumers) is node:
                    folded = folded or _after(draft, source, node, name)
        if folded is None:
            draft.nodes[_key(node)] = node
        else:
            source_name, made = folded
            del draft.nodes[source_name]
            draft.nodes[_key(made)] = made
    return draft.finished()


def _after(draft: _Draft, source: Node, node: Node, name: str) -> tuple[str, Node] | None:
    """The producer with the affine map in its weights."""
    if source.activation is not Activation.NONE or len(source.outputs) != 1:
        return None
    if source.operator not in RESULT_AXES:
        return None
    found = affine_of(draft.graph, node, RESULT_AXES[source.operator], draft.constants)
    if found is None or found.data != name or not found.is_finite:
        return None
    weights = weights_of(draft.graph, source, draft.constants)
    scaled = weights.scaled_after(found.gain, found.offset) if weights is not None else None
    if scaled is None:
        return None
    made = draft.store(source, scaled, node.outputs[0])
    return name, replace(made, outputs=node.outputs[:1])


def _into_consumers(graph: Graph) -> Graph:
    """Maps that only products read: into the columns of their weights, where no padding comes between."""
    while True:
        draft = _Draft(graph, dict(graph.constants), dict(graph.values), {_key(node): node for node in graph.nodes})
        consumers = graph.consumers()
        for node in graph.nodes:
            readers = consumers.get(_key(node), []) if node.operator in _AFFINE else []
            if readers and _key(node) not in graph.outputs:
                _give_to(draft, node, [draft.nodes[_key(reader)] for reader in readers])
        if len(draft.nodes) == len(graph.nodes):
            return graph
        # What a map was made from may be another one.
        graph = draft.finished()


def _give_to(draft: _Draft, source: Node, readers: Sequence[Node]) -> None:
    """Fold a map into all that read it, or into none."""
    found = [_before(draft, source, reader) for reader in readers]
    for reader, pair in zip(readers, found, strict=True):
        if pair is None or None in found:
            return
        data, weights = pair
        made = draft.store(reader, weights, _key(reader))
        draft.nodes[_key(reader)] = replace(made, inputs=(data, *made.inputs[1:]))
    del draft.nodes[_key(source)]


def _before(draft: _Draft, source: Node, node: Node) -> tuple[str, Weights] | None:
    """What the product reads, and by which weights, when it computes the map before it as well."""
    if node.operator not in RESULT_AXES or node.inputs[0] != source.outputs[0]:
        return None
    # Every product here has its data's channels where its result has its own.
    found = affine_of(draft.graph, source, RESULT_AXES[node.operator], draft.constants)
    if found is None or not found.is_finite:
        return None
    weights = weights_of(draft.graph, node, draft.constants)
    scaled = weights.scaled_before(found.gain, found.offset) if weights is not None else None
    return None if scaled is None else (found.data, scaled)


def _split_normalizations(graph: Graph) -> Graph:
    """Every BatchNormalization that is left, as a Mul and an Add."""
    draft = _Draft(graph, dict(graph.constants), dict(graph.values))
    for node in graph.nodes:
        for part in _as_mul_add(draft, node):
            draft.nodes[_key(part)] = part
    return draft.finished()


def _as_mul_add(draft: _Draft, node: Node) -> tuple[Node, ...]:
    factors = batch_factors(node, draft.constants)
    rank = _rank(draft.graph, node)
    if factors is None or rank < 2 or draft.graph.dtype(node.outputs[0]) != "float32":
        return (node,)
    output = node.outputs[0]
    found = Affine(node.inputs[0], 1, *factors)
    names: Mapping[str, np.ndarray] = {f"{output}/gain": found.gain, f"{output}/offset": found.offset}
    for name, factor in names.items():
        draft.constants[name] = factor.astype(np.float32).reshape(-1, *([1] * (rank - 2)))
    draft.values[f"{output}/scaled"] = replace(draft.values[output], name=f"{output}/scaled")
    gain, offset = names
    return (
        Node(f"{node.name}/gain", "Mul", (node.inputs[0], gain), (f"{output}/scaled",), opset=13),
        Node(f"{node.name}/offset", "Add", (f"{output}/scaled", offset), (output,), opset=13),
    )


def _rank(graph: Graph, node: Node) -> int:
    try:
        return len(graph.shape(node.inputs[0])) if node.inputs and node.inputs[0] else 0
    except NotLowerableError:
        return 0
