"""Nodes that compute what another node has computed already, and nodes that no output needs, are dropped.

Nothing random is merged, and nothing that would leave one value for two outputs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgefleet_converters.tflite.graph import Graph, Node
from edgefleet_converters.tflite.passes.liveness import needed

_RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)


def drop_duplicates(graph: Graph) -> Graph:
    """Each computation once, in its first place, and only what some output needs."""
    renamed: dict[str, str] = {}
    seen: dict[object, Node] = {}
    same = _same_constants(graph)
    kept: list[Node] = []
    for node in graph.nodes:
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        current = node if inputs == node.inputs else replace(node, inputs=inputs)
        key = _key(current, same)
        first = seen.setdefault(key, current) if key is not None else current
        if first is current or set(node.outputs) & set(graph.outputs):
            kept.append(current)
        else:
            renamed.update(zip(node.outputs, first.outputs, strict=True))
    return graph.with_nodes(needed(kept, graph.outputs))


def _same_constants(graph: Graph) -> dict[str, object]:
    """Small constants by what they hold, so that equal ones under two names are one."""
    return {
        name: (str(array.dtype), array.shape, array.tobytes())
        for name, array in graph.constants.items()
        if array.size <= 64 and array.dtype.kind != "O"
    }


def _key(node: Node, same: dict[str, object]) -> object:
    """What two nodes must share to be the same computation; None for a node that is like no other."""
    if node.operator in _RANDOM:
        return None
    attributes = []
    for name, value in sorted(node.attributes.items()):
        if isinstance(value, np.ndarray):
            attributes.append((name, str(value.dtype), value.shape, value.tobytes()))
        elif isinstance(value, int | float | str | bytes):
            attributes.append((name, type(value).__name__, value))  # type: ignore[arg-type]
        elif isinstance(value, list | tuple) and all(isinstance(item, int | float | str | bytes) for item in value):
            attributes.append((name, "list", tuple(value)))  # type: ignore[arg-type]
        else:
            return None
    inputs = tuple(same.get(name, name) for name in node.inputs)
    wanted = tuple(bool(name) for name in node.outputs)
    return node.operator, inputs, tuple(attributes), node.activation, node.opset, wanted
