"""The layers of an ONNX graph as int8 runtimes see them: a product with its activation is one, moving values is none.

Pure: reads a graph and runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto, shape_inference

from edgefleet_converters.operator_work import COUNTED, macs
from edgefleet_converters.sensitivity import Branch, Conflict
from edgefleet_converters.tflite.graph import NotLowerableError
from edgefleet_converters.tflite.importer import import_model, part

Range = tuple[float, float]

MOVING = frozenset(
    (
        *("AveragePool", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "MaxPool", "Pad"),
        *("Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)
"""Operators whose output has its input's range, so that int8 takes nothing more from it."""

_FUSED = frozenset({"BatchNormalization", "Clip", "Relu"})
"""What every runtime makes part of the layer before it, if nothing else reads that."""

MOST_APART = 16.0
"""Ranges that differ more cannot share an int8 scale: the narrower one keeps fewer than 4 of its 8 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Nodes that are quantised together; `tensor` is what they hand on, `tensors` all their outputs that are read."""

    tensor: str
    tensors: tuple[str, ...]
    node: onnx.NodeProto
    macs: int


@dataclass(slots=True, eq=False)
class Layers:
    """All layers in the order of the file; `users` are the nodes that read a tensor."""

    found: tuple[Layer, ...]
    users: Mapping[str, list[onnx.NodeProto]]
    outputs: frozenset[str]
    _by_output: dict[str, Layer] = field(init=False)

    def __post_init__(self) -> None:
        self._by_output = {name: layer for layer in self.found for name in layer.tensors}

    def kept_with(self, layer: Layer) -> tuple[str, ...]:
        """Names that must be in float for a layer's output never to be int8: its own, and those of its readers."""
        kept = dict.fromkeys(layer.tensors)
        for node in self._behind(layer.tensor):
            reader = next((self._by_output[name] for name in node.output if name in self._by_output), None)
            kept.update(dict.fromkeys(reader.tensors if reader else filter(None, node.output)))
        return tuple(kept)

    def is_final(self, layer: Layer) -> bool:
        """Whether its values reach the model's outputs without any more arithmetic."""
        behind = list(self._behind(layer.tensor, (*MOVING, "Concat")))
        return all(node.op_type in MOVING or node.op_type == "Concat" for node in behind)

    def final_with(self, layer: Layer) -> tuple[str, ...]:
        """Names of a final layer and of all that moves its values."""
        behind = self._behind(layer.tensor, (*MOVING, "Concat"))
        return tuple(dict.fromkeys((*layer.tensors, *(name for node in behind for name in node.output if name))))

    def _behind(self, tensor: str, through: tuple[str, ...] | frozenset[str] = MOVING) -> Iterator[onnx.NodeProto]:
        """The nodes that read a tensor, and those that read it through others."""
        waiting, seen = list(self.users.get(tensor, ())), set()
        while waiting:
            node = waiting.pop(0)
            if id(node) in seen:
                continue
            seen.add(id(node))
            yield node
            if node.op_type in through:
                waiting += [reader for name in node.output for reader in self.users.get(name, ())]


def find_layers(model: onnx.ModelProto) -> Layers:
    """The layers that compute float32 tensors out of the model's inputs."""
    typed = shape_inference.infer_shapes(model).graph
    known = {item.name: item.type.tensor_type.elem_type for item in (*typed.value_info, *typed.output)}
    users: dict[str, list[onnx.NodeProto]] = {}
    outputs = frozenset(item.name for item in model.graph.output)
    nodes = _live(model.graph, outputs)
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)
    work = _macs(model)
    flowing = {item.name for item in model.graph.input} - {item.name for item in model.graph.initializer}
    found: dict[str, Layer] = {}
    for node in nodes:
        if not flowing & set(node.input):
            continue
        flowing.update(node.output)
        read = tuple(name for name in node.output if name in users or name in outputs)
        if node.op_type in MOVING or not read or known.get(read[0]) != TensorProto.FLOAT:
            continue
        layer = _with_tail(found, node, users, outputs)
        layer = layer or Layer(read[0], read, node, work.get(read[0], 0))
        found[layer.tensor] = layer
    return Layers(tuple(found.values()), users, outputs)


def _live(graph: onnx.GraphProto, outputs: frozenset[str]) -> list[onnx.NodeProto]:
    """The nodes that some output of the model needs: converters drop the others."""
    needed, kept = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input, *(_captured(item) for item in node.attribute))
            kept.append(node)
    return kept[::-1]


def _captured(attribute: onnx.AttributeProto) -> set[str]:
    """Names that the nodes of a subgraph read, its own among them."""
    found = set[str]()
    for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
        found.update(item.name for item in graph.output)
        for node in graph.node:
            found.update(node.input, *(_captured(item) for item in node.attribute))
    return found


def _with_tail(
    found: dict[str, Layer], node: onnx.NodeProto, users: Mapping[str, list[onnx.NodeProto]], outputs: frozenset[str]
) -> Layer | None:
    """The layer that a fused node belongs to, now with it."""
    source = node.input[0] if node.input else ""
    if node.op_type not in _FUSED or source not in found or source in outputs or len(users[source]) > 1:
        return None
    before = found.pop(source)
    return Layer(node.output[0], (*before.tensors, node.output[0]), before.node, before.macs)


def _macs(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-accumulates by the tensor that they compute; none where the graph cannot be read statically."""
    try:
        graph = import_model(part(model), COUNTED).graph
        return {name: macs(node, graph) for node in graph.nodes for name in node.outputs if name}
    except NotLowerableError:
        return {}


def find_conflicts(layers: Layers, ranges: Mapping[str, Range]) -> tuple[Conflict, ...]:
    """Concats at the end whose branches differ more than 16 x in range; a branch that is always 0 takes any scale."""
    found = []
    for layer in layers.found:
        if layer.node.op_type != "Concat" or not layers.is_final(layer):
            continue
        spans = [(name, *ranges[name]) for name in layer.node.input if name in ranges]
        branches = [
            branch for branch in (Branch(tensor=at, low=low, high=high) for at, low, high in spans) if branch.peak
        ]
        branches.sort(key=lambda branch: branch.peak)
        if len(branches) > 1 and branches[-1].peak > MOST_APART * branches[0].peak:
            found.append(
                Conflict(
                    tensor=layer.tensor,
                    widest=branches[-1],
                    narrowest=branches[0],
                    float_tensors=layers.final_with(layer),
                )
            )
    return tuple(found)
