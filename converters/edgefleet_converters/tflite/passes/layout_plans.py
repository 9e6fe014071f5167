"""The ways in which one node can work: in which layout it reads each input and writes each output.

Decides nothing between them. A plan is made from the layout of any one input or output, so that layouts that some
node needs spread from node to node; every node also has a plan of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgefleet_converters.tflite.graph import Graph, Node, NotLowerableError
from edgefleet_converters.tflite.passes.layout_absorb import absorbs_into_producer, absorbs_into_readers
from edgefleet_converters.tflite.passes.layout_axes import REDUCTIONS, Order, axes_of, identity, may_rewrite
from edgefleet_converters.tflite.passes.layout_reshape import carried
from edgefleet_converters.tflite.passes.layout_table import (
    AXIS_LAST,
    EITHER,
    ELEMENTWISE,
    RESHAPING,
    SPATIAL,
    channels_last,
)

_JOINED = ("Concat", "GatherElements")
_MOVING = {"Transpose": "transpose", **dict.fromkeys(RESHAPING, "reshape")}


@dataclass(frozen=True, slots=True)
class Plan:
    """Layouts by position; an input that is absent or constant has none. `order` is that of the node's own axes.

    `absorbed` says that the weights around a Reshape are to be reordered, which pays for what it cannot carry.
    """

    inputs: tuple[Order | None, ...]
    outputs: tuple[Order | None, ...]
    order: Order = ()
    absorbed: bool = False


class Planner:
    """Plans of the nodes of one graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._consumers = graph.consumers()
        self._producers = {name: node for node in graph.nodes for name in node.outputs if name}
        self._kinds = {node: self._kind(node) for node in graph.nodes}

    def own(self, node: Node) -> Plan:
        """The plan that needs no reason: the source's layout, if the node has a choice."""
        kind = self._kinds[node]
        if kind == "spatial":
            return self._spatial(node)
        if kind == "axis last":
            return self._in_order(node, self._ending(node, identity(self._rank(node.inputs[0]))))
        if kind in ("opaque", "either"):
            return self._all_identity(node)
        made = self._made(node, kind, identity(self._frame_rank(node, kind)))
        return made or self._all_identity(node)

    def from_input(self, node: Node, position: int, layout: Order) -> Plan | None:
        """The plan that reads an input in a layout, or the nearest one to it; None if there is none."""
        kind = self._kinds[node]
        if kind in ("opaque", "spatial"):
            return None
        if kind == "either":
            return self._spatial(node) if position == 0 and layout == channels_last(len(layout)) else None
        if kind == "transpose":
            turned = self._turned(node)
            return self._made(node, kind, tuple(turned.index(axis) for axis in layout))
        if kind == "reshape":
            return self._reshaped(node, layout)
        rank = self._frame_rank(node, kind)
        missing = rank - len(layout)
        if missing:
            layout = (*range(missing), *(axis + missing for axis in layout)) if kind == "elementwise" else ()
        if len(layout) != rank or (kind != "elementwise" and not self._is_data(node, position)):
            return None
        return self._made(node, kind, layout)

    def from_output(self, node: Node, layout: Order) -> Plan | None:
        """The plan that writes the first output in a layout; None if there is none."""
        kind = self._kinds[node]
        if kind in ("opaque", "spatial"):
            return None
        if kind == "either":
            return self._spatial(node) if layout == channels_last(len(layout)) else None
        if kind == "reshape":
            return self._made(node, kind, layout) or self._absorbed_before(node, layout)
        rank = self._frame_rank(node, kind)
        if len(layout) == rank and not (kind == "axes" and node.operator == "Gather"):
            return self._made(node, kind, layout)
        if node.operator in REDUCTIONS:
            gone = axes_of(self._graph, node, 1, rank)
            kept = [axis for axis in range(rank) if axis not in gone]
            return self._made(node, kind, (*(kept[axis] for axis in layout), *sorted(gone)))
        return None

    def _kind(self, node: Node) -> str:
        graph = self._graph
        try:
            names = [name for name in (*node.inputs, *node.outputs) if name]
            ranks = [len(graph.shape(name)) for name in names]
        except NotLowerableError:
            return "opaque"
        operator = node.operator
        if operator in SPATIAL and ranks[0] > 2 and not any(node.outputs[1:]):
            return self._spatial_kind(node)
        if operator in ELEMENTWISE:
            return "elementwise" if self._broadcasts(node) else "opaque"
        if operator in _MOVING:
            return _MOVING[operator]
        if operator in AXIS_LAST and node.opset >= AXIS_LAST[operator] and ranks[0] > 1:
            return "axis last"
        return "axes" if may_rewrite(graph, node) and ranks[0] > 1 else "opaque"

    def _spatial_kind(self, node: Node) -> str:
        if node.inputs[0] in self._graph.constants:
            # Its rule turns the constant itself.
            return "opaque"
        return "either" if node.operator in EITHER else "spatial"

    def _spatial(self, node: Node) -> Plan:
        wide = self._all_identity(node)
        last = channels_last(self._rank(node.inputs[0]))
        return Plan((last, *wide.inputs[1:]), (last, *wide.outputs[1:]))

    def _broadcasts(self, node: Node) -> bool:
        """Whether its operands broadcast as in numpy; before opset 7 they had to say how, if their shapes differ."""
        shapes = {self._graph.shape(name) for name in node.inputs if name}
        if node.operator in ("QuantizeLinear", "DequantizeLinear"):
            return all(math.prod(self._graph.shape(name)) == 1 for name in node.inputs[1:] if name)
        if node.operator == "CastLike":
            return False
        return node.opset >= 7 or len(shapes) == 1 or not node.integer("broadcast", 0)

    def _rank(self, name: str) -> int:
        return len(self._graph.shape(name))

    def _frame_rank(self, node: Node, kind: str) -> int:
        return self._rank(node.outputs[0] if kind in ("elementwise", "reshape", "transpose") else node.inputs[0])

    def _is_data(self, node: Node, position: int) -> bool:
        return position == 0 or node.operator == "Concat" or (node.operator in _JOINED and position < 2)

    def _turned(self, node: Node) -> Order:
        rank = self._rank(node.inputs[0])
        return tuple(axis % rank for axis in node.integers("perm", tuple(reversed(range(rank)))))

    def _all_identity(self, node: Node) -> Plan:
        return Plan(
            tuple(self._identity(name) if self._flows(name) else None for name in node.inputs),
            tuple(self._identity(name) if name else None for name in node.outputs),
        )

    def _identity(self, name: str) -> Order:
        try:
            return identity(self._rank(name))
        except NotLowerableError:
            return ()

    def _flows(self, name: str) -> bool:
        return name != "" and name not in self._graph.constants

    def _made(self, node: Node, kind: str, order: Order) -> Plan | None:
        if kind == "transpose":
            turned = self._turned(node)
            return Plan((tuple(turned[axis] for axis in order),), (order,), order)
        if kind == "reshape":
            graph = self._graph
            source = carried(graph.shape(node.outputs[0]), order, graph.shape(node.inputs[0]))
            rest = (None,) * (len(node.inputs) - 1)
            return None if source is None else Plan((source, *rest), (order,), order)
        if kind == "elementwise":
            inputs = tuple(self._lower(order, self._rank(name)) if self._flows(name) else None for name in node.inputs)
            return Plan(inputs, (order,) * len(node.outputs), order)
        return self._in_order(node, self._ending(node, order) if kind == "axis last" else order)

    def _lower(self, order: Order, rank: int) -> Order:
        """The layout that a broadcast operand of a lower rank needs: its axes are the last ones."""
        missing = len(order) - rank
        return tuple(axis - missing for axis in order if axis >= missing)

    def _ending(self, node: Node, order: Order) -> Order:
        axis = node.integer("axis", -1) % len(order)
        return (*(other for other in order if other != axis), axis)

    def _in_order(self, node: Node, order: Order) -> Plan:
        inputs = [
            (order if self._is_data(node, position) else self._identity(name)) if self._flows(name) else None
            for position, name in enumerate(node.inputs)
        ]
        result = self._result(node, order)
        return Plan(tuple(inputs), tuple(result if name else None for name in node.outputs), order)

    def _result(self, node: Node, order: Order) -> Order:
        """Layout of the outputs of a node whose axes are in `order`."""
        if node.operator == "Gather":
            axis, width = node.integer("axis", 0) % len(order), self._rank(node.inputs[1])
            moved = {other: other + (width - 1 if other > axis else 0) for other in order}
            blocks = [range(axis, axis + width) if other == axis else (moved[other],) for other in order]
            return tuple(item for block in blocks for item in block)
        if self._rank(node.outputs[0]) == len(order):
            return order
        if node.operator in ("ArgMax", "ArgMin"):
            gone: Order = (node.integer("axis", 0) % len(order),)
        else:
            gone = axes_of(self._graph, node, 1, len(order))
        return tuple(axis - sum(other < axis for other in gone) for axis in order if axis not in gone)

    def _reshaped(self, node: Node, layout: Order) -> Plan | None:
        graph = self._graph
        shape, result = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
        order = carried(shape, layout, result)
        if order is not None:
            return self._made(node, "reshape", order)
        if layout[0] == 0 and absorbs_into_readers(graph, node, self._consumers):
            rest = (None,) * (len(node.inputs) - 1)
            return Plan((layout, *rest), (identity(len(result)),), layout, absorbed=True)
        return None

    def _absorbed_before(self, node: Node, layout: Order) -> Plan | None:
        """A Reshape of what Gemm computes: its columns can be in the order that the result's layout needs."""
        graph = self._graph
        if layout[0] != 0 or not absorbs_into_producer(graph, node, self._consumers, self._producers):
            return None
        rest = (None,) * (len(node.inputs) - 1)
        return Plan((identity(self._rank(node.inputs[0])), *rest), (layout,), layout, absorbed=True)


