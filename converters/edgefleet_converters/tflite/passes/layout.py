"""Layout assignment: spatial operators work on channels-last (NHWC) values; as little as possible is moved.

All nodes are decided together: each may work in several layouts (`layout_plans`), each disagreement costs a transpose,
and the cheapest choice is found exactly (`layout_choice`). Only rank 4 has a channels-last form at a graph's border.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgefleet_converters.tflite.graph import (
    CHANNELS_LAST,
    Graph,
    Node,
    NotLowerableError,
    keeps_order,
    permuted,
)
from edgefleet_converters.tflite.passes.layout_axes import Order, identity
from edgefleet_converters.tflite.passes.layout_choice import Table, choose
from edgefleet_converters.tflite.passes.layout_placement import Placement
from edgefleet_converters.tflite.passes.layout_plans import Plan, possible_plans
from edgefleet_converters.tflite.passes.layout_table import AXIS_LAST, SPATIAL

_MOST_PLANS = 5
_LARGEST_TABLE = 4096
# In transposes: enough to prefer none of them, and never as much as one.
_RESHAPE_COST, _BORDER_COST, _SIZE_COST = 0.002, 0.001, 0.05

Choice = tuple[tuple[tuple[str, Order], ...], tuple[tuple[str, Order], ...], float]
"""One way of an actor: what it reads and what it writes, in which layout, and what that costs by itself."""


def assign_layouts(graph: Graph, inputs: Mapping[str, bool] | None = None, *, keep: bool = False) -> Graph:
    """Choose each value's layout, permute constants, and add Transpose nodes where two layouts meet.

    A rank-4 float input or output is stored channels-last where that saves a transpose; with `keep`, all stay as they
    are in the source. `inputs` says of single inputs whether they are channels-last.
    """
    borders = _input_layouts(graph, inputs or {}, keep=keep)
    if not any(layouts[0] != identity(len(layouts[0])) for layouts in borders.values()) and not _concerns(graph):
        return graph
    seeds = {name: {layouts[0]} for name, layouts in borders.items()}
    plans = possible_plans(graph, seeds, _MOST_PLANS)
    ends = {name: _border(graph, name, free=not keep) for name in graph.outputs}
    picked = _pick(graph, [_of_border(name, found, read=False) for name, found in borders.items()], plans, ends)
    placement = Placement(graph, dict(graph.values), dict(graph.constants))
    position = len(borders)
    for (name, layouts), option in zip(borders.items(), picked[:position], strict=True):
        placement.place_input(name, layouts[option])
    for node, option in zip(graph.nodes, picked[position:], strict=False):
        placement.place(node, plans[node][option])
    outputs: list[str] = []
    for name, option in zip(graph.outputs, picked[position + len(graph.nodes) :], strict=True):
        outputs.append(placement.place_output(name, ends[name][option], {*graph.inputs, *outputs}))
    placed = replace(graph, values=placement.values, layouts=placement.layouts, outputs=tuple(outputs))
    return placed.with_nodes(placement.nodes, placement.constants)


def _concerns(graph: Graph) -> bool:
    """Whether any node wants something other than the source's layout."""
    return any(
        node.operator in SPATIAL or node.operator in AXIS_LAST or node.operator == "Transpose" for node in graph.nodes
    )


def _input_layouts(graph: Graph, asked: Mapping[str, bool], *, keep: bool) -> dict[str, list[Order]]:
    found = {}
    for name in graph.inputs:
        shape = graph.values[name].shape
        wide = shape is not None and len(shape) == len(CHANNELS_LAST)
        if asked.get(name) and not wide:
            raise NotLowerableError(f"the input {name!r} has no channels-last form: it is not of rank 4")
        if name in asked and wide:
            found[name] = [CHANNELS_LAST if asked[name] else identity(len(CHANNELS_LAST))]
        else:
            found[name] = _border(graph, name, free=not keep)
    return found


def _border(graph: Graph, name: str, *, free: bool) -> list[Order]:
    """The layouts that a graph input or output may have, the source's first."""
    value = graph.values[name]
    plain = identity(len(value.shape or ()))
    wide = len(plain) == len(CHANNELS_LAST) and value.dtype == "float32"
    return [plain, CHANNELS_LAST] if free and wide else [plain]


def _of_border(name: str, layouts: Iterable[Order], *, read: bool) -> list[Choice]:
    return [
        (((name, layout),), (), _BORDER_COST * at) if read else ((), ((name, layout),), _BORDER_COST * at)
        for at, layout in enumerate(layouts)
    ]


def _of_plan(node: Node, plan: Plan) -> Choice:
    reads = tuple((name, layout) for name, layout in zip(node.inputs, plan.inputs, strict=False) if layout is not None)
    writes = zip(node.outputs, plan.outputs, strict=True)
    return reads, tuple((name, layout) for name, layout in writes if layout is not None), 0.0


def _pick(
    graph: Graph,
    borders: Sequence[list[Choice]],
    plans: Mapping[Node, list[Plan]],
    ends: Mapping[str, list[Order]],
) -> list[int]:
    """The chosen option of every input, node and output, in this order."""
    actors = [
        *borders,
        *([_of_plan(node, plan) for plan in plans[node]] for node in graph.nodes),
        *(_of_border(name, layouts, read=True) for name, layouts in ends.items()),
    ]
    tables = [Table((at,), np.array([cost for _, _, cost in options])) for at, options in enumerate(actors)]
    near: dict[str, list[int]] = {}
    for at, options in enumerate(actors):
        reads, writes, _ = options[0]
        for name in dict.fromkeys(name for name, _ in (*writes, *reads)):
            near.setdefault(name, []).append(at)
    moves = _Moves(graph)
    for name, found in near.items():
        if name in graph.values and graph.values[name].shape is not None:
            tables.extend(moves.tables(name, actors, found))
    return choose([len(options) for options in actors], tables)


@dataclass(slots=True)
class _Moves:
    """What it costs to have a value in the layouts that its readers need."""

    graph: Graph
    _total: float = field(init=False)

    def __post_init__(self) -> None:
        self._total = 1.0 + sum(math.prod(value.shape) for value in self.graph.values.values() if value.shape)

    def tables(self, name: str, actors: Sequence[list[Choice]], near: Sequence[int]) -> list[Table]:
        """Cost over all that touch a value; reader by reader, as if nothing were shared, where that is too much."""
        free = tuple(at for at in near if len(actors[at]) > 1)
        if not free:
            return []
        if math.prod(len(actors[at]) for at in free) > _LARGEST_TABLE and len(near) > 2:
            return [table for other in near[1:] for table in self.tables(name, actors, (near[0], other))]
        costs = np.zeros([len(actors[at]) for at in free])
        for combination in itertools.product(*(range(len(actors[at])) for at in free)):
            picked = dict(zip(free, combination, strict=True))
            costs[combination] = self._cost(name, [actors[at][picked.get(at, 0)] for at in near])
        return [Table(free, costs)]

    def _cost(self, name: str, choices: Sequence[Choice]) -> float:
        written = next((layout for _, writes, _ in choices for item, layout in writes if item == name), None)
        if written is None:
            return 0.0
        wanted = {layout for reads, _, _ in choices for item, layout in reads if item == name}
        return sum(self._move(name, written, layout) for layout in wanted)

    def _move(self, name: str, layout: Order, wanted: Order) -> float:
        if layout == wanted:
            return 0.0
        shape = self.graph.shape(name)
        turn = tuple(layout.index(axis) for axis in wanted)
        if keeps_order(permuted(shape, layout), turn):
            return _RESHAPE_COST
        return 1.0 + _SIZE_COST * math.prod(shape) / self._total
