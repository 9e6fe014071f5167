"""A matrix that is transposed only to be the right operand of a product: BATCH_MATMUL reads it as it was.

Runs after layout assignment, which joins and removes what it can; left operands stay, as XNNPACK takes only right ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgefleet_converters.tflite.graph import RIGHT_TRANSPOSED, Graph, Node
from edgefleet_converters.tflite.passes.liveness import needed

# The rule joins batch axes beyond this, on the operand as numpy has it.
_LARGEST_RANK = 4


def absorb_transposes(graph: Graph) -> Graph:
    """The same graph with such products; a transpose that something else reads as well stays for that."""
    producers = {name: node for node in graph.nodes for name in node.outputs if name}
    nodes = [_absorbed(graph, node, producers) for node in graph.nodes]
    return graph.with_nodes(needed(nodes, graph.outputs))


def _absorbed(graph: Graph, node: Node, producers: Mapping[str, Node]) -> Node:
    turn = producers.get(node.input(1)) if node.operator == "MatMul" else None
    if turn is None or turn.operator != "Transpose" or graph.dtype(node.outputs[0]) != "float32":
        return node
    ranks = [len(graph.shape(name)) for name in node.inputs]
    swapped = (*range(ranks[1] - 2), ranks[1] - 1, ranks[1] - 2)
    default = tuple(reversed(range(ranks[1])))
    if not 2 <= min(ranks) <= max(ranks) <= _LARGEST_RANK or turn.integers("perm", default) != swapped:
        return node
    return replace(node, inputs=(node.inputs[0], turn.inputs[0]), attributes={**node.attributes, RIGHT_TRANSPOSED: 1})
