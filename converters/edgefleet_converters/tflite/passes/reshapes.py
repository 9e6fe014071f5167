"""Reshapes of reshapes are merged, and those that change nothing are dropped.

Squeeze, Unsqueeze and Flatten are reshapes too: all shapes are static.
"""

from __future__ import annotations

from dataclasses import replace

from edgefleet_converters.tflite.graph import Graph, Node, NotLowerableError
from edgefleet_converters.tflite.passes.layout_table import RESHAPING
from edgefleet_converters.tflite.passes.liveness import needed


def merge_reshapes(graph: Graph) -> Graph:
    """Each reshape reads what was there before the first one; what nobody reads any more is left out."""
    before: dict[str, str] = {}
    renamed: dict[str, str] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        current = node if inputs == node.inputs else replace(node, inputs=inputs)
        if node.operator in RESHAPING and _is_static(graph, node):
            source = before.get(inputs[0], inputs[0])
            same = graph.shape(source) == graph.shape(node.outputs[0])
            if same and node.outputs[0] not in graph.outputs:
                renamed[node.outputs[0]] = source
                continue
            before[node.outputs[0]] = source
            current = Node(node.name, "Reshape", (source,), node.outputs, opset=13)
        kept.append(current)
    return graph.with_nodes(needed(kept, graph.outputs))


def _is_static(graph: Graph, node: Node) -> bool:
    try:
        return len(graph.shape(node.inputs[0])) >= 0 and len(graph.shape(node.outputs[0])) >= 0
    except NotLowerableError:
        return False
