"""LayerNormalization and RMSNormalization hand their constant gain and offset on, so that weights may take them up.

What no weights take costs the same as inside the node.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgefleet_converters.tflite.graph import Activation, Array, Graph, Node, Value

_NORMALIZING = ("LayerNormalization", "RMSNormalization")
# From here on Mul and Add broadcast as in numpy.
_OPSET = 14


def part_gains(graph: Graph) -> Graph:
    """Each such node with a gain of ones and no offset, then a Mul and, if there was an offset, an Add."""
    nodes: list[Node] = []
    constants: dict[str, Array] = dict(graph.constants)
    values: dict[str, Value] = dict(graph.values)
    for node in graph.nodes:
        if not _has_gain(graph, node):
            nodes.append(node)
            continue
        output, scale, bias = node.outputs[0], node.input(1), node.input(2)
        ones = f"{output}/ones"
        constants[ones] = np.ones(graph.shape(scale), graph.dtype(scale))
        steps = [("Mul", scale), *([("Add", bias)] if bias else [])]
        names = [f"{output}/unit", f"{output}/scaled"][: len(steps)]
        values.update({name: replace(values[output], name=name) for name in names})
        nodes.append(replace(node, inputs=(node.inputs[0], ones), outputs=(names[0],)))
        for (operator, constant), source, result in zip(steps, names, [*names[1:], output], strict=True):
            nodes.append(Node(f"{node.name}/{operator}", operator, (source, constant), (result,), opset=_OPSET))
    return replace(graph, values=values).with_nodes(nodes, constants)


def _has_gain(graph: Graph, node: Node) -> bool:
    """Whether the node does nothing but normalise in float32, by constants that are not ones."""
    if node.operator not in _NORMALIZING or any(node.outputs[1:]) or node.activation is not Activation.NONE:
        return False
    known = all(name in graph.constants for name in node.inputs[1:] if name)
    if not known or graph.dtype(node.inputs[0]) != "float32":
        return False
    return bool(node.input(2)) or bool(np.any(graph.constants[node.inputs[1]] != 1))
