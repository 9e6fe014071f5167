"""Maximum with 0 and minimum with 6, however they are written, become Relu and Clip(0, 6).

Other bounds stay as they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgefleet_converters.tflite.graph import Array, Graph, Node
from edgefleet_converters.tflite.passes.activations import clip_bounds

_SIX = "relu6/bound"


def name_clipping(graph: Graph) -> Graph:
    """Each float32 node that bounds its operand below by 0, above by 6, or both, in its one usual form."""
    consumers = graph.consumers()
    kept: dict[str, Node] = {}
    constants: dict[str, Array] = {}
    for node in graph.nodes:
        data, low, high = _bounds(graph, node)
        source = kept.get(data)
        made = node
        if source is not None and (low, high) == (-np.inf, 6.0) and _bounds(graph, source)[1:] == (0.0, np.inf):
            if graph.sole_consumer(data, consumers) is node and graph.dtype(data) == "float32":
                del kept[data]
                made = _relu6(replace(node, inputs=(_bounds(graph, source)[0],)), constants)
        elif (low, high) == (0.0, np.inf) and node.operator != "Relu":
            made = replace(node, operator="Relu", inputs=(data,), attributes={}, opset=14)
        kept[next((name for name in node.outputs if name), node.name)] = made
    return graph.with_nodes(kept.values(), constants)


def _relu6(node: Node, constants: dict[str, Array]) -> Node:
    constants[f"{_SIX}/low"], constants[f"{_SIX}/high"] = np.array(0, np.float32), np.array(6, np.float32)
    inputs = (node.inputs[0], f"{_SIX}/low", f"{_SIX}/high")
    return replace(node, operator="Clip", inputs=inputs, attributes={}, opset=13)


def _bounds(graph: Graph, node: Node) -> tuple[str, float, float]:
    """(operand, low, high) of a Relu, Clip, Max or Min; an empty operand for anything else."""
    nothing = ("", np.nan, np.nan)
    if not node.inputs or not node.outputs[0] or graph.values[node.outputs[0]].dtype != "float32":
        return nothing
    if node.operator == "Relu":
        return node.inputs[0], 0.0, np.inf
    if node.operator == "Clip":
        return node.inputs[0], *clip_bounds(graph, node)
    if node.operator not in ("Max", "Min") or len(node.inputs) != 2:
        return nothing
    known = [name for name in node.inputs if name in graph.constants and graph.constants[name].size == 1]
    data = [name for name in node.inputs if name not in graph.constants]
    if len(known) != 1 or len(data) != 1 or graph.values[data[0]].shape != graph.values[node.outputs[0]].shape:
        return nothing
    bound = float(graph.constants[known[0]].item())
    return (data[0], bound, np.inf) if node.operator == "Max" else (data[0], -np.inf, bound)
