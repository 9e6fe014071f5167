"""Masks for int8: constant ones choose scores, as a sum with them has a range in which all scores are one number.

Masks that are computed at run time stay as they are.
"""

from __future__ import annotations

import numpy as np

from edgefleet_converters.tflite.graph import Activation, Array, Graph, Node

# Nothing is left of a share whose score is so much below another.
_HIDING = -1e4


def select_masks(graph: Graph) -> Graph:
    """Constant masks before a Softmax that leave each row some, added or filled in, as Where with -inf.

    To -inf no range is given, as to any finite fill: -1e4 costs 12 dB.
    """
    consumers = graph.consumers()
    constants, nodes = dict(graph.constants), list[Node]()
    for node in graph.nodes:
        reader = graph.sole_consumer(node.outputs[0], consumers) if node.operator in _HIDDEN else None
        found = _hidden(graph, node) if reader is not None and reader.operator == "Softmax" else None
        if found is None:
            nodes.append(node)
            continue
        scores, hidden = found
        mask, fill = f"{node.outputs[0]}/hidden", f"{node.outputs[0]}/fill"
        constants.update({mask: hidden, fill: np.array(-np.inf, np.float32)})
        nodes.append(Node(node.name, "Where", (mask, fill, scores), node.outputs, opset=16))
    return graph.with_nodes(nodes, constants)


def _hidden(graph: Graph, node: Node) -> tuple[str, Array] | None:
    """(scores, where they are hidden) for a node that does nothing else to them, and leaves some of each row."""
    if graph.dtype(node.outputs[0]) != "float32" or node.activation is not Activation.NONE:
        return None
    found = _HIDDEN[node.operator](graph, node)
    if found is None or graph.shape(found[0]) != graph.shape(node.outputs[0]):
        return None
    hidden = np.atleast_1d(found[1])
    return (found[0], hidden) if hidden.any() and not hidden.all(axis=-1).any() else None


def _by_sum(graph: Graph, node: Node) -> tuple[str, Array] | None:
    for name, scores in (node.inputs, node.inputs[::-1]):
        mask = graph.constants.get(name)
        if mask is not None:
            hidden = np.asarray(mask <= np.float32(_HIDING))
            return None if mask[~hidden].any() else (scores, hidden)
    return None


def _by_filling(graph: Graph, node: Node) -> tuple[str, Array] | None:
    mask = graph.constants.get(node.inputs[0])
    for at in (1, 2):
        fill = graph.constants.get(node.inputs[at])
        if mask is not None and fill is not None and fill.size == 1 and fill.item() <= _HIDING:
            return node.inputs[3 - at], np.asarray(mask == (at == 1))
    return None


_HIDDEN = {"Add": _by_sum, "Where": _by_filling}
"""How each operator that hides scores says which."""
