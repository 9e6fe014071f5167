"""Expanded values that only elementwise operators read: those broadcast by themselves, and work on less before it.

An expansion that anything else reads stays, after what could be computed ahead of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgefleet_converters.tflite.graph import Activation, Graph, Node, Value
from edgefleet_converters.tflite.passes.liveness import needed

_BROADCASTING = frozenset(("Add", "And", "Cast", "Div", "Mul", "Not", "Or", "Sub", "Where"))


def sink_expansions(graph: Graph) -> Graph:
    """Each such operator on what was there before the expansion; shapes of results stay as they are for all others.

    Masks come so: one row per batch entry, expanded to all heads and queries, then made a sum's operand.
    """
    values, small, nodes = dict(graph.values), dict[str, str](), list[Node]()
    for node in graph.nodes:
        if node.operator == "Expand" and _is_static(graph, node):
            source = small.get(node.inputs[0], node.inputs[0])
            if source not in graph.constants:
                small[node.outputs[0]] = source
            nodes.append(node)
        elif node.operator in _BROADCASTING and small.keys() & set(node.inputs) and _is_static(graph, node):
            nodes.extend(_sunk(graph, node, values, small))
        else:
            nodes.append(node)
    return replace(graph, values=values).with_nodes(needed(nodes, graph.outputs)) if small else graph


def _is_static(graph: Graph, node: Node) -> bool:
    names = (*node.inputs[:1], *node.outputs) if node.operator == "Expand" else (*node.inputs, *node.outputs)
    known = all(name in graph.constants or graph.values[name].shape is not None for name in names)
    # Before opset 7 broadcasting goes by an attribute.
    return known and node.opset > 6 and node.activation is Activation.NONE


def _sunk(graph: Graph, node: Node, values: dict[str, Value], small: dict[str, str]) -> tuple[Node, ...]:
    """The operator on what was expanded, and the expansion of its result if that is smaller now."""
    inputs, output = tuple(small.get(name, name) for name in node.inputs), node.outputs[0]
    shape = np.broadcast_shapes(*(_shape(graph, values, name) for name in inputs))
    if shape == graph.shape(output):
        return (replace(node, inputs=inputs),)
    if math.prod(shape) == math.prod(graph.shape(output)):
        return (node,)
    name = f"{output}/small"
    values[name] = replace(values[output], name=name, shape=shape)
    small[output] = name
    return (
        replace(node, name=f"{node.name}/small", inputs=inputs, outputs=(name,)),
        Node(f"{node.name}/expanded", "Expand", (name,), (output,), opset=13),
    )


def _shape(graph: Graph, values: Mapping[str, Value], name: str) -> tuple[int, ...]:
    shape = graph.constants[name].shape if name in graph.constants else values[name].shape
    return shape if shape is not None else ()