def possible_plans(graph: Graph, seeds: Mapping[str, set[Order]], most: int) -> dict[Node, list[Plan]]:
    """Up to `most` plans of every node, its own first; `seeds` are layouts that borders may have."""
    planner = Planner(graph)
    plans = {node: [planner.own(node)] for node in graph.nodes}
    known: dict[str, set[Order]] = {name: set(layouts) for name, layouts in seeds.items()}
    consumers = graph.consumers()
    producers = {name: node for node in graph.nodes for name in node.outputs if name}
    waiting: list[tuple[str, Order]] = [(name, layout) for name, layouts in seeds.items() for layout in layouts]
    for node in graph.nodes:
        waiting.extend(_spread(node, plans[node][0], known))
    while waiting:
        name, layout = waiting.pop(0)
        found: list[tuple[Node, Plan | None]] = []
        if name in producers and producers[name].outputs[0] == name:
            found.append((producers[name], planner.from_output(producers[name], layout)))
        for node in dict.fromkeys(consumers.get(name, [])):
            found.extend(
                (node, planner.from_input(node, at, layout)) for at, item in enumerate(node.inputs) if item == name
            )
        for node, plan in found:
            mine = plans[node]
            if plan is not None and plan not in mine and len(mine) < most:
                mine.append(plan)
                waiting.extend(_spread(node, plan, known))
    return plans


def _spread(node: Node, plan: Plan, known: dict[str, set[Order]]) -> list[tuple[str, Order]]:
    """The layouts of a plan that their values did not have yet."""
    new = []
    pairs = (*zip(node.inputs, plan.inputs, strict=False), *zip(node.outputs, plan.outputs, strict=True))
    for name, layout in pairs:
        if layout is not None and layout not in known.setdefault(name, set()):
            known[name].add(layout)
            new.append((name, layout))
    return new
