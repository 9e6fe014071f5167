"""Relu and Clip become the fused activation of the node before them where TFLite has one there.

Clip with bounds other than (0, 6) and (0, none) stays as it is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgefleet_converters.tflite.graph import Activation, Graph, Node

# Operators whose TFLite form has a fused activation.
_FUSING = ("Add", "AveragePool", "Conv", "Div", "Gemm", "MatMul", "MaxPool", "Mul", "Sub")


def fuse_activations(graph: Graph) -> Graph:
    """Give each fusing node its activation, and drop the Relu or Clip node that was there for it."""
    consumers = graph.consumers()
    kept: dict[str, Node] = {}
    for node in graph.nodes:
        activation = _activation(graph, node)
        source = kept.get(node.inputs[0]) if activation is not Activation.NONE else None
        if source is not None and _may_fuse(graph, source) and graph.sole_consumer(node.inputs[0], consumers) is node:
            del kept[node.inputs[0]]
            kept[_key(node)] = replace(source, outputs=node.outputs, activation=activation)
        else:
            kept[_key(node)] = node
    return graph.with_nodes(kept.values())


def _key(node: Node) -> str:
    """The first output that a node has."""
    return next((name for name in node.outputs if name), node.name)


def _may_fuse(graph: Graph, node: Node) -> bool:
    plain = node.operator in _FUSING and node.activation is Activation.NONE and len(node.outputs) == 1
    return plain and graph.dtype(node.outputs[0]) == "float32"


def _activation(graph: Graph, node: Node) -> Activation:
    """Which fused activation a node is as a whole; NONE when it is something else."""
    if node.operator == "Relu":
        return Activation.RELU
    if node.operator != "Clip":
        return Activation.NONE
    bounds = clip_bounds(graph, node)
    return {(0.0, np.inf): Activation.RELU, (0.0, 6.0): Activation.RELU6}.get(bounds, Activation.NONE)


def clip_bounds(graph: Graph, node: Node) -> tuple[float, float]:
    """(low, high) of a Clip: infinite where absent, NaN where not constant; inputs since opset 11."""
    low, high = node.number("min", -np.inf), node.number("max", np.inf)
    if node.input(1):
        low = float(graph.constants.get(node.input(1), np.array(np.nan)).item())
    if node.input(2):
        high = float(graph.constants.get(node.input(2), np.array(np.nan)).item())
    # Exporters write the largest float for "no upper bound".
    return low, np.inf if high >= np.finfo(np.float32).max else high
