"""ONNX graphs as the steps need them: files without ballast, and where the layers of the source are after a toolchain.

Not a step itself, and loads no toolchain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import onnx

from edgefleet.errors import InputError

# ONNX Runtime's tools leave notes to each other under such keys.
_TOOLS_OWN = "onnx."


def save_clean(model: onnx.ModelProto, path: Path) -> None:
    """Write a model without what no runtime needs: documentation, inferred shapes, constants that nobody reads.

    Constants leave the list of inputs, because ONNX Runtime folds only those that no caller may change.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    read = {name for node in _nodes(graph) for name in node.input} | {item.name for item in graph.output}
    _keep(graph.input, [item for item in graph.input if item.name not in constants])
    _keep(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read])
    del graph.value_info[:]
    _keep(model.metadata_props, [entry for entry in model.metadata_props if not entry.key.startswith(_TOOLS_OWN)])
    for part in (model, graph, *graph.input, *graph.output, *graph.initializer, *_nodes(graph)):
        part.ClearField("doc_string")
    for node in _nodes(graph):
        del node.metadata_props[:]
    onnx.save(model, path)


def _keep(field: object, kept: list[object]) -> None:
    if len(kept) != len(field):  # type: ignore[arg-type] # protobuf's repeated field, which has no public type
        copies = [type(item).FromString(item.SerializeToString()) for item in kept]  # type: ignore[attr-defined]
        del field[:]  # type: ignore[attr-defined]
        field.extend(copies)  # type: ignore[attr-defined]


def _nodes(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    """Every node, those of subgraphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _nodes(inner)


def has_attention(model: onnx.ModelProto) -> bool:
    """Whether something is weighted by a softmax of products, as one operator or in parts."""
    weights = {node.output[0] for node in model.graph.node if node.op_type == "Softmax"}
    return any(
        node.op_type == "Attention" or (node.op_type == "MatMul" and weights & set(node.input))
        for node in model.graph.node
    )


def surviving(source: onnx.ModelProto, wanted: Iterable[str], present: Collection[str]) -> list[str]:
    """For each tensor of the source, the one that stands for it where a toolchain fused its layer into a later one.

    Raises InputError for a name that is no layer's output, or has left no trace.
    """
    found = (_survivor(source, name, present) for name in wanted)
    return list(dict.fromkeys(found))


def _survivor(source: onnx.ModelProto, wanted: str, present: Collection[str]) -> str:
    front, seen = [wanted], {wanted}
    if not any(wanted in node.output for node in source.graph.node):
        front = []
    while front:
        for name in front:
            if name in present:
                return name
        readers = [node for node in source.graph.node if set(front) & set(node.input)]
        front = [name for node in readers for name in node.output if name and name not in seen]
        seen.update(front)
    found = "the converted model has no such layer"
    raise InputError(f"keeping {wanted!r} in float", found, "name the output of a layer of the source model")
