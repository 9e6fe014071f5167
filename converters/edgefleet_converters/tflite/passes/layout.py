"""Layout assignment: spatial operators work on channels-last (NHWC) values; as little as possible is moved.

A graph input or output may stay channels-last in the file; its entry in `layouts` tells whoever runs it to
permute. Only rank 4 has a channels-last form here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from edgefleet_converters.tflite.graph import (
    CHANNELS_LAST,
    Array,
    Graph,
    Node,
    NotLowerableError,
    Value,
    inverse,
    keeps_order,
    permuted,
)

# Read and write channels-last through their first input and first output.
_SPATIAL = ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool")
# Work on any layout, as long as all their operands have the same.
_FOLLOWING = frozenset(
    (
        *("Abs", "Add", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
        *("HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow"),
        *("Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub"),
        *("Sum", "Swish", "Tanh", "ThresholdedRelu"),
    )
)
# Only the order of elements matters, not where the axes are.
_RESHAPING = ("Flatten", "Reshape")


def assign_layouts(graph: Graph, inputs: Mapping[str, bool] | None = None, *, keep: bool = False) -> Graph:
    """Choose each value's layout, permute constants, and add Transpose nodes where two layouts meet.

    With `keep`, graph inputs and outputs stay as they are in the source; `inputs` says of single inputs whether they
    are channels-last.
    """
    draft = _Draft(graph, dict(graph.values), dict(graph.constants))
    _choose_inputs(draft, inputs or {}, keep=keep)
    for node in graph.nodes:
        if node.operator in _SPATIAL and len(graph.shape(node.inputs[0])) == len(CHANNELS_LAST):
            draft.add(node, (draft.channels_last(node.inputs[0]), *node.inputs[1:]), channels_last=True)
        elif node.operator in _FOLLOWING:
            _follow(draft, node)
        elif node.operator in _RESHAPING:
            _reshape(draft, node)
        else:
            draft.add(node, tuple(draft.source_layout(name) for name in node.inputs))
    if keep:
        graph = replace(graph, outputs=tuple(draft.source_layout(name) for name in graph.outputs))
    placed = replace(graph, values=draft.values, layouts=draft.layouts)
    return placed.with_nodes(draft.nodes, draft.constants)


@dataclass(slots=True)
class _Draft:
    """The new graph while it is being written."""

    graph: Graph
    values: dict[str, Value]
    constants: dict[str, Array]
    layouts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def add(self, node: Node, inputs: tuple[str, ...], *, channels_last: bool = False) -> None:
        """Append a node; with `channels_last` its first output is stored so."""
        if channels_last:
            self.store_channels_last(node.outputs[0])
        self.nodes.append(replace(node, inputs=inputs))

    def store_channels_last(self, name: str) -> None:
        """Record that a value, whose shape is still the source's, is stored channels-last."""
        self.layouts[name] = CHANNELS_LAST
        self.values[name] = replace(self.values[name], shape=permuted(self.graph.shape(name), CHANNELS_LAST))

    def channels_last(self, name: str) -> str:
        """Name of the channels-last form of a value or constant of rank 4 or, for constants, less."""
        if name in self.layouts:
            return name
        if name in self.constants:
            array = self.constants[name]
            wide = array.reshape((1,) * (len(CHANNELS_LAST) - array.ndim) + array.shape)
            self.constants[f"{name}/nhwc"] = np.ascontiguousarray(wide.transpose(CHANNELS_LAST))
            return f"{name}/nhwc"
        return self._move(name, f"{name}/nhwc", CHANNELS_LAST)

    def source_layout(self, name: str) -> str:
        """Name of the form of a value in the source's layout."""
        if name not in self.layouts:
            return name
        return self._move(name, f"{name}/nchw", inverse(self.layouts[name]))

    def _move(self, name: str, moved: str, permutation: tuple[int, ...]) -> str:
        """Add the node that transposes a value, once; it is a Reshape when no element changes its place."""
        if moved in self.values:
            return moved
        value = self.values[name]
        stored = value.shape or ()
        self.values[moved] = Value(moved, value.dtype, permuted(stored, permutation))
        if keeps_order(stored, permutation):
            self.nodes.append(Node(moved, "Reshape", (name,), (moved,)))
        else:
            self.nodes.append(Node(moved, "Transpose", (name,), (moved,), {"perm": permutation}))
        return moved


def _choose_inputs(draft: _Draft, asked: Mapping[str, bool], *, keep: bool) -> None:
    """Store a graph input channels-last when a spatial node reads it, directly or past elementwise nodes."""
    wanted: set[str] = set()
    for node in reversed(draft.graph.nodes):
        if node.operator in _SPATIAL and node.inputs:
            wanted.add(node.inputs[0])
        elif node.operator in _FOLLOWING and node.outputs[0] in wanted:
            wanted.update(node.inputs)
    for name in draft.graph.inputs:
        value = draft.graph.values[name]
        wide = value.shape is not None and len(value.shape) == len(CHANNELS_LAST)
        if asked.get(name) and not wide:
            raise NotLowerableError(f"the input {name!r} has no channels-last form: it is not of rank 4")
        if wide and asked.get(name, not keep and name in wanted and value.dtype == "float32"):
            draft.store_channels_last(name)


def _follow(draft: _Draft, node: Node) -> None:
    """Keep an elementwise node channels-last if any operand is, and all of them can be."""
    graph = draft.graph
    flowing = [name for name in node.inputs if name and name not in draft.constants]
    wide = all(len(graph.shape(name)) == len(CHANNELS_LAST) for name in (*flowing, *node.outputs))
    if wide and any(name in draft.layouts for name in flowing):
        draft.add(node, tuple(draft.channels_last(name) if name else "" for name in node.inputs), channels_last=True)
    else:
        draft.add(node, tuple(draft.source_layout(name) for name in node.inputs))


def _reshape(draft: _Draft, node: Node) -> None:
    """A Flatten or Reshape of a channels-last value: free, paid by later weights, or transposed first."""
    name = node.inputs[0]
    if name not in draft.layouts:
        draft.add(node, node.inputs)
        return
    stored = draft.values[name].shape or ()
    if keeps_order(stored, inverse(draft.layouts[name])) or _reorder_weights(draft, node):
        draft.add(node, (name,))
    else:
        draft.add(node, (draft.source_layout(name),))


def _reorder_weights(draft: _Draft, node: Node) -> bool:
    """Reorder the weights of all Gemm nodes that read this flattened batch of 1; False when not possible."""
    graph, output = draft.graph, node.outputs[0]
    shape = graph.shape(node.inputs[0])
    readers = [other for other in graph.nodes if output in other.inputs]
    possible = graph.shape(output) == (1, int(np.prod(shape))) and output not in graph.outputs
    weights = {reader.input(1) for reader in readers}
    # A weight that another node reads too would have to exist in both orders.
    if not (possible and readers and all(_is_plain_gemm(graph, reader, output) for reader in readers)):
        return False
    if any(reader not in readers for name in weights for reader in graph.consumers()[name]):
        return False
    order = np.arange(np.prod(shape)).reshape(shape).transpose(CHANNELS_LAST).ravel()
    for reader in {reader.input(1): reader for reader in readers}.values():
        weight = draft.constants[reader.input(1)]
        rows = reader.integer("transB", 0) == 0
        draft.constants[reader.input(1)] = weight[order] if rows else weight[:, order]
    return True


def _is_plain_gemm(graph: Graph, node: Node, data: str) -> bool:
    plain = node.operator == "Gemm" and node.inputs[0] == data and node.integer("transA", 0) == 0
    return plain and node.input(1) in graph.constants and data not in node.inputs[1:]
