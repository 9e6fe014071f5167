"""Values multiplied by turned shares, between two transposes: shares by turned values, so that both move whole rows.

Turns nothing that is not transposed anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgefleet_converters.tflite.graph import RIGHT_TRANSPOSED, Activation, Graph, Node, keeps_order

_LARGEST_RANK = 4


def turn_values(graph: Graph) -> Graph:
    """Transpose(values P' Q) as Transpose(Q' P values'), where that leaves both transposes' last axis in its place.

    Runs after right operands have absorbed their transposes, and before left-over ones keep rows last.
    """
    producers = {name: node for node in graph.nodes for name in node.outputs if name}
    consumers = graph.consumers()
    values, changed = dict(graph.values), dict[tuple[str, ...], Node]()
    for node in graph.nodes:
        ends = _ends(graph, node, producers, consumers)
        if ends is None or changed.keys() & {ends[0].outputs, ends[1].outputs}:
            continue
        for name in (ends[0].outputs[0], node.outputs[0]):
            shape = graph.shape(name)
            turned = (*shape[:-2], shape[-1], shape[-2])
            values[f"{name}/turned"] = replace(values[name], name=f"{name}/turned", shape=turned)
        changed.update(_turned(ends[0], node, ends[1]))
    nodes = [changed.get(node.outputs, node) for node in graph.nodes]
    return replace(graph, values=values).with_nodes(nodes) if changed else graph


def _turned(before: Node, product: Node, after: Node) -> dict[tuple[str, ...], Node]:
    """What stands for the three nodes, by the outputs of each."""
    right, result = f"{before.outputs[0]}/turned", f"{product.outputs[0]}/turned"
    order, last = before.integers("perm", ()), len(before.integers("perm", ())) - 1
    swap = {last: last - 1, last - 1: last}
    back = tuple(swap.get(axis, axis) for axis in after.integers("perm", ()))
    attributes = {key: item for key, item in product.attributes.items() if key != RIGHT_TRANSPOSED}
    into: dict[str, object] = {"perm": (*order[:-2], order[-1], order[-2])}
    return {
        before.outputs: replace(before, outputs=(right,), attributes=into),
        product.outputs: replace(product, inputs=(product.inputs[1], right), outputs=(result,), attributes=attributes),
        after.outputs: replace(after, inputs=(result,), attributes={"perm": back}),
    }


def _ends(
    graph: Graph, product: Node, producers: Mapping[str, Node], consumers: Mapping[str, list[Node]]
) -> tuple[Node, Node] | None:
    """The transposes before the left operand and after the result, if both gain by a swap of their last two axes."""
    if product.operator != "MatMul" or not product.integer(RIGHT_TRANSPOSED, 0):
        return None
    before, after = producers.get(product.inputs[0]), graph.sole_consumer(product.outputs[0], consumers)
    if before is None or after is None or {before.operator, after.operator} != {"Transpose"}:
        return None
    alone = graph.sole_consumer(product.inputs[0], consumers) is product
    shapes = [graph.shape(name) for name in (*product.inputs, *product.outputs)]
    if not alone or product.activation is not Activation.NONE or product.inputs[1] in graph.constants:
        return None
    if len({len(shape) for shape in shapes}) > 1 or not 2 < len(shapes[0]) <= _LARGEST_RANK:
        return None
    last = len(shapes[0]) - 1
    into, back = before.integers("perm", ()), after.integers("perm", ())
    gains = len(into) == len(back) == last + 1 and into[-2] == last and back[-1] == last - 1
    return (before, after) if gains and not keeps_order(graph.shape(before.inputs[0]), into) else None
