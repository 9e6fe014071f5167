"""Rewriting one node for permuted data: axes, pads and repeats are renumbered, nothing is moved.

The rewritten node is plain ONNX again, on tensors whose axes come in another order; it knows axes, never sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgefleet_converters.tflite.graph import Array, Graph, Node, NotLowerableError, permuted

Order = tuple[int, ...]
"""A permutation: axis i of the stored tensor is axis order[i] of the source's."""
Rewritten = tuple[Node, Mapping[str, Array]]
"""A node, and the constants that it needs now."""


def identity(rank: int) -> Order:
    """The permutation that moves nothing."""
    return tuple(range(rank))


def axes_of(graph: Graph, node: Node, position: int, rank: int) -> Order:
    """The axes that a node names in an attribute or in the constant input at `position`; all of them if in neither."""
    if "axes" in node.attributes:
        found = node.integers("axes", ())
    elif node.input(position):
        found = tuple(int(axis) for axis in graph.constant(node.input(position), "axes").ravel())
    else:
        found = ()
    return tuple(axis % max(rank, 1) for axis in found) or identity(rank)


def with_input(node: Node, position: int, array: Array, role: str) -> Rewritten:
    """The node with a constant of its own at an input."""
    name = f"{node.outputs[0]}/{role}"
    inputs = [*node.inputs, *[""] * (position + 1 - len(node.inputs))]
    inputs[position] = name
    return replace(node, inputs=tuple(inputs)), {name: array}


def with_attribute(node: Node, name: str, value: object) -> Node:
    """The node with one attribute changed."""
    return replace(node, attributes={**node.attributes, name: value})


def rewrite(graph: Graph, node: Node, order: Order) -> Rewritten:
    """The same operation on data stored in `order`; the operator must be in `REWRITES` or have no axes at all."""
    return REWRITES[node.operator](graph, node, order) if node.operator in REWRITES else (node, {})


def _axis(default: int) -> Callable[[Graph, Node, Order], Rewritten]:
    def rewritten(_graph: Graph, node: Node, order: Order) -> Rewritten:
        axis = node.integer("axis", default) % len(order)
        return with_attribute(node, "axis", order.index(axis)), {}

    return rewritten


def _axes(position: int) -> Callable[[Graph, Node, Order], Rewritten]:
    def rewritten(graph: Graph, node: Node, order: Order) -> Rewritten:
        if "axes" not in node.attributes and not node.input(position):
            return node, {}
        moved = [order.index(axis) for axis in axes_of(graph, node, position, len(order))]
        if "axes" in node.attributes:
            return with_attribute(node, "axes", moved), {}
        return with_input(node, position, np.array(moved, np.int64), "axes")

    return rewritten


def _slice(graph: Graph, node: Node, order: Order) -> Rewritten:
    """Absent axes are the first ones, as many as there are starts."""
    if node.opset < 10:
        count = len(node.integers("starts", ()))
        axes = node.integers("axes", identity(count))
        return with_attribute(node, "axes", [order.index(axis % len(order)) for axis in axes]), {}
    axes = (
        axes_of(graph, node, 3, len(order)) if node.input(3) else identity(graph.constant(node.input(1), "starts").size)
    )
    return with_input(node, 3, np.array([order.index(axis) for axis in axes], np.int64), "axes")


def _pad(graph: Graph, node: Node, order: Order) -> Rewritten:
    """Pads of the axes that it names, or of all of them: all the starts, then all the ends."""
    rank = len(order)
    old = node.opset < 11
    given = node.integers("pads", ()) if old else tuple(graph.constant(node.input(1), "pads").ravel().tolist())
    axes = identity(rank) if old or not node.input(3) else axes_of(graph, node, 3, rank)
    pads = np.zeros((2, rank), np.int64)
    pads[:, list(axes)] = np.array(given, np.int64).reshape(2, -1)
    moved = pads[:, list(order)].ravel()
    if old:
        return with_attribute(node, "pads", moved.tolist()), {}
    changed, constants = with_input(node, 1, moved, "pads")
    return replace(changed, inputs=changed.inputs[:3]), constants


def _cumulative(graph: Graph, node: Node, order: Order) -> Rewritten:
    axis = int(graph.constant(node.input(1), "axis").item()) % len(order)
    return with_input(node, 1, np.array(order.index(axis), np.int64), "axis")


def _tile(graph: Graph, node: Node, order: Order) -> Rewritten:
    repeats = graph.constant(node.input(1), "repeats").ravel()
    return with_input(node, 1, repeats[list(order)], "repeats")


def _expand(graph: Graph, node: Node, order: Order) -> Rewritten:
    shape = permuted(graph.shape(node.outputs[0]), order)
    return with_input(node, 1, np.array(shape, np.int64), "shape")


_REDUCING = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
REDUCTIONS = tuple(f"Reduce{name}" for name in _REDUCING)

REWRITES: Mapping[str, Callable[[Graph, Node, Order], Rewritten]] = {
    **{name: _axes(1) for name in REDUCTIONS},
    "ArgMax": _axis(0),
    "ArgMin": _axis(0),
    "Concat": _axis(1),
    "CumSum": _cumulative,
    "Expand": _expand,
    "Gather": _axis(0),
    "GatherElements": _axis(0),
    "Hardmax": _axis(-1),
    "LogSoftmax": _axis(-1),
    "LpNormalization": _axis(-1),
    "Pad": _pad,
    "Slice": _slice,
    "Softmax": _axis(-1),
    "Split": _axis(0),
    "Tile": _tile,
    "TopK": _axis(-1),
}


def _known_inputs(graph: Graph, node: Node, positions: Sequence[int]) -> bool:
    return all(not node.input(position) or node.input(position) in graph.constants for position in positions)


_CONSTANT_INPUTS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(REDUCTIONS, (1,)),
    "CumSum": (1,),
    "Pad": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Tile": (1,),
}


def may_rewrite(graph: Graph, node: Node) -> bool:
    """Whether the node's axes are known: it can work on permuted data."""
    if node.operator not in REWRITES or not _known_inputs(graph, node, _CONSTANT_INPUTS.get(node.operator, ())):
        return False
    if node.operator in REDUCTIONS and node.integer("noop_with_empty_axes", 0):
        return bool(node.input(1)) and graph.constants[node.input(1)].size > 0
    # Before opset 13 these run over everything from the axis on.
    rows = ("Hardmax", "LogSoftmax", "Softmax")
    if (node.operator == "Pad" and node.opset < 2) or (node.operator in rows and node.opset < 13):
        return False
    rank = len(graph.shape(node.inputs[0]))
    if node.operator == "Expand" and len(graph.shape(node.outputs[0])) != rank:
        return False
    try:
        return bool(rewrite(graph, node, identity(rank)))
    except (NotLowerableError, ValueError, IndexError):
        return False
