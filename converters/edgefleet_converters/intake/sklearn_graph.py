"""What skl2onnx writes, in a form that more runtimes take: plain operators, probabilities first, no text.

Does not change numbers; `sklearn_export` decides what to write.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper

_FLAT = "edgefleet/flat"


def simplify(model: onnx.ModelProto) -> list[str]:
    """Change a classifier's or regressor's graph in place; returns the names of text outputs that were left out."""
    graph = model.graph
    # ONNX Runtime's tools and the version converter look for it, whether or not an operator needs it.
    if not any(entry.domain in ("", "ai.onnx") for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", 17))
    texts = [item.name for item in graph.output if item.type.tensor_type.elem_type == TensorProto.STRING]
    numbers = [item for item in graph.output if item.name not in texts]
    ordered = sorted(numbers, key=lambda item: item.type.tensor_type.elem_type != TensorProto.FLOAT)
    del graph.output[:]
    graph.output.extend(ordered)
    _drop_unused(graph)
    _gather_features(graph)
    return texts


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes that no output needs, and their constants."""
    needed = {item.name for item in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= {*node.input, *_captured(node)}
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _captured(node: onnx.NodeProto) -> Iterable[str]:
    """Names that a node's subgraphs read, which may be the outer graph's."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from (*inner.input, *_captured(inner))
            yield from (item.name for item in attribute.g.output)


def _gather_features(graph: onnx.GraphProto) -> None:
    """ArrayFeatureExtractor of a constant row as the Gather that it is; its result is [1, indices] there."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    plain = []
    for node in graph.node:
        row = constants.get(node.input[0]) if node.op_type == "ArrayFeatureExtractor" else None
        if row is None or len(row.dims) > 2 or (len(row.dims) == 2 and row.dims[0] != 1):
            plain.append(node)
            continue
        if len(row.dims) == 1:
            row.dims.insert(0, 1)
        if _FLAT not in constants:
            constants[_FLAT] = helper.make_tensor(_FLAT, TensorProto.INT64, [1], [-1])
            graph.initializer.append(constants[_FLAT])
        indices = f"{node.output[0]}/indices"
        plain.append(helper.make_node("Reshape", [node.input[1], _FLAT], [indices]))
        plain.append(helper.make_node("Gather", [node.input[0], indices], list(node.output), axis=1))
    del graph.node[:]
    graph.node.extend(plain)
