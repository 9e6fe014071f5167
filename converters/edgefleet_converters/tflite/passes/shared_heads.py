"""Keys and values that several heads share, repeated for each: one product per shared head instead, of all its rows.

Only right operands are read so, and only repetition along the axis before the last two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgefleet_converters.tflite.graph import Graph, Node, NotLowerableError, Value
from edgefleet_converters.tflite.passes.layout_table import RESHAPING
from edgefleet_converters.tflite.passes.liveness import needed
from edgefleet_converters.tflite.passes.reshapes import merge_reshapes

_LEAST_RANK = 3


def share_heads(graph: Graph) -> Graph:
    """Products of [.., groups * repeats, rows, size] by what was [.., groups, size, columns], as groups of all rows."""
    producers = {name: node for node in graph.nodes for name in node.outputs if name}
    values, nodes = dict(graph.values), list[Node]()
    for node in graph.nodes:
        try:
            repeated = _repeated(graph, node, producers)
        except NotLowerableError:
            repeated = None
        if repeated is None:
            nodes.append(node)
            continue
        for made, shape in _grouped(graph, node, repeated):
            values[made.outputs[0]] = Value(made.outputs[0], graph.dtype(node.outputs[0]), shape)
            nodes.append(made)
    if len(nodes) == len(graph.nodes):
        return graph
    return merge_reshapes(replace(graph, values=values).with_nodes(needed(nodes, graph.outputs)))


@dataclass(frozen=True, slots=True)
class _Repeated:
    """A value before it was repeated, its shape with the groups before the last two axes, and the turn after it."""

    source: str
    shape: tuple[int, ...]
    repeats: int
    turn: Node | None


def _repeated(graph: Graph, product: Node, producers: Mapping[str, Node]) -> _Repeated | None:
    """What the right operand of a product repeats; None where it does not, or the left one would be broadcast."""
    if product.operator != "MatMul" or product.inputs[0] == product.inputs[1]:
        return None
    turn = producers.get(product.inputs[1])
    if turn is not None and turn.operator == "Transpose":
        rank = len(graph.shape(turn.inputs[0]))
        swapped = (*range(rank - 2), rank - 1, rank - 2)
        if turn.integers("perm", tuple(reversed(range(rank)))) != swapped:
            return None
    else:
        turn = None
    wide = product.inputs[1] if turn is None else turn.inputs[0]
    node = producers.get(wide)
    if node is not None and node.operator in RESHAPING:
        node = producers.get(node.inputs[0])
    if node is None or node.operator not in ("Expand", "Tile") or node.inputs[0] in graph.constants:
        return None
    before, after, goal = graph.shape(node.inputs[0]), graph.shape(node.outputs[0]), graph.shape(wide)
    before = (1,) * (len(after) - len(before)) + before
    grown = [at for at, size in enumerate(after) if size != before[at]]
    left = graph.shape(product.inputs[0])
    if len(goal) < _LEAST_RANK or grown != [len(after) - 3] or before[-3] != 1 or goal[-2:] != after[-2:]:
        return None
    if left[:-2] != goal[:-2] or goal[-3] % after[-3]:
        return None
    return _Repeated(node.inputs[0], (*goal[:-3], goal[-3] // after[-3], *goal[-2:]), after[-3], turn)


def _grouped(graph: Graph, product: Node, repeated: _Repeated) -> list[tuple[Node, tuple[int, ...]]]:
    """The nodes that make the product's result, and the shapes of theirs."""
    output, shape = product.outputs[0], repeated.shape
    rows = graph.shape(product.inputs[0])
    queries = (*shape[:-2], repeated.repeats * rows[-2], rows[-1])
    made = [
        (Node(f"{product.name}/groups", "Reshape", (repeated.source,), (f"{output}/shared",), opset=13), shape),
        (Node(f"{product.name}/rows", "Reshape", product.inputs[:1], (f"{output}/rows",), opset=13), queries),
    ]
    right = f"{output}/shared"
    if repeated.turn is not None:
        shape = (*shape[:-2], shape[-1], shape[-2])
        made.append((replace(repeated.turn, inputs=(right,), outputs=(f"{output}/turned",)), shape))
        right = f"{output}/turned"
    result = (*queries[:-1], shape[-1])
    inputs = (f"{output}/rows", right)
    made.append((replace(product, inputs=inputs, outputs=(f"{output}/grouped",)), result))
    whole = graph.shape(output)
    return [*made, (Node(f"{product.name}/heads", "Reshape", (f"{output}/grouped",), (output,), opset=13), whole)]
