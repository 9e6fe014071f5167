"""Writing the graph anew once every node has its plan: constants permuted, axes renumbered, values moved where needed.

Decides nothing. A value is moved into a layout once, however many nodes read it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from edgefleet_converters.tflite.graph import Array, Graph, Node, Value, keeps_order, permuted
from edgefleet_converters.tflite.passes.layout_absorb import (
    Consumers,
    producer_slots,
    reader_slots,
    reordered,
    reordering,
)
from edgefleet_converters.tflite.passes.layout_axes import Order, identity, rewrite, with_attribute
from edgefleet_converters.tflite.passes.layout_plans import Plan
from edgefleet_converters.tflite.passes.layout_table import ELEMENTWISE, MARK, RESHAPING, SPATIAL, channels_last


@dataclass(frozen=True, slots=True)
class Stored:
    """A source value as it lies in the new graph: under which name, in which layout."""

    name: str
    layout: Order


@dataclass(slots=True)
class Placement:
    """The new graph while it is being written; `constants` are the source's, some of them replaced."""

    graph: Graph
    values: dict[str, Value]
    constants: dict[str, Array]
    nodes: list[Node] = field(default_factory=list)
    layouts: dict[str, Order] = field(default_factory=dict)
    _stored: dict[str, Stored] = field(default_factory=dict)
    _moved: dict[tuple[str, Order], str] = field(default_factory=dict)
    _shaped: dict[tuple[str, tuple[int, ...]], str] = field(default_factory=dict)
    _consumers: Consumers = field(init=False)
    _producers: Mapping[str, Node] = field(init=False)

    def __post_init__(self) -> None:
        self._consumers = self.graph.consumers()
        self._producers = {name: node for node in self.graph.nodes for name in node.outputs if name}

    def place_input(self, name: str, layout: Order) -> None:
        """A graph input that is stored in a layout."""
        self._store(name, layout)

    def place(self, node: Node, plan: Plan) -> None:
        """Write a node in the way of its plan."""
        if plan.absorbed:
            self._absorb(node, plan)
        if node.operator == "Transpose" and plan.order:
            self._stored[node.outputs[0]] = Stored(self._form(node.inputs[0], plan.inputs[0] or ()), plan.order)
            return
        if node.operator in RESHAPING and any(plan.outputs):
            self._reshape(node, plan)
            return
        moved = bool(plan.order) and plan.order != identity(len(plan.order))
        if moved:
            changed, constants = rewrite(self.graph, node, plan.order)
            self.constants.update(constants)
        else:
            changed = node
        inputs = [
            self._operand(name, layout, plan, changed, moved=moved)
            for name, layout in zip(changed.inputs, (*plan.inputs, *[None] * len(changed.inputs)), strict=False)
        ]
        for name, layout in zip(node.outputs, plan.outputs, strict=True):
            if name:
                self._store(name, layout or ())
        if node.operator in SPATIAL and (first := plan.inputs[0]) and first == channels_last(len(first)):
            changed = with_attribute(changed, MARK, 1)
        self.nodes.append(replace(changed, inputs=tuple(inputs)))

    def place_output(self, name: str, layout: Order, taken: set[str]) -> str:
        """Name of the value to give out for a graph output; `taken` are inputs and outputs that are given out."""
        found = self._form(name, layout)
        plain = layout == identity(len(layout))
        if found in taken or all(found not in node.outputs for node in self.nodes):
            copied = self._free(f"{name}/output")
            self.values[copied] = replace(self.values[found], name=copied)
            self.nodes.append(Node(copied, "Identity", (found,), (copied,), opset=1))
            found = copied
        self.layouts.pop(found, None)
        if not plain:
            self.layouts[found] = layout
        return found

    def _store(self, name: str, layout: Order) -> None:
        """Record that a source value is stored under its own name in a layout."""
        self._stored[name] = Stored(name, layout)
        value = self.values[name]
        if value.shape is not None and layout != identity(len(layout)):
            self.layouts[name] = layout
            self.values[name] = replace(value, shape=permuted(value.shape, layout))

    def _operand(self, name: str, layout: Order | None, plan: Plan, node: Node, *, moved: bool) -> str:
        if layout is None:
            return self._constant(name, plan, node) if moved and name in self.graph.constants else name
        found = self._form(name, layout) if self._is_known(name) else name
        rank = len(plan.order)
        if not moved or node.operator not in ELEMENTWISE or not 0 < len(layout) < rank:
            return found
        wide = permuted((1,) * (rank - len(layout)) + self.graph.shape(name), plan.order)
        return self._reshaped(found, wide)

    def _is_known(self, name: str) -> bool:
        value = self.graph.values.get(name)
        return value is not None and value.shape is not None

    def _constant(self, name: str, plan: Plan, node: Node) -> str:
        """A constant among the data of a node, in the node's order of axes."""
        array, rank = self.graph.constants[name], len(plan.order)
        if name not in self._data(node) or array.ndim == 0:
            return name
        wide = array.reshape((1,) * (rank - array.ndim) + array.shape)
        stored = f"{name}/{''.join(map(str, plan.order))}"
        if stored not in self.constants:
            self.constants[stored] = np.ascontiguousarray(wide.transpose(plan.order))
        return stored

    def _data(self, node: Node) -> tuple[str, ...]:
        if node.operator in ELEMENTWISE or node.operator == "Concat":
            return node.inputs
        return node.inputs[:2] if node.operator == "GatherElements" else node.inputs[:1]

    def _form(self, name: str, layout: Order) -> str:
        """Name under which a value lies in a layout; it is moved there if it was not."""
        stored = self._stored.get(name)
        if stored is None or stored.layout == layout:
            return stored.name if stored is not None else name
        turn = tuple(stored.layout.index(axis) for axis in layout)
        key = (stored.name, turn)
        if key not in self._moved:
            self._moved[key] = self._turned(stored.name, turn)
        return self._moved[key]

    def _in_memory(self, name: str, layout: Order) -> str:
        """Like `_form`, but any layout will do that has the elements in the same places."""
        stored = self._stored.get(name)
        if stored is not None:
            turn = tuple(stored.layout.index(axis) for axis in layout)
            if keeps_order(self.values[stored.name].shape or (), turn):
                return stored.name
        return self._form(name, layout)

    def _turned(self, name: str, turn: Order) -> str:
        """Add the node that transposes a stored value; it is a Reshape when no element changes its place."""
        shape = self.values[name].shape or ()
        if keeps_order(shape, turn):
            return self._reshaped(name, permuted(shape, turn))
        moved = self._free(f"{name}/{''.join(map(str, turn))}")
        self.values[moved] = Value(moved, self.values[name].dtype, permuted(shape, turn))
        self.nodes.append(Node(moved, "Transpose", (name,), (moved,), {"perm": turn}, opset=1))
        return moved

    def _reshaped(self, name: str, shape: tuple[int, ...]) -> str:
        if self.values[name].shape == shape:
            return name
        key = (name, shape)
        if key not in self._shaped:
            moved = self._free(f"{name}/{'x'.join(map(str, shape))}")
            self.values[moved] = Value(moved, self.values[name].dtype, shape)
            self.nodes.append(Node(moved, "Reshape", (name,), (moved,), opset=1))
            self._shaped[key] = moved
        return self._shaped[key]

    def _reshape(self, node: Node, plan: Plan) -> None:
        """A reshape, unless the value already lies in the result's shape."""
        name, layout = node.outputs[0], plan.outputs[0] or ()
        found = self._in_memory(node.inputs[0], plan.inputs[0]) if plan.inputs[0] else node.inputs[0]
        shape = permuted(self.graph.shape(name), layout)
        if found in self.values and self.values[found].shape == shape:
            self._stored[name] = Stored(found, layout)
            return
        self._store(name, layout)
        self.nodes.append(Node(node.name, "Reshape", (found,), (name,), opset=node.opset))

    def _absorb(self, node: Node, plan: Plan) -> None:
        wide, flat = node.inputs[0], node.outputs[0]
        if plan.inputs[0] == plan.order:
            slots = reader_slots(self.graph, node, self._consumers)
        else:
            wide, flat = flat, wide
            slots = producer_slots(self.graph, node, self._consumers, self._producers)
        positions = reordering(self.graph.shape(wide), plan.order)
        for slot in slots:
            self.constants[slot.name] = reordered(self.constants[slot.name], slot, positions)

    def _free(self, wanted: str) -> str:
        free, number = wanted, 1
        while free in self.values or free in self.constants:
            free, number = f"{wanted};{number}", number + 1
        return free
