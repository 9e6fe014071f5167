"""BatchNormalization in inference form becomes part of the convolution before it, or a Mul and an Add.

Does not handle training mode: its outputs depend on the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.tflite.graph import Activation, Array, Graph, Node, NotLowerableError, Value

Floats = NDArray[np.float32]


def fold_batchnorm(graph: Graph) -> Graph:
    """Fold y = (x - mean) / sqrt(var + epsilon) * scale + bias; what cannot be folded is left alone."""
    consumers = graph.consumers()
    kept: dict[str, Node] = {}
    constants: dict[str, Array] = dict(graph.constants)
    values: dict[str, Value] = dict(graph.values)
    for node in graph.nodes:
        found = _factors(node, constants)
        if found is None:
            kept[next((name for name in node.outputs if name), node.name)] = node
            continue
        source = kept.get(node.inputs[0])
        if source is not None and graph.sole_consumer(node.inputs[0], consumers) is node:
            folded = _into_convolution(source, node, found, constants)
            if folded is not None:
                del kept[node.inputs[0]]
                kept[node.outputs[0]] = folded
                continue
        for part in _as_mul_add(graph, node, found, constants, values):
            kept[part.outputs[0]] = part
    return replace(graph, values=values).with_nodes(kept.values(), constants)


def _factors(node: Node, constants: Mapping[str, Array]) -> tuple[Floats, Floats] | None:
    """(gain, offset) per channel such that y = gain * x + offset; None if this is not such a node."""
    if node.operator != "BatchNormalization" or node.integer("training_mode", 0):
        return None
    if any(name not in constants for name in node.inputs[1:5]) or any(node.outputs[1:]):
        return None
    scale, bias, mean, variance = (constants[name].astype(np.float64) for name in node.inputs[1:5])
    gain = scale / np.sqrt(variance + node.number("epsilon", 1e-5))
    return gain.astype(np.float32), (bias - mean * gain).astype(np.float32)


def _into_convolution(
    conv: Node, norm: Node, factors: tuple[Floats, Floats], constants: dict[str, Array]
) -> Node | None:
    """The convolution with its weights and bias scaled, or None when it is not one with constant weights."""
    if conv.operator != "Conv" or conv.activation is not Activation.NONE:
        return None
    weight, bias = constants.get(conv.input(1)), constants.get(conv.input(2))
    if weight is None or (conv.input(2) and bias is None):
        return None
    gain, offset = factors
    folded_bias = offset if bias is None else bias.astype(np.float32) * gain + offset
    names = (f"{norm.outputs[0]}/weight", f"{norm.outputs[0]}/bias")
    constants[names[0]] = weight.astype(np.float32) * gain.reshape(-1, *([1] * (weight.ndim - 1)))
    constants[names[1]] = np.asarray(folded_bias, np.float32)
    return replace(conv, inputs=(conv.inputs[0], *names), outputs=norm.outputs[:1])


def _as_mul_add(
    graph: Graph,
    node: Node,
    factors: tuple[Floats, Floats],
    constants: dict[str, Array],
    values: dict[str, Value],
) -> tuple[Node, ...]:
    try:
        rank = len(graph.shape(node.inputs[0]))
    except NotLowerableError:
        return (node,)
    output = node.outputs[0]
    scaled, names = f"{output}/scaled", (f"{output}/gain", f"{output}/offset")
    for name, factor in zip(names, factors, strict=True):
        constants[name] = factor.reshape(-1, *([1] * (rank - 2)))
    values[scaled] = replace(values[output], name=scaled)
    return (
        Node(f"{node.name}/gain", "Mul", (node.inputs[0], names[0]), (scaled,), opset=node.opset),
        Node(f"{node.name}/offset", "Add", (scaled, names[1]), (output,), opset=node.opset),
    )
