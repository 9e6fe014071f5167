"""First pass: an ONNX protobuf becomes our graph, with static types, constants folded and functions opened.

Does not judge operators: what has no rule comes out as it is, and `lower` says what it cannot express.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from edgefleet_converters.tflite.expansion import STANDARD_DOMAINS, Expansion
from edgefleet_converters.tflite.graph import Array, Graph, Node, NotLowerableError
from edgefleet_converters.tflite.walking import Scope


@dataclass(frozen=True, slots=True)
class Imported:
    """A graph, and the names of its nodes that a function body could stand in for."""

    graph: Graph
    openable: frozenset[str]


@dataclass(frozen=True, slots=True)
class Source:
    """A model whose initializers may lack their data, and the arrays of those by name.

    One protobuf message gives up its memory only as a whole, so the weights must leave it before it can go.
    """

    model: onnx.ModelProto
    weights: dict[str, Array]


def part(model: onnx.ModelProto | Source) -> Source:
    """A model without any initializers, and the arrays of all; what is given is not changed, nor needed any longer."""
    if isinstance(model, Source):
        held = [tensor for tensor in model.model.graph.initializer if tensor.name not in model.weights]
        return Source(_light(model.model), {**model.weights, **_arrays(held)})
    return Source(_light(model), _arrays(model.graph.initializer))


def _arrays(tensors: Iterable[onnx.TensorProto]) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = onnx.GraphProto(name=model.graph.name, node=model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    light = onnx.ModelProto(ir_version=model.ir_version, graph=graph, opset_import=model.opset_import)
    light.functions.extend(model.functions)
    return light


def import_model(model: Source, ruled: Collection[str], opened: Collection[str] = ()) -> Imported:
    """Graph of a checked model; an operator outside the standard domain keeps its domain in its name.

    `ruled` are operators that are not opened into their function body, except in the nodes named in `opened`.
    Raises NotLowerableError for a graph whose inputs are not tensors.
    """
    source = model.model.graph
    expansion = Expansion(
        ruled,
        opened,
        functions={(item.domain, item.name, item.overload): item for item in model.model.functions},
        declared={item.name: item.type for item in (*source.value_info, *source.output)},
    )
    imports = model.model.opset_import
    scope = Scope({"" if entry.domain in STANDARD_DOMAINS else entry.domain: entry.version for entry in imports})
    if source.sparse_initializer:
        raise NotLowerableError("sparse initializers")
    for name, array in model.weights.items():
        expansion.know(name, array)
        scope.names[name] = name
    inputs = [item for item in source.input if item.name not in expansion.known]
    for item in inputs:
        if not item.type.HasField("tensor_type"):
            raise NotLowerableError(f"the input {item.name!r} is not a tensor")
        expansion.types[item.name] = item.type
        scope.names[item.name] = item.name
        expansion.know_if_empty(item.name)
    expansion.run(source.node, scope)
    outputs = {item.name: scope.names[item.name] for item in source.output}
    graph = _graph(expansion, [item.name for item in inputs], outputs)
    return Imported(graph, frozenset(expansion.openable))


def _graph(expansion: Expansion, inputs: list[str], outputs: dict[str, str]) -> Graph:
    """The graph as it was walked, without the nodes that no output needs."""
    nodes, computed = list(expansion.nodes), []
    produced = {name for node in nodes for name in node.outputs}
    for public, name in outputs.items():
        unique = name
        if name not in produced or name in computed or (public in inputs and name == public):
            unique = f"{public}/output"
            expansion.types[unique] = expansion.types[name]
            nodes.append(Node(f"{public}/copy", "Identity", (name,), (unique,), opset=1))
        computed.append(unique)
    kept = _needed(nodes, computed)
    read = {name for node in kept for name in node.inputs if name}
    constants: dict[str, Array] = {}
    for name in read:
        if isinstance(value := expansion.known.get(name), np.ndarray):
            constants[name] = value
    flowing = {*inputs, *(name for node in kept for name in node.outputs if name), *(read - set(constants))}
    return Graph(
        nodes=tuple(kept),
        values={name: expansion.value(name) for name in sorted(flowing)},
        constants=constants,
        inputs=tuple(inputs),
        outputs=tuple(computed),
        output_names=tuple(outputs),
    )


def _needed(nodes: list[Node], outputs: list[str]) -> list[Node]:
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    return kept[::-1]
