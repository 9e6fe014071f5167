"""x * clip(x / 6 + 1/2, 0, 1) becomes HardSwish, and its second factor HardSigmoid, as exporters write them.

Forms with other constants stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgefleet_converters.tflite.graph import Graph, Node
from edgefleet_converters.tflite.passes.activations import clip_bounds
from edgefleet_converters.tflite.passes.liveness import needed

_SIXTH, _HALF = 1 / 6, 0.5


def name_hard_swish(graph: Graph) -> Graph:
    """Each product or quotient that is a HardSwish or HardSigmoid as a whole, as that one node."""
    producers = {name: node for node in graph.nodes for name in node.outputs if name}
    kept = []
    for node in graph.nodes:
        data = _hard_swish(graph, node, producers)
        gate = "" if data else _divided_gate(graph, node, producers)
        if data:
            kept.append(replace(node, operator="HardSwish", inputs=(data,), attributes={}, opset=14))
        elif gate:
            attributes = {"alpha": _SIXTH, "beta": _HALF}
            kept.append(replace(node, operator="HardSigmoid", inputs=(gate,), attributes=attributes, opset=14))
        else:
            kept.append(node)
    return graph.with_nodes(needed(kept, graph.outputs))


def _hard_swish(graph: Graph, node: Node, producers: Mapping[str, Node]) -> str:
    """What a node is the HardSwish of, or nothing."""
    factors = _factors(graph, node, producers)
    for position, name in enumerate(factors):
        gate = producers.get(name)
        others = sorted([*factors[:position], *factors[position + 1 :]])
        if gate is None:
            continue
        if gate.operator == "HardSigmoid" and others == [gate.inputs[0]]:
            found = (gate.number("alpha", 0.2), gate.number("beta", 0.5))
            return gate.inputs[0] if np.allclose(found, (_SIXTH, _HALF), atol=1e-6) else ""
        data = _clipped_sum(graph, gate, producers)
        if data and others == sorted([data, "1/6"]):
            return data
    return ""


def _divided_gate(graph: Graph, node: Node, producers: Mapping[str, Node]) -> str:
    """What a node is the HardSigmoid of, when that is written as clip(x + 3, 0, 6) / 6."""
    factors = _factors(graph, node, producers)
    gates = [name for name in factors if name != "1/6"]
    if len(factors) != 2 or len(gates) != 1 or gates[0] not in producers:
        return ""
    return _clipped_sum(graph, producers[gates[0]], producers)


def _factors(graph: Graph, node: Node, producers: Mapping[str, Node]) -> list[str]:
    """The operands of a product, of a quotient by 6, and of such a node among them; a factor 1/6 by that name."""
    if node.operator not in ("Mul", "Div") or graph.values[node.outputs[0]].dtype != "float32" or node.opset < 7:
        return []
    found: list[str] = []
    for position, name in enumerate(node.inputs):
        number = _number(graph, name)
        if number is not None:
            number = 1 / number if node.operator == "Div" and number else number
            if not np.isclose(number, _SIXTH, atol=1e-7) or (node.operator == "Div" and position == 0):
                return []
            found.append("1/6")
            continue
        if node.operator == "Div" and position == 1:
            return []
        found.append(name)
    for name in list(found):
        inner = producers.get(name)
        if "1/6" in found or inner is None or inner.operator not in ("Mul", "Div"):
            continue
        parts = _factors(graph, inner, producers)
        if "1/6" in parts or len(parts) == 2:
            found.remove(name)
            return [*found, *parts]
    inner = next((producers[name] for name in found if name in producers and producers[name].operator == "Mul"), None)
    if len(found) == 2 and "1/6" in found and inner is not None:
        return ["1/6", *inner.inputs]
    return found


def _clipped_sum(graph: Graph, node: Node, producers: Mapping[str, Node]) -> str:
    """What x is in clip(x + 3, 0, 6), or nothing."""
    if node.operator != "Clip" or clip_bounds(graph, node) != (0.0, 6.0):
        return ""
    added = producers.get(node.inputs[0])
    if added is None or added.operator != "Add" or len(added.inputs) != 2:
        return ""
    for name, other in (added.inputs, added.inputs[::-1]):
        same = name in graph.values and graph.values[name].shape == graph.values[added.outputs[0]].shape
        if same and _number(graph, other) == 3.0:
            return name
    return ""


def _number(graph: Graph, name: str) -> float | None:
    array = graph.constants.get(name)
    return float(array.item()) if array is not None and array.size == 1 and array.dtype.kind == "f" else None
