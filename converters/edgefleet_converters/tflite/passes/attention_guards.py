"""Rows of shares that a mask hides whole, which exporters set from NaN to 0: seldom needed, and best done late.

Leaves masks as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgefleet_converters.tflite.graph import Activation, Graph, Node, NotLowerableError, Value
from edgefleet_converters.tflite.passes.liveness import needed

# From here on Softmax works along one axis.
_ONE_AXIS = 13
# Two masks of finite numbers from here on may sum to -inf.
_HIDING = -1e30


def move_guards(graph: Graph) -> Graph:
    """Where(IsNaN(shares), 0, shares), shares being a Softmax: dropped where no row can be hidden whole.

    Else it is put after the product with the values where that is smaller: a row of shares is NaN whole or not at all,
    and so is the row that it makes of finite values.
    """
    producers = {name: node for node in graph.nodes for name in node.outputs if name}
    consumers = graph.consumers()
    values, changed = dict(graph.values), dict[tuple[str, ...], list[Node]]()
    for node in graph.nodes:
        shares = guarded(graph, node, producers)
        if not shares or node.outputs[0] in graph.outputs:
            continue
        readers = consumers.get(node.outputs[0], [])
        product = readers[0] if len(readers) == 1 else None
        if not _may_be_hidden(graph, producers[shares].inputs[0], producers):
            for reader in readers:
                _reread(changed, reader, node.outputs[0], shares)
        elif product is not None and _is_smaller_after(graph, product, node.outputs[0]):
            plain, after = f"{product.outputs[0]}/plain", f"{product.outputs[0]}/hidden"
            values[plain] = replace(values[product.outputs[0]], name=plain)
            values[after] = Value(after, "bool", graph.shape(product.outputs[0]))
            whole = replace(product, inputs=(shares, product.inputs[1]), outputs=(plain,))
            test = Node(f"{node.name}/after", "IsNaN", (plain,), (after,), opset=13)
            pick = replace(node, inputs=(after, node.inputs[1], plain), outputs=product.outputs)
            changed[product.outputs] = [whole, test, pick]
    nodes = [made for node in graph.nodes for made in changed.get(node.outputs, [node])]
    return replace(graph, values=values).with_nodes(needed(nodes, graph.outputs)) if changed else graph


def guarded(graph: Graph, node: Node, producers: Mapping[str, Node]) -> str:
    """The shares of a Softmax that the node sets to 0 where they are NaN; empty if it does nothing like it."""
    test = producers.get(node.inputs[0]) if node.operator == "Where" else None
    if test is None or test.operator != "IsNaN" or test.inputs[0] != node.inputs[2]:
        return ""
    zero, source = graph.constants.get(node.inputs[1]), producers.get(node.inputs[2])
    if source is None or source.operator != "Softmax" or source.activation is not Activation.NONE:
        return ""
    last = source.opset >= _ONE_AXIS and source.integer("axis", -1) in (-1, _rank(graph, node) - 1)
    if zero is None or zero.size != 1 or zero.item() != 0 or zero.ndim > _rank(graph, node):
        return ""
    return node.inputs[2] if last and _rank(graph, source) == _rank(graph, node) else ""


def _rank(graph: Graph, node: Node) -> int:
    try:
        return len(graph.shape(node.outputs[0]))
    except NotLowerableError:
        return 0


def _reread(changed: dict[tuple[str, ...], list[Node]], reader: Node, old: str, new: str) -> None:
    current = changed.get(reader.outputs, [reader])
    first = replace(current[0], inputs=tuple(new if name == old else name for name in current[0].inputs))
    changed[reader.outputs] = [first, *current[1:]]


def _is_smaller_after(graph: Graph, product: Node, shares: str) -> bool:
    if product.operator != "MatMul" or product.inputs[0] != shares or shares in product.inputs[1:]:
        return False
    shapes = [graph.shape(name) for name in (shares, product.outputs[0], product.inputs[1])]
    return min(map(len, shapes)) > 1 and math.prod(shapes[1]) < math.prod(shapes[0])


def _may_be_hidden(graph: Graph, name: str, producers: Mapping[str, Node]) -> bool:
    """Whether a row of the scores may be nothing but -inf: products of finite numbers under one known mask are not."""
    masks = 0
    while (node := producers.get(name)) is not None and node.operator in ("Add", "Div", "Mul", "Reshape", "Where"):
        if node.operator == "Reshape":
            if graph.shape(name)[-1:] != graph.shape(node.inputs[0])[-1:]:
                return True
            name = node.inputs[0]
            continue
        if node.operator == "Where":
            fills = [at for at in (1, 2) if node.inputs[at] in graph.constants]
            if len(fills) != 1 or not _fills_some(graph, node, fills[0]):
                return True
            masks, name = masks + 1, node.inputs[3 - fills[0]]
            continue
        known = [at for at, item in enumerate(node.inputs) if _is_known(graph, item, producers)]
        if len(known) != 1 or (node.operator == "Div" and known[0] == 0):
            return True
        lowest, leaves = _reach(graph, node.inputs[known[0]], producers)
        if not leaves or (node.operator != "Add" and lowest == -math.inf):
            return True
        masks += lowest <= _HIDING
        name = node.inputs[1 - known[0]]
    return masks > 1 or node is None or node.operator != "MatMul"


def _fills_some(graph: Graph, node: Node, at: int) -> bool:
    """Whether filling in the constant at a position of a Where leaves each row something above -inf."""
    fill, mask = graph.constants[node.inputs[at]], graph.constants.get(node.inputs[0])
    if np.isfinite(fill.astype(np.float64)).all():
        return True
    return mask is not None and bool(np.any(np.atleast_1d(mask) == (at != 1), axis=-1).all())


def _is_known(graph: Graph, name: str, producers: Mapping[str, Node]) -> bool:
    """Whether a value can only be of some numbers that are known."""
    node = producers.get(name)
    filled = node is not None and node.operator == "Where" and all(item in graph.constants for item in node.inputs[1:])
    return name in graph.constants or filled


def _reach(graph: Graph, name: str, producers: Mapping[str, Node]) -> tuple[float, bool]:
    """(least number, whether each row has a finite one) of a value that is known."""
    if name in graph.constants:
        array = np.atleast_1d(graph.constants[name]).astype(np.float64)
        finite = bool(array.size and (array < np.inf).all() and (array.max(axis=-1) > -np.inf).all())
        return float(array.min()) if finite else -math.inf, finite
    lowest = min(float(graph.constants[item].min()) for item in producers[name].inputs[1:])
    return lowest, all(bool(np.isfinite(graph.constants[item]).all()) for item in producers[name].inputs[1:])
