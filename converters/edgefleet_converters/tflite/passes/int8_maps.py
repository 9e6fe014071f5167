"""Gain and offset per channel for int8: a Mul and an Add of constants become one depthwise 1 x 1 Conv.

That rounds once instead of twice, by a scale for each channel instead of one for all: 1 to 4 dB. Runs after layout
assignment, on stored axes, and touches no map whose channels are not the last axis.
"""

from __future__ import annotations

import numpy as np

from edgefleet_converters.tflite.graph import Activation, Array, Graph, Node
from edgefleet_converters.tflite.passes.layout_table import MARK

# The bias is held in steps of the gain: beyond that, an input with a small range would take it out of int32.
_MOST_OFFSET = 64.0


def convolve_maps(graph: Graph) -> Graph:
    """The same graph with each such pair as one Conv; only float32 values of rank 4 are touched."""
    consumers = graph.consumers()
    constants, nodes = dict(graph.constants), list[Node]()
    pairs = {id(node): graph.sole_consumer(node.outputs[0], consumers) for node in graph.nodes if _is_gain(graph, node)}
    merged: dict[int, Node] = {}
    for node in graph.nodes:
        reader = pairs.get(id(node))
        made = _conv(graph, node, reader, constants) if reader is not None and reader.operator == "Add" else None
        if made is not None and reader is not None:
            merged[id(reader)] = made
        else:
            nodes.append(merged.get(id(node), node))
    return graph.with_nodes(nodes, constants)


def _is_gain(graph: Graph, node: Node) -> bool:
    plain = node.operator == "Mul" and node.activation is Activation.NONE
    return plain and graph.dtype(node.outputs[0]) == "float32" and len(graph.shape(node.outputs[0])) == 4


def _conv(graph: Graph, gain: Node, offset: Node, constants: dict[str, Array]) -> Node | None:
    """A Conv for the pair, whose weights go into `constants`; None where a constant has another axis, or none fits."""
    shape = graph.shape(gain.outputs[0])
    data, factor = _parted(graph, gain, shape[-1])
    between, term = _parted(graph, offset, shape[-1])
    if data is None or factor is None or term is None or between != gain.outputs[0]:
        return None
    if graph.shape(data) != shape or graph.shape(offset.outputs[0]) != shape:
        return None
    if not np.isfinite(factor).all() or not (np.abs(term) <= _MOST_OFFSET * np.abs(factor)).all():
        return None
    weight, bias = (_free(graph, f"{offset.outputs[0]}/{role}") for role in ("weight", "bias"))
    constants[weight], constants[bias] = factor.reshape(-1, 1, 1, 1), term
    attributes: dict[str, object] = {"group": shape[-1], "kernel_shape": (1, 1), MARK: 1}
    return Node(offset.name, "Conv", (data, weight, bias), offset.outputs, attributes, offset.activation, 18)


def _free(graph: Graph, wanted: str) -> str:
    """A name that the source may have given to something else, until nothing has it."""
    while wanted in graph.constants or wanted in graph.values:
        wanted += "+"
    return wanted


def _parted(graph: Graph, node: Node, channels: int) -> tuple[str | None, Array | None]:
    """What a node reads, and its constant as a number for each channel; None for what it does not have."""
    for data, constant in (node.inputs, node.inputs[::-1]):
        found = graph.constants.get(constant)
        if found is not None and data not in graph.constants:
            fits = found.size in (1, channels) and found.size == (found.shape[-1] if found.ndim else 1)
            return data, np.broadcast_to(found.ravel(), channels).astype(np.float32) if fits else None
    return None, None
